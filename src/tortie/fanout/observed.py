"""What others see of a fan-out server: Prometheus, in Typha's names where it has one, and probes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tortie.base.errors import ConfigError
from tortie.fanout.feed import Feed
from tortie.fanout.server import Server
from tortie.kernel.scraped import TEXT_UTF8, metrics_application

STUCK = 5.0
"""Seconds that the event loop may be late before a probe says so."""


class Seen(Collector):
    """Read whenever somebody asks, on the event loop, where all of it lives."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        server = self._server
        sessions, feeds = tuple(server.sessions), tuple(server.feeds.values())
        yield _counter("typha_connections_accepted", "Connections that came.", server.accepted)
        yield _gauge("typha_connections_active", "Clients that are here.", len(sessions))
        dropped = CounterMetricFamily("typha_connections_dropped", "Connections that ended.", labels=["reason"])
        for reason, count in sorted(server.drops.items()):
            dropped.add_metric([reason], count)
        yield dropped
        made = sum(feed.shelf.snapshots for feed in feeds)
        yield _counter("typha_snapshots_generated", "Snapshots that were made, of all kinds.", made)
        for name, text, value in _OF_KINDS:
            family = GaugeMetricFamily(name, text, labels=["kind"])
            for feed in feeds:
                family.add_metric([feed.kind.KIND.plural], value(feed))
            yield family
        behind = [session.behind for session in sessions]
        yield _gauge("tortie_fanout_most_behind", "Writes that the slowest client has not got.", max(behind, default=0))
        compacted = server.compactions + sum(session.compactions for session in sessions)
        yield _counter("tortie_fanout_compacted", "Watches that fell behind what is remembered.", compacted)
        sent = server.sent + sum(session.sent for session in sessions)
        yield _counter("tortie_fanout_sent_bytes", "To all clients.", sent)
        yield _gauge("tortie_fanout_datastore_connected", "1 while the datastore answers.", int(not server.away))


def _raw(feed: Feed) -> int:
    return 0 if feed.shelf.snapshot is None else feed.shelf.snapshot.raw


def _compressed(feed: Feed) -> int:
    return 0 if feed.shelf.snapshot is None else sum(map(len, feed.shelf.snapshot.parts))


_OF_KINDS: tuple[tuple[str, str, Callable[[Feed], int]], ...] = (
    ("typha_snapshot_raw_bytes", "Bytes of the newest snapshot of a kind.", _raw),
    ("typha_snapshot_compressed_bytes", "The same, as it is sent.", _compressed),
    ("tortie_fanout_objects", "Objects of a kind.", lambda feed: len(feed.shelf.objects)),
    ("tortie_fanout_log_writes", "Writes of a kind that are remembered.", lambda feed: feed.shelf.length),
    ("tortie_fanout_lists", "Lists of a kind that the datastore was asked for.", lambda feed: feed.requests),
)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


class Watchdog:
    """Notices when the event loop does nothing else any more. `run` it as a task."""

    def __init__(self) -> None:
        self._last = 0.0

    async def run(self) -> None:
        while True:
            self._last = asyncio.get_running_loop().time()
            await asyncio.sleep(1)

    @property
    def late(self) -> float:
        return asyncio.get_running_loop().time() - self._last


def metrics(server: Server) -> web.Application:
    registry = CollectorRegistry()
    registry.register(Seen(server))
    return metrics_application(registry, TEXT_UTF8)


def health_application(server: Server, watchdog: Watchdog) -> web.Application:
    """Typha's /liveness and /readiness: 200 or 503, and why."""

    def probe(why: Callable[[], str]) -> Callable[[web.Request], object]:
        async def answer(_: web.Request) -> web.Response:
            text = why()
            return web.Response(status=503 if text else 200, text=json.dumps({"reason": text}) + "\n")

        return answer

    def stuck() -> str:
        return f"the event loop is late by {watchdog.late:.0f} s" if watchdog.late > STUCK else ""

    app = web.Application()
    app.router.add_get("/liveness", probe(stuck))  # type: ignore[arg-type]
    app.router.add_get("/readiness", probe(lambda: stuck() or server.unready))  # type: ignore[arg-type]
    return app


async def serve(stack: AsyncExitStack, app: web.Application, host: str, port: int) -> None:
    """Until the stack is left. Raises ConfigError."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        await web.TCPSite(runner, host or None, port).start()
    except OSError as error:
        raise ConfigError(f"cannot listen: {error.strerror or error}", f"{host}:{port}") from None
