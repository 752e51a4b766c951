"""Subnets in etcd, under flannel's keys: nodes that run flannel and nodes that run this are one network.

    <prefix>/config                     NetworkConfig, an operator's
    <prefix>/subnets/10.5.52.0-24       a lease each, on an etcd lease of a day; without one it is a reservation
    <prefix>/tortie/nodes/192.0.2.7     a daemon that lives (`presence`)       ┐ ours; flannel does
    <prefix>/tortie/history             a random value, written once           ┘ not look at them

    acquire ──► subnet.choose ──► one transaction, tried again when others were quicker
    keep ──► our key is watched: gone ──► LeaseLost
                                 written by somebody else ──► a problem that is told
                                 etcd has lost its data ──► published again, under the same subnet
         ──► renewed in time; every 20 s a sign of life
    neighbours ──► list, watch, list again (`remembered`: what a list lacks is not always gone)

etcd may be away at any time: nothing is forgotten for it. Renewing is tried again every 2 to 8 s where flannel waits a
minute: with the smallest margin of a minute flannel's second try comes too late, and by chance, so that nodes that all
wait for one etcd do not come at once. A key that is deleted, or that expires, is believed to be gone: that somebody has
deleted it is told by etcd's own history. That history is another one when the random value is another or is missing, or
when revisions have gone back (an etcd restarted empty, or restored from a backup): then other nodes' leases that are
missing are remembered until they would have expired, and ours is published again, unless somebody has its subnet.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import NoReturn

from tortie.base.errors import Compacted, ConfigError, NotFound, TortieError, Unavailable
from tortie.base.logs import Seldom
from tortie.flannel.config import NetworkConfig, checked, parse
from tortie.flannel.lease import Attrs, Lease, key_of, read_value, subnets, value
from tortie.flannel.manager import LeaseLost, Leases, Overrides, Previous
from tortie.flannel.presence import BEAT, Machine, Presence
from tortie.flannel.remembered import TTL, History, Known, overlap
from tortie.flannel.subnet import Choice, choose, is_own, own
from tortie.model.apiconfig import ApiConfig, is_of_a_server
from tortie.store.etcd.keyspace import Change, Entry, Keyspace, Reading, Span
from tortie.store.etcd.wire import PATIENCE, QUIET
from tortie.store.relisting import Relisting

log = logging.getLogger(__name__)

ATTEMPTS = 10
"""How often a subnet is chosen anew when others were quicker."""
AT_ONCE = 16
"""Questions for the time that a lease has left."""
RETRY = (2.0, 8.0)
"""Seconds until renewing is tried again, from and to."""
PAUSE = (0.3, 1.5)
"""Seconds until etcd is asked again after it was away, from and to; a question itself has patience."""
GOODBYE = 2.0
"""Seconds that the end may take."""
ENDPOINTS = "--etcd-endpoints"
FLAGS = {
    "etcdCACertFile": "--etcd-cafile",
    "etcdCertFile": "--etcd-certfile",
    "etcdCertFile (or etcdCert)": "--etcd-certfile",
    "etcdKeyFile": "--etcd-keyfile",
    "etcdKeyFile (or etcdKey)": "--etcd-keyfile",
}
"""What our datastores call them."""
LOST = "Lease has been revoked. Shutting down daemon."


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """`renew_margin` is in minutes. TLS is what endpoints with https:// speak."""

    endpoints: tuple[str, ...] = ("http://127.0.0.1:4001", "http://127.0.0.1:2379")
    prefix: str = "/coreos.com/network"
    keyfile: str = ""
    certfile: str = ""
    cafile: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    renew_margin: float = 60
    machine: Machine = field(default_factory=Machine.here)


class EtcdManager:
    """Implements `SubnetManager`. `patience` and `quiet` are as for a store, `beat` is in seconds."""

    def __init__(
        self, options: EtcdOptions, patience: float = PATIENCE, quiet: float = QUIET, beat: float = BEAT
    ) -> None:
        """Raises ConfigError; nothing is asked yet."""
        self._prefix = "/" + options.prefix.strip("/")
        try:
            self._keys = Keyspace(_access(options), f"{self._prefix}/", patience, quiet)
        except ConfigError as error:
            raise ConfigError(error.message, *(FLAGS.get(part, part) for part in error.where)) from None
        self._margin = 60.0 * options.renew_margin
        self._rhythm = beat
        self._presence = Presence(self._keys, self._prefix, options.machine)
        self._subnets = f"{self._prefix}/subnets/"
        self._mark = f"{self._prefix}/tortie/history"
        self._history: History | None = None
        self._rewritten = 0
        """How often the history was another one."""
        self._published_in = 0
        """`_rewritten`, when our key was last written or seen."""
        self._ends: dict[int, float] = {}
        """When etcd's leases end, in seconds since 1970."""
        self._strange: dict[str, str] = {}
        self._trouble: dict[str, str] = {}
        self._complain = Seldom(log)
        self._entry: Entry | None = None
        """Our own, as it was last seen."""
        self._due: float | None = None
        """When it is to be renewed, by the monotonic clock; None for a reservation."""

    @property
    def where(self) -> str:
        return self._keys.where

    @property
    def problems(self) -> tuple[str, ...]:
        presence = (self._presence.problem,) if self._presence.problem else ()
        return (*self._trouble.values(), *presence, *self._strange.values())

    async def network(self) -> NetworkConfig:
        key = f"{self._prefix}/config"
        found = await self._keys.get(key)
        if found is None:
            example = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
            raise NotFound(f"{self.where} has no key {key}: etcdctl put {key} '{example}'")
        where = f"{self.where}: {key}"
        config = parse(found.value, where)
        try:
            return checked(config)
        except ConfigError as error:
            raise error.within(where) from None

    async def overrides(self) -> Overrides:
        return Overrides()

    async def remembered(self, attrs: Attrs) -> Attrs | None:
        leases = self._with_ours((await self._keys.read(Span.prefix(self._subnets))).entries, attrs)
        ours = own(leases, attrs)
        return leases[ours[0]].attrs if ours else None

    async def leases(self) -> Leases:
        every = (await self._keys.read(Span.prefix(self._subnets), self._presence.span)).entries
        entries = [entry for entry in every if entry.key.startswith(self._subnets)]
        await self._ask_ends(entries)
        hosts = self._presence.hosts(every)
        return {
            name: replace(lease, node=hosts.get(str(lease.attrs.public_ip), ""))
            for name, lease in self._decoded(entries).items()
        }

    async def tell_ready(self) -> None:
        """Nobody in etcd wants to know."""

    async def close(self) -> None:
        with suppress(TimeoutError, TortieError):
            async with asyncio.timeout(GOODBYE):
                await self._presence.leave()
        await self._keys.close()

    # --- our own lease ----------------------------------------------------------------------------------------------

    async def acquire(self, config: NetworkConfig, attrs: Attrs, previous: Previous) -> Lease:
        checked(config)
        if attrs.public_ip is None:
            raise ConfigError("this node has no public IPv4 address, which its lease is known by: give --public-ip")
        await self._presence.claim(attrs.public_ip)
        for attempt in range(ATTEMPTS):
            await asyncio.sleep(random.uniform(0, 0.05 * attempt))
            entries = {self._name(entry): entry for entry in (await self._read()).entries}
            leases = self._with_ours(entries.values(), attrs)
            choice = choose(config, leases, attrs, previous, random.Random())
            if lease := await self._published(choice, attrs, entries):
                return lease
        raise Unavailable(f"{self.where}: max retries reached trying to acquire a subnet")

    def _with_ours(self, entries: Iterable[Entry], attrs: Attrs) -> dict[str, Lease]:
        """The leases; what this daemon wrote while the node had another address is of this node, too."""
        leases = self._decoded(entries)
        if self._entry is not None and self._entry in entries:
            name = self._name(self._entry)
            leases[name] = replace(leases[name], attrs=replace(leases[name].attrs, public_ip=attrs.public_ip))
        return leases

    async def _published(self, choice: Choice, attrs: Attrs, entries: Mapping[str, Entry]) -> Lease | None:
        """The lease; None when one of the keys has changed in the meantime."""
        lease = Lease(choice.subnet, choice.subnet6, attrs, None if choice.reserved else time.time() + TTL)
        at = entries[choice.entry].revision if choice.entry else 0
        instead = [entries[name] for name in choice.instead]
        if not await self._write(lease, choice.reserved, at, instead):
            return None
        did = "renewed" if choice.entry else "created"
        log.info("lease %s %s%s", self._key(lease), did, ", a reservation" if choice.reserved else "")
        return lease

    async def _write(self, lease: Lease, reserved: bool, at: int, instead: Iterable[Entry] = ()) -> bool:
        """Whether it was written over what is at a revision. A reservation gets no etcd lease: it would expire."""
        history = self._rewritten
        granted = 0 if reserved else await self._keys.grant(TTL)
        entry = await self._keys.swap(self._key(lease), value(lease.attrs), granted, at, tuple(instead))
        if entry is None:
            if granted:
                await self._keys.revoke(granted)
            return False
        self._entry, self._published_in = entry, history
        self._due = time.monotonic() + TTL - self._margin if granted else None
        return True

    async def keep(self, own: Lease) -> None:
        lost: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._beat(), name="flannel sign of life")
                await self._hold(own)
        except* LeaseLost as group:
            lost = group.exceptions[0]
        if lost is not None:
            raise lost

    async def _beat(self) -> NoReturn:
        """The signs of life, by which also a lost history is noticed that no watch tells of."""
        while True:
            await asyncio.sleep(self._rhythm * random.uniform(0.9, 1.1))
            try:
                await self._presence.beat()
                await self._read(Span.key(self._mark))
            except TortieError as error:
                self._complain.warning(str(error))

    async def _hold(self, own: Lease) -> NoReturn:
        """Raises LeaseLost."""
        again = Relisting()
        while True:
            left = None if self._due is None else max(0.0, self._due - time.monotonic())
            try:
                async with asyncio.timeout(left):
                    await self._guard(own)
            except TimeoutError:
                if self._due is not None:
                    await self._renew(own)
            except LeaseLost:
                raise
            except Compacted:
                await asyncio.sleep(again.lost())
            except TortieError as error:
                await self._away(error)

    async def _guard(self, own: Lease) -> None:
        """Watches our key until it becomes a reservation, or is none any more. Raises LeaseLost."""
        reading = await self._read(Span.key(self._key(own)))
        self._trouble.pop("away", None)
        found = next((entry for entry in reading.entries if entry.key == self._key(own)), None)
        if found is None and self._published_in != self._rewritten:
            await self._publish_again(own)
            return
        reserved = self._due is None
        self._seen(own, found)
        async with aclosing(self._keys.watch(Span.key(self._key(own)), reading)) as batches:
            while reserved == (self._due is None):
                for change in await anext(batches):
                    self._seen(own, change.entry)

    def _seen(self, own: Lease, entry: Entry | None) -> None:
        """What our key holds. Raises LeaseLost."""
        if entry is None:
            log.error(LOST)
            raise LeaseLost(LOST)
        self._entry, self._published_in = entry, self._rewritten
        if entry.lease == 0:
            self._due = None
        elif self._due is None:
            self._due = time.monotonic() + TTL - self._margin
        self._trouble.pop("overwritten", None)
        if entry.value != value(own.attrs):
            self._trouble["overwritten"] = self._complained(
                f"{entry.key}: this node's lease was written by somebody else: {entry.value}: another daemon with"
                f" public IP {own.attrs.public_ip} runs; each node needs an address of its own"
            )

    async def _publish_again(self, own: Lease) -> None:
        """After etcd has lost its data. Raises LeaseLost when somebody has the subnet by now."""
        stored = self._decoded((await self._read()).entries)
        if any(overlap(lease, own) for lease in stored.values()) or not await self._write(own, self._due is None, 0):
            self._seen(own, None)
        log.warning("%s has lost its data: %s is published again", self.where, self._key(own))

    async def _renew(self, own: Lease) -> None:
        assert self._entry is not None
        try:
            if await self._write(own, False, self._entry.revision):
                log.info("lease %s renewed", self._key(own))
            else:  # it was written or deleted this instant, which the watch tells
                self._due = time.monotonic() + random.uniform(*PAUSE)
            self._trouble.pop("renew", None)
        except TortieError as error:
            self._due = time.monotonic() + random.uniform(*RETRY)
            self._trouble["renew"] = self._complained(f"the lease {self._key(own)} cannot be renewed yet: {error}")

    # --- other nodes ------------------------------------------------------------------------------------------------

    async def neighbours(self, own: Lease) -> AsyncIterator[Leases]:
        known, history, again = Known(), self._rewritten, Relisting()
        while True:
            timer: asyncio.TimerHandle | None = None
            try:
                reading = await self._read()
                await self._ask_ends(reading.entries)
                self._trouble.pop("away", None)
                self._strange.clear()
                known = known.listed(self._decoded(reading.entries), self._rewritten == history, time.time())
                history = self._rewritten
                if known.next_end is not None:
                    after = max(1.0, known.next_end - time.time())
                    timer = asyncio.get_running_loop().call_later(after, self._keys.break_off)
                yield self._others(known, own)
                async with aclosing(self._keys.watch(Span.prefix(self._subnets), reading)) as batches:
                    async for batch in batches:
                        new = {self._name(change): change.entry for change in batch}
                        for entry in filter(None, new.values()):
                            self._ends[entry.lease] = time.time() + TTL  # it was granted just now
                        leases = self._decoded(filter(None, new.values()))
                        known = known.changed(((name, leases.get(name)) for name in new), time.time())
                        if set(new) != {_name_of(own)}:
                            yield self._others(known, own)
            except Compacted as error:
                log.debug("%s", error)
                await asyncio.sleep(again.lost())
            except TortieError as error:
                await self._away(error)
            finally:
                if timer is not None:
                    timer.cancel()

    def _others(self, known: Known, own: Lease) -> Leases:
        """Without this node's, and without those that nobody can be reached by."""
        ours = {name for name, lease in known.all.items() if is_own(lease, own.attrs)} | {_name_of(own)}
        more = sorted(ours - {_name_of(own)})
        self._trouble.pop("more", None)
        if more:
            self._trouble["more"] = self._complained(
                f"{', '.join(more)}: leased to {own.attrs.public_ip}, too, which is this node, and not used by it"
            )
        return {
            name: lease
            for name, lease in known.all.items()
            if name not in ours and (lease.attrs.public_ip is not None or lease.attrs.public_ipv6 is not None)
        }

    # --- reading ----------------------------------------------------------------------------------------------------

    async def _read(self, span: Span | None = None) -> Reading:
        """Keys, all leases' if no others are said, and whether the history is still the one that was: see
        `_rewritten`."""
        span = span or Span.prefix(self._subnets)
        while True:
            before = self._history
            reading = await self._keys.read(span, Span.key(self._mark))
            marks = [entry.value for entry in reading.entries if entry.key == self._mark]
            if not marks:
                await self._keys.swap(self._mark, uuid.uuid4().hex)
                continue
            if before is not None and not before.goes_on(marks[0], reading.revision):
                self._rewritten += 1
                log.warning("%s has another history than it had: its data was lost, or restored", self.where)
                self._keys.break_off()
            self._history = History(marks[0], reading.revision)
            return Reading(
                tuple(entry for entry in reading.entries if entry.key != self._mark), reading.revision, reading.cluster
            )

    def _decoded(self, entries: Iterable[Entry]) -> dict[str, Lease]:
        """By the rest of their keys. What cannot be read holds its subnet, and is told."""
        leases = {}
        for entry in entries:
            name = self._name(entry)
            self._strange.pop(name, None)
            subnet, subnet6 = subnets(name)
            try:
                if subnet is None and subnet6 is None:
                    raise ConfigError("is not the key of a subnet, such as 10.5.52.0-24")
                attrs = read_value(entry.value)
            except ConfigError as error:
                attrs = Attrs()
                self._strange[name] = self._complained(str(error.within(entry.key)))
            if subnet is not None or subnet6 is not None:
                expires = None if entry.lease == 0 else self._ends.get(entry.lease, time.time() + TTL)
                leases[name] = Lease(subnet, subnet6, attrs, expires)
        return leases

    async def _ask_ends(self, entries: Iterable[Entry]) -> None:
        """When leases end that we have not heard of before; who is gone is forgotten."""
        numbers = {entry.lease for entry in entries if entry.lease}
        self._ends = {number: end for number, end in self._ends.items() if number in numbers}
        turn = asyncio.Semaphore(AT_ONCE)

        async def ask(number: int) -> None:
            async with turn:
                self._ends[number] = time.time() + await self._keys.remaining(number)

        asked = [asyncio.create_task(ask(number)) for number in numbers - self._ends.keys()]
        try:
            await asyncio.gather(*asked)
        finally:
            for one in asked:  # where one gets no answer the others get none either, and there may be thousands
                one.cancel()

    async def _away(self, error: TortieError) -> None:
        self._trouble["away"] = self._complained(str(error))
        await asyncio.sleep(random.uniform(*PAUSE))

    def _complained(self, text: str) -> str:
        self._complain.warning(text)
        return text

    def _key(self, lease: Lease) -> str:
        return self._subnets + _name_of(lease)

    def _name(self, entry: Entry | Change) -> str:
        return entry.key.removeprefix(self._subnets)


def _name_of(lease: Lease) -> str:
    return key_of(lease.subnet, lease.subnet6)


def _access(options: EtcdOptions) -> ApiConfig:
    """Raises ConfigError."""
    scheme = "https" if options.keyfile and options.certfile else "http"
    urls = [one if "://" in one else f"{scheme}://{one}" for one in options.endpoints]
    for url in urls:
        if "@" in url:
            raise ConfigError("a password in a URL would be seen: give --etcd-username, --etcd-password", ENDPOINTS)
        if not is_of_a_server(url):
            raise ConfigError(f'"{url}" is not a URL such as http://192.0.2.1:2379', ENDPOINTS)
    if not urls:
        raise ConfigError("is empty: the URLs of etcd's members, such as http://192.0.2.1:2379", ENDPOINTS)
    return ApiConfig(
        etcd_endpoints=",".join(urls),
        etcd_username=options.username,
        etcd_password=options.password,
        etcd_key_file=options.keyfile,
        etcd_cert_file=options.certfile,
        etcd_ca_cert_file=options.cafile,
    )
