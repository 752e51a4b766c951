"""Addresses that go from one handle to others: from those that a node held ready to the containers that have them.

    count the containers' handles up ─► write the block: one compare-and-swap for all of it ─► count the giver down

A crash at either arrow leaves a handle that counts too many, never an address that its handle does not know. Doing it
again does what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from tortie.base.addr import IP, Net
from tortie.base.errors import Conflict, NotFound
from tortie.ipam import affinity as claims
from tortie.ipam.block import attribute, collect_garbage, held_slots, ordinal
from tortie.ipam.fill import Interface
from tortie.ipam.ledger import ATTEMPTS, Ledger, exhausted, pause
from tortie.ipam.owner import Owner
from tortie.model.ipam import AllocationAttribute, IPAMBlock, IPAMBlockSpec

PARALLEL = 8
"""Handles written at a time: enough to hide a remote datastore's latency."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Addresses, each with its block's prefix length, and who is to have them."""

    addresses: tuple[Interface, ...]
    handle: str
    attrs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Moved:
    """What a hand-over makes of a block: how many addresses the giver has lost, and which ones are somebody else's."""

    block: IPAMBlockSpec
    given: int = 0
    lost: tuple[IP, ...] = ()


def moved(block: IPAMBlockSpec, giver: str, wanted: Iterable[tuple[IP, str, Mapping[str, str]]]) -> Moved:
    """Makes addresses of the giver those of other handles. One that is free is taken; one that is there already stays.

    The very same block comes back when there is nothing to do.
    """
    allocations, unallocated = list(block.allocations), list(block.unallocated)
    attributes, sequences = list(block.attributes), dict(block.sequence_number_for_allocation)
    given, lost, changed = 0, list[IP](), False
    for ip, handle, attrs in wanted:
        slot = ordinal(block, ip)
        held = attribute(block, slot)
        if held is not None and not held.released_at and held.handle_id == handle:
            continue
        if held is not None and held.handle_id != giver:
            lost.append(ip)
            continue
        if held is None:
            unallocated.remove(slot)
        else:
            given += 1
        mine = AllocationAttribute(handle_id=handle, secondary=dict(attrs))
        if mine not in attributes:
            attributes.append(mine)
        allocations[slot] = attributes.index(mine)
        sequences[str(slot)] = block.sequence_number
        changed = True
    if not changed:
        return Moved(block, 0, tuple(lost))
    written = replace(
        block,
        allocations=tuple(allocations),
        unallocated=tuple(unallocated),
        attributes=tuple(attributes),
        sequence_number_for_allocation=sequences,
    )
    return Moved(written, given, tuple(lost))


async def hand_over(ledger: Ledger, owner: Owner, giver: str, transfers: Sequence[Transfer]) -> tuple[IP, ...]:
    """Moves them, however often blocks change meanwhile; returns the addresses that are another's. Raises Unavailable,
    Conflict."""
    left: dict[Net, list[tuple[IP, str, Mapping[str, str]]]] = {}
    for transfer in transfers:
        for each in transfer.addresses:
            left.setdefault(each.network, []).append((each.ip, transfer.handle, transfer.attrs))
    lost: list[IP] = []
    for tried in range(ATTEMPTS):
        await pause(tried)
        plans = await _plans(ledger, owner, giver, left)
        await _count(ledger, left, plans)
        for net, (block, plan) in plans.items():
            try:
                if plan.block is not block.spec:
                    await ledger.write_block(block, _tidy(ledger, plan.block))
            except Conflict:
                continue
            if plan.given:
                await ledger.count_down(giver, net, plan.given)
            else:  # it was done before, and perhaps cut short before it was counted
                await ledger.count_what_is_held(giver)
            lost += plan.lost
            del left[net]
        if not left:
            return tuple(lost)
    raise exhausted(f"hand over addresses of {giver}")


async def _plans(
    ledger: Ledger, owner: Owner, giver: str, left: Mapping[Net, Sequence[tuple[IP, str, Mapping[str, str]]]]
) -> dict[Net, tuple[IPAMBlock, Moved]]:
    plans: dict[Net, tuple[IPAMBlock, Moved]] = {}
    for net, wanted in left.items():
        try:
            block = await ledger.block(net)
        except NotFound:  # somebody has taken it away by force: what pods have must be in a block all the same
            block = await claims.obtain(ledger, owner, net)
        plans[net] = block, moved(block.spec, giver, wanted)
    return plans


async def _count(
    ledger: Ledger,
    left: Mapping[Net, Sequence[tuple[IP, str, Mapping[str, str]]]],
    plans: Mapping[Net, tuple[IPAMBlock, Moved]],
) -> None:
    """Counts in every handle what it is about to hold."""
    counts: dict[str, dict[Net, int]] = {}
    for net, wanted in left.items():
        held: dict[str, int] = {}
        for _, attribute_ in held_slots(plans[net][1].block):
            if attribute_.handle_id:
                held[attribute_.handle_id] = held.get(attribute_.handle_id, 0) + 1
        for _, handle, _ in wanted:
            if handle in held:
                counts.setdefault(handle, {})[net] = held[handle]
    slots = asyncio.Semaphore(PARALLEL)

    async def one(handle: str, wanted: Mapping[Net, int]) -> None:
        async with slots:
            await ledger.count_at_least(handle, wanted)

    await asyncio.gather(*(one(handle, wanted) for handle, wanted in counts.items()))


def _tidy(ledger: Ledger, block: IPAMBlockSpec) -> IPAMBlockSpec:
    """Without the attribute of a giver that has nothing left here."""
    return collect_garbage(block, ledger.now(), ledger.cooldown)
