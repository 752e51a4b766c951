"""What gets where between ipvlan pods and other nodes (situations 129 and 130 of the specification)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cni_nodes import NET, Wire, case, l3_pods, route_nodes
from namespaces import Ns

pytestmark = pytest.mark.root


@pytest.fixture
def wire(make_ns: Callable[..., Ns], tmp_path: Path) -> Wire:
    return Wire(make_ns, tmp_path, ("node1", "node2"))


def test_four_routes(wire: Wire) -> None:
    one, two = l3_pods(wire)
    for node in wire.nodes.values():
        node.ns.ip("route", "delete", "default")
    assert not one.reaches(two.ip)
    words = {
        1: (one.ns, (NET["node2"], "dev", "eth0")),
        2: (wire.nodes["node1"].ns, (NET["node2"], "via", wire.nodes["node2"].address, "dev", "eth0")),
        3: (two.ns, (NET["node1"], "dev", "eth0")),
        4: (wire.nodes["node2"].ns, (NET["node1"], "via", wire.nodes["node1"].address, "dev", "eth0")),
    }
    for ns, route in words.values():
        ns.ip("route", "add", *route)
    assert one.reaches(two.ip)
    assert two.reaches(one.ip)
    for number, (ns, route) in words.items():
        ns.ip("route", "delete", *route)
        assert not one.reaches(two.ip), number
        if number == 2:  # the node takes the pod to be on its wire, and asks for it there
            asked = [each for each in ns.json("neigh", "show", "dev", "eth0") if each["dst"] == two.ip]
            assert asked
            assert set(asked[0]["state"]) & {"INCOMPLETE", "FAILED"}
        ns.ip("route", "add", *route)
        assert one.reaches(two.ip), number


@pytest.mark.parametrize("mode", ["l3", "l3s"])
def test_a_default_route_by_itself(wire: Wire, mode: str) -> None:
    route_nodes(wire)
    one, two = l3_pods(wire, cniVersion="1.1.0", mode=mode, defaultRoute="auto")
    (default,) = (each for each in one.ns.json("route", "show") if each["dst"] == "default")
    assert default.items() >= {"dev": "eth0", "scope": "link"}.items()
    assert one.result["routes"] == [{"dst": "0.0.0.0/0", "scope": 253}]
    assert one.reaches(two.ip)
    assert one.reaches(wire.nodes["node2"].address)
    assert wire.nodes["node2"].reaches(one.ip)


def test_auto_routes_imply_it_and_routes_of_ones_own_replace_it(wire: Wire) -> None:
    node = wire.nodes["node1"]
    conf = case("ipvlan-l3", "node1")
    implied = wire.attached("node1", {**conf, "autoRoutes": True})
    assert "default" in {each["dst"] for each in implied.ns.json("route", "show")}
    own = wire.attached("node1", {**conf, "autoRoutes": True, "clusterRoutes": ["10.208.0.0/12"]})
    assert {each["dst"] for each in own.ns.json("route", "show")} == {"10.208.0.0/12", NET["node1"]}
    for pod in (implied, own):
        node.delete(pod)
