"""What the stand-alone proxy hears of a cluster, on its way into `calc.proxy`: services, slices, nodes, pools."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tortie.base.errors import ConfigError
from tortie.base.logs import Seldom
from tortie.calc.proxy.election import asks_layer2
from tortie.calc.proxy.inputs import ProxyInputs
from tortie.calc.proxy.state import ProxyState
from tortie.model.ipam import IPPool
from tortie.model.k8s import K8sNode
from tortie.model.meta import Resource, title
from tortie.model.service import EndpointSlice, Service

KINDS: tuple[type[Resource], ...] = (Service, EndpointSlice, K8sNode, IPPool)
OPTIONAL = (IPPool,)
"""Without them pod CIDRs say where pods are."""
log = logging.getLogger(__name__)


class Heard:
    """Implements `store.mirror.Picture`. `node` is this one's name. Pools, or the nodes' pod CIDRs, say where pods are.
    `changed` is told every state that is another than the last."""

    def __init__(self, node: str, changed: Callable[[ProxyState], None]) -> None:
        self._inputs = ProxyInputs(node)
        self._changed = changed
        self._latest: ProxyState | None = None
        self._complain = Seldom(log)
        self.complete = False
        """Whether everything has been listed once: before that nothing is told."""

    def put(self, resource: Resource) -> None:
        try:
            self._put(resource)
        except ConfigError as error:
            self._complain.warning(f"{resource.title} counts as absent: {error}")
            self.drop(type(resource), resource.namespace, resource.name)

    def drop(self, kind: type[Resource], namespace: str, name: str) -> None:
        if kind is Service:
            self._inputs.set_service(namespace, name, None)
        elif kind is EndpointSlice:
            self._inputs.set_slice(namespace, name, None)
        elif kind is IPPool:
            self._inputs.set_pool(title(IPPool.KIND, name), None)
        elif kind is K8sNode:
            self._inputs.set_node(name, None)
            self._inputs.set_pod_cidrs(name, ())

    def heard(self) -> None:
        if not self.complete:
            return
        state = self._inputs.state()
        if state is not self._latest:
            self._latest = state
            self._changed(state)

    def _put(self, resource: Resource) -> None:
        match resource:
            case Service():
                self._inputs.set_service(resource.namespace, resource.name, resource)
            case EndpointSlice():
                self._inputs.set_slice(resource.namespace, resource.name, resource)
            case IPPool(spec=spec):
                workloads = "Workload" in spec.uses
                self._inputs.set_pool(resource.title, spec.net, workloads=workloads, layer2=asks_layer2(resource))
            case K8sNode():
                self._inputs.set_node(resource.name, resource.labels, leaving=resource.leaving)
                self._inputs.set_pod_cidrs(resource.name, resource.pod_cidrs)
