"""The node's BGP from resources: addresses, AS numbers, the mesh and the peers that are written down.

    BGPPeer ─► Peering   who has the session (near), with whom (far), and how
                 near, far is an address or selected nodes ─► a session for each address of the far end
                 far, and peering back is not Manual       ─► a session for each address of the near end, in reverse

What needs a secret, a filter or a local workload is not acted on yet; `unserved` says so for each object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv6Address, ip_interface

from tortie.base.addr import IP, parse_ip
from tortie.base.duration import parse_duration
from tortie.base.errors import ConfigError
from tortie.bgp.sessions import Cluster, ExplicitPeer, NextHop, Router, Scope, router_id, sessions
from tortie.calc.state import Routing
from tortie.model.bgp import (
    DEFAULT_AS,
    BGPConfiguration,
    BGPConfigurationSpec,
    BGPPeer,
    BGPPeerSpec,
    as_number,
    peer_address,
)
from tortie.model.node import Node, NodeBGPSpec
from tortie.policy.selector import Selector, parse

BGP_PORT = 179
"""Where a node listens that says nothing else (RFC 4271)."""


def seconds(text: str | None) -> int | None:
    """A duration in whole seconds, as BIRD has them; None for none. Raises ConfigError."""
    return round(parse_duration(text).total_seconds()) if text else None


def router_address(node: Node | None, version: int) -> IP | None:
    """The address that a node speaks BGP on, without its prefix length. Raises ConfigError."""
    bgp = node.spec.bgp if node is not None else None
    text = "" if bgp is None else bgp.ipv4_address if version == 4 else bgp.ipv6_address
    return _without_length(text, version) if text else None


@lru_cache(maxsize=1 << 16)
def _without_length(text: str, version: int) -> IP:
    try:
        ip = ip_interface(text).ip
    except ValueError:
        ip = None
    if ip is None or ip.version != version:
        raise ConfigError(f'"{text}" is not an IPv{version} address', f"spec.bgp.ipv{version}Address")
    return ip


@dataclass(frozen=True, slots=True)
class Peering:
    """A BGPPeer, read. The near end has the session, the far end is its peer: an address, or the nodes of a selector.

    `explicit` makes the session once scope, ip, remote_as and port are known.
    """

    node: str
    nodes: Selector | None
    far: Selector | None
    address: IP | None
    port: int | None
    remote_as: int
    back: bool
    explicit: partial[ExplicitPeer]

    @property
    def everywhere(self) -> bool:
        return not self.node and self.nodes is None

    def is_near(self, node: Node) -> bool:
        return (not self.node or self.node == node.name) and (self.nodes is None or self.nodes.matches(node.labels))

    def selects(self, node: Node) -> bool:
        return self.far is not None and self.far.matches(node.labels)


def peering(spec: BGPPeerSpec) -> Peering:
    """Raises ConfigError for what cannot be understood."""
    address, port = peer_address(spec.peer_ip) if spec.peer_ip else (None, None)
    return Peering(
        spec.node,
        parse(spec.node_selector) if spec.node_selector else None,
        parse(spec.peer_selector) if spec.peer_selector else None,
        parse_ip(address) if address else None,
        port,
        as_number(spec.as_number or DEFAULT_AS),
        spec.reverse_peering != "Manual",
        partial(
            ExplicitPeer,
            local_as=as_number(spec.local_as_number) if spec.local_as_number is not None else None,
            source_node_ip=spec.source_address != "None",
            next_hop=NextHop(spec.next_hop_mode or "Auto"),
            keep_original_next_hop=spec.keep_original_next_hop,
            ttl_hops=spec.ttl_security,
            keepalive_time=seconds(spec.keepalive_time),
            restart_time=seconds(spec.max_restart_time),
            allowed_local_as=spec.num_allowed_local_as_numbers,
            reachable_by=parse_ip(spec.reachable_by) if spec.reachable_by else None,
            by_selector=bool(spec.peer_selector),
        ),
    )


class RoutingInputs:
    """Nodes, configurations and peers as they come; `routing(node)` is what one node makes of them."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self._configurations: dict[str, BGPConfigurationSpec] = {}
        self._peers: dict[str, Peering] = {}
        self._hosts: frozenset[IP] | None = None
        self._made: dict[str, Routing | None] = {}
        """By node, as long as nothing changes that it is made of."""

    def on_node(self, node: Node | None, namespace: str, name: str) -> None:
        old = self.nodes.pop(name, None)
        if node is not None:
            self._router(node)
            self.nodes[name] = node
        if old is None or node is None or (old.spec.bgp, old.labels) != (node.spec.bgp, node.labels):
            self._changed()

    def on_configuration(self, configuration: BGPConfiguration | None, namespace: str, name: str) -> None:
        self._configurations.pop(name, None)
        self._changed()
        if configuration is not None:
            _cluster(configuration.spec)
            self._configurations[name] = configuration.spec

    def on_peer(self, peer: BGPPeer | None, namespace: str, name: str) -> None:
        self._peers.pop(name, None)
        self._changed()
        if peer is not None:
            why = unserved(peer.spec)
            if why:
                raise ConfigError(f"not supported yet: {why}", "spec")
            self._peers[name] = peering(peer.spec)

    def hosts(self) -> frozenset[IP]:
        """Every node's own addresses."""
        if self._hosts is None:
            found = (router_address(node, version) for node in self.nodes.values() for version in (4, 6))
            self._hosts = frozenset(ip for ip in found if ip is not None)
        return self._hosts

    def routing(self, node: str) -> Routing | None:
        """None for a node that is not known or has no address to speak from."""
        if node not in self._made:
            self._made[node] = self._make(node)
        return self._made[node]

    def _changed(self) -> None:
        self._hosts = None
        self._made.clear()

    def _make(self, node: str) -> Routing | None:
        here = self.nodes.get(node)
        if here is None or (router_address(here, 4) is None and router_address(here, 6) is None):
            return None
        default = self._default
        own = self._configurations.get(f"node.{node}", default)
        cluster = _cluster(default)
        me = self._router(here)
        others = [self._router(other) for name, other in self.nodes.items() if name != node]
        peers = sessions(me, others, self._explicit(here), cluster)
        ipv4, ipv6 = me.ipv4, me.ipv6
        return Routing(
            str(router_id(ipv4, node, "" if ipv4 else "hash")),
            ipv4,
            ipv6,
            me.as_number if me.as_number is not None else cluster.as_number,
            own.listen_port or default.listen_port,
            default.bind_mode == "NodeIP",
            own.log_severity_screen or default.log_severity_screen or "Info",
            default.ignored_interfaces,
            peers,
        )

    @property
    def _default(self) -> BGPConfigurationSpec:
        return self._configurations.get("default", BGPConfigurationSpec())

    def _router(self, node: Node) -> Router:
        """A node as its peers see it. Raises ConfigError."""
        bgp = node.spec.bgp or NodeBGPSpec()
        own = self._configurations.get(f"node.{node.name}")
        ipv4, ipv6 = router_address(node, 4), router_address(node, 6)
        return Router(
            name=node.name,
            ipv4=ipv4 if isinstance(ipv4, IPv4Address) else None,
            ipv6=ipv6 if isinstance(ipv6, IPv6Address) else None,
            as_number=as_number(bgp.as_number) if bgp.as_number is not None else None,
            cluster_id=str(parse_ip(bgp.route_reflector_cluster_id)) if bgp.route_reflector_cluster_id else None,
            listen_port=own.listen_port if own is not None else None,
        )

    def _explicit(self, here: Node) -> Iterator[ExplicitPeer]:
        for _, one in sorted(self._peers.items()):
            scope = Scope.GLOBAL if one.everywhere else Scope.NODE
            if one.is_near(here):
                if one.address is not None:
                    yield one.explicit(scope=scope, ip=one.address, remote_as=one.remote_as, port=one.port)
                yield from (self._with(ip, node, one, scope) for node, ip in self._ends(one.selects))
            if one.back and self._is_far(here, one):
                for node, ip in self._ends(one.is_near):
                    if node is not here and (one.address is None or one.address.version == ip.version):
                        yield replace(self._with(ip, node, one, Scope.NODE), reachable_by=None, reverse=True)

    def _ends(self, chosen: Callable[[Node], bool]) -> Iterator[tuple[Node, IP]]:
        """Every address of every chosen node."""
        for node in filter(chosen, self.nodes.values()):
            yield from ((node, ip) for ip in self._router(node).addresses)

    def _with(self, ip: IP, node: Node, one: Peering, scope: Scope) -> ExplicitPeer:
        """The session with a node that is at the other end of a peering."""
        return one.explicit(scope=scope, ip=ip, remote_as=self._as_of(node), port=None)

    def _is_far(self, node: Node, one: Peering) -> bool:
        """Whether the peering is with this node: selected, or meant by its address, AS number and port."""
        if one.address is None:
            return one.selects(node)
        router = self._router(node)
        port = router.listen_port or self._default.listen_port or BGP_PORT
        here = one.address in router.addresses and one.port in (None, port)
        return here and one.remote_as == self._as_of(node)

    def _as_of(self, node: Node) -> int:
        own = self._router(node).as_number
        return own if own is not None else _cluster(self._default).as_number


def _cluster(spec: BGPConfigurationSpec) -> Cluster:
    """What holds for every session. Raises ConfigError."""
    return Cluster(
        as_number=as_number(spec.as_number) if spec.as_number is not None else DEFAULT_AS,
        listen_port=spec.listen_port,
        mesh_enabled=spec.node_to_node_mesh_enabled is not False,
        mesh_restart_time=seconds(spec.node_mesh_max_restart_time),
    )


def unserved(spec: BGPPeerSpec) -> str:
    """The field of a peering that nothing acts on yet, "" when all is served."""
    for name, value in (
        ("password", spec.password),
        ("filters", spec.filters),
        ("localWorkloadSelector", spec.local_workload_selector),
    ):
        if value:
            return name
    return ""
