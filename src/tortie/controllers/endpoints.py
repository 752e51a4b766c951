"""Keeps the labels of endpoints what their pods' are, on nodes whose agent does not: Calico's on etcd leaves that to
its controllers. Tortie's agents do it for their own nodes, by the same words; whoever comes second writes nothing.

Source: Calico's workload endpoint controller.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from datetime import timedelta

from msgspec.structs import replace

from tortie.base.errors import NotFound, TortieError
from tortie.calc.workloads import pod_labels
from tortie.controllers.backoff import Backoff, at_once
from tortie.controllers.configuration import ENDPOINT, Settings, locked
from tortie.ipam.leak import KUBERNETES
from tortie.model.k8s import Pod
from tortie.model.store import Store
from tortie.model.workload import NETWORK, WorkloadEndpoint

log = logging.getLogger(__name__)


def followed(endpoints: Iterable[WorkloadEndpoint], pods: Iterable[Pod]) -> Iterator[WorkloadEndpoint]:
    """The endpoints that do not say what their pods do, as they should be. Where a network has one profile for all,
    labels are not the pods'."""
    by_name = {(pod.namespace, pod.name): pod for pod in pods}
    for endpoint in endpoints:
        spec = endpoint.spec
        pod = by_name.get((endpoint.namespace, spec.pod))
        if pod is None or spec.orchestrator != KUBERNETES or pod.spec.node_name not in ("", spec.node):
            continue
        if endpoint.metadata.annotations.get(NETWORK) in spec.profiles:
            continue
        account = pod.service_account
        if endpoint.labels != pod_labels(pod) or spec.service_account_name != account:
            metadata = replace(endpoint.metadata, labels=pod_labels(pod))
            yield replace(endpoint, metadata=metadata, spec=replace(spec, service_account_name=account))


class EndpointLabels:
    """Decides and writes, each endpoint on its own."""

    name = "endpoint-labels"
    option = ENDPOINT

    def __init__(self, store: Store, *, later: Backoff | None = None) -> None:
        self._store = store
        self.later = later or at_once()

    def period(self, settings: Settings) -> timedelta:
        return settings.period(ENDPOINT)

    async def run_once(self) -> int:
        """One pass; how many endpoints could not be written. Raises Unavailable."""
        if await locked(self._store):
            return 0
        endpoints = (await self._store.list(WorkloadEndpoint)).items
        pods = (await self._store.list(Pod)).items
        failures = 0
        for endpoint in followed(endpoints, pods):
            state = (endpoint.metadata.resource_version, tuple(sorted(endpoint.labels.items())))
            if not self.later.due(endpoint.title, state):
                continue
            try:
                await self._store.update(endpoint)
            except NotFound:
                continue
            except TortieError as error:
                log.warning("write what its pod says into %s: %s", endpoint.title, error)
                self.later.failed(endpoint.title, state)
                failures += 1
            else:
                self.later.succeeded(endpoint.title)
                log.info("wrote what its pod says into %s", endpoint.title)
        return failures
