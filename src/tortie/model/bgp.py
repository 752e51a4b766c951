"""Who speaks BGP to whom: BGPConfiguration and BGPPeer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, field

from tortie.base.addr import parse_ip
from tortie.base.errors import ConfigError
from tortie.model.meta import Kind, Problem, Resource, Value, cidr_problem, duration_problem, ip_problem

DEFAULT_AS = 64512
"""Of nodes, where neither they nor the cluster's BGPConfiguration say another."""
AS_DOTTED = re.compile(r"([0-9]{1,5})\.([0-9]{1,5})\Z")
INTERFACE_PATTERN = re.compile(r"[a-zA-Z0-9_.*-]{1,15}")
"""What ignoredInterfaces may name."""
PROGRAM_CLUSTER_ROUTES = Literal["Enabled", "Disabled", "EnabledIPIPOnly", "EnabledNoEncapOnly"]


def as_number(value: int | str) -> int:
    """An AS number, plain or `high.low`. Raises ConfigError."""
    if isinstance(value, int) or re.fullmatch(r"[0-9]{1,10}", value):
        number = int(value)
    elif match := AS_DOTTED.match(value):
        if int(match[1]) > 65535 or int(match[2]) > 65535:
            raise ConfigError(f'"{value}" is not an AS number: each half goes to 65535')
        number = int(match[1]) << 16 | int(match[2])
    else:
        raise ConfigError(f'"{value}" is not an AS number such as 64512 or 1.10')
    if not 0 <= number < 2**32:
        raise ConfigError(f"AS number {number} is not from 0 to 4294967295")
    return number


def community(text: str) -> tuple[int, ...]:
    """A community `a:b` of 16 bits each, or a large one `a:b:c` of 32 bits each. Raises ConfigError."""
    parts = text.split(":")
    bits = {2: 16, 3: 32}.get(len(parts))
    if bits is None or not all(part.isascii() and part.isdecimal() for part in parts):
        raise ConfigError(f'"{text}" is not a community such as 65000:100 or 65000:1:2')
    numbers = tuple(int(part[:11]) for part in parts)
    if max(numbers) >= 2**bits:
        raise ConfigError(f'"{text}" is not a community: each of its {len(parts)} numbers goes to {2**bits - 1}')
    return numbers


def as_problem(path: str, value: int | str | None) -> Iterator[Problem]:
    if value is not None:
        try:
            as_number(value)
        except ConfigError as error:
            yield path, str(error)


def peer_address(text: str) -> tuple[str, int | None]:
    """`192.0.2.1`, `192.0.2.1:1179`, `fd00::1` or `[fd00::1]:1179` as (address, port). Raises ConfigError."""
    if match := re.fullmatch(r"\[([^\]]+)\](?::(\d{1,5}))?", text):
        host, port = match[1], match[2]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, None
    address = str(parse_ip(host))
    if port is not None and not (port.isdecimal() and 1 <= int(port) <= 65535):
        raise ConfigError(f'port "{port}" is not from 1 to 65535')
    return address, int(port) if port else None


class Prefix(Value, frozen=True, kw_only=True):
    cidr: str

    def problems(self) -> Iterator[Problem]:
        yield from cidr_problem("cidr", self.cidr)


class Community(Value, frozen=True, kw_only=True):
    name: str = ""
    value: str = ""

    def problems(self) -> Iterator[Problem]:
        try:
            community(self.value)
        except ConfigError as error:
            yield "value", str(error)


class PrefixAdvertisement(Value, frozen=True, kw_only=True):
    cidr: str
    communities: Annotated[tuple[str, ...], Meta(max_length=50)] = ()

    def problems(self) -> Iterator[Problem]:
        yield from cidr_problem("cidr", self.cidr)


class SecretKeySelector(Value, frozen=True, kw_only=True):
    name: str = ""
    key: str = ""
    optional: bool | None = None


class BGPPassword(Value, frozen=True, kw_only=True):
    secret_key_ref: SecretKeySelector | None = None


class BGPConfigurationSpec(Value, frozen=True, kw_only=True):
    log_severity_screen: Literal["Trace", "Debug", "Info", "Warning", "Error", "Fatal"] | None = None
    node_to_node_mesh_enabled: bool | None = None
    as_number: int | str | None = None
    service_cluster_ips: tuple[Prefix, ...] = field(name="serviceClusterIPs", default=())
    service_external_ips: tuple[Prefix, ...] = field(name="serviceExternalIPs", default=())
    service_load_balancer_ips: tuple[Prefix, ...] = field(name="serviceLoadBalancerIPs", default=())
    service_load_balancer_aggregation: Literal["Enabled", "Disabled"] | None = None
    communities: Annotated[tuple[Community, ...], Meta(max_length=500)] = ()
    prefix_advertisements: Annotated[tuple[PrefixAdvertisement, ...], Meta(max_length=500)] = ()
    listen_port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    node_mesh_password: BGPPassword | None = None
    node_mesh_max_restart_time: str | None = None
    bind_mode: Literal["None", "NodeIP"] | None = None
    ignored_interfaces: tuple[str, ...] = ()
    local_workload_peering_ipv4: str = field(name="localWorkloadPeeringIPV4", default="")
    local_workload_peering_ipv6: str = field(name="localWorkloadPeeringIPV6", default="")
    program_cluster_routes: PROGRAM_CLUSTER_ROUTES | None = None
    ipv4_normal_route_priority: Annotated[int, Meta(ge=1, le=2147483646)] | None = None
    ipv6_normal_route_priority: Annotated[int, Meta(ge=1, le=2147483646)] | None = None

    def problems(self) -> Iterator[Problem]:
        yield from as_problem("asNumber", self.as_number)
        if self.node_to_node_mesh_enabled is False:
            for name, value in (
                ("nodeMeshPassword", self.node_mesh_password),
                ("nodeMeshMaxRestartTime", self.node_mesh_max_restart_time),
            ):
                if value is not None:
                    yield name, "needs nodeToNodeMeshEnabled"
        if self.communities and not self.prefix_advertisements:
            yield "communities", "are used by prefixAdvertisements, and there are none"
        yield from self._community_problems()
        yield from duration_problem("nodeMeshMaxRestartTime", self.node_mesh_max_restart_time)
        if self.local_workload_peering_ipv4:
            yield from ip_problem("localWorkloadPeeringIPV4", self.local_workload_peering_ipv4, 4)
        if self.local_workload_peering_ipv6:
            yield from ip_problem("localWorkloadPeeringIPV6", self.local_workload_peering_ipv6, 6)
        for i, name in enumerate(self.ignored_interfaces):
            if name == "*" or not INTERFACE_PATTERN.fullmatch(name):
                yield f"ignoredInterfaces[{i}]", f'"{name}" is not an interface name or pattern'

    def _community_problems(self) -> Iterator[Problem]:
        named = {one.name for one in self.communities}
        for i, advertisement in enumerate(self.prefix_advertisements):
            for j, word in enumerate(advertisement.communities):
                path = f"prefixAdvertisements[{i}].communities[{j}]"
                if word in named:
                    continue
                if ":" not in word:
                    yield path, f'community "{word}" is not defined in communities'
                    continue
                try:
                    community(word)
                except ConfigError as error:
                    yield path, str(error)


DEFAULT_ONLY = {
    "nodeToNodeMeshEnabled": "node_to_node_mesh_enabled",
    "asNumber": "as_number",
    "serviceClusterIPs": "service_cluster_ips",
    "serviceExternalIPs": "service_external_ips",
    "serviceLoadBalancerIPs": "service_load_balancer_ips",
    "nodeMeshPassword": "node_mesh_password",
    "nodeMeshMaxRestartTime": "node_mesh_max_restart_time",
}
"""Fields, by their name in documents, that only the object named `default` may set."""


class BGPConfiguration(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="BGPConfiguration",
        plural="bgpconfigurations",
        aliases=("bgpconfiguration", "bgpconfig", "bgpconfigs"),
    )
    spec: BGPConfigurationSpec = BGPConfigurationSpec()

    def problems(self) -> Iterator[Problem]:
        if self.name == "default":
            return
        if not self.name.startswith("node."):
            yield "metadata.name", 'must be "default" or "node.<node name>"'
        for name, attribute in DEFAULT_ONLY.items():
            if getattr(self.spec, attribute) not in (None, ()):
                yield f"spec.{name}", f"Cannot set {name} on a non default BGP Configuration."


class BGPPeerSpec(Value, frozen=True, kw_only=True):
    node: str = ""
    node_selector: str = ""
    peer_ip: str = field(name="peerIP", default="")
    as_number: int | str | None = None
    local_as_number: int | str | None = field(name="localASNumber", default=None)
    peer_selector: str = ""
    keep_original_next_hop: bool = False
    next_hop_mode: Literal["Auto", "Self", "Keep"] | None = None
    password: BGPPassword | None = None
    source_address: Literal["UseNodeIP", "None"] | None = None
    max_restart_time: str | None = None
    keepalive_time: str | None = None
    num_allowed_local_as_numbers: int | None = field(name="numAllowedLocalASNumbers", default=None)
    ttl_security: Annotated[int, Meta(ge=0, le=255)] | None = None
    reachable_by: str = ""
    filters: tuple[str, ...] = ()
    local_workload_selector: str = ""
    reverse_peering: Literal["Auto", "Manual"] | None = None

    def problems(self) -> Iterator[Problem]:
        yield from self._end_problems()
        yield from as_problem("asNumber", self.as_number)
        yield from as_problem("localASNumber", self.local_as_number)
        if self.keep_original_next_hop and self.next_hop_mode is not None:
            yield "nextHopMode", "cannot be combined with keepOriginalNextHop"
        if self.reachable_by and not self.peer_ip:
            yield "reachableBy", "needs peerIP"
        if self.peer_ip:
            try:
                version = parse_ip(peer_address(self.peer_ip)[0]).version
            except ConfigError as error:
                yield "peerIP", str(error)
            else:
                yield from ip_problem("reachableBy", self.reachable_by, version) if self.reachable_by else ()
        yield from duration_problem("maxRestartTime", self.max_restart_time)
        yield from duration_problem("keepaliveTime", self.keepalive_time)

    def _end_problems(self) -> Iterator[Problem]:
        """Which nodes have the session, and with whom."""
        if self.node and self.node_selector:
            yield "nodeSelector", "cannot be combined with node"
        if self.peer_ip and self.peer_selector:
            yield "peerSelector", "cannot be combined with peerIP"
        if (self.peer_ip or self.local_workload_selector) and self.as_number is None:
            yield "asNumber", "is required"
        if self.peer_selector and self.as_number is not None:
            yield "asNumber", "must be empty with peerSelector: the selected nodes have their own"
        if not (self.peer_ip or self.peer_selector or self.local_workload_selector):
            yield "peerIP", "give peerIP, peerSelector or localWorkloadSelector"
        if self.local_workload_selector and (self.peer_ip or self.peer_selector):
            yield "localWorkloadSelector", "cannot be combined with peerIP or peerSelector"


class BGPPeer(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="BGPPeer",
        plural="bgppeers",
        aliases=("bgppeer", "bgpp", "bgpps", "bp", "bps"),
    )
    spec: BGPPeerSpec = BGPPeerSpec()
    status: Any = None
