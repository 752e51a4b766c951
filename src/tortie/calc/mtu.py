"""How large the packets of pods may be: the smallest MTU of the host's links, less what each tunnel adds.

    links that are up and match mtuIfacePattern ─► the host's MTU ─┬─► IPIP, VXLAN, WireGuard: less their headers
    FelixConfiguration vxlanMTU, ipipMTU, ... ─────────────────────┘         │ those in use
                                                                             └─► pods: the smallest, or the host's own

Every result carries the sum that leads to it as a text. All MTUs are in bytes of IP packet. Source: Calico's Felix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tortie.calc.node_addresses import Link
from tortie.calc.state import Pool, Settings

NOTHING_FOUND = 1460
"""Where no link matches: what the networks of virtual machines have that have the least."""
IPV6_LEAST = 1280
"""RFC 8200, section 5: below that the kernel speaks no IPv6 on a link."""
TOO_LARGE = "more than fits"


@dataclass(frozen=True, slots=True)
class Encapsulation:
    """A kind of tunnel: what it adds to a packet, and the FelixConfiguration's word for its MTU."""

    name: str
    overhead: int
    field: str


NO_ENCAPSULATION = "no encapsulation"
IPIP = Encapsulation("IPIP", 20, "ipipMTU")
VXLAN = {4: Encapsulation("VXLAN", 50, "vxlanMTU"), 6: Encapsulation("VXLAN over IPv6", 70, "vxlanMTUV6")}
WIREGUARD = {
    4: Encapsulation("WireGuard", 60, "wireguardMTU"),
    6: Encapsulation("WireGuard over IPv6", 80, "wireguardMTUV6"),
}


@dataclass(frozen=True, slots=True)
class Sum:
    """The MTU of one way that packets take: `text` is how it comes about, `used` whether packets go that way."""

    path: str
    mtu: int
    text: str
    used: bool


@dataclass(frozen=True, slots=True)
class Mtu:
    """A node's MTUs. `pod` is that of pods to come, `text` says why."""

    pod: int
    text: str
    paths: tuple[Sum, ...]
    warning: str = ""


def host_sum(links: Iterable[Link], pattern: str) -> Sum:
    """The smallest MTU of the links that count. `pattern` need not match from the beginning."""
    found = [(link.mtu, link.index, link.name) for link in links if link.up and re.search(pattern, link.name)]
    if not found:
        text = f"{NOTHING_FOUND}, as no link that is up matches mtuIfacePattern {pattern}"
        return Sum(NO_ENCAPSULATION, NOTHING_FOUND, text, False)
    mtu, _, name = min(found)
    return Sum(NO_ENCAPSULATION, mtu, f"{mtu} of {name}", False)


def mtu(links: Iterable[Link], settings: Settings, pools: Iterable[Pool]) -> Mtu:
    """What holds on a node with these links."""
    host = host_sum(links, settings.mtu_interfaces)
    used = frozenset(in_use(settings, pools))
    sums = tuple(_tunnel_sum(host, one, told, one in used) for one, told in _told(settings))
    tunnels = [one for one in sums if one.used]
    host = Sum(host.path, host.mtu, host.text, not tunnels)
    least = min(tunnels, key=lambda one: one.mtu, default=host)
    warnings = [f"{one.path}: {one.text}" for one in tunnels if TOO_LARGE in one.text]
    if least.mtu < IPV6_LEAST:
        warnings.append(f"{least.mtu} is less than the {IPV6_LEAST} that IPv6 needs: pods have none")
    return Mtu(least.mtu, f"{least.path}: {least.text}", (host, *sums), "; ".join(warnings))


def in_use(settings: Settings, pools: Iterable[Pool]) -> Iterator[Encapsulation]:
    """The tunnels that there are: those that a pool asks for, unless a setting says yes or no, and WireGuard."""
    asked = {(pool.tunnel, pool.net.version) for pool in pools if not pool.load_balancer_only}
    ipip, vxlan = settings.ipip_enabled, settings.vxlan_enabled
    if ("IPIP", 4) in asked if ipip is None else ipip:
        yield IPIP
    if ("VXLAN", 4) in asked if vxlan is None else vxlan:
        yield VXLAN[4]
    if ("VXLAN", 6) in asked and vxlan is not False:
        yield VXLAN[6]
    yield from (WIREGUARD[version] for version in sorted(settings.wireguard))


def _told(settings: Settings) -> Iterator[tuple[Encapsulation, int]]:
    """What is said of each tunnel's MTU; 0 if nothing."""
    yield IPIP, settings.ipip_mtu
    yield from ((VXLAN[version], settings.vxlan_mtu[version]) for version in (4, 6))
    yield from ((WIREGUARD[version], settings.wireguard_mtu[version]) for version in (4, 6))


def _tunnel_sum(host: Sum, one: Encapsulation, told: int, used: bool) -> Sum:
    fits = host.mtu - one.overhead
    fit = f"{host.text} − {one.overhead} {one.name} = {fits}"
    if not told:
        return Sum(one.name, fits, fit, used)
    beside = f"{TOO_LARGE} ({fit}): larger packets are lost" if told > fits else fit
    return Sum(one.name, told, f"{told} told by {one.field}; {beside}", used)
