"""What Calico and Kubernetes fill in when an object is written, so that a stored object says what it means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import UNSET
from msgspec.structs import replace

from tortie.model.bgp import BGPPeer
from tortie.model.bgpfilter import BGPFilter
from tortie.model.clusterpolicy import ClusterNetworkPolicy
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
from tortie.model.nodestatus import CalicoNodeStatus, CalicoNodeStatusStatus
from tortie.model.policy import (
    PROTOCOLS,
    GlobalNetworkPolicy,
    NetworkPolicy,
    Profile,
    Rules,
    Tier,
    protocol_number,
)
from tortie.model.secret import Secret, encoded
from tortie.model.service import Service
from tortie.model.staged import StagedGlobalNetworkPolicy, StagedKubernetesNetworkPolicy, StagedNetworkPolicy

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
    IPPool: None, Tier: None, ClusterNetworkPolicy: None, Service: None, BGPPeer: None, BGPFilter: None,
    CalicoNodeStatus: CalicoNodeStatusStatus(),
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


def _secret(secret: Secret, old: Secret | None) -> Secret:
    data = {**secret.data, **encoded(secret.string_data)}
    return replace(secret, data=data, string_data={}, type=secret.type or "Opaque")


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


def _staged_policy(policy: Any, old: Any) -> Any:
    """One that deletes says no more than that, and in which tier."""
    action = policy.spec.staged_action or "Set"
    if action == "Delete":
        spec = replace(policy.spec, tier=policy.spec.tier or "default")
        return replace(changed(policy, labels={**policy.labels, TIER_LABEL: spec.tier}), spec=spec)
    policy = _policy(policy, old)
    return replace(policy, spec=replace(policy.spec, staged_action=action))


def _staged_kubernetes_policy(policy: Any, old: Any) -> Any:
    action = policy.spec.staged_action or "Set"
    policy = policy if action == "Delete" else _kubernetes_policy(policy, old)
    return replace(policy, spec=replace(policy.spec, staged_action=action))


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


def _kubernetes_policy(policy: Any, old: Any) -> Any:
    spec = policy.spec
    types = spec.policy_types or (("Ingress", "Egress") if spec.egress else ("Ingress",))
    ingress = tuple(replace(rule, ports=_ports(rule.ports)) for rule in spec.ingress)
    egress = tuple(replace(rule, ports=_ports(rule.ports)) for rule in spec.egress)
    return replace(policy, spec=replace(spec, policy_types=types, ingress=ingress, egress=egress))


def _ports(ports: tuple[NetworkPolicyPort, ...]) -> tuple[NetworkPolicyPort, ...]:
    return tuple(replace(port, protocol=port.protocol or "TCP") for port in ports)


def _service(service: Service, old: Service | None) -> Service:
    """What it has been given, and does not ask for otherwise, stays with it: addresses, node ports."""
    new = service.spec
    if old is None or "ExternalName" in (new.type, old.spec.type):
        return service
    before = old.spec
    if not new.cluster_ips and new.cluster_ip in ("", before.cluster_ip):
        families = new.ip_families or before.ip_families
        policy = before.ip_family_policy if new.ip_family_policy is UNSET else new.ip_family_policy
        new = replace(
            new,
            cluster_ip=before.cluster_ip,
            cluster_ips=before.cluster_ips,
            ip_families=families,
            ip_family_policy=policy,
        )
    if new.type in NODE_PORTED and before.type in NODE_PORTED:
        given = {(port.port, port.protocol): port.node_port for port in before.ports}
        ports = (
            port if port.node_port else replace(port, node_port=given.get((port.port, port.protocol), 0))
            for port in new.ports
        )
        new = replace(new, ports=tuple(ports))
        if (new.type, new.external_traffic_policy) == (before.type, before.external_traffic_policy):
            new = replace(new, health_check_node_port=new.health_check_node_port or before.health_check_node_port)
    return replace(service, spec=new)


NODE_PORTED = ("NodePort", "LoadBalancer")

_FILL: dict[type[Resource], Callable[[Any, Any], Any]] = {
    IPPool: _pool,
    Namespace: _namespace,
    Pod: _pod,
    Secret: _secret,
    NetworkPolicy: _policy,
    GlobalNetworkPolicy: _policy,
    Profile: _profile,
    Tier: _tier,
    K8sNetworkPolicy: _kubernetes_policy,
    StagedNetworkPolicy: _staged_policy,
    StagedGlobalNetworkPolicy: _staged_policy,
    StagedKubernetesNetworkPolicy: _staged_kubernetes_policy,
    Service: _service,
}
