"""What is broken is mended, what is under way is left alone, and what nobody can know is only told."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ipam_cluster import Cluster, matches
from tortie.base.addr import IP, parse_ip, parse_net
from tortie.base.errors import Conflict, Unavailable
from tortie.ipam.allocation import allocations, go_time
from tortie.ipam.block import auto_assign, ips_of, new_block, problems
from tortie.ipam.ledger import Ledger
from tortie.ipam.mend import make
from tortie.ipam.mended import mended
from tortie.ipam.owner import Owner
from tortie.ipam.repair import Repair, repairs
from tortie.ipam.report import report, settled
from tortie.ipam.survey import Survey, survey
from tortie.model.ipam import AllocationAttribute, BlockAffinity, IPAMBlock, IPAMBlockSpec, IPAMHandle
from tortie.model.k8s import Container, Pod, PodSpec, PodStatus
from tortie.model.meta import Metadata, changed
from tortie.model.node import Node, NodeSpec
from tortie.model.workload import WorkloadEndpoint, WorkloadEndpointSpec, endpoint_name

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NET = parse_net("10.0.0.0/29")
LONG_AGO = "2026-01-01 00:00:00.5 +0000 UTC"


class Ruin(Cluster):
    """A cluster with one block of `node1` in which `net.a` holds three addresses, to be broken."""

    @classmethod
    async def build(cls) -> Ruin:
        ruin = cls()
        await ruin.node("node1", "node2")
        await ruin.pool("10.0.0.0/28", block_size=29)
        await ruin.ipam().auto_assign(3, handle="net.A", attrs={"node": "node1", "type": "test"})
        return ruin

    async def survey(self) -> Survey:
        return await survey(self.store, self.now)

    async def block(self) -> IPAMBlock:
        (block,) = (await self.store.list(IPAMBlock)).items
        return block

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.store, lambda: self.now)

    async def plan(self) -> list[str]:
        return [str(each) for each in repairs(await self.survey())]

    async def mend(self, plan: tuple[Repair, ...] = ()) -> list[str]:
        """Makes a plan, or the one that there is now; what could not be done."""
        plan = plan or repairs(await self.survey())
        outcomes = [each async for each in make(self.ledger, plan, matches, settle=0)]
        assert len(outcomes) == len(plan)
        return [str(each) for each in outcomes if each.error]

    async def pod(self, name: str, ip: str = "") -> None:
        spec, status = PodSpec(containers=(Container(name="c"),), node_name="node1"), PodStatus(pod_ip=ip)
        await self.store.create(Pod(metadata=Metadata(name=name, namespace="red"), spec=spec, status=status))

    async def endpoint(self, pod: str, ip: IP, node: str = "node1") -> WorkloadEndpoint:
        spec = WorkloadEndpointSpec(
            orchestrator="k8s", node=node, pod=pod, container_id=pod * 3, endpoint="eth0", ip_networks=(f"{ip}/32",)
        )
        name = endpoint_name(node, "k8s", pod, "eth0")
        return await self.store.create(WorkloadEndpoint(metadata=Metadata(name=name, namespace="red"), spec=spec))


@pytest.fixture
async def ruin() -> Any:
    ruin = await Ruin.build()
    yield ruin
    assert [str(each) for each in await ruin.findings()] == []


def held(block: IPAMBlockSpec) -> set[int]:
    return {slot for slot, index in enumerate(block.allocations) if index is not None}


# ---------------------------------------------------------------------------------------------------------- blocks

indexes = st.none() | st.integers(-2, 5)
attribute = st.builds(
    AllocationAttribute,
    handle_id=st.none() | st.sampled_from(["a", "b"]),
    released_at=st.none() | st.sampled_from(["2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"]),
)
broken = st.builds(
    IPAMBlockSpec,
    cidr=st.just(str(NET)),
    allocations=st.lists(indexes, max_size=11).map(tuple),
    unallocated=st.lists(st.integers(-3, 12), max_size=12).map(tuple),
    attributes=st.lists(attribute, max_size=4).map(tuple),
    sequence_number_for_allocation=st.dictionaries(st.integers(0, 12).map(str), st.integers(0, 9)),
)


@given(broken)
def test_mended_block_has_no_problems_and_frees_nothing(block: IPAMBlockSpec) -> None:
    whole = mended(block, NOW)
    assert list(problems(whole, NOW)) == []
    assert held(whole) == {slot for slot in held(block) if slot < NET.num_addresses}
    assert set(whole.sequence_number_for_allocation) <= set(map(str, held(whole)))
    assert mended(whole, NOW) is whole
    for one in allocations([IPAMBlock(spec=block)]):
        if one.handle and not one.cooling:
            assert one.ip in ips_of(whole, one.handle)


def test_good_block_is_left_as_it_is() -> None:
    block = new_block(NET, "host:node1", NOW, 1)
    assert mended(block, NOW) is block


async def test_broken_block_says_how_to_mend_it_and_is_mended(ruin: Ruin) -> None:
    block = await ruin.block()
    odd = replace(block.spec, allocations=(0, 7, 0, *(None for _ in range(5))), unallocated=(3, 3, 4, 5, 6, 7, 99))
    await ruin.store.update(replace(block, spec=odd))
    with pytest.raises(Unavailable, match="tortie ipam check --fix mends it"):
        await ruin.ledger.block(block.spec.net)
    name = f"IPAMBlock {block.name}"
    assert (await ruin.plan())[0] == (
        f"mend {name}: ordinals twice in the queue: 3; ordinals in the queue outside the block: 99; "
        "attribute 7 does not exist"
    )
    assert await ruin.mend() == []
    after = (await ruin.ledger.block(block.spec.net)).spec
    assert held(after) == {0, 1, 2}
    assert [int(ip) & 7 for ip in ips_of(after, "net.A")] == [0, 2]
    assert await ruin.handles() == {"net.A": {block.spec.cidr: 2}}


# --------------------------------------------------------------------------------------------------------- handles


async def test_handle_that_is_missing_or_counts_too_few(ruin: Ruin) -> None:
    cidr = (await ruin.block()).spec.cidr
    handle = await ruin.store.get(IPAMHandle, "net.a")
    handle = await ruin.store.update(replace(handle, spec=replace(handle.spec, block={cidr: 1})))
    assert await ruin.plan() == [f'count 3 addresses of {cidr} in IPAMHandle "net.A", which counts 1']
    assert await ruin.mend() == []
    assert await ruin.handles() == {"net.A": {cidr: 3}}
    await ruin.store.delete(IPAMHandle, "net.a")
    assert await ruin.mend() == []
    assert await ruin.handles() == {"net.A": {cidr: 3}}


async def test_handle_that_counts_too_many(ruin: Ruin) -> None:
    cidr = (await ruin.block()).spec.cidr
    await ruin.ledger.count_up("net.A", parse_net(cidr), 2)
    await ruin.ledger.count_up("net.A", parse_net("10.9.0.0/29"), 1)
    await ruin.ledger.count_up("net.never", parse_net(cidr), 1)
    assert await ruin.plan() == [
        f"count what IPAMHandle net.a holds: 3 in {cidr}, 0 in 10.9.0.0/29",
        "delete IPAMHandle net.never: it holds nothing",
    ]
    assert await ruin.mend() == []
    assert await ruin.handles() == {"net.A": {cidr: 3}}


async def test_assignment_under_way_does_not_lose_its_handle(ruin: Ruin) -> None:
    """The handle is counted, the block is not written yet: recounting must not make the two contradict each other."""
    block = await ruin.ledger.block((await ruin.block()).spec.net)
    await ruin.ledger.count_up("net.new", block.spec.net, 1)
    plan = repairs(await ruin.survey())
    async for _ in make(ruin.ledger, plan, matches, settle=0):
        pass
    spec, _ = auto_assign(block.spec, 1, "net.new", {})
    with pytest.raises(Conflict):  # so the assignment starts again, and counts again
        await ruin.ledger.write_assignment(block, spec, "net.new", 1)
    assert "net.new" not in await ruin.handles()


async def test_assignment_that_counts_back_meanwhile_is_noticed(ruin: Ruin) -> None:
    block = await ruin.ledger.block((await ruin.block()).spec.net)
    net = block.spec.net
    await ruin.ledger.count_up("net.A", net, 1)
    plan = repairs(await ruin.survey())
    making = asyncio.create_task(anext(make(ruin.ledger, plan, matches, settle=0.1)))
    await asyncio.sleep(0.03)
    spec, _ = auto_assign(block.spec, 1, "net.A", {})
    with pytest.raises(Conflict):
        await ruin.ledger.write_block(block, spec)
    await ruin.ledger.count_down("net.A", net, 1)
    assert isinstance((await making).error, Conflict)
    assert await ruin.handles() == {"net.A": {str(net): 3}}


# ------------------------------------------------------------------------------------------- affinities and owners


async def test_claims_without_their_block(ruin: Ruin) -> None:
    (ours,) = (await ruin.store.list(BlockAffinity)).items
    net = parse_net(ours.spec.cidr)
    await ruin.ledger.create_affinity(Owner("node2"), net)
    stray = await ruin.ledger.create_affinity(Owner("node2"), parse_net("10.0.0.8/29" if "0.0/" in str(net) else NET))
    await ruin.ledger.write_affinity(stray, "confirmed")
    await ruin.ledger.write_affinity(ours, "pendingDeletion")
    assert len(await ruin.plan()) == 3
    assert await ruin.mend() == []
    assert await ruin.affinities() == {("node1", net): "confirmed"}


@pytest.mark.parametrize("gone", [False, True])
async def test_block_in_use_without_claim(ruin: Ruin, gone: bool) -> None:
    (ours,) = (await ruin.store.list(BlockAffinity)).items
    net = parse_net(ours.spec.cidr)
    await ruin.store.delete(BlockAffinity, ours.name)
    if gone:
        await ruin.store.delete(Node, "node1")
    assert await ruin.mend() == []
    assert await ruin.affinities() == ({} if gone else {("node1", net): "confirmed"})
    assert await ruin.blocks() == {net: None if gone else "host:node1"}


async def test_empty_block_without_claim_goes(ruin: Ruin) -> None:
    await ruin.ipam().release_by_handle("net.A")
    (ours,) = (await ruin.store.list(BlockAffinity)).items
    await ruin.store.delete(BlockAffinity, ours.name)
    assert await ruin.mend() == []
    assert await ruin.blocks() == {}


# -------------------------------------------------------------------------------------------- addresses and their users


async def test_leak_is_released_when_it_is_old_by_its_own_time(ruin: Ruin) -> None:
    async def assign(pod: str, timestamp: str) -> None:
        attrs = {"node": "node1", "pod": pod, "namespace": "red", "timestamp": timestamp}
        await ruin.ipam().auto_assign(1, handle=f"net.{pod}", attrs=attrs)

    await assign("old", LONG_AGO)
    await assign("new", f"{ruin.now:%Y-%m-%d %H:%M:%S.%f} +0000 UTC")
    await assign("unknown", "")
    (planned,) = await ruin.plan()
    assert planned.endswith(": Pod red/old is gone")
    assert await ruin.mend() == []
    assert set(await ruin.handles()) == {"net.A", "net.new", "net.unknown"}
    ruin.now += timedelta(hours=1)
    assert await ruin.mend() == []
    assert set(await ruin.handles()) == {"net.A", "net.unknown"}


async def test_dead_endpoint_in_the_way(ruin: Ruin) -> None:
    attrs = {"node": "node1", "pod": "a", "namespace": "red", "timestamp": LONG_AGO}
    got = await ruin.ipam().auto_assign(1, handle="net.a1", attrs=attrs)
    endpoint = await ruin.endpoint("a", got.ips[0].ip)
    plan = repairs(await ruin.survey())
    await ruin.store.update(changed(endpoint, labels={"somebody": "wrote"}))
    failed = await ruin.mend(plan)
    assert len(failed) == 2
    assert failed[1].endswith("not done: a dead endpoint still has it")
    assert "net.a1" in await ruin.handles()
    assert await ruin.mend() == []
    assert "net.a1" not in await ruin.handles()
    assert (await ruin.store.list(WorkloadEndpoint)).items == ()


async def test_address_of_an_endpoint_that_nobody_has_assigned(ruin: Ruin) -> None:
    free = parse_ip("10.0.0.7")
    await ruin.pod("a", str(free))
    await ruin.endpoint("a", free)
    found = report(await ruin.survey())
    assert (set(found.missing), set(found.outside)) == ({free}, set())
    assert await ruin.plan() == ["assign 10.0.0.7 to WorkloadEndpoint red/node1-k8s-a-eth0, which has it"]
    assert await ruin.mend() == []
    assert await ruin.ipam().ips_by_handle("k8s-pod-network.aaa") == (free,)
    assert await ruin.plan() == []


async def test_endpoint_that_changed_is_not_given_an_address(ruin: Ruin) -> None:
    await ruin.pod("a", "10.0.0.7")
    endpoint = await ruin.endpoint("a", parse_ip("10.0.0.7"))
    plan = repairs(await ruin.survey())
    await ruin.store.update(replace(endpoint, spec=replace(endpoint.spec, ip_networks=())))
    assert len(await ruin.mend(plan)) == 1
    assert set(await ruin.handles()) == {"net.A"}


async def test_what_only_a_person_can_judge_is_told_and_left(ruin: Ruin) -> None:
    for pod in ("a", "b"):
        await ruin.pod(pod)
        await ruin.endpoint(pod, parse_ip("10.0.0.7"))
    await ruin.pod("c")
    await ruin.endpoint("c", parse_ip("172.16.0.1"))
    found = report(await ruin.survey())
    assert set(found.twice) == set(found.missing) == {parse_ip("10.0.0.7")}
    assert set(found.outside) == {parse_ip("172.16.0.1")}
    assert await ruin.plan() == []


async def test_report_counts_each_problem_once_and_forgets_what_was_under_way(ruin: Ruin) -> None:
    first = report(await ruin.survey())
    assert [str(each.ip) for each, _ in first.leaked] == [str(ip) for ip in await ruin.ipam().ips_by_handle("net.A")]
    assert first.problems == 3
    await ruin.ledger.count_up("net.idle", NET, 1)
    second = report(await ruin.survey())
    assert [each.spec.handle_id for each in second.idle_handles] == ["net.idle"]
    assert second.problems == 4
    assert settled(first, second).problems == 3
    await ruin.store.delete(IPAMHandle, "net.idle")


async def test_tunnel_of_a_node_is_a_use(ruin: Ruin) -> None:
    (ip, *_) = await ruin.ipam().ips_by_handle("net.A")
    node = await ruin.store.get(Node, "node1")
    await ruin.store.update(replace(node, spec=NodeSpec(ipv4_vxlan_tunnel_addr=str(ip))))
    assert ip not in {each.ip for each, _ in report(await ruin.survey()).leaked}


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-01-02 03:04:05.123456789 +0000 UTC", datetime(2026, 1, 2, 3, 4, 5, 123456, UTC)),
        ("2026-01-02 03:04:05 +0000 UTC m=+1.5", datetime(2026, 1, 2, 3, 4, 5, 0, UTC)),
        ("2026-01-02 03:04:05.5 +0130 X", datetime(2026, 1, 2, 1, 34, 5, 500000, UTC)),
        ("2026-13-02 03:04:05 +0000 UTC", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_times_as_go_prints_them(text: str, time: datetime | None) -> None:
    assert go_time(text) == time
