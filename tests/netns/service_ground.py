"""A node with three pods, and somebody outside, for tests of services on real packets.

    client, one, two ──veth──► node ──veth──► outside        one and two answer with their name and whom they saw

All sockets are of this process; those that answer are served by a thread.
"""

from __future__ import annotations

import itertools
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_network

from conftest import Ns

from namespaces import namespaces
from tortie.base.addr import parse_ip
from tortie.calc.proxy.state import Backend, Entrance, EntranceKind, Frontend, ProxyState, Served
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.services import Services
from tortie.kernel.netns import entered

TCP, UDP, SCTP = 6, 17, 132
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
KIND = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM, SCTP: socket.SOCK_STREAM}
LISTENS = 8080
PATIENCE = 30.0
SILENCE = 0.4
"""Seconds after which an answer is taken not to come."""

POD = {4: "10.244.1.", 6: "fd00:244:1::"}
PODS = tuple(map(ip_network, ("10.244.0.0/16", "fd00:244::/32")))
PLACES = {"client": 10, "one": 21, "two": 22}
NODE = {4: "198.51.100.1", 6: "2001:db8:51::1"}
OUTSIDE = {4: "198.51.100.9", 6: "2001:db8:51::9"}
CLUSTER_IP = {4: "10.96.0.1", 6: "fd00:10:96::1"}
BALANCED = {4: "203.0.113.5", 6: "2001:db8:113::5"}
DROPPED, REFUSED = "dropped", "refused"


def pod(name: str, version: int) -> str:
    return f"{POD[version]}{PLACES[name]}"


def backends(version: int, *names: str) -> tuple[Backend, ...]:
    return tuple(Backend(parse_ip(pod(name, version)), LISTENS) for name in names)


def frontend(version: int, ip: str | None, port: int, protocol: int = TCP) -> Frontend:
    return Frontend(version, None if ip is None else parse_ip(ip), protocol, port)


def entrance(kind: EntranceKind, where: Frontend, answers: Iterable[Backend], **more: object) -> Entrance:
    return Entrance(kind, where, "", tuple(answers), **more)  # type: ignore[arg-type]


def served(name: str, *entrances: Entrance) -> Served:
    ips = {one.frontend.ip for one in entrances if one.kind == "ClusterIP"}
    return Served(("ns", name), entrances, tuple(sorted((ip for ip in ips if ip is not None), key=str)))


def state_of(*services: Served, **more: object) -> ProxyState:
    here = frozenset(parse_ip(pod(name, version)) for name in PLACES for version in (4, 6))
    return ProxyState(1, "node", {one.key: one for one in services}, PODS, here, **more)  # type: ignore[arg-type]


@dataclass
class Answers:
    """The sockets of pods that answer: TCP greets and then echoes, UDP answers with the greeting."""

    _selector: selectors.DefaultSelector = field(default_factory=selectors.DefaultSelector)
    _stop: bool = False
    _thread: threading.Thread | None = None

    def listen(self, name: str, ns: Ns, version: int, protocol: int) -> None:
        with entered(ns.path):
            one = socket.socket(FAMILY[version], KIND[protocol], protocol)
        if version == 6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setblocking(False)
        one.bind(("", LISTENS))
        if protocol != UDP:
            one.listen(1024)
        self._selector.register(one, selectors.EVENT_READ, (self._datagram if protocol == UDP else self._accept, name))

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop = True
        if self._thread is not None:
            self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _run(self) -> None:
        while not self._stop:
            for key, _ in self._selector.select(0.1):
                does, name = key.data
                try:
                    does(key.fileobj, name)
                except BlockingIOError:
                    pass
                except OSError:
                    self._end(key.fileobj)  # type: ignore[arg-type]

    def _datagram(self, one: socket.socket, name: str) -> None:
        _, peer = one.recvfrom(2048)
        one.sendto(f"{name} {peer[0]}".encode(), peer)

    def _accept(self, one: socket.socket, name: str) -> None:
        connection, peer = one.accept()
        connection.setblocking(False)
        connection.sendall(f"{name} {peer[0]}".encode())
        self._selector.register(connection, selectors.EVENT_READ, (self._echo, name))

    def _echo(self, one: socket.socket, name: str) -> None:
        words = one.recv(2048)
        if words:
            one.sendall(words)
        else:
            self._end(one)

    def _end(self, one: socket.socket) -> None:
        self._selector.unregister(one)
        one.close()


@dataclass(frozen=True)
class Said:
    """Who answered, and whom it saw."""

    name: str
    saw: str = ""


@dataclass
class Ground:
    spaces: dict[str, Ns]
    answers: Answers
    stage: Services
    ports: Iterator[int] = field(default_factory=lambda: itertools.count(20_000))

    def apply(self, state: ProxyState | None) -> None:
        assert converge([self.stage], state) == []

    def open(self, place: str, version: int, protocol: int = TCP, source: str = "") -> socket.socket:
        with entered(self.spaces[place].path):
            one = socket.socket(FAMILY[version], KIND[protocol], protocol)
        one.settimeout(PATIENCE)
        if source or protocol == UDP:  # a port that comes again would belong to a flow that is known
            one.bind((source, next(self.ports) if protocol == UDP else 0))
        return one

    def ask(self, place: str, to: str, port: int, protocol: int = TCP, source: str = "", patience: float = 0) -> Said:
        """One question from a place."""
        until = time.monotonic() + (patience or PATIENCE)
        with self.open(place, parse_ip(to).version, protocol, source) as one:
            one.settimeout(patience or PATIENCE)
            while True:
                try:
                    one.connect((to, port))
                    if protocol == UDP:
                        one.settimeout(SILENCE)
                        with suppress(PermissionError):  # that it is dropped is told at once; why, next
                            one.send(b"hello")
                    return Said(*one.recv(2048).decode().split())
                except TimeoutError:  # the kernel does not say to everybody at once that UDP is refused
                    if time.monotonic() >= until:
                        return Said(DROPPED)
                except ConnectionRefusedError:
                    return Said(REFUSED)

    def dropped(self, place: str, to: str, port: int, protocol: int = TCP) -> bool:
        return self.ask(place, to, port, protocol, patience=SILENCE) == Said(DROPPED)

    def many(self, place: str, to: str, port: int, protocol: int = TCP, times: int = 24) -> dict[str, set[str]]:
        """Who answers, and whom they saw."""
        found: dict[str, set[str]] = {}
        for _ in range(times):
            said = self.ask(place, to, port, protocol)
            found.setdefault(said.name, set()).add(said.saw)
        return found


def connected(make: Callable[..., Ns]) -> dict[str, Ns]:
    """The namespaces, with addresses and routes."""
    spaces = {name: make(name) for name in ("node", "outside", *PLACES)}
    node = spaces["node"]
    for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        node.run("sysctl", "-qw", f"{name}=1")
    node.batch(
        *(f"link add {name} type veth peer name eth0 netns {spaces[name].name}" for name in ("outside", *PLACES)),
        f"address add {NODE[4]}/24 dev outside",
        f"address add {NODE[6]}/64 dev outside nodad",
        *(f"link set {name} up" for name in ("outside", *PLACES)),
    )
    spaces["outside"].batch(
        f"address add {OUTSIDE[4]}/24 dev eth0",
        f"address add {OUTSIDE[6]}/64 dev eth0 nodad",
        "link set eth0 up",
        *(f"route add {net} via {NODE[4]}" for net in ("10.96.0.0/16", "203.0.113.0/24", "10.244.0.0/16")),
        *(f"route add {net} via {NODE[6]}" for net in ("fd00:10:96::/64", "2001:db8:113::/64", "fd00:244::/32")),
    )
    node.batch(f"route add default via {OUTSIDE[4]}", f"route add default via {OUTSIDE[6]}")
    for name in PLACES:
        spaces[name].batch(
            f"address add {pod(name, 4)}/32 dev eth0",
            f"address add {pod(name, 6)}/128 dev eth0 nodad",
            "link set eth0 up",
            "route add 169.254.1.1 dev eth0",
            "route add default via 169.254.1.1 dev eth0",
            "route add fe80::1 dev eth0",
            "route add default via fe80::1 dev eth0",
        )
        node.run("sysctl", "-qw", f"net.ipv4.conf.{name}.proxy_arp=1")
        node.batch(
            f"route add {pod(name, 4)} dev {name}",
            f"route add {pod(name, 6)} dev {name}",
            f"address add fe80::1/64 dev {name} nodad",
        )
    return spaces


@contextmanager
def built_ground() -> Iterator[Ground]:
    made = namespaces()
    spaces = connected(next(made))
    answers = Answers()
    try:
        for name in ("one", "two"):
            for version in (4, 6):
                for protocol in (TCP, UDP):
                    answers.listen(name, spaces[name], version, protocol)
        answers.start()
        yield Ground(spaces, answers, Services(spaces["node"].path))
    finally:
        answers.close()
        made.close()
