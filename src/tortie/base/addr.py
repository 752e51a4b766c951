"""IP addresses and networks as the standard library has them, and the few questions asked of them everywhere."""

from __future__ import annotations

from collections.abc import Iterable
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
        return ip_network(text)
    except ValueError:
        pass
    raise ConfigError(f'"{text}" has host bits set; the network is "{net_around(text)}"')


def net_around(text: str) -> Net:
    """A CIDR whose host bits do not count: 10.1.2.3/8 is 10.0.0.0/8. Raises ConfigError naming the text."""
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(f'"{text}" is not a CIDR such as 10.0.0.0/24 or fd00::/64') from None


@lru_cache(maxsize=RECENT)
def host_net(ip: IP) -> Net:
    """The /32 or /128 of an address; the same object when asked again soon, which makes comparing them a look."""
    # Of a number: ip_network would write the address out and read it again, ten times slower.
    return _Host4(int(ip)) if isinstance(ip, IPv4Address) else _Host6(int(ip))


class _Host4(IPv4Network):
    """Hashed and written once, where an address set looks it up and writes it out again and again."""

    def __init__(self, address: int) -> None:
        super().__init__(address)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def address(self) -> str:
        return str(self.network_address)


class _Host6(IPv6Network):
    def __init__(self, address: int) -> None:
        super().__init__(address)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash

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
