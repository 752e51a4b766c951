"""How a host comes to own a block, and how it loses it: two objects, written one after the other, by racing hosts.

    claim     affinity pending ─► block created, affine to the host ─► affinity confirmed
                                   └─ exists, another's: affinity deleted again, ClaimedElsewhere

    release   affinity pendingDeletion ─► block deleted, or left without owner if in use ─► affinity deleted
                                           └─ changed meanwhile: somebody has just assigned from it, affinity restored

The block decides who owns: only one host can create it. Only `confirmed` affinities count for readers, so a crash at
any arrow shows as a claim that does not count yet or any more; whoever meets it goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from msgspec.structs import replace

from tortie.base.addr import Net, parse_net, within
from tortie.base.errors import ConfigError, Conflict, Exists, NotFound, TortieError
from tortie.ipam import names
from tortie.ipam.block import is_empty
from tortie.ipam.ledger import ATTEMPTS, Ledger, exhausted, pause
from tortie.ipam.owner import Owner, confirmed
from tortie.ipam.pools import pool_of
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPPool
from tortie.model.meta import changed


class ClaimedElsewhere(Conflict):
    """The block belongs to another."""


class StaleAffinity(Conflict):
    """An affinity for a block that is not its owner's. It has been deleted."""


class NotEmpty(Conflict):
    """The block has addresses in use."""


async def pend(ledger: Ledger, owner: Owner, net: Net) -> BlockAffinity:
    """The owner's affinity to a block: a new one, or the one there is, pending unless confirmed. Raises Conflict."""
    with suppress(Exists):
        return await ledger.create_affinity(owner, net)
    try:
        affinity = await ledger.affinity(owner, net)
    except NotFound as error:
        raise Conflict(str(error)) from None
    return affinity if confirmed(affinity) else await ledger.write_affinity(affinity, "pending")


async def claim(ledger: Ledger, affinity: BlockAffinity) -> IPAMBlock:
    """Creates the block of a pending affinity and confirms it. Raises ClaimedElsewhere, Conflict.

    A block that is ours already (another process of this host, or a former life) is written once more before it is
    used: whoever is about to delete it as unused notices.
    """
    owner, net = Owner.of(affinity), parse_net(affinity.spec.cidr)
    try:
        block = await ledger.create_block(net, owner)
    except Exists:
        try:
            block = await ledger.block(net)
        except NotFound as error:
            raise Conflict(str(error)) from None
        if block.spec.affinity != str(owner):
            await ledger.delete_affinity(affinity)
            raise ClaimedElsewhere(f"block {net} is already claimed by {block.spec.affinity or 'nobody'}") from None
        block = await ledger.write_block(block)
    await confirm(ledger, affinity)
    return block


async def confirm(ledger: Ledger, affinity: BlockAffinity) -> None:
    """Makes an affinity count. That another process of this host did so is fine. Raises Conflict."""
    owner, net = Owner.of(affinity), parse_net(affinity.spec.cidr)
    for tried in range(ATTEMPTS):
        await pause(tried)
        if confirmed(affinity):
            return
        with suppress(Conflict):
            await ledger.write_affinity(affinity, "confirmed")
            return
        try:
            affinity = await ledger.affinity(owner, net)
        except NotFound as error:
            raise Conflict(str(error)) from None
        if affinity.spec.state == "pendingDeletion":
            raise Conflict(f"the affinity of {owner} to {net} is being released")
    raise exhausted(f"confirm the affinity of {owner} to {net}")


async def block_of(ledger: Ledger, affinity: BlockAffinity) -> IPAMBlock:
    """The block of an affinity that its owner has, repaired if a crash left the claim unfinished.

    Raises StaleAffinity, ClaimedElsewhere, Conflict.
    """
    owner, net = Owner.of(affinity), parse_net(affinity.spec.cidr)
    try:
        block = await ledger.block(net)
    except NotFound:
        return await claim(ledger, await ledger.write_affinity(affinity, "pending"))
    if block.spec.affinity != str(owner):
        await ledger.delete_affinity(affinity)
        raise StaleAffinity(f"block {net} belongs to {block.spec.affinity or 'nobody'}, not to {owner}")
    if confirmed(affinity):
        return block
    affinity = await ledger.write_affinity(affinity, "pending")
    block = await ledger.write_block(block)
    await confirm(ledger, affinity)
    return block


async def obtain(ledger: Ledger, owner: Owner, net: Net) -> IPAMBlock:
    """The block at `net`, claimed for an owner. Raises ClaimedElsewhere, StaleAffinity."""
    for tried in range(ATTEMPTS):
        await pause(tried)
        try:
            affinity = await pend(ledger, owner, net)
            return await (block_of if confirmed(affinity) else claim)(ledger, affinity)
        except (ClaimedElsewhere, StaleAffinity):
            raise
        except Conflict:
            continue
    raise exhausted(f"claim block {net} for {owner}")


async def release(ledger: Ledger, owner: Owner, net: Net, *, require_empty: bool, sequence: int | None = None) -> None:
    """Takes a block from its owner: deletes it if it is empty, else leaves it to those who use its addresses.

    Raises NotEmpty, ClaimedElsewhere, and Conflict when the block is not (any more) at `sequence`, or changes.
    """
    affinity = await _affinity(ledger, owner, net)
    try:
        block = await ledger.block(net)
    except NotFound:
        if affinity is not None:
            await ledger.delete_affinity(affinity)
        return
    if sequence is not None and block.spec.sequence_number != sequence:
        raise Conflict(f"block {net} has changed: sequence number {block.spec.sequence_number}, not {sequence}")
    if block.spec.affinity not in (None, "", str(owner)):
        if affinity is not None:
            await ledger.delete_affinity(affinity)
        raise ClaimedElsewhere(f"block {net} belongs to {block.spec.affinity}, not to {owner}")
    if require_empty and not is_empty(block.spec):
        raise NotEmpty(f"block {net} of {owner} is not empty")
    if affinity is not None:
        affinity = await ledger.write_affinity(affinity, "pendingDeletion")
    try:
        await disown(ledger, block)
    except Conflict:
        await _restore(ledger, affinity)
        raise
    if affinity is not None:
        await ledger.delete_affinity(affinity)


async def disown(ledger: Ledger, block: IPAMBlock) -> None:
    """Deletes an empty block; one in use stays without owner. Raises Conflict."""
    if is_empty(block.spec):
        await ledger.delete_block(block)
    elif block.spec.affinity:
        await ledger.write_block(block, replace(block.spec, affinity=None, affinity_claim_time=None))


async def _affinity(ledger: Ledger, owner: Owner, net: Net) -> BlockAffinity | None:
    try:
        return await ledger.affinity(owner, net)
    except NotFound:
        return None


async def _restore(ledger: Ledger, affinity: BlockAffinity | None) -> None:
    """Takes back a release that lost to an assignment: else nobody would route the block until the next one."""
    if affinity is not None:
        with suppress(Conflict):
            await block_of(ledger, affinity)


async def claim_net(
    ledger: Ledger, owner: Owner, net: Net, pools: Iterable[IPPool]
) -> tuple[tuple[Net, ...], tuple[Net, ...]]:
    """Claims every block in a network: (those that are the owner's now, those that are another's).

    Raises ConfigError for a network outside `pools`, and for one smaller than a block of its pool.
    """
    pool = pool_of(pools, net)
    if pool is None:
        raise ConfigError(f"the requested CIDR ({net}) is not within any configured pools")
    if net.prefixlen > pool.spec.blocks:
        raise ConfigError(f"the requested CIDR ({net}) is smaller than a block of its pool (/{pool.spec.blocks})")
    ours: list[Net] = []
    others: list[Net] = []
    for block in net.subnets(new_prefix=pool.spec.blocks):
        try:
            await obtain(ledger, owner, block)
            ours.append(block)
        except (ClaimedElsewhere, StaleAffinity):
            others.append(block)
    return tuple(ours), tuple(others)


async def release_pool(ledger: Ledger, net: Net) -> tuple[TortieError, ...]:
    """Ends all claims to blocks of a pool, whoever's; returns what went wrong."""
    affinities = await ledger.all_affinities()
    inside = [each for each in affinities if within(parse_net(each.spec.cidr), net)]
    return await release_each(ledger, inside, require_empty=False)


async def release_each(
    ledger: Ledger, affinities: Iterable[BlockAffinity], *, require_empty: bool
) -> tuple[TortieError, ...]:
    """Releases affinities, going on past errors, which it returns; a change meanwhile is tried again."""
    errors: list[TortieError] = []
    for affinity in affinities:
        try:
            await _release_surely(ledger, affinity, require_empty)
        except TortieError as error:
            errors.append(error)
    return tuple(errors)


async def _release_surely(ledger: Ledger, affinity: BlockAffinity, require_empty: bool) -> None:
    owner, net = Owner.of(affinity), parse_net(affinity.spec.cidr)
    for tried in range(ATTEMPTS):
        await pause(tried)
        try:
            await release(ledger, owner, net, require_empty=require_empty)
            return
        except ClaimedElsewhere:
            return
        except NotEmpty:
            raise
        except Conflict:
            continue
    raise exhausted(f"release the affinity of {owner} to {net}")


async def label(ledger: Ledger, owner: Owner) -> bool:
    """Gives affinities of an owner the labels that others find them by, where an older version left them out. False if
    one of them changed meanwhile."""
    done = True
    for affinity in await ledger.affinities(owner):
        labels = names.affinity_labels(owner, parse_net(affinity.spec.cidr).version)
        if names.AFFINITY_TYPE not in affinity.labels:
            try:
                await ledger.store.update(changed(affinity, labels=affinity.labels | labels))
            except NotFound:
                continue
            except Conflict:
                done = False
    return done
