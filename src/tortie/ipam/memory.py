"""What a process has seen of its host's blocks: where the next assignment looks first, instead of at all of them.

It decides nothing. A block that is remembered is read again before it is used, and written by compare-and-swap; one
that is remembered as full is looked at before the host does without it; and after a while all is looked at anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from tortie.base.addr import Net
from tortie.model.ipam import IPAMBlockSpec, IPPool

LISTED = timedelta(seconds=30)
"""How long a host takes from the block at hand without listing its blocks: others may have given some of them up."""
FULL = timedelta(seconds=60)
"""How long a full block is taken to be full. What this process itself gives back, it knows of at once."""

Pools = tuple[str, ...]
"""A choice of pools, by CIDR."""


class Memory:
    """One for each `Ipam`."""

    def __init__(self) -> None:
        self._at_hand: dict[Pools, tuple[Net, datetime]] = {}
        self._full: dict[str, datetime] = {}
        self._uniform: set[tuple[str, str, int]] = set()

    @staticmethod
    def choice(pools: Sequence[IPPool]) -> Pools:
        return tuple(pool.spec.cidr for pool in pools)

    def at_hand(self, pools: Pools, now: datetime) -> Net | None:
        """The block that served this choice last, if all blocks were listed not long ago."""
        net, listed = self._at_hand.get(pools, (None, now))
        return net if timedelta() <= now - listed < LISTED else None

    def served(self, pools: Pools, net: Net, listed: datetime | None) -> None:
        """A block serves a choice now. `listed`: when all were looked at; None: as before."""
        before = self._at_hand.get(pools)
        when = listed or (before[1] if before else None)
        if when is not None:
            self._at_hand[pools] = (net, when)

    def saw(self, block: IPAMBlockSpec, now: datetime) -> None:
        """A block as it was read or written."""
        if block.unallocated:
            self._full.pop(block.cidr, None)
        else:
            self._full[block.cidr] = now

    def full(self, cidr: str, now: datetime) -> bool:
        """Whether a block was full not long ago."""
        seen = self._full.get(cidr)
        return seen is not None and timedelta() <= now - seen < FULL

    def uniform(self, pool: IPPool) -> bool:
        """Whether all blocks in a pool are of its size. That stays so: a pool's block size does not change."""
        return _identity(pool) in self._uniform

    def is_uniform(self, pool: IPPool) -> None:
        """A look at all blocks has found it so."""
        self._uniform.add(_identity(pool))


def _identity(pool: IPPool) -> tuple[str, str, int]:
    return pool.metadata.uid or pool.name, pool.spec.cidr, pool.spec.blocks
