"""What a look at a node and its way to others finds, as values. What was not looked at is empty, and in `skipped`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tortie.base.addr import IP, Net


@dataclass(frozen=True, slots=True)
class HostRoute:
    """A route of this node in its main table. `device` is a name, "" where there is none; `protocol` a number."""

    dst: Net
    device: str
    protocol: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """Another node. `host` is its public address, `ends` are addresses that it has in the tunnel `device`; () and ""
    where packets to it need none. `largest` is what a packet between the nodes may come to, in bytes."""

    node: str
    host: IP
    ends: tuple[IP, ...] = ()
    device: str = ""
    largest: int = 0


@dataclass(frozen=True, slots=True)
class Reach:
    """How far packets to a node come. `end` is the one of its ends that answers, None for none. `passes`: bytes of the
    largest packet that gets to its host uncut; None where that was not tried."""

    target: Target
    host_answers: bool
    end: IP | None = None
    passes: int | None = None


class Tcp(StrEnum):
    """Of TCP inside of a VXLAN tunnel through which ping passes."""

    ANSWERED = "answered"
    MENDED = "mended"
    """It is answered since checksums are no longer left to the hardware."""
    UNANSWERED = "unanswered"
    """Whoever fills in the checksums."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A try of TCP to a node's end of a tunnel."""

    reach: Reach
    tcp: Tcp


@dataclass(frozen=True, slots=True)
class Seen:
    """All of it. `chains` are objects of `nft -j list chains`. `rules` are those of `nft -j list table`, by table,
    where a chain drops what is forwarded."""

    routes: tuple[HostRoute, ...] = ()
    chains: tuple[Mapping[str, Any], ...] = ()
    rules: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    reaches: tuple[Reach, ...] = ()
    tried: tuple[Tried, ...] = ()
    skipped: tuple[str, ...] = ()
