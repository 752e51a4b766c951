"""The plugin `ipvlan` (situations 46, 53, 55 and 134 of the specification)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_nodes import LAN, NODES, Machine, Wire, case
from namespaces import Ns

pytestmark = pytest.mark.root

FAMILIES = ("0.2.0", "0.4.0", "1.1.0")
"""A version of each that writes results otherwise; a call takes its time here."""
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


def mode(ns: Ns, name: str = "eth0") -> tuple[str, str]:
    (link,) = ns.json("link", "show", name)
    data = link["linkinfo"]["info_data"]
    return data["mode"], next((word for word in ("private", "vepa") if data.get(word)), "bridge")


def test_the_case_as_it_is(make_ns: Callable[..., Ns], tmp_path: Path) -> None:
    wire = Wire(make_ns, tmp_path)
    pods = {name: wire.attached(name, case("ipvlan-l2", name)) for name in NODES}
    assert [pod.ip for pod in pods.values()] == [f"{LAN}.{number}" for number in (129, 140, 119)]
    for name, pod in pods.items():
        assert pod.result["cniVersion"] == "0.1.0"
        assert pod.eth0["address"] == wire.nodes[name].mac
        routes = {(each["dst"], each.get("gateway")) for each in pod.ns.json("route", "show")}
        assert routes == {("default", f"{LAN}.1"), (f"{LAN}.0/24", None)}
    master, node1 = pods["master"], pods["node1"]
    assert master.reaches(node1.ip)
    assert node1.reaches(pods["node2"].ip)
    assert master.reaches(f"{LAN}.1")
    assert master.reaches(wire.nodes["node1"].address)
    assert not master.reaches(wire.nodes["master"].address)
    for name, pod in pods.items():
        wire.nodes[name].delete(pod)
        assert links(pod.ns) == ["lo"]
    assert not list(tmp_path.glob("*/state/networks/*/10.*"))


def test_life(wire: Wire, node: Machine, tmp_path: Path) -> None:
    for version in FAMILIES:
        pod = wire.attached("node1", conf(cniVersion=version))
        assert pod.result["cniVersion"] == version
        assert pod.eth0["address"] == node.mac
        told = {**pod.conf, "prevResult": pod.result}
        if version >= "0.4":
            assert pod.result["interfaces"] == [{"name": "eth0", "mac": node.mac, "sandbox": pod.ns.path}]
            assert node.say("CHECK", pod, told).code == 0
        node.delete(pod, told=version >= "0.4")
        assert (links(pod.ns), held(tmp_path)) == (["lo"], [])
    assert node.say("DEL", pod).code == 0
    assert pod.ns.run("cat", "/proc/sys/net/ipv4/conf/default/arp_notify").strip() == "0"


@pytest.mark.parametrize("name", ["l2", "l3", "l3s"])
def test_modes(wire: Wire, name: str) -> None:
    one, two = (wire.attached("node1", conf(mode=name, mtu=1400)) for _ in range(2))
    assert mode(one.ns) == (name, "bridge")
    assert one.eth0["mtu"] == 1400
    assert ("NOARP" in one.eth0["flags"]) == (name != "l2")
    assert one.ns.run("cat", "/proc/sys/net/ipv4/conf/eth0/arp_notify").strip() == "1"
    assert one.reaches(two.ip)


def test_a_private_submode(wire: Wire, node: Machine) -> None:
    one, two = (wire.attached("node1", conf(submode="private")) for _ in range(2))
    assert mode(one.ns) == ("l2", "private")
    assert not one.reaches(two.ip)
    assert one.reaches(f"{LAN}.1")
    assert "in mode l2 private" in node.say("ADD", wire.pod(conf(submode="vepa"))).error[1]


def test_a_mode_is_not_switched_in_passing(wire: Wire, node: Machine, tmp_path: Path) -> None:
    first = wire.attached("node1", conf())
    second = wire.pod(conf(mode="l3"))
    code, text = node.say("ADD", second).error
    assert code == 999
    assert text.startswith("eth0 has ipvlan children in mode l2 bridge, and they would all be switched to l3 bridge")
    assert (mode(first.ns), links(second.ns), held(tmp_path)) == (("l2", "bridge"), ["lo"], [first.ip])
    assert node.say("ADD", second, conf(mode="l3", force=True)).code == 0
    assert mode(first.ns) == mode(second.ns) == ("l3", "bridge")
    told = {**first.conf, "prevResult": first.result}
    assert node.say("CHECK", first, told).error == (
        999,
        "Container IPVlan mode l3 does not match expected value: l2",
    )
