"""ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2: what an administrator says before all policies of the
namespaces (tier Admin), and what holds where these say nothing (tier Baseline)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, field

from tortie.model.k8s import LabelSelector
from tortie.model.meta import Kind, Problem, Resource, Value, cidr_problem
from tortie.model.policy import PORT_NAME

MAX_ENTRIES = 25
"""Rules in a direction, and peers, protocols, networks and names in a rule."""
MAX_RULE_NAME = 100

RealPort = Annotated[int, Meta(ge=1, le=65535)]
Action = Literal["Accept", "Deny", "Pass"]


def _one_of(value: Value, *names: str) -> Iterator[Problem]:
    """Exactly one of the fields must be there."""
    words = {"domain_names": "domainNames", "destination_named_port": "destinationNamedPort"}
    given = [name for name in names if getattr(value, name) not in (None, (), "")]
    if len(given) != 1:
        yield "", f"give exactly one of {', '.join(words.get(name, name) for name in names)}"


class NamespacedPod(Value, frozen=True, kw_only=True):
    namespace_selector: LabelSelector = LabelSelector()
    pod_selector: LabelSelector = LabelSelector()


class Subject(Value, frozen=True, kw_only=True):
    """The pods that a policy is about."""

    namespaces: LabelSelector | None = None
    pods: NamespacedPod | None = None

    def problems(self) -> Iterator[Problem]:
        yield from _one_of(self, "namespaces", "pods")


class IngressPeer(Value, frozen=True, kw_only=True):
    namespaces: LabelSelector | None = None
    pods: NamespacedPod | None = None

    def problems(self) -> Iterator[Problem]:
        yield from _one_of(self, "namespaces", "pods")


class EgressPeer(Value, frozen=True, kw_only=True):
    namespaces: LabelSelector | None = None
    pods: NamespacedPod | None = None
    nodes: LabelSelector | None = None
    networks: tuple[str, ...] = ()
    domain_names: tuple[str, ...] = ()

    def problems(self) -> Iterator[Problem]:
        yield from _one_of(self, "namespaces", "pods", "nodes", "networks", "domain_names")
        for name, entries in (("networks", self.networks), ("domainNames", self.domain_names)):
            yield from _too_many(name, entries)
        for i, net in enumerate(self.networks):
            yield from cidr_problem(f"networks[{i}]", net)


class PortRange(Value, frozen=True, kw_only=True):
    start: RealPort
    end: RealPort

    def problems(self) -> Iterator[Problem]:
        if self.start >= self.end:
            yield "", f"start {self.start} must be below end {self.end}"


class DestinationPort(Value, frozen=True, kw_only=True):
    number: RealPort | None = None
    range: PortRange | None = None

    def problems(self) -> Iterator[Problem]:
        yield from _one_of(self, "number", "range")


class PortMatch(Value, frozen=True, kw_only=True):
    """What TCP, UDP and SCTP may be asked for; nothing is any port."""

    destination_port: DestinationPort | None = None


class Protocol(Value, frozen=True, kw_only=True):
    tcp: PortMatch | None = None
    udp: PortMatch | None = None
    sctp: PortMatch | None = None
    destination_named_port: str = ""

    def problems(self) -> Iterator[Problem]:
        yield from _one_of(self, "tcp", "udp", "sctp", "destination_named_port")
        if self.destination_named_port and not PORT_NAME.match(self.destination_named_port):
            yield "destinationNamedPort", f'"{self.destination_named_port}" is not a port name'


def _too_many(name: str, entries: tuple[Any, ...]) -> Iterator[Problem]:
    if len(entries) > MAX_ENTRIES:
        yield name, f"at most {MAX_ENTRIES} entries, here {len(entries)}"


def _rule_problems(rule: IngressRule | EgressRule, field_name: str, peers: tuple[Any, ...]) -> Iterator[Problem]:
    if len(rule.name) > MAX_RULE_NAME:
        yield "name", f"has {len(rule.name)} characters, at most {MAX_RULE_NAME} are allowed"
    if not peers:
        yield field_name, "needs at least one peer"
    yield from _too_many(field_name, peers)
    yield from _too_many("protocols", rule.protocols)


class IngressRule(Value, frozen=True, kw_only=True):
    action: Action
    name: str = ""
    from_: tuple[IngressPeer, ...] = field(name="from", default=())
    protocols: tuple[Protocol, ...] = ()

    def problems(self) -> Iterator[Problem]:
        yield from _rule_problems(self, "from", self.from_)


class EgressRule(Value, frozen=True, kw_only=True):
    action: Action
    name: str = ""
    to: tuple[EgressPeer, ...] = ()
    protocols: tuple[Protocol, ...] = ()

    def problems(self) -> Iterator[Problem]:
        yield from _rule_problems(self, "to", self.to)
        named = [i for i, protocol in enumerate(self.protocols) if protocol.destination_named_port]
        if named and any(peer.networks or peer.nodes is not None or peer.domain_names for peer in self.to):
            yield f"protocols[{named[0]}].destinationNamedPort", "networks, nodes and domainNames have no named ports"


class ClusterNetworkPolicySpec(Value, frozen=True, kw_only=True):
    tier: Literal["Admin", "Baseline"]
    priority: Annotated[int, Meta(ge=0, le=1000)]
    subject: Subject
    ingress: tuple[IngressRule, ...] = ()
    egress: tuple[EgressRule, ...] = ()

    def problems(self) -> Iterator[Problem]:
        yield from _too_many("ingress", self.ingress)
        yield from _too_many("egress", self.egress)


class ClusterNetworkPolicy(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="policy.networking.k8s.io/v1alpha2",
        kind="ClusterNetworkPolicy",
        plural="clusternetworkpolicies",
        aliases=("clusternetworkpolicy", "kcnp", "kubernetesclusternetworkpolicy"),
    )
    spec: ClusterNetworkPolicySpec
    status: Any = None


def unmatched(rule: EgressRule) -> Iterator[Problem]:
    """The peers of a rule that nobody can match here: the rule then accepts nothing, or denies everything."""
    for i, peer in enumerate(rule.to):
        for name, given in (("domainNames", peer.domain_names), ("nodes", peer.nodes is not None)):
            if given:
                yield f"to[{i}].{name}", "is not supported"
