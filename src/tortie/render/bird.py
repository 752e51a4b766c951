"""bird.conf for stock BIRD 2: one daemon, both families, readable by the person who debugs it at night.

    workload routes (agent, metric 1024) ─┐ learn                            ┌─► to_ibgp / to_ebgp ─► peers
    connected routes ─ direct ────────────┼─► master4, master6 ──────────────┤
    own blocks, services ─ static ────────┤                                  └─► to_kernel ─► FIB (proto bird)
    peers ─► from_peer ───────────────────┘

What a route is worth travels between nodes as BGP's local preference: preference + kernel metric = 2147483647, which
is Calico's mapping. A metric below the normal one (1024) is *urgent*: such a route leaves even from inside an own
block, and at the receiver wins over what the kernel knows. That is how a pod keeps its address while it moves.

What stock BIRD does unlike its 1.6 ancestor, and what it costs to forget (each is tested against the daemon):
- the kernel protocol writes metric 32 unless told `metric 0`;
- connected routes are exported to the kernel, as duplicates, unless rejected;
- an undefined number is smaller than any other, so a metric is given its default before it is compared;
- `~` on an undefined attribute is an error that drops the route, so `defined()` guards it;
- `bgp_next_hop ~ [set]` fails at run time, so next hops are compared with `=`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

from tortie.base.addr import IP, Net
from tortie.base.errors import ConfigError
from tortie.bgp.sessions import NextHop, Peer

NORMAL_PRIORITY = 1024  # Calico's ipv4NormalRoutePriority; also what the kernel gives an IPv6 route without a metric
CLUSTER_ROUTE_PROTOCOL = 80  # rtm_protocol of the agent's routes to other nodes' blocks (Felix's DeviceRouteProtocol)
HOLD_TIME = 240  # seconds; BIRD's default, which Calico never sets
EXCLUDED_INTERFACES = ("cali*", "kube-ipvs*")  # workloads are announced by blocks; IPVS service addresses not at all

_INTERFACE = re.compile(r"[a-zA-Z0-9_.*-]{1,15}")  # BGPConfiguration.ignoredInterfaces


class LogLevel(StrEnum):
    """BGPConfiguration.logSeverityScreen."""

    TRACE = "Trace"
    DEBUG = "Debug"
    INFO = "Info"
    WARNING = "Warning"
    ERROR = "Error"
    FATAL = "Fatal"


class BindMode(StrEnum):
    """BGPConfiguration.bindMode: listen on every address, or on the node's own only."""

    ANY = "None"
    NODE_IP = "NodeIP"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A pool of workload addresses as BGP sees it.

    `bgp_program`: BIRD writes the routes to other nodes' blocks; False where the agent does (tunnels).
    `export_disabled`: nothing of the pool is announced.
    `blackholes`: BIRD keeps this node's own blocks of the pool as blackholes, even where the agent owns the rest.
    """

    cidr: Net
    bgp_program: bool = True
    export_disabled: bool = False
    blackholes: bool = True


@dataclass(frozen=True, slots=True)
class Advertisement:
    """Communities to attach to what is announced from inside `cidr`: pairs are standard ones, triples large ones."""

    cidr: Net
    communities: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BirdConfig:
    """Everything bird.conf depends on. Networks of both families mix freely in one field; order means nothing.

    `blocks`: this node's affine blocks. `services`: announced by this node, never in its FIB. `service_ranges`: never
    in its FIB either, and passed on by a route reflector. `wireguard_peers`: next hops that are reached encrypted, by
    routes of the agent's. `restart_wait`: how long the FIB is held after a start for peers to come back. Seconds.
    """

    router_id: IPv4Address
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    listen_port: int | None = None
    bind_mode: BindMode = BindMode.ANY
    normal_priority_ipv4: int = NORMAL_PRIORITY
    normal_priority_ipv6: int = NORMAL_PRIORITY
    blocks: tuple[Net, ...] = ()
    pools: tuple[Pool, ...] = ()
    services: tuple[Net, ...] = ()
    service_ranges: tuple[Net, ...] = ()
    route_reflector: bool = False
    ignored_interfaces: tuple[str, ...] = ()
    advertisements: tuple[Advertisement, ...] = ()
    wireguard_peers: tuple[IP, ...] = ()
    cluster_route_protocol: int | None = CLUSTER_ROUTE_PROTOCOL
    log_level: LogLevel = LogLevel.INFO
    peers: tuple[Peer, ...] = ()
    connect_delay: int = 2
    connect_retry: int = 5
    restart_wait: int = 240


@dataclass(frozen=True, slots=True)
class _Family:
    """One family's share of the configuration, sorted, without duplicates."""

    version: int
    own: IP | None
    normal: int
    blocks: tuple[Net, ...]
    pools: tuple[Pool, ...]
    services: tuple[Net, ...]
    service_ranges: tuple[Net, ...]
    advertisements: tuple[Advertisement, ...]
    wireguard_peers: tuple[IP, ...]
    peers: tuple[Peer, ...]

    @property
    def channel(self) -> str:
        return f"ipv{self.version}"


def render(config: BirdConfig) -> str:
    """The text of bird.conf; the same for the same values in any order.

    Raises ConfigError for what BIRD's syntax cannot hold: a password with a quote, an interface that is no pattern.
    """
    blocks = [_head(config), _common(config)]
    for version in (4, 6):
        family = _family(config, version)
        if family.own is None:
            blocks.append([f"# IPv{version} disabled on this node"])
            continue
        blocks += [
            [f"# {'-' * 8} IPv{version}: this node is {family.own} {'-' * 8}"],
            _priorities(family),
            _export(config, family),
            _kernel(family),
            _static(family),
            *_sessions(config, family),
        ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _family(config: BirdConfig, version: int) -> _Family:
    return _Family(
        version=version,
        own=config.ipv4 if version == 4 else config.ipv6,
        normal=config.normal_priority_ipv4 if version == 4 else config.normal_priority_ipv6,
        # A block of one address is that workload's route: there is nothing to aggregate.
        blocks=tuple(net for net in _nets(config.blocks, version) if net.prefixlen < net.max_prefixlen),
        pools=tuple(sorted({pool for pool in config.pools if pool.cidr.version == version}, key=_pool_order)),
        services=_nets(config.services, version),
        service_ranges=_nets(config.service_ranges, version),
        advertisements=tuple(
            sorted((ad for ad in config.advertisements if ad.cidr.version == version), key=_advertisement_order)
        ),
        wireguard_peers=tuple(sorted({ip for ip in config.wireguard_peers if ip.version == version}, key=int)),
        peers=tuple(sorted((peer for peer in config.peers if peer.ip.version == version), key=lambda p: p.name)),
    )


def _nets(nets: Iterable[Net], version: int) -> tuple[Net, ...]:
    return tuple(sorted({net for net in nets if net.version == version}, key=_net_order))


def _net_order(net: Net) -> tuple[int, int]:
    return int(net.network_address), net.prefixlen


def _pool_order(pool: Pool) -> tuple[int, int, bool, bool, bool]:
    return (*_net_order(pool.cidr), pool.bgp_program, pool.export_disabled, pool.blackholes)


def _advertisement_order(ad: Advertisement) -> tuple[int, int, tuple[tuple[int, ...], ...]]:
    return (*_net_order(ad.cidr), ad.communities)


def _inside(nets: Iterable[Net]) -> str:
    """`net ~ [ 10.0.0.0/8+, ... ]`: the networks and everything in them."""
    return _among(f"{net}+" for net in nets)


def _exactly(nets: Iterable[Net]) -> str:
    """`net ~ [ 10.0.0.0/26, ... ]`: the networks themselves."""
    return _among(str(net) for net in nets)


def _among(entries: Iterable[str]) -> str:
    """A test for a prefix set: on one line for one entry, else one line each, so that a diff shows what changed."""
    words = tuple(entries)
    if len(words) == 1:
        return f"net ~ [ {words[0]} ]"
    return "net ~ [\n    " + ",\n    ".join(words) + "\n  ]"


# ------------------------------------------------------------------------------------------------ both families


def _head(config: BirdConfig) -> list[str]:
    return [
        "# Written by tortie for BIRD 2. Do not edit: it is rewritten whenever the cluster changes.",
        "log stderr all;",
        f"router id {config.router_id};",
        f"graceful restart wait {config.restart_wait};",
    ]


def _common(config: BirdConfig) -> list[str]:
    families = " ".join(f"ipv{version};" for version, own in ((4, config.ipv4), (6, config.ipv6)) if own is not None)
    debug = _debug(config, "{ states }")
    return [
        "# Local preference and kernel metric of a route add up to this.",
        "define TOP = 2147483647;",
        "",
        "protocol device {",
        *debug,
        "  scan time 2;",
        "}",
        "",
        "# Connected networks, to resolve next hops; they are not announced.",
        "protocol direct {",
        *debug,
        *([f"  {families}"] if families else []),
        f"  interface {_interfaces(config.ignored_interfaces)};",
        "}",
    ]


def _debug(config: BirdConfig, at_info: str) -> list[str]:
    if config.log_level in (LogLevel.TRACE, LogLevel.DEBUG):
        return ["  debug all;"]
    return [f"  debug {at_info};"] if config.log_level is LogLevel.INFO else []


def _interfaces(ignored: Iterable[str]) -> str:
    for name in ignored:
        if not _INTERFACE.fullmatch(name):
            raise ConfigError(
                f'"{name}" is not an interface name or pattern such as eth1 or veth*', "ignoredInterfaces"
            )
    patterns = dict.fromkeys((*sorted(ignored), *EXCLUDED_INTERFACES))
    return ", ".join([*(f'-"{pattern}"' for pattern in patterns), '"*"'])


# --------------------------------------------------------------------------------------------------- one family


def _priorities(family: _Family) -> list[str]:
    v = family.version
    return [
        "# The kernel metric of an ordinary route. A smaller one is urgent.",
        f"define NORMAL{v} = {family.normal};",
        "",
        f"function metric_to_preference{v}() {{",
        "  if source = RTS_BGP && defined(bgp_local_pref) then krt_metric = TOP - bgp_local_pref;",
        "  else {",
        f"    if !defined(krt_metric) then krt_metric = NORMAL{v};",
        "    bgp_local_pref = TOP - krt_metric;",
        "  }",
        "}",
        "",
        "# An urgent route of a peer beats the kernel's (preference 10): the workload has moved there.",
        f"filter from_peer{v} {{",
        f"  if defined(bgp_local_pref) && bgp_local_pref > TOP - NORMAL{v} then preference = 200;",
        "  accept;",
        "}",
    ]


def _export(config: BirdConfig, family: _Family) -> list[str]:
    v = family.version
    return [
        "# What peers are told. The first accept or reject decides.",
        f"function announce{v}(bool same_as) {{",
        *_rejections(config, family),
        *_communities(family),
        *_acceptances(config, family),
        "  reject;",
        "}",
        f"filter to_ibgp{v} {{ metric_to_preference{v}(); announce{v}(true); }}",
        f"filter to_ebgp{v} {{ metric_to_preference{v}(); announce{v}(false); }}",
    ]


def _rejections(config: BirdConfig, family: _Family) -> Iterator[str]:
    private = [pool.cidr for pool in family.pools if pool.export_disabled]
    if private:
        yield "  # Pools with disableBGPExport."
        yield f"  if {_inside(private)} then reject;"
    yield "  # Other nodes' networks, reached through tunnels: those nodes announce them."
    yield "  if same_as && defined(ifname) then {"
    yield '    if ifname ~ "*.cali" || ifname ~ "*.calico" || ifname ~ "tunl0" then reject;'
    yield "  }"
    if config.cluster_route_protocol is not None:
        yield "  # The same networks where the agent routes them without a tunnel."
        number = config.cluster_route_protocol
        yield f"  if same_as && defined(krt_source) && krt_source = {number} then reject;"
    yield '  if defined(ifname) && ifname ~ "bpf*.cali" then reject;'


def _communities(family: _Family) -> Iterator[str]:
    for ad in family.advertisements:
        if not ad.communities:
            continue
        yield f"  if {_inside([ad.cidr])} then {{"
        for community in dict.fromkeys(ad.communities):
            attribute = "bgp_community" if len(community) == 2 else "bgp_large_community"
            yield f"    {attribute}.add(({', '.join(map(str, community))}));"
        yield "  }"


def _acceptances(config: BirdConfig, family: _Family) -> Iterator[str]:
    if family.blocks:
        yield "  # Own blocks go out whole; what is inside only when it is urgent."
        yield f"  if {_exactly(family.blocks)} then accept;"
        yield f"  if {_inside(family.blocks)} then {{"
        yield f"    if krt_metric < NORMAL{family.version} then accept;"
        yield "    reject;"
        yield "  }"
    passed_on = family.service_ranges if config.route_reflector else ()
    services = _nets((*family.services, *passed_on), family.version)
    if services:
        yield "  # Services."
        yield f"  if {_inside(services)} then accept;"
    public = _nets((pool.cidr for pool in family.pools if not pool.export_disabled), family.version)
    if public:
        yield "  # Anything else of a pool: addresses of other nodes' blocks that workloads here hold."
        yield f"  if {_inside(public)} then accept;"


def _kernel(family: _Family) -> list[str]:
    v = family.version
    return [
        "# What BIRD writes to the FIB. The first accept or reject decides.",
        f"filter to_kernel{v} {{",
        "  # The kernel has its connected routes already.",
        "  if source = RTS_DEVICE then reject;",
        *_kernel_rejections(family),
        "  if source = RTS_BGP && !defined(krt_metric) then {",
        "    if defined(bgp_local_pref) then krt_metric = TOP - bgp_local_pref;",
        f"    else krt_metric = NORMAL{v};",
        "  }",
        "  accept;",
        "}",
        "",
        "# learn: the agent's routes. persist: the FIB outlives BIRD. metric 0: else every route gets metric 32.",
        f"protocol kernel kernel{v} {{",
        "  learn;",
        "  persist;",
        "  scan time 2;",
        "  merge paths on;",
        "  graceful restart;",
        "  metric 0;",
        f"  {family.channel} {{ import all; export filter to_kernel{v}; }};",
        "}",
    ]


def _kernel_rejections(family: _Family) -> Iterator[str]:
    services = _nets((*family.services, *family.service_ranges), family.version)
    if services:
        yield "  # Services are announced, and answered by the service proxy."
        yield f"  if {_inside(services)} then reject;"
    if family.wireguard_peers:
        yield "  # The agent routes to these nodes through WireGuard."
        tests = " || ".join(f"bgp_next_hop = {ip}" for ip in family.wireguard_peers)
        yield f"  if source = RTS_BGP && ({tests}) then reject;"
    agent = [pool for pool in family.pools if not pool.bgp_program]
    held = [pool.cidr for pool in agent if pool.blackholes]
    if held:
        yield "  # The agent routes these pools; of them BIRD writes this node's blackholes only."
        yield f"  if source = RTS_STATIC && dest = RTD_BLACKHOLE && {_inside(held)} then accept;"
    if agent:
        yield "  # Pools that the agent routes."
        yield f"  if {_inside(pool.cidr for pool in agent)} then reject;"


def _static(family: _Family) -> list[str]:
    v = family.version
    blackholes = _nets((*family.blocks, *family.services), v)
    hosts = {peer.ip: peer.reachable_by for peer in reversed(family.peers) if peer.reachable_by is not None}
    bits = 32 if v == 4 else 128
    return [
        "# This node's blocks and services: announced, and dropped where nothing more specific is known.",
        f"protocol static static{v} {{",
        f"  {family.channel};",
        *(f"  route {net} blackhole;" for net in blackholes),
        *(f"  route {ip}/{bits} via {hosts[ip]};" for ip in sorted(hosts, key=int)),
        "}",
    ]


# ------------------------------------------------------------------------------------------------------- sessions


def _sessions(config: BirdConfig, family: _Family) -> Iterator[list[str]]:
    if not family.peers:
        yield [f"# No IPv{family.version} peers"]
        return
    v = family.version
    yield [
        f"template bgp peer{v} {{",
        '  description "Connection to BGP peer";',
        *_debug(config, "{ states, events }"),
        "  multihop;",
        "  graceful restart;",
        f"  connect delay time {config.connect_delay};",
        f"  connect retry time {config.connect_retry};",
        "  error wait time 5,30;",
        *(["  strict bind on;"] if config.bind_mode is BindMode.NODE_IP else []),
        f"  {family.channel} {{",
        "    gateway recursive;",
        "    add paths on;",
        f"    import filter from_peer{v};",
        "    export none;",
        "  };",
        "}",
    ]
    for peer in family.peers:
        yield _session(config, family, peer)


def _session(config: BirdConfig, family: _Family, peer: Peer) -> list[str]:
    source = family.own if config.bind_mode is BindMode.NODE_IP else peer.source
    local = ["local", *_word("", source), *_word("port", config.listen_port), "as", str(peer.local_as)]
    neighbor = ["neighbor", str(peer.ip), *_word("port", peer.port), "as", str(peer.remote_as)]
    export = f"export filter to_{'ibgp' if peer.same_as else 'ebgp'}{family.version};"
    next_hop = "" if peer.next_hop is NextHop.AUTO else f"next hop {peer.next_hop.value.lower()}; "
    return [
        f"protocol bgp {peer.name} from peer{family.version} {{",
        f"  {' '.join(local)};",
        f"  {' '.join(neighbor)};",
        *_session_options(peer),
        f"  {family.channel} {{ {next_hop}{export} }};",
        "}",
    ]


def _session_options(peer: Peer) -> Iterator[str]:
    if peer.ttl_hops is None:
        yield "  ttl security off;"
    else:
        yield "  ttl security on;"
        yield f"  multihop {peer.ttl_hops};"
    if peer.passive:
        yield "  passive on;"
    if peer.rr_client:
        yield "  rr client;"
        yield f"  rr cluster id {peer.cluster_id};"
    if peer.password is not None:
        yield f'  password "{_password(peer)}";'
    if peer.keepalive_time is not None:
        if peer.keepalive_time > HOLD_TIME:
            raise ConfigError(
                f"keepalive time {peer.keepalive_time} s is more than the hold time {HOLD_TIME} s", peer.name
            )
        yield f"  keepalive time {peer.keepalive_time};"
    if peer.restart_time is not None:
        yield f"  graceful restart time {peer.restart_time};"
    if peer.allowed_local_as is not None:
        yield f"  allow local as {peer.allowed_local_as};"


def _password(peer: Peer) -> str:
    password = peer.password or ""
    if not password or not password.isprintable() or '"' in password:
        raise ConfigError(
            "its password is empty or has a quote or a control character, which BIRD cannot hold", peer.name
        )
    return password


def _word(keyword: str, value: object) -> list[str]:
    """`port 177` as words; nothing for None."""
    if value is None:
        return []
    return [keyword, str(value)] if keyword else [str(value)]
