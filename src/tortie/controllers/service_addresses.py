"""Gives services their ClusterIPs, NodePorts and ports of health checks, as an API server does where there is one.

    services, ranges, the IP versions of pods ─► addressed (calc) ─► one write for each service that lacks something

A service that cannot have what it asks for is told so in its status, by a condition, and in the log; a range that is
full is told in the log once, however many wait for it. They are looked at again whenever a service changes or goes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta

from tortie.base.addr import parse_ip, parse_net
from tortie.base.errors import ConfigError, Conflict, NotFound, TortieError
from tortie.calc.service_addresses import Memory, Outcome, Ranges, addressed, complained
from tortie.controllers.backoff import Backoff, at_once
from tortie.controllers.configuration import SERVICES, Settings, locked
from tortie.model.document import encode
from tortie.model.ipam import IPPool
from tortie.model.k8s import K8sNode, Pod
from tortie.model.service import Service
from tortie.model.store import Store

log = logging.getLogger(__name__)


def versions_of_pools(pools: Iterable[IPPool]) -> set[int]:
    """Those of which pods get addresses. What cannot be read counts for nothing."""
    usable = (pool for pool in pools if not pool.spec.disabled and "Workload" in pool.spec.uses)
    return set(_versions((pool.spec.cidr for pool in usable), lambda text: parse_net(text).version))


def versions_of_nodes(nodes: Iterable[K8sNode]) -> set[int]:
    cidrs = (cidr for node in nodes for cidr in node.pod_cidrs)
    return set(_versions(cidrs, lambda text: parse_net(text).version))


def versions_of_pods(pods: Iterable[Pod]) -> set[int]:
    ips = (ip for pod in pods for ip in (pod.status.pod_ip, *(each.ip for each in pod.status.pod_ips)) if ip)
    return set(_versions(ips, lambda text: parse_ip(text).version))


def _versions(texts: Iterable[str], version: Callable[[str], int]) -> Iterator[int]:
    for text in texts:
        try:
            yield version(text)
        except ConfigError:
            continue


class ServiceAddresses:
    """Decides and writes, each service on its own. `now` tells the time in UTC."""

    name = "service-addresses"
    option = SERVICES
    burst = 0.02

    def __init__(
        self,
        store: Store,
        now: Callable[[], datetime],
        ranges: Ranges | None = None,
        *,
        later: Backoff | None = None,
    ) -> None:
        self._store = store
        self._now = now
        self._ranges = ranges or Ranges()
        self._memory = Memory()
        self._full: set[str] = set()
        self.later = later or at_once()

    def period(self, settings: Settings) -> timedelta:
        return settings.period(SERVICES)

    async def run_once(self) -> int:
        """One pass; how many services do not have what they ask for. Raises Unavailable."""
        services = (await self._store.list(Service)).items
        if not services or await locked(self._store):
            return 0
        outcomes = list(addressed(services, self._ranges, await self._populated(), self._memory))
        self._tell_of_full({each.complaint.full for each in outcomes if each.complaint is not None} - {""})
        failures = 0
        for each in outcomes:
            failures += await self._written(each)
        return failures

    async def _populated(self) -> set[int]:
        """The IP versions of pods: as pools say, else nodes, else pods themselves; none are known otherwise."""
        return (
            versions_of_pools((await self._store.list(IPPool)).items)
            or versions_of_nodes((await self._store.list(K8sNode)).items)
            or versions_of_pods((await self._store.list(Pod)).items)
        )

    async def _written(self, outcome: Outcome) -> int:
        service, complaint = outcome.before, outcome.complaint
        new = complained(outcome.after, complaint, self._now())
        lacks = int(complaint is not None)
        if lacks:
            self.later.failed(f"{service.title} asks", slowly=True)  # nothing helps but that something changes
        if new is service:
            return lacks
        state = encode(new)
        if not self.later.due(service.title, state):
            return lacks
        try:
            await self._store.update(new)
        except NotFound:
            return 0
        except TortieError as error:
            level = logging.DEBUG if isinstance(error, Conflict) else logging.WARNING
            log.log(level, "%s: %s", outcome, error)
            self.later.failed(service.title, state)
            return 1
        self.later.succeeded(service.title)
        self._tell(outcome, new)
        return lacks

    def _tell(self, outcome: Outcome, new: Service) -> None:
        if outcome.after is not outcome.before:
            log.info("%s", outcome)
        complaint = outcome.complaint
        if complaint is not None and not complaint.full and new.status != outcome.before.status:
            log.warning("%s: %s", new.title, complaint.message)

    def _tell_of_full(self, full: set[str]) -> None:
        for each in sorted(full - self._full):
            log.warning("%s: nothing is free any more; services that want some wait, and say so in their status", each)
        self._full = full
