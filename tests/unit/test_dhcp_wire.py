"""DHCP messages as bytes: read back, read by pyroute2, damaged, and cut short anywhere."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.dhcp.dhcp4msg import dhcp4msg

from tortie.cni.dhcp import wire
from tortie.cni.dhcp.wire import Kind, Message, Option

MAC = bytes.fromhex("02005e100001")
ADDRESS = st.ip_addresses(v=4).map(str)
MESSAGES = st.builds(
    Message,
    op=st.sampled_from([1, 2]),
    xid=st.integers(0, 0xFFFFFFFF),
    mac=st.just(MAC),
    options=st.dictionaries(
        st.integers(1, 254).filter(lambda code: code != Option.OVERLOAD), st.binary(max_size=600), max_size=4
    ),
    secs=st.integers(0, 0xFFFF),
    flags=st.sampled_from([0, wire.BROADCAST_FLAG]),
    ciaddr=ADDRESS,
    yiaddr=ADDRESS,
    siaddr=ADDRESS,
    giaddr=ADDRESS,
)


@given(MESSAGES)
def test_what_is_written_is_read(message: Message) -> None:
    assert wire.decode(wire.encode(message)) == message


def test_somebody_else_reads_it() -> None:
    options = {
        Option.MESSAGE_TYPE: bytes((Kind.REQUEST,)),
        Option.CLIENT_ID: b"\0ctr1/net1/eth0",
        Option.REQUESTED_ADDRESS: wire.packed("10.9.0.50"),
        Option.SERVER: wire.packed("10.9.0.1"),
        Option.HOST_NAME: b"blue",
        Option.REQUEST_LIST: bytes((3, 1, 121)),
        Option.LEASE_SECONDS: (600).to_bytes(4, "big"),
    }
    ours = Message(1, 0x12345678, MAC, options, 7, wire.BROADCAST_FLAG, "10.9.0.2")
    data = wire.encode(ours)
    theirs: Any = dhcp4msg(buf=data).decode()
    assert len(data) >= 300
    assert (theirs["op"], theirs["xid"], theirs["secs"], theirs["flags"]) == (1, 0x12345678, 7, 0x8000)
    assert (theirs["chaddr"], theirs["ciaddr"]) == ("02:00:5e:10:00:01", "10.9.0.2")
    found = theirs["options"]
    assert found["message_type"] == Kind.REQUEST
    assert found["requested_ip"] == "10.9.0.50"
    assert found["server_id"] == "10.9.0.1"
    assert found["lease_time"] == 600
    assert [int(code) for code in found["parameter_list"]] == [3, 1, 121]


@given(MESSAGES, st.data())
def test_what_is_cut_short_or_damaged_is_refused_and_no_more(message: Message, data: st.DataObject) -> None:
    whole = bytearray(wire.encode(message))
    for _ in range(data.draw(st.integers(0, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        wire.decode(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    except ValueError:
        pass


def test_options_in_the_names_of_files() -> None:
    """RFC 2132 9.3: what has no room among the options; and pieces of one option belong together (RFC 3396)."""
    plain = bytearray(wire.encode(Message(2, 1, MAC, {Option.OVERLOAD: b"\3", 12: b"a"})))
    plain[108 : 108 + 5] = bytes((12, 1, ord("b"), 15, 0))  # file
    plain[44 : 44 + 4] = bytes((12, 1, ord("c"), 255))  # sname
    assert wire.decode(bytes(plain)).options == {Option.OVERLOAD: b"\3", 12: b"abc", 15: b""}


@given(st.binary(max_size=300), ADDRESS, ADDRESS)
def test_packets(content: bytes, source: str, target: str) -> None:
    packet = bytearray(wire.packet(content, source, target))
    assert wire.checksum(bytes(packet[:20])) == 0
    assert packet[12:20] == socket.inet_aton(source) + socket.inet_aton(target)
    with pytest.raises(ValueError, match="not a packet to a DHCP client"):
        wire.payload(bytes(packet))
    packet[20:22], packet[22:24] = packet[22:24], packet[20:22]  # one of a server's
    assert wire.payload(bytes(packet)) == content
    packet[26:28], sent = b"\0\0", packet[26:28]  # no checksum
    assert wire.payload(bytes(packet)) == content
    packet[26:28] = sent
    if content:
        packet[-1] ^= 1
        assert wire.payload(bytes(packet), checked=False) == bytes(packet[28:])
        with pytest.raises(ValueError, match="a wrong checksum of UDP"):
            wire.payload(bytes(packet))
    packet[8] ^= 1
    with pytest.raises(ValueError, match="a wrong checksum of IPv4"):
        wire.payload(bytes(packet), checked=False)
    with pytest.raises(ValueError):
        wire.payload(bytes(packet[:27]))


def test_checksum_of_the_kernel() -> None:
    """The example of RFC 1071 3."""
    assert wire.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D


@pytest.mark.parametrize(
    ("data", "routes"),
    [
        ("", []),
        ("080a0a090001", [("10.0.0.0/8", "10.9.0.1")]),
        ("000a090001", [("0.0.0.0/0", "10.9.0.1")]),
        ("20c0a8010100000000180a4d000a090001", [("192.168.1.1/32", "0.0.0.0"), ("10.77.0.0/24", "10.9.0.1")]),
        ("11ac10800a090001", [("172.16.128.0/17", "10.9.0.1")]),
    ],
)
def test_classless_routes(data: str, routes: list[tuple[str, str]]) -> None:
    if len(data) % 2:
        pytest.fail(data)
    assert wire.classless_routes(bytes.fromhex(data)) == routes


@pytest.mark.parametrize("data", ["21", "08", "080a0a0900", "ff00000000"])
def test_classless_routes_cut_short(data: str) -> None:
    with pytest.raises(ValueError, match="cut short"):
        wire.classless_routes(bytes.fromhex(data))


def test_static_routes_have_their_class() -> None:
    data = b"".join(
        map(wire.packed, ["10.0.0.0", "1.1.1.1", "172.16.0.0", "1.1.1.2", "192.168.7.0", "1.1.1.3", "9.9.9.9"])
    )
    assert wire.static_routes(data) == [
        ("10.0.0.0/8", "1.1.1.1"),
        ("172.16.0.0/16", "1.1.1.2"),
        ("192.168.7.0/24", "1.1.1.3"),
    ]


@pytest.mark.parametrize(
    ("mask", "length"), [("00000000", 0), ("ffffff00", 24), ("ffffffff", 32), ("ff00ff00", None), ("ffff", None)]
)
def test_masks(mask: str, length: int | None) -> None:
    if length is None:
        with pytest.raises(ValueError, match="not a network mask"):
            wire.prefix_length(bytes.fromhex(mask))
    else:
        assert wire.prefix_length(bytes.fromhex(mask)) == length
