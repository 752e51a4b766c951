"""IPAM over a store: what a node gets, and from where. Many situations are Calico's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipam_cluster import FAMILIES, Cluster, Family, matches, nets
from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError, Exists, NotFound, Unavailable
from tortie.ipam import names
from tortie.ipam.assign import Assignment, Ipam
from tortie.ipam.block import ForeignBlock, Release
from tortie.ipam.fill import Share
from tortie.ipam.search import BlockLimit, NoBlock
from tortie.model.ipam import (
    BlockAffinity,
    IPAMBlock,
    IPAMHandle,
)


@pytest.fixture(params=FAMILIES, ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


@pytest.fixture
async def cluster() -> Any:
    cluster = Cluster()
    await cluster.node("node1", "node2", "node3")
    yield cluster
    assert [str(each) for each in await cluster.findings()] == []


# ------------------------------------------------------------------------------------------------ plain assignment


async def test_default_assignment(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(8))
    share = await cluster.got(family, 1, handle="net.c1")
    (ip,) = share.ips
    assert ip.network.num_addresses == 64
    assert ip.ip in family.net(8)
    assert await cluster.blocks() == {ip.network: "host:node1"}
    assert await cluster.affinities() == {("node1", ip.network): "confirmed"}
    assert await cluster.handles() == {"net.c1": {str(ip.network): 1}}
    assert await cluster.ipam().host_blocks() == (ip.network,)
    assert await cluster.ipam("node2").host_blocks() == ()
    again = await cluster.got(family, 1, handle="net.c2")
    assert again.ips[0].ip == ip.ip + 1


async def test_objects_as_calico_writes_them(cluster: Cluster) -> None:
    await cluster.pool("10.0.0.0/26")
    await cluster.ipam().auto_assign(1, handle="net.C1", attrs={"node": "node1", "pod": "a"})
    block = await cluster.store.get(IPAMBlock, "10-0-0-0-26")
    assert block.spec.affinity_claim_time == "2026-01-02T03:04:05Z"
    assert block.spec.sequence_number == int(cluster.now.timestamp()) * 10**9 + 1
    assert block.spec.sequence_number_for_allocation == {"0": block.spec.sequence_number - 1}
    assert block.spec.attributes[0].secondary == {"node": "node1", "pod": "a"}
    affinity = await cluster.store.get(BlockAffinity, "node1-10-0-0-0-26")
    assert affinity.spec.type == "host"
    assert affinity.labels[names.IP_VERSION] == "4"
    handle = await cluster.store.get(IPAMHandle, "net.c1")
    assert handle.spec.handle_id == "net.C1"


async def test_dual_stack_order_and_masks(cluster: Cluster) -> None:
    await cluster.pool("10.0.0.0/24", "four")
    await cluster.pool("fd80::/120", "six")
    ipam = cluster.ipam()
    ips = await ipam.all_or_nothing(await ipam.auto_assign(1, 1, handle="h", attrs={}))
    assert [(ip.version, ip.network.prefixlen) for ip in ips] == [(4, 26), (6, 122)]
    assert await ipam.ips_by_handle("h") == tuple(ip.ip for ip in ips)
    await ipam.release_by_handle("h")
    assert await cluster.handles() == {}


async def test_one_family_without_pool_assigns_nothing(cluster: Cluster) -> None:
    await cluster.pool("10.0.0.0/24", "four")
    with pytest.raises(ConfigError, match="cannot find a qualified ippool"):
        await cluster.ipam().auto_assign(1, 1, handle="h", attrs={})
    assert await cluster.handles() == {}


async def test_all_or_nothing_releases_the_family_that_succeeded(cluster: Cluster) -> None:
    await cluster.pool("10.0.0.0/24", "four")
    await cluster.pool("fd80::/122", "six")
    await cluster.reserve("fd80::/122")
    ipam = cluster.ipam()
    got = await ipam.auto_assign(1, 1, handle="h", attrs={})
    assert len(got.ips) == 1
    text = (
        "failed to request IPv6 addresses: Assigned 0 out of 1 requested IPv6 addresses; "
        "No IPs available in pools: [fd80::/122]"
    )
    with pytest.raises(Unavailable) as caught:
        await ipam.all_or_nothing(got)
    assert str(caught.value) == text
    with pytest.raises(NotFound):
        await ipam.ips_by_handle("h")


async def test_needs_a_node(cluster: Cluster) -> None:
    await cluster.pool("10.0.0.0/24")
    with pytest.raises(NotFound, match="there is no Node nobody"):
        await cluster.ipam("nobody").auto_assign(1, handle="h", attrs={})
    balancer = Ipam(cluster.store, "load-balancer", lambda: cluster.now, matches, type="virtual")
    with pytest.raises(ConfigError, match="LoadBalancer"):
        await balancer.auto_assign(1, handle="lb", attrs={}, use="LoadBalancer")
    await cluster.edit_pool(allowed_uses=("LoadBalancer",))
    (ip,) = (await balancer.auto_assign(1, handle="lb", attrs={}, use="LoadBalancer")).ips
    assert await cluster.blocks() == {ip.network: "virtual:load-balancer"}
    assert await balancer.host_blocks() == (ip.network,)


async def test_without_handle(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(8))
    ipam = cluster.ipam()
    (ip,) = (await ipam.auto_assign(**family.ask(1), handle=None, attrs={"type": "x"})).ips
    assert (await ipam.attributes_of(ip.ip)).secondary == {"type": "x"}
    assert (await ipam.release_ips([Release(ip.ip)])).error is None
    with pytest.raises(NotFound):
        await ipam.attributes_of(ip.ip)


# ----------------------------------------------------------------------------------------------------------- pools


async def test_disabled_pool_is_left_for_the_other(cluster: Cluster, family: Family) -> None:
    one, two = family.net(6), family.net(6, 64)
    await cluster.pool(one, "one")
    await cluster.pool(two, "two", disabled=True)
    assert nets(await cluster.got(family, 1)) == {one}
    await cluster.edit_pool("one", disabled=True)
    await cluster.edit_pool("two", disabled=False)
    assert nets(await cluster.got(family, 1)) == {two}


async def test_unknown_pool(cluster: Cluster) -> None:
    await cluster.pool("192.168.1.0/24")
    with pytest.raises(ConfigError, match=r"192\.169\.1\.0/24\) does not exist"):
        await cluster.ipam().auto_assign(1, handle="h", attrs={}, pools4=["192.169.1.0/24"])


async def test_pools_by_name_first_full(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(2), "one", block_size=family.host_bits - 2)
    await cluster.pool(family.net(6, 64), "two")
    asked = family.pools("one", str(family.net(6, 64)))
    share = await cluster.got(family, 6, **asked)
    assert len([ip for ip in share.ips if ip.ip in family.net(2)]) == 4
    assert len([ip for ip in share.ips if ip.ip in family.net(6, 64)]) == 2
    full = await cluster.got(family, 1, **family.pools("one"))
    assert full.ips == ()
    assert full.messages == (f"No IPs available in pools: [{family.net(2)}]",)


async def test_namespace_and_node_selectors(cluster: Cluster, family: Family) -> None:
    await cluster.node("racked", rack="1")
    await cluster.pool(family.net(6), "plain")
    selector = {"namespace_selector": 'team == "red"', "allowed_uses": ("Workload",)}
    await cluster.pool(family.net(6, 64), "red", node_selector='rack == "1"', **selector)
    await cluster.edit_pool("plain", node_selector="!has(rack)")
    assert nets(await cluster.got(family, 1, "racked", namespace_labels={"team": "red"})) == {family.net(6, 64)}
    assert nets(await cluster.got(family, 1, "node1", namespace_labels={"team": "red"})) == {family.net(6)}
    with pytest.raises(ConfigError, match="no configured Calico pools for node racked"):
        await cluster.got(family, 1, "racked")


# ---------------------------------------------------------------------------------- strictness, limits, borrowing


async def test_borrowing_and_strict_affinity(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(6))
    assert len((await cluster.got(family, 1, "node1")).ips) == 1
    assert len((await cluster.got(family, 1, "node2")).ips) == 1
    assert await cluster.blocks() == {family.net(6): "host:node1"}
    await cluster.config(strict_affinity=True)
    assert len((await cluster.got(family, 1, "node1")).ips) == 1
    share = await cluster.got(family, 1, "node2")
    assert (share.ips, share.error) == ((), None)
    assert share.messages == ("No more free affine blocks and strict affinity enabled",)


async def test_blocks_per_host(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(4), block_size=family.host_bits - 2)
    await cluster.config(strict_affinity=True, max_blocks_per_host=2)
    for i in range(8):
        assert len((await cluster.got(family, 1, handle=f"h{i}")).ips) == 1
    share = await cluster.got(family, 1)
    assert share.ips == ()
    assert isinstance(share.error, BlockLimit)
    with pytest.raises(Unavailable, match=r"Assigned 0 out of 1.*limit of 2 blocks reached for this node$"):
        await cluster.ipam().all_or_nothing(Assignment(share, Share(6, 0)))


async def test_block_limit_of_a_request_prevents_borrowing(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(8))
    share = await cluster.got(family, 256, max_blocks=1)
    assert len(share.ips) == 64
    assert isinstance(share.error, BlockLimit)
    assert str(share) == (
        f"Assigned 64 out of 256 requested IPv{family.version} addresses; "
        "Need to allocate an IPAM block but could not - limit of 1 blocks reached for this node"
    )


async def test_default_limit_is_twenty_blocks(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(8), block_size=family.host_bits - 2)
    assert len((await cluster.got(family, 100)).ips) == 80


async def test_more_than_the_pool(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(8))
    share = await cluster.got(family, 257)
    assert len({ip.ip for ip in share.ips}) == 256
    assert share.error is None
    assert share.messages == (f"No IPs available in pools: [{family.net(8)}]",)


async def test_own_addresses_first_then_borrowed(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(7))
    await cluster.got(family, 1, "node1", "a")
    await cluster.got(family, 1, "node2", "b")
    share = await cluster.got(family, 64, "node1", "many")
    (own,) = await cluster.ipam("node1").host_blocks()
    assert len([ip for ip in share.ips if ip.network == own]) == 63
    assert len(share.ips) == 64


async def test_auto_allocate_off(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(8))
    await cluster.config(strict_affinity=True, auto_allocate_blocks=False)
    share = await cluster.got(family, 1)
    assert isinstance(share.error, NoBlock)
    assert "failed to find or claim a block" in str(share.error)
    with pytest.raises(Unavailable, match="failed to find or claim a block"):
        await cluster.ipam().all_or_nothing(Assignment(share, Share(6, 0)))
    ours, _ = await cluster.ipam().claim_affinity(family.net(6))
    assert nets(await cluster.got(family, 1)) == set(ours)


async def test_reservations(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(6))
    await cluster.reserve(family.net(0, 1), family.net(2, 32), family.net(0, 17))
    share = await cluster.got(family, 64)
    taken = {ip.ip for ip in share.ips}
    assert len(taken) == 58
    assert not taken & {family.ip(i) for i in (1, 17, 32, 33, 34, 35)}
    await cluster.ipam().assign_ip(family.ip(33), handle="explicit", attrs={})


async def test_wholly_reserved_blocks_are_not_claimed(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(8))
    await cluster.reserve(family.net(7), family.net(5, 128), family.net(5, 160))
    share = await cluster.got(family, 256)
    assert nets(share) == {family.net(6, 192)}
    assert set(await cluster.blocks()) == {family.net(6, 192)}


# ------------------------------------------------------------------------------------------------ explicit address


async def test_explicit_address(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(8), assignment_mode="Manual")
    ipam = cluster.ipam()
    ip = family.ip(123)
    await ipam.assign_ip(ip, handle="h", attrs={"pod": "a"}, use="Workload")
    assert await ipam.host_blocks() == (family.net(6, 64),)
    assert (await ipam.attributes_of(ip)).secondary == {"pod": "a"}
    with pytest.raises(Exists, match="already assigned"):
        await ipam.assign_ip(ip, handle="h", attrs={})
    assert await cluster.handles() == {"h": {str(family.net(6, 64)): 1}}
    await ipam.release_by_handle("h")
    await ipam.assign_ip(ip, handle="h", attrs={})
    assert await ipam.ips_by_handle("h") == (ip,)


async def test_explicit_address_outside_pools_or_uses(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(6), "tunnels", allowed_uses=("Tunnel",))
    await cluster.pool(family.net(6, 64), "off", disabled=True)
    ipam = cluster.ipam()
    for ip in (parse_ip("1.1.1.1"), family.ip(65)):
        with pytest.raises(ConfigError, match="The provided IP address is not in a configured pool"):
            await ipam.assign_ip(ip, handle="h", attrs={})
    with pytest.raises(ConfigError, match='"Workload"'):
        await ipam.assign_ip(family.ip(1), handle="h", attrs={}, use="Workload")
    await ipam.assign_ip(family.ip(1), handle="h", attrs={})


async def test_explicit_address_in_anothers_block(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(6))
    await cluster.got(family, 1, "node1")
    await cluster.ipam("node2").assign_ip(family.ip(40), handle="x", attrs={})
    await cluster.config(strict_affinity=True)
    with pytest.raises(ForeignBlock, match="Block host affinity does not match"):
        await cluster.ipam("node2").assign_ip(family.ip(41), handle="x", attrs={})
    assert await cluster.handles() == {"h": {str(family.net(6)): 1}, "x": {str(family.net(6)): 1}}


# ----------------------------------------------------------------------------------------- many tasks of a process


async def test_tasks_of_several_nodes_at_once(cluster: Cluster, family: Family) -> None:
    await cluster.pool(family.net(8))
    nodes = [cluster.ipam(f"node{i % 3 + 1}") for i in range(6)]

    async def pod(i: int) -> list[IP]:
        got = await nodes[i % 6].auto_assign(**family.ask(2), handle=f"h{i}", attrs={})
        if i % 3 == 0:
            await nodes[i % 6].release_by_handle(f"h{i}")
            return []
        return [ip.ip for ip in got.ips]

    taken = [ip for ips in await asyncio.gather(*(pod(i) for i in range(120))) for ip in ips]
    assert len(taken) == len(set(taken)) == 160
