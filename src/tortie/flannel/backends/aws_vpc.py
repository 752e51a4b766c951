"""aws-vpc: no tunnel. This node puts the way to its own subnet into the route tables of its VPC.

    pod ─ bridge ─ eth0 ─ VPC: 10.5.2.0/24 ─► eni-2 ─ eth0 of the other node ─ bridge ─ pod
                          rtb-1

Every node looks after its own route, and clears away those of the network that lead to instances which are gone. What
the tables say is looked at again now and then: a route that somebody took away or changed comes back. Source: flannel's
aws-vpc backend, which does this once, at its start.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Sequence
from ipaddress import IPv4Network

from tortie.base.errors import ConfigError
from tortie.flannel.aws.cloud import Cloud
from tortie.flannel.aws.metadata import instance
from tortie.flannel.aws.own_route import OwnRoute
from tortie.flannel.aws.tables import wanted_tables
from tortie.flannel.backend import Backend, Published, Setting
from tortie.flannel.backend_options import BackendOptions
from tortie.flannel.config import NetworkConfig
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.state import FlannelState, Place, Site, Ways

log = logging.getLogger(__name__)

EVERY = 45.0
"""Seconds between two looks at the tables, more or less: a hundred nodes must not all ask at once."""


class AwsVpc:
    published_type = ""
    versions = frozenset({4})
    watches = False
    asks_ways = False

    def __init__(self, tables: Sequence[str], every: float = EVERY) -> None:
        """`tables` are IDs; without any it is that of the subnet which the node is in."""
        self._tables = tables
        self._every = every
        self._own: OwnRoute | None = None
        self._seen_to: IPv4Network | None = None
        self._next = 0.0
        """When to look again, by the monotonic clock."""
        self._lines: Sequence[str] = ()

    async def begin(self, site: Site, remembered: Attrs | None) -> Published:
        """Finds out who this instance is, and whether EC2 answers: what is wrong with either ends the daemon early."""
        address = site.external.ipv4
        if address is None:
            raise ConfigError(f"{site.external.name} has no IPv4 address to find its ENI by: choose another --iface")
        found = await instance(os.environ)
        own = OwnRoute(Cloud(found.region), found.id, address, self._tables)
        eni, tables = await own.look()
        log.info("%s is %s, route tables: %s", found.id, eni.id, " ".join(table.id for table in tables))
        self._own, self._seen_to = own, None  # of an earlier address was another one
        return Published()

    def mtu(self, site: Site) -> int:
        return site.external.mtu

    def want(self, place: Place, leases: Sequence[Lease], ways: Ways) -> FlannelState:
        return FlannelState(networks=tuple(family.network for family in place.site.config.families))

    async def carry_out(self, place: Place, leases: Sequence[Lease]) -> Sequence[str]:
        """This is called often, and the cloud asked seldom: what was wrong at the last look is said until the next."""
        subnet, family, now = place.lease.subnet, place.site.config.v4, time.monotonic()
        if self._own is None or subnet is None or family is None:
            return ()
        if subnet != self._seen_to or now >= self._next:
            self._lines = await self._own.see_to(subnet, IPv4Network(family.network))
            self._seen_to, self._next = subnet, now + self._every * random.uniform(0.75, 1.25)
        return self._lines

    async def end(self) -> None:
        """The routes stay: pods go on while no daemon runs."""


def backend(config: NetworkConfig, setting: Setting) -> Backend:
    asked = BackendOptions(config)
    tables = wanted_tables(asked.anything("RouteTableID"))
    asked.done()
    return AwsVpc(tables)
