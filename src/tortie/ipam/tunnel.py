"""The addresses that a node holds for its own tunnels, one for each type of tunnel that its pools or keys call for.

    pools, Node, keys ─► candidates ─┐
    Node's address now ─► held ──────┴─► plan: keep, clear, renew, mark ─► released, assigned ─► Node, written once

Source: Calico's tunnel address allocator. What goes wrong with one type does not keep the others from being settled:
the Node is written with what went well, and the first error raised for the next pass.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from msgspec.structs import replace

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError, Conflict, NotFound, TortieError
from tortie.ipam.assign import Ipam
from tortie.ipam.block import CoolingDown, Release
from tortie.ipam.names import handle_name
from tortie.ipam.pools import Matches, allocatable, pool_of, selects_node
from tortie.model.ipam import AllocationAttribute, IPPool
from tortie.model.node import Node, NodeBGPSpec, NodeWireguardSpec
from tortie.model.store import Store

ATTEMPTS = 20
"""How often the Node is written again when others write it at the same time."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A type of tunnel: what is noted with its address, and of which pools the address may be."""

    type: str
    prefix: str
    version: int
    mode: str = ""
    """The field of a pool that asks for it (`ipip_mode`); "": a key of the node does."""

    def handle(self, node: str) -> str:
        return f"{self.prefix}-{node}"

    def attributes(self, node: str) -> dict[str, str]:
        return {"node": node, "type": self.type}


WIREGUARD = Tunnel("wireguardTunnelAddress", "wireguard-tunnel-addr", 4)
WIREGUARD_V6 = Tunnel("wireguardV6TunnelAddress", "wireguard-v6-tunnel-addr", 6)
IPIP = Tunnel("ipipTunnelAddress", "ipip-tunnel-addr", 4, "ipip_mode")
VXLAN = Tunnel("vxlanTunnelAddress", "vxlan-tunnel-addr", 4, "vxlan_mode")
VXLAN_V6 = Tunnel("vxlanV6TunnelAddress", "vxlan-v6-tunnel-addr", 6, "vxlan_mode")

TUNNELS = (WIREGUARD, WIREGUARD_V6, IPIP, VXLAN, VXLAN_V6)
"""In the order in which they are settled."""


# --- on values


def address(node: Node, tunnel: Tunnel) -> str:
    """What the Node says of a tunnel's address; "" if nothing."""
    spec = node.spec
    bgp, wireguard = spec.bgp or NodeBGPSpec(), spec.wireguard or NodeWireguardSpec()
    return {
        WIREGUARD: wireguard.interface_ipv4_address,
        WIREGUARD_V6: wireguard.interface_ipv6_address,
        IPIP: bgp.ipv4_ipip_tunnel_addr,
        VXLAN: spec.ipv4_vxlan_tunnel_addr,
        VXLAN_V6: spec.ipv6_vxlan_tunnel_addr,
    }[tunnel]


def with_address(node: Node, tunnel: Tunnel, text: str) -> Node:
    """The Node saying so. A part of it in which nothing is left goes."""
    spec = node.spec
    if tunnel in (WIREGUARD, WIREGUARD_V6):
        field = f"interface_ipv{tunnel.version}_address"
        wireguard = replace(spec.wireguard or NodeWireguardSpec(), **{field: text})
        return replace(node, spec=replace(spec, wireguard=None if wireguard == NodeWireguardSpec() else wireguard))
    if tunnel is IPIP:
        bgp = replace(spec.bgp or NodeBGPSpec(), ipv4_ipip_tunnel_addr=text)
        return replace(node, spec=replace(spec, bgp=None if bgp == NodeBGPSpec() else bgp))
    return replace(node, spec=replace(spec, **{f"ipv{tunnel.version}_vxlan_tunnel_addr": text}))


def with_addresses(node: Node, texts: Mapping[Tunnel, str]) -> Node:
    """The Node saying all of them."""
    for tunnel, text in texts.items():
        node = with_address(node, tunnel, text)
    return node


def candidates(
    tunnel: Tunnel, node: Node, pools: Iterable[IPPool], matches: Matches, host_encryption: bool = False
) -> tuple[IPPool, ...]:
    """The pools that a tunnel's address may be of. None: there is no such tunnel.

    `host_encryption`: WireGuard carries the traffic between nodes too, whose own addresses serve it then.
    """
    if not tunnel.mode and not (_public_key(node, tunnel.version) and not (host_encryption and tunnel is WIREGUARD)):
        return ()
    return tuple(
        pool
        for pool in pools
        if pool.spec.version == tunnel.version and allocatable(pool) and "Tunnel" in pool.spec.uses
        if not tunnel.mode or getattr(pool.spec, tunnel.mode) in ("Always", "CrossSubnet")
        if selects_node(pool, node.labels, matches)
    )


def _public_key(node: Node, version: int) -> Any:
    status = node.status if isinstance(node.status, Mapping) else {}
    return status.get("wireguardPublicKey" if version == 4 else "wireguardPublicKeyV6")


class Step(StrEnum):
    """What to do about a tunnel's address."""

    KEEP = "keep"
    CLEAR = "clear"
    """Give back what is held: there is no such tunnel any more."""
    RENEW = "renew"
    """Give back what is held under our handle, and assign another."""
    REPLACE = "replace"
    """It is somebody else's now: assign another, and leave that one alone."""
    MARK = "mark"
    """An old version noted nothing with it: give it back, and assign this very address."""


def plan(
    tunnel: Tunnel, node: str, current: IP | None, held: AllocationAttribute | None, pools: Iterable[IPPool]
) -> Step:
    """What to do about the address that the Node has. `held` says who holds it in IPAM, None if nobody does."""
    pools = tuple(pools)
    if not pools:
        return Step.CLEAR
    if current is None or held is None:
        return Step.RENEW
    if is_ours(tunnel, node, held):
        return Step.KEEP if pool_of(pools, current) is not None else Step.RENEW
    return Step.MARK if is_unmarked(held) else Step.REPLACE


def is_ours(tunnel: Tunnel, node: str, held: AllocationAttribute) -> bool:
    """Whether an address is held for this tunnel of this node."""
    noted = held.secondary
    by_handle = held.handle_id is not None and handle_name(held.handle_id) == handle_name(tunnel.handle(node))
    return by_handle or (noted.get("type"), noted.get("node")) == (tunnel.type, node)


def is_unmarked(held: AllocationAttribute) -> bool:
    """Whether nothing says whose an address is, as versions before handles left it."""
    return held.handle_id is None and not held.secondary


# --- over a store


class TunnelAddresses:
    """Settles the tunnel addresses of one node. `matches` evaluates selectors."""

    def __init__(self, store: Store, ipam: Ipam, matches: Matches) -> None:
        self._store = store
        self._ipam = ipam
        self._matches = matches
        self._node = ipam.owner.name

    async def settle(self, host_encryption: bool = False, lacking: Container[Tunnel] = ()) -> Node:
        """One pass; the Node as it is then. Raises NotFound without Node; any other TortieError asks for another pass.
        `lacking`: tunnels that this machine cannot have, whatever pools say.

        What was newly assigned and could not be written into the Node is given back.
        """
        node = await self._store.get(Node, self._node)
        pools = (await self._store.list(IPPool)).items
        texts: dict[Tunnel, str] = {}
        new: list[Tunnel] = []
        first: TortieError | None = None
        for tunnel in TUNNELS:
            found = candidates(tunnel, node, pools, self._matches, host_encryption) if tunnel not in lacking else ()
            try:
                text = await self._settle(tunnel, _ip(address(node, tunnel)), found, new)
            except _Lost as error:
                text, first = "", first or error.reason
            except TortieError as error:
                first = first or error
                continue
            texts[tunnel] = text
        try:
            node = await self._write(node, texts)
        except BaseException:
            for tunnel in new:
                with suppress(TortieError):
                    await self._ipam.release_by_handle(tunnel.handle(self._node))
            raise
        if first is not None:
            raise first
        return node

    async def _settle(self, tunnel: Tunnel, current: IP | None, pools: tuple[IPPool, ...], new: list[Tunnel]) -> str:
        """The address that the tunnel has now. `new` gets the tunnel if it is another one."""
        held = await self._held(current)
        step = plan(tunnel, self._node, current, held, pools)
        if step is Step.KEEP:
            return str(current)
        if step is Step.CLEAR:
            await self._clear(tunnel, current, held)
            return ""
        if step is not Step.REPLACE:
            await self._release(tunnel, current if step is Step.MARK else None)
        try:
            text = await (self._mark(tunnel, current) if step is Step.MARK else self._assign(tunnel, pools))
        except TortieError as error:
            raise _Lost(error) from error
        new.append(tunnel)
        return text

    async def _held(self, ip: IP | None) -> AllocationAttribute | None:
        """Who holds an address. One that cools down is nobody's any more."""
        if ip is None:
            return None
        try:
            return await self._ipam.attributes_of(ip)
        except (NotFound, CoolingDown):
            return None

    async def _clear(self, tunnel: Tunnel, current: IP | None, held: AllocationAttribute | None) -> None:
        try:
            await self._ipam.release_by_handle(tunnel.handle(self._node))
        except NotFound:
            if current is not None and held is not None and (is_unmarked(held) or _by_handle(tunnel, self._node, held)):
                await self._ipam.release_ips([Release(current, held.handle_id)])

    async def _release(self, tunnel: Tunnel, ip: IP | None) -> None:
        if ip is not None:
            await self._ipam.release_ips([Release(ip)])
        else:
            with suppress(NotFound):
                await self._ipam.release_by_handle(tunnel.handle(self._node))

    async def _mark(self, tunnel: Tunnel, ip: IP | None) -> str:
        assert ip is not None
        handle, attributes = tunnel.handle(self._node), tunnel.attributes(self._node)
        await self._ipam.assign_ip(ip, handle=handle, attrs=attributes)
        return str(ip)

    async def _assign(self, tunnel: Tunnel, pools: tuple[IPPool, ...]) -> str:
        v4 = tunnel.version == 4
        cidrs = tuple(pool.spec.cidr for pool in pools)
        got = await self._ipam.auto_assign(
            int(v4),
            int(not v4),
            handle=tunnel.handle(self._node),
            attrs=tunnel.attributes(self._node),
            pools4=cidrs if v4 else (),
            pools6=() if v4 else cidrs,
            use="Tunnel",
        )
        (each,) = await self._ipam.all_or_nothing(got)
        return str(each.ip)

    async def _write(self, node: Node, texts: Mapping[Tunnel, str]) -> Node:
        """Raises NotFound when the Node is gone, Conflict, Unavailable."""
        for _ in range(ATTEMPTS):
            new = with_addresses(node, texts)
            if new == node:
                return node
            try:
                return await self._store.update(new)
            except Conflict:
                node = await self._store.get(Node, self._node)
        raise Conflict(f"Node {self._node} was written by others {ATTEMPTS} times in a row")


class _Lost(TortieError):
    """The address that there was is given back and no other could be had."""

    def __init__(self, reason: TortieError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _by_handle(tunnel: Tunnel, node: str, held: AllocationAttribute) -> bool:
    return handle_name(held.handle_id or "") == handle_name(tunnel.handle(node))


def _ip(text: str) -> IP | None:
    """An address that can be read; what cannot holds nothing in IPAM."""
    with suppress(ConfigError):
        return parse_ip(text) if text else None
    return None
