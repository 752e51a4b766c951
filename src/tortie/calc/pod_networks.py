"""The ways to pods of ipvlan, macvlan and bridges on other nodes: from what all Nodes publish, one node's routes.

    Node annotations ─► claims, the earliest first ─► taken, or refused ─► of other nodes: routes
                                                                       └─► announced ones: BGP

No two nodes have the same addresses: of two claims that overlap the earlier one is taken, whoever is asked and in
whatever order the Nodes came, so that a mistake on a new node does not cut off pods that run.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tortie.base.addr import IP, Net
from tortie.base.errors import ConfigError
from tortie.calc.routing import router_address
from tortie.calc.state import PodNetworks, PodRoute
from tortie.model.node import Node
from tortie.model.pod_networks import PodNetwork, pod_networks, titled, with_pod_networks

VERSIONS = (4, 6)


@dataclass(frozen=True, slots=True)
class Claim:
    """Addresses from `low` to `high` that a node gives to pods of one of its networks. `ways` are the node's addresses
    by which they are reached, of the same family; `speaks` is the one that BGP has as the next hop, None without."""

    since: str
    node: str
    network: PodNetwork
    net: Net
    low: int
    high: int
    ways: tuple[IP, ...]
    speaks: IP | None = None

    @property
    def announced(self) -> bool:
        """Whether BGP tells of it. Routers hand packets to the address that it speaks from: that has to be a way."""
        return self.network.announce and self.speaks in self.ways

    @property
    def rank(self) -> tuple[str, str, str, tuple[int, int, int]]:
        """The least of two has what both claim."""
        return self.since, self.node, self.network.name, _order(self.net)

    @property
    def title(self) -> str:
        return titled(self.network.name, self.node)

    def __str__(self) -> str:
        first = int(self.net.network_address)
        whole = self.high - self.low + 1 == self.net.num_addresses
        return str(self.net) if whole else f"{self.net[self.low - first]} to {self.net[self.high - first]}"


@dataclass(frozen=True, slots=True)
class Published:
    """What one node says: its networks, their claims, and all addresses of the node's that are told of."""

    networks: tuple[PodNetwork, ...] = ()
    claims: tuple[Claim, ...] = ()
    hosts: tuple[IP, ...] = ()


def published(node: Node) -> Published:
    """Raises ConfigError for what cannot be understood."""
    found = (router_address(node, version) for version in VERSIONS)
    own = tuple(ip for ip in found if ip is not None)
    networks = pod_networks(node)
    claims = tuple(claim for network in networks for claim in _claims(node.name, network, own))
    return Published(networks, claims, (*own, *(one.ip for network in networks for one in network.interfaces)))


def _claims(node: str, network: PodNetwork, own: tuple[IP, ...]) -> Iterator[Claim]:
    # Past its master nothing gets to a pod of ipvlan: packets that come in by another link end at the node.
    ways = tuple(one.ip for one in network.interfaces) if network.master else own
    for span in network.spans:
        net = span.net
        # Of a routed network all goes to the one node; of others each node has its part.
        low, high = (int(net[0]), int(net[-1])) if network.routed else span.bounds
        there = tuple(ip for ip in ways if ip.version == net.version)
        speaks = next((ip for ip in own if ip.version == net.version), None)
        yield Claim(span.since, node, network, net, low, high, there, speaks)


class PodNetworkInputs:
    """Nodes as they come; `networks()` is what a node makes of them."""

    def __init__(self, here: str | None) -> None:
        self._here = here
        self._said: dict[str, Published] = {}
        self._unread: dict[str, str] = {}
        """Why what a node says cannot be understood, by title. It counts as saying nothing: a bad annotation must not
        take the node's BGP with it."""
        self._made: tuple[PodNetworks, Mapping[str, str]] | None = None

    def on_node(self, node: Node | None, name: str) -> None:
        """Raises ConfigError for an address of the node's own that is none."""
        title = f"pod networks of {name}"
        old = self._said.pop(name, None), self._unread.pop(title, "")
        if node is not None:
            try:
                self._said[name] = published(node)
            except ConfigError as error:
                self._unread[title] = str(error)
                self._said[name] = published(with_pod_networks(node, ""))
        if old != (self._said.get(name), self._unread.get(title, "")):
            self._made = None

    def networks(self) -> tuple[PodNetworks, Mapping[str, str]]:
        """With what cannot be routed, by title. The very same objects as last time when nothing has changed."""
        if self._made is None:
            found, problems = decided(self._said, self._here)
            self._made = found, {**self._unread, **problems}
        return self._made


def decided(said: Mapping[str, Published], here: str | None) -> tuple[PodNetworks, Mapping[str, str]]:
    """What the node `here` (None: one that has no networks) routes, and why not all is routed."""
    if not any(one.networks for one in said.values()):
        return PodNetworks(), {}
    claims, problems = taken(said)
    mine = said.get(here, Published()) if here is not None else Published()
    masters = {network.name: network for network in mine.networks}
    routes: dict[Net, PodRoute] = {}
    for claim in claims:
        if claim.node != here and claim.net not in routes and not _connected(claim, masters):
            route = _route(claim, masters)
            if isinstance(route, str):
                _add(problems, claim.title, route)
            else:
                routes[claim.net] = route
    for claim in claims:
        if claim.network.announce and not claim.announced:
            text = f"{claim.network.master or claim.node} has not the address that BGP speaks from, {claim.speaks}"
            _add(problems, claim.title, f"{claim.net} is not announced: {text}")
    announced = [claim for claim in claims if claim.announced]
    refused = {titled(network.name, here or "") for network in mine.networks}
    found = PodNetworks(
        tuple(routes[net] for net in sorted(routes, key=_order)),
        tuple(sorted({claim.net for claim in announced if claim.node == here}, key=_order)),
        tuple(sorted({claim.net for claim in announced if claim.node != here}, key=_order)),
        {title: why for title, why in problems.items() if title in refused},
    )
    return found, problems


def _order(net: Net) -> tuple[int, int, int]:
    return net.version, int(net.network_address), net.prefixlen


# --- who has which addresses --------------------------------------------------------------------------------------


def taken(said: Mapping[str, Published]) -> tuple[list[Claim], dict[str, str]]:
    """The claims that hold, and by network's title why others do not."""
    hosts = _hosts(said)
    holders: dict[int, _Holders] = {4: _Holders(), 6: _Holders()}
    claims: list[Claim] = []
    problems: dict[str, str] = {}
    for claim in sorted((claim for one in said.values() for claim in one.claims), key=lambda claim: claim.rank):
        why = _misplaced(claim, hosts)
        if not why:
            other = holders[claim.net.version].take(claim)
            why = f"{claim} overlaps {other} of {other.node}, which has had it since {other.since}" if other else ""
        if why:
            _add(problems, claim.title, why)
        else:
            claims.append(claim)
    return claims, problems


def _add(problems: dict[str, str], title: str, why: str) -> None:
    problems[title] = f"{problems[title]}; {why}" if title in problems else why


def _hosts(said: Mapping[str, Published]) -> dict[int, list[tuple[int, str]]]:
    """The nodes' own addresses by family, sorted, each with its node."""
    found: dict[int, set[tuple[int, str]]] = {4: set(), 6: set()}
    for node, one in said.items():
        for ip in one.hosts:
            found[ip.version].add((int(ip), node))
    return {version: sorted(one) for version, one in found.items()}


def _misplaced(claim: Claim, hosts: Mapping[int, list[tuple[int, str]]]) -> str:
    """Why a routed network cannot be where it is: to whom would a route to it lead, pods or nodes?"""
    if not claim.network.routed:
        return ""
    every = hosts[claim.net.version]
    at = bisect_left(every, (claim.low, ""))
    if at < len(every) and every[at][0] <= claim.high:
        ip, node = every[at]
        return f"{claim} has {claim.net[ip - claim.low]} in it, an address of {node} itself"
    return ""


class _Holders:
    """Ranges of addresses that have an owner, none of them overlapping another's."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int, int]] = []
        """Low, high, index of the claim."""
        self._claims: list[Claim] = []

    def take(self, claim: Claim) -> Claim | None:
        """The range is the claim's from now on; but if some of it is another node's, that claim is returned."""
        first = bisect_right(self._ranges, (claim.low,))
        if first and self._ranges[first - 1][1] >= claim.low:
            first -= 1
        last = first
        low, high = claim.low, claim.high
        while last < len(self._ranges) and self._ranges[last][0] <= claim.high:
            there = self._claims[self._ranges[last][2]]
            if there.node != claim.node:
                return there
            low, high = min(low, self._ranges[last][0]), max(high, self._ranges[last][1])
            last += 1
        del self._ranges[first:last]
        self._claims.append(claim)
        insort(self._ranges, (low, high, len(self._claims) - 1))
        return None


# --- the way there ------------------------------------------------------------------------------------------------


def _route(claim: Claim, masters: Mapping[str, PodNetwork]) -> PodRoute | str:
    """How to get to a claim's pods; or why there is no way."""
    if not claim.ways:
        where = f"{claim.network.master} of {claim.node}" if claim.network.master else claim.node
        return f"{where} has no IPv{claim.net.version} address, which would be the way to {claim.net}"
    own = masters.get(claim.network.name)
    return PodRoute(
        claim.net,
        claim.node,
        claim.network.name,
        claim.ways,
        own.master if own is not None else "",
        direct=not claim.network.routed,
        announced=claim.announced,
    )


def _connected(claim: Claim, masters: Mapping[str, PodNetwork]) -> bool:
    """Whether pods of the claim are neighbours on the link of the same network here."""
    own = masters.get(claim.network.name)
    if own is None or claim.network.routed:
        return False
    nets = (one.network for one in own.interfaces if one.version == claim.net.version)
    return any(claim.net.overlaps(net) for net in nets)
