"""The netlink wire format: bytes written by hand from the kernel's headers, round trips, and garbage."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.kernel.netlink import codec, tables
from tortie.kernel.netlink.codec import Message, outcome, pack_message, unpack_messages

RECORDS = {
    "link": tables.LINK,
    "address": tables.ADDRESS,
    "route": tables.ROUTE,
    "neighbour": tables.NEIGHBOUR,
    "rule": tables.RULE,
}


def bytes_of(text: str) -> bytes:
    """Hexadecimal bytes; what follows a # is for the reader."""
    return bytes.fromhex("".join(line.partition("#")[0] for line in text.splitlines()))


# --- bytes by hand ------------------------------------------------------------------------------------------------

LINK_BYTES = bytes_of("""
    00 00 0100 07000000 43100000 00000000  # ifinfomsg: family, pad, type, index, flags, change
    0800 0300 65746800                     # IFLA_IFNAME "eth"
    0a00 0100 0200000000ff 0000            # IFLA_ADDRESS, 6 bytes and padding
    0800 0400 dc050000                     # IFLA_MTU 1500
    2400 1280                              # IFLA_LINKINFO, nested
      0a00 0100 76786c616e00 0000          #   IFLA_INFO_KIND "vxlan"
      1400 0280                            #   IFLA_INFO_DATA, nested
        0800 0100 2a000000                 #     IFLA_VXLAN_ID 42
        0600 0f00 12b5 0000                #     IFLA_VXLAN_PORT 4789, in network order
""")
LINK_VALUES = {
    "ifi_type": 1,
    "ifi_index": 7,
    "ifi_flags": 0x1043,
    "ifname": "eth",
    "address": "02:00:00:00:00:ff",
    "mtu": 1500,
    "linkinfo": {"kind": "vxlan", "data": {"id": 42, "port": 4789}},
}

ROUTE_BYTES = bytes_of("""
    02 18 00 00 fe 50 00 01 04000000  # rtmsg: family, dst_len, src_len, tos, table, protocol 80, scope, type, onlink
    0800 0100 0a000100                # RTA_DST 10.0.1.0
    0800 0500 c0000207                # RTA_GATEWAY 192.0.2.7
    0800 0400 03000000                # RTA_OIF 3
    0c00 0880 0800 0200 78050000      # RTA_METRICS, nested: RTAX_MTU 1400
""")
ROUTE_VALUES = {
    "rtm_family": 2,
    "rtm_dst_len": 24,
    "rtm_table": 254,
    "rtm_protocol": 80,
    "rtm_type": 1,
    "rtm_flags": 4,
    "dst": "10.0.1.0",
    "gateway": "192.0.2.7",
    "oif": 3,
    "metrics": {"mtu": 1400},
}

MULTIPATH_BYTES = bytes_of("""
    02 20 00 00 fe 03 00 01 00000000
    0800 0100 0a000001
    3400 0900                                       # RTA_MULTIPATH
      1000 00 00 03000000  0800 0500 0a000002       #   rtnexthop: length, flags, weight - 1, index; RTA_GATEWAY
      2000 04 06 04000000  1600 1200 0a00           #   rtnexthop, onlink; RTA_VIA: family,
        fd000000000000000000000000000001 0000       #     address, padding
""")
MULTIPATH_VALUES = {
    "rtm_family": 2,
    "rtm_dst_len": 32,
    "rtm_table": 254,
    "rtm_protocol": 3,
    "rtm_type": 1,
    "dst": "10.0.0.1",
    "multipath": [
        {"rtnh_flags": 0, "rtnh_hops": 0, "rtnh_ifindex": 3, "gateway": "10.0.0.2"},
        {"rtnh_flags": 4, "rtnh_hops": 6, "rtnh_ifindex": 4, "via": "fd00::1"},
    ],
}

PEER_BYTES = bytes_of("""
    00 00 0000 00000000 00000000 00000000
    3800 1280                                       # IFLA_LINKINFO
      0900 0100 7665746800 000000                   #   "veth"
      2800 0280 2400 0100                           #   IFLA_INFO_DATA, VETH_INFO_PEER: an ifinfomsg and its attributes
        00 00 0000 00000000 00000000 00000000
        0600 0300 6200 0000                         #     IFLA_IFNAME "b"
        0800 1c00 05000000                          #     IFLA_NET_NS_FD 5
""")
PEER_VALUES = {"linkinfo": {"kind": "veth", "data": {"peer": {"ifname": "b", "net_ns_fd": 5}}}}

NETKIT_BYTES = bytes_of("""
    00 00 0000 00000000 00000000 00000000
    5000 1280                                       # IFLA_LINKINFO
      0b00 0100 6e65746b697400 00                   #   "netkit"
      4000 0280                                     #   IFLA_INFO_DATA
        2400 0100                                   #     IFLA_NETKIT_PEER_INFO: an ifinfomsg and its attributes
          00 00 0000 00000000 00000000 00000000
          0600 0300 6200 0000                       #       IFLA_IFNAME "b"
          0800 1c00 05000000                        #       IFLA_NET_NS_FD 5
        0800 0500 00000000                          #     IFLA_NETKIT_MODE NETKIT_L2
        0800 0300 00000000                          #     IFLA_NETKIT_POLICY NETKIT_PASS
        0800 0400 00000000                          #     IFLA_NETKIT_PEER_POLICY NETKIT_PASS
""")
NETKIT_VALUES = {
    "linkinfo": {
        "kind": "netkit",
        "data": {"peer": {"ifname": "b", "net_ns_fd": 5}, "mode": 0, "policy": 0, "peer_policy": 0},
    }
}

ADDRESS_BYTES = bytes_of("""
    0a 40 02 fd 09000000                           # ifaddrmsg: family, prefixlen, flags, scope, index
    1400 0200 fe800000000000000000000000000001     # IFA_LOCAL
    0800 0800 02020000                             # IFA_FLAGS
""")
ADDRESS_VALUES = {
    "ifa_family": 10,
    "ifa_prefixlen": 64,
    "ifa_flags": 2,
    "ifa_scope": 253,
    "ifa_index": 9,
    "local": "fe80::1",
    "flags": 0x202,
}

NEIGHBOUR_BYTES = bytes_of("""
    07 00 0000 04000000 8000 02 00                 # ndmsg: family, pads, ifindex, state, flags, type
    0a00 0200 0200000000aa 0000                    # NDA_LLADDR
    0800 0100 c0000201                             # NDA_DST
""")
NEIGHBOUR_VALUES = {
    "ndm_family": 7,
    "ndm_ifindex": 4,
    "ndm_state": 0x80,
    "ndm_flags": 2,
    "lladdr": "02:00:00:00:00:aa",
    "dst": "192.0.2.1",
}

RULE_BYTES = bytes_of("""
    02 00 00 00 fc 00 00 01 02000000               # fib_rule_hdr: family, dst, src, tos, table, -, -, action, flags
    0800 0600 64000000                             # FRA_PRIORITY
    0800 0f00 e8030000                             # FRA_TABLE
    0500 1500 50 000000                            # FRA_PROTOCOL
""")
RULE_VALUES = {
    "frh_family": 2,
    "frh_table": 252,
    "frh_action": 1,
    "frh_flags": 2,
    "priority": 100,
    "table": 1000,
    "protocol": 80,
}

GOLDEN = [
    pytest.param("link", LINK_BYTES, LINK_VALUES, id="link"),
    pytest.param("link", PEER_BYTES, PEER_VALUES, id="veth-peer"),
    pytest.param("link", NETKIT_BYTES, NETKIT_VALUES, id="netkit-peer"),
    pytest.param("route", ROUTE_BYTES, ROUTE_VALUES, id="route"),
    pytest.param("route", MULTIPATH_BYTES, MULTIPATH_VALUES, id="multipath"),
    pytest.param("address", ADDRESS_BYTES, ADDRESS_VALUES, id="address"),
    pytest.param("neighbour", NEIGHBOUR_BYTES, NEIGHBOUR_VALUES, id="neighbour"),
    pytest.param("rule", RULE_BYTES, RULE_VALUES, id="rule"),
]


@pytest.mark.parametrize(("record", "data", "values"), GOLDEN)
def test_packs_to_the_bytes_of_the_header_files(record: str, data: bytes, values: dict[str, Any]) -> None:
    assert RECORDS[record].pack(values).hex(" ") == data.hex(" ")


@pytest.mark.parametrize(("record", "data", "values"), GOLDEN)
def test_unpacks_the_bytes_of_the_header_files(record: str, data: bytes, values: dict[str, Any]) -> None:
    got = RECORDS[record].unpack(data)
    for name, value in values.items():
        assert without_zero_fields(got[name]) == value
    assert all(value == 0 for name, value in got.items() if name not in values)


def without_zero_fields(value: Any) -> Any:
    """Without the fields of structs that are nought, which packing takes for granted."""
    if not isinstance(value, dict):
        return value
    inner = {name: without_zero_fields(item) for name, item in value.items()}
    return {name: item for name, item in inner.items() if not (name.startswith("ifi_") and item == 0)}


def test_message_header() -> None:
    data = pack_message(24, 0x605, 0x01020304, b"abcde", 9)
    assert data == bytes_of("15000000 1800 0506 04030201 09000000 6162636465 000000")
    assert list(unpack_messages(data)) == [Message(24, 0x605, 0x01020304, 9, b"abcde")]


def test_several_messages_in_one_datagram() -> None:
    data = pack_message(16, 2, 1, b"x") + pack_message(17, 2, 1, b"") + pack_message(3, 2, 1, b"\0\0\0\0")
    assert [(message.type, message.payload) for message in unpack_messages(data)] == [
        (16, b"x"),
        (17, b""),
        (3, b"\0\0\0\0"),
    ]


def test_none_and_false_flags_are_left_out() -> None:
    assert tables.IFLA_VXLAN.pack({"id": None, "gbp": False}) == b""
    assert tables.IFLA_VXLAN.pack({"gbp": True}) == bytes_of("0400 1700")
    assert tables.IFLA_VXLAN.unpack(bytes_of("0400 1700")) == {"gbp": True}


def test_unknown_attributes_are_passed_over() -> None:
    assert tables.RTAX.unpack(bytes_of("0800 ff0f 01020304 0800 0200 78050000")) == {"mtu": 1400}


def test_data_of_an_unknown_kind_of_link_stays_bytes() -> None:
    info = tables.IFLA_LINKINFO.unpack(tables.IFLA_LINKINFO.pack({"kind": "newfangled", "data": b"\1\2\3\4"}))
    assert info == {"kind": "newfangled", "data": b"\1\2\3\4"}


# --- the kernel's answers -----------------------------------------------------------------------------------------

REQUEST_HEADER = bytes_of("24000000 1800 0506 01000000 00000000")
WORDS = bytes_of("0c00 0100") + b"no luck\0"


@pytest.mark.parametrize(
    ("flags", "payload", "expected"),
    [
        pytest.param(0x100, bytes(4) + REQUEST_HEADER, (0, ""), id="success"),
        pytest.param(0, bytes_of("eaffffff") + REQUEST_HEADER + bytes(20), (22, ""), id="no-words"),
        pytest.param(0x300, bytes_of("eaffffff") + REQUEST_HEADER + WORDS, (22, "no luck"), id="capped"),
        pytest.param(0x200, bytes_of("eaffffff") + REQUEST_HEADER + bytes(20) + WORDS, (22, "no luck"), id="echoed"),
        pytest.param(
            0x300,
            bytes_of("eaffffff") + REQUEST_HEADER + bytes_of("0800 0200 14000000") + WORDS,
            (22, "no luck"),
            id="offset-first",
        ),
    ],
)
def test_error_with_the_kernels_words(flags: int, payload: bytes, expected: tuple[int, str]) -> None:
    assert outcome(Message(codec.NLMSG_ERROR, flags, 1, 0, payload)) == expected


@pytest.mark.parametrize(
    ("flags", "payload", "expected"),
    [
        pytest.param(2, bytes(4), (0, ""), id="success"),
        pytest.param(2, b"", (0, ""), id="empty"),
        pytest.param(0x202, bytes_of("feffffff") + WORDS, (2, "no luck"), id="failed"),
    ],
)
def test_end_of_a_dump(flags: int, payload: bytes, expected: tuple[int, str]) -> None:
    assert outcome(Message(codec.NLMSG_DONE, flags, 1, 0, payload)) == expected


def test_interrupted_dump_is_seen() -> None:
    quiet, changed = unpack_messages(pack_message(24, 0x02, 1, b"") + pack_message(24, 0x12, 1, b""))
    assert (quiet.interrupted, changed.interrupted) == (False, True)


# --- what does not fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "values"),
    [
        pytest.param("route", {"gateway": "10.0.0"}, id="address"),
        pytest.param("route", {"gateway": "fd00::1::"}, id="address6"),
        pytest.param("route", {"oif": -1}, id="negative"),
        pytest.param("route", {"oif": 1 << 32}, id="too-big"),
        pytest.param("route", {"rtm_table": 1000}, id="field"),
        pytest.param("route", {"gatway": "10.0.0.1"}, id="unknown-name"),
        pytest.param("route", {"multipath": [{"rtnh_hops": 256}]}, id="weight"),
        pytest.param("link", {"address": "02:zz"}, id="mac"),
        pytest.param("link", {"ifname": "a\0b"}, id="nul"),
        pytest.param("link", {"ifalias": "x" * 70000}, id="long"),
    ],
)
def test_packing_what_does_not_fit_is_a_value_error(record: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        RECORDS[record].pack(values)


@pytest.mark.parametrize(("record", "data", "values"), GOLDEN)
def test_truncated_anywhere_is_a_value_error_or_less(record: str, data: bytes, values: dict[str, Any]) -> None:
    for length in range(len(data) - 3):  # the last attribute may come without its padding
        try:
            got = RECORDS[record].unpack(data[:length])
        except ValueError:
            continue
        assert got != RECORDS[record].unpack(data)


@pytest.mark.parametrize("data", ["00000000", "03000100", "0800 0100 0a00", "0500 0100 0a", "ffff 0100"])
def test_attribute_lengths_that_lie(data: str) -> None:
    with pytest.raises(ValueError):
        tables.RTAX.unpack(bytes_of(data))


@pytest.mark.parametrize("length", [0, 1, 15, 17, 0xFFFFFFFF])
def test_message_lengths_that_lie(length: int) -> None:
    with pytest.raises(ValueError):
        list(unpack_messages(length.to_bytes(4, "little") + bytes(12)))


def test_peers_within_peers_do_not_exhaust_the_stack() -> None:
    data = b""
    while len(data) < 60000:
        body = bytes(16) + tables.IFLA.pack({"linkinfo": {"kind": "veth"}})[:12] + data
        peer = (len(body) + 4).to_bytes(2, "little") + bytes_of("0100") + body
        nest = (len(peer) + 4).to_bytes(2, "little") + bytes_of("0280") + peer
        kind = bytes_of("0900 0100 7665746800 000000") + nest
        data = (len(kind) + 4).to_bytes(2, "little") + bytes_of("1280") + kind
    assert unpacked_or_refused(tables.LINK, bytes(16) + data)


# --- properties ---------------------------------------------------------------------------------------------------


def unpacked_or_refused(record: codec.Codec, data: bytes) -> bool:
    try:
        record.unpack(data)
    except ValueError:
        pass
    return True


LIMITS = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF, 8: (1 << 64) - 1}
texts = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)
macs = st.binary(min_size=1, max_size=8).map(lambda data: data.hex(":"))
ips = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str))


def values_of(some: codec.Codec) -> st.SearchStrategy[Any]:
    """Values that a codec has to bring back as they were."""
    if isinstance(some, codec.Scalar):
        size = len(some.pack(0))
        signed = some is codec.S32
        return st.integers(-(1 << 31), (1 << 31) - 1) if signed else st.integers(0, LIMITS[size])
    if isinstance(some, codec.Table):
        return table_values(some)
    if isinstance(some, codec.Record):
        return table_values(some.table)
    if isinstance(some, codec.Nexthops):
        hop = st.fixed_dictionaries(
            {
                "rtnh_flags": st.integers(0, 255),
                "rtnh_hops": st.integers(0, 255),
                "rtnh_ifindex": st.integers(0, 1 << 30),
            },
            optional={"gateway": ips, "via": ips},
        )
        return st.lists(hop, max_size=4)
    simple: dict[int, st.SearchStrategy[Any]] = {
        id(codec.TEXT): texts,
        id(codec.MAC): macs,
        id(codec.IP): ips,
        id(codec.VIA): ips,
        id(codec.RAW): st.binary(max_size=20),
        id(codec.FLAG): st.just(True),
    }
    return simple[id(some)]


def table_values(table: codec.Table) -> st.SearchStrategy[dict[str, Any]]:
    rows = {name: values_of(some) for name, some in table.rows.values()}
    if table is tables.IFLA_LINKINFO:
        by_kind = [
            st.fixed_dictionaries({"kind": st.just(kind), "data": values_of(some)})
            for kind, some in tables.LINK_DATA.items()
        ]
        return st.one_of(*by_kind)
    return st.fixed_dictionaries({}, optional=rows)


def comparable(value: Any) -> Any:
    """Addresses the way inet_ntop writes them (`::1.2.3.4`), without structs' fields."""
    if isinstance(value, dict):
        return {name: comparable(item) for name, item in value.items() if not name.startswith("ifi_")}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    if isinstance(value, str) and ":" in value:
        try:
            return codec.IP.pack(value)
        except ValueError:
            return value
    return value


@pytest.mark.parametrize("name", RECORDS)
@settings(max_examples=40)
@given(data=st.data())
def test_round_trip(name: str, data: st.DataObject) -> None:
    record = RECORDS[name]
    values = data.draw(values_of(record))
    got = record.unpack(record.pack(values))
    fields = set(record.fields)
    assert comparable({key: item for key, item in got.items() if key not in fields}) == comparable(values)


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(max_size=40)), max_size=6))
def test_messages_round_trip(items: list[tuple[int, int, bytes]]) -> None:
    data = b"".join(pack_message(kind, flags, 7, payload) for kind, flags, payload in items)
    assert [(message.type, message.flags, message.payload) for message in unpack_messages(data)] == items


@given(st.binary(max_size=200))
def test_garbage_is_a_value_error_and_nothing_else(data: bytes) -> None:
    for record in RECORDS.values():
        assert unpacked_or_refused(record, data)
        assert unpacked_or_refused(record, bytes(16) + data)
    try:
        for message in unpack_messages(data):
            outcome(message)
    except ValueError:
        pass


@pytest.mark.parametrize("kind", [codec.NLMSG_ERROR, codec.NLMSG_DONE])
@given(flags=st.integers(0, 0xFFFF), payload=st.binary(max_size=60))
def test_garbage_for_an_answer(kind: int, flags: int, payload: bytes) -> None:
    try:
        code, words = outcome(Message(kind, flags, 1, 0, payload))
    except ValueError:
        return
    assert isinstance(code, int)
    assert isinstance(words, str)


@pytest.mark.parametrize(("record", "data", "values"), GOLDEN)
@settings(max_examples=40)
@given(where=st.integers(0, 200), what=st.integers(0, 255))
def test_one_wrong_byte(record: str, data: bytes, values: dict[str, Any], where: int, what: int) -> None:
    wrong = bytearray(data)
    wrong[where % len(data)] = what
    assert unpacked_or_refused(RECORDS[record], bytes(wrong))


# --- import cost --------------------------------------------------------------------------------------------------


def test_importing_it_stays_cheap() -> None:
    script = "import sys; import tortie.kernel.netlink; print(' '.join(sys.modules))"
    path = [item for item in sys.path if item.endswith("src")]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {path}; {script}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    dear = {"asyncio", "ctypes", "ipaddress", "json", "logging", "msgspec", "subprocess", "threading", "typing"}
    assert not dear & set(done.stdout.split())
