"""Who sends what to whom, from the first bytes of an IP packet as it is on a link. Bytes in, a value out.

Packets come from anybody and may be cut short, so nothing in them is relied on: what is not there to be read is None.
Source: RFC 791, 8200 (and 4302, 6275, 7401, 5533 for extension headers); the numbers are IANA's.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from tortie.base.addr import IP

TCP, UDP, DCCP, SCTP, UDPLITE = 6, 17, 33, 132, 136
ICMP, ICMP6 = 1, 58
WITH_PORTS = frozenset((TCP, UDP, DCCP, SCTP, UDPLITE))
"""Protocols that begin with a source and a destination port."""

FRAGMENT, AUTHENTICATION = 44, 51
_EXTENSIONS = frozenset((0, 43, FRAGMENT, AUTHENTICATION, 60, 135, 139, 140))
"""Extension headers of IPv6 behind which another header may follow."""
_OFFSET4, _OFFSET6 = 0x1FFF, 0xFFF8  # of the field that says where a fragment belongs


@dataclass(frozen=True, slots=True)
class Headers:
    """`ports` are source and destination, `icmp` type and code. Only the first fragment of a packet has either."""

    source: IP
    destination: IP
    protocol: int
    ports: tuple[int, int] | None = None
    icmp: tuple[int, int] | None = None


def read(packet: bytes) -> Headers:
    """Raises ValueError for what has no whole IP header."""
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        return _read4(packet)
    if version == 6:
        return _read6(packet)
    raise ValueError(f"a packet of IP version {version}")


def _read4(packet: bytes) -> Headers:
    at = (packet[0] & 0xF) * 4
    if at < 20 or len(packet) < 20:
        raise ValueError(f"an IPv4 header of {min(at, len(packet))} bytes")
    first = not _number(packet, 6) & _OFFSET4
    source, destination = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    return _with_transport(source, destination, packet[9], packet[at:] if first else b"")


def _read6(packet: bytes) -> Headers:
    if len(packet) < 40:
        raise ValueError(f"an IPv6 header of {len(packet)} bytes")
    protocol, at, first = packet[6], 40, True
    while protocol in _EXTENSIONS and len(packet) >= at + 8:
        if protocol == FRAGMENT and _number(packet, at + 2) & _OFFSET6:
            first = False
        length = {FRAGMENT: 8, AUTHENTICATION: (packet[at + 1] + 2) * 4}.get(protocol, (packet[at + 1] + 1) * 8)
        protocol, at = packet[at], at + length
        if not first:
            break  # what follows is from the middle of a packet
    source, destination = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
    return _with_transport(source, destination, protocol, packet[at:] if first else b"")


def _with_transport(source: IP, destination: IP, protocol: int, rest: bytes) -> Headers:
    """`rest` is what there is of the header behind the last of IP's own."""
    if protocol in WITH_PORTS and len(rest) >= 4:
        return Headers(source, destination, protocol, ports=(_number(rest, 0), _number(rest, 2)))
    if protocol == (ICMP if source.version == 4 else ICMP6) and len(rest) >= 2:
        return Headers(source, destination, protocol, icmp=(rest[0], rest[1]))
    return Headers(source, destination, protocol)


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")
