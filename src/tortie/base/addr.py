"""IP addresses and networks as the standard library has them, and the few questions asked of them everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address, ip_network

from tortie.base.errors import ConfigError

IP = IPv4Address | IPv6Address
Net = IPv4Network | IPv6Network

RECENT = 8192
"""Of what is asked for again and again so much is remembered. What stays is kept by whoever needs it."""


@lru_cache(maxsize=RECENT)
def parse_ip(text: str) -> IP:
    """An address, without a zone (`fe80::1%eth0`): that is free text. Raises ConfigError naming the text."""
    try:
        if "%" not in text:
            return ip_address(text)
    except ValueError:
        pass
    raise ConfigError(f'"{text}" is not an IP address')


@lru_cache(maxsize=RECENT)
def parse_net(text: str) -> Net:
    """A CIDR, or an address meaning its /32 or /128. Host bits must be zero. Raises ConfigError naming the text."""
    try:
        net = ip_network(text)
    except ValueError:
        raise ConfigError(f'"{text}" has host bits set; the network is "{net_around(text)}"') from None
    return host_net(net.network_address) if net.prefixlen == net.max_prefixlen else net


def net_around(text: str) -> Net:
    """A CIDR whose host bits do not count: 10.1.2.3/8 is 10.0.0.0/8. Raises ConfigError naming the text."""
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(f'"{text}" is not a CIDR such as 10.0.0.0/24 or fd00::/64') from None


@lru_cache(maxsize=RECENT)
def host_net(ip: IP) -> Net:
    """The /32 or /128 of an address; the same object when asked again soon, which makes comparing them a look."""
    if isinstance(ip, IPv4Address):
        return _Host4(ip)
    return _Host6(ip if ip.scope_id is None else IPv6Address(int(ip)))


_ALL4, _ALL6 = IPv4Network("0.0.0.0/32").netmask, IPv6Network("::/128").netmask


class _Host4(IPv4Network):
    """Hashed and written once, where an address set looks it up and writes it out again and again. An agent has one for
    every address of the cluster: it takes a third of what the standard library's does, which also keeps a function."""

    def __init__(self, address: IPv4Address | str | tuple[int, int], strict: bool = True) -> None:
        """Of an address; of anything else, which the standard library itself may ask for, a network as any other."""
        if isinstance(address, IPv4Address):
            self.network_address, self.netmask, self._prefixlen = address, _ALL4, 32
        else:
            super().__init__(address, strict)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash

    @property
    def broadcast_address(self) -> IPv4Address:
        return self.network_address

    @property
    def num_addresses(self) -> int:
        return 1

    def hosts(self) -> Iterator[IPv4Address]:
        return iter((self.network_address,))

    def supernet(  # type: ignore[override]  # what is broader is none of these
        self, prefixlen_diff: int = 1, new_prefix: int | None = None
    ) -> IPv4Network:
        return IPv4Network(self.network_address).supernet(prefixlen_diff, new_prefix)

    @cached_property
    def address(self) -> str:
        return str(self.network_address)


class _Host6(IPv6Network):
    def __init__(self, address: IPv6Address | str | tuple[int, int], strict: bool = True) -> None:
        if isinstance(address, IPv6Address):
            self.network_address, self.netmask, self._prefixlen = address, _ALL6, 128
        else:
            super().__init__(address, strict)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash

    @property
    def broadcast_address(self) -> IPv6Address:
        return self.network_address

    @property
    def num_addresses(self) -> int:
        return 1

    def hosts(self) -> Iterator[IPv6Address]:
        return iter((self.network_address,))

    def supernet(  # type: ignore[override]  # what is broader is none of these
        self, prefixlen_diff: int = 1, new_prefix: int | None = None
    ) -> IPv6Network:
        return IPv6Network(self.network_address).supernet(prefixlen_diff, new_prefix)

    @cached_property
    def address(self) -> str:
        return str(self.network_address)


HOST_NETS = (_Host4, _Host6)
"""What `host_net` makes. `address` is its text."""


def collapse(nets: Iterable[Net]) -> list[Net]:
    """The same addresses in the fewest networks, IPv4 first, sorted: overlapping and adjacent ones are merged."""
    every = list(nets)
    v4 = [net for net in every if isinstance(net, IPv4Network)]
    v6 = [net for net in every if isinstance(net, IPv6Network)]
    return [*collapse_addresses(v4), *collapse_addresses(v6)]


def within(inner: Net, outer: Net) -> bool:
    """Whether every address of `inner` is in `outer`; False across families."""
    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, IPv6Network) and inner.subnet_of(outer)


def nth(net: Net, ordinal: int) -> IP:
    """The address at `ordinal` (0 is the network address). Raises IndexError past the end."""
    return net[ordinal]
