"""A proxy for TCP that swallows answers, and cuts connections: what was asked is done, and who asked hears nothing."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from tortie.kernel.netns import entered


class Proxy:
    """Forwards TCP. While `swallowing`, nothing comes back; `cut` closes all connections."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.swallowing = False
        self.requests = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, netns: str | None = None) -> str:
        """On loopback, that of a network namespace if one is named; who asks there is answered from here."""
        with entered(netns):
            listening = socket.create_server(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._accept, sock=listening)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def swallow(self) -> None:
        self.swallowing = True

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self.swallowing = False

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers |= {writer, up_writer}
        for task in (self._pump(reader, up_writer, False), self._pump(up_reader, writer, True)):
            made = asyncio.create_task(task)
            self._tasks.add(made)
            made.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if not (back and self.swallowing):
                    writer.write(data)
                    await writer.drain()
        with suppress(OSError):
            writer.close()
