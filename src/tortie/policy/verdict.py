"""The meaning of policy, on values: which rule decides about a packet, and why. The reference for everything else.

tier 1: policy, policy, ... -> Allow and Deny end it, Pass goes on with the next tier, no match: default action
tier 2: ...
profiles in the order in which the endpoint lists them: Allow and Deny end it
deny
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from tortie.base.addr import IP, Net
from tortie.policy.rules import (
    Direction,
    Member,
    NamedPort,
    Policy,
    PolicyKey,
    PolicyRule,
    SetRef,
    Side,
    end_of_tier_id,
    no_profile_id,
    rule_id,
)


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection, as policy sees it (after any DNAT, before any SNAT)."""

    source: IP
    destination: IP
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    icmp_type: int = 8
    icmp_code: int = 0

    @property
    def version(self) -> int:
        return self.source.version


@dataclass(frozen=True, slots=True)
class TierPolicies:
    """The policies of one tier that apply to an endpoint in one direction, in their order."""

    name: str
    default_action: str
    policies: tuple[Policy, ...]


@dataclass(frozen=True, slots=True)
class Staging:
    """An endpoint's tiers once more, the staged policies among the others, each where it would stand if it were set.
    `gone` are the policies that would not be there any more: deleted, or replaced by the staged one of their name."""

    ingress: tuple[TierPolicies, ...] = ()
    egress: tuple[TierPolicies, ...] = ()
    gone: frozenset[PolicyKey] = frozenset()

    def tiers(self, direction: Direction) -> tuple[TierPolicies, ...]:
        return self.ingress if direction == "ingress" else self.egress

    def pending(self, direction: Direction, only: PolicyKey | None = None) -> Iterator[TierPolicies]:
        """What would be consulted if the staged policies were set; or one of them and no other."""
        gone = self.gone if only is None else self.gone & {only.target}
        for tier in self.tiers(direction):
            there = (p for p in tier.policies if (p.key not in gone if p.staged is None else only in (None, p.key)))
            if policies := tuple(there):
                yield replace(tier, policies=policies)


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """All that is consulted for an endpoint. A profile that does not exist is None, which denies. `staging` is None
    where no staged policy would change what is consulted."""

    interface: str
    ingress: tuple[TierPolicies, ...] = ()
    egress: tuple[TierPolicies, ...] = ()
    profiles: tuple[tuple[str, Policy | None], ...] = ()
    staging: Staging | None = None

    def tiers(self, direction: Direction) -> tuple[TierPolicies, ...]:
        return self.ingress if direction == "ingress" else self.egress


HostClass = Literal["untracked", "preDNAT", "forward", "normal"]
"""At which of its stations a packet meets a host endpoint: before connection tracking, before its destination is
translated, on its way through the host, or at its way into or out of the host itself."""


@dataclass(frozen=True, slots=True)
class HostTiers:
    """The tiers of one class of a host endpoint."""

    ingress: tuple[TierPolicies, ...] = ()
    egress: tuple[TierPolicies, ...] = ()

    def of(self, direction: Direction) -> tuple[TierPolicies, ...]:
        return self.ingress if direction == "ingress" else self.egress


NO_TIERS = HostTiers()


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """All that is consulted for a host endpoint. `interface` is a name, `*` for all that have no other host endpoint,
    or empty: then it is the one that has one of `expected_ips`."""

    name: str
    interface: str
    expected_ips: tuple[IP, ...] = ()
    node: str = ""
    untracked: HostTiers = NO_TIERS
    pre_dnat: HostTiers = NO_TIERS
    forward: HostTiers = NO_TIERS
    normal: HostTiers = NO_TIERS
    profiles: tuple[tuple[str, Policy | None], ...] = ()

    def tiers(self, kind: HostClass, direction: Direction) -> tuple[TierPolicies, ...]:
        every = {"untracked": self.untracked, "preDNAT": self.pre_dnat, "forward": self.forward, "normal": self.normal}
        return every[kind].of(direction)

    @property
    def all_tiers(self) -> tuple[TierPolicies, ...]:
        every = (self.untracked, self.pre_dnat, self.forward, self.normal)
        return tuple(tier for one in every for tier in (*one.ingress, *one.egress))


@dataclass(frozen=True, slots=True)
class Failsafe:
    """A port that no policy of a host endpoint closes, towards hosts of `net` if there is one."""

    protocol: int
    port: int
    net: Net | None = None

    def holds(self, protocol: int, port: int, peer: IP) -> bool:
        return (self.protocol, self.port) == (protocol, port) and (self.net is None or peer in self.net)


_ALWAYS = tuple(Failsafe(6, port) for port in (179, 2379, 2380, 5473, 6443, 6666, 6667))


@dataclass(frozen=True, slots=True)
class Failsafes:
    """What stays open at every host endpoint; Calico's list: SSH, DHCP, BGP, etcd, Typha, the Kubernetes API; DNS."""

    inbound: tuple[Failsafe, ...] = (Failsafe(6, 22), Failsafe(17, 68), *_ALWAYS)
    outbound: tuple[Failsafe, ...] = (Failsafe(17, 53), Failsafe(17, 67), *_ALWAYS)

    def of(self, direction: Direction) -> tuple[Failsafe, ...]:
        return self.inbound if direction == "ingress" else self.outbound


LINK_TYPES = (130, 131, 132, 133, 134, 135, 136, 143)
"""ICMPv6 types without which there is no IPv6 on a link: multicast listeners, routers, neighbours. Like ARP, they are
nobody's to close at a host's own interface."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is decided and by what. `rule` is the kernel's name of the deciding rule, whose counter counts it."""

    allowed: bool
    tier: str
    policy: str
    rule: str
    reason: str

    def __str__(self) -> str:
        return f"{'allow' if self.allowed else 'deny'}: {self.reason}"


Contains = Callable[[SetRef, NamedPort | IP], bool]
"""Whether a set holds an address (SelectorSet, ServiceSet) or an (address, protocol, port) (PortSet, ServiceSet with
ports)."""


def judge(packet: Packet, endpoint: EndpointPolicy, direction: Direction, contains: Contains) -> Verdict:
    """The verdict on the first packet of a connection into (ingress) or out of (egress) an endpoint."""
    return _judged(packet, endpoint, endpoint.tiers(direction), direction, contains)


def judge_pending(
    packet: Packet, endpoint: EndpointPolicy, direction: Direction, contains: Contains, only: PolicyKey | None = None
) -> Verdict:
    """The same as it would be if all staged policies were set and carried out; or `only` one of them."""
    if endpoint.staging is None:
        return judge(packet, endpoint, direction, contains)
    return _judged(packet, endpoint, endpoint.staging.pending(direction, only), direction, contains)


def _judged(
    packet: Packet,
    endpoint: EndpointPolicy,
    tiers: Iterable[TierPolicies],
    direction: Direction,
    contains: Contains,
) -> Verdict:
    for tier in tiers:
        decided = _first_action(packet, tier.policies, direction, contains)
        if decided is None:
            if tier.default_action == "Pass":
                continue
            isolating = ", ".join(str(policy.key) for policy in tier.policies)
            return Verdict(
                False,
                tier.name,
                "",
                end_of_tier_id(tier.name, endpoint.interface, direction),
                f"no rule matched in tier {tier.name}, whose policies select the pod: {isolating}",
            )
        policy, index, rule = decided
        if rule.action != "Pass":
            return _decided(policy, index, rule, direction, tier.name)
    for name, profile in endpoint.profiles:
        if profile is None:
            reason = f"profile {name} does not exist"
            return Verdict(False, "", name, no_profile_id(endpoint.interface, direction), reason)
        decided = _first_action(packet, (profile,), direction, contains)
        if decided is not None and decided[2].action != "Pass":
            return _decided(profile, decided[1], decided[2], direction, "")
    return Verdict(False, "", "", no_profile_id(endpoint.interface, direction), "no profile allows it")


def judge_host(
    packet: Packet,
    host: HostPolicy,
    kind: HostClass,
    direction: Direction,
    contains: Contains,
    failsafes: Failsafes = Failsafes(),
) -> Verdict | None:
    """What one class of a host endpoint says about the first packet of a connection. None: nothing, it goes on.

    An Allow before connection tracking or before translation is one of all later classes of that direction, too.
    """
    tiers = host.tiers(kind, direction)
    if kind == "forward" and not tiers:
        return Verdict(True, "", "", "", f"no policy of host endpoint {host.name} is about what it forwards")
    if kind == "normal" or (tiers and kind != "forward"):
        kept = _kept_open(packet, kind, direction, failsafes)
        if kept is not None:
            return kept
    for tier in tiers:
        decided = _first_action(packet, tier.policies, direction, contains)
        if decided is not None and decided[2].action != "Pass":
            return _decided(*decided, direction, tier.name)
        if decided is None and tier.default_action != "Pass" and kind in ("forward", "normal"):
            selecting = ", ".join(str(policy.key) for policy in tier.policies)
            whose = f"whose policies select host endpoint {host.name}: {selecting}"
            name = host_id(host.name, kind, direction, f"tier/{tier.name}")
            return Verdict(False, tier.name, "", name, f"no rule matched in tier {tier.name}, {whose}")
    return _by_profiles(packet, host, direction, contains) if kind == "normal" else None


def _by_profiles(packet: Packet, host: HostPolicy, direction: Direction, contains: Contains) -> Verdict:
    nothing = host_id(host.name, "normal", direction, "no-profile")
    for name, profile in host.profiles:
        if profile is None:
            return Verdict(False, "", name, nothing, f"profile {name} does not exist")
        decided = _first_action(packet, (profile,), direction, contains)
        if decided is not None and decided[2].action != "Pass":
            return _decided(*decided, direction, "")
    return Verdict(False, "", "", nothing, f"no policy and no profile of host endpoint {host.name} allows it")


def _kept_open(packet: Packet, kind: HostClass, direction: Direction, failsafes: Failsafes) -> Verdict | None:
    """By a failsafe. Before connection tracking the answers pass as well, so that they are tracked like the rest."""
    if packet.protocol == 58 and packet.icmp_type in LINK_TYPES:
        return Verdict(True, "", "", failsafe_id(direction, "link"), "a link cannot do without it")
    peer = packet.source if direction == "ingress" else packet.destination
    if any(one.holds(packet.protocol, packet.destination_port, peer) for one in failsafes.of(direction)):
        return Verdict(True, "", "", failsafe_id(direction), "the port is a failsafe")
    back = failsafes.of("egress" if direction == "ingress" else "ingress")
    if kind == "untracked" and any(one.holds(packet.protocol, packet.source_port, peer) for one in back):
        return Verdict(True, "", "", failsafe_id(direction, "answer"), "it answers a failsafe port")
    return None


def host_id(name: str, kind: HostClass, direction: Direction, what: str) -> str:
    """The name of a denial at a host endpoint that no policy rule makes: `hep/eth0|normal|ingress|no-profile`."""
    return f"hep/{name}|{kind}|{direction}|{what}"


def failsafe_id(direction: Direction, what: str = "port") -> str:
    """The name of the rules that keep a host's ports open: `failsafe|ingress|port`."""
    return f"failsafe|{direction}|{what}"


def matches(rule: PolicyRule, packet: Packet, contains: Contains) -> bool:
    """Whether every clause of a rule holds of a packet."""
    if packet.version not in rule.versions:
        return False
    if rule.protocol is not None and packet.protocol != rule.protocol:
        return False
    if rule.not_protocol is not None and packet.protocol == rule.not_protocol:
        return False
    if rule.icmp is not None and not _is_icmp(packet, rule.icmp):
        return False
    if rule.not_icmp is not None and _is_icmp(packet, rule.not_icmp):
        return False
    return _side_matches(rule.source, packet.source, packet.source_port, packet.protocol, contains) and _side_matches(
        rule.destination, packet.destination, packet.destination_port, packet.protocol, contains
    )


def _first_action(
    packet: Packet, policies: Iterable[Policy], direction: Direction, contains: Contains
) -> tuple[Policy, int, PolicyRule] | None:
    """The first matching rule that is not Log."""
    for policy in policies:
        for index, rule in enumerate(policy.rules(direction)):
            if rule.action != "Log" and matches(rule, packet, contains):
                return policy, index, rule
    return None


def _decided(policy: Policy, index: int, rule: PolicyRule, direction: Direction, tier: str) -> Verdict:
    where = f"in tier {tier}" if tier else "after all tiers"
    reason = f"{rule.action} by rule {index} ({direction}) of {policy.key} {where}"
    allowed = rule.action == "Allow"
    return Verdict(allowed, tier, str(policy.key), rule_id(policy.key, direction, index), reason)


def _is_icmp(packet: Packet, icmp: tuple[int | None, int | None]) -> bool:
    kind, code = icmp
    return (kind is None or packet.icmp_type == kind) and (code is None or packet.icmp_code == code)


def _side_matches(side: Side, ip: IP, port: int, protocol: int, contains: Contains) -> bool:
    if side.nets and not any(ip in net for net in side.nets):
        return False
    if any(ip in net for net in side.not_nets):
        return False
    if not all(contains(ref, ip) for ref in side.sets) or any(contains(ref, ip) for ref in side.not_sets):
        return False
    here = (ip, protocol, port)
    if not all(contains(ref, here if ref.ports else ip) for ref in side.services):
        return False
    if side.ports or side.named:
        numeric = any(first <= port <= last for first, last in side.ports)
        if not numeric and not any(contains(ref, here) for ref in side.named):
            return False
    if any(first <= port <= last for first, last in side.not_ports):
        return False
    return not any(contains(ref, here) for ref in side.not_named)


def membership(sets: Callable[[SetRef], Collection[Member]]) -> Contains:
    """`Contains` over the members of sets as values; for questions, not for hot paths."""

    def contains(ref: SetRef, item: NamedPort | IP) -> bool:
        members = sets(ref)
        if isinstance(item, tuple):
            return item in members
        return any(not isinstance(net, tuple) and item in net for net in members)

    return contains
