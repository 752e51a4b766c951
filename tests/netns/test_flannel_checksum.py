"""The fault of VXLAN's checksum offload, for real: two nodes whose wire is a program that carries frames as they are.

    node1 eth0 ── left ─ wire ─ right ── eth0 node2         each with flannel.1, its end 10.5.N.0

Between two kernels a checksum that was left to the hardware is known to be missing, and nobody minds. A program that
reads frames from one side and writes them to the other does not know that: what was left out is wrong from there on, as
behind a network card that does not do what it said.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from pyroute2.ethtool.ioctl import IoctlEthtool

from namespaces import Ns
from tortie.base.errors import NotFound, NotSupported
from tortie.flannel import findings, probe
from tortie.flannel.config import Family, NetworkConfig
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.seen import Target, Tcp
from tortie.flannel.state import Device, External, FlannelState, Path, Place, Site, Vxlan
from tortie.kernel import ethtool
from tortie.kernel.netns import entered

pytestmark = pytest.mark.root

OUTGOING = 4  # PACKET_OUTGOING (linux/if_packet.h)
ETH_P_ALL = 3
INNER = 14 + 20 + 8 + 8 + 14
"""Bytes before the inner IP header: Ethernet, IP, UDP, VXLAN, Ethernet."""
PORT = 8472
MACS = {1: "02:00:00:00:05:01", 2: "02:00:00:00:05:02"}


def subnet(number: int) -> IPv4Network:
    return IPv4Network(f"10.5.{number}.0/24")


class Node:
    def __init__(self, ns: Ns, number: int) -> None:
        self.ns, self.number = ns, number

    def join(self, other: int) -> None:
        """As flannel's nodes are: device, route, neighbour and forwarding entry. The tunnel's own UDP has no checksum:
        the wire would spoil it, too, and such a fault ends all packets and not TCP alone."""
        ip, number = self.ns.ip, self.number
        words = f"id 1 local 192.0.2.{number} dev eth0 dstport {PORT} nolearning noudpcsum".split()
        ip("link", "add", "flannel.1", "address", MACS[number], "mtu", "1450", "type", "vxlan", *words)
        ip("address", "add", f"10.5.{number}.0/32", "dev", "flannel.1")
        ip("link", "set", "flannel.1", "up")
        ip("neighbour", "add", f"10.5.{other}.0", "lladdr", MACS[other], "nud", "permanent", "dev", "flannel.1")
        ip("route", "add", str(subnet(other)), "via", f"10.5.{other}.0", "dev", "flannel.1", "onlink")
        to = "dst", f"192.0.2.{other}", "self", "permanent"
        self.ns.run("bridge", "fdb", "append", MACS[other], "dev", "flannel.1", *to)

    def offload(self) -> bool:
        """As another program reads it."""
        with entered(self.ns.path):
            features = IoctlEthtool("flannel.1").get_features()
        return bool(features[ethtool.CHECKSUMS])

    def look(self) -> tuple[list[tuple[str, Tcp]], tuple[str, ...]]:
        """What came of TCP, and what this node's findings are."""
        place, state, leases = values(self.ns, self.number)
        with entered(self.ns.path):
            seen = probe.look(place, state, leases)
        tried = [(str(one.reach.end), one.tcp) for one in seen.tried]
        return tried, findings.lines(place, 1450, state, leases, seen)


def values(ns: Ns, number: int) -> tuple[Place, FlannelState, tuple[Lease, ...]]:
    other = 3 - number
    (eth0,) = ns.json("link", "show", "dev", "eth0")
    family = Family(IPv4Network("10.5.0.0/16"), 24, IPv4Address("10.5.1.0"), IPv4Address("10.5.255.0"))
    own, far = IPv4Address(f"192.0.2.{number}"), IPv4Address(f"192.0.2.{other}")
    config = NetworkConfig(family, None, "vxlan", {"Type": "vxlan"})
    site = Site(config, External("eth0", eth0["ifindex"], eth0["mtu"], own), own)
    data = {n: f'{{"VNI":1,"VtepMAC":"{mac}"}}' for n, mac in MACS.items()}
    place = Place(site, Lease(subnet(number), None, Attrs(own, backend_type="vxlan", data=data[number])))
    lease = Lease(subnet(other), None, Attrs(far, backend_type="vxlan", data=data[other]), node=f"node{other}")
    device = Device("flannel.1", Vxlan(1, own, eth0["ifindex"]), 1450, MACS[number])
    path = Path(subnet(other), "flannel.1", subnet(other)[0], onlink=True)
    return place, FlannelState((family.network,), (device,), paths=(path,)), (lease,)


@pytest.fixture
def sides(make_ns: Callable[..., Ns]) -> tuple[Node, Node, Ns]:
    """Two nodes, and the wire's namespace, where a link to each is."""
    wire = make_ns("wire")
    nodes = []
    for number, side in ((1, "left"), (2, "right")):
        ns = make_ns(f"node{number}")
        wire.ip("link", "add", side, "type", "veth", "peer", "name", "eth0", "netns", ns.name)
        wire.ip("link", "set", side, "up")
        ns.ip("address", "add", f"192.0.2.{number}/24", "dev", "eth0")
        ns.ip("link", "set", "eth0", "up")
        nodes.append(Node(ns, number))
    nodes[0].join(2)
    nodes[1].join(1)
    return nodes[0], nodes[1], wire


def inner_tcp(frame: bytes) -> bool:
    """Whether it is TCP in VXLAN."""
    return len(frame) > INNER + 20 and frame[23] == 17 and frame[36:38] == struct.pack("!H", PORT) and frame[73] == 6


@contextmanager
def relay(wire: Ns, lost: Callable[[bytes], bool]) -> Iterator[None]:
    """Carries frames between the wire's two links, but those that are lost."""
    over = threading.Event()
    with entered(wire.path):
        pair = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) for _ in range(2)]
    for sock, side in zip(pair, ("left", "right"), strict=True):
        sock.bind((side, ETH_P_ALL))
        sock.settimeout(0.1)

    def carry(here: socket.socket, there: socket.socket) -> None:
        while not over.is_set():
            try:
                frame, sender = here.recvfrom(1 << 16)
            except TimeoutError:
                continue
            if sender[2] != OUTGOING and not lost(frame):
                there.send(frame)

    threads = [threading.Thread(target=carry, args=way) for way in (pair, pair[::-1])]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
        for sock in pair:
            sock.close()


@contextmanager
def bridged(wire: Ns) -> Iterator[None]:
    """The kernel carries them."""
    wire.ip("link", "add", "br0", "type", "bridge")
    for link in ("left", "right"):
        wire.ip("link", "set", link, "master", "br0")
    wire.ip("link", "set", "br0", "up")
    yield


def test_a_wire_that_loses_checksums_is_proven_and_mended(sides: tuple[Node, Node, Ns]) -> None:
    one, two, wire = sides
    with relay(wire, lambda frame: False):
        assert (one.offload(), two.offload()) == (True, True)
        tried, lines = one.look()
        assert tried == [("10.5.2.0", Tcp.MENDED)]
        (line,) = lines
        assert line.startswith("TCP through flannel.1 died while ping passed, until checksums were no longer left")
        assert "ethtool -K flannel.1 tx-checksum-ip-generic off was done, and stays" in line
        assert (one.offload(), two.offload()) == (False, True)
        assert one.look() == ([("10.5.2.0", Tcp.ANSWERED)], ())
        assert not one.offload()
        with entered(two.ns.path):
            assert probe.try_tcp("flannel.1", IPv4Address("10.5.1.0")) is Tcp.MENDED
        assert _connects(one, two)


def _connects(one: Node, two: Node) -> bool:
    """TCP as pods have it, with data."""
    with entered(two.ns.path):
        server = socket.create_server(("10.5.2.0", 8080))
    with server, entered(one.ns.path), socket.create_connection(("10.5.2.0", 8080), timeout=5) as client:
        accepted, _ = server.accept()
        with accepted:
            accepted.sendall(b"x" * 1000)
            client.settimeout(5)
            return client.recv(1000, socket.MSG_WAITALL) == b"x" * 1000


def test_a_good_wire_has_no_finding(sides: tuple[Node, Node, Ns]) -> None:
    one, two, wire = sides
    with bridged(wire):
        assert one.look() == ([("10.5.2.0", Tcp.ANSWERED)], ())
        assert one.offload()
        assert _connects(one, two)


def test_a_wire_that_drops_tcp_is_told_and_the_offload_stays_on(sides: tuple[Node, Node, Ns]) -> None:
    one, _, wire = sides
    with relay(wire, inner_tcp):
        tried, lines = one.look()
    assert tried == [("10.5.2.0", Tcp.UNANSWERED)]
    assert lines == (
        "ping through flannel.1 is answered and TCP is not, whoever fills in its checksums, by node node2 (10.5.2.0): "
        "a firewall on the way drops it, or one of the node itself, which pods need not mind",
    )
    assert one.offload()


def test_a_firewall_that_rejects_is_no_silence(sides: tuple[Node, Node, Ns]) -> None:
    one, two, wire = sides
    rule = "meta l4proto tcp reject with icmp host-prohibited"
    reject = f"table ip t {{ chain c {{ type filter hook input priority 0; {rule}; }}; }}"
    two.ns.run("nft", "-f", "-", stdin=reject)
    with bridged(wire):
        assert one.look() == ([("10.5.2.0", Tcp.ANSWERED)], ())


def test_a_tunnel_through_which_nothing_passes(sides: tuple[Node, Node, Ns]) -> None:
    one, two, wire = sides
    drop = f"table ip t {{ chain c {{ type filter hook input priority 0; udp dport {PORT} drop; }}; }}"
    two.ns.run("nft", "-f", "-", stdin=drop)
    with bridged(wire):
        tried, lines = one.look()
    assert tried == []
    assert lines == (
        "node node2 answers at 192.0.2.2 and not through flannel.1 (10.5.2.0): is UDP port 8472 filtered between the "
        "nodes, or is Backend.Port another one there?",
    )


def test_the_bridges_address_answers_where_the_subnets_own_does_not(sides: tuple[Node, Node, Ns]) -> None:
    """As on kernels that take the address of a bridge's network for a broadcast, and answer no pings to it."""
    one, two, wire = sides
    two.ns.ip("link", "add", "cni0", "type", "bridge")
    two.ns.ip("address", "add", "10.5.2.1/24", "dev", "cni0")
    two.ns.ip("link", "set", "cni0", "up")
    drop = "table ip t { chain c { type filter hook input priority 0; ip daddr 10.5.2.0 drop; }; }"
    two.ns.run("nft", "-f", "-", stdin=drop)
    with bridged(wire):
        assert one.look() == ([("10.5.2.1", Tcp.ANSWERED)], ())


def test_a_narrow_way_is_told(sides: tuple[Node, Node, Ns]) -> None:
    one, _, wire = sides
    with relay(wire, lambda frame: len(frame) > 14 + 1400):
        with entered(one.ns.path):
            ethtool.set_feature("flannel.1", ethtool.CHECKSUMS, False)
        (line,) = one.look()[1]
    text = (
        "packets of more than 1400 bytes do not get to node node2 (192.0.2.2) uncut, and flannel's are of up to 1500: "
    )
    assert line.startswith(f"{text}set Backend.MTU to 1400")


def test_what_else_is_on_the_node(sides: tuple[Node, Node, Ns]) -> None:
    one, _, wire = sides
    one.ns.ip("link", "add", "docker0", "type", "bridge")
    one.ns.ip("address", "add", "10.5.128.1/20", "dev", "docker0")
    one.ns.ip("link", "set", "docker0", "up")
    forward = "chain FORWARD { type filter hook forward priority 0; policy drop; }"
    closed = f"table ip filter {{ chain DOCKER-USER {{ }}; {forward}; }}"
    one.ns.run("nft", "-f", "-", stdin=closed)
    with bridged(wire):
        lines = one.look()[1]
        assert len(lines) == 2
        assert lines[0].startswith("the pods' network 10.5.0.0/16 overlaps 10.5.128.0/20 by docker0: ")
        remedy = "iptables -I DOCKER-USER -s 10.5.0.0/16 -j ACCEPT; iptables -I DOCKER-USER -d 10.5.0.0/16 -j ACCEPT"
        assert lines[1].endswith(remedy)
        for command in remedy.split("; "):
            one.ns.run(*command.split())
        assert [line for line in one.look()[1] if "chain" in line] == []


def test_ipv6(sides: tuple[Node, Node, Ns]) -> None:
    """With the bridges of pods, whose networks make an anycast address of what is a tunnel's end."""
    one, two, wire = sides
    for node, far in ((one, 2), (two, 1)):
        own, ip = node.number, node.ns.ip
        node.ns.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.all.accept_dad=0")
        ip("address", "add", f"2001:db8::{own}/64", "dev", "eth0", "nodad")
        words = f"id 6 local 2001:db8::{own} dev eth0 dstport {PORT} nolearning".split()
        ip("link", "add", "flannel-v6.1", "address", MACS[own], "mtu", "1430", "type", "vxlan", *words)
        ip("address", "add", f"fd00:5:0:{own}::/128", "dev", "flannel-v6.1", "nodad")
        ip("link", "set", "flannel-v6.1", "up")
        ip("link", "add", "cni0", "type", "bridge")
        ip("address", "add", f"fd00:5:0:{own}::1/64", "dev", "cni0", "nodad")
        ip("link", "set", "cni0", "up")
        end = f"fd00:5:0:{far}::"
        ip("neighbour", "add", end, "lladdr", MACS[far], "nud", "permanent", "dev", "flannel-v6.1")
        ip("route", "add", f"{end}/64", "via", end, "dev", "flannel-v6.1", "onlink")
        to = "dst", f"2001:db8::{far}", "self", "permanent"
        node.ns.run("bridge", "fdb", "append", MACS[far], "dev", "flannel-v6.1", *to)
    with bridged(wire), entered(one.ns.path):
        host, ends = IPv6Address("2001:db8::2"), tuple(IPv6Address(end) for end in ("fd00:5:0:2::", "fd00:5:0:2::1"))
        target = Target("node2", host, ends, "flannel-v6.1", 1500)
        place = values(one.ns, 1)[0]
        site = replace(place.site, external=replace(place.site.external, ipv6=IPv6Address("2001:db8::1")))
        reach = probe.measure(replace(place, site=site), target)
        assert (reach.host_answers, reach.passes) == (True, 1500)
        assert reach.end is not None
        assert probe.try_tcp("flannel-v6.1", reach.end) is Tcp.ANSWERED


def test_a_look_that_is_called_off_sends_nothing_more(sides: tuple[Node, Node, Ns]) -> None:
    one, _, _ = sides
    over = threading.Event()
    over.set()
    with entered(one.ns.path):
        seen = probe.look(*values(one.ns, 1), over)
    assert (seen.reaches, seen.tried) == ((), ())
    assert IPv4Network("192.0.2.0/24") in [route.dst for route in seen.routes]


def test_features_of_a_link(ns: Ns) -> None:
    ns.ip("link", "add", "flannel.1", "type", "vxlan", "id", "1", "dstport", str(PORT))
    for on in (False, True):
        ethtool.set_feature("flannel.1", ethtool.CHECKSUMS, on, netns=ns.path)
        assert ethtool.feature("flannel.1", ethtool.CHECKSUMS, netns=ns.path) is on
        assert Node(ns, 1).offload() is on
    with pytest.raises(NotFound, match="ethtool -k nobody: there is no link nobody"):
        ethtool.feature("nobody", ethtool.CHECKSUMS, netns=ns.path)
    with pytest.raises(NotSupported, match="this kernel does not know tx-nonsense"):
        ethtool.feature("flannel.1", "tx-nonsense", netns=ns.path)
    with pytest.raises(NotSupported, match="lo does not let it be changed"):
        ethtool.set_feature("lo", ethtool.CHECKSUMS, False, netns=ns.path)
