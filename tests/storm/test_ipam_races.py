"""Deaths and races, one by one: a process that dies before each of its writes, and tasks interleaved at random.

The stores here are the memory store behind another front: one that dies, one that lets others go first.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest

from tortie.base.addr import IP, parse_ip, parse_net
from tortie.base.errors import NotFound, TortieError
from tortie.ipam.assign import Ipam
from tortie.ipam.block import Release, held_slots
from tortie.ipam.check import Finding, check
from tortie.ipam.ledger import Ledger
from tortie.ipam.owner import Owner
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMHandle, IPPool, IPPoolSpec
from tortie.model.meta import Metadata, Resource
from tortie.model.node import Node
from tortie.model.store import Event, Listing, Store
from tortie.policy.selector import parse
from tortie.store.memory import MemoryStore

R = TypeVar("R", bound=Resource)
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Killed(BaseException):
    """The process ends here. Nobody catches it, as nobody catches SIGKILL."""


class Front:
    """A store that passes everything on to another, calling `turn` first."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def turn(self, kind: type[Resource], writing: bool) -> None: ...

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        await self.turn(kind, False)
        return await self.store.get(kind, name, namespace)

    async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
        await self.turn(kind, False)
        return await self.store.list(kind, namespace)

    async def create(self, obj: R) -> R:
        await self.turn(type(obj), True)
        return await self.store.create(obj)

    async def update(self, obj: R) -> R:
        await self.turn(type(obj), True)
        return await self.store.update(obj)

    async def delete(self, kind: type[R], name: str, namespace: str = "", revision: str = "") -> R:
        await self.turn(kind, True)
        return await self.store.delete(kind, name, namespace, revision)

    def watch(self, kind: type[R], revision: str) -> AsyncIterator[tuple[Event[R], ...]]:
        return self.store.watch(kind, revision)

    async def close(self) -> None:
        await self.store.close()


class Mortal(Front):
    """Dies before a write, after `writes` of them."""

    def __init__(self, store: Store, writes: int) -> None:
        super().__init__(store)
        self.left = writes

    async def turn(self, kind: type[Resource], writing: bool) -> None:
        if writing and self.left == 0:
            raise Killed
        self.left -= writing


class Shaken(Front):
    """Lets other tasks go first, sometimes, and dies at any operation with probability `death`."""

    def __init__(self, store: Store, dice: random.Random, death: float = 0.0) -> None:
        super().__init__(store)
        self.dice, self.death = dice, death

    async def turn(self, kind: type[Resource], writing: bool) -> None:
        if self.dice.random() < self.death:
            raise Killed
        for _ in range(self.dice.choice((0, 0, 1, 1, 2, 5))):
            await asyncio.sleep(0)


def matches(selector: str, labels: Mapping[str, str]) -> bool:
    return parse(selector).matches(labels)


def ipam(store: Store, node: str = "node1", now: Callable[[], datetime] = lambda: START) -> Ipam:
    return Ipam(store, node, now, matches)


async def cluster(*nodes: str, cidr: str, block: int) -> MemoryStore:
    store = MemoryStore()
    await store.create(IPPool(metadata=Metadata(name="pool"), spec=IPPoolSpec(cidr=cidr, block_size=block)))
    for node in nodes:
        await store.create(Node(metadata=Metadata(name=node)))
    return store


async def findings(store: Store, harmless: bool = True) -> list[str]:
    blocks = (await store.list(IPAMBlock)).items
    found: list[Finding] = check(blocks, (await store.list(IPAMHandle)).items, (await store.list(BlockAffinity)).items)
    return [str(each) for each in found if harmless or not each.harmless]


async def life(store: Store) -> None:
    """All that a node does: claims blocks, borrows, takes a block from another, releases in every way."""
    one, later = ipam(store), ipam(store, "node2", lambda: START + timedelta(minutes=2))
    got = await one.auto_assign(6, handle="many", attrs={})
    await one.assign_ip(parse_ip("10.0.0.13"), handle="one", attrs={})
    await one.release_ips([Release(ip.ip) for ip in got.ips[:5]])
    await one.release_by_handle("one")
    await later.auto_assign(14, handle="other", attrs={})
    await one.release_affinity(got.ips[5].network, require_empty=False)
    await one.release_by_handle("many")
    await one.claim_affinity(parse_net("10.0.0.0/28"))
    await later.release_by_handle("other")
    await one.release_host_affinities(require_empty=True)


async def test_death_before_every_write() -> None:
    async def lived(writes: int) -> bool:
        store = await cluster("node1", "node2", cidr="10.0.0.0/28", block=30)
        try:
            await life(Mortal(store, writes))
        except Killed:
            assert await findings(store, harmless=False) == [], f"after {writes} writes"
            await recovers(store)
            return False
        return True

    writes = 0
    while not await lived(writes):
        writes += 1
    assert writes > 60


async def recovers(store: Store) -> None:
    """Both nodes go on, a minute later, on what a death has left; in the end nothing is left over."""
    nodes = [ipam(store, node, lambda: START + timedelta(minutes=5)) for node in ("node1", "node2")]
    for handle in (await store.list(IPAMHandle)).items:
        await nodes[0].release_by_handle(handle.spec.handle_id)
    got = [await node.auto_assign(8, handle=f"h-{node.owner.name}", attrs={}) for node in nodes]
    assert len({ip.ip for each in got for ip in each.ips}) == 16
    assert await findings(store, harmless=False) == []
    for node in nodes:
        await node.release_by_handle(f"h-{node.owner.name}")
        assert await node.release_host_affinities(require_empty=True) == ()
    assert (await store.list(IPAMHandle)).items == ()
    assert (await store.list(BlockAffinity)).items == ()
    assert await findings(store, harmless=False) == []


class Ground:
    """Who surely holds what: an address is entered when its assignment returns and struck before it is released."""

    def __init__(self) -> None:
        self.held: dict[IP, str] = {}

    def enter(self, handle: str, ips: list[IP]) -> None:
        for ip in ips:
            assert ip not in self.held, f"{ip} was given to {handle} while {self.held[ip]} held it"
            self.held[ip] = handle

    def strike(self, handle: str) -> None:
        self.held = {ip: holder for ip, holder in self.held.items() if holder != handle}


async def actor(store: Store, node: str, name: str, dice: random.Random, ground: Ground) -> None:
    """A process of a node: pods come and go, and now and then all empty blocks are given up."""
    mine, pods = ipam(store, node), list[str]()
    for i in range(8):
        action = dice.random()
        if action < 0.6 or not pods:
            pods.append(f"{name}-{i}")
            got = await mine.auto_assign(dice.randint(1, 3), handle=pods[-1], attrs={})
            ground.enter(pods[-1], [ip.ip for ip in got.ips])
        elif action < 0.8:
            gone = [pods.pop(dice.randrange(len(pods))) for _ in range(min(len(pods), dice.randint(1, 4)))]
            for handle in gone:
                ground.strike(handle)
            said = await asyncio.gather(*map(mine.release_by_handle, gone), return_exceptions=True)
            for error in said:
                if error is not None and not isinstance(error, NotFound):
                    raise error
        else:
            await mine.release_host_affinities(require_empty=dice.random() < 0.7)


async def race(store: MemoryStore, seed: int, death: float) -> Ground:
    dice, ground = random.Random(seed), Ground()

    async def process(node: str, name: str) -> None:
        with suppress(Killed):
            await actor(Shaken(store, dice, death), node, name, dice, ground)

    nodes = ("node1", "node1", "node1", "node2", "node2")
    await asyncio.gather(*(process(node, f"p{i}") for i, node in enumerate(nodes)))
    return ground


async def stored(store: Store) -> Counter[tuple[IP, str]]:
    return Counter(
        (block.spec.net[slot], held.handle_id or "")
        for block in (await store.list(IPAMBlock)).items
        for slot, held in held_slots(block.spec)
    )


@pytest.mark.parametrize("seed", range(15))
async def test_races(seed: int) -> None:
    store = await cluster("node1", "node2", cidr="10.0.0.0/26", block=30)
    ground = await race(store, seed, death=0.0)
    assert await stored(store) == Counter(ground.held.items())
    assert await findings(store) == []


@pytest.mark.parametrize("seed", range(15))
async def test_races_with_deaths(seed: int) -> None:
    store = await cluster("node1", "node2", cidr="10.0.0.0/26", block=30)
    ground = await race(store, seed, death=0.01)
    assert await stored(store) >= Counter(dict.fromkeys(ground.held.items(), 1))
    assert await findings(store, harmless=False) == []
    await recovers(store)


class Interrupted(Front):
    """Before operation number `at` on IPAM's own objects, another flow runs from its beginning to its end."""

    def __init__(self, store: Store, at: int, other: Callable[[Store], Awaitable[object]]) -> None:
        super().__init__(store)
        self.left, self.other = at, other
        self.interrupted = False

    async def turn(self, kind: type[Resource], writing: bool) -> None:
        if kind not in (IPAMBlock, BlockAffinity, IPAMHandle):
            return
        if self.left == 0:
            self.interrupted = True
            await tried(self.other, self.store)
        self.left -= 1


async def tried(flow: Callable[[Store], Awaitable[object]], store: Store) -> None:
    """Losing a race is fine; what counts is what is left behind."""
    with suppress(TortieError):
        await flow(store)


SECOND = parse_net("10.0.0.4/30")
"""The block that node1 claims first."""
AGED = START + timedelta(minutes=2)


async def unfinished(store: Store) -> None:
    """What a process leaves that dies while it gives up a block."""
    await ipam(store).claim_affinity(SECOND)
    ledger = Ledger(store, lambda: START)
    await ledger.write_affinity(await ledger.affinity(Owner("node1"), SECOND), "pendingDeletion")


FLOWS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "assign": lambda store: ipam(store).auto_assign(3, handle="x", attrs={}),
    "explicit": lambda store: ipam(store).assign_ip(parse_ip("10.0.0.6"), handle="x", attrs={}),
    "another takes": lambda store: ipam(store, "node2", lambda: AGED).auto_assign(8, handle="y", attrs={}),
    "release handle": lambda store: ipam(store).release_by_handle("x"),
    "release address": lambda store: ipam(store).release_ips(
        [Release(parse_ip("10.0.0.4")), Release(parse_ip("10.0.0.0"))]
    ),
    "give up empty": lambda store: ipam(store).release_host_affinities(require_empty=True),
    "give up all": lambda store: ipam(store).release_host_affinities(require_empty=False),
    "claim": lambda store: ipam(store).claim_affinity(parse_net("10.0.0.0/29")),
}
BEFORE: dict[str, Callable[[Store], Awaitable[object]]] = {
    "nothing": lambda store: ipam(store).config(),
    "an empty block": lambda store: ipam(store).claim_affinity(SECOND),
    "an address": lambda store: ipam(store).auto_assign(1, handle="x", attrs={}),
    "a handle that counts too many": lambda store: Ledger(store, lambda: START).count_up(
        "x", parse_net("10.0.0.4/30"), 1
    ),
    "an unfinished release": unfinished,
}
LEFT = {"a handle that counts too many": "counts", "an unfinished release": "is pending"}
"""What is wrong before, and may be so afterwards."""


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("first", FLOWS)
async def test_every_flow_interrupted_anywhere_by_every_other(first: str, before: str) -> None:
    for second, other in FLOWS.items():
        at = 0
        while True:
            store = await cluster("node1", "node2", cidr="10.0.0.0/29", block=30)
            await tried(BEFORE[before], store)
            front = Interrupted(store, at, other)
            await tried(FLOWS[first], front)
            if not front.interrupted:
                break
            place = f"{second} before operation {at}"
            left = [text for text in await findings(store) if before not in LEFT or LEFT[before] not in text]
            assert left == [], place
            for handle in (await store.list(IPAMHandle)).items:
                await ipam(store).release_by_handle(handle.spec.handle_id)
            assert await stored(store) == Counter(), f"{place}: an address is lost"
            assert (await store.list(IPAMHandle)).items == (), place
            at += 1
        assert at > 0
