"""What a Service asks for: where it is to be answered, and how, before anybody is behind it. As kube-proxy reads it.

    clusterIP, clusterIPs                  ClusterIP     one address of each IP version that the service has
    ports[].nodePort                       NodePort      the same versions, at the node's own addresses
    status.loadBalancer.ingress[].ip       LoadBalancer  unless its ipMode is Proxy
    externalIPs                            ExternalIP    an address of a version that has no ClusterIP is not served

Not asked for at all: ExternalName, headless, and what has another proxy or is kept out of address translation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tortie.base.addr import IP, Net, collapse, net_around, parse_ip
from tortie.base.errors import ConfigError
from tortie.calc.proxy.state import Entrance, EntranceKind, Frontend, ServiceKey
from tortie.model.policy import PROTOCOLS
from tortie.model.service import Service, ServicePort, ServiceSpec

PROXY_NAME = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
"""Labels of what is not for the node's proxy, whatever their value is."""
NAT_EXCLUDED = "projectcalico.org/natExcludeService"
"""The annotation, `true`, of a service that is not to be translated."""

Where = tuple[EntranceKind, IP | None, int]
"""Kind, address (None: any of the node), and the IP version."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What counts of a Service. Its entrances have no backends yet; `local` is empty where who comes from outside is to
    get only those of this node. `inside_local`: so is who asks at the ClusterIP. `check_port` 0: nobody checks."""

    key: ServiceKey
    created: str
    entrances: tuple[Entrance, ...]
    cluster_ips: tuple[IP, ...]
    inside_local: bool = False
    check_port: int = 0
    refused: tuple[str, ...] = ()
    """What cannot be understood, and is left out."""

    @property
    def balanced(self) -> bool:
        """Whether it has addresses of a load balancer."""
        return any(entrance.kind == "LoadBalancer" for entrance in self.entrances)


def skipped(labels: dict[str, str]) -> bool:
    """Whether an object with these labels is not for the node's proxy."""
    return PROXY_NAME in labels or HEADLESS_LABEL in labels


def asked(service: Service) -> Asked | None:
    """None for a service that no proxy serves, or not this one."""
    spec = service.spec
    if skipped(service.labels) or service.metadata.annotations.get(NAT_EXCLUDED) == "true":
        return None
    if spec.type == "ExternalName" or "None" in (spec.cluster_ip, *spec.cluster_ips):
        return None
    refused: list[str] = []
    cluster = _cluster_ips(spec, refused)
    if not cluster:
        return None
    places = [*_places(service, cluster, refused)]
    sources = _sources(spec, refused)
    external_local = spec.external_traffic_policy == "Local"
    entrances: dict[Frontend, Entrance] = {}
    for port in spec.ports:
        for place in (*places, *_node_ports(spec, port, cluster)):
            one = _entrance(spec, port, place, external_local, sources)
            entrances.setdefault(one.frontend, one)
    check = spec.health_check_node_port if spec.type == "LoadBalancer" and external_local else 0
    return Asked(
        (service.namespace, service.name),
        service.metadata.creation_timestamp or "",
        tuple(entrances.values()),
        tuple(cluster.values()),
        spec.internal_traffic_policy == "Local",
        check,
        tuple(refused),
    )


def _entrance(
    spec: ServiceSpec, port: ServicePort, place: Where, external_local: bool, sources: dict[int, tuple[Net, ...] | None]
) -> Entrance:
    kind, ip, version = place
    number = port.node_port if kind == "NodePort" else port.port
    return Entrance(
        kind,
        Frontend(version, ip, PROTOCOLS[port.protocol], number),
        port.name,
        (),
        () if external_local and kind != "ClusterIP" else None,
        sources[version] if kind == "LoadBalancer" else None,
        spec.affinity,
    )


def _cluster_ips(spec: ServiceSpec, refused: list[str]) -> dict[int, IP]:
    """By IP version, the primary one first. What ipFamilies does not name does not count."""
    families = {int(family[-1]) for family in spec.ip_families} or {4, 6}
    found: dict[int, IP] = {}
    for ip in _ips("spec.clusterIPs", dict.fromkeys((spec.cluster_ip, *spec.cluster_ips)), refused):
        if ip.version in families:
            found.setdefault(ip.version, ip)
    return found


def _places(service: Service, cluster: dict[int, IP], refused: list[str]) -> Iterator[Where]:
    """The addresses, in the order in which they count: with a load balancer's go its source ranges, which hold also
    where the same address is an external one."""
    spec = service.spec
    for ip in cluster.values():
        yield "ClusterIP", ip, ip.version
    if spec.type == "LoadBalancer":
        texts = dict.fromkeys(one.ip for one in service.ingress if one.ip and one.mode == "VIP")
        for ip in _ips("status.loadBalancer.ingress", texts, refused):
            if ip.version in cluster:
                yield "LoadBalancer", ip, ip.version
    for ip in _ips("spec.externalIPs", dict.fromkeys(spec.external_ips), refused):
        if ip.version in cluster:
            yield "ExternalIP", ip, ip.version


def _node_ports(spec: ServiceSpec, port: ServicePort, cluster: dict[int, IP]) -> Iterator[Where]:
    # A service that was a NodePort before may still have the number where no API server takes it away.
    if port.node_port and spec.type in ("NodePort", "LoadBalancer"):
        for version in cluster:
            yield "NodePort", None, version


def _sources(spec: ServiceSpec, refused: list[str]) -> dict[int, tuple[Net, ...] | None]:
    """Who may come to a load balancer's addresses, by IP version. As for kube-proxy, ranges of one version do not close
    the other one; ranges that cannot be read close both, for nobody knows which was meant."""
    nets: list[Net] = []
    unread = False
    for text in spec.load_balancer_source_ranges:
        try:
            nets.append(net_around(text.strip()))
        except ConfigError as error:
            unread = True
            refused.append(f"spec.loadBalancerSourceRanges: {error}")
    merged = collapse(nets)
    found = {version: tuple(net for net in merged if net.version == version) for version in (4, 6)}
    return {version: of or (() if unread else None) for version, of in found.items()}


def _ips(where: str, texts: dict[str, None], refused: list[str]) -> Iterator[IP]:
    for text in texts:
        try:
            ip = parse_ip(text) if text else None
            if ip is not None and unreachable(ip):
                raise ConfigError(f'"{text}" is no address that a service can have')
        except ConfigError as error:
            refused.append(f"{where}: {error}")
            continue
        if ip is not None:
            yield ip


def unreachable(ip: IP) -> bool:
    """Whether it means something else on every machine: Kubernetes allows it neither to services nor to endpoints."""
    return ip.is_unspecified or ip.is_loopback or ip.is_link_local or ip.is_multicast
