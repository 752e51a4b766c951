"""ipip: IP packets in IP packets, the smallest tunnel there is. IPv4 only.

    pod ─ bridge ─ 10.5.2.0/24 via 192.0.2.2 dev flannel.ipip onlink ─► IP protocol 4 ─► flannel.ipip ─ bridge ─ pod

With DirectRouting nodes that are reached without a gateway are reached without the tunnel. Source: flannel's ipip
backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Interface

from tortie.base.errors import ConfigError
from tortie.flannel.backend import Backend, Published, Setting
from tortie.flannel.backend_options import BackendOptions
from tortie.flannel.config import NetworkConfig
from tortie.flannel.far_nodes import FarNode, far_nodes
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.state import Device, FlannelState, Path, Place, Site, Ways
from tortie.flannel.state import Ipip as Tunnel

NAME = "flannel.ipip"
OVERHEAD = 20
"""Bytes that the tunnel adds to a packet: an IP header."""


class Ipip:
    published_type = "ipip"
    versions = frozenset({4})
    watches = True

    def __init__(self, direct: bool) -> None:
        self._direct = direct

    @property
    def asks_ways(self) -> bool:
        return self._direct

    async def begin(self, site: Site, remembered: Attrs | None) -> Published:
        if site.external.ipv4 is None:
            raise ConfigError(
                f"{site.external.name} has no IPv4 address for {NAME} to send from: choose another --iface"
            )
        return Published()

    def mtu(self, site: Site) -> int:
        return site.external.mtu - OVERHEAD

    def want(self, place: Place, leases: Sequence[Lease], ways: Ways) -> FlannelState:
        local, subnet = place.site.external.ipv4, place.lease.subnet
        assert local is not None  # or `begin` had refused
        addresses = () if subnet is None else (IPv4Interface(subnet.network_address),)
        found = far_nodes(place, leases, 4)
        return FlannelState(
            networks=tuple(family.network for family in place.site.config.families),
            devices=(Device(NAME, Tunnel(local), self.mtu(place.site), addresses=addresses),),
            paths=tuple(self._path(node, place, ways) for node in found.nodes),
            problems=found.problems,
        )

    def _path(self, node: FarNode, place: Place, ways: Ways) -> Path:
        if self._direct and ways.get(node.host, False):
            return Path(node.subnet, place.site.external.name, node.host)
        return Path(node.subnet, NAME, node.host, onlink=True)

    async def carry_out(self, place: Place, leases: Sequence[Lease]) -> Sequence[str]:
        return ()

    async def end(self) -> None:
        """Device and routes stay: pods go on while no daemon runs."""


def backend(config: NetworkConfig, setting: Setting) -> Backend:
    options = BackendOptions(config)
    direct = options.boolean("DirectRouting")
    options.done()
    return Ipip(direct)
