"""The town of `town`, for tests of host endpoints: the node has a second uplink, and services of a kube-proxy's kind.

    X 198.51.100.9, 2001:db8:51::9 ─── eth0 ┐         ┌ eth1 ─── Z 192.0.2.9, 2001:db8:2::9
                                            └── node ──┘
    node:30080 ─► p0:8080                 V 10.96.0.10, 2001:db8:96::10, port 80 ─► Z:8080

Besides PORTS, everybody listens on MORE. The services are in a table of their own, which nothing here may touch.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from town import PATIENCE, TCP, UDP, Party, Probe, Town, endpoint, ping, until

from tortie.base.addr import IP, parse_ip
from tortie.dataplane.converge import converge
from tortie.kernel import netns, nft, sysctl
from tortie.model.document import parse
from tortie.model.meta import Resource
from tortie.render.ruleset import TABLE

MORE = (22, 179, 9999, 30080)
NODE_PORT = 30080
OWN = "inet own"
"""The host's own rules, which are asked after ours."""
SERVICES = r"""
table inet services {
    chain arriving {
        type nat hook prerouting priority dstnat; policy accept;
        jump translate
    }
    chain leaving {
        type nat hook output priority -100; policy accept;
        jump translate
    }
    chain translate {
        ip daddr { 198.51.100.1, 192.0.2.1 } meta l4proto { tcp, udp } th dport 30080 dnat ip to 10.244.1.10:8080
        ip6 daddr { 2001:db8:51::1, 2001:db8:2::1 } meta l4proto { tcp, udp } th dport 30080 \
            dnat ip6 to [fd00:244::10]:8080
        ip daddr 10.96.0.10 meta l4proto { tcp, udp } th dport 80 dnat ip to 192.0.2.9:8080
        ip6 daddr 2001:db8:96::10 meta l4proto { tcp, udp } th dport 80 dnat ip6 to [2001:db8:2::9]:8080
    }
}
"""


class HostTown(Town):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._build_second_uplink()
        for name, ips in (("V", _both("10.96.0.10", "2001:db8:96::10")), ("lo", _both("127.0.0.1", "::1"))):
            self.parties[name] = Party(name=name, ips=ips, netns=self.node.netns)
        for name in ("node", "X", "Z", "p0", "p1"):
            self._listen_on_more(self.parties[name])
        self.nft_run("-f", "-", text=SERVICES)

    def _build_second_uplink(self) -> None:
        far = Party(name="Z", ips=_both("192.0.2.9", "2001:db8:2::9"), netns=netns.create(f"{self.name}-Z"))
        self.parties["Z"] = far
        self.ip("node", "link", "add", "eth1", "type", "veth", "peer", "eth1", "netns", f"{self.name}-Z")
        for party, last in (("node", "1"), ("Z", "9")):
            self.ip(party, "addr", "add", f"192.0.2.{last}/24", "dev", "eth1")
            self.ip(party, "addr", "add", f"2001:db8:2::{last}/64", "dev", "eth1", "nodad")
        for party in (self.node, far):
            with netns.entered(party.netns):
                sysctl.write("net/ipv6/conf/eth1/accept_dad", 0)
            self.ip(party.name, "link", "set", "eth1", "up")
        for default in ("192.0.2.1", "2001:db8:2::1"):
            self.ip("Z", "route", "add", "default", "via", default)
        for net, via in (("192.0.2.0/24", "198.51.100.1"), ("2001:db8:2::/64", "2001:db8:51::1")):
            self.ip("X", "route", "add", net, "via", via)
        far.listen()
        for descriptor in far.sockets:
            self._epoll.register(descriptor, select.EPOLLIN)
        for ip in far.ips.values():
            assert ping(self.node, ip)

    def _listen_on_more(self, party: Party) -> None:
        for version, port in itertools.product((4, 6), MORE):
            for kind, protocol in ((socket.SOCK_DGRAM, UDP), (socket.SOCK_STREAM, TCP)):
                made = party.open(version, kind)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if version == 6:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                made.bind(("", port))
                if protocol == TCP:
                    made.listen(64)
                party.sockets[made.fileno()] = made, version, protocol
                self._epoll.register(made.fileno(), select.EPOLLIN)

    def nft_run(self, *words: str, text: str | None = None) -> str:
        command = ["nsenter", f"--net={self.node.netns}", "nft", *words]
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=True).stdout

    @contextlib.contextmanager
    def rules_of_its_own(self, hook: str, *rules: str) -> Iterator[None]:
        """The host has such rules of its own."""
        head = f"type filter hook {hook} priority filter + 50; policy accept;"
        lines = "".join(f"{rule}\n" for rule in rules)
        self.nft_run("-f", "-", text=f"table {OWN} {{\nchain {hook} {{\n{head}\n{lines}}}\n}}\n")
        try:
            yield
        finally:
            self.nft_run("delete", "table", *OWN.split())

    def hold(self, *documents: str, pods: tuple[str, ...] = ("p0", "p1"), problems: int = 0) -> None:
        """The datastore holds the pods, which are in namespace red, under the label app=<name>, and the documents."""
        everything = [*parse(RED), *(endpoint(self.parties[pod], "red", labels={"app": pod}) for pod in pods)]
        everything += parse("\n---\n".join(documents)) if documents else []
        wanted = {(type(one), one.namespace, one.name): one for one in everything}
        for gone in self._present.keys() - wanted.keys():
            self.cluster.drop(*gone)
        for key, resource in wanted.items():
            if not _same(self._present.get(key), resource):
                self.cluster.put(resource)
        self._present = wanted
        state = self.cluster.state()
        assert len(self.cluster.problems) == problems, self.cluster.problems
        assert converge([self.nft, self.routes], state) == []

    # --- questions ---

    def arrives(self, probe: Probe, by: str = "") -> bool:
        """Whether it gets there in time; and this rule has counted it."""
        token = f"host {next(_tokens)}".ljust(32).encode()
        before = self.counters().get(by, 0)
        source = self.parties[probe.source]
        wanted = (str(source.ips[probe.version]), str(probe.source_port)) if probe.protocol == TCP else token
        with contextlib.closing(self.send(probe, token)):
            came = until(lambda: wanted in set(self.arrived()))
        return came and (not by or self.counters().get(by, 0) > before)

    def denied(self, probe: Probe, by: str, table: str = TABLE) -> bool:
        """Whether it is this rule that drops it, and it does not get there."""
        token = f"host {next(_tokens)}".ljust(32).encode()
        before = self.counted(by, table)
        sending = self.send_denied(probe, token)
        with contextlib.closing(sending):
            counted = until(lambda: self.counted(by, table) > before)
        mine = str(self.parties[probe.source].ips[probe.version]), str(probe.source_port)
        return counted and not {token, mine} & set(self.arrived())

    def counted(self, rule: str, table: str) -> int:
        return nft.counters(table, self.node.netns).get(rule, (0, 0))[0]

    def send_denied(self, probe: Probe, token: bytes) -> socket.socket:
        """What the node itself sends and may not, it is told at once."""
        try:
            return self.send(probe, token)
        except PermissionError:
            return socket.socket()

    def exchange(self, probe: Probe) -> bool:
        """Whether a TCP connection comes about: the answer comes back, too."""
        source = self.parties[probe.source]
        with source.open(probe.version, socket.SOCK_STREAM) as made:
            made.bind((str(source.ips[probe.version]), probe.source_port))
            made.connect_ex((str(self.parties[probe.destination].ips[probe.version]), probe.what))
            connected = until(lambda: made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x01", PATIENCE / 3)
        list(self.arrived())
        return connected

    def tracked(self, version: int, port: int) -> list[str]:
        """What connection tracking knows of a destination port."""
        with netns.entered(self.node.netns):
            lines = Path("/proc/thread-self/net/nf_conntrack").read_text(encoding="ascii").splitlines()
        return [line for line in lines if line.startswith(f"ipv{version} ") and f"dport={port} " in line]


def _both(v4: str, v6: str) -> dict[int, IP]:
    return {4: parse_ip(v4), 6: parse_ip(v6)}


RED = """
{apiVersion: v1, kind: Namespace, metadata: {name: red, labels: {team: red}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: default, namespace: red}}
"""
_tokens = itertools.count()


def _same(one: Resource | None, other: Resource) -> bool:
    return type(one) is type(other) and one == other


def built_host_town() -> Iterator[HostTown]:
    """For a fixture: the town, and afterwards nothing of it."""
    name = f"tt-{os.getpid()}-host"
    try:
        town = HostTown(name)
        try:
            yield town
        finally:
            town.close()
    finally:
        for left in netns.list_names():
            if left.startswith(f"{name}-"):
                netns.delete(left)
