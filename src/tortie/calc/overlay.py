"""What this agent itself builds to reach other nodes' pods: tunnels, their far ends, and routes.

    Nodes ──────────► own and tunnel addresses ─┐
    BlockAffinities ► blocks ───────────────────┼─► for each destination its place, and the way to that ─► Overlay
    endpoints ──────► addresses ────────────────┘
    IPPools, settings, who programs what ─► how its packets travel

A destination is a block, or an address that is not in a block of its own node: a borrowed one, or a tunnel's. Of
several reasons for a route to one destination the first of these counts, as in Calico: a pod of this node, to which the
way is none of the overlay's; an address of another node; a block of this node, which is a blackhole.

Packets of a VXLAN or IPIP pool go into the tunnel once the far end has told its tunnel address: then it is there. With
CrossSubnet they go straight to nodes whose address is in the network of this node's own. So do those of pools without a
tunnel where routes to them are the agent's; nodes further away have none then, for nobody on the way would know it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_interface
from typing import TypeVar

from tortie.base.addr import IP, Net, host_net, parse_ip, within
from tortie.base.errors import ConfigError
from tortie.calc.state import ClusterRoute, EndpointKey, Overlay, Pool, Programming, Settings, TunnelDevice, Vtep
from tortie.model.node import Node, NodeBGPSpec

VXLAN_DEVICE = {4: "vxlan.calico", 6: "vxlan-v6.calico"}
IPIP_DEVICE = "tunl0"
LEAST_METRIC = {4: 0, 6: 1}
"""IPv6 has no metric 0: the kernel makes 1024 of it, which is BIRD's, and one excludes the other."""

V = TypeVar("V")
Holder = tuple[str, str, str]
"""Whose an address is: kind, namespace and name of the object that says so."""


def device_of(tunnel: str, version: int) -> str:
    """The name of the device of a kind of tunnel."""
    return VXLAN_DEVICE[version] if tunnel == "VXLAN" else IPIP_DEVICE


@dataclass(frozen=True, slots=True)
class Place:
    """A node as the ends of tunnels see it; by IP version where there are two. An address that is not there is None."""

    name: str
    ip: Mapping[int, IP]
    net: Mapping[int, Net]
    """That of its own address: who is in it can be reached without a router."""
    vxlan: Mapping[int, IP]
    mac: Mapping[int, str]
    ipip: IP | None = None

    @property
    def tunnels(self) -> Iterator[IP]:
        yield from self.vxlan.values()
        if self.ipip is not None:
            yield self.ipip


@lru_cache(maxsize=1 << 13)
def vtep_mac(node: str, version: int) -> str:
    """The MAC address of a node's end of a VXLAN tunnel: local, and of its name alone."""
    name = node if version == 4 else f"{node}-v6"
    digest = hashlib.sha1(name.encode(), usedforsecurity=False).digest()
    return ":".join(f"{octet:02x}" for octet in (0x66, *digest[:5]))


def place_of(node: Node) -> Place:
    """Raises ConfigError naming the field that cannot be read."""
    spec, bgp = node.spec, node.spec.bgp or NodeBGPSpec()
    own: dict[int, IP] = {}
    net: dict[int, Net] = {}
    for version, text in ((4, bgp.ipv4_address), (6, bgp.ipv6_address)):
        if text:
            try:
                interface = ip_interface(text)
            except ValueError:
                raise ConfigError(f'"{text}" is not an IPv{version} address', f"spec.bgp.ipv{version}Address") from None
            own[version], net[version] = interface.ip, interface.network
    macs = {4: spec.vxlan_tunnel_mac_addr, 6: spec.vxlan_tunnel_mac_addr_v6}
    told = {4: spec.ipv4_vxlan_tunnel_addr, 6: spec.ipv6_vxlan_tunnel_addr}
    vxlan = {version: ip for version, text in told.items() if (ip := _tunnel_address(text)) is not None}
    mac = {version: macs[version].lower() or vtep_mac(node.name, version) for version in (4, 6)}
    return Place(node.name, own, net, vxlan, mac, _tunnel_address(bgp.ipv4_ipip_tunnel_addr))


def _tunnel_address(text: str) -> IP | None:
    """Old versions wrote a prefix length with it. What cannot be read is no reason to do without the node."""
    with suppress(ConfigError):
        return parse_ip(text.partition("/")[0])
    return None


@dataclass(frozen=True, slots=True)
class Rules:
    """How this node's packets travel, as far as it does not depend on where to."""

    here: Place
    pools: tuple[Pool, ...]
    settings: Settings
    programming: Programming

    def pool(self, net: Net) -> Pool | None:
        return next((pool for pool in self.pools if within(net, pool.net)), None)

    def uses(self, tunnel: str, version: int) -> bool:
        """Whether there is such a tunnel: a pool asks for it, or the settings do, and they do not forbid it."""
        said = self.settings.vxlan_enabled if tunnel == "VXLAN" else self.settings.ipip_enabled
        asked = any(pool.tunnel == tunnel and pool.net.version == version for pool in self.pools)
        return said is not False and (asked or (version == 4 and said is True))


AWAITED = "awaited"
"""Instead of a way: BIRD writes the route, or the agent will when the far end is ready."""


def way(rules: Rules, dst: Net, there: Place) -> ClusterRoute | str | None:
    """How packets of this node get to a destination on another one; None: nobody writes a route."""
    pool, version = rules.pool(dst), dst.version
    if pool is None or pool.load_balancer_only:
        return None
    tunnel, far = pool.tunnel, there.ip.get(version)
    if tunnel not in rules.programming.agent:
        return AWAITED if rules.programming.by_bird(pool) else None
    if tunnel and not rules.uses(tunnel, version):
        return None
    near = far is not None and version in rules.here.net and far in rules.here.net[version]
    metric = _metric(rules.settings, tunnel, version)
    if near and (pool.cross_subnet or not tunnel):
        return ClusterRoute(dst, far, "", there.name, metric)
    if not tunnel:
        return AWAITED if rules.programming.by_bird(pool) else None
    if far is None or version not in rules.here.ip:
        return AWAITED
    if tunnel == "IPIP":
        return ClusterRoute(dst, far, IPIP_DEVICE, there.name, metric) if there.ipip is not None else AWAITED
    if version not in there.vxlan:
        return AWAITED
    return ClusterRoute(dst, there.vxlan[version], VXLAN_DEVICE[version], there.name, metric)


def _metric(settings: Settings, tunnel: str, version: int) -> int:
    """Tunnels' routes come before BIRD's, which are there when a pool is being changed; the others come after them."""
    return LEAST_METRIC[version] if tunnel else settings.priority[version] + 1


def blackhole(rules: Rules, block: Net) -> ClusterRoute | None:
    """What keeps packets to addresses of an own block that nobody has from going in circles; None where BIRD does."""
    pool = rules.pool(block)
    if block.num_addresses == 1 or (pool is not None and pool.load_balancer_only):
        return None
    tunnel = pool.tunnel if pool is not None else ""
    if tunnel in rules.programming.bird and tunnel not in rules.programming.agent:
        return None
    return ClusterRoute(block, metric=LEAST_METRIC[block.version])


def devices(rules: Rules) -> Iterator[TunnelDevice]:
    here, settings = rules.here, rules.settings
    for version, name in VXLAN_DEVICE.items():
        if rules.uses("VXLAN", version) and version in here.ip:
            yield TunnelDevice(
                name,
                "vxlan",
                here.ip[version],
                here.vxlan.get(version),
                here.mac[version],
                settings.vxlan_vni,
                settings.vxlan_port,
                settings.vxlan_mtu[version],
            )
    if rules.uses("IPIP", 4) and 4 in here.ip:
        yield TunnelDevice(IPIP_DEVICE, "ipip", here.ip[4], here.ipip, mtu=settings.ipip_mtu)


def vteps(rules: Rules, places: Iterable[Place]) -> Iterator[Vtep]:
    """The far ends of this node's VXLAN tunnels."""
    used = [version for version in VXLAN_DEVICE if rules.uses("VXLAN", version) and version in rules.here.ip]
    for place in places:
        for version in used:
            if place.name != rules.here.name and version in place.vxlan and version in place.ip:
                yield Vtep(VXLAN_DEVICE[version], place.vxlan[version], place.mac[version], place.ip[version])


def gateways(vteps: Iterable[Vtep]) -> Iterator[ClusterRoute]:
    """Routes to the next hops of other routes. IPv6 takes no next hop, onlink or not, that it has a route to by another
    link; and while a pool is being changed it has: the tunnel address is in a block of its node's."""
    for vtep in vteps:
        if vtep.address.version == 6:
            yield ClusterRoute(host_net(vtep.address), None, vtep.device, metric=LEAST_METRIC[6])


class OverlayInputs:
    """Nodes, pools, blocks and addresses as they come; `overlay` is what one node makes of them, at the cost of what
    has changed since it was asked last."""

    def __init__(self, node: str | None) -> None:
        self._node = node
        self._places: dict[str, Place] = {}
        self._pools: dict[str, Pool] = {}
        self._changed_from: dict[str, str] = {}
        """The tunnel, "" for none, that a pool had before the one that it has now."""
        self._blocks: dict[Net, dict[str, str]] = {}
        """The node by the name of the affinity that says so; there is one, but while a block changes hands."""
        self._affinities: dict[str, Net] = {}
        self._addresses: dict[IP, tuple[tuple[Holder, str], ...]] = {}
        """Holder and node of each address."""
        self._at: dict[str, set[Net]] = {}
        """The destinations on each node."""
        self._node_at: dict[Net, str] = {}
        self._lengths: dict[int, set[int]] = {4: set(), 6: set()}
        """Prefix lengths of blocks, by IP version."""
        self._rules: Rules | None = None
        self._dirty: set[Net] = set()
        self._far_ends_changed = True
        self._ways: dict[Net, ClusterRoute] = {}
        self._awaited: dict[Net, tuple[()]] = {}
        self._made = Overlay()

    # --- what comes in ---

    def on_node(self, node: Node | None, name: str) -> None:
        """Raises ConfigError."""
        new = place_of(node) if node is not None else None
        old = self._places.get(name)
        if new == old:
            return
        self._far_ends_changed = True
        self._dirty |= self._at.get(name, set())
        for ip in old.tunnels if old is not None else ():
            self._release(("node", "", name), ip)
        self._places.pop(name, None)
        if new is not None:
            self._places[name] = new
            for ip in new.tunnels:
                self._hold(("node", "", name), ip, name)

    def on_pool(self, pool: Pool | None, name: str) -> None:
        old = self._pools.pop(name, None)
        if pool is not None:
            self._pools[name] = pool
        if old == pool:
            return
        before = self._changed_from.pop(name, None)
        if old is not None and pool is not None and old.net == pool.net:
            self._changed_from[name] = old.tunnel if before is None else before
        nets = [one.net for one in (old, pool) if one is not None]
        for dst in (*self._blocks, *map(host_net, self._addresses)):
            if any(within(dst, net) for net in nets):
                self._dirty.add(dst)
        self._far_ends_changed = True

    def on_affinity(self, name: str, block: Net | None, node: str) -> None:
        """A confirmed one; without a block: there is none of this name."""
        old = self._affinities.pop(name, None)
        if old is not None:
            self._blocks[old].pop(name)
            if not self._blocks[old]:
                del self._blocks[old]
            self._touch_block(old)
        if block is not None:
            self._affinities[name] = block
            self._blocks.setdefault(block, {})[name] = node
            self._lengths[block.version].add(block.prefixlen)
            self._touch_block(block)

    def on_endpoint(self, key: EndpointKey, old: tuple[str, tuple[IP, ...]], new: tuple[str, tuple[IP, ...]]) -> None:
        """Its node and its addresses, before and now; no addresses: it is not there."""
        if old == new:
            return
        holder = ("wep", *key)
        for ip in old[1]:
            self._release(holder, ip)
        for ip in new[1]:
            self._hold(holder, ip, new[0])

    def _hold(self, holder: Holder, ip: IP, node: str) -> None:
        others = self._addresses.get(ip, ())
        self._addresses[ip] = tuple(sorted((*others, (holder, node)))) if others else ((holder, node),)
        self._dirty.add(host_net(ip))

    def _release(self, holder: Holder, ip: IP) -> None:
        left = tuple(one for one in self._addresses.get(ip, ()) if one[0] != holder)
        if left:
            self._addresses[ip] = left
        else:
            self._addresses.pop(ip, None)
        self._dirty.add(host_net(ip))

    def _touch_block(self, block: Net) -> None:
        """Which of the addresses in it are borrowed depends on whose it is."""
        self._dirty.add(block)
        if block.num_addresses <= 1 << 12:
            self._dirty.update(host_net(ip) for ip in block if ip in self._addresses)
        else:
            self._dirty.update(host_net(ip) for ip in self._addresses if ip in block)

    # --- what comes out ---

    def overlay(self, settings: Settings, programming: Programming) -> tuple[Programming, Overlay]:
        """The very same Overlay as last time when nothing has changed. Also who programs what, with the pools whose
        routes BIRD is to keep for a while."""
        if self._node is None:
            self._dirty.clear()
            return programming, self._made
        rules = self.rules(self._node, settings, programming)
        old, self._rules = self._rules, rules
        if old is None or _of_all(old) != _of_all(rules):
            self._far_ends_changed = True
            self._dirty.update(self._blocks, map(host_net, self._addresses))
        changed = [self._settle(dst, rules) for dst in self._dirty]
        self._dirty.clear()
        built = tuple(devices(rules))
        if any(changed) or self._far_ends_changed or built != self._made.devices:
            places = (self._places[name] for name in sorted(self._places))
            far_ends = tuple(vteps(rules, places)) if self._far_ends_changed else self._made.vteps
            first = {route.dst: route for route in gateways(far_ends)}
            ways = self._ways
            if twice := first.keys() & ways.keys():  # a tunnel address outside of its node's blocks
                ways = {dst: route for dst, route in ways.items() if dst not in twice}
            routes, awaited = (*first.values(), *ways.values()), frozenset(self._awaited)
            asked = self._made.asked | {(one.kind.upper(), one.local.version) for one in built}
            self._made = Overlay(built, far_ends, routes, awaited, asked)
            self._far_ends_changed = False
        return replace(programming, kept=self._kept(programming)), self._made

    def rules(self, node: str, settings: Settings, programming: Programming) -> Rules:
        """What one node goes by. One that is not known has no addresses."""
        here = self._places.get(node) or Place(node, {}, {}, {}, {})
        return Rules(here, tuple(self._pools[name] for name in sorted(self._pools)), settings, programming)

    def way(self, rules: Rules, ip: IP, to: str) -> ClusterRoute | None:
        """How packets get to an address on another node, for answers to people; None where the route is BIRD's."""
        there = self._places.get(to)
        found = way(rules, host_net(ip), there) if there is not None else None
        return found if isinstance(found, ClusterRoute) else None

    def tunnel_address(self, node: str, device: str) -> IP | None:
        """A node's own end of a tunnel."""
        place = self._places.get(node)
        if place is None or device == IPIP_DEVICE:
            return place.ipip if place is not None else None
        return next((place.vxlan.get(version) for version, name in VXLAN_DEVICE.items() if name == device), None)

    def tunnel_owner(self, ip: IP) -> str:
        """The node that has an address as its own end of a tunnel, "" if none has."""
        return next((node for (kind, _, _), node in self._addresses.get(ip, ()) if kind == "node"), "")

    def _settle(self, dst: Net, rules: Rules) -> bool:
        """Decide about one destination anew; whether anything came of it."""
        node = self._node_of(dst)
        self._note(dst, node)
        found: ClusterRoute | str | None = None
        if node and node == self._node:
            found = blackhole(rules, dst)
        elif node and (there := self._places.get(node)) is not None:
            found = way(rules, dst, there)
        route = found if isinstance(found, ClusterRoute) else None
        awaited = found == AWAITED
        if self._ways.get(dst) == route and (dst in self._awaited) == awaited:
            return False
        _set(self._ways, dst, route)
        _set(self._awaited, dst, () if awaited else None)
        return True

    def _note(self, dst: Net, node: str) -> None:
        """Keep the destinations of each node."""
        before = self._node_at.get(dst, "")
        if before == node:
            return
        if before:
            self._at[before].discard(dst)
        if node:
            self._at.setdefault(node, set()).add(dst)
        _set(self._node_at, dst, node or None)

    def _node_of(self, dst: Net) -> str:
        """The node that a route of its own has to lead to; "" when there is none, or a block's leads there."""
        if owners := self._blocks.get(dst):
            return self._node if self._node in owners.values() else owners[min(owners)]  # type: ignore[return-value]
        holders = self._addresses.get(dst.network_address, ()) if dst.num_addresses == 1 else ()
        nodes = [node for _, node in holders]
        if not nodes or self._node in nodes or self._owner(dst.network_address) == nodes[0]:
            return ""
        return nodes[0]

    def _owner(self, ip: IP) -> str:
        """The node whose block an address is in."""
        network = IPv4Network if ip.version == 4 else IPv6Network
        for length in self._lengths[ip.version]:
            if owners := self._blocks.get(network((int(ip), length), strict=False)):
                return owners[min(owners)]
        return ""

    def _kept(self, programming: Programming) -> frozenset[str]:
        """The pools that BIRD wrote the routes of, and that the agent cannot write all routes of yet."""
        for name in list(self._changed_from):
            pool = self._pools[name]
            was, now = self._changed_from[name], pool.tunnel
            handed_over = was in programming.bird and now not in programming.bird and now in programming.agent
            if not handed_over or not any(within(dst, pool.net) for dst in self._awaited):
                del self._changed_from[name]
        return frozenset(self._changed_from)


def _of_all(rules: Rules) -> tuple[object, ...]:
    """What the ways to all destinations depend on. The pools look after their own."""
    settings = rules.settings
    return rules.here, rules.programming, settings.priority, settings.vxlan_enabled, settings.ipip_enabled


def _set(where: dict[Net, V], dst: Net, value: V | None) -> None:
    if value is None:
        where.pop(dst, None)
    else:
        where[dst] = value
