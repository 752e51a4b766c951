"""Whether blocks, handles and affinities fit together. Pure: what a crash may leave is told from what must not be."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError
from tortie.ipam import names
from tortie.ipam.block import WINDOWS_RESERVED, held_slots, is_empty, problems
from tortie.ipam.owner import Owner, confirmed
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMHandle
from tortie.model.meta import Resource

Held = Mapping[tuple[str, str], int]
"""How many addresses a handle (by object name) holds in a block (by CIDR)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not fit. `harmless`: a process died there; no address is lost, the next one repairs it."""

    object: Resource
    text: str
    harmless: bool = False

    def __str__(self) -> str:
        return f"{self.object.title}: {self.text}" + (" (harmless)" if self.harmless else "")


def check(
    blocks: Iterable[IPAMBlock],
    handles: Iterable[IPAMHandle],
    affinities: Iterable[BlockAffinity],
    now: datetime | None = None,
) -> list[Finding]:
    """Everything that does not fit. With `now`, releases in the future are found too."""
    blocks, handles, affinities = list(blocks), list(handles), list(affinities)
    held = _held(blocks)
    return [
        *_blocks(blocks, now),
        *_overlaps(blocks),
        *_lost(blocks, handles, held),
        *_overcounts(handles, held),
        *_affinities(blocks, affinities),
        *_unclaimed(blocks, affinities),
    ]


def _held(blocks: Iterable[IPAMBlock]) -> Held:
    counts: Counter[tuple[str, str]] = Counter()
    for block in blocks:
        for _, attribute in held_slots(block.spec):
            if attribute.handle_id and attribute.handle_id != WINDOWS_RESERVED:
                counts[names.handle_name(attribute.handle_id), block.spec.cidr] += 1
    return counts


def _blocks(blocks: Iterable[IPAMBlock], now: datetime | None) -> Iterator[Finding]:
    for block in blocks:
        for text in problems(block.spec, now):
            yield Finding(block, text)
        try:
            expected = names.block_name(block.spec.net)
        except ConfigError as error:
            yield Finding(block, str(error))
            continue
        if block.name != expected:
            yield Finding(block, f"the block {block.spec.cidr} should be named {expected}")


def _overlaps(blocks: Iterable[IPAMBlock]) -> Iterator[Finding]:
    """Blocks that have addresses in common. In order of addresses, one overlaps only what it comes after."""
    last: dict[int, Net] = {}
    for block in sorted(blocks, key=lambda each: (int(each.spec.net.network_address), each.spec.net.prefixlen)):
        net = block.spec.net
        before = last.get(net.version)
        if before is not None and before.overlaps(net):
            yield Finding(block, f"overlaps block {before}")
        else:
            last[net.version] = net


def _lost(blocks: Iterable[IPAMBlock], handles: Iterable[IPAMHandle], held: Held) -> Iterator[Finding]:
    """Addresses that releasing their handle would not find."""
    counted = {(handle.name, cidr): count for handle in handles for cidr, count in handle.spec.block.items()}
    by_cidr = {block.spec.cidr: block for block in blocks}
    for (handle, cidr), count in held.items():
        known = counted.get((handle, cidr), 0)
        if known < count:
            yield Finding(by_cidr[cidr], f'handle "{handle}" holds {count} addresses, of which it knows {known}')


def _overcounts(handles: Iterable[IPAMHandle], held: Held) -> Iterator[Finding]:
    for handle in handles:
        if handle.name != names.handle_name(handle.spec.handle_id):
            yield Finding(handle, f'the handle "{handle.spec.handle_id}" should be named in lower case')
        if not handle.spec.block:
            yield Finding(handle, "holds nothing", harmless=True)
        for cidr, count in handle.spec.block.items():
            real = held.get((handle.name, cidr), 0)
            if count > real:
                yield Finding(handle, f"counts {count} addresses in {cidr}, where it holds {real}", harmless=True)


def _affinities(blocks: Iterable[IPAMBlock], affinities: Iterable[BlockAffinity]) -> Iterator[Finding]:
    """Claims without the block that they claim."""
    owners = {parse_net(block.spec.cidr): block.spec.affinity or "nobody" for block in blocks}
    for affinity in affinities:
        owner, net = Owner.of(affinity), parse_net(affinity.spec.cidr)
        if affinity.name != names.affinity_name(owner.name, net):
            yield Finding(affinity, f"should be named {names.affinity_name(owner.name, net)}")
        if not confirmed(affinity):
            yield Finding(affinity, f"is {affinity.spec.state}", harmless=True)
        elif net not in owners:
            yield Finding(affinity, f"is confirmed, but block {net} does not exist")
        elif owners[net] != str(owner):
            yield Finding(affinity, f"is confirmed, but block {net} belongs to {owners[net]}")


def _unclaimed(blocks: Iterable[IPAMBlock], affinities: Iterable[BlockAffinity]) -> Iterator[Finding]:
    """Blocks whose owner does not claim them, so that nobody routes them."""
    claims: dict[str, set[str]] = defaultdict(set)
    for affinity in affinities:
        claims[affinity.spec.cidr].add(str(Owner.of(affinity)))
    for block in blocks:
        if block.spec.affinity and block.spec.affinity not in claims[block.spec.cidr]:
            text = f"belongs to {block.spec.affinity}, which has no affinity to it"
            yield Finding(block, text, harmless=is_empty(block.spec))
