"""Names that are not the cluster's: asked of other servers, and remembered for as long as they say.

    ask ─► remembered? ─► being asked for already? ─► the servers, in their order; one that did not answer comes last

Over UDP, and over TCP what does not fit. Of all who ask for the same at the same time one question goes out.
Source: RFC 2308 (how long it is remembered that something is not there), RFC 9520 (failures).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from tortie.base.errors import ConfigError
from tortie.base.logs import Seldom
from tortie.dns.places import Place, place, places
from tortie.dns.wire import PAYLOAD

SECONDS = 2.0  # for one server
SHUNNED = 10.0
"""Seconds in which a server that did not answer is asked last."""
MOST_AT_ONCE = 1000
"""Questions under way; who asks when there are more is told that it failed."""
MOST_REMEMBERED = 10_000
LONGEST, LONGEST_NEGATIVE, FAILURE = 3600, 300, 5  # seconds that are remembered at most
_PASSED_ON = dns.flags.RD | dns.flags.CD

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Told:
    """What another server said."""

    rcode: dns.rcode.Rcode
    answer: tuple[dns.rrset.RRset, ...] = ()
    authority: tuple[dns.rrset.RRset, ...] = ()
    additional: tuple[dns.rrset.RRset, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for. `flags` are those that are passed on; `dnssec`: whether signatures are wanted, too."""

    name: dns.name.Name
    type: dns.rdatatype.RdataType
    flags: int = int(dns.flags.RD)
    dnssec: bool = False


FAILED = Told(dns.rcode.SERVFAIL)


def asked(message: dns.message.Message, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> Asked:
    """For a name, in the way that somebody's question has it."""
    return Asked(name, kind, int(message.flags) & int(_PASSED_ON), bool(message.ednsflags & dns.flags.DO))


# --- remembering ------------------------------------------------------------------------------------------------------


def lifetime(told: Told) -> int:
    """Seconds for which it holds."""
    if told.rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return FAILURE
    if told.rcode == dns.rcode.NXDOMAIN or not told.answer:
        soa = [each for each in told.authority if each.rdtype == dns.rdatatype.SOA]
        return min(LONGEST_NEGATIVE, *(min(each.ttl, each[0].minimum) for each in soa)) if soa else 0
    return min(LONGEST, *(each.ttl for each in (*told.answer, *told.authority)))


def aged(told: Told, seconds: int) -> Told:
    """The same after a while."""

    def older(sets: Sequence[dns.rrset.RRset]) -> tuple[dns.rrset.RRset, ...]:
        return tuple(dns.rrset.from_rdata_list(one.name, max(0, one.ttl - seconds), list(one)) for one in sets)

    return replace(told, answer=older(told.answer), authority=older(told.authority), additional=older(told.additional))


class Memory:
    """What was told, the least used first."""

    def __init__(self, most: int = MOST_REMEMBERED, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._told: OrderedDict[Asked, tuple[float, float, Told]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._told)

    def get(self, what: Asked) -> Told | None:
        """What was told, with the time to live that is left; None if that is over."""
        found = self._told.get(what)
        if found is None:
            return None
        since, until, told = found
        now = self._clock()
        if now >= until:
            del self._told[what]
            return None
        self._told.move_to_end(what)
        return aged(told, int(now - since))

    def put(self, what: Asked, told: Told) -> None:
        seconds = lifetime(told)
        if seconds > 0:
            now = self._clock()
            self._told[what] = now, now + seconds, told
            self._told.move_to_end(what)
            if len(self._told) > self._most:
                self._told.popitem(last=False)


# --- asking -----------------------------------------------------------------------------------------------------------


class Upstreams:
    """The other servers. Runs on the event loop. `sent` counts questions, `hits` those that memory answered."""

    def __init__(self, servers: Sequence[Place], seconds: float = SECONDS) -> None:
        self.servers = tuple(servers)
        self.sent = self.hits = self.failures = 0
        self._seconds = seconds
        self._memory = Memory()
        self._under_way: dict[Asked, asyncio.Task[Told]] = {}
        self._silent: dict[Place, float] = {}
        """When it did not answer."""
        self._complain = Seldom(log)

    def remembered(self, what: Asked) -> Told | None:
        told = self._memory.get(what)
        self.hits += told is not None
        return told

    async def ask(self, what: Asked) -> Told:
        """SERVFAIL where nobody answers."""
        if (told := self.remembered(what)) is not None:
            return told
        task = self._under_way.get(what)
        if task is None:
            if len(self._under_way) >= MOST_AT_ONCE:
                self._complain.warning(f"{MOST_AT_ONCE} questions to other servers are under way: no more are asked")
                return FAILED
            task = self._under_way[what] = asyncio.create_task(self._ask(what), name=f"ask for {what.name}")
            task.add_done_callback(lambda _: self._under_way.pop(what, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, what: Asked) -> Told:
        now = time.monotonic()
        shunned = {server for server, at in self._silent.items() if now - at < SHUNNED}
        best = FAILED
        for server in sorted(self.servers, key=lambda server: server in shunned):
            told = await self._ask_one(server, what)
            if told is None:
                continue
            best = told
            if told.rcode in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                break
        self._memory.put(what, best)
        return best

    async def _ask_one(self, server: Place, what: Asked) -> Told | None:
        query = dns.message.make_query(
            what.name, what.type, want_dnssec=what.dnssec, payload=PAYLOAD, use_edns=0, flags=what.flags
        )
        self.sent += 1
        try:
            reply, _ = await dns.asyncquery.udp_with_fallback(
                query, server.host, self._seconds, server.port, ignore_errors=True
            )
        except (dns.exception.DNSException, OSError, EOFError, ValueError) as error:
            self.failures += 1
            self._silent[server] = time.monotonic()
            self._complain.warning(f"name server {server} does not answer: {type(error).__name__}")
            return None
        self._silent.pop(server, None)
        return Told(reply.rcode(), tuple(reply.answer), tuple(reply.authority), tuple(reply.additional))


# --- which ------------------------------------------------------------------------------------------------------------


def servers(text: str, where: str) -> tuple[Place, ...]:
    """Those of a list with commas, or "none". Raises ConfigError that begins with `where`."""
    if text.strip().lower() == "none":
        return ()
    return places(text, where)


def of_resolv_conf(path: Path) -> tuple[Place, ...]:
    """The name servers that this machine asks. None where there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                found.append(place(words[1].partition("%")[0], str(path)))
            except ConfigError as error:
                log.warning("%s", error)
    return tuple(dict.fromkeys(found))


def is_own(server: Place) -> bool:
    """Whether it is at an address of this very machine."""
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((server.host, 0))
        except OSError:
            return False
    return True
