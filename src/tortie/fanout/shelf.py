"""What a fan-out server knows of one kind: every object as it goes out, and the log of the newest writes. Pure.

    begin(objects, revision) ─► objects ◄── put(record) ◄── an event of the datastore
                                   │            │
                                   ▼            ▼
                              a snapshot       log ──► since(sequence): what a client has not read yet
                                                │ the oldest drop out, by number or by bytes
                                                ▼
                                            (forgotten: Compacted)

A write gets the next sequence number. A client is no more than a sequence number, so one that lags costs no memory,
and of all those that are at the same place each gets the same bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tortie.store.fanout.wire import Record, chunks, events_body, part_body, record

Key = tuple[str, str]
"""Namespace and name."""

HISTORY = 20_000
"""Writes of a kind that are remembered for those who lag."""
HISTORY_BYTES = 32 * 1024 * 1024
"""Bytes of them, whatever comes first."""
BATCH_BYTES = 128 * 1024
"""About how many bytes of writes go into one message."""
PART_BYTES = 512 * 1024
"""About how many bytes of objects, before they are compressed, go into one part of a list."""
BATCHES = 8
"""Messages that are kept for the next client at the same place."""
TOMBSTONES = 1000
"""Deletions that are remembered with their revision, for the look whether all was told."""
STALE_WRITES, STALE_PART = 1000, 10
"""A snapshot is made anew when so many writes have come since, or a tenth of the objects, whichever is more. Until then
a client gets the old one and the writes."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All objects at a moment, as bodies of Parts. `sequence` is that of the first write it does not have."""

    parts: tuple[bytes, ...]
    records: int
    sequence: int
    raw: int
    """Bytes before they were compressed."""


class Shelf:
    """Of one kind. `history` and `history_bytes` bound the log."""

    def __init__(self, history: int = HISTORY, history_bytes: int = HISTORY_BYTES) -> None:
        self.revision = -1
        """Up to where all is known; -1 before the first list."""
        self.floor = 0
        """The revision after which all writes are in the log."""
        self.objects: dict[Key, tuple[int, bytes]] = {}
        """Revision and encoded record."""
        self.bells: set[Callable[[], None]] = set()
        """Rung after every change."""
        self.snapshots = 0
        """How many were made."""
        self.snapshot: Snapshot | None = None
        self._history = history
        self._history_bytes = history_bytes
        self._entries: list[bytes] = []
        self._revisions: list[int] = []
        self._first = 0
        self._bytes = 0
        self._tombstones: dict[Key, int] = {}
        self._batches: dict[int, tuple[int, bytes]] = {}

    # --- writing ---

    def begin(self, records: Iterable[Record], revision: int) -> None:
        """These are all objects there are, at this revision; whatever happened before is not known. Everybody who reads
        the log is told so, also who has read all of it: a number is left out."""
        self.objects = {(one.namespace, one.name): (one.revision, record(one)) for one in records}
        self._first = self.next + 1
        self._entries, self._revisions, self._bytes = [], [], 0
        self._batches.clear()
        self._tombstones.clear()
        self.snapshot = None
        self.revision = self.floor = revision
        self._ring()

    def put(self, writes: Sequence[Record]) -> None:
        """These have happened, in this order. What a list has brought already is left out. Several may have the same
        revision, as when all of a kind are deleted at once."""
        for one in writes:
            key = one.namespace, one.name
            if one.revision < self.revision or one.revision <= self._known(key):
                continue
            encoded = record(one)
            if one.type == "DELETED":
                self.objects.pop(key, None)
                self._bury(key, one.revision)
            else:
                self.objects[key] = one.revision, encoded
                self._tombstones.pop(key, None)
            self._entries.append(encoded)
            self._revisions.append(one.revision)
            self._bytes += len(encoded)
            self.revision = one.revision
        self._trim()
        self._ring()

    def mark(self, revision: int) -> None:
        """Nothing else has happened up to this revision."""
        if revision > self.revision:
            self.revision = revision
            self._ring()

    def forget(self, history: int = 0, history_bytes: int = 0) -> None:
        """Keep the newest writes only, so many and so many bytes of them at most. Who has read all loses nothing."""
        drop = max(0, len(self._entries) - history)
        size = self._bytes - sum(map(len, self._entries[:drop]))
        while size > history_bytes and drop < len(self._entries):
            size -= len(self._entries[drop])
            drop += 1
        if drop:
            self.floor = self._revisions[drop - 1]
            del self._entries[:drop], self._revisions[:drop]
            self._first += drop
            self._bytes = size
            self._batches = {start: kept for start, kept in self._batches.items() if start >= self._first}

    # --- reading ---

    @property
    def next(self) -> int:
        """The sequence number that the next write will have."""
        return self._first + len(self._entries)

    @property
    def length(self) -> int:
        """Of the log, in writes."""
        return len(self._entries)

    def position(self, after: int) -> int | None:
        """The sequence number of the first write after a revision that has been reached; None when it is forgotten."""
        if after < self.floor:
            return None
        return self._first + bisect_right(self._revisions, after)

    def since(self, sequence: int) -> tuple[bytes, int] | None:
        """Some of the writes from a sequence number on, as a body of Events, and the number to go on with; empty
        for none. Those of one revision stay together: it is what a client goes on from elsewhere. None: forgotten."""
        if sequence < self._first:
            return None
        if sequence >= self.next:
            return b"", sequence
        kept = self._batches.get(sequence)
        if kept is not None:
            return kept[1], kept[0]
        start = sequence - self._first
        end, size = start, 0
        while end < len(self._entries) and (size < BATCH_BYTES or self._revisions[end] == self._revisions[end - 1]):
            size += len(self._entries[end])
            end += 1
        body, after = events_body(sequence, self._entries[start:end]), self._first + end
        if size >= BATCH_BYTES or end == len(self._entries):
            self._keep(sequence, after, body)
        return body, after

    def tombstone(self, key: Key) -> int:
        """The revision at which an object was deleted; -1 if that is not remembered."""
        return self._tombstones.get(key, -1)

    def has_gone(self, key: Key, revision: int) -> bool:
        """Whether an object is not there any more as of a revision: it is gone, or it is another one."""
        return key not in self.objects or self.objects[key][0] > revision

    def fresh_snapshot(self) -> Snapshot | None:
        """The last one, if the writes since are few and all known."""
        found = self.snapshot
        if found is None or found.sequence < self._first:
            return None
        return found if self.next - found.sequence <= max(STALE_WRITES, len(self.objects) // STALE_PART) else None

    def freeze(self) -> tuple[list[bytes], int]:
        """What a snapshot is made of: records, and the sequence number after them."""
        return [encoded for _, encoded in self.objects.values()], self.next

    # --- within ---

    def _known(self, key: Key) -> int:
        return self.objects[key][0] if key in self.objects else self.tombstone(key)

    def _bury(self, key: Key, revision: int) -> None:
        self._tombstones.pop(key, None)
        self._tombstones[key] = revision
        if len(self._tombstones) > TOMBSTONES:
            del self._tombstones[next(iter(self._tombstones))]

    def _keep(self, sequence: int, after: int, body: bytes) -> None:
        """The newest few, for the next who reads from here. It stays right when more is written: it is just short."""
        self._batches[sequence] = after, body
        if len(self._batches) > BATCHES:
            del self._batches[next(iter(self._batches))]

    def _trim(self) -> None:
        """A sixteenth at a time, so that the lists are seldom moved."""
        if len(self._entries) > self._history or self._bytes > self._history_bytes:
            self.forget(self._history - self._history // 16, self._history_bytes - self._history_bytes // 16)

    def _ring(self) -> None:
        for bell in tuple(self.bells):
            bell()


def compressed(records: Sequence[bytes], sequence: int) -> Snapshot:
    """A snapshot of frozen records. It takes a second for 100 MB: call it in a thread."""
    parts = tuple(part_body(chunk) for chunk in chunks(records, PART_BYTES))
    return Snapshot(parts, len(records), sequence, sum(map(len, records)))
