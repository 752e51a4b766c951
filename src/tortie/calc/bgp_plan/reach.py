"""Who learns whose routes from whom: sessions as a graph, and a route's way through it.

    node's peers ─► links   both ends have the session, and agree on it ─┐
                                                                         ├─► spread(origin): who learns, and from whom
    rules of BGP            what is passed on, what is refused ──────────┘

    learned from       told to eBGP peers   told to iBGP peers
    itself             yes                  yes
    eBGP               yes                  yes
    iBGP, a client     yes                  yes          (a client of this node, which reflects)
    iBGP, no client    yes                  clients only

Refused is a route that has the receiver's AS in its path, or that comes from a client and was in this cluster before.
What is no node is a router that we do not see into: it is taken to pass on all that it may, and to reach all the others
of its kind. Filters are not looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import combinations
from operator import attrgetter

from tortie.base.addr import IP
from tortie.bgp.sessions import BGP_PORT, Peer
from tortie.calc.state import Routing

SOFT = frozenset({"next_hop", "reachable_by"})
"""Fields of a session, beside its filters, that BIRD changes without closing it."""


@dataclass(frozen=True, slots=True)
class Link:
    """A session of a node, as seen from there. `theirs` is the other end's half of it; `own` is what of the node itself
    all its sessions hang on. Not `steady` is one of two for the same neighbour: one stands, and nobody knows which.
    """

    there: str
    mine: Peer
    theirs: Peer
    own: tuple[object, ...] = ()
    steady: bool = True

    @property
    def plain(self) -> bool:
        """Of one AS, and this end is no client of the other: what it tells goes to clients and eBGP peers only."""
        return self.mine.same_as and not self.theirs.rr_client


@dataclass(frozen=True, slots=True)
class Half:
    """A session that does not come about, as one end wants it, and what is wrong with it."""

    node: str
    there: str
    peer: Peer
    why: str


class Graph:
    """The sessions of one IP version that stand. Never changed once it is made."""

    def __init__(self, links: Mapping[str, Mapping[str, Link]], halves: tuple[Half, ...] = ()) -> None:
        self.links = links
        """By node and the other end's name."""
        self.halves = halves

    @cached_property
    def nearest(self) -> Mapping[str, tuple[Link, ...]]:
        return {name: tuple(links.values()) for name, links in self.links.items()}

    @cached_property
    def onward(self) -> Mapping[str, tuple[Link, ...]]:
        """To whom a node tells what it has from an iBGP peer that is no client of its."""
        return {
            name: tuple(link for link in links if link.mine.rr_client or not link.mine.same_as)
            for name, links in self.nearest.items()
        }

    def spread(self, origin: str) -> dict[str, str]:
        """Who learns the routes of a node, and from whom first. The node itself is not among them."""
        learned: dict[str, str] = {}
        best: dict[tuple[str, bool, bool], list[_Route]] = {}
        queue = deque([(origin, _Route(None))])
        while queue:
            here, route = queue.popleft()
            for link in self._told(here, route):
                if route.source is None and link.plain and not self.onward.get(link.there):
                    learned.setdefault(link.there, here)  # what a mesh consists of
                    continue
                passed = route.passed(link)
                if link.there == origin or passed.refused(link):
                    continue
                known = best.setdefault((link.there, link.theirs.same_as, link.theirs.rr_client), [])
                if any(one.covers(passed) for one in known):
                    continue
                known.append(passed)
                learned.setdefault(link.there, here)
                queue.append((link.there, passed))
        return learned

    def _told(self, here: str, route: _Route) -> Iterable[Link]:
        source = route.source
        if source is None:
            return self.nearest.get(here, ())
        through = self.nearest if source.rr_client or not source.same_as else self.onward
        return (link for link in through.get(here, ()) if link.mine.ip != source.ip)


@dataclass(frozen=True, slots=True)
class _Route:
    """A route at a node. `source` is the node's session that it came by, None for its own."""

    source: Peer | None
    path: tuple[int, ...] = ()
    clusters: frozenset[str] = frozenset()

    def passed(self, link: Link) -> _Route:
        """The same at the other end."""
        if not link.mine.same_as:
            return _Route(link.theirs, (link.mine.local_as, *self.path))
        if self.source is None or not self.source.same_as:
            return _Route(link.theirs, self.path)
        through = {one.cluster_id for one in (self.source, link.mine) if one.rr_client and one.cluster_id}
        return _Route(link.theirs, self.path, self.clusters | through)

    def refused(self, link: Link) -> bool:
        theirs = link.theirs
        if self.path.count(theirs.local_as) > (theirs.allowed_local_as or 0):
            return True
        return theirs.same_as and theirs.rr_client and theirs.cluster_id in self.clusters

    def covers(self, other: _Route) -> bool:
        """Whether everybody who would take the other takes this one."""
        return (
            set(self.path) <= set(other.path) and len(self.path) <= len(other.path) and self.clusters <= other.clusters
        )


# --- sessions that stand ------------------------------------------------------------------------------------------


def graph(nodes: Mapping[str, Routing], version: int) -> Graph:
    """The sessions that both ends want alike."""
    names = {ip: name for name, one in sorted(nodes.items()) if (ip := _address(one, version)) is not None}
    ends = {name: _ends(one, names, version) for name, one in nodes.items()}
    ends |= _outside(ends, set(nodes))
    own = {name: _own(nodes[name], version) if name in nodes else () for name in ends}
    links: dict[str, dict[str, Link]] = {name: {} for name in ends}
    halves: list[Half] = []
    for name, peers in ends.items():
        for there, mine in peers.items():
            back = ends.get(there, {}).get(name, ())
            why = _problem(mine, back, nodes.get(name), nodes.get(there))
            steady = len(mine) == 1 and len(back) == 1
            if why or not steady:
                halves.append(
                    Half(name, there, mine[-1], why or "there are two for one neighbour, and only one stands")
                )
            if not why:
                links[name][there] = Link(there, mine[0], back[0], own[name], steady)
    return Graph(links, tuple(halves))


def kept(graphs: Iterable[Graph]) -> Graph:
    """The sessions that stay open all through these: of neither end anything changes but what BIRD takes in passing."""
    first, *others = graphs
    same = {
        (name, there)
        for name, links in first.links.items()
        for there, link in links.items()
        if all(_same(link, other.links.get(name, {}).get(there)) for other in others)
    }
    return Graph(
        {
            name: {there: link for there, link in links.items() if {(name, there), (there, name)} <= same}
            for name, links in first.links.items()
        }
    )


def differences(one: Peer, other: Peer) -> tuple[str, ...]:
    """The fields for which a session must be closed and opened again."""
    return tuple(name for name in _HARD if getattr(one, name) != getattr(other, name))


_HARD = tuple(field.name for field in fields(Peer) if field.name not in SOFT and "filter" not in field.name)
_hard = attrgetter(*_HARD)


def _same(one: Link, other: Link | None) -> bool:
    """Of this end."""
    if other is None or (one.own, one.steady) != (other.own, other.steady):
        return False
    return one.mine is other.mine or bool(_hard(one.mine) == _hard(other.mine))


def _own(node: Routing, version: int) -> tuple[object, ...]:
    """What restarts every session of a node when it changes."""
    return node.router_id, _address(node, version), node.listen_port, node.bind_node_ip


def _address(node: Routing, version: int) -> IP | None:
    return node.ipv4 if version == 4 else node.ipv6


def _ends(node: Routing, names: Mapping[IP, str], version: int) -> dict[str, tuple[Peer, ...]]:
    """A node's peers by the name of the other end, which is its address where it is no node. Workloads are left out:
    what they tell is not about blocks."""
    found: dict[str, tuple[Peer, ...]] = {}
    for peer in node.peers:
        if peer.ip.version == version and not peer.workload:
            there = names.get(peer.ip, str(peer.ip))
            found[there] = (*found.get(there, ()), peer)
    return found


def _outside(
    ends: Mapping[str, Mapping[str, tuple[Peer, ...]]], nodes: set[str]
) -> dict[str, dict[str, tuple[Peer, ...]]]:
    """The halves of routers that are no nodes: an answer to each session with them, and one with each other."""
    routers: dict[str, dict[str, tuple[Peer, ...]]] = {}
    facing: dict[str, Peer] = {}
    for name, peers in ends.items():
        for there, mine in peers.items():
            if there not in nodes:
                facing.setdefault(there, mine[0])
                routers.setdefault(there, {})[name] = (_answer(mine[0], name),)
    for one, other in combinations(sorted(routers), 2):
        a, b = facing[one], facing[other]
        routers[one][other] = (_between(a, b),)
        routers[other][one] = (_between(b, a),)
    return routers


def _answer(mine: Peer, name: str) -> Peer:
    """What a router that is no node should have configured for a session with a node."""
    own = mine.source or mine.ip
    same = mine.same_as
    router = str(mine.ip)
    return Peer(
        name=name, ip=own, remote_as=mine.local_as, local_as=mine.remote_as, rr_client=same,
        cluster_id=router if same else None, password=mine.password,
    )  # fmt: skip


def _between(one: Peer, other: Peer) -> Peer:
    same = one.remote_as == other.remote_as
    return Peer(
        name="assumed", ip=other.ip, remote_as=other.remote_as, local_as=one.remote_as, rr_client=same,
        cluster_id=str(one.ip) if same else None,
    )  # fmt: skip


def _problem(mine: tuple[Peer, ...], back: tuple[Peer, ...], here: Routing | None, there: Routing | None) -> str:
    """Why the two ends get no session, "" when they do."""
    if not back:
        return "the other end has no session back"
    one, other = mine[0], back[0]
    if (one.remote_as, other.remote_as) != (other.local_as, one.local_as):
        return f"AS {one.remote_as} is expected, AS {other.local_as} is there"
    if one.password != other.password:
        return "the passwords differ"
    if not any(_dials(*end) for end in ((one, there), (other, here))):
        return "both ends wait for the other" if one.passive and other.passive else "no end dials the other's port"
    return ""


def _dials(peer: Peer, target: Routing | None) -> bool:
    """Whether this half calls, and calls where the other end listens."""
    listens = None if target is None else target.listen_port or BGP_PORT
    return not peer.passive and listens in (None, peer.port or BGP_PORT)


def pairs(links: Mapping[str, Mapping[str, Link]]) -> Iterator[tuple[str, str]]:
    """Every session once, its ends in order."""
    for name, ends in sorted(links.items()):
        yield from ((name, there) for there in sorted(ends) if name < there)
