"""Over a link that loses, delays and reorders packets: netem, which many development kernels lack."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import pytest

from bgp_nodes import BgpNode, block, eventually, link, resources
from namespaces import Ns
from tortie.calc.cluster import Cluster
from tortie.dataplane.converge import converge
from tortie.dataplane.overlay import overlay_stages
from tortie.kernel import netns

pytestmark = pytest.mark.root

BAD = ("netem", "delay", "50ms", "loss", "10%", "reorder", "25%", "50%")
LONG = 90.0
"""Seconds: a packet that is lost three times in a row is sent again after some."""
CLUSTER = resources("""
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: a}
spec: {bgp: {ipv4Address: 10.9.0.1/24, ipv6Address: "fd00:9::1/64"}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: b}
spec: {bgp: {ipv4Address: 10.9.0.2/24, ipv6Address: "fd00:9::2/64"}}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool4}
spec: {cidr: 192.168.0.0/16, ipipMode: Never, vxlanMode: Never}
""")


def spoil(ns: Ns) -> None:
    ns.run("tc", "qdisc", "add", "dev", "eth0", "root", *BAD)


def lost(ns: Ns) -> int:
    """Packets that netem has dropped."""
    (word,) = (
        line.split()[6].rstrip(",") for line in ns.run("tc", "-s", "qdisc", "show", "dev", "eth0").splitlines()[1:2]
    )
    return int(word)


@pytest.fixture
def switch(make_ns: Callable[..., Ns]) -> Ns:
    ns = make_ns("sw")
    ns.ip("link", "add", "br0", "up", "type", "bridge")
    return ns


@pytest.fixture
def nodes(make_ns: Callable[..., Ns], switch: Ns, tmp_path: Path) -> Iterator[list[BgpNode]]:
    """a and b, both ends of the link bad."""
    made = [BgpNode(name, make_ns(name), tmp_path / name) for name in "ab"]
    with ExitStack() as stack:
        for number, node in enumerate(made, 1):
            link(switch, node.ns, number)
            spoil(node.ns)
            stack.callback(node.bird.stop)
        yield made


def since(node: BgpNode) -> dict[str, float]:
    """BIRD works it out anew at each question, and may be off by a millisecond."""
    return {name: datetime.fromisoformat(f"2000-01-01 {at}").timestamp() for name, at in node.since().items()}


def test_sessions_stay_and_routes_come_and_go(nodes: list[BgpNode]) -> None:
    a, b = nodes
    for node in nodes:
        node.start(*CLUSTER)
    eventually(a.sessions, lambda up: up == {"Mesh_10_9_0_2": True, "Mesh_fd00_9__2": True}, "sessions", LONG)
    eventually(b.sessions, lambda up: all(up.values()), "sessions", LONG)
    before = since(a)
    blocks = [f"192.168.{third}.{fourth}/26" for third in range(20) for fourth in (0, 64, 128, 192)]
    b.configure(*CLUSTER, *(block("b", cidr) for cidr in blocks))
    eventually(lambda: a.fib().keys() >= set(blocks), what="routes that are there", seconds=LONG)
    b.configure(*CLUSTER, block("b", blocks[0]))
    eventually(a.fib, lambda fib: fib.keys() == {blocks[0]}, "routes that are left", LONG)
    assert since(a) == pytest.approx(before, abs=0.1)
    for node in nodes:  # that the link was bad, whatever of BIRD's it met
        node.ns.run("ping", "-c", "100", "-i", "0.01", "-W", "1", "10.9.0.1" if node is b else "10.9.0.2", check=False)
        assert lost(node.ns) > 0


VXLAN = resources("""
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: a}
spec: {bgp: {ipv4Address: 10.9.0.1/24}, ipv4VXLANTunnelAddr: 192.168.1.0}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: b}
spec: {bgp: {ipv4Address: 10.9.0.2/24}, ipv4VXLANTunnelAddr: 192.168.2.0}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool4}
spec: {cidr: 192.168.0.0/16, ipipMode: Never, vxlanMode: Always}
""")
PODS = {"a": "192.168.1.7", "b": "192.168.2.7"}


@pytest.fixture
def tunnelled(make_ns: Callable[..., Ns], switch: Ns) -> dict[str, Ns]:
    """Nodes a and b, each with the address of a pod, and VXLAN between them, over a bad link."""
    spaces = {name: make_ns(name) for name in PODS}
    for number, (name, ns) in enumerate(spaces.items(), 1):
        link(switch, ns, number)
        ns.ip("addr", "add", PODS[name], "dev", "lo")
        cluster = Cluster(name, bird=False)
        for one in (*VXLAN, block("a", "192.168.1.0/26"), block("b", "192.168.2.0/26")):
            cluster.put(one)
        assert converge(overlay_stages(ns.path), cluster.state()) == []
        spoil(ns)
    return spaces


def test_pods_talk_through_vxlan(tunnelled: dict[str, Ns]) -> None:
    a, b = tunnelled.values()
    said = a.run("ping", "-n", "-c", "60", "-i", "0.05", "-W", "5", "-I", PODS["a"], PODS["b"], check=False)
    received = int(said.partition(" received")[0].rsplit(" ", 1)[1])
    assert 20 < received < 60, said
    sent = random.Random(0).randbytes(1 << 16)
    with netns.entered(b.path):
        server = socket.create_server((PODS["b"], 0))
    with netns.entered(a.path):
        client = socket.create_connection(server.getsockname(), 60, (PODS["a"], 0))
    with server, client:
        connection, _ = server.accept()
        connection.settimeout(60)
        threading.Thread(target=lambda: (client.sendall(sent), client.shutdown(socket.SHUT_WR)), daemon=True).start()
        with connection:
            assert b"".join(iter(lambda: connection.recv(1 << 16), b"")) == sent
    assert lost(a) > 0
    assert lost(b) > 0
