"""A pod that is attached more than once, and one that is taken away: DEL and GC."""

from __future__ import annotations

import asyncio
import json

import pytest
from agent_node import (
    NETWORK,
    RED,
    Node,
    Site,
    conflist,
    endpoints,
    fails_plainly,
    held,
    ips,
    nothing_left,
    soon,
)
from agent_pods import MakeSandbox, addresses, call

from tortie.cni.spec import CniError, Code
from tortie.kernel import netns
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint

pytestmark = pytest.mark.root


# --- a pod is attached again ----------------------------------------------------------------------------------------


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


# --- DEL ------------------------------------------------------------------------------------------------------------


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


# --- GC -------------------------------------------------------------------------------------------------------------


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
