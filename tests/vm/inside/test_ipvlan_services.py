"""Services and published ports of ipvlan pods, translated by the node (situations 132 and 136 of the specification)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cni_nodes import MASQUERADE, NET, Pod, Wire, case, greeted, l3_pods, nat, published, route_nodes, serving
from namespaces import Ns

pytestmark = pytest.mark.root

SERVICE = "10.96.0.10"


@pytest.fixture
def wire(make_ns: Callable[..., Ns], tmp_path: Path) -> Wire:
    return Wire(make_ns, tmp_path, ("node1", "node2"))


def service(pod: Pod) -> str:
    return f"chain out {{ type nat hook output priority -100; ip daddr {SERVICE} dnat to {pod.ip}; }}"


@pytest.mark.parametrize(("mode", "access"), [("l3", "none"), ("l3", "sibling"), ("l3s", "none")])
def test_service_on_another_node(wire: Wire, mode: str, access: str) -> None:
    """The node translates what leaves the pod; of the answer it sees in l3 nothing, unless it comes to itself."""
    route_nodes(wire)
    node = wire.nodes["node1"]
    node.ns.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    one, two = l3_pods(wire, mode=mode, defaultRoute="auto", hostAccess=access)
    with serving(two.ns):
        nat(node, service(two))
        assert greeted(one.ns, SERVICE) == (mode == "l3s")
        if mode == "l3":
            nat(node, f"{service(two)}\n{MASQUERADE}")
            assert greeted(one.ns, SERVICE) == (access == "sibling")


@pytest.mark.parametrize("mode", ["l3", "l3s"])
def test_service_on_the_same_node(wire: Wire, mode: str) -> None:
    """Between pods of a node the answer takes the short way, unless the request seems to come from the node."""
    node = wire.nodes["node1"]
    node.ns.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    conf = {**case("ipvlan-l3", "node1"), "mode": mode, "defaultRoute": "auto", "hostAccess": "sibling"}
    one, two = (wire.attached("node1", conf) for _ in range(2))
    with serving(two.ns):
        nat(node, service(two))
        assert not greeted(one.ns, SERVICE)
        nat(node, f"{service(two)}\n{MASQUERADE}")
        assert greeted(one.ns, SERVICE)


@pytest.mark.parametrize("mode", ["l2", "l3", "l3s"])
def test_port_of_the_node(wire: Wire, mode: str) -> None:
    node = wire.nodes["node1"]
    node.ns.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    wire.gateway.ip("route", "add", NET["node1"], "via", node.address)
    conf = {**case("ipvlan-l2" if mode == "l2" else "ipvlan-l3", "node1"), "mode": mode, "defaultRoute": "auto"}
    pod = wire.attached("node1", conf)
    with serving(pod.ns):
        nat(node, published(pod))
        assert greeted(wire.gateway, node.address) == (mode == "l3s")
    linked = wire.attached("node1", {**conf, "hostAccess": "sibling"})
    with serving(linked.ns):
        nat(node, published(linked))
        assert greeted(wire.gateway, node.address) == (mode != "l2")
        nat(node, f"{published(linked)}\n{MASQUERADE}")
        assert greeted(wire.gateway, node.address)
