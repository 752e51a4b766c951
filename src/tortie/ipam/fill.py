"""One family's share of a request: addresses from the host's blocks, then, if affinity is not strict, borrowed ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from tortie.base.addr import IP
from tortie.base.errors import Conflict, NotFound, TortieError
from tortie.ipam.block import ForeignBlock, auto_assign, check_affinity
from tortie.ipam.ledger import ATTEMPTS, Ledger, exhausted, pause
from tortie.ipam.search import BlockLimit, Ground, Search, borrowable
from tortie.model.ipam import BlockAffinity, IPAMBlock

Interface = IPv4Interface | IPv6Interface
"""An address with its block's prefix length."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who gets addresses, and what is noted with them."""

    handle: str | None
    attrs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Share:
    """What came of a request for addresses of one family. `error` ended it early; `ips` are assigned all the same."""

    version: int
    wanted: int
    ips: tuple[Interface, ...] = ()
    messages: tuple[str, ...] = ()
    error: TortieError | None = None

    @property
    def short(self) -> bool:
        """Whether there are fewer addresses than were wanted."""
        return len(self.ips) < self.wanted

    def __str__(self) -> str:
        text = f"Assigned {len(self.ips)} out of {self.wanted} requested IPv{self.version} addresses"
        return "; ".join((text, *self.messages))


class Fill:
    """Fills one share. `strict` keeps every host to its own blocks."""

    def __init__(self, ledger: Ledger, ground: Ground, strict: bool, holder: Holder) -> None:
        self._ledger = ledger
        self._ground = ground
        self._strict = strict
        self._holder = holder
        self._ips: list[Interface] = []
        self._messages: list[str] = []

    async def run(self, version: int, wanted: int, own: Sequence[BlockAffinity]) -> Share:
        """Assigns up to `wanted` addresses. `own` are the host's affinities to blocks of the pools."""
        failure: TortieError | None = None
        try:
            await self._from_own(wanted, Search(self._ledger, self._ground, own))
            if not self._strict:
                await self._borrowed(wanted)
        except TortieError as error:
            failure = error
            if isinstance(error, BlockLimit):
                self._messages.append(str(error))
        return Share(version, wanted, tuple(self._ips), tuple(self._messages), failure)

    async def _from_own(self, wanted: int, search: Search) -> None:
        while len(self._ips) < wanted:
            block = await search.next()
            if block is None:
                if self._strict:
                    self._messages.append("No more free affine blocks and strict affinity enabled")
                return
            try:
                self._ips += await self._take(block, wanted - len(self._ips), check=self._strict)
            except (ForeignBlock, Conflict) as error:
                self._messages.append(str(error))

    async def _borrowed(self, wanted: int) -> None:
        """Takes from any block of the allowed pools, pool by pool."""
        walked: list[str] = []
        for pool in self._ground.pools:
            if len(self._ips) >= wanted:
                break
            for block in await borrowable(self._ledger, self._ground, pool):
                self._ips += await self._take(block, wanted - len(self._ips), check=False)
                if len(self._ips) >= wanted:
                    break
            else:
                walked.append(pool.spec.cidr)
        if walked:
            self._messages.append(f"No IPs available in pools: [{' '.join(walked)}]")

    async def _take(self, block: IPAMBlock, count: int, *, check: bool) -> tuple[Interface, ...]:
        """Up to `count` addresses of a block; none when it has gone or is full. Raises ForeignBlock, Conflict."""
        net, reserved = block.spec.net, self._ground.reserved.ordinals(block.spec.net)
        for tried in range(ATTEMPTS):
            if check:
                check_affinity(block.spec, str(self._ground.owner))
            spec, ips = auto_assign(block.spec, count, self._holder.handle, self._holder.attrs, reserved)
            if not ips:
                return ()
            try:
                await self._ledger.write_assignment(block, spec, self._holder.handle, len(ips))
                return tuple(interface(ip, net.prefixlen) for ip in ips)
            except Conflict:
                await pause(tried)
            try:
                block = await self._ledger.block(net)
            except NotFound:
                return ()
        raise exhausted(f"assign from block {net}")


def interface(ip: IP, prefixlen: int) -> Interface:
    """An address with a prefix length."""
    return ip_interface(f"{ip}/{prefixlen}")
