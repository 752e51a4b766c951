"""What others do to this node's kernel is heard of, and put right at once."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Set
from enum import Flag, auto

from tortie.base.logs import Seldom
from tortie.flannel.stages.rules import Rules
from tortie.kernel import events
from tortie.kernel.events import AddressEvent, LinkEvent, NeighbourEvent, Overrun, RouteEvent
from tortie.kernel.links import names
from tortie.kernel.netlink.codec import Message
from tortie.kernel.netlink.tables import RTM_DELNEIGH, RTM_NEWNEIGH, RTPROT_KERNEL
from tortie.kernel.nft_events import Change, Monitor

log = logging.getLogger(__name__)

PAUSE = 0.05
"""Seconds from one repair to the next: somebody who does it again and again must not keep us from everything else."""
OURS = "flannel"
"""How the names of our devices begin."""
_IFINDEX = struct.Struct("=4xi")  # ndm_ifindex of struct ndmsg (linux/neighbour.h)


class Concerns(Flag):
    """What an event may have changed: what the kernel should be like by our state, or where this node is."""

    NOTHING = 0
    STATE = auto()
    SELF = auto()


def concerns(event: events.Event, external: str, near: Set[int]) -> Concerns:
    """Pods come and go all the time, with their links, those links' own addresses, and host routes: those are not ours.
    `near`: indexes of our devices and of the external interface."""
    match event:
        case LinkEvent(name=name):
            own = Concerns.SELF | Concerns.STATE if name == external else Concerns.NOTHING
            return Concerns.STATE if name.startswith(OURS) else own
        case NeighbourEvent():
            return Concerns.STATE
        case AddressEvent(address=address) if address.scope == "link" and address.index not in near:
            return Concerns.NOTHING
        case AddressEvent() | Overrun():
            return Concerns.SELF | Concerns.STATE
        case RouteEvent(route=route) if route.protocol != RTPROT_KERNEL:
            if route.dst.prefixlen == 0:
                return Concerns.SELF | Concerns.STATE
            return Concerns.NOTHING if route.dst.prefixlen == route.dst.max_prefixlen else Concerns.STATE
    return Concerns.NOTHING


async def watch_kernel(external: str, changed: Callable[[Concerns], None]) -> None:
    """For ever. `changed` is called whenever something concerns us, and first of all when listening has begun: what
    was before that nobody has told. `external` is the interface to other nodes."""
    own: set[int] = set()
    near: set[int] = set()

    def matters(message: Message) -> bool:
        """Of neighbours and forwarding entries, which change all the time, those of our own devices."""
        about_neighbours = message.type in (RTM_NEWNEIGH, RTM_DELNEIGH)
        return not about_neighbours or _IFINDEX.unpack_from(message.payload)[0] in own

    with events.Monitor(groups=tuple(events.Group), matters=matters) as monitor:
        there = names()
        own |= {index for index, name in there.items() if name.startswith(OURS)}
        near |= own | {index for index, name in there.items() if name == external}
        changed(Concerns.SELF | Concerns.STATE)
        while True:
            await readable(monitor.fileno())
            found = Concerns.NOTHING
            for event in monitor.read():
                if isinstance(event, LinkEvent):
                    if event.name.startswith(OURS):
                        own.add(event.index)
                    if event.name == external or event.index in own:
                        near.add(event.index)
                found |= concerns(event, external, near)
            if found:
                changed(found)
                await asyncio.sleep(PAUSE)


async def watch_rules(stage: Rules, again: Callable[[], None]) -> None:
    """For ever. Whoever changes a table of ours has it repaired."""
    complain = Seldom(log)
    async with asyncio.TaskGroup() as group:
        for monitor in stage.monitors():
            group.create_task(_watch_table(monitor, stage, again, complain), name=f"rules of {monitor.table}")


async def _watch_table(monitor: Monitor, stage: Rules, again: Callable[[], None], complain: Seldom) -> None:
    with monitor:
        while True:
            await readable(monitor.fileno())
            if found := monitor.read():
                for change in found:
                    who = change.program if isinstance(change, Change) else ""
                    complain.warning(f"{who or 'somebody'} changed table {monitor.table}: repairing it")
                stage.forget()
                again()
                await asyncio.sleep(PAUSE)


async def readable(descriptor: int) -> None:
    """Nobody looks at the descriptor between two calls, however much there is to read."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
