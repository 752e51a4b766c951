"""The addresses that nodes hold for their tunnels: decided on values, done over a store, followed by the agent."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from msgspec.structs import replace
from test_vm_addresses import Killed, Mortal

from ipam_cluster import Cluster, matches
from tortie.agent.tunnels import encrypts_hosts, follow_tunnels
from tortie.base.addr import parse_ip, parse_net
from tortie.base.errors import Conflict, NotFound, Unavailable
from tortie.ipam.assign import Ipam
from tortie.ipam.block import Release
from tortie.ipam.explain import explain
from tortie.ipam.survey import survey
from tortie.ipam.tunnel import (
    IPIP,
    TUNNELS,
    VXLAN,
    VXLAN_V6,
    WIREGUARD,
    WIREGUARD_V6,
    Step,
    Tunnel,
    TunnelAddresses,
    address,
    candidates,
    plan,
    with_address,
)
from tortie.model.ipam import AllocationAttribute, IPPool, IPPoolSpec
from tortie.model.meta import Metadata
from tortie.model.node import (
    ClusterInformation,
    ClusterInformationSpec,
    FelixConfiguration,
    FelixConfigurationSpec,
    Node,
    NodeBGPSpec,
    NodeSpec,
    NodeWireguardSpec,
)

KEYS = {"wireguardPublicKey": "a", "wireguardPublicKeyV6": "b"}


class Camp(Cluster):
    """A cluster of which we look at the tunnels of node1."""

    @property
    def tunnels(self) -> TunnelAddresses:
        return TunnelAddresses(self.store, self.ipam(), matches)

    async def settle(self, **more: Any) -> Node:
        return await self.tunnels.settle(**more)

    async def get(self) -> Node:
        return await self.store.get(Node, "node1")

    async def edit_node(self, **changes: Any) -> Node:
        return await self.store.update(replace(await self.get(), **changes))

    async def say(self, tunnel: Tunnel, text: str) -> None:
        await self.store.update(with_address(await self.get(), tunnel, text))

    async def held(self, text: str) -> AllocationAttribute:
        return await self.ipam().attributes_of(parse_ip(text))


@pytest.fixture
async def camp() -> Any:
    camp = Camp()
    await camp.node("node1", "node2", rack="a")
    yield camp
    assert [str(each) for each in await camp.findings()] == []


def pool(cidr: str, name: str = "p", **spec: Any) -> IPPool:
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr, **spec))


# -------------------------------------------------------------------------------------------------------- on values


@pytest.mark.parametrize("tunnel", TUNNELS, ids=lambda tunnel: tunnel.type)
def test_each_type_has_a_field_of_its_own(tunnel: Tunnel) -> None:
    node = Node(metadata=Metadata(name="n"), spec=NodeSpec(bgp=NodeBGPSpec(ipv4_address="192.0.2.1/24")))
    said = with_address(node, tunnel, "10.0.0.1")
    assert [each.type for each in TUNNELS if address(said, each)] == [tunnel.type]
    assert with_address(said, tunnel, "") == node


def test_parts_of_a_node_in_which_nothing_is_left_go() -> None:
    node = with_address(with_address(Node(), IPIP, "10.0.0.1"), WIREGUARD, "10.0.0.2")
    assert node.spec == NodeSpec(
        bgp=NodeBGPSpec(ipv4_ipip_tunnel_addr="10.0.0.1"),
        wireguard=NodeWireguardSpec(interface_ipv4_address="10.0.0.2"),
    )
    assert with_address(with_address(node, IPIP, ""), WIREGUARD, "").spec == NodeSpec()


POOLS = (
    pool("10.0.0.0/24", "plain"),
    pool("10.1.0.0/24", "ipip", ipip_mode="Always"),
    pool("10.2.0.0/24", "vxlan", vxlan_mode="CrossSubnet"),
    pool("fd00::/120", "plain6"),
    pool("fd01::/120", "vxlan6", vxlan_mode="Always"),
    pool("10.3.0.0/24", "off", ipip_mode="Always", disabled=True),
    pool("10.4.0.0/24", "elsewhere", ipip_mode="Always", node_selector="rack == 'b'"),
    pool("10.5.0.0/24", "pods", ipip_mode="Always", allowed_uses=("Workload",)),
    replace(
        pool("10.6.0.0/24", "going", ipip_mode="Always"),
        metadata=Metadata(name="going", deletion_timestamp="2026-01-02T03:04:05Z"),
    ),
)


@pytest.mark.parametrize(
    ("tunnel", "names"),
    [
        (IPIP, ["ipip"]),
        (VXLAN, ["vxlan"]),
        (VXLAN_V6, ["vxlan6"]),
        (WIREGUARD, ["plain", "ipip", "vxlan"]),
        (WIREGUARD_V6, ["plain6", "vxlan6"]),
    ],
    ids=lambda each: each.type if isinstance(each, Tunnel) else "",
)
def test_pools_of_each_type(tunnel: Tunnel, names: list[str]) -> None:
    node = Node(metadata=Metadata(name="n", labels={"rack": "a"}), status=KEYS)
    assert [each.name for each in candidates(tunnel, node, POOLS, matches)] == names


def test_wireguard_needs_a_key_and_no_encryption_between_hosts() -> None:
    def found(tunnel: Tunnel, status: object, **more: bool) -> bool:
        return bool(candidates(tunnel, Node(metadata=Metadata(name="n"), status=status), POOLS, matches, **more))

    assert found(WIREGUARD, {"wireguardPublicKey": "k"})
    assert not found(WIREGUARD, {"wireguardPublicKeyV6": "k"})
    assert not found(WIREGUARD, None)
    assert not found(WIREGUARD, {"wireguardPublicKey": "k"}, host_encryption=True)
    assert found(WIREGUARD_V6, {"wireguardPublicKeyV6": "k"}, host_encryption=True)


OURS = AllocationAttribute(handle_id="ipip-tunnel-addr-n", secondary={"node": "n", "type": "ipipTunnelAddress"})
POD = AllocationAttribute(handle_id="net.c1", secondary={"node": "n", "pod": "a", "namespace": "red"})


@pytest.mark.parametrize(
    ("current", "held", "step"),
    [
        ("10.1.0.7", OURS, Step.KEEP),
        ("10.1.0.7", replace(OURS, handle_id=None), Step.KEEP),
        ("10.9.0.7", OURS, Step.RENEW),
        ("10.1.0.7", None, Step.RENEW),
        (None, None, Step.RENEW),
        ("10.1.0.7", POD, Step.REPLACE),
        ("10.1.0.7", AllocationAttribute(secondary={"node": "m", "type": "ipipTunnelAddress"}), Step.REPLACE),
        ("10.1.0.7", AllocationAttribute(), Step.MARK),
    ],
)
def test_what_becomes_of_an_address(current: str | None, held: AllocationAttribute | None, step: Step) -> None:
    ip = parse_ip(current) if current else None
    assert plan(IPIP, "n", ip, held, POOLS[1:2]) is step
    assert plan(IPIP, "n", ip, held, ()) is Step.CLEAR


# ----------------------------------------------------------------------------------------------------- over a store


async def test_each_tunnel_gets_an_address_and_the_node_is_written_once(camp: Camp) -> None:
    await camp.pool("10.1.0.0/24", "ipip", ipip_mode="Always")
    await camp.pool("10.2.0.0/24", "vxlan", vxlan_mode="Always")
    await camp.pool("fd01::/120", "vxlan6", vxlan_mode="CrossSubnet")
    before = await camp.edit_node(status=KEYS)
    node = await camp.settle()
    texts = {tunnel.type: address(node, tunnel) for tunnel in TUNNELS}
    assert all(texts.values())
    assert len(set(texts.values())) == len(TUNNELS)
    for tunnel in TUNNELS:
        held = await camp.held(texts[tunnel.type])
        assert held.handle_id == f"{tunnel.prefix}-node1"
        assert held.secondary == {"node": "node1", "type": tunnel.type}
    assert parse_ip(texts["ipipTunnelAddress"]) in parse_net("10.1.0.0/24")
    assert parse_ip(texts["vxlanTunnelAddress"]) in parse_net("10.2.0.0/24")
    assert node == await camp.get()
    revisions = int(node.metadata.resource_version), int(before.metadata.resource_version)
    assert await camp.settle() == node, "a settled node is not written again"
    assert (await camp.get()).metadata.resource_version == str(revisions[0])


async def test_address_goes_with_the_last_pool_that_wants_it(camp: Camp) -> None:
    await camp.pool("10.1.0.0/24", ipip_mode="Always")
    assert address(await camp.settle(), IPIP)
    await camp.edit_pool(ipip_mode="Never", vxlan_mode="Always")
    node = await camp.settle()
    assert node.spec.bgp is None
    assert list(await camp.handles()) == ["vxlan-tunnel-addr-node1"]
    await camp.edit_pool(disabled=True)
    node = await camp.settle()
    assert node.spec == NodeSpec()
    assert await camp.handles() == {}


async def test_no_address_for_a_tunnel_that_the_machine_cannot_have(camp: Camp) -> None:
    """Others would send to it."""
    await camp.pool("10.1.0.0/24", "ipip", ipip_mode="Always")
    await camp.pool("10.2.0.0/24", "vxlan", vxlan_mode="Always")
    node = await camp.settle(lacking={IPIP})
    assert (address(node, IPIP), bool(address(node, VXLAN))) == ("", True)
    assert address(await camp.settle(), IPIP)  # the module has been loaded
    assert address(await camp.settle(lacking={IPIP}), IPIP) == ""
    assert list(await camp.handles()) == ["vxlan-tunnel-addr-node1"]


async def test_address_of_a_pool_that_is_none_any_more_is_replaced(camp: Camp) -> None:
    """Situation 62: in the wrong pool it is released and another assigned."""
    await camp.pool("10.1.0.0/24", "one", ipip_mode="Always")
    old = address(await camp.settle(), IPIP)
    await camp.edit_pool("one", ipip_mode="Never")
    await camp.pool("10.7.0.0/24", "two", ipip_mode="Always")
    new = address(await camp.settle(), IPIP)
    assert parse_ip(new) in parse_net("10.7.0.0/24")
    with pytest.raises(NotFound):
        await camp.held(old)


async def test_address_that_a_pod_has_is_left_to_it(camp: Camp) -> None:
    """Situation 62: what is somebody else's stays theirs, and we take another."""
    await camp.pool("10.1.0.0/24", ipip_mode="Always")
    await camp.ipam().assign_ip(parse_ip("10.1.0.9"), handle="net.c1", attrs={"pod": "a", "namespace": "red"})
    await camp.say(IPIP, "10.1.0.9")
    new = address(await camp.settle(), IPIP)
    assert new != "10.1.0.9"
    assert (await camp.held("10.1.0.9")).handle_id == "net.c1"
    await camp.edit_pool(ipip_mode="Never")
    await camp.say(IPIP, "10.1.0.9")
    assert address(await camp.settle(), IPIP) == ""
    assert (await camp.held("10.1.0.9")).handle_id == "net.c1"


async def test_address_that_nothing_is_noted_with_is_marked(camp: Camp) -> None:
    await camp.pool("10.1.0.0/24", ipip_mode="Always")
    await camp.ipam().assign_ip(parse_ip("10.1.0.9"), handle=None, attrs={})
    await camp.say(IPIP, "10.1.0.9")
    assert address(await camp.settle(), IPIP) == "10.1.0.9"
    assert (await camp.held("10.1.0.9")).handle_id == "ipip-tunnel-addr-node1"


async def test_unmarked_address_of_a_tunnel_that_goes_is_given_back(camp: Camp) -> None:
    await camp.pool("10.1.0.0/24")
    await camp.ipam().assign_ip(parse_ip("10.1.0.9"), handle=None, attrs={})
    await camp.say(IPIP, "10.1.0.9")
    assert address(await camp.settle(), IPIP) == ""
    with pytest.raises(NotFound):
        await camp.held("10.1.0.9")


async def test_address_that_ipam_does_not_know_and_what_the_handle_still_held(camp: Camp) -> None:
    await camp.pool("10.1.0.0/24", ipip_mode="Always")
    await camp.ipam().assign_ip(parse_ip("10.1.0.77"), handle="ipip-tunnel-addr-node1", attrs={})
    await camp.say(IPIP, "10.1.0.9")
    new = address(await camp.settle(), IPIP)
    assert new not in ("", "10.1.0.9")
    assert {each.ip for each in (await survey(camp.store, camp.now)).allocations} == {parse_ip(new)}


async def test_address_that_cools_down_is_nobodys(camp: Camp) -> None:
    await camp.config(ip_cooldown_seconds=60)
    await camp.pool("10.1.0.0/24", ipip_mode="Always")
    old = address(await camp.settle(), IPIP)
    await camp.ipam().release_ips([Release(parse_ip(old))])
    assert address(await camp.settle(), IPIP) not in ("", old)


async def test_full_pool_of_one_type_does_not_keep_the_others(camp: Camp) -> None:
    await camp.pool("10.1.0.0/30", "ipip", ipip_mode="Always", block_size=30)
    await camp.pool("fd01::/120", "six", vxlan_mode="Always")
    await camp.ipam("node2").auto_assign(4, handle="net.c", attrs={}, pools4=("ipip",))
    with pytest.raises(Unavailable, match="failed to request IPv4 addresses"):
        await camp.settle()
    node = await camp.get()
    assert (address(node, IPIP), bool(address(node, VXLAN_V6))) == ("", True)
    await camp.ipam("node2").release_by_handle("net.c")
    assert address(await camp.settle(), IPIP)


async def test_new_address_is_given_back_when_the_node_cannot_be_written(camp: Camp) -> None:
    await camp.pool("10.1.0.0/24", ipip_mode="Always")

    class Gone:
        """The cluster's store, in which the Node goes before it is written."""

        def __getattr__(self, name: str) -> Any:
            return getattr(camp.store, name)

        async def update(self, obj: Any) -> Any:
            if isinstance(obj, Node):
                await camp.store.delete(Node, obj.name)
                raise Conflict("the node has changed")
            return await camp.store.update(obj)

    with pytest.raises(NotFound):
        await TunnelAddresses(Gone(), camp.ipam(), matches).settle()  # type: ignore[arg-type]
    assert await camp.handles() == {}


async def test_node_that_others_write_meanwhile_keeps_what_they_wrote(camp: Camp) -> None:
    await camp.pool("10.1.0.0/24", ipip_mode="Always")

    class Busy:
        """The cluster's store, in which somebody is faster once."""

        meddled = False

        def __getattr__(self, name: str) -> Any:
            return getattr(camp.store, name)

        async def update(self, obj: Any) -> Any:
            if isinstance(obj, Node) and not self.meddled:
                self.meddled = True
                await camp.edit_node(metadata=Metadata(name="node1", labels={"rack": "c"}))
            return await camp.store.update(obj)

    node = await TunnelAddresses(Busy(), camp.ipam(), matches).settle()  # type: ignore[arg-type]
    assert node.labels == {"rack": "c"}
    assert address(node, IPIP)
    assert await camp.get() == node


async def test_explained_as_a_use(camp: Camp) -> None:
    await camp.pool("10.1.0.0/24", ipip_mode="Always")
    ip = parse_ip(address(await camp.settle(), IPIP))
    found = explain(ip, await survey(camp.store, camp.now))
    assert found.state == "in use"
    assert dict(found.facts)["reclaimed"] == "no: the ipipTunnelAddress of node node1"


@pytest.mark.parametrize("life", range(9))
async def test_agent_that_dies_at_any_write_leaves_what_the_next_one_settles(camp: Camp, life: int) -> None:
    await camp.pool("10.1.0.0/24", ipip_mode="Always")
    await camp.pool("fd01::/120", "six", vxlan_mode="Always")
    mortal: Any = Mortal(camp.store, life)
    with contextlib.suppress(Killed):
        await TunnelAddresses(mortal, Ipam(mortal, "node1", lambda: camp.now, matches), matches).settle()
    node = await camp.settle()
    held = {str(each.ip): each.handle for each in (await survey(camp.store, camp.now)).allocations}
    assert held == {
        address(node, IPIP): "ipip-tunnel-addr-node1",
        address(node, VXLAN_V6): "vxlan-v6-tunnel-addr-node1",
    }


# ----------------------------------------------------------------------------------------------------- in the agent


async def test_addresses_follow_pools_and_labels(camp: Camp) -> None:
    cluster = ClusterInformationSpec(datastore_ready=True)
    await camp.store.create(ClusterInformation(metadata=Metadata(name="default"), spec=cluster))

    async def built() -> frozenset[str]:
        return frozenset()

    running = asyncio.create_task(follow_tunnels("node1", camp.store, camp.ipam(), built))

    async def until(tunnel: Tunnel, there: bool) -> None:
        for _ in range(2000):
            if bool(address(await camp.get(), tunnel)) is there:
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"the {tunnel.type} is not as it should be after 10 s")

    try:
        await camp.pool("10.1.0.0/24", ipip_mode="Always", node_selector="rack == 'a'")
        await until(IPIP, True)
        await camp.edit_node(metadata=replace((await camp.get()).metadata, labels={"rack": "b"}))
        await until(IPIP, False)
        await camp.edit_pool(ipip_mode="Never", vxlan_mode="Always", node_selector=None)
        await until(VXLAN, True)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_encryption_between_hosts_is_read_for_the_node_first(camp: Camp) -> None:
    async def said(name: str, value: bool) -> None:
        spec = FelixConfigurationSpec(wireguard_host_encryption_enabled=value)
        await camp.store.create(FelixConfiguration(metadata=Metadata(name=name), spec=spec))

    assert not await encrypts_hosts(camp.store, "node1")
    await said("default", True)
    assert await encrypts_hosts(camp.store, "node1")
    await said("node.node1", False)
    assert not await encrypts_hosts(camp.store, "node1")
