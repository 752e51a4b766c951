"""BIRD's control protocol, on transcripts of BIRD 2.0.12."""

from __future__ import annotations

from datetime import datetime
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.base.errors import ConfigError, Unavailable
from tortie.bgp.birdc import (
    MAX_LINE,
    Channel,
    Codec,
    Hop,
    Line,
    Origin,
    PeerKind,
    PeerName,
    Reply,
    encode,
    parse_peer_name,
    parse_protocols,
    parse_routes,
    parse_status,
)

WELCOME = "0001 BIRD 2.0.12 ready.\n"

STATUS_RECOVERING = """\
1000-BIRD 2.0.12
1011-Router ID is 10.9.0.2
 Hostname is node-b
 Current server time is 2026-11-20 23:36:56.710
 Last reboot on 2026-11-20 23:36:55.508
 Last reconfiguration on 2026-11-20 23:36:55.508
0024-Graceful restart recovery in progress
   Waiting for 2 channels to recover
   Wait timer is 238.797/240
0013 Daemon is up and running
"""

STATUS = """\
1000-BIRD 2.0.12
1011-Router ID is 10.9.0.2
 Hostname is node-b
 Current server time is 2026-11-20 23:37:02.796
 Last reboot on 2026-11-20 23:36:55.508
 Last reconfiguration on 2026-11-20 23:37:01.000
0013 Daemon is up and running
"""

PROTOCOLS = """\
2002-Name       Proto      Table      State  Since         Info
1002-device1    Device     ---        up     00:03:47.443  
 kernel4    Kernel     master4    up     00:03:47.443  
 Global_10_9_0_200_port_1179 BGP        ---        start  00:03:47.443  Active        Socket: No route to host
 Node_10_9_0_2 BGP        ---        up     00:03:49.409  Established   
 Mesh_fd00_9__2 BGP        ---        up     00:03:49.096  Established   
 Mesh_10_9_0_7 BGP        ---        start  2026-11-19    Passive       
0000 
"""  # noqa: W291

PROTOCOLS_ALL = """\
2002-Name       Proto      Table      State  Since         Info
1002-Node_10_9_0_2 BGP        ---        up     00:03:49.409  Established   
1006-  Description:    Connection to BGP peer
   BGP state:          Established
     Neighbor address: 10.9.0.2
     Neighbor AS:      64999
     Local AS:         64512
     Neighbor ID:      10.9.0.22
     Local capabilities
       Multiprotocol
         AF announced: ipv4
       Route refresh
       Graceful restart
         Restart time: 120
         Restart recovery
         AF supported: ipv4
         AF preserved: ipv4
       4-octet AS numbers
     Session:          internal multihop AS4
     Source address:   10.9.0.1
     Hold timer:       211.266/240
     Keepalive timer:  66.520/80
   Channel ipv4
     State:          UP
     Table:          master4
     Preference:     100
     Input filter:   from_peer4
     Output filter:  to_ibgp4
     Routes:         3 imported, 4 filtered, 2 exported, 1 preferred
     Route change stats:     received   rejected   filtered    ignored   accepted
       Import updates:              2          0          0          0          2
     BGP Next hop:   10.9.0.1
     IGP IPv4 table: master4
 
1002-device1    Device     ---        up     00:03:47.443  
1006-
1002-direct1    Direct     ---        up     00:03:47.443  
1006-  Channel ipv4
     State:          UP
     Table:          master4
     Preference:     240
     Routes:         1 imported, 0 exported, 1 preferred
   Channel ipv6
     State:          UP
     Table:          master6
     Preference:     240
     Routes:         7 imported, 0 exported, 7 preferred
 
0000 
"""  # noqa: W291, W293

ROUTES = """\
1007-Table master4:
 10.9.0.0/24          unicast [direct1 23:36:55.508] * (240)
 \tdev eth0
1008-\tType: device univ
1007-10.96.0.0/12         blackhole [static4 23:36:55.508] * (200)
1008-\tType: static univ
1007-                     unicast [Mesh_10_9_0_1 23:36:57.501] (100) [i]
 \tvia 10.9.0.1 on eth0
1008-\tType: BGP univ
1012-\tBGP.origin: IGP
 \tBGP.as_path: 
 \tBGP.next_hop: 10.9.0.1
 \tBGP.local_pref: 2147482623
1007-192.168.3.0/26       unicast [Node_10_9_0_2 00:03:49.493 from 10.9.0.2] * (100/?) [AS65001i]
 \tvia 10.9.0.3 on eth0
1008-\tType: BGP univ
1012-\tBGP.originator_id: 10.9.0.3
1007-192.168.50.0/26      unicast [kernel4 23:37:28.836] ! (10)
 \tvia 10.9.0.2 on eth0 weight 1
 \tvia 10.9.0.77 on eth0 weight 3
1008-\tType: inherit univ
1012-\tKernel.source: 3
 \tKernel.metric: 1024
1007-192.168.51.0/26      unreachable [kernel4 23:37:28.837] * (10)
1008-\tType: inherit univ
1007-
 Table master6:
 fd01:1::/122         unicast [Global_fd00_9__1 2026-11-20 23:36:57.367] * (100) [i]
 \tvia fd00:9::1 on eth0
1008-\tType: BGP univ
0000 
"""  # noqa: W291


def reply(text: str) -> Reply:
    [one] = Codec().feed(text.encode())
    return one


# ---------------------------------------------------------------------------------------------------------- the codec


def test_a_reply_is_lines_with_codes() -> None:
    assert reply("0002-Reading configuration from b.conf\n0003 Reconfigured\n") == Reply(
        (Line(2, "Reading configuration from b.conf"), Line(3, "Reconfigured"))
    )


def test_a_line_without_a_code_has_the_code_before() -> None:
    assert [line.code for line in reply(PROTOCOLS).lines] == [2002, 1002, 1002, 1002, 1002, 1002, 1002, 0]


def test_the_log_echoed_between_is_no_part_of_a_reply() -> None:
    assert reply("1002-a\n+Mesh_10_9_0_1 changed state\n b\n0000 \n") == reply("1002-a\n b\n0000 \n")


def test_the_verdict_is_the_last_line() -> None:
    refused = reply("0002-Reading configuration from x\n8002 x:1:51 syntax error\n")
    assert (refused.ok, refused.code, refused.text) == (False, 8002, "x:1:51 syntax error")
    assert reply(STATUS).ok
    assert str(reply(STATUS)).splitlines()[1] == "Router ID is 10.9.0.2"


@given(st.lists(st.integers(0, 3000), max_size=30))
def test_replies_do_not_depend_on_how_the_bytes_are_cut(cuts: list[int]) -> None:
    stream = (WELCOME + STATUS + PROTOCOLS + ROUTES).encode()
    codec = Codec()
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(places)]
    assert [one for piece in pieces for one in codec.feed(piece)] == Codec().feed(stream)


@pytest.mark.parametrize("noise", [b"HTTP/1.1 200 OK\r\n", b" no code yet\n", b"\n", b"12\n", b"x" * (MAX_LINE + 1)])
def test_another_protocol_is_told_apart(noise: bytes) -> None:
    with pytest.raises(Unavailable, match="not BIRD's control protocol"):
        Codec().feed(noise)


def test_a_command_is_one_line() -> None:
    assert encode("show status") == b"show status\n"
    with pytest.raises(ConfigError, match="one line"):
        encode("show status\ndown")


# --------------------------------------------------------------------------------------------------------- show status


def test_status() -> None:
    status = parse_status(reply(STATUS))
    assert (status.version, status.router_id, status.hostname) == ("2.0.12", "10.9.0.2", "node-b")
    assert status.last_reboot == datetime(2026, 11, 20, 23, 36, 55, 508000)
    assert status.last_reconfiguration == datetime(2026, 11, 20, 23, 37, 1)
    assert status.server_time == datetime(2026, 11, 20, 23, 37, 2, 796000)
    assert status.message == "Daemon is up and running"
    assert status.ready


def test_status_while_recovering() -> None:
    status = parse_status(reply(STATUS_RECOVERING))
    assert status.recovering
    assert not status.ready
    assert status.waiting_channels == 2


def test_errors_and_strange_answers_are_no_status() -> None:
    with pytest.raises(ConfigError, match="bird: 9001 syntax error"):
        parse_status(reply("9001 syntax error, unexpected CF_SYM_UNDEFINED\n"))
    with pytest.raises(Unavailable, match="not understood"):
        parse_status(reply(PROTOCOLS))


# ------------------------------------------------------------------------------------------------------ show protocols


def test_protocols() -> None:
    rows = {row.name: row for row in parse_protocols(reply(PROTOCOLS))}
    assert [(row.name, row.proto, row.table, row.state) for row in rows.values()][:2] == [
        ("device1", "Device", "---", "up"),
        ("kernel4", "Kernel", "master4", "up"),
    ]
    assert rows["device1"].session is None
    assert rows["device1"].peer is None
    peer = rows["Global_10_9_0_200_port_1179"]
    assert peer.peer == PeerName(PeerKind.GLOBAL, IPv4Address("10.9.0.200"), 1179)
    assert peer.info == "Active Socket: No route to host"
    assert peer.session is not None
    assert (peer.session.state, peer.session.error) == ("Active", "Socket: No route to host")
    up = rows["Node_10_9_0_2"]
    assert up.session is not None
    assert up.session.established
    assert up.since == "00:03:49.409"
    assert rows["Mesh_10_9_0_7"].since == "2026-11-19"


def test_protocols_in_detail() -> None:
    node, device, direct = parse_protocols(reply(PROTOCOLS_ALL))
    session = node.session
    assert session is not None
    assert (session.state, session.neighbor, session.neighbor_as, session.local_as, session.neighbor_id) == (
        "Established",
        IPv4Address("10.9.0.2"),
        64999,
        64512,
        "10.9.0.22",
    )
    assert session.source == IPv4Address("10.9.0.1")
    assert node.channels == (Channel("ipv4", "UP", "master4", 100, imported=3, filtered=4, exported=2, preferred=1),)
    assert device.channels == ()
    assert [(one.name, one.imported) for one in direct.channels] == [("ipv4", 1), ("ipv6", 7)]


def test_no_protocol_is_no_error() -> None:
    assert parse_protocols(reply("8003 No protocols match\n")) == ()


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("Mesh_10_9_0_2", PeerName(PeerKind.MESH, IPv4Address("10.9.0.2"))),
        ("Mesh_fd00_9__2", PeerName(PeerKind.MESH, IPv6Address("fd00:9::2"))),
        ("Node_fd00__2_port_179", PeerName(PeerKind.NODE, IPv6Address("fd00::2"), 179)),
        ("Global_10_0_0_9", PeerName(PeerKind.GLOBAL, IPv4Address("10.0.0.9"))),
        ("Local_Workload_10_0_0_9", None),
        ("Mesh_of_nothing", None),
        ("uplink", None),
    ],
)
def test_a_name_tells_its_peer(name: str, peer: PeerName | None) -> None:
    assert parse_peer_name(name) == peer


# ---------------------------------------------------------------------------------------------------------- show route


def test_routes() -> None:
    routes = parse_routes(reply(ROUTES))
    assert [(str(row.prefix), row.kind, row.protocol, row.best, row.preference) for row in routes] == [
        ("10.9.0.0/24", "unicast", "direct1", True, 240),
        ("10.96.0.0/12", "blackhole", "static4", True, 200),
        ("10.96.0.0/12", "unicast", "Mesh_10_9_0_1", False, 100),
        ("192.168.3.0/26", "unicast", "Node_10_9_0_2", True, 100),
        ("192.168.50.0/26", "unicast", "kernel4", True, 10),
        ("192.168.51.0/26", "unreachable", "kernel4", True, 10),
        ("fd01:1::/122", "unicast", "Global_fd00_9__1", True, 100),
    ]
    assert [row.origin for row in routes] == [
        Origin.DIRECT,
        Origin.STATIC,
        Origin.MESH,
        Origin.PEER,
        Origin.KERNEL,
        Origin.KERNEL,
        Origin.PEER,
    ]
    assert {row.table for row in routes[:6]} == {"master4"}
    assert routes[6].table == "master6"
    assert routes[6].since == "2026-11-20 23:36:57.367"


def test_where_a_route_leads_and_who_told() -> None:
    routes = parse_routes(reply(ROUTES))
    assert routes[0].hops == (Hop(None, "eth0"),)
    assert routes[1].hops == ()
    assert routes[4].hops == (Hop(IPv4Address("10.9.0.2"), "eth0"), Hop(IPv4Address("10.9.0.77"), "eth0", weight=3))
    assert routes[3].learned_from == IPv4Address("10.9.0.2")
    assert routes[2].learned_from is None
    assert [row.sync_error for row in routes] == [False, False, False, False, True, False, False]
    assert routes[2].attributes == {
        "Type": "BGP univ",
        "BGP.origin": "IGP",
        "BGP.as_path": "",
        "BGP.next_hop": "10.9.0.1",
        "BGP.local_pref": "2147482623",
    }
    assert routes[4].attributes["Kernel.metric"] == "1024"


def test_routes_without_attributes() -> None:
    text = "1007-Table master4:\n 10.9.0.0/24          unicast [direct1 23:36:55.508] * (240)\n \tdev eth0\n0000 \n"
    [one] = parse_routes(reply(text))
    assert (one.prefix, one.attributes) == (ip_network("10.9.0.0/24"), {})


def test_no_route_is_no_error() -> None:
    assert parse_routes(reply("8001 Network not found\n")) == ()
    assert parse_routes(reply("0000 \n")) == ()
