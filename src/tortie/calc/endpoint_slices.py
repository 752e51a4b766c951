"""The EndpointSlices of a service: who is behind it, in as few writes as may be.

    endpoints by IP version and ports ─┐
    slices that there are ─────────────┴─► what stays where it is ─► holes are filled ─► SliceChanges

An endpoint stays in its slice. New ones go into slices that change anyhow, the fullest first, then into the one whose
room they fill best, then into new slices. A slice that nobody needs is given to endpoints that need one, else deleted;
the last one of an IP version stays, empty.

Source: Kubernetes' EndpointSlice controller. What differs: names of slices follow from the service's name, so that two
controllers at a time do not make the same slice twice.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from msgspec.structs import replace

from tortie.base.addr import parse_ip
from tortie.base.errors import ConfigError
from tortie.calc.service_addresses import FAMILIES, HEADLESS, VERSIONS
from tortie.model.k8s import Pod
from tortie.model.meta import Metadata, OwnerReference
from tortie.model.service import SERVICE_NAME, Endpoint, EndpointPort, EndpointSlice, Service, ServicePort

MANAGED_BY, US = "endpointslice.kubernetes.io/managed-by", "tortie-controllers"
HEADLESS_LABEL = "service.kubernetes.io/headless"
MOST = 100
"""Endpoints in a slice, as Kubernetes has them."""
_DIGITS = "bcdfghjklmnpqrstvwxz2456789"
"""Of which Kubernetes makes names: they spell nothing."""

Ports = tuple[EndpointPort, ...]
Behind = Mapping[tuple[int, Ports], Sequence[Endpoint]]
"""Who is behind a service, by IP version and ports: pods whose ports have other numbers are in other slices."""
Declared = Mapping[tuple[str, str], int]
"""The ports that a pod declares, by name and protocol."""


@dataclass(frozen=True, slots=True)
class SliceChange:
    """`slice` is as it should be, or as it is when it is deleted."""

    verb: Literal["create", "update", "delete"]
    slice: EndpointSlice

    def __str__(self) -> str:
        count = len(self.slice.endpoints)
        return f"{self.verb} {self.slice.title}: {count} {self.slice.address_type} endpoint{'' if count == 1 else 's'}"


def is_ours(one: EndpointSlice) -> bool:
    return one.labels.get(MANAGED_BY) == US


def wants_slices(service: Service) -> bool:
    """Whether the slices of a service are made for it; who has no selector brings his own."""
    return bool(service.spec.selector) and service.spec.type != "ExternalName"


def declared(pod: Pod) -> dict[tuple[str, str], int]:
    """The first that has the name counts."""
    sidecars = (each for each in pod.spec.init_containers if each.restart_policy == "Always")
    found: dict[tuple[str, str], int] = {}
    for container in (*pod.spec.containers, *sidecars):
        for port in container.ports:
            if port.name:
                found.setdefault((port.name, port.protocol), port.container_port)
    return found


def ports_at(ports: Iterable[ServicePort], declared: Declared) -> Ports:
    """The service's ports as numbers of one pod; a named one that the pod does not declare is not there."""
    found = []
    for port in ports:
        target: int | None = port.port
        if isinstance(port.target_port, int):
            target = port.target_port
        elif port.target_port:
            target = declared.get((port.target_port, port.protocol))
        if target is not None:
            found.append(
                EndpointPort(name=port.name, protocol=port.protocol, port=target, app_protocol=port.app_protocol)
            )
    return tuple(found)


def versions_of(service: Service, otherwise: Iterable[int]) -> tuple[int, ...]:
    """The IP versions of a service's slices; `otherwise`: where it does not say."""
    if service.spec.ip_families:
        return tuple(VERSIONS[family] for family in service.spec.ip_families)
    try:
        written: list[int] = [parse_ip(text).version for text in service.spec.cluster_ips if text != HEADLESS]
    except ConfigError:
        written = []
    return tuple(dict.fromkeys(written or sorted(set(otherwise))))


def changes(
    service: Service, behind: Behind, own: Iterable[EndpointSlice] = (), taken: Collection[str] = ()
) -> list[SliceChange]:
    """What to do with a service's `own` slices, in order: who comes before who goes, so that an endpoint which moves to
    another slice is in none only where two change places. `taken` are the names of all slices of the namespace."""
    own = sorted(own, key=lambda each: each.name)
    by_version: dict[int, dict[Ports, Sequence[Endpoint]]] = defaultdict(dict)
    for (version, ports), endpoints in behind.items():
        by_version[version][ports] = endpoints
    there = {VERSIONS[each.address_type] for each in own if each.address_type != "FQDN"}
    versions = versions_of(service, (*by_version, *there))
    names = _names(service, taken)
    found: list[SliceChange] = []
    for version in versions:
        mine = [each for each in own if each.address_type == FAMILIES[version]]
        groups = by_version.get(version) or {ports_at(service.spec.ports, {}): ()}
        found += _Packing(service, version, mine, names).changes(groups)
    gone = {FAMILIES[version] for version in versions}
    found += [SliceChange("delete", each) for each in own if each.address_type not in gone]
    before = {each.name: len(each.endpoints) for each in own}
    order = {"create": 0, "update": 1, "delete": 3}

    def rank(change: SliceChange) -> int:
        shrinks = change.verb == "update" and len(change.slice.endpoints) < before[change.slice.name]
        return order[change.verb] + shrinks

    return sorted(found, key=rank)


def whose(endpoint: Endpoint) -> tuple[str, str]:
    """What tells endpoints apart: address, and the pod's name, for pods of a host's network share its address."""
    return endpoint.addresses[0] if endpoint.addresses else "", pod_of(endpoint)


def pod_of(endpoint: Endpoint) -> str:
    """The name of its pod, "" if it is of none."""
    ref: Any = endpoint.target_ref
    return str(ref.get("name") or "") if isinstance(ref, dict) and ref.get("kind") == "Pod" else ""


@dataclass(slots=True)
class _Bin:
    """A slice and what is to be in it; None: a new one."""

    slice: EndpointSlice | None
    ports: Ports
    endpoints: list[Endpoint]

    @property
    def room(self) -> int:
        return MOST - len(self.endpoints)

    @property
    def touched(self) -> bool:
        return self.slice is None or self.slice.endpoints != tuple(self.endpoints)


class _Packing:
    """Of one service and IP version."""

    def __init__(self, service: Service, version: int, own: Sequence[EndpointSlice], names: Iterator[str]) -> None:
        self._service = service
        self._type = FAMILIES[version]
        self._own = own
        self._names = names

    def changes(self, groups: Mapping[Ports, Sequence[Endpoint]]) -> Iterator[SliceChange]:
        bins: list[_Bin] = []
        for ports, endpoints in groups.items():
            mine = [each for each in self._own if each.ports == ports]
            bins += _packed(ports, endpoints, mine)
        used = [each for each in bins if each.endpoints]
        if not used:
            used = [*sorted(bins, key=lambda each: each.slice is None), _Bin(None, next(iter(groups)), [])][:1]
        kept = {each.slice.name for each in used if each.slice is not None}
        spare = [each for each in self._own if each.name not in kept]
        wanted = {whose(one) for each in used for one in each.endpoints}
        for each in used:
            old = each.slice or _taken_from(spare, each, wanted)
            new = self._dressed(old, each)
            if old is None:
                yield SliceChange("create", new)
            elif new != old:
                yield SliceChange("update", new)
        yield from (SliceChange("delete", each) for each in spare)

    def _dressed(self, old: EndpointSlice | None, what: _Bin) -> EndpointSlice:
        """A slice with what the service says of it; annotations that somebody has put there stay."""
        service = self._service
        labels = {key: value for key, value in service.labels.items() if key not in (HEADLESS_LABEL, MANAGED_BY)}
        labels |= {SERVICE_NAME: service.name, MANAGED_BY: US}
        if service.spec.cluster_ip == HEADLESS:
            labels[HEADLESS_LABEL] = ""
        owner = OwnerReference(
            api_version="v1",
            kind="Service",
            name=service.name,
            uid=service.metadata.uid,
            controller=True,
            block_owner_deletion=True,
        )
        metadata = old.metadata if old else Metadata(name=next(self._names), namespace=service.namespace)
        return EndpointSlice(
            metadata=replace(metadata, labels=labels, owner_references=(owner,)),
            address_type=self._type,
            endpoints=tuple(what.endpoints),
            ports=what.ports,
        )


def _taken_from(spare: list[EndpointSlice], what: _Bin, wanted: Collection[tuple[str, str]]) -> EndpointSlice | None:
    """One that nobody needs, for a new slice: none whose endpoints go elsewhere, as they are in no other yet."""
    coming = {whose(each) for each in what.endpoints}
    for i, one in enumerate(spare):
        if all(key in coming or key not in wanted for key in map(whose, one.endpoints)):
            return spare.pop(i)
    return None


def _packed(ports: Ports, endpoints: Iterable[Endpoint], own: Iterable[EndpointSlice]) -> list[_Bin]:
    """Endpoints with the same ports into slices of theirs."""
    left = {whose(each): each for each in endpoints}
    bins = []
    for one in own:
        stay = [left.pop(key) for each in one.endpoints if (key := whose(each)) in left]
        bins.append(_Bin(one, ports, stay))
    rest = [left[key] for key in sorted(left)]
    for each in sorted((each for each in bins if each.touched), key=lambda each: each.room):
        room = max(each.room, 0)
        each.endpoints += rest[:room]
        rest = rest[room:]
    while len(rest) >= MOST:
        bins.append(_Bin(None, ports, rest[:MOST]))
        rest = rest[MOST:]
    if rest:
        fitting = [each for each in bins if each.room >= len(rest)]
        if not fitting:
            fitting = [_Bin(None, ports, [])]
            bins += fitting
        min(fitting, key=lambda each: each.room).endpoints += rest
    return bins


def _names(service: Service, taken: Collection[str]) -> Iterator[str]:
    """Names for new slices, as Kubernetes' look."""
    for number in count():
        digest = hashlib.sha256(f"{service.namespace}/{service.name}/{number}".encode()).digest()
        name = f"{service.name[:247]}-{''.join(_DIGITS[byte % len(_DIGITS)] for byte in digest[:5])}"
        if name not in taken:
            yield name
