"""Who reaches whom, as a table: a row for each source, a column for each port of each destination.

What no one can take in at a glance is put together: equal rows become one, and equal columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tortie.base.errors import ConfigError
from tortie.calc.simulate.reach import Reach
from tortie.calc.simulate.services import Service, of_port
from tortie.calc.simulate.simulation import DEFAULT_PORT, Port, Simulation
from tortie.model.policy import PORT_PROTOCOLS, no_protocol, protocol_number

LARGE = 30
"""Parties from which on a table is put together."""


@dataclass(frozen=True, slots=True)
class Column:
    """A port of some destinations. The port 0 is that of a protocol without ports."""

    destinations: tuple[str, ...]
    port: Port

    @property
    def heading(self) -> str:
        """`5432`, `53/udp`, `icmp`."""
        if not self.port.port:
            return self.port.protocol
        return str(self.port.port) if self.port.protocol == "tcp" else str(self.port)


@dataclass(frozen=True, slots=True)
class Table:
    """`cells`: by row and column the IP versions over which the connection is allowed; None for a pod and itself."""

    rows: tuple[tuple[str, ...], ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[int, int], frozenset[int] | None]
    versions: tuple[int, ...]
    merged: bool


@dataclass(frozen=True, slots=True)
class Question:
    """Which connections a table is about. Without a port: what each destination declares, or 80."""

    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    versions: tuple[int, ...] = (4, 6)
    protocol: str = ""
    port: int | None = None


def table(simulation: Simulation, question: Question, large: int = LARGE) -> Table:
    """Raises ConfigError for a protocol that there is not."""
    names = tuple(dict.fromkeys((*question.sources, *question.destinations)))
    reach = Reach(simulation, [simulation.party(name) for name in names])
    ports = {name: _ports(simulation, name, question) for name in question.destinations}
    merged = len(names) > large
    if not merged:
        columns = tuple(Column((name,), port) for name in question.destinations for port in ports[name])
        rows = tuple((name,) for name in question.sources)
        numbers = {name: index for index, name in enumerate(names)}
        cells: dict[tuple[int, int], frozenset[int] | None] = {
            (i, j): None
            if row == column.destinations
            else _versions(reach, numbers[row[0]], numbers[column.destinations[0]], column.port, question)
            for i, row in enumerate(rows)
            for j, column in enumerate(columns)
        }
        return Table(rows, columns, cells, question.versions, False)
    return _merged(reach, names, ports, question)


def _ports(simulation: Simulation, name: str, question: Question) -> tuple[Port, ...]:
    protocol = question.protocol.lower()
    number = protocol_number(protocol or "tcp")
    if number is None:
        raise ConfigError(no_protocol(question.protocol), "--protocol")
    if number not in PORT_PROTOCOLS:
        return (Port(0, protocol),)
    if question.port is not None:
        return (Port(question.port, protocol or "tcp"),)
    declared = (Port(one.port, one.protocol) for one in simulation.ports(name))
    wanted = {one for one in declared if not protocol or protocol_number(one.protocol) == number}
    return tuple(sorted(wanted)) or (Port(DEFAULT_PORT, protocol or "tcp"),)


def _protocol(port: Port, version: int) -> int:
    number = protocol_number("ICMPv6" if port.protocol in ("icmp", "icmpv6") and version == 6 else port.protocol)
    assert number is not None
    return number


def _versions(reach: Reach, source: int, destination: int, port: Port, question: Question) -> frozenset[int]:
    return frozenset(
        version
        for version in question.versions
        if reach.decision(source, destination, of_port(version, _protocol(port, version), port.port)).allowed
    )


def _merged(reach: Reach, names: Sequence[str], ports: Mapping[str, tuple[Port, ...]], question: Question) -> Table:
    """Equal rows and columns as one. Of a pod and itself it is said what holds of another one like it."""
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for index in range(len(names)):
        alike[reach.signature(index)].append(index)
    classes = list(alike.values())
    reach.choose([members[0] for members in classes])
    to: dict[tuple[int, Port], list[str]] = defaultdict(list)
    for number, members in enumerate(classes):
        for index in members:
            for port in ports.get(names[index], ()):
                to[number, port].append(names[index])
    lines = _lines(reach, [members[0] for members in classes], list(to), question.versions)
    rows: dict[tuple[frozenset[int], ...], list[str]] = defaultdict(list)
    for number, members in enumerate(classes):
        inside = [names[index] for index in members if names[index] in set(question.sources)]
        if inside:
            rows[tuple(line[number] for line in lines)] += inside
    columns: dict[Hashable, list[int]] = defaultdict(list)
    for i, (_, port) in enumerate(to):
        columns[port, tuple(lines[i])].append(i)
    destinations = list(to.values())
    ends = list(to)
    return Table(
        tuple(tuple(sorted(row)) for row in rows.values()),
        tuple(
            Column(tuple(sorted(name for i in same for name in destinations[i])), ends[same[0]][1])
            for same in columns.values()
        ),
        {(i, j): row[same[0]] for i, row in enumerate(rows) for j, same in enumerate(columns.values())},
        question.versions,
        True,
    )


def _lines(
    reach: Reach, first: Sequence[int], ends: Sequence[tuple[int, Port]], versions: Iterable[int]
) -> list[list[frozenset[int]]]:
    """For each destination and port, over which versions each class reaches it."""
    out: dict[Service, list[int]] = {}
    lines = []
    for destination, port in ends:
        line = [frozenset[int]()] * len(first)
        for version in versions:
            service = of_port(version, _protocol(port, version), port.port)
            if service not in out:
                out[service] = [reach.peers(index, "egress", service) for index in first]
            into = reach.peers(first[destination], "ingress", service)
            for number, bits in enumerate(out[service]):
                if bits >> destination & into >> number & 1:
                    line[number] |= {version}
        lines.append(line)
    return lines
