"""The newest writes to a store, in memory, and the watches that read them.

    write ──► Tail.append ──rings the bell of its kind──► newer() ──► a watcher's `async for`
                  │ the oldest drops out                     ▲ fell behind the tail
                  ▼                                          │
              (forgotten)                      older(): the backend's own log, or Compacted

A watch is no more than a position in the log, so one that lags costs no memory, whatever it misses meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import takewhile
from typing import NamedTuple, TypeVar

from tortie.model.meta import Resource
from tortie.model.store import Event, EventType
from tortie.store.rules import read_back

R = TypeVar("R", bound=Resource)


class Change(NamedTuple):
    """One write. `kind` is `Kind.key`; `body` is the encoded object as its event carries it."""

    revision: int
    type: EventType
    kind: str
    body: bytes


Older = Callable[[str, int], Awaitable[tuple[Sequence[Change], int]]]
"""Reads a backend's own log: (kind, after) -> some of the writes to the kind after that revision, oldest first, and the
revision up to which these are all. Raises Compacted."""


class Bell:
    """Rings once, for everybody who waits for a kind, and says for which revision."""

    __slots__ = ("_rung", "revision")

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self.revision = 0

    def ring(self, revision: int) -> None:
        self.revision = revision
        self._rung.set()

    async def heard(self) -> int:
        await self._rung.wait()
        return self.revision


class Tail:
    """The newest writes, at most `size` of them, without a gap: every revision from `floor` + 1 to `revision`."""

    def __init__(self, revision: int, size: int) -> None:
        self.revision = revision
        self.closed = False
        self.error: Exception | None = None
        self._changes: deque[Change] = deque(maxlen=size)
        self._bells: dict[str, Bell] = {}

    @property
    def floor(self) -> int:
        """The oldest revision whose successors are all here."""
        return self.revision - len(self._changes)

    def append(self, change: Change) -> None:
        """Add the next write. One that leaves a gap makes all forgotten before it: watches ask the backend then."""
        if change.revision != self.revision + 1:
            self._changes.clear()
            self._ring_all()
        self._changes.append(change)
        self.revision = change.revision
        if bell := self._bells.pop(change.kind, None):
            bell.ring(change.revision)

    def since(self, kind: str, after: int) -> list[Change]:
        """The writes to a kind after a revision that is not below `floor`, oldest first."""
        fresh = takewhile(lambda change: change.revision > after, reversed(self._changes))
        return [change for change in fresh if change.kind == kind][::-1]

    async def next(self, kind: str) -> int:
        """Waits for the next write to a kind and returns its revision, or 0 when something else is up."""
        return await self._bells.setdefault(kind, Bell()).heard()

    def close(self, error: Exception | None = None) -> None:
        """Ends every watch, with an error if one is given."""
        self.closed, self.error = True, error
        self._ring_all()

    def _ring_all(self) -> None:
        for bell in self._bells.values():
            bell.ring(0)
        self._bells.clear()


async def newer(tail: Tail, kind: str, after: int, older: Older) -> tuple[Sequence[Change], int]:
    """Waits for writes to a kind after a revision: some of them, and where to go on. None: the tail was closed."""
    while not tail.closed:
        changes: Sequence[Change]
        if after < tail.floor:
            changes, after = await older(kind, after)
        else:
            changes, after = tail.since(kind, after), max(after, tail.revision)
            if not changes:
                # Nothing of this kind lies before the write that rings: a quiet watch never falls behind.
                after = max(after, await tail.next(kind) - 1)
        if changes:
            return changes, after
    if tail.error is not None:
        raise tail.error
    return (), after


def events(kind: type[R], changes: Sequence[Change]) -> tuple[Event[R], ...]:
    """Changes as watchers see them. Raises NotSupported."""
    return tuple(Event(change.type, read_back(kind, change.body)) for change in changes)
