"""The agent's picture of the cluster: fed by watches and by what the agent itself has just written.

Nothing leaves before every kind has been listed once: a restarted agent writes no half picture over a good kernel.
An object is only replaced by a newer revision of itself, so that a watch that is behind does not undo what a CNI call
put in directly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from tortie.base.errors import Compacted, Unavailable
from tortie.calc.cluster import INPUTS, Cluster
from tortie.calc.state import DesiredState
from tortie.model.meta import Resource
from tortie.model.store import EventType, Store

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Resource)
Key = tuple[type[Resource], str, str]

QUIET = 0.01
"""Seconds between two states when changes keep coming: Calico's calculation graph flushes as often."""
RETRY = 1.0


class View:
    """Owns the Cluster. All methods run on the event loop."""

    def __init__(self, node: str, store: Store, publish: Callable[[DesiredState], None]) -> None:
        self.cluster = Cluster(node)
        self._store = store
        self._publish = publish
        self._revisions: dict[Key, int] = {}
        self._unlisted: set[type[Resource]] = set(INPUTS)
        self._flush: asyncio.TimerHandle | asyncio.Handle | None = None
        self._last_flush = 0.0
        self._reported: dict[str, str] = {}
        self.in_sync = asyncio.Event()

    async def follow(self, kind: type[Resource]) -> None:
        """List a kind, then apply its changes; forever. A lost history or a datastore that is away starts over."""
        while True:
            try:
                listing = await self._store.list(kind)
                self._replace(kind, listing.items, listing.revision)
                async for batch in self._store.watch(kind, listing.revision):
                    for event in batch:
                        self._apply(event.object, gone=event.type is EventType.DELETED)
            except Compacted:
                log.info("%s: history is gone, listing again", kind.KIND.plural)
            except Unavailable as error:
                log.warning("%s: %s; trying again", kind.KIND.plural, error)
                await asyncio.sleep(RETRY)

    def put(self, resource: Resource) -> DesiredState | None:
        """Something this agent has just written: publish it at once. The answer is the state that has it; None while
        not in sync."""
        self._apply(resource, gone=False)
        return self._publish_now()

    def drop(self, resource: Resource) -> DesiredState | None:
        """Something this agent has just deleted. `resource` is what the store returned."""
        self._apply(resource, gone=True)
        return self._publish_now()

    def _replace(self, kind: type[R], items: tuple[R, ...], revision: str) -> None:
        there = {(kind, item.namespace, item.name) for item in items}
        for key in [key for key in self._revisions if key[0] is kind and key not in there]:
            if self._revisions[key] <= int(revision):
                del self._revisions[key]
                self.cluster.drop(*key)
        for item in items:
            self._apply(item, gone=False)
        self._unlisted.discard(kind)
        if not self._unlisted and not self.in_sync.is_set():
            self.in_sync.set()
            log.info("in sync with the datastore")
        self._schedule()

    def _apply(self, resource: Resource, *, gone: bool) -> None:
        key = (type(resource), resource.namespace, resource.name)
        revision = int(resource.metadata.resource_version or 0)
        if revision <= self._revisions.get(key, -1):
            return
        # A deletion keeps its revision: an older event of the same object must not bring it back.
        self._revisions[key] = revision
        if gone:
            self.cluster.drop(*key)
        else:
            self.cluster.put(resource)
        self._schedule()

    def _schedule(self) -> None:
        if self._flush is None and self.in_sync.is_set():
            loop = asyncio.get_running_loop()
            self._flush = loop.call_at(max(loop.time(), self._last_flush + QUIET), self._publish_now)

    def _publish_now(self) -> DesiredState | None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if not self.in_sync.is_set():
            return None
        self._last_flush = asyncio.get_running_loop().time()
        state = self.cluster.state()
        self._report()
        self._publish(state)
        return state

    def _report(self) -> None:
        """Say once what cannot be understood."""
        for title, why in self.cluster.problems.items():
            if self._reported.get(title) != why:
                log.warning("%s is ignored: %s", title, why)
        self._reported = dict(self.cluster.problems)


class Progress:
    """Which states the kernel has reached; CNI calls wait on it. Runs on the event loop."""

    def __init__(self) -> None:
        self.generation = 0
        self.failures: tuple[str, ...] = ()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def reached(self, generation: int, failures: tuple[str, ...]) -> None:
        self.failures = failures
        if failures:
            return
        self.generation = max(self.generation, generation)
        for wanted, future in self._waiting:
            if wanted <= self.generation and not future.done():
                future.set_result(None)
        self._waiting = [(wanted, future) for wanted, future in self._waiting if not future.done()]

    async def wait(self, generation: int, timeout: float) -> None:
        """Until the kernel is at least at `generation`. Raises Unavailable after `timeout` seconds."""
        if generation <= self.generation:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((generation, future))
        try:
            await asyncio.wait_for(future, timeout)
        except TimeoutError:
            why = "; ".join(self.failures) or "the kernel is slow"
            raise Unavailable(f"policy is not programmed after {timeout:g} s: {why}") from None
