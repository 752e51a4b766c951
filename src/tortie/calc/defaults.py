"""What Calico and Kubernetes fill in when an object is written, so that a stored object says what it means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from msgspec.structs import replace

from tortie.model.ipam import IPPool
from tortie.model.k8s import (
    K8sNetworkPolicy,
    K8sNode,
    Namespace,
    NetworkPolicyPort,
    Pod,
    PodStatus,
)
from tortie.model.meta import Metadata, Resource, changed
from tortie.model.policy import (
    PROTOCOLS,
    GlobalNetworkPolicy,
    NetworkPolicy,
    Profile,
    Rules,
    Tier,
    protocol_number,
)

R = TypeVar("R", bound=Resource)

NAME_LABEL = "kubernetes.io/metadata.name"
"""The label that Kubernetes keeps on every namespace."""
TIER_LABEL = "projectcalico.org/tier"
"""The label that Calico keeps on every policy."""
OF_THE_NETWORK = tuple(f"cni.projectcalico.org/{name}" for name in ("podIP", "podIPs", "containerID"))
"""The annotations of a pod that its network writes, which a user's next write must not take away."""

_CANONICAL = {number: name for name, number in PROTOCOLS.items()}


def defaulted(new: R, old: R | None) -> R:
    """The object as it is stored. `new` has no problems of its own; `old` is what is stored under its name."""
    new = changed(new, **_identity(new, old))
    new = _with_status(new, old)
    fill = _FILL.get(type(new))
    return fill(new, old) if fill else new


def _identity(new: Resource, old: Resource | None) -> dict[str, Any]:
    """Metadata that the datastore owns comes from what is stored, never from a document."""
    kept = old.metadata if old else Metadata()
    return {
        "namespace": new.namespace or ("default" if new.KIND.namespaced else ""),
        "generate_name": "",
        "self_link": "",
        "managed_fields": None,
        "uid": kept.uid,
        "creation_timestamp": kept.creation_timestamp,
        "deletion_timestamp": kept.deletion_timestamp,
        "deletion_grace_period_seconds": kept.deletion_grace_period_seconds,
        "generation": kept.generation,
    }


def _with_status(new: R, old: R | None) -> R:
    """The status is written by what acts on an object, not by who asks for it."""
    first = _FIRST_STATUS.get(type(new), _GIVEN)
    if first is _GIVEN:
        return new
    status: Any = old.status if old is not None else first  # type: ignore[attr-defined]
    return replace(new, status=status)


_GIVEN = object()
_FIRST_STATUS: dict[type[Resource], Any] = {
    Namespace: {"phase": "Active"}, Pod: PodStatus(phase="Pending"), K8sNode: None, K8sNetworkPolicy: None,
    IPPool: None, Tier: None,
}  # fmt: skip
"""The status of a new object, by kind; the kinds that are not here keep the one that is given."""


def _pool(pool: IPPool, old: IPPool | None) -> IPPool:
    spec = pool.spec
    return replace(
        pool,
        spec=replace(
            spec,
            cidr=str(spec.net),
            block_size=spec.blocks,
            ipip_mode=spec.ipip_mode or "Never",
            vxlan_mode=spec.vxlan_mode or "Never",
            node_selector=spec.node_selector or "all()",
            allowed_uses=spec.uses,
            assignment_mode=spec.assignment_mode or "Automatic",
        ),
    )


def _namespace(namespace: Namespace, old: Namespace | None) -> Namespace:
    return changed(namespace, labels={**namespace.labels, NAME_LABEL: namespace.name})


def _pod(pod: Pod, old: Pod | None) -> Pod:
    before = old.metadata.annotations if old else {}
    written = {key: before[key] for key in OF_THE_NETWORK if key in before}
    node = pod.spec.node_name or (old.spec.node_name if old else "")
    spec = replace(pod.spec, service_account_name=pod.service_account, service_account="", node_name=node)
    return replace(changed(pod, annotations={**written, **pod.metadata.annotations}), spec=spec)


def _policy(policy: Any, old: Any) -> Any:
    spec = policy.spec
    spec = replace(
        spec,
        tier=spec.tier or "default",
        types=spec.directions,
        ingress=_canonical(spec.ingress),
        egress=_canonical(spec.egress),
    )
    return replace(changed(policy, labels={**policy.labels, TIER_LABEL: spec.tier}), spec=spec)


def _profile(profile: Profile, old: Profile | None) -> Profile:
    spec = profile.spec
    return replace(profile, spec=replace(spec, ingress=_canonical(spec.ingress), egress=_canonical(spec.egress)))


def _canonical(rules: Rules) -> Rules:
    """Protocols as Calico prints them: the name where there is one, in its own spelling."""
    return tuple(
        replace(rule, protocol=_protocol(rule.protocol), not_protocol=_protocol(rule.not_protocol)) for rule in rules
    )


def _protocol(protocol: int | str | None) -> int | str | None:
    if protocol is None or isinstance(protocol, int):
        return protocol
    number = protocol_number(protocol)
    return number if protocol.isdecimal() else _CANONICAL.get(number or 0, protocol)


def _tier(tier: Tier, old: Tier | None) -> Tier:
    return replace(tier, spec=replace(tier.spec, default_action=tier.spec.default_action or "Deny"))


def _kubernetes_policy(policy: K8sNetworkPolicy, old: K8sNetworkPolicy | None) -> K8sNetworkPolicy:
    spec = policy.spec
    types = spec.policy_types or (("Ingress", "Egress") if spec.egress else ("Ingress",))
    ingress = tuple(replace(rule, ports=_ports(rule.ports)) for rule in spec.ingress)
    egress = tuple(replace(rule, ports=_ports(rule.ports)) for rule in spec.egress)
    return replace(policy, spec=replace(spec, policy_types=types, ingress=ingress, egress=egress))


def _ports(ports: tuple[NetworkPolicyPort, ...]) -> tuple[NetworkPolicyPort, ...]:
    return tuple(replace(port, protocol=port.protocol or "TCP") for port in ports)


_FILL: dict[type[Resource], Callable[[Any, Any], Any]] = {
    IPPool: _pool,
    Namespace: _namespace,
    Pod: _pod,
    NetworkPolicy: _policy,
    GlobalNetworkPolicy: _policy,
    Profile: _profile,
    Tier: _tier,
    K8sNetworkPolicy: _kubernetes_policy,
}
