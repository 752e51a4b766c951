"""Packets for the udp backend's proxy, made at random, and its program run on them without a kernel.

Maker ─► batches of records ─► file ─► proxy replay ─► file ─► what it would send, write and tell, batch by batch
                └────────────► packet.py ─────────────────────► the same, by its own account
"""

from __future__ import annotations

import random
import struct
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from tortie.flannel.udp import packet as meaning
from tortie.flannel.udp.packet import GSO_TCPV4, GSO_UDP_L4, NEEDS_CSUM, PLAIN, TCP, UDP, VNET, Table, Vnet
from tortie.flannel.udp.proxy import COUNTERS, Way, dump

RECORD = struct.Struct("=BxHII")  # struct record of replay.c: kind, size, host, bytes that follow
LOCAL = IPv4Address("10.5.1.0")
WAYS = (
    Way(IPv4Network("10.5.2.0/24"), IPv4Address("192.0.2.2"), 8285),
    Way(IPv4Network("10.5.3.0/24"), IPv4Address("192.0.2.3"), 8285),
    Way(IPv4Network("10.5.3.64/26"), IPv4Address("192.0.2.4"), 8285),
)
TABLE = Table(LOCAL, WAYS)
TO = [IPv4Address(text).packed for text in ("10.5.2.2", "10.5.3.9", "10.5.3.70", "10.5.9.9", "224.0.0.5")]
FROM = [IPv4Address(text).packed for text in ("10.5.1.2", "10.5.1.3", "10.5.2.2", "127.0.0.1", "0.0.0.1", "230.1.1.1")]
HOSTS = [IPv4Address(text).packed for text in ("192.0.2.2", "192.0.2.3", "192.0.2.4", "198.51.100.9")]


def ipv4(protocol: int, body: bytes, src: bytes, dst: bytes, ttl: int = 64, **more: Any) -> bytes:
    """A packet. `ident`, `fragment` (flags and offset), `tos` and `options` (a multiple of 4 bytes) may be given."""
    options: bytes = more.get("options", b"")
    words = (0x45 + len(options) // 4, more.get("tos", 0), 20 + len(options) + len(body), more.get("ident", 1))
    head = struct.pack("!BBHHHBBH", *words, more.get("fragment", 0x4000), ttl, protocol, 0) + src + dst + options
    return head[:10] + meaning.checksum(head).to_bytes(2, "big") + head[12:] + body


def tcp(payload: bytes, src: bytes, dst: bytes, flags: int = 0x10, sequence: int = 1, **more: Any) -> bytes:
    """With the checksum that it should have. `ports`, `window` and `tcp_options` may be given."""
    options: bytes = more.pop("tcp_options", b"")
    ports: bytes = more.pop("ports", b"\x10\x00\x20\x00")
    offset = (20 + len(options)) // 4 << 4
    body = ports + struct.pack("!IIBBHHH", sequence & 0xFFFFFFFF, 7, offset, flags, more.pop("window", 500), 0, 0)
    body += options + payload
    pseudo = src + dst + bytes((0, TCP)) + len(body).to_bytes(2, "big")
    body = body[:16] + meaning.checksum(pseudo + body).to_bytes(2, "big") + body[18:]
    return ipv4(TCP, body, src, dst, **more)


def udp(payload: bytes, src: bytes, dst: bytes, **more: Any) -> bytes:
    body = more.pop("ports", b"\x10\x00\x20\x00") + struct.pack("!HH", 8 + len(payload), 0) + payload
    pseudo = src + dst + bytes((0, UDP)) + len(body).to_bytes(2, "big")
    value = meaning.checksum(pseudo + body) or 0xFFFF
    return ipv4(UDP, body[:6] + value.to_bytes(2, "big") + body[8:], src, dst, **more)


def repaired(packet: bytes) -> bytes:
    """TCP or UDP without options of IP, with the checksums that it should have."""
    head = packet[:10] + b"\0\0" + packet[12:20]
    head = head[:10] + meaning.checksum(head).to_bytes(2, "big") + head[12:]
    at = 36 if packet[9] == TCP else 26
    body = packet[20:at] + b"\0\0" + packet[at + 2 :]
    pseudo = packet[12:20] + bytes((0, packet[9])) + len(body).to_bytes(2, "big")
    value = meaning.checksum(pseudo + body) or 0xFFFF
    return head + body[: at - 20] + value.to_bytes(2, "big") + body[at - 18 :]


DETAILS = (1, 6, 8, *range(22, 36), 38, 39, 40)
"""Bytes of a packet in which those that follow one another may differ: of IP, and of TCP or UDP."""


@dataclass
class Batch:
    """What goes in together: (kind L, host, 0, frame), (kind A, host, size of each, datagrams)."""

    records: list[tuple[str, bytes, int, bytes]]
    packets: int = 0


class Maker:
    """Packets of all kinds, some of them broken; the same from the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._noise = self._random.randbytes(1 << 17)
        self._frames = [self._frame() for _ in range(4000)]
        arrivals = (self._arrival() for _ in range(4000))
        self._arrivals = [(size, len(packets) > 1, b"".join(packets)) for size, packets in arrivals]

    def batch(self) -> Batch:
        rand = self._random.random
        made = Batch([])
        for _ in range(int(rand() * 40) + 1):
            if rand() < 0.5:
                frame = self._frames[int(rand() * len(self._frames))]
                made.records.append(("L", b"\0\0\0\0", 0, self._broken(frame)))
                made.packets += 1
            else:
                size, many, data = self._arrivals[int(rand() * len(self._arrivals))]
                host = HOSTS[int(rand() ** 3 * len(HOSTS))]
                data = self._broken(data)
                made.records.append(("A", host, size if many else 0, data))
                made.packets += -(-len(data) // size) if many and data else 1
        return made

    def _broken(self, data: bytes) -> bytes:
        """Half of them are left alone; others are cut short, get longer, or have other bytes."""
        rand = self._random.random
        if rand() < 0.5 or not data:
            return data
        what = rand()
        if what < 0.1:
            return data[: int(rand() * (len(data) + 1))]
        if what < 0.2:
            return data + self._some(int(rand() * 50))
        changed = bytearray(data)
        for _ in range(int(rand() * 3) + 1):
            changed[int(rand() ** 2 * min(len(changed), 90))] = int(rand() * 256)
        return bytes(changed)

    def _some(self, count: int) -> bytes:
        at = int(self._random.random() * (len(self._noise) - count))
        return self._noise[at : at + count]

    def _packet(self) -> bytes:
        """One of any kind, whose headers are right."""
        pick = self._random
        src, dst, ttl = pick.choice(FROM), pick.choice(TO), pick.choice((0, 1, 2, 3, 64, 255))
        more: dict[str, Any] = {"ttl": ttl, "ident": pick.randrange(65536), "tos": pick.choice((0, 0, 3, 0xB8))}
        more["fragment"] = pick.choice((0x4000, 0x4000, 0, 0x2000, 0x00B9, 0x8000))
        more["options"] = pick.choice((b"", b"", b"", b"\x01" * 4, b"\x94\x04\0\0", b"\x07" + b"\x27" * 39))
        payload = self._some(pick.choice((0, 1, 2, 8, 63, 100, 300)))
        kind = pick.random()
        if kind < 0.35:
            return tcp(payload, src, dst, pick.choice((0x10, 0x18, 0x02, 0x11, 0xD0, 0x04)), **more)
        if kind < 0.65:
            return udp(payload, src, dst, **more)
        if kind < 0.9:
            body = bytes((pick.choice((0, 3, 5, 8, 11, 13, 40)),)) + payload
            return ipv4(meaning.ICMP, body[: pick.choice((0, 1, 8, 64))], src, dst, **more)
        return ipv4(pick.randrange(256), payload, src, dst, **more)

    def _large(self) -> tuple[Vnet, bytes]:
        """One that stands for many, as the kernel gives and takes them."""
        pick = self._random
        src, dst = pick.choice(FROM[:3]), pick.choice(TO[:4])
        more: dict[str, Any] = {"ttl": pick.choice((1, 2, 64)), "ident": pick.choice((0, 65530))}
        more["fragment"] = pick.choice((0x4000, 0))
        more["ports"] = bytes((16, pick.randrange(12), 32, 0))
        size = pick.choice((1, 7, 64, 536, 1432))
        payload = self._some(int(size * (pick.choice((0, 0.5, 1, 1.9, 2, 3, 5.1)) if pick.random() < 0.99 else 40)))
        if pick.random() < 0.5:
            more["tcp_options"] = pick.choice((b"", b"\x01" * 12))
            made = tcp(payload, src, dst, pick.choice((0x10, 0x18, 0x19, 0x98)), pick.choice((5, 2**32 - 9)), **more)
            return Vnet(NEEDS_CSUM, GSO_TCPV4 | pick.choice((0, 0x80)), 40, size, 20, 16), made
        return Vnet(NEEDS_CSUM, GSO_UDP_L4, 28, size, 20, 6), udp(payload, src, dst, **more)

    def _frame(self) -> bytes:
        pick = self._random
        kind = pick.random()
        if kind < 0.3:
            vnet, large = self._large()
            return VNET.pack(*vnet) + large
        one = self._packet()
        if kind < 0.6:
            start = (one[0] & 15) * 4
            end = max(0, len(one) - start - pick.randrange(4))
            return VNET.pack(NEEDS_CSUM, 0, 0, 0, start, {TCP: 16, UDP: 6}.get(one[9], end)) + one
        if kind < 0.65:
            return self._some(10) + one
        return (PLAIN + one) if kind < 0.97 else self._some(pick.randrange(60))

    def _arrival(self) -> tuple[int, list[bytes]]:
        """Packets of one datagram, or of many of one size, the last of which may be shorter."""
        pick = self._random
        if pick.random() < 0.6:
            one = self._packet() if pick.random() < 0.97 else self._some(pick.randrange(60))
            return len(one) or 1, [one]
        vnet, large = self._large()
        pieces = meaning.cut(vnet, large) or [large]
        if pick.random() < 0.4:
            which, at = pick.randrange(len(pieces)), pick.choice(DETAILS)
            changed = bytearray(pieces[which])
            if at < len(changed):
                changed[at] ^= 1 << pick.randrange(8)
                pieces[which] = repaired(bytes(changed))
        if pick.random() < 0.2:
            pieces.insert(pick.randrange(len(pieces)), self._packet())
        size = len(pieces[0])
        fitting = [piece for piece in pieces if len(piece) == size]
        return size, fitting + [piece for piece in pieces if len(piece) < size][-1:]


# --- the program, and its meaning ---------------------------------------------------------------------------------


@dataclass
class Answer:
    """Of a batch. Packets for the device are by connection: only within one does their order matter."""

    sent: list[tuple[bytes, int, bytes]] = field(default_factory=list)
    written: dict[bytes, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    told: list[bytes] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)


DROPS = frozenset(name for name in COUNTERS[:-1] if not name.endswith(("_packets", "_bytes", "_calls", "_refused")))


def connection(packet: bytes) -> bytes:
    """Addresses and protocol; of TCP and UDP the ports, where a packet has them."""
    header = (packet[0] & 15) * 4
    ports = packet[9] in (TCP, UDP) and not (packet[6] << 8 | packet[7]) & 0x3FFF
    return packet[9:10] + packet[12:20] + (packet[header : header + 4] if ports else b"")


def dump_batches(batches: Sequence[Batch], ways: Sequence[Way] = WAYS) -> bytes:
    """As the program reads them."""
    table = dump(LOCAL, ways)
    parts = [RECORD.pack(ord("T"), 0, struct.unpack("=I", table[:4])[0], len(table) - 4), table[4:]]
    for batch in batches:
        for kind, host, size, data in batch.records:
            parts += (RECORD.pack(ord(kind), size, int.from_bytes(host, "little"), len(data)), data)
        parts.append(RECORD.pack(ord("E"), 0, 0, 0))
    return b"".join(parts)


@lru_cache(16384)
def left(frame: bytes) -> Sequence[Any]:
    """Half of all frames come again."""
    return meaning.leave(TABLE, frame)


@lru_cache(16384)
def arrived(host: bytes, data: bytes) -> Sequence[Any]:
    return meaning.arrive(TABLE, host, data)


def meant(batch: Batch) -> Answer:
    answer = Answer()
    for kind, host, size, data in batch.records:
        if kind == "L":
            found = left(data)
        else:
            pieces = [data[at : at + size] for at in range(0, len(data), size)] if size else [data]
            found = [one for piece in pieces or [b""] for one in arrived(host, piece)]
        for one in found:
            match one:
                case meaning.Datagram(node, port, packet):
                    answer.sent.append((node.packed, port, packet))
                case meaning.Written(packet):
                    answer.written[connection(packet)].append(packet)
                case meaning.Told(packet):
                    answer.told.append(packet)
                case meaning.Dropped(why):
                    answer.counted[f"{'sent' if kind == 'L' else 'received'}_{why}"] += 1
    return answer


def replayed(program: Path, given: bytes, directory: Path) -> Iterator[Answer]:
    """What the program makes of it, batch by batch. It must end well."""
    source, target = directory / "given", directory / "made"
    source.write_bytes(given)
    with source.open("rb") as stdin, target.open("wb") as stdout:
        done = subprocess.run(
            [program, "replay"], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    yield from _answers(target.read_bytes())


def _answers(said: bytes) -> Iterator[Answer]:
    at, answer, first = 0, Answer(), True
    while at < len(said):
        kind, size, host, length = RECORD.unpack_from(said, at)
        body = said[at + RECORD.size : at + RECORD.size + length]
        at += RECORD.size + length
        match chr(kind):
            case "D":
                answer.sent.append((host.to_bytes(4, "little"), size >> 8 | (size & 255) << 8, body))
            case "I":
                answer.told.append(body)
            case "P":
                vnet, packet = Vnet(*VNET.unpack_from(body)), body[VNET.size :]
                pieces = meaning.cut(vnet, packet) if vnet.gso_type else [packet]
                assert pieces is not None, (vnet, packet)
                answer.written[connection(packet)] += pieces
            case "E":
                counts = struct.unpack(f"={len(COUNTERS)}Q", body)
                found = zip(COUNTERS, counts, strict=True)
                answer.counted = Counter({name: count for name, count in found if count and name in DROPS})
                if not first:  # the first is that of the table
                    yield answer
                answer, first = Answer(), False
