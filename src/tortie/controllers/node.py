"""Clears away what was a node's when the node is gone: endpoints, settings that name it, what it told on objects.

An endpoint of a node that nothing registers any more is deleted as soon as its pod is gone or runs elsewhere. A setting
(a BGPPeer or HostEndpoint with `spec.node`, the configurations `node.<name>`) may well be written before its node
comes, so it is only deleted when this process has seen the node and then missed it. Conditions that a node has written
on BGPPeers and BGPFilters are taken off them: nobody else would. The node's addresses and blocks are `ipam_gc`'s.

Where Calico's Nodes are in etcd and Kubernetes' elsewhere, a Node that stands for a node of Kubernetes' goes with that
one, after all that was its: whoever looks for its addresses finds it gone, and nothing keeps its name.

Source: what Calico does when a Node is deleted from its own datastore.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import timedelta

from msgspec.structs import replace

from tortie.base.errors import Conflict, NotFound, NotSupported, TortieError
from tortie.controllers.backoff import Backoff, at_once
from tortie.controllers.configuration import NODE, Settings, locked
from tortie.controllers.unreadable import Unreadable
from tortie.ipam.leak import KUBERNETES, why_gone
from tortie.model.bgp import BGPConfiguration, BGPPeer
from tortie.model.bgpfilter import BGPFilter
from tortie.model.conditions import conditions, node_of, with_conditions
from tortie.model.hostendpoint import HostEndpoint
from tortie.model.k8s import K8sNode, Pod
from tortie.model.meta import Resource
from tortie.model.node import FelixConfiguration, Node
from tortie.model.store import R, Store
from tortie.model.workload import WorkloadEndpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """What is decided on; listed in this order, so that the node of an endpoint or a condition has been there before it
    was looked for."""

    endpoints: tuple[WorkloadEndpoint, ...] = ()
    hosts: tuple[HostEndpoint, ...] = ()
    peers: tuple[BGPPeer, ...] = ()
    filters: tuple[BGPFilter, ...] = ()
    settings: tuple[FelixConfiguration | BGPConfiguration, ...] = ()
    pods: tuple[Pod, ...] = ()
    nodes: frozenset[str] = frozenset()
    orphans: tuple[Node, ...] = ()
    """Those that Kubernetes has given up; they are not among `nodes`."""
    locked: bool = False
    unread: tuple[str, ...] = ()
    """What could not be read; it is left alone."""


@dataclass(frozen=True)
class Doomed:
    """An object that is to be deleted, and why; `node` is the one that it was of."""

    resource: Resource
    node: str
    reason: str

    def __str__(self) -> str:
        return f"delete {self.resource.title}: {self.reason}"


@dataclass(frozen=True)
class Cleared:
    """An object as it was read, without what `nodes` that are gone have told on it."""

    resource: BGPPeer | BGPFilter
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        gone = " and ".join(self.nodes)
        return f"clear conditions of {self.resource.title}: {gone} {'is' if len(self.nodes) == 1 else 'are'} gone"


def decide(now: Facts, seen: frozenset[str]) -> tuple[Doomed, ...]:
    """What is to be deleted; nothing while the datastore is locked. `seen` are the nodes that were there before."""
    if now.locked:
        return ()
    pods = {(pod.namespace, pod.name): pod for pod in now.pods}
    orphans = {node.name for node in now.orphans}
    return (*_endpoints(now, pods), *_settings(now, (seen | orphans) - now.nodes), *_nodes(now))


def orphaned(nodes: Iterable[Node], kubernetes: Set[str]) -> Iterator[Node]:
    """The Nodes whose node of Kubernetes' is gone. None if Kubernetes has no node at all: it is not there to ask."""
    for node in nodes if kubernetes else ():
        names = {ref.node_name or node.name for ref in node.spec.orch_refs if ref.orchestrator == KUBERNETES}
        if names and not names & kubernetes:
            yield node


def _nodes(now: Facts) -> Iterator[Doomed]:
    for node in now.orphans:
        yield Doomed(node, node.name, "Kubernetes' node is gone")


def _endpoints(now: Facts, pods: Mapping[tuple[str, str], Pod]) -> Iterator[Doomed]:
    for endpoint in now.endpoints:
        spec = endpoint.spec
        if spec.orchestrator != KUBERNETES or spec.node in now.nodes:
            continue
        gone = why_gone(pods.get((endpoint.namespace, spec.pod)), spec.node)
        if gone:
            reason = f"node {spec.node} is gone, and Pod {endpoint.namespace}/{spec.pod} {gone}"
            yield Doomed(endpoint, spec.node, reason)


def _settings(now: Facts, gone: frozenset[str]) -> Iterator[Doomed]:
    named: tuple[HostEndpoint | BGPPeer, ...] = (*now.hosts, *now.peers)
    for one in named:
        if one.spec.node in gone:
            yield Doomed(one, one.spec.node, f"node {one.spec.node} is gone")
    for setting in now.settings:
        node = setting.name.removeprefix("node.")
        if node != setting.name and node in gone:
            yield Doomed(setting, node, f"node {node} is gone")


def cleared(now: Facts) -> Iterator[Cleared]:
    """Objects on which nodes that are gone have told something; none while the datastore is locked."""
    told_on: tuple[BGPPeer | BGPFilter, ...] = (*now.peers, *now.filters) if not now.locked else ()
    for one in told_on:
        have = conditions(one.status)
        gone = {node_of(condition) for condition in have} - now.nodes - {""}
        if gone:
            status = with_conditions(one.status, (each for each in have if node_of(each) not in gone))
            yield Cleared(replace(one, status=status), tuple(sorted(gone)))


class NodeCleanup:
    """Decides and deletes, remembering which nodes it has seen. `orphans`: Nodes go with those of Kubernetes'."""

    name = "node"
    option = NODE

    def __init__(self, store: Store, *, orphans: bool = False, later: Backoff | None = None) -> None:
        self._store = store
        self._orphans = orphans
        self.later = later or at_once()
        self._seen: frozenset[str] = frozenset()

    def period(self, settings: Settings) -> timedelta:
        return settings.period(NODE)

    async def run_once(self) -> int:
        """One pass; how many objects could not be deleted and should be tried again soon. Raises Unavailable."""
        facts = await read(self._store, self._orphans)
        for line in facts.unread:
            log.warning("%s", line)
        failed: set[str] = set()
        doomed_now = decide(facts, self._seen)
        failures = len(facts.unread) + await self._clear(facts, {each.resource.title for each in doomed_now})
        unreadable = Unreadable(self._store)
        for doomed in doomed_now:
            if not self.later.due(doomed.resource.title, doomed.resource.metadata.resource_version):
                failed.add(doomed.node)
                continue
            try:
                if await _is_alive(doomed.node, facts, unreadable):
                    failed.add(doomed.node)
                else:
                    await self._delete(doomed, failed)
                self.later.succeeded(doomed.resource.title)
            except TortieError as error:
                log.warning("%s: %s", doomed, error)
                self.later.failed(doomed.resource.title, doomed.resource.metadata.resource_version)
                failures += 1
                failed.add(doomed.node)
        still = (failed if not facts.unread else self._seen) & self._seen if not facts.locked else self._seen
        self._seen = facts.nodes | still
        return failures

    async def _clear(self, facts: Facts, doomed: Set[str]) -> int:
        """What is not going to be deleted anyway; how many could not be written."""
        failures = 0
        for each in cleared(facts):
            key, state = f"clear {each.resource.title}", each.resource.metadata.resource_version
            if each.resource.title in doomed or not self.later.due(key, state):
                continue
            try:
                await self._store.update(each.resource)
                log.info("%s", each)
            except NotFound:
                continue
            except TortieError as error:
                log.warning("%s: %s", each, error)
                self.later.failed(key, state)
                failures += 1
            else:
                self.later.succeeded(key)
        return failures

    async def _is_there(self, node: Node) -> bool:
        for name in {ref.node_name or node.name for ref in node.spec.orch_refs if ref.orchestrator == KUBERNETES}:
            try:
                await self._store.get(K8sNode, name)
            except NotFound:
                continue
            return True
        return False

    async def _delete(self, doomed: Doomed, failed: Set[str]) -> None:
        """Only what was read: an object that changes meanwhile is decided on again. A Node goes last, and only if
        Kubernetes says once more that it has no such node."""
        one = doomed.resource
        if isinstance(one, Node) and (doomed.node in failed or await self._is_there(one)):
            return
        try:
            await self._store.delete(type(one), one.name, one.namespace, one.metadata.resource_version)
        except NotFound:
            return
        except Conflict:
            log.info("%s has changed meanwhile", one.title)
            raise
        log.info("%s", doomed)


async def _is_alive(node: str, facts: Facts, unreadable: Unreadable) -> bool:
    """Whether a node is there that no list had: it cannot be read, or has come since."""
    if any(orphan.name == node for orphan in facts.orphans):
        return await unreadable.node(node)
    return bool(node) and (await unreadable.is_there(K8sNode, node) or await unreadable.is_there(Node, node))


async def read(store: Store, orphans: bool = False) -> Facts:
    """Lists what is decided on, and says what of it cannot be read: then that is left alone.

    Raises Unavailable; NotSupported when pods or nodes cannot be read, for what is missing there seems to be gone.
    """
    unread: list[str] = []

    async def some(kind: type[R]) -> tuple[R, ...]:
        try:
            return (await store.list(kind)).items
        except NotSupported as error:
            unread.append(f"{kind.KIND.plural} of nodes that are gone stay: {error}")
            return ()

    endpoints = await some(WorkloadEndpoint)
    hosts = await some(HostEndpoint)
    peers = await some(BGPPeer)
    filters = await some(BGPFilter)
    felix = await some(FelixConfiguration)
    bgp = await some(BGPConfiguration)
    pods = (await store.list(Pod)).items
    nodes = (await store.list(Node)).items
    kubernetes = frozenset(node.name for node in (await store.list(K8sNode)).items)
    gone = tuple(orphaned(nodes, kubernetes)) if orphans else ()
    names = frozenset(node.name for node in nodes) - {node.name for node in gone} | kubernetes
    stopped = await locked(store)
    return Facts(endpoints, hosts, peers, filters, (*felix, *bgp), pods, names, gone, stopped, tuple(unread))
