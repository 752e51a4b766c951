"""Blocks on values: what each operation does, and that no sequence of them ever breaks a block."""

from __future__ import annotations

from collections import Counter, deque
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from tortie.base.addr import IP, parse_ip, parse_net
from tortie.base.errors import Conflict, Exists
from tortie.ipam.block import (
    WINDOWS_RESERVED,
    ForeignBlock,
    Release,
    assign,
    attribute,
    auto_assign,
    bumped,
    check_affinity,
    collect_garbage,
    first_sequence,
    free_count,
    ips_of,
    is_empty,
    new_block,
    ordinal,
    problems,
    release,
    release_handles,
)
from tortie.model.ipam import AllocationAttribute, IPAMBlockSpec

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NETS = {4: "10.0.0.0/29", 6: "fd80::10/125"}


def fresh(version: int = 4) -> IPAMBlockSpec:
    return new_block(parse_net(NETS[version]), "host:node1", NOW, 1000)


def ip_at(block: IPAMBlockSpec, slot: int) -> IP:
    return block.net[slot]


def test_new_block() -> None:
    block = fresh()
    assert block.affinity_claim_time == "2026-01-02T03:04:05Z"
    assert block.unallocated == tuple(range(8))
    assert block.allocations == (None,) * 8
    assert (block.sequence_number, bumped(block).sequence_number) == (1000, 1001)
    assert is_empty(block)
    assert first_sequence(NOW + timedelta(microseconds=7)) == 1767323045000007000


@pytest.mark.parametrize("version", [4, 6])
def test_auto_assign_takes_the_head_of_the_queue(version: int) -> None:
    block, ips = auto_assign(fresh(version), 3, "h", {"pod": "a"})
    assert ips == tuple(parse_net(NETS[version])[i] for i in range(3))
    assert block.unallocated == (3, 4, 5, 6, 7)
    assert block.attributes == (AllocationAttribute(handle_id="h", secondary={"pod": "a"}),)
    assert block.sequence_number_for_allocation == {"0": 1000, "1": 1000, "2": 1000}
    assert ips_of(block, "h") == ips
    block, ips = auto_assign(block, 99, None, {})
    assert len(ips) == 5
    assert free_count(block) == 0
    assert auto_assign(block, 1, "h", {}) == (block, ())


def test_reserved_ordinals_are_skipped_and_stay() -> None:
    block, ips = auto_assign(fresh(), 3, "h", {}, reserved={0, 2})
    assert [str(ip) for ip in ips] == ["10.0.0.1", "10.0.0.3", "10.0.0.4"]
    assert block.unallocated == (0, 2, 5, 6, 7)
    assert free_count(block, {0, 2}) == 3


def test_attributes_are_shared_only_when_identical() -> None:
    block, _ = auto_assign(fresh(), 1, "h", {"pod": "a"})
    block, _ = auto_assign(block, 1, "h", {"pod": "b"})
    block, _ = auto_assign(block, 1, "h", {"pod": "a"})
    assert block.allocations[:3] == (0, 1, 0)
    stolen = replace(
        block, attributes=(replace(block.attributes[0], alternate_owner_attrs={"x": "y"}), *block.attributes[1:])
    )
    block, _ = auto_assign(stolen, 1, "h", {"pod": "a"})
    assert block.allocations[:4] == (0, 1, 0, 2)


def test_explicit_assignment() -> None:
    block = assign(fresh(), parse_ip("10.0.0.5"), "h", {})
    assert block.unallocated == (0, 1, 2, 3, 4, 6, 7)
    with pytest.raises(Exists, match=r"10\.0\.0\.5 is already assigned in block 10\.0\.0\.0/29 \(by h\)"):
        assign(block, parse_ip("10.0.0.5"), "other", {})
    cooling = release_handles(block, {"h"}, NOW, 30).block
    with pytest.raises(Exists, match="cooling down"):
        assign(cooling, parse_ip("10.0.0.5"), "h", {})


def test_affinity() -> None:
    check_affinity(fresh(), "host:node1")
    for block in (fresh(), replace(fresh(), affinity=None)):
        with pytest.raises(ForeignBlock, match="Block host affinity does not match"):
            check_affinity(block, "host:node2")


def test_reuse_is_first_in_first_out() -> None:
    block, _ = auto_assign(fresh(), 8, "h", {})
    for slot in (5, 2):
        block = release(block, [Release(ip_at(block, slot))], NOW, 0).block
    assert block.unallocated == (5, 2)
    block = release(block, [Release(ip_at(block, slot)) for slot in (7, 0)], NOW, 0).block
    assert block.unallocated == (5, 2, 0, 7)
    assert auto_assign(block, 1, "h", {})[1] == (ip_at(block, 5),)


def test_release_counts_by_handle_and_collapses_duplicates() -> None:
    block, (a, b) = auto_assign(fresh(), 2, "h", {})
    block, (c,) = auto_assign(block, 1, None, {})
    freed = release(block, [Release(a), Release(a, "h"), Release(b), Release(c), Release(ip_at(block, 6))], NOW, 0)
    assert freed.counts == {"h": 2}
    assert freed.not_allocated == (ip_at(block, 6),)
    assert is_empty(freed.block)
    assert freed.block.attributes == ()
    assert freed.block.sequence_number_for_allocation == {}


def test_release_of_nothing_is_the_very_block() -> None:
    block = fresh()
    assert release(block, [Release(ip_at(block, 1))], NOW, 0).block is block
    assert release_handles(block, {"h"}, NOW, 0).block is block
    assert collect_garbage(block, NOW, 0) is block


@pytest.mark.parametrize("wrong", [{"handle": "other"}, {"sequence": 1001}])
def test_wrong_handle_or_sequence_releases_nothing(wrong: dict[str, str]) -> None:
    block, (a, b) = auto_assign(fresh(), 2, "h", {})
    with pytest.raises(Conflict, match=str(b)):
        release(block, [Release(a, "h", 1000), Release(b, **wrong)], NOW, 0)  # type: ignore[arg-type]


def test_old_sequence_is_refused_after_the_address_was_given_again() -> None:
    block, (ip,) = auto_assign(fresh(), 1, "h", {})
    old = block.sequence_number_for_allocation["0"]
    block = bumped(release(bumped(block), [Release(ip, "h", old)], NOW, 0).block)
    block = bumped(assign(block, ip, "h", {}))
    with pytest.raises(Conflict):
        release(block, [Release(ip, "h", old)], NOW, 0)
    assert release(block, [Release(ip, "h", 1002)], NOW, 0).counts == {"h": 1}


def test_cooldown() -> None:
    block, (a, b) = auto_assign(fresh(), 2, "h", {})
    cooling = release(bumped(block), [Release(a)], NOW, 30).block
    assert attribute(cooling, 0) == AllocationAttribute(released_at="2026-01-02T03:04:05Z")
    assert cooling.sequence_number_for_allocation["0"] == 1001
    assert free_count(cooling) == 6
    assert ips_of(cooling, "h") == (b,)
    assert release(cooling, [Release(a)], NOW, 30).not_allocated == (a,)
    assert collect_garbage(cooling, NOW + timedelta(seconds=30), 30) is cooling
    cold = collect_garbage(cooling, NOW + timedelta(seconds=31), 30)
    assert cold.unallocated == (*range(2, 8), 0)
    assert cold.allocations[:2] == (None, 0)
    assert cold.attributes == (AllocationAttribute(handle_id="h"),)
    assert cold.sequence_number_for_allocation == {"1": 1000}


def test_a_cooling_address_makes_a_block_used_and_a_windows_one_does_not() -> None:
    block, _ = auto_assign(fresh(), 1, "h", {})
    assert not is_empty(release_handles(block, {"h"}, NOW, 30).block)
    assert is_empty(auto_assign(fresh(), 1, WINDOWS_RESERVED, {})[0])


def test_clock_set_back_does_not_matter_without_cooldown() -> None:
    block, _ = auto_assign(fresh(), 1, "h", {})
    cooling = release_handles(block, {"h"}, NOW, 30).block
    assert list(problems(cooling, NOW - timedelta(hours=1))) == [
        "an address was released in the future, at 2026-01-02T03:04:05Z"
    ]
    assert is_empty(collect_garbage(cooling, NOW - timedelta(hours=1), 0))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"unallocated": (0, 0, 1, 2, 3, 4, 5, 6, 7)}, "ordinals twice in the queue: 0"),
        ({"unallocated": (*range(8), 9)}, "ordinals in the queue outside the block: 9"),
        ({"unallocated": tuple(range(7))}, "ordinals neither free nor held: 7"),
        ({"allocations": (0, *(None,) * 7), "attributes": (AllocationAttribute(),)}, "ordinals both free and held: 0"),
        ({"allocations": (1, *(None,) * 7), "unallocated": tuple(range(1, 8))}, "attribute 1 does not exist"),
        ({"attributes": (AllocationAttribute(),)}, "attribute 0 is unused"),
        ({"allocations": (None,) * 7}, "7 slots for 8 addresses"),
    ],
)
def test_problems(change: dict[str, object], found: str) -> None:
    assert list(problems(fresh(), NOW)) == []
    assert found in list(problems(replace(fresh(), **change), NOW))


SLOTS = st.integers(0, 7)
HANDLES = st.sampled_from(["a", "b", "c"])


class BlockAgainstModel(RuleBasedStateMachine):
    """A block beside a queue of free slots and a table of holders, through random operations and time."""

    def __init__(self) -> None:
        super().__init__()
        self.block = fresh()
        self.now = NOW
        self.cooldown = 0
        self.queue: deque[int] = deque(range(8))
        self.held: dict[int, str] = {}
        self.cooling: dict[int, datetime] = {}

    def write(self, block: IPAMBlockSpec) -> None:
        if block is not self.block:
            self.block = bumped(block)

    def free(self, *slots: int) -> None:
        """Slots are given back, and the clean-up of garbage that this implies."""
        for slot in slots:
            del self.held[slot]
            self.cooling[slot] = self.now
        if slots:
            self.collect()

    def collect(self) -> None:
        due = self.now - timedelta(seconds=self.cooldown)
        for slot in sorted(slot for slot, at in self.cooling.items() if self.cooldown == 0 or at < due):
            del self.cooling[slot]
            self.queue.append(slot)

    @rule(count=st.integers(1, 4), handle=HANDLES, attrs=st.sampled_from([{}, {"pod": "x"}]), reserved=st.sets(SLOTS))
    def auto(self, count: int, handle: str, attrs: dict[str, str], reserved: set[int]) -> None:
        block, ips = auto_assign(self.block, count, handle, attrs, reserved)
        expected = [slot for slot in self.queue if slot not in reserved][:count]
        assert [ordinal(block, ip) for ip in ips] == expected
        for slot in expected:
            self.queue.remove(slot)
            self.held[slot] = handle
            assert block.sequence_number_for_allocation[str(slot)] == self.block.sequence_number
        self.write(block)

    @rule(slot=SLOTS, handle=HANDLES)
    def explicit(self, slot: int, handle: str) -> None:
        if slot in self.queue:
            self.write(assign(self.block, self.block.net[slot], handle, {}))
            self.queue.remove(slot)
            self.held[slot] = handle
        else:
            with pytest.raises(Exists):
                assign(self.block, self.block.net[slot], handle, {})

    @rule(slots=st.sets(SLOTS, min_size=1))
    def release(self, slots: set[int]) -> None:
        freed = release(self.block, [Release(self.block.net[slot]) for slot in slots], self.now, self.cooldown)
        assert {ordinal(self.block, ip) for ip in freed.not_allocated} == slots - self.held.keys()
        self.write(freed.block)
        self.free(*(slots & self.held.keys()))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), handle=HANDLES, late=st.integers(-2, 2))
    def release_as(self, data: st.DataObject, handle: str, late: int) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        sequence = self.block.sequence_number_for_allocation[str(slot)]
        wanted = Release(self.block.net[slot], handle, sequence + late)
        if handle == self.held[slot] and late == 0:
            self.write(release(self.block, [wanted], self.now, self.cooldown).block)
            self.free(slot)
        else:
            with pytest.raises(Conflict):
                release(self.block, [wanted], self.now, self.cooldown)

    @rule(handles=st.sets(HANDLES))
    def by_handles(self, handles: set[str]) -> None:
        slots = [slot for slot, holder in self.held.items() if holder in handles]
        found = [ordinal(self.block, ip) for handle in handles for ip in ips_of(self.block, handle)]
        assert sorted(found) == sorted(slots)
        freed = release_handles(self.block, handles, self.now, self.cooldown)
        assert freed.counts == Counter(self.held[slot] for slot in slots)
        self.write(freed.block)
        self.free(*slots)

    @rule(cooldown=st.sampled_from([0, 5, 30]), seconds=st.integers(0, 20))
    def time_passes(self, cooldown: int, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        self.cooldown = cooldown
        self.write(collect_garbage(self.block, self.now, cooldown))
        self.collect()

    @invariant()
    def agree(self) -> None:
        assert list(problems(self.block, self.now)) == []
        assert list(self.block.unallocated) == list(self.queue)
        for slot in range(8):
            held = attribute(self.block, slot)
            assert (held.handle_id if held else None) == self.held.get(slot)
            assert bool(held and held.released_at) == (slot in self.cooling)
        assert is_empty(self.block) == (len(self.queue) == 8)
        assert self.block.sequence_number_for_allocation.keys() == {str(s) for s in self.held.keys() | self.cooling}


TestBlockAgainstModel = BlockAgainstModel.TestCase
TestBlockAgainstModel.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
