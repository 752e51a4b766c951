"""The BGP sessions that a lab's objects and topology ask for, and how each of them is. Pure.

    Node, BGPConfiguration, BGPPeer ─calc─► each node's peers ─┐
    blueprint ─routers─► each router's neighbours ─────────────┴─► Session: two ends and a family

What one end wants and the other does not is a session, too: one that never comes up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from ipaddress import ip_interface

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError
from tortie.bgp.sessions import Peer, Scope
from tortie.calc.cluster import Cluster
from tortie.lab.routers import Neighbour, neighbours
from tortie.lab.topology import Topology
from tortie.model.bgp import BGPConfiguration, BGPPeer
from tortie.model.bgpfilter import BGPFilter
from tortie.model.ipam import IPPool
from tortie.model.meta import Resource
from tortie.model.node import FelixConfiguration, Node
from tortie.model.secret import Secret

KINDS: tuple[type[Resource], ...] = (Node, IPPool, FelixConfiguration, BGPConfiguration, BGPFilter, Secret, BGPPeer)
"""What decides who peers with whom."""


@dataclass(frozen=True, slots=True)
class Session:
    """Between two ends, `node1`, `tor-a` or an address that is nobody's, sorted as a person would count.

    `up` is None where nobody was asked. `client` is the end to which the other reflects routes, if one does.
    """

    ends: tuple[str, str]
    version: int
    internal: bool
    up: bool | None = None
    client: str = ""

    def __str__(self) -> str:
        return f"{' to '.join(self.ends)} over IPv{self.version}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted: of each node the peers by their protocols' names, of each router its neighbours that dial."""

    nodes: Mapping[str, Mapping[str, Peer]]
    routers: Mapping[str, tuple[Neighbour, ...]] = field(default_factory=dict)
    owners: Mapping[IP, str] = field(default_factory=dict)

    def of_node(self, name: str) -> Set[str]:
        """The names of a node's sessions."""
        return self.nodes.get(name, {}).keys()

    def of_router(self, name: str) -> list[Neighbour]:
        """The neighbours with whom a router should have a session: routers, and the nodes that dial it."""
        router = self.routers.get(name, ())
        return [one for one in router if not one.node or self._dials(one, name)]

    def _dials(self, one: Neighbour, router: str) -> bool:
        peers = self.nodes.get(one.name, {}).values()
        return any(peer.ip == one.own and self.owners.get(peer.ip) == router for peer in peers)

    def sessions(
        self, nodes: Mapping[str, Collection[str]] | None = None, routers: Mapping[str, Collection[IP]] | None = None
    ) -> list[Session]:
        """Every session once. Up is what its agents' BIRDs (`nodes`: names of protocols that are established) and
        routers (neighbours' addresses) say, all ends of them that were asked."""
        found: dict[tuple[tuple[str, str], int], Session] = {}
        for seen in (*self._of_nodes(nodes), *self._of_routers(routers)):
            key = seen.ends, seen.version
            found[key] = _merged(found[key], seen) if key in found else seen
        return sorted(found.values(), key=lambda one: (*map(natural, one.ends), one.version))

    def _of_nodes(self, states: Mapping[str, Collection[str]] | None) -> Iterator[Session]:
        """As the nodes see them."""
        for node, peers in self.nodes.items():
            for name, peer in peers.items():
                far = self.owners.get(peer.ip, str(peer.ip))
                up = None if states is None else name in states.get(node, ())
                client = far if peer.rr_client else ""
                yield Session(_ends(node, far), peer.ip.version, peer.same_as, up, client)

    def _of_routers(self, states: Mapping[str, Collection[IP]] | None) -> Iterator[Session]:
        """As the routers see them."""
        for router in self.routers:
            for one in self.of_router(router):
                up = None if states is None else one.ip in states.get(router, ())
                client = one.name if one.node and one.internal else ""
                yield Session(_ends(router, one.name), one.ip.version, one.internal, up, client)


def _ends(one: str, other: str) -> tuple[str, str]:
    first, second = sorted((one, other), key=natural)
    return first, second


def _merged(one: Session, other: Session) -> Session:
    """A session as both ends see it: up when all say so that say anything."""
    said = [up for up in (one.up, other.up) if up is not None]
    up = all(said) if said else None
    return Session(one.ends, one.version, one.internal and other.internal, up, one.client or other.client)


def wanted_by(lab: Topology, objects: Iterable[Resource]) -> Wanted:
    """What the objects and the topology want. An object that cannot be understood counts as absent."""
    cluster = Cluster(None)
    for resource in objects:
        cluster.put(resource)
    nodes: dict[str, Mapping[str, Peer]] = {}
    owners: dict[IP, str] = {}
    for host in lab.nodes:
        nodes[host.name] = {peer.name: peer for peer in _peers(cluster, host.name)}
        own = (cluster.address_of(host.name, version) for version in (4, 6))
        owners |= {parse_ip(address): host.name for address in own if address is not None}
    for router in lab.routers:
        for address in router.addresses:
            owners[ip_interface(address).ip] = router.name
    return Wanted(nodes, {router.name: tuple(neighbours(lab, router)) for router in lab.routers}, owners)


def _peers(cluster: Cluster, node: str) -> list[Peer]:
    """With whom a node has sessions, workloads aside: those come and go with pods."""
    try:
        routing = cluster.routing_of(node)
    except ConfigError:
        return []
    return [peer for peer in routing.peers if not peer.name.startswith(Scope.WORKLOAD)] if routing is not None else []


def natural(name: str) -> tuple[str, int, str]:
    """node2 before node10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0), name
