"""What a map of a lab shows: racks, routers, nodes, the sessions between them and who announces what. Pure.

It is drawn as text by `map_text` and as a picture by `map_layout` and `map_svg`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface

from tortie.base.addr import Net, parse_net, within
from tortie.lab.networks import networks
from tortie.lab.sessions import Session, Wanted, natural
from tortie.lab.topology import OUTSIDE, Topology
from tortie.model.bgp import as_number
from tortie.model.ipam import BlockAffinity, IPPool


@dataclass(frozen=True, slots=True)
class NodeSpot:
    """A node. `ready` is None where nobody was asked; `blocks` are what it announces, `kept` those of pools with
    disableBGPExport. `network` is what connects pods on one that has no agent, or where flannel does."""

    name: str
    addresses: tuple[str, ...]
    as_number: int
    cluster_id: str = ""
    blocks: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    ready: bool | None = None
    network: str = ""

    @property
    def way(self) -> str:
        """What there is to say of how it talks: its AS number, or the network of its pods where nobody speaks BGP."""
        return self.network or f"AS {self.as_number}"


@dataclass(frozen=True, slots=True)
class RouterSpot:
    """A router; `as_number` None is one that speaks no BGP. `rack` is "" for one that is above the racks."""

    name: str
    rack: str
    as_number: int | None = None
    daemon: str = ""


@dataclass(frozen=True, slots=True)
class RackSpot:
    name: str
    router: str
    subnets: tuple[str, ...]
    nodes: tuple[NodeSpot, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """All sessions between two ends. `up` is None where nobody was asked; `down`: the IP versions that are not up."""

    ends: tuple[str, str]
    versions: tuple[int, ...]
    internal: bool
    client: str = ""
    up: bool | None = None
    down: tuple[int, ...] = ()

    @property
    def other(self) -> str:
        """The end that reflects routes to the client, "" where neither does."""
        return "" if not self.client else self.ends[0] if self.ends[1] == self.client else self.ends[1]


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything that is drawn. `links` are pairs of routers; `outside` is the outside host's address. `instead`: what
    there is to say where nobody speaks BGP."""

    name: str
    about: str
    racks: tuple[RackSpot, ...]
    routers: tuple[RouterSpot, ...]
    links: tuple[tuple[str, str], ...]
    outside: str
    outside_router: str
    pools: tuple[str, ...]
    pairs: tuple[Pair, ...]
    instead: str = ""

    @property
    def nodes(self) -> tuple[NodeSpot, ...]:
        return tuple(node for rack in self.racks for node in rack.nodes)

    @property
    def is_mesh(self) -> bool:
        """Whether every node has a session with every other, and no other sessions are there."""
        count = len(self.nodes)
        ends = {node.name for node in self.nodes}
        inner = [pair for pair in self.pairs if not pair.client and ends.issuperset(pair.ends)]
        return count > 1 and len(inner) == len(self.pairs) == count * (count - 1) // 2

    @property
    def counted(self) -> str:
        """`16 BGP sessions, 15 up`."""
        if self.instead:
            return self.instead
        total = sum(len(pair.versions) for pair in self.pairs)
        text = f"{total} BGP session{'' if total == 1 else 's'}"
        if all(pair.up is None for pair in self.pairs):
            return text
        return f"{text}, {total - sum(len(pair.down) for pair in self.pairs)} up"

    @property
    def elsewhere(self) -> list[str]:
        """Ends of sessions that are nobody here."""
        known = {node.name for node in self.nodes} | {router.name for router in self.routers} | {OUTSIDE}
        return sorted({end for pair in self.pairs for end in pair.ends} - known)


def chart(
    lab: Topology,
    wanted: Wanted,
    sessions: Iterable[Session],
    ready: Mapping[str, bool] | None = None,
    affinities: Iterable[BlockAffinity] = (),
    pools: Sequence[IPPool] | None = None,
) -> Chart:
    """`ready` says of nodes whether their agents are; without it nothing is said of anybody's state. `pools` are those
    that there are by now, if not the topology's."""
    cluster_as = as_number(lab.blueprint.as_number)
    pools = lab.blueprint.ippools if pools is None else pools
    own = networks(lab)
    private = [pool.spec.net for pool in pools if pool.spec.disable_bgp_export]
    blocks, kept = _blocks(affinities, private)
    spots = {
        host.name: NodeSpot(
            host.name,
            (str(host.ipv4.ip), str(host.ipv6.ip)),
            next((peer.local_as for peer in wanted.nodes[host.name].values()), host.as_number or cluster_as),
            host.cluster_id,
            blocks.get(host.name, ()),
            kept.get(host.name, ()),
            None if ready is None else ready.get(host.name, False),
            "" if lab.has_agents and lab.blueprint.flannel is None else str(own[host.name]),
        )
        for host in lab.nodes
    }
    racks = tuple(
        RackSpot(
            rack.name,
            rack.router,
            (rack.subnet, rack.subnet6),
            tuple(spots[host.name] for host in lab.nodes if host.rack == rack.name),
        )
        for rack in lab.blueprint.racks
    )
    return Chart(
        lab.name,
        lab.blueprint.about,
        racks,
        tuple(RouterSpot(one.name, one.rack, one.as_number, one.daemon) for one in lab.routers),
        tuple((link.between[0], link.between[1]) for link in lab.blueprint.links),
        str(ip_interface(lab.outside.ipv4).ip),
        lab.blueprint.outside_router,
        tuple(f"{pool.name} {pool.spec.cidr} {_way(pool.spec.vxlan_mode, pool.spec.ipip_mode)}"
              for pool in pools),
        pairs(sessions),
        _instead(lab),
    )  # fmt: skip


def _instead(lab: Topology) -> str:
    """Who connects the pods where it is not BGP that tells of them."""
    if lab.blueprint.flannel is not None:
        agents = "agents enforce policy" if lab.has_agents else "no agents"
        return f"no BGP, {agents}: flannel tells the nodes the ways to one another's pods"
    return "" if lab.has_agents else "no agents and no BGP: CNI plugins alone connect the pods"


def pairs(sessions: Iterable[Session]) -> tuple[Pair, ...]:
    """Sessions of both families between the same ends, as one."""
    found: dict[tuple[str, str], list[Session]] = {}
    for session in sessions:
        found.setdefault(session.ends, []).append(session)
    return tuple(_pair(ends, every) for ends, every in found.items())


def _pair(ends: tuple[str, str], every: Sequence[Session]) -> Pair:
    states = [session.up for session in every]
    return Pair(
        ends,
        tuple(session.version for session in every),
        all(session.internal for session in every),
        next((session.client for session in every if session.client), ""),
        None if None in states else all(states),
        tuple(session.version for session in every if session.up is False),
    )


def _blocks(
    affinities: Iterable[BlockAffinity], private: Sequence[Net]
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """By node, IPv4 first: those that are announced, and those that are not."""
    announced: dict[str, list[Net]] = {}
    kept: dict[str, list[Net]] = {}
    for affinity in affinities:
        spec = affinity.spec
        if spec.owns:
            net = parse_net(spec.cidr)
            side = kept if any(within(net, pool) for pool in private) else announced
            side.setdefault(spec.node, []).append(net)
    return _in_order(announced), _in_order(kept)


def _in_order(found: Mapping[str, Iterable[Net]]) -> dict[str, tuple[str, ...]]:
    return {
        node: tuple(map(str, sorted(nets, key=lambda net: (net.version, int(net.network_address)))))
        for node, nets in found.items()
    }


def _way(vxlan: str | None, ipip: str | None) -> str:
    """How packets of a pool travel between nodes, in a word or two."""
    for name, mode in (("VXLAN", vxlan), ("IP in IP", ipip)):
        if mode == "Always":
            return name
        if mode == "CrossSubnet":
            return f"{name} between subnets"
    return "routed"


def by_name(pair: Pair) -> tuple[tuple[str, int, str], ...]:
    """node2 before node10."""
    return tuple(map(natural, pair.ends))
