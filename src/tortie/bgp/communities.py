"""Communities on what a node announces: BGPConfiguration's prefixAdvertisements."""

from __future__ import annotations

from dataclasses import dataclass

from tortie.base.addr import Net


@dataclass(frozen=True, slots=True)
class Advertisement:
    """Communities to attach to what is announced from inside `cidr`: pairs are standard ones, triples large ones."""

    cidr: Net
    communities: tuple[tuple[int, ...], ...]
