"""Which pools an address may come from, in which order a host walks their blocks, and what is reserved. Pure.

all pools ─ disabled, terminating ─► enabled ─ asked for, or selected by node and namespace ─► matching
                                                           matching ─ allowedUses ─► allowed
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from tortie.base.addr import IP, Net, collapse, parse_net, within
from tortie.base.errors import ConfigError
from tortie.ipam.block import NOTHING
from tortie.model.ipam import IPPool, IPReservation, Use

Matches = Callable[[str, Mapping[str, str]], bool]
"""Whether a selector (its text) selects what carries these labels. Raises ConfigError if the text is no selector."""

LONGEST = 128
"""A prefix length that every block has or falls short of."""
FNV_OFFSET, FNV_PRIME = 2166136261, 16777619
"""FNV-1, 32 bits: http://www.isthe.com/chongo/tech/comp/fnv/"""


@dataclass(frozen=True, slots=True)
class Asker:
    """For whom an address is: the host and its labels, the labels of the pod's namespace, and for what use."""

    host: str
    node_labels: Mapping[str, str]
    namespace_labels: Mapping[str, str] | None
    use: Use


@dataclass(frozen=True, slots=True)
class Choice:
    """The pools that select the asker, and those of them that may be used, in the order in which they are tried."""

    matching: tuple[IPPool, ...]
    allowed: tuple[IPPool, ...]


def allocatable(pool: IPPool) -> bool:
    """Whether new addresses may come from a pool at all."""
    if pool.spec.disabled or pool.metadata.deletion_timestamp is not None:
        return False
    return not any(
        condition.get("type") == "Allocatable" and condition.get("status") == "False" for condition in _conditions(pool)
    )


def _conditions(pool: IPPool) -> list[Mapping[str, Any]]:
    status = pool.status if isinstance(pool.status, Mapping) else {}
    return [condition for condition in status.get("conditions") or () if isinstance(condition, Mapping)]


def selects_node(pool: IPPool, labels: Mapping[str, str], matches: Matches) -> bool:
    """Whether a node with these labels may hold blocks of the pool."""
    return not pool.spec.node_selector or matches(pool.spec.node_selector, labels)


def _selects(pool: IPPool, asker: Asker, matches: Matches) -> bool:
    if pool.spec.assignment_mode == "Manual" or not selects_node(pool, asker.node_labels, matches):
        return False
    selector = pool.spec.namespace_selector
    return not selector or matches(selector, asker.namespace_labels or {})


def choose(
    pools: Sequence[IPPool],
    version: int,
    requested: Sequence[Net],
    asker: Asker,
    matches: Matches,
    longest: int = LONGEST,
) -> Choice:
    """The pools of one IP version to assign from. Raises ConfigError saying why there is none.

    Pools that are asked for are tried in the order of asking, whatever their selectors and assignment mode say.
    `longest` is the prefix length of the smallest blocks that are of use.
    """
    enabled = [pool for pool in pools if pool.spec.version == version and allocatable(pool)]
    if not enabled:
        raise ConfigError(f"cannot find a qualified ippool: no enabled IPv{version} pool exists")
    enabled = [pool for pool in enabled if pool.spec.blocks <= longest]
    if not enabled:
        raise ConfigError(f"cannot find a qualified ippool: no IPv{version} pool has blocks of /{longest} or larger")
    if requested:
        by_net = {pool.spec.net: pool for pool in enabled}
        for net in requested:
            if net not in by_net:
                raise ConfigError(f"the given pool ({net}) does not exist, or is not enabled")
        matching = tuple(by_net[net] for net in dict.fromkeys(requested))
    else:
        matching = tuple(pool for pool in enabled if _selects(pool, asker, matches))
    if not matching:
        raise ConfigError(f"no configured Calico pools for node {asker.host}")
    allowed = tuple(pool for pool in matching if asker.use in pool.spec.uses)
    if not allowed:
        named = ", ".join(pool.name for pool in matching)
        raise ConfigError(f'cannot find a qualified ippool: none of {named} has allowedUses "{asker.use}"')
    return Choice(matching, allowed)


def left_behind(net: Net, choice: Choice, pools: Iterable[IPPool], labels: Mapping[str, str], matches: Matches) -> bool:
    """Whether a host's block lies in a pool that selects neither its pods now nor the host at all any more."""
    if pool_of(choice.matching, net) is not None:
        return False
    pool = pool_of((pool for pool in pools if allocatable(pool)), net)
    return pool is not None and not selects_node(pool, labels, matches)


def resolve(entries: Iterable[str], pools: Sequence[IPPool], version: int) -> tuple[Net, ...]:
    """The networks of pools given by CIDR or by name, as configurations and annotations give them.

    Raises ConfigError for what is neither, and for a pool of the other IP version.
    """
    by_name = {pool.name: pool.spec.net for pool in pools}
    nets: list[Net] = []
    for entry in entries:
        try:
            net = parse_net(entry)
        except ConfigError:
            if entry not in by_name:
                known = ", ".join(sorted(by_name)) or "there are no pools"
                raise ConfigError(f'error parsing pool "{entry}": neither a CIDR nor one of: {known}') from None
            net = by_name[entry]
        if net.version != version:
            raise ConfigError(f'pool "{entry}" ({net}) is not an IPv{version} pool')
        nets.append(net)
    return tuple(nets)


def pool_of(pools: Iterable[IPPool], place: IP | Net) -> IPPool | None:
    """The pool that an address or network lies in."""
    if isinstance(place, IPv4Address | IPv6Address):
        first = last = int(place)
    else:
        first, last = int(place.network_address), int(place.broadcast_address)
    for pool in pools:
        net = pool.spec.net
        # Of numbers: a node that holds many blocks asks it of each.
        if net.version == place.version and int(net.network_address) <= first <= last <= int(net.broadcast_address):
            return pool
    return None


def block_net(pool: IPPool, ip: IP) -> Net:
    """The block of the pool that an address lies in."""
    width = ip.max_prefixlen - pool.spec.blocks
    return _net(ip.version, int(ip) >> width << width, pool.spec.blocks)


def _net(version: int, address: int, prefixlen: int) -> Net:
    return IPv4Network((address, prefixlen)) if version == 4 else IPv6Network((address, prefixlen))


class Reserved:
    """The addresses that are never assigned automatically, as the union of all reservations."""

    __slots__ = ("_firsts", "_nets")

    def __init__(self, nets: Iterable[Net] = ()) -> None:
        merged = collapse(nets)
        self._nets = {version: [net for net in merged if net.version == version] for version in (4, 6)}
        self._firsts = {version: [int(net[0]) for net in self._nets[version]] for version in (4, 6)}

    @classmethod
    def of(cls, reservations: Iterable[IPReservation]) -> Reserved:
        """What reservations reserve; an entry that is no CIDR reserves nothing."""
        return cls(net for each in reservations for text in each.spec.reserved_cidrs for net in _nets(text))

    def around(self, net: Net) -> Net | None:
        """The reserved network that has all of `net` in it, if there is one."""
        at = bisect_right(self._firsts[net.version], int(net.network_address)) - 1
        if at < 0:
            return None
        nearest = self._nets[net.version][at]
        return nearest if within(net, nearest) else None

    def ordinals(self, net: Net) -> frozenset[int]:
        """Which addresses of a block are reserved, counted from its first."""
        nets = self._nets[net.version]
        if not nets:
            return NOTHING
        first, last = int(net[0]), int(net[-1])
        return frozenset(
            address - first
            for each in nets
            if each.overlaps(net)
            for address in range(max(first, int(each[0])), min(last, int(each[-1])) + 1)
        )

    def count(self, net: Net) -> int:
        """How many addresses of a network are reserved."""
        return sum(min(each.num_addresses, net.num_addresses) for each in self._nets[net.version] if each.overlaps(net))


def _nets(text: str) -> tuple[Net, ...]:
    try:
        return (parse_net(text),)
    except ConfigError:
        return ()


def fnv1(text: str) -> int:
    """FNV-1, 32 bits."""
    value = FNV_OFFSET
    for byte in text.encode():
        value = (value * FNV_PRIME) % 2**32 ^ byte
    return value


def start(pool: IPPool, host: str, seed: int) -> int:
    """At which of the pool's blocks a host starts to look, so that hosts that come at once do not all want the same.

    Blocks of one address start at `seed`'s place (the time): a host holds many of them, and would find them in a row.
    """
    single = pool.spec.blocks == pool.spec.net.max_prefixlen
    count: int = 2 ** (pool.spec.blocks - pool.spec.net.prefixlen)
    return random.Random(seed if single else fnv1(host)).randrange(count)


def walk(pool: IPPool, host: str, seed: int, reserved: Reserved) -> Iterator[Net]:
    """The pool's blocks from this host's start around to it, each once, without those that are wholly reserved."""
    net, size = pool.spec.net, pool.spec.blocks
    width = net.max_prefixlen - size
    base, begin = int(net.network_address) >> width, start(pool, host, seed)
    for low, high in ((begin, 2 ** (size - net.prefixlen)), (0, begin)):
        at = low
        while at < high:
            block = _net(net.version, (base + at) << width, size)
            if (hole := reserved.around(block)) is not None:
                at = (int(hole[-1]) >> width) + 1 - base
                continue
            yield block
            at += 1


def in_walk_order(nets: Iterable[Net], pool: IPPool, host: str, seed: int) -> list[Net]:
    """Those of some networks that are blocks of the pool, in the order of `walk`."""
    size, net = pool.spec.blocks, pool.spec.net
    width = net.max_prefixlen - size
    count: int = 2 ** (size - net.prefixlen)
    base, begin = int(net.network_address) >> width, start(pool, host, seed)

    def distance(block: Net) -> int:
        return ((int(block.network_address) >> width) - base - begin) % count

    return sorted((block for block in nets if block.prefixlen == size and within(block, net)), key=distance)
