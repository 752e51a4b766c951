"""CalicoNodeStatus objects of this node: written as often as each asks for, and only when there is something new.

    watch of the kind ─► who wants what, how often ─► BIRD is asked ─► status_of ─► news? ─► written, three tries

All of a status is from one look at BIRD, or, while it does not answer, says so: peers and routes are left out then, for
both families, as Calico has it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TypeVar

from msgspec.structs import replace

from tortie.agent.looking import asking
from tortie.agent.node_view import Told, tell
from tortie.agent.view import RETRY
from tortie.base.errors import Compacted, Conflict, NotFound, TortieError, Unavailable
from tortie.base.logs import Seldom
from tortie.bgp.birdc import Origin, PeerKind, Protocol, Route
from tortie.kernel.bird import Bird
from tortie.model.meta import Value
from tortie.model.nodestatus import (
    AgentStatus,
    BGPStatus,
    BirdStatus,
    CalicoNodeStatus,
    CalicoNodeStatusSpec,
    CalicoNodeStatusStatus,
    LearnedFrom,
    PeerStatus,
    RoutesStatus,
    RouteStatus,
)
from tortie.model.store import EventType, Store
from tortie.store.relisting import Relisting

log = logging.getLogger(__name__)

V = TypeVar("V", bound=Value)

TRIES = 3
JITTER = 1.0
"""Seconds by which a time may differ that BIRD works out anew at each question: no news."""
ROUTES = "Routes"
"""The class that needs all of BIRD's routes, which may be a lot to read."""
PEER_TYPES = {PeerKind.MESH: "NodeMesh", PeerKind.NODE: "NodePeer", PeerKind.GLOBAL: "GlobalPeer"}


# --- what is written ----------------------------------------------------------------------------------------------


def status_of(
    spec: CalicoNodeStatusSpec, told: Told | None, families: Iterable[int], old: CalicoNodeStatusStatus, now: datetime
) -> CalicoNodeStatusStatus:
    """The status as it is now; `old` itself when nothing is new. `told` None: BIRD does not answer. `families` are the
    IP versions that this node has an address of."""
    versions = frozenset(families)
    routes = told.routes if told is not None else None
    new = CalicoNodeStatusStatus(
        last_updated=old.last_updated,
        agent=_agent(told, versions) if "Agent" in spec.classes else None,
        bgp=_bgp(told.protocols) if "BGP" in spec.classes and told is not None else None,
        routes=_routes(routes) if ROUTES in spec.classes and routes is not None else None,
    )
    if old.last_updated and same(new, old):
        return old
    return replace(new, last_updated=_rfc3339(now))


def _agent(told: Told | None, versions: frozenset[int]) -> AgentStatus:
    def of(version: int) -> BirdStatus:
        if told is None or version not in versions:
            return BirdStatus(state="NotReady")
        status = told.status
        return BirdStatus(
            state="Ready" if status.ready else "NotReady",
            version=status.version,
            router_id=status.router_id,
            last_boot_time=_rfc3339(status.last_reboot.astimezone()),
            last_reconfiguration_time=_rfc3339(status.last_reconfiguration.astimezone()),
        )

    return AgentStatus(bird_v4=of(4), bird_v6=of(6))


def _bgp(protocols: Iterable[Protocol]) -> BGPStatus:
    """Established is what BIRD has `up`, as in Calico. Sessions with local workloads are not counted, as there."""
    peers: dict[int, list[PeerStatus]] = {4: [], 6: []}
    up = {4: 0, 6: 0}
    for protocol in protocols:
        peer, session = protocol.peer, protocol.session
        if peer is None or session is None:
            continue
        version = peer.ip.version
        up[version] += protocol.state == "up"
        peers[version].append(
            PeerStatus(peer_ip=str(peer.ip), type=PEER_TYPES[peer.kind], state=session.state, since=protocol.since)
        )
    return BGPStatus(
        number_established_v4=up[4],
        number_not_established_v4=len(peers[4]) - up[4],
        number_established_v6=up[6],
        number_not_established_v6=len(peers[6]) - up[6],
        peers_v4=tuple(peers[4]),
        peers_v6=tuple(peers[6]),
    )


def _routes(routes: Iterable[Route]) -> RoutesStatus:
    found: dict[int, list[RouteStatus]] = {4: [], 6: []}
    for route in routes:
        found[route.prefix.version].append(_route(route))

    def ordered(version: int) -> tuple[RouteStatus, ...]:
        return tuple(sorted(found[version], key=lambda one: (one.destination, one.type, one.gateway, one.interface)))

    return RoutesStatus(routes_v4=ordered(4), routes_v6=ordered(6))


def _route(route: Route) -> RouteStatus:
    hop = route.hops[0] if route.hops else None
    peer = route.learned_from or (hop.via if hop is not None else None)
    from_peer = route.origin in (Origin.MESH, Origin.PEER)
    return RouteStatus(
        type="FIB" if route.best else "RIB",
        destination=str(route.prefix),
        gateway=str(hop.via) if hop is not None and hop.via is not None else "N/A",
        interface=hop.dev if hop is not None else route.kind,
        learned_from=LearnedFrom(source_type=route.origin.value, peer_ip=str(peer or "") if from_peer else ""),
    )


def same(new: object, old: object) -> bool:
    """Whether two values of a kind differ in nothing but by the jitter of times."""
    if isinstance(new, Value) and type(new) is type(old):
        names = new.__struct_fields__
        return all(same(getattr(new, name), getattr(old, name)) for name in names)
    if isinstance(new, tuple) and isinstance(old, tuple):
        return len(new) == len(old) and all(map(same, new, old))
    if isinstance(new, str) and isinstance(old, str) and new != old:
        moments = _moment(new), _moment(old)
        return None not in moments and abs((moments[0] - moments[1]).total_seconds()) <= JITTER  # type: ignore[operator]
    return new == old


def _moment(text: str) -> datetime | None:
    """A time of day or a date with one, as BIRD and RFC 3339 have them."""
    with suppress(ValueError):
        return datetime.fromisoformat(f"2000-01-01 {text}" if "-" not in text else text).replace(tzinfo=None)
    return None


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- writing it ---------------------------------------------------------------------------------------------------


class StatusReporter:
    """Serves the CalicoNodeStatus objects that name this node. `families` gives the IP versions that it has."""

    def __init__(self, node: str, store: Store, bird: Bird | None, families: Callable[[], Iterable[int]]) -> None:
        self._node = node
        self._store = store
        self._bird = bird
        self._families = families
        self._wanted: dict[str, CalicoNodeStatusSpec] = {}
        self._due: dict[str, float] = {}
        self._news = asyncio.Event()
        self._complain = Seldom(log)

    async def run(self) -> None:
        """Forever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="node status: follow")
            tasks.create_task(self._report(), name="node status: report")

    async def _follow(self) -> None:
        again = Relisting()
        while True:
            try:
                listing = await self._store.list(CalicoNodeStatus)
                for name in self._wanted.keys() - {one.name for one in listing.items}:
                    self._take(name, None)
                for one in listing.items:
                    self._take(one.name, one.spec)
                async for batch in self._store.watch(CalicoNodeStatus, listing.revision):
                    for event in batch:
                        gone = event.type is EventType.DELETED
                        self._take(event.object.name, None if gone else event.object.spec)
            except Compacted:
                await asyncio.sleep(again.lost())
            except Unavailable as error:
                self._complain.warning(f"node status: {error}; trying again")
                await asyncio.sleep(RETRY)

    def _take(self, name: str, spec: CalicoNodeStatusSpec | None) -> None:
        """Our own writes come back, too: what is asked for is the same then, and so is when it is due."""
        if spec is None or spec.node != self._node or not spec.period:
            self._wanted.pop(name, None)
            self._due.pop(name, None)
        elif self._wanted.get(name) != spec:
            self._wanted[name] = spec
            self._due[name] = asyncio.get_running_loop().time()
            self._news.set()

    async def _report(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            pause = min(self._due.values()) - loop.time() if self._due else None
            if pause is None or pause > 0:
                self._news.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), pause)
                continue
            names = [name for name, due in self._due.items() if due <= loop.time()]
            told = await self._told(any(ROUTES in self._wanted[name].classes for name in names))
            for name in names:
                if name not in self._wanted:  # it went meanwhile
                    continue
                self._due[name] = loop.time() + self._wanted[name].period
                try:
                    await self._write(name, told)
                except TortieError as error:
                    self._complain.warning(f"CalicoNodeStatus {name}: {error}; trying again")

    async def _told(self, routes: bool) -> Told | None:
        if self._bird is None:
            return None
        try:
            return await asking(tell, self._bird, routes=routes)
        except TortieError:
            return None

    async def _write(self, name: str, told: Told | None) -> None:
        """Raises Conflict when others are faster each time, Unavailable."""
        for left in reversed(range(TRIES)):
            try:
                stored = await self._store.get(CalicoNodeStatus, name)
                if stored.spec.node != self._node:
                    return
                families = tuple(self._families())
                status = await asking(status_of, stored.spec, told, families, stored.status, datetime.now(UTC))
                if status != stored.status:
                    await self._store.update(replace(stored, status=status))
                return
            except NotFound:
                return
            except Conflict:
                if not left:
                    raise
