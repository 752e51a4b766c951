"""What `ipvlan` refuses, and what it takes from other plugins (situations 47 to 52, 54 and 60 of the specification)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_nodes import Machine, Wire
from namespaces import Ns

pytestmark = pytest.mark.root

IPAM = {
    "type": "host-local",
    "subnet": "10.211.55.0/24",
    "rangeStart": "10.211.55.140",
    "rangeEnd": "10.211.55.149",
    "routes": [{"dst": "0.0.0.0/0"}],
}


def conf(**more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "net1", "type": "ipvlan", "master": "eth0", "ipam": IPAM, **more}


@pytest.fixture
def wire(make_ns: Callable[..., Ns], tmp_path: Path) -> Wire:
    return Wire(make_ns, tmp_path, ("node1",))


@pytest.fixture
def node(wire: Wire) -> Machine:
    return wire.nodes["node1"]


def links(ns: Ns) -> list[str]:
    return sorted(each["ifname"] for each in ns.json("link", "show"))


def held(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.glob("node1/state/networks/*/10.*"))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mode": "l4"}, 'unknown ipvlan mode: "l4"'),
    ({"submode": "x"}, 'unknown ipvlan submode: "x"'),
    ({"master": "nope"}, 'failed to lookup master "nope": Link not found'),
    ({"master": "lo"}, "failed to create ipvlan: invalid argument"),
    ({"ipam": {}}, "no plugin name provided"),
    ({"hostAccess": "sibling", "submode": "private"}, 'hostAccess "sibling" cannot be: submode private'),
    ({"ipam": {**IPAM, "routes": [{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]}}, "failed to add route '10.9.0.0/16"),
]


def test_refusals(wire: Wire, node: Machine, tmp_path: Path) -> None:
    pod = wire.pod(conf())
    for more, text in REFUSED:
        said = node.say("ADD", pod, conf(**more))
        assert said.error[1].startswith(text), (more, said)
        assert (links(pod.ns), held(tmp_path), node.siblings()) == (["lo"], [], []), more
    pod.ns.ip("link", "add", "eth0", "type", "bridge")
    assert node.say("ADD", pod).error == (999, 'failed to rename ipvlan to "eth0": file exists')
    assert (links(pod.ns), held(tmp_path)) == (["eth0", "lo"], [])


def test_no_default_route(wire: Wire, node: Machine) -> None:
    pod = wire.attached("node1", conf(master=""))
    node.ns.ip("route", "delete", "default")
    assert node.say("ADD", wire.pod(conf(master=""))).error == (999, "no default route interface found")
    node.delete(pod)
    assert links(pod.ns) == ["lo"]


def test_an_address_twice(wire: Wire, node: Machine) -> None:
    static = {"type": "static", "addresses": [{"address": "10.211.55.77/24"}]}
    if not (wire.bin / "static").exists():
        pytest.skip("there is no static")
    wire.attached("node1", conf(ipam=static))
    other = wire.pod(conf(ipam=static))
    assert "Address already assigned to an ipvlan device" in node.say("ADD", other).error[1]
    assert links(other.ns) == ["lo"]


def test_another_kind_on_the_same_master(wire: Wire, node: Machine) -> None:
    wire.attached("node1", conf())
    other = wire.pod(conf(type="macvlan"))
    assert node.say("ADD", other).error == (999, "failed to create macvlan: device or resource busy")
    assert links(other.ns) == ["lo"]


def test_after_another_plugin(wire: Wire, node: Machine) -> None:
    """The master and the addresses are those of the plugin before."""
    node.ns.ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
    before = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "up0"}],
        "ips": [{"address": "192.0.2.9/24", "interface": 0}],
        "routes": [{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}],
    }
    chained = {key: value for key, value in conf(prevResult=before).items() if key not in ("ipam", "master")}
    pod = wire.attached("node1", chained)
    assert pod.ip == "192.0.2.9"
    assert [each["name"] for each in pod.result["interfaces"]] == ["eth0"]
    (up0,) = node.ns.json("link", "show", "up0")
    assert pod.eth0["link_index"] == up0["ifindex"]
    assert "198.51.100.0/24" in {each["dst"] for each in pod.ns.json("route", "show")}
    two = {**before, "interfaces": [{"name": "up0"}, {"name": "up1"}]}
    assert node.say("ADD", wire.pod(chained), {**chained, "prevResult": two}).error == (
        999,
        "chained master failure. PrevResult lacks a single named interface",
    )


def test_status_and_gc(wire: Wire, node: Machine, tmp_path: Path) -> None:
    wire.attached("node1", conf())
    assert node.call("STATUS", conf()).code == 0
    assert node.call("STATUS", conf(master="nope")).error == (50, 'master "nope" is not there')
    assert re.search("unknown ipvlan mode", node.call("STATUS", conf(mode="l4")).error[1])
    assert node.call("GC", {**conf(), "cni.dev/valid-attachments": []}).code == 0
    assert held(tmp_path) == []
