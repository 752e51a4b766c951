"""Services of Kubernetes and the addresses behind them: Service, EndpointSlice.

Fields that no network cares about are named (so that a misspelt one is found) but not looked into.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from msgspec import UNSET, Meta, field

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError
from tortie.model.k8s import Other
from tortie.model.meta import Kind, Port, Problem, Resource, Value, cidr_problem, ip_problem

SERVICE_NAME = "kubernetes.io/service-name"
"""The label by which an EndpointSlice belongs to a Service."""

DEFAULT_AFFINITY, MAX_AFFINITY = 10800, 86400
"""Seconds, as Kubernetes has them."""

PortProtocol = Literal["TCP", "UDP", "SCTP"]
RealPort = Annotated[int, Meta(ge=1, le=65535)]


class ServicePort(Value, frozen=True, kw_only=True):
    port: RealPort
    name: str = ""
    protocol: PortProtocol = "TCP"
    target_port: int | str | None = None
    node_port: Port = 0
    app_protocol: Other = UNSET

    def problems(self) -> Iterator[Problem]:
        if isinstance(self.target_port, int) and not 1 <= self.target_port <= 65535:
            yield "targetPort", f"{self.target_port} is not from 1 to 65535"


class ClientIPConfig(Value, frozen=True, kw_only=True):
    timeout_seconds: int | None = None

    def problems(self) -> Iterator[Problem]:
        if self.timeout_seconds is not None and not 1 <= self.timeout_seconds <= MAX_AFFINITY:
            yield "timeoutSeconds", f"{self.timeout_seconds} is not from 1 to {MAX_AFFINITY}"


class SessionAffinityConfig(Value, frozen=True, kw_only=True):
    client_ip: ClientIPConfig | None = field(name="clientIP", default=None)


class Ingress(NamedTuple):
    """An address that a load balancer has for a service. `mode` `Proxy`: what comes from there is the load balancer's
    own, and nodes do not answer for the address; `VIP`, also where nothing is said: nodes do."""

    ip: str
    mode: str = "VIP"


class ServiceSpec(Value, frozen=True, kw_only=True):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] = "ClusterIP"
    cluster_ip: str = field(name="clusterIP", default="")
    cluster_ips: tuple[str, ...] = field(name="clusterIPs", default=())
    ports: tuple[ServicePort, ...] = ()
    selector: dict[str, str] = field(default_factory=dict)
    external_ips: tuple[str, ...] = field(name="externalIPs", default=())
    load_balancer_ip: str = field(name="loadBalancerIP", default="")
    load_balancer_source_ranges: tuple[str, ...] = ()
    external_traffic_policy: Literal["", "Cluster", "Local"] = ""
    internal_traffic_policy: Literal["", "Cluster", "Local"] = ""
    session_affinity: Literal["", "None", "ClientIP"] = ""
    session_affinity_config: SessionAffinityConfig | None = None
    health_check_node_port: Port = 0
    publish_not_ready_addresses: bool = False
    external_name: str = ""
    ip_families: tuple[Literal["IPv4", "IPv6"], ...] = ()
    ip_family_policy: Other = UNSET
    allocate_load_balancer_node_ports: bool | None = None
    load_balancer_class: str | None = None
    traffic_distribution: Literal["PreferClose", "PreferSameZone", "PreferSameNode"] | None = None

    @property
    def affinity(self) -> int:
        """Seconds in which the same client gets the same backend again; 0: none."""
        if self.session_affinity != "ClientIP":
            return 0
        config = self.session_affinity_config.client_ip if self.session_affinity_config is not None else None
        seconds = (config.timeout_seconds if config is not None else None) or DEFAULT_AFFINITY
        return min(max(1, seconds), MAX_AFFINITY)  # what the kernel refuses would keep all other services out, too

    def problems(self) -> Iterator[Problem]:
        for i, ip in enumerate(self.cluster_ips):
            if ip != "None":
                yield from ip_problem(f"clusterIPs[{i}]", ip)
        if self.cluster_ip not in ("", "None"):
            yield from ip_problem("clusterIP", self.cluster_ip)
        for i, ip in enumerate(self.external_ips):
            yield from ip_problem(f"externalIPs[{i}]", ip)
        for i, net in enumerate(self.load_balancer_source_ranges):
            yield from cidr_problem(f"loadBalancerSourceRanges[{i}]", net.strip())
        if self.type == "ExternalName" and not self.external_name:
            yield "externalName", "is required with type ExternalName"


class Service(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="v1", kind="Service", plural="services", namespaced=True, aliases=("service", "svc")
    )
    spec: ServiceSpec = ServiceSpec()
    status: Any = None

    @property
    def ingress(self) -> Iterator[Ingress]:
        """`status.loadBalancer.ingress[]`, as far as it is there and has an address."""
        status = self.status if isinstance(self.status, dict) else {}
        balancer = status.get("loadBalancer")
        ingress = balancer.get("ingress") if isinstance(balancer, dict) else None
        for one in ingress if isinstance(ingress, list) else ():
            if isinstance(one, dict) and isinstance(one.get("ip"), str):
                yield Ingress(one["ip"], str(one.get("ipMode") or "VIP"))


class EndpointConditions(Value, frozen=True, kw_only=True):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class ForName(Value, frozen=True, kw_only=True):
    """A zone or a node."""

    name: str


class EndpointHints(Value, frozen=True, kw_only=True):
    """The zones, or nodes, whose clients should come to this endpoint."""

    for_zones: tuple[ForName, ...] = ()
    for_nodes: tuple[ForName, ...] = ()


def endpoint_ip(text: str, version: int | None) -> IP | None:
    """The address that is meant in a slice of an IP version. None where it is none, or is of the other version: not
    every datastore looks at what it is given, and nobody can be reached there."""
    try:
        ip = parse_ip(text)
    except ConfigError:
        return None
    return ip if ip.version == version else None


class Endpoint(Value, frozen=True, kw_only=True):
    """What is reached under one of these addresses: the first counts for routing, all of them for policy."""

    addresses: tuple[str, ...] = ()
    conditions: EndpointConditions = EndpointConditions()
    hostname: str = ""
    node_name: str = ""
    zone: str = ""
    hints: EndpointHints | None = None
    target_ref: Other = UNSET
    deprecated_topology: Other = UNSET

    def ip(self, version: int | None) -> IP | None:
        """The first address, by which services and routes go, if it is one of its slice's IP version."""
        return endpoint_ip(self.addresses[0], version) if self.addresses else None


class EndpointPort(Value, frozen=True, kw_only=True):
    """Without a number it stands for no port in particular."""

    name: str = ""
    protocol: PortProtocol = "TCP"
    port: Port | None = None
    app_protocol: Other = UNSET


class EndpointSlice(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="discovery.k8s.io/v1",
        kind="EndpointSlice",
        plural="endpointslices",
        namespaced=True,
        aliases=("endpointslice",),
    )
    address_type: Literal["IPv4", "IPv6", "FQDN"]
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[EndpointPort, ...] = ()

    def problems(self) -> Iterator[Problem]:
        version = self.version
        if version is None:
            return
        for i, endpoint in enumerate(self.endpoints):
            for j, address in enumerate(endpoint.addresses):
                yield from ip_problem(f"endpoints[{i}].addresses[{j}]", address, version)

    @property
    def version(self) -> int | None:
        """Of IP; None of a slice that has names instead of addresses."""
        return None if self.address_type == "FQDN" else int(self.address_type[-1])

    @property
    def service(self) -> str:
        """The name of the service that it belongs to, in its own namespace; "" if to none."""
        return self.labels.get(SERVICE_NAME, "")
