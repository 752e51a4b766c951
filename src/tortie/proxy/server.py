"""Questions about a node's services over HTTP: routes for the agent's socket, and a whole server where there is none.

GET  /services                ?namespace=NS&name=NAME&services=none   how it stands, and services with their backends
POST /services/takeover       ?plan=1&yes=1                           what `tortie services takeover` asks for
POST /services/release        the same of `tortie services release`
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, Histogram

from tortie.base.errors import ConfigError, TortieError


class Answers(Protocol):
    """What is asked of a `Proxy`."""

    async def answer(self, query: Mapping[str, str]) -> Mapping[str, Any]: ...
    async def take_over(self, *, yes: bool = False, only_plan: bool = False) -> Mapping[str, Any]: ...
    async def release(self, *, yes: bool = False, only_plan: bool = False) -> Mapping[str, Any]: ...


class Metrics:
    """kube-proxy's names, so that existing dashboards keep working."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.services = Gauge("kubeproxy_services", "Services that this node serves.", registry=registry)
        self.seconds = Histogram(
            "kubeproxy_sync_proxy_rules_duration_seconds", "Time of a pass over the kernel.", registry=registry
        )
        self.when = Gauge(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "When rules were last up to date.",
            registry=registry,
        )
        self.failures = Gauge("kubeproxy_sync_failures", "What the kernel does not take just now.", registry=registry)


def add_routes(app: web.Application, proxy: Answers) -> None:
    app.router.add_get("/services", lambda request: _json(proxy.answer(request.query)))
    app.router.add_post("/services/takeover", lambda request: _json(_doing(proxy.take_over, request.query)))
    app.router.add_post("/services/release", lambda request: _json(_doing(proxy.release, request.query)))


def application(proxy: Answers) -> web.Application:
    app = web.Application()
    add_routes(app, proxy)
    return app


async def _doing(work: Callable[..., Awaitable[Mapping[str, Any]]], query: Mapping[str, str]) -> Mapping[str, Any]:
    return await work(**asked(query))


def asked(query: Mapping[str, str]) -> dict[str, bool]:
    """What is to be done. Nothing is, where a word is not understood: it may have asked for no more than a plan.

    Raises ConfigError.
    """
    for name, value in query.items():
        if name not in ("plan", "yes") or value not in ("0", "1"):
            raise ConfigError(f'"{name[:40]}={value[:40]}" is not understood: say plan=1, yes=1 or neither')
    said = {name for name, value in query.items() if value == "1"}
    return {"yes": "yes" in said, "only_plan": "plan" in said}


async def _json(question: Awaitable[Mapping[str, Any]]) -> web.Response:
    try:
        return web.json_response(await question)
    except ConfigError as error:
        return web.json_response({"error": str(error)}, status=400)
    except TortieError as error:
        return web.json_response({"error": str(error)}, status=503)
