"""Containers that are no Kubernetes pods: the runtime names no pod, and the network's own profile is their policy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from agent_node import (
    Node,
    Sandbox,
    Site,
    applied,
    endpoints,
    fails_plainly,
    held,
    ips,
    nothing_left,
    pod,
    site_in,
    soon,
    udp,
)
from conftest import Ns
from machines import Container, plain_conflist

from tortie.cni.spec import CniError, Code
from tortie.model.k8s import Pod
from tortie.model.policy import Profile
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint

pytestmark = pytest.mark.root

NETWORK = "plainnet"
MakeContainer = Callable[..., Container]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("plain")) as site:
        site.set_up()
        yield site


@pytest.fixture(scope="module")
def node(site: Site) -> Node:
    return site.node("node-1", "--no-bgp").start()


@pytest.fixture
async def container(node: Node, store: Store, make_ns: Callable[..., Ns]) -> AsyncIterator[MakeContainer]:
    """Makes a container with a namespace of its own. Afterwards DEL takes all of them away, and nothing is left."""
    made: list[Container] = []

    def make(**fields: Any) -> Container:
        one = Container(node, ns=fields.pop("ns", None) or make_ns("c"), **{"conflist": plain_conflist(), **fields})
        made.append(one)
        return one

    yield make
    for one in made:
        await one.delete()
    for profile in (await store.list(Profile)).items:
        if profile.name != "projectcalico-default-allow":
            await store.delete(Profile, profile.name)
    await nothing_left(node, store)


def mesos(**labels: str) -> dict[str, Any]:
    listed = [{"key": key, "value": value} for key, value in labels.items()]
    return {"args": {"org.apache.mesos": {"network_info": {"labels": {"labels": listed}}}}}


# --- what it gets -------------------------------------------------------------------------------------------------


async def test_endpoint_and_profile_are_the_networks(container: MakeContainer, store: Store, node: Node) -> None:
    one = container(container_id="abcdefa0123456")
    result = await one.add()
    v4, v6 = ips(result)
    assert result["interfaces"][0] == {"name": "caliabcdefa0123"}
    endpoint = await one.endpoint(store)
    assert (endpoint.namespace, endpoint.name) == ("default", "node--1-cni-abcdefa0123456-eth0")
    assert endpoint.labels == {
        "projectcalico.org/namespace": "default",
        "projectcalico.org/orchestrator": "cni",
    }
    spec = endpoint.spec
    assert (spec.orchestrator, spec.node, spec.container_id) == ("cni", "node-1", "abcdefa0123456")
    assert (spec.pod, spec.endpoint, spec.profiles) == ("", "eth0", (NETWORK,))
    assert (spec.interface_name, spec.ip_networks) == ("caliabcdefa0123", (f"{v4}/32", f"{v6}/128"))
    profile = (await store.get(Profile, NETWORK)).spec
    assert profile.labels_to_apply == {NETWORK: ""}
    assert [(rule.action, rule.source.selector) for rule in profile.ingress] == [("Allow", f"has({NETWORK})")]
    assert [(rule.action, rule.destination.selector) for rule in profile.egress] == [("Allow", "")]
    assert await held(store) == {f"{NETWORK}.{one.container_id}": {v4, v6}}
    assert node.routes() == {(v4, "caliabcdefa0123"), (v6, "caliabcdefa0123")}
    await one.check()


async def test_profile_that_is_there_is_left_as_it_is(container: MakeContainer, store: Store) -> None:
    await container().add()
    old = await store.get(Profile, NETWORK)
    await store.update(type(old)(metadata=old.metadata))  # without any rule
    await container().add()
    assert (await store.get(Profile, NETWORK)).spec.ingress == ()


async def test_no_profile_is_made_where_policy_is_kubernetes(container: MakeContainer, store: Store) -> None:
    one = container(conflist=plain_conflist(policy={"type": "k8s"}))
    await one.add()
    assert (await one.endpoint(store)).spec.profiles == (NETWORK,)
    assert NETWORK not in {profile.name for profile in (await store.list(Profile)).items}


async def test_mesos_labels_are_sanitised(container: MakeContainer, store: Store) -> None:
    labels = {"//my/val/": "$my..val", "projectcalico.org/namespace": "red", "m$y.val": "/a/b/c", "pcns.trust": "me"}
    one = container(conflist=plain_conflist(**mesos(**labels)))
    await one.add()
    endpoint = await one.endpoint(store)
    assert endpoint.namespace == "red"
    assert endpoint.labels == {
        "my.val": "my.val",
        "m-y.val": "a.b.c",
        "projectcalico.org/namespace": "red",
        "projectcalico.org/orchestrator": "cni",
    }
    await one.check()
    one.conflist = plain_conflist()  # a runtime that forgets the labels takes it away all the same
    await one.delete()
    assert await held(store) == {}


# --- traffic ------------------------------------------------------------------------------------------------------

DENY_QUIET = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: quiet, namespace: default}
spec: {selector: "speaks == 'no'", types: [Egress], egress: []}
"""


async def hears(source: Ns, target: Ns, ip: str) -> bool:
    """Whether one of a few datagrams arrives."""

    def heard() -> bool:
        with udp(source, "::" if ":" in ip else "0.0.0.0") as out, udp(target, ip, 5000) as into:
            into.settimeout(0.1)
            for _ in range(5):
                with suppress(OSError):
                    out.sendto(b"hello", (ip, 5000))
                with suppress(TimeoutError):
                    return bool(into.recv(100))
        return False

    return await asyncio.to_thread(heard)


async def test_members_of_a_network_reach_each_other_and_nobody_else_does(
    container: MakeContainer, store: Store, make_ns: Callable[..., Ns]
) -> None:
    a, b, other = container(), container(), container(conflist=plain_conflist(name="othernet"))
    for ip in ips(await b.add()):
        await a.add()
        await other.add()
        assert await hears(a.ns, b.ns, ip)
        assert not await hears(other.ns, b.ns, ip)
    # A member of both is let in.
    await container(container_id=other.container_id, ns=other.ns).add()
    for ip in ips(await b.add()):
        assert await hears(other.ns, b.ns, ip)


async def test_policy_of_the_namespace_applies(container: MakeContainer, store: Store) -> None:
    quiet, loud = (container(conflist=plain_conflist(**mesos(speaks=word))) for word in ("no", "yes"))
    listener = container()
    async with applied(store, DENY_QUIET):
        (v4, v6) = ips(await listener.add())
        for one in (quiet, loud):
            await one.add()
        for ip in (v4, v6):
            assert await hears(loud.ns, listener.ns, ip)
            assert not await hears(quiet.ns, listener.ns, ip)
    for ip in (v4, v6):
        await soon(lambda ip=ip: hears(quiet.ns, listener.ns, ip), what="the policy is gone")


# --- again --------------------------------------------------------------------------------------------------------


async def test_second_add_changes_nothing(container: MakeContainer, store: Store) -> None:
    one = container()
    first = await one.add()
    before, link = await one.endpoint(store), one.ns.json("link", "show", "dev", "eth0")
    second = await one.add()
    assert second == {key: value for key, value in first.items() if key != "routes"}
    assert await one.endpoint(store) == before
    assert one.ns.json("link", "show", "dev", "eth0") == link
    assert await held(store) == {f"{NETWORK}.{one.container_id}": set(ips(first))}


async def test_an_id_that_comes_again_in_another_namespace_is_connected(
    container: MakeContainer, node: Node, store: Store
) -> None:
    """The runtime has not said that the first container went; that one's namespace may even be there still."""
    first = container(container_id="default-web")
    await first.add()
    second = container(container_id="default-web")
    after = ips(await second.add())
    await second.check()
    assert [link["ifname"] for link in first.ns.json("link", "show")] == ["lo"]
    assert await held(store) == {f"{NETWORK}.default-web": set(after)}
    assert node.links() == {second.host_ifname}


async def test_second_network_adds_its_profile(container: MakeContainer, store: Store, node: Node) -> None:
    one = container()
    first = await one.add()
    second = container(container_id=one.container_id, ns=one.ns, ifname="eth1", conflist=plain_conflist(name="more"))
    assert ips(await second.add()) == ips(first)
    assert (await one.endpoint(store)).spec.profiles == (NETWORK, "more")
    assert [link["ifname"] for link in one.ns.json("link", "show")] == ["lo", "eth0"]
    for each in (one, second):
        await each.check()
    # DEL of what was never made takes nothing of the first.
    await second.delete()
    await one.check()
    await one.delete()
    await nothing_left(node, store)


# --- DEL, GC, CHECK -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("path", ["", "/run/netns/nowhere", "/etc/passwd"])
async def test_delete_whatever_the_namespace(
    container: MakeContainer, node: Node, store: Store, path: str, added: bool
) -> None:
    one = container()
    if added:
        await one.add()
    for _ in range(2):
        await one.delete(path)
        await nothing_left(node, store)


async def test_check_finds_what_is_missing(container: MakeContainer, node: Node) -> None:
    one = container()
    with pytest.raises(CniError, match="is missing") as error:
        await one.check()
    assert error.value.code == Code.UNKNOWN_CONTAINER
    await one.add()
    other = container(container_id=one.container_id, ns=one.ns, conflist=plain_conflist(name="never-added"))
    with pytest.raises(CniError, match="has no profile never-added"):
        await other.check()
    node.ns.ip("link", "set", one.host_ifname, "down")
    with pytest.raises(CniError, match=f"{one.host_ifname} is down"):
        await one.check()


async def test_gc_knows_containers(container: MakeContainer, node: Node, store: Store, site: Site) -> None:
    version = plain_conflist("1.1.0")
    kept, lost = container(conflist=version), container(conflist=version)
    other, half_other = (container(conflist=plain_conflist("1.1.0", name="second.network")) for _ in range(2))
    half, half_lost = container(conflist=version), container(conflist=version)
    await node.runtime().status(version)
    for one in (kept, lost, other, half_other, half, half_lost):
        await one.add()
    # What an agent that was killed leaves behind: addresses and a link, but no endpoint.
    for one in (half_other, half, half_lost):
        endpoint = await one.endpoint(store)
        await store.delete(WorkloadEndpoint, endpoint.name, endpoint.namespace)
    for file in (site.directory / "cache-node-1" / "results").iterdir():
        file.unlink()
    await node.runtime().gc(version, [(kept.container_id, "eth0"), (half.container_id, "eth0")])
    assert node.links() == {one.host_ifname for one in (kept, half, other, half_other)}
    assert set(await held(store)) == {
        *(f"{NETWORK}.{one.container_id}" for one in (kept, half)),
        *(f"second.network.{one.container_id}" for one in (other, half_other)),
    }
    for one in (kept, other):
        await one.check()


# --- what is refused ----------------------------------------------------------------------------------------------


async def test_failure_leaves_nothing(container: MakeContainer, node: Node, store: Store) -> None:
    one = container(ifname="lo")  # which is there
    with pytest.raises(CniError) as error:
        await one.add()
    fails_plainly(error)
    await nothing_left(node, store)


async def test_ids_that_make_one_interface_are_refused(container: MakeContainer, node: Node, store: Store) -> None:
    """Or the second would take the first one's interface away."""
    first, second = container(container_id="000000000001"), container(container_id="000000000002")
    await first.add()
    with pytest.raises(CniError, match="must differ in their first 11 digits") as error:
        await second.add()
    assert "cali00000000000 is the interface of container 000000000001" in fails_plainly(error)
    await second.delete()
    await first.check()
    assert node.links() == {"cali00000000000"}


async def test_ids_that_people_choose_may_begin_alike(container: MakeContainer) -> None:
    for one in [container(container_id=f"my-container-{number}") for number in range(2)]:
        await one.add()
        await one.check()


async def test_an_id_that_ends_in_a_dash_makes_no_name(container: MakeContainer) -> None:
    one = container(container_id="abc-")
    with pytest.raises(CniError, match='container id: "abc-" begins or ends with a dash'):
        await one.add()


# --- pods of a network without Kubernetes policy -------------------------------------------------------------------


async def test_pod_without_kubernetes_policy_has_the_networks_profile(
    node: Node, store: Store, make_ns: Callable[..., Ns]
) -> None:
    """Nothing is looked up: neither the pod nor its namespace has to be there; when it is, it changes nothing."""
    one = Sandbox(node, "nobody", make_ns("p"), namespace="nowhere", conflist=plain_conflist())
    got = ips(await one.add())
    endpoint = (await endpoints(store, "node-1"))["nobody"]
    assert (endpoint.spec.orchestrator, endpoint.spec.profiles) == ("k8s", (NETWORK,))
    assert endpoint.labels == {
        "projectcalico.org/namespace": "nowhere",
        "projectcalico.org/orchestrator": "k8s",
    }
    profile = (await store.get(Profile, NETWORK)).spec
    assert [(rule.action, rule.source.selector) for rule in profile.ingress] == [("Allow", "")]
    await store.create(pod("nobody", node="node-1", namespace="nowhere", labels={"app": "web"}))
    await one.check()
    again = Sandbox(node, "nobody", make_ns("p"), namespace="nowhere", conflist=plain_conflist())
    assert set(ips(await again.add())).isdisjoint(got)
    assert (await endpoints(store, "node-1"))["nobody"].labels == endpoint.labels
    for each in (one, again):
        await each.delete()
    await store.delete(Pod, "nobody", "nowhere")
    await store.delete(Profile, NETWORK)
    await nothing_left(node, store)
