"""Makes the EndpointSlices of services with a selector, as Kubernetes' controller manager does where there is one.

    watches ─► listed, happened ─► SliceBook (calc) ─► due ─► plan ─► create, update, delete

The book is kept by the very watches that wake this controller, so that a pass looks at nothing but the services which
something has happened to. Slices that somebody else manages are left alone, and so are services without a selector. A
service, or a pod, that is in no list because it cannot be read keeps what it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from tortie.base.errors import Conflict, Exists, NotFound, TortieError
from tortie.calc.endpoint_slices import SliceChange
from tortie.calc.slice_book import Key, SliceBook
from tortie.controllers.backoff import Backoff, at_once
from tortie.controllers.configuration import SERVICES, Settings, locked
from tortie.controllers.unreadable import Unreadable
from tortie.model.document import encode
from tortie.model.k8s import K8sNode, Pod
from tortie.model.meta import Resource
from tortie.model.node import Node
from tortie.model.service import EndpointSlice, Service
from tortie.model.store import Event, EventType, Store

log = logging.getLogger(__name__)

KINDS: tuple[type[Resource], ...] = (K8sNode, Node, Service, Pod, EndpointSlice)
BREATH = 100
"""After so many services the other tasks of the process have their turn."""


class EndpointSlices:
    """Decides and writes, each slice on its own. Who is told by watches lists nothing; without any, each pass does."""

    name = "endpoint-slices"
    option = SERVICES
    burst = 0.02

    def __init__(self, store: Store, *, later: Backoff | None = None) -> None:
        self._store = store
        self._book = SliceBook()
        self._known: dict[type[Resource], set[Key]] = {kind: set() for kind in KINDS}
        self._heard: set[type[Resource]] = set()
        self.later = later or at_once()

    def period(self, settings: Settings) -> timedelta:
        return settings.period(SERVICES)

    def listed(self, kind: type[Resource], items: Sequence[Resource]) -> None:
        """All objects of a kind; what happens to them from now on is told, too."""
        self._heard.add(kind)
        self._take(kind, items)

    def happened(self, kind: type[Resource], batch: Sequence[Event[Any]]) -> None:
        for event in batch:
            one = event.object
            key = one.namespace, one.name
            if event.type is EventType.DELETED:
                self._known[kind].discard(key)
                self._set(kind, key, None)
            else:
                self._known[kind].add(key)
                self._set(kind, key, one)

    async def run_once(self) -> int:
        """One pass; how many slices could not be written. Raises Unavailable."""
        if await locked(self._store):
            return 0
        for kind in KINDS:
            if kind not in self._heard:
                items = (await self._store.list(kind)).items
                if kind not in self._heard:  # else it has been told meanwhile, and this is older
                    self._take(kind, items)
        unreadable = Unreadable(self._store)
        failures = 0
        for i, key in enumerate(self._book.due(), 1):
            failures += await self._settled(key, unreadable)
            if i % BREATH == 0:
                await asyncio.sleep(0)
        return failures

    async def _settled(self, key: Key, unreadable: Unreadable) -> int:
        """How many writes failed. What changes in the meantime is due again."""
        orphans = self._book.service(key) is None and bool(self._book.plan(key))
        keeps = orphans and await unreadable.hides(Service, key[1], key[0])
        hidden = {name for name in self._book.unknown_pods(key) if await unreadable.hides(Pod, name, key[0])}
        self._book.settled(key)
        if keeps:
            return 0
        failures = 0
        for change in self._book.plan(key, hidden):
            failures += not await self._carried_out(change)
        if failures:
            self._book.touch(key)
        return failures

    async def _carried_out(self, change: SliceChange) -> bool:
        """The book has at once what was written: the watch tells it later."""
        what = change.slice
        key, state = (what.namespace, what.name), (change.verb, encode(what))
        if not self.later.due(what.title, state):
            return False
        try:
            if change.verb == "create":
                self._written(key, await self._store.create(what))
            elif change.verb == "update":
                self._written(key, await self._store.update(what))
            else:
                await self._store.delete(EndpointSlice, what.name, what.namespace, what.metadata.resource_version)
                self._written(key, None)
        except (Conflict, Exists, NotFound) as error:
            log.debug("%s: %s; looking again", change, error)
            self.later.failed(what.title)
            await self._look_again(key)
            return False
        except TortieError as error:
            log.warning("%s: %s", change, error)
            self.later.failed(what.title, state)
            return False
        self.later.succeeded(what.title)
        log.log(logging.DEBUG if change.verb == "update" else logging.INFO, "%s", change)
        return True

    def _written(self, key: Key, stored: EndpointSlice | None) -> None:
        known = self._known[EndpointSlice]
        (known.discard if stored is None else known.add)(key)
        self._book.set_slice(*key, stored, planned=True)

    async def _look_again(self, key: Key) -> None:
        try:
            self._set(EndpointSlice, key, await self._store.get(EndpointSlice, key[1], key[0]))
            self._known[EndpointSlice].add(key)
        except NotFound:
            self._set(EndpointSlice, key, None)
            self._known[EndpointSlice].discard(key)
        except TortieError as error:
            log.debug("EndpointSlice %s/%s: %s", *key, error)

    def _take(self, kind: type[Resource], items: Sequence[Resource]) -> None:
        there = {(one.namespace, one.name) for one in items}
        for key in self._known[kind] - there:
            self._set(kind, key, None)
        for one in items:
            self._set(kind, (one.namespace, one.name), one)
        self._known[kind] = there

    def _set(self, kind: type[Resource], key: Key, one: Resource | None) -> None:
        if kind is Pod:
            self._book.set_pod(*key, one if isinstance(one, Pod) else None)
        elif kind is Service:
            self._book.set_service(*key, one if isinstance(one, Service) else None)
        elif kind is EndpointSlice:
            self._book.set_slice(*key, one if isinstance(one, EndpointSlice) else None)
        else:
            self._book.set_node(kind, key[1], one.labels if one is not None else None)
