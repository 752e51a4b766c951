"""vxlan between nodes: packets of both IP versions, MAC addresses that stay, DirectRouting, peers that come and go, and
daemons that are killed at any step."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from flannel_nodes import (
    FlannelNode,
    Wire,
    all_know,
    answered,
    network_config,
    paths,
    pod_ip,
    stages_of,
    subnet6_of,
    subnet_of,
)
from namespaces import Ns
from overlay_kernel import device, forwarding, neighbours, pinging
from tortie.base.plan import Plan
from tortie.dataplane.converge import Stage, converge
from tortie.dataplane.link_steps import LinkWork
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.state import FlannelState

pytestmark = pytest.mark.root

BOTH = network_config("vxlan", v6=True)


@pytest.fixture
def wire(make_ns: Callable[..., Ns]) -> Wire:
    return Wire(make_ns)


def started(wire: Wire, *numbers: int, config: Any = BOTH) -> list[FlannelNode]:
    nodes = [wire.node(number, config) for number in numbers]
    for node in nodes:
        node.start()
    return nodes


def test_pods_reach_one_another_in_both_ip_versions(wire: Wire) -> None:
    nodes = started(wire, 1, 2, 3)
    all_know(nodes)
    for one in nodes:
        for other in nodes:
            if one is not other:
                assert one.reaches(other)
                assert one.reaches(other, 6)
    assert answered(nodes[0].pod, pod_ip(2), "-M", "do", "-s", str(1450 - 28))  # the largest packets that fit
    assert answered(nodes[0].pod, pod_ip(2, 6), "-M", "do", "-s", str(1430 - 48))


def test_hosts_reach_pods_with_the_first_address_of_their_subnet(wire: Wire) -> None:
    one, two = started(wire, 1, 2)
    all_know([one, two])
    (route,) = one.ns.json("route", "get", pod_ip(2))
    assert (route["dev"], route["prefsrc"]) == ("flannel.1", "10.5.1.0")
    assert answered(one.ns, pod_ip(2))
    assert answered(one.ns, pod_ip(2, 6))


def test_a_peer_appears_and_disappears(wire: Wire) -> None:
    one, two, three = started(wire, 1, 2, 3)
    one.know([two.lease])
    assert set(paths(one.ns)) == {"10.5.2.0/24", "fd00:5:0:2::/64"}
    mac = {n: json.loads(node.lease.attrs.data or "")["VtepMAC"] for n, node in ((2, two), (3, three))}
    one.know([two.lease, three.lease])
    assert paths(one.ns)["10.5.3.0/24"] == ("10.5.3.0", "flannel.1", "onlink")
    assert neighbours(one.ns, "flannel.1") == {("10.5.2.0", mac[2]), ("10.5.3.0", mac[3])}
    assert forwarding(one.ns, "flannel.1") == {(mac[2], "192.0.2.2"), (mac[3], "192.0.2.3")}
    one.know([three.lease])
    assert set(paths(one.ns)) == {"10.5.3.0/24", "fd00:5:0:3::/64"}
    assert neighbours(one.ns, "flannel.1") == {("10.5.3.0", mac[3])}
    assert forwarding(one.ns, "flannel.1") == {(mac[3], "192.0.2.3")}
    one.know([])
    assert paths(one.ns) == {}
    assert neighbours(one.ns, "flannel-v6.1") == forwarding(one.ns, "flannel-v6.1") == set()


def test_what_a_peer_publishes_anew_is_followed_without_losing_a_packet_to_others(wire: Wire) -> None:
    """Another public address and another MAC address of node 3; all the while node 2 is pinged."""
    one, two, three = started(wire, 1, 2, 3)
    all_know([one, two, three])
    assert one.reaches(two)
    moved = replace(
        three.lease.attrs, public_ip=IPv4Address("192.0.2.33"), data='{"VNI":1,"VtepMAC":"02:00:00:00:00:33"}'
    )
    with pinging(one.pod, pod_ip(2)) as found:
        one.know([two.lease, replace(three.lease, attrs=moved)])
        three_has = {pair for pair in forwarding(one.ns, "flannel.1") if pair[1] != "192.0.2.2"}
        assert three_has == {("02:00:00:00:00:33", "192.0.2.33")}
        one.know([two.lease, three.lease])
    assert found.lost == 0
    assert one.reaches(three)


# --- MAC addresses ------------------------------------------------------------------------------------------------


def mac_of(ns: Ns, name: str = "flannel.1") -> str:
    return str(device(ns, name)["mac"])


def test_the_mac_stays_while_anybody_remembers_it(wire: Wire) -> None:
    (node,) = started(wire, 1)
    node.know([])
    first, first6 = mac_of(node.ns), mac_of(node.ns, "flannel-v6.1")
    assert first != first6
    assert int(first[:2], 16) & 3 == 2  # locally administered, of one device
    assert json.loads(node.lease.attrs.data or "") == {"VNI": 1, "VtepMAC": first}
    node.start()  # nothing is remembered: the device tells
    node.know([])
    assert (mac_of(node.ns), mac_of(node.ns, "flannel-v6.1")) == (first, first6)
    node.remembered = node.lease.attrs
    node.ns.ip("link", "delete", "flannel.1")  # nor is the device there: as after a reboot
    node.start()
    node.know([])
    assert mac_of(node.ns) == first
    node.remembered = Attrs(data='{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}')
    node.start()
    node.know([])
    assert (mac_of(node.ns), mac_of(node.ns, "flannel-v6.1")) == ("02:00:00:00:00:77", first6)


def test_a_mac_that_somebody_changes_is_ours_again(wire: Wire) -> None:
    """As udev does with a MACAddressPolicy."""
    one, two = started(wire, 1, 2)
    all_know([one, two])
    before = mac_of(one.ns)
    one.ns.ip("link", "set", "flannel.1", "address", "02:00:00:00:00:99")
    one.settle()
    assert mac_of(one.ns) == before
    assert two.reaches(one)


def test_a_device_comes_into_being_with_its_mac(wire: Wire) -> None:
    """udev gives those an address of its own that have a random one (NET_ADDR_RANDOM is 1, NET_ADDR_SET 3)."""
    (node,) = started(wire, 1)
    node.know([])
    assert node.ns.run("cat", "/sys/class/net/flannel.1/addr_assign_type").strip() == "3"


# --- DirectRouting ------------------------------------------------------------------------------------------------


def behind_router(make_ns: Callable[..., Ns], wire: Wire, number: int, config: Any) -> FlannelNode:
    """A node on a link of its own, 198.51.100.0/24, with a router between it and the wire."""
    node = wire.node(number, config)
    router = make_ns("router")
    wire.ns.ip("link", "set", f"port{number}", "nomaster")
    wire.ns.ip("link", "set", f"port{number}", "netns", router.name, "name", "far")
    wire.ns.ip("link", "add", "torouter", "type", "veth", "peer", "name", "near", "netns", router.name)
    wire.ns.ip("link", "set", "torouter", "master", "wire", "up")
    for link, net in (("near", "192.0.2.254/24"), ("far", "198.51.100.254/24")):
        router.ip("link", "set", link, "up")
        router.ip("address", "add", net, "dev", link)
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    node.ns.ip("address", "flush", "dev", "eth0", "scope", "global")
    node.ns.ip("address", "add", f"198.51.100.{number}/24", "dev", "eth0")
    node.ns.ip("route", "add", "default", "via", "198.51.100.254")
    return node


def test_direct_routing_is_for_those_on_the_link(wire: Wire, make_ns: Callable[..., Ns]) -> None:
    config = network_config("vxlan", DirectRouting=True)
    nodes = [wire.node(1, config), wire.node(2, config), behind_router(make_ns, wire, 3, config)]
    for near in nodes[:2]:
        near.ns.ip("route", "add", "default", "via", "192.0.2.254")
    for node in nodes:
        node.start()
    all_know(nodes)
    one, two, three = nodes
    assert paths(one.ns) == {"10.5.2.0/24": ("192.0.2.2", "eth0"), "10.5.3.0/24": ("10.5.3.0", "flannel.1", "onlink")}
    assert {host for _, host in forwarding(one.ns, "flannel.1")} == {"198.51.100.3"}
    assert set(paths(three.ns).values()) == {("10.5.1.0", "flannel.1", "onlink"), ("10.5.2.0", "flannel.1", "onlink")}
    assert all(a.reaches(b) for a in nodes for b in nodes if a is not b)
    # Node 2 comes to be behind the router, too, as far as node 1 knows, and then on the link again.
    one.ns.ip("route", "add", "192.0.2.2/32", "via", "192.0.2.254")
    leases = [node.lease for node in nodes]
    with pinging(one.pod, pod_ip(2)) as found:
        one.know(leases)
        assert paths(one.ns)["10.5.2.0/24"] == ("10.5.2.0", "flannel.1", "onlink")
        assert one.reaches(two)
        one.ns.ip("route", "delete", "192.0.2.2/32")
        one.know(leases)
        assert paths(one.ns)["10.5.2.0/24"] == ("192.0.2.2", "eth0")
    assert found.lost == 0


def test_directions_may_differ(wire: Wire) -> None:
    """One node sends past the tunnel, the other through it: as while DirectRouting is being switched on."""
    one, two = wire.node(1, network_config("vxlan", v6=True, DirectRouting=True)), wire.node(2, BOTH)
    for node in (one, two):
        node.ns.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=2")
        node.start()
    all_know([one, two])
    assert paths(one.ns)["10.5.2.0/24"] == ("192.0.2.2", "eth0")
    assert paths(two.ns)["10.5.1.0/24"] == ("10.5.1.0", "flannel.1", "onlink")
    for version in (4, 6):
        assert one.reaches(two, version)
        assert two.reaches(one, version)


# --- repair, and being killed -------------------------------------------------------------------------------------


def test_a_deleted_device_comes_back_with_everything_on_it(wire: Wire) -> None:
    one, two = started(wire, 1, 2)
    all_know([one, two])
    before = device(one.ns, "flannel.1")
    one.ns.ip("link", "delete", "flannel.1")
    assert not one.ns.run("ip", "route", "show", "10.5.2.0/24")
    one.settle()
    assert device(one.ns, "flannel.1") == before
    assert one.reaches(two)
    one.ns.ip("link", "delete", "flannel-v6.1")
    one.settle()
    assert one.reaches(two, 6)


def cut(stage: Stage[FlannelState], state: FlannelState, steps: int) -> int:
    """A pass of one stage that ends after so many steps. How many there were."""
    work = stage.plan(state)
    ops = work.steps if isinstance(work, LinkWork) else work
    assert isinstance(ops, Plan)
    short: Plan[Any, Any] = Plan(ops.ops[:steps])
    part = LinkWork(short) if isinstance(work, LinkWork) else short
    if part:
        stage.make(part)
        stage.unmake(part)
    return len(ops)


def test_a_daemon_killed_between_any_two_steps_is_followed_by_one_that_gets_there(wire: Wire) -> None:
    one, two = started(wire, 1, 2)
    two.know([one.lease])
    state = one.want([two.lease])
    order, total = 0, 1
    while order < 3:
        steps = 0
        while steps <= total:
            for name in ("flannel.1", "flannel-v6.1"):
                one.ns.run("ip", "link", "delete", name, check=False)
            stages = stages_of(one.ns.path)
            assert converge(stages[:order], state) == []
            total = cut(stages[order], state, steps)
            one.stages, one.state = stages_of(one.ns.path), state
            one.settle()
            assert one.reaches(two)
            steps += 1
        order += 1
    assert one.reaches(two, 6)


def test_daemons_that_come_and_go_lose_no_packet(wire: Wire) -> None:
    one, two = started(wire, 1, 2)
    all_know([one, two])
    assert one.reaches(two)
    assert one.reaches(two, 6)
    with pinging(one.pod, pod_ip(2)) as found, pinging(two.pod, pod_ip(1, 6)) as found6:
        for node, other in ((one, two), (two, one)) * 3:
            node.start()
            node.know([other.lease])
    assert (found.lost, found6.lost) == (0, 0)
    assert found.sent > 20


# --- many ---------------------------------------------------------------------------------------------------------


def many(count: int) -> list[Lease]:
    """Leases of nodes 2 to `count` + 1 that are nowhere."""
    leases = []
    for number in range(2, count + 2):
        public, public6 = IPv4Address(0xC6336400 + number), IPv6Address((0x20010DB8 << 96) + number)
        data = [f'{{"VNI":1,"VtepMAC":"02:0{n}:00:00:{number >> 8:02x}:{number & 255:02x}"}}' for n in (4, 6)]
        leases.append(Lease(subnet_of(number), subnet6_of(number), Attrs(public, public6, "vxlan", *data)))
    return leases


def test_two_hundred_peers_of_both_ip_versions(wire: Wire) -> None:
    one, two = started(wire, 1, 2)
    two.know([one.lease])
    leases = [two.lease, *many(200)[1:]]
    one.know(leases)
    found = paths(one.ns)
    assert set(found) == {str(subnet) for lease in leases for subnet in (lease.subnet, lease.subnet6)}
    for name in ("flannel.1", "flannel-v6.1"):
        assert len(neighbours(one.ns, name)) == len(forwarding(one.ns, name)) == 200
    assert one.reaches(two)
    one.know(leases[:100])
    assert len(paths(one.ns)) == len(neighbours(one.ns, "flannel.1") | neighbours(one.ns, "flannel-v6.1")) == 200
    assert one.reaches(two, 6)
