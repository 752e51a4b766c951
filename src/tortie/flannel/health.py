"""What flanneld answers: to kubelet's probes over TCP, and to `tortie flannel status` over a Unix socket.

/healthz   200 flanneld is running
/readyz    200 flanneld is ready, or 503 flanneld is not ready yet
/status    JSON: node, neighbours, what does not work. Over the socket alone
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from aiohttp import web

from tortie.base.errors import ConfigError

RUNNING, READY, NOT_READY = "flanneld is running", "flanneld is ready", "flanneld is not ready yet"
PRIVATE = 0o177
"""umask: the socket is root's."""


def application(
    ready: Callable[[], bool], status: Callable[[], Awaitable[Mapping[str, Any]]] | None = None
) -> web.Application:
    """`status` is left out where anybody may ask."""

    async def running(_: web.Request) -> web.Response:
        return web.Response(text=RUNNING)

    async def is_ready(_: web.Request) -> web.Response:
        return web.Response(text=READY) if ready() else web.Response(status=503, text=NOT_READY)

    app = web.Application()
    app.router.add_get("/healthz", running)
    app.router.add_get("/readyz", is_ready)
    if status is not None:

        async def tell(_: web.Request) -> web.Response:
            return web.json_response(await status())

        app.router.add_get("/status", tell)
    return app


async def serve_port(stack: AsyncExitStack, app: web.Application, host: str, port: int) -> None:
    """Until the stack is left. Raises ConfigError."""
    runner = await _runner(stack, app)
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        where = f"--healthz-ip {host} --healthz-port {port}"
        # The resolver's errors have negative numbers, of which strerror knows nothing.
        why = f'"{host}" is no address of this machine' if isinstance(error, socket.gaierror) else _text(error)
        raise ConfigError(f"cannot listen: {why}", where) from None


async def serve_socket(stack: AsyncExitStack, app: web.Application, path: Path) -> None:
    """Until the stack is left, which takes the socket away. One that a killed daemon left is replaced.

    Raises ConfigError, also when a daemon answers there already: two would undo each other's work.
    """
    runner = await _runner(stack, app)
    try:
        await asyncio.to_thread(_cleared, path)
        old = os.umask(PRIVATE)
        try:
            await web.UnixSite(runner, str(path)).start()
            stack.callback(path.unlink, missing_ok=True)
        finally:
            os.umask(old)
    except OSError as error:
        why = "--subnet-file or --status-socket must be in a directory that can be written to"
        raise ConfigError(f"cannot listen: {_text(error)}: {why}", str(path)) from None


def _cleared(path: Path) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
        else:
            what = "another flanneld runs with this subnet file: stop it, or give this one another --subnet-file"
            raise ConfigError(what, str(path))


def _text(error: OSError) -> str:
    return os.strerror(error.errno or 0)


async def _runner(stack: AsyncExitStack, app: web.Application) -> web.AppRunner:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return runner
