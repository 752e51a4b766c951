"""Whether a node tells a peer of a route, or takes one in, and what decides: the filters of bird.conf, on values.

    BGP itself ─► local preference ─► BGPFilters ─► disableBGPExport ─► tunnels' routes ─► communities
                                                   ─► own blocks ─► services ─► pools ─► no

The first that accepts or rejects decides. `render.bird` writes the same for BIRD; a test asks both about one table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from tortie.base.addr import Net, within
from tortie.bgp.communities import Advertisement
from tortie.bgp.filters import TOP, AddCommunity, Direction, Filter, FilterRule, Operation, PrependPath, SetPriority
from tortie.bgp.sessions import Peer

NO_ADVERTISE = (65535, 65282)  # RFC 1997
NO_EXPORT = ((65535, 65281), (65535, 65283))  # and NO_EXPORT_SUBCONFED
OWN_TUNNELS = ("*.cali", "*.calico")
"""Links of the agent's tunnels: other nodes' networks, which those tell of themselves."""
TUNNEL = "tunl0"
BPF_LINKS = "bpf*.cali"

Community = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A route in BIRD's table. `session` is that of the peer that told it, None for one that is not learned over BGP;
    `metric` and `source` are the kernel's, of what BIRD has learned from it. Communities have two or three numbers."""

    prefix: Net
    session: Peer | None = None
    interface: str = ""
    metric: int | None = None
    source: int | None = None
    local_pref: int | None = None
    as_path: tuple[int, ...] = ()
    communities: frozenset[Community] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcing:
    """What a node's export depends on, of one family. `private` and `public` are pools with and without
    disableBGPExport; `services` what it tells of services, or passes on; `normal` the usual metric; `cluster_source`
    the kernel's number of the agent's routes, None: not told apart."""

    blocks: tuple[Net, ...] = ()
    private: tuple[Net, ...] = ()
    public: tuple[Net, ...] = ()
    services: tuple[Net, ...] = ()
    advertisements: tuple[Advertisement, ...] = ()
    filters: Mapping[str, Filter] = field(default_factory=dict)
    normal: int = 1024
    cluster_source: int | None = 80


@dataclass(frozen=True, slots=True)
class Decision:
    """`step` is what decides, in words; `route` is it as the peer is told it."""

    accepted: bool
    step: str
    route: Candidate


def announce(route: Candidate, peer: Peer, by: Announcing) -> Decision:
    """What becomes of a route on its way to a peer."""
    why = _barred(route, peer)
    if why:
        return Decision(False, why, route)
    route = _valued(route, by)
    for name in peer.filters:
        known = by.filters.get(name)
        rules = known.rules(Direction.EXPORT, route.prefix.version) if known is not None else ()
        for index, rule in enumerate(rules):
            if matches(rule, route, peer.same_as):
                changed = _operated(route, rule.operations) if rule.accept else route
                return Decision(rule.accept, f"BGPFilter {name}, export rule {index}", changed)
    why = _rejected(route, peer, by)
    if why:
        return Decision(False, why, route)
    route = replace(route, communities=route.communities | _attached(route.prefix, by.advertisements))
    return Decision(*_accepted(route, by), route)


def admitted(route: Candidate, peer: Peer, filters: Mapping[str, Filter]) -> tuple[bool, str]:
    """Whether the filters of a session take in what its peer tells, and which rule decides; "" for none."""
    for name in peer.filters:
        known = filters.get(name)
        rules = known.rules(Direction.IMPORT, route.prefix.version) if known is not None else ()
        for index, rule in enumerate(rules):
            if matches(rule, route, peer.same_as):
                return rule.accept, f"BGPFilter {name}, import rule {index}"
    return True, ""


def _barred(route: Candidate, peer: Peer) -> str:
    """What BGP itself forbids, before any filter is asked."""
    told_by = route.session
    if told_by is None:
        return ""
    if told_by.name == peer.name:
        return "it came from this peer"
    if told_by.same_as and peer.same_as and not (told_by.rr_client or peer.rr_client):
        return "iBGP: what a peer in the same AS told is not told to another, but by a route reflector"
    if NO_ADVERTISE in route.communities:
        return "community no-advertise"
    if not peer.same_as and not route.communities.isdisjoint(NO_EXPORT):
        return "community no-export"
    return ""


def _valued(route: Candidate, by: Announcing) -> Candidate:
    """Metric and local preference add up to TOP; what BGP has told has the latter, anything else the former."""
    if route.session is not None and route.local_pref is not None:
        return replace(route, metric=TOP - route.local_pref)
    metric = by.normal if route.metric is None else route.metric
    return replace(route, metric=metric, local_pref=TOP - metric)


def _rejected(route: Candidate, peer: Peer, by: Announcing) -> str:
    for net in by.private:
        if within(route.prefix, net):
            return f"its pool {net} has disableBGPExport"
    if peer.same_as:
        if any(glob(pattern, route.interface) for pattern in OWN_TUNNELS):
            return f"it is reached through the tunnel {route.interface}: its own node tells of it"
        if route.interface == TUNNEL and route.session is None:
            return f"it is reached through the tunnel {TUNNEL}: its own node tells of it"
        if route.source is not None and route.source == by.cluster_source:
            return f"the agent's route to another node (protocol {route.source}): that node tells of it"
    if glob(BPF_LINKS, route.interface):
        return f"it leads to {route.interface}"
    return ""


def _attached(prefix: Net, advertisements: Iterable[Advertisement]) -> frozenset[Community]:
    return frozenset(one for ad in advertisements if within(prefix, ad.cidr) for one in ad.communities)


def _accepted(route: Candidate, by: Announcing) -> tuple[bool, str]:
    prefix = route.prefix
    if prefix in by.blocks:
        return True, "a block of this node"
    for block in by.blocks:
        if within(prefix, block):
            if route.metric is not None and route.metric < by.normal:
                return True, f"inside the own block {block}, and urgent (metric {route.metric})"
            return False, f"inside the own block {block}, which is told whole"
    for net in by.services:
        if within(prefix, net):
            return True, f"services {net}"
    for net in by.public:
        if within(prefix, net):
            return True, f"inside the pool {net}"
    return False, "inside no pool, and no filter accepts it"


# --- filters ------------------------------------------------------------------------------------------------------


def matches(rule: FilterRule, route: Candidate, same_as: bool) -> bool:
    """Whether every condition of a rule holds of a route that has its local preference."""
    return all(_conditions(rule, route, same_as))


def _conditions(rule: FilterRule, route: Candidate, same_as: bool) -> Iterator[bool]:
    if rule.net is not None:
        yield _covers(rule, route.prefix) is not rule.negated
    if rule.learned:
        yield route.session is not None
    if rule.interface:
        yield glob(rule.interface, route.interface)
    if rule.same_as is not None:
        yield rule.same_as is same_as
    if rule.community:
        yield rule.community in route.communities
    if rule.as_path:
        yield route.as_path[: len(rule.as_path)] == rule.as_path
    if rule.priority is not None:
        yield route.local_pref == TOP - rule.priority


def _covers(rule: FilterRule, prefix: Net) -> bool:
    assert rule.net is not None
    if not rule.inside:
        return prefix == rule.net
    if not within(prefix, rule.net):
        return False
    return rule.lengths is None or rule.lengths[0] <= prefix.prefixlen <= rule.lengths[1]


def _operated(route: Candidate, operations: Iterable[Operation]) -> Candidate:
    for operation in operations:
        match operation:
            case AddCommunity(community):
                route = replace(route, communities=route.communities | {community})
            case PrependPath(path):
                route = replace(route, as_path=(*path, *route.as_path))
            case SetPriority(priority):
                route = replace(route, local_pref=TOP - priority)
    return route


def glob(pattern: str, text: str) -> bool:
    """BIRD's `~` on strings: `*` and `?`. An interface that is not there matches nothing.

    >>> glob("*.calico", "vxlan.calico"), glob("*", "")
    (True, False)
    """
    regular = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return bool(text) and re.fullmatch(regular, text) is not None
