"""The plugin `host-device` on the real kernel (situations 78 and 79 of the specification)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import Caller, put
from namespaces import Ns
from tortie.cni.spec import SUPPORTED_VERSIONS

pytestmark = pytest.mark.root

MAC = "02:00:00:00:00:07"


@pytest.fixture
def host(make_ns: Callable[..., Ns]) -> Ns:
    """With a device to give away: one end of a pair, up."""
    ns = make_ns("host")
    ns.ip("link", "add", "nic0", "address", MAC, "type", "veth", "peer", "name", "wire0")
    ns.ip("link", "set", "nic0", "up")
    return ns


@pytest.fixture
def pod(make_ns: Callable[..., Ns]) -> Ns:
    return make_ns("pod")


@pytest.fixture
def call(host: Ns, tmp_path: Path) -> Caller:
    return Caller(put(tmp_path / "bin"), host.name)


@pytest.fixture
def ipam(tmp_path: Path) -> dict[str, Any]:
    data = str(tmp_path / "data")
    return {"type": "host-local", "dataDir": data, "subnet": "192.0.2.0/24", "routes": [{"dst": "0.0.0.0/0"}]}


def conf(**more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "net1", "type": "host-device", **more}


def link(ns: Ns, name: str) -> dict[str, Any]:
    (found,) = ns.json("link", "show", name)
    return found


def names(ns: Ns) -> list[str]:
    return sorted(each["ifname"] for each in ns.json("link", "show"))


def held(tmp_path: Path) -> list[str]:
    return [path.name for path in tmp_path.glob("data/net1/192*")]


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_life(call: Caller, host: Ns, pod: Ns, ipam: dict[str, Any], tmp_path: Path, version: str) -> None:
    wanted = conf(cniVersion=version, device="nic0", ipam=ipam)
    result = call.add(wanted, netns=pod.path)
    assert (names(host), names(pod)) == (["lo", "wire0"], ["eth0", "lo"])
    seen = link(pod, "eth0")
    assert (seen["address"], seen["ifalias"], "UP" in seen["flags"]) == (MAC, "nic0", True)
    if version >= "0.3":
        assert result["interfaces"] == [{"name": "eth0", "mac": MAC, "sandbox": pod.path}]
        assert result["ips"][0]["address"] == "192.0.2.2/24"
    told = {**wanted, "prevResult": result}
    if version >= "0.4":
        assert call("CHECK", told, netns=pod.path).code == 0
    for _ in range(2):
        assert call("DEL", told if version >= "0.4" else wanted, netns=pod.path).code == 0
    assert (names(host), names(pod), held(tmp_path)) == (["lo", "nic0", "wire0"], ["lo"], [])
    back = link(host, "nic0")
    assert ("UP" in back["flags"], "ifalias" in back) == (False, False)


@pytest.mark.parametrize(
    "which",
    [
        {"device": "nic0"},
        {"hwaddr": MAC.upper()},
        {"hwaddr": "0200.0000.0007"},
        {"kernelpath": "/sys/devices/virtual/net/nic0"},
    ],
)
def test_ways_to_name_it(call: Caller, host: Ns, pod: Ns, which: dict[str, str]) -> None:
    result = call.add(conf(**which), netns=pod.path)
    assert result["interfaces"] == [{"name": "eth0", "mac": MAC, "sandbox": pod.path}]
    assert not result.keys() & {"ips", "routes"}
    assert "UP" in link(pod, "eth0")["flags"]
    assert call("CHECK", {**conf(**which), "prevResult": result}, netns=pod.path).code == 0
    assert call("DEL", conf(**which), netns=pod.path).code == 0
    assert names(host) == ["lo", "nic0", "wire0"]


SYSFS = """
mount -t tmpfs none /sys/bus
mkdir -p /sys/bus/pci/devices/0000:01:00.0/net/nic0 /sys/bus/pci/devices/0000:02:00.0/virtio3/net/nic0
mkdir -p /sys/bus/auxiliary/devices/mlx5_core.sf.4/net/nic0 /sys/bus/pci/drivers/vfio-pci
mkdir -p /sys/bus/pci/devices/0000:03:00.0
ln -s /sys/bus/pci/drivers/vfio-pci /sys/bus/pci/devices/0000:03:00.0/driver
exec "$0"
"""
"""A machine with such devices, as far as sysfs tells of them, in a mount namespace of its own."""


def on_such_a_machine(call: Caller, command: str, wanted: dict[str, Any], pod: Ns) -> tuple[int, Any]:
    env = {"CNI_COMMAND": command, "CNI_CONTAINERID": "ctr1", "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0"}
    program = str(call.directory / "host-device")
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{call.host}", "unshare", "--mount", "sh", "-ec", SYSFS, program],
        input=json.dumps(wanted).encode(),
        env={**os.environ, **env, "CNI_PATH": str(call.directory)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode, json.loads(done.stdout or "null")


@pytest.mark.parametrize(
    "which",
    [
        {"pciBusID": "0000:01:00.0"},
        {"pciBusID": "0000:02:00.0"},
        {"device": "wire0", "runtimeConfig": {"deviceID": "0000:01:00.0"}},
        {"runtimeConfig": {"deviceID": "mlx5_core.sf.4"}},
    ],
)
def test_devices_of_a_bus(call: Caller, host: Ns, pod: Ns, which: dict[str, Any]) -> None:
    code, result = on_such_a_machine(call, "ADD", conf(**which), pod)
    assert (code, result["interfaces"][0]["mac"]) == (0, MAC)
    assert on_such_a_machine(call, "DEL", conf(**which), pod) == (0, None)
    assert names(host) == ["lo", "nic0", "wire0"]


def test_device_of_a_driver_for_user_space(call: Caller, pod: Ns, ipam: dict[str, Any], tmp_path: Path) -> None:
    wanted = conf(pciBusID="0000:03:00.0", ipam=ipam)
    code, result = on_such_a_machine(call, "ADD", wanted, pod)
    assert (code, result["ips"][0]["address"]) == (0, "192.0.2.2/24")
    assert result["interfaces"] == [{"name": "eth0", "sandbox": pod.path, "pciID": "0000:03:00.0"}]
    assert (names(pod), held(tmp_path)) == (["lo"], ["192.0.2.2"])
    assert on_such_a_machine(call, "CHECK", {**wanted, "prevResult": result}, pod) == (0, None)
    assert on_such_a_machine(call, "DEL", wanted, pod) == (0, None)
    assert held(tmp_path) == []


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, 'specify either "device", "hwaddr", "kernelpath" or "pciBusID"'),
    ({"device": "nic0", "hwaddr": MAC}, 'specify either "device", "hwaddr", "kernelpath" or "pciBusID"'),
    ({"device": "nope"}, "failed to find host device: Link not found"),
    ({"hwaddr": "zz"}, 'failed to find host device: failed to parse MAC address "zz": address zz: invalid MAC address'),
    ({"hwaddr": "02:00:00:00:00:99"}, "failed to find host device: failed to find physical interface"),
    ({"kernelpath": "/etc"}, 'failed to find host device: kernel device path "/etc" must be absolute and begin with '),
    (
        {"kernelpath": "/sys/devices/../../etc"},
        'failed to find host device: kernel device path "/sys/devices/../../etc"',
    ),
    (
        {"kernelpath": "/sys/devices/system"},
        'failed to find host device: failed to find network devices at "/sys/devices/system/net"',
    ),
    ({"pciBusID": "../../x"}, "runtime config DeviceID ../../x not found or unsupported"),
    ({"runtimeConfig": {"deviceID": "ff:ff"}}, "runtime config DeviceID ff:ff not found or unsupported"),
    ({"device": "lo"}, 'failed to move "lo" to container: '),
    ({"device": "nic0", "ipam": {"type": "nope"}}, 'failed to find plugin "nope" in path'),
    ({"device": "nic0", "cniVersion": "0.2.0"}, "cannot convert: no valid IP addresses"),
]


@pytest.mark.parametrize(("which", "text"), REFUSED)
def test_refusals(call: Caller, host: Ns, pod: Ns, which: dict[str, Any], text: str) -> None:
    """The device is where it was, up as it was, without a note."""
    host.ip("link", "set", "nic0", "alias", "uplink")
    code, said = call("ADD", conf(**which), netns=pod.path).error
    assert (code, said[: len(text)]) == (999, text)
    assert (names(host), names(pod)) == (["lo", "nic0", "wire0"], ["lo"])
    assert "UP" in link(host, "nic0")["flags"]
    assert "UP" in link(host, "lo")["flags"]
    assert link(host, "nic0")["ifalias"] == "uplink"


def test_interface_that_exists(call: Caller, host: Ns, pod: Ns) -> None:
    pod.ip("link", "add", "eth0", "type", "bridge")
    said = call("ADD", conf(device="nic0"), netns=pod.path)
    assert said.error == (999, 'failed to rename "nic0" to "eth0": file exists')
    assert (names(host), link(pod, "eth0")["linkinfo"]["info_kind"]) == (["lo", "nic0", "wire0"], "bridge")


def test_names_that_are_taken(call: Caller, host: Ns, pod: Ns) -> None:
    """The pod's name may be one of the host's, and the device's one of the pod's; its name on the host must be free."""
    host.ip("link", "add", "eth0", "type", "bridge")
    pod.ip("link", "add", "nic0", "type", "bridge")
    call.add(conf(device="nic0"), netns=pod.path)
    assert (names(host), names(pod)) == (["eth0", "lo", "wire0"], ["eth0", "lo", "nic0"])
    host.ip("link", "add", "nic0", "type", "bridge")
    said = call("DEL", conf(device="nic0"), netns=pod.path)
    assert said.error == (999, 'failed to move "eth0" back: the host has another "nic0"')
    host.ip("link", "delete", "nic0")
    assert call("DEL", conf(device="nic0"), netns=pod.path).code == 0
    assert link(host, "nic0")["address"] == MAC


def test_device_without_a_note(call: Caller, host: Ns, pod: Ns, ipam: dict[str, Any], tmp_path: Path) -> None:
    """Its name is the configuration's; if that does not say it either, the device stays and its addresses go."""
    call.add(conf(hwaddr=MAC, ipam=ipam), netns=pod.path)
    pod.ip("link", "set", "eth0", "alias", "")
    said = call("DEL", conf(hwaddr=MAC, ipam=ipam), netns=pod.path)
    assert said.error == (999, 'failed to find original ifname for "eth0" (alias is not set)')
    assert held(tmp_path) == []
    assert call("DEL", conf(device="nic0"), netns=pod.path).code == 0
    assert names(host) == ["lo", "nic0", "wire0"]


@pytest.mark.parametrize("netns", ["", "nobody-is-here"])
def test_pod_that_is_gone(call: Caller, pod: Ns, ipam: dict[str, Any], tmp_path: Path, netns: str) -> None:
    call.add(conf(device="nic0", ipam=ipam), netns=pod.path)
    assert held(tmp_path)
    assert call("DEL", conf(device="nic0", ipam=ipam), netns=netns).code == 0
    assert held(tmp_path) == []


def test_check_status_and_gc(call: Caller, pod: Ns, ipam: dict[str, Any], tmp_path: Path) -> None:
    wanted = conf(device="nic0", ipam=ipam)
    result = call.add(wanted, netns=pod.path)
    told = {**wanted, "prevResult": result}
    pod.ip("link", "set", "eth0", "alias", "other")
    why = 'Interface eth0 was not moved from "nic0" of the host'
    assert call("CHECK", told, netns=pod.path).error == (999, why)
    pod.ip("link", "set", "eth0", "down")
    assert call("CHECK", told, netns=pod.path).error == (999, "Interface eth0 is down")
    assert call("STATUS", wanted).code == 0
    assert call("STATUS", conf(capabilities={"deviceID": True})).code == 0
    assert call("GC", {**wanted, "cni.dev/valid-attachments": []}).code == 0
    assert held(tmp_path) == []
