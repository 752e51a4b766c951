"""host-gw: routes by the other nodes themselves, without a tunnel. All nodes are on one link.

    pod ─ bridge ─ 10.5.2.0/24 via 192.0.2.2 dev eth0 ─ wire ─ eth0 of 192.0.2.2 ─ bridge ─ pod

Source: flannel's host-gw backend. A node behind a gateway is told instead of asking the kernel again and again.
"""

from __future__ import annotations

from collections.abc import Sequence

from tortie.base.errors import ConfigError
from tortie.flannel.backend import Backend, Published, Setting
from tortie.flannel.backend_options import BackendOptions
from tortie.flannel.config import NetworkConfig
from tortie.flannel.far_nodes import FarNode, far_nodes
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.state import FlannelState, Path, Place, Site, Ways

NAT = (
    "your PublicIP differs from interface IP, meaning that probably you're on a NAT, "
    "which is not supported by host-gw backend"
)


class HostGw:
    published_type = "host-gw"
    versions = frozenset({4, 6})
    watches = True
    asks_ways = True

    async def begin(self, site: Site, remembered: Attrs | None) -> Published:
        external, config = site.external, site.config
        pairs = ((config.v4, site.public_ip, external.ipv4), (config.v6, site.public_ipv6, external.ipv6))
        for family, public, own in pairs:
            if family is not None and public != own:
                raise ConfigError(f"{NAT} ({public} is published, {external.name} has {own})")
        return Published()

    def mtu(self, site: Site) -> int:
        return site.external.mtu

    def want(self, place: Place, leases: Sequence[Lease], ways: Ways) -> FlannelState:
        networks = tuple(family.network for family in place.site.config.families)
        paths: list[Path] = []
        problems: list[str] = []
        for network in networks:
            found = far_nodes(place, leases, network.version)
            problems += found.problems
            for node in found.nodes:
                if ways.get(node.host, True):
                    paths.append(Path(node.subnet, place.site.external.name, node.host))
                else:
                    problems.append(_beyond(node, place.site.external.name))
        return FlannelState(networks=networks, paths=tuple(paths), problems=tuple(problems))

    async def carry_out(self, place: Place, leases: Sequence[Lease]) -> Sequence[str]:
        return ()

    async def end(self) -> None:
        """The routes stay: pods go on while no daemon runs."""


def _beyond(node: FarNode, external: str) -> str:
    return (
        f"{node.name}: {node.host} is not reached out of {external} without a gateway, so that host-gw has no way to "
        f"{node.subnet}: use vxlan, which may have DirectRouting for the nodes that are"
    )


def backend(config: NetworkConfig, setting: Setting) -> Backend:
    BackendOptions(config).done()
    return HostGw()
