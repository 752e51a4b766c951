"""What happens to a connection, and why: both policies that it meets, on values.

    pod ─► its egress policy ─► [the pool's masquerading] ─► the other pod's ingress policy ─► pod

The kernel's counters are not ours to read: every step names the rule that decides, and whoever shows the explanation
asks the node for the counter of that name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError, NotFound
from tortie.calc.cluster import Cluster
from tortie.calc.state import DesiredState, LocalEndpoint
from tortie.model.policy import protocol_number
from tortie.model.workload import WorkloadEndpoint
from tortie.policy.rules import Direction
from tortie.policy.verdict import Packet, Verdict, judge, membership


@dataclass(frozen=True, slots=True)
class Party:
    """One end of a connection: a pod with its endpoint, or just an address."""

    name: str
    ips: tuple[IP, ...]
    node: str = ""
    interface: str = ""

    @property
    def is_pod(self) -> bool:
        return bool(self.interface)

    def ip(self, version: int) -> IP | None:
        return next((ip for ip in self.ips if ip.version == version), None)


@dataclass(frozen=True, slots=True)
class Step:
    """One decision on the way. `rule` is the kernel's name of what decides, "" where no rule does."""

    node: str
    hook: str
    allowed: bool
    reason: str
    tier: str = ""
    policy: str = ""
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """All steps of the first packet of a connection; those after a denial are not reached."""

    source: Party
    destination: Party
    version: int
    protocol: str
    port: int
    steps: tuple[Step, ...]

    @property
    def allowed(self) -> bool:
        return all(step.allowed for step in self.steps)

    @property
    def decisive(self) -> Step:
        """The step that a person wants to see first: the denial, else the last."""
        return next((step for step in self.steps if not step.allowed), self.steps[-1])


class Explainer:
    """Answers about one moment of a cluster. `cluster` must be one with `node=None`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._state: DesiredState = cluster.state()
        self._endpoints: dict[tuple[str, str], tuple[WorkloadEndpoint, LocalEndpoint]] = {}
        for local in self._state.endpoints.values():
            endpoint = cluster.endpoint(local.key)
            if endpoint is not None:
                self._endpoints[endpoint.namespace, endpoint.spec.pod] = (endpoint, local)
        self._contains = membership(lambda ref: self._state.sets.get(ref, frozenset()))

    def party(self, text: str) -> Party:
        """`namespace/pod`, `pod` (of namespace default) or an address. Raises NotFound, ConfigError."""
        if "/" not in text:
            try:
                return self._address(parse_ip(text))
            except ConfigError:
                if ":" in text or text.replace(".", "").isdigit():
                    raise
                text = f"default/{text}"
        namespace, _, pod = text.partition("/")
        found = self._endpoints.get((namespace, pod))
        if found is None:
            raise NotFound(f"{text} has no endpoint: the pod does not exist or is not running")
        endpoint, local = found
        return Party(f"{namespace}/{pod}", local.ips, endpoint.spec.node, local.interface)

    def explain(self, source: Party, destination: Party, protocol: str, port: int, version: int) -> Explanation:
        """Raises ConfigError when an end has no address of the IP version, or the protocol is none."""
        number = protocol_number("ICMPv6" if protocol.lower() == "icmp" and version == 6 else protocol)
        if number is None:
            raise ConfigError(f'"{protocol}" is not a protocol', "--protocol")
        source_ip, destination_ip = source.ip(version), destination.ip(version)
        for party, ip in ((source, source_ip), (destination, destination_ip)):
            if ip is None:
                raise ConfigError(f"{party.name} has no IPv{version} address")
        assert source_ip is not None
        assert destination_ip is not None
        icmp = 128 if version == 6 else 8
        packet = Packet(source_ip, destination_ip, number, 40000, port, icmp)
        return Explanation(
            source, destination, version, protocol.lower(), port, tuple(self._steps(source, destination, packet))
        )

    def versions(self, source: Party, destination: Party) -> list[int]:
        """The IP versions that both ends have."""
        return [version for version in (4, 6) if source.ip(version) and destination.ip(version)]

    def _address(self, ip: IP) -> Party:
        for (namespace, pod), (endpoint, local) in self._endpoints.items():
            if ip in local.ips:
                return Party(f"{namespace}/{pod}", local.ips, endpoint.spec.node, local.interface)
        return Party(str(ip), (ip,), self._node_of(ip))

    def _node_of(self, ip: IP) -> str:
        for node in self._cluster.nodes():
            if str(ip) == self._cluster.address_of(node, ip.version):
                return node
        return ""

    def _steps(self, source: Party, destination: Party, packet: Packet) -> Iterator[Step]:
        if packet.source == packet.destination:
            yield Step(source.node, "inside the pod", True, "never leaves the pod: no policy is asked")
            return
        if source.is_pod:
            step = self._judge(source, "egress", packet)
            yield step
            if not step.allowed:
                return
            yield from self._on_the_way(source, destination, packet)
        if destination.is_pod:
            if source.node == destination.node and not source.is_pod:
                yield Step(destination.node, "ingress", True, "a node reaches its own pods: no policy is asked")
            else:
                yield self._judge(destination, "ingress", packet)
        elif not source.is_pod:
            yield Step("", "no pod", True, "neither end is a pod: nothing here decides about it")

    def _judge(self, party: Party, direction: Direction, packet: Packet) -> Step:
        endpoint = self._state.endpoints[party.interface]
        verdict: Verdict = judge(packet, endpoint.policy, direction, self._contains)
        return Step(party.node, direction, verdict.allowed, verdict.reason, verdict.tier, verdict.policy, verdict.rule)

    def _on_the_way(self, source: Party, destination: Party, packet: Packet) -> Iterator[Step]:
        settings = self._cluster.settings_of(source.node)
        if not destination.is_pod and destination.node == source.node:
            action = settings.endpoint_to_host
            text = f"a pod to its own node: defaultEndpointToHostAction is {action}"
            yield Step(source.node, "input", action != "Drop", text)
            return
        pools = [pool for pool in self._state.pools if not pool.load_balancer_only]
        pool = next((pool for pool in pools if packet.source in pool.net), None)
        spared = settings.nat_exclude_hosts and packet.destination in self._state.hosts
        inside = any(packet.destination in pool.net for pool in pools)
        if pool is not None and pool.nat_outgoing and not inside and not spared:
            given = settings.nat_address
            address = str(given) if given is not None and given.version == packet.version else ""
            address = address or self._cluster.address_of(source.node, packet.version) or "the node's address"
            text = f"leaves with the source address {address}: natOutgoing of IPPool {pool.name}"
            yield Step(source.node, "postrouting", True, text, rule="natOutgoing")
