"""HTTP on a Unix socket or a port, within bounds: what a caller can make us keep is bounded in bytes, seconds and
connections, and what cannot be read is logged in one line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

from aiohttp import web
from aiohttp.http import HttpProcessingError

from tortie.base.errors import Unavailable
from tortie.base.logs import Seldom

log = logging.getLogger(__name__)

MAX_LINE = 64 * 2**10
"""Bytes of one header, which is one variable of the environment; the kernel allows 128 KiB each (MAX_ARG_STRLEN)."""
MAX_HEADERS = 32
REQUEST_SECONDS = 10.0
"""For a caller to send its request: once for the head, once for the body. A plugin has all of it before it calls."""
LINGER_SECONDS = 1.0
"""For a caller that is refused to stop sending, so that it comes to read why."""
MAX_CONNECTIONS = 512
"""At once, on each socket and port; below the 1024 files that a process may usually open."""
LOGGED_CHARACTERS = 500
"""Of what a caller has sent."""
GRACE = 25.0
"""Seconds: longer than a call waits for its policy, shorter than Kubernetes waits (30 s) before it kills."""


@contextlib.asynccontextmanager
async def serving(
    app: web.Application, where: Path | tuple[str, int], refusal: Callable[[str], str] = str
) -> AsyncIterator[None]:
    """Serve on a Unix socket (mode 0600) or a (host, port) while the block runs. Raises Unavailable.

    Calls that are under way at the end of the block have `GRACE` seconds to finish. `refusal` makes the body of an
    answer of why a request cannot be read.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=GRACE)
    await runner.setup()
    place = str(where) if isinstance(where, Path) else f"{where[0] or '*'}:{where[1]}"
    try:
        try:
            listener = await _listen(runner, where, place, refusal)
        except OSError as error:
            number = error.errno or 0  # below 0: of the resolver, which has words of its own
            why = os.strerror(number) if number > 0 else str(error)
            raise Unavailable(f"cannot listen on {place}: {why}") from None
        try:
            yield
        finally:
            listener.close()
    finally:
        await runner.cleanup()


async def _listen(
    runner: web.AppRunner, where: Path | tuple[str, int], place: str, refusal: Callable[[str], str]
) -> asyncio.Server:
    assert runner.server is not None
    loop = asyncio.get_running_loop()
    connection = partial(_Connection, runner.server, place, refusal, Seldom(log), loop)
    if isinstance(where, tuple):
        return await loop.create_server(connection, where[0] or None, where[1], backlog=128)
    await asyncio.to_thread(where.unlink, missing_ok=True)
    old = os.umask(0o177)
    try:
        return await loop.create_unix_server(connection, str(where), backlog=MAX_CONNECTIONS)
    finally:
        os.umask(old)


class _Connection(web.RequestHandler):
    """One caller, within bounds."""

    __slots__ = ("_complain", "_place", "_refusal")

    def __init__(
        self,
        server: web.Server,
        place: str,
        refusal: Callable[[str], str],
        complain: Seldom,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=REQUEST_SECONDS,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            max_headers=MAX_HEADERS,
            lingering_time=LINGER_SECONDS,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]  # it looks whether there is one
        )
        self._place = place
        self._refusal = refusal
        self._complain = complain

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self._manager is not None
        if len(self._manager.connections) > MAX_CONNECTIONS:
            self._complain.warning(f"{self._place}: {MAX_CONNECTIONS} callers are there already; more are turned away")
            self.force_close()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What is not HTTP is the caller's mistake, and no bug of ours."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        why = (message or exc.message).partition("\n")[0].rstrip(":")
        log.warning("%s: not a request that can be read: %s", self._place, short(why))
        response = web.Response(status=status, text=self._refusal(why))
        response.force_close()
        return response


def short(text: str) -> str:
    """For the log: it must not be a caller who decides how much of it there is."""
    return text if len(text) <= LOGGED_CHARACTERS else f"{text[:LOGGED_CHARACTERS]}... ({len(text)} characters)"
