"""The plugins `vlan`, `dummy` and `ipvlan` where the kernel has no such links, and what they refuse before they ask it.

What they do on a kernel that has them: tests/vm/inside.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import Caller, put
from namespaces import Ns

pytestmark = pytest.mark.root

MODULES = {"ipvlan": "ipvlan", "vlan": "8021q", "dummy": "dummy"}


@pytest.fixture
def host(make_ns: Callable[..., Ns]) -> Ns:
    ns = make_ns("host")
    ns.ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
    return ns


@pytest.fixture
def pod(make_ns: Callable[..., Ns]) -> Ns:
    return make_ns("pod")


@pytest.fixture
def call(host: Ns, tmp_path: Path) -> Caller:
    return Caller(put(tmp_path / "bin"), host.name)


def conf(type: str, tmp_path: Path, **more: Any) -> dict[str, Any]:
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "data"), "subnet": "192.0.2.0/24"}
    return {"cniVersion": "1.1.0", "name": "net1", "type": type, "master": "up0", "vlanId": 5, "ipam": ipam, **more}


def names(ns: Ns) -> list[str]:
    return sorted(each["ifname"] for each in ns.json("link", "show"))


def lacks(host: Ns, kind: str) -> bool:
    more = {"ipvlan": ["link", "up0"], "vlan": ["link", "up0"], "dummy": []}[kind]
    words = ["ip", "-n", host.name, "link", "add", *more, "name", "probe0", "type", kind]
    words += ["id", "7"] if kind == "vlan" else []
    return "Unknown device type" in subprocess.run(words, capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize("kind", MODULES)
def test_kernel_without_such_links(call: Caller, host: Ns, pod: Ns, tmp_path: Path, kind: str) -> None:
    if not lacks(host, kind):
        pytest.skip(f"this kernel has {kind}: what it does without cannot be seen")
    why = f'this kernel has no {kind}: load the module "{MODULES[kind]}" (modprobe {MODULES[kind]})'
    said = call("ADD", conf(kind, tmp_path), netns=pod.path)
    assert said.error == (999, f"failed to create {kind}: {why}")
    assert call("STATUS", conf(kind, tmp_path)).error == (50, why)
    assert (names(host), names(pod)) == (["lo", "up0", "up1"], ["lo"])
    assert not list((tmp_path / "data").glob("*/192*"))
    for netns in (pod.path, "", "nobody-is-here"):
        assert call("DEL", conf(kind, tmp_path), netns=netns).code == 0


def test_what_is_refused(call: Caller, pod: Ns, tmp_path: Path) -> None:
    required = '"master" field is required. It specifies the host interface name to create the VLAN for'
    for kind, more, text in (
        ("vlan", {"master": ""}, required),
        ("vlan", {"master": "nope"}, "Link not found"),
        ("vlan", {"vlanId": 4095}, "invalid VLAN ID 4095 (must be between 0 and 4095 inclusive)"),
        ("vlan", {"vlanId": -1}, "invalid VLAN ID -1 (must be between 0 and 4095 inclusive)"),
        ("vlan", {"mtu": 1501}, "invalid MTU 1501, must be [0, master MTU(1500)]"),
        ("dummy", {"ipam": {}}, "dummy interface requires an IPAM configuration"),
        ("ipvlan", {"mode": "l4"}, 'unknown ipvlan mode: "l4"'),
        ("ipvlan", {"master": "nope"}, 'failed to lookup master "nope": Link not found'),
        ("ipvlan", {"master": ""}, "no default route interface found"),
    ):
        assert call("ADD", conf(kind, tmp_path, **more), netns=pod.path).error == (999, text), (kind, more)
        assert names(pod) == ["lo"]
    assert call("DEL", conf("vlan", tmp_path, master="nope"), netns=pod.path).code == 0
    assert call("DEL", conf("ipvlan", tmp_path, master=""), netns=pod.path).code == 0
