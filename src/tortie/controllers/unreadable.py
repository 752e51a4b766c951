"""Objects that are there although no list has them: a datastore leaves out what it cannot read, so as to hide no other,
and something may come between two lists.

A list is enough to say who has what. To say that somebody is gone, it is asked for by name.
"""

from __future__ import annotations

import logging
from enum import Enum

from tortie.base.errors import NotFound, NotSupported
from tortie.ipam.allocation import Allocation
from tortie.model.k8s import K8sNode, Pod
from tortie.model.meta import Resource, title
from tortie.model.node import Node
from tortie.model.store import Store

log = logging.getLogger(__name__)

Whose = tuple[type[Resource], str, str]


class Found(Enum):
    """What the datastore says to a question by name."""

    GONE = "gone"
    READABLE = "readable"
    UNREADABLE = "unreadable"


class Unreadable:
    """Remembers for as long as it lives, which is one pass. Every method raises Unavailable."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[Whose, Found] = {}

    async def owner(self, of: Allocation) -> bool:
        """Whether the pod of an address, or the node, is there and cannot be read."""
        namespace, pod = of.pod or ("", "")
        return (bool(pod) and await self.hides(Pod, pod, namespace)) or await self.node(of.node)

    async def node(self, name: str) -> bool:
        """Whether a node is there, in Kubernetes or of ours, and cannot be read."""
        return bool(name) and (await self.hides(K8sNode, name) or await self.hides(Node, name))

    async def hides(self, kind: type[Resource], name: str, namespace: str = "") -> bool:
        """Whether an object is there and cannot be read."""
        return await self._found(kind, name, namespace) is Found.UNREADABLE

    async def is_there(self, kind: type[Resource], name: str, namespace: str = "") -> bool:
        """Whether an object is there, readable or not."""
        return await self._found(kind, name, namespace) is not Found.GONE

    async def _found(self, kind: type[Resource], name: str, namespace: str) -> Found:
        key = kind, namespace, name
        if key not in self._known:
            self._known[key] = await self._ask(*key)
        return self._known[key]

    async def _ask(self, kind: type[Resource], namespace: str, name: str) -> Found:
        try:
            await self._store.get(kind, name, namespace)
        except NotFound:
            return Found.GONE
        except NotSupported as error:
            log.warning("%s keeps what is its: %s", title(kind.KIND, name, namespace), error)
            return Found.UNREADABLE
        return Found.READABLE
