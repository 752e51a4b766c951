"""What the Kubernetes datastore makes of pods, nodes, namespaces, and of objects that others have written.

Requests are counted: a node that asks more than it must is a cluster that does not grow.
"""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kube_store import Server, definitions, server

from tortie.agent.view import View
from tortie.base.addr import parse_ip
from tortie.base.errors import Compacted, ConfigError, Conflict, Exists, NotFound, NotSupported, Unavailable
from tortie.calc.cluster import INPUTS
from tortie.calc.state import DesiredState
from tortie.calc.workloads import endpoint_of_pod
from tortie.model.document import parse
from tortie.model.ipam import IPAMConfig, IPAMConfigSpec, IPPool, IPPoolSpec
from tortie.model.k8s import (
    K8sNetworkPolicy,
    K8sNetworkPolicySpec,
    K8sNode,
    Namespace,
    Pod,
    ServiceAccount,
    VirtualMachineInstance,
)
from tortie.model.lease import Lease, LeaseSpec
from tortie.model.meta import Metadata, Resource, changed
from tortie.model.node import ClusterInformation, ClusterInformationSpec, Node, NodeBGPSpec, NodeSpec
from tortie.model.policy import GlobalNetworkPolicy, Profile
from tortie.model.service import Service, ServicePort, ServiceSpec
from tortie.model.store import Event
from tortie.model.workload import NETWORK, WorkloadEndpoint, endpoint_name
from tortie.store.kube.crd import CUSTOM
from tortie.store.kubernetes import KubernetesStore

PATIENCE = 20
NAME = endpoint_name("n1", "k8s", "web-0", "eth0")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("kube"), bookmark_every=0.2) as running:
        yield running


@pytest.fixture
def api(running: Server) -> Server:
    running.empty()
    for name in ("n1", "n2"):
        running.do(running.api.create, node(name))
    running.do(running.api.create, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "red"}})
    running.asked()
    return running


@pytest.fixture
async def store(api: Server) -> AsyncIterator[KubernetesStore]:
    store = api.store()
    yield store
    await store.close()


@pytest.fixture
async def agent(api: Server) -> AsyncIterator[KubernetesStore]:
    """The store of node n1's agent."""
    store = api.store(node="n1")
    yield store
    await store.close()


def node(name: str) -> dict[str, Any]:
    addresses = [{"type": "InternalIP", "address": f"192.0.2.{name[1:]}"}]
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"zone": "a"}},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
            "status": {"addresses": addresses}}  # fmt: skip


def pod(name: str, where: str = "n1", **status: Any) -> dict[str, Any]:
    container = {"name": "c", "image": "i", "ports": [{"containerPort": 80, "name": "http"}]}
    return {"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "red", "labels": {"app": "web"}},
            "spec": {"nodeName": where, "containers": [container], "volumes": [{"name": "v", "emptyDir": {}}]},
            "status": {"phase": "Pending", **status}}  # fmt: skip


async def made(api: Server, document: dict[str, Any]) -> dict[str, Any]:
    return await asyncio.to_thread(api.do, api.api.create, document)


def endpoint(found: Pod, ip: str = "10.0.0.5", container: str = "c1") -> WorkloadEndpoint:
    """As the agent makes it on ADD."""
    mac, ips = "0a:00:00:00:00:01", (parse_ip(ip),)
    new = endpoint_of_pod(found, node=found.spec.node_name, container_id=container, interface="", mac=mac, ips=ips)
    return changed(new, annotations={NETWORK: "k8s-pod-network"})


async def take(batches: AsyncIterator[tuple[Event[Any], ...]], count: int) -> list[Event[Any]]:
    found: list[Event[Any]] = []
    async with asyncio.timeout(PATIENCE):
        while len(found) < count:
            found.extend(await anext(batches))
    return found


def told(events: list[Event[Any]]) -> list[tuple[str, str]]:
    return [(event.type.value, event.object.name) for event in events]


def writes(api: Server) -> list[str]:
    return [line for line in api.asked() if not line.startswith(("GET", "WATCH"))]


# Pods and their endpoints -------------------------------------------------------------------------------------------


async def test_add_and_del_of_a_pod_cost_a_request_or_two(api: Server, agent: KubernetesStore) -> None:
    """The agent follows its pods; then ADD writes with one request, and DEL reads and writes."""
    await made(api, pod("web-0"))
    await made(api, pod("other", "n2"))
    listing = await agent.list(Pod)
    assert [one.name for one in listing.items] == ["web-0"], "an agent asks for its own node's pods"
    api.asked()
    new = endpoint(listing.items[0])
    stored = await agent.create(new)
    assert api.asked() == ["PATCH /api/v1/namespaces/red/pods/web-0/status"]
    assert (stored.spec.ip_networks, stored.spec.container_id, stored.spec.mac) == (
        ("10.0.0.5/32",), "c1", "0a:00:00:00:00:01")  # fmt: skip
    assert stored.metadata.annotations == {NETWORK: "k8s-pod-network"}
    with pytest.raises(Exists, match=rf"^resource already exists: WorkloadEndpoint\(red/{NAME}\)$"):
        await agent.create(new)
    found = await agent.get(WorkloadEndpoint, NAME, "red")
    assert found == stored
    api.asked()
    assert await agent.delete(WorkloadEndpoint, NAME, "red", found.metadata.resource_version) == stored
    assert api.asked() == ["PATCH /api/v1/namespaces/red/pods/web-0/status"]
    with pytest.raises(NotFound, match=r"^resource does not exist: WorkloadEndpoint"):
        await agent.get(WorkloadEndpoint, NAME, "red")
    kept = await asyncio.to_thread(api.do, api.api.get, "pods", "web-0", "red")
    assert kept["spec"]["volumes"] == [{"name": "v", "emptyDir": {}}]
    assert kept["metadata"]["annotations"] == {"cni.projectcalico.org/podIP": "", "cni.projectcalico.org/podIPs": ""}


async def test_everybody_sees_a_pod_become_an_endpoint(
    api: Server, agent: KubernetesStore, store: KubernetesStore
) -> None:
    for name, ips in (("web-0", []), ("up", ["10.0.0.9"]), ("done", ["10.0.0.8"])):
        phase = "Succeeded" if name == "done" else "Running"
        await made(api, pod(name, phase=phase, podIPs=[{"ip": ip} for ip in ips]))
    listing = await store.list(WorkloadEndpoint)
    assert [one.spec.pod for one in listing.items] == ["up"]
    found = await agent.get(Pod, "web-0", "red")
    async with aclosing(store.watch(WorkloadEndpoint, listing.revision)) as watch:
        stored = await agent.create(endpoint(found))
        (event,) = await take(watch, 1)
        assert (event.type.value, event.object) == ("ADDED", stored)
        latest = await store.get(Pod, "web-0", "red")
        status = msgspec.structs.replace(latest.status, phase="Running")
        await store.update(msgspec.structs.replace(latest, status=status))  # says nothing of the endpoint
        await store.update(changed(await store.get(Pod, "web-0", "red"), labels={"app": "db"}))
        await asyncio.to_thread(api.do, api.api.delete, "pods", "done", "red")
        await agent.delete(WorkloadEndpoint, NAME, "red")
        await asyncio.to_thread(api.do, api.api.delete, "pods", "up", "red")
        events = await take(watch, 3)
    assert told(events) == [("MODIFIED", NAME), ("DELETED", NAME), ("DELETED", "n1-k8s-up-eth0")]
    assert events[0].object.labels["app"] == "db"


async def test_an_update_of_what_is_derived_is_no_write(api: Server, store: KubernetesStore) -> None:
    await made(api, pod("web-0"))
    stored = await store.create(endpoint(await store.get(Pod, "web-0", "red")))
    api.asked()
    spec = msgspec.structs.replace(stored.spec, ports=(), profiles=("kns.blue",), qos_controls=None)
    assert await store.update(changed(msgspec.structs.replace(stored, spec=spec), labels={})) == stored
    assert writes(api) == []
    moved = msgspec.structs.replace(stored.spec, ip_networks=("10.0.0.6/32",), container_id="c2")
    new = await store.update(msgspec.structs.replace(stored, spec=moved))
    assert (new.spec.ip_networks, new.spec.container_id) == (("10.0.0.6/32",), "c2")
    with pytest.raises(Conflict, match=r"^update conflict: WorkloadEndpoint\(red/"):
        await store.update(msgspec.structs.replace(stored, spec=stored.spec))
    with pytest.raises(Conflict, match=r"^update conflict: WorkloadEndpoint\(red/"):
        await store.delete(WorkloadEndpoint, NAME, "red", stored.metadata.resource_version)
    assert (await store.get(WorkloadEndpoint, NAME, "red")).spec.container_id == "c2", "another container's stays"


async def test_an_update_that_changes_nothing_is_still_about_the_newest(
    api: Server, agent: KubernetesStore, store: KubernetesStore
) -> None:
    """What an agent remembers of its pods may be over: another has taken the endpoint away."""
    await made(api, pod("web-0"))
    await store.create(endpoint(await store.get(Pod, "web-0", "red")))
    await agent.list(Pod)
    found = await agent.get(WorkloadEndpoint, NAME, "red")
    beat = await store.get(Pod, "web-0", "red")
    await store.update(msgspec.structs.replace(beat, status=msgspec.structs.replace(beat.status, phase="Running")))
    again = await agent.update(found)
    assert changed(again, resource_version=found.metadata.resource_version) == found, "a heartbeat changes nothing"
    await store.delete(WorkloadEndpoint, NAME, "red")
    with pytest.raises(NotFound):
        await agent.update(again)


async def test_a_pod_that_was_replaced_is_not_taken_for_the_old_one(api: Server, agent: KubernetesStore) -> None:
    await made(api, pod("web-0"))
    old = (await agent.list(Pod)).items[0]
    await asyncio.to_thread(api.do, api.api.delete, "pods", "web-0", "red")
    new = endpoint(old)
    with pytest.raises(NotFound, match=r"^resource does not exist: Pod\(red/web-0\)$"):
        await agent.create(new)
    for where in ("n1", "n2"):
        await made(api, pod("web-0", where))
        with pytest.raises(NotFound, match=r"^resource does not exist: Pod\(red/web-0\)$"):
            await agent.create(new)
        second = await asyncio.to_thread(api.do, api.api.get, "pods", "web-0", "red")
        assert "annotations" not in second["metadata"]
        await asyncio.to_thread(api.do, api.api.delete, "pods", "web-0", "red")


async def test_a_container_that_is_no_pod_has_no_endpoint_here(store: KubernetesStore) -> None:
    alien = WorkloadEndpoint(metadata=Metadata(name="n1-cni-4f0c-eth0", namespace="default"))
    with pytest.raises(NotSupported, match=r"^operation Create is not supported on WorkloadEndpoint"):
        await store.create(alien)
    with pytest.raises(NotFound):
        await store.get(WorkloadEndpoint, alien.name, "default")


async def test_addresses_of_a_second_container_are_not_the_firsts(api: Server, agent: KubernetesStore) -> None:
    """The kubelet reports the first container's until it looks again."""
    await made(api, pod("web-0", phase="Running", podIP="10.0.0.4", podIPs=[{"ip": "10.0.0.4"}]))
    first = await agent.get(WorkloadEndpoint, NAME, "red")
    assert first.spec.ip_networks == ("10.0.0.4/32",)
    await agent.delete(WorkloadEndpoint, NAME, "red", first.metadata.resource_version)
    second = await agent.create(endpoint(await agent.get(Pod, "web-0", "red"), "10.0.0.5", "c2"))
    assert second.spec.ip_networks == ("10.0.0.5/32",)
    assert (await agent.get(WorkloadEndpoint, NAME, "red")).spec.ip_networks == ("10.0.0.5/32",)


# Nodes ----------------------------------------------------------------------------------------------------------


async def test_a_node_registers_itself_in_annotations(api: Server, store: KubernetesStore) -> None:
    found = await store.get(Node, "n1")
    assert (found.spec.bgp, found.labels) == (None, {"zone": "a"})
    listing = await store.list(Node)
    assert [one.name for one in listing.items] == ["n1", "n2"]
    api.asked()
    new = msgspec.structs.replace(
        found, spec=msgspec.structs.replace(found.spec, bgp=NodeBGPSpec(ipv4_address="192.0.2.1/24"))
    )
    async with aclosing(store.watch(Node, listing.revision)) as watch:
        stored = await store.update(new)
        assert writes(api) == ["PATCH /api/v1/nodes/n1/status"]
        kube = await store.get(K8sNode, "n1")
        status = dict(kube.status) | {"conditions": [{"type": "NetworkUnavailable", "status": "False"}]}
        await store.update(msgspec.structs.replace(kube, status=status))
        assert writes(api) == ["PATCH /api/v1/nodes/n1/status"]
        await store.update(changed(await store.get(K8sNode, "n2"), labels={"zone": "b"}))
        assert told(await take(watch, 2)) == [("MODIFIED", "n1"), ("MODIFIED", "n2")], "a heartbeat is no news"
    assert stored.spec.bgp == NodeBGPSpec(ipv4_address="192.0.2.1/24")
    kube = await store.get(K8sNode, "n1")
    assert kube.metadata.annotations == {"projectcalico.org/IPv4Address": "192.0.2.1/24"}
    assert kube.status["conditions"][0]["status"] == "False"
    with pytest.raises(Conflict):
        await store.update(changed(new, labels={"x": "y"}))


async def test_annotations_of_a_node_go_with_its_status(api: Server, store: KubernetesStore) -> None:
    """flannel's role may patch nodes/status, and no more of a Node. Labels and the rest of it are another matter."""
    kube = await store.get(K8sNode, "n1")
    api.asked()
    told = {"a.example/b": "c"}
    status = dict(kube.status) | {"conditions": [{"type": "NetworkUnavailable", "status": "False"}]}
    both = await store.update(msgspec.structs.replace(changed(kube, annotations=told), status=status))
    assert writes(api) == ["PATCH /api/v1/nodes/n1/status"]
    assert (both.metadata.annotations, both.status["conditions"][0]["status"]) == (told, "False")
    assert (both.labels, both.spec, both.status["addresses"]) == (kube.labels, kube.spec, kube.status["addresses"])
    with pytest.raises(Conflict):
        await store.update(changed(kube, annotations={"a.example/b": "d"}))
    gone = await store.update(changed(both, annotations={}))
    assert gone.metadata.annotations == {}
    assert writes(api) == ["PATCH /api/v1/nodes/n1/status"]
    labelled = await store.update(changed(gone, labels={"zone": "b"}, annotations=told))
    assert (labelled.labels, labelled.metadata.annotations) == ({"zone": "b"}, told)
    assert writes(api) == ["PATCH /api/v1/nodes/n1"]


async def test_nodes_are_kubernetes_to_make(store: KubernetesStore) -> None:
    spec = NodeSpec(bgp=NodeBGPSpec(ipv4_address="192.0.2.2/24"))
    made = await store.create(Node(metadata=Metadata(name="n2", labels={"rack": "7"}), spec=spec))
    assert (made.spec.bgp, made.labels) == (spec.bgp, {"zone": "a", "rack": "7"})
    with pytest.raises(NotSupported, match=r"^operation Create is not supported on Node\(n9\): Kubernetes"):
        await store.create(Node(metadata=Metadata(name="n9")))
    with pytest.raises(NotSupported, match=r"^operation Delete is not supported on Node\(n1\)"):
        await store.delete(Node, "n1")


# Other kinds ----------------------------------------------------------------------------------------------------


async def test_profiles_are_derived_and_read_only(api: Server, store: KubernetesStore, agent: KubernetesStore) -> None:
    await store.create(ServiceAccount(metadata=Metadata(name="robot", namespace="red", labels={"role": "x"})))
    found = {one.name: one for one in (await store.list(Profile)).items}
    assert {"kns.red", "ksa.red.robot", "projectcalico-default-allow"} <= set(found)
    assert found["ksa.red.robot"].spec.labels_to_apply["pcsa.role"] == "x"
    assert await store.get(Profile, "kns.red") == found["kns.red"]
    for name in ("kns.blue", "ksa.red.nobody", "ksa.red", "mine"):
        with pytest.raises(NotFound, match=rf"^resource does not exist: Profile\({name}\)$"):
            await store.get(Profile, name)
    with pytest.raises(NotSupported, match=r"^operation Create is not supported on Profile"):
        await store.create(Profile(metadata=Metadata(name="mine")))
    api.asked()
    assert (await agent.list(Profile)).items == (), "an agent derives them itself"
    assert api.asked() == []


async def test_statuses_have_a_path_of_their_own(api: Server, store: KubernetesStore) -> None:
    spec = ServiceSpec(type="LoadBalancer", ports=(ServicePort(port=80),))
    service = await store.create(Service(metadata=Metadata(name="s", namespace="red"), spec=spec))
    api.asked()
    status = {"loadBalancer": {"ingress": [{"ip": "192.0.2.100"}]}}
    both = changed(msgspec.structs.replace(service, status=status), labels={"x": "y"})
    new = await store.update(both)
    assert (new.status, new.labels) == (status, {"x": "y"})
    assert writes(api) == [f"PATCH /api/v1/namespaces/red/services/s{part}" for part in ("", "/status")]
    pool = await store.create(IPPool(metadata=Metadata(name="p"), spec=IPPoolSpec(cidr="10.0.0.0/16")))
    gone = await store.update(msgspec.structs.replace(new, status={}))
    assert (await store.get(Service, "s", "red")).status == gone.status == {"loadBalancer": {}}
    condition = {"conditions": [{"type": "Allocatable", "status": "True"}]}
    told_of = await store.update(msgspec.structs.replace(pool, status=condition))
    assert told_of == await store.get(IPPool, "p")
    assert (told_of.status, told_of.spec) == (condition, pool.spec)


async def test_a_status_without_a_path_of_its_own(api: Server) -> None:
    """Upstream's definitions have none for most kinds: the status is a part of the object then."""
    await asyncio.to_thread(api.empty, "nothing")
    definition = copy.deepcopy(next(one for one in definitions() if one["spec"]["names"]["plural"] == "ippools"))
    for version in definition["spec"]["versions"]:
        version.pop("subresources", None)
        version["schema"] = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    await made(api, definition)
    store = api.store()
    try:
        status = {"conditions": [{"type": "Allocatable", "status": "True"}]}
        pool = IPPool(metadata=Metadata(name="p"), spec=IPPoolSpec(cidr="10.0.0.0/16"), status=status)
        stored = await store.create(pool)
        assert stored.status == status
        new = await store.update(msgspec.structs.replace(stored, status={"conditions": []}))
        assert new.status == {"conditions": []}
        assert await store.get(IPPool, "p") == new
    finally:
        await store.close()


async def test_every_kind_of_calicos_is_taken_and_comes_back(store: KubernetesStore) -> None:
    """The custom resource definitions say what is a kind's; what the store writes is all of it."""
    files = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))
    seen: set[type[Resource]] = set()
    for file in files:
        with suppress(ConfigError):
            for given in parse(file.read_text()):
                if type(given) not in CUSTOM or type(given) in seen:
                    continue
                seen.add(type(given))
                if given.namespace:
                    with suppress(Exists):
                        await store.create(Namespace(metadata=Metadata(name=given.namespace)))
                stored = await store.create(given)
                assert getattr(stored, "spec", None) == getattr(given, "spec", None)
                assert (await store.list(type(given))).items == (stored,)
    assert len(seen) > 5
    for kind in CUSTOM:
        assert (await store.list(kind)).revision != "0", f"the cluster has no {kind.KIND.plural}"


async def test_a_lease_is_taken_by_one(store: KubernetesStore) -> None:
    lease = Lease(metadata=Metadata(name="l", namespace="kube-system"), spec=LeaseSpec(holder_identity="a"))
    stored = await store.create(lease)
    takes = (
        store.update(msgspec.structs.replace(stored, spec=LeaseSpec(holder_identity=who))) for who in ("b", "c", "d")
    )
    found = await asyncio.gather(*takes, return_exceptions=True)
    assert sum(isinstance(one, Lease) for one in found) == 1
    assert sum(isinstance(one, Conflict) for one in found) == 2
    released = await store.update(changed(msgspec.structs.replace(lease, spec=LeaseSpec()), resource_version=""))
    assert released.spec.holder_identity == ""


async def test_an_object_that_cannot_be_read_hides_no_other(
    api: Server, store: KubernetesStore, caplog: pytest.LogCaptureFixture
) -> None:
    plural, version = "globalnetworkpolicies", "crd.projectcalico.org/v1"
    policy = {"apiVersion": version, "kind": "GlobalNetworkPolicy", "metadata": {"name": "bad"},
              "spec": {"selector": "all()", "ingress": [{"action": "Perhaps"}]}}  # fmt: skip
    good = GlobalNetworkPolicy(metadata=Metadata(name="good"))
    await store.create(good)
    begin = (await store.list(GlobalNetworkPolicy)).revision
    await asyncio.to_thread(api.do, api.api.bulk, plural, [policy])
    listing = await store.list(GlobalNetworkPolicy)
    assert [one.name for one in listing.items] == ["good"]
    await store.list(GlobalNetworkPolicy)
    assert [record.getMessage() for record in caplog.records if "bad" in record.getMessage()] == [
        'GlobalNetworkPolicy(bad) is ignored: spec.ingress[0].action: "Perhaps" is not one of Allow, Deny, Log, Pass'
    ]
    with pytest.raises(NotSupported, match=r"a stored GlobalNetworkPolicy\(bad\) is not known"):
        await store.get(GlobalNetworkPolicy, "bad")
    async with aclosing(store.watch(GlobalNetworkPolicy, begin)) as watch:
        await store.create(GlobalNetworkPolicy(metadata=Metadata(name="next")))
        assert told(await take(watch, 1)) == [("ADDED", "next")]
    assert (await store.delete(GlobalNetworkPolicy, "bad")).name == "bad", "whoever wants to be rid of it, is"


async def test_kinds_that_a_cluster_does_not_have(api: Server) -> None:
    await asyncio.to_thread(api.empty, "nothing")
    store = api.store()
    try:
        assert (await store.list(VirtualMachineInstance)).items == ()
        watch = store.watch(VirtualMachineInstance, "0")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(watch), 0.2)  # type: ignore[arg-type]
        pool = IPPool(metadata=Metadata(name="a"), spec=IPPoolSpec(cidr="10.0.0.0/16"))
        for call in (store.list(IPPool), store.get(IPPool, "a"), store.create(pool)):
            with pytest.raises(Unavailable, match=r"^the cluster does not know ippools of crd.projectcalico"):
                await call
        for definition in definitions():
            await made(api, definition)
        assert (await store.list(IPPool)).items == (), "once they are there, they are found"
    finally:
        await store.close()


async def test_a_cluster_of_the_other_layout(api: Server) -> None:
    await asyncio.to_thread(api.empty, "nothing")
    for plural, kind in (("ippools", "IPPool"), ("ipamconfigurations", "IPAMConfiguration")):
        schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
        version = {"name": "v3", "served": True, "storage": True, "schema": schema}
        names = {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"}
        await made(api, {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                         "metadata": {"name": f"{plural}.projectcalico.org"},
                         "spec": {"group": "projectcalico.org", "scope": "Cluster", "names": names,
                                  "versions": [version]}})  # fmt: skip
    store = api.store()
    try:
        pool = IPPool(metadata=Metadata(name="p", labels={"a": "b"}), spec=IPPoolSpec(cidr="10.0.0.0/16"))
        stored = await store.create(pool)
        assert (stored.labels, stored.spec) == (pool.labels, pool.spec)
        raw = await asyncio.to_thread(api.do, api.api.get, "ippools", "p")
        assert raw["metadata"]["labels"] == {"a": "b"}
        assert raw["metadata"]["uid"] == stored.metadata.uid
        config = await store.create(
            IPAMConfig(metadata=Metadata(name="default"), spec=IPAMConfigSpec(strict_affinity=True))
        )
        assert await store.get(IPAMConfig, "default") == config
    finally:
        await store.close()
    with pytest.raises(ConfigError, match=r"^CALICO_API_GROUP"):
        api.store(group="example.org")


async def test_an_agents_picture_of_a_cluster(api: Server, agent: KubernetesStore, store: KubernetesStore) -> None:
    """Every kind that an agent must know is listed and followed, and nothing counts twice."""
    await made(api, pod("web-0", phase="Running", podIPs=[{"ip": "10.0.0.5"}]))
    await made(api, pod("far", "n2", phase="Running", podIPs=[{"ip": "10.0.0.6"}]))
    states: asyncio.Queue[DesiredState] = asyncio.Queue()
    view = View("n1", agent, states.put_nowait)
    tasks = [asyncio.create_task(view.follow(kind)) for kind in INPUTS]
    api.asked()
    try:
        async with asyncio.timeout(PATIENCE):
            while not (state := await states.get()).endpoints:
                pass
            assert view.cluster.endpoint(("red", NAME)) is not None
            assert view.cluster.endpoint(("red", "n2-k8s-far-eth0")) is not None
            (local,) = state.endpoints.values()
            assert [str(ip) for ip in local.ips] == ["10.0.0.5"]
            assert view.cluster.problems == {}
            before = state.generation
            await store.update(changed(await store.get(Namespace, "red"), labels={"team": "x"}))
            while (await states.get()).generation <= before:
                pass
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    asked = Counter(line for line in api.asked() if line.startswith("GET ") and not line.endswith("/red"))
    assert set(asked.values()) == {1}, "every kind is listed once, and the API group found out once"
    assert "GET /apis/crd.projectcalico.org/v1" in asked


# Watches --------------------------------------------------------------------------------------------------------


async def test_a_watch_goes_on_when_the_server_cuts_it(api: Server, store: KubernetesStore) -> None:
    begin = (await store.list(Namespace)).revision
    names = [f"ns-{number}" for number in range(6)]
    async with aclosing(store.watch(Namespace, begin)) as watch:
        reading = asyncio.create_task(take(watch, len(names)))
        for name in names:
            await store.create(Namespace(metadata=Metadata(name=name)))
            await asyncio.to_thread(api.do, api.api.cut_watches)
        assert told(await reading) == [("ADDED", name) for name in names]


async def test_bookmarks_carry_a_quiet_watch_over_a_compaction(api: Server, store: KubernetesStore) -> None:
    """Without them a watch that was cut would have to begin again with a list."""
    isolating = K8sNetworkPolicySpec(policy_types=("Ingress",))
    begin = (await store.list(K8sNetworkPolicy)).revision
    async with aclosing(store.watch(K8sNetworkPolicy, begin)) as watch:
        waiting = asyncio.create_task(take(watch, 1))
        for number in range(20):
            await store.create(Namespace(metadata=Metadata(name=f"ns-{number}")))
        await asyncio.sleep(0.5)  # two bookmarks
        await asyncio.to_thread(api.do, api.api.compact)
        await asyncio.to_thread(api.do, api.api.cut_watches)
        await store.create(K8sNetworkPolicy(metadata=Metadata(name="p", namespace="red"), spec=isolating))
        assert told(await waiting) == [("ADDED", "p")]
    with pytest.raises(Compacted):
        await take(store.watch(K8sNetworkPolicy, begin), 1)


async def test_a_server_that_is_an_older_self_is_noticed(api: Server, store: KubernetesStore) -> None:
    revision = str(api.api.revision + 1000)
    with pytest.raises(Compacted, match="not yet at"):
        await take(store.watch(Namespace, revision), 1)


async def test_a_server_that_is_away(api: Server, running: Server) -> None:
    store = running.store()
    try:
        begin = (await store.list(ClusterInformation)).revision
        async with aclosing(store.watch(ClusterInformation, begin)) as watch:
            waiting = asyncio.create_task(take(watch, 1))
            await asyncio.to_thread(api.do, api.api.away, 1.0)
            await store.create(
                ClusterInformation(metadata=Metadata(name="default"), spec=ClusterInformationSpec(datastore_ready=True))
            )
            assert told(await waiting) == [("ADDED", "default")]
    finally:
        with suppress(Unavailable):
            await store.close()
