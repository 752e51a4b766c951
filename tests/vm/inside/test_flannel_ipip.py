"""flannel's ipip, which many development kernels lack: nodes on a stock kernel, real packets, repair, and what somebody
else has under the device's name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flannel_nodes import FlannelNode, Wire, all_know, answered, network_config, paths, pod_ip, stages_of
from namespaces import Ns, namespaces
from overlay_kernel import pinging
from tortie.dataplane.converge import converge

pytestmark = pytest.mark.root

GUEST_PACE = 0.05
"""Seconds from one ping to the next: everything takes ten times as long here as on a machine that is not emulated."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[FlannelNode]]:
    """Two of them; to make new ones takes longer here than most tests."""
    for make_ns in namespaces():
        wire = Wire(make_ns)
        yield [wire.node(number, network_config("ipip")) for number in (1, 2)]


def started(nodes: list[FlannelNode], kind: str = "ipip", **options: bool) -> list[FlannelNode]:
    """They know each other."""
    for node in nodes:
        node.config = network_config(kind, **options)
        node.start()
    all_know(nodes)
    return nodes


def tunnel(ns: Ns, name: str = "flannel.ipip") -> dict[str, object]:
    (link,) = (one for one in ns.json("address", "show") if one["ifname"] == name)
    ends = {key: link["linkinfo"]["info_data"].get(key) for key in ("local", "remote")}
    addresses = [f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"] if one["family"] == "inet"]
    return {
        "mtu": link["mtu"],
        "up": "UP" in link["flags"],
        "addresses": addresses,
        "alias": link.get("ifalias"),
        **ends,
    }


THERE = {
    "mtu": 1480,
    "up": True,
    "addresses": ["10.5.1.0/32"],
    "alias": "tortie flannel 10.5.0.0/16",
    "local": "192.0.2.1",
    "remote": "any",
}


def test_pods_reach_one_another(nodes: list[FlannelNode]) -> None:
    one, two = started(nodes)
    assert tunnel(one.ns) == THERE
    assert paths(one.ns) == {"10.5.2.0/24": ("192.0.2.2", "flannel.ipip", "onlink")}
    assert one.reaches(two)
    assert answered(one.pod, pod_ip(2), "-M", "do", "-s", str(1480 - 28))  # the largest packet that fits
    (own,) = (link for link in one.ns.json("link", "show") if link["ifname"] == "tunl0")  # the module's own
    assert "UP" not in own["flags"]
    assert "ifalias" not in own
    with pinging(one.pod, pod_ip(2), GUEST_PACE) as found:
        for node, other in ((one, two), (two, one)):
            node.start()
            node.know([other.lease])
    assert found.lost == 0
    one.know([])
    assert paths(one.ns) == {}


def test_direct_routing_is_for_those_on_the_link(nodes: list[FlannelNode]) -> None:
    one, two = started(nodes, DirectRouting=True)
    assert paths(one.ns) == {"10.5.2.0/24": ("192.0.2.2", "eth0")}
    assert one.reaches(two)
    one.ns.ip("route", "add", "192.0.2.2/32", "via", "192.0.2.9")
    one.know([two.lease])
    assert paths(one.ns) == {"10.5.2.0/24": ("192.0.2.2", "flannel.ipip", "onlink")}
    one.ns.ip("route", "delete", "192.0.2.2/32")


DAMAGES = (
    "ip link delete flannel.ipip",
    "ip link set flannel.ipip mtu 1300",
    "ip link delete flannel.ipip; ip link add flannel.ipip type ipip local 192.0.2.9 remote any",
    "ip link delete flannel.ipip; ip link add flannel.ipip type ipip local 192.0.2.1 remote 192.0.2.2",
)


def test_whatever_is_broken_is_mended(nodes: list[FlannelNode]) -> None:
    one, two = started(nodes)
    before = paths(one.ns)
    for damage in DAMAGES:
        one.ns.run("sh", "-c", f"set -e; {damage}")
        one.settle()
        assert (tunnel(one.ns), paths(one.ns)) == (THERE, before), damage
    assert one.reaches(two)


def test_what_an_earlier_flanneld_left_is_taken_over(nodes: list[FlannelNode]) -> None:
    one, two = nodes
    without_device(one)
    left = (
        "ip link add flannel.ipip type ipip local 192.0.2.1 remote any",
        "ip address add 10.5.1.0/32 dev flannel.ipip",
        "ip link set flannel.ipip mtu 1400 up",
        "ip route add 10.5.2.0/24 via 192.0.2.2 dev flannel.ipip onlink",
        "ip route add 10.5.9.0/24 via 192.0.2.9 dev flannel.ipip onlink",
    )
    one.ns.run("sh", "-c", "set -e; " + "; ".join(left))
    (index,) = (link["ifindex"] for link in one.ns.json("link", "show") if link["ifname"] == "flannel.ipip")
    for node in nodes:
        node.config = network_config("ipip")
        node.start()
    two.know([one.lease])
    assert one.reaches(two)
    with pinging(one.pod, pod_ip(2), GUEST_PACE) as found:
        one.know([two.lease])
    assert found.lost == 0
    assert tunnel(one.ns) == THERE
    assert set(paths(one.ns)) == {"10.5.2.0/24"}
    assert [index] == [link["ifindex"] for link in one.ns.json("link", "show") if link["ifname"] == "flannel.ipip"]


def test_from_ipip_to_host_gw_and_back(nodes: list[FlannelNode]) -> None:
    one, two = started(nodes)
    for kind in ("host-gw", "ipip"):
        started(nodes, kind)
        assert one.reaches(two)
        names = {link["ifname"] for link in one.ns.json("link", "show")}
        assert ("flannel.ipip" in names) == (kind == "ipip")


def test_what_is_somebody_else_s_is_a_matter_for_a_person(nodes: list[FlannelNode]) -> None:
    one = nodes[0]
    one.config = network_config("ipip")
    one.start()
    without_device(one)
    one.ns.ip("link", "add", "flannel.ipip", "type", "dummy")
    assert refused(one) == (
        "devices: flannel.ipip is a link of type dummy, where one of type ipip is to be: "
        "remove it (ip link delete flannel.ipip), or give it another name"
    )
    one.ns.ip("link", "delete", "flannel.ipip")
    one.ns.ip("link", "add", "other", "type", "ipip", "local", "192.0.2.1", "remote", "any")
    assert refused(one) == "devices: flannel.ipip: other has its packets (type ipip local 192.0.2.1): remove it"
    one.ns.ip("link", "delete", "other")


def without_device(node: FlannelNode) -> None:
    node.ns.run("ip", "link", "delete", "flannel.ipip", check=False)


def refused(node: FlannelNode) -> str:
    (failure, *_) = converge(stages_of(node.ns.path), node.want([]))
    return str(failure)
