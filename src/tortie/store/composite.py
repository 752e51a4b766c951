"""Two datastores as one, by kind: Calico's with etcd, where pods, namespaces and the like are Kubernetes'.

    Pod, Namespace, Service, ... ──► Kubernetes
    all others                   ──► etcd

Revisions are those of the datastore that has the kind: nothing may depend on an order between kinds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import TypeVar

from tortie.model.kinds import KINDS
from tortie.model.meta import Resource
from tortie.model.store import Event, Listing, Store

R = TypeVar("R", bound=Resource)

CALICO = "projectcalico.org/v3"
OF_KUBERNETES: frozenset[type[Resource]] = frozenset(kind for kind in KINDS if kind.KIND.api_version != CALICO)
"""The kinds that a Kubernetes cluster has without us."""


class CompositeStore:
    """Implements `tortie.model.store.Store`: `apart` has the `kinds`, `main` has all others."""

    def __init__(self, main: Store, apart: Store, kinds: Collection[type[Resource]] = OF_KUBERNETES) -> None:
        self.main = main
        self.apart = apart
        self._kinds = frozenset(kinds)

    def of(self, kind: type[Resource]) -> Store:
        """The one that has a kind."""
        return self.apart if kind in self._kinds else self.main

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        return await self.of(kind).get(kind, name, namespace)

    async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
        return await self.of(kind).list(kind, namespace)

    async def create(self, obj: R) -> R:
        return await self.of(type(obj)).create(obj)

    async def update(self, obj: R) -> R:
        return await self.of(type(obj)).update(obj)

    async def delete(self, kind: type[R], name: str, namespace: str = "", revision: str = "") -> R:
        return await self.of(kind).delete(kind, name, namespace, revision)

    def watch(self, kind: type[R], revision: str) -> AsyncIterator[tuple[Event[R], ...]]:
        return self.of(kind).watch(kind, revision)

    async def close(self) -> None:
        """Both, also when one of them cannot be."""
        try:
            await self.apart.close()
        finally:
            await self.main.close()
