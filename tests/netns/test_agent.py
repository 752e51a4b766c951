"""The agent as a container runtime meets it: a real process behind the real stub, a real kernel behind the agent."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest
from agent_node import (
    NETWORK,
    READY,
    RED,
    TORTIE,
    Node,
    Sandbox,
    Site,
    conflist,
    endpoints,
    held,
    ipam_findings,
    ips,
    nothing_left,
)
from agent_pods import MakeSandbox, addresses, call, code

from tortie.cni.spec import CniError, Code
from tortie.model.ipam import IPAMBlock, IPAMHandle
from tortie.model.k8s import Container, ContainerPort, Pod
from tortie.model.store import Store

pytestmark = pytest.mark.root

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")


@pytest.fixture(scope="module")
def node(site: Site) -> Node:
    """One agent for all the tests, `tortie agent`; each leaves it as it was."""
    node = site.node("node1", "--no-bgp")
    node.program = TORTIE
    return node.start()


# --- what ADD answers and leaves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_result_is_calicos(sandbox: MakeSandbox, version: str) -> None:
    one = await sandbox(f"result-{version.replace('.', '-')}")
    done = await asyncio.to_thread(call, one, "ADD", version, mtu=1450)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert done.stdout == json.dumps(result, indent=4)
    eth0 = next(link for link in one.ns.json("link", "show") if link["ifname"] == "eth0")
    assert eth0["mtu"] == 1450
    v4, v6 = ips(result)
    old = version.startswith("0.")
    dns = {"dns": {}} if old else {}
    assert result == {
        "cniVersion": version,
        "interfaces": [
            {"name": one.host_ifname},
            {"name": "eth0", "mac": eth0["address"], "mtu": 1450, "sandbox": one.ns.path},
        ],
        "ips": [
            {**({"version": "4"} if old else {}), "interface": 1, "address": f"{v4}/32"},
            {**({"version": "6"} if old else {}), "interface": 1, "address": f"{v6}/128"},
        ],
        "routes": [{"dst": f"{v4}/26"}, {"dst": f"{v6}/122"}],
        **dns,
    }
    assert addresses(one.ns) == {v4, v6}


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_verb_in_every_version(sandbox: MakeSandbox, node: Node, version: str) -> None:
    one = await sandbox(f"verbs-{version.replace('.', '-')}", conflist=conflist(version))
    runtime = node.runtime()
    assert version in await runtime.version("calico")
    await runtime.status(one.conflist)
    await one.add()
    if version == "0.3.1":
        with pytest.raises(CniError, match="does not support the CHECK command"):
            await one.check()
    else:
        await one.check()
    await runtime.gc(one.conflist, [(one.container_id, "eth0")])
    assert node.links() == {one.host_ifname}
    await runtime.gc(one.conflist, [])
    assert node.links() == set()
    await one.delete()


@pytest.mark.parametrize(("ipv4", "ipv6"), [(True, False), (False, True), (True, True)])
async def test_families_are_those_that_are_asked_for(sandbox: MakeSandbox, node: Node, ipv4: bool, ipv6: bool) -> None:
    one = await sandbox("families", conflist=conflist(ipv4=ipv4, ipv6=ipv6))
    got = ips(await one.add())
    assert [":" in ip for ip in got] == [False] * ipv4 + [True] * ipv6
    assert addresses(one.ns) == set(got)
    assert node.routes() == {(ip, one.host_ifname) for ip in got}
    await one.check()


async def test_endpoint_and_allocation_say_whose_they_are(sandbox: MakeSandbox, store: Store) -> None:
    one = await sandbox("who-am-i", labels={"app": "web"})
    ports = (ContainerPort(container_port=555, name="anamedport"), ContainerPort(container_port=80))
    old = await store.get(Pod, one.pod, RED)
    spec = msgspec.structs.replace(
        old.spec, containers=(Container(name="main", ports=ports),), service_account_name="robot"
    )
    await store.update(msgspec.structs.replace(old, spec=spec))
    result = await one.add()
    endpoint = (await endpoints(store))[one.pod]
    assert (endpoint.name, endpoint.namespace) == ("node1-k8s-who--am--i-eth0", RED)
    assert endpoint.labels == {
        "app": "web",
        "projectcalico.org/namespace": RED,
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "robot",
    }
    found = msgspec.to_builtins(endpoint.spec)
    v4, v6 = ips(result)
    assert found == {
        "orchestrator": "k8s",
        "node": "node1",
        "containerID": one.container_id,
        "pod": one.pod,
        "endpoint": "eth0",
        "serviceAccountName": "robot",
        "ipNetworks": (f"{v4}/32", f"{v6}/128"),
        "profiles": (f"kns.{RED}", f"ksa.{RED}.robot"),
        "interfaceName": one.host_ifname,
        "mac": result["interfaces"][1]["mac"],
        "ports": ({"name": "anamedport", "port": 555},),  # TCP is the default and not written
    }
    assert await held(store) == {f"{NETWORK}.{one.container_id}": {v4, v6}}
    assert (await store.get(IPAMHandle, f"{NETWORK}.{one.container_id}")).spec.handle_id
    for block in (await store.list(IPAMBlock)).items:
        (attribute,) = (each for each in block.spec.attributes if not str(each.handle_id).startswith(READY))
        assert attribute.handle_id == f"{NETWORK}.{one.container_id}"
        told = dict(attribute.secondary)
        assert told.pop("timestamp").endswith(" +0000 UTC")
        assert told == {"node": "node1", "pod": one.pod, "namespace": RED}


async def test_link_that_has_the_name_already_is_replaced(sandbox: MakeSandbox, node: Node) -> None:
    one = await sandbox("taken")
    node.ns.ip("link", "add", one.host_ifname, "type", "bridge")
    await one.add()
    assert node.ns.json("link", "show", "dev", one.host_ifname)[0]["linkinfo"]["info_kind"] == "veth"


@pytest.mark.parametrize("allowed", [False, True])
async def test_ip_forwarding_is_the_configurations(sandbox: MakeSandbox, allowed: bool) -> None:
    settings = {"container_settings": {"allow_ip_forwarding": True}} if allowed else {}
    one = await sandbox("forwarding", conflist=conflist(**settings))
    await one.add()
    assert one.ns.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == str(int(allowed))


# --- CHECK ----------------------------------------------------------------------------------------------------------


async def test_check_says_the_first_thing_that_is_wrong(sandbox: MakeSandbox, node: Node, store: Store) -> None:
    one = await sandbox("check")
    with pytest.raises(CniError, match="WorkloadEndpoint red/node1-k8s-check-eth0 is missing") as error:
        await one.check()
    assert code(error) == Code.UNKNOWN_CONTAINER
    await one.add()
    one.ns.ip("route", "del", "default")
    with pytest.raises(CniError, match=r"route default via 169\.254\.1\.1 dev eth0 is missing in the pod"):
        await one.check()
    one.ns.ip("route", "add", "default", "via", "169.254.1.1")
    await one.check()
    other = await sandbox("check", ns=one.ns)
    with pytest.raises(CniError, match=f"belongs to container {one.container_id}"):
        await other.check()
    node.ns.ip("link", "del", one.host_ifname)
    with pytest.raises(CniError, match=f"host interface {one.host_ifname} is missing"):
        await one.check()


# --- many at once ---------------------------------------------------------------------------------------------------


async def test_thirty_two_at_once_leave_nothing(sandbox: MakeSandbox, node: Node, store: Store) -> None:
    pods = [await sandbox(f"many-{number}") for number in range(32)]
    results = await asyncio.gather(*(one.add() for one in pods))
    every = [ip for result in results for ip in ips(result)]
    assert len(set(every)) == 64
    await nothing_left(node, store, *pods)
    await asyncio.gather(*(one.check() for one in pods))
    await asyncio.gather(*(one.delete() for one in pods))
    await nothing_left(node, store)


async def test_calls_about_one_pod_take_turns(sandbox: MakeSandbox, node: Node, store: Store) -> None:
    """Whatever the order in which they are served, the pod is whole or not there."""
    containers = [await sandbox("turns") for _ in range(6)]
    await asyncio.gather(*(one.add() for one in containers))
    holder = (await endpoints(store))["turns"].spec.container_id
    (newest,) = (one for one in containers if one.container_id == holder)
    await newest.check()
    await asyncio.gather(*(one.delete() for one in containers), *(one.delete() for one in containers))
    await nothing_left(node, store)


# --- calico-ipam for itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ipv4", "ipv6"), [(True, False), (False, True), (True, True)])
async def test_ipam_plugin_alone(sandbox: MakeSandbox, store: Store, ipv4: bool, ipv6: bool) -> None:
    one = await sandbox("ipam", conflist=conflist(ipv4=ipv4, ipv6=ipv6))
    done = await asyncio.to_thread(call, one, "ADD", "1.0.0", type="calico-ipam")
    result = json.loads(done.stdout)
    lengths = [26] * ipv4 + [122] * ipv6
    assert result["ips"] == [{"address": f"{ip}/{n}"} for ip, n in zip(ips(result), lengths, strict=True)]
    assert result["routes"] == [{"dst": one["address"]} for one in result["ips"]]
    assert "interfaces" not in result
    assert addresses(one.ns) == set()
    assert await held(store) == {f"{NETWORK}.{one.container_id}": set(ips(result))}
    for _ in range(2):
        assert (await asyncio.to_thread(call, one, "DEL", "1.0.0", type="calico-ipam")).returncode == 0
    assert await held(store) == {}


async def test_legacy_handle_goes_with_delete(sandbox: MakeSandbox, node: Node, store: Store) -> None:
    """Named by pod, as old versions did it; here by a network and container of such names."""
    one = await sandbox("legacy")
    old = Sandbox(node, "legacy", one.ns, container_id="legacy", conflist=conflist(name=RED))
    assert (await asyncio.to_thread(call, old, "ADD", "1.0.0", type="calico-ipam", name=RED)).returncode == 0
    assert set(await held(store)) == {f"{RED}.legacy"}
    await one.delete()
    assert await held(store) == {}
    assert await ipam_findings(store) == []
