"""A store in this process's memory: for tests, simulations, and trying things out. Nothing outlives the process.

Objects are kept encoded, as a database would keep them: what comes back is a value of its own, and what cannot be
written down and read again shows at once. Every call lets other tasks run first, as one that goes to a database
does: two tasks that race for an object race here too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

from tortie.base.errors import Unavailable
from tortie.model.document import encode
from tortie.model.meta import Resource
from tortie.model.store import Event, EventType, Listing
from tortie.store import rules
from tortie.store.log import Change, Tail, events, newer

R = TypeVar("R", bound=Resource)


class MemoryStore:
    """Implements `tortie.model.store.Store`. `history` is how many writes a watch may lag behind."""

    def __init__(self, history: int = rules.HISTORY) -> None:
        self._objects: dict[str, dict[tuple[str, str], bytes]] = {}
        self._tail = Tail(0, history)

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        await asyncio.sleep(0)
        return rules.present(kind, name, namespace, self._find(kind, name, namespace))

    async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
        await asyncio.sleep(0)
        found = sorted(self._of(kind).items())
        items = tuple(rules.read_back(kind, body) for (place, _), body in found if namespace in (None, place))
        return Listing(items, str(self._tail.revision))

    async def create(self, obj: R) -> R:
        await asyncio.sleep(0)
        stored = self._find(type(obj), obj.name, obj.namespace)
        return self._put(EventType.ADDED, rules.created(obj, stored, self._next))

    async def update(self, obj: R) -> R:
        await asyncio.sleep(0)
        stored = self._find(type(obj), obj.name, obj.namespace)
        new = rules.updated(obj, stored, self._next)
        return new if new is stored else self._put(EventType.MODIFIED, new)

    async def delete(self, kind: type[R], name: str, namespace: str = "", revision: str = "") -> R:
        await asyncio.sleep(0)
        stored = rules.present(kind, name, namespace, self._find(kind, name, namespace))
        rules.at_revision(stored, revision)
        del self._of(kind)[namespace, name]
        last = rules.deleted(stored, self._next)
        self._tail.append(Change(self._next, EventType.DELETED, kind.KIND.key, encode(last)))
        return stored

    async def watch(self, kind: type[R], revision: str) -> AsyncIterator[tuple[Event[R], ...]]:
        self._of(kind)
        after = rules.watch_from(kind.KIND.key, revision, self._tail.floor, self._tail.revision)
        while True:
            changes, after = await newer(self._tail, kind.KIND.key, after, self._older)
            if not changes:
                return
            yield events(kind, changes)

    async def close(self) -> None:
        self._tail.close()

    @property
    def _next(self) -> int:
        return self._tail.revision + 1

    def _of(self, kind: type[Resource]) -> dict[tuple[str, str], bytes]:
        if self._tail.closed:
            raise Unavailable("this store is closed")
        return self._objects.setdefault(kind.KIND.key, {})

    def _find(self, kind: type[R], name: str, namespace: str) -> R | None:
        body = self._of(kind).get((namespace, name))
        return None if body is None else rules.read_back(kind, body)

    def _put(self, type_: EventType, obj: R) -> R:
        body = encode(obj)
        self._of(type(obj))[obj.namespace, obj.name] = body
        self._tail.append(Change(self._next, type_, obj.KIND.key, body))
        return obj

    async def _older(self, kind: str, after: int) -> tuple[Sequence[Change], int]:
        return (), rules.watch_from(kind, str(after), self._tail.floor, self._tail.revision)
