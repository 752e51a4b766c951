"""A packet socket on an interface of a pod: DHCP is spoken through it, whether the pod has an address or not.

It stays in the pod's namespace, whatever its owner does, and is open only while an answer is waited for: what the pod
itself sends and receives, the kernel's filter keeps from us.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from types import TracebackType

from tortie.base.errors import ConfigError, KernelError, NotFound
from tortie.cni.dhcp import wire
from tortie.cni.dhcp.lease import Send
from tortie.cni.dhcp.wire import EVERYONE, Message
from tortie.kernel import links, netns
from tortie.kernel.netlink import Netlink

_ETH_P_IP = 0x0800  # linux/if_ether.h
_TO_ALL = b"\xff" * 6
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_SOL_PACKET, _PACKET_AUXDATA = 263, 8  # linux/socket.h, linux/if_packet.h
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata
_CSUM_NOT_READY = 8  # TP_STATUS_CSUMNOTREADY: the packet never was on a wire, nobody computed its checksum
_LARGEST = 65535

# linux/filter.h: code, jump if true, jump if false, constant. UDP, not a later fragment, to port 68.
_TO_CLIENTS = (
    (0x30, 0, 0, 9),  # ldb [9]: the protocol
    (0x15, 0, 6, 17),  # jeq UDP
    (0x28, 0, 0, 6),  # ldh [6]: flags and offset
    (0x45, 4, 0, 0x1FFF),  # jset: a later fragment
    (0xB1, 0, 0, 0),  # ldxb 4*([0]&0xf): the header's length
    (0x48, 0, 0, 2),  # ldh [x+2]: the port
    (0x15, 0, 1, wire.CLIENT_PORT),
    (0x06, 0, 0, _LARGEST),  # ret: take it
    (0x06, 0, 0, 0),  # ret: leave it
)


class Port:
    """An interface of a pod, for DHCP. Every failure to open it is a ConfigError, NotFound or KernelError.

    Its namespace is that at `path`; with `inode` given it must still be the one with that number.
    """

    def __init__(self, path: str, ifname: str, inode: int = 0) -> None:
        self.ifname = ifname
        with netns.entered(path), Netlink() as nl:
            self.inode = netns.inode(path)
            if inode and self.inode != inode:
                raise NotFound(f"{path} is another network namespace now")
            link = links.get_link(nl, ifname)
            if not link.up:
                links.set_up(nl, link.index)
            self.mac = bytes.fromhex(link.mac.replace(":", ""))
            if len(self.mac) != 6:
                raise ConfigError(f"{ifname} has no Ethernet address")
            self._socket = _opened(ifname)
        self._servers: dict[str, bytes] = {}

    def __enter__(self) -> Port:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def knows(self, servers: dict[str, bytes]) -> None:
        """Uses and notes in it the Ethernet addresses that answers came from: a server's, or its relay's."""
        self._servers = servers

    def send(self, what: Send) -> None:
        """A lost packet is one that is sent again: failures to send are KernelErrors."""
        data = wire.packet(wire.encode(what.message), what.source, what.to)
        mac = _TO_ALL if what.to == EVERYONE else self._servers.get(what.to, _TO_ALL)
        try:
            self._socket.sendto(data, (self.ifname, _ETH_P_IP, 0, 0, mac))
        except OSError as why:
            raise KernelError(why.errno or 0, f"send DHCP message through {self.ifname}") from None

    def receive(self) -> Message | None:
        """A message that has arrived; None when there is none, or what has arrived is not one."""
        try:
            data, control, _, sender = self._socket.recvmsg(_LARGEST, socket.CMSG_SPACE(_AUXDATA.size))
        except OSError:  # BlockingIOError; ENETDOWN once when the interface goes down
            return None
        status = next((_AUXDATA.unpack(value)[0] for _, kind, value in control if kind == _PACKET_AUXDATA), 0)
        try:
            message = wire.decode(wire.payload(data, checked=not status & _CSUM_NOT_READY))
        except ValueError:
            return None
        server = message.address(wire.Option.SERVER)
        if server:
            self._servers[server] = sender[4]
        return message


def _opened(ifname: str) -> socket.socket:
    """In the namespace that the thread is in."""
    try:
        found = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    except OSError as why:
        raise KernelError(why.errno or 0, "open a packet socket") from None
    try:
        _filter(found)
        found.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        found.bind((ifname, _ETH_P_IP))
    except OSError as why:
        found.close()
        raise KernelError(why.errno or 0, f"listen on {ifname}") from None
    return found


def _filter(on: socket.socket) -> None:
    code = b"".join(struct.pack("=HBBI", *step) for step in _TO_CLIENTS)
    room = ctypes.create_string_buffer(code, len(code))
    on.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(_TO_CLIENTS), ctypes.addressof(room)))


def send_from_here(what: Send) -> None:
    """Sends a message to a server from the namespace that the thread is in. Raises KernelError when there is no way."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as found:
            found.sendto(wire.encode(what.message), (what.to, wire.SERVER_PORT))
    except OSError as why:
        raise KernelError(why.errno or 0, f"send DHCP message to {what.to}") from None


def set_down(path: str, ifname: str, inode: int) -> None:
    """Takes an interface down whose address may no longer be used. One that is not there is."""
    try:
        with netns.entered(path), Netlink() as nl:
            if netns.inode(path) == inode:
                links.set_down(nl, ifname)
    except (NotFound, ConfigError):
        pass
