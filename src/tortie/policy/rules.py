"""Policy in the form that everything decides on: what Calico calls the translation from v3 to its internal model.

Selectors are parsed and carry their namespace, ports are ranges or sets, names of actions are final. One value serves
the verdict, the nftables renderer and the explanation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from tortie.base.addr import IP, Net
from tortie.model.policy import HTTPMatch
from tortie.policy.selector import Selector

Action = Literal["Allow", "Deny", "Log", "Pass"]
Direction = Literal["ingress", "egress"]
Hook = Literal["filter", "untracked", "preDNAT"]
"""Where a policy is asked: among all others; before connection tracking; before destinations are translated. The last
two concern host endpoints alone."""
StagedAction = Literal["Set", "Delete"]
DIRECTIONS: tuple[Direction, Direction] = ("ingress", "egress")

KNP_ORDER = 1000.0
"""Where Kubernetes policies stand among the others of the tier `default`."""


SET_BY = {"snp": "np", "sgnp": "gnp", "sknp": "knp"}
"""The kinds of staged policies, and of the policies that they set or delete."""


class PolicyKey(NamedTuple):
    """Identity of a policy or profile. `kind` is Calico's short form: np, gnp, knp, kcnp, snp, sgnp, sknp, profile.

    A tuple, because each state looks thousands of them up.
    """

    kind: str
    namespace: str
    name: str

    @property
    def target(self) -> PolicyKey:
        """The policy that a staged one sets or deletes; of any other itself."""
        return PolicyKey(SET_BY.get(self.kind, self.kind), self.namespace, self.name)

    def __str__(self) -> str:
        return "/".join(part for part in (self.kind, self.namespace, self.name) if part)


@dataclass(frozen=True)
class SelectorSet:
    """The addresses of every endpoint and network set that a selector matches."""

    selector: Selector

    @cached_property
    def uid(self) -> str:
        return self.selector.uid

    @cached_property
    def _hash(self) -> int:
        return hash(self.selector)

    def __hash__(self) -> int:
        return self._hash

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

    @cached_property
    def _hash(self) -> int:
        return hash((self.selector, self.protocol, self.port))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return f'port "{self.port}" of {self.selector}'


@dataclass(frozen=True)
class ServiceSet:
    """(address, protocol, port) of everything behind a service, ready or not. `ports` False: the addresses alone."""

    namespace: str
    name: str
    ports: bool

    @cached_property
    def uid(self) -> str:
        return f"{self.namespace}/{self.name},{'ports' if self.ports else 'addresses'}"

    def __str__(self) -> str:
        return f"service {self.namespace}/{self.name}"


SelectorRef = SelectorSet | PortSet
SetRef = SelectorRef | ServiceSet
NamedPort = tuple[IP, int, int]
"""A member of a PortSet, or of a ServiceSet with ports: address, protocol number, port."""
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
    services: tuple[ServiceSet, ...] = ()

    @property
    def refs(self) -> tuple[SetRef, ...]:
        return (*self.sets, *self.not_sets, *self.named, *self.not_named, *self.services)

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
    """One rule. `icmp` is (type, code), either None meaning any; None for no such match.

    `http` is for an application layer: where packets are looked at, the rule matches by the rest. `annotations` are
    what its author noted, for people.
    """

    action: Action
    version: int | None = None
    protocol: int | None = None
    not_protocol: int | None = None
    icmp: tuple[int | None, int | None] | None = None
    not_icmp: tuple[int | None, int | None] | None = None
    source: Side = ANY
    destination: Side = ANY
    http: HTTPMatch | None = None
    annotations: tuple[tuple[str, str], ...] = ()

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
    """A policy or a profile. A profile has the selector None: endpoints name it themselves.

    `staged` policies are asked for what they would do and never obeyed; `on_forward` ones concern what a host endpoint
    forwards, too; `everywhere` keeps a policy's sets on nodes on which it selects nothing.
    """

    key: PolicyKey
    selector: Selector | None
    directions: frozenset[Direction]
    ingress: tuple[PolicyRule, ...] = ()
    egress: tuple[PolicyRule, ...] = ()
    tier: str = "default"
    order: float | None = None
    hook: Hook = "filter"
    on_forward: bool = False
    staged: StagedAction | None = None
    everywhere: bool = False

    def rules(self, direction: Direction) -> tuple[PolicyRule, ...]:
        return self.ingress if direction == "ingress" else self.egress

    @cached_property
    def refs(self) -> frozenset[SetRef]:
        """Every set that its rules look into."""
        return frozenset(ref for rule in (*self.ingress, *self.egress) for ref in rule.refs)

    @property
    def sort_key(self) -> tuple[bool, float, str, bool]:
        """Order inside the tier: unset last, ties by `name/namespace/kind`. A staged policy stands where the one that
        it sets would, before the one that it replaces."""
        key = self.key.target
        return self.order is None, self.order or 0.0, f"{key.name}/{key.namespace}/{key.kind}", self.staged is None


def rule_id(key: PolicyKey, direction: Direction, index: int) -> str:
    """The name of a rule in the kernel, in counters and in explanations: `np/red/web|ingress|0`."""
    return f"{key}|{direction}|{index}"


def end_of_tier_id(tier: str, interface: str, direction: Direction) -> str:
    """The name of the drop at the end of a tier."""
    return f"tier/{tier}|{interface}|{direction}"


def staged_end_id(tier: str, interface: str, direction: Direction) -> str:
    """The name of the count of those that the end of a tier would deny, if its policies were not staged but set."""
    return f"staged-tier/{tier}|{interface}|{direction}"


def no_profile_id(interface: str, direction: Direction) -> str:
    """The name of the drop after the last profile."""
    return f"no-profile|{interface}|{direction}"
