"""Whether a node is where a moment says: its sessions, its routes, compared with what its agent answers to `/node`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tortie.base.addr import Net
from tortie.bgp.birdc import ESTABLISHED
from tortie.calc.bgp_plan.moment import Moment


def missing(moment: Moment, node: str, answer: Mapping[str, Any]) -> list[str]:
    """What is not yet as the moment says, in words; nothing when the node is there."""
    state = answer["bird"]["state"]
    if state == "not ready":
        return [f"BIRD is not ready: {answer['bird'].get('reason', 'its agent does not say why')}"]
    return [*_sessions(moment, node, answer["peers"]), *_routes(moment, node, answer["routes"])]


def _sessions(moment: Moment, node: str, peers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    states = {peer["name"]: peer["state"] for peer in peers}
    links = (link for graph in moment.graphs.values() for link in graph.links[node].values() if link.steady)
    standing = {link.mine.name: link.there for link in links}
    for name, there in standing.items():
        if states.get(name) != ESTABLISHED:
            yield f"no session {name} with {there} ({states.get(name, 'BIRD does not know it yet')})"
    for name in sorted(states.keys() - {peer.name for peer in moment.nodes[node].peers}):
        yield f"the session {name} is still there"


def _routes(moment: Moment, node: str, routes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    names = {peer.name for peer in moment.nodes[node].peers}
    told = {route["prefix"] for route in routes if route["protocol"] in names}
    for way in moment.told:
        if way.source == node:
            for net in moment.blocks[way.owner][way.ware]:
                if str(net) not in told:
                    yield f"no route to {net} of {way.owner} from BIRD's peers"
    yield from _written(moment, node, {route["prefix"]: route for route in routes if _by_agent(route)})


def _written(moment: Moment, node: str, routes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The agent's own routes to blocks without a tunnel: all that there should be, or none."""
    for owner, net, wanted in _plain(moment, node):
        if wanted and str(net) not in routes:
            yield f"no route to {net} of {owner} from the agent"
        if not wanted and str(net) in routes:
            yield f"the agent's route to {net} of {owner} is still there"


def _plain(moment: Moment, node: str) -> Iterator[tuple[str, Net, bool]]:
    """The other nodes' blocks without a tunnel, and whether this agent writes the routes to them."""
    built = {(way.owner, way.ware) for way in moment.built if way.source == node}
    for owner, wares in moment.blocks.items():
        for ware, nets in wares.items() if owner != node else ():
            if not ware.tunnel:
                yield from ((owner, net, (owner, ware) in built) for net in nets)


def _by_agent(route: Mapping[str, Any]) -> bool:
    """Whether BIRD has it from the kernel, by way of another address: what it did not write itself."""
    return route["protocol"].startswith("kernel") and any(hop["via"] for hop in route["via"])
