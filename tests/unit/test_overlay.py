"""What one node builds to reach the pods of others: tunnels, their far ends, routes. The numbers are those of Calico's
situations: nodes a, b and c have the addresses 10.0.0.1 to .3, blocks 192.168.1.0/26 and so on."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterable
from typing import Any

import pytest

from tortie.base.addr import parse_ip, parse_net
from tortie.calc.cluster import Cluster
from tortie.calc.overlay import vtep_mac
from tortie.calc.state import ClusterRoute, Overlay, TunnelDevice, Vtep
from tortie.model.bgp import BGPConfiguration
from tortie.model.document import convert
from tortie.model.ipam import BlockAffinity, IPPool
from tortie.model.meta import Resource
from tortie.model.node import FelixConfiguration, Node
from tortie.model.workload import WorkloadEndpoint
from tortie.render import tunnels as guards

SEED = int(os.environ.get("TORTIE_SEED") or random.randrange(2**32))
"""Printed by what fails; TORTIE_SEED repeats a run."""
NUMBERS = {"a": 1, "b": 2, "c": 3}


def node(name: str, *, tunnels: str = "vxlan ipip vxlan6", cidr: str = "", **spec: Any) -> Node:
    """With its own addresses, and those of the tunnels that are named."""
    number = NUMBERS.get(name) or int(name[1:])
    host = f"{number // 250}.{number % 250}"
    bgp = {"ipv4Address": cidr or f"10.0.{host}/16", "ipv6Address": f"fd00::{number:x}/64"}
    if "ipip" in tunnels.split():
        bgp["ipv4IPIPTunnelAddr"] = f"192.168.{number % 250}.1"
    if "vxlan" in tunnels.split():
        spec["ipv4VXLANTunnelAddr"] = f"192.168.{number % 250}.0"
    if "vxlan6" in tunnels.split():
        spec["ipv6VXLANTunnelAddr"] = f"fd01:{number:x}::"
    return convert(Node, {"metadata": {"name": name}, "spec": {"bgp": bgp, **spec}})


def pool(cidr: str = "192.168.0.0/16", name: str = "pool", **spec: Any) -> IPPool:
    return convert(IPPool, {"metadata": {"name": name}, "spec": {"cidr": cidr, **spec}})


def block(cidr: str, owner: str, **spec: Any) -> BlockAffinity:
    name = f"{owner}-{cidr}".translate(str.maketrans(".:/", "---"))
    spec = {"cidr": cidr, "node": owner, "state": "confirmed", **spec}
    return convert(BlockAffinity, {"metadata": {"name": name}, "spec": spec})


def pod(name: str, owner: str, *ips: str) -> WorkloadEndpoint:
    spec = {"node": owner, "pod": name, "interfaceName": f"cali{name}", "ipNetworks": list(ips)}
    return convert(WorkloadEndpoint, {"metadata": {"name": name, "namespace": "red"}, "spec": spec})


def felix(name: str = "default", **spec: Any) -> FelixConfiguration:
    return convert(FelixConfiguration, {"metadata": {"name": name}, "spec": spec})


def bgp(**spec: Any) -> BGPConfiguration:
    return convert(BGPConfiguration, {"metadata": {"name": "default"}, "spec": spec})


BLOCKS = (block("192.168.1.0/26", "a"), block("192.168.2.0/26", "b"), block("192.168.3.0/26", "c"))
NODES = (node("a"), node("b"), node("c"))


def seen(*resources: Resource, by: str = "a", bird: bool = True) -> Cluster:
    cluster = Cluster(by, bird=bird)
    for one in resources:
        cluster.put(one)
    assert cluster.problems == {}
    return cluster


def overlay(*resources: Resource, by: str = "a", bird: bool = True) -> Overlay:
    return seen(*resources, by=by, bird=bird).state().overlay


def words(routes: Iterable[ClusterRoute]) -> dict[str, str]:
    """By destination, as `ip` would have the rest; the link of the node's own address is "eth0"."""
    found = {}
    for one in routes:
        way = f"via {one.via} dev {one.device or 'eth0'}" if one.via else f"dev {one.device}"
        found[str(one.dst)] = ("blackhole" if one.blackhole else way) + (f" metric {one.metric}" if one.metric else "")
    return found


def ways(*resources: Resource, by: str = "a", bird: bool = True) -> dict[str, str]:
    return words(overlay(*resources, by=by, bird=bird).routes)


def awaited(*resources: Resource, bird: bool = True) -> set[str]:
    return set(map(str, overlay(*resources, bird=bird).awaited))


# --- routes -------------------------------------------------------------------------------------------------------


def test_vxlan_leads_to_the_tunnel_address() -> None:
    assert ways(pool(vxlanMode="Always"), *NODES, *BLOCKS) == {
        "192.168.1.0/26": "blackhole",
        "192.168.2.0/26": "via 192.168.2.0 dev vxlan.calico",
        "192.168.3.0/26": "via 192.168.3.0 dev vxlan.calico",
    }


def test_9_ipip_leads_to_the_node_and_bird_leaves_the_pool_alone() -> None:
    state = seen(pool(ipipMode="Always"), *NODES, *BLOCKS).state()
    assert words(state.overlay.routes) == {
        "192.168.1.0/26": "blackhole",
        "192.168.2.0/26": "via 10.0.0.2 dev tunl0",
        "192.168.3.0/26": "via 10.0.0.3 dev tunl0",
    }
    assert not any(map(state.programming.by_bird, state.pools))


def test_10_ipip_of_birds_is_not_the_agents() -> None:
    who = (bgp(programClusterRoutes="Enabled"), felix(programClusterRoutes="Disabled"))
    state = seen(pool(ipipMode="Always"), *NODES, *BLOCKS, *who).state()
    assert state.overlay.routes == ()
    assert state.overlay.awaited == {parse_net("192.168.2.0/26"), parse_net("192.168.3.0/26")}
    assert [device.name for device in state.overlay.devices] == ["tunl0"]
    assert all(map(state.programming.by_bird, state.pools))


@pytest.mark.parametrize(
    ("mode", "far"), [("ipipMode", "10.9.0.3 dev tunl0"), ("vxlanMode", "192.168.3.0 dev vxlan.calico")]
)
def test_11_cross_subnet_tunnels_only_to_the_other_subnet(mode: str, far: str) -> None:
    nodes = (node("a", cidr="10.0.0.1/24"), node("b", cidr="10.0.0.2/24"), node("c", cidr="10.9.0.3/24"))
    assert ways(pool(**{mode: "CrossSubnet"}), *nodes, *BLOCKS) == {
        "192.168.1.0/26": "blackhole",
        "192.168.2.0/26": "via 10.0.0.2 dev eth0",
        "192.168.3.0/26": f"via {far}",
    }


def test_cross_subnet_goes_by_the_prefix_length_of_the_own_address() -> None:
    """The other's says nothing about whom this node reaches."""
    nodes = (node("a", cidr="10.0.0.1"), node("b", cidr="10.0.0.2/24"))
    assert ways(pool(vxlanMode="CrossSubnet"), *nodes, *BLOCKS[:2])["192.168.2.0/26"].endswith("vxlan.calico")
    assert ways(pool(vxlanMode="CrossSubnet"), *nodes, *BLOCKS[:2], by="b")["192.168.1.0/26"].endswith("eth0")


def test_12_who_writes_unencapsulated_routes() -> None:
    here = (pool(), *NODES[:2], *BLOCKS[:2])
    assert ways(*here) == {}
    assert awaited(*here) == {"192.168.2.0/26"}
    both = (felix(programClusterRoutes="Enabled"),)  # BIRD's, of metric 1024, are used
    assert ways(*here, *both) == {"192.168.1.0/26": "blackhole", "192.168.2.0/26": "via 10.0.0.2 dev eth0 metric 1025"}
    nobody = (bgp(programClusterRoutes="Disabled"), felix(programClusterRoutes="Disabled"))
    assert ways(*here, *nobody) == {"192.168.1.0/26": "blackhole"}
    assert awaited(*here, *nobody) == set()


def test_unencapsulated_routes_of_the_agents_end_at_the_subnet() -> None:
    """Nobody on the way further would know the pods."""
    nodes = (node("a", cidr="10.0.0.1/24"), node("b", cidr="10.0.0.2/24"), node("c", cidr="10.9.0.3/24"))
    found = ways(pool(), *nodes, *BLOCKS, felix(programClusterRoutes="Enabled"), bird=False)
    assert found == {"192.168.1.0/26": "blackhole", "192.168.2.0/26": "via 10.0.0.2 dev eth0 metric 1025"}


def test_without_bird_the_agent_makes_all_blackholes_and_waits_for_nobody() -> None:
    other = block("10.77.0.0/26", "a")
    assert ways(pool(), *NODES, *BLOCKS, other, bird=False) == {
        "192.168.1.0/26": "blackhole",
        "10.77.0.0/26": "blackhole",
    }
    assert awaited(pool(), *NODES, *BLOCKS, bird=False) == set()


def test_blocks_of_one_address_are_no_blackholes() -> None:
    assert ways(pool(vxlanMode="Always"), node("a"), block("192.168.1.7/32", "a")) == {}


def test_ipv6_has_a_way_to_the_next_hop_first() -> None:
    here = (pool("fd01::/16", vxlanMode="Always"), *NODES[:2], block("fd01:1::/122", "a"), block("fd01:2::/122", "b"))
    assert list(ways(*here).items()) == [
        ("fd01:2::/128", "dev vxlan-v6.calico metric 1"),
        ("fd01:1::/122", "blackhole metric 1"),
        ("fd01:2::/122", "via fd01:2:: dev vxlan-v6.calico metric 1"),
    ]


def test_only_confirmed_affinities_of_hosts_count() -> None:
    wrong = (
        block("192.168.4.0/26", "b", state="pending"),
        block("192.168.5.0/26", "b", state="pendingDeletion"),
        block("192.168.6.0/26", "b", type="virtual"),
        block("192.168.7.0/26", "b", deleted=True),
        block("192.168.8.0/26", "a", state="pending"),
    )
    nodes = (node("a", tunnels="vxlan"), node("b", tunnels="vxlan"))
    assert ways(pool(vxlanMode="Always"), *nodes, *wrong, block("192.168.9.0/26", "b", state="")).keys() == {
        "192.168.2.0/32",  # that of b's tunnel is in no block of b's
        "192.168.9.0/26",
    }


def test_pools_for_load_balancers_have_no_routes() -> None:
    assert ways(pool(allowedUses=["LoadBalancer"]), *NODES, *BLOCKS, bird=False) == {}


def test_a_disabled_pool_still_has_pods() -> None:
    assert "192.168.2.0/26" in ways(pool(vxlanMode="Always", disabled=True), *NODES, *BLOCKS)


# --- addresses outside of their node's blocks ---------------------------------------------------------------------


def test_a_borrowed_address_has_a_route_of_its_own() -> None:
    here = (pool(vxlanMode="Always"), *NODES, *BLOCKS)
    borrowed = (pod("p1", "b", "192.168.3.7/32"), pod("p2", "b", "192.168.1.9/32"), pod("p3", "b", "192.168.2.5/32"))
    found = ways(*here, *borrowed)
    assert found["192.168.3.7/32"] == "via 192.168.2.0 dev vxlan.calico"
    assert found["192.168.1.9/32"] == "via 192.168.2.0 dev vxlan.calico"  # out of a block of our own
    assert "192.168.2.5/32" not in found


def test_our_own_pod_in_somebody_elses_block_is_no_business_of_the_overlays() -> None:
    here = (pool(vxlanMode="Always"), *NODES, *BLOCKS, pod("p1", "a", "192.168.2.9/32"))
    assert "192.168.2.9/32" not in ways(*here)
    moving = pod("p0", "b", "192.168.2.9/32")  # it is there and here: here counts
    assert "192.168.2.9/32" not in ways(*here, moving)


def test_a_block_that_changes_hands_takes_its_addresses_along() -> None:
    nodes = [node(name, tunnels="vxlan") for name in "abc"]
    cluster = seen(pool(vxlanMode="Always"), *nodes, *BLOCKS, pod("p1", "b", "192.168.3.7/32"))
    assert "192.168.3.7/32" in words(cluster.state().overlay.routes)
    cluster.drop(BlockAffinity, "", BLOCKS[2].name)
    cluster.put(block("192.168.3.0/26", "b"))
    found = words(cluster.state().overlay.routes)
    assert found["192.168.3.0/26"] == "via 192.168.2.0 dev vxlan.calico"
    assert "192.168.3.7/32" not in found
    cluster.drop(WorkloadEndpoint, "red", "p1")
    cluster.drop(BlockAffinity, "", block("192.168.3.0/26", "b").name)
    assert words(cluster.state().overlay.routes).keys() == {"192.168.1.0/26", "192.168.2.0/26", "192.168.3.0/32"}


# --- devices and far ends -----------------------------------------------------------------------------------------


def test_devices_have_the_nodes_addresses_and_the_settings() -> None:
    pools = (
        pool(vxlanMode="Always"),
        pool("fd01::/16", "six", vxlanMode="CrossSubnet"),
        pool("10.1.0.0/16", "ipip", ipipMode="Always"),
    )
    settings = felix(vxlanVNI=7, vxlanPort=8472, vxlanMTU=1400, vxlanMTUV6=1380, ipipMTU=1390)
    assert overlay(*pools, node("a"), settings).devices == (
        TunnelDevice(
            "vxlan.calico", "vxlan", parse_ip("10.0.0.1"), parse_ip("192.168.1.0"), vtep_mac("a", 4), 7, 8472, 1400
        ),
        TunnelDevice(
            "vxlan-v6.calico", "vxlan", parse_ip("fd00::1"), parse_ip("fd01:1::"), vtep_mac("a", 6), 7, 8472, 1380
        ),
        TunnelDevice("tunl0", "ipip", parse_ip("10.0.0.1"), parse_ip("192.168.1.1"), mtu=1390),
    )


def test_a_device_is_there_before_it_has_an_address() -> None:
    """Others send to it once they have heard of the address."""
    (device,) = overlay(pool(vxlanMode="Always"), node("a", tunnels="")).devices
    assert (device.address, device.vni, device.port, device.mtu) == (None, 4096, 4789, 0)


def test_mac_addresses_follow_from_names_unless_the_node_says_otherwise() -> None:
    # printf %s node1 | sha1sum: 1e1ea46e5d..., and of node1-v6: what the kernel of another node must agree with
    assert vtep_mac("node1", 4) == "66:" + _sha1("node1")
    assert vtep_mac("node1", 6) == "66:" + _sha1("node1-v6")
    own = node("b", vxlanTunnelMACAddr="02:00:00:00:00:0B")
    (far,) = overlay(pool(vxlanMode="Always"), node("a"), own).vteps
    assert far == Vtep("vxlan.calico", parse_ip("192.168.2.0"), "02:00:00:00:00:0b", parse_ip("10.0.0.2"))


def _sha1(text: str) -> str:
    digest = subprocess.run(["sha1sum"], input=text, capture_output=True, text=True, check=True).stdout
    return ":".join(digest[i : i + 2] for i in range(0, 10, 2))


def test_no_route_before_the_far_end_has_told_its_tunnel_address() -> None:
    for mode, tunnels in (("vxlanMode", "ipip"), ("ipipMode", "vxlan")):
        here = (pool(**{mode: "Always"}), node("a"), node("b", tunnels=tunnels), *BLOCKS[:2])
        assert ways(*here) == {"192.168.1.0/26": "blackhole"}
        assert awaited(*here) == {"192.168.2.0/26"}
    assert overlay(pool(vxlanMode="Always"), node("a"), node("b", tunnels="ipip")).vteps == ()


@pytest.mark.parametrize("field", ["vxlanEnabled", "ipipEnabled"])
def test_settings_forbid_and_demand_tunnels(field: str) -> None:
    mode, device = {"vxlanEnabled": ("vxlanMode", "vxlan.calico"), "ipipEnabled": ("ipipMode", "tunl0")}[field]
    off = overlay(pool(**{mode: "Always"}), *NODES, *BLOCKS, felix(**{field: False}))
    assert (off.devices, off.vteps, words(off.routes), off.awaited) == (
        (),
        (),
        {"192.168.1.0/26": "blackhole"},
        frozenset(),
    )
    assert [one.name for one in overlay(pool(), *NODES, *BLOCKS, felix(**{field: True})).devices] == [device]


def test_strangers_are_kept_out_of_every_device_that_may_be_there() -> None:
    """Also of one that no pool has asked for, and of one that is about to go."""
    demanded = seen(pool(), *NODES, *BLOCKS, felix(vxlanEnabled=True)).state()
    assert guards.tunnels(demanded) == (("VXLAN", 4),)
    cluster = seen(pool(vxlanMode="Always"), pool("fd01::/16", "six", vxlanMode="Always"), *NODES, *BLOCKS)
    assert guards.tunnels(cluster.state()) == (("VXLAN", 4), ("VXLAN", 6))
    cluster.put(pool())
    cluster.drop(IPPool, "", "six")
    state = cluster.state()
    assert state.overlay.devices == ()
    assert guards.tunnels(state) == (("VXLAN", 4), ("VXLAN", 6))
    assert guards.tunnels(seen(pool(), *NODES, *BLOCKS).state()) == ()


# --- changes ------------------------------------------------------------------------------------------------------


def test_nothing_that_did_not_change_is_made_anew() -> None:
    cluster = seen(pool(vxlanMode="Always"), *NODES, *BLOCKS)
    first = cluster.state().overlay
    cluster.put(pod("p1", "b", "192.168.2.5/32"))
    assert cluster.state().overlay is first
    cluster.put(block("192.168.2.64/26", "b"))
    second = cluster.state().overlay
    assert second.vteps is first.vteps
    assert {route.dst: id(route) for route in first.routes}.items() <= {
        route.dst: id(route) for route in second.routes
    }.items()


def test_bird_keeps_a_pool_until_the_agent_has_all_its_routes() -> None:
    cluster = seen(pool(), *(node(name, tunnels="") for name in "abc"), *BLOCKS)
    assert cluster.state().programming.kept == frozenset()
    cluster.put(pool(vxlanMode="Always"))
    state = cluster.state()
    assert state.programming.kept == {"pool"}
    assert all(map(state.programming.by_bird, state.pools))
    cluster.put(node("b"))
    assert cluster.state().programming.kept == {"pool"}
    cluster.put(node("c"))
    assert cluster.state().programming.kept == frozenset()
    cluster.put(node("b", tunnels=""))  # later troubles are none of the change
    assert cluster.state().programming.kept == frozenset()


def test_routes_of_a_pool_that_becomes_birds_are_awaited() -> None:
    cluster = seen(pool(vxlanMode="Always"), *NODES, *BLOCKS)
    cluster.state()
    cluster.put(pool())
    state = cluster.state()
    assert (state.overlay.routes, state.overlay.devices) == ((), ())
    assert set(map(str, state.overlay.awaited)) == {"192.168.2.0/26", "192.168.3.0/26"}
    cluster.drop(IPPool, "", "pool")
    assert cluster.state().overlay.awaited == frozenset()


def _world(rng: random.Random) -> list[Resource]:
    modes = [
        {},
        {"vxlanMode": "Always"},
        {"vxlanMode": "CrossSubnet"},
        {"ipipMode": "Always"},
        {"ipipMode": "CrossSubnet"},
    ]
    names = ["a", *(f"n{number}" for number in range(4, 9))]
    world: list[Resource] = [pool(**rng.choice(modes)), pool("fd01::/16", "six", **rng.choice(modes[:3]))]
    for name in names:
        cidr = rng.choice(["", f"10.{rng.randint(0, 1)}.0.{rng.randint(1, 200)}/24"])
        world.append(node(name, tunnels=rng.choice(["", "vxlan", "vxlan ipip vxlan6"]), cidr=cidr))
    for number in range(1, 12):
        cidr = rng.choice([f"192.168.{number}.0/26", f"192.168.{number}.0/28", f"fd01:{number:x}::/122"])
        world.append(block(cidr, rng.choice(names), state=rng.choice(["confirmed", "pending", ""])))
    for number in range(30):
        ips = [
            f"192.168.{rng.randint(1, 12)}.{rng.randint(0, 20)}/32",
            f"fd01:{rng.randint(1, 12):x}::{rng.randint(0, 9)}/128",
        ]
        world.append(pod(f"p{number}", rng.choice(names), *ips))
    settings = (
        {"programClusterRoutes": rng.choice(["Enabled", "Disabled", "EnabledIPIPOnly"])} if rng.random() < 0.5 else {}
    )
    return [*world, felix(**settings)]


def _whole(cluster: Cluster) -> tuple[object, ...]:
    found = cluster.state().overlay
    return found.devices, frozenset(found.vteps), frozenset(found.routes), found.awaited


@pytest.mark.parametrize("number", range(40))
def test_what_comes_out_does_not_depend_on_what_was_there_before(number: int) -> None:
    rng = random.Random(SEED + number)
    before, now = _world(rng), _world(rng)
    incremental = Cluster("a", bird=rng.random() < 0.7)
    fresh = Cluster("a", bird=incremental._bird)
    for one in rng.sample(before, len(before)):
        incremental.put(one)
        if rng.random() < 0.2:
            incremental.state()
    new = {(type(one), one.namespace, one.name) for one in now}
    for one in before:
        if (type(one), one.namespace, one.name) not in new:
            incremental.drop(type(one), one.namespace, one.name)
    for one in rng.sample(now, len(now)):
        incremental.put(one)
        if rng.random() < 0.2:
            incremental.state()
    for one in now:
        fresh.put(one)
    assert _whole(incremental) == _whole(fresh), f"TORTIE_SEED={SEED + number}"


def test_a_node_that_leaves_takes_everything_along() -> None:
    cluster = seen(pool(vxlanMode="Always"), *NODES, *BLOCKS)
    cluster.state()
    cluster.drop(Node, "", "b")
    left = cluster.state().overlay
    assert words(left.routes).keys() == {"192.168.1.0/26", "192.168.3.0/26"}
    assert [vtep.host for vtep in left.vteps] == [parse_ip("10.0.0.3")]


def test_a_tunnel_address_that_cannot_be_read_is_none() -> None:
    strange = node("b", tunnels="", ipv4VXLANTunnelAddr="192.168.2")
    old = node("c", tunnels="", ipv4VXLANTunnelAddr="192.168.3.0/32")
    assert ways(pool(vxlanMode="Always"), node("a"), strange, old, *BLOCKS) == {
        "192.168.1.0/26": "blackhole",
        "192.168.3.0/26": "via 192.168.3.0 dev vxlan.calico",
    }
