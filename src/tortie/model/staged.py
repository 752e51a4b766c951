"""Staged policies: the kinds of `policy` and of Kubernetes once more, asked for what they would do and never obeyed.

`Set` stands for the policy of the same name being written, `Delete` for its being deleted. `Learn` and `Ignore` are of
those who write policies by machine: they say nothing about packets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from tortie.model.k8s import K8sNetworkPolicySpec
from tortie.model.meta import Kind, Problem, Resource, Value
from tortie.model.misfit import fields
from tortie.model.policy import GlobalNetworkPolicySpec, NetworkPolicySpec

StagedAction = Literal["Set", "Delete", "Learn", "Ignore"]


def _delete_problems(spec: Value) -> Iterator[Problem]:
    """Who deletes a policy says which one, and nothing else."""
    empty = type(spec)()
    for name, attribute in fields(type(spec)):
        if attribute not in ("staged_action", "tier") and getattr(spec, attribute) != getattr(empty, attribute):
            yield name, "must be empty with stagedAction Delete"


class StagedNetworkPolicySpec(NetworkPolicySpec, frozen=True, kw_only=True):
    staged_action: StagedAction | None = None

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.staged_action == "Delete":
            yield from _delete_problems(self)


class StagedGlobalNetworkPolicySpec(GlobalNetworkPolicySpec, frozen=True, kw_only=True):
    staged_action: StagedAction | None = None

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.staged_action == "Delete":
            yield from _delete_problems(self)


class StagedKubernetesNetworkPolicySpec(K8sNetworkPolicySpec, frozen=True, kw_only=True):
    staged_action: StagedAction | None = None

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.staged_action == "Delete":
            yield from _delete_problems(self)


class StagedNetworkPolicy(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="StagedNetworkPolicy",
        plural="stagednetworkpolicies",
        namespaced=True,
        aliases=("stagednetworkpolicy", "snp", "snps", "scnp", "spol"),
    )
    spec: StagedNetworkPolicySpec = StagedNetworkPolicySpec()


class StagedGlobalNetworkPolicy(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="StagedGlobalNetworkPolicy",
        plural="stagedglobalnetworkpolicies",
        aliases=("stagedglobalnetworkpolicy", "sgnp", "sgnps", "scgnp"),
    )
    spec: StagedGlobalNetworkPolicySpec = StagedGlobalNetworkPolicySpec()


class StagedKubernetesNetworkPolicy(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="StagedKubernetesNetworkPolicy",
        plural="stagedkubernetesnetworkpolicies",
        namespaced=True,
        aliases=("stagedkubernetesnetworkpolicy", "sknp", "sknps", "skpol"),
    )
    spec: StagedKubernetesNetworkPolicySpec = StagedKubernetesNetworkPolicySpec()


Staged = StagedNetworkPolicy | StagedGlobalNetworkPolicy | StagedKubernetesNetworkPolicy
