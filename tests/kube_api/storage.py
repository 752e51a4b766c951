"""Objects as the server keeps them: bytes, one counter of revisions for all kinds, and a history to watch.

    put / remove ──► records  {"default/web": Record}    keys sorted as etcd sorts them
                └──► history  [Event, Event, ...]        what watchers read; compaction forgets its begin
    snapshot(revision) = records with the later events undone

Not one line here waits: a write is whole before the next request is looked at.
"""

from __future__ import annotations

import asyncio
import bisect
import functools
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import msgspec

from kube_api.kinds import Kind

SNAPSHOTS = 16
"""Earlier views of a resource that are kept for the next page of a list."""


class Record(msgspec.Struct, gc=False):
    """An object at a revision. `body`: JSON without kind and apiVersion. `fields`: what a fieldSelector may ask.

    `applied`: what each field manager has applied, for server-side apply.
    """

    key: str
    namespace: str
    name: str
    uid: str
    revision: int
    body: bytes
    labels: dict[str, str]
    fields: dict[str, str]
    owners: tuple[str, ...] = ()
    applied: dict[str, Any] = {}

    def full(self, kind: Kind) -> bytes:
        return kind.header + self.body[1:]

    def object(self, kind: Kind) -> dict[str, Any]:
        return {"apiVersion": kind.api_version, "kind": kind.kind} | msgspec.json.decode(self.body, type=dict[str, Any])


class Event(msgspec.Struct, frozen=True, gc=False):
    """`record` is the state after the write, of a deletion the last one with its revision; `before` None: new."""

    revision: int
    type: str
    record: Record
    before: Record | None


class Table:
    """The objects of one resource, and what happened to them."""

    def __init__(self, floor: int) -> None:
        self.records: dict[str, Record] = {}
        self.keys: list[str] = []
        self.history: list[Event] = []
        self.first = 0
        """Position of history[0] in all that ever was."""
        self.floor = floor
        """The oldest revision from which everything later is known."""
        self.changed = asyncio.Event()
        self.readers: set[Cursor] = set()
        self.snapshots: OrderedDict[int, list[Record]] = OrderedDict()

    @property
    def end(self) -> int:
        return self.first + len(self.history)

    def position(self, revision: int) -> int:
        """Of the first event after the revision."""
        return self.first + bisect.bisect_right(self.history, revision, key=lambda event: event.revision)

    def forget(self) -> None:
        """Drop the history before the floor, but for what running watches have still to read."""
        keep = min([self.position(self.floor), *(reader.position for reader in self.readers)])
        del self.history[: max(keep - self.first, 0)]
        self.first = max(keep, self.first)

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Cursor:
    """How far a watch has read. What it has not read is not forgotten."""

    def __init__(self, table: Table, position: int) -> None:
        self.table = table
        self.position = position
        table.readers.add(self)

    def take(self, most: int = 10_000) -> list[Event]:
        begin = self.position - self.table.first
        events = self.table.history[begin : begin + most]
        self.position += len(events)
        return events

    def close(self) -> None:
        self.table.readers.discard(self)


class Storage:
    """Revision 1 is that of an empty server, as etcd's."""

    def __init__(self, *, keep: int) -> None:
        self.keep = keep
        """Events of a resource that are remembered."""
        self.revision = 1
        self.compacted = 0
        self.tables: dict[str, Table] = {}
        self.by_uid: dict[str, tuple[Kind, str]] = {}
        self.dependents: dict[str, set[tuple[str, str]]] = {}
        """Owner's uid -> (resource, key) of those that name it."""
        self.events: list[tuple[Kind, Event]] = []
        """For the garbage collector, which empties it."""
        self.happened = asyncio.Event()

    def table(self, resource: str) -> Table:
        if resource not in self.tables:
            self.tables[resource] = Table(self.compacted)
        return self.tables[resource]

    def get(self, kind: Kind, key: str) -> Record | None:
        return self.table(kind.resource).records.get(key)

    def next_revision(self) -> int:
        self.revision += 1
        return self.revision

    def put(self, kind: Kind, obj: dict[str, Any], applied: dict[str, Any] | None = None) -> Record:
        """Write the object, whose metadata is complete but for the revision; it is changed by that."""
        table = self.table(kind.resource)
        record = recorded(kind, obj, self.next_revision())
        before = table.records.get(record.key)
        record.applied = applied if applied is not None else before.applied if before else {}
        table.records[record.key] = record
        if before is None:
            bisect.insort(table.keys, record.key)
        self._index(kind, before, record)
        self._tell(kind, table, Event(record.revision, "MODIFIED" if before else "ADDED", record, before))
        return record

    def remove(self, kind: Kind, key: str) -> Record:
        """Take it away; returns the last state with the revision of this deletion."""
        table = self.table(kind.resource)
        before = table.records.pop(key)
        table.keys.pop(bisect.bisect_left(table.keys, key))
        last = with_revision(before, self.next_revision())
        self._index(kind, before, None)
        self._tell(kind, table, Event(last.revision, "DELETED", last, before))
        return last

    def bulk(self, kind: Kind, objects: Iterable[dict[str, Any]]) -> int:
        """Write many new objects; sorts once. Returns how many."""
        table = self.table(kind.resource)
        count = 0
        for obj in objects:
            record = recorded(kind, obj, self.next_revision())
            if record.key in table.records:
                raise ValueError(f"{kind.plural} {record.key} is there already")
            table.records[record.key] = record
            table.keys.append(record.key)
            self._index(kind, None, record)
            table.history.append(Event(record.revision, "ADDED", record, None))
            count += 1
        table.keys.sort()
        self._trim(table)
        table.wake()
        return count

    def snapshot(self, resource: str, revision: int) -> list[Record]:
        """All objects as of the revision, which must not be before the floor, in order of their keys."""
        table = self.table(resource)
        position = table.position(revision) - table.first
        later = table.history[position:]
        last = table.history[position - 1].revision if position else 0
        if last in table.snapshots:
            table.snapshots.move_to_end(last)
            return table.snapshots[last]
        if later:
            view = dict(table.records)
            for event in reversed(later):
                if event.before is None:
                    view.pop(event.record.key, None)
                else:
                    view[event.record.key] = event.before
            found = [view[key] for key in sorted(view)]
        else:
            found = [table.records[key] for key in table.keys]
        table.snapshots[last] = found
        while len(table.snapshots) > SNAPSHOTS:
            table.snapshots.popitem(last=False)
        return found

    def copy(self) -> Storage:
        """The same objects at the same revision, without history: what a backup of etcd has."""
        found = Storage(keep=self.keep)
        found.revision = found.compacted = self.revision
        for resource, table in self.tables.items():
            own = found.tables[resource] = Table(self.revision)
            own.records, own.keys = dict(table.records), list(table.keys)
        found.by_uid = dict(self.by_uid)
        found.dependents = {uid: set(own) for uid, own in self.dependents.items()}
        return found

    def floor(self, resource: str) -> int:
        return max(self.table(resource).floor, self.compacted)

    def compact(self) -> None:
        """Forget all history up to now. Watches that run go on."""
        self.compacted = self.revision
        for table in self.tables.values():
            table.floor = self.revision
            table.snapshots.clear()
            table.forget()

    def _trim(self, table: Table) -> None:
        if len(table.history) > self.keep * 1.25:
            table.floor = table.history[len(table.history) - self.keep - 1].revision
            table.snapshots.clear()
            table.forget()

    def _tell(self, kind: Kind, table: Table, event: Event) -> None:
        table.history.append(event)
        self._trim(table)
        table.wake()
        self.events.append((kind, event))
        self.happened.set()

    def _index(self, kind: Kind, before: Record | None, after: Record | None) -> None:
        if before is not None:
            for owner in before.owners:
                self.dependents.get(owner, set()).discard((kind.resource, before.key))
            if after is None or after.uid != before.uid:
                self.by_uid.pop(before.uid, None)
        if after is not None:
            self.by_uid[after.uid] = (kind, after.key)
            for owner in after.owners:
                self.dependents.setdefault(owner, set()).add((kind.resource, after.key))


def recorded(kind: Kind, obj: dict[str, Any], revision: int) -> Record:
    metadata = obj["metadata"]
    metadata["resourceVersion"] = str(revision)
    namespace, name = metadata.get("namespace") or "", metadata["name"]
    return Record(
        f"{namespace}/{name}" if namespace else name,
        namespace,
        name,
        metadata["uid"],
        revision,
        encoded(obj),
        metadata.get("labels") or {},
        {path: value for path in kind.fields if (value := text_at(obj, path))},
        tuple(one.get("uid", "") for one in metadata.get("ownerReferences") or ()),
    )


def encoded(obj: dict[str, Any]) -> bytes:
    return msgspec.json.encode({name: value for name, value in obj.items() if name not in ("kind", "apiVersion")})


def with_revision(record: Record, revision: int) -> Record:
    """The same state under another revision."""
    obj = msgspec.json.decode(record.body)
    obj["metadata"]["resourceVersion"] = str(revision)
    return Record(
        record.key,
        record.namespace,
        record.name,
        record.uid,
        revision,
        msgspec.json.encode(obj),
        record.labels,
        record.fields,
        record.owners,
    )


@functools.cache
def _steps(path: str) -> tuple[str, ...]:
    return tuple(path.split("."))


def text_at(obj: dict[str, Any], path: str) -> str:
    """The value at a dotted path as a fieldSelector compares it."""
    found: Any = obj
    for step in _steps(path):
        if not isinstance(found, dict):
            return ""
        found = found.get(step)
    if type(found) is str:
        return found
    if isinstance(found, bool):
        return "true" if found else "false"
    return "" if found is None else str(found)
