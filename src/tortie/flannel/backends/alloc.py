"""alloc: a subnet for this node and nothing else; somebody else routes to it, as a cloud's controller manager does."""

from __future__ import annotations

from collections.abc import Sequence

from tortie.flannel.backend import Backend, Published, Setting
from tortie.flannel.backend_options import BackendOptions
from tortie.flannel.config import NetworkConfig
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.state import FlannelState, Place, Site, Ways


class Alloc:
    published_type = ""
    versions = frozenset({4, 6})
    watches = False
    asks_ways = False

    async def begin(self, site: Site, remembered: Attrs | None) -> Published:
        return Published()

    def mtu(self, site: Site) -> int:
        return site.external.mtu

    def want(self, place: Place, leases: Sequence[Lease], ways: Ways) -> FlannelState:
        return FlannelState(networks=tuple(family.network for family in place.site.config.families))

    async def carry_out(self, place: Place, leases: Sequence[Lease]) -> Sequence[str]:
        return ()

    async def end(self) -> None:
        """Nothing of ours is there."""


def backend(config: NetworkConfig, setting: Setting) -> Backend:
    BackendOptions(config).done()
    return Alloc()
