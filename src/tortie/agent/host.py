"""What this machine shows of itself: its links and their addresses, and by which of them it reaches others.

Links of pods are left out: a node has hundreds of them, and nothing that is asked here is about them.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from ipaddress import ip_interface

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import KernelError
from tortie.calc.node_addresses import CAN_REACH, Link, Method, Sight
from tortie.kernel import addresses, events, links, sysctl
from tortie.kernel.netlink import Netlink
from tortie.model.workload import INTERFACE_PREFIX

REACH_PORT = 80
"""As Calico: nothing is sent to it, the kernel only looks for the way."""


def host_links() -> tuple[Link, ...]:
    """In the order of their indexes. An address that is found to be a duplicate counts as not there; one that is still
    probed for it, as every IPv6 address is when a machine boots, will be there in a moment. Raises KernelError."""
    with Netlink() as nl:
        found = [link for link in links.list_links(nl) if not link.name.startswith(INTERFACE_PREFIX)]
        every = addresses.list_addresses(nl)
    own: dict[int, list[str]] = {}
    for address in every:
        if not address.flags & addresses.AddressFlag.DADFAILED:
            own.setdefault(address.index, []).append(address.ip)
    return tuple(
        Link(link.name, link.index, link.up, tuple(map(ip_interface, own.get(link.index, ()))), link.mtu)
        for link in found
    )


def sight(how: Method, version: int, links: tuple[Link, ...], internal: Iterable[IP] = ()) -> Sight:
    """What the method needs to see. May ask a name server, for a destination that is a name."""
    reach = reached_from(how.destination, version) if how.kind == CAN_REACH else None
    return Sight(links, reach, tuple(internal))


def reached_from(destination: str, version: int) -> IP | None:
    """The address that packets to an address or a name would have as their source; None when there is no way, or when
    the name is none (`a..b`)."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        *_, where = socket.getaddrinfo(destination, REACH_PORT, family, socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(where)
            return parse_ip(probe.getsockname()[0].partition("%")[0])
    except (OSError, UnicodeError):
        return None


def has_ipv6() -> bool:
    """Whether the kernel speaks it here."""
    try:
        return sysctl.read("net/ipv6/conf/all/disable_ipv6") == "0"
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return False
        raise


def pod_mtus() -> dict[str, int]:
    """The MTU of the host's end of every pod's interface, by its name. Raises KernelError."""
    with Netlink() as nl:
        return {link.name: link.mtu for link in links.list_links(nl) if link.name.startswith(INTERFACE_PREFIX)}


def concerns(event: events.Event) -> bool:
    """Whether an announcement may change what the links show: those about pods do not."""
    match event:
        case events.LinkEvent():
            return not event.name.startswith(INTERFACE_PREFIX)
        case events.AddressEvent(address):
            return address.scope != "link"  # such as every pod's interface has
    return isinstance(event, events.Overrun)
