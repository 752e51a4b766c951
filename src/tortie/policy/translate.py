"""From the API's policies, profiles, namespaces and service accounts to the internal form. Source: Calico's v3 to v1
translation and its conversion of Kubernetes network policies.

Where a Kubernetes rule cannot be converted it is left out, as upstream does; admission refuses such rules earlier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError
from tortie.model.k8s import (
    K8sNetworkPolicy,
    LabelSelector,
    LabelSelectorRequirement,
    Namespace,
    NetworkPolicyPeer,
    NetworkPolicyPort,
    ServiceAccount,
)
from tortie.model.meta import Resource
from tortie.model.policy import (
    EntityRule,
    GlobalNetworkPolicy,
    NetworkPolicy,
    PolicySpec,
    Profile,
    Rule,
    ServiceAccountMatch,
    port_range,
    protocol_number,
)
from tortie.policy.rules import (
    ANY,
    KNP_ORDER,
    Direction,
    Policy,
    PolicyKey,
    PolicyRule,
    PortSet,
    SelectorSet,
    Side,
)
from tortie.policy.selector import All, Eq, Global, Has, In, Not, NotIn, Selector, conj, negate, parse

NAMESPACE = "projectcalico.org/namespace"
SERVICE_ACCOUNT = "projectcalico.org/serviceaccount"
ORCHESTRATOR = "projectcalico.org/orchestrator"
NAMESPACE_PREFIX = "pcns."
SERVICE_ACCOUNT_PREFIX = "pcsa."
NAME = "projectcalico.org/name"

DEFAULT_ALLOW = "projectcalico-default-allow"

POLICY_KINDS: dict[type[Resource], str] = {
    NetworkPolicy: "np",
    GlobalNetworkPolicy: "gnp",
    K8sNetworkPolicy: "knp",
    Profile: "profile",
}
"""Calico's short forms, which name policies in the kernel."""

Ranges = tuple[tuple[int, int], ...]


def policy_of(resource: NetworkPolicy | GlobalNetworkPolicy | K8sNetworkPolicy) -> Policy:
    """The policy of an API object. Raises ConfigError when it cannot be understood (it then counts as absent)."""
    if isinstance(resource, NetworkPolicy):
        return _network_policy(resource)
    if isinstance(resource, GlobalNetworkPolicy):
        return _global_network_policy(resource)
    return _kubernetes_policy(resource)


def policy_key(resource: NetworkPolicy | GlobalNetworkPolicy | K8sNetworkPolicy | Profile) -> PolicyKey:
    return PolicyKey(POLICY_KINDS[type(resource)], resource.namespace, resource.name)


def profile_of(resource: Profile) -> Policy:
    """The rules of a Profile object."""
    rules = resource.spec
    return Policy(
        PolicyKey("profile", "", resource.name),
        None,
        frozenset(("ingress", "egress")),
        tuple(_rules(rules.ingress, "", "spec.ingress")),
        tuple(_rules(rules.egress, "", "spec.egress")),
    )


def default_allow(name: str = DEFAULT_ALLOW) -> Policy:
    """A profile that allows everything: `projectcalico-default-allow`, and that of every namespace."""
    allow = (PolicyRule("Allow"),)
    return Policy(PolicyKey("profile", "", name), None, frozenset(("ingress", "egress")), allow, allow)


def without_reserved(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels of something that a tenant writes, less those by which policy knows namespaces, service accounts and
    pods: only the network gives these. Whoever could would slip into what others allow."""
    reserved = (NAMESPACE, SERVICE_ACCOUNT, ORCHESTRATOR)
    inherited = (NAMESPACE_PREFIX, SERVICE_ACCOUNT_PREFIX)
    return {key: value for key, value in labels.items() if key not in reserved and not key.startswith(inherited)}


def namespace_profile(namespace: Namespace) -> tuple[Policy, dict[str, str]]:
    """Profile `kns.<name>`, which allows everything, and the labels that its endpoints inherit."""
    labels = {NAMESPACE_PREFIX + key: value for key, value in namespace.labels.items()}
    labels[NAMESPACE_PREFIX + NAME] = namespace.name
    return default_allow(f"kns.{namespace.name}"), labels


def service_account_profile(account: ServiceAccount) -> tuple[Policy, dict[str, str]]:
    """Profile `ksa.<namespace>.<name>`, which has no rules, and the labels that its endpoints inherit."""
    labels = {SERVICE_ACCOUNT_PREFIX + key: value for key, value in account.labels.items()}
    labels[SERVICE_ACCOUNT_PREFIX + NAME] = account.name
    key = PolicyKey("profile", "", f"ksa.{account.namespace}.{account.name}")
    return Policy(key, None, frozenset(("ingress", "egress"))), labels


def _network_policy(resource: NetworkPolicy) -> Policy:
    selector = conj(parse(resource.spec.selector), Eq(NAMESPACE, resource.namespace))
    return _calico_policy(policy_key(resource), resource.spec, selector, resource.namespace)


def _global_network_policy(resource: GlobalNetworkPolicy) -> Policy:
    spec = resource.spec
    selector = parse(spec.selector)
    if spec.namespace_selector:
        selector = conj(_namespaces(spec.namespace_selector), selector)
    policy = _calico_policy(policy_key(resource), spec, selector, "")
    if spec.do_not_track or spec.pre_dnat:  # classes of host endpoints: whatever it selects, no pod has such a policy
        return replace(policy, directions=frozenset())
    return policy


def _calico_policy(key: PolicyKey, spec: PolicySpec, selector: Selector, namespace: str) -> Policy:
    if spec.service_account_selector:
        selector = conj(selector, _service_accounts(spec.service_account_selector))
    return Policy(
        key,
        selector,
        frozenset(_direction(name) for name in spec.directions),
        tuple(_rules(spec.ingress, namespace, "spec.ingress")),
        tuple(_rules(spec.egress, namespace, "spec.egress")),
        spec.tier or "default",
        spec.order,
    )


def _direction(name: str) -> Direction:
    return "ingress" if name == "Ingress" else "egress"


def _namespaces(text: str) -> Selector:
    """A namespaceSelector as a question to endpoints. `all()` means any namespace, `global()` none."""

    def rewrite(leaf: Selector) -> Selector:
        if isinstance(leaf, All):
            return Has(NAMESPACE)
        if isinstance(leaf, Global):
            return Not(Has(NAMESPACE))
        return leaf.prefixed(NAMESPACE_PREFIX)

    return parse(text).transform(rewrite)


def _service_accounts(text: str) -> Selector:
    def rewrite(leaf: Selector) -> Selector:
        return Has(SERVICE_ACCOUNT) if isinstance(leaf, All) else leaf.prefixed(SERVICE_ACCOUNT_PREFIX)

    return parse(text).transform(rewrite)


def _rules(rules: Iterable[Rule], namespace: str, path: str) -> Iterator[PolicyRule]:
    """The rules of the list at `path` of an object, which is where a ConfigError says that it is."""
    for index, rule in enumerate(rules):
        try:
            yield _rule(rule, namespace)
        except ConfigError as error:
            raise ConfigError(error.message, ".".join((f"{path}[{index}]", *error.where))) from None


def _rule(rule: Rule, namespace: str) -> PolicyRule:
    """A rule of a policy in `namespace` ("" for a global one)."""
    for end, entity in (("source", rule.source), ("destination", rule.destination)):
        if entity.services is not None:
            raise ConfigError("matching services is not supported yet", f"{end}.services")
    protocol = _protocol(rule.protocol)
    return PolicyRule(
        rule.action,
        rule.ip_version,
        protocol,
        _protocol(rule.not_protocol),
        (rule.icmp.type, rule.icmp.code) if rule.icmp is not None and rule.icmp.type is not None else None,
        (rule.not_icmp.type, rule.not_icmp.code) if rule.not_icmp and rule.not_icmp.type is not None else None,
        _side(rule.source, namespace, protocol),
        _side(rule.destination, namespace, protocol),
    )


def _protocol(protocol: int | str | None) -> int | None:
    """Its number; None for any. Raises ConfigError: what is not a protocol must not come to mean any."""
    if protocol is None:
        return None
    number = protocol_number(protocol)
    if number is None:
        raise ConfigError(f'"{protocol}" is not a protocol', "protocol")
    return number


def _side(entity: EntityRule, namespace: str, protocol: int | None) -> Side:
    if entity == EntityRule():
        return ANY
    positive = _positive_selector(entity, namespace)
    negative = parse(entity.not_selector) if entity.not_selector else None
    ports, names = _ports(entity.ports)
    not_ports, not_names = _ports(entity.not_ports)
    everyone = positive or All()
    if positive is not None and negative is not None:
        positive, negative = conj(positive, negate(negative)), None
    named = tuple(PortSet(everyone, protocol, name) for name in names)
    # A list of names only needs no set of addresses beside it: the named set is already filtered by the selector.
    filtered = bool(named) and not ports and negative is None and not entity.not_selector
    return Side(
        tuple(parse_net(net) for net in entity.nets),
        tuple(parse_net(net) for net in entity.not_nets),
        () if positive is None or filtered else (SelectorSet(positive),),
        () if negative is None else (SelectorSet(negative),),
        ports,
        named,
        not_ports,
        tuple(PortSet(everyone, protocol, name) for name in not_names),
    )


def _positive_selector(entity: EntityRule, namespace: str) -> Selector | None:
    """What the addresses must be members of; None when the rule does not ask."""
    accounts = entity.service_accounts
    parts: list[Selector] = []
    if entity.namespace_selector:
        parts.append(_namespaces(entity.namespace_selector))
    elif namespace and (entity.selector or entity.not_selector or accounts is not None):
        parts.append(Eq(NAMESPACE, namespace))
    if entity.selector:
        parts.append(parse(entity.selector))
    if accounts is not None:
        parts.extend(_account_terms(accounts))
    return conj(*parts) if parts else None


def _account_terms(accounts: ServiceAccountMatch) -> Iterator[Selector]:
    if accounts.selector:
        yield _service_accounts(accounts.selector)
    if accounts.names:
        yield In(SERVICE_ACCOUNT, frozenset(accounts.names))


def _ports(ports: Iterable[int | str]) -> tuple[Ranges, tuple[str, ...]]:
    ranges, names = [], []
    for port in ports:
        match port_range(port):
            case str() as name:
                names.append(name)
            case first, last:
                ranges.append((first, last))
    return _coalesced(ranges), tuple(sorted(set(names)))


def _coalesced(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same ports in the fewest ranges, sorted."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def _kubernetes_policy(resource: K8sNetworkPolicy) -> Policy:
    spec, namespace = resource.spec, resource.namespace
    selector = conj(Eq(ORCHESTRATOR, "k8s"), *_label_terms(spec.pod_selector), Eq(NAMESPACE, namespace))
    types = spec.policy_types or ("Ingress",)
    ingress = [(rule.ports, rule.from_) for rule in spec.ingress]
    egress = [(rule.ports, rule.to) for rule in spec.egress]
    return Policy(
        policy_key(resource),
        selector,
        frozenset(_direction(name) for name in types),
        tuple(rule for ports, peers in ingress for rule in _convertible(ports, peers, namespace, "ingress")),
        tuple(rule for ports, peers in egress for rule in _convertible(ports, peers, namespace, "egress")),
        "default",
        KNP_ORDER,
    )


def _convertible(
    ports: tuple[NetworkPolicyPort, ...], peers: tuple[NetworkPolicyPeer, ...], namespace: str, direction: Direction
) -> tuple[PolicyRule, ...]:
    """The rules that a Kubernetes rule becomes; none when it cannot be converted. The policy isolates all the same."""
    try:
        return tuple(_kubernetes_rules(ports, peers, namespace, direction))
    except ConfigError:
        return ()


def _kubernetes_rules(
    ports: tuple[NetworkPolicyPort, ...], peers: tuple[NetworkPolicyPeer, ...], namespace: str, direction: Direction
) -> Iterator[PolicyRule]:
    """One rule per protocol in sorted order and per peer; no peers means anybody, no ports any protocol."""
    by_protocol: dict[str | None, list[int | str | None]] = {}
    for port in ports:
        entry = port.port if port.end_port is None else f"{port.port}:{port.end_port}"
        by_protocol.setdefault(port.protocol or "TCP", []).append(entry)
    for protocol, entries in sorted(by_protocol.items(), key=lambda item: item[0] or "") or [(None, [])]:
        # An entry without a number is every port of the protocol, whatever stands beside it.
        ranges, names = _ports(entry for entry in entries if entry is not None) if None not in entries else ((), ())
        for peer in peers or (None,):
            yield _kubernetes_rule(peer, namespace, direction, _protocol(protocol), ranges, names)


def _kubernetes_rule(
    peer: NetworkPolicyPeer | None,
    namespace: str,
    direction: Direction,
    protocol: int | None,
    ports: Ranges,
    names: tuple[str, ...],
) -> PolicyRule:
    nets: tuple[Net, ...] = ()
    not_nets: tuple[Net, ...] = ()
    selector: Selector | None = None
    if peer is not None and peer.ip_block is not None:
        nets = (parse_net(peer.ip_block.cidr),)
        not_nets = tuple(parse_net(net) for net in peer.ip_block.except_)
    elif peer is not None:
        selector = _peer_selector(peer, namespace)
    sets = () if selector is None else (SelectorSet(selector),)
    if direction == "ingress":
        # Named ports are those of the destination, the pods that the policy selects: any endpoint may declare them.
        named = tuple(PortSet(All(), protocol, name) for name in names)
        return PolicyRule(
            "Allow", None, protocol, source=Side(nets, not_nets, sets), destination=Side(ports=ports, named=named)
        )
    named = tuple(PortSet(selector or All(), protocol, name) for name in names)
    return PolicyRule("Allow", None, protocol, destination=Side(nets, not_nets, sets, (), ports, named))


def _peer_selector(peer: NetworkPolicyPeer, namespace: str) -> Selector:
    terms: list[Selector] = []
    if peer.namespace_selector is None:
        terms.append(Eq(NAMESPACE, namespace))
    else:
        inner = list(_label_terms(peer.namespace_selector))
        terms.append(conj(*inner).prefixed(NAMESPACE_PREFIX) if inner else Has(NAMESPACE))
    terms.append(Eq(ORCHESTRATOR, "k8s"))
    if peer.pod_selector is not None:
        terms.extend(_label_terms(peer.pod_selector))
    return conj(*terms)


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
