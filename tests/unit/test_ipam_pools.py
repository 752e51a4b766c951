"""Choosing pools, the order of their blocks, reservations, and how full they are: all on values."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.base.addr import Net, parse_ip, parse_net
from tortie.base.errors import ConfigError
from tortie.ipam import pools as p
from tortie.ipam.block import auto_assign, first_sequence, new_block
from tortie.ipam.usage import ORPHANS, usage
from tortie.model.ipam import IPAMBlock, IPPool, IPPoolSpec, IPReservation, IPReservationSpec
from tortie.model.meta import Metadata, changed
from tortie.policy.selector import parse


def matches(selector: str, labels: Mapping[str, str]) -> bool:
    return parse(selector).matches(labels)


def pool(name: str, cidr: str, status: object = None, **spec: object) -> IPPool:
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr, **spec), status=status)  # type: ignore[arg-type]


def asker(namespace: Mapping[str, str] | None = None, use: str = "Workload", **labels: str) -> p.Asker:
    return p.Asker("node1", labels, namespace, use)  # type: ignore[arg-type]


def names(choice: p.Choice) -> tuple[list[str], list[str]]:
    return [each.name for each in choice.matching], [each.name for each in choice.allowed]


A, B = pool("a", "10.1.0.0/24"), pool("b", "10.2.0.0/24")
SIX = pool("six", "fd80::/116")


def test_all_pools_of_the_family() -> None:
    assert names(p.choose([A, B, SIX], 4, (), asker(), matches)) == (["a", "b"], ["a", "b"])
    assert names(p.choose([A, B, SIX], 6, (), asker(), matches))[1] == ["six"]


@pytest.mark.parametrize(
    "off",
    [
        pool("a", "10.1.0.0/24", disabled=True),
        pool("a", "10.1.0.0/24", {"conditions": [{"type": "Allocatable", "status": "False"}]}),
        changed(A, deletion_timestamp="2026-01-01T00:00:00Z"),
    ],
)
def test_pools_out_of_use(off: IPPool) -> None:
    assert names(p.choose([off, B], 4, (), asker(), matches))[0] == ["b"]
    with pytest.raises(ConfigError, match="cannot find a qualified ippool"):
        p.choose([off, SIX], 4, (), asker(), matches)
    with pytest.raises(ConfigError, match=r"10\.1\.0\.0/24\) does not exist, or is not enabled"):
        p.choose([off, B], 4, [A.spec.net], asker(), matches)


def test_allocatable_pool_with_status() -> None:
    fine = pool("a", "10.1.0.0/24", {"conditions": [{"type": "Allocatable", "status": "True"}]})
    assert p.allocatable(fine)


def test_selectors() -> None:
    rack = pool("rack", "10.1.0.0/24", node_selector='rack == "1"')
    red = pool("red", "10.2.0.0/24", namespace_selector='team == "red"', allowed_uses=("Workload",))
    everything = [rack, red]
    assert names(p.choose(everything, 4, (), asker({"team": "red"}, rack="1"), matches))[0] == ["rack", "red"]
    assert names(p.choose(everything, 4, (), asker(None, rack="1"), matches))[0] == ["rack"]
    assert names(p.choose(everything, 4, (), asker({"team": "red"}), matches))[0] == ["red"]
    with pytest.raises(ConfigError, match="no configured Calico pools for node node1"):
        p.choose(everything, 4, (), asker(), matches)
    with pytest.raises(ConfigError, match="selector"):
        p.choose([A, pool("bad", "10.9.0.0/24", node_selector="!!")], 4, (), asker(), matches)


def test_asking_for_pools_overrides_selectors_and_mode_but_not_use() -> None:
    manual = pool("manual", "10.3.0.0/24", assignment_mode="Manual")
    other = pool("other", "10.4.0.0/24", node_selector='rack == "1"')
    assert names(p.choose([A, manual, other], 4, (), asker(), matches))[0] == ["a"]
    asked = [other.spec.net, manual.spec.net, other.spec.net]
    assert names(p.choose([A, manual, other], 4, asked, asker(), matches))[0] == ["other", "manual"]
    tunnel = pool("tunnel", "10.5.0.0/24", allowed_uses=("Tunnel",))
    with pytest.raises(ConfigError, match=r'cannot find a qualified ippool.*tunnel.*"Workload"'):
        p.choose([A, tunnel], 4, [tunnel.spec.net], asker(), matches)
    assert names(p.choose([A, tunnel], 4, (), asker(), matches)) == (["a", "tunnel"], ["a"])
    assert names(p.choose([A, tunnel], 4, (), asker(use="Tunnel"), matches))[1] == ["a", "tunnel"]


def test_unknown_pool() -> None:
    with pytest.raises(ConfigError, match=r"192\.169\.1\.0/24\) does not exist, or is not enabled"):
        p.choose([A], 4, [parse_net("192.169.1.0/24")], asker(), matches)


def test_resolve() -> None:
    assert p.resolve(["b", "10.1.0.0/24", "192.169.1.0/24"], [A, B], 4) == (
        B.spec.net,
        A.spec.net,
        parse_net("192.169.1.0/24"),
    )
    with pytest.raises(ConfigError, match='error parsing pool "c": neither a CIDR nor one of: a, b'):
        p.resolve(["c"], [A, B], 4)
    for entry in ("six", "fd80::/116"):
        with pytest.raises(ConfigError, match="not an IPv4 pool"):
            p.resolve([entry], [A, SIX], 4)


def test_places() -> None:
    assert p.pool_of([A, B, SIX], parse_ip("10.2.0.9")) is B
    assert p.pool_of([A, B, SIX], parse_net("fd80::40/122")) is SIX
    assert p.pool_of([A, B], parse_net("10.2.0.0/16")) is None
    assert p.pool_of([A, B], parse_ip("10.3.0.0")) is None
    assert p.block_net(B, parse_ip("10.2.0.200")) == parse_net("10.2.0.192/26")
    assert p.block_net(SIX, parse_ip("fd80::41")) == parse_net("fd80::40/122")


def test_left_behind() -> None:
    here, gone = A, pool("b", "10.2.0.0/24", node_selector='rack == "1"')
    choice = p.choose([here, gone], 4, (), asker(), matches)

    def left(cidr: str, pools: list[IPPool], **labels: str) -> bool:
        return p.left_behind(parse_net(cidr), choice, pools, labels, matches)

    assert left("10.2.0.0/26", [here, gone])
    assert not left("10.2.0.0/26", [here, gone], rack="1")
    assert not left("10.1.0.0/26", [here, gone])
    assert not left("10.9.0.0/26", [here, gone])


def test_fnv() -> None:
    assert p.fnv1("node1") == 3957252814
    assert p.fnv1("") == 2166136261


NOTHING = p.Reserved()


@pytest.mark.parametrize("spec", [A, SIX, pool("s", "10.0.0.0/28", block_size=32)])
def test_walk_meets_every_block_once(spec: IPPool) -> None:
    blocks = list(p.walk(spec, "node1", 7, NOTHING))
    assert sorted(blocks) == list(spec.spec.net.subnets(new_prefix=spec.spec.blocks))
    assert blocks == list(p.walk(spec, "node1", 7, NOTHING))
    at = blocks.index(min(blocks))
    assert blocks[at:] + blocks[:at] == sorted(blocks)
    assert p.in_walk_order(sorted(blocks), spec, "node1", 7) == blocks


def test_hosts_start_apart_and_single_addresses_by_time() -> None:
    big = pool("big", "10.0.0.0/16")
    starts = {next(p.walk(big, f"node{i}", 0, NOTHING)) for i in range(40)}
    assert len(starts) > 30
    assert next(p.walk(big, "node1", 0, NOTHING)) == next(p.walk(big, "node1", 99, NOTHING))
    single = pool("single", "10.0.0.0/16", block_size=32)
    assert len({next(p.walk(single, "node1", seed, NOTHING)) for seed in range(40)}) > 30


def test_walk_of_a_huge_pool_steps_over_reservations() -> None:
    huge = pool("huge", "fd00::/48")
    begin = next(p.walk(huge, "node1", 0, NOTHING))
    hole = begin.supernet(new_prefix=60)
    nets = list(islice(p.walk(huge, "node1", 0, p.Reserved([hole])), 3))
    assert int(nets[0][0]) == int(hole[-1]) + 1
    assert not any(net.overlaps(hole) for net in nets)


def reserved(*cidrs: str) -> p.Reserved:
    return p.Reserved.of([IPReservation(metadata=Metadata(name="r"), spec=IPReservationSpec(reserved_cidrs=cidrs))])


def test_reservations_are_a_union_and_bad_ones_are_skipped() -> None:
    some = reserved("10.0.0.1/32", "10.0.0.32/30", "10.0.0.33", "rubbish", "10.0.0.1/24", "fd80::/126")
    block = parse_net("10.0.0.0/26")
    assert some.ordinals(block) == {1, 32, 33, 34, 35}
    assert some.count(block) == 5
    assert some.ordinals(parse_net("fd80::/122")) == {0, 1, 2, 3}
    assert some.ordinals(parse_net("10.0.0.64/26")) == frozenset()
    assert some.around(block) is None
    assert some.around(parse_net("10.0.0.33/32")) == parse_net("10.0.0.32/30")
    assert reserved("10.0.0.0/27", "10.0.0.32/27").around(block) == block


NETS = st.builds(
    lambda at, size: parse_net(f"10.0.0.{at >> (32 - size) << (32 - size)}/{size}"),
    st.integers(0, 255),
    st.integers(25, 32),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(NETS, max_size=6), NETS)
def test_reserved_is_a_set_of_addresses(nets: list[Net], block: Net) -> None:
    some = p.Reserved(nets)
    expected = {i for i, ip in enumerate(block) if any(ip in net for net in nets)}
    assert some.ordinals(block) == expected
    assert some.count(block) == len(expected)
    assert (some.around(block) is not None) == (len(expected) == block.num_addresses)


def test_usage() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)

    def block(cidr: str, count: int) -> IPAMBlock:
        spec = new_block(parse_net(cidr), "host:node1", now, first_sequence(now))
        return IPAMBlock(metadata=Metadata(name=cidr), spec=auto_assign(spec, count, "h", {})[0])

    blocks = [block("10.1.0.64/26", 10), block("10.1.0.0/26", 64), block("172.16.0.0/26", 3)]
    a, six, orphans = usage([A, SIX], blocks, reserved("10.1.0.100/32", "10.1.0.0/30", "10.1.0.128/25"))
    assert (a.name, a.capacity, a.in_use, a.reserved) == ("a", 256, 74, 133)
    assert a.available == 64 - 10 - 1
    assert [str(each.block.spec.cidr) for each in a.blocks] == ["10.1.0.0/26", "10.1.0.64/26"]
    assert (six.capacity, six.in_use, six.available, six.blocks) == (4096, 0, 4096, ())
    assert (orphans.name, orphans.net, orphans.capacity, orphans.in_use) == (ORPHANS, None, 64, 3)
