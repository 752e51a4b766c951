"""What a node holds ready: how much it is, what calls get, what is given back. The datastore is the one in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_interface
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tortie.agent.known import Known
from tortie.agent.stock import YOUNG, Stock
from tortie.base.addr import IP, parse_ip, parse_net
from tortie.base.errors import Unavailable
from tortie.ipam.allocation import READY_TYPE
from tortie.ipam.assign import Ipam
from tortie.ipam.block import held_slots
from tortie.ipam.check import check
from tortie.ipam.explain import explain
from tortie.ipam.leak import Standing, verdict
from tortie.ipam.pools import Reserved
from tortie.ipam.ready import MOST, QUIET, Order, Shelf, goal, order, ready_handle, surplus, unclaimed
from tortie.ipam.report import report
from tortie.ipam.survey import survey
from tortie.model.ipam import (
    BlockAffinity,
    IPAMBlock,
    IPAMConfig,
    IPAMConfigSpec,
    IPAMHandle,
    IPPool,
    IPPoolSpec,
    IPReservation,
    IPReservationSpec,
)
from tortie.model.k8s import Namespace
from tortie.model.meta import Metadata, Resource
from tortie.model.node import Node
from tortie.policy.selector import parse
from tortie.store.memory import MemoryStore

NODE, RED = "node1", "red"
READY = ready_handle(NODE)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

# --- how much -----------------------------------------------------------------------------------------------------

shelves = st.builds(
    Shelf, ready=st.integers(0, 200), waiting=st.integers(0, 200), recent=st.integers(0, 500), idle=st.floats(0, 300)
)


@given(shelves, st.integers(0, 1000), st.integers(1, 128))
def test_order_serves_who_waits_and_keeps_to_the_ceiling(shelf: Shelf, ceiling: int, most: int) -> None:
    found = order(shelf, ceiling, most)
    if shelf.waiting:
        assert found.wanted == shelf.waiting
        assert found.claim
        assert found.ahead <= min(ceiling, most)
    else:
        assert found.ahead == 0
        assert not found or shelf.ready + found.wanted <= min(ceiling, most)


@given(shelves, st.integers(0, 1000), st.integers(1, 128))
def test_what_is_ordered_is_not_given_back(shelf: Shelf, ceiling: int, most: int) -> None:
    found = order(shelf, ceiling, most)
    after = Shelf(shelf.ready + found.wanted + found.ahead - shelf.waiting, 0, shelf.recent, shelf.idle)
    if found and shelf.ready == 0 and shelf.idle < 10:
        assert surplus(after, ceiling, most) == 0


@pytest.mark.parametrize(
    ("shelf", "ceiling", "wanted"),
    [
        (Shelf(0, 1, 1, 0), 1000, Order(1, QUIET)),
        (Shelf(0, 1, 1, 0), 2, Order(1, 2)),
        (Shelf(0, 1, 1, 0), 0, Order(1, 0)),
        (Shelf(0, 31, 32, 0), 1000, Order(31, MOST)),
        (Shelf(1, 0, 3, 0), 1000, Order(5, 0, claim=False)),
        (Shelf(10, 0, 40, 0), 1000, Order(MOST - 10, 0, claim=True)),
        (Shelf(0, 0, 0, 100), 1000, Order()),
    ],
)
def test_orders(shelf: Shelf, ceiling: int, wanted: Order) -> None:
    assert order(shelf, ceiling) == wanted


def test_surplus_goes_when_a_burst_is_over_and_all_of_it_when_nobody_comes() -> None:
    assert goal(1000) == MOST
    assert surplus(Shelf(MOST, 0, 40, 1), 1000) == 0
    assert surplus(Shelf(MOST, 0, 0, 11), 1000) == MOST - QUIET
    assert surplus(Shelf(QUIET, 0, 0, 61), 1000) == QUIET
    assert surplus(Shelf(QUIET, 1, 0, 61), 1000) == 0
    assert surplus(Shelf(10, 0, 40, 1), 3) == 7


def test_unclaimed_addresses_are_in_no_block_and_not_reserved() -> None:
    pools = [pool("a", "10.0.0.0/24"), pool("b", "10.1.0.0/26")]
    blocks = [parse_net(text) for text in ("10.0.0.0/26", "10.1.0.0/26", "10.2.0.0/26")]
    assert unclaimed(pools, blocks, Reserved([parse_net("10.0.0.128/26")])) == 256 - 64 - 64


# --- a node -------------------------------------------------------------------------------------------------------


def matches(selector: str, labels: Mapping[str, str]) -> bool:
    return parse(selector).matches(labels)


def pool(name: str, cidr: str, **spec: Any) -> IPPool:
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr, **spec))


@dataclass
class Town:
    """A node with what its agent knows, and a clock that somebody sets."""

    store: MemoryStore = field(default_factory=MemoryStore)
    clock: float = 1000.0
    promised: set[IP] = field(default_factory=set)
    bugs: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.known = Known(NODE)
        self.ipam = Ipam(self.store, NODE, lambda: NOW, matches)

    def make(self, most: int = MOST) -> Stock:
        promised, clock = (lambda: self.promised), (lambda: self.clock)
        return Stock(NODE, self.ipam, self.known, matches, promised, most, clock, every=0.01, retry=0.01)

    @contextlib.asynccontextmanager
    async def stock(self, most: int = MOST) -> AsyncIterator[Stock]:
        made = self.make(most)
        async with made.running(self.bugs.append):
            made.open()
            yield made
        assert self.bugs == []

    async def put(self, *resources: Resource) -> None:
        for one in resources:
            try:
                stored = await self.store.create(one)
            except Exception:
                stored = await self.store.update(one)
            self.known.put(stored)

    async def take(self, stock: Stock, *versions: int) -> tuple[str, ...]:
        choices = stock.choices(RED, versions or (4,))
        assert choices is not None
        got = await stock.take(choices)
        with contextlib.suppress(Unavailable):
            for affinity in (await self.store.list(BlockAffinity)).items:
                self.known.put(affinity)
        return tuple(str(each.ip) for each in got or ())

    async def held(self, handle: str = READY) -> set[str]:
        blocks = (await self.store.list(IPAMBlock)).items
        return {
            str(block.spec.net[slot])
            for block in blocks
            for slot, attribute in held_slots(block.spec)
            if attribute.handle_id == handle
        }

    async def findings(self) -> list[str]:
        blocks = (await self.store.list(IPAMBlock)).items
        handles = (await self.store.list(IPAMHandle)).items
        return [str(each) for each in check(blocks, handles, (await self.store.list(BlockAffinity)).items)]


@pytest.fixture
async def town() -> Town:
    town = Town()
    await town.put(Node(metadata=Metadata(name=NODE)), Namespace(metadata=Metadata(name=RED)))
    await town.put(pool("pool", "10.0.0.0/16"), pool("pool6", "fd00::/64"))
    return town


async def until(look: Any, wanted: Any) -> None:
    async with asyncio.timeout(5):
        while (await look() if asyncio.iscoroutinefunction(look) else look()) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_nothing_is_held_before_the_first_pod(town: Town) -> None:
    async with town.stock():
        await asyncio.sleep(0.05)
        assert (await town.store.list(IPAMBlock)).items == ()


async def test_first_pod_is_served_with_one_write_that_holds_some_ready(town: Town) -> None:
    async with town.stock() as stock:
        (ip,) = await town.take(stock)
        assert len(stock.ready) == QUIET
        assert await town.held() == {ip, *(str(each.ip) for each in stock.ready)}
        (block,) = (await town.store.list(IPAMBlock)).items
        (attribute,) = block.spec.attributes
        assert attribute.secondary | {"timestamp": ""} == {"node": NODE, "type": READY_TYPE, "timestamp": ""}
        before = block.metadata.resource_version
        more = [await town.take(stock) for _ in range(2)]
        assert len({ip, *(each for (each,) in more)}) == 3
        (block,) = (await town.store.list(IPAMBlock)).items
        assert block.metadata.resource_version == before
        town.promised = {parse_ip(each) for (each,) in [(ip,), *more]}
    assert await town.held() == {str(ip) for ip in town.promised}
    assert await town.findings() == []


async def test_both_families_or_none(town: Town) -> None:
    async with town.stock() as stock:
        v4, v6 = await town.take(stock, 4, 6)
        assert (parse_ip(v4).version, parse_ip(v6).version) == (4, 6)
        await town.store.delete(IPPool, "pool6")
        choices = stock.choices(RED, (4, 6))
        assert choices is not None
        for shelf in stock._shelves.values():  # nothing of either family is at hand
            stock._returns.update(each for each, _ in shelf.ready)
            shelf.ready.clear()
        assert await stock.take(choices) is None
        await until(lambda: len(stock._returns), 0)
        assert v6 in await town.held()
    assert await town.findings() == []


async def test_hundred_at_once_share_writes_and_blocks(town: Town) -> None:
    async with town.stock() as stock:
        got = await asyncio.gather(*(town.take(stock) for _ in range(100)))
        assert len({ip for (ip,) in got}) == 100
        blocks = (await town.store.list(IPAMBlock)).items
        assert sum(block.spec.sequence_number % 1000 for block in blocks) < 10  # each write adds one
        assert len(stock.ready) <= MOST
    assert await town.findings() == []


async def test_ready_addresses_are_a_share_of_what_is_free(town: Town) -> None:
    await town.store.delete(IPPool, "pool")
    town.known.drop(IPPool, "", "pool")
    await town.put(pool("small", "10.9.0.0/28", block_size=28))
    async with town.stock() as stock:
        for _ in range(12):
            await town.take(stock)
            assert len(stock.ready) <= 4
        got = [await town.take(stock) for _ in range(4)]
        assert all(got), "the last addresses of a pool are for those who need them"
        assert await town.take(stock) == ()


async def test_idle_node_gives_all_back(town: Town) -> None:
    async with town.stock() as stock:
        await town.take(stock)
        town.clock += 20
        await asyncio.sleep(0.05)
        assert len(stock.ready) == QUIET
        town.clock += 61
        await until(lambda: (len(stock.ready), len(stock._returns)), (0, 0))
        assert len(await town.held()) == 1
    assert await town.held() == set()


async def test_pool_that_changes_is_not_handed_out(town: Town) -> None:
    async with town.stock() as stock:
        (ip,) = await town.take(stock)
        old = await town.store.get(IPPool, "pool")
        await town.put(replace(old, spec=replace(old.spec, disabled=True)), pool("other", "10.7.0.0/16"))
        (other,) = await town.take(stock)
        assert other.startswith("10.7.")
        await until(lambda: {str(each.ip)[:5] for each in stock.ready}, {"10.7."})
        await until(lambda: len(stock._returns), 0)
        assert {each for each in await town.held() if each.startswith("10.0.")} == {ip}


async def test_pool_of_other_nodes_and_namespaces_is_not_handed_out(town: Town) -> None:
    old = await town.store.get(IPPool, "pool")
    await town.put(pool("shop", "10.7.0.0/16", namespace_selector="team == 'shop'", allowed_uses=("Workload",)))
    async with town.stock() as stock:
        await town.take(stock)
        await town.put(replace(old, spec=replace(old.spec, node_selector="has(never)")))
        assert stock.choices(RED, (4,)) is None
        await until(lambda: len(stock.ready), 0)
        await town.put(Namespace(metadata=Metadata(name=RED, labels={"team": "shop"})))
        (ip,) = await town.take(stock)
        assert ip.startswith("10.7.")


async def test_reserved_address_is_not_handed_out(town: Town) -> None:
    async with town.stock() as stock:
        await town.take(stock)
        first = stock.ready[0]
        cidrs = (f"{first.ip}/32",)
        await town.put(IPReservation(metadata=Metadata(name="keep"), spec=IPReservationSpec(reserved_cidrs=cidrs)))
        assert await town.take(stock) != (str(first.ip),)
        await until(lambda: len(stock._returns), 0)
        assert str(first.ip) not in await town.held()


async def test_block_that_is_ours_no_more_is_not_handed_out(town: Town) -> None:
    async with town.stock() as stock:
        await town.take(stock)
        (affinity,) = (await town.store.list(BlockAffinity)).items
        town.known.drop(BlockAffinity, "", affinity.name)
        lost = set(stock.ready)
        town.clock += YOUNG + 1
        (ip,) = await town.take(stock)
        assert ip not in {str(each.ip) for each in lost}


async def test_strict_affinity_and_block_limit(town: Town) -> None:
    spec = IPAMConfigSpec(strict_affinity=True, max_blocks_per_host=1)
    await town.put(IPAMConfig(metadata=Metadata(name="default"), spec=spec))
    async with town.stock() as stock:
        got = await asyncio.gather(*(town.take(stock) for _ in range(70)))
        assert sum(1 for each in got if each) == 64
        assert len((await town.store.list(IPAMBlock)).items) == 1
    assert await town.findings() == []


async def test_taken_and_not_needed_goes_back_to_ipam(town: Town) -> None:
    async with town.stock() as stock:
        (ip,) = await town.take(stock)
        stock.put_back([ip_interface(f"{ip}/26")])
        await until(lambda: len(stock._returns), 0)
        assert ip not in await town.held()
        assert ip not in {str(each.ip) for each in stock.ready}


async def test_what_another_agent_left_is_given_back_but_not_what_it_promised(town: Town) -> None:
    left = await town.ipam.auto_assign(6, handle=READY, attrs={"node": NODE, "type": READY_TYPE})
    town.promised = {left.ips[0].ip}
    async with town.stock():
        await until(town.held, {str(left.ips[0].ip)})
    town.promised = set()
    async with town.stock(0):
        await until(town.held, set())
    assert (await town.store.list(IPAMHandle)).items == ()


async def test_off(town: Town) -> None:
    async with town.stock(0) as stock:
        assert await town.take(stock) == ()
        assert (await town.store.list(IPAMBlock)).items == ()


async def test_datastore_that_is_away(town: Town) -> None:
    async with town.stock() as stock:
        (first,) = await town.take(stock)
        await town.store.close()
        assert len({first, *[(await town.take(stock))[0] for _ in range(QUIET)]}) == 1 + QUIET
        with pytest.raises(Unavailable):
            await town.take(stock)


async def test_somebody_takes_a_ready_address_away(town: Town) -> None:
    """By force: it is another's then, and everything else goes on."""
    async with town.stock() as stock:
        await town.take(stock)
        lost = stock.ready[-1]
        await town.ipam.release_by_handle(READY)
        await town.ipam.assign_ip(lost.ip, handle="net.other", attrs={})
        town.clock += 61
        await until(lambda: (len(stock.ready), len(stock._returns)), (0, 0))
        assert await town.held("net.other") == {str(lost.ip)}


# --- what others say of it ----------------------------------------------------------------------------------------


async def test_ready_address_is_no_leak_while_its_node_is_there(town: Town) -> None:
    await town.ipam.auto_assign(2, handle=READY, attrs={"node": NODE, "type": READY_TYPE})
    ip = parse_ip(min(await town.held()))
    now = await survey(town.store, NOW)
    each = next(one for one in now.allocations if one.ip == ip)
    assert verdict(each, now).standing is Standing.USED
    assert report(now).problems == 0
    told = explain(ip, now)
    assert told.state == "held ready for a pod to come"
    assert ("node", NODE) in told.facts
    assert ("reclaimed", f"no: node {NODE} holds it ready for a pod to come") in told.facts
    await town.store.delete(Node, NODE)
    now = await survey(town.store, NOW)
    found = verdict(each, now)
    assert (found.standing, found.reason, found.node_gone) == (Standing.LEAKED, f"node {NODE} is gone", True)
    assert len(report(now).leaked) == 2
