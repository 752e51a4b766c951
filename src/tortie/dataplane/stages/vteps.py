"""The far ends of VXLAN tunnels: for each node a permanent neighbour, tunnel address to MAC address, and a forwarding
entry, MAC address to the node's own address. Nothing is learnt, and nothing is flooded.

Ours: the permanent neighbours and all forwarding entries of our VXLAN devices.
Order: behind the devices, before the routes that lead there. A far end that a route still needs stays until that has
gone.
Source: Calico's Felix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tortie.calc.state import DesiredState, Vtep
from tortie.dataplane.neighbour_steps import FarEndStage
from tortie.kernel.live import LiveRoutes
from tortie.kernel.live_links import LiveLinks
from tortie.kernel.live_neighbours import Entry, Key
from tortie.kernel.neighbours import Forwarding, Neighbour


class Vteps(FarEndStage[DesiredState]):
    def __init__(self, links: LiveLinks, routes: LiveRoutes, netns: str | None = None) -> None:
        super().__init__(links, netns)
        self._routes = routes

    def devices(self, state: DesiredState) -> Iterable[str]:
        return [device.name for device in state.overlay.devices if device.kind == "vxlan"]

    def far_ends(self, state: DesiredState) -> Iterable[Vtep]:
        return state.overlay.vteps

    def source(self, state: DesiredState) -> object:
        return state.overlay

    def is_ours(self, entry: Entry) -> bool:
        """What the kernel itself knows of neighbours is not permanent."""
        return isinstance(entry, Forwarding) or entry.state == "permanent"

    def needed(self, state: DesiredState, have: Mapping[Key, Entry]) -> set[Key]:
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
