"""Gives back addresses and blocks that nobody uses any more.

survey ─► decide ─► survey again, keep what both say ─► dead endpoints ─► leaked addresses ─► what has cooled down
                                                                      ─► blocks long empty ─► blocks of gone nodes

Source: Calico's node controller in kube-controllers. A leak is released when it has been seen without a break for the
grace period, or at once if its node is gone. What has been seen is kept in memory: a restarted process starts to wait
anew, which only makes it late.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tortie.base.addr import parse_net
from tortie.base.errors import Conflict, NotFound, TortieError
from tortie.ipam import affinity as claims
from tortie.ipam.allocation import Allocation, Key
from tortie.ipam.block import collect_garbage, is_empty
from tortie.ipam.leak import GRACE, Verdict, in_the_way, leaks, reclaimable
from tortie.ipam.ledger import Ledger
from tortie.ipam.owner import Owner
from tortie.ipam.pools import Matches
from tortie.ipam.release import release_apart
from tortie.ipam.survey import Survey, endpoint_ips, survey
from tortie.model.ipam import BlockAffinity, IPAMBlock
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint

log = logging.getLogger(__name__)

MOST = 10_000
"""Addresses released in one pass, as in Calico."""

Emptiness = tuple[str, int]
"""A block by CIDR, at a sequence number: whoever uses it, writes it."""


@dataclass(frozen=True)
class Memory:
    """Since when leaks have been leaking and empty blocks been empty, without a break."""

    leaks: Mapping[Key, datetime] = field(default_factory=dict)
    empty: Mapping[Emptiness, datetime] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What to do now, in this order, and what to remember. `waiting` are leaks that are not released yet."""

    endpoints: tuple[WorkloadEndpoint, ...] = ()
    releases: tuple[Allocation, ...] = ()
    cooled: tuple[IPAMBlock, ...] = ()
    unused: tuple[IPAMBlock, ...] = ()
    abandoned: tuple[BlockAffinity, ...] = ()
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
            )
        )


def decide(now: Survey, memory: Memory, grace: timedelta = GRACE) -> Decision:
    """What a survey and what was seen before call for. Nothing while the datastore is locked.

    Without grace (0) leaks and empty blocks stay as they are, as in Calico; what gone nodes held is given back.
    """
    if now.locked:
        return Decision(memory=memory)
    found = leaks(now)
    seen = {key: memory.leaks.get(key, now.now) for key in found}

    def due(each: Allocation, why: Verdict) -> bool:
        return why.node_gone or (bool(grace) and now.now - seen[each.key] > grace)

    releases = reclaimable(now, found.values(), due)[:MOST]
    released = {each.key for each in releases}
    empty = {_emptiness(block): block for block in now.blocks if is_empty(block.spec)}
    empty_since = {key: memory.empty.get(key, now.now) for key in empty}
    long_empty = [block for key, block in empty.items() if grace and now.now - empty_since[key] > grace]
    return Decision(
        endpoints=in_the_way(now, releases),
        releases=releases,
        cooled=tuple(_cooled(now)),
        unused=tuple(_unused(now, long_empty)),
        abandoned=tuple(_abandoned(now, released)),
        waiting=tuple((each, why) for key, (each, why) in found.items() if key not in released),
        memory=Memory(seen, empty_since),
    )


def _emptiness(block: IPAMBlock) -> Emptiness:
    return block.spec.cidr, block.spec.sequence_number


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

    left = Counter(map(whose, now.blocks))
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
    """Decides and acts, remembering what it has seen. `now` tells the time in UTC."""

    name = "ipam-gc"

    def __init__(self, store: Store, now: Callable[[], datetime], matches: Matches, grace: timedelta = GRACE) -> None:
        self._store = store
        self._now = now
        self._matches = matches
        self._grace = grace
        self.memory = Memory()
        self._mentioned: frozenset[Key] = frozenset()

    async def run_once(self) -> int:
        """One pass; how many things failed and should be tried again soon. Raises Unavailable."""
        first = await survey(self._store, self._now())
        decision = decide(first, self.memory, self._grace)
        self.memory = decision.memory
        self._mention(decision)
        if not str(decision):
            return 0
        if decision.releases:
            decision = confirmed(decision, await survey(self._store, self._now()))
        log.debug("%s", decision)
        return await self.act(decision, Ledger(self._store, self._now, first.config.ip_cooldown_seconds))

    def _mention(self, decision: Decision) -> None:
        """Says of each leak once that it is one."""
        for each, why in decision.waiting:
            if each.key not in self._mentioned:
                log.info("%s may be leaked: %s", each, why.reason)
        self._mentioned = frozenset(each.key for each, _ in decision.waiting)

    async def act(self, decision: Decision, ledger: Ledger) -> int:
        """Does what was decided, as far as nothing has changed since; how many things failed."""
        failures, releases = await self._clear_the_way(decision)
        failures += await self._release(releases, ledger)
        for block in decision.cooled:
            failures += await _tried(f"free what has cooled down in {block.title}", _write_cooled(ledger, block))
        for block in decision.unused:
            failures += await _tried(f"release {block.title}: empty", _release_unused(ledger, block))
        for affinity in decision.abandoned:
            failures += await _tried(
                f"release {affinity.title}: its node is gone", _release_abandoned(ledger, affinity)
            )
        return failures

    async def _clear_the_way(self, decision: Decision) -> tuple[int, list[Allocation]]:
        """Deletes dead endpoints; how many of them stayed, and the releases that nothing stands in the way of."""
        failures = 0
        stuck: set[str] = set()
        for endpoint in decision.endpoints:
            if await _tried(f"delete {endpoint.title}: its pod is gone", _delete(self._store, endpoint)):
                failures += 1
                ips = endpoint_ips(endpoint)
                stuck.update(each.handle_key for each in decision.releases if each.ip in ips)
        return failures, [each for each in decision.releases if each.handle_key not in stuck]

    async def _release(self, releases: list[Allocation], ledger: Ledger) -> int:
        if not releases:
            return 0
        released, failures = await release_apart(ledger, [each.release for each in releases], self._matches)
        done = set(released.done) - {wanted for wanted, _ in failures}
        for each in releases:
            if each.release in done:
                log.info("released %s", each)
        for wanted, error in failures:
            log.warning("release %s: %s", wanted.ip, error)
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
        waiting=decision.waiting,
        memory=decision.memory,
    )


async def _tried(doing: str, work: Awaitable[bool]) -> int:
    """1 if something failed, which is logged."""
    try:
        if await work:
            log.info("%s", doing)
        return 0
    except TortieError as error:
        log.warning("%s: %s", doing, error)
        return 1


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
