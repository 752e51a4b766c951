"""What is wrong with a node, or with the network between nodes, in lines that say what to do. Decisions on values.

    place, state, leases ──┐
    Seen (probe.py) ───────┴─► lines: public addresses, overlaps, chains that drop, VNIs, ways, sizes, checksums

What a backend leaves out, as host-gw does nodes behind a gateway, is said by its `want`, and not here again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

from tortie.base.addr import IP, within
from tortie.cni.spec import lookup
from tortie.flannel.forwarding import closed
from tortie.flannel.lease import Lease
from tortie.flannel.seen import Reach, Seen, Tcp, Tried
from tortie.flannel.state import PROTOCOL, Device, FlannelState, Ipip, Place, Tun, Vxlan, Wireguard

NAT = ip_address("10.0.2.15")
"""What VirtualBox's NAT, and QEMU's user network, give to every machine."""
NAT_REMEDY = "name the host-only or bridged interface, as --iface=eth1"
LEAST_V6 = 1280
"""Bytes that every IPv6 link must carry (RFC 8200)."""
OFFLOAD = "tx-checksum-ip-generic"


def lines(place: Place, pod_mtu: int, state: FlannelState, leases: Sequence[Lease], seen: Seen) -> tuple[str, ...]:
    """`leases` are those of the other nodes, of whatever type; `pod_mtu` is in bytes."""
    networks = tuple(family.network for family in place.site.config.families)
    return (
        *shared_addresses(place, leases),
        *overlaps(place, state, leases, seen),
        *closed(networks, seen.chains, seen.rules),
        *other_vnis(place, leases),
        *unreached(state, seen.reaches),
        *sizes(place, pod_mtu, state, seen.reaches),
        *tcp(seen.tried),
        *(f"not looked at: {text}" for text in seen.skipped),
    )


def name(lease: Lease) -> str:
    return f"node {lease.node}" if lease.node else f"the node of {lease.subnet or lease.subnet6}"


# --- addresses ----------------------------------------------------------------------------------------------------


def shared_addresses(place: Place, leases: Sequence[Lease]) -> Iterator[str]:
    """Nodes with one public address: packets for one come to the other."""
    owners: dict[IP, list[str]] = {ip: ["this node"] for ip in _own(place)}
    for lease in leases:
        for ip in _public(lease):
            owners.setdefault(ip, []).append(name(lease))
    for ip, names in owners.items():
        if ip == NAT:
            text = f"{ip} is the public address of {' and '.join(names)}: VirtualBox's NAT gives it to every machine"
            yield f"{text}, and nobody else reaches it: {NAT_REMEDY}"
        elif len(names) > 1:
            text = f"{ip} is the public address of {' and '.join(names)}: packets for one come to the other"
            yield f"{text}; give each its own by --iface or --public-ip{'v6' if ip.version == 6 else ''}"


def _own(place: Place) -> tuple[IP, ...]:
    site = place.site
    return tuple(ip for ip in (site.public_ip, site.public_ipv6) if ip is not None)


def _public(lease: Lease) -> tuple[IP, ...]:
    return tuple(ip for ip in (lease.attrs.public_ip, lease.attrs.public_ipv6) if ip is not None)


def overlaps(place: Place, state: FlannelState, leases: Sequence[Lease], seen: Seen) -> Iterator[str]:
    """The pods' network and what this host has at the same addresses. What is flannel's own is not meant: its devices
    and routes, and whatever is inside of a node's subnet, as a bridge of pods is."""
    site = place.site
    devices = {device.name for device in state.devices}
    subnets = [net for lease in (place.lease, *leases) for net in (lease.subnet, lease.subnet6) if net is not None]
    for network in (family.network for family in site.config.families):
        for who, ip in ((who, ip) for who, ips in _hosts(place, leases) for ip in ips):
            if ip in network:
                yield f"{ip}, the address of {who}, is in the pods' network {network}: choose another Network"
        for route in seen.routes:
            ours = route.protocol == PROTOCOL or route.device in devices or route.dst.prefixlen == 0
            if ours or not route.dst.overlaps(network) or any(within(route.dst, subnet) for subnet in subnets):
                continue
            if route.device == site.external.name:
                where = f"{route.dst} by {route.device}, which leads to the other nodes"
            else:
                where = f"{route.dst} by {route.device or 'a route to nowhere'}"
            yield f"the pods' network {network} overlaps {where}: packets go astray; choose another Network"


def _hosts(place: Place, leases: Sequence[Lease]) -> Iterator[tuple[str, tuple[IP, ...]]]:
    external = place.site.external
    own = (*_own(place), *(ip for ip in (external.ipv4, external.ipv6) if ip is not None))
    yield "this node", tuple(dict.fromkeys(own))
    for lease in leases:
        yield name(lease), _public(lease)


# --- tunnels ------------------------------------------------------------------------------------------------------


def other_vnis(place: Place, leases: Sequence[Lease]) -> Iterator[str]:
    """Of VXLAN: a node with another VNI drops what it gets. The port is not published: `unreached` hears of that."""
    own = place.lease.attrs
    if own.backend_type != "vxlan":
        return
    for lease in leases:
        if lease.attrs.backend_type == own.backend_type:
            for here, there in ((own.data, lease.attrs.data), (own.data6, lease.attrs.data6)):
                pair = _vni(here), _vni(there)
                if None not in pair and pair[0] != pair[1]:
                    text = f"{name(lease)} has VNI {pair[1]}, and this node {pair[0]}: neither hears the other"
                    yield f"{text}; Backend.VNI must be the same on all nodes"
                    break


def _vni(data: str | None) -> int | None:
    try:
        found = json.loads(data or "null")
    except ValueError:
        return None
    vni = lookup(found, "VNI") if isinstance(found, dict) else None
    return vni if type(vni) is int else None


def unreached(state: FlannelState, reaches: Sequence[Reach]) -> Iterator[str]:
    """Nodes that answer outside of the tunnel and not inside. Whoever answers neither is down, or keeps silent."""
    kinds = {device.name: device.kind for device in state.devices}
    for reach in reaches:
        target = reach.target
        if target.ends and reach.end is None and reach.host_answers and target.device in kinds:
            text = f"{target.node} answers at {target.host} and not through {target.device} ({target.ends[0]})"
            yield f"{text}: {_suspect(kinds[target.device])}"


def _suspect(kind: Vxlan | Ipip | Wireguard | Tun) -> str:
    match kind:
        case Vxlan():
            port = kind.port or 8472
            return f"is UDP port {port} filtered between the nodes, or is Backend.Port another one there?"
        case Tun():
            return "is flannel's UDP port (8285 unless Backend.Port says otherwise) filtered, or another one there?"
        case Wireguard():
            return "is its UDP port (Backend.ListenPort) filtered between the nodes, or Backend.PSK another one there?"
        case Ipip():
            return "is IP protocol 4 (IP in IP) filtered between the nodes, as clouds do?"


def overhead(device: Device) -> int:
    """Bytes that a tunnel adds to a packet."""
    match device.kind:
        case Vxlan():
            return 50 if device.kind.local.version == 4 else 70
        case Ipip():
            return 20
        case Tun():
            return 28
        case Wireguard():
            return 80


def sizes(place: Place, pod_mtu: int, state: FlannelState, reaches: Sequence[Reach]) -> Iterator[str]:
    """Large packets that vanish while small ones pass."""
    external = place.site.external
    for device in state.devices:
        need = device.mtu + overhead(device)
        if need > external.mtu:
            text = f"{device.name} carries packets of {device.mtu} bytes and needs {need} for them, of which"
            yield f"{text} {external.name} carries {external.mtu}: set Backend.MTU to {external.mtu}"
    if place.site.config.v6 is not None and pod_mtu < LEAST_V6:
        text = f"pods get an MTU of {pod_mtu}, and IPv6 needs {LEAST_V6}"
        yield f"{text}: raise the MTU of {external.name} by {LEAST_V6 - pod_mtu}"
    for reach in reaches:
        target = reach.target
        if reach.passes and reach.passes < min(target.largest, external.mtu):
            text = f"packets of more than {reach.passes} bytes do not get to {target.node} ({target.host}) uncut"
            yield f"{text}, and flannel's are of up to {target.largest}: {_smaller(state, target.device, reach.passes)}"


def _smaller(state: FlannelState, device: str, size: int) -> str:
    kind = next((one.kind for one in state.devices if one.name == device), None)
    if isinstance(kind, Vxlan | Wireguard):
        return f"set Backend.MTU to {size}, or the MTU of the links between the nodes to one value"
    return f"set the MTU of the nodes' interfaces to {size}, or that of the links between them to one value"


def tcp(tried: Sequence[Tried]) -> Iterator[str]:
    silent: dict[str, list[str]] = {}
    for one in tried:
        target = one.reach.target
        if one.tcp is Tcp.MENDED:
            text = f"TCP through {target.device} died while ping passed, until checksums were no longer left to the"
            text += f" hardware: ethtool -K {target.device} {OFFLOAD} off was done, and stays. The network card or"
            yield text + " the hypervisor below does not finish the checksums of tunnelled packets: see its firmware"
        elif one.tcp is Tcp.UNANSWERED:
            silent.setdefault(target.device, []).append(f"{target.node} ({one.reach.end})")
    for device, nodes in silent.items():
        text = (
            f"ping through {device} is answered and TCP is not, whoever fills in its checksums, by {', '.join(nodes)}"
        )
        yield f"{text}: a firewall on the way drops it, or one of the node itself, which pods need not mind"
