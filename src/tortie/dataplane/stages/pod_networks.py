"""Routes to the pods of stand-alone plugins (ipvlan, macvlan, bridge, ptp) on other nodes.

    ip route replace 10.211.59.0/24 via 10.211.55.9 dev eth0 proto 87      ipvlan l3, bridge: through the other node
    ip route replace 10.211.60.0/24 dev eth0 proto 87 scope link           ipvlan l2, macvlan: pods answer themselves

Ours: in the main table every unicast route of protocol 87.
Order: any, behind the links. A packet of an ipvlan l3 pod leaves by the master whatever the table says, so a next hop
has to be on the master's own network: where it is not there is no route, and `problems` says why. A route of somebody
else's to the same destination that wins over ours, or would be in its place, is left alone.
Source: what users of ipvlan l3 have typed on every node: `route add -net ... gw ...`; flannel's host-gw.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface

from tortie.base.addr import IP, Net
from tortie.base.errors import KernelError
from tortie.base.plan import Plan
from tortie.calc.state import DesiredState, PodRoute
from tortie.dataplane.route_steps import RouteStage, plan
from tortie.kernel.live import LiveRoutes
from tortie.kernel.live_links import LiveLinks
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import PROTOCOLS, RTPROT_BIRD, RTPROT_POD_NETWORKS
from tortie.kernel.routes import Route, lookup

log = logging.getLogger(__name__)

METRIC = {4: 0, 6: 1000}
"""By IP version: less than that of BIRD's routes, so that both may be there."""
KERNEL_METRIC = {4: 0, 6: 1024}
"""What the kernel makes of a metric of 0."""

Place = tuple[Net, int]
"""Destination and metric: there is one route at each place."""


@dataclass(frozen=True, slots=True)
class Leg:
    """A link of this machine: its index, whether it is up, and the networks of its addresses."""

    index: int
    up: bool = True
    nets: tuple[Net, ...] = ()


@dataclass(frozen=True, slots=True)
class Ground:
    """What the routes have to go by: links by name; of other nodes' addresses that are on a network of this machine's
    the index of the link; and, by destination, routes of others in the main table."""

    legs: Mapping[str, Leg] = field(default_factory=dict)
    neighbours: Mapping[IP, int] = field(default_factory=dict)
    others: Mapping[Net, Sequence[Route]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Selection:
    """The routes that can be, and why others cannot, by what they would lead to."""

    routes: Mapping[Place, Route]
    problems: Mapping[str, str]


def select(wanted: Iterable[PodRoute], ground: Ground) -> Selection:
    """What is to be in the kernel."""
    routes: dict[Place, Route] = {}
    problems: dict[str, str] = {}
    names = {leg.index: name for name, leg in ground.legs.items()}
    for one in wanted:
        found = _route(one, ground)
        if isinstance(found, Route):
            found = _beside(one, found, ground.others.get(one.dst, ()), names)
        if isinstance(found, Route):
            routes[one.dst, found.metric] = found
        elif found:
            problems[f"route to {one.dst} ({one.network}) of {one.node}"] = found
    return Selection(routes, problems)


def _route(one: PodRoute, ground: Ground) -> Route | str:
    """The route; or why there is none, "" where none is needed."""
    leg = ground.legs.get(one.master) if one.master else None
    if one.master and leg is None:
        return f"there is no link {one.master} here"
    if leg is not None and not leg.up:
        return f"{one.master} is down"
    for name, other in ground.legs.items():
        if one.dst in other.nets:
            return "" if one.direct else f"{one.dst} is this machine's own network, at {name}"
    for way in one.ways:
        dev = ground.neighbours.get(way)
        if dev is not None and (leg is None or leg.index == dev):
            metric = METRIC[one.dst.version]
            return Route(one.dst, None if one.direct else way, dev, protocol=RTPROT_POD_NETWORKS, metric=metric)
    return "" if one.announced else _far(one)


def _far(one: PodRoute) -> str:
    ways = " and ".join(map(str, one.ways))
    where = f"the network of {one.master}" if one.master else "a network of this machine"
    why = f"{ways} {'is' if len(one.ways) == 1 else 'are'} not on {where}"
    if one.direct:
        return f"{why}: pods of l2 networks are reached on their own network only"
    return f'{why}: routers on the way must know the route, which "autoRoutes": "bgp" tells them'


def _beside(one: PodRoute, ours: Route, others: Sequence[Route], names: Mapping[int, str]) -> Route | str:
    """The route, unless another wins over it, or is in its place. One that leads the same way is as good."""
    for other in others:
        metric = other.metric or KERNEL_METRIC[one.dst.version]
        if metric > ours.metric:
            continue
        if (other.via, other.dev) == (ours.via, ours.dev) or (other.protocol == RTPROT_BIRD and one.announced):
            return ""
        said = f"{other.words(names)} proto {PROTOCOLS.get(other.protocol, other.protocol)}"
        return f"somebody else has a route there, which is left alone: {said}"
    return ours


class PodNetworkRoutes(RouteStage):
    name = "routes to pod networks"

    def __init__(self, links: LiveLinks, routes: LiveRoutes, netns: str | None = None) -> None:
        super().__init__(routes, netns)
        self._links = links
        self._settled: tuple[object, ...] = ()
        self.selection = Selection({}, {})
        """What the last pass made of the state, for other threads to read."""

    def observe(self) -> dict[Place, Route]:
        """What is ours in the kernel."""
        return {
            (route.dst, route.metric): route
            for route in self._live.out_of_any(self._links.links)
            if route.protocol == RTPROT_POD_NETWORKS and route.type == "unicast"
        }

    def ground(self, wanted: Sequence[PodRoute]) -> Ground:
        """What there is of this machine that matters to the routes. Raises KernelError."""
        legs = {
            link.name: Leg(link.index, link.up, tuple(self._nets(link.index)))
            for link in self._links.links.values()
            if wanted
        }
        dsts = {one.dst for one in wanted}
        others: dict[Net, list[Route]] = {}
        for route in self._live.out_of_any(self._links.links) if dsts else ():
            if route.dst in dsts and route.protocol != RTPROT_POD_NETWORKS:
                others.setdefault(route.dst, []).append(route)
        return Ground(legs, self._neighbours({way for one in wanted for way in one.ways}), others)

    def plan(self, state: DesiredState) -> Plan[Place, Route]:
        self._links.refresh()
        self._live.refresh()
        wanted = state.pod_networks.routes
        stamp = (state.pod_networks, self._links.changes, self._live.heard(self._links.links))
        if self._settled == stamp:
            return Plan()
        before, self.selection = self.selection, select(wanted, self.ground(wanted))
        for what, why in self.selection.problems.items():
            if before.problems.get(what) != why:
                log.warning("%s is not there: %s", what, why)
        names = {link.index: link.name for link in self._links.links.values()}
        steps = plan(self.selection.routes, self.observe(), names)
        self._settled = () if steps else stamp
        return steps

    def forget(self) -> None:
        super().forget()
        self._links.forget()
        self._settled = ()

    def _nets(self, index: int) -> Iterable[Net]:
        return (ip_interface(address.ip).network for address in self._links.addresses(index))

    def _neighbours(self, ways: Iterable[IP]) -> dict[IP, int]:
        """Of addresses that are reached without a next hop the link's index, as the kernel itself says it."""
        found: dict[IP, int] = {}
        with Netlink(self._netns) as nl:
            for way in ways:
                try:
                    route = lookup(nl, None, way)
                except KernelError:
                    continue  # there is no way at all
                if route.via is None and route.dev is not None and route.type == "unicast":
                    found[way] = route.dev
        return found
