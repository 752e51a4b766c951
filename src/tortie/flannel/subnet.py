"""Which subnet a node gets: a decision on what is leased. Pure.

    the entries under `subnets/` ──► ours that still fits? ──yes──► it is renewed
                                       │ no: goes, and what of it fits is asked for again
                                       ▼
                                     the one that this node had before (subnet.env), if it fits and nobody has it
                                       ▼
                                     one of the first hundred free ones between SubnetMin and SubnetMax, by chance

By chance, so that nodes that begin at the same time seldom want the same one. IPv4 and IPv6 are chosen for themselves.
An entry that never expires is a reservation: it is preferred to others of this node, and stays one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from random import Random
from typing import TypeVar, cast

from tortie.base.addr import Net
from tortie.base.errors import ConfigError
from tortie.flannel.config import Family, NetworkConfig
from tortie.flannel.lease import Attrs, Lease, key_of
from tortie.flannel.manager import Leases, Previous

N = TypeVar("N", IPv4Network, IPv6Network)

CANDIDATES = 100
"""Free subnets among which one is chosen."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`entry` is the key that is ours and is renewed, "" where one is to be created, and then `instead` are the keys
    that go for it. `reserved`: the entry does not expire, and must not."""

    subnet: IPv4Network
    subnet6: IPv6Network | None
    entry: str = ""
    instead: tuple[str, ...] = ()
    reserved: bool = False


def own(leases: Leases, attrs: Attrs) -> tuple[str, ...]:
    """The keys of the entries with this node's public address, those that never expire first."""
    ours = [key for key, lease in leases.items() if is_own(lease, attrs)]
    return tuple(sorted(ours, key=lambda key: (leases[key].expires is not None, key)))


def is_own(lease: Lease, attrs: Attrs) -> bool:
    return attrs.public_ip is not None and lease.attrs.public_ip == attrs.public_ip


def fits(net: Net | None, family: Family | None) -> bool:
    """Whether a subnet is one that this network could give; none is right where the IP version is not enabled."""
    if net is None or family is None:
        return net is None and family is None
    first, last = int(family.first), int(family.last)
    same_kind = net.version == family.network.version and net.prefixlen == family.subnet_len
    return same_kind and first <= int(net.network_address) <= last


def choose(config: NetworkConfig, leases: Leases, attrs: Attrs, previous: Previous, random: Random) -> Choice:
    """`leases` are all entries, ours included; `config` is a checked one. Raises ConfigError when nothing is free."""
    assert config.v4 is not None
    ours = [(key, leases[key]) for key in own(leases, attrs)]
    fitting = [(key, lease) for key, lease in ours if _stays(key, lease, config)]
    if fitting:
        key, lease = min(fitting, key=lambda pair: (pair[1].expires is not None, not _had(pair[1], previous)))
        assert lease.subnet is not None
        return Choice(lease.subnet, lease.subnet6, key, reserved=lease.expires is None)
    going = dict(ours)
    others = [lease for key, lease in leases.items() if key not in going]
    wanted = [*(lease.subnet for lease in going.values()), previous.subnet]
    wanted6 = [*(lease.subnet6 for lease in going.values()), previous.subnet6]
    subnet = _pick(config.v4, wanted, [lease.subnet for lease in others], random)
    subnet6 = _pick(config.v6, wanted6, [lease.subnet6 for lease in others], random) if config.v6 else None
    reserved = any(lease.expires is None and lease.subnet == subnet for lease in going.values())
    return Choice(subnet, subnet6, instead=tuple(going), reserved=reserved)


def _stays(key: str, lease: Lease, config: NetworkConfig) -> bool:
    """Whether an entry can be renewed as it is; one whose key is spelt in another way than ours would be doubled."""
    fitting = fits(lease.subnet, config.v4) and fits(lease.subnet6, config.v6)
    return fitting and lease.subnet is not None and key == key_of(lease.subnet, lease.subnet6)


def _had(lease: Lease, previous: Previous) -> bool:
    return lease.subnet is not None and lease.subnet == previous.subnet


def _pick(family: Family, wanted: Iterable[N | None], taken: Iterable[N | None], random: Random) -> N:
    """The first that is wanted, fits and is free; else one of the free ones. Raises ConfigError."""
    held = merged([net for net in taken if net is not None])
    for net in wanted:
        if net is not None and fits(net, family) and not _holder(held, *_range(net)):
            return net
    found = free(family, held)
    if not found:
        raise ConfigError(f"out of subnets: all from {family.first} to {family.last} (/{family.subnet_len}) are leased")
    return cast(N, random.choice(found))


def free(family: Family, held: Sequence[tuple[int, int]]) -> list[Net]:
    """The lowest free subnets, some at most. `held` are ranges of addresses, sorted and apart."""
    size = 1 << family.network.max_prefixlen - family.subnet_len
    found: list[Net] = []
    at, last = int(family.first), int(family.last)
    while at <= last and len(found) < CANDIDATES:
        holder = _holder(held, at, at + size - 1)
        if holder is None:
            found.append(_net(family, at))
            at += size
        else:
            at = (holder[1] // size + 1) * size
    return found


def merged(nets: Iterable[N]) -> list[tuple[int, int]]:
    """The first and last addresses of networks, as numbers: sorted and apart."""
    return [_range(net) for net in collapse_addresses(nets)]


def _holder(held: Sequence[tuple[int, int]], first: int, last: int) -> tuple[int, int] | None:
    """The last range that has an address from `first` to `last` in it."""
    before = bisect_right(held, last, key=lambda pair: pair[0])
    return held[before - 1] if before and held[before - 1][1] >= first else None


def _range(net: Net) -> tuple[int, int]:
    return int(net.network_address), int(net.broadcast_address)


def _net(family: Family, address: int) -> Net:
    if family.network.version == 4:
        return IPv4Network((address, family.subnet_len))
    return IPv6Network((address, family.subnet_len))
