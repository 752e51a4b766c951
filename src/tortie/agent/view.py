"""The agent's picture of the cluster: fed by watches and by what the agent itself has just written.

Nothing leaves before every kind has been listed once: a restarted agent writes no half picture over a good kernel.
An object is only replaced by a newer revision of itself, so that a watch that is behind does not undo what a CNI call
put in directly; nor does it bring back what one has deleted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container
from typing import TypeVar

from tortie.agent.logs import Seldom
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
TOMBSTONES = 1000
"""Deletions remembered. A watch is behind by milliseconds, not by a thousand deletions."""


class View:
    """Owns the Cluster. All methods run on the event loop."""

    def __init__(self, node: str, store: Store, publish: Callable[[DesiredState], None]) -> None:
        self.cluster = Cluster(node)
        self._store = store
        self._publish = publish
        self._revisions: dict[Key, int] = {}
        self._tombstones: dict[Key, int] = {}
        """What is deleted, oldest first, with the last revision known of it."""
        self._unlisted: set[type[Resource]] = set(INPUTS)
        self._flush: asyncio.TimerHandle | asyncio.Handle | None = None
        self._last_flush = 0.0
        self._latest: DesiredState | None = None
        self._reported: dict[str, str] = {}
        self._complain = Seldom(log)
        self.in_sync = asyncio.Event()

    @property
    def interfaces(self) -> Container[str]:
        """Those of this node's endpoints in the state that was published last."""
        return self._latest.endpoints if self._latest is not None else ()

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
                self._complain.warning(f"{error}; trying again")
                await asyncio.sleep(RETRY)

    def put(self, resource: Resource) -> DesiredState | None:
        """Something this agent has just written: publish it at once, unless the watch was faster still. The answer is
        a state that has it; None while not in sync."""
        if not self._apply(resource, gone=False) and self._flush is None:
            return self._latest
        return self._publish_now()

    def drop(self, resource: Resource) -> DesiredState | None:
        """Something this agent has just deleted. `resource` is what the store returned, its last state."""
        self._apply(resource, gone=True)
        return self._publish_now()

    def _replace(self, kind: type[R], items: tuple[R, ...], revision: str) -> None:
        there = {(kind, item.namespace, item.name) for item in items}
        for key in [key for key in self._revisions if key[0] is kind and key not in there]:
            if self._revisions[key] <= int(revision):
                self._bury(key, int(revision))
        for item in items:
            self._apply(item, gone=False)
        self._unlisted.discard(kind)
        if not self._unlisted and not self.in_sync.is_set():
            self.in_sync.set()
            log.info("in sync with the datastore")
        self._schedule()

    def _apply(self, resource: Resource, *, gone: bool) -> bool:
        """Whether it was news."""
        key = (type(resource), resource.namespace, resource.name)
        revision = int(resource.metadata.resource_version or 0)
        known = self._revisions.get(key, self._tombstones.get(key, -1))
        # What a deletion returns has the revision of the last write before it.
        if revision < known or (revision == known and not gone):
            return False
        if gone:
            known_gone = key not in self._revisions
            self._bury(key, revision)
            if known_gone:
                return False
        else:
            self._revisions[key] = revision
            self._tombstones.pop(key, None)
            self.cluster.put(resource)
        self._schedule()
        return True

    def _bury(self, key: Key, revision: int) -> None:
        self._revisions.pop(key, None)
        self._tombstones.pop(key, None)
        self._tombstones[key] = revision
        if len(self._tombstones) > TOMBSTONES:
            del self._tombstones[next(iter(self._tombstones))]
        self.cluster.drop(*key)

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
        self._latest = state = self.cluster.state()
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

    def reached(self, generation: int, failures: tuple[str, ...], enforced: bool = True) -> None:
        """A pass has ended. `enforced`: policy is in the kernel, whatever else of the state is not."""
        self.failures = failures
        if not enforced:
            return
        self.generation = max(self.generation, generation)
        for wanted, future in self._waiting:
            if wanted <= self.generation and not future.done():
                future.set_result(None)

    async def wait(self, generation: int, timeout: float) -> None:
        """Until the kernel enforces at least `generation`. Raises Unavailable after `timeout` seconds."""
        if generation <= self.generation:
            return
        waiting = generation, asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            await asyncio.wait_for(waiting[1], timeout)
        except TimeoutError:
            why = "; ".join(self.failures) or "the kernel is slow"
            raise Unavailable(f"policy is not programmed after {timeout:g} s: {why}") from None
        finally:
            self._waiting.remove(waiting)
