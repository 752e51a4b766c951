"""vxlan: Ethernet frames in UDP. Nothing is learnt or flooded: who is where is what the leases say.

    pod ─ bridge ─ 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink
                   10.5.2.0 is at MAC m        (neighbour)
                   m is at 192.0.2.2           (forwarding entry)  ─► UDP 8472 ─► flannel.1 of 192.0.2.2 ─ bridge ─ pod

Each IP version has a device of its own, over an underlay of its own version: `flannel.1` and `flannel-v6.1`. With
DirectRouting nodes that are reached without a gateway are reached without the tunnel. Source: flannel's vxlan backend.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_interface

from tortie.base.addr import IP
from tortie.base.errors import ConfigError, NotFound
from tortie.cni.spec import lookup
from tortie.flannel.backend import Backend, Published, Setting
from tortie.flannel.backend_options import BackendOptions
from tortie.flannel.config import NetworkConfig
from tortie.flannel.far_nodes import FarNode, far_nodes, own_subnet
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.state import Device, External, FarEnd, FlannelState, Path, Place, Site, Ways
from tortie.flannel.state import Vxlan as Tunnel
from tortie.kernel.links import LONGEST_NAME, get_link
from tortie.kernel.netlink import Netlink

log = logging.getLogger(__name__)

NAMES = {4: "flannel", 6: "flannel-v6"}
"""Of the devices, before the VNI."""
OVERHEAD = {4: 50, 6: 70}
"""Bytes that the tunnel adds to a packet, by IP version outside: IP, UDP, VXLAN and the inner Ethernet header."""
LEAST_MTU = {4: 68, 6: 1280}
"""Of a link that carries it, in bytes (RFC 791, RFC 8200)."""
WINDOWS = ("MacPrefix", "Name")
"""Options that only have a meaning there."""
HIGHEST_VNI = (1 << 24) - 1
_MAC = re.compile(r"[0-9a-f]{2}([:-])[0-9a-f]{2}(\1[0-9a-f]{2}){4}", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Options:
    """`port` 0 is the kernel's own; `mtu` 0 is the external interface's, in bytes, before the tunnel's overhead."""

    vni: int = 1
    port: int = 0
    mtu: int = 0
    gbp: bool = False
    learning: bool = False
    direct: bool = False


class Vxlan:
    published_type = "vxlan"
    versions = frozenset({4, 6})
    watches = True

    def __init__(self, options: Options) -> None:
        self._options = options
        self._macs: dict[int, str] = {}
        """Of our devices, by IP version."""

    @property
    def asks_ways(self) -> bool:
        return self._options.direct

    async def begin(self, site: Site, remembered: Attrs | None) -> Published:
        before = remembered or Attrs()
        data = {4: before.data, 6: before.data6}
        for version in _versions(site.config):
            name = self._name(version)
            if _local(site.external, version) is None:
                text = (
                    f"{site.external.name} has no IPv{version} address for {name} to send from: choose another --iface"
                )
                raise ConfigError(text)
            if len(name) > LONGEST_NAME:
                raise ConfigError(f"{name} is too long for the name of a link: choose a smaller number", "Backend.VNI")
            mtu, least = self._device_mtu(site, version), LEAST_MTU[version]
            if mtu < least:
                text = f"{name} would have an MTU of {mtu}, and IPv{version} needs {least}: raise that of"
                raise ConfigError(f"{text} {site.external.name}, now {site.external.mtu}", "Backend.MTU")
            self._macs[version] = remembered_mac(data[version]) or _device_mac(name) or random_mac(os.urandom(6))
        if self._options.mtu > site.external.mtu:
            most = f"{site.external.mtu}, which is what {site.external.name} carries, is used"
            log.warning("Backend.MTU: %d is too much: %s", self._options.mtu, most)
        return Published(self._data(4), self._data(6))

    def mtu(self, site: Site) -> int:
        """Pods have one for both IP versions: the smaller."""
        return min(self._device_mtu(site, version) for version in _versions(site.config))

    def want(self, place: Place, leases: Sequence[Lease], ways: Ways) -> FlannelState:
        networks = tuple(family.network for family in place.site.config.families)
        parts = [self._want(place, leases, ways, version) for version in _versions(place.site.config)]
        return FlannelState(
            networks,
            devices=tuple(device for part in parts for device in part.devices),
            far_ends=tuple(end for part in parts for end in part.far_ends),
            paths=tuple(path for part in parts for path in part.paths),
            problems=tuple(problem for part in parts for problem in part.problems),
        )

    def _want(self, place: Place, leases: Sequence[Lease], ways: Ways, version: int) -> FlannelState:
        """Of one IP version."""
        device = self._device(place, version)
        found = far_nodes(place, leases, version)
        problems = list(found.problems)
        ends: list[FarEnd] = []
        paths: list[Path] = []
        owners = {device.mac: "this node"}
        for node in found.nodes:
            if self._options.direct and ways.get(node.host, False):
                paths.append(Path(node.subnet, place.site.external.name, node.host))
                continue
            try:
                mac = vtep_mac(node, owners)
            except ConfigError as problem:
                problems.append(str(problem))
                continue
            owners[mac] = node.name
            at = node.subnet.network_address
            ends.append(FarEnd(device.name, at, mac, node.host))
            paths.append(Path(node.subnet, device.name, at, onlink=True))
        return FlannelState((), (device,), tuple(ends), tuple(paths), problems=tuple(problems))

    def _device(self, place: Place, version: int) -> Device:
        options, external, subnet = self._options, place.site.external, own_subnet(place, version)
        local = _local(external, version)
        assert local is not None  # or `begin` had refused
        kind = Tunnel(options.vni, local, external.index, options.port, options.learning, options.gbp)
        addresses = () if subnet is None else (ip_interface(subnet.network_address),)
        mtu = self._device_mtu(place.site, version)
        return Device(self._name(version), kind, mtu, self._macs[version], addresses)

    def _device_mtu(self, site: Site, version: int) -> int:
        return min(self._options.mtu or site.external.mtu, site.external.mtu) - OVERHEAD[version]

    def _name(self, version: int) -> str:
        return f"{NAMES[version]}.{self._options.vni}"

    def _data(self, version: int) -> str | None:
        mac = self._macs.get(version)
        return None if mac is None else json.dumps({"VNI": self._options.vni, "VtepMAC": mac}, separators=(",", ":"))

    async def carry_out(self, place: Place, leases: Sequence[Lease]) -> Sequence[str]:
        return ()

    async def end(self) -> None:
        """Device and routes stay: pods go on while no daemon runs."""


def vtep_mac(node: FarNode, owners: Mapping[str, str]) -> str:
    """The MAC address of a node's device. `owners` are those that have one: no two may have the same. Raises
    ConfigError."""
    written = _written_mac(node.data)
    if written is None:
        raise ConfigError(f'its BackendData is {node.data or "missing"}, not {{"VNI":1,"VtepMAC":"…"}}', node.name)
    mac = unicast_mac(written)
    if mac is None:
        raise ConfigError(f'its VtepMAC "{written}" is not the MAC address of a device', node.name)
    if mac in owners:
        other = f"its VtepMAC {mac} is that of {owners[mac]}, too: was one of the machines copied from the other?"
        raise ConfigError(f"{other} Delete flannel's device there and start flanneld again", node.name)
    return mac


def unicast_mac(text: str) -> str | None:
    """In lower case with colons; None for what cannot be a device's."""
    if not _MAC.fullmatch(text):
        return None
    octets = bytes.fromhex(re.sub("[:-]", "", text))
    return None if octets[0] & 1 or not any(octets) else octets.hex(":")


def remembered_mac(data: str | None) -> str | None:
    """That of the daemon before this one: what others know stays true."""
    written = _written_mac(data)
    return None if written is None else unicast_mac(written)


def random_mac(octets: bytes) -> str:
    """Locally administered, of one device: six random octets."""
    return bytes((octets[0] & 0xFC | 0x02, *octets[1:])).hex(":")


def _written_mac(data: str | None) -> str | None:
    try:
        found = json.loads(data or "null")
    except ValueError:
        return None
    written = lookup(found, "VtepMAC") if isinstance(found, dict) else None
    return written if isinstance(written, str) else None


def _device_mac(name: str) -> str | None:
    """That of a device which is there already."""
    with suppress(NotFound), Netlink() as nl:
        link = get_link(nl, name)
        return unicast_mac(link.mac) if link.kind == "vxlan" else None
    return None


def _versions(config: NetworkConfig) -> tuple[int, ...]:
    return tuple(family.network.version for family in config.families)


def _local(external: External, version: int) -> IP | None:
    return external.ipv4 if version == 4 else external.ipv6


def backend(config: NetworkConfig, setting: Setting) -> Backend:
    asked = BackendOptions(config)
    options = Options(
        vni=asked.integer("VNI", 1, 0, HIGHEST_VNI),
        port=asked.integer("Port", 0, 0, 65535),
        mtu=asked.integer("MTU", 0, 0, 65535),
        gbp=asked.boolean("GBP"),
        learning=asked.boolean("Learning"),
        direct=asked.boolean("DirectRouting"),
    )
    for key in WINDOWS:
        if asked.anything(key) is not None:
            log.warning("Backend.%s: only has a meaning on Windows, without effect", key)
    asked.done()
    return Vxlan(options)
