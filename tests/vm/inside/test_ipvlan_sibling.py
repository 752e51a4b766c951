"""An ipvlan pod and its own node, with the node's sibling and without (situation 133 of the specification)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cni_nodes import LAN, Wire, case
from namespaces import Ns

pytestmark = pytest.mark.root


@pytest.fixture
def wire(make_ns: Callable[..., Ns], tmp_path: Path) -> Wire:
    return Wire(make_ns, tmp_path, ("node1", "node2"))


@pytest.mark.parametrize("mode", ["l2", "l3", "l3s"])
def test_node_and_pod_by_a_sibling(wire: Wire, mode: str) -> None:
    node = wire.nodes["node1"]
    conf = {**case("ipvlan-l2" if mode == "l2" else "ipvlan-l3", "node1"), "mode": mode, "defaultRoute": "auto"}
    plain = wire.attached("node1", conf)
    assert not node.reaches(plain.ip)
    assert not plain.reaches(node.address)
    one, two = (wire.attached("node1", {**conf, "hostAccess": "sibling"}) for _ in range(2))
    for pod in (one, two):
        assert node.reaches(pod.ip)
        assert pod.reaches(node.address)
    if mode != "l2":
        assert one.reaches("169.254.77.1")
    (name,) = node.siblings()
    node.delete(one)  # without a result: it is looked which pods there are
    assert node.siblings() == [name]
    assert node.reaches(two.ip)
    node.delete(two)
    assert node.siblings() == []
    assert plain.reaches(one.ip) is False


@pytest.mark.parametrize("mode", ["l2", "l3"])
def test_ipv6(wire: Wire, mode: str) -> None:
    node, other = wire.nodes["node1"], wire.nodes["node2"]
    for number, each in ((8, node), (9, other)):
        each.ns.ip("address", "add", f"fd55::{number}/64", "dev", "eth0", "nodad")
    net = "fd55::/64" if mode == "l2" else "fd57::/64"
    first = net.replace("/64", "77")
    ranges = [[{"subnet": net, "rangeStart": first, "rangeEnd": first}]]
    more = {"mode": mode, "defaultRoute": "auto", "hostAccess": "sibling"}
    other.ns.ip("route", "add", "fd57::/64", "via", "fd55::8")
    conf = {**case("ipvlan-l3", "node1"), **more, "ipam": {"type": "host-local", "ranges": ranges}}
    pod = wire.attached("node1", {**conf, "cniVersion": "1.1.0"})
    assert pod.ip == first
    assert node.reaches(pod.ip)
    assert pod.reaches("fd55::8")
    assert pod.reaches("fd55::9")
    assert other.reaches(pod.ip)
    node.delete(pod)
    assert node.siblings() == []


def test_strict_reverse_paths(wire: Wire) -> None:
    node = wire.nodes["node1"]
    node.ns.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
    conf = {**case("ipvlan-l2", "node1"), "hostAccess": "sibling"}
    pod = wire.pod(conf)
    assert "rp_filter is 1" in node.say("ADD", pod).error[1]
    assert pod.ns.json("link", "show")[0]["ifname"] == "lo"
    assert node.siblings() == []
    pod = wire.attached("node1", {**conf, "hostAddress": f"{LAN}.250"})
    assert node.reaches(pod.ip)
    assert pod.reaches(f"{LAN}.250")
