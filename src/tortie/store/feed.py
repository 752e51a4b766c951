"""What brings the writes of all processes to the watches of this one.

    notify file ──inotify──┐
    own write ─────────────┼─► wake ──► read what is new ──► Tail ──► watches
    timer of a second ─────┘

The timer is for writers that were killed between commit and notice. Where inotify is not to be had it runs at 10 ms.
"""

from __future__ import annotations

import asyncio
import sqlite3

from tortie.model.store import EventType
from tortie.store.database import Database
from tortie.store.log import Change, Tail
from tortie.store.notify import listen

TAIL = 256
"""Changes kept at hand for watches; one that falls further behind reads from the database."""
BATCH = 128
"""Changes read at a time."""
SECOND_LOOK = 1.0
"""Seconds between two looks at the database when no notice comes."""
POLL = 0.010
"""The same where there are no notices."""


class Feed:
    """Runs while somebody watches. Begins at the revision that is `newest` and may be behind already."""

    def __init__(self, database: Database, newest: int) -> None:
        self.tail = Tail(newest, TAIL)
        self.watches = 0
        self._database = database
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"store-feed {database.path.name}")

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self.tail.close()
        self._task.cancel()

    async def _run(self) -> None:
        stop_listening = listen(self._database.notices.path, self.wake)
        interval = POLL if stop_listening is None else SECOND_LOOK
        try:
            while True:
                await self._read()
                await self._pause(interval)
        except Exception as error:  # whatever it is, the watches must not wait for ever: it ends them
            self.tail.close(error)
        finally:
            if stop_listening is not None:
                stop_listening()

    async def _read(self) -> None:
        self._database.check_file()
        full = True
        while full:
            changes = await self._database.read(lambda connection: changes_after(connection, self.tail.revision))
            for change in changes:
                self.tail.append(change)
            full = len(changes) == BATCH
            if full:
                await asyncio.sleep(0)

    async def _pause(self, seconds: float) -> None:
        timer = asyncio.get_running_loop().call_later(seconds, self.wake)
        await self._wake.wait()
        timer.cancel()
        self._wake.clear()


def changes_after(connection: sqlite3.Connection, revision: int, kind: str | None = None) -> list[Change]:
    """The first BATCH writes after a revision, to one kind or to all, oldest first."""
    of_kind, arguments = ("", (revision, BATCH)) if kind is None else ("kind = ? AND", (kind, revision, BATCH))
    rows = connection.execute(
        f"SELECT revision, type, kind, body FROM changes WHERE {of_kind} revision > ? ORDER BY revision LIMIT ?",
        arguments,
    )
    return [Change(revision, EventType(type_), kind, body) for revision, type_, kind, body in rows]


def bounds(connection: sqlite3.Connection) -> tuple[int, int]:
    """The revisions from which and up to which the log is complete."""
    oldest, newest = connection.execute(
        "SELECT (SELECT min(revision) FROM changes), (SELECT max(revision) FROM changes)"
    ).fetchone()
    return (0, 0) if newest is None else (oldest - 1, newest)
