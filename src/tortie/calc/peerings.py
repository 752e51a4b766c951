"""BGPPeers, read: who has a session, with whom, and all that the document itself says of it.

near end   the nodes that have the session: all, one, or those that a selector chooses
far end    its peer: an address, the nodes that a selector chooses, or workloads of the near node
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tortie.base.addr import IP, parse_ip
from tortie.base.duration import parse_duration
from tortie.base.errors import ConfigError
from tortie.bgp.sessions import HOLD_TIME, ExplicitPeer, NextHop, Scope
from tortie.model.bgp import DEFAULT_AS, BGPPassword, BGPPeerSpec, SecretKeySelector, as_number, peer_address
from tortie.model.node import Node
from tortie.policy.selector import Selector, parse


@dataclass(frozen=True, slots=True)
class Peering:
    """A BGPPeer. `explicit` makes a session once scope, ip, remote_as, port and password are known.

    `spec` is what all the rest is read from. `back`: whether the far end, if it is a node, has the session too.
    `secret`: where the password is.
    """

    spec: BGPPeerSpec
    node: str
    nodes: Selector | None
    far: Selector | None
    workloads: Selector | None
    address: IP | None
    port: int | None
    remote_as: int
    back: bool
    secret: SecretKeySelector | None
    filters: tuple[str, ...]
    explicit: partial[ExplicitPeer]

    @property
    def scope(self) -> Scope:
        """Where its sessions come from, at the near end."""
        if self.workloads is not None:
            return Scope.WORKLOAD
        return Scope.GLOBAL if not self.node and self.nodes is None else Scope.NODE

    def is_near(self, node: Node) -> bool:
        return (not self.node or self.node == node.name) and (self.nodes is None or self.nodes.matches(node.labels))

    def selects(self, node: Node) -> bool:
        return self.far is not None and self.far.matches(node.labels)


def peering(spec: BGPPeerSpec) -> Peering:
    """Raises ConfigError for what cannot be understood, and for what BIRD would refuse a whole configuration for."""
    address, port = peer_address(spec.peer_ip) if spec.peer_ip else (None, None)
    filters = tuple(dict.fromkeys(spec.filters))
    return Peering(
        spec,
        spec.node,
        parse(spec.node_selector) if spec.node_selector else None,
        parse(spec.peer_selector) if spec.peer_selector else None,
        parse(spec.local_workload_selector) if spec.local_workload_selector else None,
        speaking(parse_ip(address), "spec.peerIP") if address else None,
        port,
        real_as(spec.as_number, "spec.asNumber") or DEFAULT_AS,
        spec.reverse_peering != "Manual" and not spec.local_workload_selector,
        password_of(spec.password),
        filters,
        partial(
            ExplicitPeer,
            local_as=real_as(spec.local_as_number, "spec.localASNumber"),
            source_node_ip=spec.source_address != "None",
            next_hop=NextHop(spec.next_hop_mode or "Auto"),
            keep_original_next_hop=spec.keep_original_next_hop,
            # A peer of which no hop is between is one hop away: BIRD knows no 0.
            ttl_hops=None if spec.ttl_security is None else max(1, spec.ttl_security),
            keepalive_time=_keepalive(spec.keepalive_time),
            restart_time=seconds(spec.max_restart_time),
            allowed_local_as=_allowed(spec.num_allowed_local_as_numbers),
            reachable_by=parse_ip(spec.reachable_by) if spec.reachable_by else None,
            filters=filters,
            by_selector=bool(spec.peer_selector),
        ),
    )


def seconds(text: str | None) -> int | None:
    """A duration in whole seconds, as BIRD has them; None for none. Raises ConfigError."""
    return round(parse_duration(text).total_seconds()) if text else None


def real_as(value: int | str | None, where: str) -> int | None:
    """An AS number that somebody can have, None for none. Raises ConfigError for 0 too (RFC 7607)."""
    if value is None:
        return None
    number = as_number(value)
    if number == 0:
        raise ConfigError("0 is not an AS number that a session can have", where)
    return number


def speaking(ip: IP, where: str) -> IP:
    """An address that a session can be with. Raises ConfigError for one that is no single interface's."""
    if ip.is_unspecified or ip.is_multicast or (ip.version == 6 and ip.is_link_local):
        raise ConfigError(f'"{ip}" is not an address that BGP can speak to: take a global one', where)
    return ip


def password_of(password: BGPPassword | None) -> SecretKeySelector | None:
    """Where a password is, None where none is asked for."""
    ref = password.secret_key_ref if password is not None else None
    return ref if ref is not None and ref.name else None


def _keepalive(text: str | None) -> int | None:
    time = seconds(text)
    if time is not None and not 1 <= time <= HOLD_TIME:
        raise ConfigError(f'"{text}" is not from 1s to the hold time, {HOLD_TIME}s', "spec.keepaliveTime")
    return time


def _allowed(number: int | None) -> int | None:
    if number is not None and not 0 <= number < 2**32:
        raise ConfigError(f"{number} is not from 0 to {2**32 - 1}", "spec.numAllowedLocalASNumbers")
    return number
