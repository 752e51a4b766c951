"""The meaning of policy, on values: which rule decides about a packet, and why. The reference for everything else.

tier 1: policy, policy, ... -> Allow and Deny end it, Pass goes on with the next tier, no match: default action
tier 2: ...
profiles in the order in which the endpoint lists them: Allow and Deny end it
deny
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from tortie.base.addr import IP
from tortie.policy.rules import (
    Direction,
    Member,
    NamedPort,
    Policy,
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
class EndpointPolicy:
    """All that is consulted for an endpoint. A profile that does not exist is None, which denies."""

    interface: str
    ingress: tuple[TierPolicies, ...] = ()
    egress: tuple[TierPolicies, ...] = ()
    profiles: tuple[tuple[str, Policy | None], ...] = ()

    def tiers(self, direction: Direction) -> tuple[TierPolicies, ...]:
        return self.ingress if direction == "ingress" else self.egress


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
"""Whether a set holds an address (SelectorSet) or an (address, protocol, port) (PortSet)."""


def judge(packet: Packet, endpoint: EndpointPolicy, direction: Direction, contains: Contains) -> Verdict:
    """The verdict on the first packet of a connection into (ingress) or out of (egress) an endpoint."""
    for tier in endpoint.tiers(direction):
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
