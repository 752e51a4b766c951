"""Whether a node's own policy lets a BGP session through: host endpoints may close TCP 179 on its interfaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tortie.base.addr import IP
from tortie.base.flow import TCP
from tortie.calc.hosts import Interfaces, covered
from tortie.calc.state import DesiredState
from tortie.model.hostendpoint import EVERY_INTERFACE
from tortie.policy.rules import Direction
from tortie.policy.verdict import HostClass, HostPolicy, Packet, Verdict, judge_host, membership

_STATIONS: tuple[tuple[HostClass, Direction], ...] = (
    ("untracked", "egress"),
    ("normal", "egress"),
    ("untracked", "ingress"),
    ("preDNAT", "ingress"),
    ("normal", "ingress"),
)
_EPHEMERAL = 40000


@dataclass(frozen=True, slots=True)
class Ends:
    """A session's two addresses, and the TCP ports at which each can be dialled."""

    own: IP
    peer: IP
    own_port: int
    peer_port: int

    def packet(self, direction: Direction) -> Packet:
        """The first one of whoever dials."""
        if direction == "egress":
            return Packet(self.own, self.peer, TCP, _EPHEMERAL, self.peer_port)
        return Packet(self.peer, self.own, TCP, _EPHEMERAL, self.own_port)


def denial(state: DesiredState, interfaces: Interfaces, interface: str, ends: Ends) -> str:
    """What denies a session over `interface`, in words; "" when nothing does. Either end may dial."""
    hosts: Mapping[str, HostPolicy | None] = covered(state, interfaces)
    host = hosts.get(interface, hosts.get(EVERY_INTERFACE))
    if host is None:
        return ""
    settled: set[Direction] = set()
    for kind, direction in _STATIONS:
        if direction in settled:  # an Allow before connection tracking counts at all later stations
            continue
        verdict = _judged(state, host, kind, direction, ends.packet(direction))
        if verdict is not None and not verdict.allowed:
            return f"{direction}, {verdict.reason}"
        if verdict is not None:
            settled.add(direction)
    return ""


def _judged(
    state: DesiredState, host: HostPolicy, kind: HostClass, direction: Direction, packet: Packet
) -> Verdict | None:
    contains = membership(lambda ref: state.sets.get(ref, ()))
    return judge_host(packet, host, kind, direction, contains, state.settings.failsafes)
