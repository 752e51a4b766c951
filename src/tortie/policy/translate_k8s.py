"""Kubernetes' policies to the internal form: NetworkPolicy, staged or not, and ClusterNetworkPolicy.

What cannot be converted is left out of a NetworkPolicy, which isolates all the same. A ClusterNetworkPolicy may deny
where nothing else does: a rule of it that denies or passes and cannot be converted denies everything in its direction,
one that accepts accepts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError
from tortie.model import clusterpolicy as cnp
from tortie.model.k8s import (
    K8sNetworkPolicySpec,
    LabelSelector,
    LabelSelectorRequirement,
    NetworkPolicyPeer,
    NetworkPolicyPort,
)
from tortie.model.policy import PORT_NAME
from tortie.policy.label_names import NAMESPACE, NAMESPACE_PREFIX, ORCHESTRATOR
from tortie.policy.rules import (
    ANY,
    DIRECTIONS,
    KNP_ORDER,
    Action,
    Direction,
    Policy,
    PolicyKey,
    PolicyRule,
    PortSet,
    SelectorSet,
    Side,
    StagedAction,
)
from tortie.policy.selector import All, Eq, Has, In, Not, NotIn, Selector, conj
from tortie.policy.translate_calico import direction_of
from tortie.policy.translate_ports import Ranges, coalesced, number_of, ports_of

CLUSTER_TIERS = {"Admin": "kube-admin", "Baseline": "kube-baseline"}
ACTIONS: dict[str, Action] = {"Accept": "Allow", "Deny": "Deny", "Pass": "Pass"}


@dataclass(frozen=True, slots=True)
class _Peer:
    """The other end: networks, or what a selector matches; nothing is anybody."""

    nets: tuple[Net, ...] = ()
    not_nets: tuple[Net, ...] = ()
    selector: Selector | None = None


@dataclass(frozen=True, slots=True)
class _Ports:
    """What is asked for at the destination; nothing is any port."""

    protocol: int | None = None
    ranges: Ranges = ()
    names: tuple[str, ...] = ()


def kubernetes_policy(key: PolicyKey, spec: K8sNetworkPolicySpec, staged: StagedAction | None = None) -> Policy:
    """A policy of a namespace."""
    selector = conj(Eq(ORCHESTRATOR, "k8s"), *_label_terms(spec.pod_selector), Eq(NAMESPACE, key.namespace))
    types = spec.policy_types or ("Ingress",)
    ingress = [(rule.ports, rule.from_) for rule in spec.ingress]
    egress = [(rule.ports, rule.to) for rule in spec.egress]
    return Policy(
        key,
        selector,
        frozenset(map(direction_of, types)),
        tuple(rule for ports, peers in ingress for rule in _convertible(ports, peers, key.namespace, "ingress")),
        tuple(rule for ports, peers in egress for rule in _convertible(ports, peers, key.namespace, "egress")),
        "default",
        KNP_ORDER,
        staged=staged,
    )


def cluster_policy(key: PolicyKey, spec: cnp.ClusterNetworkPolicySpec) -> Policy:
    """A policy of Kubernetes' administrators. Raises ConfigError when it does not say for whom it is, or in which tier:
    it then counts as absent."""
    if spec.tier not in CLUSTER_TIERS:
        raise ConfigError(f'"{spec.tier}" is not one of {", ".join(CLUSTER_TIERS)}', "spec.tier")
    pods = spec.subject.pods
    if pods is not None:
        subject = _pods(pods.namespace_selector, pods.pod_selector)
    elif spec.subject.namespaces is not None:
        subject = _pods(spec.subject.namespaces)
    else:
        raise ConfigError("give exactly one of namespaces, pods", "spec.subject")
    rules = {
        "ingress": tuple(made for rule in spec.ingress for made in _cluster_rules(rule, rule.from_, "ingress")),
        "egress": tuple(made for rule in spec.egress for made in _cluster_rules(rule, rule.to, "egress")),
    }
    given = {"ingress": spec.ingress, "egress": spec.egress}
    return Policy(
        key,
        subject,
        frozenset(direction for direction in DIRECTIONS if given[direction]),
        rules["ingress"],
        rules["egress"],
        CLUSTER_TIERS[spec.tier],
        float(spec.priority),
    )


# --- rules ------------------------------------------------------------------------------------------------------------


def _convertible(
    ports: tuple[NetworkPolicyPort, ...], peers: tuple[NetworkPolicyPeer, ...], namespace: str, direction: Direction
) -> tuple[PolicyRule, ...]:
    """The rules that a Kubernetes rule becomes; none when it cannot be converted."""
    try:
        others = [_peer(peer, namespace) for peer in peers]
        return tuple(_rules("Allow", direction, list(_port_groups(ports)), others))
    except ConfigError:
        return ()


def _cluster_rules(
    rule: cnp.IngressRule | cnp.EgressRule, peers: Iterable[cnp.IngressPeer | cnp.EgressPeer], direction: Direction
) -> tuple[PolicyRule, ...]:
    annotations = (("name", rule.name),) if rule.name else ()
    try:
        others = [_cluster_peer(peer) for peer in peers]
        groups = list(_protocol_groups(rule.protocols))
        if not others:
            raise ConfigError("needs at least one peer")
        return tuple(_rules(ACTIONS[rule.action], direction, groups, others, annotations))
    except ConfigError:
        return () if rule.action == "Accept" else (PolicyRule("Deny", annotations=annotations),)


def _rules(
    action: Action,
    direction: Direction,
    groups: list[_Ports],
    peers: list[_Peer],
    annotations: tuple[tuple[str, str], ...] = (),
) -> Iterator[PolicyRule]:
    """One rule per protocol and per peer; no peers means anybody, no ports any protocol."""
    for ports in groups or [_Ports()]:
        for peer in peers or [_Peer()]:
            other = Side(peer.nets, peer.not_nets, () if peer.selector is None else (SelectorSet(peer.selector),))
            # Ports are those of the destination: the peer, or the pods that the policy selects, any of which may
            # declare one by name.
            owner = peer.selector if direction == "egress" and peer.selector is not None else All()
            named = tuple(PortSet(owner, ports.protocol, name) for name in ports.names)
            if direction == "ingress":
                source, destination = other, Side(ports=ports.ranges, named=named)
            else:
                source, destination = ANY, replace(other, ports=ports.ranges, named=named)
            yield PolicyRule(
                action, None, ports.protocol, source=source, destination=destination, annotations=annotations
            )


def _port_groups(ports: Iterable[NetworkPolicyPort]) -> Iterator[_Ports]:
    """The ports of a NetworkPolicy's rule by protocol, in sorted order."""
    by_protocol: dict[str, list[int | str | None]] = {}
    for port in ports:
        entry = port.port if port.end_port is None else f"{port.port}:{port.end_port}"
        by_protocol.setdefault(port.protocol or "TCP", []).append(entry)
    for protocol, entries in sorted(by_protocol.items()):
        # An entry without a number is every port of the protocol, whatever stands beside it.
        ranges, names = ports_of(entry for entry in entries if entry is not None) if None not in entries else ((), ())
        yield _Ports(number_of(protocol), ranges, names)


def _protocol_groups(protocols: Iterable[cnp.Protocol]) -> Iterator[_Ports]:
    """The same of a ClusterNetworkPolicy's rule. Ports by name are of any protocol, and come last."""
    by_protocol: dict[str, list[tuple[int, int]]] = {}
    names: list[str] = []
    for protocol in protocols:
        asked = [(name, match) for name in ("sctp", "tcp", "udp") if (match := getattr(protocol, name)) is not None]
        if len(asked) + bool(protocol.destination_named_port) != 1:
            raise ConfigError("give exactly one of tcp, udp, sctp, destinationNamedPort", "protocols")
        if protocol.destination_named_port:
            names.append(_port_name(protocol.destination_named_port))
        for name, match in asked:
            by_protocol.setdefault(name, []).append(_port_range(match.destination_port))
    for name, ranges in sorted(by_protocol.items()):
        whole = (0, 65535) in ranges
        yield _Ports(number_of(name), () if whole else coalesced(ranges))
    if names:
        yield _Ports(None, (), tuple(sorted(set(names))))


def _port_name(name: str) -> str:
    if not PORT_NAME.match(name):
        raise ConfigError(f'"{name}" is not a port name', "destinationNamedPort")
    return name


def _port_range(port: cnp.DestinationPort | None) -> tuple[int, int]:
    if port is None:
        return 0, 65535
    if port.number is not None and port.range is None:
        return port.number, port.number
    if port.range is None or port.number is not None:
        raise ConfigError("give exactly one of number, range", "destinationPort")
    return port.range.start, port.range.end


# --- peers ------------------------------------------------------------------------------------------------------------


def _peer(peer: NetworkPolicyPeer, namespace: str) -> _Peer:
    if peer.ip_block is not None:
        return _Peer((parse_net(peer.ip_block.cidr),), tuple(parse_net(net) for net in peer.ip_block.except_))
    pods = peer.pod_selector or LabelSelector()
    if peer.namespace_selector is None:
        return _Peer(selector=conj(Eq(NAMESPACE, namespace), Eq(ORCHESTRATOR, "k8s"), *_label_terms(pods)))
    return _Peer(selector=_pods(peer.namespace_selector, pods))


def _cluster_peer(peer: cnp.IngressPeer | cnp.EgressPeer) -> _Peer:
    """Raises ConfigError for what has no addresses that anybody here knows: names, nodes, what is newer than we are."""
    if peer.pods is not None:
        return _Peer(selector=_pods(peer.pods.namespace_selector, peer.pods.pod_selector))
    if peer.namespaces is not None:
        return _Peer(selector=_pods(peer.namespaces))
    if isinstance(peer, cnp.EgressPeer) and peer.networks:
        return _Peer(tuple(map(parse_net, peer.networks)))
    raise ConfigError("is not supported")


def _pods(namespaces: LabelSelector, pods: LabelSelector | None = None) -> Selector:
    """The pods with such labels in the namespaces with such labels."""
    inner = list(_label_terms(namespaces))
    where = conj(*inner).prefixed(NAMESPACE_PREFIX) if inner else Has(NAMESPACE)
    return conj(where, Eq(ORCHESTRATOR, "k8s"), *(_label_terms(pods) if pods is not None else ()))


def _label_terms(selector: LabelSelector) -> Iterator[Selector]:
    for key, value in sorted(selector.match_labels.items()):
        yield Eq(key, value)
    for requirement in selector.match_expressions:
        yield _requirement(requirement)


def _requirement(requirement: LabelSelectorRequirement) -> Selector:
    match requirement.operator:
        case "In":
            return In(requirement.key, frozenset(requirement.values))
        case "NotIn":
            return NotIn(requirement.key, frozenset(requirement.values))
        case "Exists":
            return Has(requirement.key)
        case "DoesNotExist":
            return Not(Has(requirement.key))
