"""A cluster on values for tests of IPAM: a store, a clock that stands still, and the questions that tests ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace

from tortie.base.addr import IP, Net, parse_ip, parse_net
from tortie.ipam.assign import Ipam
from tortie.ipam.check import Finding, check
from tortie.ipam.fill import Share
from tortie.model.ipam import (
    BlockAffinity,
    IPAMBlock,
    IPAMConfig,
    IPAMConfigSpec,
    IPAMHandle,
    IPPool,
    IPPoolSpec,
    IPReservation,
    IPReservationSpec,
)
from tortie.model.meta import Metadata
from tortie.model.node import Node
from tortie.policy.selector import parse
from tortie.store.memory import MemoryStore


def matches(selector: str, labels: Mapping[str, str]) -> bool:
    return parse(selector).matches(labels)


@dataclass(frozen=True)
class Family:
    """The same network, and the ways to write it, in each IP version: a pool of four blocks of 64 addresses."""

    version: int
    base: str
    host_bits: int

    def net(self, bits: int, first: int = 0) -> Net:
        """A network of 2**bits addresses, `first` addresses into the pool."""
        return parse_net(f"{parse_ip(self.base) + first}/{self.host_bits - bits}")

    def ip(self, ordinal: int) -> IP:
        return parse_ip(self.base) + ordinal

    def ask(self, count: int) -> dict[str, int]:
        return {f"num{self.version}": count}

    def pools(self, *nets: Net | str) -> dict[str, tuple[str, ...]]:
        return {f"pools{self.version}": tuple(map(str, nets))}


FAMILIES = [Family(4, "192.168.1.0", 32), Family(6, "fd80:24e2:f998:72d6::", 128)]


class Cluster:
    """A datastore with nodes and pools, a clock that stands still, and the questions that tests ask."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def ipam(self, node: str = "node1") -> Ipam:
        return Ipam(self.store, node, lambda: self.now, matches)

    async def node(self, *nodes: str, **labels: str) -> None:
        for node in nodes:
            await self.store.create(Node(metadata=Metadata(name=node, labels=labels)))

    async def pool(self, net: Net | str, name: str = "pool", **spec: Any) -> IPPool:
        return await self.store.create(IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=str(net), **spec)))

    async def edit_pool(self, name: str = "pool", **spec: Any) -> None:
        pool = await self.store.get(IPPool, name)
        await self.store.update(replace(pool, spec=replace(pool.spec, **spec)))

    async def config(self, **spec: Any) -> None:
        await self.store.create(IPAMConfig(metadata=Metadata(name="default"), spec=IPAMConfigSpec(**spec)))

    async def reserve(self, *cidrs: object) -> None:
        spec = IPReservationSpec(reserved_cidrs=tuple(map(str, cidrs)))
        await self.store.create(IPReservation(metadata=Metadata(name="r"), spec=spec))

    async def blocks(self) -> dict[Net, str | None]:
        return {block.spec.net: block.spec.affinity for block in (await self.store.list(IPAMBlock)).items}

    async def affinities(self) -> dict[tuple[str, Net], str]:
        listed = (await self.store.list(BlockAffinity)).items
        return {(each.spec.node, parse_net(each.spec.cidr)): each.spec.state for each in listed}

    async def handles(self) -> dict[str, dict[str, int]]:
        return {each.spec.handle_id: each.spec.block for each in (await self.store.list(IPAMHandle)).items}

    async def findings(self) -> list[Finding]:
        blocks = (await self.store.list(IPAMBlock)).items
        handles = (await self.store.list(IPAMHandle)).items
        return check(blocks, handles, (await self.store.list(BlockAffinity)).items, self.now)

    async def got(self, family: Family, count: int, node: str = "node1", handle: str = "h", **more: Any) -> Share:
        """The share of the family when `node` asks for `count` addresses."""
        assignment = await self.ipam(node).auto_assign(**family.ask(count), handle=handle, attrs={}, **more)
        return assignment.v4 if family.version == 4 else assignment.v6


def nets(share: Share) -> set[Net]:
    return {ip.network for ip in share.ips}
