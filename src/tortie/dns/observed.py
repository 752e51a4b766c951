"""What others see of the name server: probes, and figures for Prometheus in CoreDNS' names where it has one.

/health   200 OK: it runs                                             port 8080
/ready    200 OK, or 503 and why: the cluster is not known yet        port 8181
/metrics                                                              port 9153
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tortie.base.errors import ConfigError, Unavailable
from tortie.dns.resolver import Resolver
from tortie.kernel.scraped import TEXT_UTF8, metrics_application
from tortie.kernel.serving import serving


class Seen(Collector):
    """Read whenever somebody asks, on the event loop, where all of it lives."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    def collect(self) -> Iterator[Metric]:
        resolver = self._resolver
        requests = CounterMetricFamily("coredns_dns_requests", "Questions.", labels=["proto", "type"])
        for (protocol, kind), count in sorted(resolver.requests.items()):
            requests.add_metric([protocol, kind], count)
        yield requests
        responses = CounterMetricFamily("coredns_dns_responses", "Answers.", labels=["rcode"])
        for rcode, count in sorted(resolver.responses.items()):
            responses.add_metric([rcode], count)
        yield responses
        upstreams = resolver.upstreams
        yield CounterMetricFamily("coredns_forward_requests", "Questions to other servers.", value=upstreams.sent)
        yield CounterMetricFamily("coredns_forward_failures", "Those not answered.", value=upstreams.failures)
        yield CounterMetricFamily("coredns_cache_hits", "Answers of others that were remembered.", value=upstreams.hits)
        yield GaugeMetricFamily("tortie_dns_services", "Services that are known.", value=resolver.names.services)


def metrics(resolver: Resolver) -> web.Application:
    registry = CollectorRegistry()
    registry.register(Seen(resolver))
    return metrics_application(registry, TEXT_UTF8)


def probe_application(path: str, why_not: Callable[[], str]) -> web.Application:
    """200 OK at a path, or 503 and why not."""

    async def answer(_: web.Request) -> web.Response:
        why = why_not()
        return web.Response(status=503 if why else 200, text=why or "OK")

    app = web.Application()
    app.router.add_get(path, answer)
    return app


async def serve(stack: AsyncExitStack, app: web.Application, port: int, option: str) -> None:
    """On every address until the stack is left; port 0 is not served. Raises ConfigError naming the option."""
    if not port:
        return
    try:
        await stack.enter_async_context(serving(app, ("", port)))
    except Unavailable as error:
        raise ConfigError(f"{error}; 0 for none", option) from None
