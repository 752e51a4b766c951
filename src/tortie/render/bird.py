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

from collections.abc import Iterable, Iterator

from tortie.base.errors import ConfigError
from tortie.bgp.communities import Advertisement
from tortie.model.bgp import INTERFACE_PATTERN
from tortie.render.bird_config import (
    CLUSTER_ROUTE_PROTOCOL,
    IPIP,
    TUNNEL,
    BindMode,
    BirdConfig,
    Family,
    LogLevel,
    Pool,
    debug_lines,
    exactly,
    family_of,
    inside,
    outermost,
    sorted_nets,
)
from tortie.render.bird_filters import filter_functions
from tortie.render.bird_sessions import session_blocks

__all__ = [
    "CLUSTER_ROUTE_PROTOCOL",
    "IPIP",
    "Advertisement",
    "BindMode",
    "BirdConfig",
    "LogLevel",
    "Pool",
    "render",
]

EXCLUDED_INTERFACES = ("cali*", "kube-ipvs*")  # workloads are announced by blocks; IPVS service addresses not at all


def render(config: BirdConfig) -> str:
    """The text of bird.conf; the same for the same values in any order.

    Raises ConfigError for what BIRD's syntax cannot hold: a password with a quote, an interface that is no pattern.
    """
    blocks = [_head(config), _common(config)]
    for version in (4, 6):
        family = family_of(config, version)
        if family.own is None:
            blocks.append([f"# IPv{version} disabled on this node"])
            continue
        blocks += [
            [f"# {'-' * 8} IPv{version}: this node is {family.own} {'-' * 8}"],
            _priorities(family),
            _import(config, family),
            _export(config, family),
            _kernel(config, family),
            _static(family),
            *filter_functions(family),
            *session_blocks(config, family),
        ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


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
    debug = debug_lines(config, "{ states }")
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


def _interfaces(ignored: Iterable[str]) -> str:
    for name in ignored:
        if not INTERFACE_PATTERN.fullmatch(name):
            raise ConfigError(
                f'"{name}" is not an interface name or pattern such as eth1 or veth*', "ignoredInterfaces"
            )
    patterns = dict.fromkeys((*sorted(ignored), *EXCLUDED_INTERFACES))
    return ", ".join([*(f'-"{pattern}"' for pattern in patterns), '"*"'])


# --------------------------------------------------------------------------------------------------- one family


def _priorities(family: Family) -> list[str]:
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
    ]


def _import(config: BirdConfig, family: Family) -> list[str]:
    v = family.version
    return [
        "# What is taken in of peers, once no filter has rejected it.",
        f"function admit{v}() {{",
        *_tunnelled(config, family),
        "  # An urgent route beats the kernel's (preference 10): the workload has moved there.",
        f"  if defined(bgp_local_pref) && bgp_local_pref > TOP - NORMAL{v} then preference = 200;",
        "  accept;",
        "}",
        f"filter from_peer{v} {{ admit{v}(); }}",
    ]


def _tunnelled(config: BirdConfig, family: Family) -> Iterator[str]:
    """Routes of BIRD's own through IP in IP. A gateway that is changed later, towards the kernel, has no effect."""
    pools = [pool for pool in family.pools if pool.bgp_program and family.version == 4]
    always = [pool.cidr for pool in pools if pool.ipip is IPIP.ALWAYS]
    crossing = [pool.cidr for pool in pools if pool.ipip is IPIP.CROSS_SUBNET]
    through = (
        f'{{\n    onlink = true; ifname = "{TUNNEL}"; gw = bgp_next_hop;\n  }}' if config.tunnel_there else "reject;"
    )
    if not config.tunnel_there and (always or crossing):
        yield f"  # There is no link {TUNNEL} yet: until there is, nodes are not reached past it."
    if always:
        yield "  # Pools of IP in IP."
        yield f"  if {inside(always)} then {through}"
    if crossing:
        yield "  # Pools of IP in IP between subnets."
        elsewhere = f" && !(bgp_next_hop ~ {config.subnet})" if config.subnet is not None else ""
        yield f"  if {inside(crossing)}{elsewhere} then {through}"


def _export(config: BirdConfig, family: Family) -> list[str]:
    v = family.version
    return [
        "# What peers are told. The first accept or reject decides.",
        f"function announce{v}(bool same_as) {{",
        *_rejections(config, family),
        *_communities(family),
        *_acceptances(family),
        "  reject;",
        "}",
        f"filter to_ibgp{v} {{ metric_to_preference{v}(); announce{v}(true); }}",
        f"filter to_ebgp{v} {{ metric_to_preference{v}(); announce{v}(false); }}",
    ]


def _rejections(config: BirdConfig, family: Family) -> Iterator[str]:
    private = [pool.cidr for pool in family.pools if pool.export_disabled]
    if private:
        yield "  # Pools with disableBGPExport."
        yield f"  if {inside(private)} then reject;"
    yield "  # Other nodes' networks, reached through tunnels: those nodes announce them."
    yield "  if same_as && defined(ifname) then {"
    yield '    if ifname ~ "*.cali" || ifname ~ "*.calico" then reject;'
    yield f'    if ifname ~ "{TUNNEL}" && source != RTS_BGP then reject;'
    yield "  }"
    if config.cluster_route_protocol is not None:
        yield "  # The same networks where the agent routes them without a tunnel."
        number = config.cluster_route_protocol
        yield f"  if same_as && defined(krt_source) && krt_source = {number} then reject;"
    yield '  if defined(ifname) && ifname ~ "bpf*.cali" then reject;'


def _communities(family: Family) -> Iterator[str]:
    for ad in family.advertisements:
        if not ad.communities:
            continue
        yield f"  if {inside([ad.cidr])} then {{"
        for community in dict.fromkeys(ad.communities):
            attribute = "bgp_community" if len(community) == 2 else "bgp_large_community"
            yield f"    {attribute}.add(({', '.join(map(str, community))}));"
        yield "  }"


def _acceptances(family: Family) -> Iterator[str]:
    if family.blocks:
        yield "  # Own blocks go out whole; what is inside only when it is urgent."
        yield f"  if {exactly(family.blocks)} then accept;"
        yield f"  if {inside(family.blocks)} then {{"
        yield f"    if krt_metric < NORMAL{family.version} then accept;"
        yield "    reject;"
        yield "  }"
    services = outermost(sorted_nets((*family.services, *family.passed_on), family.version))
    if services:
        yield "  # Services."
        yield f"  if {inside(services)} then accept;"
    public = sorted_nets((pool.cidr for pool in family.pools if not pool.export_disabled), family.version)
    if public:
        yield "  # Anything else of a pool: addresses of other nodes' blocks that workloads here hold."
        yield f"  if {inside(public)} then accept;"


def _kernel(config: BirdConfig, family: Family) -> list[str]:
    v = family.version
    learnt = " && ".join(f"krt_source != {number}" for number in sorted(set(config.unlearned)))
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
        f"  {family.channel} {{ import {f'where {learnt}' if learnt else 'all'}; export filter to_kernel{v}; }};",
        "}",
    ]


def _kernel_rejections(family: Family) -> Iterator[str]:
    services = outermost(sorted_nets((*family.services, *family.kept_out), family.version))
    if services:
        yield "  # Services are announced, and answered by the service proxy."
        yield f"  if {inside(services)} then reject;"
    agent = [pool for pool in family.pools if not pool.bgp_program]
    if agent:
        yield "  # Pools that the agent routes; this node's blackholes of them are the agent's, too."
        yield f"  if {inside(pool.cidr for pool in agent)} then reject;"


def _static(family: Family) -> list[str]:
    v = family.version
    blackholes = sorted_nets((*family.blocks, *family.services), v)
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
