"""A host with two uplinks and two pods, for tests of host endpoints on values.

X 198.51.100.9 ─── eth0 198.51.100.1 ┐      ┌ eth1 192.0.2.1 ─── Z 192.0.2.9
                                     └─ n1 ─┤ cali00000000a ─── red/a 10.244.1.10, app=web
                                            └ cali00000000b ─── red/b 10.244.1.11, app=db
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from tortie.base.addr import parse_ip
from tortie.calc.cluster import Cluster
from tortie.calc.hosts import covered
from tortie.model.document import parse
from tortie.policy.rules import Direction
from tortie.policy.verdict import HostClass, HostPolicy, Packet, Verdict, judge, judge_host, membership

TCP, UDP, ICMP6 = 6, 17, 58
PLACES = {
    4: {"X": "198.51.100.9", "n1": "198.51.100.1", "Z": "192.0.2.9", "a": "10.244.1.10", "b": "10.244.1.11",
        "d": "10.244.2.10", "lo": "127.0.0.1"},
    6: {"X": "2001:db8:51::9", "n1": "2001:db8:51::1", "Z": "2001:db8:2::9", "a": "fd00:244:1::10",
        "b": "fd00:244:1::11", "d": "fd00:244:2::10", "lo": "::1"},
}  # fmt: skip
INTERFACES = {
    "lo": frozenset(map(ip_address, ("127.0.0.1", "::1"))),
    "eth0": frozenset(map(ip_address, ("198.51.100.1", "2001:db8:51::1"))),
    "eth1": frozenset(map(ip_address, ("192.0.2.1", "2001:db8:2::1"))),
}


def document(kind: str, name: str, spec: str, metadata: str = "") -> str:
    head = f"apiVersion: projectcalico.org/v3, kind: {kind}, metadata: {{name: {name}{metadata}}}"
    return f"{{{head}, spec: {{{spec}}}}}"


def felix(spec: str) -> str:
    return document("FelixConfiguration", "default", spec)


def hep(name: str, spec: str, labels: str = "role: host") -> str:
    return document("HostEndpoint", name, f"node: n1, {spec}", f", labels: {{{labels}}}")


def gnp(name: str, spec: str, selector: str = "role == 'host'") -> str:
    return document("GlobalNetworkPolicy", name, f'selector: "{selector}", {spec}')


def wep(name: str, app: str) -> str:
    addresses = f"[{PLACES[4][name]}/32, '{PLACES[6][name]}/128']"
    spec = f"node: n1, interfaceName: cali00000000{name}, ipNetworks: {addresses}, profiles: [kns.red]"
    labels = f"app: {app}, projectcalico.org/namespace: red, projectcalico.org/orchestrator: k8s"
    return document("WorkloadEndpoint", name, spec, f", namespace: red, labels: {{{labels}}}")


BASE = ("{apiVersion: v1, kind: Namespace, metadata: {name: red}}", wep("a", "web"), wep("b", "db"))
ETH0 = hep("uplink", "interfaceName: eth0")
OPEN = hep("uplink", "interfaceName: eth0, profiles: [projectcalico-default-allow]")
EVERY = hep("all", 'interfaceName: "*"')
AOF = "applyOnForward: true"
PRE = "applyOnForward: true, preDNAT: true"
RAW = "applyOnForward: true, doNotTrack: true"
CLOSED_A = document("NetworkPolicy", "k", "selector: app == 'web', types: [Ingress]", ", namespace: red")


class World:
    """The cluster of some documents, as n1 sees it, asked about packets."""

    def __init__(self, documents: Iterable[str], version: int = 4) -> None:
        self.cluster = Cluster("n1")
        for one in parse("\n---\n".join((*BASE, *documents))):
            self.cluster.put(one)
        self.state = self.cluster.state()
        self.hosts = covered(self.state, INTERFACES)
        self.contains = membership(lambda ref: self.state.sets[ref])
        self.places = PLACES[version]

    def packet(self, source: str, destination: str, port: int, protocol: int = TCP, source_port: int = 33333) -> Packet:
        ends = parse_ip(self.places[source]), parse_ip(self.places[destination])
        return Packet(*ends, protocol, source_port, port)

    def host(self, interface: str) -> HostPolicy | None:
        return self.hosts.get(interface, self.hosts.get("*"))

    def ask(self, interface: str, kind: HostClass, direction: Direction, packet: Packet) -> Verdict | None:
        host = self.host(interface)
        if host is None:
            return None
        return judge_host(packet, host, kind, direction, self.contains, self.state.settings.failsafes)

    def first(self, interface: str, direction: Direction, kinds: Sequence[tuple[HostClass, Packet]]) -> Verdict | None:
        """What the first class says that says anything."""
        return next((said for kind, packet in kinds if (said := self.ask(interface, kind, direction, packet))), None)

    def into(self, packet: Packet, interface: str = "eth0") -> Verdict | None:
        """From outside to the host itself."""
        return self.first(interface, "ingress", [("untracked", packet), ("preDNAT", packet), ("normal", packet)])

    def out_of(self, packet: Packet, interface: str = "eth0") -> Verdict | None:
        """From the host itself to outside."""
        return self.first(interface, "egress", [("untracked", packet), ("normal", packet)])

    def to_pod(self, packet: Packet, sent: Packet | None = None) -> Verdict:
        """From outside to a pod, which `sent` may not have been: the verdict of who denies, or the pod's."""
        early: list[tuple[HostClass, Packet]] = [("untracked", sent or packet), ("preDNAT", sent or packet)]
        said = self.first("eth0", "ingress", [*early, ("forward", packet)])
        return said if said is not None and not said.allowed else self.by_pod(packet)

    def by_pod(self, packet: Packet) -> Verdict:
        pods = {ip: one for one in self.state.endpoints.values() for ip in one.ips}
        return judge(packet, pods[packet.destination].policy, "ingress", self.contains)
