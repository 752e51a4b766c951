"""Giving addresses back, by address or by handle. A block that has become useless to its host goes with them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from tortie.base.addr import IP, Net, parse_net
from tortie.base.errors import ConfigError, Conflict, NotFound, TortieError
from tortie.ipam import affinity as claims
from tortie.ipam.block import Freed, Release, is_empty, release, release_handles
from tortie.ipam.ledger import ATTEMPTS, Ledger, exhausted, pause
from tortie.ipam.owner import Owner
from tortie.ipam.pools import Matches, block_net, pool_of, selects_node
from tortie.model.ipam import IPAMBlock, IPAMBlockSpec, IPAMHandle, IPPool
from tortie.model.node import Node

K = TypeVar("K")
T = TypeVar("T")

PARALLEL = 8
"""Blocks, or handles, worked on at a time: enough to hide a remote datastore's latency."""


@dataclass(frozen=True, slots=True)
class Released:
    """What came of a request: `done` met no error; `error` is the first of those that were met."""

    done: tuple[Release, ...]
    not_allocated: tuple[IP, ...]
    error: TortieError | None = None


async def release_ips(ledger: Ledger, releases: Sequence[Release], matches: Matches) -> Released:
    """Releases addresses. Those of one block succeed or fail together."""
    releases = [_cleaned(each) for each in releases]
    pools = (await ledger.store.list(IPPool)).items
    groups, lost = await _by_block(ledger, releases, pools)
    outcomes = await _together(lambda net: _release_in(ledger, net, groups[net], matches), groups)
    done, gone = list(lost), [each.ip for each in lost]
    errors: list[TortieError] = []
    for net, outcome in outcomes.items():
        if isinstance(outcome, TortieError):
            errors.append(outcome)
        else:
            done += groups[net]
            gone += outcome
    return Released(tuple(done), tuple(dict.fromkeys(gone)), errors[0] if errors else None)


async def release_apart(
    ledger: Ledger, releases: Sequence[Release], matches: Matches
) -> tuple[Released, tuple[tuple[Release, TortieError], ...]]:
    """Releases addresses, none of which keeps another from being released; second, those that could not be and why."""
    together = await release_ips(ledger, releases, matches)
    if together.error is None:
        return together, ()
    done, gone = list(together.done), list(together.not_allocated)
    failures: list[tuple[Release, TortieError]] = []
    for each in releases:
        if each in together.done:
            continue
        alone = await release_ips(ledger, [each], matches)
        if alone.error is not None:
            failures.append((each, alone.error))
        done += alone.done
        gone += alone.not_allocated
    return Released(tuple(done), tuple(dict.fromkeys(gone))), tuple(failures)


def _cleaned(wanted: Release) -> Release:
    """Handles read back from files of host-local may have a line end in them."""
    return wanted if wanted.handle is None else Release(wanted.ip, wanted.handle.split("\r")[0], wanted.sequence)


async def _by_block(
    ledger: Ledger, releases: Iterable[Release], pools: Iterable[IPPool]
) -> tuple[dict[Net, list[Release]], list[Release]]:
    """Addresses by the block they lie in; second, those that lie in none."""
    groups: dict[Net, list[Release]] = {}
    outside: list[Release] = []
    for each in releases:
        pool = pool_of(pools, each.ip)
        if pool is None:
            outside.append(each)
        else:
            groups.setdefault(block_net(pool, each.ip), []).append(each)
    lost: list[Release] = []
    nets = [block.spec.net for block in await ledger.blocks()] if outside else []
    for each in outside:
        net = next((net for net in nets if each.ip in net), None)
        if net is None:
            lost.append(each)
        else:
            groups.setdefault(net, []).append(each)
    return groups, lost


async def _release_in(ledger: Ledger, net: Net, wanted: Sequence[Release], matches: Matches) -> tuple[IP, ...]:
    """Releases addresses of one block; returns those that were not allocated. Raises Conflict for a wrong owner."""
    for tried in range(ATTEMPTS):
        await pause(tried)
        try:
            block = await ledger.block(net)
        except NotFound:
            return tuple(each.ip for each in wanted)
        freed = release(block.spec, wanted, ledger.now(), ledger.cooldown)
        if freed.block is block.spec:
            return freed.not_allocated
        try:
            await _write(ledger, block, freed)
        except Conflict:
            continue
        for handle, count in freed.counts.items():
            await ledger.count_down(handle, net, count)
        await _settle(ledger, freed.block, matches)
        return freed.not_allocated
    raise exhausted(f"release addresses of block {net}")


async def _write(ledger: Ledger, block: IPAMBlock, freed: Freed) -> None:
    """Writes a block after a release; one without owner goes when its last address does. Raises Conflict."""
    if is_empty(freed.block) and not freed.block.affinity:
        await ledger.delete_block(block)
    else:
        await ledger.write_block(block, freed.block)


async def _settle(ledger: Ledger, block: IPAMBlockSpec, matches: Matches) -> None:
    """Ends the host's claim to a block that is empty now and in whose pool the host has no place any more.

    The addresses are released already, so nothing that goes wrong here is an error: the next release tries again.
    """
    if not block.affinity or not is_empty(block):
        return
    owner = Owner.parse(block.affinity)
    if owner.type != "host":
        return
    with suppress(TortieError):
        pool = pool_of((await ledger.store.list(IPPool)).items, block.net)
        if pool is not None and not selects_node(pool, (await ledger.store.get(Node, owner.name)).labels, matches):
            await claims.release(ledger, owner, block.net, require_empty=True)


async def release_by_handles(ledger: Ledger, handles: Collection[str], matches: Matches) -> dict[str, TortieError]:
    """Releases everything that handles hold, and the handles; what all of them hold of a block in one write. Returns
    why some are not released: NotFound for a handle that is not there.

    Each block is written even if a handle, counting too many after a crash, holds nothing in it. An assignment for
    a handle that is under way has counted itself in the handle before it writes the block; so either its write of
    the block fails, or the handle has changed when it is to be deleted, and all is done again.
    """
    failures: dict[str, TortieError] = {}
    left: dict[str, IPAMHandle] = {}

    async def delete(handle: str) -> IPAMHandle | None:
        """None when it is gone; else as it is now."""
        try:
            await ledger.delete_handle(left[handle])
        except Conflict:
            with suppress(NotFound):
                return await ledger.handle(handle)
        return None

    left = _sorted(await _together(ledger.handle, handles), failures)
    for tried in range(ATTEMPTS):
        await pause(tried)
        wanted: dict[Net, set[str]] = {}
        for handle, stored in left.items():
            try:
                for net in [*map(parse_net, stored.spec.block)]:
                    wanted.setdefault(net, set()).add(handle)
            except ConfigError as error:
                failures[handle] = error
        release = partial(_release_handles_in, ledger, wanted, matches)
        for net, outcome in (await _together(release, wanted)).items():
            if outcome is not None:
                failures |= dict.fromkeys(wanted[net], outcome)
        left = _sorted(await _together(delete, left.keys() - failures.keys()), failures)
        if not left:
            return failures
    return failures | {handle: exhausted(f"release handle {handle}") for handle in left}


def _sorted(
    found: Mapping[str, IPAMHandle | TortieError | None], failures: dict[str, TortieError]
) -> dict[str, IPAMHandle]:
    """The handles that are there; what went wrong with others goes to the failures."""
    failures |= {handle: error for handle, error in found.items() if isinstance(error, TortieError)}
    return {handle: stored for handle, stored in found.items() if isinstance(stored, IPAMHandle)}


async def _together(work: Callable[[K], Awaitable[T]], keys: Iterable[K]) -> dict[K, T | TortieError]:
    """What becomes of each, some at a time. Nothing is under way any more when it returns or raises."""
    slots = asyncio.Semaphore(PARALLEL)

    async def one(key: K) -> T:
        async with slots:
            return await work(key)

    outcomes: dict[K, T | TortieError] = {}
    keys = list(keys)
    for key, outcome in zip(keys, await asyncio.gather(*map(one, keys), return_exceptions=True), strict=True):
        if isinstance(outcome, BaseException) and not isinstance(outcome, TortieError):
            raise outcome
        outcomes[key] = outcome
    return outcomes


async def _release_handles_in(ledger: Ledger, wanted: Mapping[Net, Set[str]], matches: Matches, net: Net) -> None:
    for tried in range(ATTEMPTS):
        await pause(tried)
        try:
            block = await ledger.block(net)
        except NotFound:
            return
        freed = release_handles(block.spec, wanted[net], ledger.now(), ledger.cooldown)
        try:
            await _write(ledger, block, freed)
        except Conflict:
            continue
        await _settle(ledger, freed.block, matches)
        return
    raise exhausted(f"release {len(wanted[net])} handles in block {net}")
