"""BIRD accepts every configuration that we can write: `bird -p` on generated ones."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tortie.bgp.filters import AddCommunity, Filter, FilterRule, PrependPath, SetPriority
from tortie.bgp.sessions import HOLD_TIME, ExplicitPeer, NextHop, Router, Scope, sessions
from tortie.kernel.bird import Bird
from tortie.render.bird import IPIP, Advertisement, BindMode, BirdConfig, LogLevel, Pool, render

T = TypeVar("T")

ASN = st.integers(1, 2**32 - 1)
SECONDS = st.integers(1, 3600)
V4 = st.integers(0x0A000001, 0x0AFFFFFE).map(IPv4Address)
V6 = st.integers(0xFD << 120 | 1, (0xFD << 120) + 2**64).map(IPv6Address)
IPS = V4 | V6
NETS = st.builds(lambda ip, bits: ip_network((ip, min(bits, ip.max_prefixlen)), strict=False), IPS, st.integers(8, 128))
POOL = st.builds(Pool, cidr=NETS, bgp_program=st.booleans(), export_disabled=st.booleans(), ipip=st.sampled_from(IPIP))
COMMUNITY = st.tuples(*[st.integers(0, 65535)] * 2) | st.tuples(*[st.integers(0, 2**32 - 1)] * 3)
PASSWORDS = st.text(st.characters(codec="ascii", min_codepoint=32, exclude_characters='"\x7f'), min_size=1, max_size=80)
OPERATION = (
    st.builds(AddCommunity, COMMUNITY)
    | st.builds(PrependPath, st.lists(ASN, min_size=1, max_size=10).map(tuple))
    | st.builds(SetPriority, st.integers(1, 2**31 - 2))
)
INTERFACE = st.from_regex(r"[a-zA-Z0-9_.*-]{1,15}", fullmatch=True)
RULE = st.builds(
    FilterRule,
    accept=st.booleans(),
    inside=st.booleans(),
    negated=st.booleans(),
    learned=st.booleans(),
    interface=st.just("") | INTERFACE,
    same_as=st.none() | st.booleans(),
    community=st.just(()) | COMMUNITY,
    as_path=st.lists(ASN, max_size=4).map(tuple),
    priority=st.none() | st.integers(1, 2**31 - 2),
    operations=st.lists(OPERATION, max_size=3).map(tuple),
)
FILTER_NAMES = ("rack", "a.b-c.d", "long-name" * 10, "long-name" * 10 + "x")
EXPLICIT = st.builds(
    ExplicitPeer,
    scope=st.sampled_from([Scope.GLOBAL, Scope.NODE, Scope.WORKLOAD]),
    ip=IPS,
    remote_as=st.just(64512) | ASN,
    port=st.none() | st.integers(1, 65535),
    local_as=st.none() | ASN,
    password=st.none() | PASSWORDS,
    source_node_ip=st.booleans(),
    next_hop=st.sampled_from(NextHop),
    keep_original_next_hop=st.booleans(),
    ttl_hops=st.none() | st.integers(1, 255),
    keepalive_time=st.none() | st.integers(1, HOLD_TIME),
    restart_time=st.none() | SECONDS,
    allowed_local_as=st.none() | st.integers(0, 10),
    reachable_by=st.none(),
    passive=st.none() | st.booleans(),
    filters=st.lists(st.sampled_from((*FILTER_NAMES, "gone")), max_size=3, unique=True).map(tuple),
    reverse=st.booleans(),
)
ROUTERS = st.builds(
    Router,
    name=st.text("abc", min_size=1, max_size=4),
    ipv4=st.none() | V4,
    ipv6=st.none() | V6,
    as_number=st.none() | ASN,
    cluster_id=st.none() | V4.map(str),
    listen_port=st.none() | st.integers(1, 65535),
)


def few(strategy: st.SearchStrategy[T]) -> st.SearchStrategy[tuple[T, ...]]:
    return st.lists(strategy, max_size=4).map(tuple)


@st.composite
def rules(draw: st.DrawFn, version: int) -> tuple[FilterRule, ...]:
    """Up to four rules about networks of one family."""
    found = []
    for rule in draw(few(RULE)):
        net = draw(st.none() | NETS.filter(lambda net: net.version == version))
        lengths = None
        if net is not None:
            least = draw(st.integers(net.prefixlen, net.max_prefixlen))
            lengths = draw(st.none() | st.tuples(st.just(least), st.integers(least, net.max_prefixlen)))
        found.append(replace(rule, net=net, lengths=lengths))
    return tuple(found)


@st.composite
def filters(draw: st.DrawFn) -> tuple[Filter, ...]:
    return tuple(
        Filter(
            name=name, import4=draw(rules(4)), export4=draw(rules(4)), import6=draw(rules(6)), export6=draw(rules(6))
        )
        for name in draw(st.lists(st.sampled_from(FILTER_NAMES), max_size=3, unique=True))
    )


@st.composite
def configs(draw: st.DrawFn) -> BirdConfig:
    me = draw(ROUTERS)
    explicit = draw(few(EXPLICIT))
    explicit = tuple(
        replace(peer, reachable_by=draw(st.none() | (V4 if peer.ip.version == 4 else V6))) for peer in explicit
    )
    return BirdConfig(
        router_id=draw(V4),
        ipv4=me.ipv4,
        ipv6=me.ipv6,
        listen_port=me.listen_port,
        bind_mode=draw(st.sampled_from(BindMode)),
        normal_priority_ipv4=draw(st.integers(1, 2**31 - 2)),
        blocks=draw(few(NETS)),
        pools=draw(few(POOL)),
        services=draw(few(NETS)),
        kept_out=draw(few(NETS)),
        passed_on=draw(few(NETS)),
        ignored_interfaces=draw(few(INTERFACE)),
        filters=draw(filters()),
        workload_ips=draw(few(IPS)),
        subnet=draw(st.none() | NETS.filter(lambda net: net.version == 4)),
        tunnel_there=draw(st.booleans()),
        advertisements=draw(few(st.builds(Advertisement, NETS, few(COMMUNITY)))),
        cluster_route_protocol=draw(st.none() | st.just(80)),
        log_level=draw(st.sampled_from(LogLevel)),
        peers=sessions(me, draw(few(ROUTERS)), explicit),
        connect_delay=draw(SECONDS),
    )


GOLDEN = sorted((Path(__file__).parents[1] / "unit" / "golden").glob("*.bird.conf"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_bird_accepts_what_is_printed_as_right(tmp_path: Path, path: Path) -> None:
    Bird(tmp_path / "bird.conf", tmp_path / "bird.ctl", log=tmp_path / "bird.log").check(path.read_text())


@settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # shrinking would run BIRD a thousand times
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(configs())
def test_bird_accepts_every_configuration(tmp_path: Path, config: BirdConfig) -> None:
    Bird(tmp_path / "bird.conf", tmp_path / "bird.ctl", log=tmp_path / "bird.log").check(render(config))
