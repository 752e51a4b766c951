"""The embedded datastore: one SQLite file, shared by all processes of a machine.

A write is one transaction: look up, decide (`rules.py`), put the object, append to the log of changes. Revisions count
writes, from 1. Layers: `database.py` (the file, threads, locks, errors), `feed.py` (what is new), `log.py` (watches).
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tortie.model.document import encode
from tortie.model.meta import Resource
from tortie.model.store import Event, EventType, Listing
from tortie.store import rules
from tortie.store.database import PATIENCE, Database, Query, transaction
from tortie.store.feed import BATCH, Feed, bounds, changes_after
from tortie.store.log import Change, Tail, events, newer

R = TypeVar("R", bound=Resource)

SHORT = 16
"""Objects in a list that is read on the event loop: about 0.1 ms of it."""
TRIMS = 64
"""The log is cut back this many times while it is replaced once: it exceeds `history` by 1/64 at most."""


class SqliteStore:
    """Implements `tortie.model.store.Store`. `history` is how many writes a watch may lag behind; `patience`, how many
    seconds a call tries to get past other writers before it is Unavailable."""

    def __init__(self, path: str | Path, history: int = rules.HISTORY, patience: float = PATIENCE) -> None:
        self._database = Database(Path(path).absolute(), patience)
        self._history = history
        self._feed: Feed | None = None

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        found = await self._database.read(lambda connection: find(connection, kind, name, namespace))
        return rules.present(kind, name, namespace, found)

    async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
        """A short list is read on the loop, where it takes less than waking the thread that reads long ones."""

        def short(connection: sqlite3.Connection) -> Listing[R] | None:
            found = bodies(connection, kind, namespace, SHORT + 1)
            return listing(connection, kind, found) if len(found) <= SHORT else None

        def whole(connection: sqlite3.Connection) -> Listing[R]:
            return listing(connection, kind, bodies(connection, kind, namespace))

        found = await self._database.read(lambda connection: transaction(connection, "BEGIN", short))
        return found if found is not None else await self._database.read_aside(whole)

    async def create(self, obj: R) -> R:
        def change(connection: sqlite3.Connection) -> R:
            stored = find(connection, type(obj), obj.name, obj.namespace)
            new = rules.created(obj, stored, bounds(connection)[1] + 1)
            self._put(connection, EventType.ADDED, new)
            return new

        return await self._write(change)

    async def update(self, obj: R) -> R:
        def change(connection: sqlite3.Connection) -> R:
            stored = find(connection, type(obj), obj.name, obj.namespace)
            new = rules.updated(obj, stored, bounds(connection)[1] + 1)
            if new is not stored:
                self._put(connection, EventType.MODIFIED, new)
            return new

        return await self._write(change)

    async def delete(self, kind: type[R], name: str, namespace: str = "", revision: str = "") -> R:
        def change(connection: sqlite3.Connection) -> R:
            stored = rules.present(kind, name, namespace, find(connection, kind, name, namespace))
            rules.at_revision(stored, revision)
            key = (kind.KIND.key, namespace, name)
            connection.execute("DELETE FROM objects WHERE kind = ? AND namespace = ? AND name = ?", key)
            self._log(connection, EventType.DELETED, rules.deleted(stored, bounds(connection)[1] + 1))
            return stored

        return await self._write(change)

    async def watch(self, kind: type[R], revision: str) -> AsyncIterator[tuple[Event[R], ...]]:
        floor, newest = await self._database.read(bounds)
        after = rules.watch_from(kind.KIND.key, revision, floor, newest)
        with self._fed_from(newest) as tail:
            while True:
                changes, after = await newer(tail, kind.KIND.key, after, self._older)
                if not changes:
                    return
                yield events(kind, changes)

    async def close(self) -> None:
        if self._feed is not None:
            self._feed.stop()
        await self._database.close()

    async def _write(self, change: Query[R]) -> R:
        new = await self._database.write(change)
        if self._feed is not None:
            self._feed.wake()
        return new

    def _put(self, connection: sqlite3.Connection, type_: EventType, obj: Resource) -> None:
        body = encode(obj)
        connection.execute(
            "INSERT INTO objects (kind, namespace, name, body) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (kind, namespace, name) DO UPDATE SET body = excluded.body",
            (obj.KIND.key, obj.namespace, obj.name, body),
        )
        self._log(connection, type_, obj, body)

    def _log(self, connection: sqlite3.Connection, type_: EventType, obj: Resource, body: bytes = b"") -> None:
        revision = int(obj.metadata.resource_version)
        row = (revision, type_.value, obj.KIND.key, body or encode(obj))
        connection.execute("INSERT INTO changes (revision, type, kind, body) VALUES (?, ?, ?, ?)", row)
        if revision % max(1, self._history // TRIMS) == 0:
            connection.execute("DELETE FROM changes WHERE revision <= ?", (revision - self._history,))

    @contextmanager
    def _fed_from(self, newest: int) -> Iterator[Tail]:
        """The tail that this process's watches share; the first of them starts its feed, the last one stops it."""
        if self._feed is None or self._feed.tail.closed:
            self._feed = Feed(self._database, newest)
        feed = self._feed
        feed.watches += 1
        try:
            yield feed.tail
        finally:
            feed.watches -= 1
            if not feed.watches:
                feed.stop()
                self._feed = None if self._feed is feed else self._feed

    async def _older(self, kind: str, after: int) -> tuple[Sequence[Change], int]:
        def query(connection: sqlite3.Connection) -> tuple[Sequence[Change], int]:
            floor, newest = bounds(connection)
            rules.watch_from(kind, str(after), floor, newest)
            changes = changes_after(connection, after, kind)
            return changes, changes[-1].revision if len(changes) == BATCH else newest

        return await self._database.read(lambda connection: transaction(connection, "BEGIN", query))


def find(connection: sqlite3.Connection, kind: type[R], name: str, namespace: str) -> R | None:
    """The stored object, or None."""
    row = connection.execute(
        "SELECT body FROM objects WHERE kind = ? AND namespace = ? AND name = ?", (kind.KIND.key, namespace, name)
    ).fetchone()
    return None if row is None else rules.read_back(kind, row[0])


def bodies(connection: sqlite3.Connection, kind: type[R], namespace: str | None, most: int = -1) -> list[bytes]:
    """The objects of a kind as they are stored, sorted; the first few, or with -1 all of them."""
    where, arguments = ("", ()) if namespace is None else ("AND namespace = ?", (namespace,))
    rows = connection.execute(
        f"SELECT body FROM objects WHERE kind = ? {where} ORDER BY namespace, name LIMIT ?",
        (kind.KIND.key, *arguments, most),
    )
    return [body for (body,) in rows]


def listing(connection: sqlite3.Connection, kind: type[R], found: Sequence[bytes]) -> Listing[R]:
    """Objects that were read; inside the same transaction, so that they belong to the revision."""
    return Listing(tuple(rules.read_back(kind, body) for body in found), str(bounds(connection)[1]))
