"""How full the pools are. Pure; what `ipam show` and the metrics print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tortie.base.addr import Net, within
from tortie.ipam.allocation import READY_TYPE
from tortie.ipam.block import free_count, held_slots
from tortie.ipam.pools import Reserved
from tortie.model.ipam import IPAMBlock, IPPool

ORPHANS = "orphaned allocation blocks"
"""Under this name stand the blocks that lie in no pool, as in Calico."""


@dataclass(frozen=True, slots=True)
class BlockUsage:
    """Addresses of one block. What cools down is in use; what its node holds ready for pods to come is available."""

    block: IPAMBlock
    capacity: int
    in_use: int
    reserved: int
    available: int
    ready: int = 0


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """Addresses of one pool, those that no block holds yet included. `net` is None for the orphans."""

    name: str
    net: Net | None
    capacity: int
    in_use: int
    reserved: int
    available: int
    blocks: tuple[BlockUsage, ...]

    @property
    def ready(self) -> int:
        """How many of the available ones are held ready by nodes."""
        return sum(each.ready for each in self.blocks)


def usage(pools: Sequence[IPPool], blocks: Iterable[IPAMBlock], reserved: Reserved) -> list[PoolUsage]:
    """Each pool, then the orphans if there are any."""
    left = sorted(blocks, key=lambda block: (block.spec.net.version, int(block.spec.net.network_address)))
    found: list[PoolUsage] = []
    for pool in pools:
        net = pool.spec.net
        inside = tuple(_block(block, reserved) for block in left if within(block.spec.net, net))
        left = [block for block in left if not within(block.spec.net, net)]
        unclaimed = net.num_addresses - sum(each.capacity for each in inside)
        unclaimed -= reserved.count(net) - sum(each.reserved for each in inside)
        found.append(
            PoolUsage(
                name=pool.name,
                net=net,
                capacity=net.num_addresses,
                in_use=sum(each.in_use for each in inside),
                reserved=reserved.count(net),
                available=unclaimed + sum(each.available for each in inside),
                blocks=inside,
            )
        )
    if left:
        orphans = tuple(_block(block, reserved) for block in left)
        found.append(
            PoolUsage(
                name=ORPHANS,
                net=None,
                capacity=sum(each.capacity for each in orphans),
                in_use=sum(each.in_use for each in orphans),
                reserved=sum(each.reserved for each in orphans),
                available=0,
                blocks=orphans,
            )
        )
    return found


def _block(block: IPAMBlock, reserved: Reserved) -> BlockUsage:
    net, spec = block.spec.net, block.spec
    ready = sum(held.secondary.get("type", "") == READY_TYPE for _, held in held_slots(spec))
    return BlockUsage(
        block=block,
        capacity=net.num_addresses,
        in_use=net.num_addresses - len(spec.unallocated) - ready,
        reserved=reserved.count(net),
        available=free_count(spec, reserved.ordinals(net)) + ready,
        ready=ready,
    )
