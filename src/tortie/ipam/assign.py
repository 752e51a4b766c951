"""Where callers come in: IPAM as one node sees it. Assign, release, look up; longer flows have their own files.

auto_assign ─► choose pools ─► for each family: the host's next block (search) ─► take addresses (fill) ─► again
assign      ─► the same, but all addresses that were asked for, or none
assign_ip   ─► this very address, in a block of whoever owns it, or in a new one of ours
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Literal

from tortie.base.addr import IP, Net, parse_net, within
from tortie.base.errors import ConfigError, Conflict, NotFound, TortieError, Unavailable
from tortie.ipam import affinity as claims
from tortie.ipam.block import CoolingDown, HostReserved, Release, assign, attribute, check_affinity, free_count, ordinal
from tortie.ipam.fill import Fill, Holder, Interface, Share, held_by
from tortie.ipam.handover import Transfer, hand_over
from tortie.ipam.ledger import ATTEMPTS, Ledger, exhausted, pause
from tortie.ipam.memory import Memory
from tortie.ipam.owner import Owner, confirmed
from tortie.ipam.pools import (
    LONGEST,
    Asker,
    Choice,
    Matches,
    Reserved,
    allocatable,
    block_net,
    choose,
    left_behind,
    pool_of,
    resolve,
)
from tortie.ipam.ready import Order
from tortie.ipam.release import Released, release_by_handles, release_ips
from tortie.ipam.search import Claims, Ground, NoBlock, Search
from tortie.model.ipam import (
    AllocationAttribute,
    BlockAffinity,
    IPAMBlock,
    IPAMConfig,
    IPAMConfigSpec,
    IPPool,
    IPReservation,
    Use,
)
from tortie.model.node import Node
from tortie.model.store import Store

MAX_BLOCKS = 20
"""Blocks that a host may hold when nothing says otherwise, as in Calico."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What came of a request for addresses of both families."""

    v4: Share
    v6: Share
    handle: str | None = None

    @property
    def ips(self) -> tuple[Interface, ...]:
        """IPv4 first; each with the prefix length of its block."""
        return self.v4.ips + self.v6.ips

    @property
    def shares(self) -> tuple[Share, Share]:
        return self.v4, self.v6


@dataclass(frozen=True, slots=True)
class Facts:
    """What an assignment decides on, read once."""

    config: IPAMConfigSpec
    pools: tuple[IPPool, ...]
    reserved: Reserved
    node_labels: Mapping[str, str]


@dataclass(slots=True, eq=False)
class _Leaving:
    """A handle that is to be released, and what has come of it."""

    handle: str
    done: bool = False
    error: TortieError | None = None


class Ipam:
    """The addresses of one node, or with `type="virtual"` of what is none (LoadBalancer services).

    `now` tells the time in UTC, `matches` evaluates selectors. Calls of one process take turns, which saves them
    compare-and-swaps that they would lose; nothing depends on it.
    """

    def __init__(
        self,
        store: Store,
        node: str,
        now: Callable[[], datetime],
        matches: Matches,
        type: Literal["host", "virtual"] = "host",
    ) -> None:
        self.owner = Owner(node, type)
        self._store = store
        self._now = now
        self._matches = matches
        self._turn = asyncio.Lock()
        self._leaving: list[_Leaving] = []
        """Handles to be released by whoever has the turn next."""
        self._memory = Memory()

    async def config(self) -> IPAMConfigSpec:
        """The cluster's IPAM configuration, or the defaults."""
        try:
            return (await self._store.get(IPAMConfig, "default")).spec
        except NotFound:
            return IPAMConfigSpec()

    async def ledger(self) -> Ledger:
        """What writes blocks and handles, with the cluster's cooldown."""
        return self._ledger(await self.config())

    def _ledger(self, config: IPAMConfigSpec, kept: HostReserved | None = None) -> Ledger:
        return Ledger(self._store, self._now, config.ip_cooldown_seconds, kept, self._memory)

    async def auto_assign(
        self,
        num4: int = 0,
        num6: int = 0,
        *,
        handle: str | None,
        attrs: Mapping[str, str],
        pools4: Sequence[str] = (),
        pools6: Sequence[str] = (),
        use: Use = "Workload",
        namespace_labels: Mapping[str, str] | None = None,
        max_blocks: int = 0,
        max_per_handle: int = 0,
        kept: HostReserved | None = None,
    ) -> Assignment:
        """As many of the wanted addresses as there are. Pools are given by CIDR or name; none: those that select us.
        A handle that has `max_per_handle` addresses of a family gets those. Of new blocks the host keeps `kept`.

        Raises ConfigError when no pool can serve a family (then nothing is assigned), NotFound without Node.
        What goes wrong later is in the shares, as are the addresses that were assigned before.
        """
        async with self._turn:
            facts = await self._facts()
            asker = Asker(self.owner.name, facts.node_labels, namespace_labels, use)
            wishes = [
                (version, wanted, self._choice(facts, version, entries, asker, kept) if wanted else None)
                for version, wanted, entries in ((4, num4, pools4), (6, num6, pools6))
            ]
            holder = Holder(handle, attrs, max_per_handle)
            shares: list[Share] = []
            for version, wanted, choice in wishes:
                if choice is None or any(share.error for share in shares):
                    shares.append(Share(version, wanted))
                else:
                    ledger = self._ledger(facts.config, kept)
                    ground, own = self._ground(ledger, facts, choice, version, max_blocks)
                    filling = Fill(ledger, ground, facts.config.strict_affinity, holder)
                    shares.append(await filling.run(version, wanted, own))
            return Assignment(shares[0], shares[1], handle)

    async def all_or_nothing(self, got: Assignment) -> tuple[Interface, ...]:
        """The addresses, if all that were wanted are there. Else releases them and raises Unavailable saying which
        family fell short and why."""
        failed = next((share for share in got.shares if share.error), None)
        failed = failed or next((share for share in got.shares if share.short), None)
        if failed is None:
            return got.ips
        with suppress(TortieError):
            new = (each for share in got.shares if not share.had for each in share.ips)
            await self.release_ips([Release(each.ip, got.handle) for each in new])
        reason = "" if failed.error is None or str(failed.error) in failed.messages else f"; {failed.error}"
        raise Unavailable(f"failed to request IPv{failed.version} addresses: {failed}{reason}") from failed.error

    async def _facts(self) -> Facts:
        config = await self.config()
        pools = (await self._store.list(IPPool)).items
        reservations = (await self._store.list(IPReservation)).items
        return Facts(config, pools, Reserved.of(reservations), await self._node_labels())

    async def _node_labels(self) -> Mapping[str, str]:
        if self.owner.type == "virtual":
            return {}
        try:
            return (await self._store.get(Node, self.owner.name)).labels
        except NotFound:
            raise NotFound(f"assign addresses: there is no Node {self.owner.name}; its agent registers it") from None

    def _choice(
        self, facts: Facts, version: int, entries: Sequence[str], asker: Asker, kept: HostReserved | None
    ) -> Choice:
        requested = resolve(entries, facts.pools, version)
        longest = LONGEST if kept is None else kept.max_prefixlen(32 if version == 4 else 128)
        return choose(facts.pools, version, requested, asker, self._matches, longest)

    async def _claims(self, ledger: Ledger, facts: Facts, choice: Choice, version: int) -> Claims:
        """The host's blocks in one family; lets go of those in pools that this node has no place in any more."""
        own: list[BlockAffinity] = []
        taken: list[Net] = []
        for affinity in await ledger.all_affinities():
            net = parse_net(affinity.spec.cidr)
            taken.append(net)
            if net.version != version or Owner.of(affinity) != self.owner:
                continue
            if pool_of(choice.allowed, net) is not None:
                own.append(affinity)
            elif left_behind(net, choice, facts.pools, facts.node_labels, self._matches):
                with suppress(Conflict):
                    await claims.release(ledger, self.owner, net, require_empty=True)
        return Claims(tuple(own), frozenset(taken))

    def _ground(
        self, ledger: Ledger, facts: Facts, choice: Choice, version: int, max_blocks: int
    ) -> tuple[Ground, Callable[[], Awaitable[Claims]]]:
        """Where to look in one family, and how to list what the host has there."""
        limits = [limit for limit in (max_blocks, facts.config.max_blocks_per_host) if limit]
        ground = Ground(
            owner=self.owner,
            pools=choice.allowed,
            reserved=facts.reserved,
            limit=min(limits, default=MAX_BLOCKS),
            auto_allocate=facts.config.auto_allocate,
            seed=int(self._now().timestamp() * 1_000_000),
        )
        return ground, partial(self._claims, ledger, facts, choice, version)

    async def ensure_block(
        self,
        kept4: HostReserved | None = None,
        kept6: HostReserved | None = None,
        *,
        pools4: Sequence[str] = (),
        pools6: Sequence[str] = (),
        use: Use = "Workload",
    ) -> tuple[Net | None, Net | None]:
        """A block of each family of which the host keeps something, full or not, claimed if the host has none yet.

        A Windows host asks for it before its first pod, to set its network up. Raises ConfigError without a pool,
        NotFound without Node, BlockLimit and NoBlock when there is no block to be had.
        """
        async with self._turn:
            facts = await self._facts()
            asker = Asker(self.owner.name, facts.node_labels, None, use)
            nets: list[Net | None] = []
            for version, kept, entries in ((4, kept4, pools4), (6, kept6, pools6)):
                if kept is None:
                    nets.append(None)
                    continue
                choice = self._choice(facts, version, entries, asker, kept)
                ledger = self._ledger(facts.config, kept)
                ground, own = self._ground(ledger, facts, choice, version, 0)
                block = await Search(ledger, ground, own).next(least=0)
                if block is None:
                    raise NoBlock(f"failed to find or claim an IPv{version} block: no pool has a free one")
                nets.append(block.spec.net)
            return nets[0], nets[1]

    async def lay_in(
        self, version: int, pools: Sequence[str], wanted: Order, *, handle: str, attrs: Mapping[str, str]
    ) -> Share:
        """Addresses of these pools for pods to come, from blocks of this node only: fewer when they have no more.

        Raises ConfigError when no pool can serve the family, NotFound without Node.
        """
        async with self._turn:
            facts = await self._facts()
            asker = Asker(self.owner.name, facts.node_labels, None, "Workload")
            choice = self._choice(facts, version, pools, asker, None)
            ledger = self._ledger(facts.config)
            ground, own = self._ground(ledger, facts, choice, version, 0)
            if not wanted.claim:
                ground = replace(ground, auto_allocate=False)
            filling = Fill(ledger, ground, True, Holder(handle, attrs), wanted.ahead)
            return await filling.run(version, wanted.wanted, own)

    async def hand_over(self, giver: str, transfers: Sequence[Transfer]) -> tuple[IP, ...]:
        """Makes addresses of one handle those of others, block by block; returns those that are another's by now.

        Raises Unavailable, Conflict, and then may be done again.
        """
        async with self._turn:
            return await hand_over(await self.ledger(), self.owner, giver, transfers)

    async def free_at_hand(self, nets: Iterable[Net]) -> int:
        """How many free addresses this node's blocks in some networks have, reserved ones among them."""
        ledger, nets, free = await self.ledger(), list(nets), 0
        for own in await self.host_blocks():
            with suppress(NotFound):
                if any(within(own, net) for net in nets):
                    free += free_count((await ledger.block(own)).spec)
        return free

    async def assign_ip(self, ip: IP, *, handle: str | None, attrs: Mapping[str, str], use: Use | None = None) -> None:
        """This very address, even from a pool that does not select this node, and even if it is reserved.

        Raises ConfigError when no enabled pool has it or allows `use`, Exists when it is assigned or cools down,
        ForeignBlock when affinity is strict and the block another's.
        """
        async with self._turn:
            config = await self.config()
            pools = [pool for pool in (await self._store.list(IPPool)).items if allocatable(pool)]
            pool = pool_of(pools, ip)
            if pool is None:
                raise ConfigError(f"The provided IP address is not in a configured pool: {ip}")
            if use is not None and use not in pool.spec.uses:
                raise ConfigError(f'pool {pool.name} ({pool.spec.cidr}) of {ip} does not have allowedUses "{use}"')
            ledger, net = self._ledger(config), block_net(pool, ip)
            for tried in range(ATTEMPTS):
                await pause(tried)
                with suppress(Conflict):
                    block = await self._block_at(ledger, net)
                    if config.strict_affinity:
                        check_affinity(block.spec, str(self.owner))
                    await ledger.write_assignment(block, assign(block.spec, ip, handle, attrs), handle, 1)
                    return
            raise exhausted(f"assign {ip}")

    async def _block_at(self, ledger: Ledger, net: Net) -> IPAMBlock:
        """The block that is there, or one claimed by us; a claim of ours that was cut short is finished.

        Raises Conflict when another is faster.
        """
        try:
            block = await ledger.block(net)
        except NotFound:
            return await claims.obtain(ledger, self.owner, net)
        if block.spec.affinity == str(self.owner):
            with suppress(NotFound):
                affinity = await ledger.affinity(self.owner, net)
                return block if confirmed(affinity) else await claims.block_of(ledger, affinity)
        return block

    async def release_ips(self, releases: Iterable[Release]) -> Released:
        """Releases addresses; those of one block succeed or fail together."""
        async with self._turn:
            return await release_ips(await self.ledger(), tuple(releases), self._matches)

    async def release_by_handle(self, handle: str) -> None:
        """Releases everything that a handle holds, together with whoever else waits for it: many pods that go at once
        are one write of their block. Raises NotFound if there is no such handle."""
        mine = _Leaving(handle)
        self._leaving.append(mine)
        try:
            async with self._turn:
                if not mine.done:
                    await self._release_all()
        finally:
            with suppress(ValueError):  # another's turn has brought it
                self._leaving.remove(mine)
        if mine.error is not None:
            raise mine.error

    async def _release_all(self) -> None:
        """For all that wait, in the turn of one of them. Should that one be cancelled, the others do it in theirs."""
        together, self._leaving = self._leaving, []
        try:
            handles = {one.handle for one in together}
            failures = await release_by_handles(await self.ledger(), handles, self._matches)
        except TortieError as error:
            failures = dict.fromkeys(handles, error)
        except BaseException:
            self._leaving = together + self._leaving
            raise
        for one in together:
            one.done, one.error = True, failures.get(one.handle)

    async def count_what_is_held(self, handle: str) -> None:
        """Counts down what a crash has left a handle of this node's own counting too many."""
        async with self._turn:
            await (await self.ledger()).count_what_is_held(handle)

    async def ips_by_handle(self, handle: str) -> tuple[IP, ...]:
        """The addresses that a handle holds, IPv4 first. Raises NotFound if there is no such handle."""
        ledger = await self.ledger()
        await ledger.handle(handle)
        return tuple(each.ip for each in await held_by(ledger, handle))

    async def attributes_of(self, ip: IP) -> AllocationAttribute:
        """Who holds an address. Raises NotFound if nobody does, CoolingDown after its release."""
        ledger = await self.ledger()
        pool = pool_of((each for each in (await self._store.list(IPPool)).items if allocatable(each)), ip)
        if pool is None:
            raise NotFound(f"{ip} is not in an enabled pool")
        try:
            block = await ledger.block(block_net(pool, ip))
        except NotFound:
            raise NotFound(f"{ip} is not assigned") from None
        held = attribute(block.spec, ordinal(block.spec, ip))
        if held is None:
            raise NotFound(f"{ip} is not assigned")
        if held.released_at:
            raise CoolingDown(f"{ip} is in cooldown: released at {held.released_at}")
        return held

    async def host_blocks(self) -> tuple[Net, ...]:
        """The networks of this node's blocks: those whose claim is confirmed."""
        affinities = await Ledger(self._store, self._now).affinities(self.owner)
        return tuple(parse_net(each.spec.cidr) for each in affinities if confirmed(each))

    async def claim_affinity(self, net: Net) -> tuple[tuple[Net, ...], tuple[Net, ...]]:
        """Claims all blocks in a network for this node: (ours, those of others). Raises ConfigError."""
        pools = [pool for pool in (await self._store.list(IPPool)).items if allocatable(pool)]
        return await claims.claim_net(await self.ledger(), self.owner, net, pools)

    async def release_affinity(self, net: Net, *, require_empty: bool) -> None:
        """Ends this node's claim to a block. Raises NotEmpty, ClaimedElsewhere, Conflict."""
        await claims.release(await self.ledger(), self.owner, net, require_empty=require_empty)

    async def release_host_affinities(self, *, require_empty: bool) -> tuple[TortieError, ...]:
        """Ends this node's claim to all its blocks, as far as that goes; returns what went wrong."""
        ledger = await self.ledger()
        return await claims.release_each(ledger, await ledger.affinities(self.owner), require_empty=require_empty)

    async def release_pool_affinities(self, net: Net) -> tuple[TortieError, ...]:
        """Ends all claims to blocks of a pool, whoever's; returns what went wrong."""
        return await claims.release_pool(await self.ledger(), net)

    async def label_affinities(self) -> bool:
        """Labels the affinities of this node that an older version left without. False: do it again."""
        return await claims.label(await self.ledger(), self.owner)
