"""Policy in the form that everything decides on: what Calico calls the translation from v3 to its internal model.

Selectors are parsed and carry their namespace, ports are ranges or sets, names of actions are final. One value serves
the verdict, the nftables renderer and the explanation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from tortie.base.addr import IP, Net
from tortie.policy.selector import Selector

Action = Literal["Allow", "Deny", "Log", "Pass"]
Direction = Literal["ingress", "egress"]
DIRECTIONS: tuple[Direction, Direction] = ("ingress", "egress")

KNP_ORDER = 1000.0
"""Where Kubernetes policies stand among the others of the tier `default`."""


@dataclass(frozen=True, slots=True, order=True)
class PolicyKey:
    """Identity of a policy or profile. `kind` is Calico's short form: np, gnp, knp, profile."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return "/".join(part for part in (self.kind, self.namespace, self.name) if part)


@dataclass(frozen=True)
class SelectorSet:
    """The addresses of every endpoint and network set that a selector matches."""

    selector: Selector

    @cached_property
    def uid(self) -> str:
        return self.selector.uid

    def __str__(self) -> str:
        return str(self.selector)


@dataclass(frozen=True)
class PortSet:
    """(address, protocol, port) of every endpoint that a selector matches and that declares a port of this name."""

    selector: Selector
    protocol: int | None
    port: str

    @cached_property
    def uid(self) -> str:
        return f"{self.selector.uid},{self.protocol or 'any'},{self.port}"

    def __str__(self) -> str:
        return f'port "{self.port}" of {self.selector}'


SetRef = SelectorSet | PortSet
NamedPort = tuple[IP, int, int]
"""A member of a PortSet: address, protocol number, port."""
Member = Net | NamedPort


@dataclass(frozen=True, slots=True)
class Side:
    """What a rule asks of one end of a packet; everything present must hold. Port ranges and sets are alternatives."""

    nets: tuple[Net, ...] = ()
    not_nets: tuple[Net, ...] = ()
    sets: tuple[SelectorSet, ...] = ()
    not_sets: tuple[SelectorSet, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    named: tuple[PortSet, ...] = ()
    not_ports: tuple[tuple[int, int], ...] = ()
    not_named: tuple[PortSet, ...] = ()

    @property
    def refs(self) -> tuple[SetRef, ...]:
        return (*self.sets, *self.not_sets, *self.named, *self.not_named)

    @property
    def families(self) -> set[int]:
        """The IP versions that the networks leave possible: a list of those of one family, even of ones to exclude,
        makes the rule one of that family, as Calico has it."""
        possible = {4, 6}
        for nets in (self.nets, self.not_nets):
            if nets:
                possible &= {net.version for net in nets}
        return possible

    @property
    def asks_address(self) -> bool:
        return bool(self.nets or self.not_nets or self.refs)


ANY = Side()


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One rule. `icmp` is (type, code), either None meaning any; None for no such match."""

    action: Action
    version: int | None = None
    protocol: int | None = None
    not_protocol: int | None = None
    icmp: tuple[int | None, int | None] | None = None
    not_icmp: tuple[int | None, int | None] | None = None
    source: Side = ANY
    destination: Side = ANY

    @property
    def refs(self) -> tuple[SetRef, ...]:
        return (*self.source.refs, *self.destination.refs)

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that the rule can match at all."""
        possible = self.source.families & self.destination.families
        if self.version is not None:
            possible &= {self.version}
        if self.protocol in (1, 58):
            possible &= {4 if self.protocol == 1 else 6}
        return tuple(sorted(possible))


@dataclass(frozen=True)
class Policy:
    """A policy or a profile. A profile has the selector None: endpoints name it themselves."""

    key: PolicyKey
    selector: Selector | None
    directions: frozenset[Direction]
    ingress: tuple[PolicyRule, ...] = ()
    egress: tuple[PolicyRule, ...] = ()
    tier: str = "default"
    order: float | None = None

    def rules(self, direction: Direction) -> tuple[PolicyRule, ...]:
        return self.ingress if direction == "ingress" else self.egress

    @cached_property
    def refs(self) -> frozenset[SetRef]:
        """Every set that its rules look into."""
        return frozenset(ref for rule in (*self.ingress, *self.egress) for ref in rule.refs)

    @property
    def sort_key(self) -> tuple[bool, float, str]:
        """Order inside the tier: unset last, ties by `name/namespace/kind`."""
        return self.order is None, self.order or 0.0, f"{self.key.name}/{self.key.namespace}/{self.key.kind}"


def rule_id(key: PolicyKey, direction: Direction, index: int) -> str:
    """The name of a rule in the kernel, in counters and in explanations: `np/red/web|ingress|0`."""
    return f"{key}|{direction}|{index}"


def end_of_tier_id(tier: str, interface: str, direction: Direction) -> str:
    """The name of the drop at the end of a tier."""
    return f"tier/{tier}|{interface}|{direction}"


def no_profile_id(interface: str, direction: Direction) -> str:
    """The name of the drop after the last profile."""
    return f"no-profile|{interface}|{direction}"
