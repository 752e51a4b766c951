"""The far ends of VXLAN tunnels: for each node a permanent neighbour, its subnet's first address to a MAC address, and
a forwarding entry, that MAC address to the node's public address.

Ours: of our VXLAN devices the permanent neighbours, and all forwarding entries but those that a device has learnt.
Order: behind the devices, before the routes that lead there; they go when the routes have gone.
Source: flannel's vxlan backend.
"""

from __future__ import annotations

from collections.abc import Iterable

from tortie.dataplane.neighbour_steps import FarEndStage
from tortie.flannel.state import FarEnd, FlannelState, Vxlan
from tortie.kernel.live_links import LiveLinks
from tortie.kernel.live_neighbours import Entry
from tortie.kernel.neighbours import Forwarding

LEARNT = ("reachable", "stale")
"""States of forwarding entries that age: `bridge fdb` has several words for those that do not."""


class FarEnds(FarEndStage[FlannelState]):
    def __init__(self, netns: str | None = None) -> None:
        super().__init__(LiveLinks(netns), netns)

    def devices(self, state: FlannelState) -> Iterable[str]:
        return [device.name for device in state.devices if isinstance(device.kind, Vxlan)]

    def far_ends(self, state: FlannelState) -> Iterable[FarEnd]:
        return state.far_ends

    def source(self, state: FlannelState) -> object:
        return state.far_ends

    def is_ours(self, entry: Entry) -> bool:
        """The kernel itself keeps neighbours, too, such as those of multicast groups."""
        return entry.state not in LEARNT if isinstance(entry, Forwarding) else entry.state == "permanent"

    def forget(self) -> None:
        self._links.forget()
        super().forget()
