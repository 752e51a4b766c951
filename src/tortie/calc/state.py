"""What a node must look like, as one value: what `calc` makes and `render` and `dataplane` turn into a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tortie.base.addr import IP, Net
from tortie.bgp.sessions import Peer
from tortie.policy.rules import Member, Policy, PolicyKey, SetRef
from tortie.policy.verdict import EndpointPolicy

EndpointKey = tuple[str, str]
"""Namespace and name of a WorkloadEndpoint."""


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """A pod of this node: its interface on the host, its addresses, and what its policy consults."""

    key: EndpointKey
    interface: str
    ips: tuple[IP, ...]
    mac: str
    policy: EndpointPolicy
    nats: tuple[tuple[IP, IP], ...] = ()
    """Floating IPs: external address, and the endpoint's own that it leads to."""


@dataclass(frozen=True, slots=True)
class Pool:
    """What the dataplane needs of an IPPool."""

    name: str
    net: Net
    nat_outgoing: bool = False
    encapsulated: bool = False
    disabled: bool = False
    bgp_export: bool = True
    load_balancer_only: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """The FelixConfiguration that holds on this node, with Calico's defaults."""

    endpoint_to_host: str = "Drop"
    drop_invalid: bool = True
    deny: str = "Drop"
    log_prefix: str = "calico-packet"
    allow_vxlan: bool = False
    allow_ipip: bool = False
    vxlan_port: int = 4789
    nat_exclude_hosts: bool = False
    nat_address: IP | None = None
    floating_ips: bool = True
    priority: Mapping[int, int] = field(default_factory=lambda: {4: 1024, 6: 1024})
    """Metric of normal routes, by IP version."""


@dataclass(frozen=True, slots=True)
class Routing:
    """What this node tells its BGP peers, and who they are. Addresses are None where the node has none."""

    router_id: str
    ipv4: IP | None = None
    ipv6: IP | None = None
    as_number: int = 64512
    listen_port: int | None = None
    bind_node_ip: bool = False
    log_level: str = "Info"
    ignored_interfaces: tuple[str, ...] = ()
    peers: tuple[Peer, ...] = ()


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Everything this node must have. `generation` counts the states of one agent; equal states may differ in it."""

    generation: int
    node: str
    endpoints: Mapping[str, LocalEndpoint]
    policies: Mapping[PolicyKey, Policy]
    sets: Mapping[SetRef, frozenset[Member]]
    pools: tuple[Pool, ...] = ()
    blocks: tuple[Net, ...] = ()
    hosts: frozenset[IP] = frozenset()
    settings: Settings = field(default_factory=Settings)
    routing: Routing | None = None
