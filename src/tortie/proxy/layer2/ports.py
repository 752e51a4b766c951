"""Where this node can answer for an address: the interfaces of which a network contains it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tortie.base.addr import IP, Net, collapse, net_around, parse_ip
from tortie.kernel.addresses import Address
from tortie.kernel.links import Link


@dataclass(frozen=True, slots=True, order=True)
class Port:
    """An interface that answers can go out of. One that gets another name or MAC address is another port."""

    index: int
    name: str
    mac: bytes

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Ports:
    """This node's. `own` are its addresses, for which the kernel answers itself; `macs` those of all its links."""

    nets: tuple[tuple[Net, Port], ...] = ()
    own: frozenset[IP] = frozenset()
    macs: frozenset[bytes] = frozenset()

    def of(self, ip: IP) -> tuple[Port, ...]:
        """The ports at which an address can be answered for."""
        return tuple(sorted({port for net, port in self.nets if net.version == ip.version and ip in net}))

    def networks(self, ips: Iterable[IP]) -> tuple[Net, ...]:
        """The networks that any of the addresses is in."""
        wanted = list(ips)
        nets = {net for net, _ in self.nets}
        return tuple(collapse(net for net in nets if any(ip.version == net.version and ip in net for ip in wanted)))


def ports_of(links: Mapping[int, Link], addresses: Mapping[int, Sequence[Address]]) -> Ports:
    """By index. Networks of a single address, of loopback and of the link itself are not where others ask."""
    nets: list[tuple[Net, Port]] = []
    own: set[IP] = set()
    for index, link in sorted(links.items()):
        port = _port(link)
        for address in addresses.get(index, ()):
            own.add(parse_ip(address.ip.partition("/")[0]))
            net = net_around(address.peer or address.ip)
            if port is not None and net.num_addresses > 1 and not (net.is_link_local or net.is_loopback):
                nets.append((net, port))
    return Ports(tuple(dict.fromkeys(nets)), frozenset(own), frozenset(_mac(link) for link in links.values()))


def _port(link: Link) -> Port | None:
    """None for what frames cannot go out of: it is down, without carrier, or has no Ethernet address."""
    mac = _mac(link)
    if not (link.up and link.carrier) or len(mac) != 6 or mac == bytes(6):
        return None
    return Port(link.index, link.name, mac)


def _mac(link: Link) -> bytes:
    try:
        return bytes.fromhex(link.mac.replace(":", ""))
    except ValueError:
        return b""
