"""The interface by which this node reaches the others, and which of its addresses is this node's.

    -iface ... ─► -iface-regex ... ─► -iface-can-reach     the first that is there; none of those given: an error
    none given:   -public-ip, -public-ipv6, where this machine has them ─► the default route

`look` reads the machine, `choose` decides. Of an interface's addresses the one that was named is taken, or the best:
one with global scope before a link-local one, a permanent before one that ends, a steady before a temporary one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError, KernelError
from tortie.flannel.config import NetworkConfig
from tortie.flannel.options import Options
from tortie.flannel.state import External
from tortie.kernel.addresses import Address, AddressFlag, list_addresses
from tortie.kernel.links import Link, list_links
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import AF_INET, AF_INET6, RT_TABLE_MAIN
from tortie.kernel.plain_routes import way_to
from tortie.kernel.routes import Route, list_routes

A = TypeVar("A", IPv4Address, IPv6Address)

NOTHING_MATCHES = "Failed to find interface to use that matches the interfaces and/or regexes provided"


@dataclass(frozen=True, slots=True)
class Sight:
    """What this machine shows. `defaults`: by IP version the indexes of the links that default routes leave by, the
    preferred one first. `reach` is link and source of packets to -iface-can-reach, `unreachable` why there are none."""

    links: tuple[Link, ...] = ()
    addresses: tuple[Address, ...] = ()
    defaults: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    reach: tuple[int, IP | None] | None = None
    unreachable: str = ""
    before: frozenset[IP] = frozenset()
    """This node's addresses so far: each stays while it will do. The kernel lists the newest of IPv6 first."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A link, and its address where that was named, too."""

    link: Link
    ip: IP | None = None


# --- deciding -----------------------------------------------------------------------------------------------------


def choose(options: Options, config: NetworkConfig, sight: Sight, before: External | None = None) -> External:
    """`before` is what was chosen last. Raises ConfigError: none that matches, no address, no MTU."""
    if before is not None:
        sight = replace(sight, before=frozenset(ip for ip in (before.ipv4, before.ipv6) if ip is not None))
    attempts = list(_given(options, config, sight))
    reasons = []
    for flag, find in attempts:
        try:
            return _external(options, config, sight, find())
        except ConfigError as error:
            reasons.append(f"{flag}: {error}")
    if attempts:
        raise ConfigError(f"{NOTHING_MATCHES}: {'; '.join(reasons)}")
    found = _public(options, config, sight) or _default(config, sight)
    return _external(options, config, sight, found)


def _given(options: Options, config: NetworkConfig, sight: Sight) -> Iterator[tuple[str, Callable[[], _Found]]]:
    """What the operator asks for, in the order in which it is tried."""
    for text in options.iface:
        yield f"-iface {text}", partial(_named, text, sight)
    for text in options.iface_regex:
        yield f"-iface-regex {text}", partial(_like, text, config, sight)
    if options.iface_can_reach is not None:
        yield f"-iface-can-reach {options.iface_can_reach}", partial(_reaching, sight)


def _named(text: str, sight: Sight) -> _Found:
    try:
        ip = parse_ip(text)
    except ConfigError:
        for link in sight.links:
            if link.name == text:
                return _Found(link)
        raise ConfigError("there is no such interface") from None
    found = _with_address(ip, sight)
    if found is None:
        raise ConfigError("No interface with given IP found")
    return found


def _with_address(ip: IP | None, sight: Sight) -> _Found | None:
    links = {link.index: link for link in sight.links}
    for address in sight.addresses:
        if _ip(address) == ip and address.index in links:
            return _Found(links[address.index], ip)
    return None


def _like(text: str, config: NetworkConfig, sight: Sight) -> _Found:
    """By an address, or else by name. Addresses of the network itself are pods', or our own devices'."""
    pattern = re.compile(text)
    for link in sight.links:
        for address in _ranked(link, sight):
            ip = _ip(address)
            if pattern.search(str(ip)) and not any(ip in family.network for family in config.families):
                return _Found(link, ip)
    for link in sight.links:
        if pattern.search(link.name):
            return _Found(link)
    raise ConfigError(f"matches none of {', '.join(link.name for link in sight.links)}, nor an address of theirs")


def _reaching(sight: Sight) -> _Found:
    if sight.reach is None:
        raise ConfigError(sight.unreachable)
    index, ip = sight.reach
    return _Found(_link(index, sight), ip)


def _public(options: Options, config: NetworkConfig, sight: Sight) -> _Found | None:
    """None where the public addresses are not this machine's: they may be of a router that translates."""
    if config.v4 is not None:
        return _with_address(options.public_ip, sight)
    return _with_address(options.public_ipv6, sight)


def _default(config: NetworkConfig, sight: Sight) -> _Found:
    found = {}
    for version in sorted(family.network.version for family in config.families):
        if not sight.defaults.get(version):
            what = f"there is no IPv{version} default route that would show the interface to the other nodes"
            raise ConfigError(f"{what}: name it by -iface")
        found[version] = _link(sight.defaults[version][0], sight)
    if len({link.index for link in found.values()}) > 1:
        raise ConfigError(
            f"v6 default route interface {found[6].name} "
            f"must be the same with v4 default route interface {found[4].name}: name one by -iface"
        )
    return _Found(next(iter(found.values())))


def _link(index: int, sight: Sight) -> Link:
    for link in sight.links:
        if link.index == index:
            return link
    raise ConfigError(f"the interface with index {index} is gone")


def _external(options: Options, config: NetworkConfig, sight: Sight, found: _Found) -> External:
    link = found.link
    if link.mtu == 0:
        raise ConfigError(f"failed to determine MTU for {link.name}: it is 0")
    on_it = [_ip(address) for address in _ranked(link, sight)]
    wished = [found.ip, *(ip for ip in (options.public_ip, options.public_ipv6) if ip in on_it), *on_it]
    return External(
        name=link.name,
        index=link.index,
        mtu=link.mtu,
        ipv4=_first(IPv4Address, wished, link) if config.v4 is not None else None,
        ipv6=_first(IPv6Address, wished, link) if config.v6 is not None else None,
    )


def _first(kind: type[A], wished: Iterable[IP | None], link: Link) -> A:
    for ip in wished:
        if isinstance(ip, kind):
            return ip
    version = 4 if kind is IPv4Address else 6
    raise ConfigError(f"failed to find IPv{version} address for interface {link.name}")


def _ranked(link: Link, sight: Sight) -> list[Address]:
    """The link's addresses that will do, the best first."""
    own = [address for address in sight.addresses if address.index == link.index and _will_do(address)]
    return sorted(own, key=lambda address: (_ip(address) not in sight.before, *_demerits(address)))


def _will_do(address: Address) -> bool:
    """Global unicast or link-local, and neither about to go nor somebody else's."""
    ip = _ip(address)
    unicast = not (ip.is_loopback or ip.is_multicast or ip.is_unspecified)
    return unicast and not address.flags & (AddressFlag.DEPRECATED | AddressFlag.DADFAILED)


def _demerits(address: Address) -> tuple[bool, ...]:
    """IPv4 knows no temporary addresses: there the flag is that of a second one in a subnet."""
    return (
        not address.usable,
        address.scope != "global" or _ip(address).is_link_local,
        not address.flags & AddressFlag.PERMANENT,
        bool(address.flags & AddressFlag.SECONDARY),
    )


def _ip(address: Address) -> IP:
    return parse_ip(address.ip.partition("/")[0])


# --- looking ------------------------------------------------------------------------------------------------------


def look(can_reach: IP | None = None, netns: str | None = None) -> Sight:
    """What the machine, or another network namespace, shows now. Raises KernelError."""
    with Netlink(netns) as nl:
        reach, unreachable = None, ""
        if can_reach is not None:
            try:
                index, source = way_to(nl, str(can_reach))
                reach = (index, parse_ip(source) if source else None)
            except KernelError as error:
                unreachable = str(error)
        return Sight(
            links=tuple(list_links(nl)),
            addresses=tuple(list_addresses(nl)),
            defaults={4: _default_links(nl, AF_INET), 6: _default_links(nl, AF_INET6)},
            reach=reach,
            unreachable=unreachable,
        )


def _default_links(nl: Netlink, family: int) -> tuple[int, ...]:
    every = list_routes(nl, family, RT_TABLE_MAIN)
    routes = sorted((route for route in every if route.dst.prefixlen == 0), key=lambda route: route.metric)
    return tuple(dev for route in routes if (dev := _dev(route)))


def _dev(route: Route) -> int:
    """0 for a route that goes nowhere."""
    return route.dev or next((hop.dev for hop in route.nexthops if hop.dev), 0)
