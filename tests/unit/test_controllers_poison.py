"""One bad thing keeps nothing else waiting: for every controller, one that is refused, and one that cannot be read."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from controllers_town import Refusing, Town
from ipam_cluster import matches
from tortie.base.errors import Exists, NotSupported
from tortie.controllers.auto_hosts import AutoHostEndpoints
from tortie.controllers.endpoints import EndpointLabels
from tortie.controllers.ipam_gc import IpamGc
from tortie.controllers.load_balancer import ASSIGNED, LoadBalancerIpam
from tortie.controllers.mirror import PATTERNS, Mirror
from tortie.controllers.node import NodeCleanup, orphaned
from tortie.controllers.node_labels import NodeLabels
from tortie.ipam.allocation import allocations
from tortie.model.bgp import BGPConfiguration, BGPPeer, BGPPeerSpec
from tortie.model.controllers import (
    AutoHostEndpointConfig,
    ControllersConfig,
    HostEndpointTemplate,
    KubeControllersConfiguration,
    KubeControllersConfigurationSpec,
    NodeControllerConfig,
)
from tortie.model.document import convert
from tortie.model.hostendpoint import HostEndpoint
from tortie.model.ipam import BlockAffinity, BlockAffinitySpec, IPAMBlock, IPAMBlockSpec
from tortie.model.k8s import K8sNode, Namespace, Pod, PodSpec
from tortie.model.meta import Metadata, Resource
from tortie.model.node import Node, NodeInterface, NodeSpec, OrchRef
from tortie.model.policy import Profile
from tortie.model.service import Service, ServicePort, ServiceSpec
from tortie.model.store import Listing, R
from tortie.model.workload import WorkloadEndpoint

GRACE = timedelta(minutes=15)


@pytest.fixture
def town() -> Town:
    return Town()


# --- host endpoints ---------------------------------------------------------------------------------------------------


def auto(*templates: HostEndpointTemplate) -> KubeControllersConfiguration:
    config = AutoHostEndpointConfig(auto_create="Enabled", templates=templates)
    controllers = ControllersConfig(node=NodeControllerConfig(host_endpoint=config))
    return KubeControllersConfiguration(
        metadata=Metadata(name="default"), spec=KubeControllersConfigurationSpec(controllers=controllers)
    )


async def test_host_endpoints(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    await town.node("n1", "bad", "n3")
    await town.store.create(auto())
    controller = AutoHostEndpoints(town.refusing, matches, later=town.hands.backoff())
    assert await controller.run_once() == 1
    assert await town.names(HostEndpoint) == {"n1-auto-hep", "n3-auto-hep"}
    assert await controller.run_once() == 0  # not yet due
    assert town.refusing.attempts == ["bad-auto-hep"]
    town.hands.time += 0.5
    assert await controller.run_once() == 1
    town.refusing.refusing = False
    assert await controller.run_once() == 0
    town.hands.time += 1.0
    assert await controller.run_once() == 0
    assert "bad-auto-hep" in await town.names(HostEndpoint)


async def test_a_node_that_is_left_out_of_lists_keeps_its_host_endpoint(town: Town) -> None:
    await town.node("n1", "n2")
    config = await town.store.create(auto())
    controller = AutoHostEndpoints(town.refusing, matches)
    await controller.run_once()
    town.refusing.hidden = {"n1"}
    await controller.run_once()
    assert await town.names(HostEndpoint) == {"n1-auto-hep", "n2-auto-hep"}
    await town.store.delete(Node, "n1")
    await controller.run_once()
    assert await town.names(HostEndpoint) == {"n2-auto-hep"}
    town.refusing.hidden = {"n2"}
    await town.store.delete(KubeControllersConfiguration, config.name)
    await controller.run_once()
    assert await town.names(HostEndpoint) == set()


async def test_templates_and_addresses_that_cannot_be_read(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    strange = NodeSpec(interfaces=(NodeInterface(name="eth0", addresses=("x", "10.0.0.1/24")),))
    await town.store.create(Node(metadata=Metadata(name="n1"), spec=strange))
    await town.store.create(
        HostEndpoint(metadata=Metadata(name="old", labels={"projectcalico.org/created-by": "calico-kube-controllers"}))
    )
    await town.store.create(
        auto(
            HostEndpointTemplate(generate_name="sel", interface_pattern="eth", node_selector="((("),
            HostEndpointTemplate(generate_name="pat", interface_pattern="((("),
            HostEndpointTemplate(generate_name="net", interface_cidrs=("10.0.0.0/99",)),
            HostEndpointTemplate(generate_name="good", interface_cidrs=("10.0.0.0/8",)),
        )
    )
    controller = AutoHostEndpoints(town.store, matches)
    for _ in range(2):
        assert await controller.run_once() == 0
    assert await town.names(HostEndpoint) == {"n1-auto-hep", "n1-good-auto-hep", "old"}
    for name in ("sel", "pat", "net"):
        assert caplog.text.count(f"template {name} for Node n1") == 1


# --- addresses of services --------------------------------------------------------------------------------------------


def service(name: str, **spec: Any) -> Service:
    metadata = Metadata(name=name, namespace="red")
    return Service(metadata=metadata, spec=ServiceSpec(type="LoadBalancer", ports=(ServicePort(port=80),), **spec))


async def conditions(town: Town, name: str) -> list[dict[str, Any]]:
    status = (await town.store.get(Service, name, "red")).status or {}
    return list(status.get("conditions", ()))


async def test_services(town: Town) -> None:
    await town.pool("203.0.113.0/28", "lb", block_size=29, allowed_uses=("LoadBalancer",))
    for name in ("a", "bad", "c"):
        await town.store.create(service(name))
    controller = LoadBalancerIpam(town.refusing, lambda: town.now, matches, later=town.hands.backoff())
    assert await controller.run_once() == 1
    for name in ("a", "c"):
        assert (await town.store.get(Service, name, "red")).status["loadBalancer"]["ingress"]
    assert await controller.run_once() <= 1
    town.refusing.refusing = False
    town.hands.time += 10
    assert await controller.run_once() == 0
    assert (await town.store.get(Service, "bad", "red")).status["loadBalancer"]["ingress"]


async def test_a_service_that_is_left_out_of_lists_keeps_its_address(town: Town) -> None:
    await town.pool("203.0.113.0/28", "lb", block_size=29, allowed_uses=("LoadBalancer",))
    for name in ("a", "b"):
        await town.store.create(service(name))
    controller = LoadBalancerIpam(town.refusing, lambda: town.now, matches)

    async def held() -> set[str]:
        blocks = (await town.store.list(IPAMBlock)).items
        return {each.attrs["service"] for each in allocations(blocks) if each.handle and not each.cooling}

    await controller.run_once()
    town.refusing.hidden = {"a"}
    assert await controller.run_once() == 0
    assert await held() == {"a", "b"}
    await town.store.delete(Service, "a", "red")
    assert await controller.run_once() == 0
    assert await held() == {"b"}


async def test_full_pools_are_told_once_and_asked_slowly(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    await town.pool("203.0.113.0/30", "lb", block_size=30, allowed_uses=("LoadBalancer",))
    for i in range(4):
        await town.store.create(service(f"s{i}"))
    controller = LoadBalancerIpam(town.store, lambda: town.now, matches, later=town.hands.backoff())
    assert await controller.run_once() == 0
    late = await town.store.create(service("s4"))
    assert await controller.run_once() == 1
    (told,) = await conditions(town, "s4")
    assert told == {
        "type": ASSIGNED,
        "status": "False",
        "reason": "NoFreeAddress",
        "message": "no pool with allowedUses LoadBalancer has a free address",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
    }
    assert controller.later.wait() == 300.0
    town.now += timedelta(hours=1)
    revision = (await town.store.get(Service, "s4", "red")).metadata.resource_version
    for _ in range(3):
        town.hands.time += 301
        assert await controller.run_once() == 1
    assert (await town.store.get(Service, "s4", "red")).metadata.resource_version == revision
    assert caplog.text.count("has a free address") == 1
    # An address that is given back is had at once, and the complaint goes.
    await town.store.delete(Service, "s1", "red")
    assert await controller.run_once() == 0
    assert await conditions(town, "s4") == []
    assert (await town.store.get(Service, "s4", "red")).status["loadBalancer"]["ingress"]
    assert late.status is None


async def test_a_new_pool_helps_at_once(town: Town) -> None:
    await town.pool("203.0.113.0/32", "lb", block_size=32, allowed_uses=("LoadBalancer",))
    for name in ("a", "b"):
        await town.store.create(service(name))
    controller = LoadBalancerIpam(town.store, lambda: town.now, matches, later=town.hands.backoff())
    assert await controller.run_once() == 1
    await controller.run_once()
    assert await controller.run_once() == 0  # slowly
    await town.pool("203.0.113.8/32", "more", block_size=32, allowed_uses=("LoadBalancer",))
    assert await controller.run_once() == 0
    assert await conditions(town, "b") == []


async def test_a_request_that_makes_no_sense_is_told_and_heard_when_it_changes(town: Town) -> None:
    await town.pool("203.0.113.0/28", "lb", block_size=29, allowed_uses=("LoadBalancer",))
    wrong = await town.store.create(service("a", load_balancer_ip="nonsense"))
    await town.store.update(replace(wrong, status={"conditions": [{"type": "Mine", "status": "True"}]}))
    controller = LoadBalancerIpam(town.store, lambda: town.now, matches, later=town.hands.backoff())
    assert await controller.run_once() == 1
    assert [each.get("reason") for each in await conditions(town, "a")] == [None, "BadRequest"]
    stored = await town.store.get(Service, "a", "red")
    await town.store.update(replace(stored, spec=replace(stored.spec, load_balancer_ip="203.0.113.3")))
    assert await controller.run_once() == 0
    assert await conditions(town, "a") == [{"type": "Mine", "status": "True"}]


# --- nodes ------------------------------------------------------------------------------------------------------------


def registered(name: str, kubernetes: str = "", orchestrator: str = "k8s") -> Node:
    ref = OrchRef(node_name=kubernetes or name, orchestrator=orchestrator)
    return Node(metadata=Metadata(name=name), spec=NodeSpec(orch_refs=(ref,)))


async def test_what_gone_nodes_left(town: Town) -> None:
    cleanup = NodeCleanup(town.refusing, later=town.hands.backoff())
    await town.node("gone")
    for name in ("a", "bad", "c"):
        await town.store.create(BGPPeer(metadata=Metadata(name=name), spec=BGPPeerSpec(node="gone")))
    await cleanup.run_once()
    await town.store.delete(Node, "gone")
    assert await cleanup.run_once() == 1
    assert await town.names(BGPPeer) == {"bad"}
    assert await cleanup.run_once() == 0
    assert town.refusing.attempts == ["bad"]
    town.refusing.refusing = False
    town.hands.time += 1
    assert await cleanup.run_once() == 0
    assert await town.names(BGPPeer) == set()


async def test_what_cannot_be_read_is_left_alone_and_the_rest_is_done(
    town: Town, caplog: pytest.LogCaptureFixture
) -> None:
    cleanup = NodeCleanup(town.refusing)
    await town.node("gone")
    await town.store.create(BGPPeer(metadata=Metadata(name="peer"), spec=BGPPeerSpec(node="gone")))
    await town.store.create(BGPConfiguration(metadata=Metadata(name="node.gone")))
    await cleanup.run_once()
    await town.store.delete(Node, "gone")
    town.refusing.unreadable = {BGPPeer}
    assert await cleanup.run_once() == 1
    assert await town.names(BGPConfiguration) == set()
    assert await town.names(BGPPeer) == {"peer"}
    assert "bgppeers of nodes that are gone stay" in caplog.text
    town.refusing.unreadable = set()
    assert await cleanup.run_once() == 0
    assert await town.names(BGPPeer) == set()


@pytest.mark.parametrize("kind", [Pod, Node, K8sNode])
async def test_what_says_that_something_is_alive_must_be_readable(town: Town, kind: type[Resource]) -> None:
    town.refusing.unreadable = {kind}
    with pytest.raises(NotSupported):
        await NodeCleanup(town.refusing).run_once()
    with pytest.raises(NotSupported):
        await IpamGc(town.refusing, lambda: town.now, matches).run_once()


async def test_a_node_that_is_left_out_of_lists_keeps_what_is_its(town: Town) -> None:
    cleanup = NodeCleanup(town.refusing)
    await town.node("node")
    await town.store.create(BGPPeer(metadata=Metadata(name="peer"), spec=BGPPeerSpec(node="node")))
    await cleanup.run_once()
    town.refusing.hidden = {"node"}
    assert await cleanup.run_once() == 0
    assert await town.names(BGPPeer) == {"peer"}


async def test_a_node_that_comes_back_while_we_look_keeps_what_is_its(town: Town) -> None:
    class Late(Refusing):
        back = False

        async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
            found = await super().list(kind, namespace)
            if kind is K8sNode and self.back:
                await town.node("node")
            return found

    store = Late(town.store)
    cleanup = NodeCleanup(store)
    await town.node("node")
    await town.store.create(BGPPeer(metadata=Metadata(name="peer"), spec=BGPPeerSpec(node="node")))
    await cleanup.run_once()
    await town.store.delete(Node, "node")
    store.back = True
    assert await cleanup.run_once() == 0
    assert await town.names(BGPPeer) == {"peer"}
    store.back = False
    await town.store.delete(Node, "node")
    assert await cleanup.run_once() == 0
    assert await town.names(BGPPeer) == set()


async def test_nodes_go_with_kubernetes_nodes(town: Town) -> None:
    """On etcd (spec 9.6): what names the node goes, then the Node; at the next pass its addresses, by `ipam_gc`."""
    for node in (registered("n1"), registered("calico-name", "n2"), registered("other", orchestrator="openstack")):
        await town.store.create(node)
    await town.node("plain")
    for name in ("n1", "n2"):
        await town.store.create(K8sNode(metadata=Metadata(name=name)))
    await town.store.create(BGPPeer(metadata=Metadata(name="peer"), spec=BGPPeerSpec(node="calico-name")))
    await town.store.create(BGPConfiguration(metadata=Metadata(name="node.calico-name")))
    await town.store.create(
        convert(
            WorkloadEndpoint,
            {
                "metadata": {"name": "calico--name-k8s-a-eth0", "namespace": "red"},
                "spec": {"node": "calico-name", "orchestrator": "k8s", "pod": "a", "endpoint": "eth0"},
            },
        )
    )
    assert await NodeCleanup(town.store, orphans=True).run_once() == 0
    assert await town.names(Node) == {"n1", "calico-name", "other", "plain"}
    await town.store.delete(K8sNode, "n2")
    assert await NodeCleanup(town.store).run_once() == 0  # not where one datastore has both
    assert "calico-name" in await town.names(Node)
    # A process that has never seen the node knows it by its reference.
    assert await NodeCleanup(town.store, orphans=True).run_once() == 0
    assert await town.names(Node) == {"n1", "other", "plain"}
    assert await town.names(BGPPeer) == await town.names(BGPConfiguration) == set()
    assert await town.names(WorkloadEndpoint) == set()


async def test_a_node_stays_until_what_was_its_is_gone(town: Town) -> None:
    await town.store.create(registered("n1"))
    await town.store.create(K8sNode(metadata=Metadata(name="n2")))
    await town.store.create(BGPPeer(metadata=Metadata(name="bad"), spec=BGPPeerSpec(node="n1")))
    cleanup = NodeCleanup(town.refusing, orphans=True)
    assert await cleanup.run_once() == 1
    assert await town.names(Node) == {"n1"}
    town.refusing.refusing = False
    assert await cleanup.run_once() == 0
    assert await town.names(Node) == set()


async def test_a_node_that_comes_while_we_look_stays(town: Town) -> None:
    await town.store.create(registered("n1"))
    await town.store.create(K8sNode(metadata=Metadata(name="n2")))

    class Late(Refusing):
        async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
            if kind is K8sNode and name == "n1":
                with suppress(Exists):
                    await town.store.create(K8sNode(metadata=Metadata(name="n1")))
            return await super().get(kind, name, namespace)

    assert await NodeCleanup(Late(town.store), orphans=True).run_once() == 0
    assert await town.names(Node) == {"n1"}


def test_without_any_node_of_kubernetes_nobody_is_an_orphan() -> None:
    assert list(orphaned([registered("n1")], set())) == []
    assert [each.name for each in orphaned([registered("n1")], {"n2"})] == ["n1"]


# --- addresses --------------------------------------------------------------------------------------------------------


async def test_addresses(town: Town) -> None:
    """A block that is no network, a release that is refused: the others are given back all the same."""
    await town.pool("10.0.0.0/24", block_size=26)
    await town.node("n1", "n2")
    for node in ("n1", "n2"):
        await town.ipam(node).auto_assign(1, 0, handle=f"h-{node}", attrs={"node": node, "namespace": "x", "pod": node})
    blocks = (await town.store.list(IPAMBlock)).items
    await town.store.create(
        IPAMBlock(metadata=Metadata(name="nonsense"), spec=IPAMBlockSpec(cidr="nonsense", affinity="host:n1"))
    )
    await town.store.create(
        BlockAffinity(metadata=Metadata(name="bad"), spec=BlockAffinitySpec(cidr="nonsense", node="n9"))
    )
    for node in ("n1", "n2"):
        await town.store.delete(Node, node)
    gc = IpamGc(town.refusing, lambda: town.now, matches, GRACE, later=town.hands.backoff())
    assert await gc.run_once() == 1
    left = {each.name for each in (await town.store.list(IPAMBlock)).items}
    assert len(blocks) == 2
    assert left == {"nonsense"}
    assert await gc.run_once() == 0
    town.hands.time += 1
    assert await gc.run_once() == 1


@pytest.mark.parametrize("hidden", ["pod", "node"])
async def test_what_is_left_out_of_lists_keeps_its_addresses(town: Town, hidden: str) -> None:
    await town.pool("10.0.0.0/24", block_size=26)
    await town.node("node")
    await town.store.create(Namespace(metadata=Metadata(name="x")))
    pod = Pod(metadata=Metadata(name="pod", namespace="x"), spec=PodSpec(containers=(), node_name="node"))
    await town.store.create(pod)
    await town.ipam("node").auto_assign(1, 0, handle="h", attrs={"node": "node", "namespace": "x", "pod": "pod"})
    town.refusing.hidden = {hidden}
    gc = IpamGc(town.refusing, lambda: town.now, matches, GRACE)
    before = (await town.store.list(IPAMBlock)).items
    for _ in range(2):
        assert await gc.run_once() == 0
        assert (await town.store.list(IPAMBlock)).items == before
        town.now += 2 * GRACE
    await town.store.delete(Pod, "pod", "x")
    await town.store.delete(Node, "node")
    await gc.run_once()
    assert (await town.store.list(IPAMBlock)).items == ()


# --- copies and labels ------------------------------------------------------------------------------------------------


async def test_copies(town: Town) -> None:
    for name in ("a", "bad", "c"):
        await town.store.create(Namespace(metadata=Metadata(name=name)))
    mirror = Mirror(town.refusing, PATTERNS[0], later=town.hands.backoff())
    assert await mirror.run_once() == 1
    assert await town.names(Profile) == {"kns.a", "kns.c"}
    assert await mirror.run_once() == 0
    town.refusing.unreadable = {Namespace}
    with pytest.raises(NotSupported):
        await mirror.run_once()
    assert await town.names(Profile) == {"kns.a", "kns.c"}


async def test_the_copy_of_what_is_left_out_of_lists_stays(town: Town) -> None:
    for name in ("a", "b"):
        await town.store.create(Namespace(metadata=Metadata(name=name)))
    mirror = Mirror(town.refusing, PATTERNS[0])
    await mirror.run_once()
    town.refusing.hidden = {"a"}
    assert await mirror.run_once() == 0
    assert await town.names(Profile) == {"kns.a", "kns.b"}
    await town.store.delete(Namespace, "a")
    assert await mirror.run_once() == 0
    assert await town.names(Profile) == {"kns.b"}


async def test_labels(town: Town) -> None:
    for name in ("a", "bad", "c"):
        await town.store.create(registered(name))
        await town.store.create(K8sNode(metadata=Metadata(name=name, labels={"zone": "z"})))
        metadata = {"name": name, "namespace": "red"}
        await town.store.create(
            convert(Pod, {"metadata": metadata, "spec": {"containers": [{"name": "c"}], "nodeName": "n"}})
        )
        spec = {"node": "n", "orchestrator": "k8s", "pod": name, "endpoint": "eth0"}
        await town.store.create(convert(WorkloadEndpoint, {"metadata": metadata, "spec": spec}))
    nodes = NodeLabels(town.refusing, later=town.hands.backoff())
    endpoints = EndpointLabels(town.refusing, later=town.hands.backoff())
    for controller, kind in ((nodes, Node), (endpoints, WorkloadEndpoint)):
        assert await controller.run_once() == 1
        assert [bool(each.labels) for each in (await town.store.list(kind)).items] == [True, False, True]
        assert await controller.run_once() == 0
