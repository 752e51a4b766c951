"""All packets that there are, in as few lots as policies can tell apart: a verdict on one of each is one on all.

What a rule asks of a packet beside its addresses is the IP version, the protocol, ports and ICMP types. Ports are cut
wherever a range of some rule begins or ends, or somebody's named port is: between two cuts no rule sees a difference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from tortie.base.addr import IP
from tortie.model.policy import PORT_PROTOCOLS, PROTOCOLS
from tortie.policy.rules import PolicyRule, SetRef
from tortie.policy.verdict import Packet

OTHER = 256
"""Stands for every protocol that no rule names: a number that none has."""
FREE = 200
"""From here on nobody uses ICMP types and codes: one stands for all that no rule names."""
ECHO = {4: 8, 6: 128}
ICMP = {4: 1, 6: 58}
LAST_PORT = 65535
SOURCE_PORT = 40000
"""Where connections come from unless some rule looks at that: a port of no service."""

_NAMES = {number: name.lower() for name, number in PROTOCOLS.items()} | {OTHER: "other protocols"}


@dataclass(frozen=True, slots=True, order=True)
class Service:
    """Packets that no rule tells apart: a range of destination ports, and one of source ports where that matters."""

    version: int
    protocol: int
    first: int = 0
    last: int = 0
    source: tuple[int, int] = (0, LAST_PORT)
    icmp: tuple[int, int] = (0, 0)

    def packet(self, source: IP, destination: IP) -> Packet:
        """One of them."""
        low, high = self.source
        port = SOURCE_PORT if low <= SOURCE_PORT <= high else high
        return Packet(source, destination, self.protocol, port, self.first or self.last, *self.icmp)


def of_port(version: int, protocol: int, port: int) -> Service:
    """The one packet that a question about a port means."""
    if protocol in PORT_PROTOCOLS:
        return Service(version, protocol, port, port, (SOURCE_PORT, SOURCE_PORT))
    return Service(version, protocol, icmp=(ECHO[version], 0) if protocol == ICMP[version] else (0, 0))


class Cuts:
    """Where rules cut the packets apart. `add` every rule that counts, then ask."""

    def __init__(self) -> None:
        self.protocols: set[int] = set()
        self.icmp: set[tuple[int | None, int | None]] = set()
        self._ports: dict[int, set[int]] = defaultdict(set)
        self._sources: dict[int, set[int]] = defaultdict(set)

    def add(self, rule: PolicyRule, named: Callable[[SetRef], Iterable[tuple[int, int]]]) -> None:
        """`named`: protocol and port of everything that a set of named ports holds."""
        self.protocols.update(number for number in (rule.protocol, rule.not_protocol) if number is not None)
        self.icmp.update(icmp for icmp in (rule.icmp, rule.not_icmp) if icmp is not None)
        for side, cuts in ((rule.source, self._sources), (rule.destination, self._ports)):
            for first, last in (*side.ports, *side.not_ports):
                for protocol in PORT_PROTOCOLS if rule.protocol is None else (rule.protocol,):
                    self.protocols.add(protocol)
                    cuts[protocol] |= {first, last + 1}
            for ref in side.refs:
                for protocol, port in named(ref):
                    self.protocols.add(protocol)
                    cuts[protocol] |= {port, port + 1}

    def include(self, other: Cuts) -> None:
        self.protocols |= other.protocols
        self.icmp |= other.icmp
        for mine, theirs in ((self._ports, other._ports), (self._sources, other._sources)):
            for protocol, cuts in theirs.items():
                mine[protocol] |= cuts

    def add_port(self, protocol: int, port: int) -> None:
        self.protocols.add(protocol)
        self._ports[protocol] |= {port, port + 1}

    def services(self) -> Iterator[Service]:
        """Every packet there is, once."""
        for version in (4, 6):
            for protocol in sorted({*PORT_PROTOCOLS[:2], ICMP[version], OTHER, *self.protocols} - {ICMP[10 - version]}):
                if protocol in PORT_PROTOCOLS:
                    for source in _ranges(self._sources[protocol]):
                        for first, last in _ranges(self._ports[protocol]):
                            yield Service(version, protocol, first, last, source)
                elif protocol == ICMP[version]:
                    yield from (Service(version, protocol, icmp=icmp) for icmp in sorted(self._types(version)))
                else:
                    yield Service(version, protocol)

    def lot(self, service: Service) -> Service:
        """The first of the services that these rules do not tell from the given one; it need not be cut as finely."""
        protocol = service.protocol if service.protocol in self.protocols else OTHER
        icmp = service.icmp if self.icmp else (0, 0)
        if protocol not in PORT_PROTOCOLS:
            return Service(service.version, protocol, icmp=icmp)
        first = max((cut for cut in self._ports[protocol] if cut <= service.first), default=0)
        low = max((cut for cut in self._sources[protocol] if cut <= service.source[0]), default=0)
        return Service(service.version, protocol, first, first, (low, low))

    def _types(self, version: int) -> set[tuple[int, int]]:
        """(type, code) of ICMP: echo request, all that rules name, and one that none names."""
        types = {ECHO[version]} | {kind for kind, _ in self.icmp if kind is not None}
        named = {code for _, code in self.icmp if code is not None}
        codes = {0, *named}
        if self.icmp:
            types.add(next(kind for kind in range(FREE, 255) if kind not in types))
        if named:
            codes.add(next(code for code in range(FREE, 256) if code not in codes))
        return {(kind, code) for kind in types for code in codes}


def _ranges(cuts: set[int]) -> list[tuple[int, int]]:
    edges = sorted({0, LAST_PORT + 1, *(cut for cut in cuts if cut <= LAST_PORT)})
    return [(first, after - 1) for first, after in pairwise(edges)]


def words(services: Iterable[Service], universe: Collection[Service]) -> str:
    """How a person says which packets are meant: `tcp 5432`, `all but tcp 22`, `udp 53 (IPv4)`."""
    wanted = set(services)
    by_version = {v: {s for s in wanted if s.version == v} for v in (4, 6)}
    all_of = {v: {s for s in universe if s.version == v} for v in (4, 6)}
    texts = {v: _of_version(by_version[v], all_of[v]) for v in (4, 6) if all_of[v]}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{text} (IPv{v})" for v, text in texts.items() if by_version[v])


def _of_version(wanted: set[Service], universe: set[Service]) -> str:
    if not wanted:
        return ""
    if wanted == universe:
        return "everything"
    protocols = sorted({service.protocol for service in universe}, key=_rank)
    said, left = (
        ", ".join(text for protocol in protocols if (text := _of_protocol(protocol, lots, universe)))
        for lots in (wanted, universe - wanted)
    )
    if any(service.protocol == OTHER for service in wanted):
        return min(said, f"everything but {left}", key=len)
    return said


def _rank(protocol: int) -> tuple[bool, int]:
    """Protocols in order, ICMP of both IP versions in the same place, all that no rule names last."""
    return protocol == OTHER, ICMP[4] if protocol == ICMP[6] else protocol


def _of_protocol(protocol: int, wanted: set[Service], universe: set[Service]) -> str:
    mine = sorted(service for service in wanted if service.protocol == protocol)
    every = [service for service in universe if service.protocol == protocol]
    name = "icmp" if protocol == ICMP[6] else _NAMES.get(protocol, f"protocol {protocol}")
    if not mine or len(mine) == len(every):
        return name if mine else ""
    if protocol not in PORT_PROTOCOLS:
        return f"{name} {_icmp_words(mine, every)}"
    by_source: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for service in mine:
        by_source[service.source].append((service.first, service.last))
    every_source = {service.source for service in every}
    same = len(by_source) == len(every_source) and len({tuple(ports) for ports in by_source.values()}) == 1
    if same:
        return f"{name} {_port_words(next(iter(by_source.values())))}"
    parts = (f"{_port_words(ports)} from {_port_words([source])}" for source, ports in by_source.items())
    return f"{name} {' and '.join(parts)}"


def _port_words(ranges: list[tuple[int, int]]) -> str:
    """`80,443`, `1-79`, and `but 80` when nearly all ports are meant."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first == joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    if joined == [(0, LAST_PORT)]:
        return "all ports"
    if joined[0][0] == 0 and joined[-1][1] == LAST_PORT:
        return "but " + _list([(a[1] + 1, b[0] - 1) for a, b in pairwise(joined)])
    return _list(joined)


def _list(ranges: list[tuple[int, int]]) -> str:
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _icmp_words(services: list[Service], universe: list[Service]) -> str:
    """`type 8`, `type 3 code 1`, and the rest in one word."""
    said = []
    for kind in sorted({service.icmp[0] for service in services}):
        codes = sorted(service.icmp[1] for service in services if service.icmp[0] == kind)
        name = f"type {kind}" if kind < FREE else "other types"
        if len(codes) < sum(service.icmp[0] == kind for service in universe):
            name += " code " + "/".join(str(code) if code < FREE else "other" for code in codes)
        said.append(name)
    return ", ".join(said)
