"""One client of a fan-out server: what it has asked for, and how far it has been told.

    List  ─► a task: wait for the revision ─► parts of a snapshot ─► the writes since ─► Listed
    Watch ─► a sequence number in the kind's log ◄── the shelf's bell says that there is more
                        │
                        ▼
             one task tells, stream by stream, as quickly as this client reads ─► socket

Nothing is queued for a client but what is on its way to the socket: WRITE_BYTES and one message. One that does not read
is told nothing more, and finds its history gone when it reads on; one that does not read at all for STALL seconds, or
says nothing for SILENCE seconds, is hung up on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from tortie.fanout.feed import Feed, Refusal
from tortie.store.fanout import wire
from tortie.store.fanout.wire import Ear, ProtocolError, Type, Why

log = logging.getLogger(__name__)

WRITE_BYTES = 256 * 1024
"""Bytes that may wait for a client's socket."""
READ_BYTES = 64 * 1024
LONGEST_REVISION = 20
"""Digits; datastores count in 64 bits."""
STREAMS = 4096
"""Lists and watches of a client at the same time; an agent has some thirty."""
LISTS = 8
"""Lists that are sent to a client at the same time."""


@dataclass(frozen=True, slots=True)
class Patience:
    """In seconds: between two questions whether a client is there, until it must have said something, and until it must
    have read something."""

    ping: float = 10.0
    silence: float = 35.0
    stall: float = 60.0


@dataclass(slots=True)
class Reading:
    """A watch: the kind, the next sequence number, the revision told last, and how to stop hearing of more."""

    feed: Feed
    sequence: int
    revision: int
    forget: Callable[[], None] = field(repr=False)


class Session:
    """`feed` gives that of a kind's key, or None. `run` is the whole life; `dropped` says afterwards why it ended."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        feed: Callable[[str], Feed | None],
        patience: Patience,
    ) -> None:
        self.who = "?"
        self.dropped = ""
        self.sent = 0
        """Bytes."""
        self.compactions = 0
        """Watches that fell behind the log."""
        self.readings: dict[int, Reading] = {}
        self._reader, self._writer, self._feed, self._patience = reader, writer, feed, patience
        self._ear = Ear(wire.LARGEST_ASKED, wire.ASKED)
        self._dirty: dict[int, None] = {}
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._lists: dict[int, asyncio.Task[None]] = {}
        self._listing = asyncio.Semaphore(LISTS)
        self._tasks: asyncio.TaskGroup | None = None
        self._heard = 0.0
        writer.transport.set_write_buffer_limits(high=WRITE_BYTES)

    @property
    def behind(self) -> int:
        """Writes that it has not been told of."""
        return sum(one.feed.shelf.next - one.sequence for one in self.readings.values())

    async def run(self) -> None:
        """Until the client goes, or has to. The connection is closed by whoever opened it."""
        self._heard = self._now()
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._tasks.create_task(self._listen(), name="listen")
                self._tasks.create_task(self._speak(), name="speak")
                self._tasks.create_task(self._keep_alive(), name="keep alive")
        except* (ConnectionError, TimeoutError, asyncio.IncompleteReadError) as gone:
            self.dropped = self.dropped or _first(gone)
        except* ProtocolError as error:
            self.dropped = f"it {_first(error)}"
        finally:
            for one in self.readings.values():
                one.forget()
            self.readings.clear()

    async def say(self, message: wire.Message, stream: int = 0) -> None:
        await self._send(wire.frame(message, stream))

    # --- hearing ---

    async def _listen(self) -> None:
        while data := await self._reader.read(READ_BYTES):
            self._heard = self._now()
            for stream, message in self._ear.hear(data):
                self._take(stream, message)
        raise ConnectionResetError("it hung up")

    def _take(self, stream: int, message: wire.Said) -> None:
        assert self._tasks is not None
        match message:
            case wire.List() if self._new(stream):
                task = self._tasks.create_task(self._list(stream, message), name=f"list {message.kind}")
                self._lists[stream] = task
            case wire.Watch() if self._new(stream):
                task = self._tasks.create_task(self._begin(stream, message), name=f"watch {message.kind}")
                self._lists[stream] = task
            case wire.Cancel():
                self._cancel(stream)
            case wire.Pong() | wire.Ping():
                pass
            case _:
                raise ProtocolError(f"is not understood: {type(message).__name__} on stream {stream}")

    def _new(self, stream: int) -> bool:
        if stream == 0 or stream in self._lists or stream in self.readings:
            return False
        return len(self._lists) + len(self.readings) < STREAMS

    def _cancel(self, stream: int) -> None:
        if (task := self._lists.pop(stream, None)) is not None:
            task.cancel()
        if (reading := self.readings.pop(stream, None)) is not None:
            reading.forget()
        self._dirty.pop(stream, None)

    # --- answering ---

    async def _list(self, stream: int, asked: wire.List) -> None:
        try:
            async with self._listing:
                feed = self._of(asked.kind)
                await feed.reached(asked.least, asked.absent)
                await self._tell_all(stream, feed)
        except Refusal as no:
            await self._end(stream, no)
        finally:
            self._lists.pop(stream, None)

    async def _tell_all(self, stream: int, feed: Feed) -> None:
        """Raises Refusal."""
        snapshot, shelf = await feed.snapshot(), feed.shelf
        revision, until, sequence = shelf.revision, shelf.next, snapshot.sequence
        await self.say(wire.Snapshot(snapshot.records), stream)
        for part in snapshot.parts:
            await self._send(wire.header(part, stream, Type.PART), part)
        while sequence < until:
            found = shelf.since(sequence)
            if found is None:
                raise Refusal(Why.BEHIND, "the client reads more slowly than things happen")
            body, sequence = found
            await self._send(wire.header(body, stream, Type.EVENTS), body)
            if sequence > until:  # more has happened meanwhile, and is told of now
                revision, until = shelf.revision, shelf.next
        await self.say(wire.Listed(str(revision)), stream)

    async def _begin(self, stream: int, asked: wire.Watch) -> None:
        """A watch stands, or does not."""
        try:
            feed = self._of(asked.kind)
            if not (asked.after.isascii() and asked.after.isdecimal() and len(asked.after) <= LONGEST_REVISION):
                raise Refusal(Why.COMPACTED, f'watch {asked.kind}: "{asked.after[:40]}" is no revision: list again')
            after = int(asked.after)
            await feed.reached(after)
            sequence = feed.shelf.position(after)
            if sequence is None:
                raise _compacted(feed, after)
            bell = partial(self._more, stream)
            feed.shelf.bells.add(bell)
            self.readings[stream] = Reading(feed, sequence, after, partial(feed.shelf.bells.discard, bell))
            self._lists.pop(stream, None)
            await self.say(wire.Watching(sequence), stream)
            self._more(stream)
        except Refusal as no:
            await self._end(stream, no)
        finally:
            if self._lists.get(stream) is asyncio.current_task():
                del self._lists[stream]

    def _of(self, key: str) -> Feed:
        feed = self._feed(key)
        if feed is None:
            raise Refusal(Why.UNSERVED, f"{key} are not fanned out")
        return feed

    async def _end(self, stream: int, why: Refusal) -> None:
        await self.say(wire.Ended(why.why, str(why)), stream)

    # --- telling of writes ---

    def _more(self, stream: int) -> None:
        self._dirty[stream] = None
        self._wake.set()

    async def _speak(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            streams, self._dirty = self._dirty, {}
            for stream in streams:
                if (reading := self.readings.get(stream)) is not None:
                    await self._advance(stream, reading)

    async def _advance(self, stream: int, reading: Reading) -> None:
        """One message of a watch, so that no kind keeps another waiting."""
        feed, shelf = reading.feed, reading.feed.shelf
        if feed.unserved or feed.away:
            why = Why.UNSERVED if feed.unserved else Why.AWAY
            self._cancel(stream)
            await self._end(stream, Refusal(why, feed.unserved or feed.error))
            return
        found = shelf.since(reading.sequence)
        if found is None:
            self.compactions += 1
            self._cancel(stream)
            await self._end(stream, _compacted(feed, reading.revision))
            return
        body, reading.sequence = found
        done = reading.sequence == shelf.next
        if body:
            reading.revision = shelf.revision if done else reading.revision
            if not done:
                self._more(stream)
            await self._send(wire.header(body, stream, Type.EVENTS), body)
        elif shelf.revision > reading.revision:
            reading.revision = shelf.revision
            await self.say(wire.Mark(shelf.revision), stream)

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._patience.ping)
            if self._writing.locked():  # it has something to read, and is not asked: `stall` counts
                self._heard = self._now()
            elif self._now() - self._heard > self._patience.silence:
                raise ConnectionAbortedError(f"it has said nothing for {self._now() - self._heard:.0f} s")
            else:
                await self.say(wire.Ping())

    async def _send(self, *parts: bytes) -> None:
        async with self._writing:
            self._writer.writelines(parts)
            self.sent += sum(map(len, parts))
            try:
                async with asyncio.timeout(self._patience.stall):
                    await self._writer.drain()
            except TimeoutError:
                raise ConnectionAbortedError(f"it has read nothing for {self._patience.stall:.0f} s") from None

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _compacted(feed: Feed, after: int) -> Refusal:
    floor, newest = feed.shelf.floor, feed.shelf.revision
    key = feed.kind.KIND.key
    text = f'watch {key}: no history from revision "{after}": this server remembers {floor} to {newest}; list again'
    return Refusal(Why.COMPACTED, text)


def _first(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
