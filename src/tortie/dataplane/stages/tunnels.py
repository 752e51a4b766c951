"""The tunnels' devices: VXLAN of IPv4 and IPv6, and IPIP.

Ours: the links `vxlan.calico` and `vxlan-v6.calico`, and a `tunl0` with our alias; with them their addresses of the
tunnel's family, their MTU and their reverse-path filter.
Order: before what is said of the far ends, and before routes. A device that no pool wants any more stays for a while,
and as long as one of our routes leads into it: others may still send to it.
Source: Calico's Felix. The reverse-path filter is loose there: while a pool is being changed, packets come by one way
and go by another.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

from tortie.base.addr import IP
from tortie.base.errors import Exists, NotFound, TortieError
from tortie.base.plan import Op, Plan, Verb
from tortie.calc.mtu import IPIP, VXLAN
from tortie.calc.state import DesiredState, TunnelDevice
from tortie.dataplane.link_steps import (
    LOOSE,
    Base,
    Key,
    LinkStage,
    LinkWork,
    Steps,
    Value,
    change,
    is_unknown,
    plan,
    setting,
    vxlan_base,
)
from tortie.kernel import links
from tortie.kernel.addresses import delete_address
from tortie.kernel.links import Link
from tortie.kernel.live import LiveRoutes
from tortie.kernel.live_links import LiveLinks
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import RTPROT_AGENT

IPV6_NAME = "vxlan-v6.calico"
NAMES = ("vxlan.calico", IPV6_NAME, "tunl0")
ALIAS = "tortie"
"""Of a `tunl0` that is ours. Where the kernel has IPIP there is one that cannot be deleted."""
LINGER = 30.0
"""Seconds that a device stays after the last pool that wants it: longer than a node needs to hear of that."""
OVERHEAD = {("vxlan", 4): VXLAN[4].overhead, ("vxlan", 6): VXLAN[6].overhead, ("ipip", 4): IPIP.overhead}
"""Bytes that a tunnel adds to each packet, by kind and IP version outside."""


def want_of(device: TunnelDevice, parent: Link, below: int) -> dict[Key, Value]:
    """The device, thing by thing, in the order in which it is made. `below` is the MTU of what it goes out of."""
    name, version = device.name, device.local.version
    wanted: dict[Key, Value] = {}
    if device.kind == "vxlan":
        index = 0 if parent.name == "lo" else parent.index
        wanted[name, "link"] = Base("vxlan", device.vni, device.port, str(device.local), index)
        wanted[name, "mac"] = device.mac
    else:
        wanted[name, "link"] = Base(device.kind)
        wanted[name, "alias"] = ALIAS
    wanted[name, "mtu"] = device.mtu or below - OVERHEAD[device.kind, version]
    if version == 4:
        wanted[name, "rp_filter"] = LOOSE
    if device.address is not None:
        wanted[name, _whole(device.address)] = "address"
    wanted[name, "up"] = 1
    return wanted


def have_of(link: Link, addresses: Iterable[str], rp_filter: int | None) -> dict[Key, Value]:
    """The same of a device that is there."""
    name = link.name
    there: dict[Key, Value] = {}
    if link.kind == "vxlan":
        there[name, "link"] = vxlan_base(link)
        there[name, "mac"] = link.mac
    else:
        there[name, "link"] = Base(link.kind)
        if link.alias:
            there[name, "alias"] = link.alias
    there[name, "mtu"] = link.mtu
    if rp_filter is not None:
        there[name, "rp_filter"] = rp_filter
    there |= {(name, address): "address" for address in addresses}
    if link.up:
        there[name, "up"] = 1
    return there


class Tunnels(LinkStage):
    name = "tunnels"

    def __init__(
        self, live: LiveLinks, routes: LiveRoutes, netns: str | None = None, *, linger: float = LINGER
    ) -> None:
        super().__init__(live, netns)
        self._routes = routes
        self._linger = linger
        self._unwanted: dict[str, float] = {}
        """Since when nobody wants a device that is there."""
        self._pools: Mapping[str, str] = {}
        """Names of the pools that want each kind of tunnel."""
        self._settled: tuple[object, ...] = ()
        self.there: frozenset[str] = frozenset()
        """Devices that are up, for other threads to read."""
        self.lacking: frozenset[str] = frozenset()
        """Those of a kind that the kernel does not have, for them too."""

    def plan(self, state: DesiredState) -> LinkWork:
        self._live.refresh()
        stamp = (state.overlay.devices, self._live.changes)
        if self._settled == stamp and not self._unwanted:
            return LinkWork(Plan())
        problems: list[TortieError] = []
        want: dict[Key, Value] = {}
        for device in state.overlay.devices:
            try:
                want |= self._want(device)
            except TortieError as problem:
                problems.append(problem)
        wanted = {device.name for device in state.overlay.devices}
        have = self.observe(wanted)
        blocked = wanted - {name for name, _ in want}  # stays as it is until the way is clear
        steps = plan(want, {key: value for key, value in have.items() if key[0] not in blocked})
        self.there = self._up()
        self._pools = _asking(state)
        self._settled = () if steps or problems else stamp
        return LinkWork(steps, tuple(problems))

    def _up(self) -> frozenset[str]:
        return frozenset(link.name for link in self._live.links.values() if link.up and link.name in NAMES)

    def _want(self, device: TunnelDevice) -> dict[Key, Value]:
        """Raises NotFound, NotSupported."""
        self._not_missing(device.kind)
        parent = self._live.having(str(device.local))
        if parent is None:
            text = f"{device.name}: no link has this node's address {device.local}: give it to one, or correct the Node"
            raise NotFound(text)
        others = [one.mtu for one in self._live.links.values() if one.up and one.name not in (*NAMES, "lo")]
        below = min(others, default=1500) if parent.name == "lo" else parent.mtu
        return want_of(device, parent, below)

    def observe(self, wanted: Iterable[str]) -> dict[Key, Value]:
        """Those that are wanted, and those that have been unwanted for long enough."""
        found: dict[Key, Value] = {}
        wanted, now = set(wanted), time.monotonic()
        for name in NAMES:
            link = self._live.named(name)
            if link is None or (name not in wanted and link.kind == "ipip" and link.alias != ALIAS):
                self._unwanted.pop(name, None)
            elif name in wanted:
                self._unwanted.pop(name, None)
                found |= have_of(link, self._addresses(link), self._filter(name))
            elif now - self._unwanted.setdefault(name, now) >= self._linger and not self._leads_into(link):
                found |= have_of(link, (), None)
        return found

    def _leads_into(self, link: Link) -> bool:
        self._routes.refresh()
        return any(route.protocol == RTPROT_AGENT for route in self._routes.out_of(link.index))

    def _addresses(self, link: Link) -> list[str]:
        """Those of the tunnel's family; without what IPv6 gives each link by itself."""
        every = (one for one in self._live.addresses(link.index) if one.scope != "link")
        return [one.ip for one in every if (":" in one.ip) == (link.name == IPV6_NAME)]

    def _filter(self, name: str) -> int | None:
        """None for IPv6, which has no such filter."""
        return None if name == IPV6_NAME else setting(name, "rp_filter", self._netns)

    def _look(self) -> None:
        super()._look()
        self.there = self._up()
        self.lacking = self.lacking - self.there

    def forget(self) -> None:
        super().forget()
        self._settled = ()

    def _apply(self, nl: Netlink, op: Op[Key, Value], steps: Steps) -> None:
        if isinstance(op.want, Base):
            self._make_link(nl, op.key[0], op.want, anew=op.verb is Verb.CHANGE)
        else:
            change(nl, op, self._netns)

    def _make_link(self, nl: Netlink, name: str, base: Base, *, anew: bool) -> None:
        if anew:
            links.delete_link(nl, name)
        if base.kind == "vxlan":
            links.create_vxlan(nl, name, base.vni, base.local, base.port, base.parent)
            return
        with suppress(Exists):  # the kernel makes it by itself when it loads the module
            links.create_link(nl, name, base.kind)

    def _undo(self, nl: Netlink, op: Op[Key, Value]) -> None:
        if isinstance(op.have, Base) and op.have.kind == "ipip":
            self._retire(nl, op.key[0])
        super()._undo(nl, op)

    def _retire(self, nl: Netlink, name: str) -> None:
        """Leave a device behind as the kernel makes it, should it refuse to delete it."""
        link = links.get_link(nl, name)
        for address in self._addresses(link):
            delete_address(nl, link.index, address)
        links.set_alias(nl, name, "")  # before it is down: then the kernel says nothing of it
        links.set_down(nl, name)

    def _explained(self, op: Op[Key, Value], problem: TortieError) -> TortieError:
        """A kind of link that the kernel does not know is a matter for a person."""
        if not (isinstance(op.want, Base) and is_unknown(problem)):
            return problem
        kind = op.want.kind
        whose = f"which {self._pools[kind]} asks for" if kind in self._pools else "which FelixConfiguration asks for"
        other = ", or give the pool a vxlanMode instead of its ipipMode" if kind == "ipip" else ""
        self.lacking = self.lacking | {op.key[0]}
        return self._lacking(kind, f"{op.key[0]}: this kernel has no {kind.upper()}, {whose}: modprobe {kind}{other}")


def _asking(state: DesiredState) -> dict[str, str]:
    """The pools that want each kind of tunnel."""
    found: dict[str, list[str]] = {}
    for pool in state.pools:
        if pool.tunnel:
            found.setdefault(pool.tunnel.lower(), []).append(pool.name)
    return {kind: f"IPPool {', '.join(names)}" for kind, names in found.items()}


def _whole(ip: IP) -> str:
    return f"{ip}/{ip.max_prefixlen}"
