"""Where callers come in: IPAM as one node sees it. Assign, release, look up; longer flows have their own files.

auto_assign ─► choose pools ─► for each family: the host's next block (search) ─► take addresses (fill) ─► again
assign      ─► the same, but all addresses that were asked for, or none
assign_ip   ─► this very address, in a block of whoever owns it, or in a new one of ours
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tortie.base.addr import IP, Net, parse_net, within
from tortie.base.errors import ConfigError, Conflict, NotFound, TortieError, Unavailable
from tortie.ipam import affinity as claims
from tortie.ipam.block import Release, assign, attribute, check_affinity, ips_of, ordinal
from tortie.ipam.fill import Fill, Holder, Interface, Share
from tortie.ipam.ledger import ATTEMPTS, Ledger, exhausted, pause
from tortie.ipam.owner import Owner, confirmed
from tortie.ipam.pools import (
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
from tortie.ipam.release import Released, release_by_handle, release_ips
from tortie.ipam.search import Ground
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
    affinities: tuple[BlockAffinity, ...]


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

    async def config(self) -> IPAMConfigSpec:
        """The cluster's IPAM configuration, or the defaults."""
        try:
            return (await self._store.get(IPAMConfig, "default")).spec
        except NotFound:
            return IPAMConfigSpec()

    async def _ledger(self) -> Ledger:
        return Ledger(self._store, self._now, (await self.config()).ip_cooldown_seconds)

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
    ) -> Assignment:
        """As many of the wanted addresses as there are. Pools are given by CIDR or name; none: those that select us.

        Raises ConfigError when no pool can serve a family (then nothing is assigned), NotFound without Node.
        What goes wrong later is in the shares, as are the addresses that were assigned before.
        """
        async with self._turn:
            facts = await self._facts()
            asker = Asker(self.owner.name, facts.node_labels, namespace_labels, use)
            wishes = [
                (version, wanted, self._choice(facts, version, wanted, entries, asker))
                for version, wanted, entries in ((4, num4, pools4), (6, num6, pools6))
            ]
            holder = Holder(handle, attrs)
            shares: list[Share] = []
            for version, wanted, choice in wishes:
                if choice is None or any(share.error for share in shares):
                    shares.append(Share(version, wanted))
                else:
                    shares.append(await self._share(facts, choice, version, wanted, holder, max_blocks))
            return Assignment(shares[0], shares[1], handle)

    async def all_or_nothing(self, got: Assignment) -> tuple[Interface, ...]:
        """The addresses, if all that were wanted are there. Else releases them and raises Unavailable saying which
        family fell short and why."""
        failed = next((share for share in got.shares if share.error), None)
        failed = failed or next((share for share in got.shares if share.short), None)
        if failed is None:
            return got.ips
        with suppress(TortieError):
            await self.release_ips([Release(each.ip, got.handle) for each in got.ips])
        reason = "" if failed.error is None or str(failed.error) in failed.messages else f"; {failed.error}"
        raise Unavailable(f"failed to request IPv{failed.version} addresses: {failed}{reason}") from failed.error

    async def _facts(self) -> Facts:
        ledger = Ledger(self._store, self._now)
        config = await self.config()
        pools = (await self._store.list(IPPool)).items
        reservations = (await self._store.list(IPReservation)).items
        affinities = await ledger.affinities(self.owner)
        labels = await self._node_labels()
        return Facts(config, pools, Reserved.of(reservations), labels, tuple(affinities))

    async def _node_labels(self) -> Mapping[str, str]:
        if self.owner.type == "virtual":
            return {}
        try:
            return (await self._store.get(Node, self.owner.name)).labels
        except NotFound:
            raise NotFound(f"assign addresses: there is no Node {self.owner.name}; its agent registers it") from None

    def _choice(self, facts: Facts, version: int, wanted: int, entries: Sequence[str], asker: Asker) -> Choice | None:
        if not wanted:
            return None
        requested = resolve(entries, facts.pools, version)
        return choose(facts.pools, version, requested, asker, self._matches)

    async def _share(
        self, facts: Facts, choice: Choice, version: int, wanted: int, holder: Holder, max_blocks: int
    ) -> Share:
        """Runs one family; first lets go of blocks in pools that this node has no place in any more."""
        ledger = Ledger(self._store, self._now, facts.config.ip_cooldown_seconds)
        own: list[BlockAffinity] = []
        for affinity in facts.affinities:
            net = parse_net(affinity.spec.cidr)
            if net.version != version:
                continue
            if pool_of(choice.allowed, net) is not None:
                own.append(affinity)
            elif left_behind(net, choice, facts.pools, facts.node_labels, self._matches):
                with suppress(Conflict):
                    await claims.release(ledger, self.owner, net, require_empty=True)
        limits = [limit for limit in (max_blocks, facts.config.max_blocks_per_host) if limit]
        ground = Ground(
            owner=self.owner,
            pools=choice.allowed,
            reserved=facts.reserved,
            limit=min(limits, default=MAX_BLOCKS),
            auto_allocate=facts.config.auto_allocate,
            seed=int(self._now().timestamp() * 1_000_000),
        )
        return await Fill(ledger, ground, facts.config.strict_affinity, holder).run(version, wanted, own)

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
            ledger, net = Ledger(self._store, self._now, config.ip_cooldown_seconds), block_net(pool, ip)
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
        """The block that is there, or one claimed by us. Raises Conflict when another is faster."""
        try:
            return await ledger.block(net)
        except NotFound:
            return await claims.obtain(ledger, self.owner, net)

    async def release_ips(self, releases: Iterable[Release]) -> Released:
        """Releases addresses; those of one block succeed or fail together."""
        async with self._turn:
            return await release_ips(await self._ledger(), tuple(releases), self._matches)

    async def release_by_handle(self, handle: str) -> None:
        """Releases everything that a handle holds. Raises NotFound if there is no such handle."""
        async with self._turn:
            await release_by_handle(await self._ledger(), handle, self._matches)

    async def ips_by_handle(self, handle: str) -> tuple[IP, ...]:
        """The addresses that a handle holds, IPv4 first. Raises NotFound if there is no such handle."""
        ledger = await self._ledger()
        found: list[IP] = []
        for cidr in (await ledger.handle(handle)).spec.block:
            with suppress(NotFound):
                found += ips_of((await ledger.block(parse_net(cidr))).spec, handle)
        return tuple(sorted(found, key=lambda ip: (ip.version, int(ip))))

    async def attributes_of(self, ip: IP) -> AllocationAttribute:
        """Who holds an address. Raises NotFound if nobody does, Unavailable while it cools down."""
        ledger = await self._ledger()
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
            raise Unavailable(f"{ip} is in cooldown: released at {held.released_at}")
        return held

    async def host_blocks(self) -> tuple[Net, ...]:
        """The networks of this node's blocks: those whose claim is confirmed."""
        affinities = await Ledger(self._store, self._now).affinities(self.owner)
        return tuple(parse_net(each.spec.cidr) for each in affinities if confirmed(each))

    async def claim_affinity(self, net: Net) -> tuple[tuple[Net, ...], tuple[Net, ...]]:
        """Claims all blocks in a network for this node: (ours, those of others). Raises ConfigError."""
        pools = [pool for pool in (await self._store.list(IPPool)).items if allocatable(pool)]
        return await claims.claim_net(await self._ledger(), self.owner, net, pools)

    async def release_affinity(self, net: Net, *, require_empty: bool) -> None:
        """Ends this node's claim to a block. Raises NotEmpty, ClaimedElsewhere, Conflict."""
        await claims.release(await self._ledger(), self.owner, net, require_empty=require_empty)

    async def release_host_affinities(self, *, require_empty: bool) -> tuple[TortieError, ...]:
        """Ends this node's claim to all its blocks, as far as that goes; returns what went wrong."""
        ledger = await self._ledger()
        return await claims.release_each(ledger, await ledger.affinities(self.owner), require_empty=require_empty)

    async def release_pool_affinities(self, net: Net) -> tuple[TortieError, ...]:
        """Ends all claims to blocks of a pool, whoever's; returns what went wrong."""
        affinities = (await self._store.list(BlockAffinity)).items
        inside = [each for each in affinities if within(parse_net(each.spec.cidr), net)]
        return await claims.release_each(await self._ledger(), inside, require_empty=False)

    async def label_affinities(self) -> None:
        """Labels the affinities of this node that an older version left without."""
        await claims.label(await self._ledger(), self.owner)
