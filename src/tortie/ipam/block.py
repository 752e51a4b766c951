"""A block of addresses: what assigning from it and releasing to it make of it. Pure; source: Calico's IPAMBlock.

    allocations   [ 0, None, 1, None ]      a slot per address: None, or an index into attributes
    unallocated   [ 3, 1 ]                  free ordinals; taken at the head, given back at the tail, so an address
                                            rests as long as possible before it is used again
    attributes    [ {handle a}, {releasedAt} ]
                                 └── a released address cools down before collect_garbage() makes it free

Every function takes a block and returns the next one; the caller writes it with `bumped()` and its old revision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from tortie.base.addr import IP, Net, nth
from tortie.base.errors import Conflict, Exists, Unavailable
from tortie.model.ipam import AllocationAttribute, IPAMBlockSpec

WINDOWS_RESERVED = "windows-reserved-ipam-handle"
"""Holds the addresses that Windows keeps for itself in each of its blocks; they do not make a block used."""

NOTHING: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class HostReserved:
    """Addresses at the ends of each block that its host keeps for itself, and under what they are noted."""

    first: int
    last: int
    handle: str
    note: str

    def max_prefixlen(self, bits: int) -> int:
        """The prefix length of the smallest blocks that have an address left, of networks with so many bits."""
        return bits - (self.first + self.last).bit_length()


WINDOWS = HostReserved(3, 1, WINDOWS_RESERVED, "windows host rsvd")
"""What Windows needs: the network, its gateway and its host's end of each block, and the last address."""


class ForeignBlock(Unavailable):
    """Affinity is strict and the block is not ours."""


class CoolingDown(Unavailable):
    """An address was released and is not free yet."""


@dataclass(frozen=True, slots=True)
class Release:
    """An address to give back, and what must be true of it for that: whose it is and, if known, which assignment."""

    ip: IP
    handle: str | None = None
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Freed:
    """What a release makes of a block. `counts` says how many addresses each handle lost here."""

    block: IPAMBlockSpec
    counts: Mapping[str, int] = field(default_factory=dict)
    not_allocated: tuple[IP, ...] = ()


def stamp(now: datetime) -> str:
    """A time as Kubernetes stores it: UTC, whole seconds."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime:
    """The time that a stamp means."""
    return datetime.fromisoformat(text)


def new_block(
    net: Net, affinity: str | None, now: datetime, sequence: int, kept: HostReserved | None = None
) -> IPAMBlockSpec:
    """A block with all its addresses free but those that its host keeps. `sequence` is a number that no former block
    of this network has reached."""
    size: int = net.num_addresses
    block = IPAMBlockSpec(
        cidr=str(net),
        affinity=affinity,
        affinity_claim_time=stamp(now),
        allocations=(None,) * size,
        unallocated=tuple(range(size)),
        sequence_number=sequence,
    )
    if kept is None:
        return block
    slots = sorted({*range(min(kept.first, size)), *range(max(size - kept.last, 0), size)})
    rest = tuple(slot for slot in block.unallocated if slot not in slots)
    return _hold(block, slots, rest, kept.handle, {"note": kept.note})


def first_sequence(now: datetime) -> int:
    """Nanoseconds since 1970: larger than what a former block of the same network reached by counting its writes."""
    return int(now.timestamp()) * 1_000_000_000 + now.microsecond * 1000


def bumped(block: IPAMBlockSpec) -> IPAMBlockSpec:
    """The block as it is to be written: every write has its own number."""
    return replace(block, sequence_number=block.sequence_number + 1)


def ordinal(block: IPAMBlockSpec, ip: IP) -> int:
    """The slot of an address that lies in the block."""
    return int(ip) - int(block.net.network_address)


def attribute(block: IPAMBlockSpec, slot: int) -> AllocationAttribute | None:
    """Who holds an ordinal, or None if it is free."""
    index = block.allocations[slot]
    return None if index is None else _entry(block, index)


def _entry(block: IPAMBlockSpec, index: int) -> AllocationAttribute:
    """An attribute; one that a broken block does not have reads as held by nobody."""
    return block.attributes[index] if 0 <= index < len(block.attributes) else AllocationAttribute()


def free_count(block: IPAMBlockSpec, reserved: Set[int] = NOTHING) -> int:
    """How many addresses auto_assign could give."""
    if not reserved:
        return len(block.unallocated)
    return sum(1 for slot in block.unallocated if slot not in reserved)


def is_empty(block: IPAMBlockSpec) -> bool:
    """Whether nothing holds an address. One that cools down still counts."""
    if len(block.unallocated) == len(block.allocations):
        return True
    return all(held.handle_id == WINDOWS_RESERVED for _, held in held_slots(block))


def held_slots(block: IPAMBlockSpec) -> Iterator[tuple[int, AllocationAttribute]]:
    """The ordinals that are not free, ascending, with who holds them."""
    for slot, index in enumerate(block.allocations):
        if index is not None:
            yield slot, _entry(block, index)


def ips_of(block: IPAMBlockSpec, handle: str) -> tuple[IP, ...]:
    """The addresses that a handle holds here."""
    net = block.net
    return tuple(nth(net, slot) for slot, held in held_slots(block) if held.handle_id == handle)


def check_affinity(block: IPAMBlockSpec, affinity: str) -> None:
    """Raises ForeignBlock unless the block is affine to `affinity`."""
    if block.affinity != affinity:
        owner = block.affinity or "nobody"
        raise ForeignBlock(f"Block host affinity does not match: {block.cidr} belongs to {owner}, not to {affinity}")


def auto_assign(
    block: IPAMBlockSpec, count: int, handle: str | None, attrs: Mapping[str, str], reserved: Set[int] = NOTHING
) -> tuple[IPAMBlockSpec, tuple[IP, ...]]:
    """Up to `count` addresses from the head of the queue; reserved ordinals keep their place in it."""
    if reserved:
        slots = [slot for slot in block.unallocated if slot not in reserved][:count]
        taken = set(slots)
        rest = tuple(slot for slot in block.unallocated if slot not in taken)
    else:
        slots, rest = list(block.unallocated[:count]), block.unallocated[count:]
    net = block.net
    return _hold(block, slots, rest, handle, attrs), tuple(nth(net, slot) for slot in slots)


def assign(block: IPAMBlockSpec, ip: IP, handle: str | None, attrs: Mapping[str, str]) -> IPAMBlockSpec:
    """The block with this very address assigned. Raises Exists when it is held, or cools down."""
    slot = ordinal(block, ip)
    held = attribute(block, slot)
    if held is not None:
        by = f"released at {held.released_at}, cooling down" if held.released_at else f"by {held.handle_id or 'nobody'}"
        raise Exists(f"{ip} is already assigned in block {block.cidr} ({by})")
    rest = tuple(other for other in block.unallocated if other != slot)
    return _hold(block, [slot], rest, handle, attrs)


def _hold(
    block: IPAMBlockSpec, slots: list[int], rest: tuple[int, ...], handle: str | None, attrs: Mapping[str, str]
) -> IPAMBlockSpec:
    """Gives `slots` to a handle, sharing an attribute entry that says the same."""
    if not slots:
        return block
    mine = AllocationAttribute(handle_id=handle, secondary=dict(attrs))
    attributes = block.attributes if mine in block.attributes else (*block.attributes, mine)
    index = attributes.index(mine)
    allocations = list(block.allocations)
    for slot in slots:
        allocations[slot] = index
    sequences = {str(slot): block.sequence_number for slot in slots}
    return replace(
        block,
        allocations=tuple(allocations),
        unallocated=rest,
        attributes=attributes,
        sequence_number_for_allocation=block.sequence_number_for_allocation | sequences,
    )


def with_holder(block: IPAMBlockSpec, slot: int, holder: AllocationAttribute) -> IPAMBlockSpec:
    """The block with another note about an ordinal that is held. Those that shared the old one keep it."""
    attributes = block.attributes if holder in block.attributes else (*block.attributes, holder)
    allocations = list(block.allocations)
    allocations[slot] = attributes.index(holder)
    used = sorted({index for index in allocations if index is not None})
    renumbered = {old: new for new, old in enumerate(used)}
    return replace(
        block,
        allocations=tuple(None if index is None else renumbered[index] for index in allocations),
        attributes=tuple(attributes[index] for index in used),
    )


def release(block: IPAMBlockSpec, releases: Iterable[Release], now: datetime, cooldown: int) -> Freed:
    """Gives addresses back, all or, when one is not what its releaser believes it to be, none.

    Raises Conflict naming the address whose handle or sequence number differs.
    """
    slots: list[int] = []
    not_allocated: list[IP] = []
    counts: Counter[str] = Counter()
    for wanted in dict.fromkeys(releases):
        slot = ordinal(block, wanted.ip)
        held = attribute(block, slot)
        if held is None or held.released_at:
            not_allocated.append(wanted.ip)
            continue
        _check_release(block, slot, held, wanted)
        if slot not in slots:
            slots.append(slot)
            counts.update([held.handle_id] if held.handle_id else [])
    if not slots:
        return Freed(block, {}, tuple(dict.fromkeys(not_allocated)))
    sequences = {str(slot): block.sequence_number for slot in slots}
    cooling = replace(
        _cool(block, slots, now),
        sequence_number_for_allocation=block.sequence_number_for_allocation | sequences,
    )
    return Freed(collect_garbage(cooling, now, cooldown), counts, tuple(dict.fromkeys(not_allocated)))


def _check_release(block: IPAMBlockSpec, slot: int, held: AllocationAttribute, wanted: Release) -> None:
    """Raises Conflict: the address has been given to somebody else since the releaser looked."""
    if wanted.handle is not None and wanted.handle != held.handle_id:
        raise Conflict(f'release {wanted.ip}: held by handle "{held.handle_id}", not by "{wanted.handle}"')
    sequence = block.sequence_number_for_allocation.get(str(slot))
    if wanted.sequence is not None and wanted.sequence != sequence:
        raise Conflict(f"release {wanted.ip}: assigned with sequence number {sequence}, not {wanted.sequence}")


def release_handles(block: IPAMBlockSpec, handles: Set[str], now: datetime, cooldown: int) -> Freed:
    """Gives back every address that one of the handles holds here."""
    found = [(slot, held.handle_id) for slot, held in held_slots(block) if held.handle_id in handles]
    if not found:
        return Freed(block)
    counts = Counter(handle for _, handle in found if handle)
    return Freed(collect_garbage(_cool(block, [slot for slot, _ in found], now), now, cooldown), counts)


def _cool(block: IPAMBlockSpec, slots: Iterable[int], now: datetime) -> IPAMBlockSpec:
    """Marks ordinals as released at `now`. Their attributes are left over until garbage is collected."""
    allocations = list(block.allocations)
    for slot in slots:
        allocations[slot] = len(block.attributes)
    released = AllocationAttribute(released_at=stamp(now))
    return replace(block, allocations=tuple(allocations), attributes=(*block.attributes, released))


def collect_garbage(block: IPAMBlockSpec, now: datetime, cooldown: int) -> IPAMBlockSpec:
    """Frees what has cooled down for more than `cooldown` seconds (0: at once) and drops unused attributes.

    This is the only place where an ordinal becomes free. The very same block comes back when there is nothing to do.
    Raises Unavailable for a block with an address whose attribute does not exist.
    """
    due = now - timedelta(seconds=cooldown)
    cold = {
        index
        for index, held in enumerate(block.attributes)
        if held.released_at and (cooldown == 0 or moment(held.released_at) < due)
    }
    freed = [slot for slot, index in enumerate(block.allocations) if index in cold] if cold else []
    allocations = list(block.allocations)
    for slot in freed:
        allocations[slot] = None
    used = sorted({index for index in allocations if index is not None})
    if used and not 0 <= used[0] <= used[-1] < len(block.attributes):
        raise Unavailable(f"block {block.cidr} contradicts itself: tortie ipam check --fix mends it")
    if not freed and len(used) == len(block.attributes):
        return block
    renumbered = {old: new for new, old in enumerate(used)}
    gone = {str(slot) for slot in freed}
    return replace(
        block,
        allocations=tuple(None if index is None else renumbered[index] for index in allocations),
        unallocated=(*block.unallocated, *freed),
        attributes=tuple(block.attributes[index] for index in used),
        sequence_number_for_allocation={
            slot: sequence for slot, sequence in block.sequence_number_for_allocation.items() if slot not in gone
        },
    )


def problems(block: IPAMBlockSpec, now: datetime | None = None) -> Iterator[str]:
    """What is wrong with a block in itself. With `now`, also a release in the future (a clock that was set back)."""
    size = block.net.num_addresses
    if len(block.allocations) != size:
        yield f"{len(block.allocations)} slots for {size} addresses"
    free = Counter(block.unallocated)
    taken = {slot for slot, index in enumerate(block.allocations) if index is not None}
    for what, slots in (
        ("ordinals twice in the queue", {slot for slot, times in free.items() if times > 1}),
        ("ordinals in the queue outside the block", {slot for slot in free if not 0 <= slot < size}),
        ("ordinals both free and held", taken & free.keys()),
        ("ordinals neither free nor held", set(range(len(block.allocations))) - taken - free.keys()),
    ):
        if slots:
            yield f"{what}: {', '.join(map(str, sorted(slots)))}"
    used = {index for index in block.allocations if index is not None}
    for index in sorted(used - set(range(len(block.attributes)))):
        yield f"attribute {index} does not exist"
    for index in sorted(set(range(len(block.attributes))) - used):
        yield f"attribute {index} is unused"
    for held in block.attributes:
        if now is not None and held.released_at and moment(held.released_at) > now:
            yield f"an address was released in the future, at {held.released_at}"
