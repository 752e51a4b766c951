"""Who sends what to whom, read from the bytes of packets: built by hand, built at random, cut short, and garbage."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.kernel.headers import Headers, read

V4 = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.2")
V6 = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")
TCP = struct.pack(">HHIIHHHH", 41000, 80, 1, 0, 0x5002, 64240, 0, 0)

ports = st.integers(0, 65535)
with_ports = st.sampled_from((6, 17, 33, 132, 136))


def ipv4(protocol: int, body: bytes, *, options: bytes = b"", offset: int = 0, more: bool = False) -> bytes:
    size = 20 + len(options)
    where = offset // 8 | (0x2000 if more else 0)
    head = struct.pack(">BBHHHBBH", 0x40 | size // 4, 0, size + len(body), 7, where, 64, protocol, 0)
    return head + V4[0].packed + V4[1].packed + options + body


def ipv6(first: int, body: bytes) -> bytes:
    return struct.pack(">IHBB", 0x60012345, len(body), first, 64) + V6[0].packed + V6[1].packed + body


def extension(following: int, units: int = 0) -> bytes:
    """Hop-by-hop, routing or destination options: 8 bytes, and 8 more for each unit."""
    return bytes([following, units]) + bytes(6 + 8 * units)


def fragment(following: int, offset: int = 0, more: bool = True) -> bytes:
    return struct.pack(">BBHI", following, 0, offset | more, 99)


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (ipv4(6, TCP), Headers(*V4, 6, (41000, 80))),
        (ipv4(6, TCP, options=bytes(40)), Headers(*V4, 6, (41000, 80))),
        (ipv4(132, TCP[:12]), Headers(*V4, 132, (41000, 80))),
        (ipv4(1, b"\x08\x00\xff\xff\x00\x01\x00\x01"), Headers(*V4, 1, icmp=(8, 0))),
        # An error quotes the packet that it is about; the ports in there are not its own.
        (ipv4(1, b"\x03\x03\0\0\0\0\0\0" + ipv4(17, TCP[:8])), Headers(*V4, 1, icmp=(3, 3))),
        (ipv4(58, b"\x80\0\0\0"), Headers(*V4, 58)),  # ICMPv6 is none over IPv4
        (ipv4(17, TCP[:8], more=True), Headers(*V4, 17, (41000, 80))),
        (ipv4(17, TCP[:8], offset=1480), Headers(*V4, 17)),
        (ipv4(1, b"\x08\x00\xff\xff", offset=8, more=True), Headers(*V4, 1)),
        (ipv4(47, bytes(8)), Headers(*V4, 47)),
        (ipv4(6, TCP[:3]), Headers(*V4, 6)),
        (ipv4(6, TCP, options=bytes(40))[:50], Headers(*V4, 6)),
        (ipv6(17, TCP[:8]), Headers(*V6, 17, (41000, 80))),
        (ipv6(58, b"\x87\0\0\0" + bytes(20)), Headers(*V6, 58, icmp=(135, 0))),
        (ipv6(58, b"\x01\x04\0\0\0\0\0\0" + ipv6(6, TCP)), Headers(*V6, 58, icmp=(1, 4))),
        (ipv6(1, b"\x08\x00"), Headers(*V6, 1)),
        (ipv6(0, extension(43, 1) + extension(60, 2) + extension(6) + TCP), Headers(*V6, 6, (41000, 80))),
        (ipv6(51, b"\x06\x04" + bytes(22) + TCP), Headers(*V6, 6, (41000, 80))),  # authentication counts by 4 bytes
        (ipv6(44, fragment(17) + TCP[:8]), Headers(*V6, 17, (41000, 80))),
        (ipv6(44, fragment(17, 1280) + TCP[:8]), Headers(*V6, 17)),
        (ipv6(44, fragment(60, 1280) + extension(6) + TCP), Headers(*V6, 60)),  # not an extension header in fact
        (ipv6(59, TCP), Headers(*V6, 59)),
        (ipv6(50, TCP), Headers(*V6, 50)),
        (ipv6(0, extension(6, 30)[:100]), Headers(*V6, 6)),
        (ipv6(0, b"\x06\x00"), Headers(*V6, 0)),
    ],
)
def test_packets_by_hand(packet: bytes, expected: Headers) -> None:
    assert read(packet) == expected


@pytest.mark.parametrize("packet", [b"", b"\x45", b"\x55" + bytes(60), ipv4(6, b"")[:19], ipv6(6, b"")[:39], bytes(60)])
def test_what_is_no_ip_packet(packet: bytes) -> None:
    with pytest.raises(ValueError, match="IP"):
        read(packet)


def test_a_header_that_says_it_is_shorter_than_one_is_none() -> None:
    with pytest.raises(ValueError, match="12 bytes"):
        read(b"\x43" + ipv4(6, TCP)[1:])


@given(with_ports, ports, ports, st.binary(max_size=60), st.integers(0, 10))
def test_what_was_written_is_read(protocol: int, source: int, destination: int, rest: bytes, words: int) -> None:
    body = struct.pack(">HH", source, destination) + rest
    assert read(ipv4(protocol, body, options=bytes(4 * words))) == Headers(*V4, protocol, (source, destination))
    assert read(ipv6(protocol, body)) == Headers(*V6, protocol, (source, destination))


@given(st.lists(st.tuples(st.sampled_from((0, 43, 60, 135, 139, 140)), st.integers(0, 3)), max_size=6), with_ports)
def test_extension_headers_in_any_order(chain: list[tuple[int, int]], protocol: int) -> None:
    kinds = [*(kind for kind, _ in chain), protocol]
    body = b"".join(extension(following, units) for (_, units), following in zip(chain, kinds[1:], strict=True))
    assert read(ipv6(kinds[0], body + TCP)) == Headers(*V6, protocol, (41000, 80))


@given(st.binary(max_size=128))
def test_garbage_is_read_or_refused(packet: bytes) -> None:
    try:
        found = read(packet)
    except ValueError:
        return
    assert found.source.version == found.destination.version == packet[0] >> 4
    assert found.ports is None or found.icmp is None


@given(st.binary(max_size=88), st.sampled_from((0, 6, 17, 43, 44, 51, 58, 60, 132)))
def test_garbage_behind_a_good_header(body: bytes, first: int) -> None:
    assert read(ipv6(first, body)).source == V6[0]
    assert read(ipv4(first, body)).destination == V4[1]


@given(st.sampled_from([ipv4(6, TCP), ipv6(0, extension(6) + TCP), ipv6(58, b"\x80\0\0\0")]), st.data())
def test_a_shorter_packet_says_less_and_nothing_else(packet: bytes, data: st.DataObject) -> None:
    whole = read(packet)
    part = packet[: data.draw(st.integers(40, len(packet)))]
    found = read(part)
    assert (found.source, found.destination) == (whole.source, whole.destination)
    assert found.ports in (None, whole.ports)
    assert found.icmp in (None, whole.icmp)
