"""Routes to this node's pods, and blackholes for its blocks where no BIRD programs them.

Ours: every unicast route out of a pod's interface (`cali*`) that the kernel did not make itself, and every blackhole of
protocol 80.
Order: after policy. An interface that is not there yet gets its route when it appears.
Source: Calico's Felix: `<ip>/32 dev cali… scope link`, protocol boot (3) and metric 1024: BIRD aggregates routes of
that metric into their block; one with a lower metric would be advertised on its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tortie.base.addr import Net, host_net
from tortie.base.errors import KernelError
from tortie.base.plan import Op, Plan, Verb, diff
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work
from tortie.kernel import links, routes
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import AF_INET, AF_INET6
from tortie.model.workload import INTERFACE_PREFIX

DEVICE_PROTOCOL = 3
"""`boot`: FelixConfiguration deviceRouteProtocol's default."""
BLACKHOLE_PROTOCOL = 80
KERNEL_PROTOCOL = 2
MAIN = 254
ESRCH, ENODEV, ENETDOWN = 3, 19, 100


@dataclass(frozen=True, slots=True)
class Hop:
    """Where a prefix goes: out of an interface, or (None) nowhere."""

    dev: str | None
    protocol: int
    metric: int


def text(verb: Verb, dst: Net, hop: Hop) -> str:
    """The step as `ip` would be told."""
    word = {Verb.ADD: "add", Verb.CHANGE: "replace", Verb.DELETE: "del"}[verb]
    way = f"{dst} dev {hop.dev} scope link" if hop.dev else f"blackhole {dst}"
    return f"ip route {word} {way} proto {hop.protocol}" + (f" metric {hop.metric}" if hop.metric else "")


def plan(want: Mapping[Net, Hop], have: Mapping[Net, Hop]) -> Plan[Net, Hop]:
    """The steps from what is to what should be."""
    return diff(want, have, text)


class Routes:
    name = "routes"
    guard = False

    def __init__(self, netns: str | None = None, *, blackholes: bool = False) -> None:
        """`blackholes`: program those of the own blocks, because no BIRD does."""
        self._netns = netns
        self._blackholes = blackholes
        self._index: dict[str, int] = {}

    def select(self, state: DesiredState) -> dict[Net, Hop]:
        """What of the state is ours to route. Of two endpoints with one address the first interface has it."""
        want: dict[Net, Hop] = {}
        for name in sorted(state.endpoints, reverse=True):
            if name in self._index:
                for ip in state.endpoints[name].ips:
                    want[host_net(ip)] = Hop(name, DEVICE_PROTOCOL, state.settings.priority[ip.version])
        if self._blackholes:
            blocks = (net for net in state.blocks if net.num_addresses > 1)
            want.update((net, Hop(None, BLACKHOLE_PROTOCOL, 0)) for net in blocks)
        return want

    def observe(self, nl: Netlink) -> dict[Net, Hop]:
        """What is ours in the kernel; also learns the interfaces that are there."""
        every = {link.index: link.name for link in links.list_links(nl) if link.name.startswith(INTERFACE_PREFIX)}
        self._index = {name: index for index, name in every.items()}
        have: dict[Net, Hop] = {}
        for family in (AF_INET, AF_INET6):
            for route in routes.list_routes(nl, family, table=MAIN):
                if route.dev in every and route.type == "unicast" and route.protocol != KERNEL_PROTOCOL:
                    have[route.dst] = Hop(every[route.dev], route.protocol, _metric(route))
                elif route.type == "blackhole" and route.protocol == BLACKHOLE_PROTOCOL:
                    have[route.dst] = Hop(None, route.protocol, route.metric)
        return have

    def plan(self, state: DesiredState) -> Plan[Net, Hop]:
        with Netlink(self._netns) as nl:
            have = self.observe(nl)
        return plan(self.select(state), have)

    def make(self, work: Work) -> None:
        assert isinstance(work, Plan)
        self._apply([op for op in work if op.makes])

    def unmake(self, work: Work) -> None:
        assert isinstance(work, Plan)
        self._apply([op for op in work if not op.makes])

    def forget(self) -> None:
        """Nothing is remembered: every plan starts from the kernel."""

    def _apply(self, ops: list[Op[Net, Hop]]) -> None:
        """All steps; the first refusal is raised after the others were tried. An interface that went away is none."""
        steps: list[tuple[str, routes.Route]] = []
        for op in ops:
            if op.verb is Verb.DELETE and op.have is not None:
                steps.append(("delete", self._route(op.key, op.have)))
            elif op.want is not None:
                if op.have is not None and op.have.metric != op.want.metric:
                    steps.append(("delete", self._route(op.key, op.have)))
                steps.append(("replace", self._route(op.key, op.want)))
        with Netlink(self._netns) as nl:
            refused = routes.apply_many(nl, steps)
        serious = [error for _, error in refused if error.errno not in (ESRCH, ENODEV, ENETDOWN)]
        if serious:
            raise serious[0]

    def _route(self, dst: Net, hop: Hop) -> routes.Route:
        if hop.dev is None:
            return routes.Route(dst, protocol=hop.protocol, metric=hop.metric, type="blackhole")
        index = self._index.get(hop.dev)
        if index is None:
            raise KernelError(ENODEV, f"ip route replace {dst} dev {hop.dev}")
        return routes.Route(dst, dev=index, protocol=hop.protocol, scope="link", metric=hop.metric)


def _metric(route: routes.Route) -> int:
    """IPv6 has no metric 0: what was written without one is 1024 there, which our reader shows as 0."""
    return route.metric or (1024 if route.dst.version == 6 and route.type == "unicast" else 0)
