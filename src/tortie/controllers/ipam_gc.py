"""Gives back addresses and blocks that nobody uses any more.

survey ─► decide ─► survey again, keep what both say ─► dead endpoints ─► leaked addresses ─► what has cooled down
                                    ─► blocks long empty ─► blocks of gone nodes ─► handles that count too many

Source: Calico's node controller in kube-controllers. A leak is released when it has been seen without a break for the
grace period, or at once if its node is gone. What has been seen is kept in memory: a restarted process starts to wait
anew, which only makes it late.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial

from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError, Conflict, NotFound, TortieError
from tortie.controllers.backoff import Backoff, at_once
from tortie.controllers.configuration import NODE, Configured, Settings
from tortie.controllers.unreadable import Unreadable
from tortie.ipam import affinity as claims
from tortie.ipam.allocation import Allocation, Key
from tortie.ipam.block import collect_garbage, is_empty
from tortie.ipam.leak import GRACE, Verdict, in_the_way, leaks, reclaimable
from tortie.ipam.ledger import Ledger
from tortie.ipam.mend import make
from tortie.ipam.owner import Owner
from tortie.ipam.pools import Matches
from tortie.ipam.release import release_apart
from tortie.ipam.repair import Recount, overcounts
from tortie.ipam.survey import Survey, endpoint_ips, survey
from tortie.model.ipam import BlockAffinity, IPAMBlock
from tortie.model.meta import Resource
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint

log = logging.getLogger(__name__)

MOST = 10_000
"""Addresses released in one pass, as in Calico."""

Emptiness = tuple[str, int]
"""A block by CIDR, at a sequence number: whoever uses it, writes it."""

Overcount = tuple[str, str]
"""A handle by name, at a revision: an assignment under way writes it, or its block, and ends."""


@dataclass(frozen=True)
class Memory:
    """Since when leaks have been leaking, empty blocks been empty and handles counted too many, without a break."""

    leaks: Mapping[Key, datetime] = field(default_factory=dict)
    empty: Mapping[Emptiness, datetime] = field(default_factory=dict)
    overcounts: Mapping[Overcount, datetime] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What to do now, in this order, and what to remember. `waiting` are leaks that are not released yet."""

    endpoints: tuple[WorkloadEndpoint, ...] = ()
    releases: tuple[Allocation, ...] = ()
    cooled: tuple[IPAMBlock, ...] = ()
    unused: tuple[IPAMBlock, ...] = ()
    abandoned: tuple[BlockAffinity, ...] = ()
    recounts: tuple[Recount, ...] = ()
    waiting: tuple[tuple[Allocation, Verdict], ...] = ()
    memory: Memory = Memory()

    def __str__(self) -> str:
        return "\n".join(
            (
                *(f"delete {each.title}" for each in self.endpoints),
                *(f"release {each}" for each in self.releases),
                *(f"free what has cooled down in {each.title}" for each in self.cooled),
                *(f"release {each.title} of {each.spec.affinity}: empty" for each in self.unused),
                *(f"release {each.title}: node {each.spec.node} is gone" for each in self.abandoned),
                *map(str, self.recounts),
            )
        )


Observed = Callable[[Survey, Decision, Sequence[Allocation]], None]


def decide(now: Survey, memory: Memory, grace: timedelta = GRACE) -> Decision:
    """What a survey and what was seen before call for. Nothing while the datastore is locked.

    Without grace (0) leaks, empty blocks and counts stay as they are, as in Calico; what gone nodes held is given back.
    """
    if now.locked:
        return Decision(memory=memory)
    found = leaks(now)
    seen = {key: memory.leaks.get(key, now.now) for key in found}

    def due(each: Allocation, why: Verdict) -> bool:
        return why.node_gone or (bool(grace) and now.now - seen[each.key] > max(grace, why.least))

    releases = reclaimable(now, found.values(), due)[:MOST]
    released = {each.key for each in releases}
    empty = {_emptiness(block): block for block in now.blocks if _holds_nothing(block)}
    empty_since = {key: memory.empty.get(key, now.now) for key in empty}
    long_empty = [block for key, block in empty.items() if grace and now.now - empty_since[key] > grace]
    miscounting = {(each.handle.name, each.handle.metadata.resource_version): each for each in overcounts(now)}
    since = {key: memory.overcounts.get(key, now.now) for key in miscounting}
    return Decision(
        endpoints=in_the_way(now, releases),
        releases=releases,
        cooled=tuple(_cooled(now)),
        unused=tuple(_unused(now, long_empty)),
        abandoned=tuple(_abandoned(now, released)),
        recounts=tuple(each for key, each in miscounting.items() if grace and now.now - since[key] > grace),
        waiting=tuple((each, why) for key, (each, why) in found.items() if key not in released),
        memory=Memory(seen, empty_since, since),
    )


def _holds_nothing(block: IPAMBlock) -> bool:
    """What cannot be read may hold something."""
    try:
        return is_empty(block.spec) and block.spec.net.num_addresses > 0
    except ConfigError:
        return False


def _emptiness(block: IPAMBlock) -> Emptiness:
    return block.spec.cidr, block.spec.sequence_number


def _readable(block: IPAMBlock) -> bool:
    try:
        return bool(block.spec.net)
    except ConfigError:
        return False


def _cooled(now: Survey) -> Iterator[IPAMBlock]:
    """Blocks with addresses that have rested long enough and are not free yet."""
    for block in now.blocks:
        try:
            if collect_garbage(block.spec, now.now, now.config.ip_cooldown_seconds) is not block.spec:
                yield block
        except TortieError as error:
            log.warning("%s: %s", block.title, error)


def _unused(now: Survey, long_empty: Iterable[IPAMBlock]) -> Iterator[IPAMBlock]:
    """Empty blocks of nodes that would have another one of the same IP version left."""

    def whose(block: IPAMBlock) -> tuple[str, int]:
        return block.spec.affinity or "", block.spec.net.version

    left = Counter(whose(block) for block in now.blocks if _readable(block))
    for block in long_empty:
        affinity = block.spec.affinity
        if affinity and Owner.parse(affinity).type == "host" and left[whose(block)] > 1:
            left[whose(block)] -= 1
            yield block


def _abandoned(now: Survey, released: Iterable[Key]) -> Iterator[BlockAffinity]:
    """Claims of nodes that are gone and for which nobody holds an address any more."""
    released = frozenset(released)
    needed = {each.node for each in now.allocations if each.key not in released and not each.reserved}
    for affinity in now.affinities:
        owner = Owner.of(affinity)
        if owner.type == "host" and owner.name not in now.node_names | needed:
            yield affinity


class IpamGc:
    """Decides and acts, remembering what it has seen. `now` tells the time in UTC. `grace`: None is what the
    configuration says at each pass. `observed` is told of each pass's survey and decision, and of what was released."""

    name = "ipam-gc"
    option = NODE

    def __init__(
        self,
        store: Store,
        now: Callable[[], datetime],
        matches: Matches,
        grace: timedelta | None = GRACE,
        *,
        configured: Configured | None = None,
        later: Backoff | None = None,
        observed: Observed | None = None,
    ) -> None:
        self._store = store
        self._now = now
        self._matches = matches
        self._grace = grace
        self._configured = configured or Configured()
        self.later = later or at_once()
        self._observed = observed
        self.memory = Memory()
        self._mentioned: frozenset[Key] = frozenset()
        self._released: list[Allocation] = []
        """Of the pass that runs."""

    def period(self, settings: Settings) -> timedelta:
        """Half the grace period; without one the reconciler's."""
        grace = settings.grace if self._grace is None else self._grace
        return grace / 2 or settings.period(NODE)

    async def run_once(self) -> int:
        """One pass; how many things failed and should be tried again soon. Raises Unavailable."""
        grace = (await self._configured(self._store)).grace if self._grace is None else self._grace
        first = await survey(self._store, self._now())
        decision = decide(first, self.memory, grace)
        self.memory = decision.memory
        self._mention(decision)
        self._released = []
        try:
            return await self._carry_out(first, decision)
        finally:
            if self._observed is not None:
                self._observed(first, decision, self._released)

    async def _carry_out(self, first: Survey, decision: Decision) -> int:
        """What a second survey bears out of it; how many things failed."""
        if not str(decision):
            return 0
        if decision.releases or decision.abandoned:
            decision = confirmed(decision, await survey(self._store, self._now()))
            decision = await self._without_unreadable(decision)
        log.debug("%s", decision)
        return await self.act(decision, Ledger(self._store, self._now, first.config.ip_cooldown_seconds))

    def _mention(self, decision: Decision) -> None:
        """Says of each leak once that it is one."""
        for each, why in decision.waiting:
            if each.key not in self._mentioned:
                log.info("%s may be leaked: %s", each, why.reason)
        self._mentioned = frozenset(each.key for each, _ in decision.waiting)

    async def _without_unreadable(self, decision: Decision) -> Decision:
        """The decision without what is of pods and nodes that are there and cannot be read."""
        unreadable = Unreadable(self._store)
        releases = tuple([each for each in decision.releases if not await unreadable.owner(each)])
        abandoned = tuple([each for each in decision.abandoned if not await unreadable.node(each.spec.node)])
        kept = {each.ip for each in decision.releases} - {each.ip for each in releases}
        endpoints = tuple(each for each in decision.endpoints if kept.isdisjoint(endpoint_ips(each)))
        return replace(decision, endpoints=endpoints, releases=releases, abandoned=abandoned)

    async def act(self, decision: Decision, ledger: Ledger) -> int:
        """Does what was decided, as far as nothing has changed since; how many things failed."""
        failures, releases = await self._clear_the_way(decision)
        failures += await self._release(releases, ledger)
        for block in decision.cooled:
            doing = f"free what has cooled down in {block.title}"
            failures += await self._tried(doing, block, partial(_write_cooled, ledger, block))
        for block in decision.unused:
            failures += await self._tried(
                f"release {block.title}: empty", block, partial(_release_unused, ledger, block)
            )
        for affinity in decision.abandoned:
            doing = f"release {affinity.title}: its node is gone"
            failures += await self._tried(doing, affinity, partial(_release_abandoned, ledger, affinity))
        return failures + await self._recount(decision.recounts, ledger)

    async def _tried(self, doing: str, thing: Resource, work: Callable[[], Awaitable[bool]]) -> int:
        """1 if something failed, which is logged."""
        state = thing.metadata.resource_version
        if not self.later.due(doing, state):
            return 0
        try:
            if await work():
                log.info("%s", doing)
        except TortieError as error:
            log.warning("%s: %s", doing, error)
            self.later.failed(doing, state)
            return 1
        self.later.succeeded(doing)
        return 0

    async def _recount(self, recounts: tuple[Recount, ...], ledger: Ledger) -> int:
        due = [each for each in recounts if self.later.due(each.handle.title, each.handle.metadata.resource_version)]
        failures = 0
        async for outcome in make(ledger, due, self._matches):
            log.log(logging.INFO if outcome.error is None else logging.WARNING, "%s", outcome)
            if outcome.error is not None and isinstance(outcome.repair, Recount):
                handle = outcome.repair.handle
                self.later.failed(handle.title, handle.metadata.resource_version)
                failures += 1
        return failures

    async def _clear_the_way(self, decision: Decision) -> tuple[int, list[Allocation]]:
        """Deletes dead endpoints; how many of them stayed, and the releases that nothing stands in the way of."""
        failures = 0
        stuck: set[str] = set()
        for endpoint in decision.endpoints:
            doing, state = f"delete {endpoint.title}: its pod is gone", endpoint.metadata.resource_version
            failures += await self._tried(doing, endpoint, partial(_delete, self._store, endpoint))
            if self.later.has_failed(doing, state):
                ips = endpoint_ips(endpoint)
                stuck.update(each.handle_key for each in decision.releases if each.ip in ips)
        return failures, [each for each in decision.releases if each.handle_key not in stuck]

    async def _release(self, releases: list[Allocation], ledger: Ledger) -> int:
        releases = [each for each in releases if self.later.due(each.key)]
        if not releases:
            return 0
        try:
            released, failures = await release_apart(ledger, [each.release for each in releases], self._matches)
        except TortieError as error:  # what they all need cannot be read
            log.warning("release %d addresses: %s", len(releases), error)
            for each in releases:
                self.later.failed(each.key)
            return len(releases)
        done = set(released.done) - {wanted for wanted, _ in failures}
        for each in releases:
            if each.release in done:
                log.info("released %s", each)
                self._released.append(each)
                self.later.succeeded(each.key)
        for wanted, why in failures:
            log.warning("release %s: %s", wanted.ip, why)
            self.later.failed((wanted.ip, wanted.handle, wanted.sequence))
        return len(failures)


def confirmed(decision: Decision, again: Survey) -> Decision:
    """The decision without the releases that a later survey does not bear out."""
    still = leaks(again)
    wanted = {each.key for each in decision.releases}
    releases = reclaimable(again, still.values(), lambda each, why: each.key in wanted)
    return Decision(
        endpoints=in_the_way(again, releases),
        releases=releases,
        cooled=decision.cooled,
        unused=decision.unused,
        abandoned=tuple(each for each in decision.abandoned if each.spec.node not in again.node_names),
        recounts=decision.recounts,
        waiting=decision.waiting,
        memory=decision.memory,
    )


async def _delete(store: Store, endpoint: WorkloadEndpoint) -> bool:
    try:
        await store.delete(WorkloadEndpoint, endpoint.name, endpoint.namespace, endpoint.metadata.resource_version)
    except NotFound:
        return False
    return True


async def _write_cooled(ledger: Ledger, block: IPAMBlock) -> bool:
    """A block that changes meanwhile has been collected by whoever changed it."""
    whole = ledger.collected(block)
    try:
        if is_empty(whole.spec) and not whole.spec.affinity:
            await ledger.delete_block(whole)
        else:
            await ledger.write_block(whole)
    except Conflict:
        return False
    return True


async def _release_unused(ledger: Ledger, block: IPAMBlock) -> bool:
    """A block that changes meanwhile is used."""
    owner, number = Owner.parse(block.spec.affinity or ""), block.spec.sequence_number
    try:
        await claims.release(ledger, owner, block.spec.net, require_empty=True, sequence=number)
    except Conflict:
        return False
    return True


async def _release_abandoned(ledger: Ledger, affinity: BlockAffinity) -> bool:
    """A block that others have borrowed from stays until they are done."""
    try:
        await claims.release(ledger, Owner.of(affinity), parse_net(affinity.spec.cidr), require_empty=True)
    except (claims.NotEmpty, claims.ClaimedElsewhere):
        return False
    return True
