"""The extension backend in namespaces: the two examples of flannel's documentation as they are written there, with
packets, through restarts."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from flannel_daemons import Town, until
from flannel_nodes import FlannelNode, Wire, network_config
from namespaces import Ns
from overlay_kernel import pinging

pytestmark = pytest.mark.root

HOST_GW = {
    "SubnetAddCommand": 'ip route add "$SUBNET" via "$PUBLIC_IP"',
    "SubnetRemoveCommand": 'ip route del "$SUBNET" via "$PUBLIC_IP"',
}
PLAIN_HOST_GW = {
    "SubnetAddCommand": "ip route replace $SUBNET via $PUBLIC_IP",
    "SubnetRemoveCommand": "ip route del $SUBNET via ${PUBLIC_IP}",
}
VXLAN = {
    "PreStartupCommand": (
        'export VNI=1; export IF_NAME=flannel-vxlan; ip link del "$IF_NAME" 2>/dev/null; ip link add "$IF_NAME" type '
        'vxlan id "$VNI" dstport 8472 && cat "/sys/class/net/${IF_NAME}/address"'
    ),
    "PostStartupCommand": (
        "export IF_NAME=flannel-vxlan; export SUBNET_IP=$(echo \"$SUBNET\" | cut -d'/' -f 1); ip addr add "
        '"${SUBNET_IP}/32" dev "$IF_NAME" && ip link set "$IF_NAME" up'
    ),
    "SubnetAddCommand": (
        "export SUBNET_IP=$(echo \"$SUBNET\" | cut -d'/' -f 1); export IF_NAME=flannel-vxlan; read VTEP; ip route add "
        '"$SUBNET" nexthop via "$SUBNET_IP" dev "$IF_NAME" onlink && ip neigh replace "$SUBNET_IP" dev "$IF_NAME" '
        'lladdr "$VTEP" && bridge fdb add "$VTEP" dev "$IF_NAME" self dst "$PUBLIC_IP"'
    ),
}
TESTS = Path(__file__).parents[1]
PATIENCE = 30
"""Seconds."""


class Daemon:
    """extension_daemon.py on a node."""

    def __init__(self, node: FlannelNode, directory: Path, options: dict[str, Any]) -> None:
        self.number = node.number
        words = [node.number, str(directory / str(node.number)), options]
        self._process = subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                node.ns.name,
                sys.executable,
                TESTS / "netns/extension_daemon.py",
                json.dumps(words),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )

    @cached_property
    def published(self) -> str | None:
        """Once it has begun."""
        found: str | None = self._answer()
        return found

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], PATIENCE)[0], "no answer"
        return json.loads(self._process.stdout.readline())

    def knows(self, *others: Daemon) -> list[str]:
        """What did not work."""
        assert self._process.stdin is not None
        said = [(one.number, one.published) for one in (self, *others)][1:]
        print(json.dumps(said), file=self._process.stdin, flush=True)
        found: list[str] = self._answer()
        return found

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=PATIENCE)


Start = Callable[..., Daemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    daemons: list[Daemon] = []

    def begin(node: FlannelNode, options: dict[str, Any]) -> Daemon:
        daemons.append(Daemon(node, tmp_path, options))
        return daemons[-1]

    yield begin
    for daemon in daemons:
        daemon.kill()


@pytest.fixture
def nodes(make_ns: Callable[..., Ns]) -> list[FlannelNode]:
    wire = Wire(make_ns)
    return [wire.node(number, network_config("extension")) for number in (1, 2)]


def routes(ns: Ns) -> list[str]:
    """To other nodes' subnets."""
    return [route["dst"] for route in ns.json("-4", "route", "show") if "gateway" in route]


@pytest.mark.parametrize("options", [HOST_GW, PLAIN_HOST_GW], ids=["in a shell", "without"])
def test_host_gw_of_the_documentation(nodes: list[FlannelNode], start: Start, options: dict[str, Any]) -> None:
    a, b = (start(node, options) for node in nodes)
    assert a.published is None
    assert a.knows(b) == b.knows(a) == []
    assert nodes[0].reaches(nodes[1])
    assert nodes[1].reaches(nodes[0])
    assert a.knows() == []
    assert routes(nodes[0].ns) == []
    nodes[0].ns.ip("link", "set", "eth0", "down")
    (line,) = a.knows(b)
    begin = f"10.5.2.0/24: SubnetAddCommand: failed to run command: {options['SubnetAddCommand']}: exit 2. Output: "
    assert line.startswith(begin)
    assert len(line) > len(begin)  # in the words of ip


def test_vxlan_of_the_documentation(nodes: list[FlannelNode], start: Start) -> None:
    a, b = (start(node, VXLAN) for node in nodes)
    published = a.published
    (device,) = nodes[0].ns.json("link", "show", "dev", "flannel-vxlan")
    assert published == json.dumps(device["address"])
    assert a.knows(b) == b.knows(a) == []
    assert nodes[0].reaches(nodes[1])
    assert nodes[1].reaches(nodes[0])


def test_a_killed_daemon_s_successor_loses_nothing_and_removes_who_went_meanwhile(
    nodes: list[FlannelNode], start: Start
) -> None:
    a, b = (start(node, HOST_GW) for node in nodes)
    assert a.knows(b) == b.knows(a) == []
    with pinging(nodes[0].pod, "10.5.2.2") as found:
        a.kill()
        a = start(nodes[0], HOST_GW)
        assert a.knows(b) == []  # `ip route add` refuses, for the route is there
    assert found.sent > 20
    assert found.lost == 0
    a.kill()
    a = start(nodes[0], HOST_GW)
    assert a.knows() == []
    assert routes(nodes[0].ns) == []


def test_the_daemon_itself(make_ns: Callable[..., Ns], tmp_path: Path) -> None:
    """`tortie flanneld`: the order of commands, nodes that come and go while it is killed, and a start that fails."""
    log = tmp_path / "log"
    options = {
        **HOST_GW,
        "PreStartupCommand": "hostname",
        "PostStartupCommand": f"echo $NETWORK $SUBNET $PUBLIC_IP $(ls {tmp_path}/node1/subnet.env) >> {log}",
    }
    town = Town(Wire(make_ns), tmp_path, "extension", options)
    try:
        one, two = town.node(1).start(), town.node(2).start()
        one.until_ready()
        two.until_ready()
        until("the pods reach one another", lambda: one.node.reaches(two.node))
        assert town.annotations(1)["flannel.alpha.coreos.com/backend-data"] == json.dumps(os.uname().nodename)
        assert sorted(line.split()[:3] for line in log.read_text().splitlines()) == [
            ["10.5.0.0/16", "10.5.1.0/24", "192.0.2.1"],
            ["10.5.0.0/16", "10.5.2.0/24", "192.0.2.2"],
        ]
        one.kill()
        town.remove(2)
        one.start().until_ready()
        until("node 2 is removed", lambda: routes(one.node.ns) == [])
        town.options["PostStartupCommand"] = "ls /nonexistent"
        town.configure()
        one.stop()
        one.start()
        assert one.process is not None
        assert one.process.wait(PATIENCE) == 1
        assert "Backend.PostStartupCommand: failed to run command: ls /nonexistent: exit 2. Output: ls: " in one.said()
    finally:
        town.close()
