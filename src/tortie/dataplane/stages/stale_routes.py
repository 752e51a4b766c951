"""Routes that BIRD has forgotten: of IPv4, what it wrote before a route's metric changed.

BIRD 2 replaces an IPv4 route as if the kernel knew it by its destination alone. The kernel knows it by its metric, too,
and keeps both; the smaller metric wins, though it may lead to where a workload has been. BIRD finds nothing wrong.

Ours: of several unicast routes of BIRD's (protocol 12) to one destination all but the one with the metric that BIRD's
table says; nothing as long as that one is not there.
Order: behind BIRD. What changes is heard from the kernel, so that it costs nothing while no metric changes.
Source: `show route`; Calico's rule that local preference and metric add up to 2147483647.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tortie.base.addr import Net
from tortie.base.errors import Unavailable
from tortie.base.plan import Plan, diff
from tortie.bgp.birdc import parse_routes
from tortie.bgp.filters import TOP
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work
from tortie.kernel import events
from tortie.kernel.bird import Bird
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.codec import Message
from tortie.kernel.netlink.tables import AF_INET, RT_TABLE_MAIN, RTPROT_BIRD
from tortie.kernel.routes import Route, apply_many, list_routes

ESRCH = 3

Place = tuple[Net, int]
"""Destination and metric: the kernel has one of BIRD's routes at each."""


def stale(routes: Iterable[Route], metrics: Mapping[Net, int]) -> dict[Place, Route]:
    """Those that are to go. `metrics` are what BIRD says of destinations with several routes."""
    there = {(route.dst, route.metric): route for route in routes}
    return {
        (dst, metric): route
        for (dst, metric), route in there.items()
        if dst in metrics and metric != metrics[dst] and (dst, metrics[dst]) in there
    }


class StaleRoutes:
    name = "stale routes"
    guard = False

    def __init__(self, bird: Bird) -> None:
        self._bird = bird
        self._monitor: events.Monitor | None = None
        self._metrics: dict[Net, set[int]] = {}
        """Of BIRD's routes, as far as announcements tell."""
        self._suspect = True

    def plan(self, state: DesiredState) -> Plan[Place, Route]:
        self._listen()
        if not self._suspect:
            return Plan()
        with Netlink(self._bird.netns_path) as nl:
            every = list_routes(nl, AF_INET, table=RT_TABLE_MAIN, protocol=RTPROT_BIRD)
        routes = [route for route in every if route.type == "unicast"]
        self._metrics = {}
        for route in routes:
            self._metrics.setdefault(route.dst, set()).add(route.metric)
        several = [dst for dst, metrics in self._metrics.items() if len(metrics) > 1]
        self._suspect = bool(several)  # until they are gone
        found = stale(routes, {dst: metric for dst in several if (metric := self._metric(dst)) is not None})
        return diff({}, found, lambda verb, place, route: f"ip route del {route}")

    def make(self, work: Work) -> None:
        """Nothing: a route is only ever taken away."""

    def unmake(self, work: Work) -> None:
        assert isinstance(work, Plan)
        with Netlink(self._bird.netns_path) as nl:
            refused = apply_many(nl, [("delete", op.have) for op in work if op.have is not None])
        serious = [error for _, error in refused if error.errno != ESRCH]
        if serious:
            raise serious[0]

    def forget(self) -> None:
        """Nothing: what the kernel announces is all there is, and what it lost it says."""

    def _listen(self) -> None:
        """Take in what the kernel has announced."""
        if self._monitor is None:
            groups = (events.Group.IPV4_ROUTE,)
            self._monitor = events.Monitor(self._bird.netns_path, groups, matters=_is_of_bird)
        for event in self._monitor.all_waiting():
            if isinstance(event, events.RouteEvent):
                self._take_in(event.route, event.gone)
            else:
                self._suspect = True

    def _take_in(self, route: Route, gone: bool) -> None:
        if route.table != RT_TABLE_MAIN or route.type != "unicast":
            return
        metrics = self._metrics.setdefault(route.dst, set())
        if not gone:
            metrics.add(route.metric)
            self._suspect |= len(metrics) > 1
            return
        metrics.discard(route.metric)
        if not metrics:
            del self._metrics[route.dst]

    def _metric(self, dst: Net) -> int | None:
        """What BIRD's table says; None while it has no such route, is away or busy."""
        try:
            found = parse_routes(self._bird.ask(f"show route {dst} all"))
        except Unavailable:
            return None
        best = next((one for one in found if one.best and one.prefix == dst), None)
        preference = best.attributes.get("BGP.local_pref") if best is not None else None
        return TOP - int(preference) if preference is not None else None


def _is_of_bird(message: Message) -> bool:
    return events.protocol_of(message) == RTPROT_BIRD
