"""BIRD's routes as `announce` and people want them: a row of `show route all` read, and why it is not the best."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from tortie.base.addr import IP, Net, within
from tortie.bgp.announce import Candidate, Community
from tortie.bgp.birdc import Origin, Route
from tortie.bgp.sessions import Peer

MASTER = re.compile(r"master[46]")
"""Tables of unicast routes."""
_COMMUNITY = re.compile(r"\(([\d, ]+)\)")
_LEARNED = (Origin.MESH, Origin.PEER)


def candidate(route: Route, sessions: Mapping[str, Peer]) -> Candidate:
    """What of a row `announce` needs. `sessions` are this node's, by name."""
    said = route.attributes
    return Candidate(
        prefix=route.prefix,
        session=sessions.get(route.protocol),
        interface=next((hop.dev for hop in route.hops if hop.dev), ""),
        metric=_number(said.get("Kernel.metric")),
        source=_number(said.get("Kernel.source")),
        local_pref=local_pref(route),
        as_path=as_path(route),
        communities=communities(route),
    )


def local_pref(route: Route) -> int | None:
    return _number(route.attributes.get("BGP.local_pref"))


def as_path(route: Route) -> tuple[int, ...]:
    """The AS numbers, the nearest first; those of a set count one by one."""
    return tuple(map(int, re.findall(r"\d+", route.attributes.get("BGP.as_path", ""))))


def communities(route: Route) -> frozenset[Community]:
    """Standard and large ones."""
    text = " ".join(route.attributes.get(name, "") for name in ("BGP.community", "BGP.large_community"))
    return frozenset(tuple(map(int, match.split(","))) for match in _COMMUNITY.findall(text))


def wanted(routes: Iterable[Route], net: Net | None) -> tuple[Route, ...]:
    """Those to a network, or if there are none to what is in it; for a single address, to whatever it is in; for None,
    all of them."""
    every = [route for route in routes if MASTER.fullmatch(route.table or "master4")]
    if net is None:
        return tuple(every)
    if net.prefixlen == net.max_prefixlen:
        return tuple(route for route in every if _holds(route.prefix, net.network_address))
    exact = tuple(route for route in every if route.prefix == net)
    return exact or tuple(route for route in every if within(route.prefix, net))


def _holds(prefix: Net, ip: IP) -> bool:
    return prefix.version == ip.version and ip in prefix


def why_not(route: Route, best: Route) -> str:
    """Why another route to the same network is better; BIRD's order of questions."""
    if route.preference != best.preference:
        return f"preference {route.preference}, and {best.preference} wins ({best.protocol})"
    if route.origin in _LEARNED and best.origin in _LEARNED:
        pref, its = local_pref(route), local_pref(best)
        if pref != its:
            return f"local preference {pref}, and {its} wins"
        path, shorter = as_path(route), as_path(best)
        if len(path) != len(shorter):
            return f"an AS path of {len(path)}, and the shorter one of {len(shorter)} wins"
        if _number(route.attributes.get("BGP.med")) != _number(best.attributes.get("BGP.med")):
            return "its MED is worse"
    return f"as good as that of {best.protocol}, which was chosen by router id or age"


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
