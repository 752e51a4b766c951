"""WATCH: what happened since a revision, as it happens.

history ──Cursor──► does the object enter, stay in or leave the selection? ──► lines of JSON ──► one write
a clock            ──► bookmarks, the end
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping

import msgspec

from kube_api.faults import Faults
from kube_api.kinds import Kind
from kube_api.lists import revision_of
from kube_api.selectors import Selection
from kube_api.statuses import Cause, bad_request, expired, forbidden_field, invalid
from kube_api.storage import Cursor, Event, Record, Storage, with_revision

POLL = 0.05
"""Seconds between looks at whether a silent watch may speak again."""


class Asked(msgspec.Struct, frozen=True):
    """The query of a watch; `timeout` in seconds. `initial`: sendInitialEvents."""

    revision: int | None
    timeout: float
    bookmarks: bool
    initial: bool | None


def flag(query: Mapping[str, str], name: str) -> bool:
    """A truth value of a query: what is there and not false."""
    text = query.get(name, "")
    return name in query and text.lower() not in ("0", "false")


def asked(query: Mapping[str, str], longest: float) -> Asked:
    """Raises Refusal (400, 422)."""
    seconds = query.get("timeoutSeconds", "")
    if seconds and not seconds.isdigit():
        raise bad_request(f'strconv.ParseInt: parsing "{seconds}": invalid syntax')
    initial = flag(query, "sendInitialEvents") if "sendInitialEvents" in query else None
    match = query.get("resourceVersionMatch", "")
    causes: list[Cause] = []
    if match and initial is None:
        why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        causes.append(forbidden_field("resourceVersionMatch", why))
    if initial is not None and match != "NotOlderThan":
        why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        causes.append(forbidden_field("resourceVersionMatch", why))
    if causes:
        raise invalid("meta.k8s.io", "ListOptions", "", causes)
    timeout = float(seconds) if seconds and int(seconds) else longest * random.uniform(1, 2)
    return Asked(revision_of(query.get("resourceVersion", "")), timeout, flag(query, "allowWatchBookmarks"), initial)


class Watch:
    """One client's watch: `chunks` gives what is to be written."""

    def __init__(
        self,
        storage: Storage,
        kind: Kind,
        selection: Selection,
        want: Asked,
        faults: Faults,
        bookmark_every: float,
        alive: Callable[[], bool],
    ) -> None:
        self.storage = storage
        self.kind = kind
        self.selection = selection
        self.want = want
        self.faults = faults
        self.bookmark_every = bookmark_every
        self.alive = alive
        """Is the client still there, and the kind? Looked at every second at least."""
        self.table = storage.table(kind.resource)
        self.sent = want.revision or 0
        """The newest revision that the client knows to be behind it."""

    async def chunks(self) -> AsyncIterator[bytes]:
        """Ends after the timeout. The first line of a watch from a forgotten revision is an ERROR, and the last."""
        from_now = self.want.revision in (None, 0) or self.want.initial is True
        if not from_now and (self.faults.forgetful or self.sent < self.storage.floor(self.kind.resource)):
            words = f"too old resource version: {self.sent} ({self.storage.floor(self.kind.resource)})"
            yield b'{"type":"ERROR","object":' + expired(words).body() + b"}\n"
            return
        if from_now:
            cursor = Cursor(self.table, self.table.end)
            self.sent = self.storage.revision
        else:
            cursor = Cursor(self.table, self.table.position(self.sent))
        try:
            if from_now and self.want.initial is not False:
                yield self._initial()
            async for chunk in self._follow(cursor):
                yield chunk
        finally:
            cursor.close()

    def _initial(self) -> bytes:
        records = self.storage.snapshot(self.kind.resource, self.sent)
        lines = [self._line("ADDED", record) for record in records if self._chosen(record)]
        if self.want.initial:
            lines.append(self._bookmark({"k8s.io/initial-events-end": "true"}))
        return b"".join(lines)

    async def _follow(self, cursor: Cursor) -> AsyncIterator[bytes]:
        clock = asyncio.get_running_loop().time
        end = clock() + self.want.timeout
        bookmark = clock() + min(self.bookmark_every, max(self.want.timeout - 2, 0.1))
        while (now := clock()) < end:
            if self.faults.silent and self.alive():
                await asyncio.sleep(min(POLL, end - now))
                continue
            changed = self.table.changed
            events = cursor.take()
            if events:
                lines = b"".join(line for event in events if (line := self._told(event)))
                self.sent = max(self.sent, events[-1].revision)
                if lines:
                    yield lines
                continue
            if not self.alive():
                return
            if self.want.bookmarks and now >= bookmark:
                bookmark = now + self.bookmark_every
                self.sent = max(self.sent, self.storage.revision)
                if not self.faults.no_bookmarks:
                    yield self._bookmark({})
                continue
            until = min(end, bookmark) if self.want.bookmarks else end
            try:
                # The next look at `silent` must not be far away.
                await asyncio.wait_for(changed.wait(), min(until - now, 1.0))
            except TimeoutError:
                pass

    def _told(self, event: Event) -> bytes:
        """The line of an event for this selection, empty when it is no concern of it."""
        if event.revision <= self.sent:
            return b""
        now = event.type != "DELETED" and self._chosen(event.record)
        before = event.before is not None and self._chosen(event.before)
        if now:
            return self._line("MODIFIED" if before else "ADDED", event.record)
        if not before or event.before is None:
            return b""
        if event.type == "DELETED":
            return self._line("DELETED", event.record)
        # It left the selection: its state while it was in it, with the revision of this write.
        return self._line("DELETED", with_revision(event.before, event.revision))

    def _chosen(self, record: Record) -> bool:
        if self.selection.everything:
            return not self.selection.namespace or record.namespace == self.selection.namespace
        return self.selection.holds(record.namespace, record.name, record.labels, record.fields)

    def _line(self, kind: str, record: Record) -> bytes:
        return b'{"type":"' + kind.encode() + b'","object":' + record.full(self.kind) + b"}\n"

    def _bookmark(self, annotations: dict[str, str]) -> bytes:
        metadata = {"resourceVersion": str(self.sent), "creationTimestamp": None}
        obj = {
            "kind": self.kind.kind,
            "apiVersion": self.kind.api_version,
            "metadata": metadata | ({"annotations": annotations} if annotations else {}),
        }
        return b'{"type":"BOOKMARK","object":' + msgspec.json.encode(obj) + b"}\n"
