"""What changes in the network of a namespace, as the kernel tells it.

Messages may be lost when nobody reads for a while; that is told too (`Overrun`), and then only listing anew helps.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from tortie.kernel import addresses, links, neighbours, routes
from tortie.kernel.netlink import tables
from tortie.kernel.netlink.codec import NLMSG_OVERRUN, Message, unpack_messages
from tortie.kernel.netlink.listener import Listener
from tortie.kernel.netlink.socket import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK, open_socket


class Group(IntEnum):
    """What can be listened to."""

    LINK = tables.RTNLGRP_LINK
    NEIGHBOUR = tables.RTNLGRP_NEIGH
    IPV4_ADDRESS = tables.RTNLGRP_IPV4_IFADDR
    IPV4_ROUTE = tables.RTNLGRP_IPV4_ROUTE
    IPV6_ADDRESS = tables.RTNLGRP_IPV6_IFADDR
    IPV6_ROUTE = tables.RTNLGRP_IPV6_ROUTE


# Neighbours change all the time by themselves: only for those who ask.
USUAL = tuple(group for group in Group if group is not Group.NEIGHBOUR)


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """A link is there or has changed (not necessarily in anything that `Link` shows), or is gone.

    They come by the dozen and are seldom looked at closer: `link` is only made when it is asked for.
    """

    index: int
    name: str
    up: bool
    gone: bool = False
    payload: bytes = field(default=b"", repr=False)

    @property
    def link(self) -> links.Link:
        """All that was told of it."""
        return links.decode(self.payload)


@dataclass(frozen=True, slots=True)
class AddressEvent:
    """An address is there or has changed, or is gone."""

    address: addresses.Address
    gone: bool = False


@dataclass(frozen=True, slots=True)
class RouteEvent:
    """A route is there or is gone. One that was replaced is only announced in its new shape."""

    route: routes.Route
    gone: bool = False


@dataclass(frozen=True, slots=True)
class NeighbourEvent:
    """A neighbour or forwarding entry is there or has changed, or is gone."""

    neighbour: neighbours.Neighbour | neighbours.Forwarding
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Overrun:
    """Events were lost: whoever keeps a picture of the kernel has to list it anew."""


Event = LinkEvent | AddressEvent | RouteEvent | NeighbourEvent | Overrun


class Monitor(Listener):
    """Listens to a namespace (path or descriptor; None: the calling thread's) from when it is made."""

    def __init__(
        self,
        netns: str | int | None = None,
        groups: Iterable[Group] = USUAL,
        matters: Callable[[Message], bool] | None = None,
    ) -> None:
        """`matters` is asked of each message before the work of reading it is done."""
        super().__init__(open_socket(netns))
        self._matters = matters
        self._socket.setblocking(False)
        self._socket.bind((0, 0))  # without a port of its own a socket counts as the kernel's, which hears not itself
        for group in groups:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def read(self) -> list[Event]:
        """The events waiting, in order; none if there are none, and no more than a few hundred at a time."""
        events: list[Event] = []
        for data, port, lost in self._waiting("ip monitor"):
            if port:
                continue  # from another process, not from the kernel
            if lost:
                events.append(Overrun())
                continue
            for message in unpack_messages(data):
                if self._matters is None or message.type == NLMSG_OVERRUN or self._matters(message):
                    event = decode(message)
                    if event is not None:
                        events.append(event)
        return events

    def all_waiting(self) -> Iterator[Event]:
        """However many there are. A `read` that finds nothing may have passed over what does not matter."""
        while self.waits():
            yield from self.read()


_ROUTE_PROTOCOL = 5  # offset of rtm_protocol in struct rtmsg (linux/rtnetlink.h)
_NEIGHBOUR_STATE = struct.Struct("=8xH")  # ndm_state of struct ndmsg (linux/neighbour.h)
_PERMANENT = tables.NEIGHBOUR_STATE_NUMBERS["permanent"]


def protocol_of(message: Message) -> int | None:
    """Whose the route is that a message is about (RTPROT_*); None for what is no route."""
    if message.type in (tables.RTM_NEWROUTE, tables.RTM_DELROUTE):
        return message.payload[_ROUTE_PROTOCOL]
    return None


def may_matter(busy: int, held: Callable[[], object]) -> Callable[[Message], bool]:
    """Passes over most of what changes by itself: neighbours that are not permanent, routes of the kernel's own, and,
    while `held` is false, those of the protocol `busy`."""

    def matters(message: Message) -> bool:
        payload = message.payload
        if message.type in (tables.RTM_NEWROUTE, tables.RTM_DELROUTE):
            protocol = protocol_of(message)
            return protocol != tables.RTPROT_KERNEL and (protocol != busy or bool(held()))
        if message.type == tables.RTM_NEWNEIGH and payload[0] != tables.AF_BRIDGE:
            return bool(_NEIGHBOUR_STATE.unpack_from(payload)[0] & _PERMANENT)
        return True

    return matters


def decode(message: Message) -> Event | None:
    """The event in one message; None if it is about something else."""
    if message.type == NLMSG_OVERRUN:
        return Overrun()
    make = _EVENTS.get(message.type)
    return make(message.payload) if make else None


def _link(payload: bytes, gone: bool) -> Event | None:
    # With family AF_BRIDGE it is about being a port: RTM_DELLINK then only means that a link left its bridge.
    return LinkEvent(*links.state(payload), gone, payload) if payload[:1] == bytes([tables.AF_UNSPEC]) else None


def _route(payload: bytes, gone: bool) -> Event | None:
    values = tables.ROUTE.unpack(payload)
    if values["rtm_flags"] & tables.RTM_F_CLONED or values["rtm_family"] not in (tables.AF_INET, tables.AF_INET6):
        return None
    return RouteEvent(routes.decode(payload), gone)


_EVENTS: dict[int, Callable[[bytes], Event | None]] = {
    tables.RTM_NEWLINK: lambda payload: _link(payload, False),
    tables.RTM_DELLINK: lambda payload: _link(payload, True),
    tables.RTM_NEWADDR: lambda payload: AddressEvent(addresses.decode(payload)),
    tables.RTM_DELADDR: lambda payload: AddressEvent(addresses.decode(payload), True),
    tables.RTM_NEWROUTE: lambda payload: _route(payload, False),
    tables.RTM_DELROUTE: lambda payload: _route(payload, True),
    tables.RTM_NEWNEIGH: lambda payload: NeighbourEvent(neighbours.decode(payload)),
    tables.RTM_DELNEIGH: lambda payload: NeighbourEvent(neighbours.decode(payload), True),
}
