"""Who is behind a service: what its EndpointSlices say, and which of them a connection from this node may get.

    ready ones                                  not said is ready
      of those, where all of them have hints    the ones for this node, else the ones for its zone
    none ready                                  those that end, but still serve

The choice is made for the whole cluster and, apart from it, for this node alone, where hints do not count. It is
kube-proxy's; so is what makes two endpoints one: address and port.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tortie.base.addr import IP
from tortie.calc.proxy.frontends import skipped, unreachable
from tortie.calc.proxy.state import Backend, ServiceKey
from tortie.model.policy import PROTOCOLS
from tortie.model.service import Endpoint, EndpointSlice, ForName

PortKey = tuple[int, str, int]
"""IP version, the port's name, protocol number: by these a service's port finds its endpoints."""

NOWHERE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint at one port. `order` is its address and port as one number. `draining`: it ends, but still serves.
    `zones`, `nodes`: the hints."""

    order: int
    backend: Backend
    ready: bool
    draining: bool
    zones: frozenset[str] = NOWHERE
    nodes: frozenset[str] = NOWHERE


Candidates = tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """What counts of an EndpointSlice. Candidates are in the order of their addresses and ports."""

    service: ServiceKey
    ports: Mapping[PortKey, Candidates]
    hinted: bool = False
    refused: tuple[str, ...] = ()
    """Addresses at which nobody can be, with their places in the slice."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Who is got: by anybody, and by who is to get one of this node only. `anywhere`: somebody serves."""

    cluster: tuple[Backend, ...] = ()
    local: tuple[Backend, ...] = ()
    anywhere: bool = False


def offer(one: EndpointSlice, node: str) -> Offer | None:
    """None for a slice that is of no service, of names instead of addresses, or not for the node's proxy."""
    version = one.version
    if not one.service or version is None or skipped(one.labels):
        return None
    refused: list[str] = []
    spots = [*_spots(one.endpoints, version, refused)]
    ports: dict[PortKey, Candidates] = {}
    for port in one.ports:
        if port.port:  # without a number it is none that a packet could go to
            key = version, port.name, PROTOCOLS[port.protocol]
            ports[key] = _united((ports.get(key, ()), _at(spots, port.port)), node)
    hinted = any(endpoint.hints is not None for endpoint in one.endpoints)
    return Offer((one.namespace, one.service), ports, hinted, tuple(refused))


def _spots(endpoints: Iterable[Endpoint], version: int, refused: list[str]) -> Iterator[tuple[IP, Endpoint]]:
    """The first address of each counts, as Kubernetes says."""
    for number, endpoint in enumerate(endpoints):
        if not endpoint.addresses:
            continue
        ip = endpoint.ip(version)
        if ip is None or unreachable(ip):
            refused.append(f'endpoints[{number}].addresses[0] "{endpoint.addresses[0]}"')
        else:
            yield ip, endpoint


def _at(spots: Iterable[tuple[IP, Endpoint]], port: int) -> Iterator[Candidate]:
    for ip, endpoint in spots:
        says, hints = endpoint.conditions, endpoint.hints
        yield Candidate(
            int(ip) << 16 | port,
            Backend(ip, port, endpoint.node_name),
            says.ready is not False,
            says.serving is not False and says.terminating is True,
            _names(hints.for_zones) if hints is not None else NOWHERE,
            _names(hints.for_nodes) if hints is not None else NOWHERE,
        )


def _names(hints: tuple[ForName, ...]) -> frozenset[str]:
    return frozenset(hint.name for hint in hints) if hints else NOWHERE


def _united(lists: Iterable[Iterable[Candidate]], node: str) -> Candidates:
    """All of them once, in order. Of two that are the same, the one of this node counts, then one that is ready, then
    one that drains, then the first."""
    found: dict[int, Candidate] = {}
    for candidates in lists:
        for one in candidates:
            known = found.setdefault(one.order, one)
            if known is not one and _weight(one, node) > _weight(known, node):
                found[one.order] = one
    return tuple(found[order] for order in sorted(found))


def _weight(one: Candidate, node: str) -> tuple[bool, bool, bool]:
    return one.backend.node == node, one.ready, one.draining


def merged(offers: Sequence[Offer], node: str) -> Mapping[PortKey, Candidates]:
    """What all slices of a service offer together. Which of them comes first matters only where two contradict."""
    if len(offers) == 1:
        return offers[0].ports
    lists: dict[PortKey, list[Candidates]] = {}
    for one in offers:
        for key, candidates in one.ports.items():
            lists.setdefault(key, []).append(candidates)
    return {key: of[0] if len(of) == 1 else _united(of, node) for key, of in lists.items()}


def choose(candidates: Candidates, node: str, zone: str) -> Choice:
    """`node` "" and `zone` "": nobody knows, and nothing is there."""
    ready = [one for one in candidates if one.ready]
    draining = [one for one in candidates if one.draining]
    chosen = narrowed(ready, node, zone) or draining
    here = [one for one in ready if node and one.backend.node == node]
    here = here or [one for one in draining if node and one.backend.node == node]
    cluster = tuple(one.backend for one in chosen)
    return Choice(cluster, tuple(one.backend for one in here), bool(chosen))


def narrowed(ready: Sequence[Candidate], node: str, zone: str) -> Sequence[Candidate]:
    """Those that hints leave. Hints count only where every ready endpoint has some and one of them means us."""
    for_node = [one for one in ready if node in one.nodes]
    if for_node and all(one.nodes for one in ready):
        return for_node
    for_zone = [one for one in ready if zone in one.zones]
    if for_zone and all(one.zones for one in ready):
        return for_zone
    return ready


def ready_here(ports: Mapping[PortKey, Candidates], node: str) -> int:
    """How many endpoints of this node are ready. One that has an address of each IP version is one."""
    found: dict[int, set[IP]] = {4: set(), 6: set()}
    for (version, _, _), candidates in ports.items():
        found[version].update(one.backend.ip for one in candidates if one.ready and node and one.backend.node == node)
    return max(map(len, found.values()))


def whereabouts(ports: Mapping[PortKey, Candidates], version: int) -> frozenset[str]:
    """The nodes that have ready endpoints; where none has, those on which one still serves."""
    every = [one for key, candidates in ports.items() if key[0] == version for one in candidates]
    ready = frozenset(one.backend.node for one in every if one.ready)
    return (ready or frozenset(one.backend.node for one in every if one.draining)) - {""}
