"""DHCP as bytes: messages with their options, and the IPv4 and UDP headers around them. Nothing here sends anything.

    IPv4 (20) │ UDP (8) │ op htype hlen hops xid secs flags ciaddr yiaddr siaddr giaddr chaddr sname file │ options

The headers are ours, because a pod that has no address yet can only be spoken for with a packet socket. Sources: RFC
2131 and 2132; RFC 3396 (long options), 3442 (classless static routes).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

CLIENT_PORT, SERVER_PORT = 68, 67
BROADCAST_FLAG = 0x8000
ANY, EVERYONE = "0.0.0.0", "255.255.255.255"

_FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_COOKIE = bytes((99, 130, 83, 99))
_SHORTEST = 300  # bytes of a BOOTP message (RFC 951); some relays drop shorter ones
_IP = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_ETHERNET = 1  # htype (RFC 1700)
_PROTO_UDP = 17
_TTL = 64


class Kind(IntEnum):
    """Option 53 (RFC 2132 9.6)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7


class Option(IntEnum):
    """The options that we know (RFC 2132; 3004; 3397; 3442)."""

    PAD = 0
    SUBNET_MASK = 1
    ROUTERS = 3
    DNS = 6
    HOST_NAME = 12
    DOMAIN = 15
    STATIC_ROUTES = 33
    REQUESTED_ADDRESS = 50
    LEASE_SECONDS = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER = 54
    REQUEST_LIST = 55
    MESSAGE = 56
    LONGEST_MESSAGE = 57
    RENEWAL_SECONDS = 58
    REBINDING_SECONDS = 59
    VENDOR_CLASS = 60
    CLIENT_ID = 61
    USER_CLASS = 77
    CLASSLESS_ROUTES = 121
    END = 255


@dataclass(frozen=True, slots=True)
class Message:
    """A DHCP message. Addresses are text; `mac` is the client's, 6 bytes; options by number, each in one piece."""

    op: int
    xid: int
    mac: bytes
    options: Mapping[int, bytes] = field(default_factory=dict)
    secs: int = 0
    flags: int = 0
    ciaddr: str = ANY
    yiaddr: str = ANY
    siaddr: str = ANY
    giaddr: str = ANY

    @property
    def kind(self) -> int:
        """Option 53, 0 without it: then it is BOOTP."""
        return (self.options.get(Option.MESSAGE_TYPE) or b"\0")[0]

    def address(self, option: int) -> str:
        """The first address in an option, "" for none."""
        return next(iter(self.addresses(option)), "")

    def addresses(self, option: int) -> list[str]:
        return addresses(self.options.get(option, b""))

    def number(self, option: int) -> int | None:
        """An option of 4 bytes as a number."""
        value = self.options.get(option, b"")
        return int.from_bytes(value, "big") if len(value) == 4 else None


# --- addresses ----------------------------------------------------------------------------------------------------


def packed(address: str) -> bytes:
    """4 bytes. Raises ValueError."""
    parts = bytes(int(part) for part in address.split("."))
    if len(parts) != 4:
        raise ValueError(f"{address} is not an IPv4 address")
    return parts


def text(four: bytes) -> str:
    return ".".join(map(str, four))


def addresses(data: bytes) -> list[str]:
    """Addresses one after the other; what is left over in the end is no address."""
    return [text(data[i : i + 4]) for i in range(0, len(data) // 4 * 4, 4)]


def prefix_length(mask: bytes) -> int:
    """Of a network mask. Raises ValueError when it is none: 255.0.255.0."""
    number = int.from_bytes(mask, "big")
    length = number.bit_count()
    if len(mask) != 4 or number != (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF:
        raise ValueError(f"{mask.hex()} is not a network mask")
    return length


def classless_routes(data: bytes) -> list[tuple[str, str]]:
    """Option 121: destinations with their gateways, 0.0.0.0 for those on the link. Raises ValueError."""
    found: list[tuple[str, str]] = []
    while data:
        length = data[0]
        size = (length + 7) // 8
        if length > 32 or len(data) < 1 + size + 4:
            raise ValueError("classless static routes are cut short")
        found.append((f"{text(data[1 : 1 + size].ljust(4, bytes(1)))}/{length}", text(data[1 + size : 5 + size])))
        data = data[5 + size :]
    return found


def static_routes(data: bytes) -> list[tuple[str, str]]:
    """Option 33: destinations with the length that their class has, and their gateways."""
    pairs = addresses(data)
    return [(f"{dst}/{_class_length(dst)}", gw) for dst, gw in zip(pairs[::2], pairs[1::2], strict=False)]


def _class_length(address: str) -> int:
    """RFC 791 3.2: of classes A, B and C."""
    first = int(address.partition(".")[0])
    return 8 if first < 128 else 16 if first < 192 else 24 if first < 224 else 32


# --- messages -----------------------------------------------------------------------------------------------------


def encode(message: Message) -> bytes:
    fixed = _FIXED.pack(
        message.op,
        _ETHERNET,
        len(message.mac),
        0,
        message.xid,
        message.secs,
        message.flags,
        packed(message.ciaddr),
        packed(message.yiaddr),
        packed(message.siaddr),
        packed(message.giaddr),
        message.mac,
        b"",
        b"",
        _COOKIE,
    )
    options = b"".join(_option(code, value) for code, value in message.options.items())
    return (fixed + options + bytes((Option.END,))).ljust(_SHORTEST, b"\0")


def _option(code: int, value: bytes) -> bytes:
    """In pieces of at most 255 bytes (RFC 3396)."""
    pieces = [value[i : i + 255] for i in range(0, len(value), 255)] or [b""]
    return b"".join(bytes((code, len(piece))) + piece for piece in pieces)


def decode(data: bytes) -> Message:
    """Raises ValueError for what is no DHCP message."""
    if len(data) < _FIXED.size:
        raise ValueError(f"{len(data)} bytes are no DHCP message")
    op, _, length, _, xid, secs, flags, ci, yi, si, gi, mac, sname, file, cookie = _FIXED.unpack_from(data)
    if cookie != _COOKIE:
        raise ValueError("a BOOTP message without DHCP's cookie")
    options = _options(data[_FIXED.size :], {})
    overload = (options.get(Option.OVERLOAD) or b"\0")[0]
    for part, bit in ((file, 1), (sname, 2)):
        if overload & bit:
            options = _options(part, options)
    found = {code: bytes(value) for code, value in options.items()}
    return Message(op, xid, mac[: min(length, 16)], found, secs, flags, text(ci), text(yi), text(si), text(gi))


def _options(data: bytes, found: dict[int, bytearray]) -> dict[int, bytearray]:
    """Those of `data` beside or behind those found so far. Raises ValueError when one is longer than what is there."""
    at = 0
    while at < len(data) and data[at] != Option.END:
        if data[at] == Option.PAD:
            at += 1
            continue
        end = at + 2 + data[at + 1] if at + 1 < len(data) else len(data) + 1
        if end > len(data):
            raise ValueError(f"option {data[at]} is cut short")
        found.setdefault(data[at], bytearray()).extend(data[at + 2 : end])
        at = end
    return found


# --- packets ------------------------------------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo(source: bytes, target: bytes, length: int) -> bytes:
    """What of the IPv4 header is in the checksum of UDP (RFC 768)."""
    return source + target + struct.pack("!BBH", 0, _PROTO_UDP, length)


def packet(payload: bytes, source: str, target: str) -> bytes:
    """A DHCP message of a client in its IPv4 packet."""
    ends = packed(source), packed(target)
    length = _UDP.size + len(payload)
    plain = _UDP.pack(CLIENT_PORT, SERVER_PORT, length, 0) + payload
    udp = _UDP.pack(CLIENT_PORT, SERVER_PORT, length, checksum(_pseudo(*ends, length) + plain) or 0xFFFF) + payload
    values = (0x45, 0x10, _IP.size + length, 0, 0, _TTL, _PROTO_UDP)
    return _IP.pack(*values, checksum(_IP.pack(*values, 0, *ends)), *ends) + udp


def payload(data: bytes, *, checked: bool = True) -> bytes:
    """What is in an IPv4 packet to a DHCP client. Raises ValueError for any other packet, and for a damaged one.

    `checked`: the checksum of UDP is in the packet. It is not in one that never was on a wire: then the kernel says so.
    """
    if len(data) < _IP.size + _UDP.size or data[0] >> 4 != 4:
        raise ValueError("not an IPv4 packet with UDP in it")
    header = (data[0] & 15) * 4
    _, _, total, _, fragment, _, protocol, _, source, target = _IP.unpack_from(data)
    if protocol != _PROTO_UDP or fragment & 0x3FFF or header < _IP.size or not header + _UDP.size <= total <= len(data):
        raise ValueError("not a whole UDP packet")
    if checksum(data[:header]):
        raise ValueError("a wrong checksum of IPv4")
    _, port, length, sent = _UDP.unpack_from(data, header)
    udp = data[header : header + length]
    if port != CLIENT_PORT or not _UDP.size <= length <= total - header:
        raise ValueError("not a packet to a DHCP client")
    if checked and sent and checksum(_pseudo(source, target, length) + udp):
        raise ValueError("a wrong checksum of UDP")
    return udp[_UDP.size :]
