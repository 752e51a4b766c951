"""What this node says of its BGP: what BIRD has, why sessions are down, and which objects are not carried out here.

/node        quick: asked often, by labs that come up and by whoever watches
/diagnosis   looks around for every session that is down: some seconds, and its peer sees the tries
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from tortie.agent.bgp_evidence import look
from tortie.agent.looking import asking
from tortie.agent.view import View
from tortie.base.addr import IP
from tortie.base.errors import TortieError
from tortie.bgp.birdc import Protocol, Route, Session, Status, parse_protocols, parse_routes, parse_status
from tortie.bgp.birdlog import telling_errors
from tortie.bgp.filters import Direction, symbol
from tortie.bgp.sessions import Peer
from tortie.calc.cluster import Cluster
from tortie.calc.diagnosis import Diagnosis, Evidence, Facts, FarEnd, diagnose
from tortie.calc.state import Routing
from tortie.kernel.bird import Bird

LOOKED_AT = 32
"""Sessions that are looked at in one diagnosis, side by side; of more than these the others are down for the same
reasons."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a BIRD says of itself at one time. `routes` None: it was not asked for them."""

    status: Status
    protocols: tuple[Protocol, ...]
    routes: tuple[Route, ...] | None = None


def tell(bird: Bird, *, routes: bool) -> Told:
    """Blocks; it may have many routes, which take a while to read. Raises Unavailable when it does not answer."""
    return Told(
        parse_status(bird.ask("show status")),
        parse_protocols(bird.ask("show protocols all")),
        parse_routes(bird.ask("show route all")) if routes else None,
    )


class NodeView:
    """`failures` are those of BIRD's configuration, in words; `also` has what else is not carried out, as `problems`.
    Runs on the event loop."""

    def __init__(
        self,
        node: str,
        bird: Bird | None,
        view: View,
        failures: Callable[[], Sequence[str]],
        also: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._node = node
        self._bird = bird
        self._view = view
        self._failures = failures
        self._also = also

    async def node(self) -> Mapping[str, Any]:
        answer: dict[str, Any] = {"node": self._node, "problems": dict(sorted(self.problems().items()))}
        if self._bird is not None:
            routing = self._view.latest.routing if self._view.latest is not None else None
            answer["failures"] = list(self._failures())
            answer["wanted"] = len(routing.peers) if routing is not None else 0
        return answer | await self.bird(routes=True)

    async def bird(self, *, routes: bool) -> dict[str, Any]:
        """How BIRD is, its peers, and, if they are asked for, its routes."""
        nothing: dict[str, Any] = {"peers": [], "routes": []}
        if self._bird is None:
            return {"bird": {"state": "none"}, **nothing}
        try:
            return await asking(_bird, self._bird, routes)
        except TortieError as error:
            return {"bird": {"state": "not ready", "reason": str(error)}, **nothing}

    def problems(self) -> Mapping[str, str]:
        """Why objects are not carried out on this node, by what they are: `BGPPeer a`, `password of BGPPeer a`."""
        refused = refused_objects(self._failures(), self._origins())
        return {**refused, **self._view.cluster.problems, **self._also()}

    def _origins(self) -> Mapping[str, Sequence[str]]:
        """By the name of a session or of a function in bird.conf the titles of the objects that it is made of."""
        routing = self._view.latest.routing if self._view.latest is not None else None
        if routing is None or not self._failures():
            return {}
        by_ip = self._view.cluster.origins(self._node)
        sessions = {peer.name: [f"BGPPeer {name}" for name in by_ip.get(peer.ip, ())] for peer in routing.peers}
        functions = {
            symbol(one.name, direction, version): [f"BGPFilter {one.name}"]
            for one in routing.filters
            for direction in Direction
            for version in (4, 6)
        }
        return {**sessions, **functions}

    def families(self) -> Sequence[int]:
        """The IP versions that this node has an address of, for BGP."""
        routing = self._view.latest.routing if self._view.latest is not None else None
        if routing is None:
            return ()
        return [ip.version for ip in (routing.ipv4, routing.ipv6) if ip is not None]

    async def diagnosis(self) -> Mapping[str, Any]:
        """Of every session that is wanted and not established. Empty without BGP, or with a BIRD that does not run."""
        routing = self._view.latest.routing if self._view.latest is not None else None
        if self._bird is None or routing is None:
            return {"node": self._node, "sessions": []}
        try:
            protocols = await asking(_protocols, self._bird)
        except TortieError:
            return {"node": self._node, "sessions": []}
        sessions = {one.name: one.session for one in protocols}
        down = [peer for peer in routing.peers if not _up(sessions.get(peer.name))]
        evidence = await asyncio.gather(*(self._look(peer, routing) for peer in down[:LOOKED_AT]))
        seen = [*evidence, *(Evidence() for _ in down[LOOKED_AT:])]
        errors = await asking(logged_errors, self._bird, {one.name: one.since for one in protocols})
        ends = await far_ends(self._view.cluster, self._node, routing, down)
        refusal = "; ".join(self._failures())
        facts = [
            Facts(
                peer=peer,
                own=own_address(peer, routing),
                session=sessions.get(peer.name),
                far=far,
                evidence=one,
                logged=errors.get(peer.name, ""),
                refusal=refusal,
            )
            for peer, far, one in zip(down, ends, seen, strict=True)
        ]
        return {"node": self._node, "sessions": [_diagnosis(one, diagnose(one)) for one in facts]}

    async def _look(self, peer: Peer, routing: Routing) -> Evidence:
        return await look(peer, own_address(peer, routing), self._view.latest)


def logged_errors(bird: Bird, since: dict[str, str]) -> dict[str, str]:
    """By session what BIRD has written down since it came into its state."""
    return telling_errors(bird.log_tail(), since, datetime.now())


def _protocols(bird: Bird) -> tuple[Protocol, ...]:
    return parse_protocols(bird.ask("show protocols all"))


def _bird(bird: Bird, routes: bool) -> dict[str, Any]:
    """Blocks. Raises Unavailable."""
    told = tell(bird, routes=routes)
    status = told.status
    return {
        "bird": {
            "state": "recovering" if status.recovering else "ready",
            "version": status.version,
            "routerID": status.router_id,
            "since": status.last_reboot.isoformat(),
            "reconfigured": status.last_reconfiguration.isoformat(),
            "waitingFor": status.waiting_channels,
        },
        "peers": [_peer(one, one.session) for one in told.protocols if one.session is not None],
        "routes": [_route(route) for route in told.routes or ()],
    }


def own_address(peer: Peer, routing: Routing) -> IP | None:
    """The address that a session speaks from, as its peer knows it."""
    return peer.source or (routing.ipv4 if peer.ip.version == 4 else routing.ipv6)


async def far_ends(cluster: Cluster, here: str, routing: Routing, peers: Sequence[Peer]) -> list[FarEnd]:
    """Of each the other end, of those behind LOOKED_AT no more than who it is: what a node wants is worked out from all
    objects, which takes some 20 ms in a cluster of 300 nodes. Others have their turn in between."""
    found = []
    for number, peer in enumerate(peers):
        found.append(far_end(cluster, here, peer, own_address(peer, routing), wanted=number < LOOKED_AT))
        await asyncio.sleep(0)
    return found


def far_end(cluster: Cluster, here: str, peer: Peer, own: IP | None, *, wanted: bool) -> FarEnd:
    """What the datastore knows of the other end of a session; what that wants with us only if it is `wanted`."""
    nodes, twins = at_address(cluster, peer.ip, here), at_address(cluster, own, here) if own is not None else ()
    if not nodes:
        return FarEnd(own_twins=twins)
    if not wanted:
        return FarEnd(nodes=nodes, known=False, own_twins=twins)
    there = _routing_of(cluster, nodes[0])
    node = cluster.node_of(nodes[0])
    bgp = node.spec.bgp if node is not None else None
    return FarEnd(
        nodes=nodes,
        as_number=there.as_number if there is not None else None,
        listen_port=there.listen_port if there is not None else None,
        cluster_id=bgp.route_reflector_cluster_id if bgp is not None else None,
        session=next((one for one in there.peers if one.ip == own), None) if there is not None else None,
        known=there is not None,
        own_twins=twins,
    )


def at_address(cluster: Cluster, ip: IP, but: str = "") -> tuple[str, ...]:
    """The nodes whose Node has this address, by name, without one of them."""
    names = (name for name in cluster.nodes() if name != but)
    return tuple(name for name in names if cluster.address_of(name, ip.version) == str(ip))


def _routing_of(cluster: Cluster, node: str) -> Routing | None:
    try:
        return cluster.routing_of(node)
    except TortieError:  # its own agent says what is wrong with it
        return None


def _up(session: Session | None) -> bool:
    return session is not None and session.established


def _peer(protocol: Protocol, session: Session) -> dict[str, Any]:
    return {
        "name": protocol.name,
        "ip": str(session.neighbor or ""),
        "as": session.neighbor_as,
        "state": session.state,
        "since": protocol.since,
        "error": session.error,
        "imported": sum(channel.imported for channel in protocol.channels),
        "filtered": sum(channel.filtered for channel in protocol.channels),
        "exported": sum(channel.exported for channel in protocol.channels),
    }


def _route(route: Route) -> dict[str, Any]:
    return {
        "prefix": str(route.prefix),
        "kind": route.kind,
        "protocol": route.protocol,
        "best": route.best,
        "via": [{"via": str(hop.via or ""), "dev": hop.dev} for hop in route.hops],
    }


def _diagnosis(facts: Facts, found: Diagnosis) -> dict[str, Any]:
    """With what it was found by, for who doubts it."""
    seen = facts.evidence
    tries = {"plain": seen.plain, "near": seen.near, "signed": seen.signed}
    evidence = {
        "state": facts.session.state if facts.session is not None else "",
        "error": facts.error,
        "route": seen.route or seen.no_route,
        "neighbour": seen.neighbour,
        **{name: answer.result.value for name, answer in tries.items() if answer is not None},
    }
    return {**asdict(found), "ip": str(facts.peer.ip), "evidence": evidence}


def refused_objects(failures: Iterable[str], origins: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The objects, by title, whose session is named where a configuration is refused, with the reason. `origins` are
    titles by session."""
    found: dict[str, str] = {}
    for failure in failures:
        words = re.split(r"[^\w.-]+", failure)
        for session, titles in origins.items():
            if session in words:
                found |= dict.fromkeys(titles, failure)
    return found
