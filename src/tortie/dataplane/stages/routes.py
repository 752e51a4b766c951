"""Routes to this node's pods, and blackholes for its blocks where no BIRD programs them.

Ours: every unicast route out of a pod's interface (`cali*`) that the kernel did not make itself, and every blackhole of
protocol 80.
Order: after policy. An interface that is not there yet gets its route when it appears.
Source: Calico's Felix: `<ip>/32 dev cali… scope link`, protocol boot (3) and metric 1024: BIRD aggregates routes of
that metric into their block; one with a lower metric would be advertised on its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from tortie.base.addr import IP, Net, host_net
from tortie.base.plan import Op, Plan, Verb, diff
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work
from tortie.kernel import links
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import AF_INET, AF_INET6
from tortie.kernel.routes import Route, apply_many, list_routes
from tortie.model.workload import INTERFACE_PREFIX

DEVICE_PROTOCOL = 3
"""`boot`: FelixConfiguration deviceRouteProtocol's default."""
BLACKHOLE_PROTOCOL = 80
KERNEL_PROTOCOL = 2
MAIN = 254
ESRCH, ENODEV, ENETDOWN = 3, 19, 100

Place = tuple[Net, int, int]
"""Destination, metric, and the index of the interface (0 for a blackhole): there is one route at each place."""


def plan(want: Mapping[Place, Route], have: Mapping[Place, Route], names: Mapping[int, str]) -> Plan[Place, Route]:
    """The steps from what is to what should be. `names` are those of the interfaces, by index."""
    words = {Verb.ADD: "add", Verb.CHANGE: "replace", Verb.DELETE: "del"}
    return diff(want, have, lambda verb, _, route: f"ip route {words[verb]} {route.words(names)}")


class Routes:
    name = "routes"
    guard = False

    def __init__(self, netns: str | None = None, *, blackholes: bool = False) -> None:
        """`blackholes`: program those of the own blocks, because no BIRD does."""
        self._netns = netns
        self._blackholes = blackholes

    def select(self, state: DesiredState, index: Mapping[str, int]) -> dict[Place, Route]:
        """What of the state is ours to route, out of the interfaces that are there. Of two endpoints with one address
        the first interface has it."""
        want: dict[Net, Route] = {}
        for name in sorted(state.endpoints.keys() & index.keys(), reverse=True):
            endpoint = state.endpoints[name]
            floating = (external for external, _ in endpoint.nats) if state.settings.floating_ips else ()
            for ip in (*endpoint.ips, *floating):
                route = _to_pod(ip, index[name], state.settings.priority[ip.version])
                want[route.dst] = route
        if self._blackholes:
            blocks = (net for net in state.blocks if net.num_addresses > 1)
            want.update((net, Route(net, protocol=BLACKHOLE_PROTOCOL, type="blackhole")) for net in blocks)
        return {_place(route): route for route in want.values()}

    def observe(self, nl: Netlink, names: Mapping[int, str]) -> dict[Place, Route]:
        """What is ours in the kernel. `names` are the pods' interfaces, by index."""
        families = (AF_INET, AF_INET6)
        every = (one for family in families for one in list_routes(nl, family, table=MAIN, without=KERNEL_PROTOCOL))
        return {_place(route): route for route in every if _is_ours(route, names)}

    def plan(self, state: DesiredState) -> Plan[Place, Route]:
        every = links.names(self._netns)
        names = {index: name for index, name in every.items() if name.startswith(INTERFACE_PREFIX)}
        with Netlink(self._netns) as nl:
            have = self.observe(nl, names)
        return plan(self.select(state, {name: index for index, name in names.items()}), have, names)

    def make(self, work: Work) -> None:
        assert isinstance(work, Plan)
        self._apply([op for op in work if op.makes])

    def unmake(self, work: Work) -> None:
        assert isinstance(work, Plan)
        self._apply([op for op in work if not op.makes])

    def forget(self) -> None:
        """Nothing is remembered: every plan starts from the kernel."""

    def _apply(self, ops: list[Op[Place, Route]]) -> None:
        """All steps; the first refusal is raised after the others were tried. An interface that went away is none, nor
        is a route that is gone: a new one takes the place of an old one with its metric at once."""
        if not ops:
            return
        steps = [("replace", op.want) if op.want is not None else ("delete", op.have) for op in ops]
        with Netlink(self._netns) as nl:
            refused = apply_many(nl, [(verb, route) for verb, route in steps if route is not None])
        serious = [error for _, error in refused if error.errno not in (ESRCH, ENODEV, ENETDOWN)]
        if serious:
            raise serious[0]


@lru_cache(maxsize=4096)
def _to_pod(ip: IP, dev: int, metric: int) -> Route:
    return Route(host_net(ip), dev=dev, protocol=DEVICE_PROTOCOL, metric=metric)


def _place(route: Route) -> Place:
    return route.dst, route.metric, route.dev or 0


def _is_ours(route: Route, names: Mapping[int, str]) -> bool:
    if route.type == "blackhole":
        return route.protocol == BLACKHOLE_PROTOCOL
    return route.type == "unicast" and route.dev in names
