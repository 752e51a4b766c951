"""What Prometheus sees of IPAM, under the names of Calico's kube-controllers; served when a port is asked for.

survey, decision, releases of each pass of `ipam_gc` ─► figures ─► IpamMetrics ─► GET /metrics
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError
from tortie.controllers.ipam_gc import Decision
from tortie.ipam.allocation import Allocation
from tortie.ipam.owner import Owner
from tortie.ipam.pools import pool_of
from tortie.ipam.survey import Survey
from tortie.model.ipam import IPPool

log = logging.getLogger(__name__)

NO_POOL, NO_AFFINITY, UNKNOWN_NODE = "no_ippool", "no_affinity", "unknown_node"
"""What stands where a block is of no pool or of no node, or nobody knows who holds an address."""

Place = tuple[str, str]
"""A pool and a node."""


@dataclass(frozen=True)
class Figures:
    """Counts by pool and node; sizes and reserved addresses by pool. `reclaimed` are of this pass alone."""

    in_use: Mapping[Place, int] = field(default_factory=dict)
    borrowed: Mapping[Place, int] = field(default_factory=dict)
    candidates: Mapping[Place, int] = field(default_factory=dict)
    reclaimed: Mapping[Place, int] = field(default_factory=dict)
    blocks: Mapping[Place, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    reserved: Mapping[str, int] = field(default_factory=dict)


def figures(now: Survey, decision: Decision, released: Iterable[Allocation]) -> Figures:
    """What a pass has seen, decided and released. What cannot be read is not counted."""
    pools = [pool for pool in now.pools if _net(pool.spec.cidr) is not None]
    in_use: Tally[Place] = Tally()
    borrowed: Tally[Place] = Tally()
    for each in now.allocations:
        if each.cooling or each.reserved:
            continue
        place = _pool_name(pools, each.block), each.node or UNKNOWN_NODE
        in_use[place] += 1
        borrowed[place] += each.borrowed
    leaking = (*decision.releases, *(each for each, _ in decision.waiting))
    return Figures(
        in_use,
        borrowed,
        Tally((_pool_name(pools, each.block), each.node or UNKNOWN_NODE) for each in leaking),
        Tally((_pool_name(pools, each.block), each.node or UNKNOWN_NODE) for each in released),
        Tally(
            (_pool_name(pools, block.spec.cidr), Owner.parse(block.spec.affinity or "").name or NO_AFFINITY)
            for block in now.blocks
        ),
        {pool.name: pool.spec.net.num_addresses for pool in pools},
        {pool.name: _reserved_in(pool.spec.net, now) for pool in pools},
    )


def _reserved_in(net: Net, now: Survey) -> int:
    """How many addresses of a pool IPReservations keep back."""
    said = (_net(text) for each in now.reservations for text in each.spec.reserved_cidrs)
    inside = {each for each in said if each is not None and each.version == net.version and each.overlaps(net)}
    widest = [each for each in inside if not any(each != other and each.subnet_of(other) for other in inside)]  # type: ignore[arg-type]
    return sum(min(each.num_addresses, net.num_addresses) for each in widest)


def _pool_name(pools: list[IPPool], cidr: str) -> str:
    net = _net(cidr)
    pool = pool_of(pools, net) if net is not None else None
    return pool.name if pool is not None else NO_POOL


def _net(text: str) -> Net | None:
    try:
        return parse_net(text)
    except ConfigError:
        return None


class IpamMetrics:
    """The newest figures. `port` is watched: another one takes effect, 0 serves nothing."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        both = ["ippool", "node"]
        gauge = self._gauge
        self._by_place = {
            "in_use": gauge("ipam_allocations_in_use", "Addresses that are held.", both),
            "borrowed": gauge("ipam_allocations_borrowed", "Addresses from other nodes' blocks.", both),
            "candidates": gauge("ipam_allocations_gc_candidates", "Addresses that look leaked.", both),
            "blocks": gauge("ipam_blocks", "Blocks.", both),
        }
        self._by_node = {
            "in_use": gauge("ipam_allocations_per_node", "Addresses that a node holds.", ["node"]),
            "borrowed": gauge("ipam_allocations_borrowed_per_node", "Addresses from others' blocks.", ["node"]),
            "blocks": gauge("ipam_blocks_per_node", "Blocks of a node.", ["node"]),
        }
        self._reclaimed = Counter(
            "ipam_allocations_gc_reclamations", "Addresses given back.", both, registry=self.registry
        )
        self._size = gauge("ipam_ippool_size", "Addresses of a pool.", ["ippool"])
        self._reserved = gauge("ipam_ippool_reserved", "Addresses of a pool that are kept back.", ["ippool"])

    def observe(self, now: Survey, decision: Decision, released: Iterable[Allocation]) -> None:
        """Of a pass of `IpamGc`."""
        new = figures(now, decision, released)
        for name, gauge in self._by_place.items():
            gauge.clear()
            counts: Mapping[Place, int] = getattr(new, name)
            for (pool, node), count in counts.items():
                gauge.labels(pool, node).set(count)
        for name, gauge in self._by_node.items():
            gauge.clear()
            sums: Tally[str] = Tally()
            for (_, node), count in getattr(new, name).items():
                sums[node] += count
            for node, count in sums.items():
                gauge.labels(node).set(count)
        for place, count in new.reclaimed.items():
            self._reclaimed.labels(*place).inc(count)
        for gauge, by_pool in ((self._size, new.sizes), (self._reserved, new.reserved)):
            gauge.clear()
            for pool, count in by_pool.items():
                gauge.labels(pool).set(count)

    def _gauge(self, name: str, text: str, labels: list[str]) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class MetricsPort:
    """Serves metrics on the port that is asked for; `move` to another one, or to none (0)."""

    def __init__(self, metrics: IpamMetrics, host: str = "") -> None:
        self._metrics = metrics
        self._host = host or None
        self._runner: web.AppRunner | None = None
        self._lock = asyncio.Lock()
        self.port = 0

    async def move(self, port: int) -> None:
        """A port that cannot be had is told of, and asked for again at the next call."""
        async with self._lock:
            if port == self.port:
                return
            await self._close()
            if not port:
                return
            app = web.Application()
            app.router.add_get("/metrics", self._answer)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            try:
                await web.TCPSite(runner, self._host, port).start()
            except OSError as error:
                await runner.cleanup()
                log.warning("metrics on port %d: %s", port, error.strerror or error)
                return
            self._runner, self.port = runner, port

    async def close(self) -> None:
        async with self._lock:
            await self._close()

    async def _close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        self._runner, self.port = None, 0

    async def _answer(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
