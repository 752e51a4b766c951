"""A look around for one BGP session: the way to the peer, who is there, and what it answers. Changes nothing.

    the route to it ─► the link ─► tries to connect ─► the neighbour's entry, as they left it

One try at a time: a peer takes one connection of ours at a time, and closes others.
Only sessions that are down are looked at: where one is up, BIRD takes a new connection for a peer that has restarted,
and begins anew. Where it is down it takes each try for a caller that hung up.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tortie.agent.looking import looking
from tortie.base.addr import IP, parse_ip
from tortie.base.dialled import Answer, Dialled
from tortie.base.errors import KernelError, NotFound
from tortie.bgp.sessions import BGP_PORT, Peer
from tortie.calc.bgp_admittance import Ends, denial
from tortie.calc.diagnosis import Evidence, Md5Counters
from tortie.calc.state import DesiredState
from tortie.dataplane.interfaces import host_interfaces
from tortie.kernel import links
from tortie.kernel.dial import dial
from tortie.kernel.neighbours import list_neighbours
from tortie.kernel.netlink import Netlink
from tortie.kernel.routes import Route, lookup

NETSTAT = Path("/proc/thread-self/net/netstat")
NEAR = 255
"""The TTL of packets under TTL security (RFC 5082)."""
_DISCARDS = ("blackhole", "unreachable", "prohibit", "throw")


async def look(peer: Peer, own: IP | None, state: DesiredState | None) -> Evidence:
    """All of it, in some seconds."""
    way = await looking(_way, peer, own, state)
    if way.no_route or not way.link_up:
        return way
    port = peer.port or BGP_PORT
    signed = near = None
    if peer.password is not None:
        ttl = NEAR if peer.ttl_hops is not None else None
        signed = await looking(dial, peer.ip, port, source=own, ttl=ttl, password=peer.password)
    plain = await looking(dial, peer.ip, port, source=own)
    if plain.result in (Dialled.SILENT, Dialled.DEAF):
        near = await looking(dial, peer.ip, port, source=own, ttl=NEAR)
    return await looking(_with_tries, way, plain, near, signed)


def _way(peer: Peer, own: IP | None, state: DesiredState | None) -> Evidence:
    with Netlink() as nl:
        try:
            route = lookup(nl, own, peer.ip)
        except KernelError as error:
            discarded = {errno.EINVAL: "it is discarded (blackhole)", errno.EACCES: "it is prohibited"}
            why = discarded.get(error.errno or 0)
            return Evidence(no_route=why or error.detail or str(error).rpartition(": ")[2])
        if route.type in _DISCARDS:
            return Evidence(no_route=f"{route.words({})} is a {route.type} route")
        names = {link.index: link for link in links.list_links(nl)}
    dev, hop = _first_hop(route, peer.ip)
    link = names.get(dev)
    name = link.name if link is not None else ""
    denied = ""
    if state is not None and own is not None:
        listen = state.routing.listen_port if state.routing is not None else None
        ends = Ends(own, peer.ip, listen or BGP_PORT, peer.port or BGP_PORT)
        denied = denial(state, host_interfaces(), name, ends)
    return Evidence(
        route=route.words({index: one.name for index, one in names.items()}),
        interface=name,
        link_up=link is None or (link.up and link.carrier),
        next_hop=hop,
        denied=denied,
    )


def _first_hop(route: Route, ip: IP) -> tuple[int, IP]:
    """The link that a route leads out of, and whose neighbour is asked for there."""
    if route.nexthops:
        return route.nexthops[0].dev or 0, route.nexthops[0].via or ip
    return route.dev or 0, route.via or ip


def _with_tries(way: Evidence, plain: Answer, near: Answer | None, signed: Answer | None) -> Evidence:
    counters = netstat(NETSTAT.read_text())
    return replace(
        way,
        neighbour=_neighbour(way),
        plain=plain,
        near=near,
        signed=signed,
        md5=Md5Counters(
            unsigned=counters.get("TCPMD5NotFound", 0),
            unexpected=counters.get("TCPMD5Unexpected", 0),
            wrong=counters.get("TCPMD5Failure", 0),
        ),
        too_far=counters.get("TCPMinTTLDrop", 0),
    )


def _neighbour(way: Evidence) -> str:
    if way.next_hop is None:
        return ""
    with Netlink() as nl:
        try:
            dev = links.link_index(nl, way.interface)
        except NotFound:
            return ""
        entries = list_neighbours(nl, dev=dev)
    return next((entry.state for entry in entries if parse_ip(entry.ip) == way.next_hop), "")


def netstat(text: str) -> Mapping[str, int]:
    """The counters of /proc/net/netstat: lines come in pairs, names and then values.

    >>> netstat("TcpExt: A B\\nTcpExt: 1 2\\n")
    {'A': 1, 'B': 2}
    """
    lines = [line.split()[1:] for line in text.splitlines()]
    found: dict[str, int] = {}
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        found |= {name: int(value) for name, value in zip(names, values, strict=False)}
    return found
