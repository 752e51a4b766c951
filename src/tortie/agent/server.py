"""The agent's HTTP: the root-only Unix socket for the CNI plugin and questions, and the ports for health and metrics.

unix  POST /cni/<plugin>   the CNI call: variables as headers, configuration as body
      GET  /node           this node's BGP: BIRD, peers, routes
      GET  /addresses      this machine's addresses, and why each is the node's or not
      GET  /mtu            how large the packets of pods may be, and how that comes about
      GET  /diagnosis      of every session that is down, why and what to do; takes some seconds
      GET  /doctor         what of this machine, or on the way to the other nodes, is bad for pods; takes some seconds
      GET  /routes         where BGP's routes come from, and whom they are told: `?prefix=NETWORK`
      GET  /counters       packets and bytes of every rule, by its name
      GET  /denials        the same of rules that deny, with what they are in words
      GET  /drops          packets that are denied from now on: lines of JSON without end
      GET  /rules          what the kernel has of the rules `?rule=NAME&interface=NAME`, and where it differs
      GET  /path           its route `?source=IP&destination=IP&interface=NAME`
      GET  /services       services with their backends, and who serves them; POST /services/takeover, /services/release
      GET  /health         what `tortie node health` judges
      GET  /status         the node on one page
      POST /datastore/accept   the datastore is the cluster's, whatever it was before
      POST /shutdown       the agent is going to be stopped: Kubernetes is told that the network goes
      GET  /readiness, /liveness
tcp   :9099 /readiness /liveness     :9091 /metrics

Whoever may open the socket may still be broken, and the port of the metrics is open to everybody. What a caller can
make us keep is bounded in bytes, seconds and connections; what is refused is answered as a CNI error, and logged in one
line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from aiohttp import web

from tortie.base.errors import TortieError
from tortie.cni.spec import Call, CniError, Code, as_cni_error, quote, read_call
from tortie.kernel.serving import REQUEST_SECONDS, short
from tortie.proxy.server import Answers as ProxyAnswers
from tortie.proxy.server import add_routes

log = logging.getLogger(__name__)

MAX_BODY = 2**20
"""Bytes of a configuration. Those of real networks have a few thousand."""
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
    async def node_addresses(self) -> Mapping[str, Any]: ...
    async def node_mtu(self) -> Mapping[str, Any]: ...
    async def health(self) -> Mapping[str, Any]: ...
    async def status(self) -> Mapping[str, Any]: ...
    async def accept_datastore(self) -> Mapping[str, Any]: ...
    async def shut_down(self) -> Mapping[str, Any]: ...
    async def diagnosis(self) -> Mapping[str, Any]: ...
    async def look_around(self) -> Mapping[str, Any]: ...
    async def bgp_routes(self, prefix: str) -> Mapping[str, Any]: ...
    async def counters(self) -> Mapping[str, Any]: ...
    async def denials(self) -> Mapping[str, Any]: ...
    def watch_drops(self) -> AsyncGenerator[bytes, None]: ...
    async def rules(self, names: Sequence[str], interfaces: Sequence[str]) -> Mapping[str, Any]: ...
    async def path(self, question: Mapping[str, str]) -> Mapping[str, Any]: ...
    @property
    def proxy(self) -> ProxyAnswers: ...
    def reports(self) -> Mapping[str, Mapping[str, Any]]:
        """Health by reporter: {"live": bool, "ready": bool, "reason": str}."""
        ...


def application(answers: Answers) -> web.Application:
    """The socket's routes."""
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_refuse])
    app.router.add_post("/cni/{plugin}", lambda request: _cni(request, answers))
    app.router.add_get("/node", lambda request: _json(answers.node))
    app.router.add_get("/addresses", lambda request: _json(answers.node_addresses))
    app.router.add_get("/health", lambda request: _json(answers.health))
    app.router.add_get("/status", lambda request: _json(answers.status))
    app.router.add_post("/datastore/accept", lambda request: _json(answers.accept_datastore))
    app.router.add_post("/shutdown", lambda request: _json(answers.shut_down))
    app.router.add_get("/mtu", lambda request: _json(answers.node_mtu))
    app.router.add_get("/diagnosis", lambda request: _json(answers.diagnosis))
    app.router.add_get("/doctor", lambda request: _json(answers.look_around))
    app.router.add_get("/routes", lambda request: _json(lambda: answers.bgp_routes(request.query.get("prefix", ""))))
    app.router.add_get("/counters", lambda request: _json(answers.counters))
    app.router.add_get("/denials", lambda request: _json(answers.denials))
    app.router.add_get("/drops", lambda request: _stream(request, answers.watch_drops()), allow_head=False)
    app.router.add_get("/rules", lambda request: _json(lambda: answers.rules(*_rules(request))))
    app.router.add_get("/path", lambda request: _json(lambda: answers.path(request.query)))
    add_routes(app, answers.proxy)
    _add_health(app, answers)
    return app


def _rules(request: web.Request) -> tuple[list[str], list[str]]:
    """Names of rules, and of the interfaces whose packets they are about."""
    return request.query.getall("rule", []), request.query.getall("interface", [])


def health_application(answers: Answers) -> web.Application:
    app = web.Application()
    _add_health(app, answers)
    return app


def unreadable(why: str) -> str:
    """What a plugin is answered whose request is not one."""
    return CniError(Code.INVALID_ENVIRONMENT, f"not a request that the agent can read: {why}").json()


@web.middleware
async def _refuse(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """What nobody serves is refused in a plugin's words, so that a runtime can show them."""
    try:
        return await handler(request)
    except web.HTTPException as refusal:
        text = f"this agent does not serve {request.method} {quote(request.path)}: {refusal.reason}"
        log.warning("%s", short(text))
        return web.Response(status=refusal.status, text=CniError(Code.INVALID_ENVIRONMENT, text).json())


async def _cni(request: web.Request, answers: Answers) -> web.Response:
    """One call. The caller going away does not stop it half-way: the work is shielded and finishes by itself."""
    env = {name: request.headers.get(header, "") for name, header in HEADERS.items()}
    title = f"{env['CNI_COMMAND']} {env['CNI_ARGS'] or env['CNI_CONTAINERID']}"
    try:
        call = read_call(env, await _configuration(request))
        work = answers.cni(request.match_info["plugin"], call)
        task = asyncio.create_task(work, name=f"cni {call.command} {call.container_id[:12]}")
        text = await asyncio.shield(task)
    except (TortieError, ValueError) as error:
        log.warning("%s: %s", short(title), short(str(error)))
        return web.Response(status=500, text=as_cni_error(error).json())
    except Exception as bug:
        log.exception("%s", short(title))
        text = f"unexpected {type(bug).__name__}: the agent's log tells more"
        return web.Response(status=500, text=CniError(Code.INTERNAL, text).json())
    return web.Response(text=text)


async def _configuration(request: web.Request) -> bytes:
    """What the runtime gave to the plugin on standard input. Raises CniError."""
    too_large = CniError(Code.INVALID_CONFIG, f"the network configuration is larger than {MAX_BODY} bytes")
    if (request.content_length or 0) > MAX_BODY:
        raise too_large
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None
    except TimeoutError:
        text = f"the network configuration did not arrive within {REQUEST_SECONDS:g} s"
        raise CniError(Code.IO_FAILURE, text) from None
    except (OSError, web.RequestPayloadError) as error:
        raise CniError(Code.IO_FAILURE, f"the network configuration did not arrive: {error}") from None


async def _json(question: Callable[[], Awaitable[Mapping[str, Any]]]) -> web.Response:
    try:
        return web.json_response(await question())
    except TortieError as error:
        return web.json_response({"error": str(error)}, status=503)


async def _stream(request: web.Request, lines: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    """For as long as there are lines and the caller stays, which is looked at whenever a line is empty."""
    async with contextlib.aclosing(lines):
        try:
            first = await anext(lines)
        except TortieError as error:
            return web.json_response({"error": str(error)}, status=503)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        with contextlib.suppress(ConnectionError):  # the caller has gone
            await response.prepare(request)
            await response.write(first)
            async for line in lines:
                if line:
                    await response.write(line)
                elif request.transport is None:
                    break
        return response


def _add_health(app: web.Application, answers: Answers) -> None:
    def probe(what: str) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(_: web.Request) -> web.Response:
            reports = answers.reports()
            good = all(report[what] for report in reports.values())
            return web.Response(status=200 if good else 503, text=json.dumps(reports, indent=2) + "\n")

        return handler

    app.router.add_get("/liveness", probe("live"))
    app.router.add_get("/readiness", probe("ready"))
