"""The plugins `vlan` and `dummy` (situations 76 and 77 of the specification)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_nodes import Machine, Pod, Wire, reaches
from namespaces import Ns

pytestmark = pytest.mark.root

FAMILIES = ("0.2.0", "0.4.0", "1.1.0")
"""A version of each that writes results otherwise; a call takes its time here."""


@pytest.fixture
def wire(make_ns: Callable[..., Ns], tmp_path: Path) -> Wire:
    return Wire(make_ns, tmp_path, ("node1", "node2"))


@pytest.fixture
def node(wire: Wire) -> Machine:
    return wire.nodes["node1"]


def conf(type: str, first: int = 2, **more: Any) -> dict[str, Any]:
    ranges = {"subnet": "192.0.2.0/24", "rangeStart": f"192.0.2.{first}"}
    ipam = {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}], **ranges}
    return {"cniVersion": "1.1.0", "name": "net1", "type": type, "ipam": ipam, **more}


def vlan(id: int = 100, first: int = 2, **more: Any) -> dict[str, Any]:
    return conf("vlan", first, **{"master": "eth0", "vlanId": id, **more})


def links(ns: Ns) -> list[str]:
    return sorted(each["ifname"] for each in ns.json("link", "show"))


def held(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.glob("node1/state/networks/*/192.*"))


def checked(node: Machine, pod: Pod, **more: Any) -> tuple[int, str]:
    said = node.say("CHECK", pod, {**pod.conf, "prevResult": pod.result, **more})
    return said.error if said.code else (0, "")


@pytest.mark.parametrize("type", ["vlan", "dummy"])
def test_life(wire: Wire, node: Machine, tmp_path: Path, type: str) -> None:
    for version in FAMILIES:
        wanted = {**(vlan() if type == "vlan" else conf("dummy")), "cniVersion": version}
        pod = wire.attached("node1", wanted)
        assert pod.eth0["linkinfo"]["info_kind"] == type
        assert "UP" in pod.eth0["flags"]
        if version >= "0.4":
            assert pod.result["interfaces"][0]["mac"] == pod.eth0["address"]
            assert checked(node, pod) == (0, "")
        assert held(tmp_path) == [pod.ip]
        node.delete(pod, told=version >= "0.4")
        assert (links(pod.ns), held(tmp_path)) == (["lo"], [])
    node.delete(pod)


def test_pods_of_one_vlan_on_two_nodes(wire: Wire, node: Machine) -> None:
    one = wire.attached("node1", vlan(100, mtu=1400))
    two = wire.attached("node2", vlan(100, first=3))
    other = wire.attached("node2", vlan(200, first=4))
    assert (one.eth0["mtu"], one.eth0["linkinfo"]["info_data"]["id"]) == (1400, 100)
    assert one.reaches(two.ip)
    assert not one.reaches(other.ip)
    assert not reaches(wire.gateway, one.ip)
    twice = wire.pod(vlan(100))
    assert node.say("ADD", twice).error == (999, "failed to create vlan: file exists")
    assert links(twice.ns) == ["lo"]


def test_vlan_that_is_not_as_it_should_be(wire: Wire, node: Machine, tmp_path: Path) -> None:
    pod = wire.attached("node1", vlan())
    assert checked(node, pod, vlanId=7) == (999, "Container VLAN id 100 does not match expected value: 7")
    assert checked(node, pod, master="lo") == (999, 'Interface eth0 is not on top of master "lo"')
    assert checked(node, pod, prevResult=None) == (999, "vlan: Required prevResult missing")
    second = wire.pod(vlan(5, ipam={"type": "nope"}))
    text = node.say("ADD", second).error[1]
    assert text.startswith('failed to execute IPAM delegate: failed to find plugin "nope"')
    assert (links(second.ns), held(tmp_path)) == (["lo"], [pod.ip])
    assert node.call("STATUS", vlan(master="nope")).error == (50, 'master "nope" is not there')
    assert node.call("STATUS", vlan()).code == 0
    node.ns.ip("link", "delete", "eth0")  # and the pod's with it
    node.delete(pod)
    assert held(tmp_path) == []


def test_dummy_that_is_not_as_it_should_be(wire: Wire, node: Machine, tmp_path: Path) -> None:
    pod = wire.attached("node1", conf("dummy"))
    assert checked(node, pod, prevResult=None) == (999, "dummy: Required prevResult missing")
    assert node.say("ADD", pod).error == (999, "failed to create dummy: file exists")
    assert links(pod.ns) == ["eth0", "lo"]
    pod.ns.ip("address", "flush", "dev", "eth0")
    assert checked(node, pod)[1].startswith("Failed to match addr")
    assert node.call("STATUS", conf("dummy")).code == 0
    assert node.call("GC", {**conf("dummy"), "cni.dev/valid-attachments": []}).code == 0
    assert held(tmp_path) == []
