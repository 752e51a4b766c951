"""Which established flows policy would not let begin now: what `tortie.dev/established-flows: Cut` has deleted.

    DesiredState, old and new ─► touched: whose policy is another ─► the kernel lists their flows ─► forbidden

A flow is judged as its first packet would be, in the direction in which it was opened: by the egress policy of the pod
that opened it and the ingress policy of the pod that it goes to, at the addresses that policy sees.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace

from tortie.base.addr import IP
from tortie.base.flow import ICMP6, UDP, Flow
from tortie.calc.state import DesiredState, LocalEndpoint, Settings
from tortie.policy.rules import Direction, Member, SetRef
from tortie.policy.verdict import Contains, EndpointPolicy, Packet, judge, membership

IPIP = 4
NEIGHBOURS = frozenset({130, 131, 132, 133, 135, 136})
"""ICMPv6 types that a pod may always send to its host: listener reports, router and neighbour discovery."""


@dataclass(frozen=True, slots=True)
class Forbidden:
    """A flow, and why policy would deny it."""

    flow: Flow
    reason: str

    def __str__(self) -> str:
        return f"{self.flow}  # {self.reason}"


def touched(old: DesiredState | None, new: DesiredState) -> frozenset[IP]:
    """The addresses of endpoints about whose flows something else may be decided than in the old state."""
    if old is None or _guards(old.settings) != _guards(new.settings):
        return frozenset(ip for endpoint in new.endpoints.values() for ip in _addresses(endpoint))
    moved = {
        ref for ref, members in new.sets.items() if (before := old.sets.get(ref)) is not members and before != members
    }
    return frozenset(
        ip
        for name, endpoint in new.endpoints.items()
        if _differs(old.endpoints.get(name), endpoint) or not moved.isdisjoint(_refs(endpoint.policy))
        for ip in _addresses(endpoint)
    )


def forbidden(flows: Iterable[Flow], state: DesiredState, own: Collection[IP]) -> Iterator[Forbidden]:
    """Those of the flows that would not begin now. `own` are the addresses of the node itself, every one that it has.

    Left alone is what policy does not ask about: what the node itself opens to its pods, what goes by without a pod at
    either end, and what another flow has announced.
    """
    judgement = _Judgement(state, own)
    for flow in flows:
        reason = "" if flow.related else judgement.denial(flow)
        if reason:
            yield Forbidden(flow, reason)


def guard(packet: Packet, settings: Settings) -> str:
    """The kernel's name of the rule by which a pod may not send this whatever its policy says; "" where none is."""
    if packet.protocol == UDP and packet.destination_port == settings.vxlan_port and not settings.allow_vxlan:
        return "VXLAN from a pod"
    return "IPIP from a pod" if packet.protocol == IPIP and not settings.allow_ipip else ""


class _Judgement:
    """What is asked about each of many flows, looked up once."""

    def __init__(self, state: DesiredState, own: Collection[IP]) -> None:
        self._settings = state.settings
        self._own = frozenset(own)
        self._by_ip: dict[IP, LocalEndpoint] = {}
        for name in sorted(state.endpoints, reverse=True):  # of two with one address the first interface has it
            self._by_ip.update(dict.fromkeys(_addresses(state.endpoints[name]), state.endpoints[name]))
        self._spoofers = [endpoint for endpoint in state.endpoints.values() if endpoint.sources]
        self._contains = _containing(state.sets)

    def denial(self, flow: Flow) -> str:
        way = flow.arrival
        if way.source == way.destination and flow.opened.destination == way.destination:
            return ""  # a pod's to itself is nobody else's affair; by way of another address it is
        sender, receiver = self._sender(way.source), self._by_ip.get(way.destination)
        packet = Packet(
            way.source,
            way.destination,
            way.protocol,
            way.source_port,
            way.destination_port,
            way.icmp_type,
            way.icmp_code,
        )
        if sender is not None:
            reason = self._leaving(sender, packet)
            if reason or receiver is None:
                return reason
        if receiver is None or way.source in self._own:
            return ""
        return self._asked(receiver, "ingress", packet)

    def _sender(self, ip: IP) -> LocalEndpoint | None:
        """Who sends from an address: whoever has it, else the only one that may send from it."""
        endpoint = self._by_ip.get(ip)
        if endpoint is None and self._spoofers:
            found = [one for one in self._spoofers if any(ip in net for net in one.sources)]
            endpoint = found[0] if len(found) == 1 else None
        return endpoint

    def _leaving(self, sender: LocalEndpoint, packet: Packet) -> str:
        to_host = packet.destination in self._own
        if to_host and packet.protocol == ICMP6 and packet.icmp_type in NEIGHBOURS:
            return ""
        reason = guard(packet, self._settings) or self._asked(sender, "egress", packet)
        if not reason and to_host and self._settings.endpoint_to_host == "Drop":
            return "a pod to its own node: defaultEndpointToHostAction is Drop"
        return reason

    def _asked(self, endpoint: LocalEndpoint, direction: Direction, packet: Packet) -> str:
        verdict = judge(packet, endpoint.policy, direction, self._contains)
        return "" if verdict.allowed else verdict.reason


def _containing(sets: Mapping[SetRef, Set[Member]]) -> Contains:
    """`membership`, for many questions: a single address is found by its hash, only real networks are walked."""
    slow = membership(lambda ref: sets.get(ref, frozenset()))
    known: dict[SetRef, Callable[[IP], bool]] = {}

    def contains(ref: SetRef, item: object) -> bool:
        if isinstance(item, tuple):
            return slow(ref, item)
        asked = known.get(ref)
        if asked is None:
            asked = known[ref] = _index(sets.get(ref, frozenset()))
        return asked(item)  # type: ignore[arg-type]

    return contains


def _index(members: Set[Member]) -> Callable[[IP], bool]:
    nets = [net for net in members if not isinstance(net, tuple)]
    single = {net.network_address for net in nets if net.num_addresses == 1}
    wide = [net for net in nets if net.num_addresses > 1]
    return lambda ip: ip in single or any(ip in net for net in wide)


def _guards(settings: Settings) -> Settings:
    """What of the settings decides about flows, the rest at its defaults."""
    return replace(
        Settings(),
        endpoint_to_host=settings.endpoint_to_host,
        allow_vxlan=settings.allow_vxlan,
        allow_ipip=settings.allow_ipip,
        vxlan_port=settings.vxlan_port,
        established=settings.established,
    )


def _differs(old: LocalEndpoint | None, new: LocalEndpoint) -> bool:
    if old is new:
        return False
    return old is None or (old.policy, old.ips, old.nats, old.sources) != (new.policy, new.ips, new.nats, new.sources)


def _addresses(endpoint: LocalEndpoint) -> Iterator[IP]:
    yield from endpoint.ips
    yield from (external for external, _ in endpoint.nats)


def _refs(policy: EndpointPolicy) -> Iterator[SetRef]:
    for tier in (*policy.ingress, *policy.egress):
        for one in tier.policies:
            yield from one.refs
    for _, profile in policy.profiles:
        if profile is not None:
            yield from profile.refs
