"""The far ends of VXLAN tunnels: for each node a permanent neighbour, tunnel address to MAC address, and a forwarding
entry, MAC address to the node's own address. Nothing is learnt, and nothing is flooded.

Ours: the permanent neighbours and all forwarding entries of our VXLAN devices.
Order: behind the devices, before the routes that lead there. A far end that a route still needs stays until that has
gone.
Source: Calico's Felix.
"""

from __future__ import annotations

from collections.abc import Mapping

from tortie.base.plan import Plan
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work
from tortie.dataplane.neighbour_steps import carry_out, plan
from tortie.kernel.live import LiveRoutes
from tortie.kernel.live_links import LiveLinks
from tortie.kernel.live_neighbours import Entry, Key, LiveNeighbours, key
from tortie.kernel.neighbours import Forwarding, Neighbour


class Vteps:
    name = "far ends of tunnels"
    guard = False

    def __init__(self, links: LiveLinks, routes: LiveRoutes, netns: str | None = None) -> None:
        self._links = links
        self._routes = routes
        self._live = LiveNeighbours(netns)
        self._netns = netns
        self._settled: tuple[object, ...] = ()

    def select(self, state: DesiredState, index: Mapping[str, int]) -> dict[Key, Entry]:
        """What should be on the devices that are there."""
        want: dict[Key, Entry] = {}
        for vtep in state.overlay.vteps:
            if (dev := index.get(vtep.device)) is not None:
                for entry in (Forwarding(dev, vtep.mac, str(vtep.host)), Neighbour(dev, str(vtep.address), vtep.mac)):
                    want[key(entry)] = entry
        return want

    def observe(self, index: Mapping[str, int]) -> dict[Key, Entry]:
        every = (entry for dev in index.values() for entry in self._live.of(dev).items())
        # What the kernel itself knows of neighbours is not permanent.
        return {where: one for where, one in every if isinstance(one, Forwarding) or one.state == "permanent"}

    def plan(self, state: DesiredState) -> Plan[Key, Entry]:
        self._links.refresh()
        names = [device.name for device in state.overlay.devices if device.kind == "vxlan"]
        found = {name: link.index for name in names if (link := self._links.named(name)) is not None}
        if not found:
            self._live.close()  # neighbours change all the time
            return Plan()
        self._live.refresh(set(found.values()))
        stamp = (state.overlay, tuple(found.items()), self._live.changes)
        if self._settled == stamp:
            return Plan()
        want, have = self.select(state, found), self.observe(found)
        needed = self._needed(state, have)
        steps = plan(want, {where: entry for where, entry in have.items() if where in want or where not in needed})
        self._settled = () if steps or needed else stamp
        return steps

    def _needed(self, state: DesiredState, have: Mapping[Key, Entry]) -> set[Key]:
        """What routes need that wait for others to take their place."""
        if not state.overlay.awaited:
            return set()
        self._routes.refresh()
        needed: set[Key] = set()
        for dev in {where[0] for where in have}:
            ways = {str(route.via) for route in self._routes.out_of(dev) if route.dst in state.overlay.awaited}
            macs = set()
            for where, entry in have.items():
                if isinstance(entry, Neighbour) and entry.dev == dev and entry.ip in ways:
                    needed.add(where)
                    macs.add(entry.mac)
            needed |= {where for where in have if where[0] == dev and where[1] in macs}
        return needed

    def make(self, work: Work) -> None:
        assert isinstance(work, Plan)
        carry_out((op for op in work if op.makes), self._netns)

    def unmake(self, work: Work) -> None:
        assert isinstance(work, Plan)
        carry_out((op for op in work if not op.makes), self._netns)

    def forget(self) -> None:
        self._live.forget()
        self._settled = ()
