"""The agent's HTTP: the root-only Unix socket for the CNI plugin and questions, and the ports for health and metrics.

unix  POST /cni/<plugin>   the CNI call: variables as headers, configuration as body
      GET  /node           this node's BGP: BIRD, peers, routes
      GET  /counters       packets and bytes of every rule, by its name
      GET  /readiness, /liveness
tcp   :9099 /readiness /liveness     :9091 /metrics
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from tortie.base.errors import TortieError, Unavailable
from tortie.cni.spec import Call, CniError, Code, as_cni_error, read_call

log = logging.getLogger(__name__)

MAX_BODY = 16 * 2**20
GRACE = 25.0
"""Seconds: longer than a call waits for its policy, shorter than Kubernetes waits (30 s) before it kills."""
HEADERS = {
    "CNI_COMMAND": "Cni-Command",
    "CNI_CONTAINERID": "Cni-Containerid",
    "CNI_NETNS": "Cni-Netns",
    "CNI_IFNAME": "Cni-Ifname",
    "CNI_ARGS": "Cni-Args",
    "CNI_PATH": "Cni-Path",
    "CNI_NETNS_OVERRIDE": "Cni-Netns-Override",
}


class Answers(Protocol):
    """What the server asks of the agent."""

    async def cni(self, plugin: str, call: Call) -> str: ...
    async def node(self) -> Mapping[str, Any]: ...
    async def counters(self) -> Mapping[str, Any]: ...
    def reports(self) -> Mapping[str, Mapping[str, Any]]:
        """Health by reporter: {"live": bool, "ready": bool, "reason": str}."""
        ...


def application(answers: Answers) -> web.Application:
    """The socket's routes."""
    app = web.Application(client_max_size=MAX_BODY)
    app.router.add_post("/cni/{plugin}", lambda request: _cni(request, answers))
    app.router.add_get("/node", lambda request: _json(answers.node))
    app.router.add_get("/counters", lambda request: _json(answers.counters))
    _add_health(app, answers)
    return app


def health_application(answers: Answers) -> web.Application:
    app = web.Application()
    _add_health(app, answers)
    return app


def metrics_application(registry: CollectorRegistry) -> web.Application:
    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": "text/plain; version=0.0.4"})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    return app


@contextlib.asynccontextmanager
async def serving(app: web.Application, where: Path | tuple[str, int]) -> AsyncIterator[None]:
    """Serve on a Unix socket (mode 0600) or a (host, port) while the block runs. Raises Unavailable.

    Calls that are under way at the end of the block have `GRACE` seconds to finish.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=GRACE)
    await runner.setup()
    try:
        try:
            await _listen(runner, where)
        except OSError as error:
            place = where if isinstance(where, Path) else f"{where[0] or '*'}:{where[1]}"
            why = os.strerror(error.errno) if error.errno else str(error)
            raise Unavailable(f"cannot listen on {place}: {why}") from None
        yield
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, where: Path | tuple[str, int]) -> None:
    if isinstance(where, tuple):
        await web.TCPSite(runner, *where).start()
        return
    await asyncio.to_thread(where.unlink, missing_ok=True)
    old = os.umask(0o177)
    try:
        await web.UnixSite(runner, str(where)).start()
    finally:
        os.umask(old)


async def _cni(request: web.Request, answers: Answers) -> web.Response:
    """One call. The caller going away does not stop it half-way: the work is shielded and finishes by itself."""
    env = {name: request.headers.get(header, "") for name, header in HEADERS.items()}
    body = await request.read()
    try:
        call = read_call(env, body)
        work = answers.cni(request.match_info["plugin"], call)
        task = asyncio.create_task(work, name=f"cni {call.command} {call.container_id[:12]}")
        text = await asyncio.shield(task)
    except (TortieError, ValueError) as error:
        log.warning("%s %s: %s", env["CNI_COMMAND"], env["CNI_ARGS"], error)
        return web.Response(status=500, text=as_cni_error(error).json())
    except Exception as bug:
        log.exception("%s %s", env["CNI_COMMAND"], env["CNI_ARGS"])
        text = f"unexpected {type(bug).__name__}: the agent's log tells more"
        return web.Response(status=500, text=CniError(Code.INTERNAL, text).json())
    return web.Response(text=text)


async def _json(question: Callable[[], Awaitable[Mapping[str, Any]]]) -> web.Response:
    try:
        return web.json_response(await question())
    except TortieError as error:
        return web.json_response({"error": str(error)}, status=503)


def _add_health(app: web.Application, answers: Answers) -> None:
    def probe(what: str) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(_: web.Request) -> web.Response:
            reports = answers.reports()
            good = all(report[what] for report in reports.values())
            return web.Response(status=200 if good else 503, text=json.dumps(reports, indent=2) + "\n")

        return handler

    app.router.add_get("/liveness", probe("live"))
    app.router.add_get("/readiness", probe("ready"))
