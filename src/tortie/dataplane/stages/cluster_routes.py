"""Routes to other nodes' blocks and addresses that are the agent's to write, and blackholes for this node's own blocks.

Ours: of protocol 80, every unicast route but those out of pods' interfaces, and every blackhole.
Order: behind the tunnels' devices and their far ends. A route whose link is not there, or is down, comes when the link
does. One that has to go because BIRD writes that route now, or because its successor cannot be made yet, stays until
there is another.
Source: Calico's Felix: `<block> via <tunnel address> dev vxlan.calico onlink`, `<block> via <node> dev tunl0 onlink`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import lru_cache

from tortie.base.addr import IP, Net
from tortie.base.plan import Plan
from tortie.calc.state import DesiredState
from tortie.dataplane.route_steps import RouteStage, plan
from tortie.kernel.live import LiveRoutes
from tortie.kernel.live_links import LiveLinks
from tortie.kernel.netlink.tables import RTPROT_AGENT
from tortie.kernel.routes import Route

Place = tuple[Net, int]
"""Destination and metric: there is one route at each place."""


@dataclass(frozen=True, slots=True)
class Ground:
    """The links that routes go out of: tunnels by name, and this node's own address's, by IP version."""

    tunnels: Mapping[str, int]
    parents: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Selection:
    """What can be made now, and the destinations whose route is to come later."""

    routes: Mapping[Place, Route]
    later: Set[Net]


def select(state: DesiredState, ground: Ground) -> Selection:
    """What of the state is ours to write."""
    routes: dict[Place, Route] = {}
    later: set[Net] = set()
    for one in state.overlay.routes:
        if one.blackhole:
            route = _blackhole(one.dst, one.metric)
        else:
            dev = ground.tunnels.get(one.device) if one.device else ground.parents.get(one.dst.version)
            if dev is None:
                later.add(one.dst)
                continue
            route = _way(one.dst, one.via, dev, one.metric)
        routes[route.dst, route.metric] = route
    return Selection(routes, later)


class ClusterRoutes(RouteStage):
    name = "routes to other nodes"

    def __init__(self, links: LiveLinks, routes: LiveRoutes, netns: str | None = None) -> None:
        super().__init__(routes, netns)
        self._links = links
        self._settled: tuple[object, ...] = ()
        self._selected: tuple[object, object, Selection] = (None, None, Selection({}, frozenset()))
        self.held: Set[Net] = frozenset()
        """Destinations whose route of ours waits for another, for other threads to read."""

    def observe(self) -> dict[Place, Route]:
        """What is ours in the kernel."""
        every = self._live.out_of_any(self._links.links)
        return {
            (route.dst, route.metric): route
            for route in every
            if route.protocol == RTPROT_AGENT and route.type in ("unicast", "blackhole")
        }

    def ground(self, state: DesiredState) -> Ground:
        """Only links that are up: the kernel has no routes out of others."""
        tunnels = {device.name for device in state.overlay.devices}
        up = {link.name: link.index for link in self._links.links.values() if link.up}
        parents: dict[int, int] = {}
        for ip in _own(state):
            parent = self._links.having(str(ip))
            if parent is not None and parent.up:
                parents[ip.version] = parent.index
        return Ground({name: index for name, index in up.items() if name in tunnels}, parents)

    def plan(self, state: DesiredState) -> Plan[Place, Route]:
        self._links.refresh()
        self._live.refresh()
        ground = self.ground(state)
        stamp = (state.overlay, ground, self._live.heard(self._links.links))
        if self._settled == stamp:
            return Plan()
        if self._selected[0] is not state.overlay or self._selected[1] != ground:
            self._selected = state.overlay, ground, select(state, ground)
        want, have = self._selected[2], self.observe()
        later = state.overlay.awaited | want.later
        staying = self.held = {dst for dst, _ in have.keys() - want.routes.keys()} & later if later else set()
        if staying:
            self._live.refresh()  # whatever comes from now on, those who wait for it are told of
            staying = self.held = staying - self._led_by_others()
        if staying:
            have = {place: one for place, one in have.items() if place in want.routes or one.dst not in staying}
        steps = plan(want.routes, have, {link.index: link.name for link in self._links.links.values()})
        self._settled = () if steps else stamp
        return steps

    def _led_by_others(self) -> set[Net]:
        """The destinations that somebody else has a route to."""
        every = self._live.out_of_any(self._links.links)
        return {route.dst for route in every if route.protocol != RTPROT_AGENT and route.type == "unicast"}

    def forget(self) -> None:
        super().forget()
        self._settled = ()


def _own(state: DesiredState) -> tuple[IP, ...]:
    """The node's own addresses."""
    routing = state.routing
    return tuple(ip for ip in (routing.ipv4, routing.ipv6) if ip is not None) if routing is not None else ()


@lru_cache(maxsize=1 << 16)
def _way(dst: Net, via: IP | None, dev: int, metric: int) -> Route:
    return Route(dst, via, dev, protocol=RTPROT_AGENT, metric=metric, onlink=via is not None)


@lru_cache(maxsize=1 << 12)
def _blackhole(dst: Net, metric: int) -> Route:
    return Route(dst, protocol=RTPROT_AGENT, type="blackhole", metric=metric)
