"""The kinds that are fanned out: what agents follow. Whatever else somebody asks for, he asks the datastore."""

from __future__ import annotations

from collections.abc import Iterable

from tortie.calc.cluster import INPUTS
from tortie.model.ipam import IPReservation
from tortie.model.k8s import K8sNode, VirtualMachineInstance
from tortie.model.meta import Resource
from tortie.model.node import ClusterInformation
from tortie.model.nodestatus import CalicoNodeStatus
from tortie.model.policy import Profile
from tortie.store.fanout.wire import NEVER

_BESIDE: tuple[type[Resource], ...] = (
    K8sNode, ClusterInformation, IPReservation, CalicoNodeStatus, VirtualMachineInstance,
)  # fmt: skip
FANNED: tuple[type[Resource], ...] = tuple(kind for kind in (*INPUTS, *_BESIDE) if kind not in NEVER)


def of_kubernetes(kinds: Iterable[type[Resource]] = FANNED) -> tuple[type[Resource], ...]:
    """Those that a Kubernetes cluster has for agents: profiles they derive themselves."""
    return tuple(kind for kind in kinds if kind is not Profile)
