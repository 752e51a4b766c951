"""Others have changed what the overlay is made of (a tunnel, a far end, a route, the link below): it is put right at
once, not only when everything is looked at again. And BIRD's routes take the place of the agent's when they are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Set
from dataclasses import dataclass, field

from tortie.base.addr import Net
from tortie.calc.cluster import tunnel_of
from tortie.calc.overlay import device_of
from tortie.calc.state import DesiredState, Overlay
from tortie.dataplane.stages.tunnels import NAMES, Tunnels
from tortie.dataplane.worker import Worker
from tortie.kernel import events
from tortie.kernel.events import may_matter
from tortie.kernel.neighbours import Forwarding
from tortie.kernel.netlink.codec import Message
from tortie.kernel.netlink.tables import RTPROT_AGENT, RTPROT_BIRD
from tortie.model.ipam import IPPool
from tortie.model.node import Node, NodeBGPSpec
from tortie.model.store import Store
from tortie.model.workload import INTERFACE_PREFIX

PAUSE = 0.02
"""Seconds from one repair to the next: somebody who does it again and again must not keep us from everything else."""
PATIENCE = 3.0
"""Seconds until a device that is not there is not waited for any more."""


@dataclass(frozen=True)
class Concern:
    """What of the kernel's news is about an overlay."""

    made_of: Overlay
    addresses: frozenset[str] = frozenset()
    """This node's own, and its tunnels'."""
    routes: frozenset[Net] = frozenset()
    far_ends: frozenset[str] = frozenset()
    """Tunnel addresses and MAC addresses of other nodes."""
    tunnels: frozenset[str] = field(default=frozenset(NAMES))

    def about(self, event: events.Event, held: Set[Net]) -> bool:
        """`held`: destinations whose route of the agent's waits for another."""
        match event:
            case events.LinkEvent():
                return not event.name.startswith(INTERFACE_PREFIX)
            case events.AddressEvent(address):
                return address.ip.partition("/")[0] in self.addresses
            case events.RouteEvent(route, gone):
                if route.protocol == RTPROT_AGENT:
                    return gone == (route.dst in self.routes)
                return not gone and (route.dst in held or (route.protocol != RTPROT_BIRD and route.dst in self.routes))
            case events.NeighbourEvent(entry):
                return (entry.mac if isinstance(entry, Forwarding) else entry.ip) in self.far_ends
        return isinstance(event, events.Overrun)


def concern(state: DesiredState) -> Concern:
    overlay = state.overlay
    own = [device.local for device in overlay.devices]
    own += [device.address for device in overlay.devices if device.address is not None]
    if state.routing is not None:
        own += [ip for ip in (state.routing.ipv4, state.routing.ipv6) if ip is not None]
    return Concern(
        overlay,
        frozenset(map(str, own)),
        frozenset(route.dst for route in overlay.routes),
        frozenset(text for vtep in overlay.vteps for text in (str(vtep.address), vtep.mac)),
    )


async def built(store: Store, node: str, tunnels: Tunnels) -> Set[str]:
    """Until this node has the devices that pools ask for, or for a few seconds: whoever hears of a tunnel address sends
    there. The answer is those that it cannot have. Raises NotFound, Unavailable."""
    bgp = (await store.get(Node, node)).spec.bgp or NodeBGPSpec()
    speaks = {version for version, address in ((4, bgp.ipv4_address), (6, bgp.ipv6_address)) if address}
    specs = [one.spec for one in (await store.list(IPPool)).items if one.spec.version in speaks]
    asked = {device_of(kind, spec.version) for spec in specs if (kind := tunnel_of(spec))}
    for _ in range(round(PATIENCE / PAUSE)):
        if asked <= tunnels.there | tunnels.lacking:
            break
        await asyncio.sleep(PAUSE)
    return tunnels.lacking


async def repair_overlay(
    worker: Worker[DesiredState], latest: Callable[[], DesiredState | None], held: Callable[[], Set[Net]]
) -> None:
    """Forever. `held`: destinations whose route of the agent's waits for another."""
    loop = asyncio.get_running_loop()
    known = Concern(Overlay())
    relevant = may_matter(RTPROT_BIRD, held)  # of its many routes only those count that something waits for

    def matters(message: Message) -> bool:
        """Most clusters without tunnels have nothing to look after."""
        state = latest()
        return state is not None and bool(state.overlay.devices or state.overlay.routes or held()) and relevant(message)

    with events.Monitor(groups=tuple(events.Group), matters=matters) as monitor:
        readable = asyncio.Event()
        loop.add_reader(monitor.fileno(), readable.set)
        try:
            while True:
                await readable.wait()
                readable.clear()
                state = latest()
                news = monitor.read()
                if state is None:
                    continue
                if known.made_of is not state.overlay:
                    known = concern(state)
                waiting = held()
                if any(known.about(event, waiting) for event in news):
                    worker.again()
                    await asyncio.sleep(PAUSE)
        finally:
            loop.remove_reader(monitor.fileno())
