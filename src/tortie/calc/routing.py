"""The node's BGP from resources: addresses, AS numbers, the mesh and the peers that are written down.

What needs a secret, a filter or a local workload is not acted on yet; `unserved` says so for each object.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_interface

from tortie.base.addr import IP, parse_ip
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
from tortie.model.node import Node
from tortie.policy.selector import parse

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str | None) -> int | None:
    """A Go duration (`1m30s`) in whole seconds; None for none. Raises ConfigError."""
    if not text:
        return None
    parts = _DURATION.findall(text)
    if "".join(number + unit for number, unit in parts) != text:
        raise ConfigError(f'"{text}" is not a duration such as 120s or 2m')
    return round(sum(float(number) * _SECONDS[unit] for number, unit in parts))


def router_address(node: Node | None, version: int) -> IP | None:
    """The address that a node speaks BGP on, without its prefix length."""
    bgp = node.spec.bgp if node is not None else None
    text = "" if bgp is None else bgp.ipv4_address if version == 4 else bgp.ipv6_address
    return ip_interface(text).ip if text else None


class RoutingInputs:
    """Nodes, configurations and peers as they come; `routing(node)` is what one node makes of them."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self._configurations: dict[str, BGPConfigurationSpec] = {}
        self._peers: dict[str, BGPPeerSpec] = {}

    def on_node(self, node: Node | None, namespace: str, name: str) -> None:
        self.nodes.pop(name, None)
        if node is not None:
            self.nodes[name] = node

    def on_configuration(self, configuration: BGPConfiguration | None, namespace: str, name: str) -> None:
        self._configurations.pop(name, None)
        if configuration is not None:
            self._configurations[name] = configuration.spec

    def on_peer(self, peer: BGPPeer | None, namespace: str, name: str) -> None:
        self._peers.pop(name, None)
        if peer is not None:
            self._peers[name] = peer.spec
            why = unserved(peer.spec)
            if why:
                raise ConfigError(f"not supported yet: {why}", "spec")

    def hosts(self) -> frozenset[IP]:
        """Every node's own addresses."""
        found = (router_address(node, version) for node in self.nodes.values() for version in (4, 6))
        return frozenset(ip for ip in found if ip is not None)

    def routing(self, node: str) -> Routing | None:
        """None for a node that is not known or has no address to speak from."""
        here = self.nodes.get(node)
        if here is None or (router_address(here, 4) is None and router_address(here, 6) is None):
            return None
        default = self._configurations.get("default", BGPConfigurationSpec())
        own = self._configurations.get(f"node.{node}", default)
        cluster = Cluster(
            as_number=as_number(default.as_number) if default.as_number is not None else DEFAULT_AS,
            listen_port=default.listen_port,
            mesh_enabled=default.node_to_node_mesh_enabled is not False,
            mesh_restart_time=seconds(default.node_mesh_max_restart_time),
        )
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

    def _router(self, node: Node) -> Router:
        bgp = node.spec.bgp
        own = self._configurations.get(f"node.{node.name}")
        ipv4, ipv6 = router_address(node, 4), router_address(node, 6)
        return Router(
            name=node.name,
            ipv4=ipv4 if isinstance(ipv4, IPv4Address) else None,
            ipv6=ipv6 if isinstance(ipv6, IPv6Address) else None,
            as_number=as_number(bgp.as_number) if bgp is not None and bgp.as_number is not None else None,
            cluster_id=(bgp.route_reflector_cluster_id or None) if bgp is not None else None,
            listen_port=own.listen_port if own is not None else None,
        )

    def _explicit(self, here: Node) -> Iterator[ExplicitPeer]:
        for _, spec in sorted(self._peers.items()):
            everywhere = not spec.node and not spec.node_selector
            chosen = spec.node == here.name if spec.node else _selects(spec.node_selector, here)
            if unserved(spec) or not (everywhere or chosen):
                continue
            scope = Scope.GLOBAL if everywhere else Scope.NODE
            yield from self._peerings(spec, scope)

    def _peerings(self, spec: BGPPeerSpec, scope: Scope) -> Iterator[ExplicitPeer]:
        if spec.peer_ip:
            address, port = peer_address(spec.peer_ip)
            yield _peering(spec, scope, parse_ip(address), port, as_number(spec.as_number or DEFAULT_AS), False)
            return
        default = self._configurations.get("default", BGPConfigurationSpec())
        for node in self.nodes.values():
            if _selects(spec.peer_selector, node):
                bgp = node.spec.bgp
                own = bgp.as_number if bgp is not None and bgp.as_number is not None else default.as_number
                for version in (4, 6):
                    ip = router_address(node, version)
                    if ip is not None:
                        remote = as_number(own) if own is not None else DEFAULT_AS
                        yield _peering(spec, scope, ip, None, remote, True)


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


def _selects(selector: str, node: Node) -> bool:
    return bool(selector) and parse(selector).matches(node.labels)


def _peering(spec: BGPPeerSpec, scope: Scope, ip: IP, port: int | None, remote: int, by_selector: bool) -> ExplicitPeer:
    return ExplicitPeer(
        scope=scope,
        ip=ip,
        remote_as=remote,
        port=port,
        local_as=as_number(spec.local_as_number) if spec.local_as_number is not None else None,
        source_node_ip=spec.source_address != "None",
        next_hop=NextHop(spec.next_hop_mode or "Auto"),
        keep_original_next_hop=spec.keep_original_next_hop,
        ttl_hops=spec.ttl_security,
        keepalive_time=seconds(spec.keepalive_time),
        restart_time=seconds(spec.max_restart_time),
        allowed_local_as=spec.num_allowed_local_as_numbers,
        reachable_by=parse_ip(spec.reachable_by) if spec.reachable_by else None,
        by_selector=by_selector,
    )
