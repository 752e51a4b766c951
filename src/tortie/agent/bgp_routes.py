"""Where routes come from, and whom they are told: this node's BIRD, and beside it what its configuration decides.

    BIRD: show route all ─────────────────► rows: from whom, by which way, best or why not
    BIRD: show route filtered all ────────► what import filters reject
    BIRD: show route NET export SESSION ──► whom it tells ─┐
    bgp.announce, from the same values ───► what decides  ─┴─► told, with the reason; "differs" where they disagree

Where all routes are asked for, what decides is taken for what is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from tortie.agent.looking import asking, looking
from tortie.base.addr import Net, parse_net
from tortie.base.errors import NotFound
from tortie.bgp import table
from tortie.bgp.announce import Community, Decision, admitted, announce
from tortie.bgp.birdc import Route, parse_protocols, parse_routes
from tortie.bgp.sessions import Peer
from tortie.calc.state import DesiredState
from tortie.kernel.bird import Bird
from tortie.render.announcing import announcing
from tortie.render.bird import BirdConfig
from tortie.render.routing import bird_config

Sent = frozenset[tuple[str, str, tuple[str, ...]]]
"""What BIRD tells a session: network, the protocol that it has it from, and next hops, as those tell rows apart."""


@dataclass(frozen=True, slots=True)
class Table:
    """BIRD's at one time. `rejected` are those that an import filter does not take in; `up` are the sessions that are
    established; `sent` is what BIRD tells each of them, None when it was not asked."""

    routes: tuple[Route, ...]
    rejected: tuple[Route, ...]
    up: Set[str]
    sent: Mapping[str, Sent] | None = None


async def read(bird: Bird, net: Net | None) -> Table:
    """BIRD is asked what it tells only of what is about one network. Raises Unavailable, ConfigError."""
    routes, rejected = await _routes(bird, net), await _routes(bird, net, " filtered")
    protocols = await asking(lambda: parse_protocols(bird.ask("show protocols all")))
    up = {one.name: one.session for one in protocols if one.session is not None and one.session.established}
    if net is None:
        return Table(routes, rejected, up.keys())
    prefixes = sorted({route.prefix for route in routes})
    sent: dict[str, Sent] = {}
    for name, session in up.items():
        own = [one for one in prefixes if session.neighbor is not None and session.neighbor.version == one.version]
        sent[name] = await _sent(bird, name, own)
    return Table(routes, rejected, up.keys(), sent)


async def _routes(bird: Bird, net: Net | None, which: str = "") -> tuple[Route, ...]:
    """To read thousands of them takes a while."""
    return await asking(lambda: table.wanted(parse_routes(bird.ask(f"show route all{which}")), net))


async def _sent(bird: Bird, session: str, prefixes: Iterable[Net]) -> Sent:
    """BIRD refuses a network of the other family."""
    replies = [await bird.query(f"show route {prefix} export {session}") for prefix in prefixes]
    return frozenset(_row(route) for reply in replies for route in parse_routes(reply))


def _row(route: Route) -> tuple[str, str, tuple[str, ...]]:
    return str(route.prefix), route.protocol, tuple(f"{hop.via} {hop.dev}" for hop in route.hops)


async def answer(node: str, bird: Bird | None, state: DesiredState | None, prefix: str) -> Mapping[str, Any]:
    """Of all routes, or of those to a network or an address. Raises ConfigError, NotFound without BGP, Unavailable."""
    config = bird_config(state, 0) if state is not None else None
    if bird is None or config is None:
        raise NotFound(f"{node} has no BGP: it runs without BIRD, or has no address")
    seen = await read(bird, parse_net(prefix) if prefix else None)
    routes = await looking(lambda: list(_answers(seen, config)))
    return {"node": node, "routes": routes, "rejected": list(_rejected(seen, config))}


def _answers(seen: Table, config: BirdConfig) -> Iterator[dict[str, Any]]:
    peers = {peer.name: peer for peer in config.peers}
    by = {version: announcing(config, version) for version in (4, 6)}
    best = {(one.table, one.prefix): one for one in seen.routes if one.best}
    for route in seen.routes:
        winner = best.get((route.table, route.prefix))
        known, version = table.candidate(route, peers), route.prefix.version
        told_to = [peer for peer in peers.values() if peer.ip.version == version and peer.name in seen.up]
        yield {
            "prefix": str(route.prefix),
            "kind": route.kind,
            "protocol": route.protocol,
            "since": route.since,
            "via": [{"via": str(hop.via or ""), "dev": hop.dev} for hop in route.hops],
            "preference": route.preference,
            "localPref": table.local_pref(route),
            "asPath": list(table.as_path(route)),
            "communities": _words(table.communities(route)),
            "best": route.best,
            "why": "" if route.best or winner is None else table.why_not(route, winner),
            "told": [_told(seen, route, peer, announce(known, peer, by[version])) for peer in told_to],
        }


def _told(seen: Table, route: Route, peer: Peer, decision: Decision) -> dict[str, Any]:
    told = decision.accepted if seen.sent is None else _row(route) in seen.sent[peer.name]
    return {
        "peer": str(peer.ip),
        "session": peer.name,
        "told": told,
        "why": decision.step,
        "differs": told is not decision.accepted,
        "communities": _words(decision.route.communities) if told else [],
    }


def _words(communities: Iterable[Community]) -> list[str]:
    return [":".join(map(str, one)) for one in sorted(communities)]


def _rejected(seen: Table, config: BirdConfig) -> Iterator[dict[str, Any]]:
    peers = {peer.name: peer for peer in config.peers}
    filters = {one.name: one for one in config.filters}
    for route in seen.rejected:
        peer = peers.get(route.protocol)
        if peer is not None:
            _, why = admitted(table.candidate(route, peers), peer, filters)
            yield {"prefix": str(route.prefix), "protocol": route.protocol, "peer": str(peer.ip), "why": why}
