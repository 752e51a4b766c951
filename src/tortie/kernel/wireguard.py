"""WireGuard devices: their private key, port and peers. The link itself is made as any other: `create_link(nl, name,
"wireguard")`.

They are not rtnetlink's but of a family of their own of generic netlink, whose number the kernel is asked for. Keys are
in base64, as wg(8) writes them.
Source: linux/genetlink.h, linux/wireguard.h.
"""

from __future__ import annotations

import base64
import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Any

from tortie.base.addr import IP, Net
from tortie.base.errors import KernelError, NotFound, NotSupported
from tortie.kernel.netlink import Netlink, Request
from tortie.kernel.netlink.codec import IP as ADDRESS
from tortie.kernel.netlink.codec import TEXT, U8, U16, U32, U64, Array, Codec, Record, Table
from tortie.kernel.netlink.tables import AF_INET, AF_INET6

NETLINK_GENERIC = 16  # linux/netlink.h

# struct genlmsghdr (linux/genetlink.h): command, version of the family, reserved
_GENERIC = ("=BBxx", ("cmd", "version"))
GENL_ID_CTRL, CTRL_CMD_GETFAMILY = 16, 3
CONTROL = Record(*_GENERIC, Table("linux/genetlink.h CTRL_ATTR_*", {1: ("family_id", U16), 2: ("family_name", TEXT)}))

WG_GENL_NAME, WG_GENL_VERSION = "wireguard", 1  # linux/wireguard.h, and what follows
WG_CMD_GET_DEVICE, WG_CMD_SET_DEVICE = 0, 1
WGPEER_F_REMOVE_ME, WGPEER_F_REPLACE_ALLOWEDIPS, WGPEER_F_UPDATE_ONLY = 1, 2, 4
KEY_SIZE = 32  # WG_KEY_LEN
_NO_KEY = bytes(KEY_SIZE)


class Key(Codec):
    """A key in base64; "" is what the kernel says for none, zeroes."""

    def pack(self, value: Any) -> bytes:
        data = base64.b64decode(value, validate=True) if value else _NO_KEY
        if len(data) != KEY_SIZE:
            raise ValueError(f"a key of {len(data)} bytes")
        return data

    def unpack(self, data: bytes) -> str:
        if len(data) != KEY_SIZE:
            raise ValueError(f"{len(data)} bytes where a key belongs")
        return "" if data == _NO_KEY else base64.b64encode(data).decode()


class Endpoint(Codec):
    """struct sockaddr_in or sockaddr_in6 (linux/in.h, linux/in6.h), as address and port."""

    _V4, _V6 = struct.Struct("=H2s4s8x"), struct.Struct("=H2sI16sI")

    def pack(self, value: Any) -> bytes:
        address, port = value
        number = struct.pack(">H", port)
        if address.version == 4:
            return self._V4.pack(AF_INET, number, address.packed)
        return self._V6.pack(AF_INET6, number, 0, address.packed, 0)

    def unpack(self, data: bytes) -> tuple[IP, int]:
        family = U16.unpack(data)
        if family == AF_INET and len(data) == self._V4.size:
            _, number, packed = self._V4.unpack(data)
        elif family == AF_INET6 and len(data) == self._V6.size:
            _, number, _, packed, _ = self._V6.unpack(data)
        else:
            raise ValueError(f"{len(data)} bytes of family {family} where an endpoint belongs")
        return ip_address(packed), int.from_bytes(number, "big")


class Time(Codec):
    """struct __kernel_timespec (linux/time_types.h), in seconds."""

    _STRUCT = struct.Struct("=qq")

    def unpack(self, data: bytes) -> float:
        if len(data) != self._STRUCT.size:
            raise ValueError(f"{len(data)} bytes where a time belongs")
        seconds, nanoseconds = self._STRUCT.unpack(data)
        return float(seconds + nanoseconds / 1e9)


WGALLOWEDIP = Table("linux/wireguard.h WGALLOWEDIP_A_*", {1: ("family", U16), 2: ("address", ADDRESS), 3: ("mask", U8)})

WGPEER = Table(
    "linux/wireguard.h WGPEER_A_*",
    {
        1: ("public_key", Key()),
        2: ("preshared_key", Key()),
        3: ("flags", U32),
        4: ("endpoint", Endpoint()),
        5: ("keepalive", U16),
        6: ("handshake", Time()),
        7: ("rx_bytes", U64),
        8: ("tx_bytes", U64),
        9: ("allowed", Array(WGALLOWEDIP)),
    },
)

WGDEVICE = Record(
    *_GENERIC,
    Table(
        "linux/wireguard.h WGDEVICE_A_*",
        {
            1: ("ifindex", U32),
            2: ("ifname", TEXT),
            3: ("private_key", Key()),
            4: ("public_key", Key()),
            6: ("listen_port", U16),
            8: ("peers", Array(WGPEER)),
        },
    ),
)


@dataclass(frozen=True, slots=True)
class Peer:
    """Keys are in base64, `psk` is "" for none; `keepalive` is in seconds, 0 for none. What comes after that the kernel
    tells: when the last handshake was, in seconds since 1970 (0: never), and bytes received and sent."""

    key: str
    endpoint: tuple[IP, int] | None = None
    allowed: frozenset[Net] = frozenset()
    psk: str = field(default="", repr=False)
    keepalive: int = 0
    handshake: float = field(default=0.0, compare=False)
    received: int = field(default=0, compare=False)
    sent: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Device:
    """A WireGuard device. Its keys are "" while it has none."""

    private_key: str = field(repr=False)
    public_key: str
    port: int
    peers: tuple[Peer, ...]


class Wireguard(Netlink):
    """The WireGuard devices of a network namespace (path or descriptor; None: that of the calling thread). Raises
    NotSupported where the kernel has no WireGuard, which is loaded by asking."""

    def __init__(self, netns: str | int | None = None) -> None:
        super().__init__(netns, NETLINK_GENERIC)
        try:
            self._family = self._number()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Wireguard:
        return self

    def _number(self) -> int:
        asked = {"cmd": CTRL_CMD_GETFAMILY, "version": 1, "family_name": WG_GENL_NAME}
        try:
            (answer,) = self.request(GENL_ID_CTRL, 0, CONTROL.pack(asked), "genl ctrl get name wireguard")
        except KernelError as why:
            if why.errno == errno.ENOENT:
                raise NotSupported("this kernel has no WireGuard: modprobe wireguard") from None
            raise
        return int(CONTROL.unpack(answer.payload)["family_id"])

    def device(self, name: str) -> Device:
        """All of one. Raises NotFound, and KernelError for a link that is no WireGuard device."""
        values = {"cmd": WG_CMD_GET_DEVICE, "version": WG_GENL_VERSION, "ifname": name}
        try:
            parts = list(self.dump(self._family, WGDEVICE.pack(values), f"wg show {name}"))
        except KernelError as why:
            if why.errno == errno.ENODEV:
                raise NotFound(str(why)) from None
            if why.errno == errno.EOPNOTSUPP:
                raise KernelError(why.errno, f"wg show {name}", "it is not a WireGuard device") from None
            raise
        return decode(part.payload for part in parts)

    def set_device(self, name: str, *, private_key: str | None = None, port: int | None = None) -> None:
        """Its key, its port, or both; peers stay. Raises NotFound."""
        words = " private-key /dev/stdin" * (private_key is not None) + f" listen-port {port}" * (port is not None)
        values = self._about(name) | {"private_key": private_key, "listen_port": port}
        try:
            self.request(self._family, 0, WGDEVICE.pack(values), f"wg set {name}{words}")
        except KernelError as why:
            if why.errno == errno.ENODEV:
                raise NotFound(str(why)) from None
            raise

    def set_peers(self, name: str, changes: Sequence[tuple[Peer, Peer | None]]) -> list[tuple[int, KernelError]]:
        """Peers to add or change: what it should be, and what it is, None for one that is not there. Those that were
        refused, by their place among `changes`."""
        return self._each(name, [(changed(want, have), f"peer {want.key}") for want, have in changes])

    def remove_peers(self, name: str, keys: Sequence[str]) -> list[tuple[int, KernelError]]:
        """One that is not there is removed."""
        flags = WGPEER_F_REMOVE_ME | WGPEER_F_UPDATE_ONLY
        return self._each(name, [({"public_key": key, "flags": flags}, f"peer {key} remove") for key in keys])

    def wake_peers(self, name: str, keys: Sequence[str]) -> list[tuple[int, KernelError]]:
        """Peers without keepalives are sent one, and with it a handshake: who has a session with the device that was
        here before would only find out after some time that nobody is there any more."""
        refused: list[tuple[int, KernelError]] = []
        for seconds in (1, 0):  # the kernel sends one when they are switched on
            words = f"persistent-keepalive {seconds}"
            peers = [({"public_key": key, "flags": WGPEER_F_UPDATE_ONLY, "keepalive": seconds}, key) for key in keys]
            refused += self._each(name, [(values, f"peer {key} {words}") for values, key in peers])
        return refused

    def _each(self, name: str, peers: Iterable[tuple[dict[str, Any], str]]) -> list[tuple[int, KernelError]]:
        """A request for each: all in one would be more than an attribute can hold, and fail as a whole."""
        about = self._about(name)
        return self.batch(
            [
                Request(self._family, 0, WGDEVICE.pack(about | {"peers": [peer]}), f"wg set {name} {words}")
                for peer, words in peers
            ]
        )

    def _about(self, name: str) -> dict[str, Any]:
        return {"cmd": WG_CMD_SET_DEVICE, "version": WG_GENL_VERSION, "ifname": name}


def decode(parts: Iterable[bytes]) -> Device:
    """The device in the bodies of the messages that tell of it: of one with many peers there are several, and what the
    one ends with, a peer, the next may go on with. Raises ValueError."""
    private_key, public_key, port = "", "", 0
    peers: dict[str, Peer] = {}
    for part in parts:
        values = WGDEVICE.unpack(part)
        private_key = values.get("private_key", private_key)
        public_key = values.get("public_key", public_key)
        port = values.get("listen_port", port)
        for one in values.get("peers", ()):
            peer = _peer(one)
            before = peers.get(peer.key)
            peers[peer.key] = peer if before is None else replace(before, allowed=before.allowed | peer.allowed)
    return Device(private_key, public_key, port, tuple(peers.values()))


def _peer(values: dict[str, Any]) -> Peer:
    return Peer(
        key=values.get("public_key", ""),
        endpoint=values.get("endpoint"),
        allowed=frozenset(ip_network((one["address"], one["mask"])) for one in values.get("allowed", ())),
        psk=values.get("preshared_key", ""),
        keepalive=values.get("keepalive", 0),
        handshake=values.get("handshake", 0.0),
        received=values.get("rx_bytes", 0),
        sent=values.get("tx_bytes", 0),
    )


def changed(want: Peer, have: Peer | None) -> dict[str, Any]:
    """What the kernel is told to make the one of the other: no more than what differs. Networks are only ever replaced
    as a whole where one has to go, for between the old and the new there is a moment without any."""
    values: dict[str, Any] = {"public_key": want.key}
    old = have or Peer(want.key)
    gone = old.allowed - want.allowed
    flags = (WGPEER_F_UPDATE_ONLY if have else 0) | (WGPEER_F_REPLACE_ALLOWEDIPS if gone or not have else 0)
    values["flags"] = flags or None
    if want.psk != old.psk:
        values["preshared_key"] = want.psk
    if want.endpoint != old.endpoint:
        values["endpoint"] = want.endpoint
    if want.keepalive != old.keepalive:
        values["keepalive"] = want.keepalive
    told = want.allowed if gone else want.allowed - old.allowed
    if told:
        values["allowed"] = [_allowed(net) for net in sorted(told, key=lambda net: (net.version, net))]
    return values


def _allowed(net: Net) -> dict[str, Any]:
    family = socket.AF_INET if net.version == 4 else socket.AF_INET6
    return {"family": int(family), "address": str(net.network_address), "mask": net.prefixlen}


def canonical(key: str) -> str:
    """The one way to write a key, in which the kernel tells it. Raises ValueError for what is none, and for zeroes."""
    text = Key().unpack(Key().pack(key))
    if not text:
        raise ValueError("a key of zeroes")
    return text


def new_private_key() -> str:
    """As `wg genkey`."""
    return clamped(base64.b64encode(os.urandom(KEY_SIZE)).decode())


def clamped(private_key: str) -> str:
    """The same key with the bits that Curve25519 (RFC 7748) has no use for as the kernel keeps them. Raises ValueError
    for what is no key."""
    data = bytearray(Key().pack(canonical(private_key)))
    data[0] &= 248
    data[31] = data[31] & 127 | 64
    return base64.b64encode(data).decode()
