"""The consistency check finds what does not fit, and tells what a crash may leave from what loses addresses."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec.structs import replace

from tortie.base.addr import parse_net
from tortie.ipam import names
from tortie.ipam.block import auto_assign, new_block
from tortie.ipam.check import check
from tortie.ipam.owner import Owner
from tortie.model.ipam import (
    BlockAffinity,
    BlockAffinitySpec,
    IPAMBlock,
    IPAMHandle,
    IPAMHandleSpec,
)
from tortie.model.meta import Metadata, changed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NET = parse_net("10.0.0.0/26")


def block(cidr: str = "10.0.0.0/26", owner: str | None = "host:node1", held: int = 2) -> IPAMBlock:
    net = parse_net(cidr)
    spec = auto_assign(new_block(net, owner, NOW, 1), held, "net.A", {})[0]
    return IPAMBlock(metadata=Metadata(name=names.block_name(net)), spec=spec)


def affinity(node: str = "node1", state: str = "confirmed", cidr: str = "10.0.0.0/26") -> BlockAffinity:
    name = names.affinity_name(node, parse_net(cidr))
    spec = BlockAffinitySpec(cidr=cidr, node=node, state=state)  # type: ignore[arg-type]
    return BlockAffinity(metadata=Metadata(name=name, labels=names.affinity_labels(Owner(node), 4)), spec=spec)


GOOD = IPAMHandle(metadata=Metadata(name="net.a"), spec=IPAMHandleSpec(handle_id="net.A", block={"10.0.0.0/26": 2}))


def texts(*args: object, **kw: object) -> list[str]:
    return [str(each) for each in check(*args, **kw)]  # type: ignore[arg-type]


def test_nothing_to_find() -> None:
    assert check([block()], [GOOD], [affinity()], NOW) == []
    assert check([], [], [], NOW) == []


def test_handle_that_knows_too_few_loses_addresses() -> None:
    short = replace(GOOD, spec=replace(GOOD.spec, block={"10.0.0.0/26": 1}))
    text = 'IPAMBlock 10-0-0-0-26: handle "net.a" holds 2 addresses, of which it knows'
    assert texts([block()], [short], [affinity()]) == [f"{text} 1"]
    assert texts([block()], [], [affinity()]) == [f"{text} 0"]


def test_handle_that_counts_too_many_is_harmless() -> None:
    long = replace(GOOD, spec=replace(GOOD.spec, block={"10.0.0.0/26": 3, "10.9.0.0/26": 1}))
    assert texts([block()], [long], [affinity()]) == [
        "IPAMHandle net.a: counts 3 addresses in 10.0.0.0/26, where it holds 2 (harmless)",
        "IPAMHandle net.a: counts 1 addresses in 10.9.0.0/26, where it holds 0 (harmless)",
    ]
    empty = replace(GOOD, spec=replace(GOOD.spec, block={}))
    assert texts([], [empty], []) == ["IPAMHandle net.a: holds nothing (harmless)"]


def test_affinities() -> None:
    assert texts([], [], [affinity()]) == [
        "BlockAffinity node1-10-0-0-0-26: is confirmed, but block 10.0.0.0/26 does not exist"
    ]
    assert texts([block()], [GOOD], [affinity(), affinity("node2")]) == [
        "BlockAffinity node2-10-0-0-0-26: is confirmed, but block 10.0.0.0/26 belongs to host:node1"
    ]
    assert texts([block()], [GOOD], [affinity(state="pending")]) == [
        "BlockAffinity node1-10-0-0-0-26: is pending (harmless)"
    ]


def test_block_that_nobody_claims() -> None:
    text = "IPAMBlock 10-0-0-0-26: belongs to host:node1, which has no affinity to it"
    assert texts([block()], [GOOD], []) == [text]
    assert texts([block(held=0)], [], []) == [f"{text} (harmless)"]
    assert texts([block(owner=None)], [GOOD], []) == []


def test_names_and_overlaps() -> None:
    odd = changed(block(held=0), name="odd")
    assert texts([odd], [], [affinity()]) == ["IPAMBlock odd: the block 10.0.0.0/26 should be named 10-0-0-0-26"]
    inner = block("10.0.0.32/30", None, 0)
    assert texts([inner, block()], [GOOD], [affinity()]) == ["IPAMBlock 10-0-0-32-30: overlaps block 10.0.0.0/26"]
    upper = texts([block()], [changed(GOOD, name="net.A")], [affinity()])
    assert 'IPAMHandle net.A: the handle "net.A" should be named in lower case' in upper
    assert texts([block()], [GOOD], [changed(affinity(), name="x")]) == [
        "BlockAffinity x: should be named node1-10-0-0-0-26"
    ]


def test_broken_block() -> None:
    good = block()
    broken = replace(good, spec=replace(good.spec, unallocated=good.spec.unallocated[1:]))
    assert texts([broken], [GOOD], [affinity()]) == ["IPAMBlock 10-0-0-0-26: ordinals neither free nor held: 2"]
