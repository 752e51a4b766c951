"""What a node must look like, as one value: what `calc` makes and `render` and `dataplane` turn into a kernel."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from tortie.base.addr import IP, Net
from tortie.bgp.communities import Advertisement
from tortie.bgp.filters import Filter
from tortie.bgp.sessions import Peer
from tortie.calc.proxy.state import ProxyState
from tortie.calc.qos import UNLIMITED, QoS
from tortie.calc.service_routes import Announced
from tortie.model.bgp import DEFAULT_AS
from tortie.policy.rules import Member, Policy, PolicyKey, SetRef
from tortie.policy.verdict import EndpointPolicy, Failsafes, HostPolicy

SERVICE_LOOP = "no service has this address: serviceLoopPrevention"
"""The name of the denial of what is forwarded to a network of services and to none of them."""

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
    sources: tuple[Net, ...] = ()
    """Networks that it may send from, besides its own addresses."""
    qos: QoS = UNLIMITED


@dataclass(frozen=True, slots=True)
class Pool:
    """What the dataplane needs of an IPPool."""

    name: str
    net: Net
    nat_outgoing: bool = False
    disabled: bool = False
    bgp_export: bool = True
    load_balancer_only: bool = False
    tunnel: str = ""
    """`VXLAN` or `IPIP`, where packets of this pool travel so between nodes."""
    cross_subnet: bool = False
    """They do so only between nodes of different subnets."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The FelixConfiguration that holds on this node, with Calico's defaults."""

    endpoint_to_host: str = "Drop"
    drop_invalid: bool = True
    deny: str = "Drop"
    log_prefix: str = "calico-packet"
    log_rate: str = ""
    """Lines that each Log rule may write, as nft says it: `10/second`. Any number when it is empty."""
    log_burst: int = 5
    allow_vxlan: bool = False
    allow_ipip: bool = False
    vxlan_port: int = 4789
    nat_exclude_hosts: bool = False
    nat_address: IP | None = None
    floating_ips: bool = True
    established: str = "Keep"
    """`Cut`: a flow that policy comes to forbid ends at once, instead of going on until its ends are done."""
    flow_tables: bool = False
    """Whether established TCP connections of pods may go past the rules, unless flows are cut."""
    source_spoofing: bool = False
    """Whether endpoints may have sources of others; where they may not, one that asks for them counts as absent."""
    priority: Mapping[int, int] = field(default_factory=lambda: {4: 1024, 6: 1024})
    """Metric of normal routes, by IP version."""
    failsafes: Failsafes = field(default_factory=Failsafes)
    interface_exclude: tuple[str, ...] = ("kube-ipvs0",)
    """What no host endpoint covers: names of interfaces, and between slashes regular expressions."""
    service_loops: str = "Drop"
    """`Drop`, `Reject` or `Disabled`: what is forwarded to an address of services that none has."""
    external_nodes: tuple[Net, ...] = ()
    """Who else may send us tunnel packets, besides the nodes."""
    mtu_interfaces: str = r"^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)"
    """Whose MTU counts: a regular expression that matches a part of the name."""
    wireguard: frozenset[int] = frozenset()
    """The IP versions of which there is WireGuard."""
    wireguard_mtu: Mapping[int, int] = field(default_factory=lambda: {4: 0, 6: 0})
    vxlan_enabled: bool | None = None
    """Whether there is VXLAN; None: where a pool asks for it."""
    ipip_enabled: bool | None = None
    vxlan_vni: int = 4096
    vxlan_mtu: Mapping[int, int] = field(default_factory=lambda: {4: 0, 6: 0})
    """Of the tunnel's device, by IP version; 0: what the link below leaves."""
    ipip_mtu: int = 0
    cluster_routes: str | None = None
    """What FelixConfiguration says of programClusterRoutes."""


@dataclass(frozen=True, slots=True)
class Programming:
    """Who writes the routes to other nodes' blocks, by the tunnel of their pool: `VXLAN`, `IPIP`, or "" for none."""

    bird: frozenset[str] = frozenset({""})
    agent: frozenset[str] = frozenset({"VXLAN", "IPIP"})
    kept: frozenset[str] = frozenset()
    """Names of pools that have just become the agent's, and whose routes BIRD keeps until the agent has them all."""

    def by_bird(self, pool: Pool) -> bool:
        return pool.tunnel in self.bird or pool.name in self.kept


@dataclass(frozen=True, slots=True)
class TunnelDevice:
    """A tunnel of this node. `local` is the node's own address, by which the kernel finds the link below; `address` the
    tunnel's own, None as long as the node has none. `mtu` 0: that of the link below less what the tunnel adds."""

    name: str
    kind: str
    """`vxlan` or `ipip`, as `ip link` has them."""
    local: IP
    address: IP | None = None
    mac: str = ""
    vni: int = 0
    port: int = 0
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Vtep:
    """The far end of a VXLAN tunnel: another node's tunnel address, its MAC address there, and the node's own."""

    device: str
    address: IP
    mac: str
    host: IP


@dataclass(frozen=True, slots=True)
class ClusterRoute:
    """The way to a block, or to single addresses, of another node. `device` is the tunnel's, "" for the link that the
    node's own address is on; `via` is the next hop, None the destination itself. None and "": a blackhole, for a block
    of this node."""

    dst: Net
    via: IP | None = None
    device: str = ""
    node: str = ""
    metric: int = 0
    """0: less than that of any route of BIRD's."""

    @property
    def blackhole(self) -> bool:
        return self.via is None and not self.device


@dataclass(frozen=True, slots=True)
class Overlay:
    """What this agent itself builds to reach other nodes' pods: tunnels, their far ends, and routes."""

    devices: tuple[TunnelDevice, ...] = ()
    vteps: tuple[Vtep, ...] = ()
    routes: tuple[ClusterRoute, ...] = ()
    awaited: frozenset[Net] = frozenset()
    """Destinations on other nodes that BIRD writes the routes to, or whose node is not ready yet for its tunnel. A
    route to one of them that is there stays until there is another."""
    asked: frozenset[tuple[str, int]] = frozenset()
    """Every `VXLAN` or `IPIP`, with the IP version outside, that was asked for since this process began: its device may
    still be there, and takes packets."""


@dataclass(frozen=True, slots=True)
class PodRoute:
    """The way to pods that stand-alone plugins have connected on another node. `ways` are that node's addresses, the
    best first: the next hop is the one that is on the same network; for a `direct` route, none, they only show which
    link leads there. `master` is the link to leave by, "" any. `announced`: BGP knows the way, too."""

    dst: Net
    node: str
    network: str
    ways: tuple[IP, ...]
    master: str = ""
    direct: bool = False
    announced: bool = False


@dataclass(frozen=True, slots=True)
class PodNetworks:
    """The networks of stand-alone plugins, as nodes publish them: the ways to other nodes' pods, and what BGP tells
    routers of this node's and of other nodes'. `refused` is why this node's own are not routed, by title."""

    routes: tuple[PodRoute, ...] = ()
    own: tuple[Net, ...] = ()
    others: tuple[Net, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Routing:
    """What this node tells its BGP peers, and who they are. Addresses are None where the node has none."""

    router_id: str
    ipv4: IP | None = None
    ipv6: IP | None = None
    as_number: int = DEFAULT_AS
    listen_port: int | None = None
    bind_node_ip: bool = False
    log_level: str = "Info"
    ignored_interfaces: tuple[str, ...] = ()
    peers: tuple[Peer, ...] = ()
    subnet: Net | None = None
    """Of IPv4: a node in it is reached without a tunnel where a pool is CrossSubnet."""
    reflects: bool = False
    """This node is a route reflector."""
    priority: Mapping[int, int] = field(default_factory=dict)
    """Metric of normal routes by IP version, where BGPConfiguration says one."""
    advertisements: tuple[Advertisement, ...] = ()
    filters: tuple[Filter, ...] = ()
    """Those that sessions of this node name, by name."""
    workload_ips: tuple[IP, ...] = ()
    """What workloads of this node speak BGP to, one address of each family at most."""
    workload_interfaces: tuple[str, ...] = ()
    """Of the workloads that do."""
    services: Announced = field(default_factory=Announced)


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Everything this node must have. `generation` counts the states of one agent; equal states may differ in it."""

    generation: int
    node: str
    endpoints: Mapping[str, LocalEndpoint]
    policies: Mapping[PolicyKey, Policy]
    sets: Mapping[SetRef, Set[Member]]
    pools: tuple[Pool, ...] = ()
    blocks: tuple[Net, ...] = ()
    hosts: frozenset[IP] = frozenset()
    settings: Settings = field(default_factory=Settings)
    routing: Routing | None = None
    host_endpoints: Mapping[str, HostPolicy] = field(default_factory=dict)
    """Those of this node, by name. Which interface each is about is for `calc.hosts.resolve` to say."""
    services: tuple[Net, ...] = ()
    """Networks of services' addresses, as BGPConfiguration has them told to the neighbours."""
    programming: Programming = field(default_factory=Programming)
    overlay: Overlay = field(default_factory=Overlay)
    pod_networks: PodNetworks = field(default_factory=PodNetworks)
    proxy: ProxyState = field(default_factory=ProxyState)
