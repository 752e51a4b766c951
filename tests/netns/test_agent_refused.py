"""What the agent does not serve: one clear line, and nothing is left of the attempt."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from agent_node import (
    RED,
    Node,
    Sandbox,
    Site,
    conflist,
    endpoints,
    fails_plainly,
    ips,
    nothing_left,
    pod,
    pool,
    settled,
    soon,
)
from agent_pods import MakeSandbox, code
from conftest import Ns

from tortie.cni.spec import CniError, Code
from tortie.model.k8s import Pod
from tortie.model.meta import changed
from tortie.model.node import ClusterInformation
from tortie.model.store import Store

pytestmark = pytest.mark.root


# --- what is refused ------------------------------------------------------------------------------------------------


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


# --- the datastore is not to be had ---------------------------------------------------------------------------------


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
    """Meanwhile a pod that needs nothing but an address gets one of those that are held ready, and its policy."""
    one, ready, late = [await sandbox(name) for name in ("stays", "ready", "later")]
    special = changed(await store.get(Pod, late.pod, RED), annotations={"cni.projectcalico.org/ipv4pools": '["pool4"]'})
    await store.update(special)
    got = {(ip, one.host_ifname) for ip in ips(await one.add())}
    await settled()
    aside = site.datastore.with_name("aside.db")
    site.datastore.rename(aside)
    try:
        got |= {(ip, ready.host_ifname) for ip in ips(await ready.add())}
        with pytest.raises(CniError) as error:
            await late.add()
        assert code(error) == Code.TRY_AGAIN_LATER
        await soon(lambda: [text for text in node.messages() if "removed or replaced" in text], what="the log says so")
        assert node.routes() == got
        assert node.dispatched() == {one.host_ifname, ready.host_ifname}
        status, report = await soon(lambda: node.ask("/readiness"), lambda said: said[0] == 503, "it is not ready")
        assert status == 503
        assert "pods that the datastore does not know yet: 1: " in json.loads(report)["PendingWrites"]["reason"]
    finally:
        aside.rename(site.datastore)
    await late.add()
    assert set(await endpoints(store)) == {"stays", "ready", "later"}
    await soon(lambda: node.ask("/readiness")[0], lambda said: said == 200, "it is ready")
    # And what others write is heard again.
    await store.create(pod("heard"))
    assert len([text for text in node.messages() if "removed or replaced" in text]) < 20
