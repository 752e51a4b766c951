"""A look at this node and at its ways to others, by the kernel's listings and by packets: for `findings`.

    routes, chains ─► listed
    some nodes ─► ping their end of the tunnel, else their host ─► how large may a packet be?
    VXLAN ─► TCP to a port that nobody listens on: a reset? ─no─► checksums off ─► a reset? ─no─► on again
                                                     └ fine                          └ they stay off: mended

Blocks, for some seconds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from socket import AF_INET, AF_INET6
from threading import Event
from typing import Any, TypeVar

from tortie.base.addr import IP, Net, within
from tortie.base.dialled import Dialled
from tortie.base.errors import KernelError, NotFound, TortieError
from tortie.flannel.far_nodes import far_nodes
from tortie.flannel.findings import overhead
from tortie.flannel.forwarding import dropping, table_of
from tortie.flannel.lease import Lease
from tortie.flannel.seen import HostRoute, Reach, Seen, Target, Tcp, Tried
from tortie.flannel.state import Device, FlannelState, Place, Vxlan
from tortie.kernel import ethtool, links, nft, ping
from tortie.kernel.dial import dial
from tortie.kernel.netlink import Netlink
from tortie.kernel.routes import list_routes

T = TypeVar("T")

MAIN = 254
MOST = 4
"""Nodes that are asked of each IP version: a fault of this node's shows with any of them."""
PORTS = (9, 10250)
"""discard (RFC 863), which nobody serves: a machine that hears us answers with a reset. Where a firewall of the machine
itself lets only in what is known, it may know the kubelet's."""
HEARD = (Dialled.REFUSED, Dialled.DEAF, Dialled.CLOSED, Dialled.OPEN, Dialled.UNREACHABLE)
"""Something came back: a reset, or a firewall's word, which is no silence either."""


def targets(place: Place, state: FlannelState, leases: Sequence[Lease]) -> Iterator[Target]:
    """Nodes of this one's type. Pure. The end of a tunnel has the address of the node's subnet itself, which some
    kernels take for a broadcast once a bridge has the subnet, too; then the bridge's address answers."""
    external = place.site.external
    fitting = [lease for lease in leases if lease.attrs.backend_type == place.lease.attrs.backend_type]
    for family in place.site.config.families:
        for node in far_nodes(place, fitting, family.network.version).nodes:
            device = _tunnel_to(state, node.subnet)
            if device is None:
                yield Target(node.name, node.host, largest=external.mtu)
            else:
                ends = (node.subnet[0], node.subnet[min(1, node.subnet.num_addresses - 1)])
                yield Target(node.name, node.host, ends, device.name, device.mtu + overhead(device))


def _tunnel_to(state: FlannelState, subnet: Net) -> Device | None:
    """The device by which packets to a node's subnet go; None where they need none."""
    paths = [path for path in state.paths if within(subnet, path.dst)]
    if not paths:
        return None
    best = max(paths, key=lambda path: path.dst.prefixlen)
    return next((device for device in state.devices if device.name == best.device), None)


def look(place: Place, state: FlannelState, leases: Sequence[Lease], over: Event | None = None) -> Seen:
    """All of it. Changes the offload of a VXLAN device where that is proven to be its fault. `over`: nobody waits for
    the answer any more; it comes within some seconds then."""
    over = over or Event()
    skipped: list[str] = []
    nothing: tuple[Mapping[str, Any], ...] = ()
    chains = _tried(_chains, "chains", skipped, nothing)
    reaches = tuple(_reaches(place, state, leases, skipped, over))
    return Seen(
        routes=_tried(_routes, "routes", skipped, ()),
        chains=chains,
        rules={table: _rules(table) for table in {table_of(chain) for chain in dropping(chains)}},
        reaches=reaches,
        tried=tuple(_try_tcp(state, reaches, skipped, over)),
        skipped=tuple(skipped),
    )


def _tried(ask: Callable[[], T], what: str, skipped: list[str], instead: T) -> T:
    try:
        return ask()
    except (TortieError, OSError) as error:
        skipped.append(f"{what}: {error}")
        return instead


def _routes() -> tuple[HostRoute, ...]:
    with Netlink() as nl:
        names = links.names()
        every = [route for family in (AF_INET, AF_INET6) for route in list_routes(nl, family, MAIN)]
    return tuple(HostRoute(route.dst, names.get(route.dev or 0, ""), route.protocol) for route in every)


def _chains() -> tuple[Mapping[str, Any], ...]:
    return tuple(nft.list_json(["list", "chains"]))


def _rules(table: str) -> Sequence[Mapping[str, Any]]:
    with suppress(NotFound, KernelError):  # gone meanwhile
        return nft.list_json(["list", "table", *table.split()])
    return ()


# --- packets ------------------------------------------------------------------------------------------------------


def _reaches(
    place: Place, state: FlannelState, leases: Sequence[Lease], skipped: list[str], over: Event
) -> Iterator[Reach]:
    every = list(targets(place, state, leases))
    for version in (4, 6):
        some = [target for target in every if target.host.version == version]
        for target in random.sample(some, min(MOST, len(some))):
            if over.is_set():
                return
            try:
                yield measure(place, target)
            except OSError as error:
                skipped.append(f"{target.node} ({target.host}): {error}")


def measure(place: Place, target: Target) -> Reach:
    """Raises OSError when nothing can be sent."""
    external = place.site.external
    own = external.ipv4 if target.host.version == 4 else external.ipv6
    end = next((ip for ip in target.ends if ping.answers(ip)), None)
    host = ping.answers(target.host, own)
    most = min(target.largest, external.mtu)
    return Reach(target, host, end, ping.largest(target.host, own, most) if host else None)


def _try_tcp(state: FlannelState, reaches: Sequence[Reach], skipped: list[str], over: Event) -> Iterator[Tried]:
    """By each VXLAN device, to every node until one shows the fault: those on the same hypervisor may not."""
    names = [device.name for device in state.devices if isinstance(device.kind, Vxlan)]
    mended: set[str] = set()
    for reach in reaches:
        device = reach.target.device
        if reach.end is None or device not in names or device in mended or over.is_set():
            continue
        try:
            tried = Tried(reach, try_tcp(device, reach.end))
        except TortieError as error:
            skipped.append(str(error))
            continue
        if tried.tcp is Tcp.MENDED:
            mended.add(device)
        yield tried


def try_tcp(device: str, end: IP) -> Tcp:
    """The offload stays as it was unless it is the fault. Raises KernelError, NotFound, NotSupported."""
    if _answers_tcp(end):
        return Tcp.ANSWERED
    if not ethtool.feature(device, ethtool.CHECKSUMS):
        return Tcp.UNANSWERED
    mended = False
    ethtool.set_feature(device, ethtool.CHECKSUMS, False)
    try:
        mended = _answers_tcp(end)
    finally:
        if not mended:
            ethtool.set_feature(device, ethtool.CHECKSUMS, True)
    return Tcp.MENDED if mended else Tcp.UNANSWERED


def _answers_tcp(end: IP) -> bool:
    return any(dial(end, port).result in HEARD for port in PORTS)
