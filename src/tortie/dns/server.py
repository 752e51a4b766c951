"""The sockets of a name server: UDP and TCP on the same addresses.

A datagram is answered from the address that it was sent to, which on a machine of many addresses the kernel has to be
told (IP_PKTINFO). A TCP connection may ask many questions, one after the other or all at once; each answer goes when it
is there.

Source: RFC 7766 (DNS over TCP), ip(7), ipv6(7).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from tortie.base.errors import ConfigError
from tortie.base.logs import Seldom
from tortie.dns.places import Place
from tortie.dns.resolver import Resolver

IDLE = 10.0
"""Seconds after which a connection that asks nothing is closed."""
MOST_CONNECTIONS = 256
MOST_OF_ONE = 64
"""Connections of one address: who takes more would keep everybody else from asking over TCP."""
MOST_WAITING = 100
"""Questions of one connection that are being answered: as long as there are so many no more are read."""
MOST_DATAGRAMS = 5000
"""Questions over UDP that wait for other servers."""
_AT_ONCE = 64
"""Datagrams read before somebody else has his turn."""
_BUFFER = 1 << 20  # a burst from all pods of a node
_IP_PKTINFO = 8  # linux/in.h
_IPV6_RECVPKTINFO, _IPV6_PKTINFO = 49, 50  # linux/in6.h

log = logging.getLogger(__name__)


class Server:
    """Used with `async with`: answers on all addresses that it is given. Raises ConfigError for one it cannot have."""

    def __init__(self, resolver: Resolver, listen: Sequence[Place]) -> None:
        self.connections: Counter[str] = Counter()
        """By the address of who asks."""
        self.places: list[Place] = []
        """Where it listens: where 0 was asked for, the port that it has got."""
        self._resolver = resolver
        self._listen = listen
        self._datagrams: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._complain = Seldom(log)

    async def __aenter__(self) -> Server:
        try:
            for each in self._listen:
                for family, host in _places(each.host):
                    await self._open(family, host, each.port, needed=bool(each.host) or family == socket.AF_INET)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _open(self, family: socket.AddressFamily, host: str, port: int, *, needed: bool) -> None:
        """Both protocols at an address. Where IPv6 was not asked for by name, a machine without it is fine."""
        where = f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
        try:
            listening, datagrams = _sockets(family, host, port)
        except OSError as error:
            if not needed and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                return
            raise ConfigError(f"cannot listen: {os.strerror(error.errno or 0)}", "--listen", where) from None
        self._datagrams.append(datagrams)
        asyncio.get_running_loop().add_reader(datagrams, self._read, datagrams)
        self._servers.append(await asyncio.start_server(self._accept, sock=listening))
        name = datagrams.getsockname()
        self.places.append(Place(name[0], name[1]))

    async def _close(self) -> None:
        loop = asyncio.get_running_loop()
        for datagrams in self._datagrams:
            loop.remove_reader(datagrams)
            datagrams.close()
        for server in self._servers:
            server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- UDP --------------------------------------------------------------------------------------------------------

    def _read(self, datagrams: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                data, besides, _, sender = datagrams.recvmsg(65535, 128)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # what an earlier answer met with
                self._complain.warning(f"UDP: {os.strerror(error.errno or 0)}")
                return
            reply = self._resolver.reply(data, datagram=True)
            back = [each for each in besides if each[1] in (_IP_PKTINFO, _IPV6_PKTINFO)]
            if isinstance(reply, bytes):
                _send(datagrams, reply, back, sender)
            elif reply is not None and len(self._tasks) < MOST_DATAGRAMS:
                self._start(self._send_later(datagrams, reply, back, sender))
            elif reply is not None:
                reply.close()
                self._complain.warning(f"{MOST_DATAGRAMS} questions wait for other servers: more are not answered")

    async def _send_later(self, datagrams: socket.socket, reply: Awaitable[bytes], back: Any, sender: Any) -> None:
        data = await reply
        if datagrams.fileno() >= 0:
            _send(datagrams, data, back, sender)

    # --- TCP --------------------------------------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """In a task of ours: asyncio's own takes our end for a bug."""
        self._start(self._converse(reader, writer))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        who = str((writer.get_extra_info("peername") or ("",))[0])
        try:
            if self._is_full(who):
                return
            self.connections[who] += 1
            try:
                with suppress(asyncio.IncompleteReadError, TimeoutError, OSError):
                    async with asyncio.TaskGroup() as answers:
                        await self._questions(reader, writer, answers)
            finally:
                self.connections[who] -= 1
                if not self.connections[who]:
                    del self.connections[who]
        except* OSError:
            pass  # the other side has gone
        finally:
            writer.close()

    def _is_full(self, who: str) -> bool:
        of_one = self.connections[who] >= MOST_OF_ONE
        full = self.connections.total() >= MOST_CONNECTIONS
        if of_one:
            self._complain.warning(f"{who} has {MOST_OF_ONE} connections open: another one is turned away")
        elif full:
            self._complain.warning(f"{MOST_CONNECTIONS} connections are open: another one is turned away")
        return of_one or full

    async def _questions(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: asyncio.TaskGroup
    ) -> None:
        """Until the other side has no more, or says nothing for a while."""
        waiting = asyncio.Semaphore(MOST_WAITING)
        while not writer.is_closing():
            await asyncio.sleep(0)  # what has all come already would else be answered before anybody else
            try:
                async with asyncio.timeout(IDLE):
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    data = await reader.readexactly(size)
            except (asyncio.IncompleteReadError, TimeoutError, OSError):
                return
            reply = self._resolver.reply(data, datagram=False)
            if reply is None:
                return
            await waiting.acquire()
            answering = _answer(writer, reply, waiting)
            if isinstance(reply, bytes):
                await answering  # what is large and not taken does not pile up
            else:
                answers.create_task(answering)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _answer(writer: asyncio.StreamWriter, reply: bytes | Awaitable[bytes], waiting: asyncio.Semaphore) -> None:
    try:
        data = reply if isinstance(reply, bytes) else await reply
        with suppress(OSError):  # nobody is there any more to be told
            writer.write(len(data).to_bytes(2, "big") + data)
            async with asyncio.timeout(IDLE):
                await writer.drain()
    except TimeoutError:
        writer.transport.abort()  # asks, and does not listen
    finally:
        waiting.release()


def _places(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """What a host of an address means: without one, all of this machine's."""
    if not host:
        return [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]
    return [(socket.AF_INET6 if ":" in host else socket.AF_INET, host)]


def _sockets(family: socket.AddressFamily, host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """TCP and UDP at the same address and port. Raises OSError."""
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    datagrams = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for each in (listening, datagrams):
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if family == socket.AF_INET6:
            datagrams.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        else:
            datagrams.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        listening.bind((host, port))
        datagrams.bind((host, listening.getsockname()[1]))
        listening.listen(128)
    except OSError:
        listening.close()
        datagrams.close()
        raise
    return listening, datagrams


def _send(datagrams: socket.socket, data: bytes, back: Any, sender: Any) -> None:
    """From where it was asked. What the kernel has no room for is lost, as a datagram may be: who asked asks again."""
    with suppress(OSError):
        datagrams.sendmsg([data], [(level, kind, _source(kind, info)) for level, kind, info in back], 0, sender)


def _source(kind: int, info: bytes) -> bytes:
    """Of where a datagram came to, from where the answer goes: the address, and no interface, for the way back may be
    another one. Link-local addresses of IPv6 are the interface's."""
    if kind == _IP_PKTINFO:  # struct in_pktinfo: interface, local address, destination of the header
        return bytes(4) + info[4:8] + bytes(4)
    link_local = info[0] == 0xFE and info[1] & 0xC0 == 0x80
    return info if link_local else info[:16] + bytes(4)
