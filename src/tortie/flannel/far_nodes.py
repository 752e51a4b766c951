"""Of other nodes' leases those that packets can be sent to, one IP version at a time, and what is wrong with the rest.

A lease that would take this node's own pods away, or another node's, is one with which the kernel's routes would be
worse than without it. Decisions on values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tortie.base.addr import IP, Net, within
from tortie.flannel.lease import Lease
from tortie.flannel.state import Place


@dataclass(frozen=True, slots=True)
class FarNode:
    """Another node in one IP version: its subnet, its public address, and what its backend says of it."""

    name: str
    subnet: Net
    host: IP
    data: str | None


@dataclass(frozen=True, slots=True)
class FarNodes:
    """`problems`: a line for each lease that is left out."""

    nodes: tuple[FarNode, ...]
    problems: tuple[str, ...]


def far_nodes(place: Place, leases: Sequence[Lease], version: int) -> FarNodes:
    """Of two with one subnet the first is kept."""
    nodes: list[FarNode] = []
    problems: list[str] = []
    owners: dict[Net, str] = {}
    for lease in leases:
        node = _node(lease, version)
        if isinstance(node, str):
            problems.append(node)
        elif node is not None:
            wrong = _wrong(node, place, owners)
            if wrong:
                problems.append(f"{node.name}: {wrong}")
            else:
                owners[node.subnet] = node.name
                nodes.append(node)
    return FarNodes(tuple(nodes), tuple(problems))


def family_network(place: Place, version: int) -> Net | None:
    """The whole network of an IP version, None where that is not enabled."""
    config = place.site.config
    family = config.v4 if version == 4 else config.v6
    return None if family is None else family.network


def own_subnet(place: Place, version: int) -> Net | None:
    return place.lease.subnet if version == 4 else place.lease.subnet6


def _node(lease: Lease, version: int) -> FarNode | str | None:
    """What is wrong with it as text; None when it has nothing of that IP version."""
    attrs = lease.attrs
    subnet, host, data = (
        (lease.subnet, attrs.public_ip, attrs.data) if version == 4 else (lease.subnet6, attrs.public_ipv6, attrs.data6)
    )
    if subnet is None:
        return None
    name = f"node {lease.node}" if lease.node else f"the node of {subnet}"
    if host is None:
        return f"{name}: its lease of {subnet} has no public IPv{version} address: its flanneld has to publish one"
    return FarNode(name, subnet, host, data)


def _wrong(node: FarNode, place: Place, owners: dict[Net, str]) -> str:
    subnet = node.subnet
    network, own = family_network(place, subnet.version), own_subnet(place, subnet.version)
    if network is not None and not within(subnet, network):
        return f"its subnet {subnet} is outside of the network {network}: no route is made"
    if own is not None and subnet.overlaps(own):
        return f"its subnet {subnet} overlaps this node's own {own}: no route is made; one of them needs another"
    site = place.site
    if node.host in (site.external.ipv4, site.external.ipv6, site.public_ip, site.public_ipv6):
        return (
            f"its public address {node.host} is this node's own: no route is made; give one of them another (--iface)"
        )
    if subnet in owners:
        return f"its subnet {subnet} is that of {owners[subnet]}, too: no route is made; one of them needs another"
    return ""
