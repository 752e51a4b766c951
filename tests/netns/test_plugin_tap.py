"""The plugin `tap` on the real kernel: a device that a program opens, and what it is told of it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import Caller, put
from namespaces import Ns
from tortie.cni.spec import SUPPORTED_VERSIONS
from tortie.kernel import netns

pytestmark = pytest.mark.root

TUNSETIFF = 0x400454CA
TAP_NO_PI, MULTI_QUEUE = 0x1002, 0x0100


@pytest.fixture
def host(make_ns: Callable[..., Ns]) -> Ns:
    return make_ns("host")


@pytest.fixture
def pod(make_ns: Callable[..., Ns]) -> Ns:
    return make_ns("pod")


@pytest.fixture
def call(host: Ns, tmp_path: Path) -> Caller:
    return Caller(put(tmp_path / "bin"), host.name)


@pytest.fixture
def ipam(tmp_path: Path) -> dict[str, Any]:
    ranges = [[{"subnet": "192.0.2.0/24"}], [{"subnet": "2001:db8::/64"}]]
    return {"type": "host-local", "dataDir": str(tmp_path / "data"), "ranges": ranges, "routes": [{"dst": "::/0"}]}


def conf(**more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "net1", "type": "tap", **more}


def link(pod: Ns) -> dict[str, Any]:
    (found,) = pod.json("link", "show", "eth0")
    return found


def names(pod: Ns) -> list[str]:
    return sorted(each["ifname"] for each in pod.json("link", "show"))


@contextmanager
def opened(pod: Ns, flags: int = TAP_NO_PI) -> Iterator[int]:
    """The other end of eth0, as a virtual machine has it."""
    with netns.entered(pod.path):
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"eth0", flags))
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_life(call: Caller, pod: Ns, ipam: dict[str, Any], tmp_path: Path, version: str) -> None:
    wanted = conf(cniVersion=version, ipam=ipam)
    result = call.add(wanted, netns=pod.path)
    seen = link(pod)
    assert seen["linkinfo"]["info_kind"] == "tun"
    assert seen["linkinfo"]["info_data"].items() >= {"type": "tap", "persist": True, "vnet_hdr": True}.items()
    assert "UP" in seen["flags"]
    if version >= "0.3":
        assert result["interfaces"] == [{"name": "eth0", "mac": seen["address"], "sandbox": pod.path}]
        assert [ip["address"] for ip in result["ips"]] == ["192.0.2.2/24", "2001:db8::2/64"]
    told = {**wanted, "prevResult": result}
    if version >= "0.4":
        assert call("CHECK", told, netns=pod.path).code == 0
    for _ in range(2):
        assert call("DEL", told if version >= "0.4" else wanted, netns=pod.path).code == 0
    assert names(pod) == ["lo"]
    assert not list((tmp_path / "data").glob("*/192*"))


def test_a_program_at_the_other_end(call: Caller, pod: Ns, ipam: dict[str, Any]) -> None:
    call.add(conf(ipam=ipam), netns=pod.path)
    with opened(pod) as fd:
        assert "LOWER_UP" in link(pod)["flags"]
        pod.run("ping", "-c", "1", "-W", "1", "192.0.2.77", check=False)
        frames = []
        while True:
            try:
                frames.append(os.read(fd, 2048))
            except BlockingIOError:
                break
    assert any(frame[12:14] == b"\x08\x06" and bytes([192, 0, 2, 77]) in frame for frame in frames)
    assert names(pod) == ["eth0", "lo"]


def test_settings(call: Caller, pod: Ns) -> None:
    """Owner and group do not make it forget the MAC address and the MTU."""
    pod.ip("link", "add", "br0", "type", "bridge")
    wanted = conf(mtu=1400, owner=54321, group=54322, multiQueue=True, bridge="br0", mac="02:00:00:00:00:01")
    result = call.add({**wanted, "runtimeConfig": {"mac": "c2:11:22:33:44:55"}}, netns=pod.path)
    seen = link(pod)
    assert (seen["mtu"], seen["address"], seen["master"]) == (1400, "c2:11:22:33:44:55", "br0")
    assert result["interfaces"][0]["mac"] == "c2:11:22:33:44:55"
    data = seen["linkinfo"]["info_data"]
    assert (data["user"], data["group"], data["multi_queue"]) == (54321, 54322, True)
    with opened(pod, TAP_NO_PI | MULTI_QUEUE):
        pass
    told = {**wanted, "prevResult": result}
    assert call("CHECK", told, netns=pod.path).code == 0
    assert call("CHECK", {**told, "mtu": 1300}, netns=pod.path).error == (
        999,
        "Interface eth0 has MTU 1400, expected 1300",
    )
    pod.ip("link", "set", "eth0", "nomaster")
    assert call("CHECK", told, netns=pod.path).error == (999, 'Interface eth0 is no port of "br0"')


def test_mac_of_the_arguments(call: Caller, pod: Ns) -> None:
    call.add(conf(mac="02:00:00:00:00:01"), netns=pod.path, CNI_ARGS="MAC=02:00:00:00:00:02")
    assert link(pod)["address"] == "02:00:00:00:00:02"


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"mac": "zz"}, "invalid args zz for MAC addr: address zz: invalid MAC address"),
        ({"mtu": 100000}, "failed to create tap: invalid argument"),
        ({"mac": "01:00:5e:00:00:01"}, "failed to create tap: cannot assign requested address"),
        ({"bridge": "nope"}, 'failed to set tap master to "nope": Link not found'),
        ({"bridge": "lo"}, 'failed to set tap master to "lo": '),
        ({"owner": -1}, "failed to load netconf: json: cannot unmarshal number -1 into field owner of type uint32"),
        ({"ipam": {"type": "nope"}}, 'failed to find plugin "nope" in path'),
        ({"selinuxContext": "system_u:system_r:container_t:s0"}, "failed to set the SELinux context"),
        ({"cniVersion": "0.2.0"}, "cannot convert: no valid IP addresses"),
    ],
)
def test_refusals(call: Caller, pod: Ns, more: dict[str, Any], text: str) -> None:
    code, said = call("ADD", conf(**more), netns=pod.path).error
    assert (code, said[: len(text)]) == (999, text)
    assert names(pod) == ["lo"]


def test_interface_that_exists(call: Caller, pod: Ns) -> None:
    """Not even one that is a tap device itself, which the kernel would hand out."""
    call.add(conf(), netns=pod.path)
    before = link(pod)["ifindex"]
    assert call("ADD", conf(), netns=pod.path).error == (999, 'failed to rename tap to "eth0": file exists')
    assert (names(pod), link(pod)["ifindex"]) == (["eth0", "lo"], before)


def test_status_and_gc(call: Caller, pod: Ns, ipam: dict[str, Any], tmp_path: Path) -> None:
    call.add(conf(ipam=ipam), netns=pod.path)
    assert call("STATUS", conf(ipam=ipam)).code == 0
    assert call("GC", {**conf(ipam=ipam), "cni.dev/valid-attachments": []}).code == 0
    assert not list((tmp_path / "data").glob("*/192*"))
