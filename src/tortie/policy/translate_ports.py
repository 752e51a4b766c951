"""Protocols and ports of a rule, in any of the APIs' spellings, as numbers, ranges and names."""

from __future__ import annotations

from collections.abc import Iterable

from tortie.base.errors import ConfigError
from tortie.model.policy import port_range, protocol_number

Ranges = tuple[tuple[int, int], ...]


def number_of(protocol: int | str | None) -> int | None:
    """Its number; None for any. Raises ConfigError: what is not a protocol must not come to mean any."""
    if protocol is None:
        return None
    number = protocol_number(protocol)
    if number is None:
        raise ConfigError(f'"{protocol}" is not a protocol', "protocol")
    return number


def ports_of(ports: Iterable[int | str]) -> tuple[Ranges, tuple[str, ...]]:
    """The ranges and the names among ports. Raises ConfigError."""
    ranges, names = [], []
    for port in ports:
        match port_range(port):
            case str() as name:
                names.append(name)
            case first, last:
                ranges.append((first, last))
    return coalesced(ranges), tuple(sorted(set(names)))


def coalesced(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same ports in the fewest ranges, sorted."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)
