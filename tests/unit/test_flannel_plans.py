"""What flannel's stages plan, and what counts as a way without a gateway, as values: no kernel is asked here."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_nodes import subnet6_of, subnet_of
from tortie.base.addr import Net
from tortie.dataplane import link_steps
from tortie.dataplane.route_steps import plan
from tortie.flannel.stages.devices import want_of
from tortie.flannel.stages.routes import is_ours, placed, select
from tortie.flannel.state import Device, External, FlannelState, Ipip, Path, Tun, Vxlan
from tortie.flannel.ways import leads_straight
from tortie.kernel.routes import Route

OWN = IPv4Address("192.0.2.1")
ETH0 = External("eth0", 2, 1500, OWN)
MAC = "02:00:00:00:00:01"


@pytest.mark.parametrize(
    ("route", "straight"),
    [
        (Route(ip_network("192.0.2.0/24"), dev=2), True),
        (Route(ip_network("192.0.2.0/24"), dev=3), False),
        (Route(ip_network("0.0.0.0/0"), ip_address("192.0.2.254"), 2), False),
        (Route(ip_network("192.0.2.1/32"), dev=2, type="local"), False),
        (Route(ip_network("192.0.2.0/24"), type="unreachable"), False),
    ],
)
def test_ways_without_a_gateway(route: Route, straight: bool) -> None:
    assert leads_straight(route, ETH0) == straight


NETWORK = ip_network("10.5.0.0/16")
THERE: Net = subnet_of(3)


def state_of(*paths: Path, blackholes: tuple[Net, ...] = ()) -> FlannelState:
    return FlannelState((NETWORK, ip_network("fd00:5::/48")), paths=paths, blackholes=blackholes)


def test_routes_print_as_a_shell_would_have_them() -> None:
    state = state_of(Path(THERE, "eth0", ip_address("192.0.2.3")), blackholes=(subnet_of(1),))
    want = select(state, {"eth0": 2})
    gone = {(subnet_of(9), 0, 0): Route(subnet_of(9), ip_address("192.0.2.9"), 2, protocol=70)}
    assert str(plan(want, gone, {2: "eth0"})).splitlines() == [
        "ip route replace 10.5.3.0/24 via 192.0.2.3 dev eth0 proto 70",
        "ip route replace blackhole 10.5.1.0/24 proto 70 metric 2048",
        "ip route del 10.5.9.0/24 via 192.0.2.9 dev eth0 proto 70",
    ]


def test_a_route_out_of_a_link_that_is_not_up_waits() -> None:
    assert select(state_of(Path(THERE, "flannel.1", ip_address("10.5.3.0"), onlink=True)), {"eth0": 2}) == {}


VIA = ip_address("192.0.2.9")
SUBNET6 = subnet6_of(3)
STATE = state_of(
    Path(THERE, "eth0", ip_address("192.0.2.3")),
    Path(SUBNET6, "eth0", ip_address("2001:db8::3")),
    blackholes=(subnet_of(1),),
)


@pytest.mark.parametrize(
    ("route", "ours"),
    [
        (Route(subnet_of(9), VIA, 2, protocol=70), True),
        (Route(subnet_of(9), protocol=70, type="blackhole"), True),
        (Route(ip_network("10.6.0.0/24"), VIA, 2, protocol=70), False),  # another network of this node
        (Route(subnet_of(9), VIA, 2), False),  # a person's
        (Route(ip_network("172.16.0.0/12"), VIA, 7), True),  # out of our device
        (Route(THERE, VIA, 2, protocol=4), True),  # stolen
        (Route(THERE, VIA, 2, metric=100), False),  # harmless
        (Route(SUBNET6, ip_address("2001:db8::9"), 2, metric=10), True),  # better than ours, which has 1024
        (Route(SUBNET6, ip_address("2001:db8::9"), 2, metric=10, protocol=12), False),  # a routing daemon's
        (Route(subnet_of(1), type="blackhole"), True),  # an earlier flanneld's
        (Route(subnet_of(2), type="blackhole"), False),
    ],
)
def test_whose_a_route_is(route: Route, ours: bool) -> None:
    assert is_ours(route, STATE, {7}, select(STATE, {"eth0": 2})) == ours


def test_of_several_routes_in_one_place_only_ours_stays() -> None:
    want = select(STATE, {"eth0": 2})
    own = want[THERE, 0, 0]
    others = [Route(THERE, ip_address(f"192.0.2.{n}"), 2) for n in (8, 9)]
    steps = plan(want, placed([others[0], own, others[1]], want), {2: "eth0"})
    assert {op.have for op in steps if not op.makes} == set(others)
    assert own not in {op.want for op in steps}


class Table:
    """As the kernel has it: at a destination and metric there may be several, of which the first is followed."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.at: dict[tuple[Net, int], list[Route]] = {}
        for route in routes:
            self.at.setdefault((route.dst, route.metric), []).append(route)

    def replace(self, route: Route) -> None:
        there = self.at.setdefault((route.dst, route.metric), [])
        there[:1] = [route]
        while there.count(route) > 1:  # the kernel refuses a second one that is the same
            there.pop()

    def delete(self, route: Route) -> None:
        self.at[route.dst, route.metric].remove(route)

    def routes(self) -> list[Route]:
        return [route for there in self.at.values() for route in there]


routes = st.builds(
    Route,
    dst=st.sampled_from([subnet_of(n) for n in (1, 2, 3, 4)] + [subnet6_of(3)]),
    dev=st.sampled_from([2, 7]),
    protocol=st.sampled_from([3, 70]),
    metric=st.sampled_from([0, 5, 2048]),
    type=st.sampled_from(["unicast", "blackhole"]),
)


@given(st.lists(routes, unique=True, max_size=12))
def test_from_any_routes_there_is_a_way_to_those_that_are_wanted_and_then_nothing_to_do(there: list[Route]) -> None:
    want, table = select(STATE, {"eth0": 2}), Table(there)

    def steps() -> list[Any]:
        mine = [route for route in table.routes() if is_ours(route, STATE, {7}, want)]
        return list(plan(want, placed(mine, want), {}))

    others = {route for route in there if not is_ours(route, STATE, {7}, want)}
    for op in steps():
        if op.makes:
            table.replace(op.want)
        elif op.have in table.routes():
            table.delete(op.have)
    assert set(table.routes()) == set(want.values()) | others
    assert steps() == []


FLANNEL = Device("flannel.1", Vxlan(1, OWN, 2), 1450, MAC, (ip_interface("10.5.1.0/32"),))


def test_devices_print_as_a_shell_would_have_them() -> None:
    assert str(link_steps.plan(want_of(FLANNEL, "tortie flannel 10.5.0.0/16"), {})).splitlines() == [
        "ip link add flannel.1 type vxlan id 1 local 192.0.2.1 dstport 8472 dev if2 nolearning",
        "ip link set flannel.1 alias tortie flannel 10.5.0.0/16",
        "ip link set flannel.1 address 02:00:00:00:00:01",
        "ip link set flannel.1 mtu 1450",
        "sysctl -w net/ipv6/conf/flannel.1/accept_ra=0",
        "sysctl -w net/ipv4/conf/flannel.1/rp_filter=2",
        "ip address add 10.5.1.0/32 dev flannel.1",
        "ip link set flannel.1 up",
    ]
    assert str(link_steps.plan(want_of(Device("flannel.ipip", Ipip(OWN), 1480), "m"), {})).splitlines()[0] == (
        "ip link add flannel.ipip type ipip local 192.0.2.1"
    )


def test_a_state_that_is_there_needs_no_step() -> None:
    for device in (FLANNEL, Device("flannel.ipip", Ipip(OWN), 1480), Device("flannel0", Tun(), 1472)):
        want = want_of(device, "tortie flannel 10.5.0.0/16")
        assert not link_steps.plan(want, want)
