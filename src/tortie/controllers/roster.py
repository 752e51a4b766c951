"""Which controllers there are, for which datastore, and what wakes each of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tortie.calc.service_addresses import Ranges
from tortie.controllers.auto_hosts import AutoHostEndpoints
from tortie.controllers.backoff import Backoff
from tortie.controllers.compaction import Compaction, Forgetful
from tortie.controllers.configuration import COPYING, SERVICES, Configured, Settings
from tortie.controllers.endpoint_slices import EndpointSlices
from tortie.controllers.endpoints import EndpointLabels
from tortie.controllers.ipam_gc import IpamGc, Observed
from tortie.controllers.load_balancer import LoadBalancerIpam
from tortie.controllers.mirror import PATTERNS, Mirror
from tortie.controllers.node import NodeCleanup
from tortie.controllers.node_labels import NodeLabels
from tortie.controllers.running import Controller, Reasons
from tortie.controllers.running_config import RunningConfig
from tortie.controllers.service_addresses import ServiceAddresses
from tortie.model.controllers import KubeControllersConfiguration
from tortie.model.hostendpoint import HostEndpoint
from tortie.model.ipam import IPPool
from tortie.model.k8s import K8sNode, Namespace, Pod
from tortie.model.meta import Resource
from tortie.model.node import Node
from tortie.model.service import EndpointSlice, Service
from tortie.model.store import EventType, Store
from tortie.model.workload import WorkloadEndpoint
from tortie.policy.selector import parse

log = logging.getLogger(__name__)

DELETED, WRITTEN = frozenset({EventType.DELETED}), frozenset(EventType)
REASONS: dict[type[Resource], dict[str, frozenset[EventType]]] = {
    Pod: {
        IpamGc.name: DELETED,
        NodeCleanup.name: DELETED,
        EndpointLabels.name: WRITTEN,
        EndpointSlices.name: WRITTEN,
    },
    K8sNode: {
        IpamGc.name: DELETED,
        NodeCleanup.name: DELETED,
        NodeLabels.name: WRITTEN,
        ServiceAddresses.name: WRITTEN,
        EndpointSlices.name: WRITTEN,
    },
    Node: {
        IpamGc.name: DELETED,
        NodeCleanup.name: DELETED,
        AutoHostEndpoints.name: WRITTEN,
        NodeLabels.name: WRITTEN,
        EndpointSlices.name: WRITTEN,
    },
    WorkloadEndpoint: {EndpointLabels.name: WRITTEN},
    HostEndpoint: {AutoHostEndpoints.name: WRITTEN},
    Service: {LoadBalancerIpam.name: WRITTEN, ServiceAddresses.name: WRITTEN, EndpointSlices.name: WRITTEN},
    EndpointSlice: {EndpointSlices.name: WRITTEN},
    IPPool: {LoadBalancerIpam.name: WRITTEN, ServiceAddresses.name: WRITTEN},
    KubeControllersConfiguration: {
        IpamGc.name: WRITTEN,
        AutoHostEndpoints.name: WRITTEN,
        LoadBalancerIpam.name: WRITTEN,
        NodeLabels.name: WRITTEN,
        RunningConfig.name: WRITTEN,
    },
}
"""What happens to objects of a kind that is a reason for a controller to look at once; the copies' are in `reasons`."""


@dataclass(frozen=True)
class Orders:
    """What the controllers are started with. `grace`: None is what the configuration says. `later` makes the pauses of
    one; `observed` is told of each pass of the garbage collection; `history` is what is to forget, if anything is;
    `ranges` are for services."""

    grace: timedelta | None = None
    configured: Configured = field(default_factory=Configured)
    later: Callable[[], Backoff] = Backoff
    observed: Observed | None = None
    history: Forgetful | None = None
    ranges: Ranges = field(default_factory=Ranges)


def controllers(store: Store, orders: Orders, enabled: frozenset[str]) -> tuple[Controller, ...]:
    """Those that are enabled, in the order in which they pass once."""
    configured, later = orders.configured, orders.later
    etcd = configured.datastore == "etcd"
    gc = IpamGc(store, _now, _matches, orders.grace, configured=configured, later=later(), observed=orders.observed)
    balancer = LoadBalancerIpam(store, _now, _matches, configured=configured, later=later())
    every: list[Controller] = [
        NodeCleanup(store, orphans=etcd, later=later()),
        gc,
        AutoHostEndpoints(store, _matches, configured=configured, later=later()),
        balancer,
    ]
    if etcd:
        every.append(NodeLabels(store, configured=configured, later=later()))
    if enabled & COPYING:
        every += [Mirror(store, pattern, later=later()) for pattern in PATTERNS]
        every.append(EndpointLabels(store, later=later()))
    chosen = (each for each in every if each.option in enabled)
    proof = Namespace if configured.kubernetes else Pod
    informed: list[Controller] = [Informed(each, store, proof) if etcd else each for each in chosen]
    if SERVICES in enabled and not of_kubernetes(configured):
        addresses = ServiceAddresses(store, _now, orders.ranges, later=later())
        informed = [addresses, *informed, EndpointSlices(store, later=later())]
    if orders.history is not None:
        informed.append(Compaction(store, orders.history, configured=configured, later=later()))
    return tuple(informed)


def of_kubernetes(configured: Configured) -> bool:
    """Whether services are in a Kubernetes cluster, which gives them all that they need."""
    return configured.datastore == "kubernetes" or (configured.datastore == "etcd" and configured.kubernetes)


def reasons(these: tuple[Controller, ...]) -> dict[type[Resource], Reasons]:
    """What wakes them, by kind; nothing is watched for one that is not there."""
    names = {each.name for each in these}
    found: dict[type[Resource], dict[str, frozenset[EventType]]] = {kind: dict(why) for kind, why in REASONS.items()}
    for pattern in PATTERNS:
        for kind in (pattern.original, pattern.copy):
            found.setdefault(kind, {})[f"{pattern.option}-copies"] = WRITTEN
    found = {kind: {name: each for name, each in why.items() if name in names} for kind, why in found.items()}
    return {kind: why for kind, why in found.items() if why}


class Informed:
    """A controller on etcd, which has work only where Kubernetes' objects are known: without them every pod, node and
    service would seem to be gone. They are where there is one of the kind `proof`: a cluster that is asked has always a
    namespace; where none is named, and they would be in etcd as well, a pod."""

    def __init__(self, controller: Controller, store: Store, proof: type[Resource]) -> None:
        self._controller = controller
        self._store = store
        self._proof = proof
        self._told = False

    @property
    def name(self) -> str:
        return self._controller.name

    @property
    def option(self) -> str:
        return self._controller.option

    @property
    def later(self) -> Backoff:
        return self._controller.later

    def period(self, settings: Settings) -> timedelta:
        return self._controller.period(settings)

    async def run_once(self) -> int:
        if (await self._store.list(self._proof)).items:
            self._told = False
            return await self._controller.run_once()
        if not self._told:
            what = self._proof.KIND.kind
            log.warning("%s: no %s is known, nothing is done: name the Kubernetes cluster, KUBECONFIG", self.name, what)
        self._told = True
        return 0


def _now() -> datetime:
    return datetime.now(UTC)


def _matches(text: str, labels: Mapping[str, str]) -> bool:
    return parse(text).matches(labels)
