"""Packet sockets on this node's ports: the kernel wakes us for ARP and neighbour messages only, and we answer at once.

The group that questions about an IPv6 address are sent to is joined through the kernel's IPv6, not the packet socket:
so switches that listen to MLD (RFC 4541) pass them on to us, too.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import socket
import struct
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from ipaddress import IPv6Address

from tortie.base.logs import Seldom
from tortie.kernel import netns as namespaces
from tortie.proxy.layer2.claims import Place
from tortie.proxy.layer2.frames import ETH_P_ARP, ETH_P_IPV6, LARGEST, solicited_node
from tortie.proxy.layer2.ports import Port

log = logging.getLogger(__name__)

AT_ONCE = 64
"""Frames that are read before other tasks have their turn."""

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_PACKET_OTHERHOST = 3  # linux/if_packet.h: not to us; or of a VLAN that this machine does not have
_IPV6_JOIN_GROUP, _IPV6_LEAVE_GROUP = 20, 21  # linux/in6.h
_MEMBERSHIP = struct.Struct("@16si")  # struct ipv6_mreq
_NO_ROOM = (errno.ENOMEM, errno.ENOBUFS)
"""The groups of one socket are counted against net.core.optmem_max."""

# linux/filter.h: code, jump if true, jump if false, constant. Offsets are those of Ethernet frames.
_TAKE, _LEAVE = (0x06, 0, 0, LARGEST), (0x06, 0, 0, 0)  # ret
_ARP_ONLY = (
    (0x28, 0, 0, 16),  # ldh [16]: the protocol
    (0x15, 0, 4, 0x0800),  # jeq IPv4
    (0x28, 0, 0, 20),  # ldh [20]: the operation
    (0x15, 1, 0, 1),  # jeq request
    (0x15, 0, 1, 2),  # jeq reply
    _TAKE,
    _LEAVE,
)
_NEIGHBOURS_ONLY = (
    (0x30, 0, 0, 20),  # ldb [20]: the next header
    (0x15, 0, 6, 58),  # jeq ICMPv6
    (0x30, 0, 0, 21),  # ldb [21]: the hop limit
    (0x15, 0, 4, 255),
    (0x30, 0, 0, 54),  # ldb [54]: the type
    (0x15, 1, 0, 135),  # jeq solicitation
    (0x15, 0, 1, 136),  # jeq advertisement
    _TAKE,
    _LEAVE,
)
_FILTERS = {ETH_P_ARP: _ARP_ONLY, ETH_P_IPV6: _NEIGHBOURS_ONLY}
_PROTOCOLS = {4: ETH_P_ARP, 6: ETH_P_IPV6}

Hear = Callable[[Port, bytes], bytes | None]
"""Told each frame and where it came in; gives the answer that is to be sent there."""


class Answerer:
    """Used on the event loop. `netns` is a path; None is the namespace of the calling thread."""

    def __init__(self, netns: str | None, hear: Hear) -> None:
        self._netns = netns
        self._hear = hear
        self._ears: dict[tuple[Port, int], Ear] = {}
        self._problems: dict[tuple[Port, int], str] = {}
        self._complain = Seldom(log)

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(self._problems.values())

    def listen(self, places: Iterable[Place]) -> None:
        """At these ports for these addresses, and for no others. What fails is a problem, and tried again each time."""
        wanted: dict[tuple[Port, int], set[IPv6Address]] = {}
        for ip, port in places:
            groups = wanted.setdefault((port, ip.version), set())
            if isinstance(ip, IPv6Address):
                groups.add(solicited_node(ip))
        for key in self._ears.keys() - wanted.keys():
            self._ears.pop(key).close()
        self._problems.clear()
        for key, groups in wanted.items():
            try:
                if key not in self._ears:
                    with namespaces.entered(self._netns):
                        self._ears[key] = Ear(*key, self._hear)
                with namespaces.entered(self._netns):
                    self._ears[key].join(groups)
            except OSError as why:
                self._problems[key] = f"{key[0]}: cannot listen for IPv{key[1]} questions: {why.strerror or why}"
                self._complain.warning(self._problems[key])

    def send(self, port: Port, frame: bytes) -> None:
        """What the interface does not take is lost: all that is sent unasked is sent several times."""
        ear = self._ears.get((port, 4 if frame[12:14] == ETH_P_ARP.to_bytes(2, "big") else 6))
        if ear is not None:
            ear.send(frame)

    def close(self) -> None:
        self.listen(())


class Ear:
    """The packet socket for one IP version at one port, in the namespace that the thread is in. Raises OSError."""

    def __init__(self, port: Port, version: int, hear: Hear) -> None:
        self._port = port
        self._hear = hear
        self._groups: dict[IPv6Address, socket.socket] = {}
        self._members: list[socket.socket] = []
        self._loop = asyncio.get_running_loop()
        self._socket = _opened(port, _PROTOCOLS[version])
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        for each in (self._socket, *self._members):
            each.close()

    def send(self, frame: bytes) -> None:
        with suppress(OSError):  # no room; the interface is down, or gone: of that we hear
            self._socket.send(frame)

    def join(self, groups: Collection[IPv6Address]) -> None:
        """These, and leave all others. Raises OSError."""
        for group in self._groups.keys() - groups:
            with suppress(OSError):  # it has gone with the interface
                self._membership(self._groups[group], _IPV6_LEAVE_GROUP, group)
            del self._groups[group]
        for group in groups - self._groups.keys():
            self._groups[group] = self._joined(group)

    def _joined(self, group: IPv6Address) -> socket.socket:
        """The socket that is a member; a fresh one where the last can hold no more."""
        if self._members:
            try:
                self._membership(self._members[-1], _IPV6_JOIN_GROUP, group)
                return self._members[-1]
            except OSError as why:
                if why.errno not in _NO_ROOM:
                    raise
        fresh = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._members.append(fresh)
        self._membership(fresh, _IPV6_JOIN_GROUP, group)
        return fresh

    def _membership(self, member: socket.socket, option: int, group: IPv6Address) -> None:
        member.setsockopt(socket.IPPROTO_IPV6, option, _MEMBERSHIP.pack(group.packed, self._port.index))

    def _readable(self) -> None:
        for _ in range(AT_ONCE):
            try:
                frame, sender = self._socket.recvfrom(LARGEST)
            except OSError:  # nothing more; ENETDOWN once when the interface goes down
                return
            if sender[2] < _PACKET_OTHERHOST and (reply := self._hear(self._port, frame)) is not None:
                self.send(reply)


def _opened(port: Port, protocol: int) -> socket.socket:
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        _attach(found, _FILTERS[protocol])
        found.bind((port.name, protocol))
        if found.getsockname()[4] != port.mac:
            raise OSError(errno.ENODEV, "the interface is another one now")
    except OSError:
        found.close()
        raise
    return found


def _attach(on: socket.socket, steps: Iterable[tuple[int, int, int, int]]) -> None:
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    room = ctypes.create_string_buffer(code, len(code))
    on.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(code) // 8, ctypes.addressof(room)))
