"""One family's share of a request: addresses from the host's blocks, then, if affinity is not strict, borrowed ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from tortie.base.addr import IP, parse_net
from tortie.base.errors import Conflict, NotFound, TortieError
from tortie.ipam.block import ForeignBlock, auto_assign, check_affinity, ips_of
from tortie.ipam.ledger import ATTEMPTS, HandleFull, Ledger, exhausted, pause
from tortie.ipam.search import BlockLimit, Claims, Ground, Search, borrowable
from tortie.model.ipam import IPAMBlock

Interface = IPv4Interface | IPv6Interface
"""An address with its block's prefix length."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who gets addresses, and what is noted with them; at most `most` of each IP version (0: any number)."""

    handle: str | None
    attrs: Mapping[str, str]
    most: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """What came of a request for addresses of one family. `error` ended it early; `ips` are assigned all the same.
    `kept` is the handle of what hosts keep of new blocks for themselves, if they do. `had`: the handle had them."""

    version: int
    wanted: int
    ips: tuple[Interface, ...] = ()
    messages: tuple[str, ...] = ()
    error: TortieError | None = None
    kept: str = ""
    had: bool = False

    @property
    def short(self) -> bool:
        """Whether there are fewer addresses than were wanted."""
        return len(self.ips) < self.wanted

    def __str__(self) -> str:
        text = f"Assigned {len(self.ips)} out of {self.wanted} requested IPv{self.version} addresses"
        return "; ".join((text, *self.messages, *((f"HostReservedAttr: {self.kept}",) if self.kept else ())))


class Fill:
    """Fills one share. `strict` keeps every host to its own blocks. `ahead`: up to so many more than were wanted, if
    the host's block that is written anyway has them."""

    def __init__(self, ledger: Ledger, ground: Ground, strict: bool, holder: Holder, ahead: int = 0) -> None:
        self._ledger = ledger
        self._ahead = ahead
        self._ground = ground
        self._strict = strict
        self._holder = holder
        self._ips: list[Interface] = []
        self._messages: list[str] = []

    async def run(self, version: int, wanted: int, claims: Callable[[], Awaitable[Claims]]) -> Share:
        """Assigns up to `wanted` addresses. `claims` lists what the host has in the pools."""
        failure: TortieError | None = None
        had = False
        try:
            await self._from_own(wanted, Search(self._ledger, self._ground, claims))
            if not self._strict:
                await self._borrowed(wanted)
        except HandleFull as error:
            self._ips = await self._had(version)
            had, failure = True, None if self._ips else error
        except TortieError as error:
            failure = error
            if isinstance(error, BlockLimit):
                self._messages.append(str(error))
        kept = self._ledger.kept.handle if self._ledger.kept is not None else ""
        return Share(version, wanted, tuple(self._ips), tuple(self._messages), failure, kept, had)

    async def _had(self, version: int) -> list[Interface]:
        """What the handle holds already: somebody else has just assigned it for the same holder."""
        assert self._holder.handle is not None
        return [each for each in await held_by(self._ledger, self._holder.handle) if each.version == version]

    async def _from_own(self, wanted: int, search: Search) -> None:
        while len(self._ips) < wanted:
            block = await search.next()
            if block is None:
                if self._strict:
                    self._messages.append("No more free affine blocks and strict affinity enabled")
                return
            try:
                self._ips += await self._take(block, wanted - len(self._ips) + self._ahead, check=self._strict)
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
                await self._ledger.write_assignment(block, spec, self._holder.handle, len(ips), self._holder.most)
                return tuple(interface(ip, net.prefixlen) for ip in ips)
            except Conflict:
                await pause(tried)
            try:
                block = await self._ledger.block(net)
            except NotFound:
                return ()
        raise exhausted(f"assign from block {net}")


async def held_by(ledger: Ledger, handle: str) -> list[Interface]:
    """The addresses that a handle holds, IPv4 first; none if there is no such handle."""
    found: list[Interface] = []
    with suppress(NotFound):
        for cidr in (await ledger.handle(handle)).spec.block:
            with suppress(NotFound):
                block = (await ledger.block(parse_net(cidr))).spec
                found += [interface(ip, block.net.prefixlen) for ip in ips_of(block, handle)]
    return sorted(found, key=lambda each: (each.version, int(each.ip)))


def interface(ip: IP, prefixlen: int) -> Interface:
    """An address with a prefix length."""
    return ip_interface(f"{ip}/{prefixlen}")
