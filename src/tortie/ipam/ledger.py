"""IPAM's objects in a datastore: reads, and writes that succeed only on what was read. The dull half of every flow.

Calico marks a block, affinity or handle `deleted` before it deletes it. One that was left so by a crash counts as gone
here, and whoever reads it finishes the deletion.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Literal, TypeVar

from msgspec.structs import replace

from tortie.base.addr import Net, parse_net
from tortie.base.errors import Conflict, Exists, NotFound, TortieError
from tortie.ipam import names
from tortie.ipam.block import HostReserved, bumped, collect_garbage, first_sequence, ips_of, new_block
from tortie.ipam.memory import Memory
from tortie.ipam.owner import Owner
from tortie.model.ipam import (
    BlockAffinity,
    BlockAffinitySpec,
    IPAMBlock,
    IPAMBlockSpec,
    IPAMHandle,
    IPAMHandleSpec,
)
from tortie.model.meta import Metadata
from tortie.model.store import Store

Kept = TypeVar("Kept", IPAMBlock, BlockAffinity, IPAMHandle)
State = Literal["pending", "confirmed", "pendingDeletion"]

ATTEMPTS = 100
"""How often a lost compare-and-swap is tried again, as in Calico."""
PATIENCE = 3
"""Attempts without a pause: two that meet once rarely meet again."""
LONGEST_PAUSE = 0.02
"""Seconds. Pauses are random up to a bound that grows to this, so that writers of one object spread out."""


async def pause(tried: int) -> None:
    """Before the next attempt at a compare-and-swap that was lost `tried` times."""
    if tried >= PATIENCE:
        await asyncio.sleep(random.uniform(0, min(LONGEST_PAUSE, 0.001 * tried)))


def exhausted(doing: str) -> Conflict:
    """What to raise after the last attempt."""
    return Conflict(f"{doing}: Max retries hit: others changed it {ATTEMPTS} times in a row; try again")


class HandleFull(TortieError):
    """A handle holds as many addresses of an IP version as it may."""


def held(counts: Mapping[str, int], version: int) -> int:
    """How many addresses of an IP version a handle's counts, by block, come to."""
    return sum(count for cidr, count in counts.items() if parse_net(cidr).version == version)


class Ledger:
    """Blocks, affinities and handles as one operation sees them. `cooldown` is in seconds; of each new block the host
    keeps what `kept` says. What is seen of blocks goes into `memory`."""

    def __init__(
        self,
        store: Store,
        now: Callable[[], datetime],
        cooldown: int = 0,
        kept: HostReserved | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.store = store
        self.now = now
        self.cooldown = cooldown
        self.kept = kept
        self.memory = memory or Memory()

    async def _live(self, obj: Kept) -> Kept:
        """The object, unless its deletion has begun: that is finished, and NotFound raised."""
        if obj.spec.deleted:
            with suppress(NotFound, Conflict):
                await self.store.delete(type(obj), obj.name, revision=obj.metadata.resource_version)
            raise NotFound(f"{obj.title} is being deleted")
        return obj

    async def _update(self, obj: Kept) -> Kept:
        """Raises Conflict, also when the object is gone."""
        try:
            return await self.store.update(obj)
        except NotFound as error:
            raise Conflict(str(error)) from None

    async def _delete(self, obj: Kept) -> None:
        """Deletes what was read; that it is gone is fine. Raises Conflict."""
        with suppress(NotFound):
            await self.store.delete(type(obj), obj.name, revision=obj.metadata.resource_version)

    # Blocks

    def collected(self, block: IPAMBlock) -> IPAMBlock:
        """The block with what has cooled down made free."""
        spec = collect_garbage(block.spec, self.now(), self.cooldown)
        return block if spec is block.spec else replace(block, spec=spec)

    async def block(self, net: Net) -> IPAMBlock:
        """Raises NotFound."""
        block = self.collected(await self._live(await self.store.get(IPAMBlock, names.block_name(net))))
        self.memory.saw(block.spec, self.now())
        return block

    async def blocks(self) -> list[IPAMBlock]:
        """All blocks there are."""
        found = []
        for block in (await self.store.list(IPAMBlock)).items:
            with suppress(NotFound):
                found.append(self.collected(await self._live(block)))
        return found

    async def create_block(self, net: Net, owner: Owner) -> IPAMBlock:
        """A new block of an owner, all free. Raises Exists."""
        now = self.now()
        spec = new_block(net, str(owner), now, first_sequence(now), self.kept)
        return await self.store.create(IPAMBlock(metadata=Metadata(name=names.block_name(net)), spec=spec))

    async def write_block(self, block: IPAMBlock, spec: IPAMBlockSpec | None = None) -> IPAMBlock:
        """Writes `spec` (as it is: only a new sequence number) over the block that was read. Raises Conflict."""
        written = await self._update(replace(block, spec=bumped(spec or block.spec)))
        self.memory.saw(written.spec, self.now())
        return written

    async def write_assignment(
        self, block: IPAMBlock, spec: IPAMBlockSpec, handle: str | None, count: int, most: int = 0
    ) -> None:
        """Writes a block in which a handle has got `count` addresses, counting them first. Raises Conflict, HandleFull.

        Only a write that is known to have failed is counted back: after Unavailable or a crash the handle may count
        too many.
        """
        if handle is None:
            await self.write_block(block, spec)
            return
        await self.count_up(handle, block.spec.net, count, most)
        try:
            await self.write_block(block, spec)
        except Conflict:
            await self.count_down(handle, block.spec.net, count)
            raise

    async def delete_block(self, block: IPAMBlock) -> None:
        """Raises Conflict when it has changed since it was read."""
        await self._delete(block)

    # Affinities

    async def affinity(self, owner: Owner, net: Net) -> BlockAffinity:
        """Raises NotFound."""
        return await self._live(await self.store.get(BlockAffinity, names.affinity_name(owner.name, net)))

    async def affinities(self, owner: Owner) -> list[BlockAffinity]:
        """Everything that an owner has claimed, in whatever state the claim is."""
        return [affinity for affinity in await self.all_affinities() if Owner.of(affinity) == owner]

    async def all_affinities(self) -> list[BlockAffinity]:
        """Everything that anybody has claimed."""
        return [affinity for affinity in (await self.store.list(BlockAffinity)).items if not affinity.spec.deleted]

    async def create_affinity(self, owner: Owner, net: Net) -> BlockAffinity:
        """A pending affinity. Raises Exists."""
        name, labels = names.affinity_name(owner.name, net), names.affinity_labels(owner, net.version)
        spec = BlockAffinitySpec(cidr=str(net), node=owner.name, state="pending", type=owner.type)
        return await self.store.create(BlockAffinity(metadata=Metadata(name=name, labels=labels), spec=spec))

    async def write_affinity(self, affinity: BlockAffinity, state: State) -> BlockAffinity:
        """Raises Conflict, also when the affinity is gone."""
        return await self._update(replace(affinity, spec=replace(affinity.spec, state=state)))

    async def delete_affinity(self, affinity: BlockAffinity) -> None:
        """Deletes it if it is still what was read; else somebody is using it again, which is just as well."""
        with suppress(Conflict):
            await self._delete(affinity)

    # Handles

    async def handle(self, handle: str) -> IPAMHandle:
        """Raises NotFound."""
        return await self._live(await self.store.get(IPAMHandle, names.handle_name(handle)))

    async def count_up(self, handle: str, net: Net, count: int, most: int = 0) -> None:
        """Notes that a handle is about to hold `count` more addresses of a block. Comes before writing the block.

        Raises HandleFull when it would hold more than `most` of the IP version (0: any number).
        """
        spec = IPAMHandleSpec(handle_id=handle, block={str(net): count})
        for tried in range(ATTEMPTS):
            await pause(tried)
            with suppress(Exists):
                await self.store.create(IPAMHandle(metadata=Metadata(name=names.handle_name(handle)), spec=spec))
                return
            with suppress(NotFound, Conflict):
                stored = await self.handle(handle)
                counts = stored.spec.block | {str(net): stored.spec.block.get(str(net), 0) + count}
                if most and held(counts, net.version) > most:
                    raise HandleFull(f"handle {handle} may hold {most} IPv{net.version} addresses and has them")
                await self._update(replace(stored, spec=replace(stored.spec, block=counts)))
                return
        raise exhausted(f"count addresses of handle {handle}")

    async def count_at_least(self, handle: str, counts: Mapping[Net, int]) -> None:
        """Notes that a handle is about to hold so many addresses of blocks, all in all. Comes before writing them, and
        may be done again after a crash: it does not add up."""
        wanted = {str(net): count for net, count in counts.items()}
        spec = IPAMHandleSpec(handle_id=handle, block=wanted)
        for tried in range(ATTEMPTS):
            await pause(tried)
            with suppress(Exists):
                await self.store.create(IPAMHandle(metadata=Metadata(name=names.handle_name(handle)), spec=spec))
                return
            with suppress(NotFound, Conflict):
                stored = await self.handle(handle)
                more = {cidr: count for cidr, count in wanted.items() if stored.spec.block.get(cidr, 0) < count}
                if more:
                    await self._update(replace(stored, spec=replace(stored.spec, block=stored.spec.block | more)))
                return
        raise exhausted(f"count addresses of handle {handle}")

    async def count_down(self, handle: str, net: Net, count: int) -> None:
        """Notes that a handle holds `count` fewer addresses of a block. Comes after writing the block.

        A crash in between leaves a handle that counts too many, which is harmless; too few would lose addresses.
        """
        for tried in range(ATTEMPTS):
            await pause(tried)
            try:
                stored = await self.handle(handle)
            except NotFound:
                return
            counts = stored.spec.block | {str(net): stored.spec.block.get(str(net), 0) - count}
            counts = {cidr: left for cidr, left in counts.items() if left > 0}
            with suppress(Conflict):
                if counts:
                    await self._update(replace(stored, spec=replace(stored.spec, block=counts)))
                else:
                    await self._delete(stored)
                return
        raise exhausted(f"count addresses of handle {handle}")

    async def count_what_is_held(self, handle: str) -> None:
        """Counts down what a crash has left a handle counting too many. For one that nobody else writes meanwhile."""
        with suppress(NotFound):
            for cidr, counted in (await self.handle(handle)).spec.block.items():
                held, net = 0, parse_net(cidr)
                with suppress(NotFound):
                    held = len(ips_of((await self.block(net)).spec, handle))
                if counted > held:
                    await self.count_down(handle, net, counted - held)

    async def delete_handle(self, stored: IPAMHandle) -> None:
        """Raises Conflict when it has changed since it was read."""
        await self._delete(stored)
