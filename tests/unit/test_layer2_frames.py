"""ARP and neighbour messages: bytes as the RFCs draw them, and anything else never harms."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.base.addr import IP
from tortie.proxy.layer2.frames import Heard, announcements, answer, multicast_mac, probe, read, solicited_node

MINE, YOURS = bytes.fromhex("020000000001"), bytes.fromhex("02000000000a")
VIP, VIP6 = IPv4Address("192.0.2.100"), IPv6Address("fd00::1:100")
CLIENT, CLIENT6 = IPv4Address("192.0.2.9"), IPv6Address("fe80::9")
GROUP = IPv6Address("ff02::1:ff01:100")


def sealed(source: IPv6Address, to: IPv6Address, message: str) -> bytes:
    """An ICMPv6 message with its checksum reckoned the long way, at octets 2 and 3."""
    body = bytes.fromhex(message)
    words = source.packed + to.packed + len(body).to_bytes(4, "big") + bytes([0, 0, 0, 58]) + body
    total = sum(int.from_bytes(words[i : i + 2], "big") for i in range(0, len(words), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return body[:2] + (0xFFFF - total).to_bytes(2, "big") + body[4:]


def ipv6(to_mac: str, source: IPv6Address, to: IPv6Address, message: str, hops: int = 255) -> bytes:
    body = sealed(source, to, message)
    head = bytes.fromhex(to_mac) + YOURS + bytes.fromhex("86dd60000000") + len(body).to_bytes(2, "big")
    return head + bytes([58, hops]) + source.packed + to.packed + body


TARGET = VIP6.packed.hex()
SOLICITATION = ipv6("3333ff010100", CLIENT6, GROUP, "8700000000000000" + TARGET + "010102000000000a")
PROBE6 = ipv6("3333ff010100", IPv6Address(0), GROUP, "8700000000000000" + TARGET)
ADVERTISEMENT = ipv6("333300000001", VIP6, IPv6Address("ff02::1"), "8800000020000000" + TARGET + "020102000000000a")


def arp(operation: int, sender: bytes, source: str, target: str) -> bytes:
    head = b"\xff" * 6 + sender + bytes.fromhex("0806000108000604")
    return (
        head
        + struct.pack("!H", operation)
        + sender
        + IPv4Address(source).packed
        + bytes(6)
        + IPv4Address(target).packed
    )


# --- what is heard ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "heard"),
    [
        (arp(1, YOURS, "192.0.2.9", "192.0.2.100"), Heard(YOURS, VIP, CLIENT, CLIENT)),
        (arp(1, YOURS, "0.0.0.0", "192.0.2.100"), Heard(YOURS, VIP)),
        (arp(1, YOURS, "192.0.2.100", "192.0.2.100"), Heard(YOURS, None, VIP, VIP)),
        (arp(2, YOURS, "192.0.2.100", "192.0.2.9"), Heard(YOURS, None, VIP, VIP)),
        (SOLICITATION, Heard(YOURS, VIP6, CLIENT6)),
        (PROBE6, Heard(YOURS, VIP6)),
        (ADVERTISEMENT, Heard(YOURS, claimed=VIP6)),
    ],
)
def test_frames_are_read(frame: bytes, heard: Heard) -> None:
    assert read(frame) == heard
    assert read(frame + bytes(20)) == heard  # padding up to Ethernet's least length


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        arp(1, YOURS, "192.0.2.9", "192.0.2.100")[:-1],
        arp(3, YOURS, "192.0.2.9", "192.0.2.100"),  # RARP
        arp(1, b"\xff" * 6, "192.0.2.9", "192.0.2.100"),  # an answer would go to everybody
        arp(2, YOURS, "0.0.0.0", "0.0.0.0"),
        arp(1, YOURS, "192.0.2.9", "192.0.2.100").replace(b"\x00\x01\x08\x00\x06\x04", b"\x00\x06\x08\x00\x06\x04"),
        SOLICITATION[:-1],
        SOLICITATION[:60] + b"\x01" + SOLICITATION[61:],  # the checksum
        ipv6("3333ff010100", CLIENT6, GROUP, "8700000000000000" + TARGET, hops=254),  # a router has passed it on
        ipv6("3333ff010100", CLIENT6, GROUP, "8701000000000000" + TARGET),  # a code
        ipv6("3333ff010100", CLIENT6, GROUP, "8700000000000000" + "ff" + TARGET[2:]),  # a group as target
        ipv6("3333ff010100", CLIENT6, GROUP, "8700000000000000" + TARGET + "0100000000000000"),  # no length
        ipv6("3333ff010100", CLIENT6, GROUP, "8700000000000000" + TARGET + "01"),
        ipv6("3333ff010100", IPv6Address(0), GROUP, "8700000000000000" + TARGET + "010102000000000a"),
        ipv6("3333ff010100", IPv6Address(0), VIP6, "8700000000000000" + TARGET),
        ipv6("333300000001", VIP6, IPv6Address("ff02::1"), "8800000040000000" + TARGET),  # solicited, and to all
        ipv6("333300000001", CLIENT6, IPv6Address("ff02::1"), "8600000040000000" + TARGET),  # a router's
    ],
)
def test_what_is_none_of_ours_is_passed_over(frame: bytes) -> None:
    assert read(frame) is None


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_anything_is_read_without_harm(frame: bytes) -> None:
    read(frame)
    for kind in (b"\x08\x06", b"\x86\xdd"):
        read(frame[:12] + kind + frame[12:])


@given(
    st.sampled_from([SOLICITATION, PROBE6, ADVERTISEMENT, arp(1, YOURS, "192.0.2.9", "192.0.2.100")]),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=4),
    st.integers(0, 120),
)
@settings(max_examples=300)
def test_what_is_damaged_is_read_without_harm(frame: bytes, damage: list[tuple[int, int]], length: int) -> None:
    broken = bytearray(frame)
    for at, byte in damage:
        broken[at % len(broken)] = byte
    heard = read(bytes(broken[:length]))
    if heard is not None and heard.asked is not None:
        assert not heard.mac[0] & 1
        answer(heard, MINE)


# --- what is said -----------------------------------------------------------------------------------------------------


def test_an_arp_answer_in_bytes() -> None:
    said = answer(Heard(YOURS, VIP, CLIENT, CLIENT), MINE)
    assert said.hex(" ", 2) == (
        "0200 0000 000a 0200 0000 0001 0806 0001 0800 0604 0002 0200 0000 0001 c000 0264 0200 0000 000a c000 0209"
    )


def test_an_advertisement_in_bytes() -> None:
    said = answer(Heard(YOURS, VIP6, CLIENT6), MINE)
    message = "8800000060000000" + TARGET + "0201020000000001"
    expected = ipv6("02000000000a", VIP6, CLIENT6, message)
    assert said == expected[:6] + MINE + expected[12:]


def test_who_has_no_address_yet_is_told_with_all_others() -> None:
    assert read(answer(Heard(YOURS, VIP6), MINE)) == Heard(MINE, claimed=VIP6)
    assert answer(Heard(YOURS, VIP6), MINE)[:6] == multicast_mac(IPv6Address("ff02::1"))
    assert read(answer(Heard(YOURS, VIP), MINE)) == Heard(MINE, None, VIP, VIP)


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6))
def test_probes_and_announcements_are_understood(ip: IP) -> None:
    if ip.is_multicast or ip.is_unspecified:
        return
    assert read(probe(ip, MINE)) == Heard(MINE, ip)
    for frame in announcements(ip, MINE):
        heard = read(frame)
        assert heard is not None
        assert (heard.mac, heard.asked, heard.claimed) == (MINE, None, ip)


def test_the_group_of_an_address() -> None:
    assert solicited_node(VIP6) == GROUP
    assert multicast_mac(GROUP).hex() == "3333ff010100"
