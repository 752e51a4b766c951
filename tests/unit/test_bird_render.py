"""bird.conf as text. That BIRD takes it, and does what it says, is tested with BIRD (interop)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.base.errors import ConfigError
from tortie.bgp.sessions import ExplicitPeer, NextHop, Peer, Router, Scope, sessions
from tortie.render.bird import IPIP, Advertisement, BindMode, BirdConfig, LogLevel, Pool, render

NODES = [
    Router(name=name, ipv4=IPv4Address(f"10.9.0.{number}"), ipv6=IPv6Address(f"fd00:9::{number}"))
    for number, name in enumerate("abc", start=1)
]
TOR = ExplicitPeer(
    scope=Scope.GLOBAL,
    ip=ip_address("10.9.0.9"),
    port=1179,
    remote_as=64999,
    password="it's secret",
    ttl_hops=3,
    next_hop=NextHop.SELF,
    keepalive_time=10,
    restart_time=200,
    allowed_local_as=2,
    reachable_by=ip_address("10.9.0.254"),
)
NODE_A = BirdConfig(
    router_id=IPv4Address("10.9.0.1"),
    ipv4=IPv4Address("10.9.0.1"),
    ipv6=IPv6Address("fd00:9::1"),
    blocks=tuple(map(ip_network, ("192.168.1.64/26", "192.168.1.0/26", "192.168.9.9/32", "fd01:1::/122"))),
    pools=(
        Pool(cidr=ip_network("192.168.0.0/16")),
        Pool(cidr=ip_network("172.16.0.0/16"), bgp_program=False),
        Pool(cidr=ip_network("172.17.0.0/16"), ipip=IPIP.ALWAYS),
        Pool(cidr=ip_network("172.18.0.0/16"), ipip=IPIP.CROSS_SUBNET),
        Pool(cidr=ip_network("10.77.0.0/16"), export_disabled=True),
        Pool(cidr=ip_network("fd01::/16")),
    ),
    services=(ip_network("10.96.0.0/12"),),
    kept_out=(ip_network("203.0.113.0/24"),),
    subnet=ip_network("10.9.0.0/24"),
    ignored_interfaces=("eth9",),
    advertisements=(Advertisement(ip_network("192.168.0.0/16"), ((100, 6532), (100, 555, 107))),),
    peers=sessions(NODES[0], NODES, [TOR]),
)

GOLDEN = (Path(__file__).parent / "golden" / "three-nodes.bird.conf").read_text()
"""BIRD is asked of it, too, where there is one."""


def test_a_node_of_three_with_both_families() -> None:
    assert render(NODE_A) == GOLDEN


@settings(max_examples=25)
@given(st.randoms())
def test_the_order_of_the_input_means_nothing(random: Random) -> None:
    def shuffled(values: tuple[object, ...]) -> tuple[object, ...]:
        copy = [*values, *values[:1]]  # with one of them twice
        random.shuffle(copy)
        return tuple(copy)

    peers = list(NODE_A.peers)
    random.shuffle(peers)
    names = ("blocks", "pools", "services", "kept_out", "ignored_interfaces")
    fields = {name: shuffled(getattr(NODE_A, name)) for name in names}
    assert render(replace(NODE_A, peers=tuple(peers), **fields)) == GOLDEN  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- what is left out

BARE = BirdConfig(router_id=IPv4Address("10.9.0.1"), ipv4=IPv4Address("10.9.0.1"))


def test_a_family_without_an_address_is_a_comment() -> None:
    text = render(BARE)
    assert "# IPv6 disabled on this node" in text
    assert "kernel6" not in text
    assert "ipv6" not in text
    six = render(BirdConfig(router_id=IPv4Address("1.1.1.1"), ipv6=IPv6Address("fd00:9::1")))
    assert "# IPv4 disabled on this node" in six
    assert "ipv4" not in six


def test_an_empty_node_has_tables_but_nothing_to_say() -> None:
    text = render(BARE)
    assert "protocol kernel kernel4" in text
    assert "protocol static static4 {\n  ipv4;\n}" in text
    assert "# No IPv4 peers" in text
    assert "[" not in text
    assert "protocol bgp" not in text


def test_every_family_has_its_own_normal_priority() -> None:
    text = render(replace(NODE_A, normal_priority_ipv4=100, normal_priority_ipv6=200))
    assert "define NORMAL4 = 100;" in text
    assert "define NORMAL6 = 200;" in text


@pytest.mark.parametrize(
    ("level", "debug"),
    [
        (LogLevel.DEBUG, {"debug all;"}),
        (LogLevel.TRACE, {"debug all;"}),
        (LogLevel.INFO, {"debug { states };", "debug { states, events };"}),
        (LogLevel.WARNING, set()),
    ],
)
def test_the_log_level_is_bird_s_debug_level(level: LogLevel, debug: set[str]) -> None:
    lines = {line.strip() for line in render(replace(NODE_A, log_level=level)).splitlines() if "debug" in line}
    assert lines == debug


# ------------------------------------------------------------------------------------------------------------ sessions


def session(text: str, name: str) -> str:
    start = text.index(f"protocol bgp {name} ")
    return text[start : text.index("\n}", start)]


def peer(**more: object) -> Peer:
    plain = Peer(name="Global_10_9_0_9", ip=ip_address("10.9.0.9"), remote_as=64512, local_as=64512)
    return replace(plain, **more)  # type: ignore[arg-type]


def with_peer(one: Peer, **more: object) -> str:
    return session(render(replace(BARE, peers=(one,), **more)), one.name)  # type: ignore[arg-type]


def test_where_a_session_listens_and_speaks_from() -> None:
    assert "  local as 64512;" in with_peer(peer())
    assert "  local port 177 as 64512;" in with_peer(peer(), listen_port=177)
    assert "  local 10.9.0.1 as 64512;" in with_peer(peer(source=ip_address("10.9.0.1")))


def test_binding_to_the_node_address_needs_it_in_every_session() -> None:
    bound = replace(BARE, bind_mode=BindMode.NODE_IP, listen_port=177, peers=(peer(),))
    assert "  strict bind on;" in render(bound)
    assert "  local 10.9.0.1 port 177 as 64512;" in session(render(bound), "Global_10_9_0_9")
    assert "strict bind" not in render(replace(bound, bind_mode=BindMode.ANY))


def test_internal_and_external_peers_are_told_by_their_own_filter() -> None:
    assert "export filter to_ibgp4;" in with_peer(peer())
    assert "export filter to_ebgp4;" in with_peer(peer(remote_as=65001))
    assert "export filter to_ibgp4;" in with_peer(peer(remote_as=65001, local_as=65001))


def test_options_of_a_session() -> None:
    assert "passive on;" not in with_peer(peer())
    assert "passive on;" in with_peer(peer(passive=True))
    assert "  rr client;\n  rr cluster id 1.0.0.1;" in with_peer(peer(rr_client=True, cluster_id="1.0.0.1"))
    assert "{ next hop keep; export" in with_peer(peer(next_hop=NextHop.KEEP))


def test_a_route_reflector_passes_on_services_of_others() -> None:
    def accepted(config: BirdConfig) -> bool:
        text = render(config)
        return "203.0.113.0/24+" in text[text.index("# Services.\n") : text.index("# Anything else of a pool")]

    assert accepted(replace(NODE_A, passed_on=(ip_network("203.0.113.0/24"),)))
    assert not accepted(NODE_A)


# -------------------------------------------------------------------------------------------------- what cannot be said


@pytest.mark.parametrize("password", ['a"b', "a\nb", ""])
def test_a_password_that_bird_cannot_hold_is_refused_by_name(password: str) -> None:
    with pytest.raises(ConfigError, match=r"^Global_10_9_0_9: its password") as caught:
        with_peer(peer(password=password))
    assert not password or password not in str(caught.value)


def test_a_keepalive_time_beyond_the_hold_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="Global_10_9_0_9: keepalive time 241 s"):
        with_peer(peer(keepalive_time=241))


def test_an_interface_that_is_no_pattern_is_refused() -> None:
    with pytest.raises(ConfigError, match="ignoredInterfaces"):
        render(replace(BARE, ignored_interfaces=('eth0"; bad',)))
