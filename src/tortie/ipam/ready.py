"""Addresses that a node holds ready for pods to come: how many, under which handle, and what they look like. Pure.

They are assigned in IPAM like any other, in blocks of the node, so that nobody else gets them; a pod that takes one
need not wait for a datastore. What a node holds ready in no shelf of its agent is given back when the agent starts.

    asked for lately ─► goal ─┐
    free in the pools ─► ceiling ─┴─► Order: so many for those who wait, so many more if the block at hand has them
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tortie.base.addr import Net, within
from tortie.ipam.pools import Reserved
from tortie.model.ipam import IPPool

QUIET = 4
"""Held ready when pods come one by one."""
MOST = 64
"""Held ready in a burst: a block of the usual size."""
WINDOW = 10.0
"""Seconds of the past that say how many pods will come."""
BURST = 16
"""Pods in a window from which on a block may be claimed before it is needed."""
IDLE = 60.0
"""Seconds without a pod after which all is given back."""
SHARE = 4
"""At most one in so many free addresses of the pools is held ready."""


def ready_handle(node: str) -> str:
    """The handle that a node's agent holds addresses under until they are a container's."""
    return f"tortie-ready-{node}"


@dataclass(frozen=True, slots=True)
class Shelf:
    """What a node knows of one kind of request: addresses ready, calls that wait, calls in the last WINDOW seconds, and
    seconds since the last."""

    ready: int
    waiting: int
    recent: int
    idle: float


@dataclass(frozen=True, slots=True)
class Order:
    """Assign `wanted`, claiming a block for them only if `claim`; up to `ahead` more if the last block has them."""

    wanted: int = 0
    ahead: int = 0
    claim: bool = True

    def __bool__(self) -> bool:
        return self.wanted > 0


def goal(recent: int, most: int = MOST) -> int:
    """How many to hold ready."""
    return min(most, max(QUIET, 2 * recent))


def order(shelf: Shelf, ceiling: int, most: int = MOST) -> Order:
    """What to assign now. `ceiling`: how many may be ready. Who waits is served whatever it says.

    >>> order(Shelf(ready=0, waiting=1, recent=1, idle=0), ceiling=1000)
    Order(wanted=1, ahead=4, claim=True)
    >>> order(Shelf(ready=3, waiting=0, recent=1, idle=0), ceiling=1000)
    Order(wanted=0, ahead=0, claim=True)
    """
    target = max(0, min(goal(shelf.recent, most), ceiling))
    if shelf.waiting:
        return Order(shelf.waiting, target)
    if shelf.idle > WINDOW or shelf.ready * 2 > target:
        return Order()
    return Order(max(0, target - shelf.ready), 0, claim=shelf.recent >= BURST)


def surplus(shelf: Shelf, ceiling: int, most: int = MOST) -> int:
    """How many of those that are ready to give back: what a burst has left, and all when nobody has come for long."""
    if shelf.waiting:
        return 0
    if shelf.idle > IDLE:
        return shelf.ready
    if shelf.idle > WINDOW:
        return max(0, shelf.ready - max(0, min(QUIET, most, ceiling)))
    return max(0, shelf.ready - max(0, min(2 * goal(shelf.recent, most), ceiling)))


def unclaimed(pools: Iterable[IPPool], blocks: Iterable[Net], reserved: Reserved) -> int:
    """How many addresses of some pools are in no node's block and not reserved."""
    blocks = list(blocks)
    free = 0
    for pool in pools:
        net = pool.spec.net
        taken = sum(block.num_addresses for block in blocks if within(block, net))
        free += max(0, net.num_addresses - taken - reserved.count(net))
    return free
