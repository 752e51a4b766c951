"""What the proxy does with one packet, as values: the meaning of the C sources, which tests hold against it.

    leave:  a frame of the TUN device ──► datagrams to nodes, or an ICMP message, or a reason why not
    arrive: a datagram from a host    ──► packets for the TUN device, or the same

A hop from node to node costs two of the TTL, one at either end, as with flannel's own proxy. What is different from it:
who sent a packet whose TTL ends is told so, checksums are changed by RFC 1624, and what comes from hosts that are no
nodes is dropped. Sources: RFC 791, 792, 1071, 1624, 1812; linux/virtio_net.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address
from typing import NamedTuple

from tortie.flannel.udp.proxy import Way

ICMP, TCP, UDP = 1, 6, 17
FIN, PSH, CWR = 0x01, 0x08, 0x80
NET_UNREACHABLE, TIME_EXCEEDED = (3, 0), (11, 0)
ICMP_TTL = 8
"""Flannel's own."""
INTERNETWORK_CONTROL = 0xC0  # RFC 1812 4.3.2.5
MAY_BE_TOLD = (0, 8, 13, 14)
"""Types of ICMP messages that are no errors: echo and timestamp."""

# linux/virtio_net.h
NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_UDP_L4, GSO_ECN = 1, 0, 1, 5, 0x80
VNET = struct.Struct("=BBHHHH")
PLAIN = bytes(VNET.size)


class Vnet(NamedTuple):
    """struct virtio_net_hdr: what is still to be done to the packet behind it."""

    flags: int = 0
    gso_type: int = GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0


class Table:
    """`local` is where ICMP messages come from."""

    def __init__(self, local: IPv4Address, ways: Iterable[Way]) -> None:
        self.local = local
        self._ways = sorted(ways, key=lambda way: -way.subnet.prefixlen)
        self._hosts = {way.node.packed for way in self._ways}

    def way(self, address: bytes) -> Way | None:
        """The most specific."""
        ip = IPv4Address(address)
        return next((way for way in self._ways if ip in way.subnet), None)

    def knows(self, host: bytes) -> bool:
        return host in self._hosts


class Datagram(NamedTuple):
    node: IPv4Address
    port: int
    packet: bytes


class Written(NamedTuple):
    packet: bytes


class Told(NamedTuple):
    packet: bytes


class Dropped(NamedTuple):
    """`why` is the end of a counter's name: sent_malformed."""

    why: str


# --- checksums ----------------------------------------------------------------------------------------------------


def ones_sum(data: bytes) -> int:
    """The ones' complement sum of 16 bit words: that of the number that they are, modulo 65535."""
    number = int.from_bytes(data, "big") << (8 if len(data) % 2 else 0)
    return number % 0xFFFF or (0xFFFF if number else 0)


def checksum(data: bytes) -> int:
    return ones_sum(data) ^ 0xFFFF


def passed_on(packet: bytes) -> bytes:
    """One hop less. RFC 1624: HC' = ~(~HC + ~m + m')."""
    old = packet[8] << 8 | packet[9]
    new = old - 0x100
    total = (int.from_bytes(packet[10:12], "big") ^ 0xFFFF) + (old ^ 0xFFFF) + new
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return packet[:8] + new.to_bytes(2, "big") + (total ^ 0xFFFF).to_bytes(2, "big") + packet[12:]


def _pseudo(packet: bytes, length: int) -> bytes:
    return packet[12:20] + bytes((0, packet[9])) + length.to_bytes(2, "big")


# --- one packet ---------------------------------------------------------------------------------------------------


def whole(data: bytes) -> bytes | None:
    """The IPv4 packet that begins here, without what follows it; None when there is none."""
    if len(data) < 20 or data[0] >> 4 != 4:
        return None
    header, total = (data[0] & 15) * 4, data[2] << 8 | data[3]
    return data[:total] if 20 <= header <= total <= len(data) else None


def icmp_about(kind: tuple[int, int], packet: bytes, local: IPv4Address) -> Iterator[Told]:
    """The ICMP message about a packet, unless there is to be none (RFC 1812 4.3.2.7)."""
    header = (packet[0] & 15) * 4
    one_host = packet[12] not in (0, 127) and packet[12] < 224 and packet[16] < 224
    if not one_host or (packet[6] << 8 | packet[7]) & 0x1FFF or ones_sum(packet[:header]) != 0xFFFF:
        return
    if packet[9] == ICMP and (len(packet) == header or packet[header] not in MAY_BE_TOLD):
        return
    quoted = packet[: header + 8]
    total = (20 + 8 + len(quoted)).to_bytes(2, "big")
    head = bytes((0x45, INTERNETWORK_CONTROL)) + total + bytes((0, 0, 0, 0, ICMP_TTL, ICMP, 0, 0))
    head += local.packed + packet[12:16]
    body = bytes((*kind, 0, 0, 0, 0, 0, 0)) + quoted
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    yield Told(head + body[:2] + checksum(body).to_bytes(2, "big") + body[4:])


def completed(vnet: Vnet, packet: bytes) -> bytes | None:
    """With the checksum that was left to the device; None when it cannot be where the frame says it is."""
    start, at = vnet.csum_start, vnet.csum_start + vnet.csum_offset
    if start < (packet[0] & 15) * 4 or at + 2 > len(packet):
        return None
    value = checksum(packet[start:]) or 0xFFFF
    return packet[:at] + value.to_bytes(2, "big") + packet[at + 2 :]


def cut(vnet: Vnet, packet: bytes) -> list[bytes] | None:
    """The packets that one with a GSO type stands for, as the kernel would cut it; None when it is no such packet."""
    kind, header = vnet.gso_type & ~GSO_ECN, (packet[0] & 15) * 4
    tcp, l4 = kind == GSO_TCPV4, packet[header:]
    wanted = {GSO_TCPV4: TCP, GSO_UDP_L4: UDP}.get(kind)
    if wanted != packet[9] or (packet[6] << 8 | packet[7]) & 0x3FFF or not vnet.gso_size:
        return None
    if len(l4) < (20 if tcp else 8):
        return None
    own = (l4[12] >> 4) * 4 if tcp else 8
    if own > len(l4) or (tcp and own < 20):
        return None
    payload = l4[own:]
    pieces = range(0, len(payload), vnet.gso_size) or range(1)
    return [_piece(packet[:header], l4[:own], payload, at, vnet.gso_size) for at in pieces]


def _piece(head: bytes, own: bytes, payload: bytes, at: int, size: int) -> bytes:
    number, part = at // size, payload[at : at + size]
    total = len(head) + len(own) + len(part)
    ident = (int.from_bytes(head[4:6], "big") + number) & 0xFFFF
    head = head[:2] + total.to_bytes(2, "big") + ident.to_bytes(2, "big") + head[6:10] + b"\0\0" + head[12:]
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    length = len(own) + len(part)
    if head[9] == TCP:
        sequence = (int.from_bytes(own[4:8], "big") + at) & 0xFFFFFFFF
        last = at + size >= len(payload)
        flags = own[13] & ~((CWR if number else 0) | (0 if last else FIN | PSH))
        own = own[:4] + sequence.to_bytes(4, "big") + own[8:13] + bytes((flags,)) + own[14:16] + b"\0\0" + own[18:]
        value = checksum(_pseudo(head, length) + own + part)
        return head + own[:16] + value.to_bytes(2, "big") + own[18:] + part
    own = own[:4] + length.to_bytes(2, "big") + b"\0\0"
    value = checksum(_pseudo(head, length) + own + part) or 0xFFFF
    return head + own[:6] + value.to_bytes(2, "big") + part


# --- the two directions -------------------------------------------------------------------------------------------


def leave(table: Table, frame: bytes) -> Sequence[Datagram | Told | Dropped]:
    """A frame of the TUN device: struct virtio_net_hdr and a packet."""
    packet = whole(frame[VNET.size :])
    if packet is None:
        other = len(frame) > VNET.size and frame[VNET.size] >> 4 != 4
        return [Dropped("not_ipv4" if other else "malformed")]
    way = table.way(packet[16:20])
    if way is None:
        return [Dropped("unreachable"), *icmp_about(NET_UNREACHABLE, packet, table.local)]
    if packet[8] <= 1:
        return [Dropped("expired"), *icmp_about(TIME_EXCEEDED, packet, table.local)]
    vnet = Vnet(*VNET.unpack_from(frame))
    pieces: Sequence[bytes] | None
    if vnet.gso_type != GSO_NONE:
        pieces = cut(vnet, passed_on(packet))
    else:
        ready = completed(vnet, packet) if vnet.flags & NEEDS_CSUM else packet
        pieces = None if ready is None else [passed_on(ready)]
    if pieces is None:
        return [Dropped("malformed")]
    return [Datagram(way.node, way.port, piece) for piece in pieces]


def arrive(table: Table, sender: bytes, data: bytes) -> Sequence[Written | Told | Dropped]:
    """The payload of a datagram."""
    if not table.knows(sender):
        return [Dropped("stranger")]
    packet = whole(data)
    if packet is None:
        return [Dropped("not_ipv4" if data and data[0] >> 4 != 4 else "malformed")]
    if packet[8] <= 1:
        return [Dropped("expired"), *icmp_about(TIME_EXCEEDED, packet, table.local)]
    return [Written(passed_on(packet))]
