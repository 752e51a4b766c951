"""udp: packets in UDP datagrams by a program, where the kernel has nothing better. IPv4 only.

    pod ─ bridge ─ 10.5.0.0/16 dev flannel0 ─► flannel0 (TUN) ─► proxy ─► UDP 192.0.2.2:8285 ─► proxy ─► flannel0 ─ ...

Every node has to have the same `Port`: it is not published. The proxy is a process of its own (flannel/udp) and is told
all leases at every change; it takes packets from their public addresses only. When the daemon is killed the device and
what is on it stay, but nobody reads it until the daemon is back. Source: flannel's udp backend.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

from tortie.base.errors import ConfigError, Exists, KernelError, TortieError, Unavailable
from tortie.flannel.backend import Backend, Published, Setting
from tortie.flannel.backend_options import BackendOptions
from tortie.flannel.config import NetworkConfig
from tortie.flannel.far_nodes import family_network, far_nodes
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.own import alias
from tortie.flannel.state import Device, FlannelState, Path, Place, Site, Ways
from tortie.flannel.state import Tun as Kind
from tortie.flannel.udp import build, proxy, tun
from tortie.flannel.udp.proxy import Way

PORT = 8285
OVERHEAD = 28
"""Bytes that it adds to a packet: an IP header and a UDP header."""
PATIENCE = 3.0
"""Seconds that the proxy of a daemon that was killed may take to end."""


def ways(place: Place, leases: Sequence[Lease], port: int) -> tuple[Way, ...]:
    """Where to send what."""
    return tuple(
        Way(node.subnet, node.host, port)
        for node in far_nodes(place, leases, 4).nodes
        if isinstance(node.subnet, IPv4Network) and isinstance(node.host, IPv4Address)
    )


class Udp:
    published_type = ""
    versions = frozenset({4})
    watches = True
    asks_ways = False

    def __init__(self, port: int, setting: Setting) -> None:
        self._port = port
        self._setting = setting
        self._program = setting.run_dir / build.NAME
        self._device = tun.NAMES[0]
        self._proxy: proxy.Proxy | None = None
        self._told: tuple[IPv4Address, tuple[Way, ...]] | None = None
        self._strangers = 0

    async def begin(self, site: Site, remembered: Attrs | None) -> Published:
        if site.external.ipv4 is None:
            raise ConfigError(f"{site.external.name} has no IPv4 address to send from: choose another --iface")
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self._program = await asyncio.to_thread(build.program, self._setting.run_dir)
                self._start(site)
            except Exists as error:
                if time.monotonic() > until:
                    raise ConfigError(str(error)) from None
            except KernelError as error:
                raise Unavailable(str(error)) from None
            else:
                return Published()
            await asyncio.sleep(0.05)

    def _start(self, site: Site) -> None:
        assert site.external.ipv4 is not None  # or `begin` had refused
        name = alias(FlannelState(networks=tuple(family.network for family in site.config.families)))
        self._proxy = proxy.start(self._program, name, site.external.ipv4, self._port)
        self._device, self._told, self._strangers = self._proxy.device, None, 0

    def mtu(self, site: Site) -> int:
        return site.external.mtu - OVERHEAD

    def want(self, place: Place, leases: Sequence[Lease], ways: Ways) -> FlannelState:
        subnet, network = place.lease.subnet, family_network(place, 4)
        addresses = () if subnet is None else (IPv4Interface(subnet.network_address),)
        return FlannelState(
            networks=tuple(family.network for family in place.site.config.families),
            devices=(Device(self._device, Kind(), self.mtu(place.site), addresses=addresses),),
            paths=() if network is None else (Path(network, self._device),),
            problems=far_nodes(place, leases, 4).problems,
        )

    async def carry_out(self, place: Place, leases: Sequence[Lease]) -> Sequence[str]:
        """Not in another thread: the device is made in the network namespace of this one."""
        lines: list[str] = []
        why = self._proxy.ended() if self._proxy is not None else "it was not started"
        try:
            if self._proxy is None or why:
                lines.append(f"the proxy of {self._device} has ended ({why}): it is started again")
                await self.end()
                self._start(place.site)
            assert self._proxy is not None
            subnet = place.lease.subnet
            table = (subnet.network_address if subnet else IPv4Address(0), ways(place, leases, self._port))
            fresh = table != self._told
            if fresh:
                self._proxy.put_table(*table)
                self._told = table
            lines += self._strange(self._proxy.counters(), fresh)
        except TortieError as error:
            lines.append(str(error))
        return lines

    def _strange(self, counted: Mapping[str, int], fresh: bool) -> Sequence[str]:
        """Whether somebody who is no node has sent something since the last time. What came before a `fresh` table may
        be of nodes that were not known yet."""
        before, self._strangers = self._strangers, counted["received_stranger"]
        if fresh or self._strangers <= before:
            return ()
        return (f"packets from {IPv4Address(counted['last_stranger'])} were dropped: no node has this public address",)

    def counters(self) -> Mapping[str, Any]:
        """Of the proxy that runs now, since it was started; nothing when there is none."""
        try:
            found = {} if self._proxy is None else self._proxy.counters()
        except TortieError:
            return {}
        if found and found["last_stranger"]:
            return {**found, "last_stranger": str(IPv4Address(found["last_stranger"]))}
        return {name: value for name, value in found.items() if name != "last_stranger"}

    async def end(self) -> None:
        """The device stays, with its address and its route."""
        if self._proxy is not None:
            self._proxy.close()
            self._proxy = None


def backend(config: NetworkConfig, setting: Setting) -> Backend:
    options = BackendOptions(config)
    port = options.integer("Port", PORT, 1, 65535)
    options.done()
    return Udp(port, setting)
