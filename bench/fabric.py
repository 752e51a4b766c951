"""Nodes on one switch, each a network namespace, and pods connected to them by hand: the path without any of ours.

pod ─ veth ─ node1 ─ veth ─ br0 ─ veth ─ node2 ─ veth ─ pod      routed in the nodes, no nft, no proxy ARP
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.node import namespace
from tortie.base.addr import parse_ip, parse_net
from tortie.kernel import addresses, links, netns, routes
from tortie.kernel.netlink import Netlink
from tortie.kernel.routes import Route

PREFIX_LENGTH = 24


def node_ip(number: int) -> str:
    """The address of a node, of which the first is 1: of TEST-NET-1, RFC 5737."""
    return f"192.0.2.{number}"


NODES = (node_ip(1), node_ip(2))
GATEWAY = "169.254.1.1"  # as our pods have it


@dataclass(frozen=True, slots=True)
class Place:
    """A pod: the path of its network namespace, and its address."""

    netns: str
    ip: str


@contextlib.contextmanager
def nodes(prefix: str, count: int = 2) -> Iterator[tuple[str, ...]]:
    """The namespaces (paths) of forwarding nodes that reach each other through a bridge."""
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(namespace(f"{prefix}-switch"))
        made = tuple(stack.enter_context(namespace(f"{prefix}-node{number}")) for number in range(1, count + 1))
        with Netlink(switch) as nl:
            links.create_bridge(nl, "br0")
            links.set_up(nl, "br0")
            for number, path in enumerate(made, 1):
                plug(nl, f"port{number}", path)
                links.set_master(nl, f"port{number}", "br0")
                with Netlink(path) as inside:
                    address(inside, "eth0", f"{node_ip(number)}/{PREFIX_LENGTH}")
        for path in made:
            with netns.entered(path):
                Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        yield made


@contextlib.contextmanager
def pods(prefix: str, hosts: Sequence[str]) -> Iterator[tuple[Place, Place, Place]]:
    """Two pods on the first node and one on the second, connected by hand."""
    with contextlib.ExitStack() as stack:
        made = []
        for number, (host, ip) in enumerate(((0, "10.91.1.2"), (0, "10.91.1.3"), (1, "10.91.2.2")), 1):
            path = stack.enter_context(namespace(f"{prefix}-pod{number}"))
            with Netlink(hosts[host]) as nl:
                plug(nl, f"pod{number}", path)
                index = address(nl, f"pod{number}", f"{GATEWAY}/32")
                routes.add_route(nl, Route(parse_net(ip), dev=index, scope="link"))
            with Netlink(path) as nl:
                index = address(nl, "eth0", f"{ip}/32")
                routes.add_route(nl, Route(parse_net(GATEWAY), dev=index, scope="link"))
                routes.add_route(nl, Route(parse_net("0.0.0.0/0"), via=parse_ip(GATEWAY), dev=index))
            made.append(Place(path, ip))
        for host, net, via in ((0, "10.91.2.0/24", NODES[1]), (1, "10.91.1.0/24", NODES[0])):
            with Netlink(hosts[host]) as nl:
                routes.add_route(nl, Route(parse_net(net), via=parse_ip(via)))
        yield made[0], made[1], made[2]


def plug(nl: Netlink, port: str, inside: str) -> None:
    """A veth from here to `eth0` in the namespace (a path); our end is up."""
    fd = netns.open_ns(inside)
    try:
        links.create_veth(nl, port, "eth0", peer_netns=fd)
    finally:
        os.close(fd)
    links.set_up(nl, port)


def address(nl: Netlink, link: str, cidr: str) -> int:
    """Brings a link up with an address; its index."""
    index = links.link_index(nl, link)
    links.set_up(nl, index)
    addresses.add_address(nl, index, cidr)
    return index
