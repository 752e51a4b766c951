"""The far ends of VXLAN tunnels: for each node a permanent neighbour, its subnet's first address to a MAC address, and
a forwarding entry, that MAC address to the node's public address.

Ours: of our VXLAN devices the permanent neighbours, and all forwarding entries but those that a device has learnt.
Order: behind the devices, before the routes that lead there; they go when the routes have gone.
Source: flannel's vxlan backend.
"""

from __future__ import annotations

from collections.abc import Mapping

from tortie.base.plan import Plan
from tortie.dataplane.converge import Work
from tortie.dataplane.neighbour_steps import carry_out, plan
from tortie.flannel.state import FlannelState, Vxlan
from tortie.kernel.live_links import LiveLinks
from tortie.kernel.live_neighbours import Entry, Key, LiveNeighbours, key
from tortie.kernel.neighbours import Forwarding, Neighbour

LEARNT = ("reachable", "stale")
"""States of forwarding entries that age: `bridge fdb` has several words for those that do not."""


def is_ours(entry: Entry) -> bool:
    """The kernel itself keeps neighbours, too, such as those of multicast groups."""
    return entry.state not in LEARNT if isinstance(entry, Forwarding) else entry.state == "permanent"


class FarEnds:
    name = "far ends of tunnels"
    guard = False

    def __init__(self, netns: str | None = None) -> None:
        self._links = LiveLinks(netns)
        self._live = LiveNeighbours(netns)
        self._netns = netns
        self._settled: tuple[object, ...] = ()

    def select(self, state: FlannelState, index: Mapping[str, int]) -> dict[Key, Entry]:
        """What should be on the devices that are there."""
        want: dict[Key, Entry] = {}
        for end in state.far_ends:
            if (dev := index.get(end.device)) is not None:
                for entry in (Forwarding(dev, end.mac, str(end.host)), Neighbour(dev, str(end.address), end.mac)):
                    want[key(entry)] = entry
        return want

    def observe(self, index: Mapping[str, int]) -> dict[Key, Entry]:
        every = (entry for dev in index.values() for entry in self._live.of(dev).items())
        return {where: one for where, one in every if is_ours(one)}

    def plan(self, state: FlannelState) -> Plan[Key, Entry]:
        self._links.refresh()
        names = [device.name for device in state.devices if isinstance(device.kind, Vxlan)]
        found = {name: link.index for name in names if (link := self._links.named(name)) is not None}
        if not found:
            self._live.close()  # neighbours change all the time
            return Plan()
        self._live.refresh(set(found.values()))
        stamp = (state.far_ends, tuple(found.items()), self._live.changes)
        if self._settled == stamp:
            return Plan()
        steps = plan(self.select(state, found), self.observe(found))
        self._settled = () if steps else stamp
        return steps

    def make(self, work: Work) -> None:
        assert isinstance(work, Plan)
        carry_out((op for op in work if op.makes), self._netns)

    def unmake(self, work: Work) -> None:
        assert isinstance(work, Plan)
        carry_out((op for op in work if not op.makes), self._netns)

    def forget(self) -> None:
        self._links.forget()
        self._live.forget()
        self._settled = ()
