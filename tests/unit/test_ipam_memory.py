"""What a process remembers of its blocks, and for how long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from tortie.base.addr import parse_net
from tortie.ipam.block import new_block
from tortie.ipam.memory import FULL, LISTED, Memory
from tortie.model.ipam import IPPool, IPPoolSpec
from tortie.model.meta import Metadata

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TICK = timedelta(microseconds=1)
POOLS = ("10.0.0.0/16",)
NET, OTHER = parse_net("10.0.0.0/26"), parse_net("10.0.0.64/26")


def test_block_at_hand_until_all_must_be_listed_again() -> None:
    memory = Memory()
    assert memory.at_hand(POOLS, NOW) is None
    memory.served(POOLS, NET, None)
    assert memory.at_hand(POOLS, NOW) is None, "nothing has been listed yet"
    memory.served(POOLS, NET, NOW)
    memory.served(POOLS, OTHER, None)
    assert memory.at_hand(POOLS, NOW + LISTED - TICK) == OTHER
    assert memory.at_hand(POOLS, NOW + LISTED) is None
    assert memory.at_hand(("10.1.0.0/16",), NOW) is None, "another choice of pools"


def test_clock_that_is_set_back_makes_everything_be_looked_at_again() -> None:
    memory = Memory()
    memory.served(POOLS, NET, NOW)
    memory.saw(replace(new_block(NET, "host:n", NOW, 1), unallocated=()), NOW)
    assert memory.at_hand(POOLS, NOW - TICK) is None
    assert not memory.full(str(NET), NOW - TICK)


def test_full_block_until_it_is_seen_otherwise_or_time_has_passed() -> None:
    memory, block = Memory(), new_block(NET, "host:n", NOW, 1)
    memory.saw(block, NOW)
    assert not memory.full(block.cidr, NOW)
    memory.saw(replace(block, unallocated=()), NOW)
    assert memory.full(block.cidr, NOW + FULL - TICK)
    assert not memory.full(block.cidr, NOW + FULL)
    memory.saw(block, NOW)
    assert not memory.full(block.cidr, NOW)


def test_pool_of_the_same_name_is_another_one() -> None:
    memory = Memory()
    pool = IPPool(metadata=Metadata(name="p", uid="1"), spec=IPPoolSpec(cidr="10.0.0.0/16"))
    memory.is_uniform(pool)
    assert memory.uniform(pool)
    assert not memory.uniform(replace(pool, metadata=Metadata(name="p", uid="2")))
    assert not memory.uniform(replace(pool, spec=replace(pool.spec, block_size=28)))
