"""What Calico's own programs on etcd find there of Kubernetes' objects, which they do not ask for themselves. Pure.

    Namespace red            ─► Profile kns.red                 allows all, gives pcns.* labels
    ServiceAccount red/bot   ─► Profile ksa.red.bot             no rules, gives pcsa.* labels
    NetworkPolicy red/web    ─► NetworkPolicy red/knp.default.web, order 1000

    originals ─► copies: wanted ─┐
    what is in the datastore ────┴─► changes: create, update, delete

A copy says of what it is one in an annotation, and only what says so is ever deleted. The names are Calico's, and
nobody else may take them: what has one, and is wanted, is made the copy that it should be.

Tortie's own agents read the originals; where they have one its copy does not count (`calc.copies`).

Source: Calico's conversion of Kubernetes' objects, and the controllers of its kube-controllers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Generic

from msgspec.structs import replace

from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError
from tortie.calc.copies import POLICY_PREFIX
from tortie.model.k8s import (
    K8sNetworkPolicy,
    LabelSelector,
    LabelSelectorRequirement,
    Namespace,
    NetworkPolicyPeer,
    NetworkPolicyPort,
    ServiceAccount,
)
from tortie.model.meta import Metadata, Resource
from tortie.model.policy import (
    MAX_NETS,
    MAX_RULES,
    EntityRule,
    NetworkPolicy,
    NetworkPolicySpec,
    Profile,
    ProfileSpec,
    Rule,
)
from tortie.model.store import R
from tortie.policy.label_names import (
    NAME,
    NAMESPACE_PREFIX,
    ORCHESTRATOR,
    SERVICE_ACCOUNT_PREFIX,
)
from tortie.policy.translate_calico import rules_of

COPY_OF = "tortie.dev/copy-of"
ORDER = 1000.0
KUBERNETES = f"{ORCHESTRATOR} == 'k8s'"
ALLOW = (Rule(action="Allow"),)


# --- what there should be ---------------------------------------------------------------------------------------------


def of_namespace(namespace: Namespace) -> Profile:
    """What every pod in it has: all is allowed, unless a policy says otherwise."""
    labels = {NAMESPACE_PREFIX + key: value for key, value in namespace.labels.items()}
    labels[NAMESPACE_PREFIX + NAME] = namespace.name
    spec = ProfileSpec(ingress=ALLOW, egress=ALLOW, labels_to_apply=labels)
    return Profile(metadata=_metadata(namespace, f"kns.{namespace.name}"), spec=spec)


def of_account(account: ServiceAccount) -> Profile:
    """What every pod that runs as it has: labels, and no rules."""
    labels = {SERVICE_ACCOUNT_PREFIX + key: value for key, value in account.labels.items()}
    labels[SERVICE_ACCOUNT_PREFIX + NAME] = account.name
    name = f"ksa.{account.namespace}.{account.name}"
    return Profile(metadata=_metadata(account, name), spec=ProfileSpec(labels_to_apply=labels))


def of_policy(policy: K8sNetworkPolicy) -> NetworkPolicy:
    """The same in Calico's words. A rule that cannot be converted is left out, as upstream does.

    Raises ConfigError for more rules than Calico's policy can hold.
    """
    spec = policy.spec
    ingress = _fitting(_rules(each.ports, each.from_, ingress=True) for each in spec.ingress)
    egress = _fitting(_rules(each.ports, each.to, ingress=False) for each in spec.egress)
    return NetworkPolicy(
        metadata=_metadata(policy, POLICY_PREFIX + policy.name, policy.namespace),
        spec=NetworkPolicySpec(
            tier="default",
            order=ORDER,
            selector=_and(KUBERNETES, *_terms(spec.pod_selector)),
            types=spec.policy_types or ("Ingress",),
            ingress=ingress,
            egress=egress,
        ),
    )


def _metadata(original: Resource, name: str, namespace: str = "") -> Metadata:
    return Metadata(name=name, namespace=namespace, annotations={COPY_OF: original.title})


def _fitting(groups: Iterable[Iterable[Rule]]) -> tuple[Rule, ...]:
    """The rules of all those rules of Kubernetes' that can be converted, a list for each."""
    found: list[Rule] = []
    for group in groups:
        try:
            made = list(group)
            list(rules_of(made, "default", ""))  # in the eyes of whoever reads it later
        except ConfigError:
            continue
        found += made
    if len(found) > MAX_RULES:
        raise ConfigError(f"needs {len(found)} rules, Calico's policies have at most {MAX_RULES}", "spec")
    return tuple(found)


def _rules(
    ports: tuple[NetworkPolicyPort, ...], peers: tuple[NetworkPolicyPeer, ...], *, ingress: bool
) -> Iterator[Rule]:
    """One for each protocol and peer; no peer is anybody, no port any. Raises ConfigError."""
    groups: dict[str, list[int | str | None]] = {}
    for port in ports:
        entry = port.port if port.end_port is None else f"{port.port}:{port.end_port}"
        groups.setdefault(port.protocol or "TCP", []).append(entry)
    others = list(_peers(peers)) or [EntityRule()]
    asked: list[tuple[str | None, list[int | str | None]]] = [*sorted(groups.items())]
    for protocol, entries in asked or [(None, [])]:
        # An entry without a number is every port of the protocol, whatever stands beside it.
        numbers = tuple(entry for entry in entries if entry is not None) if None not in entries else ()
        for other in others:
            if ingress:
                yield Rule(action="Allow", protocol=protocol, source=other, destination=EntityRule(ports=numbers))
            else:
                yield Rule(action="Allow", protocol=protocol, destination=replace(other, ports=numbers))


def _peers(peers: Iterable[NetworkPolicyPeer]) -> Iterator[EntityRule]:
    """Networks from which nothing is excepted share a rule, as many as fit: there may be a thousand."""
    plain: dict[int, list[str]] = {4: [], 6: []}
    for peer in peers:
        if peer.ip_block is not None and not peer.ip_block.except_:
            plain[parse_net(peer.ip_block.cidr).version].append(peer.ip_block.cidr)
        else:
            yield _peer(peer)
    for nets in plain.values():
        for first in range(0, len(nets), MAX_NETS):
            yield EntityRule(nets=tuple(nets[first : first + MAX_NETS]))


def _peer(peer: NetworkPolicyPeer) -> EntityRule:
    if peer.ip_block is not None:
        return EntityRule(nets=(peer.ip_block.cidr,), not_nets=peer.ip_block.except_)
    pods = _and(KUBERNETES, *_terms(peer.pod_selector or LabelSelector()))
    if peer.namespace_selector is None:
        return EntityRule(selector=pods)
    return EntityRule(selector=pods, namespace_selector=_and(*_terms(peer.namespace_selector)) or "all()")


def _and(*terms: str) -> str:
    return " && ".join(terms)


def _terms(selector: LabelSelector) -> Iterator[str]:
    """Raises ConfigError for what is no operator."""
    for key, value in sorted(selector.match_labels.items()):
        yield f"{key} == '{value}'"
    for requirement in selector.match_expressions:
        yield _term(requirement)


def _term(requirement: LabelSelectorRequirement) -> str:
    key = requirement.key
    values = ", ".join(f"'{value}'" for value in sorted(requirement.values))
    match requirement.operator:
        case "In":
            return f"{key} in {{ {values} }}"
        case "NotIn":
            return f"{key} not in {{ {values} }}"
        case "Exists":
            return f"has({key})"
        case "DoesNotExist":
            return f"!has({key})"


# --- from what there is to what there should be -----------------------------------------------------------------------


@dataclass(frozen=True)
class Change(Generic[R]):
    """What is to be done to a copy: `verb` is create, update or delete."""

    verb: str
    copy: R

    def __str__(self) -> str:
        return f"{self.verb} {self.copy.title}"


def is_copy(resource: Resource, prefix: str) -> bool:
    """Whether it was made here, by name and by mark."""
    return resource.name.startswith(prefix) and COPY_OF in resource.metadata.annotations


def original_of(copy: Resource, kind: type[Resource]) -> tuple[str, str] | None:
    """Namespace and name of what it says that it is a copy of; None for what is no word of ours.

    >>> marked = Profile(metadata=Metadata(name="ksa.red.bot", annotations={COPY_OF: "ServiceAccount red/bot"}))
    >>> original_of(marked, ServiceAccount)
    ('red', 'bot')
    """
    word, _, place = copy.metadata.annotations.get(COPY_OF, "").partition(" ")
    namespace, slash, name = place.rpartition("/")
    fits = word == kind.KIND.kind and name and bool(slash and namespace) == kind.KIND.namespaced
    return (namespace, name) if fits else None


def changes(want: Iterable[R], have: Iterable[R], prefix: str, unclear: Set[str] = frozenset()) -> Iterator[Change[R]]:
    """From the copies that there are to those that there should be, deletions last: a profile that is there too long
    does less harm than one that is missing. What is not marked is not deleted, nor a copy of what is `unclear` (by
    title)."""
    stored: Mapping[tuple[str, str], R] = {(each.namespace, each.name): each for each in have}
    wanting = {(each.namespace, each.name): each for each in want}
    for key, each in wanting.items():
        there = stored.get(key)
        if there is None:
            yield Change("create", each)
        elif (new := _brought(there, each)) != there:
            yield Change("update", new)
    for key, each in stored.items():
        if key not in wanting and is_copy(each, prefix) and each.metadata.annotations[COPY_OF] not in unclear:
            yield Change("delete", each)


def _brought(there: R, want: R) -> R:
    """What is stored, with what a copy says. Others' labels and annotations stay."""
    annotations = there.metadata.annotations | want.metadata.annotations
    return replace(want, metadata=replace(there.metadata, annotations=annotations))
