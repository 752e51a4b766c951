"""Policies as a linter looks at them: each rule of the internal form with its place in the document."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from msgspec.structs import replace

from tortie.calc.simulate.simulation import Key, Simulation
from tortie.model.clusterpolicy import ClusterNetworkPolicy
from tortie.model.hostendpoint import HostEndpoint
from tortie.model.k8s import K8sNetworkPolicy
from tortie.model.meta import Resource
from tortie.model.policy import BUILT_IN_TIERS, GlobalNetworkPolicy, GlobalNetworkSet, NetworkPolicy, NetworkSet, Tier
from tortie.model.staged import StagedGlobalNetworkPolicy, StagedKubernetesNetworkPolicy, StagedNetworkPolicy
from tortie.policy.rules import DIRECTIONS, Direction, Policy, PolicyKey, PolicyRule
from tortie.policy.selector import Selector
from tortie.policy.translate import NAMESPACE, AnyPolicy, policy_of, without_reserved

CALICO: tuple[type[Any], ...] = (
    NetworkPolicy, GlobalNetworkPolicy, StagedNetworkPolicy, StagedGlobalNetworkPolicy,
)  # fmt: skip
KUBERNETES: tuple[type[Any], ...] = (K8sNetworkPolicy, StagedKubernetesNetworkPolicy)
KINDS: tuple[type[Any], ...] = (*CALICO, *KUBERNETES, ClusterNetworkPolicy)

PEERS = {"ingress": "from", "egress": "to"}
"""Where Kubernetes' rules have the other end."""


@dataclass(frozen=True, slots=True)
class Place:
    """A rule of the internal form: `path` is that of the document's rule, `peer` goes down to one of its peers."""

    direction: Direction
    index: int
    rule: PolicyRule
    path: str
    peer: str


@dataclass(frozen=True)
class Subject:
    """A policy that is looked at. `written` is the document before defaults, None for one that was there already."""

    resource: AnyPolicy
    policy: Policy
    written: Any
    source: str

    @cached_property
    def places(self) -> tuple[Place, ...]:
        return tuple(place for direction in DIRECTIONS for place in _places(self.resource, self.policy, direction))

    def selects(self, labels: Mapping[str, str]) -> bool:
        return self.policy.selector is not None and self.policy.selector.matches(labels)


class Scene:
    """Everything that the checks ask about, looked up once."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.subjects = tuple(_subjects(simulation))
        self.pods: Mapping[str, Mapping[str, str]] = {name: simulation.labels(name) for name in simulation.endpoints}
        hosts = simulation.objects.all(HostEndpoint)
        self.hosts: Mapping[str, Mapping[str, str]] = {one.name: simulation.inherited(one) for one in hosts}
        self._selected: dict[PolicyKey, tuple[str, ...]] = {}
        self._found: dict[Selector, bool] = {}
        self.sets = tuple(_set_labels(simulation))
        tiers = {one.name: (one.spec.order, one.spec.default_action or "Deny") for one in simulation.objects.all(Tier)}
        self.tiers: Mapping[str, tuple[float | None, str]] = {
            **{name: (order, action) for name, order, action in BUILT_IN_TIERS},
            **tiers,
        }

    @property
    def ours(self) -> tuple[Subject, ...]:
        """The policies that findings are about: those of the manifests."""
        return tuple(subject for subject in self.subjects if subject.written is not None)

    @cached_property
    def everything(self) -> tuple[Mapping[str, str], ...]:
        """The labels of all that a rule's selector may find."""
        return (*self.pods.values(), *self.hosts.values(), *self.sets)

    def selected(self, subject: Subject) -> tuple[str, ...]:
        """The pods that a policy selects."""
        key = subject.policy.key
        if key not in self._selected:
            near = self._by_namespace.get(key.namespace, ()) if key.namespace else self.pods
            self._selected[key] = tuple(name for name in near if subject.selects(self.pods[name]))
        return self._selected[key]

    @cached_property
    def _by_namespace(self) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.pods:
            found.setdefault(name.partition("/")[0], []).append(name)
        return found

    def found(self, selector: Selector) -> bool:
        """Whether a rule's selector finds anything."""
        if selector not in self._found:
            self._found[selector] = any(selector.matches(labels) for labels in self.everything)
        return self._found[selector]


def _subjects(simulation: Simulation) -> Iterator[Subject]:
    for kind in KINDS:
        for resource in simulation.objects.all(kind):
            policy = policy_of(resource)
            key: Key = (kind, resource.namespace, resource.name)
            written = simulation.written.get(key)
            if policy is not None:
                last = written[-1] if written else None
                yield Subject(resource, policy, last.resource if last else None, last.source if last else "")


def _set_labels(simulation: Simulation) -> Iterator[Mapping[str, str]]:
    for one in simulation.objects.all(GlobalNetworkSet):
        yield one.labels
    for inside in simulation.objects.all(NetworkSet):
        labels = without_reserved(inside.labels) | {NAMESPACE: inside.namespace}
        yield {**simulation.profile_labels(f"kns.{inside.namespace}"), **labels}


# --- where rules come from ----------------------------------------------------------------------------------------


def _places(resource: AnyPolicy, policy: Policy, direction: Direction) -> Iterator[Place]:
    """The rules in their order. A rule of the document that becomes several is translated alone, to see which."""
    index = 0
    for number, rule in enumerate(getattr(resource.spec, direction)):
        path = f"spec.{direction}[{number}]"
        peers = _by_peer(resource, rule, direction, path)
        for made in _alone(resource, rule, direction):
            yield Place(direction, index, policy.rules(direction)[index], path, peers.get(made, path))
            index += 1


def _by_peer(resource: Resource, rule: Any, direction: Direction, path: str) -> dict[PolicyRule, str]:
    """The path of the peer that a rule of the internal form has, for kinds whose rules list peers."""
    if isinstance(resource, CALICO):
        return {}
    field = "from_" if direction == "ingress" else "to"
    found: dict[PolicyRule, str] = {}
    for number, peer in enumerate(getattr(rule, field)):
        for made in _alone(resource, replace(rule, **{field: (peer,)}), direction):
            found.setdefault(made, f"{path}.{PEERS[direction]}[{number}]")
    return found


def _alone(resource: Any, rule: Any, direction: Direction) -> tuple[PolicyRule, ...]:
    other: Direction = "egress" if direction == "ingress" else "ingress"
    policy = policy_of(replace(resource, spec=replace(resource.spec, **{direction: (rule,), other: ()})))
    return policy.rules(direction) if policy is not None else ()


def by_path(places: Iterable[Place], chosen: Container[tuple[Direction, int]]) -> Iterator[list[Place]]:
    """The places of each rule of a document all of whose places are chosen, by direction and number."""
    rules: dict[str, list[Place]] = {}
    for place in places:
        rules.setdefault(place.path, []).append(place)
    for members in rules.values():
        if all((place.direction, place.index) in chosen for place in members):
            yield members
