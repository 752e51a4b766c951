"""What all stations of a packet ask about: the cluster at one moment, looked up by node, address and endpoint."""

from __future__ import annotations

from collections.abc import Iterable

from tortie.base.addr import IP, Net, parse_ip, parse_net
from tortie.calc.cluster import Cluster
from tortie.calc.hosts import resolve
from tortie.calc.state import ClusterRoute, DesiredState, LocalEndpoint, Pool, Settings
from tortie.model.hostendpoint import EVERY_INTERFACE
from tortie.model.ipam import BlockAffinity
from tortie.model.meta import Resource
from tortie.policy.verdict import Contains, HostPolicy, membership


class Picture:
    """`also` are resources that the Cluster of a whole cluster does not keep: whose the blocks are."""

    def __init__(self, cluster: Cluster, state: DesiredState, also: Iterable[Resource] = ()) -> None:
        self.state = state
        self.contains: Contains = membership(lambda ref: state.sets.get(ref, frozenset()))
        self.pools: tuple[Pool, ...] = tuple(pool for pool in state.pools if not pool.load_balancer_only)
        self._cluster = cluster
        self._blocks: dict[Net, str] = {
            parse_net(one.spec.cidr): one.spec.node for one in also if isinstance(one, BlockAffinity) and one.spec.owns
        }

    def endpoint(self, interface: str) -> LocalEndpoint:
        return self.state.endpoints[interface]

    def settings(self, node: str) -> Settings:
        return self._cluster.settings_of(node or None)

    def address(self, node: str, version: int) -> IP | None:
        text = self._cluster.address_of(node, version)
        return parse_ip(text) if text is not None else None

    def way(self, node: str, ip: IP, to: str) -> ClusterRoute | None:
        """How a node gets to an address on another one; None where that is BIRD's to say."""
        return self._cluster.way(node, ip, to)

    def tunnel_source(self, node: str, ip: IP, to: str) -> IP | None:
        """The address that a node speaks from to one on another node, where that is its tunnel's."""
        return self._cluster.tunnel_source(node, ip, to)

    def pool(self, ip: IP) -> Pool | None:
        return next((pool for pool in self.pools if ip in pool.net), None)

    def block(self, ip: IP) -> tuple[Net, str] | None:
        """The block of an address, and the node whose it is."""
        return next(((net, node) for net, node in self._blocks.items() if ip in net), None)

    def host_of(self, node: str) -> tuple[HostPolicy, str] | None:
        """The host endpoint at a node's way out, and why it is taken for that: which interface the packet really comes
        by only the node knows. First the one that has the node's address, then one with a name, then `*`."""
        mine = {name: one for name, one in self.state.host_endpoints.items() if one.node == node}
        if not mine:
            return None
        own = {ip for version in (4, 6) if (ip := self.address(node, version)) is not None}
        for name in sorted(mine):
            if not own.isdisjoint(mine[name].expected_ips) and mine[name].interface != EVERY_INTERFACE:
                return mine[name], "which has the node's address"
        found = resolve(mine, {})
        named = sorted(interface for interface in found if interface != EVERY_INTERFACE)
        if named:
            return found[named[0]], f"if it goes by {named[0]}"
        every = found.get(EVERY_INTERFACE)
        return (every, "which is for every interface") if every is not None else None

    def host_of_every(self, node: str) -> HostPolicy | None:
        """The host endpoint that is asked at pods' interfaces and at lo, too: `*`."""
        mine = {name: one for name, one in self.state.host_endpoints.items() if one.node == node}
        return resolve(mine, {}).get(EVERY_INTERFACE)
