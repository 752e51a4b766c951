"""wireguard: encrypted tunnels of the kernel's; a node is a peer, its subnets what may come from it.

    lease: key, port, public address ─► peer ─► flannel-wg      its IPv4 subnet; with one tunnel for both, the IPv6, too
                                             └► flannel-wg-v6   mode separate: IPv6 subnets, between IPv6 addresses

The private key is in a file, which the next daemon finds again: its sessions go on. A device that is there is kept, and
goes when the daemon is told to end, as flannel's does; not when it is killed.
Source: flannel's wireguard backend. With one tunnel there is one port, and that is what is published for both versions:
flannel's says ListenPortV6 there, and nobody hears what is sent to it.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface, ip_network
from pathlib import Path as File
from typing import Any

from tortie.base.addr import IP, Net, within
from tortie.base.errors import ConfigError, KernelError, NotFound, NotSupported
from tortie.cni.spec import lookup
from tortie.flannel.backend import Backend, Published, Setting
from tortie.flannel.backend_options import BackendOptions
from tortie.flannel.config import NetworkConfig
from tortie.flannel.far_nodes import family_network, own_subnet
from tortie.flannel.key_file import private_key
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.silence import LOOK, Heard, listened
from tortie.flannel.state import Device, FlannelState, Path, Peer, Place, Site, Ways, Wireguard
from tortie.kernel import links, wireguard
from tortie.kernel.netlink import Netlink

NAME, NAME_V6 = "flannel-wg", "flannel-wg-v6"
OVERHEAD = 80
"""Bytes that a packet becomes longer over IPv6; over IPv4 it is 20 less."""
SMALLEST_V6 = 1280
"""What IPv6 asks of every link (RFC 8200)."""
MODES = ("separate", "auto", "ipv4", "ipv6")
KEY_FILE = "WIREGUARD_KEY_FILE"
"""In the environment: where the private key is, if not in `wgkey`."""
PRIVATE = tuple(ip_network(net) for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
"""Addresses that nobody has for himself alone (RFC 1918, RFC 4193)."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What `Backend` says. `mtu` 0 is the external interface's; `psk` is in base64, "" for none."""

    mode: str = "separate"
    port: int = 51820
    port_v6: int = 51821
    psk: str = field(default="", repr=False)
    mtu: int = 0
    keepalive: int = 0


@dataclass(frozen=True, slots=True)
class Keys:
    """This node's, in base64."""

    private: str = field(repr=False)
    public: str


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A device: its name, its port, and the IP versions of the subnets behind it."""

    name: str
    port: int
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """What a lease says of a node in one IP version. Port 0: the same as here."""

    key: str
    port: int


def wishes(config: NetworkConfig) -> Wishes:
    """Raises ConfigError naming the option."""
    options = BackendOptions(config)
    made = Wishes(
        mode=options.text("Mode", "separate"),
        port=options.integer("ListenPort", 51820, 1, 65535),
        port_v6=options.integer("ListenPortV6", 51821, 1, 65535),
        psk=_psk(options.text("PSK")),
        mtu=options.integer("MTU", 0, 148, 65535),
        keepalive=options.integer("PersistentKeepaliveInterval", 0, 0, 65535),
    )
    options.done()
    if made.mode not in MODES:
        raise ConfigError(f'no valid Mode configured: "{made.mode}" is none of {", ".join(MODES)}', "Backend.Mode")
    if made.mode == "separate" and len(config.families) == 2 and made.port == made.port_v6:
        raise ConfigError(f"{made.port} is ListenPort, too: two devices need two ports", "Backend.ListenPortV6")
    return made


def _psk(text: str) -> str:
    try:
        return wireguard.canonical(text) if text else ""
    except ValueError:
        raise ConfigError("is not 32 bytes in base64, as wg genpsk writes them", "Backend.PSK") from None


def tunnels(wished: Wishes, config: NetworkConfig) -> tuple[Tunnel, ...]:
    versions = tuple(family.network.version for family in config.families)
    if wished.mode != "separate":
        return (Tunnel(NAME, wished.port, versions),)
    both = Tunnel(NAME, wished.port, (4,)), Tunnel(NAME_V6, wished.port_v6, (6,))
    return tuple(tunnel for tunnel in both if tunnel.versions[0] in versions)


def published(wished: Wishes, config: NetworkConfig, public: str) -> Published:
    port_v6 = wished.port_v6 if wished.mode == "separate" else wished.port
    return Published(
        _data(public, wished.port) if config.v4 is not None else None,
        _data(public, port_v6) if config.v6 is not None else None,
    )


def _data(public: str, port: int) -> str:
    return json.dumps({"PublicKey": public, "Port": port}, separators=(",", ":"))


def checked(wished: Wishes, site: Site) -> None:
    """Raises ConfigError for what this node cannot do."""
    mtu = _mtu(wished, site)
    if site.config.v6 is not None and mtu < SMALLEST_V6:
        text = (
            f"leaves {mtu} bytes to packets, and IPv6 needs {SMALLEST_V6}: it must be {SMALLEST_V6 + OVERHEAD} at least"
        )
        raise ConfigError(text, "Backend.MTU" if wished.mtu else f"MTU of {site.external.name}")
    public = {"ipv4": site.public_ip, "ipv6": site.public_ipv6}
    if wished.mode in public and public[wished.mode] is None:
        version = wished.mode.removeprefix("ipv")
        text = f'"{wished.mode}": this node has no public IPv{version} address, which EnableIPv{version} would give it'
        raise ConfigError(text, "Backend.Mode")


def _mtu(wished: Wishes, site: Site) -> int:
    return (wished.mtu or site.external.mtu) - OVERHEAD


# --- peers --------------------------------------------------------------------------------------------------------


def version_to(wished: Wishes, site: Site, attrs: Attrs) -> int:
    """By which IP version a node is reached through one tunnel: as flannel decides it, and by what there is."""
    if wished.mode != "auto":
        return 6 if wished.mode == "ipv6" else 4
    v4, v6 = attrs.public_ip, attrs.public_ipv6
    if v6 is None or site.public_ipv6 is None:
        return 4
    if v4 is None or site.public_ip is None:
        return 6
    return 6 if _is_private(v4) and not _is_private(v6) and not _is_private(site.public_ipv6) else 4


def _is_private(ip: IP) -> bool:
    return any(ip in net for net in PRIVATE)


def said(data: str | None) -> Said | None:
    """Raises ConfigError for what cannot be read."""
    if data is None:
        return None
    try:
        values: Any = json.loads(data)
    except ValueError as why:
        raise ConfigError(f"BackendData {data} is not JSON: {why}") from None
    if values is None:
        return None
    values = values if isinstance(values, dict) else {}
    key, port = lookup(values, "PublicKey"), lookup(values, "Port", 0)
    try:
        key = wireguard.canonical(key if isinstance(key, str) else "")
    except ValueError:
        raise ConfigError(f"BackendData {data} has no PublicKey of 32 bytes in base64") from None
    if type(port) is not int or not 0 <= port <= 65535:
        raise ConfigError(f"BackendData {data} has no Port that is one")
    return Said(key, port)


def peer(wished: Wishes, tunnel: Tunnel, place: Place, lease: Lease) -> Peer | None:
    """The node behind a tunnel; None for one that has no subnet for it. Raises ConfigError for what is wrong with its
    lease."""
    allowed = tuple(net for net in _subnets(lease) if net.version in tunnel.versions)
    if not allowed:
        return None
    for net in allowed:
        _check(net, place)
    attrs = lease.attrs
    single = wished.mode != "separate"
    version = version_to(wished, place.site, attrs) if single else tunnel.versions[0]
    host = attrs.public_ip if version == 4 else attrs.public_ipv6
    if host is None:
        raise ConfigError(f"its lease has no public IPv{version} address, by which it is to be reached")
    found = said(attrs.data if single or version == 4 else attrs.data6)
    if found is None and single:  # that of IPv4 is right about the port, where there is one
        found = said(attrs.data6)
    if found is None:
        raise ConfigError("its lease has no BackendData: no key, no port")
    endpoint = host, found.port or tunnel.port
    return Peer(tunnel.name, found.key, endpoint, allowed, wished.psk, wished.keepalive)


def _subnets(lease: Lease) -> Iterator[Net]:
    yield from (net for net in (lease.subnet, lease.subnet6) if net is not None)


def _check(subnet: Net, place: Place) -> None:
    """Raises ConfigError for a subnet that cannot be another node's."""
    network, own = family_network(place, subnet.version), own_subnet(place, subnet.version)
    if network is not None and not within(subnet, network):
        raise ConfigError(f"its subnet {subnet} is outside of the network {network}")
    if own is not None and subnet.overlaps(own):
        raise ConfigError(f"its subnet {subnet} overlaps this node's own {own}: one of them needs another")


def peers(
    wished: Wishes, keys: Keys, tunnel: Tunnel, place: Place, leases: Sequence[Lease]
) -> tuple[tuple[Peer, ...], list[str]]:
    """All that a device has, and a line for each lease that something is wrong with.

    A key is one node, and a subnet belongs to one key. Of two leases that do not agree the newer is right: a node that
    has lost its subnet leaves a lease behind, which stays for a day.
    """
    found: dict[str, Peer] = {}
    names: dict[str, str] = {}
    owners: dict[Net, str] = {}
    problems: list[str] = []
    for lease in sorted(leases, key=_age):
        name = _name(lease)
        try:
            one = peer(wished, tunnel, place, lease)
        except ConfigError as error:
            problems.append(f"{name}: {error}")
            continue
        if one is None:
            continue
        if one.key == keys.public:
            problems.append(f"{name}: has this node's own key: it is this node's former lease, or a copy of its wgkey")
            continue
        free = tuple(net for net in one.allowed if net not in owners)
        problems += [f"{name}: its subnet {net} is that of {owners[net]}, too" for net in one.allowed if net in owners]
        owners |= dict.fromkeys(free, name)
        if one.key in found:
            problems.append(f"{name}: has the key of {names[one.key]}: packets for both go to that one")
            first = found[one.key]
            found[one.key] = _with(first, (*first.allowed, *free))
        elif free:
            found[one.key], names[one.key] = _with(one, free), name
    return tuple(found[key] for key in sorted(found)), problems


def _name(lease: Lease) -> str:
    return f"node {lease.node}" if lease.node else f"the node of {next(_subnets(lease), '(no subnet)')}"


def _age(lease: Lease) -> tuple[bool, float]:
    """The newest first; those that never expire before all."""
    return lease.expires is not None, -(lease.expires or 0.0)


def _with(one: Peer, allowed: tuple[Net, ...]) -> Peer:
    return Peer(one.device, one.key, one.endpoint, allowed, one.psk, one.keepalive)


def state(wished: Wishes, keys: Keys, place: Place, leases: Sequence[Lease]) -> FlannelState:
    """What the kernel should be like."""
    config = place.site.config
    devices: list[Device] = []
    paths: list[Path] = []
    every: list[Peer] = []
    problems: list[str] = []
    for tunnel in tunnels(wished, config):
        own = [net for version in tunnel.versions if (net := own_subnet(place, version)) is not None]
        addresses = tuple(_host(net) for net in own)
        kind = Wireguard(keys.private, tunnel.port)
        devices.append(Device(tunnel.name, kind, _mtu(wished, place.site), addresses=addresses))
        networks = [net for version in tunnel.versions if (net := family_network(place, version)) is not None]
        paths += [Path(net, tunnel.name, scope="link" if net.version == 4 else "") for net in networks]
        found, wrong = peers(wished, keys, tunnel, place, leases)
        every += found
        problems += [line for line in wrong if line not in problems]
    return FlannelState(
        networks=tuple(family.network for family in config.families),
        devices=tuple(devices),
        paths=tuple(paths),
        peers=tuple(every),
        problems=tuple(problems),
    )


def _host(net: Net) -> IPv4Interface | IPv6Interface:
    first = net.network_address
    return IPv4Interface(first) if first.version == 4 else IPv6Interface(first)


# --- the backend --------------------------------------------------------------------------------------------------


class WireguardTunnels:
    published_type = "wireguard"
    versions = frozenset({4, 6})
    watches = True
    asks_ways = False

    def __init__(self, wished: Wishes, key_file: File, look: float = LOOK) -> None:
        self._wished = wished
        self._key_file = key_file
        self._look = look
        self._keys = Keys("", "")
        self._made: tuple[str, ...] = ()
        """Devices that are ours to take away."""
        self._heard: dict[str, dict[str, Heard]] = {}
        """Of their peers, by device and key."""
        self._looked = 0.0

    async def begin(self, site: Site, remembered: Attrs | None) -> Published:
        checked(self._wished, site)
        names = [tunnel.name for tunnel in tunnels(self._wished, site.config)]
        private = private_key(self._key_file)
        self._keys = Keys(private, _public(names[0], private))
        self._made = tuple(names)
        return published(self._wished, site.config, self._keys.public)

    def mtu(self, site: Site) -> int:
        return _mtu(self._wished, site)

    def want(self, place: Place, leases: Sequence[Lease], ways: Ways) -> FlannelState:
        return state(self._wished, self._keys, place, leases)

    async def carry_out(self, place: Place, leases: Sequence[Lease]) -> Sequence[str]:
        """Nothing is done; nodes that do not answer are told."""
        now = time.time()
        if now - self._looked >= self._look:
            self._looked = now
            with wireguard.Wireguard() as wg:
                self._heard = {name: self._listen(wg, name, now) for name in self._made}
        silent = {(name, key) for name, heard in self._heard.items() for key, one in heard.items() if one.silent}
        if not silent:
            return ()
        every = self.want(place, leases, {}).peers
        return [_unanswered(one, leases) for one in every if (one.device, one.key) in silent]

    def _listen(self, wg: wireguard.Wireguard, name: str, now: float) -> dict[str, Heard]:
        try:
            return listened(wg.device(name).peers, self._heard.get(name, {}), now)
        except NotFound:
            return {}

    async def end(self) -> None:
        """Without its keys in the kernel nobody can be this node."""
        with Netlink() as nl:
            for name in self._made:
                try:
                    if links.get_link(nl, name).kind == "wireguard":
                        links.delete_link(nl, name)
                except NotFound:
                    continue


def _unanswered(one: Peer, leases: Sequence[Lease]) -> str:
    whose = next((_name(lease) for lease in leases if set(one.allowed) & set(_subnets(lease))), one.key)
    address, port = one.endpoint
    return (
        f"{whose}: does not answer at {address}, UDP port {port}: nothing comes through, or its PSK or this node's key "
        f"is another there (wg show {one.device})"
    )


def _public(name: str, private: str) -> str:
    """The public key, which the kernel computes on the device that is to have it. One that is there goes on."""
    with Netlink() as nl:
        kinds = {link.name: link.kind for link in links.list_links(nl)}
        if name not in kinds:
            _make(nl, name)
        elif kinds[name] != "wireguard":
            raise ConfigError(
                f"{name} is a link of type {kinds[name] or 'device'}: remove it, WireGuard needs its name"
            )
    with wireguard.Wireguard() as wg:
        if wg.device(name).private_key != private:
            wg.set_device(name, private_key=private)
        return wg.device(name).public_key


def _make(nl: Netlink, name: str) -> None:
    try:
        links.create_link(nl, name, "wireguard")
    except KernelError as why:
        if why.errno != errno.EOPNOTSUPP:
            raise
        text = f"{name}: this kernel has no WireGuard: modprobe wireguard, or choose another Backend.Type"
        raise NotSupported(text) from None


def backend(config: NetworkConfig, setting: Setting) -> Backend:
    return WireguardTunnels(wishes(config), File(os.environ.get(KEY_FILE) or setting.run_dir / "wgkey"))
