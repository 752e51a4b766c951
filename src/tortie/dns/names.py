"""A cluster as its DNS sees it, kept object by object, and what it has at a name. Values in, values out.

    Namespace, Service, EndpointSlice, Pod ──put, drop──► Names ──at(labels)──► types and data, or no such name

A change costs the same whatever else there is: a service's records are made when somebody asks for it, and forgotten
when it or one of its slices changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar

from tortie.base.addr import IP
from tortie.dns.records import (
    LABEL,
    Data,
    Labels,
    Records,
    addresses,
    cluster_ips,
    ip_of,
    is_headless,
    records,
    undashed,
)
from tortie.model.k8s import Namespace, Pod
from tortie.model.meta import Resource
from tortie.model.service import EndpointSlice, Service, endpoint_ip

T = TypeVar("T")

Key = tuple[str, str]
"""Namespace and name."""
PodMode = Literal["insecure", "verified", "disabled"]
"""Whether 10-244-1-5.NAMESPACE.pod.ZONE is there for every address, for those of pods, or never."""

SCHEMA = "1.1.0"
OWN = ("kube-system", "kube-dns")
"""The service that the name server is behind, as CoreDNS is: who asks for the zone's server gets its address."""
SERVER = ("ns", "dns")
"""The name server's own name in the zone."""
NOTHING: Data = {}


class Names:
    """`zone` is the cluster's domain, as "cluster.local". `changes` counts what was told."""

    def __init__(self, zone: str, pods: PodMode = "insecure") -> None:
        self.zone: Labels = tuple(zone.lower().rstrip(".").split("."))
        self.changes = 0
        self._pods = pods
        self._namespaces: set[str] = set()
        self._inhabited: Counter[str] = Counter()
        """How many services a namespace has: who has one is there, whether the datastore knows namespaces or not."""
        self._services: dict[Key, Service] = {}
        self._slices: dict[Key, dict[str, EndpointSlice]] = {}
        self._service_of: dict[Key, Key] = {}
        """By slice."""
        self._by_ip: dict[IP, Counter[Key]] = {}
        """Services by the addresses that are theirs or their endpoints'."""
        self._pods_at: dict[IP, set[Key]] = {}
        self._ips_of: dict[Key, tuple[IP, ...]] = {}
        """By pod."""
        self._made: dict[Key, Records | None] = {}

    @property
    def services(self) -> int:
        return len(self._services)

    # --- being told -------------------------------------------------------------------------------------------------

    def put(self, resource: Resource) -> None:
        key = resource.namespace, resource.name
        self.drop(type(resource), *key)
        match resource:
            case Namespace():
                self._namespaces.add(resource.name)
            case Service():
                self._services[key] = resource
                _add(self._inhabited, resource.namespace, 1)
                self._count(cluster_ips(resource), key, 1)
            case EndpointSlice() if resource.service:
                service = resource.namespace, resource.service
                self._service_of[key] = service
                self._slices.setdefault(service, {})[resource.name] = resource
                self._count(_addresses(resource), service, 1)
                self._made.pop(service, None)
            case Pod() if not resource.finished:
                ips = tuple(ip for each in resource.status.pod_ips if (ip := ip_of(each.ip)) is not None)
                self._ips_of[key] = ips
                for ip in ips:
                    self._pods_at.setdefault(ip, set()).add(key)

    def drop(self, kind: type[Resource], namespace: str, name: str) -> None:
        """What is not known is not missed."""
        key = namespace, name
        self.changes += 1
        if kind is Namespace:
            self._namespaces.discard(name)
        elif kind is Service and (service := self._services.pop(key, None)) is not None:
            _add(self._inhabited, namespace, -1)
            self._count(cluster_ips(service), key, -1)
            self._made.pop(key, None)
        elif kind is EndpointSlice and (owner := self._service_of.pop(key, None)) is not None:
            there = self._slices[owner]
            self._count(_addresses(there.pop(name)), owner, -1)
            if not there:
                del self._slices[owner]
            self._made.pop(owner, None)
        elif kind is Pod:
            for ip in self._ips_of.pop(key, ()):
                self._pods_at[ip].discard(key)
                if not self._pods_at[ip]:
                    del self._pods_at[ip]

    def heard(self) -> None:
        """Everything of a list or a batch has been told."""

    def _count(self, ips: Iterable[IP], key: Key, by: int) -> None:
        for ip in ips:
            there = self._by_ip.setdefault(ip, Counter())
            _add(there, key, by)
            if not there:
                del self._by_ip[ip]

    # --- being asked ------------------------------------------------------------------------------------------------

    def text(self, labels: Labels) -> str:
        """A name in the zone, absolute."""
        return ".".join((*labels, *self.zone)) + "."

    def within(self, labels: Labels) -> Labels | None:
        """A name relative to the zone; None for one elsewhere."""
        size = len(self.zone)
        return labels[:-size] if labels[-size:] == self.zone else None

    def at(self, labels: Labels) -> Data | None:
        """What there is at a name relative to the zone, but for what every zone has at its top. None: no such name;
        nothing: it is there, or something below it."""
        match labels:
            case () | ("svc",) | ("dns",):
                return NOTHING
            case ("pod",):
                return None if self._pods == "disabled" else NOTHING
            case ("dns-version",):
                return {"TXT": (f'"{SCHEMA}"',)}
            case ("ns", "dns"):
                own = self._services.get(OWN)
                return addresses(cluster_ips(own)) if own is not None else NOTHING
            case (*rest, namespace, "svc") if self._has(namespace):
                return self._of_services(tuple(rest), namespace)
            case (*rest, namespace, "pod") if self._has(namespace) and self._pods != "disabled":
                return self._of_pods(tuple(rest), namespace)
        return None

    def pointers(self, ip: IP) -> tuple[str, ...]:
        """The names of an address, absolute: of the service whose ClusterIP it is, else of endpoints of headless
        services."""
        keys = sorted(self._by_ip.get(ip, ()))
        owners = [key for key in keys if key in self._services and ip in cluster_ips(self._services[key])]
        made = ((key, self._records(key)) for key in owners or keys)
        return tuple(
            self.text((*labels, *_labels_of(key)))
            for key, one in made
            if one is not None
            for labels in one.pointers.get(ip, ())
        )

    def _has(self, namespace: str) -> bool:
        return namespace in self._namespaces or namespace in self._inhabited

    def _of_services(self, labels: Labels, namespace: str) -> Data | None:
        if not labels:
            return NOTHING
        *below, name = labels
        made = self._records((namespace, name))
        if made is None:
            return None
        found = made.below.get(tuple(below))
        return NOTHING if found is None and tuple(below) in made.inner else found

    def _of_pods(self, labels: Labels, namespace: str) -> Data | None:
        if not labels:
            return NOTHING
        ip = undashed(labels[0]) if len(labels) == 1 else None
        if ip is None:
            return None
        if self._pods == "verified" and not any(space == namespace for space, _ in self._pods_at.get(ip, ())):
            return None
        return addresses([ip])

    def _records(self, key: Key) -> Records | None:
        if key not in self._made:
            service = self._services.get(key)
            if service is None or not all(map(LABEL.match, key)):
                return None
            slices = self._slices.get(key, {}) if is_headless(service) else {}
            self._made[key] = records(service, slices.values(), self.text(_labels_of(key)))
        return self._made[key]


def _add(counted: Counter[T], key: T, by: int) -> None:
    """What there is none of has no entry."""
    counted[key] += by
    if counted[key] <= 0:
        del counted[key]


def _labels_of(key: Key) -> Labels:
    namespace, name = key
    return name, namespace, "svc"


def _addresses(slice_: EndpointSlice) -> Iterator[IP]:
    for endpoint in slice_.endpoints:
        for text in endpoint.addresses:
            if (ip := endpoint_ip(text, slice_.version)) is not None:
                yield ip
