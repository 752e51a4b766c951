"""A small world for tests of policy on real packets: one node with five pods, and something outside.

    X, Y 198.51.100.9, .77, 2001:db8:51::9, ::77
       │ eth0
       │ eth0 198.51.100.1, 2001:db8:51::1
    node ─── cali00000000p0 ─── p0  10.244.1.10, fd00:244::10
      ├───── cali00000000p1 ─── p1  10.244.1.11, fd00:244::11
      └ ...                     p4

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
from typing import Any

from tortie.base.addr import IP, parse_ip
from tortie.calc.cluster import Cluster
from tortie.calc.state import DesiredState
from tortie.dataplane.attachment import Attachment, attach
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.nft import Nft
from tortie.dataplane.stages.routes import Routes
from tortie.kernel import netns, nft, sysctl
from tortie.model.document import convert
from tortie.model.meta import Resource
from tortie.model.workload import WorkloadEndpoint
from tortie.render.ruleset import TABLE

PODS = ("p0", "p1", "p2", "p3", "p4")
PORTS = (53, 80, 81, 8080, 9090)
"""Where every party listens, on UDP and TCP."""
HOST_ACTION = "pod to its own host: defaultEndpointToHostAction"
PATIENCE = 3.0
"""Seconds until a packet that should have come counts as lost. Nothing waits that long unless something is wrong."""

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
ICMP_REQUESTS = {4: (8, 13), 6: (128, 139)}
"""Types that connection tracking takes for the start of something: echo, timestamp; echo, node information."""

LOW_PORTS, HIGH_PORTS = itertools.cycle(range(20000, 40000)), itertools.cycle(range(40000, 60000))
"""Every probe has a source port, or ICMP identifier, of its own: what is established already is not asked again."""


@dataclass
class Party:
    """A namespace with sockets on all PORTS; `ips` are by IP version."""

    name: str
    netns: str
    ips: dict[int, IP]
    sockets: dict[int, tuple[socket.socket, int, int]] = field(default_factory=dict)
    """By descriptor: the socket, its IP version and its protocol."""

    @property
    def interface(self) -> str:
        return f"cali00000000{self.name}"

    def open(self, version: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of this namespace."""
        with netns.entered(self.netns):
            made = socket.socket(FAMILY[version], kind, protocol)
        made.setblocking(False)
        return made

    def listen(self) -> None:
        for version in (4, 6):
            for port, (kind, protocol) in itertools.product(
                PORTS, ((socket.SOCK_DGRAM, UDP), (socket.SOCK_STREAM, TCP))
            ):
                made = self.open(version, kind)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if version == 6:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                made.bind(("", port))
                if protocol == TCP:
                    made.listen(64)
                self.sockets[made.fileno()] = made, version, protocol
            icmp = ICMP if version == 4 else ICMP6
            raw = self.open(version, socket.SOCK_RAW, icmp)
            self.sockets[raw.fileno()] = raw, version, icmp


@dataclass(frozen=True)
class Probe:
    """The first packet of a new connection. `what` is a destination port, or for ICMP the type."""

    source: str
    destination: str
    version: int
    protocol: int
    what: int
    source_port: int = field(default_factory=lambda: next(LOW_PORTS))
    code: int = 0

    @property
    def is_icmp(self) -> bool:
        return self.protocol in (ICMP, ICMP6)


class Town:
    """The namespaces, and the stages that keep the node as the state says."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.parties: dict[str, Party] = {}
        self._epoll = select.epoll()
        self._present: dict[tuple[type[Resource], str, str], Resource] = {}
        self.cluster = Cluster("node")
        self.node = self._party("node", "198.51.100.1", "2001:db8:51::1")
        self.nft, self.routes = Nft(self.node.netns), Routes(self.node.netns)
        self._build_outside()
        for i, pod in enumerate(PODS):
            self._build_pod(pod, f"10.244.1.{10 + i}", f"fd00:244::{10 + i}")
        for party in self.parties.values():
            if party.name != "Y":  # which is X under another address
                party.listen()
            for descriptor in party.sockets:
                self._epoll.register(descriptor, select.EPOLLIN)
        self._resolve_neighbours()

    def close(self) -> None:
        for party in self.parties.values():
            for made, *_ in party.sockets.values():
                made.close()
            netns.delete(f"{self.name}-{party.name}")
        self._epoll.close()

    def _party(self, name: str, v4: str, v6: str) -> Party:
        path = netns.create(f"{self.name}-{name}")
        self.parties[name] = Party(name, path, {4: parse_ip(v4), 6: parse_ip(v6)})
        self.ip(name, "link", "set", "lo", "up")
        return self.parties[name]

    def ip(self, party: str, *words: str) -> None:
        subprocess.run(["ip", "-n", f"{self.name}-{party}", *words], check=True, timeout=30)

    def _build_outside(self) -> None:
        outside = self._party("X", "198.51.100.9", "2001:db8:51::9")
        self.parties["Y"] = Party("Y", outside.netns, {4: parse_ip("198.51.100.77"), 6: parse_ip("2001:db8:51::77")})
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
            sysctl.write("net/ipv6/conf/all/forwarding", 1)

    def _build_pod(self, name: str, v4: str, v6: str) -> None:
        pod = self._party(name, v4, v6)
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
        assert not self.cluster.problems
        if whole:
            self.nft = Nft(self.node.netns)
        state = self.cluster.state()
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
        if probe.is_icmp:
            made = source.open(probe.version, socket.SOCK_RAW, probe.protocol)
            made.bind((mine, 0))
            made.sendto(icmp_message(probe, token), (destination, 0))
            return made
        made = source.open(probe.version, socket.SOCK_DGRAM if probe.protocol == UDP else socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((mine, probe.source_port))
        if probe.protocol == UDP:
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
                    elif protocol == UDP:
                        yield made.recv(2048)
                    else:
                        yield from icmp_request(made.recv(2048), version)


def hang_up(connection: socket.socket) -> None:
    """Closing resets the connection: it leaves nothing that waits."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def icmp_message(probe: Probe, token: bytes) -> bytes:
    """ICMPv6's checksum is the kernel's work, ICMP's is not. The identifier makes it a connection of its own."""

    def message(checksum: int) -> bytes:
        return struct.pack("!BBHHH", probe.what, probe.code, checksum, probe.source_port, 1) + token

    words = struct.unpack(f"!{len(message(0)) // 2}H", message(0))
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return message(0xFFFF & ~total if probe.version == 4 else 0)


def icmp_request(packet: bytes, version: int) -> Iterator[bytes]:
    """The payload, if it is one of the messages that probes are made of; not if it is an answer."""
    if version == 4:
        packet = packet[4 * (packet[0] & 0xF) :]
    if packet[0] in ICMP_REQUESTS[version]:
        yield packet[8:]


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


def made(kind: type[Resource], name: str, namespace: str = "", labels: Any = None, **body: Any) -> Resource:
    metadata = {"name": name, "labels": labels or {}, **({"namespace": namespace} if namespace else {})}
    return convert(kind, {"metadata": metadata, **body})


def endpoint(
    party: Party, namespace: str, account: str = "default", profiles: Iterable[str] = (), **more: Any
) -> Resource:
    labels = {
        **more.get("labels", {}),
        "projectcalico.org/namespace": namespace,
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": account,
    }
    spec = {
        "node": "node",
        "pod": party.name,
        "endpoint": "eth0",
        "interfaceName": party.interface,
        "ipNetworks": [f"{ip}/{ip.max_prefixlen}" for ip in party.ips.values()],
        "profiles": list(profiles) or [f"kns.{namespace}", f"ksa.{namespace}.{account}"],
        "ports": more.get("ports", []),
    }
    return made(WorkloadEndpoint, party.name, namespace, labels, spec=spec)


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
