"""Debian's Go plugins macvlan, vlan and host-device and ours, asked for the same: they answer in the same words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import namespaces
from cni_plugins import GO, Caller, put
from namespaces import Ns

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not (GO / "macvlan").exists(), reason="needs Debian's containernetworking-plugins"),
]


@pytest.fixture
def make() -> Iterator[Callable[..., Ns]]:
    yield from namespaces.namespaces()


class Twins:
    """Both kinds of plugins on one host, each with a pod and with addresses of its own."""

    def __init__(self, make: Callable[..., Ns], directory: Path) -> None:
        host = make("host")
        host.ip("link", "add", "eth0", "type", "veth", "peer", "name", "wire0")
        host.ip("link", "add", "nic0", "type", "veth", "peer", "name", "nic1")
        host.ip("link", "set", "eth0", "up")
        self.callers = {"go": Caller(GO, host.name), "ours": Caller(put(directory / "bin"), host.name)}
        self.pods = {name: make(name) for name in self.callers}
        self.directory = directory

    def conf(self, who: str, type: str, **more: Any) -> dict[str, Any]:
        data = str(self.directory / who)
        ipam = {"type": "host-local", "subnet": "192.0.2.0/24", "dataDir": data, "routes": [{"dst": "0.0.0.0/0"}]}
        base = {"cniVersion": "1.0.0", "name": "net1", "type": type}
        if type != "host-device":
            base |= {"master": "eth0", "ipam": ipam}
        return {**base, **more}

    def errors(self, command: str, type: str, results: dict[str, Any] | None = None, **more: Any) -> list[Any]:
        """What each says no with; a full stop at the end does not count."""
        found = []
        for who, call in self.callers.items():
            told = {"prevResult": results[who]} if results else {}
            code, text = call(command, self.conf(who, type, **told, **more), netns=self.pods[who].path).error
            found.append((code, text.removesuffix(".")))
        return found


@pytest.fixture
def twins(make: Callable[..., Ns], tmp_path: Path) -> Twins:
    return Twins(make, tmp_path)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("macvlan", {"mtu": 1600}),
    ("macvlan", {"mac": "zz"}),
    ("macvlan", {"mac": "01:00:5e:00:00:01"}),
    ("macvlan", {"mode": "l2"}),
    ("macvlan", {"master": "nope"}),
    ("macvlan", {"master": "lo"}),
    ("macvlan", {"master": ""}),
    ("vlan", {"master": ""}),
    ("vlan", {"vlanId": 4095}),
    ("vlan", {"mtu": 9000}),
    ("ipvlan", {"mode": "l4"}),
    ("ipvlan", {"master": "nope"}),
    ("ipvlan", {"master": ""}),
    ("host-device", {}),
    ("host-device", {"device": "nope"}),
    ("host-device", {"hwaddr": "zz"}),
    ("host-device", {"hwaddr": "02:00:00:00:00:99"}),
    ("host-device", {"kernelpath": "/etc"}),
    ("host-device", {"kernelpath": "/sys/devices/system"}),
]


def test_refusals(twins: Twins) -> None:
    for type, more in REFUSED:
        theirs, mine = twins.errors("ADD", type, **more)
        assert theirs == mine, (type, more)


@pytest.mark.parametrize(("type", "more"), [("macvlan", {}), ("macvlan", {"ipam": {}}), ("host-device", {})])
def test_results(twins: Twins, type: str, more: dict[str, Any]) -> None:
    found = []
    for who, call in twins.callers.items():
        device = {"device": "nic0" if who == "go" else "nic1"} if type == "host-device" else {}
        result = call.add(twins.conf(who, type, **more, **device), netns=twins.pods[who].path)
        (interface,) = result["interfaces"]
        (link,) = twins.pods[who].json("link", "show", "eth0")
        assert (interface.pop("mac"), interface.pop("sandbox")) == (link["address"], twins.pods[who].path)
        assert result.pop("dns", {}) == {}
        found.append(result)
    assert found[0] == found[1]


def test_either_deletes_what_the_other_moved(twins: Twins) -> None:
    for first, second in (("go", "ours"), ("ours", "go")):
        conf = twins.conf(first, "host-device", device="nic0")
        pod = twins.pods[first]
        twins.callers[first].add(conf, netns=pod.path)
        assert twins.callers[second]("DEL", conf, netns=pod.path).code == 0
        assert [each["ifname"] for each in pod.json("link", "show")] == ["lo"]


def test_checks(twins: Twins) -> None:
    results = {
        who: call.add(twins.conf(who, "macvlan"), netns=twins.pods[who].path) for who, call in twins.callers.items()
    }
    theirs, mine = twins.errors("CHECK", "macvlan", results, mode="vepa")
    assert theirs == mine
    for change in (("address", "flush", "dev", "eth0"), ("link", "delete", "eth0")):
        for pod in twins.pods.values():
            pod.ip(*change)
        theirs, mine = twins.errors("CHECK", "macvlan", results)
        assert theirs == mine
