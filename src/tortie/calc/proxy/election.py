"""Which node answers for an address of a load balancer by ARP or neighbour discovery: nobody votes, all reckon alike.

    ProxyState.layer2: address → nodes that may ┐
    leases: node → alive, and on which networks ┴─► holders: address → node      (rendezvous hashing)

Each pair of an address and a node has a number, and of the candidates the one with the highest has the address. A node
that goes loses its own addresses and moves no others. The numbers are part of how nodes of different versions agree:
changing them lets two nodes answer during an upgrade.

Who is alive is judged by when this node saw a lease change, never by the time that is written in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b

from tortie.base.addr import IP, RECENT, Net, parse_net
from tortie.base.errors import ConfigError
from tortie.model.ipam import ANNOUNCE, IPPool
from tortie.model.lease import Lease

PREFIX = "tortie-layer2-"
NAMESPACE = "tortie-layer2"
"""Of the leases, one for each node, and of nothing else: who may write them can do no harm elsewhere."""
NETWORKS = "tortie.dev/layer2-networks"
"""The annotation of a lease: the networks on which its node can answer, with commas between."""

DEAD = 7.0
"""Seconds without a renewal after which a node's addresses are another's."""
FRESH = 4.0
"""Seconds without a renewal of its own after which a node takes nothing over. Less than DEAD by more than the time
between two renewals: when the datastore is away from everybody, each doubts itself before it doubts the others."""
FORGOTTEN = 60.0
"""Seconds without a renewal after which a lease is deleted: who begins now would take it for a living node's."""

_WORD = (1 << 64) - 1
Live = Mapping[str, tuple[Net, ...]]
"""The nodes that are alive, and the networks on which each can answer."""


def asks_layer2(pool: IPPool) -> bool:
    """Whether one node is to answer for each of a pool's addresses."""
    return "LoadBalancer" in pool.spec.uses and pool.metadata.annotations.get(ANNOUNCE) == "Layer2"


# --- who has what -----------------------------------------------------------------------------------------------------


def holders(layer2: Mapping[IP, frozenset[str] | None], live: Live) -> dict[IP, str]:
    """Who answers for each address. One for which nobody can is left out."""
    on = _nodes_by_net(live)
    candidates: dict[tuple[tuple[Net, ...], frozenset[str] | None], list[tuple[int, str]]] = {}
    found: dict[IP, str] = {}
    for ip, may in layer2.items():
        nets = tuple(net for net in on if net.version == ip.version and ip in net)
        if (nets, may) not in candidates:
            names = {name for net in nets for name in on[net] if may is None or name in may}
            candidates[nets, may] = [(number(name), name) for name in sorted(names)]
        if nodes := candidates[nets, may]:
            found[ip] = _first(nodes, number(str(ip)))
    return found


def _nodes_by_net(live: Live) -> dict[Net, list[str]]:
    found: dict[Net, list[str]] = {}
    for name, nets in live.items():
        for net in nets:
            found.setdefault(net, []).append(name)
    return found


@lru_cache(maxsize=2 * RECENT)
def number(text: str) -> int:
    """64 bits of a name or an address, the same everywhere and always."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _first(nodes: Iterable[tuple[int, str]], address: int) -> str:
    """Whose number together with the address's is the highest. Every bit of both counts in it, by two steps as hash
    functions take them."""
    top, best = -1, ""
    for node, name in nodes:
        word = (node ^ address) * 0x9E3779B97F4A7C15 & _WORD
        word = (word ^ word >> 32) * 0xBF58476D1CE4E5B9 & _WORD
        if word > top:
            top, best = word, name
    return best


# --- who is alive -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sign:
    """Of a node's life: the state of its lease, and when this was seen first, in seconds of one's own clock."""

    revision: str
    at: float
    nets: tuple[Net, ...] = ()


class Roll:
    """All nodes' leases as they are heard of. The clock is an argument, goes forward only, and counts sleep."""

    def __init__(self) -> None:
        self._signs: dict[str, Sign] = {}

    def take(self, leases: Iterable[Lease], now: float) -> None:
        """What a list says. One that has not changed is as old as it was."""
        there = {node: lease for lease in leases if (node := node_of(lease))}
        for gone in self._signs.keys() - there.keys():
            del self._signs[gone]
        for lease in there.values():
            self.hear(lease, now)

    def hear(self, lease: Lease, now: float, *, gone: bool = False) -> bool:
        """It is like this, or was deleted. Whether this says anything new of who is alive and where. A lease of
        something else is passed over."""
        node, revision = node_of(lease), lease.metadata.resource_version
        if not node:
            return False
        seen = self._signs.get(node)
        if gone or not lease.spec.holder_identity:
            self._signs.pop(node, None)
            return seen is not None
        if seen is not None and seen.revision == revision:
            return False
        sign = self._signs[node] = Sign(revision, now, networks_of(lease))
        return seen is None or seen.nets != sign.nets or now - seen.at >= DEAD

    def pardon(self, since: float, now: float) -> None:
        """The datastore was away, or deaf, since then: who was alive by then has all of his time again."""
        for node, sign in self._signs.items():
            if since - sign.at < DEAD:
                self._signs[node] = replace(sign, at=max(sign.at, now))

    def live(self, now: float) -> dict[str, tuple[Net, ...]]:
        return {node: sign.nets for node, sign in self._signs.items() if now - sign.at < DEAD}

    def age(self, node: str, now: float) -> float:
        """Seconds since a node's lease was seen to change; infinite for none."""
        sign = self._signs.get(node)
        return now - sign.at if sign is not None else float("inf")

    def next_death(self, now: float) -> float | None:
        """When the next of the living counts as dead unless it is heard of."""
        return min((sign.at + DEAD for sign in self._signs.values() if now - sign.at < DEAD), default=None)

    def forgotten(self, now: float) -> tuple[tuple[str, str], ...]:
        """Nodes whose leases may be deleted, each with the revision of the lease."""
        return tuple((node, sign.revision) for node, sign in self._signs.items() if now - sign.at >= FORGOTTEN)


def node_of(lease: Lease) -> str:
    """Whose sign of life a lease is; "" for another lease."""
    if lease.namespace != NAMESPACE or not lease.name.startswith(PREFIX):
        return ""
    return lease.name.removeprefix(PREFIX)


def networks_of(lease: Lease) -> tuple[Net, ...]:
    """On which networks its node can answer. What is no network is passed over: somebody else may write leases."""
    found = []
    for text in lease.metadata.annotations.get(NETWORKS, "").split(","):
        try:
            found.append(parse_net(text))
        except ConfigError:
            continue
    return tuple(found)


def written(nets: Iterable[Net]) -> dict[str, str]:
    """The annotations that say it."""
    return {NETWORKS: ",".join(map(str, nets))}
