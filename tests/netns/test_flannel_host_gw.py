"""host-gw between nodes: packets of both IP versions, routes that are repaired, nodes that are no neighbours, and a
change from vxlan without losing a packet."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flannel_nodes import FlannelNode, Wire, all_know, network_config, paths, pod_ip, protocols
from namespaces import Ns
from overlay_kernel import device, pinging

pytestmark = pytest.mark.root

BOTH = network_config("host-gw", v6=True)


@pytest.fixture
def nodes(make_ns: Callable[..., Ns]) -> list[FlannelNode]:
    """Three on one link that know one another."""
    wire = Wire(make_ns)
    made = [wire.node(number, BOTH) for number in (1, 2, 3)]
    for node in made:
        node.start()
    all_know(made)
    return made


def test_pods_reach_one_another_in_both_ip_versions(nodes: list[FlannelNode]) -> None:
    one = nodes[0]
    assert paths(one.ns) == {
        "10.5.2.0/24": ("192.0.2.2", "eth0"),
        "10.5.3.0/24": ("192.0.2.3", "eth0"),
        "fd00:5:0:2::/64": ("2001:db8::2", "eth0"),
        "fd00:5:0:3::/64": ("2001:db8::3", "eth0"),
    }
    assert set(protocols(one.ns).values()) == {"70"}
    assert all(a.reaches(b, version) for a in nodes for b in nodes if a is not b for version in (4, 6))


@pytest.mark.parametrize(
    "damage",
    [
        "ip route del 10.5.2.0/24",
        "ip route replace 10.5.2.0/24 via 192.0.2.3 dev eth0",
        "ip route replace blackhole 10.5.2.0/24",
        "ip -6 route del fd00:5:0:2::/64",
        "ip -6 route replace fd00:5:0:2::/64 via 2001:db8::3 dev eth0",
        "ip link set eth0 down; ip link set eth0 up; ip address replace 2001:db8::1/64 dev eth0 nodad",
    ],
)
def test_a_route_that_is_deleted_or_stolen_is_ours_again(nodes: list[FlannelNode], damage: str) -> None:
    one, two, _ = nodes
    before = paths(one.ns)
    one.ns.run("sh", "-c", f"set -e; {damage}")
    one.settle()
    assert paths(one.ns) == before
    assert one.reaches(two)
    assert one.reaches(two, 6)


def test_a_node_that_goes_takes_its_routes_along(nodes: list[FlannelNode]) -> None:
    one, two, _ = nodes
    one.know([two.lease])
    assert set(paths(one.ns)) == {"10.5.2.0/24", "fd00:5:0:2::/64"}


def test_a_node_behind_a_gateway_is_told_and_costs_the_others_nothing(nodes: list[FlannelNode]) -> None:
    one, two, three = nodes
    one.ns.ip("route", "add", "192.0.2.3/32", "via", "192.0.2.2")
    one.know([two.lease, three.lease])
    assert set(paths(one.ns)) == {"10.5.2.0/24", "fd00:5:0:2::/64", "fd00:5:0:3::/64"}
    assert one.state.problems == (
        "node node3: 192.0.2.3 is not reached out of eth0 without a gateway, so that host-gw has no way to "
        "10.5.3.0/24: use vxlan, which may have DirectRouting for the nodes that are",
    )
    one.ns.ip("route", "del", "192.0.2.3/32")
    one.know([two.lease, three.lease])
    assert one.state.problems == ()
    assert one.reaches(three)


def test_from_vxlan_to_host_gw_and_back(make_ns: Callable[..., Ns]) -> None:
    """What the other backend had goes when its successor is there."""
    wire = Wire(make_ns)
    vxlan = network_config("vxlan", v6=True)
    one, two = (wire.node(number, vxlan) for number in (1, 2))
    for config in (vxlan, BOTH, vxlan):
        for node in (one, two):
            node.config = config
            node.start()
        all_know([one, two])
        assert one.reaches(two)
        assert one.reaches(two, 6)
        assert bool(device(one.ns, "flannel.1")) == bool(device(one.ns, "flannel-v6.1")) == (config is vxlan)
        assert len(paths(one.ns)) == 2


def test_daemons_that_come_and_go_lose_no_packet(nodes: list[FlannelNode]) -> None:
    one, two, three = nodes
    with pinging(one.pod, pod_ip(2)) as found, pinging(two.pod, pod_ip(1, 6)) as found6:
        for _ in range(3):
            one.start()
            one.know([two.lease, three.lease])
    assert (found.lost, found6.lost) == (0, 0)
    assert found.sent > 20


def test_what_an_earlier_flanneld_left_is_taken_over_without_losing_a_packet(nodes: list[FlannelNode]) -> None:
    """Its routes have no mark (`proto boot`)."""
    one, two, three = nodes
    one.know([])
    for version, via in ((4, "192.0.2.2"), (6, "2001:db8::2")):
        subnet = two.lease.subnet if version == 4 else two.lease.subnet6
        one.ns.ip(f"-{version}", "route", "add", str(subnet), "via", via, "dev", "eth0")
    assert one.reaches(two)
    assert one.reaches(two, 6)
    with pinging(one.pod, pod_ip(2)) as found, pinging(one.pod, pod_ip(2, 6)) as found6:
        one.start()
        one.know([two.lease, three.lease])
    assert (found.lost, found6.lost) == (0, 0)
    assert set(protocols(one.ns).values()) == {"70"}
