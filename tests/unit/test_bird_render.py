"""bird.conf as text. That BIRD takes it, and does what it says, is tested with BIRD (interop)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.base.errors import ConfigError
from tortie.bgp.sessions import ExplicitPeer, NextHop, Peer, Router, Scope, sessions
from tortie.render.bird import Advertisement, BindMode, BirdConfig, LogLevel, Pool, render

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
        Pool(cidr=ip_network("172.17.0.0/16"), bgp_program=False, blackholes=False),
        Pool(cidr=ip_network("10.77.0.0/16"), export_disabled=True),
        Pool(cidr=ip_network("fd01::/16")),
    ),
    services=(ip_network("10.96.0.0/12"),),
    service_ranges=(ip_network("203.0.113.0/24"),),
    ignored_interfaces=("eth9",),
    advertisements=(Advertisement(ip_network("192.168.0.0/16"), ((100, 6532), (100, 555, 107))),),
    wireguard_peers=(IPv4Address("10.9.0.3"),),
    peers=sessions(NODES[0], NODES, [TOR]),
)

GOLDEN = """\
# Written by tortie for BIRD 2. Do not edit: it is rewritten whenever the cluster changes.
log stderr all;
router id 10.9.0.1;
graceful restart wait 240;

# Local preference and kernel metric of a route add up to this.
define TOP = 2147483647;

protocol device {
  debug { states };
  scan time 2;
}

# Connected networks, to resolve next hops; they are not announced.
protocol direct {
  debug { states };
  ipv4; ipv6;
  interface -"eth9", -"cali*", -"kube-ipvs*", "*";
}

# -------- IPv4: this node is 10.9.0.1 --------

# The kernel metric of an ordinary route. A smaller one is urgent.
define NORMAL4 = 1024;

function metric_to_preference4() {
  if source = RTS_BGP && defined(bgp_local_pref) then krt_metric = TOP - bgp_local_pref;
  else {
    if !defined(krt_metric) then krt_metric = NORMAL4;
    bgp_local_pref = TOP - krt_metric;
  }
}

# An urgent route of a peer beats the kernel's (preference 10): the workload has moved there.
filter from_peer4 {
  if defined(bgp_local_pref) && bgp_local_pref > TOP - NORMAL4 then preference = 200;
  accept;
}

# What peers are told. The first accept or reject decides.
function announce4(bool same_as) {
  # Pools with disableBGPExport.
  if net ~ [ 10.77.0.0/16+ ] then reject;
  # Other nodes' networks, reached through tunnels: those nodes announce them.
  if same_as && defined(ifname) then {
    if ifname ~ "*.cali" || ifname ~ "*.calico" || ifname ~ "tunl0" then reject;
  }
  # The same networks where the agent routes them without a tunnel.
  if same_as && defined(krt_source) && krt_source = 80 then reject;
  if defined(ifname) && ifname ~ "bpf*.cali" then reject;
  if net ~ [ 192.168.0.0/16+ ] then {
    bgp_community.add((100, 6532));
    bgp_large_community.add((100, 555, 107));
  }
  # Own blocks go out whole; what is inside only when it is urgent.
  if net ~ [
    192.168.1.0/26,
    192.168.1.64/26
  ] then accept;
  if net ~ [
    192.168.1.0/26+,
    192.168.1.64/26+
  ] then {
    if krt_metric < NORMAL4 then accept;
    reject;
  }
  # Services.
  if net ~ [ 10.96.0.0/12+ ] then accept;
  # Anything else of a pool: addresses of other nodes' blocks that workloads here hold.
  if net ~ [
    172.16.0.0/16+,
    172.17.0.0/16+,
    192.168.0.0/16+
  ] then accept;
  reject;
}
filter to_ibgp4 { metric_to_preference4(); announce4(true); }
filter to_ebgp4 { metric_to_preference4(); announce4(false); }

# What BIRD writes to the FIB. The first accept or reject decides.
filter to_kernel4 {
  # The kernel has its connected routes already.
  if source = RTS_DEVICE then reject;
  # Services are announced, and answered by the service proxy.
  if net ~ [
    10.96.0.0/12+,
    203.0.113.0/24+
  ] then reject;
  # The agent routes to these nodes through WireGuard.
  if source = RTS_BGP && (bgp_next_hop = 10.9.0.3) then reject;
  # The agent routes these pools; of them BIRD writes this node's blackholes only.
  if source = RTS_STATIC && dest = RTD_BLACKHOLE && net ~ [ 172.16.0.0/16+ ] then accept;
  # Pools that the agent routes.
  if net ~ [
    172.16.0.0/16+,
    172.17.0.0/16+
  ] then reject;
  if source = RTS_BGP && !defined(krt_metric) then {
    if defined(bgp_local_pref) then krt_metric = TOP - bgp_local_pref;
    else krt_metric = NORMAL4;
  }
  accept;
}

# learn: the agent's routes. persist: the FIB outlives BIRD. metric 0: else every route gets metric 32.
protocol kernel kernel4 {
  learn;
  persist;
  scan time 2;
  merge paths on;
  graceful restart;
  metric 0;
  ipv4 { import all; export filter to_kernel4; };
}

# This node's blocks and services: announced, and dropped where nothing more specific is known.
protocol static static4 {
  ipv4;
  route 10.96.0.0/12 blackhole;
  route 192.168.1.0/26 blackhole;
  route 192.168.1.64/26 blackhole;
  route 10.9.0.9/32 via 10.9.0.254;
}

template bgp peer4 {
  description "Connection to BGP peer";
  debug { states, events };
  multihop;
  graceful restart;
  connect delay time 2;
  connect retry time 5;
  error wait time 5,30;
  ipv4 {
    gateway recursive;
    add paths on;
    import filter from_peer4;
    export none;
  };
}

protocol bgp Global_10_9_0_9_port_1179 from peer4 {
  local 10.9.0.1 as 64512;
  neighbor 10.9.0.9 port 1179 as 64999;
  ttl security on;
  multihop 3;
  password "it's secret";
  keepalive time 10;
  graceful restart time 200;
  allow local as 2;
  ipv4 { next hop self; export filter to_ebgp4; };
}

protocol bgp Mesh_10_9_0_2 from peer4 {
  local 10.9.0.1 as 64512;
  neighbor 10.9.0.2 as 64512;
  ttl security off;
  passive on;
  ipv4 { export filter to_ibgp4; };
}

protocol bgp Mesh_10_9_0_3 from peer4 {
  local 10.9.0.1 as 64512;
  neighbor 10.9.0.3 as 64512;
  ttl security off;
  passive on;
  ipv4 { export filter to_ibgp4; };
}

# -------- IPv6: this node is fd00:9::1 --------

# The kernel metric of an ordinary route. A smaller one is urgent.
define NORMAL6 = 1024;

function metric_to_preference6() {
  if source = RTS_BGP && defined(bgp_local_pref) then krt_metric = TOP - bgp_local_pref;
  else {
    if !defined(krt_metric) then krt_metric = NORMAL6;
    bgp_local_pref = TOP - krt_metric;
  }
}

# An urgent route of a peer beats the kernel's (preference 10): the workload has moved there.
filter from_peer6 {
  if defined(bgp_local_pref) && bgp_local_pref > TOP - NORMAL6 then preference = 200;
  accept;
}

# What peers are told. The first accept or reject decides.
function announce6(bool same_as) {
  # Other nodes' networks, reached through tunnels: those nodes announce them.
  if same_as && defined(ifname) then {
    if ifname ~ "*.cali" || ifname ~ "*.calico" || ifname ~ "tunl0" then reject;
  }
  # The same networks where the agent routes them without a tunnel.
  if same_as && defined(krt_source) && krt_source = 80 then reject;
  if defined(ifname) && ifname ~ "bpf*.cali" then reject;
  # Own blocks go out whole; what is inside only when it is urgent.
  if net ~ [ fd01:1::/122 ] then accept;
  if net ~ [ fd01:1::/122+ ] then {
    if krt_metric < NORMAL6 then accept;
    reject;
  }
  # Anything else of a pool: addresses of other nodes' blocks that workloads here hold.
  if net ~ [ fd01::/16+ ] then accept;
  reject;
}
filter to_ibgp6 { metric_to_preference6(); announce6(true); }
filter to_ebgp6 { metric_to_preference6(); announce6(false); }

# What BIRD writes to the FIB. The first accept or reject decides.
filter to_kernel6 {
  # The kernel has its connected routes already.
  if source = RTS_DEVICE then reject;
  if source = RTS_BGP && !defined(krt_metric) then {
    if defined(bgp_local_pref) then krt_metric = TOP - bgp_local_pref;
    else krt_metric = NORMAL6;
  }
  accept;
}

# learn: the agent's routes. persist: the FIB outlives BIRD. metric 0: else every route gets metric 32.
protocol kernel kernel6 {
  learn;
  persist;
  scan time 2;
  merge paths on;
  graceful restart;
  metric 0;
  ipv6 { import all; export filter to_kernel6; };
}

# This node's blocks and services: announced, and dropped where nothing more specific is known.
protocol static static6 {
  ipv6;
  route fd01:1::/122 blackhole;
}

template bgp peer6 {
  description "Connection to BGP peer";
  debug { states, events };
  multihop;
  graceful restart;
  connect delay time 2;
  connect retry time 5;
  error wait time 5,30;
  ipv6 {
    gateway recursive;
    add paths on;
    import filter from_peer6;
    export none;
  };
}

protocol bgp Mesh_fd00_9__2 from peer6 {
  local fd00:9::1 as 64512;
  neighbor fd00:9::2 as 64512;
  ttl security off;
  passive on;
  ipv6 { export filter to_ibgp6; };
}

protocol bgp Mesh_fd00_9__3 from peer6 {
  local fd00:9::1 as 64512;
  neighbor fd00:9::3 as 64512;
  ttl security off;
  passive on;
  ipv6 { export filter to_ibgp6; };
}
"""


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
    names = ("blocks", "pools", "services", "service_ranges", "ignored_interfaces", "wireguard_peers")
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

    assert accepted(replace(NODE_A, route_reflector=True))
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
