"""One moment of a cluster's routing: the sessions that its objects ask for, and who has a way to whose blocks.

    Node, BGPConfiguration, BGPPeer ─► Routing of every node ─► graph of sessions ─┐
    FelixConfiguration ─► who writes which routes ─────────────────────────────────┼─► ways()
    IPPool, BlockAffinity ─► wares: what each node's blocks are made of ───────────┘

A way is there when BIRD learns the route and may write it, or when the agent writes it by itself: through a tunnel, or
without one to a node of its own subnet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_interface
from typing import NamedTuple, TypeVar

from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError
from tortie.calc.admission import Objects
from tortie.calc.bgp_plan.reach import Graph, graph
from tortie.calc.cluster import tunnel_of
from tortie.calc.programming import programming
from tortie.calc.routing import RoutingInputs
from tortie.calc.settings import SettingsInputs
from tortie.calc.state import Programming, Routing
from tortie.model.bgp import BGPConfiguration, BGPPeer
from tortie.model.bgpfilter import BGPFilter
from tortie.model.ipam import BlockAffinity, BlockAffinitySpec, IPPool
from tortie.model.meta import Metadata, Resource
from tortie.model.node import FelixConfiguration, Node
from tortie.model.secret import Secret

R = TypeVar("R", bound=Resource)

VERSIONS = (4, 6)


class Ware(NamedTuple):
    """Blocks of one sort: their IP version, the tunnel of their pools, and whether BGP may tell of them."""

    version: int
    tunnel: str
    told: bool


class Way(NamedTuple):
    """Somebody's way to another's blocks of one sort."""

    source: str
    owner: str
    ware: Ware


@dataclass(frozen=True)
class Moment:
    """Made by `moment`; nothing in it changes later."""

    nodes: Mapping[str, Routing]
    subnets: Mapping[tuple[str, int], Net]
    """A node's own, by name and IP version."""
    programming: Mapping[str, Programming]
    blocks: Mapping[str, Mapping[Ware, tuple[Net, ...]]]
    """Confirmed blocks by the node that holds them."""
    problems: Mapping[str, str]
    """Objects that count as absent, with the reason."""

    @cached_property
    def graphs(self) -> Mapping[int, Graph]:
        """The sessions, by IP version."""
        return {version: graph(self.nodes, version) for version in VERSIONS}

    @cached_property
    def ways(self) -> frozenset[Way]:
        return frozenset((*self.told, *self.built))

    @cached_property
    def told(self) -> Mapping[Way, str]:
        """The ways that BIRD learns and writes, with the neighbour from whom it learns each first."""
        return dict(self.through(self.graphs))

    @cached_property
    def built(self) -> frozenset[Way]:
        """The ways that agents write by themselves."""
        return frozenset(
            Way(source, owner, ware)
            for owner, wares in self.blocks.items()
            for ware in wares
            for source in self.nodes
            if source != owner and self.writes(source, ware) and (ware.tunnel or self.near(source, owner, ware.version))
        )

    def through(self, graphs: Mapping[int, Graph]) -> Iterator[tuple[Way, str]]:
        """The ways that there are over these sessions, with the first neighbour of each."""
        for owner, wares in self.blocks.items():
            learned = {version: graphs[version].spread(owner) for version in {ware.version for ware in wares}}
            for ware in wares:
                for source, neighbour in learned[ware.version].items() if ware.told else ():
                    if source in self.nodes and ware.tunnel in self.programming[source].bird:
                        yield Way(source, owner, ware), neighbour

    def writes(self, node: str, ware: Ware) -> bool:
        """Whether the node's agent writes such routes."""
        return ware.tunnel in self.programming[node].agent

    def near(self, one: str, other: str, version: int) -> bool:
        """Whether they share a subnet."""
        subnet, routing = self.subnets.get((one, version)), self.nodes.get(other)
        ip = None if routing is None else routing.ipv4 if version == 4 else routing.ipv6
        return subnet is not None and ip is not None and ip in subnet


def moment(objects: Objects) -> Moment:
    """Objects that cannot be read count as absent, as they do for an agent."""
    inputs, settings = RoutingInputs(), SettingsInputs()
    problems: dict[str, str] = {}
    _take(objects.all(FelixConfiguration), settings.on_configuration, problems)
    _take(objects.all(Secret), inputs.on_secret, problems)
    _take(objects.all(Node), inputs.on_node, problems)
    _take(objects.all(BGPConfiguration), inputs.on_configuration, problems)
    _take(objects.all(BGPFilter), inputs.on_filter, problems)
    _take(objects.all(BGPPeer), inputs.on_peer, problems)
    nodes = list(objects.all(Node))
    routings = {node.name: routing for node in nodes if (routing := inputs.routing(node.name)) is not None}
    return Moment(
        nodes=routings,
        subnets=dict(_subnets(node for node in nodes if node.name in routings)),
        programming={node.name: _programming(node, objects, settings) for node in nodes},
        blocks=_blocks(objects, routings),
        problems=problems,
    )


def _take(every: Iterable[R], handler: Callable[[R, str, str], object], problems: dict[str, str]) -> None:
    for one in every:
        try:
            handler(one, one.namespace, one.name)
        except ConfigError as error:
            problems[one.title] = str(error)


def with_blocks(objects: Objects) -> Objects:
    """The same, with a block of each pool for each node where the objects have no block at all."""
    if objects.all(BlockAffinity):
        return objects
    for pool in objects.all(IPPool):
        nets = pool.spec.net.subnets(new_prefix=pool.spec.blocks)
        for node, net in zip(objects.all(Node), nets, strict=False):
            name = f"{node.name}-{pool.name}"
            spec = BlockAffinitySpec(state="confirmed", node=node.name, cidr=str(net), deleted=False)
            objects.put(BlockAffinity(metadata=Metadata(name=name), spec=spec))
    return objects


def _subnets(nodes: Iterable[Node]) -> Iterator[tuple[tuple[str, int], Net]]:
    for node in nodes:
        bgp = node.spec.bgp
        for version, text in ((4, bgp.ipv4_address), (6, bgp.ipv6_address)) if bgp is not None else ():
            if text:
                yield (node.name, version), ip_interface(text).network


def _programming(node: Node, objects: Objects, settings: SettingsInputs) -> Programming:
    default = objects.get(BGPConfiguration, "default")
    bgp = default.spec.program_cluster_routes if default is not None else None
    return programming(bgp, settings.settings(node.name, node.labels).cluster_routes)


def _blocks(objects: Objects, nodes: Iterable[str]) -> Mapping[str, Mapping[Ware, tuple[Net, ...]]]:
    pools = [(pool.spec.net, pool.spec) for pool in objects.all(IPPool)]
    found: dict[str, dict[Ware, tuple[Net, ...]]] = {name: {} for name in nodes}
    for affinity in objects.all(BlockAffinity):
        spec = affinity.spec
        if spec.node not in found or not spec.owns:
            continue
        net = parse_net(spec.cidr)
        for pool_net, pool in pools:
            if net.version == pool_net.version and net.subnet_of(pool_net):  # type: ignore[arg-type]
                ware = Ware(net.version, tunnel_of(pool), not pool.disable_bgp_export)
                wares = found[spec.node]
                wares[ware] = (*wares.get(ware, ()), net)
                break
    return found
