"""A client's connection to one fan-out server, from the greeting to the end.

    watch, list ─► frames ─► socket ─► server
    one task per connection ◄─ socket     answers go to the queue of their stream

A stream whose reader lags by more than QUEUE_BYTES is ended here and asked for anew when its reader comes: one of them
that is slow neither takes memory without bound nor keeps the others waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import ssl
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tortie.base.errors import Compacted, TortieError, Unavailable
from tortie.store.fanout import wire
from tortie.store.fanout.address import Address
from tortie.store.fanout.tls import Tls
from tortie.store.fanout.wire import Ear, Events, Part, ProtocolError, Record, Why

CONNECT = 5.0
"""Seconds in which a server must have greeted us."""
SILENCE = 35.0
"""Seconds after which a server that says nothing is gone: it asks us every ten whether we are here."""
QUEUE_BYTES = 16 * 1024 * 1024
READ_BYTES = 256 * 1024

Absent = tuple[tuple[str, str, int], ...]


class Lost(TortieError):
    """The connection is gone: the same can be asked of another server, or of the datastore."""


class Elsewhere(TortieError):
    """This server cannot tell, for now or for good (`forever`): the datastore can."""

    def __init__(self, text: str, *, forever: bool = False) -> None:
        super().__init__(text)
        self.forever = forever


@dataclass
class Stream:
    """Answers that wait for their reader. `ended`: nothing more will come from the server."""

    said: deque[wire.Said] = field(default_factory=deque)
    held: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False
    bounded: bool = False

    def put(self, message: wire.Said) -> None:
        self.said.append(message)
        self.held += _size(message)
        self.news.set()


class Link:
    """Made by `connected`. `kinds` are those that the server fans out, by key; `closed` is set when it is over, and
    `leaving` when the server has asked us to go."""

    def __init__(
        self, address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silence: float = SILENCE
    ) -> None:
        self.address = address
        self.kinds: frozenset[str] = frozenset()
        self.closed = asyncio.Event()
        self.leaving = False
        self.why = ""
        self._reader, self._writer, self._silence = reader, writer, silence
        self._ear = Ear()
        self._streams: dict[int, Stream] = {}
        self._last = 0
        self._task: asyncio.Task[None] | None = None

    async def greet(self, who: str) -> None:
        """Raises Unavailable with what the server says, ProtocolError, OSError, TimeoutError."""
        self._send(wire.Hello(wire.VERSION, who))
        said: list[tuple[int, wire.Said]] = []
        while not said:
            data = await self._reader.read(READ_BYTES)
            if not data:
                raise ConnectionResetError("it hung up")
            said = list(self._ear.hear(data))
        _, first = said[0]
        if isinstance(first, wire.Refused):
            raise Unavailable(first.why)
        if not isinstance(first, wire.Welcome) or first.version != wire.VERSION:
            raise ProtocolError("is no fan-out server of this version")
        self.kinds = frozenset(first.kinds)
        self._task = asyncio.create_task(self._listen(), name=f"fan-out {self.address}")

    # --- asking ---

    async def list(self, kind: str, least: int, absent: Absent) -> tuple[dict[tuple[str, str], Record], str]:
        """All objects of a kind by namespace and name, and their revision. Raises Lost, Elsewhere."""
        found: dict[tuple[str, str], Record] = {}
        number, stream = self._open(wire.List(kind, least, absent))
        try:
            while True:
                match await self._next(stream):
                    case wire.Snapshot():
                        pass
                    case Part(records) | Events(_, records):
                        for one in records:
                            if one.type == "DELETED":
                                found.pop((one.namespace, one.name), None)
                            else:
                                found[one.namespace, one.name] = one
                    case wire.Listed(revision):
                        return found, revision
                    case wire.Ended(why, text):
                        raise Elsewhere(text, forever=why is Why.UNSERVED)
                    case other:
                        raise self._nonsense(other)
        finally:
            self._forget(number)

    async def watch(self, kind: str, after: str) -> AsyncIterator[tuple[tuple[Record, ...], str]]:
        """Writes, and the revision up to which they are all; first none, when the watch stands. Ends when this reader
        has lagged: ask again from the revision. Raises Compacted, Lost, Elsewhere."""
        number, stream = self._open(wire.Watch(kind, after))
        stream.bounded = True
        sequence = 0
        try:
            while not (stream.ended and not stream.said):
                match await self._next(stream):
                    case wire.Watching(first):
                        sequence = first
                        yield (), after
                    case Events(first, records):
                        if first != sequence:
                            raise self._nonsense(f"write {first} after {sequence - 1}")
                        sequence += len(records)
                        yield records, str(records[-1].revision)
                    case wire.Mark(revision):
                        yield (), str(revision)
                    case wire.Ended(Why.COMPACTED, text):
                        raise Compacted(text)
                    case wire.Ended(why, text):
                        raise Elsewhere(text, forever=why is Why.UNSERVED)
                    case other:
                        raise self._nonsense(other)
        finally:
            self._forget(number)

    def close(self, why: str = "closed") -> None:
        if not self.closed.is_set():
            self.why = why
            self.closed.set()
            self._writer.transport.abort()
            for stream in self._streams.values():
                stream.news.set()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    # --- within ---

    def _open(self, question: wire.Message) -> tuple[int, Stream]:
        if self.closed.is_set():
            raise Lost(self.why)
        self._last += 1
        stream = self._streams[self._last] = Stream()
        self._send(question, self._last)
        return self._last, stream

    def _forget(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None and not stream.ended and not self.closed.is_set():
            self._send(wire.Cancel(), number)

    async def _next(self, stream: Stream) -> wire.Said:
        while not stream.said:
            if self.closed.is_set():
                raise Lost(self.why)
            stream.news.clear()
            await stream.news.wait()
        message = stream.said.popleft()
        stream.held -= _size(message)
        return message

    def _send(self, message: wire.Message, stream: int = 0) -> None:
        """What a client says is short, and less than a server can take."""
        self._writer.write(wire.frame(message, stream))

    def _nonsense(self, what: object) -> Lost:
        self.close(f"it says what makes no sense: {what}")
        return Lost(self.why)

    async def _listen(self) -> None:
        why = "it hung up"
        try:
            while True:
                async with asyncio.timeout(self._silence):
                    data = await self._reader.read(READ_BYTES)
                if not data:
                    break
                for number, message in self._ear.hear(data):
                    self._take(number, message)
        except TimeoutError:
            why = f"it has said nothing for {self._silence:.0f} s"
        except (OSError, ProtocolError) as error:
            why = str(error) or type(error).__name__
        finally:
            self.close(why)

    def _take(self, number: int, message: wire.Said) -> None:
        if number == 0:
            if isinstance(message, wire.Ping):
                self._send(wire.Pong())
            elif isinstance(message, wire.Goodbye) and not self.leaving:
                self.leaving = True
                delay = random.uniform(0, max(0.0, message.seconds) / 2)
                asyncio.get_running_loop().call_later(delay, self.close, "it asked us to go elsewhere")
            return
        stream = self._streams.get(number)
        if stream is None or stream.ended:
            return
        stream.put(message)
        if isinstance(message, wire.Listed | wire.Ended):
            stream.ended = True
        elif stream.bounded and stream.held > QUEUE_BYTES:
            stream.ended = True
            self._send(wire.Cancel(), number)


async def connected(
    address: Address, tls: Tls, who: str, *, seconds: float = CONNECT, silence: float = SILENCE
) -> Link:
    """A link that has been greeted. Raises Unavailable that says where and why, ConfigError for files of TLS."""
    context = tls.of_client()
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(seconds):
            if address.path:
                reader, writer = await asyncio.open_unix_connection(address.path)
            else:
                name = address.host if context is not None else None
                reader, writer = await asyncio.open_connection(
                    address.host, address.port, ssl=context, server_hostname=name
                )
            refusal = tls.refusal(writer.get_extra_info("peercert")) if tls and not address.path else ""
            if refusal:
                raise Unavailable(refusal)
            link = Link(address, reader, writer, silence)
            await link.greet(who)
            return link
    except (OSError, TimeoutError, TortieError) as error:
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.transport.abort()
        raise Unavailable(f"fan-out server {address}: {_why(error, seconds)}") from None
    except BaseException:
        if writer is not None:
            writer.transport.abort()
        raise


def _why(error: Exception, seconds: float) -> str:
    if isinstance(error, TimeoutError) and not error.errno:
        return f"no answer for {seconds:g} s"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    return str(error)


def _size(message: wire.Said) -> int:
    if isinstance(message, Events | Part):
        return sum(len(one.body) + 100 for one in message.records)
    return 100
