"""What the agent knows of the cluster from its watches, object by object, so that ADD need not ask the datastore.

What is here may be older than the datastore by a watch's latency. That is right for

    ClusterInformation   an operator who locks the datastore waits for what is under way anyway
    Namespace, IPPool,   a change that comes while a pod is being connected may as well have come after it
    IPReservation, Node
    Pod                  only with the UID that the runtime names, so that it is never one of the same name that is
                         gone; its labels are followed afterwards

and for nothing else: what is decided by compare-and-swap is read.
"""

from __future__ import annotations

from typing import TypeVar

from tortie.model.ipam import BlockAffinity, IPPool, IPReservation
from tortie.model.k8s import Namespace, Pod
from tortie.model.meta import Resource
from tortie.model.node import ClusterInformation, Node

R = TypeVar("R", bound=Resource)

KEPT: tuple[type[Resource], ...] = (ClusterInformation, Namespace, IPPool, IPReservation, Node, BlockAffinity, Pod)
ALSO: tuple[type[Resource], ...] = (ClusterInformation, IPReservation)
"""Those of them that nothing else is computed from, so that they are followed for this alone."""


class Known:
    """Filled by whoever follows a kind; of Nodes and Pods only this node's are kept."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._objects: dict[type[Resource], dict[tuple[str, str], Resource]] = {kind: {} for kind in KEPT}
        self._current: set[type[Resource]] = set()

    def put(self, resource: Resource) -> None:
        """It is there, like this."""
        objects = self._objects.get(type(resource))
        if objects is None:
            return
        key = resource.namespace, resource.name
        if self._ours(resource):
            objects[key] = resource
        else:
            objects.pop(key, None)

    def drop(self, kind: type[Resource], namespace: str, name: str) -> None:
        """It is gone."""
        self._objects.get(kind, {}).pop((namespace, name), None)

    def replace(self, kind: type[R], items: tuple[R, ...]) -> None:
        """These are all there are."""
        self._objects[kind].clear()
        for item in items:
            self.put(item)

    def listed(self, kind: type[Resource]) -> None:
        """Everything of a kind has been put in, and what changes will be."""
        self._current.add(kind)

    def lost(self, kind: type[Resource]) -> None:
        """The watch has ended: what is known grows old."""
        self._current.discard(kind)

    def current(self, *kinds: type[Resource]) -> bool:
        """Whether these kinds are followed right now."""
        return self._current.issuperset(kinds)

    def get(self, kind: type[R], name: str, namespace: str = "") -> R | None:
        """None when there is none that is known."""
        return self._objects[kind].get((namespace, name))  # type: ignore[return-value]

    def all(self, kind: type[R]) -> tuple[R, ...]:
        """In the order in which a datastore lists them."""
        objects = self._objects[kind]
        return tuple(objects[key] for key in sorted(objects))  # type: ignore[misc]

    def _ours(self, resource: Resource) -> bool:
        if isinstance(resource, Pod):
            return resource.spec.node_name == self._node
        return not isinstance(resource, Node) or resource.name == self._node
