"""What bird.conf is written from: everything of a node that BIRD must know, and one family's share of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

from tortie.base.addr import IP, Net, within
from tortie.bgp.communities import Advertisement
from tortie.bgp.filters import Filter
from tortie.bgp.sessions import Peer

NORMAL_PRIORITY = 1024  # Calico's ipv4NormalRoutePriority; also what the kernel gives an IPv6 route without a metric
CLUSTER_ROUTE_PROTOCOL = 80  # rtm_protocol of the agent's routes to other nodes' blocks (Felix's DeviceRouteProtocol)
TUNNEL = "tunl0"
"""The link of IP in IP, which the agent makes."""


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


class IPIP(StrEnum):
    """Whether BIRD sends a pool's packets through the IP in IP tunnel: to all nodes, or to those of other subnets."""

    NEVER = "Never"
    ALWAYS = "Always"
    CROSS_SUBNET = "CrossSubnet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A pool of workload addresses as BGP sees it.

    `bgp_program`: BIRD writes the routes to other nodes' blocks and the blackholes of this node's; False where the
    agent does (tunnels). `export_disabled`: nothing of the pool is announced. `ipip`: how BIRD's routes go, of IPv4.
    """

    cidr: Net
    bgp_program: bool = True
    export_disabled: bool = False
    ipip: IPIP = IPIP.NEVER


@dataclass(frozen=True, slots=True, kw_only=True)
class BirdConfig:
    """Everything bird.conf depends on. Networks of both families mix freely in one field; order means nothing.

    `blocks`: this node's affine blocks. `services`: announced by this node, never in its FIB; pod networks, too.
    `kept_out`: networks of services that are never in its FIB either. `passed_on`: those in which it tells peers what
    others announce, as a route reflector does. `filters`: those that sessions name. `workload_ips`: what workloads
    speak BGP to. `subnet`: the node's own, which `ipip` asks for. `tunnel_there`: whether there is a link `tunl0`; as
    long as there is not, routes through it are refused. `unlearned`: whose routes in the kernel (rtm_protocol) BIRD
    takes no notice of. `restart_wait`: how long the FIB is held after a start for peers to come back. Seconds.
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
    kept_out: tuple[Net, ...] = ()
    passed_on: tuple[Net, ...] = ()
    ignored_interfaces: tuple[str, ...] = ()
    advertisements: tuple[Advertisement, ...] = ()
    filters: tuple[Filter, ...] = ()
    workload_ips: tuple[IP, ...] = ()
    subnet: Net | None = None
    tunnel_there: bool = True
    cluster_route_protocol: int | None = CLUSTER_ROUTE_PROTOCOL
    unlearned: tuple[int, ...] = ()
    log_level: LogLevel = LogLevel.INFO
    peers: tuple[Peer, ...] = ()
    connect_delay: int = 2
    connect_retry: int = 5
    restart_wait: int = 240


@dataclass(frozen=True, slots=True)
class Family:
    """One family's share of the configuration, sorted, without duplicates."""

    version: int
    own: IP | None
    normal: int
    blocks: tuple[Net, ...]
    pools: tuple[Pool, ...]
    services: tuple[Net, ...]
    kept_out: tuple[Net, ...]
    passed_on: tuple[Net, ...]
    advertisements: tuple[Advertisement, ...]
    filters: tuple[Filter, ...]
    peers: tuple[Peer, ...]

    @property
    def channel(self) -> str:
        return f"ipv{self.version}"


def family_of(config: BirdConfig, version: int) -> Family:
    """The share of IP version 4 or 6."""
    peers = tuple(sorted((peer for peer in config.peers if peer.ip.version == version), key=lambda peer: peer.name))
    named = {name for peer in peers for name in peer.filters}
    return Family(
        version=version,
        own=config.ipv4 if version == 4 else config.ipv6,
        normal=config.normal_priority_ipv4 if version == 4 else config.normal_priority_ipv6,
        # A block of one address is that workload's route: there is nothing to aggregate.
        blocks=tuple(net for net in sorted_nets(config.blocks, version) if net.prefixlen < net.max_prefixlen),
        pools=tuple(sorted({pool for pool in config.pools if pool.cidr.version == version}, key=_pool_order)),
        services=sorted_nets(config.services, version),
        kept_out=sorted_nets(config.kept_out, version),
        passed_on=sorted_nets(config.passed_on, version),
        advertisements=tuple(
            sorted((ad for ad in config.advertisements if ad.cidr.version == version), key=_advertisement_order)
        ),
        filters=tuple(sorted((one for one in config.filters if one.name in named), key=lambda one: one.name)),
        peers=peers,
    )


def sorted_nets(nets: Iterable[Net], version: int) -> tuple[Net, ...]:
    """Those of a family, each once."""
    return tuple(sorted({net for net in nets if net.version == version}, key=_net_order))


def outermost(nets: Iterable[Net]) -> list[Net]:
    """Those of sorted networks that are inside no other of them."""
    found: list[Net] = []
    for net in nets:
        if not found or not within(net, found[-1]):
            found.append(net)
    return found


def _net_order(net: Net) -> tuple[int, int]:
    return int(net.network_address), net.prefixlen


def _pool_order(pool: Pool) -> tuple[int, int, bool, bool, str]:
    return (*_net_order(pool.cidr), pool.bgp_program, pool.export_disabled, pool.ipip)


def _advertisement_order(ad: Advertisement) -> tuple[int, int, tuple[tuple[int, ...], ...]]:
    return (*_net_order(ad.cidr), ad.communities)


def inside(nets: Iterable[Net]) -> str:
    """`net ~ [ 10.0.0.0/8+, ... ]`: the networks and everything in them."""
    return _among(f"{net}+" for net in nets)


def exactly(nets: Iterable[Net]) -> str:
    """`net ~ [ 10.0.0.0/26, ... ]`: the networks themselves."""
    return _among(str(net) for net in nets)


def _among(entries: Iterable[str]) -> str:
    """A test for a prefix set: on one line for one entry, else one line each, so that a diff shows what changed."""
    words = tuple(entries)
    if len(words) == 1:
        return f"net ~ [ {words[0]} ]"
    return "net ~ [\n    " + ",\n    ".join(words) + "\n  ]"


def debug_lines(config: BirdConfig, at_info: str) -> list[str]:
    """What a protocol writes to BIRD's log."""
    if config.log_level in (LogLevel.TRACE, LogLevel.DEBUG):
        return ["  debug all;"]
    return [f"  debug {at_info};"] if config.log_level is LogLevel.INFO else []
