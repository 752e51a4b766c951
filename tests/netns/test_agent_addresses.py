"""Addresses that are no container's: those of a node's tunnels, and of a virtual machine, whatever pod it is in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from agent_node import (
    NETWORK,
    RED,
    Node,
    Sandbox,
    Site,
    endpoints,
    handles,
    held,
    ips,
    nothing_left,
    pod,
    site_in,
    soon,
)
from agent_pods import addresses
from conftest import Ns
from msgspec.structs import replace

from tortie.ipam.tunnel import VXLAN, VXLAN_V6, address
from tortie.model.ipam import IPPool
from tortie.model.k8s import Pod, VirtualMachine, VirtualMachineInstance
from tortie.model.meta import Metadata, OwnerReference, changed
from tortie.model.node import Node as NodeResource
from tortie.model.store import Store

pytestmark = pytest.mark.root

MACHINE = f"{NETWORK}.vmi.{RED}.db"


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("site")) as site:
        site.set_up()
        yield site


@pytest.fixture
def node(site: Site) -> Node:
    return site.node("node1", "--no-bgp").start()


# --- tunnels ------------------------------------------------------------------------------------------------------


async def test_tunnel_addresses_come_and_go_with_the_pools(node: Node, store: Store) -> None:
    async def edit(name: str, **fields: Any) -> None:
        stored = await store.get(IPPool, name)
        await store.update(replace(stored, spec=replace(stored.spec, **fields)))

    async def seen() -> tuple[str, str]:
        there = await store.get(NodeResource, "node1")
        return address(there, VXLAN), address(there, VXLAN_V6)

    node.ns.ip("link", "add", "eth0", "up", "type", "veth", "peer", "name", "eth1")
    node.ns.ip("address", "add", "192.0.2.1/24", "dev", "eth0")
    await edit("pool4", vxlan_mode="Always")
    await edit("pool6", vxlan_mode="CrossSubnet")
    vxlan, vxlan6 = await soon(seen, all, "both addresses")
    wanted = {"vxlan-tunnel-addr-node1": {vxlan}, "vxlan-v6-tunnel-addr-node1": {vxlan6}}
    assert await held(store) == wanted
    node.restart()
    assert await seen() == (vxlan, vxlan6)
    assert await held(store) == wanted
    await edit("pool4", vxlan_mode="Never")
    await soon(seen, lambda now: now == ("", vxlan6), "no address for IPv4")
    await edit("pool6", disabled=True)
    await soon(seen, lambda now: now == ("", ""), "no address at all")
    there = await store.get(NodeResource, "node1")
    assert there.spec.bgp is not None
    assert there.spec.bgp.ipv4_address == "192.0.2.1/24"
    await soon(lambda: held(store), lambda now: not now, "nothing held")


# --- virtual machines ---------------------------------------------------------------------------------------------


async def launcher(store: Store, name: str, instance: VirtualMachineInstance) -> None:
    owner = OwnerReference(
        api_version="kubevirt.io/v1",
        kind="VirtualMachineInstance",
        name=instance.name,
        uid=instance.metadata.uid,
        controller=True,
    )
    await store.create(changed(pod(name), owner_references=(owner,)))


async def test_machine_keeps_its_addresses_while_pods_and_agents_come_and_go(
    node: Node, store: Store, make_ns: Callable[..., Ns]
) -> None:
    machine = await store.create(VirtualMachine(metadata=Metadata(name="db", namespace=RED)))
    owner = OwnerReference(
        api_version="kubevirt.io/v1", kind="VirtualMachine", name="db", uid=machine.metadata.uid, controller=True
    )
    instance = await store.create(
        VirtualMachineInstance(metadata=Metadata(name="db", namespace=RED, owner_references=(owner,)))
    )
    first: list[str] = []
    for number in range(3):
        name = f"virt-launcher-db-{number}"
        await launcher(store, name, instance)
        one = Sandbox(node, name, make_ns(f"vm{number}"))
        result = await one.add()
        first = first or ips(result)
        assert len(first) == 2
        assert ips(result) == first
        assert one.ns is not None
        assert addresses(one.ns) == set(first)
        await one.check()
        assert set(await endpoints(store)) == {name}
        assert await held(store) == {MACHINE: set(first)}
        if number == 1:
            node.kill()
            node.start()
        if number == 2:
            await store.delete(VirtualMachine, "db", RED)
        await one.delete()
        await store.delete(Pod, name, RED)
        assert await handles(store) == ({MACHINE} if number < 2 else set())
    await nothing_left(node, store)
