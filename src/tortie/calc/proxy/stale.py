"""Flows that connection tracking still sends where services do not: of UDP, and of TCP those that begin too early.

A flow keeps the backend that its first packet got. A client that goes on sending from one socket would never notice
that its backend went, nor, where there was none at first, that there is one now. Such a flow is deleted; its next
packet opens another.

    reply comes from     backends there   then
    one of them          yes              it goes on, be it one of all or one of this node
    somebody else        yes, or no       deleted
    the frontend itself  yes              deleted: it was not translated
    the frontend itself  no               it goes on: there is nobody to get

TCP ends by itself when its backend goes. But a client that calls before its node knows the service would go on calling
where nobody is: each attempt is one more packet of a flow that is not translated, for two minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address

from tortie.base.addr import IP
from tortie.base.flow import TCP, UDP, Flow, Way
from tortie.calc.proxy.state import Entrance, Frontend, ProxyState, Served

OWN: dict[int, IP] = {4: IPv4Address(0), 6: IPv6Address(0)}
"""By IP version: stands for every address of this node."""

JUDGED = (UDP, TCP)

Ends = frozenset[tuple[IP, int]]
"""Addresses and ports of backends."""


def judge(state: ProxyState, own: frozenset[IP]) -> Callable[[Flow], bool]:
    """Says whether a flow is to be deleted. Who opened it does not matter. `own`: the addresses of this node, at which
    NodePorts are answered."""
    there = {one.frontend: one for served in state.services.values() for one in _judged(served)}
    ends: dict[Frontend, Ends] = {}

    def stale(flow: Flow) -> bool:
        if (frontend := _asked(flow.opened, there, state, own)) is None:
            return False
        if frontend not in ends:
            ends[frontend] = _ends(there[frontend])
        replies = flow.reply.source, flow.reply.source_port
        untranslated = replies == (flow.opened.destination, flow.opened.destination_port)
        if flow.opened.protocol == TCP and (flow.answered or not untranslated):
            return False
        return replies not in ends[frontend] and bool(ends[frontend] or not untranslated)

    return stale


def destinations(state: ProxyState, own: frozenset[IP]) -> frozenset[IP]:
    """The addresses that flows to any service are opened to."""
    every = (one.frontend for served in state.services.values() for one in _judged(served))
    found = frozenset(one.ip if one.ip is not None else OWN[one.version] for one in every)
    marks = frozenset(OWN.values())
    return found if found.isdisjoint(marks) else found - marks | own


def touched(old: ProxyState, new: ProxyState) -> frozenset[IP]:
    """Which flows must be looked at after a change: those opened to, or answered by, one of these addresses. 0.0.0.0
    and :: stand for all addresses of this node: a NodePort. Empty when no backend of UDP went, and none came to
    an entrance that had none."""
    found: set[IP] = set()
    for key, served in new.services.items():
        before = old.services.get(key)
        if before is not served:
            known = {one.frontend: _ends(one) for one in _judged(before)} if before is not None else {}
            for one in _judged(served):
                found.update(_touched(one.frontend, known.get(one.frontend, frozenset()), _ends(one)))
    return frozenset(found)


def _touched(frontend: Frontend, old: Ends, new: Ends) -> Iterator[IP]:
    gone = old - new if frontend.protocol == UDP else frozenset()
    if gone or (new and not old):
        yield frontend.ip if frontend.ip is not None else OWN[frontend.version]
        yield from (ip for ip, _ in gone)


def _judged(served: Served) -> Iterator[Entrance]:
    return (one for one in served.entrances if one.frontend.protocol in JUDGED)


def _ends(entrance: Entrance) -> Ends:
    return frozenset((one.ip, one.port) for one in (*entrance.backends, *(entrance.local or ())))


def _asked(way: Way, there: dict[Frontend, Entrance], state: ProxyState, own: frozenset[IP]) -> Frontend | None:
    """The frontend that the first packet was sent to. One with an address comes before NodePorts."""
    ip = way.destination
    named = Frontend(ip.version, ip, way.protocol, way.destination_port)
    if named in there:
        return named
    anywhere = Frontend(ip.version, None, way.protocol, way.destination_port)
    if anywhere not in there or ip not in own or ip.is_loopback:
        return None
    allowed = state.node_ports is None or any(ip in net for net in state.node_ports)
    return anywhere if allowed else None
