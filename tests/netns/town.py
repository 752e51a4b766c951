"""The small world of `policy_worlds` built of namespaces, for tests of policy on real packets.

It is built once for a module; the datastore, and with it the policies, labels and namespaces of the pods, changes from
one test to the next. Everybody listens on all PORTS, and sends from wherever a test says.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from policy_places import (
    HOST_ACTION,
    ICMP,
    ICMP6,
    ICMP_REQUESTS,
    NODE,
    NOT_OBEYED,
    PLACES,
    PODS,
    PORTS,
    SCTP,
    TCP,
    UDP,
    UDPLITE,
    Place,
    made,
)
from policy_worlds import HIGH_PORTS, LOW_PORTS, Probe, endpoint
from tortie.base.addr import IP
from tortie.calc.cluster import Cluster
from tortie.calc.state import DesiredState
from tortie.dataplane.attachment import Attachment, attach
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.nft import Nft
from tortie.dataplane.stages.routes import Routes
from tortie.kernel import netns, nft, sysctl
from tortie.model.meta import Resource
from tortie.render.ruleset import TABLE

__all__ = [
    "HIGH_PORTS", "HOST_ACTION", "ICMP", "ICMP6", "ICMP_REQUESTS", "LOW_PORTS", "PATIENCE", "PODS", "PORTS", "TCP",
    "UDP", "Party", "Probe", "Town", "built_town", "endpoint", "hang_up", "made", "ping", "until",
]  # fmt: skip

PATIENCE = 3.0
"""Seconds until a packet that should have come counts as lost. Nothing waits that long unless something is wrong."""

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
KINDS = ((socket.SOCK_DGRAM, UDP), (socket.SOCK_STREAM, TCP), (socket.SOCK_DGRAM, UDPLITE))


@dataclass
class Party(Place):
    """A place that is there: a namespace with sockets on all PORTS."""

    netns: str
    sockets: dict[int, tuple[socket.socket, int, int]] = field(default_factory=dict)
    """By descriptor: the socket, its IP version and its protocol."""

    def open(self, version: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of this namespace."""
        with netns.entered(self.netns):
            made = socket.socket(FAMILY[version], kind, protocol)
        made.setblocking(False)
        return made

    def listen(self) -> None:
        for version in (4, 6):
            for port, (kind, protocol) in itertools.product(PORTS, KINDS):
                made = self.open(version, kind, protocol)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if version == 6:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                made.bind(("", port))
                if protocol == TCP:
                    made.listen(64)
                self.sockets[made.fileno()] = made, version, protocol
            for protocol in (ICMP if version == 4 else ICMP6, SCTP):
                raw = self.open(version, socket.SOCK_RAW, protocol)
                self.sockets[raw.fileno()] = raw, version, protocol


class Town:
    """The namespaces, and the stages that keep the node as the state says."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.parties: dict[str, Party] = {}
        self._epoll = select.epoll()
        self._present: dict[tuple[type[Resource], str, str], Resource] = {}
        self.cluster = Cluster("node")
        self.node = self._party(NODE)
        self.nft, self.routes = Nft(self.node.netns), Routes(self.node.netns)
        self._build_outside()
        for pod in PODS:
            self._build_pod(pod)
        for party in self.parties.values():
            if party.name != "Y":  # which is X under another address
                party.listen()
            for descriptor in party.sockets:
                self._epoll.register(descriptor, select.EPOLLIN)
        self._resolve_neighbours()

    def close(self) -> None:
        for party in self.parties.values():
            for one, *_ in party.sockets.values():
                one.close()
            netns.delete(f"{self.name}-{party.name}")
        self._epoll.close()

    def _party(self, name: str) -> Party:
        path = netns.create(f"{self.name}-{name}")
        self.parties[name] = Party(name, PLACES[name].ips, path)
        self.ip(name, "link", "set", "lo", "up")
        return self.parties[name]

    def ip(self, party: str, *words: str) -> None:
        subprocess.run(["ip", "-n", f"{self.name}-{party}", *words], check=True, timeout=30)

    def _build_outside(self) -> None:
        outside = self._party("X")
        self.parties["Y"] = Party("Y", PLACES["Y"].ips, outside.netns)
        self.ip("node", "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", f"{self.name}-X")
        for party, last in (("node", "1"), ("X", "9"), ("X", "77")):
            self.ip(party, "addr", "add", f"198.51.100.{last}/24", "dev", "eth0")
            self.ip(party, "addr", "add", f"2001:db8:51::{last}/64", "dev", "eth0", "nodad")
        for party in (self.node, outside):
            with netns.entered(party.netns):
                sysctl.write("net/ipv6/conf/eth0/accept_dad", 0)  # link-local addresses that are there at once
            self.ip(party.name, "link", "set", "eth0", "up")
        self.ip("node", "route", "add", "default", "via", "198.51.100.9")
        self.ip("node", "route", "add", "default", "via", "2001:db8:51::9")
        self.ip("X", "route", "add", "10.244.0.0/16", "via", "198.51.100.1")
        self.ip("X", "route", "add", "fd00:244::/64", "via", "2001:db8:51::1")
        with netns.entered(self.node.netns):
            sysctl.write("net/ipv4/ip_forward", 1)
            # Or connection tracking calls every UDP-Lite datagram invalid: it takes its checksum for one of UDP.
            sysctl.write("net/netfilter/nf_conntrack_checksum", 0)
            sysctl.write("net/ipv6/conf/all/forwarding", 1)

    def _build_pod(self, name: str) -> None:
        pod = self._party(name)
        ips = tuple(pod.ips.values())
        attach(Attachment(pod.netns, "eth0", pod.interface, ips, host_netns=self.node.netns))
        for ip in ips:
            self.ip("node", "route", "add", str(ip), "dev", pod.interface)

    def _resolve_neighbours(self) -> None:
        """So that no packet waits for an answer of ARP or neighbour discovery."""
        for party in self.parties.values():
            if party is not self.node:
                for ip in party.ips.values():
                    assert ping(self.node, ip), f"no answer from {ip}"

    def apply(self, resources: Iterable[Resource], *, whole: bool = False) -> DesiredState:
        """The datastore holds exactly these; the node follows. `whole`: as after a restart of the agent."""
        wanted = {(type(one), one.namespace, one.name): one for one in resources}
        for gone in self._present.keys() - wanted.keys():
            self.cluster.drop(*gone)
        for key, resource in wanted.items():
            if self._present.get(key) is not resource:
                self.cluster.put(resource)
        self._present = wanted
        if whole:
            self.nft = Nft(self.node.netns)
        state = self.cluster.state()
        assert all(title.startswith(NOT_OBEYED) for title in self.cluster.problems), self.cluster.problems
        assert converge([self.nft, self.routes], state) == []
        return state

    def counters(self) -> dict[str, int]:
        """Packets, by the comment of the rule."""
        return {name: packets for name, (packets, _) in nft.counters(TABLE, self.node.netns).items() if packets}

    def table(self) -> str:
        """The whole table as nft prints it, without what counters have counted, its chains and sets by name."""
        command = ["nsenter", f"--net={self.node.netns}", "nft", "-s", "list", "table", *TABLE.split()]
        printed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        _, _, inside = printed.strip().removesuffix("}").partition("\n")
        return "\n\n".join(sorted(block.strip() for block in inside.split("\n\n")))

    # --- packets ---

    def send(self, probe: Probe, token: bytes, claimed: str = "") -> socket.socket:
        """Send its first packet; the answer is the socket, to be closed when the probe is settled.

        `claimed` is a source address that is not its own.
        """
        source, destination = self.parties[probe.source], str(self.parties[probe.destination].ips[probe.version])
        mine = claimed or str(source.ips[probe.version])
        if probe.is_icmp or probe.protocol == SCTP:
            made = source.open(probe.version, socket.SOCK_RAW, probe.protocol)
            made.bind((mine, 0))
            packet = icmp_message(probe, token) if probe.is_icmp else sctp_init(probe, token)
            with contextlib.suppress(PermissionError):  # what is dropped on its way out of the node is told so
                made.sendto(packet, (destination, 0))
            return made
        made = source.open(
            probe.version, socket.SOCK_STREAM if probe.protocol == TCP else socket.SOCK_DGRAM, probe.protocol
        )
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((mine, probe.source_port))
        if probe.protocol != TCP:
            with contextlib.suppress(PermissionError):
                made.sendto(token, (destination, probe.what))
        else:
            hang_up(made)
            made.connect_ex((destination, probe.what))
        return made

    def arrived(self) -> Iterator[tuple[str, ...] | bytes]:
        """What has come since: the payload of a datagram, or who connected."""
        sockets = {fd: entry for party in self.parties.values() for fd, entry in party.sockets.items()}
        for descriptor, _ in self._epoll.poll(0):
            made, version, protocol = sockets[descriptor]
            with contextlib.suppress(BlockingIOError):
                while True:
                    if protocol == TCP:
                        connection, peer = made.accept()
                        hang_up(connection)
                        connection.close()
                        yield (peer[0], str(peer[1]))
                    elif protocol in (UDP, UDPLITE):
                        yield made.recv(2048)
                    elif protocol == SCTP:
                        yield from sctp_cookie(made.recv(2048), version)
                    else:
                        yield from icmp_request(made.recv(2048), version)


def hang_up(connection: socket.socket) -> None:
    """Closing resets the connection: it leaves nothing that waits."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def icmp_message(probe: Probe, token: bytes) -> bytes:
    """ICMPv6's checksum is the kernel's work, ICMP's is not. The identifier makes it a connection of its own."""

    def message(checksum: int) -> bytes:
        return struct.pack("!BBHHH", probe.what, probe.code, checksum, probe.source_port, 1) + token

    return message(checksum(message(0)) if probe.version == 4 else 0)


def checksum(data: bytes) -> int:
    """That of the internet, RFC 1071."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF & ~((total & 0xFFFF) + (total >> 16))


def icmp_request(packet: bytes, version: int) -> Iterator[bytes]:
    """The payload, if it is one of the messages that probes are made of; not if it is an answer."""
    if version == 4:
        packet = packet[4 * (packet[0] & 0xF) :]
    if packet[0] in ICMP_REQUESTS[version]:
        yield packet[8:]


SCTP_INIT, SCTP_COOKIE = 1, 7
"""The kind of a chunk, and of the parameter that holds a token (RFC 4960, 3.3.2 and 3.3.3.1)."""


def sctp_init(probe: Probe, token: bytes) -> bytes:
    """A packet that asks for an association. The kernel that sends it need not know SCTP."""
    parameter = struct.pack("!HH", SCTP_COOKIE, 4 + len(token)) + token + bytes(-len(token) % 4)
    chunk = struct.pack("!BBHIIHHI", SCTP_INIT, 0, 20 + len(parameter), 1, 65535, 1, 1, 1) + parameter
    ports = struct.pack("!HHI", probe.source_port, probe.what, 0)
    return ports + struct.pack("<I", crc32c(ports + bytes(4) + chunk)) + chunk


def sctp_cookie(packet: bytes, version: int) -> Iterator[bytes]:
    """The token, if it is one of ours."""
    if version == 4:
        packet = packet[4 * (packet[0] & 0xF) :]
    if packet[12] == SCTP_INIT:
        length = struct.unpack_from("!H", packet, 34)[0]
        yield packet[36 : 32 + length]


def crc32c(data: bytes) -> int:
    """SCTP's checksum."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def ping(party: Party, ip: IP, patience: float = PATIENCE) -> bool:
    """Whether an echo request is answered in time."""
    version, reply = ip.version, 0 if ip.version == 4 else 129
    probe = Probe(party.name, "", version, ICMP if version == 4 else ICMP6, 8 if version == 4 else 128)
    with party.open(version, socket.SOCK_RAW, probe.protocol) as made:
        made.sendto(icmp_message(probe, b"echo"), (str(ip), 0))
        identity = probe.source_port.to_bytes(2, "big")

        def answered() -> bool:
            with contextlib.suppress(BlockingIOError):
                packet = made.recv(2048)
                message = packet[4 * (packet[0] & 0xF) :] if version == 4 else packet
                return message[0] == reply and message[4:6] == identity
            return False

        return until(answered, patience)


def until(condition: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Whether it becomes true in time."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def built_town() -> Iterator[Town]:
    """For a fixture: the town, and afterwards nothing of it."""
    name = f"tt-{os.getpid()}-town"
    try:
        town = Town(name)
        try:
            yield town
        finally:
            town.close()
    finally:
        for left in netns.list_names():
            if left.startswith(f"{name}-"):
                netns.delete(left)
