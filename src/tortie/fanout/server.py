"""Listens for agents, greets those that may come, and keeps a feed for every kind.

    connection ─► TLS, whose certificate ─► Hello ─► Welcome ─► Session
                        └─ no ─► hung up       └─ another version, full, going ─► Refused

Every kind is asked of the datastore from the start on: one list and one watch, whatever the number of clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tortie.base.errors import ConfigError
from tortie.fanout.feed import Feed, Pace
from tortie.fanout.kinds import FANNED
from tortie.fanout.session import Patience, Session
from tortie.fanout.shelf import HISTORY, HISTORY_BYTES, Shelf
from tortie.model.kinds import BY_KEY
from tortie.model.meta import Resource
from tortie.model.store import Store
from tortie.store.fanout import wire
from tortie.store.fanout.address import Address
from tortie.store.fanout.tls import Tls
from tortie.store.fanout.wire import ASKED, FIRST_ASKED, NEVER, Ear, ProtocolError

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 10_000
GREETING = 10.0
"""Seconds in which a connection must have got through TLS and said Hello."""
BACKLOG = 1024
"""Connections that may wait for us: all agents of a large cluster may come at the same moment."""
SOCKET_BYTES = 512 * 1024
"""Bytes that the kernel keeps for a client that does not read."""
LEAVE = 10.0
"""Seconds in which clients are to go elsewhere when the server is going to stop."""


@dataclass(frozen=True)
class Settings:
    """`kinds` are fanned out, but never Secrets and the like. `history` is in writes of a kind, `history_bytes` in
    bytes, `leave` in seconds."""

    tls: Tls = field(default_factory=Tls)
    max_connections: int = MAX_CONNECTIONS
    kinds: tuple[type[Resource], ...] = FANNED
    history: int = HISTORY
    history_bytes: int = HISTORY_BYTES
    patience: Patience = field(default_factory=Patience)
    pace: Pace = field(default_factory=Pace)
    leave: float = LEAVE


class Server:
    """Of one datastore. `async with` it; then `listen`."""

    def __init__(self, store: Store, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.feeds: dict[str, Feed] = {}
        self.sessions: set[Session] = set()
        self.accepted = 0
        self.drops: Counter[str] = Counter()
        """Connections that ended by reason: gone, silent, protocol, refused, tls, full."""
        self.compactions = 0
        self.sent = 0
        self.leaving = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._store = store
        self._keys = frozenset(kind.KIND.key for kind in self.settings.kinds if kind not in NEVER)
        self._listeners: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._paths: list[Path] = []
        self._bug: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def listen(self, where: Address) -> Address:
        """Where it listens: with port 0 that of the kernel's choice. Raises ConfigError."""
        context = self.settings.tls.of_server()
        self._begin()
        try:
            if where.path:
                listener = await self._on_path(Path(where.path))
                found = where
            else:
                host = where.host or None
                listener = await asyncio.start_server(
                    self._come, host, where.port, backlog=BACKLOG, ssl=context,
                    ssl_handshake_timeout=GREETING if context else None,
                )  # fmt: skip
                found = Address(where.host, listener.sockets[0].getsockname()[1])
        except socket.gaierror as error:
            raise ConfigError(f"no address is known for {where.host}: {error.strerror}", str(where)) from None
        except OSError as error:
            raise ConfigError(f"cannot listen: {os.strerror(error.errno or 0)}", str(where)) from None
        self._listeners.append(listener)
        return found

    async def _on_path(self, path: Path) -> asyncio.Server:
        """A socket for root alone."""
        _clear(path)
        before = os.umask(0o177)
        try:
            listener = await asyncio.start_unix_server(self._come, path, backlog=BACKLOG)
        finally:
            os.umask(before)
        self._paths.append(path)
        return listener

    async def broken(self) -> None:
        """Until there is a bug: raises it."""
        await self._bug

    async def leave(self) -> None:
        """Tell clients to go elsewhere, and wait until they have gone, not longer than `leave` seconds."""
        self.leaving = True
        await self._stop_listening()
        for session in tuple(self.sessions):
            self._do(session.say(wire.Goodbye(self.settings.leave)), "goodbye")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.leave):
                await self._empty.wait()

    async def close(self) -> None:
        self.leaving = True
        await self._stop_listening()
        for task in tuple(self._tasks):
            task.cancel()
        for feed in self.feeds.values():
            await feed.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._bug.done():
            self._bug.cancel()

    @property
    def unready(self) -> str:
        """Why clients should go elsewhere; "" once every kind is known, and while the datastore answers. A kind that it
        does not let us read keeps nobody from the others."""
        if self.leaving:
            return "this server is going to stop"
        waiting = [feed.kind.KIND.plural for feed in self.feeds.values() if not feed.ready and not feed.error]
        return self.away or (f"not listed yet: {', '.join(waiting)}" if waiting or not self.feeds else "")

    @property
    def away(self) -> str:
        """Why the datastore is away; "" where it answers for some kind at least."""
        failing = [feed.error for feed in self.feeds.values() if feed.away or (feed.error and not feed.ready)]
        return (failing[0] or "no answer") if failing and len(failing) == len(self.feeds) else ""

    # --- within ---

    async def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._paths.clear()

    def _begin(self) -> None:
        for key in sorted(self._keys - self.feeds.keys()):
            shelf = Shelf(self.settings.history, self.settings.history_bytes)
            self.feeds[key] = feed = Feed(self._store, BY_KEY[key], shelf, self.settings.pace)
            self._do(feed.run(), f"feed {key}")

    def _do(self, work: object, name: str) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, OSError) and not self._bug.done():
            self._bug.set_exception(error)

    def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._do(self._serve(reader, writer), "client")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        connection = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        session = Session(reader, writer, self.feeds.get, self.settings.patience)
        try:
            if not await self._greeted(reader, writer, session):
                return
            self.sessions.add(session)
            self._empty.clear()
            await session.run()
            self.drops[_reason(session.dropped)] += 1
            log.info("%s is gone: %s", session.who, session.dropped)
        finally:
            self.sessions.discard(session)
            if not self.sessions:
                self._empty.set()
            self.sent += session.sent
            self.compactions += session.compactions
            writer.transport.abort()

    async def _greeted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: Session) -> bool:
        """Whether it may stay."""
        refusal = self.settings.tls.refusal(writer.get_extra_info("peercert")) if self.settings.tls else ""
        if refusal:
            return await self._refuse(session, writer, "tls", refusal)
        ear = Ear(FIRST_ASKED, ASKED)
        try:
            async with asyncio.timeout(GREETING):
                data = await reader.readexactly(wire.HEADER.size)
                length, _, _ = wire.HEADER.unpack(data)
                if length <= FIRST_ASKED:
                    data += await reader.readexactly(length)
            hello = next((message for _, message in ear.hear(data)), None)
        except (TimeoutError, OSError, EOFError, ssl.SSLError):
            self.drops["silent"] += 1
            return False
        except ProtocolError as error:
            return await self._refuse(session, writer, "protocol", str(error))
        if not isinstance(hello, wire.Hello):
            return await self._refuse(session, writer, "protocol", "say Hello first")
        if hello.version != wire.VERSION:
            why = f"this server speaks version {wire.VERSION} of the protocol, not {hello.version}"
            return await self._refuse(session, writer, "protocol", why)
        if self.leaving or len(self.sessions) >= self.settings.max_connections:
            why = "this server is going to stop" if self.leaving else f"{len(self.sessions)} clients are here: full"
            return await self._refuse(session, writer, "full", why)
        session.who = hello.who[:100] or str(writer.get_extra_info("peername") or "?")
        await session.say(wire.Welcome(wire.VERSION, tuple(sorted(self._keys))))
        return True

    async def _refuse(self, session: Session, writer: asyncio.StreamWriter, reason: str, why: str) -> bool:
        self.drops[reason] += 1
        log.warning("a client at %s is refused: %s", writer.get_extra_info("peername") or "this machine", why)
        with contextlib.suppress(OSError, TimeoutError):
            await session.say(wire.Refused(why))
            writer.close()
            async with asyncio.timeout(1):
                await writer.wait_closed()
        return False


def _clear(path: Path) -> None:
    """A socket that a killed server has left is taken away."""
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        path.unlink()


def _reason(text: str) -> str:
    """One word for metrics."""
    return next((word for phrase, word in _WORDS.items() if phrase in text), "gone")


_WORDS = {"has read nothing": "slow", "has said nothing": "silent", "protocol": "protocol", "understood": "protocol"}
