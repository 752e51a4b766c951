"""Which BGP sessions this node holds: the mesh, and the peerings that the operator wrote.

    mesh      every other node, unless either end reflects routes (has a cluster id)   Mesh_<ip>
    explicit  BGPPeers already resolved to this node, computed reverse ones included   Global_<ip>  Node_<ip>
                                                                                       Local_Workload_<ip>

The rules are Calico's. A session is named after its peer's address with `.` and `:` turned into `_`, and tools read the
name back. Of the two ends of a mesh session the one that sees the greater *text* at the other end waits for the dial:
between 10.0.0.9 and 10.0.0.10 it is 10.0.0.10 that waits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from tortie.base.addr import IP
from tortie.base.errors import ConfigError
from tortie.model.bgp import DEFAULT_AS

BGP_PORT = 179
"""Where a node listens that says nothing else (RFC 4271)."""
HOLD_TIME = 240
"""Seconds: BIRD's default, which Calico never sets. No keepalive time can be longer."""


class Scope(StrEnum):
    """Where a session comes from; the value begins its name."""

    MESH = "Mesh"
    GLOBAL = "Global"
    NODE = "Node"
    WORKLOAD = "Local_Workload"


class NextHop(StrEnum):
    """BGPPeer.nextHopMode: BGP's own rules, this node, or the next hop as it came."""

    AUTO = "Auto"
    SELF = "Self"
    KEEP = "Keep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """What a session needs to know of a node. `listen_port` is the node's own, None where it has none of its own."""

    name: str
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    as_number: int | None = None
    cluster_id: str | None = None
    listen_port: int | None = None

    @property
    def addresses(self) -> tuple[IP, ...]:
        """The addresses this node speaks BGP on, IPv4 first."""
        return tuple(ip for ip in (self.ipv4, self.ipv6) if ip is not None)

    def address(self, version: int) -> IP | None:
        """The address of IP version 4 or 6."""
        return self.ipv4 if version == 4 else self.ipv6


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What BGPConfiguration `default` says of every session."""

    as_number: int = DEFAULT_AS
    listen_port: int | None = None
    mesh_enabled: bool = True
    mesh_password: str | None = field(default=None, repr=False)  # a repr ends up in logs
    mesh_restart_time: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplicitPeer:
    """A BGPPeer resolved to this node and one address. Times are whole seconds.

    `reverse`: computed because the other node peers with us; gives way to anything written for the same end point.
    `by_selector`: came from a `peerSelector`; Calico then ignores the local AS settings.
    `source_node_ip`: speak from the node's address (`sourceAddress: UseNodeIP`).
    `passive`: None leaves it to the rules. `filters`: names of the filters of its routes, in order.
    """

    scope: Scope
    ip: IP
    remote_as: int
    port: int | None = None
    local_as: int | None = None
    password: str | None = field(default=None, repr=False)
    source_node_ip: bool = True
    next_hop: NextHop = NextHop.AUTO
    keep_original_next_hop: bool = False
    ttl_hops: int | None = None
    keepalive_time: int | None = None
    restart_time: int | None = None
    allowed_local_as: int | None = None
    reachable_by: IP | None = None
    passive: bool | None = None
    filters: tuple[str, ...] = ()
    reverse: bool = False
    by_selector: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One BGP session of this node, all decisions taken. `local_as` is the AS presented to this peer.

    `source` is the address the session speaks from, None for whichever the kernel picks; `cluster_id` is set with
    `rr_client`; times are seconds; `ttl_hops` turns TTL security on for a peer that many hops away; `filters` are the
    names of the filters of its routes, in order; `workload`: the peer is a workload of this node.
    """

    name: str
    ip: IP
    remote_as: int
    local_as: int
    port: int | None = None
    passive: bool = False
    rr_client: bool = False
    cluster_id: str | None = None
    password: str | None = field(default=None, repr=False)
    source: IP | None = None
    next_hop: NextHop = NextHop.AUTO
    ttl_hops: int | None = None
    keepalive_time: int | None = None
    restart_time: int | None = None
    allowed_local_as: int | None = None
    reachable_by: IP | None = None
    filters: tuple[str, ...] = ()
    workload: bool = False

    @property
    def same_as(self) -> bool:
        """An iBGP session."""
        return self.remote_as == self.local_as


def peer_name(scope: Scope, ip: IP, port: int | None = None) -> str:
    """`Mesh_10_9_0_2`, `Global_fd00__2_port_1179`."""
    address = str(ip).replace(".", "_").replace(":", "_")
    return f"{scope.value}_{address}" + (f"_port_{port}" if port is not None else "")


def waits(own: IP, remote: IP) -> bool:
    """Whether the end at `own` waits for `remote` to dial: a comparison of texts, as Calico makes it."""
    return str(remote) > str(own)


def sessions(
    me: Router, others: Iterable[Router], explicit: Iterable[ExplicitPeer] = (), cluster: Cluster | None = None
) -> tuple[Peer, ...]:
    """Every session of this node, sorted by name."""
    cluster = cluster or Cluster()
    nodes = tuple(others)
    every = (*mesh_sessions(me, nodes, cluster), *explicit_sessions(me, nodes, explicit, cluster))
    return tuple(sorted(every, key=lambda peer: peer.name))


def mesh_sessions(me: Router, others: Iterable[Router], cluster: Cluster) -> tuple[Peer, ...]:
    """One session for each address of each other node in a family that this node has, sorted by name.

    A remote node without an AS of its own is in the cluster's AS; where two nodes claim one address the first by node
    name has it.
    """
    if not cluster.mesh_enabled or me.cluster_id:
        return ()
    found: dict[IP, Peer] = {}
    for other in sorted(others, key=lambda router: router.name):
        if other.name == me.name or other.cluster_id:
            continue
        for ip in other.addresses:
            own = me.address(ip.version)
            if own is not None and ip != own and ip not in found:
                found[ip] = _mesh_session(me, own, other, ip, cluster)
    return tuple(sorted(found.values(), key=lambda peer: peer.name))


def _mesh_session(me: Router, own: IP, other: Router, ip: IP, cluster: Cluster) -> Peer:
    return Peer(
        name=peer_name(Scope.MESH, ip),
        ip=ip,
        remote_as=_own_as(other, cluster),
        local_as=_own_as(me, cluster),
        port=other.listen_port or cluster.listen_port,
        passive=waits(own, ip),
        password=cluster.mesh_password,
        source=own,
        restart_time=cluster.mesh_restart_time,
    )


def explicit_sessions(
    me: Router, others: Iterable[Router], explicit: Iterable[ExplicitPeer], cluster: Cluster
) -> tuple[Peer, ...]:
    """One session for each address and port, sorted by name.

    Where several peerings name one address and port, what is written beats what is computed in reverse, and global
    beats node-specific. Peerings with this node's own address, or in a family it has no address of, are skipped.
    """
    nodes: dict[IP, Router] = {}
    for router in sorted(others, key=lambda router: router.name):
        for ip in router.addresses:
            nodes.setdefault(ip, router)
    found: dict[tuple[IP, int | None], Peer] = {}
    for wanted in sorted(explicit, key=_precedence):
        if wanted.ip in me.addresses or me.address(wanted.ip.version) is None:
            continue
        peer = _explicit_session(me, wanted, nodes, cluster)
        found.setdefault((peer.ip, peer.port), peer)
    return tuple(sorted(found.values(), key=lambda peer: peer.name))


_SCOPE_ORDER = {Scope.GLOBAL: 0, Scope.NODE: 1, Scope.WORKLOAD: 2, Scope.MESH: 3}


def _precedence(wanted: ExplicitPeer) -> tuple[bool, int, str, str]:
    """First wins; the tail makes the order of equals independent of the order of the input."""
    return wanted.reverse, _SCOPE_ORDER[wanted.scope], repr(wanted), wanted.password or ""


def _explicit_session(me: Router, wanted: ExplicitPeer, nodes: Mapping[IP, Router], cluster: Cluster) -> Peer:
    own = me.address(wanted.ip.version)
    node = nodes.get(wanted.ip)
    workload = wanted.scope is Scope.WORKLOAD
    local_as = (None if wanted.by_selector else wanted.local_as) or _own_as(me, cluster)
    port = _port(wanted, node, cluster)
    reflects = (
        me.cluster_id is not None
        and wanted.remote_as == local_as
        and (node is None or node.cluster_id != me.cluster_id)
    )
    return Peer(
        name=peer_name(wanted.scope, wanted.ip, port),
        ip=wanted.ip,
        remote_as=wanted.remote_as,
        local_as=local_as,
        port=port,
        passive=_passive(own, wanted, node),
        rr_client=reflects,
        cluster_id=me.cluster_id if reflects else None,
        password=wanted.password,
        source=own if wanted.source_node_ip and not workload else None,
        next_hop=_next_hop(wanted, local_as),
        ttl_hops=wanted.ttl_hops,
        keepalive_time=wanted.keepalive_time,
        restart_time=wanted.restart_time,
        allowed_local_as=None if wanted.by_selector else wanted.allowed_local_as,
        reachable_by=wanted.reachable_by,
        filters=wanted.filters,
        workload=workload,
    )


def _passive(own: IP | None, wanted: ExplicitPeer, node: Router | None) -> bool:
    """Workloads always dial; a global peer that is a node follows the mesh's rule; node-specific ones dial."""
    if wanted.passive is not None:
        return wanted.passive
    if wanted.scope is Scope.WORKLOAD:
        return True
    known = node is not None and not wanted.by_selector
    return wanted.scope is Scope.GLOBAL and known and own is not None and waits(own, wanted.ip)


def _port(wanted: ExplicitPeer, node: Router | None, cluster: Cluster) -> int | None:
    """The written port, else the one that the node of that address and AS listens on."""
    if wanted.port is not None:
        return wanted.port
    if node is not None and _own_as(node, cluster) == wanted.remote_as:
        return node.listen_port or cluster.listen_port
    return None


def _next_hop(wanted: ExplicitPeer, local_as: int) -> NextHop:
    """`keepOriginalNextHop` is the old spelling of Keep, for eBGP only."""
    if wanted.keep_original_next_hop and wanted.remote_as != local_as:
        return NextHop.KEEP
    return wanted.next_hop


def _own_as(router: Router, cluster: Cluster) -> int:
    return router.as_number if router.as_number is not None else cluster.as_number


def router_id(ipv4: IPv4Address | None, node_name: str, setting: str = "") -> IPv4Address:
    """The BGP identifier. `setting` is CALICO_ROUTER_ID: empty for the IPv4 address, `hash`, or an address.

    Raises ConfigError for a node without IPv4 whose setting is empty, and for a setting that is no address.
    """
    if setting == "hash":
        digest = bytearray(hashlib.sha256(node_name.encode()).digest()[:4])
        if digest[0] > 223:  # 224.0.0.0 and above name no host
            digest[0] -= 32
        return IPv4Address(bytes(digest))
    if setting:
        try:
            return IPv4Address(setting)
        except AddressValueError:
            raise ConfigError(f'"{setting}" is neither "hash" nor an IPv4 address', "CALICO_ROUTER_ID") from None
    if ipv4 is None:
        raise ConfigError(f'node {node_name} has no IPv4 address to be its router id: set "hash"', "CALICO_ROUTER_ID")
    return ipv4
