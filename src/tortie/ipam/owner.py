"""Whose a block is, as blocks and affinities say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tortie.model.ipam import BlockAffinity


@dataclass(frozen=True, slots=True)
class Owner:
    """Who a block can be affine to: a node, or something that is none (`virtual:load-balancer`)."""

    name: str
    type: Literal["host", "virtual"] = "host"

    def __str__(self) -> str:
        """As a block's `affinity` says it: `host:node1`."""
        return f"{self.type}:{self.name}"

    @classmethod
    def parse(cls, affinity: str) -> Owner:
        """The owner that a block's `affinity` names."""
        kind, _, name = affinity.partition(":")
        return cls(name, "virtual" if kind == "virtual" else "host")

    @classmethod
    def of(cls, affinity: BlockAffinity) -> Owner:
        """Whose affinity it is."""
        return cls(affinity.spec.node, affinity.spec.type or "host")


def confirmed(affinity: BlockAffinity) -> bool:
    """Whether an affinity counts as ownership. Old clusters wrote no state."""
    return affinity.spec.state in ("confirmed", "")
