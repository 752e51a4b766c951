"""Routes to other nodes' subnets, and blackholes for this node's own.

Ours: inside the networks every unicast route and blackhole of protocol 70; every route out of our own devices, which a
flanneld before this daemon may have made; and at a place where a route of ours belongs, whatever is there.
Order: behind the devices and their far ends. A route whose link is not there, or is down, comes when the link does.
Source: flannel's backends: `<subnet> via <its first address> dev flannel.1 onlink`, `<subnet> via <node> dev eth0`.

A blackhole has a metric that is worse than that of a bridge's own route to the same subnet: of two with one metric the
older would win, and that might be the blackhole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set

from tortie.base.addr import Net, host_net, within
from tortie.base.plan import Op, Plan, Verb
from tortie.dataplane.route_steps import RouteStage, plan
from tortie.flannel.own import own_links
from tortie.flannel.state import PROTOCOL, FlannelState
from tortie.kernel.live import LiveRoutes
from tortie.kernel.live_links import LiveLinks
from tortie.kernel.netlink.tables import RTPROT_BOOT
from tortie.kernel.routes import Route

BLACKHOLE_METRIC = 2048
IPV6_METRIC = 1024
"""What the kernel makes of an IPv6 route without a metric (IP6_RT_PRIO_USER, linux/ipv6_route.h)."""

Place = tuple[Net, int, int]
"""Destination and metric, where the kernel follows one route; 0, and for what else is there 1, 2, ..."""


def select(state: FlannelState, up: Mapping[str, int]) -> dict[Place, Route]:
    """What can be made now, out of the links that are up (name to index)."""
    want: dict[Place, Route] = {}
    for path in state.paths:
        if (dev := up.get(path.device)) is not None:
            route = Route(
                path.dst, path.via, dev, protocol=PROTOCOL, scope=path.scope, onlink=path.onlink, src=path.src
            )
            want[route.dst, route.metric, 0] = route
    for subnet in state.blackholes:
        route = Route(subnet, protocol=PROTOCOL, type="blackhole", metric=BLACKHOLE_METRIC)
        want[route.dst, route.metric, 0] = route
    return want


def is_ours(route: Route, state: FlannelState, own: Set[int], want: Mapping[Place, Route]) -> bool:
    """`own`: indexes of our devices."""
    if route.dev in own or (route.dst, route.metric, 0) in want:
        return True
    if route.protocol == PROTOCOL:
        return route.type in ("unicast", "blackhole") and any(within(route.dst, net) for net in state.networks)
    if route.protocol != RTPROT_BOOT:
        return False
    if route.type == "blackhole":  # an earlier flanneld's, which would hide the bridge's own route
        return route.dst in state.blackholes
    return 0 < route.metric < IPV6_METRIC and route.dst.version == 6 and (route.dst, 0, 0) in want


def placed(routes: Iterable[Route], want: Mapping[Place, Route]) -> dict[Place, Route]:
    """Each at its place. Of several at one the wanted route is the first; the others have to go."""
    every: dict[tuple[Net, int], list[Route]] = {}
    for route in routes:
        every.setdefault((route.dst, route.metric), []).append(route)
    for (dst, metric), there in every.items():
        there.sort(key=lambda route: route != want.get((dst, metric, 0)))
    return {(*at, number): route for at, there in every.items() for number, route in enumerate(there)}


def accepted(ops: Iterable[Op[Place, Route]]) -> Iterator[Op[Place, Route]]:
    """The same steps, with what the kernel wants to see before it takes a next hop of IPv6 that is said to be on the
    link: as long as another route leads there, through another link, it does not believe it."""
    for op in ops:
        route = op.want
        if route is None or route.via is None or not route.onlink or route.dst.version == 4:
            yield op
            continue
        hop = Route(host_net(route.via), dev=route.dev, protocol=PROTOCOL)
        at = hop.dst, hop.metric, 0
        yield Op(Verb.ADD, at, hop, None, f"ip route replace {hop}")
        yield op
        yield Op(Verb.DELETE, at, None, hop, f"ip route del {hop}")


class Routes(RouteStage):
    name = "routes"

    def __init__(self, netns: str | None = None) -> None:
        super().__init__(LiveRoutes(netns), netns)
        self._links = LiveLinks(netns)
        self._settled: tuple[object, ...] = ()

    def observe(self, state: FlannelState, own: Set[int], want: Mapping[Place, Route]) -> dict[Place, Route]:
        """What is ours in the kernel. `own`: indexes of our devices."""
        every = self._live.out_of_any(self._links.links)
        return placed((route for route in every if is_ours(route, state, own, want)), want)

    def plan(self, state: FlannelState) -> Plan[Place, Route]:
        self._links.refresh()
        self._live.refresh()
        links = self._links.links.values()
        used = {path.device for path in state.paths}
        up = {link.name: link.index for link in links if link.up and link.name in used}
        own = {link.index for link in own_links(state, links).values()}
        stamp = (state.networks, state.paths, state.blackholes, up, own, self._live.heard(self._links.links))
        if self._settled == stamp:
            return Plan()
        want = select(state, up)
        steps = plan(want, self.observe(state, own, want), {link.index: link.name for link in links})
        self._settled = () if steps else stamp
        return steps

    def _carry_out(self, ops: Iterable[Op[Place, Route]]) -> None:
        super()._carry_out(accepted(ops))

    def forget(self) -> None:
        super().forget()
        self._links.forget()
        self._settled = ()
