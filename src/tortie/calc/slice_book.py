"""Which services' EndpointSlices are not as they should be, kept up to date object by object.

    set_service, set_pod, set_node, set_slice ─► due: services that may need something ─► plan ─► SliceChanges

What does not count of a pod touches nothing. What is found to be as it should be is `settled` until something changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError
from tortie.calc.endpoint_slices import (
    Declared,
    Ports,
    SliceChange,
    changes,
    declared,
    is_ours,
    pod_of,
    ports_at,
    wants_slices,
)
from tortie.model.k8s import K8sNode, Pod
from tortie.model.meta import Resource
from tortie.model.service import (
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointSlice,
    ForName,
    Service,
)

ZONE = "topology.kubernetes.io/zone"
Key = tuple[str, str]
"""Namespace and name."""
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Member:
    """What counts of a pod that may be behind a service. `ips`: the first of each IP version."""

    name: str
    uid: str
    labels: Mapping[str, str]
    ips: tuple[IP, ...]
    node: str
    ready: bool
    terminating: bool
    hostname: str
    subdomain: str
    declared: Declared


def member(pod: Pod) -> Member | None:
    """None for a pod that nobody can reach: without an address, or one that has finished."""
    ips = tuple(_addresses(pod))
    if pod.finished or not ips:
        return None
    return Member(
        pod.name,
        pod.metadata.uid,
        pod.labels,
        ips,
        pod.spec.node_name,
        pod.ready,
        pod.metadata.deletion_timestamp is not None,
        pod.spec.hostname,
        pod.spec.subdomain,
        declared(pod),
    )


def endpoint(service: Service, one: Member, ip: IP, zone: str) -> Endpoint:
    """A terminating pod is not ready, but may serve; a service may ask for those that are not ready, too."""
    hostname = one.hostname if one.subdomain == service.name else ""
    return Endpoint(
        addresses=(str(ip),),
        conditions=EndpointConditions(
            ready=service.spec.publish_not_ready_addresses or (one.ready and not one.terminating),
            serving=one.ready,
            terminating=one.terminating,
        ),
        hostname=hostname,
        node_name=one.node,
        zone=zone,
        hints=_hints(service.spec.traffic_distribution, one.node, zone),
        target_ref={"kind": "Pod", "namespace": service.namespace, "name": one.name, "uid": one.uid},
    )


def _hints(wanted: str | None, node: str, zone: str) -> EndpointHints | None:
    zones = (ForName(name=zone),) if wanted and zone else ()
    nodes = (ForName(name=node),) if wanted == "PreferSameNode" and node else ()
    return EndpointHints(for_zones=zones, for_nodes=nodes) if zones or nodes else None


def _addresses(pod: Pod) -> Iterator[IP]:
    """What is no address is passed over: nobody can be reached there."""
    seen = set()
    for text in (pod.status.pod_ip, *(each.ip for each in pod.status.pod_ips)):
        try:
            ip = parse_ip(text)
        except ConfigError:
            continue
        if ip.version not in seen:
            seen.add(ip.version)
            yield ip


class SliceBook:
    """Feed it in any order, again and again; None is what is gone."""

    def __init__(self) -> None:
        self._services: dict[Key, Service] = {}
        self._choosing: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        """Services by namespace and one pair of their selectors: a pod touches those of its labels."""
        self._pods: dict[Key, Member] = {}
        self._absent: set[Key] = set()
        self._labelled: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        """Pods by namespace and label."""
        self._zones: dict[str, dict[type[Resource], str]] = defaultdict(dict)
        self._slices: dict[str, dict[str, EndpointSlice]] = defaultdict(dict)
        self._own: dict[Key, set[str]] = defaultdict(set)
        self._due: dict[Key, None] = {}

    def due(self) -> list[Key]:
        return list(self._due)

    def settled(self, key: Key) -> None:
        self._due.pop(key, None)

    def touch(self, key: Key) -> None:
        self._due[key] = None

    def service(self, key: Key) -> Service | None:
        return self._services.get(key)

    def set_service(self, namespace: str, name: str, new: Service | None) -> None:
        key = namespace, name
        old = self._services.pop(key, None)
        if old is not None and wants_slices(old):
            _drop(self._choosing, (namespace, *_pair(old)), name)
        if new is not None:
            self._services[key] = new
            if wants_slices(new):
                self._choosing[namespace, *_pair(new)].add(name)
        if old is None or new is None or _said(old) != _said(new):
            self._due[key] = None

    def set_pod(self, namespace: str, name: str, new: Pod | None) -> None:
        key, now = (namespace, name), member(new) if new is not None else None
        old = self._pods.pop(key, None)
        if now is not None:
            self._pods[key] = now
        if new is None or now is not None:
            self._absent.discard(key)
        else:
            self._absent.add(key)
        if now == old:
            return
        before, after = (each.labels if each is not None else {} for each in (old, now))
        for pair in before.items():
            _drop(self._labelled, (namespace, *pair), name)
        for pair in after.items():
            self._labelled[namespace, *pair].add(name)
        for labels in (before, after):
            self._touch(namespace, labels)

    def set_node(self, kind: type[Resource], name: str, labels: Mapping[str, str] | None) -> None:
        """Of Kubernetes' kind or of ours."""
        before, zones = self._zone(name), self._zones[name]
        zones.pop(kind, None)
        if labels is not None and ZONE in labels:
            zones[kind] = labels[ZONE]
        if not zones:
            del self._zones[name]
        if self._zone(name) != before:
            for (namespace, _), one in self._pods.items():
                if one.node == name:
                    self._touch(namespace, one.labels)

    def set_slice(self, namespace: str, name: str, new: EndpointSlice | None, *, planned: bool = False) -> None:
        """Anybody's: its name is taken. `planned`: it is as a plan wanted it, so that its service needs nothing."""
        there = self._slices[namespace]
        old = there.pop(name, None)
        if new is not None:
            there[name] = new
        if old == new:
            return
        if old is not None and is_ours(old) and old.service:
            _drop(self._own, (namespace, old.service), name)
        if new is not None and is_ours(new) and new.service:
            self._own[namespace, new.service].add(name)
        for one in (old, new):
            if one is not None and is_ours(one) and one.service and not planned:
                self._due[namespace, one.service] = None

    def unknown_pods(self, key: Key) -> set[str]:
        """The names of pods that the service's slices tell of and nobody has told us of: gone, or unreadable."""
        named = {pod_of(each) for one in self._own_slices(key) for each in one.endpoints} - {""}
        return {name for name in named if (key[0], name) not in self._pods and (key[0], name) not in self._absent}

    def plan(self, key: Key, hidden: Collection[str] = ()) -> list[SliceChange]:
        """What to do for a service, in order. `hidden` pods stay where they are. A service that is not there, or makes
        its slices itself, loses ours."""
        service, own = self._services.get(key), self._own_slices(key)
        if service is None or not wants_slices(service):
            return [SliceChange("delete", each) for each in own]
        behind: dict[tuple[int, Ports], list[Endpoint]] = defaultdict(list)
        numbers: dict[frozenset[tuple[tuple[str, str], int]], Ports] = {}
        for one in self._behind(service):
            declares = frozenset(one.declared.items())
            if declares not in numbers:
                numbers[declares] = ports_at(service.spec.ports, one.declared)
            for ip in one.ips:
                zone = self._zone(one.node)
                behind[ip.version, numbers[declares]].append(endpoint(service, one, ip, zone))
        for each in own if hidden else ():
            version = 4 if each.address_type == "IPv4" else 6
            behind[version, each.ports] += [one for one in each.endpoints if pod_of(one) in hidden]
        found = {group: endpoints for group, endpoints in behind.items() if endpoints}
        return changes(service, found, own, self._slices[key[0]].keys())

    def _behind(self, service: Service) -> Iterator[Member]:
        wanted, namespace = service.spec.selector, service.namespace
        candidates = min((self._labelled.get((namespace, *pair), set()) for pair in wanted.items()), key=len)
        for name in sorted(candidates):
            one = self._pods[namespace, name]
            if wanted.items() <= one.labels.items():
                yield one

    def _own_slices(self, key: Key) -> list[EndpointSlice]:
        return [self._slices[key[0]][name] for name in sorted(self._own.get(key, ()))]

    def _zone(self, node: str) -> str:
        zones = self._zones.get(node, {})
        return zones.get(K8sNode) or next(iter(zones.values()), "")

    def _touch(self, namespace: str, labels: Mapping[str, str]) -> None:
        for pair in labels.items():
            for name in self._choosing.get((namespace, *pair), ()):
                self._due[namespace, name] = None


def _said(service: Service) -> tuple[Any, ...]:
    """What its slices depend on."""
    return service.spec, service.metadata.uid, service.labels


def _pair(service: Service) -> tuple[str, str]:
    return min(service.spec.selector.items())


def _drop(sets: dict[K, set[str]], key: K, name: str) -> None:
    sets[key].discard(name)
    if not sets[key]:
        del sets[key]
