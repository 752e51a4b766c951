"""What the kernel of this node should be like: the backend's ways, and what every backend has. Pure.

leases ─► fitting (of the backend's own type) ─► backend.want ─┐
the others ─► problems                                         ├─► FlannelState
flags ─► masquerading, forwarding, a blackhole ────────────────┘
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from tortie.base.addr import IP
from tortie.flannel import rules
from tortie.flannel.backend import Backend
from tortie.flannel.lease import Lease
from tortie.flannel.options import Options
from tortie.flannel.state import FlannelState, Place, Ways


def wanted(
    place: Place, backend: Backend, leases: Collection[Lease], ways: Ways, options: Options, tables: Mapping[int, str]
) -> FlannelState:
    """`leases` are all other nodes'; `tables` are the names of our nft tables, by IP version."""
    state = backend.want(place, fitting(backend, leases), ways)
    config, lease = place.site.config, place.lease
    own = tuple(net for net in (lease.subnet, lease.subnet6) if net is not None)
    return replace(
        state,
        networks=tuple(family.network for family in config.families),
        blackholes=own if options.ip_blackhole_route else (),
        rules=rules.tables(
            config,
            lease,
            tables,
            masq=options.ip_masq,
            forward=options.iptables_forward_rules,
            random_fully=not options.ip_masq_fully_random_disable,
        ),
        problems=(*state.problems, *_left_out(place, backend, leases)),
    )


def fitting(backend: Backend, leases: Collection[Lease]) -> tuple[Lease, ...]:
    """Those of the backend's own type."""
    return tuple(lease for lease in leases if lease.attrs.backend_type == backend.published_type)


def addresses(leases: Collection[Lease]) -> list[IP]:
    """By which their nodes are reached."""
    every = (ip for lease in leases for ip in (lease.attrs.public_ip, lease.attrs.public_ipv6))
    return [ip for ip in every if ip is not None]


def subnets(lease: Lease) -> str:
    """For people.

    >>> from ipaddress import IPv4Network
    >>> from tortie.flannel.lease import Attrs
    >>> subnets(Lease(IPv4Network("10.5.1.0/24"), None, Attrs()))
    '10.5.1.0/24'
    """
    return " and ".join(str(net) for net in (lease.subnet, lease.subnet6) if net is not None)


def _left_out(place: Place, backend: Backend, leases: Collection[Lease]) -> Iterator[str]:
    own, config = backend.published_type, place.site.config
    for lease in leases:
        theirs = lease.attrs.backend_type
        if theirs != own:
            who = lease.node or subnets(lease)
            said = theirs or "one that publishes no type, as udp and alloc"
            yield f"no way to {who}: its backend is {said}, and that of this node {config.backend_type}"
    for family in config.families:
        if family.network.version not in backend.versions:
            what = f"{config.backend_type} does not carry IPv{family.network.version}"
            yield f"{what}: pods of different nodes do not reach each other in {family.network}"
