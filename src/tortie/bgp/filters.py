"""What a BGPFilter says of routes, as values: rules that are asked in order, of which the first that matches decides.

    import   what a peer sends         export   what a peer is told, before anything else is asked

A rule's conditions must all hold; a rule without one holds always. Where none holds the session goes on as without a
filter. The meaning of priorities: they are kernel metrics, and travel between nodes as BGP's local preference.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from tortie.base.addr import Net

TOP = 2147483647
"""A route's local preference and its priority (metric) add up to this, as in Calico."""

MAX_NAME = 45
"""Characters of a filter's name that fit into BIRD's symbols, which have 64 at most."""
_KEPT, _DIGEST = 28, 16
"""Of a longer name: characters from its beginning, and of its digest."""


class Direction(StrEnum):
    IMPORT = "import"
    EXPORT = "export"


@dataclass(frozen=True, slots=True)
class AddCommunity:
    """A pair of 16 bits each, or a large community's three of 32."""

    community: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PrependPath:
    """AS numbers that the path begins with then, in this order."""

    path: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SetPriority:
    """1 to 2147483646; the smaller wins."""

    priority: int


Operation = AddCommunity | PrependPath | SetPriority


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterRule:
    """One rule. What is None or empty is no condition.

    `net` with `inside`: the network and everything in it; without: itself alone; `negated`: everything else.
    `lengths`: the shortest and the longest prefix of what is inside. `learned`: came over BGP. `interface`: a name or a
    pattern with `*`. `same_as`: of iBGP sessions (True) or eBGP sessions (False). `as_path`: what the path begins with.
    `operations` are done before a route is accepted.
    """

    accept: bool
    net: Net | None = None
    inside: bool = True
    negated: bool = False
    lengths: tuple[int, int] | None = None
    learned: bool = False
    interface: str = ""
    same_as: bool | None = None
    community: tuple[int, ...] = ()
    as_path: tuple[int, ...] = ()
    priority: int | None = None
    operations: tuple[Operation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A BGPFilter, read."""

    name: str
    import4: tuple[FilterRule, ...] = ()
    export4: tuple[FilterRule, ...] = ()
    import6: tuple[FilterRule, ...] = ()
    export6: tuple[FilterRule, ...] = ()

    def rules(self, direction: Direction, version: int) -> tuple[FilterRule, ...]:
        """Those for one direction and IP version 4 or 6."""
        if direction is Direction.IMPORT:
            return self.import4 if version == 4 else self.import6
        return self.export4 if version == 4 else self.export6


def symbol(name: str, direction: Direction, version: int) -> str:
    """What BIRD's function is called: `bgp_NAME_importFilterV4`, never more than 64 characters.

    >>> symbol("rack", Direction.IMPORT, 4)
    'bgp_rack_importFilterV4'
    """
    if len(name) > MAX_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest().upper()
        name = f"{name[:_KEPT]}_{digest[:_DIGEST]}"
    return f"bgp_{name}_{direction.value}FilterV{version}"
