"""Keeps Kubernetes' labels of a node on Calico's Node, where the two are in different datastores.

    K8sNode's labels ──────────────────────┐
    kube-labels: those that were there ────┴─► labelled: the Node with them, without those that went

Labels that somebody has put on Calico's Node stay. Under one name Kubernetes' wins. What was Kubernetes' is remembered
in an annotation, so that what goes there goes here. Source: Calico's node controller, `syncLabels`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta

from msgspec.structs import replace

from tortie.base.errors import NotFound, TortieError
from tortie.controllers.backoff import Backoff, at_once
from tortie.controllers.configuration import NODE, Configured, Settings, locked
from tortie.ipam.leak import KUBERNETES
from tortie.model.k8s import K8sNode
from tortie.model.node import Node
from tortie.model.store import Store

log = logging.getLogger(__name__)

KUBE_LABELS = "projectcalico.org/kube-labels"


def labelled(node: Node, labels: Mapping[str, str]) -> Node:
    """The Node with the labels of Kubernetes' node; equal to what it was when there is nothing to do."""
    before = _remembered(node)
    own = {key: value for key, value in node.labels.items() if key not in before or key in labels}
    note = json.dumps(dict(labels), sort_keys=True, separators=(",", ":"))
    said = node.metadata.annotations
    annotations = said if before == labels and KUBE_LABELS in said else said | {KUBE_LABELS: note}
    return replace(node, metadata=replace(node.metadata, labels=own | dict(labels), annotations=annotations))


def _remembered(node: Node) -> Mapping[str, str]:
    """An annotation that is no map of labels counts as none."""
    try:
        found = json.loads(node.metadata.annotations.get(KUBE_LABELS) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def counterpart(node: Node) -> str:
    """The name of Kubernetes' node that a Node stands for."""
    names = (ref.node_name for ref in node.spec.orch_refs if ref.orchestrator == KUBERNETES)
    return next(names, "") or node.name


def changes(nodes: Iterable[Node], kubernetes: Iterable[K8sNode]) -> Iterator[Node]:
    """The Nodes that lack something, as they should be. One without a counterpart is left as it is."""
    labels = {each.name: each.labels for each in kubernetes}
    for node in nodes:
        theirs = labels.get(counterpart(node))
        if theirs is not None and (new := labelled(node, theirs)) != node:
            yield new


class NodeLabels:
    """Decides and writes, each Node on its own."""

    name = "node-labels"
    option = NODE

    def __init__(self, store: Store, *, configured: Configured | None = None, later: Backoff | None = None) -> None:
        self._store = store
        self._configured = configured or Configured()
        self.later = later or at_once()

    def period(self, settings: Settings) -> timedelta:
        return settings.period(NODE)

    async def run_once(self) -> int:
        """One pass; how many Nodes could not be written. Raises Unavailable."""
        settings = await self._configured(self._store)
        if settings.spec.controllers.node.sync_labels == "Disabled" or await locked(self._store):
            return 0
        nodes = (await self._store.list(Node)).items
        failures = 0
        for node in changes(nodes, (await self._store.list(K8sNode)).items):
            state = (node.metadata.resource_version, tuple(sorted(node.labels.items())))
            if not self.later.due(node.name, state):
                continue
            try:
                await self._store.update(node)
            except NotFound:
                continue
            except TortieError as error:
                log.warning("write Kubernetes' labels onto %s: %s", node.title, error)
                self.later.failed(node.name, state)
                failures += 1
            else:
                self.later.succeeded(node.name)
                log.info("wrote Kubernetes' labels onto %s", node.title)
        return failures
