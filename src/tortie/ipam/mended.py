"""What a block that contradicts itself is to become. Pure.

Whatever is in doubt stays held: an address that is kept too long can be released later, one that is given twice cannot
be taken back.
"""

from __future__ import annotations

from datetime import datetime

from msgspec.structs import replace

from tortie.ipam.block import moment, stamp
from tortie.model.ipam import AllocationAttribute, IPAMBlockSpec


def mended(block: IPAMBlockSpec, now: datetime) -> IPAMBlockSpec:
    """The block without `problems`; the very same if it has none.

    slots missing or too many     free ones are added, those outside the block are dropped
    queue and slots disagree      the slots decide; what is in no queue goes to its tail
    an attribute does not exist   the address is held by nobody known, until somebody releases it
    released in the future        released now
    """
    slots = _slots(block)
    attributes = [_not_later(each, now) for each in block.attributes]
    if any(index is not None and not 0 <= index < len(attributes) for index in slots):
        slots = [
            len(attributes) if index is not None and not 0 <= index < len(attributes) else index for index in slots
        ]
        attributes.append(AllocationAttribute())
    used = sorted({index for index in slots if index is not None})
    renumbered = {old: new for new, old in enumerate(used)}
    held = {str(slot) for slot, index in enumerate(slots) if index is not None}
    sequences = block.sequence_number_for_allocation
    whole = replace(
        block,
        allocations=tuple(None if index is None else renumbered[index] for index in slots),
        unallocated=_queue(block, slots),
        attributes=tuple(attributes[index] for index in used),
        sequence_number_for_allocation={slot: number for slot, number in sequences.items() if slot in held},
    )
    return block if whole == block else whole


def _slots(block: IPAMBlockSpec) -> list[int | None]:
    size = block.net.num_addresses
    missing = size - len(block.allocations)
    return [*block.allocations[:size], *(None for _ in range(missing))]


def _queue(block: IPAMBlockSpec, slots: list[int | None]) -> tuple[int, ...]:
    free = {slot for slot, index in enumerate(slots) if index is None}
    queue = [slot for slot in dict.fromkeys(block.unallocated) if slot in free]
    return (*queue, *sorted(free.difference(queue)))


def _not_later(held: AllocationAttribute, now: datetime) -> AllocationAttribute:
    if held.released_at and moment(held.released_at) > now:
        return replace(held, released_at=stamp(now))
    return held
