"""Routes to this node's pods.

Ours: every unicast route out of a pod's interface (`cali*`) that the kernel did not make itself.
Order: after policy. An interface that is not there yet gets its route when it appears.
Source: Calico's Felix: `<ip>/32 dev cali… scope link`, protocol boot (3) and metric 1024: BIRD aggregates routes of
that metric into their block; one with a lower metric would be advertised on its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import chain

from tortie.base.addr import IP, Net, host_net
from tortie.base.plan import Plan
from tortie.calc.state import DesiredState
from tortie.dataplane.route_steps import RouteStage, plan
from tortie.kernel.live import LiveRoutes
from tortie.kernel.netlink.tables import RTPROT_BOOT
from tortie.kernel.routes import Route
from tortie.model.workload import INTERFACE_PREFIX

Place = tuple[Net, int, int]
"""Destination, metric, and the index of the interface: there is one route at each place."""


class Routes(RouteStage):
    name = "routes"

    def __init__(self, netns: str | None = None) -> None:
        super().__init__(LiveRoutes(netns), netns)

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
        return {_place(route): route for route in want.values()}

    def observe(self, names: Mapping[int, str]) -> dict[Place, Route]:
        """What is ours in the kernel. `names` are the pods' interfaces, by index."""
        every = chain.from_iterable(map(self._live.out_of, names))
        return {_place(route): route for route in every if route.type == "unicast"}

    def plan(self, state: DesiredState) -> Plan[Place, Route]:
        self._live.refresh()
        names = {index: name for index, name in self._live.names.items() if name.startswith(INTERFACE_PREFIX)}
        want = self.select(state, {name: index for index, name in names.items()})
        return plan(want, self.observe(names), names, add="add")


@lru_cache(maxsize=4096)
def _to_pod(ip: IP, dev: int, metric: int) -> Route:
    return Route(host_net(ip), dev=dev, protocol=RTPROT_BOOT, metric=metric)


def _place(route: Route) -> Place:
    return route.dst, route.metric, route.dev or 0
