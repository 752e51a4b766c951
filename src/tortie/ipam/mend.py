"""Makes repairs, each on its own and only if the datastore still has what it was decided on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from msgspec.structs import replace

from tortie.base.addr import IP, parse_net
from tortie.base.errors import Conflict, NotFound, TortieError
from tortie.ipam import affinity as claims
from tortie.ipam.assign import Ipam
from tortie.ipam.block import ips_of
from tortie.ipam.ledger import ATTEMPTS, Ledger, exhausted, pause
from tortie.ipam.mended import mended
from tortie.ipam.pools import Matches
from tortie.ipam.release import release_ips
from tortie.ipam.repair import (
    Adopt,
    Claim,
    CountUp,
    Disown,
    DropAffinity,
    DropEndpoint,
    FinishClaim,
    MendBlock,
    Reclaim,
    Recount,
    Repair,
)
from tortie.ipam.survey import endpoint_ips
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMHandle
from tortie.model.meta import Resource
from tortie.model.workload import WorkloadEndpoint

SETTLE = 0.5
"""Seconds in which a process that has counted an address, and cannot write its block any more, counts it back."""


@dataclass(frozen=True)
class Outcome:
    """What became of a repair: made, unless there is an error."""

    repair: Repair
    error: TortieError | None = None

    def __str__(self) -> str:
        return f"{self.repair}" if self.error is None else f"{self.repair}: not done: {self.error}"


async def make(
    ledger: Ledger, repairs: Sequence[Repair], matches: Matches, settle: float = SETTLE
) -> AsyncIterator[Outcome]:
    """Makes repairs in their order, except that handles are recounted together, at the end."""
    recounts = [repair for repair in repairs if isinstance(repair, Recount)]
    blocked: set[IP] = set()
    for repair in repairs:
        if isinstance(repair, Recount):
            continue
        try:
            if isinstance(repair, Reclaim) and repair.allocation.ip in blocked:
                raise Conflict("a dead endpoint still has it")
            await _make(ledger, repair, matches)
        except TortieError as error:
            if isinstance(repair, DropEndpoint):
                blocked.update(endpoint_ips(repair.endpoint))
            yield Outcome(repair, error)
        else:
            yield Outcome(repair)
    if recounts:
        for outcome in await _recount(ledger, recounts, settle):
            yield outcome


async def _make(ledger: Ledger, repair: Repair, matches: Matches) -> None:
    match repair:
        case MendBlock(block=block):
            await _mend(ledger, block)
        case DropAffinity(affinity=affinity):
            await _delete(ledger, affinity, BlockAffinity)
        case FinishClaim(affinity=affinity):
            await claims.block_of(ledger, affinity)
        case Claim(owner=owner, net=net):
            await claims.obtain(ledger, owner, net)
        case Disown(block=block):
            await claims.disown(ledger, block)
        case CountUp():
            await _count_up(ledger, repair)
        case Adopt():
            await _adopt(ledger, repair, matches)
        case DropEndpoint(endpoint=endpoint):
            await _delete(ledger, endpoint, WorkloadEndpoint)
        case Reclaim(allocation=allocation):
            released = await release_ips(ledger, [allocation.release], matches)
            if released.error is not None:
                raise released.error


async def _delete(ledger: Ledger, obj: Resource, kind: type[Resource]) -> None:
    """Deletes what was read. Raises Conflict; that it is gone is fine."""
    with suppress(NotFound):
        await ledger.store.delete(kind, obj.name, obj.namespace, obj.metadata.resource_version)


async def _mend(ledger: Ledger, planned: IPAMBlock) -> None:
    """Reads past the ledger, which expects of a block that it makes sense."""
    for tried in range(ATTEMPTS):
        await pause(tried)
        block = await ledger.store.get(IPAMBlock, planned.name)
        whole = mended(block.spec, ledger.now())
        if whole is block.spec:
            return
        with suppress(Conflict):
            await ledger.write_block(block, whole)
            return
    raise exhausted(f"mend {planned.title}")


async def _count_up(ledger: Ledger, repair: CountUp) -> None:
    """A release that is faster leaves a handle that counts too many, which is harmless."""
    held = len(ips_of((await ledger.block(repair.net)).spec, repair.handle))
    try:
        known = (await ledger.handle(repair.handle)).spec.block.get(str(repair.net), 0)
    except NotFound:
        known = 0
    if known < held:
        await ledger.count_up(repair.handle, repair.net, held - known)


async def _adopt(ledger: Ledger, repair: Adopt, matches: Matches) -> None:
    """Raises Exists when somebody has got the address by now, Conflict when the endpoint is not what it was."""
    planned = repair.endpoint
    stored = await ledger.store.get(WorkloadEndpoint, planned.name, planned.namespace)
    if stored.spec != planned.spec:
        raise Conflict(f"{planned.title} has changed")
    ipam = Ipam(ledger.store, planned.spec.node, ledger.now, matches)
    timestamp = f"{ledger.now():%Y-%m-%d %H:%M:%S.%f} +0000 UTC"
    await ipam.assign_ip(repair.ip, handle=repair.handle, attrs={**repair.attrs, "timestamp": timestamp})


async def _recount(ledger: Ledger, recounts: Sequence[Recount], settle: float) -> list[Outcome]:
    """Writes what handles hold in place of what they count.

    Somebody may be about to assign: the handle is counted, the block is still to be written. So each block is written
    first, which makes that write fail; whoever was about to make it counts the handle back within `settle` seconds, and
    then the handle is not what was read and stays as it is.
    """
    read: list[tuple[Recount, IPAMHandle, dict[str, int]]] = []
    outcomes: list[Outcome] = []
    for repair in recounts:
        try:
            stored = await ledger.handle(repair.handle.spec.handle_id)
            counts = {cidr: await _shaken(ledger, cidr, stored.spec.handle_id) for cidr in stored.spec.block}
            read.append((repair, stored, counts))
        except NotFound:
            outcomes.append(Outcome(repair))
        except TortieError as error:
            outcomes.append(Outcome(repair, error))
    await asyncio.sleep(settle)
    for repair, stored, counts in read:
        try:
            await _write_counts(ledger, stored, {cidr: count for cidr, count in counts.items() if count})
        except TortieError as error:
            outcomes.append(Outcome(repair, error))
        else:
            outcomes.append(Outcome(repair))
    return outcomes


async def _shaken(ledger: Ledger, cidr: str, handle: str) -> int:
    """How many addresses a handle holds in a block, which is written once more. The block may be gone."""
    for tried in range(ATTEMPTS):
        await pause(tried)
        try:
            block = await ledger.block(parse_net(cidr))
        except NotFound:
            return 0
        with suppress(Conflict):
            return len(ips_of((await ledger.write_block(block)).spec, handle))
    raise exhausted(f"write block {cidr}")


async def _write_counts(ledger: Ledger, stored: IPAMHandle, counts: dict[str, int]) -> None:
    if counts:
        await ledger.store.update(replace(stored, spec=replace(stored.spec, block=counts)))
    else:
        await ledger.delete_handle(stored)
