"""The blocks that one assignment tries, in order: the host's own, a new one, one that another host does not use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from tortie.base.addr import Net, parse_net
from tortie.base.errors import Conflict, NotFound, Unavailable
from tortie.ipam import affinity as claims
from tortie.ipam.block import free_count, is_empty, moment
from tortie.ipam.ledger import ATTEMPTS, Ledger, exhausted, pause
from tortie.ipam.memory import Memory
from tortie.ipam.owner import Owner
from tortie.ipam.pools import Reserved, in_walk_order, walk
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPPool

MIN_AGE = timedelta(seconds=60)
"""How long an empty block is safe from other hosts after it was claimed: its first pod may be on its way."""


LOOKS = 32
"""Places looked at one by one for a new block, before all blocks are."""


class NoBlock(Unavailable):
    """The host has no block with a free address and may not claim one."""


class BlockLimit(NoBlock):
    """The host holds as many blocks as it may."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"Need to allocate an IPAM block but could not - limit of {limit} blocks reached for this node"
        )


@dataclass(frozen=True, slots=True)
class Ground:
    """Where and for whom to look. `limit` is how many blocks of these pools the host may hold."""

    owner: Owner
    pools: tuple[IPPool, ...]
    reserved: Reserved
    limit: int
    auto_allocate: bool
    seed: int

    def free(self, block: IPAMBlock) -> int:
        """How many addresses of a block can be assigned."""
        return free_count(block.spec, self.reserved.ordinals(block.spec.net))


@dataclass(frozen=True, slots=True)
class Claims:
    """The host's affinities to blocks of the ground's pools, and what blocks anybody has claimed."""

    own: tuple[BlockAffinity, ...]
    taken: frozenset[Net]


class Search:
    """Remembers which of the host's own blocks have been tried. The block that served last is tried before they are
    listed by `claims`, and those that were full a moment ago only when nothing else is left."""

    def __init__(self, ledger: Ledger, ground: Ground, claims: Callable[[], Awaitable[Claims]]) -> None:
        self._ledger = ledger
        self._ground = ground
        self._claims = claims
        self._pools = Memory.choice(ground.pools)
        self._listed: datetime | None = None
        self._own: list[BlockAffinity] = []
        self._full: list[BlockAffinity] = []
        self._taken: frozenset[Net] = frozenset()
        self._tried: Net | None = None
        self._owned = 0

    async def next(self, least: int = 1) -> IPAMBlock | None:
        """A block of the host with so many free addresses; None when no pool has one left.

        Raises BlockLimit, NoBlock.
        """
        block = await self._at_hand(least)
        if block is None and self._listed is None:
            await self._list(least)
        if block is None:
            block = await self._first(self._own, least)
        if block is None and (self._owned >= self._ground.limit or not self._ground.auto_allocate):
            block = await self._first(self._full, least)
            if block is None and self._owned >= self._ground.limit:
                raise BlockLimit(self._ground.limit)
            if block is None:
                raise NoBlock("failed to find or claim a block: autoAllocateBlocks is false")
        if block is None:
            block = await self._claim()
            self._owned += block is not None
        if block is None:
            block = await self._first(self._full, least)
        if block is not None:
            self._ledger.memory.served(self._pools, block.spec.net, self._listed)
        return block

    async def _at_hand(self, least: int) -> IPAMBlock | None:
        """The block that served last, if it serves again."""
        net = self._ledger.memory.at_hand(self._pools, self._ledger.now())
        if net is None or self._listed is not None or self._tried is not None:
            return None
        self._tried = net
        with suppress(NotFound):
            block = await self._own_block(await self._ledger.affinity(self._ground.owner, net))
            if block is not None and self._ground.free(block) >= least:
                return block
        return None

    async def _list(self, least: int) -> None:
        """Looks which blocks are the host's. Full ones are put aside, unless they would do."""
        self._listed, memory = self._ledger.now(), self._ledger.memory
        claims = await self._claims()
        self._owned, self._taken = len(claims.own), claims.taken
        for affinity in reversed(claims.own):
            full = least > 0 and memory.full(affinity.spec.cidr, self._listed)
            (self._full if full else self._own).append(affinity)

    async def _first(self, own: list[BlockAffinity], least: int) -> IPAMBlock | None:
        while own:
            block = await self._own_block(own.pop())
            if block is not None and self._ground.free(block) >= least:
                return block
        return None

    async def _own_block(self, affinity: BlockAffinity) -> IPAMBlock | None:
        """The block of an affinity that was listed, or None if it is the host's no more."""
        net = parse_net(affinity.spec.cidr)
        if self._ground.reserved.around(net):
            return None
        for tried in range(ATTEMPTS):
            await pause(tried)
            try:
                return await claims.block_of(self._ledger, affinity)
            except (claims.StaleAffinity, claims.ClaimedElsewhere):
                break
            except Conflict:
                pass
            try:
                affinity = await self._ledger.affinity(Owner.of(affinity), net)
            except NotFound:
                break
        self._owned -= 1
        return None

    async def _claim(self) -> IPAMBlock | None:
        """A block that has just become the host's."""
        for tried in range(ATTEMPTS):
            await pause(tried)
            net = await self._usable()
            if net is None:
                return None
            with suppress(claims.ClaimedElsewhere, claims.StaleAffinity):
                return await claims.obtain(self._ledger, self._ground.owner, net)
        raise exhausted(f"find a block for {self._ground.owner}")

    async def _usable(self) -> Net | None:
        """Where to claim a block. An empty one of another host is taken from it when there is nothing else."""
        net = await self._untouched()
        if net is not None:
            return net
        blocks = {block.spec.net: block for block in await self._ledger.blocks()}
        idle: list[IPAMBlock] = []
        for pool in self._ground.pools:
            for net, block in self._places(pool, blocks):
                if block is None:
                    return net
                if not self._ground.free(block):
                    continue
                if block.spec.affinity == str(self._ground.owner):
                    return net
                if is_empty(block.spec) and rested(block, self._ledger.now()):
                    idle.append(block)
        for block in idle:
            with suppress(Conflict):
                await self._take(block)
                return block.spec.net
        return None

    async def _untouched(self) -> Net | None:
        """A place that nobody has claimed, if one is found without looking at all blocks."""
        looks = 0
        for pool in self._ground.pools:
            if not self._ledger.memory.uniform(pool):
                return None
            for net in walk(pool, self._ground.owner.name, self._ground.seed, self._ground.reserved):
                if net in self._taken:
                    continue
                looks += 1
                if looks > LOOKS:
                    return None
                try:
                    await self._ledger.block(net)
                except NotFound:
                    return net
        return None

    def _places(self, pool: IPPool, blocks: dict[Net, IPAMBlock]) -> Iterator[tuple[Net, IPAMBlock | None]]:
        """Where the pool's blocks are or could be, in walk order. Blocks of another size leave no place around them."""
        inside = [net for net in blocks if net.overlaps(pool.spec.net)]
        odd = [net for net in inside if net.prefixlen != pool.spec.blocks]
        if not odd:
            self._ledger.memory.is_uniform(pool)
        for net in walk(pool, self._ground.owner.name, self._ground.seed, self._ground.reserved):
            block = blocks.get(net)
            if block is not None or not any(net.overlaps(other) for other in odd):
                yield net, block

    async def _take(self, block: IPAMBlock) -> None:
        """Removes an empty block of another. Raises Conflict when it is not what it was."""
        if not block.spec.affinity:
            await claims.disown(self._ledger, block)
            return
        owner, sequence = Owner.parse(block.spec.affinity), block.spec.sequence_number
        await claims.release(self._ledger, owner, block.spec.net, require_empty=True, sequence=sequence)


async def borrowable(ledger: Ledger, ground: Ground, pool: IPPool) -> list[IPAMBlock]:
    """Blocks of a pool with a free address, whoever owns them, in walk order."""
    blocks = {block.spec.net: block for block in await ledger.blocks()}
    order = in_walk_order(blocks, pool, ground.owner.name, ground.seed)
    return [blocks[net] for net in order if ground.free(blocks[net])]


def rested(block: IPAMBlock, now: datetime) -> bool:
    """Whether an empty block may be taken from its owner."""
    claimed = block.spec.affinity_claim_time
    return not claimed or now - moment(claimed) >= MIN_AGE
