"""Calico's policies, staged or not, and the rules of its profiles, to the internal form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError
from tortie.model.policy import (
    EntityRule,
    GlobalNetworkPolicySpec,
    ICMPFields,
    NetworkPolicySpec,
    PolicySpec,
    Rule,
    ServiceAccountMatch,
)
from tortie.policy.label_names import NAMESPACE, NAMESPACE_PREFIX, SERVICE_ACCOUNT, SERVICE_ACCOUNT_PREFIX
from tortie.policy.rules import (
    ANY,
    Direction,
    Hook,
    Policy,
    PolicyKey,
    PolicyRule,
    PortSet,
    SelectorSet,
    ServiceSet,
    Side,
    StagedAction,
)
from tortie.policy.selector import All, Eq, Global, Has, In, Not, Selector, conj, negate, parse
from tortie.policy.translate_ports import number_of, ports_of


def network_policy(key: PolicyKey, spec: NetworkPolicySpec, staged: StagedAction | None = None) -> Policy:
    """A policy of a namespace. Raises ConfigError."""
    return _policy(key, spec, conj(parse(spec.selector), Eq(NAMESPACE, key.namespace)), staged)


def global_network_policy(key: PolicyKey, spec: GlobalNetworkPolicySpec, staged: StagedAction | None = None) -> Policy:
    """A policy of the whole cluster. Raises ConfigError."""
    selector = parse(spec.selector)
    if spec.namespace_selector:
        selector = conj(_namespaces(spec.namespace_selector), selector)
    hook: Hook = "untracked" if spec.do_not_track else "preDNAT" if spec.pre_dnat else "filter"
    return _policy(key, spec, selector, staged, hook, spec.apply_on_forward)


def _policy(
    key: PolicyKey,
    spec: PolicySpec,
    selector: Selector,
    staged: StagedAction | None,
    hook: Hook = "filter",
    on_forward: bool = False,
) -> Policy:
    if spec.service_account_selector:
        selector = conj(selector, _service_accounts(spec.service_account_selector))
    return Policy(
        key,
        selector,
        frozenset(direction_of(name) for name in spec.directions),
        tuple(rules_of(spec.ingress, key.namespace, "spec.ingress")),
        tuple(rules_of(spec.egress, key.namespace, "spec.egress")),
        spec.tier or "default",
        spec.order,
        hook,
        on_forward,
        staged,
        "AssumeNeededOnEveryNode" in spec.performance_hints,
    )


def direction_of(name: str) -> Direction:
    """Of an entry of `types`, or Kubernetes' `policyTypes`."""
    return "ingress" if name == "Ingress" else "egress"


def rules_of(rules: Iterable[Rule], namespace: str, path: str) -> Iterator[PolicyRule]:
    """The rules of the list at `path` of an object, which is where a ConfigError says that it is. `namespace` is that
    of the policy, "" for a global one or a profile."""
    for index, rule in enumerate(rules):
        try:
            yield _rule(rule, namespace)
        except ConfigError as error:
            raise ConfigError(error.message, ".".join((f"{path}[{index}]", *error.where))) from None


def _rule(rule: Rule, namespace: str) -> PolicyRule:
    protocol = number_of(rule.protocol)
    return PolicyRule(
        rule.action,
        rule.ip_version,
        protocol,
        number_of(rule.not_protocol),
        _icmp(rule.icmp),
        _icmp(rule.not_icmp),
        # Of a source it is the addresses that count; of a destination the ports behind the service, too.
        _side(rule.source, namespace, protocol, service_ports=False),
        _side(rule.destination, namespace, protocol, service_ports=True),
        rule.http,
        tuple(sorted(rule.metadata.annotations.items())) if rule.metadata is not None else (),
    )


def _icmp(icmp: ICMPFields | None) -> tuple[int | None, int | None] | None:
    return (icmp.type, icmp.code) if icmp is not None and icmp.type is not None else None


def _side(entity: EntityRule, namespace: str, protocol: int | None, *, service_ports: bool) -> Side:
    if entity == EntityRule():
        return ANY
    positive = _positive_selector(entity, namespace)
    negative = parse(entity.not_selector) if entity.not_selector else None
    ports, names = ports_of(entity.ports)
    not_ports, not_names = ports_of(entity.not_ports)
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
        tuple(_services(entity, namespace, service_ports)),
    )


def _services(entity: EntityRule, namespace: str, ports: bool) -> Iterator[ServiceSet]:
    """Without a namespace of its own, the service is one of the policy's namespace, as the API says."""
    if entity.services is not None:
        where = entity.services.namespace or namespace
        if not where:
            raise ConfigError("is required where there is no own namespace", "services.namespace")
        yield ServiceSet(where, entity.services.name, ports)


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
