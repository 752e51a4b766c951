"""The udp backend: what becomes of one packet, what is wanted of the kernel, and what the proxy is told."""

from __future__ import annotations

import re
import struct
from ipaddress import IPv4Address, IPv4Network, ip_interface, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_packets import HOSTS, LOCAL, TABLE, TO, WAYS, ipv4, tcp, udp
from tortie.base.errors import ConfigError, NotSupported
from tortie.flannel import backends
from tortie.flannel.backend import Setting
from tortie.flannel.backends.udp import ways
from tortie.flannel.config import Family, NetworkConfig
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.state import Device, External, Place, Site, Tun
from tortie.flannel.state import Path as Route
from tortie.flannel.udp import build, tun
from tortie.flannel.udp import packet as meaning
from tortie.flannel.udp.packet import NEEDS_CSUM, PLAIN, VNET, Datagram, Dropped, Told, Vnet, Written
from tortie.flannel.udp.proxy import ABILITIES, COUNTERS, Way, dump
from tortie.kernel.links import Link

POD = IPv4Address("10.5.1.2").packed
SOURCES = Path(build.__file__).parent


def fields(packet: bytes) -> tuple[int, int, bytes, bytes]:
    """TTL, protocol, source, destination; the header's checksum has to be right."""
    assert meaning.ones_sum(packet[: (packet[0] & 15) * 4]) == 0xFFFF
    return packet[8], packet[9], packet[12:16], packet[16:20]


# --- one packet ---------------------------------------------------------------------------------------------------


def test_a_changed_checksum_is_never_minus_zero() -> None:
    """RFC 1624: the older way of RFC 1141 makes FFFF where 0000 is meant. Some of all headers come to that."""
    for ident in range(65536):
        before, after = ipv4(17, b"", POD, TO[0], ident=ident), ipv4(17, b"", POD, TO[0], 63, ident=ident)
        assert meaning.passed_on(before) == after


@given(st.integers(0, 65535), st.integers(2, 255), st.integers(0, 255), st.binary(max_size=40))
def test_a_hop_keeps_the_checksum_right(ident: int, ttl: int, protocol: int, body: bytes) -> None:
    packet = meaning.passed_on(ipv4(protocol, body, POD, TO[0], ttl, ident=ident))
    assert fields(packet) == (ttl - 1, protocol, POD, TO[0])
    assert packet == ipv4(protocol, body, POD, TO[0], ttl - 1, ident=ident)


def test_a_hop_does_not_make_a_wrong_checksum_right() -> None:
    packet = bytearray(udp(b"x", POD, TO[0]))
    packet[10] ^= 1
    assert meaning.ones_sum(meaning.passed_on(bytes(packet))[:20]) != 0xFFFF


def test_a_hop_from_node_to_node_costs_two() -> None:
    packet = udp(b"x", POD, TO[0], ttl=64)
    (sent,) = meaning.leave(TABLE, PLAIN + packet)
    assert isinstance(sent, Datagram)
    assert (str(sent.node), sent.port) == ("192.0.2.2", 8285)
    (written,) = meaning.arrive(TABLE, HOSTS[0], sent.packet)
    assert isinstance(written, Written)
    assert written.packet == udp(b"x", POD, TO[0], ttl=62)


def test_the_most_specific_subnet_wins() -> None:
    found = [meaning.leave(TABLE, PLAIN + udp(b"", POD, to))[0] for to in (TO[1], TO[2])]
    assert [str(one.node) for one in found if isinstance(one, Datagram)] == ["192.0.2.3", "192.0.2.4"]


def test_who_sends_to_a_subnet_of_nobody_is_told() -> None:
    """From the tunnel's address with a TTL of 8, quoting the header and eight bytes."""
    packet = udp(b"payload", POD, IPv4Address("10.5.9.9").packed)
    dropped, told = meaning.leave(TABLE, PLAIN + packet)
    assert dropped == Dropped("unreachable")
    assert isinstance(told, Told)
    assert fields(told.packet) == (8, 1, LOCAL.packed, POD)
    assert told.packet[20:22] == b"\x03\x00"
    assert told.packet[28:] == packet[:28]
    assert meaning.ones_sum(told.packet[20:]) == 0xFFFF


@pytest.mark.parametrize("ttl", [0, 1])
def test_whose_ttl_ends_is_told_on_either_side(ttl: int) -> None:
    packet = udp(b"", POD, TO[0], ttl=ttl)
    for answers in (meaning.leave(TABLE, PLAIN + packet), meaning.arrive(TABLE, HOSTS[0], packet)):
        dropped, told = answers
        assert dropped == Dropped("expired")
        assert isinstance(told, Told)
        assert told.packet[20:22] == b"\x0b\x00"
        assert fields(told.packet) == (8, 1, LOCAL.packed, POD)


NOWHERE = IPv4Address("10.5.9.9").packed
SILENT = {
    "an ICMP error": ipv4(1, b"\x03\x00" + bytes(20), POD, NOWHERE),
    "ICMP without a type": ipv4(1, b"", POD, NOWHERE),
    "not the first fragment": ipv4(17, bytes(16), POD, NOWHERE, fragment=0x0002),
    "from everybody": udp(b"", bytes(4), NOWHERE),
    "from a multicast address": udp(b"", b"\xe0\0\0\1", NOWHERE),
    "from loopback": udp(b"", b"\x7f\0\0\1", NOWHERE),
    "to a multicast address": udp(b"", POD, b"\xe0\0\0\5"),
    "with a damaged header": b"\x45\x01" + udp(b"", POD, NOWHERE)[2:],
}


@pytest.mark.parametrize("what", SILENT)
def test_nobody_is_told(what: str) -> None:
    assert meaning.leave(TABLE, PLAIN + SILENT[what]) == [Dropped("unreachable")]


def test_a_ping_and_a_first_fragment_are_told() -> None:
    for packet in (ipv4(1, b"\x08\x00" + bytes(20), POD, NOWHERE), ipv4(17, bytes(16), POD, NOWHERE, fragment=0x2000)):
        assert len(meaning.leave(TABLE, PLAIN + packet)) == 2


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (b"", "malformed"),
        (b"\x45" + bytes(18), "malformed"),
        (b"\x60" + bytes(59), "not_ipv4"),
        (b"\x44" + udp(b"", POD, TO[0])[1:], "malformed"),
        (b"\x4f" + udp(b"", POD, TO[0])[1:], "malformed"),
        (udp(b"12345678", POD, TO[0])[:-1], "malformed"),
        (udp(b"", POD, TO[0])[:2] + b"\0\x13" + udp(b"", POD, TO[0])[4:], "malformed"),
    ],
)
def test_what_is_no_packet(packet: bytes, why: str) -> None:
    assert meaning.leave(TABLE, PLAIN + packet) == [Dropped(why)]
    assert meaning.arrive(TABLE, HOSTS[0], packet) == [Dropped(why)]


def test_what_follows_a_packet_goes_no_further() -> None:
    (written,) = meaning.arrive(TABLE, HOSTS[0], udp(b"x", POD, TO[0]) + b"more")
    assert written == Written(udp(b"x", POD, TO[0], ttl=63))


def test_options_stay() -> None:
    (sent,) = meaning.leave(TABLE, PLAIN + udp(b"x", POD, TO[0], options=b"\x94\x04\0\0"))
    assert isinstance(sent, Datagram)
    assert sent.packet == udp(b"x", POD, TO[0], ttl=63, options=b"\x94\x04\0\0")


def test_who_is_no_node_is_not_heard() -> None:
    assert meaning.arrive(TABLE, HOSTS[3], udp(b"x", POD, TO[0])) == [Dropped("stranger")]


def test_a_large_packet_is_cut_into_what_would_have_been_sent() -> None:
    whole = tcp(bytes(range(250)) * 2, POD, TO[0], flags=0x18, sequence=2**32 - 100, ident=65535)
    frame = VNET.pack(*Vnet(NEEDS_CSUM, meaning.GSO_TCPV4, 40, 200, 20, 16)) + whole
    sent = [one.packet for one in meaning.leave(TABLE, frame) if isinstance(one, Datagram)]
    data = bytes(range(250)) * 2
    assert sent == [
        tcp(data[:200], POD, TO[0], 0x10, 2**32 - 100, ident=65535, ttl=63),
        tcp(data[200:400], POD, TO[0], 0x10, 100, ident=0, ttl=63),
        tcp(data[400:], POD, TO[0], 0x18, 300, ident=1, ttl=63),
    ]


def test_a_checksum_that_was_left_to_the_device() -> None:
    right = udp(b"hello", POD, TO[0])
    partial = meaning.ones_sum(right[12:20] + bytes((0, 17)) + (13).to_bytes(2, "big"))
    frame = VNET.pack(*Vnet(NEEDS_CSUM, 0, 0, 0, 20, 6)) + right[:26] + partial.to_bytes(2, "big") + right[28:]
    (sent,) = meaning.leave(TABLE, frame)
    assert isinstance(sent, Datagram)
    assert sent.packet == udp(b"hello", POD, TO[0], ttl=63)


# --- what is told to the proxy ------------------------------------------------------------------------------------


def test_counters_have_the_names_of_the_header_file() -> None:
    text = (SOURCES / "outlet.h").read_text()
    (body,) = re.findall(r"enum counter \{(.*?)\}", text, re.DOTALL)
    assert tuple(name.lower() for name in re.findall(r"\w+", body)[:-1]) == COUNTERS
    (body,) = re.findall(r"struct abilities \{(.*?)\n\}", (SOURCES / "kernel.h").read_text(), re.DOTALL)
    assert len(re.findall(r"\w+(?=[,;])", re.sub(r"/\*.*?\*/", "", body))) == len(ABILITIES)


def test_the_form_of_a_table() -> None:
    assert dump(LOCAL, WAYS[:1]).hex() == "0a050100" + "0a050200" + "c0000202" + "205d" + "18" + "00"
    assert len(dump(LOCAL, WAYS)) == 4 + 3 * struct.calcsize("4s4sHBx")


# --- what is wanted -----------------------------------------------------------------------------------------------

CONFIG = NetworkConfig(
    Family(ip_network("10.5.0.0/16"), 24, IPv4Address("10.5.1.0"), IPv4Address("10.5.255.0")), None, "udp", {}
)
SITE = Site(CONFIG, External("eth0", 2, 1500, IPv4Address("192.0.2.1")), IPv4Address("192.0.2.1"))
PLACE = Place(SITE, Lease(IPv4Network("10.5.1.0/24"), None, Attrs(IPv4Address("192.0.2.1"))))


def lease(number: int, host: str | None = None) -> Lease:
    public = IPv4Address(host or f"192.0.2.{number}") if host != "" else None
    return Lease(IPv4Network(f"10.5.{number}.0/24"), None, Attrs(public), node=f"node{number}")


def loaded(**options: object) -> object:
    return backends.load(NetworkConfig(CONFIG.v4, None, "udp", options), Setting())


def test_the_state_that_it_wants() -> None:
    made = backends.load(CONFIG, Setting())
    assert (made.published_type, made.versions, made.watches, made.asks_ways) == ("", {4}, True, False)
    assert made.mtu(SITE) == 1472
    state = made.want(PLACE, [lease(2), lease(3, "")], {})
    assert state.devices == (Device("flannel0", Tun(), 1472, addresses=(ip_interface("10.5.1.0/32"),)),)
    assert state.paths == (Route(ip_network("10.5.0.0/16"), "flannel0"),)
    assert [line for line in state.problems if "node3" in line and "no public IPv4 address" in line]
    assert made.counters() == {}  # type: ignore[attr-defined]


def test_the_ways_of_leases() -> None:
    found = ways(PLACE, [lease(2), lease(3, ""), lease(1), lease(4, "192.0.2.2")], 9000)
    host = IPv4Address("192.0.2.2")
    assert found == (Way(IPv4Network("10.5.2.0/24"), host, 9000), Way(IPv4Network("10.5.4.0/24"), host, 9000))


@pytest.mark.parametrize("port", [0, 65536, "8285", True])
def test_a_port_that_is_none(port: object) -> None:
    with pytest.raises(ConfigError, match=r"^Backend\.Port: .* is not a whole number from 1 to 65535$"):
        loaded(Port=port)


def test_which_device_is_taken() -> None:
    def link(name: str, kind: str = "tun", alias: str = "") -> Link:
        return Link(1, name, kind, alias=alias)

    def first(*there: Link) -> list[str]:
        return list(tun.candidates({each.name: each for each in there}, "tortie flannel 10.5.0.0/16"))[:2]

    own = link("flannel3", alias="tortie flannel 10.5.0.0/16")
    other = link("flannel0", alias="tortie flannel 10.6.0.0/16")
    assert first() == ["flannel0", "flannel1"]
    assert first(other, own) == ["flannel3"], "and no other, even when it is in use"
    assert first(other) == ["flannel1", "flannel2"]
    assert first(link("flannel0")) == ["flannel0", "flannel1"], "one that a killed daemon left without a name"
    assert first(link("flannel0", "dummy")) == ["flannel1", "flannel2"]


# --- the program --------------------------------------------------------------------------------------------------


def test_without_a_compiler_one_that_is_there_is_taken(tmp_path: Path) -> None:
    nowhere, ready = tmp_path / "nowhere", tmp_path / "ready"
    with pytest.raises(NotSupported, match=r"there is no no-such-cc to compile it: install gcc and libc6-dev"):
        build.program(nowhere, "no-such-cc", prebuilt=ready, cache=nowhere)
    made = build.build(ready)
    assert build.program(nowhere, "no-such-cc", prebuilt=ready, cache=nowhere) == made
    made.write_bytes(b"of another version")
    with pytest.raises(NotSupported):
        build.program(nowhere, "no-such-cc", prebuilt=ready, cache=nowhere)


def test_a_compiler_that_cannot(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="false cannot compile"):
        build.program(tmp_path, "false", prebuilt=tmp_path, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_it_is_compiled_once(tmp_path: Path) -> None:
    made = build.program(tmp_path, prebuilt=tmp_path / "none", cache=tmp_path / "none")
    when = made.stat().st_mtime_ns
    assert build.program(tmp_path, prebuilt=tmp_path / "none", cache=tmp_path / "none") == made
    assert (made.stat().st_mtime_ns, [path.name for path in tmp_path.iterdir()]) == (when, [build.NAME])
