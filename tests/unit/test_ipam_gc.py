"""Housekeeping on values and over a store: which addresses and blocks are given back, when, and which never."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from ipam_cluster import Cluster, matches
from tortie.base.addr import IP, parse_ip, parse_net
from tortie.base.duration import parse_duration
from tortie.base.errors import ConfigError, Unavailable
from tortie.controllers import main, node
from tortie.controllers.ipam_gc import Decision, IpamGc, Memory, confirmed, decide
from tortie.controllers.node import NodeCleanup
from tortie.ipam.block import Release
from tortie.ipam.leak import Standing, verdict
from tortie.ipam.ledger import Ledger
from tortie.ipam.survey import Survey, survey
from tortie.model.bgp import BGPConfiguration, BGPPeer, BGPPeerSpec
from tortie.model.bgpfilter import BGPFilter
from tortie.model.hostendpoint import HostEndpoint, HostEndpointSpec
from tortie.model.ipam import IPAMBlock, IPPool
from tortie.model.k8s import Container, K8sNode, Pod, PodIP, PodSpec, PodStatus
from tortie.model.meta import Metadata, changed
from tortie.model.node import ClusterInformation, ClusterInformationSpec, FelixConfiguration, Node
from tortie.model.workload import WorkloadEndpoint, WorkloadEndpointSpec, endpoint_name

GRACE = timedelta(minutes=15)
SOON = timedelta(minutes=1)


class Town(Cluster):
    """A cluster with one node, a pool of small blocks, and pods."""

    def gc(self, grace: timedelta = GRACE) -> IpamGc:
        return IpamGc(self.store, lambda: self.now, matches, grace)

    async def assign(self, handle: str = "net.a", count: int = 1, on: str = "node1", **attrs: str) -> tuple[IP, ...]:
        noted = {"node": on, **(attrs or {"pod": "a", "namespace": "red"})}
        got = await self.ipam(on).auto_assign(count, handle=handle, attrs=noted)
        return tuple(each.ip for each in got.ips)

    async def pod(self, *ips: IP | str, name: str = "a", on: str = "node1", **status: Any) -> Pod:
        return await self.store.create(
            Pod(
                metadata=Metadata(name=name, namespace="red"),
                spec=PodSpec(containers=(Container(name="c"),), node_name=on),
                status=PodStatus(pod_ips=tuple(PodIP(ip=str(ip)) for ip in ips), **status),
            )
        )

    async def endpoint(self, ip: IP, pod: str = "a", on: str = "node1", orchestrator: str = "k8s") -> WorkloadEndpoint:
        spec = WorkloadEndpointSpec(
            orchestrator=orchestrator, node=on, pod=pod, container_id="c1", endpoint="eth0", ip_networks=(f"{ip}/32",)
        )
        name = endpoint_name(on, orchestrator, pod, "eth0")
        return await self.store.create(WorkloadEndpoint(metadata=Metadata(name=name, namespace="red"), spec=spec))

    async def survey(self) -> Survey:
        return await survey(self.store, self.now)

    async def standing(self, ip: IP) -> tuple[Standing, str]:
        now = await self.survey()
        found = verdict(next(each for each in now.allocations if each.ip == ip), now)
        return found.standing, found.reason

    def ledger(self) -> Ledger:
        return Ledger(self.store, lambda: self.now)

    async def held(self) -> set[str]:
        return {str(each.ip) for each in (await self.survey()).allocations if not each.cooling}


@pytest.fixture
async def town() -> Any:
    town = Town()
    await town.node("node1", "node2")
    await town.pool("10.0.0.0/24", block_size=29)
    yield town
    assert [str(each) for each in await town.findings()] == []


# ------------------------------------------------------------------------------------------------- one allocation


async def test_pod_that_is_gone_elsewhere_or_has_other_addresses(town: Town) -> None:
    (ip,) = await town.assign()
    assert await town.standing(ip) == (Standing.LEAKED, "Pod red/a is gone")
    pod = await town.pod(on="node2")
    assert await town.standing(ip) == (Standing.LEAKED, "Pod red/a runs on node node2")
    pod = await town.store.update(replace(pod, spec=replace(pod.spec, node_name="node1")))
    assert await town.standing(ip) == (Standing.USED, "Pod red/a reports no address yet")
    other = PodStatus(pod_ips=(PodIP(ip="10.0.0.200"), PodIP(ip="fd00::1")))
    pod = await town.store.update(replace(pod, status=other))
    assert await town.standing(ip) == (Standing.LEAKED, "Pod red/a has 10.0.0.200, fd00::1")
    pod = await town.store.update(replace(pod, status=PodStatus(pod_ip=str(ip))))
    assert await town.standing(ip) == (Standing.USED, "Pod red/a reports it")
    noted = {"cni.projectcalico.org/podIPs": f"{ip}/32,fd00::1/128"}
    pod = await town.store.update(replace(pod, metadata=replace(pod.metadata, annotations=noted), status=other))
    assert await town.standing(ip) == (Standing.USED, "Pod red/a reports it")
    unreadable = replace(pod, metadata=replace(pod.metadata, annotations={}), status=PodStatus(pod_ip="x"))
    await town.store.update(unreadable)
    assert (await town.standing(ip))[0] is Standing.USED


async def test_evicted_pod_only_once_it_has_had_an_address(town: Town) -> None:
    (ip,) = await town.assign()
    pod = await town.pod(phase="Failed", reason="Evicted")
    assert (await town.standing(ip))[0] is Standing.USED
    await town.store.update(replace(pod, status=replace(pod.status, pod_ip=str(ip))))
    assert await town.standing(ip) == (Standing.LEAKED, "Pod red/a was evicted")


async def test_endpoint_keeps_its_address_as_long_as_its_pod_is_there(town: Town) -> None:
    (ip,) = await town.assign()
    await town.endpoint(ip)
    pod = await town.pod("10.0.0.200")
    assert await town.standing(ip) == (Standing.USED, "WorkloadEndpoint red/node1-k8s-a-eth0 has it")
    await town.store.delete(Pod, pod.name, pod.namespace)
    assert (await town.standing(ip))[0] is Standing.LEAKED
    await town.endpoint(ip, pod="b", orchestrator="openstack")  # nobody can tell whether that is alive
    assert (await town.standing(ip))[0] is Standing.USED


@pytest.mark.parametrize(
    ("attrs", "reason"),
    [
        ({"type": "loadBalancer", "service": "x"}, "it was assigned neither to a pod nor to a tunnel"),
        ({"pod": "a"}, "it was assigned neither to a pod nor to a tunnel"),
    ],
)
async def test_owner_that_cannot_be_asked(town: Town, attrs: dict[str, str], reason: str) -> None:
    (ip,) = await town.assign(**attrs)
    assert await town.standing(ip) == (Standing.UNKNOWN, reason)
    await town.store.delete(Node, "node1")
    assert (await town.standing(ip))[0] is Standing.UNKNOWN


async def test_address_without_handle_and_tunnel_of_a_node(town: Town) -> None:
    await town.ipam().auto_assign(1, handle=None, attrs={"pod": "a", "namespace": "red"})
    (tunnel,) = await town.assign("vxlan-tunnel-addr-node1", type="vxlanTunnelAddress")
    assert await town.standing(parse_ip(min(await town.held()))) == (Standing.UNKNOWN, "it has no handle")
    assert await town.standing(tunnel) == (Standing.USED, "the vxlanTunnelAddress of node node1")
    await town.store.delete(Node, "node1")
    assert await town.standing(tunnel) == (Standing.LEAKED, "node node1 is gone")
    await town.store.create(K8sNode(metadata=Metadata(name="node1")))
    assert (await town.standing(tunnel))[0] is Standing.USED


# --------------------------------------------------------------------------------------------------- leaks over time


async def test_leak_is_released_after_the_grace_period(town: Town) -> None:
    gc, (ip,) = town.gc(), await town.assign()
    assert await gc.run_once() == 0
    town.now += GRACE
    await gc.run_once()
    assert await town.held() == {str(ip)}  # longer than the grace period, not as long
    town.now += SOON
    await gc.run_once()
    assert await town.held() == set()
    assert await town.handles() == {}


async def test_leak_that_stops_leaking_starts_anew(town: Town) -> None:
    gc, (ip,) = town.gc(), await town.assign()
    await gc.run_once()
    town.now += GRACE
    pod = await town.pod(ip)
    await gc.run_once()
    await town.store.delete(Pod, pod.name, pod.namespace)
    town.now += SOON
    await gc.run_once()
    assert await town.held() == {str(ip)}


async def test_address_given_again_is_another_leak(town: Town) -> None:
    gc, (ip,) = town.gc(), await town.assign()
    await gc.run_once()
    await town.ipam().release_by_handle("net.a")
    await town.ipam().assign_ip(ip, handle="net.a", attrs={"node": "node1", "pod": "a", "namespace": "red"})
    town.now += GRACE + SOON
    await gc.run_once()
    assert await town.held() == {str(ip)}


async def test_node_that_is_gone_has_no_grace(town: Town) -> None:
    await town.assign()
    await town.assign("vxlan-tunnel-addr-node1", type="vxlanTunnelAddress")
    (stays,) = await town.assign("net.b", on="node2", pod="b", namespace="red")
    await town.store.delete(Node, "node1")
    assert await town.gc().run_once() == 0
    assert await town.held() == {str(stays)}
    assert {name for name, _ in await town.affinities()} == {"node2"}


async def test_node_that_is_gone_keeps_what_a_pod_still_reports(town: Town) -> None:
    (ip,) = await town.assign()
    await town.pod(ip)
    await town.store.delete(Node, "node1")
    await town.gc().run_once()
    assert await town.held() == {str(ip)}
    assert {name for name, _ in await town.affinities()} == {"node1"}


async def test_unknown_allocation_keeps_the_blocks_of_a_node_that_is_gone(town: Town) -> None:
    await town.assign("h", count=8, type="other")  # a block
    await town.assign("net.a", pod="a", namespace="red")  # another one, empty in the end
    await town.store.delete(Node, "node1")
    await town.gc().run_once()
    assert len(await town.held()) == 8
    assert len(await town.affinities()) == 2


async def test_handle_is_released_as_a_whole_or_not_at_all(town: Town) -> None:
    first, second = await town.assign(count=2)
    await town.pod(first)
    gc = town.gc()
    await gc.run_once()
    town.now += GRACE + SOON
    await gc.run_once()
    assert await town.held() == {str(first), str(second)}
    await town.store.delete(Pod, "a", "red")
    await gc.run_once()  # the second has been leaking long enough, the first has not
    assert len(await town.held()) == 2
    town.now += GRACE + SOON
    await gc.run_once()
    assert await town.held() == set()


async def test_dead_endpoint_goes_before_its_address(town: Town) -> None:
    (ip,) = await town.assign()
    await town.endpoint(ip)
    gc = town.gc()
    await gc.run_once()
    assert len((await town.store.list(WorkloadEndpoint)).items) == 1
    town.now += GRACE + SOON
    now = await town.survey()
    text = str(decide(now, gc.memory))
    assert text == f"delete WorkloadEndpoint red/node1-k8s-a-eth0\nrelease {ip} (red/a on node1)"
    await gc.run_once()
    assert (await town.store.list(WorkloadEndpoint)).items == ()
    assert await town.held() == set()


async def test_endpoint_that_changes_meanwhile_keeps_its_address(town: Town) -> None:
    (ip,) = await town.assign()
    endpoint = await town.endpoint(ip)
    await town.store.delete(Node, "node1")
    decision = decide(await town.survey(), Memory())
    await town.store.update(changed(endpoint, labels={"new": "one"}))
    assert await town.gc().act(decision, town.ledger()) == 1
    assert await town.held() == {str(ip)}


async def test_leak_that_was_put_right_before_its_release_is_kept(town: Town) -> None:
    (ip,) = await town.assign()
    await town.store.delete(Node, "node1")
    decision = decide(await town.survey(), Memory())
    assert [each.ip for each in decision.releases] == [ip]
    await town.node("node1")
    await town.pod(ip)
    later = confirmed(decision, await town.survey())
    assert (later.releases, later.endpoints, later.abandoned) == ((), (), ())


async def test_stale_decision_does_not_release_a_newer_assignment(town: Town) -> None:
    (ip,) = await town.assign()
    (other,) = await town.assign("net.b", pod="b", namespace="red")
    await town.store.delete(Node, "node1")
    gc, decision = town.gc(), decide(await town.survey(), Memory())
    await town.node("node1")
    await town.ipam().release_ips([Release(ip)])
    await town.ipam().assign_ip(ip, handle="net.new", attrs={})
    assert await gc.act(decision, town.ledger()) == 1
    assert await town.held() == {str(ip)}  # and its neighbour in the block was released all the same
    assert str(other) not in await town.held()


async def test_no_grace_keeps_leaks_but_not_those_of_gone_nodes(town: Town) -> None:
    await town.assign()
    (ours,) = await town.assign("net.b", on="node2", pod="b", namespace="red")
    gc = town.gc(timedelta(0))
    await gc.run_once()
    town.now += timedelta(days=9)
    await gc.run_once()
    assert len(await town.held()) == 2
    await town.store.delete(Node, "node1")
    await gc.run_once()
    assert await town.held() == {str(ours)}


async def test_locked_datastore_is_left_alone(town: Town) -> None:
    await town.assign()
    await town.store.delete(Node, "node1")
    spec = ClusterInformationSpec(datastore_ready=False)
    await town.store.create(ClusterInformation(metadata=Metadata(name="default"), spec=spec))
    memory = Memory()
    assert decide(await town.survey(), memory) == Decision(memory=memory)


async def test_handle_of_a_release_that_died_is_counted_anew(town: Town) -> None:
    """The block was written, the handle was not, and the node that would have tried again is gone."""
    ips = await town.assign(count=2)
    await town.pod(*ips)
    net = (await town.survey()).blocks[0].spec.net
    await town.ledger().count_up("net.dead", net, 1)
    await town.ledger().count_up("net.a", net, 3)
    gc = town.gc()
    await gc.run_once()
    assert await town.findings()  # it may be an assignment under way
    town.now += GRACE + SOON
    assert await gc.run_once() == 0
    assert await town.held() == {str(ip) for ip in ips}
    assert not await town.findings()
    assert "net.dead" not in {handle.name for handle in (await town.survey()).handles}


async def test_handle_that_is_written_again_waits_anew(town: Town) -> None:
    (ip,) = await town.assign()
    await town.pod(ip)
    net = (await town.survey()).blocks[0].spec.net
    gc = town.gc()
    await town.ledger().count_up("net.a", net, 1)
    await gc.run_once()
    town.now += GRACE
    await town.ledger().count_up("net.a", net, 1)
    town.now += SOON
    await gc.run_once()
    assert await town.findings()
    town.now += GRACE + SOON
    await gc.run_once()


# ------------------------------------------------------------------------------------------- blocks and cooling down


async def test_empty_block_is_released_when_the_node_has_another(town: Town) -> None:
    ips = await town.assign(count=9)
    await town.pod(*ips)
    gc = town.gc()
    await town.ipam().release_ips([Release(ip) for ip in ips[:8]])
    assert len(await town.blocks()) == 2
    await gc.run_once()
    town.now += GRACE + SOON
    await gc.run_once()
    assert len(await town.blocks()) == 1
    await town.ipam().release_by_handle("net.a")
    await gc.run_once()
    town.now += GRACE + SOON
    await gc.run_once()
    assert len(await town.blocks()) == 1  # the last one stays


async def test_block_that_was_used_in_between_is_not_long_empty(town: Town) -> None:
    ips = await town.assign(count=9)
    await town.pod(*ips)
    gc = town.gc()
    await town.ipam().release_ips([Release(ip) for ip in ips[:8]])
    await gc.run_once()
    town.now += GRACE
    await town.ipam().assign_ip(ips[0], handle="net.b", attrs={})
    await town.ipam().release_by_handle("net.b")
    town.now += SOON
    await gc.run_once()
    assert len(await town.blocks()) == 2


async def test_each_ip_version_keeps_a_block(town: Town) -> None:
    await town.pool("fd00::/112", name="six")
    await town.ipam().auto_assign(1, 1, handle="h", attrs={})
    await town.ipam().release_by_handle("h")
    gc = town.gc()
    await gc.run_once()
    town.now += GRACE + SOON
    await gc.run_once()
    assert len(await town.blocks()) == 2


async def test_block_goes_with_its_last_address_when_the_pool_selects_the_node_no_more(town: Town) -> None:
    (first,) = await town.assign()
    (second,) = await town.assign("net.b", pod="b", namespace="red")
    await town.pod(second, name="b")
    await town.edit_pool(node_selector="rack == 'r1'")
    gc = town.gc()
    await gc.run_once()
    town.now += GRACE + SOON
    await gc.run_once()
    assert await town.held() == {str(second)} != {str(first)}
    assert len(await town.affinities()) == 1
    await town.store.delete(Pod, "b", "red")
    await gc.run_once()
    town.now += GRACE + SOON
    await gc.run_once()
    assert (await town.affinities(), await town.blocks()) == ({}, {})


async def test_cooldown_ends_for_what_has_rested_only(town: Town) -> None:
    await town.config(ip_cooldown_seconds=30)
    ips = await town.assign(count=2)
    await town.pod(*ips)
    await town.ipam().release_ips([Release(ips[0])])
    (before,) = (await town.store.list(IPAMBlock)).items
    town.now += timedelta(hours=1)
    await town.gc().run_once()
    (after,) = (await town.store.list(IPAMBlock)).items
    assert len(after.spec.unallocated) == len(before.spec.unallocated) + 1
    assert after.metadata.uid == before.metadata.uid
    assert await town.held() == {str(ips[1])}
    quiet = after.metadata.resource_version
    await town.gc().run_once()
    assert (await town.store.list(IPAMBlock)).items[0].metadata.resource_version == quiet


async def test_cooldown_takes_a_block_without_owner_with_it(town: Town) -> None:
    await town.config(ip_cooldown_seconds=30)
    (ip,) = await town.assign()
    net = parse_net(next(iter(await town.blocks())).compressed)
    await town.ipam().release_affinity(net, require_empty=False)
    await town.ipam().release_ips([Release(ip)])
    assert await town.blocks() == {net: None}
    town.now += timedelta(hours=1)
    await town.gc().run_once()
    assert await town.blocks() == {}


async def test_gone_node_whose_block_others_borrow_from(town: Town) -> None:
    await town.edit_pool(node_selector="all()")
    await town.store.delete(IPPool, "pool")
    await town.pool("10.1.0.0/29", name="tiny", block_size=29)
    await town.assign()
    (borrowed,) = await town.assign("net.b", on="node2", pod="b", namespace="red")
    await town.pod(borrowed, name="b", on="node2")
    await town.store.delete(Node, "node1")
    gc = town.gc()
    await gc.run_once()
    assert await town.held() == {str(borrowed)}
    assert len(await town.affinities()) == 1
    await town.ipam("node2").release_by_handle("net.b")
    await gc.run_once()
    assert (await town.affinities(), await town.blocks()) == ({}, {})


# ----------------------------------------------------------------------------------------------------------- nodes


async def test_endpoints_of_a_node_that_is_gone(town: Town) -> None:
    for pod, on in (("a", "node1"), ("b", "node1"), ("c", "node2"), ("d", "node1")):
        await town.endpoint(parse_ip("10.9.9.9"), pod=pod, on=on)
    await town.endpoint(parse_ip("10.9.9.9"), pod="e", on="node1", orchestrator="openstack")
    await town.pod(name="b")
    await town.pod(name="d", on="node2")
    cleanup = NodeCleanup(town.store)
    await cleanup.run_once()
    assert len((await town.store.list(WorkloadEndpoint)).items) == 5
    await town.store.delete(Node, "node1")
    doomed = node.decide(await node.read(town.store), frozenset())
    assert [str(each) for each in doomed] == [
        "delete WorkloadEndpoint red/node1-k8s-a-eth0: node node1 is gone, and Pod red/a is gone",
        "delete WorkloadEndpoint red/node1-k8s-d-eth0: node node1 is gone, and Pod red/d runs on node node2",
    ]
    assert await cleanup.run_once() == 0
    assert {each.spec.pod for each in (await town.store.list(WorkloadEndpoint)).items} == {"b", "c", "e"}


async def test_settings_of_a_node_go_only_if_it_has_been_seen(town: Town) -> None:
    for name in ("node1", "node9"):
        host = HostEndpointSpec(node=name, interface_name="eth0")
        await town.store.create(HostEndpoint(metadata=Metadata(name=f"host-{name}"), spec=host))
        await town.store.create(BGPPeer(metadata=Metadata(name=f"peer-{name}"), spec=BGPPeerSpec(node=name)))
        await town.store.create(FelixConfiguration(metadata=Metadata(name=f"node.{name}")))
        await town.store.create(BGPConfiguration(metadata=Metadata(name=f"node.{name}")))
    await town.store.create(FelixConfiguration(metadata=Metadata(name="default")))

    async def left() -> set[str]:
        kinds = (HostEndpoint, BGPPeer, FelixConfiguration, BGPConfiguration)
        return {each.name for kind in kinds for each in (await town.store.list(kind)).items}

    cleanup = NodeCleanup(town.store)
    await cleanup.run_once()
    await town.store.delete(Node, "node1")
    await NodeCleanup(town.store).run_once()  # has not seen it
    assert "node.node1" in await left()
    assert await cleanup.run_once() == 0
    assert await left() == {"default", "node.node9", "peer-node9", "host-node9"}


async def test_what_a_node_told_on_objects_goes_with_it(town: Town) -> None:
    def told(*nodes: str) -> list[dict[str, str]]:
        return [{"type": f"tortie.dev/NotApplied-{name}", "status": "True"} for name in nodes]

    other = {"type": "Ready", "status": "True"}
    strange = {"conditions": ["x", *told("gone"), other, *told("node1")], "kept": 1}
    await town.store.create(BGPPeer(metadata=Metadata(name="both"), spec=BGPPeerSpec(), status=strange))
    await town.store.create(BGPFilter(metadata=Metadata(name="all"), status={"conditions": told("gone", "gone2")}))
    await town.store.create(BGPFilter(metadata=Metadata(name="text"), status="x"))
    cleanup = NodeCleanup(town.store)
    assert list(map(str, node.cleared(await node.read(town.store)))) == [
        "clear conditions of BGPPeer both: gone is gone",
        "clear conditions of BGPFilter all: gone and gone2 are gone",
    ]
    assert await cleanup.run_once() == 0
    peer = await town.store.get(BGPPeer, "both")
    assert peer.status == {"conditions": [other, *told("node1")], "kept": 1}
    assert {each.name: each.status for each in (await town.store.list(BGPFilter)).items} == {"all": None, "text": "x"}
    assert await cleanup.run_once() == 0
    assert (await town.store.get(BGPPeer, "both")).metadata.resource_version == peer.metadata.resource_version
    await town.store.delete(Node, "node1")
    await cleanup.run_once()
    assert (await town.store.get(BGPPeer, "both")).status == {"conditions": [other], "kept": 1}


# ------------------------------------------------------------------------------------------------------ the program


class Failing:
    """A controller that fails at its first passes."""

    name = "failing"

    def __init__(self) -> None:
        self.passes = 0

    async def run_once(self) -> int:
        self.passes += 1
        if self.passes == 1:
            raise Unavailable("the datastore is away")
        return 1


async def test_program_looks_when_a_node_goes_and_stays_when_one_controller_fails(town: Town) -> None:
    await town.assign()
    failing = Failing()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(main.run(town.store, GRACE)),
            tasks.create_task(main.keep_running(failing, GRACE, asyncio.Event())),
        ]
        await asyncio.sleep(0.05)
        assert len(await town.held()) == 1
        await town.store.delete(Node, "node1")
        while await town.held() or failing.passes < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        for task in running:
            task.cancel()


async def test_one_pass(town: Town) -> None:
    await town.assign()
    await town.store.delete(Node, "node1")
    assert await main.run_once(town.store, GRACE) == 0
    assert await town.held() == set()


@pytest.mark.parametrize(
    ("text", "seconds"), [("15m", 900), ("1m30s", 90), ("0", 0), ("0s", 0), ("1.5h", 5400), ("500ms", 0.5)]
)
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "15", "m", "-5m", "5m x", "1d", "5 m"])
def test_no_duration(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a duration such as"):
        parse_duration(text)
