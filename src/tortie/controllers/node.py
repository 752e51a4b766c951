"""Clears away what was a node's when the node is gone: its endpoints, and the settings that name it.

An endpoint of a node that nothing registers any more is deleted as soon as its pod is gone or runs elsewhere. A setting
(a BGPPeer with `spec.node`, the configurations `node.<name>`) may well be written before its node comes, so it is only
deleted when this process has seen the node and then missed it. The node's addresses and blocks are `ipam_gc`'s.

Source: what Calico does when a Node is deleted from its own datastore.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tortie.base.errors import Conflict, NotFound, TortieError
from tortie.ipam.leak import KUBERNETES, why_gone
from tortie.model.bgp import BGPConfiguration, BGPPeer
from tortie.model.k8s import K8sNode, Pod
from tortie.model.meta import Resource
from tortie.model.node import ClusterInformation, FelixConfiguration, Node
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """What is decided on; listed in this order, so that an endpoint's node has been there before it was looked for."""

    endpoints: tuple[WorkloadEndpoint, ...] = ()
    peers: tuple[BGPPeer, ...] = ()
    settings: tuple[FelixConfiguration | BGPConfiguration, ...] = ()
    pods: tuple[Pod, ...] = ()
    nodes: frozenset[str] = frozenset()
    locked: bool = False


@dataclass(frozen=True)
class Doomed:
    """An object that is to be deleted, and why; `node` is the one that it was of."""

    resource: Resource
    node: str
    reason: str

    def __str__(self) -> str:
        return f"delete {self.resource.title}: {self.reason}"


def decide(now: Facts, seen: frozenset[str]) -> tuple[Doomed, ...]:
    """What is to be deleted; nothing while the datastore is locked. `seen` are the nodes that were there before."""
    if now.locked:
        return ()
    pods = {(pod.namespace, pod.name): pod for pod in now.pods}
    return (*_endpoints(now, pods), *_settings(now, seen - now.nodes))


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
    for peer in now.peers:
        if peer.spec.node in gone:
            yield Doomed(peer, peer.spec.node, f"node {peer.spec.node} is gone")
    for setting in now.settings:
        node = setting.name.removeprefix("node.")
        if node != setting.name and node in gone:
            yield Doomed(setting, node, f"node {node} is gone")


class NodeCleanup:
    """Decides and deletes, remembering which nodes it has seen."""

    name = "node"

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: frozenset[str] = frozenset()

    async def run_once(self) -> int:
        """One pass; how many objects could not be deleted and should be tried again soon. Raises Unavailable."""
        facts = await read(self._store)
        failed: set[str] = set()
        failures = 0
        for doomed in decide(facts, self._seen):
            try:
                await self._delete(doomed)
            except TortieError as error:
                log.warning("%s: %s", doomed, error)
                failures += 1
                failed.add(doomed.node)
        still = failed & self._seen if not facts.locked else self._seen
        self._seen = facts.nodes | still
        return failures

    async def _delete(self, doomed: Doomed) -> None:
        """Only what was read: an object that changes meanwhile is decided on again."""
        one = doomed.resource
        try:
            await self._store.delete(type(one), one.name, one.namespace, one.metadata.resource_version)
        except NotFound:
            return
        except Conflict:
            log.info("%s has changed meanwhile", one.title)
            raise
        log.info("%s", doomed)


async def read(store: Store) -> Facts:
    """Lists what is decided on. Raises Unavailable."""
    endpoints = (await store.list(WorkloadEndpoint)).items
    peers = (await store.list(BGPPeer)).items
    felix = (await store.list(FelixConfiguration)).items
    bgp = (await store.list(BGPConfiguration)).items
    pods = (await store.list(Pod)).items
    nodes = [*(await store.list(Node)).items, *(await store.list(K8sNode)).items]
    try:
        locked = (await store.get(ClusterInformation, "default")).spec.datastore_ready is False
    except NotFound:
        locked = False
    return Facts(endpoints, peers, (*felix, *bgp), pods, frozenset(node.name for node in nodes), locked)
