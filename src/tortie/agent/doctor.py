"""The doctor: looks at this machine, and from it at the other nodes, and says what is wrong. JSON, for the command.

In the agent it answers `/doctor`. `python -m tortie.agent.doctor` does without one, and knows no other nodes then.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict
from typing import Any

from tortie.agent.looking import looking
from tortie.agent.machine import machine
from tortie.agent.node_view import at_address, own_address
from tortie.agent.view import Progress, View
from tortie.agent.ways import Target, ways
from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError, TortieError
from tortie.bgp.birdc import parse_protocols
from tortie.bgp.sessions import BGP_PORT
from tortie.calc.doctor import Cluster, Finding, Seen, judge
from tortie.calc.state import DesiredState, PodNetworks, TunnelDevice
from tortie.kernel.bird import Bird
from tortie.model.node import Node

ALONE = "the datastore, the other nodes and the way to them: no agent runs here"


class Doctor:
    """`routing_failures` are those of BIRD's configuration, in words; `unrouted` has why pod networks are not routed,
    by what is not. Runs on the event loop."""

    def __init__(
        self, node: str, datastore: str, view: View, progress: Progress, bird: Bird | None,
        routing_failures: Callable[[], Sequence[str]], unrouted: Callable[[], Mapping[str, str]] = dict,
    ) -> None:  # fmt: skip
        self._node = node
        self._datastore = datastore
        self._view = view
        self._progress = progress
        self._bird = bird
        self._routing_failures = routing_failures
        self._unrouted = unrouted

    async def answer(self) -> Mapping[str, Any]:
        skipped: list[str] = []
        state = self._view.latest
        established, trouble = await self._sessions()
        cluster = self._cluster(state, trouble)
        host = looking(machine, cluster.addresses, skipped)
        seen, reached = await asyncio.gather(host, ways(self._targets(state, established)))
        return as_json(self._node, judge(Seen(machine=seen, cluster=cluster, ways=reached, skipped=tuple(skipped))))

    def _cluster(self, state: DesiredState | None, bird_trouble: str) -> Cluster:
        known = self._view.cluster
        own = tuple(self._addresses(self._node))
        twins = {ip: at_address(known, ip, self._node) for ip in own}
        pools = state.pools if state is not None else ()
        networks = state.pod_networks if state is not None else PodNetworks()
        return Cluster(
            node=self._node,
            addresses=own,
            twins={ip: nodes for ip, nodes in twins.items() if nodes},
            tunnels=frozenset(pool.tunnel for pool in pools if pool.tunnel),
            flow_tables=state is not None and state.settings.flow_tables,
            vxlan=next(((one.vni, one.port) for one in _devices(state) if one.kind == "vxlan"), (4096, 4789)),
            pools=tuple(pool.net for pool in pools),
            in_sync=self._view.in_sync.is_set(),
            datastore=self._datastore,
            failures=(*self._progress.failures, *self._routing_failures()),
            bgp=self._bird is not None,
            bird_trouble=bird_trouble,
            pod_networks={one.dst: one.node for one in networks.routes if not one.direct},
            unrouted={**networks.refused, **self._unrouted()},
        )

    async def _sessions(self) -> tuple[frozenset[str], str]:
        """The names of those that are established, and why BIRD does not answer."""
        if self._bird is None:
            return frozenset(), ""
        try:
            protocols = parse_protocols(await self._bird.query("show protocols"))
        except TortieError as error:
            return frozenset(), str(error)
        return frozenset(one.name for one in protocols if one.session is not None and one.session.established), ""

    def _addresses(self, node: str) -> Iterator[IP]:
        for version in (4, 6):
            text = self._view.cluster.address_of(node, version)
            if text is not None:
                yield parse_ip(text)

    def _targets(self, state: DesiredState | None, established: Set[str]) -> Iterator[Target]:
        routing = state.routing if state is not None else None
        sessions = {peer.ip: peer for peer in routing.peers} if routing is not None else {}
        own = {ip.version: ip for ip in self._addresses(self._node)}
        for node in self._view.cluster.nodes():
            if node == self._node:
                continue
            for ip in self._addresses(node):
                peer = sessions.get(ip)
                port = (peer.port or BGP_PORT) if peer is not None else 0
                source = own_address(peer, routing) if peer is not None and routing is not None else own.get(ip.version)
                if ip.version in own:
                    up = peer is not None and peer.name in established
                    yield Target(node, ip, source, bgp_port=port, established=up)
            yield from self._tunnel_ends(node, state)

    def _tunnel_ends(self, node: str, state: DesiredState | None) -> Iterator[Target]:
        """Those that this node has a tunnel to. Packets to them travel as pods' packets do."""
        here = {(device.kind, device.local.version) for device in _devices(state)}
        there = self._view.cluster.node_of(node)
        if there is not None:
            for tunnel, ip in tunnel_addresses(there):
                if (tunnel.lower(), ip.version) in here:
                    yield Target(node, ip, tunnel=tunnel)


def tunnel_addresses(node: Node) -> Iterator[tuple[str, IP]]:
    """The ends of a node's tunnels, as its Node has them."""
    spec = node.spec
    ipip = spec.bgp.ipv4_ipip_tunnel_addr if spec.bgp is not None else ""
    named = (("VXLAN", spec.ipv4_vxlan_tunnel_addr), ("VXLAN", spec.ipv6_vxlan_tunnel_addr), ("IPIP", ipip))
    for tunnel, text in named:
        try:
            if text:
                yield tunnel, parse_ip(text)
        except ConfigError:
            continue


def _devices(state: DesiredState | None) -> Sequence[TunnelDevice]:
    return state.overlay.devices if state is not None else ()


def as_json(node: str, findings: Sequence[Finding]) -> dict[str, Any]:
    return {"node": node, "time": time.time(), "findings": [asdict(one) for one in findings]}


def main() -> int:
    skipped: list[str] = []
    seen = machine((), skipped)
    found = judge(Seen(machine=seen, skipped=(ALONE, *skipped)))
    json.dump(as_json("this machine", found), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
