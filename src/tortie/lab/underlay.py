"""The routes of a lab's routers to one another's networks: each takes the fewest links there. Pure.

They are written when the lab is built, whatever speaks BGP later: so that nodes of different racks reach each other
before there is any session, as they do in a data centre whose routers have been configured by hand. Pods' networks are
never among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_interface

from tortie.base.addr import IP, Net, parse_ip
from tortie.lab.topology import Router, Topology


@dataclass(frozen=True, slots=True)
class Way:
    """A route of a router: its interface and the next router's address."""

    to: Net
    via: IP
    interface: str


def ways(lab: Topology, router: Router) -> Iterator[Way]:
    """To every network that is not the router's own."""
    own = set(networks(lab, router))
    first = _first_steps(lab, router)
    seen = set(own)
    for other in lab.routers:
        for net in networks(lab, other):
            if other.name in first and net not in seen:
                seen.add(net)
                port = next(port for port in router.ports if port.to == first[other.name])
                yield Way(net, parse_ip(port.via[0 if net.version == 4 else 1]), port.to)


def networks(lab: Topology, router: Router) -> list[Net]:
    """Those that a router is on."""
    addresses = list(router.addresses)
    if router.name == lab.blueprint.outside_router:
        addresses += lab.uplink_addresses
    return [ip_interface(address).network for address in addresses]


def _first_steps(lab: Topology, router: Router) -> dict[str, str]:
    """By router that can be reached: the neighbour to go to, nearest first, in the order of the links."""
    ports = {one.name: [port.to for port in one.ports] for one in lab.routers}
    found = {name: name for name in ports[router.name]}
    edge = list(found)
    while edge:
        new = []
        for name in edge:
            for further in ports[name]:
                if further not in found and further != router.name:
                    found[further] = found[name]
                    new.append(further)
        edge = new
    return found
