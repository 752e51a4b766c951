"""From the API's policies, profiles, namespaces and service accounts to the internal form. Source: Calico's v3 to v1
translation and its conversion of Kubernetes' policies.

    translate_calico    NetworkPolicy, GlobalNetworkPolicy, their staged forms; rules
    translate_k8s       NetworkPolicy and ClusterNetworkPolicy of Kubernetes

Where a Kubernetes rule cannot be converted it is left out, as upstream does; admission refuses such rules earlier.
"""

from __future__ import annotations

from tortie.model.clusterpolicy import ClusterNetworkPolicy
from tortie.model.k8s import K8sNetworkPolicy, Namespace, ServiceAccount
from tortie.model.meta import Resource
from tortie.model.policy import GlobalNetworkPolicy, NetworkPolicy, Profile
from tortie.model.staged import StagedGlobalNetworkPolicy, StagedKubernetesNetworkPolicy, StagedNetworkPolicy
from tortie.policy.label_names import (
    NAME,
    NAMESPACE,
    NAMESPACE_PREFIX,
    ORCHESTRATOR,
    SERVICE_ACCOUNT,
    SERVICE_ACCOUNT_PREFIX,
    without_reserved,
)
from tortie.policy.rules import DIRECTIONS, Policy, PolicyKey, PolicyRule
from tortie.policy.translate_calico import global_network_policy, network_policy, rules_of
from tortie.policy.translate_k8s import cluster_policy, kubernetes_policy

__all__ = [
    "DEFAULT_ALLOW", "NAME", "NAMESPACE", "NAMESPACE_PREFIX", "ORCHESTRATOR", "POLICY_KINDS", "SERVICE_ACCOUNT",
    "SERVICE_ACCOUNT_PREFIX", "AnyPolicy", "default_allow", "namespace_profile", "policy_key", "policy_of",
    "profile_of", "service_account_profile", "without_reserved",
]  # fmt: skip

DEFAULT_ALLOW = "projectcalico-default-allow"

AnyPolicy = (
    NetworkPolicy
    | GlobalNetworkPolicy
    | K8sNetworkPolicy
    | ClusterNetworkPolicy
    | StagedNetworkPolicy
    | StagedGlobalNetworkPolicy
    | StagedKubernetesNetworkPolicy
)

POLICY_KINDS: dict[type[Resource], str] = {
    NetworkPolicy: "np",
    GlobalNetworkPolicy: "gnp",
    K8sNetworkPolicy: "knp",
    ClusterNetworkPolicy: "kcnp",
    StagedNetworkPolicy: "snp",
    StagedGlobalNetworkPolicy: "sgnp",
    StagedKubernetesNetworkPolicy: "sknp",
    Profile: "profile",
}
"""Calico's short forms, which name policies in the kernel."""


def policy_of(resource: AnyPolicy) -> Policy | None:
    """The policy of an API object; None for a staged one that says nothing about packets. Raises ConfigError when it
    cannot be understood (it then counts as absent)."""
    key = policy_key(resource)
    match resource:
        case NetworkPolicy():
            return network_policy(key, resource.spec)
        case GlobalNetworkPolicy():
            return global_network_policy(key, resource.spec)
        case K8sNetworkPolicy():
            return kubernetes_policy(key, resource.spec)
        case ClusterNetworkPolicy():
            return cluster_policy(key, resource.spec)
    staged = resource.spec.staged_action or "Set"
    if staged == "Learn" or staged == "Ignore":
        return None
    match resource:
        case StagedNetworkPolicy():
            return network_policy(key, resource.spec, staged)
        case StagedGlobalNetworkPolicy():
            return global_network_policy(key, resource.spec, staged)
        case StagedKubernetesNetworkPolicy():
            return kubernetes_policy(key, resource.spec, staged)


def policy_key(resource: AnyPolicy | Profile) -> PolicyKey:
    return PolicyKey(POLICY_KINDS[type(resource)], resource.namespace, resource.name)


def profile_of(resource: Profile) -> Policy:
    """The rules of a Profile object."""
    rules = resource.spec
    return Policy(
        policy_key(resource),
        None,
        frozenset(DIRECTIONS),
        tuple(rules_of(rules.ingress, "", "spec.ingress")),
        tuple(rules_of(rules.egress, "", "spec.egress")),
    )


def default_allow(name: str = DEFAULT_ALLOW) -> Policy:
    """A profile that allows everything: `projectcalico-default-allow`, and that of every namespace."""
    allow = (PolicyRule("Allow"),)
    return Policy(PolicyKey("profile", "", name), None, frozenset(DIRECTIONS), allow, allow)


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
    return Policy(key, None, frozenset(DIRECTIONS)), labels
