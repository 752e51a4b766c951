"""The way from this node to every other: does it answer, at its own addresses and at the end of its tunnels; is its
BGP port open; and how large may a packet be?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from tortie.agent.looking import looking
from tortie.base.addr import IP
from tortie.base.dialled import Answer, Dialled
from tortie.base.errors import KernelError, TortieError
from tortie.bgp.sessions import BGP_PORT
from tortie.calc.doctor import Way
from tortie.kernel import links, ping
from tortie.kernel.dial import dial
from tortie.kernel.netlink import Netlink
from tortie.kernel.routes import lookup

LARGEST = 9216
"""Bytes: no link that is in use carries larger packets."""


@dataclass(frozen=True, slots=True)
class Target:
    """An address of another node. `bgp_port` 0: there is to be no session with it. `established`: there is one, and
    nobody must dial: BIRD takes that for a peer that has restarted, and begins anew."""

    node: str
    ip: IP
    source: IP | None = None
    tunnel: str = ""
    bgp_port: int = 0
    established: bool = False


async def ways(targets: Iterable[Target]) -> tuple[Way, ...]:
    """All of them side by side; some seconds."""
    return tuple(await asyncio.gather(*(looking(way, target) for target in targets)))


def way(target: Target) -> Way:
    mtu, error = _first_link(target)
    answers = False
    if not error:
        try:
            answers = ping.answers(target.ip, target.source)
        except OSError as why:
            error = why.strerror or str(why)
    bgp = None
    if target.established:
        bgp = Answer(Dialled.OPEN, "established")
    elif target.bgp_port and not error:
        bgp = dial(target.ip, target.bgp_port, source=target.source)
    largest = None
    if answers and not target.tunnel:
        with suppress(OSError):  # the way has gone meanwhile
            largest = ping.largest(target.ip, target.source, mtu)
    return Way(
        node=target.node,
        ip=target.ip,
        tunnel=target.tunnel,
        answers=answers,
        error=error,
        bgp=bgp,
        port=target.bgp_port or BGP_PORT,
        largest=largest,
        link_mtu=mtu,
    )


def _first_link(target: Target) -> tuple[int, str]:
    """The MTU of the link that packets leave by, or why there is none."""
    with Netlink() as nl:
        try:
            route = lookup(nl, target.source, target.ip)
            dev = route.dev or next((hop.dev for hop in route.nexthops if hop.dev), 0)
            if not dev:
                return 0, f"{route.words({})} is a {route.type} route"
            return min(links.get_link(nl, dev).mtu, LARGEST), ""
        except KernelError as error:
            return 0, error.detail or str(error).rpartition(": ")[2]
        except TortieError as error:  # the link has gone meanwhile
            return 0, str(error)
