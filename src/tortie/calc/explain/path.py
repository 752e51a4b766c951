"""NAT and routing on the way: what becomes of addresses, and by which road a node sends a packet."""

from __future__ import annotations

from tortie.base.addr import IP
from tortie.calc.explain.explanation import Route, Step
from tortie.calc.explain.party import Party
from tortie.calc.explain.picture import Picture
from tortie.calc.mtu import IPIP, VXLAN
from tortie.policy.verdict import Packet


def outgoing(picture: Picture, node: str, packet: Packet) -> tuple[Step, IP | None] | None:
    """What natOutgoing makes of a pod's packet that leaves its node, and the address that it has then."""
    settings = picture.settings(node)
    pool = picture.pool(packet.source)
    spared = settings.nat_exclude_hosts and packet.destination in picture.state.hosts
    if pool is None or not pool.nat_outgoing or picture.pool(packet.destination) is not None or spared:
        return None
    given = settings.nat_address
    address = given if given is not None and given.version == packet.version else picture.address(node, packet.version)
    text = f"leaves with the source address {address or 'of the node'}: natOutgoing of IPPool {pool.name}"
    return Step(node, "postrouting", True, text, rule="natOutgoing"), address


def hairpin(party: Party, node: str, version: int) -> tuple[Step, IP] | None:
    """A pod that reaches itself by its floating IP sees that as the other's address."""
    lead = party.translation(version)
    if lead is None or lead.anywhere or party.service:
        return None
    text = f"leaves with the source address {lead.address}, or the pod would take itself for the other end"
    return Step(node, "postrouting", True, text, rule="floating IP, to itself"), lead.address


def masked(picture: Picture, node: str, version: int, to: Party) -> IP | None:
    """The source address that a node gives to a connection to a service that it passes on, so that the answer comes
    back by it: of the interface that it leaves by."""
    ip = to.ip(version)
    if ip is not None and to.is_pod and to.node != node and (tunnel := picture.tunnel_source(node, ip, to.node)):
        return tunnel
    return picture.address(node, version)


def road(picture: Picture, node: str, interface: str, packet: Packet, to: Party) -> Route:
    """How `node` sends a packet on to a party somewhere else."""
    block = picture.block(packet.destination)
    if to.node and block is not None:
        net, owner = block
        words = f"block of {owner}{_travels(picture, node, packet, to)}"
        if owner != to.node:
            words += f"; the address is borrowed, {to.node} announces it by itself"
        return Route(node, packet.source, packet.destination, interface, words, block=net, owner=owner)
    if to.node:
        words = f"to {to.node}"
        return Route(node, packet.source, packet.destination, interface, words, owner=to.node)
    words = "out of the cluster"
    return Route(node, packet.source, packet.destination, interface, words)


def _travels(picture: Picture, node: str, packet: Packet, to: Party) -> str:
    """How packets of a pool with tunnels get from one node to another."""
    pool, version = picture.pool(packet.destination), packet.version
    if pool is None or not pool.tunnel:
        return ""
    way = picture.way(node, packet.destination, to.node)
    if way is None:
        return f", in {pool.tunnel}"
    if not way.device:
        return f", without {pool.tunnel}: {to.node} is in the subnet of {node}"
    settings = picture.settings(node)
    mtu = settings.ipip_mtu if pool.tunnel == "IPIP" else settings.vxlan_mtu[version]
    overhead = (IPIP if pool.tunnel == "IPIP" else VXLAN[version]).overhead
    return f", in {pool.tunnel} by {way.device}, " + (f"MTU {mtu}" if mtu else f"which takes {overhead} bytes of each")


def to_pod(packet: Packet, to: Party, interface: str) -> Route:
    """How the node of a pod hands a packet over."""
    words = f"to the pod's interface {to.interface}"
    return Route(to.node, packet.source, packet.destination, interface, words, out=to.interface)
