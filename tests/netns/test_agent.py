"""The agent as a container runtime meets it: a real process behind the real stub, a real kernel behind the agent."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from agent_node import (
    NETWORK,
    RED,
    TORTIE,
    Node,
    Sandbox,
    Site,
    applied,
    conflist,
    endpoints,
    fails_plainly,
    held,
    ipam_findings,
    ips,
    nothing_left,
    pod,
    pool,
    site_in,
    soon,
    udp,
)
from conftest import Ns

from tortie.cni.spec import CniError, Code
from tortie.kernel import netns
from tortie.model.ipam import IPAMBlock, IPAMHandle
from tortie.model.k8s import Container, ContainerPort, Pod
from tortie.model.meta import changed
from tortie.model.node import ClusterInformation
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint

pytestmark = pytest.mark.root

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("site")) as site:
        site.set_up()
        yield site


@pytest.fixture(scope="module")
def node(site: Site) -> Node:
    """One agent for all the tests, `tortie agent`; each leaves it as it was."""
    node = site.node("node1", "--no-bgp")
    node.program = TORTIE
    return node.start()


@pytest.fixture
async def store(site: Site) -> AsyncIterator[Store]:
    async with site.store() as store:
        yield store


MakeSandbox = Callable[..., Any]


@pytest.fixture
async def sandbox(node: Node, store: Store, make_ns: Callable[..., Ns]) -> AsyncIterator[MakeSandbox]:
    """Makes a pod with a namespace of its own. Afterwards DEL takes all of them away, and nothing is left."""
    made: list[Sandbox] = []
    pods: set[str] = set()

    async def make(name: str, **fields: Any) -> Sandbox:
        labels = fields.pop("labels", {})
        if name not in pods:
            await store.create(pod(name, labels=labels))
            pods.add(name)
        one = Sandbox(node, name, fields.pop("ns", None) or make_ns(name), **fields)
        made.append(one)
        return one

    yield make
    for one in made:
        await one.delete()
    for name in pods:
        with suppress(LookupError):
            await store.delete(Pod, name, RED)
    await nothing_left(node, store)


def addresses(ns: Ns, dev: str = "eth0") -> set[str]:
    listed = [link for link in ns.json("addr", "show") if link["ifname"] == dev]
    return {one["local"] for link in listed for one in link["addr_info"] if one["scope"] == "global"}


def code(error: pytest.ExceptionInfo[CniError]) -> int:
    fails_plainly(error)
    return error.value.code


# --- what ADD answers and leaves ----------------------------------------------------------------------------------


def call(one: Sandbox, command: str, version: str, **conf: Any) -> subprocess.CompletedProcess[str]:
    """The stub itself, as it is executed."""
    plugin = dict(one.conflist.plugins[0]) | {"cniVersion": version, "name": NETWORK} | conf
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": one.container_id,
        "CNI_NETNS": one.path(None),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/nowhere",
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={one.namespace};K8S_POD_NAME={one.pod}",
        "TORTIE_AGENT_SOCKET": str(one.node.run_dir / "agent.sock"),
    }
    name = conf.get("type", "calico")
    executable = str(one.node.site.stub.with_name(name))
    return subprocess.run(
        [executable], input=json.dumps(plugin), env=environment, capture_output=True, text=True, check=False
    )


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
        (attribute,) = block.spec.attributes
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


# --- CHECK --------------------------------------------------------------------------------------------------------


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


# --- a pod is attached again --------------------------------------------------------------------------------------


@pytest.mark.parametrize("same_namespace", [False, True])
async def test_newest_container_has_the_pod(
    sandbox: MakeSandbox, node: Node, store: Store, same_namespace: bool
) -> None:
    """ADD X, ADD Y, DEL X, DEL Y: a late DEL takes nothing away from the one that came after."""
    x = await sandbox("again")
    first = await x.add()
    y = await sandbox("again", **({"ns": x.ns} if same_namespace else {}))
    second = await y.add()
    assert set(ips(first)).isdisjoint(ips(second))
    assert first["interfaces"][1]["mac"] != second["interfaces"][1]["mac"]
    assert await held(store) == {
        f"{NETWORK}.{x.container_id}": set(ips(first)),
        f"{NETWORK}.{y.container_id}": set(ips(second)),
    }
    await x.delete()
    assert (await endpoints(store))["again"].spec.container_id == y.container_id
    assert addresses(y.ns) == set(ips(second))
    await y.check()
    await soon(node.routes, lambda seen: seen == {(ip, y.host_ifname) for ip in ips(second)}, "routes of Y")
    await y.delete()
    await nothing_left(node, store)


async def test_stale_delete_after_delete(sandbox: MakeSandbox, store: Store) -> None:
    """ADD X, DEL X, ADD Y, DEL X again."""
    x = await sandbox("stale")
    await x.add()
    await x.delete()
    y = await sandbox("stale", ns=x.ns)
    await y.add()
    await x.delete()
    assert (await endpoints(store))["stale"].spec.container_id == y.container_id
    await y.check()


async def test_second_interface_name_is_still_the_one_endpoint(sandbox: MakeSandbox, store: Store) -> None:
    first = await sandbox("twice")
    similar = await sandbox("twice-1")
    await similar.add()
    await first.add()
    again = await sandbox("twice", ns=first.ns, container_id=first.container_id, ifname="eth1")
    got = ips(await again.add())
    assert {name: one.name for name, one in (await endpoints(store)).items()} == {
        "twice": "node1-k8s-twice-eth0",
        "twice-1": "node1-k8s-twice--1-eth0",
    }
    assert addresses(first.ns, "eth1") == set(got)
    await again.check()
    await similar.check()


async def test_failing_second_attempt_keeps_what_the_first_has(sandbox: MakeSandbox, store: Store) -> None:
    """Only what the failing call has got is given back: the addresses of the first are in use."""
    first = await sandbox("keeps")
    got = await first.add()
    for ifname in ("taken", "lo"):
        again = await sandbox("keeps", ns=first.ns, container_id=first.container_id, ifname=ifname)
        first.ns.run("ip", "link", "add", "taken", "type", "bridge", check=False)
        with pytest.raises(CniError) as error:
            await again.add()
        fails_plainly(error)
    assert await held(store) == {f"{NETWORK}.{first.container_id}": set(ips(got))}


# --- DEL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("path", ["", "/run/netns/nowhere", "/etc/passwd", "/etc/passwd/net", "/run"])
async def test_delete_whatever_the_namespace(
    sandbox: MakeSandbox, node: Node, store: Store, path: str, added: bool
) -> None:
    one = await sandbox("del")
    if added:
        await one.add()
    for _ in range(2):
        await one.delete(path)
        await nothing_left(node, store)


async def test_delete_after_the_namespace_has_gone(sandbox: MakeSandbox, node: Node, store: Store) -> None:
    one = await sandbox("gone")
    await one.add()
    netns.delete(one.ns.name)
    await one.delete()
    await nothing_left(node, store)


# --- GC -----------------------------------------------------------------------------------------------------------


async def test_gc_takes_what_is_not_valid_and_nothing_else(
    sandbox: MakeSandbox, node: Node, store: Store, site: Site
) -> None:
    version = conflist("1.1.0")
    kept, lost = await sandbox("kept", conflist=version), await sandbox("lost", conflist=version)
    other = await sandbox("other", conflist=conflist("1.1.0", name="second.network"))
    half, unknown = await sandbox("half", conflist=version), await sandbox("unknown", conflist=version)
    for one in (kept, lost, other, half, unknown):
        await one.add()
    # What an agent that was killed leaves behind: addresses and a link, but no endpoint. Its runtime knows it or not.
    for one in (half, unknown):
        endpoint = (await endpoints(store))[one.pod]
        await store.delete(WorkloadEndpoint, endpoint.name, RED)
    node.ns.ip("link", "add", "cali-foreign", "type", "bridge")
    # The runtime's own memory is gone, too, so that it does not say DEL for those that are not valid.
    for file in (site.directory / "cache-node1" / "results").iterdir():
        file.unlink()
    await node.runtime().gc(version, [(kept.container_id, "eth0"), (half.container_id, "eth0")])
    assert set(await endpoints(store)) == {"kept", "other"}
    assert node.links() == {kept.host_ifname, other.host_ifname, half.host_ifname, "cali-foreign"}
    assert set(await held(store)) == {
        f"{NETWORK}.{kept.container_id}",
        f"{NETWORK}.{half.container_id}",
        f"second.network.{other.container_id}",
    }
    await kept.check()
    await other.check()
    node.ns.ip("link", "del", "cali-foreign")


async def test_gc_without_a_list_takes_nothing(sandbox: MakeSandbox, store: Store) -> None:
    one = await sandbox("nolist")
    await one.add()
    done = await asyncio.to_thread(call, one, "GC", "1.1.0")
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == Code.INVALID_CONFIG
    await one.check()


# --- what is refused ----------------------------------------------------------------------------------------------


async def refused(one: Sandbox, node: Node, store: Store, **how: Any) -> CniError:
    """ADD fails with one clear line, and leaves nothing."""
    with pytest.raises(CniError) as error:
        await one.add(**how)
    fails_plainly(error)
    await nothing_left(node, store)
    return error.value


async def test_pod_that_nobody_knows(node: Node, store: Store, ns: Ns) -> None:
    error = await refused(Sandbox(node, "ghost", ns), node, store)
    assert error.msg == "Pod red/ghost is not in the datastore"


async def test_namespace_that_nobody_knows(node: Node, store: Store, ns: Ns) -> None:
    ghost = pod("ghost", namespace="nowhere")
    await store.create(ghost)
    error = await refused(Sandbox(node, "ghost", ns, namespace="nowhere"), node, store)
    assert error.msg == "resource does not exist: Namespace(nowhere)"
    await store.delete(Pod, "ghost", "nowhere")


REFUSED_CONFIGURATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no family": ({"ipv4": False, "ipv6": False}, "ipam: no address is wanted"),
    "no such pool": ({"ipam": {"ipv4_pools": ["192.169.1.0/24"]}}, "192.169.1.0/24) does not exist"),
    "pools are no list": ({"ipam": {"ipv4_pools": "10.0.0.0/8"}}, "failed to load netconf"),
    "MTU": ({"mtu": 10**6}, "ip link add eth0"),
}


@pytest.mark.parametrize(("conf", "says"), REFUSED_CONFIGURATIONS.values(), ids=REFUSED_CONFIGURATIONS)
async def test_configuration_that_cannot_be_served(
    sandbox: MakeSandbox, node: Node, store: Store, conf: dict[str, Any], says: str
) -> None:
    one = await sandbox("refused", conflist=conflist(**conf))
    assert says in (await refused(one, node, store)).msg
    one.conflist = conflist()  # a configuration that cannot be read would fail DEL, too


@pytest.mark.parametrize(
    ("path", "expected", "says"),
    [
        ("/run/netns/nowhere", Code.INTERNAL, '"/run/netns/nowhere" does not exist'),
        ("/etc/passwd", Code.INVALID_CONFIG, 'unknown FS magic on "/etc/passwd"'),
        ("/etc/passwd/net", Code.INTERNAL, "Not a directory"),
    ],
)
async def test_namespace_path_that_is_none(
    sandbox: MakeSandbox, node: Node, store: Store, path: str, expected: int, says: str
) -> None:
    error = await refused(await sandbox("nons"), node, store, netns=path)
    assert error.code == expected
    assert says in error.msg


async def test_nodes_own_namespace_is_not_touched(sandbox: MakeSandbox, node: Node, store: Store) -> None:
    """Or DEL would take the node's own eth0 away."""
    one = await sandbox("own")
    node.ns.ip("link", "add", "eth0", "type", "bridge")
    assert (await refused(one, node, store, netns=node.ns.path)).code == Code.INVALID_NETNS
    with pytest.raises(CniError) as error:
        await one.delete(node.ns.path)
    assert code(error) == Code.INVALID_NETNS
    node.ns.ip("link", "del", "eth0")


async def test_exhausted_pool(sandbox: MakeSandbox, node: Node, store: Store) -> None:
    """Dual-stack is all or nothing: the other family's pool has plenty."""
    await store.create(pool("tiny", "10.99.0.0/30", 30))
    tiny = conflist(ipam={"ipv4_pools": ["tiny"]})
    pods = [await sandbox(f"tiny-{number}", conflist=tiny) for number in range(5)]
    for one in pods[:4]:
        await one.add()
    with pytest.raises(CniError, match="failed to request IPv4 addresses") as error:
        await pods[4].add()
    assert code(error) == Code.TRY_AGAIN_LATER
    await nothing_left(node, store, *pods[:4])
    await pods[0].delete()
    assert ips(await pods[4].add())[0].startswith("10.99.0.")
    for one in pods:
        await one.delete()
    await store.update(pool("tiny", "10.99.0.0/30", 30, disabled=True))  # nobody else shall draw from it


async def test_agent_is_away(node: Node, store: Store, sandbox: MakeSandbox) -> None:
    one = await sandbox("away")
    runtime = node.runtime(TORTIE_AGENT_SOCKET=str(node.run_dir / "nobody.sock"))
    for verb in (runtime.add, runtime.delete):
        with pytest.raises(CniError, match="the agent did not serve this call") as error:
            await verb(one.conflist, netns=one.path(None), **one.where)
        assert code(error) == Code.TRY_AGAIN_LATER


# --- the datastore is not to be had -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["not ready", "missing"])
async def test_datastore_that_is_not_ready_serves_nobody(sandbox: MakeSandbox, store: Store, how: str) -> None:
    """While a datastore is being moved, what DEL writes would be lost."""
    one, late = await sandbox("ready"), await sandbox("late")
    await one.add()
    information = await store.get(ClusterInformation, "default")
    if how == "missing":
        await store.delete(ClusterInformation, "default")
    else:
        spec = msgspec.structs.replace(information.spec, datastore_ready=False)
        await store.update(msgspec.structs.replace(information, spec=spec))
    try:
        for verb in (late.add, one.delete):
            with pytest.raises(CniError, match=r"not ready|no cluster has been set up") as error:
                await verb()
            assert code(error) == Code.TRY_AGAIN_LATER
        with pytest.raises(CniError) as error:
            await one.node.runtime().status(conflist("1.1.0"))
        assert code(error) == Code.NOT_AVAILABLE
    finally:
        again = changed(information, resource_version="")
        await (store.create(again) if how == "missing" else store.update(again))
    await one.check()


async def test_datastore_that_goes_away_and_comes_back(
    sandbox: MakeSandbox, node: Node, site: Site, store: Store
) -> None:
    one, late = await sandbox("stays"), await sandbox("later")
    got = ips(await one.add())
    aside = site.datastore.with_name("aside.db")
    site.datastore.rename(aside)
    try:
        with pytest.raises(CniError) as error:
            await late.add()
        assert code(error) == Code.TRY_AGAIN_LATER
        await soon(lambda: [text for text in node.messages() if "removed or replaced" in text], what="the log says so")
        assert node.routes() == {(ip, one.host_ifname) for ip in got}
        assert node.dispatched() == {one.host_ifname}
    finally:
        aside.rename(site.datastore)
    await late.add()
    # And what others write is heard again.
    await store.create(pod("heard"))
    assert len([text for text in node.messages() if "removed or replaced" in text]) < 20


# --- many at once -------------------------------------------------------------------------------------------------


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


# --- policy -------------------------------------------------------------------------------------------------------

DENY_QUIET = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: quiet, namespace: red}
spec: {selector: "speaks == 'no'", types: [Egress], egress: []}
"""


def received(sock: Any, seconds: float) -> int:
    """How many datagrams come in the given time."""
    sock.settimeout(seconds)
    count = 0
    with suppress(TimeoutError):
        while True:
            sock.recv(100)
            count += 1
            sock.settimeout(0.1)
    return count


async def test_label_that_changes_changes_the_policy(sandbox: MakeSandbox, store: Store) -> None:
    async with applied(store, DENY_QUIET):
        speaker, listener = await sandbox("speaker", labels={"speaks": "yes"}), await sandbox("listener")
        await speaker.add()
        v4, _ = ips(await listener.add())
        with udp(speaker.ns) as out, udp(listener.ns, v4, 5000) as into:

            def heard() -> bool:
                for _ in range(3):
                    out.sendto(b"hello", (v4, 5000))
                return received(into, 0.1) > 0

            await soon(lambda: asyncio.to_thread(heard), what="it speaks")
            for value, silent in (("no", True), ("yes", False)):
                old = await store.get(Pod, "speaker", RED)
                await store.update(changed(old, labels={"speaks": value}))
                await soon(lambda: asyncio.to_thread(heard), lambda is_heard, silent=silent: is_heard is not silent)
                assert (await endpoints(store))["speaker"].labels["speaks"] == value


@pytest.mark.parametrize("speaks", ["no", "yes"])
async def test_policy_holds_from_the_first_packet(sandbox: MakeSandbox, store: Store, speaks: str) -> None:
    """The pod sends as fast as it can from before it has an interface."""
    async with applied(store, DENY_QUIET):
        listener = await sandbox("hears")
        v4, _ = ips(await listener.add())
        flooder = await sandbox("floods", labels={"speaks": speaks})
        stop = threading.Event()
        sent = 0

        def flood() -> None:
            nonlocal sent
            with udp(flooder.ns) as out:
                while not stop.is_set():
                    with suppress(OSError):  # there is no route yet
                        out.sendto(b"hello", (v4, 5000))
                        sent += 1

        with udp(listener.ns, v4, 5000) as into:
            thread = threading.Thread(target=flood)
            thread.start()
            try:
                await flooder.add()
                await asyncio.sleep(0.2)
            finally:
                stop.set()
                thread.join()
            count = await asyncio.to_thread(received, into, 0.2)
        assert sent > 100
        assert (count > 0) is (speaks == "yes")


# --- calico-ipam for itself ---------------------------------------------------------------------------------------


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
