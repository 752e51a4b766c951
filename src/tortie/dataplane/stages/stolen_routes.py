"""Routes of others where BIRD's belong: another daemon, or a person, has replaced one at its destination and metric.

The kernel has room for one route there, and BIRD leaves to others what is not its own, though it has a better one.

Ours: in the main table the unicast routes to destinations inside the pools that BIRD programs, with the metric of the
best route there that BIRD has over BGP, but for those of the kernel's own, BIRD's, the agent's and pods'.
Order: behind BIRD, which writes its route when it looks at the kernel the next time, and is told to look at once. What
changes is heard from the kernel; BIRD is only asked while others have routes in its pools.
Source: `show route`; Calico's rule that local preference and metric add up to 2147483647.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from tortie.base.addr import Net, within
from tortie.base.errors import Unavailable
from tortie.base.plan import Plan, diff
from tortie.bgp.birdc import Route as BirdRoute
from tortie.bgp.birdc import parse_routes
from tortie.bgp.filters import TOP
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work
from tortie.kernel import events
from tortie.kernel.bird import Bird
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.codec import Message
from tortie.kernel.netlink.tables import (
    AF_INET,
    AF_INET6,
    RT_TABLE_MAIN,
    RTPROT_AGENT,
    RTPROT_BIRD,
    RTPROT_BOOT,
    RTPROT_KERNEL,
    RTPROT_POD_NETWORKS,
)
from tortie.kernel.routes import Route, apply_many, list_routes

log = logging.getLogger(__name__)

NOT_FOREIGN = frozenset({RTPROT_KERNEL, RTPROT_BIRD, RTPROT_AGENT, RTPROT_POD_NETWORKS})
_IPV6_METRIC = 1024
"""What the kernel makes of an IPv6 route without a metric."""
_AT_ONCE = 50
"""Destinations in one question: BIRD reads commands of up to 4 KiB."""
QUIET = 60.0
"""Seconds for which the same theft is not told again: who writes such a route may do so for ever."""
ESRCH = 3

Place = tuple[Net, int]
"""Destination and metric: the kernel has one route at each."""


@dataclass(frozen=True, slots=True)
class Realm:
    """The networks whose routes BIRD writes, and those inside them that it does not."""

    inside: tuple[Net, ...] = ()
    without: tuple[Net, ...] = ()

    def has(self, dst: Net) -> bool:
        return any(within(dst, net) for net in self.inside) and not any(within(dst, net) for net in self.without)


@dataclass(frozen=True, slots=True)
class Theft:
    """Another's route, and BIRD's that belongs there."""

    route: Route
    own: BirdRoute

    def __str__(self) -> str:
        ways = " ".join(f"via {hop.via} dev {hop.dev}" if hop.via else f"dev {hop.dev}" for hop in self.own.hops)
        return f"{self.route} is in the place of BIRD's {self.route.dst} {ways} ({self.own.protocol})"


def realm(state: DesiredState) -> Realm:
    """As bird.conf has it: of the IP versions that the node has an address of. Without BGP it has nothing."""
    routing = state.routing
    if routing is None:
        return Realm()
    versions = {ip.version for ip in (routing.ipv4, routing.ipv6) if ip is not None}
    pools = [pool for pool in state.pools if pool.net.version in versions and not pool.load_balancer_only]
    services = routing.services
    return Realm(
        tuple(pool.net for pool in pools if state.programming.by_bird(pool)),
        (*(pool.net for pool in pools if not state.programming.by_bird(pool)), *services.nets, *services.kept_out),
    )


def place(route: Route) -> Place:
    return route.dst, route.metric or (_IPV6_METRIC if route.dst.version == 6 else 0)


def is_foreign(route: Route) -> bool:
    """Whether it leads somewhere from the main table, and is none of ours. Pods' are straight out of a link."""
    if route.table != RT_TABLE_MAIN or route.type != "unicast" or route.protocol in NOT_FOREIGN:
        return False
    host = route.dst.prefixlen == route.dst.max_prefixlen
    return not (host and route.protocol == RTPROT_BOOT and route.via is None and not route.nexthops)


def stolen(foreign: Mapping[Place, Route], best: Iterable[BirdRoute]) -> dict[Place, Theft]:
    """Those that are to go. `best` are BIRD's best routes to their destinations, over BGP or not."""
    found: dict[Place, Theft] = {}
    for own in best:
        preference = own.attributes.get("BGP.local_pref")
        if preference is None or own.kind != "unicast":
            continue
        at = own.prefix, TOP - int(preference)
        if at in foreign:
            found[at] = Theft(foreign[at], own)
    return found


class StolenRoutes:
    name = "stolen routes"
    guard = False

    def __init__(self, bird: Bird) -> None:
        self._bird = bird
        self._monitor: events.Monitor | None = None
        self._realm = Realm()
        self._foreign: dict[Place, Route] | None = None
        """Those in the realm, as far as announcements tell; None when they have to be listed. One that BIRD or the
        agent has replaced may still be there."""
        self._told: dict[str, float] = {}
        """When a theft was told last, in seconds of the monotonic clock."""

    def plan(self, state: DesiredState) -> Plan[Place, Theft]:
        own = realm(state)
        if own != self._realm:
            self._realm, self._foreign = own, None
        self._listen()
        if self._foreign is None:
            self._foreign = self._list()
        found = stolen(self._foreign, self._best({dst for dst, _ in self._foreign}))
        if found:  # BIRD or the agent may have replaced one, which was passed over when it was announced
            self._foreign = self._list()
            found = {at: theft for at, theft in found.items() if self._foreign.get(at) == theft.route}
        return diff({}, found, lambda verb, at, theft: f"ip route del {theft.route}")

    def make(self, work: Work) -> None:
        """Nothing: BIRD writes its routes itself."""

    def unmake(self, work: Work) -> None:
        assert isinstance(work, Plan)
        thefts: list[Theft] = [op.have for op in work if op.have is not None]
        with Netlink(self._bird.netns_path) as nl:
            refused = apply_many(nl, [("delete", theft.route) for theft in thefts])
        kept = {index for index, _ in refused}
        for theft in (theft for index, theft in enumerate(thefts) if index not in kept):
            self._tell(f"{theft}: it is deleted, and BIRD writes its own again")
        for version in sorted({theft.route.dst.version for theft in thefts}):
            with suppress(Unavailable):  # it looks at the kernel for that; else within 2 s
                self._bird.ask(f"reload in kernel{version}")
        serious = [error for _, error in refused if error.errno != ESRCH]
        if serious:
            raise serious[0]

    def forget(self) -> None:
        """Nothing: what the kernel announces is all there is, and what it lost it says."""

    def _listen(self) -> None:
        """Take in what the kernel has announced."""
        if self._monitor is None:
            groups = (events.Group.IPV4_ROUTE, events.Group.IPV6_ROUTE)
            self._monitor = events.Monitor(self._bird.netns_path, groups, matters=_is_of_others)
        for event in self._monitor.all_waiting():
            if not isinstance(event, events.RouteEvent):
                self._foreign = None
            elif self._foreign is not None and self._matters(event.route):
                if not event.gone:
                    self._foreign[place(event.route)] = event.route
                else:
                    self._foreign.pop(place(event.route), None)

    def _list(self) -> dict[Place, Route]:
        with Netlink(self._bird.netns_path) as nl:
            families = (
                list_routes(nl, family, table=RT_TABLE_MAIN, without=RTPROT_KERNEL) for family in (AF_INET, AF_INET6)
            )
            return {place(route): route for routes in families for route in routes if self._matters(route)}

    def _matters(self, route: Route) -> bool:
        return is_foreign(route) and self._realm.has(route.dst)

    def _best(self, destinations: Iterable[Net]) -> Iterator[BirdRoute]:
        """BIRD's best routes there; none while it is away or busy."""
        by_version: dict[int, list[Net]] = {4: [], 6: []}
        for dst in destinations:
            by_version[dst.version].append(dst)
        for version, every in by_version.items():
            for first in range(0, len(every), _AT_ONCE):
                among = ", ".join(map(str, every[first : first + _AT_ONCE]))
                question = f"show route table master{version} all where net ~ [ {among} ]"
                try:
                    found = parse_routes(self._bird.ask(question))
                except Unavailable:
                    return
                yield from (route for route in found if route.best)

    def _tell(self, text: str) -> None:
        now = time.monotonic()
        self._told = {one: when for one, when in self._told.items() if now - when < QUIET}
        if text not in self._told:
            self._told[text] = now
            log.warning("%s", text)


def _is_of_others(message: Message) -> bool:
    return events.protocol_of(message) not in (None, *NOT_FOREIGN)
