"""Figures for Prometheus over HTTP."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

TEXT = "text/plain; version=0.0.4"
"""Prometheus' form, as Felix and kube-proxy say it."""
TEXT_UTF8 = f"{TEXT}; charset=utf-8"
"""The same as Typha and CoreDNS say it."""


def metrics_application(registry: CollectorRegistry, content_type: str = TEXT) -> web.Application:
    """/metrics, and nothing else."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": content_type})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    return app
