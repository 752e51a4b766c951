"""Which addresses of services this node announces: the networks that BGPConfiguration names, and single addresses.

    a network     serviceClusterIPs, -ExternalIPs, -LoadBalancerIPs    from every node
    one address   externalTrafficPolicy Local                           from the nodes that have a ready endpoint
                  it is a network of its own (/32, /128)                from every node, while a service has it
                  load balancer aggregation is Disabled                 from every node, while an endpoint is ready

Nothing of it is ever in a node's own routes: who answers for a service is its proxy's to say. A change of a Service or
an EndpointSlice costs what that one service has; addresses that several services have are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tortie.base.addr import IP, Net, host_net, parse_ip, parse_net, within
from tortie.base.errors import ConfigError
from tortie.model.bgp import BGPConfigurationSpec, Prefix
from tortie.model.service import EndpointSlice, Service

EXCLUDE = "node.kubernetes.io/exclude-from-external-load-balancers"
"""The label, `true`, of a node that announces no services."""

Key = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """The networks of services' addresses. `aggregate`: those of load balancers are announced whole."""

    cluster: tuple[Net, ...] = ()
    external: tuple[Net, ...] = ()
    load_balancer: tuple[Net, ...] = ()
    aggregate: bool = True

    @property
    def every(self) -> tuple[Net, ...]:
        return (*self.cluster, *self.external, *self.load_balancer)

    @property
    def whole(self) -> Iterator[Net]:
        """Those that every node announces as they are. A single address is announced with the service that has it."""
        yield from self.cluster
        yield from (net for net in self.external if net.num_addresses > 1)
        yield from (net for net in self.load_balancer if self.aggregate and net.num_addresses > 1)


@dataclass(frozen=True, slots=True)
class Announced:
    """What this node makes of all services.

    `nets` are announced. Those in `kept_out` are in no node's routes. Of `passed_on` a route reflector tells its
    clients what others announce.
    """

    nets: tuple[Net, ...] = ()
    kept_out: tuple[Net, ...] = ()
    passed_on: tuple[Net, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What counts of a Service. `ingress` are the addresses that a load balancer has for it."""

    cluster: tuple[IP, ...]
    external: tuple[IP, ...]
    ingress: tuple[IP, ...]
    local: bool
    versions: frozenset[int]


@dataclass(frozen=True, slots=True)
class Ready:
    """What counts of an EndpointSlice: its service, and whether something is ready behind it, anywhere and here."""

    service: Key
    version: int
    anywhere: bool
    here: bool


def ranges_of(spec: BGPConfigurationSpec, cluster: tuple[Net, ...] | None = None) -> Ranges:
    """`cluster`, where it is given, takes the place of serviceClusterIPs. Raises ConfigError."""
    return Ranges(
        _nets(spec.service_cluster_ips) if cluster is None else cluster,
        _nets(spec.service_external_ips),
        _nets(spec.service_load_balancer_ips),
        spec.service_load_balancer_aggregation != "Disabled",
    )


def _nets(prefixes: Iterable[Prefix]) -> tuple[Net, ...]:
    return tuple(parse_net(one.cidr) for one in prefixes)


def facts_of(service: Service) -> Facts | None:
    """None for a service that has no address of its own."""
    spec = service.spec
    cluster = tuple(dict.fromkeys((spec.cluster_ip, *spec.cluster_ips)))
    if spec.type == "ExternalName" or "None" in cluster or not any(cluster):
        return None
    versions = frozenset(int(family[-1]) for family in spec.ip_families)
    return Facts(
        _ips(cluster),
        _ips(spec.external_ips),
        _ips(one.ip for one in service.ingress) if spec.type == "LoadBalancer" else (),
        spec.external_traffic_policy == "Local",
        versions or frozenset({4, 6}),
    )


def _ips(texts: Iterable[str]) -> tuple[IP, ...]:
    found: list[IP] = []
    for text in texts:
        try:
            found.append(parse_ip(text))
        except ConfigError:
            continue  # nothing that could be announced
    return tuple(found)


def ready_of(one: EndpointSlice, node: str) -> Ready | None:
    """None for a slice that is of no service, or of names instead of addresses. Not said is ready, as in Kubernetes."""
    version = one.version
    if not one.service or version is None:
        return None
    ready = [endpoint for endpoint in one.endpoints if endpoint.conditions.ready is not False]
    anywhere = any(endpoint.ip(version) for endpoint in ready)
    here = any(endpoint.node_name == node and endpoint.ip(version) for endpoint in ready)
    return Ready((one.namespace, one.service), version, anywhere, here)


def announced(facts: Facts, ready: Iterable[Ready], ranges: Ranges) -> frozenset[Net]:
    """The single addresses of a service that this node announces."""
    counting = [one for one in ready if one.version in facts.versions]
    found: set[IP] = set()
    if facts.local:
        if any(one.here for one in counting):
            found |= set(facts.cluster) if ranges.cluster else set()
            found |= set(_inside(facts.external, ranges.external))
            found |= set(_inside(facts.ingress, ranges.load_balancer))
        return frozenset(map(host_net, found))
    found |= {ip for ip in facts.external if host_net(ip) in ranges.external}
    found |= {ip for ip in facts.ingress if host_net(ip) in ranges.load_balancer}
    if not ranges.aggregate and any(one.anywhere for one in counting):
        found |= set(_inside(facts.ingress, ranges.load_balancer))
    return frozenset(map(host_net, found))


def _inside(ips: Iterable[IP], nets: tuple[Net, ...]) -> Iterator[IP]:
    return (ip for ip in ips if any(within(host_net(ip), net) for net in nets))


class ServiceRoutes:
    """Feed it services, slices, ranges and the node's label in any order; ask `announced`."""

    def __init__(self, node: str) -> None:
        """`node` is what EndpointSlices call this one."""
        self._node = node
        self._ranges = Ranges()
        self._excluded = False
        self._services: dict[Key, Facts] = {}
        self._ready: dict[Key, Ready] = {}
        self._slices: dict[Key, set[Key]] = {}
        """The slices of each service."""
        self._nets: dict[Key, frozenset[Net]] = {}
        self._counts: Counter[Net] = Counter()
        self._announced: Announced | None = None

    def announced(self) -> Announced:
        """The very same object as last time when nothing has changed."""
        if self._announced is None:
            ranges = self._ranges
            nets = () if self._excluded else tuple(sorted({*ranges.whole, *self._counts}, key=_order))
            kept_out = tuple(sorted({*ranges.every, *self._counts}, key=_order))
            self._announced = Announced(nets, kept_out, (*ranges.external, *ranges.load_balancer))
        return self._announced

    def set_ranges(self, ranges: Ranges) -> None:
        if ranges != self._ranges:
            self._ranges = ranges
            self._announced = None
            for service in [*self._services]:
                self._resolve(service)

    def set_excluded(self, excluded: bool) -> None:
        """Whether this node announces nothing."""
        if excluded != self._excluded:
            self._excluded = excluded
            self._announced = None

    def set_service(self, namespace: str, name: str, service: Service | None) -> None:
        """It is like this, or (None) gone."""
        key = namespace, name
        facts = facts_of(service) if service is not None else None
        if facts is None:
            self._services.pop(key, None)
        else:
            self._services[key] = facts
        self._resolve(key)

    def set_slice(self, namespace: str, name: str, new: EndpointSlice | None) -> None:
        """It is like this, or (None) gone. It may come to be of another service."""
        key = namespace, name
        old, now = self._ready.pop(key, None), ready_of(new, self._node) if new is not None else None
        if now is not None:
            self._ready[key] = now
        if old == now:
            return
        if old is not None:
            self._slices[old.service].discard(key)
            if not self._slices[old.service]:
                del self._slices[old.service]
        if now is not None:
            self._slices.setdefault(now.service, set()).add(key)
        for service in {one.service for one in (old, now) if one is not None}:
            self._resolve(service)

    def _resolve(self, service: Key) -> None:
        """Work out again what one service has announced."""
        facts = self._services.get(service)
        ready = [self._ready[key] for key in self._slices.get(service, ())]
        nets = announced(facts, ready, self._ranges) if facts is not None else frozenset[Net]()
        old = self._nets.pop(service, frozenset())
        if nets:
            self._nets[service] = nets
        if nets != old:
            for net in nets - old:
                self._counts[net] += 1
            for net in old - nets:
                self._counts[net] -= 1
                if not self._counts[net]:
                    del self._counts[net]
            self._announced = None


def _order(net: Net) -> tuple[int, int, int]:
    return net.version, int(net.network_address), net.prefixlen
