"""Builds a lab's network in the kernel, and takes it away again. Nothing is ever linked to the machine's own network.

Both directions look at what is there first: `build` makes what is missing of a half-built lab, `destroy` goes by the
names of namespaces alone and needs no memory of what was built. Order: namespaces, bridges, links, addresses, routes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tortie.base.addr import IP, parse_ip, parse_net
from tortie.base.errors import ConfigError, Exists
from tortie.kernel import addresses, links, neighbours, netns, routes, sysctl
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import RTPROT_STATIC
from tortie.lab import processes
from tortie.lab.state import LabDirectory
from tortie.lab.topology import UPLINK, Host, Router, Topology, lab_of_namespace
from tortie.lab.underlay import ways

BRIDGE = "br0"
BRIDGE_MAC = "02:00:ac:1e:00:01"  # without one of its own it takes a port's, and another when ports come and go
ETH0 = "eth0"
_ETHERNET_MTU = 1500
_LARGE_RACK = 16

COMMON = {
    "net/ipv6/conf/all/accept_dad": "0",  # an address is usable at once: nobody else here could have it
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/accept_ra": "0",
}
ROUTER = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    # The machine's own setting would be inherited. The agent makes its pods' links strict; between nodes and towards
    # the outside a packet may come and go by different ways.
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}


def build(lab: Topology) -> None:
    """Brings the network to what the lab should be. Raises KernelError, with everything made so far left in place."""
    for name, settings in _namespaces(lab):
        _namespace(name, settings)
    for router in lab.routers:
        with Netlink(netns.path(router.netns)) as nl:
            _build_router(lab, router, nl)
    for router in lab.routers:  # only now are all next hops there
        with Netlink(netns.path(router.netns)) as nl:
            for way in ways(lab, router):
                index = links.link_index(nl, way.interface)
                routes.replace_route(nl, routes.Route(way.to, via=way.via, dev=index, protocol=RTPROT_STATIC))
    with Netlink(netns.path(lab.outside.netns)) as outside:
        # The router would say so too, but the kernel lets it say so only about once a second.
        for net in lab.blueprint.unknown_outside:
            routes.replace_route(outside, routes.Route(net, type="unreachable"))


def _build_router(lab: Topology, router: Router, nl: Netlink) -> None:
    """Its switch with the rack's nodes, its links to routers after it, and the outside host's if that is here."""
    present = {link.name for link in links.list_links(nl)}
    if router.rack:
        if BRIDGE not in present:
            # One whose MTU was changed does not follow the smallest of its ports any more.
            mtu = lab.mtu or _ETHERNET_MTU
            links.create_bridge(nl, BRIDGE, mtu=mtu - 1, mac=BRIDGE_MAC)
            links.set_mtu(nl, BRIDGE, mtu)
        _address(nl, BRIDGE, router.bridge)
        for node in lab.nodes:
            if node.rack == router.rack:
                _attach(nl, node, node.name, lab.mtu, missing=node.name not in present)
                links.set_master(nl, node.name, BRIDGE)
        _introduce([node for node in lab.nodes if node.rack == router.rack])
    if lab.router_of(lab.outside) is router:
        _attach(nl, lab.outside, UPLINK, lab.mtu, missing=UPLINK not in present)
        _address(nl, UPLINK, lab.uplink_addresses)
    for port in router.ports:
        far = lab.router(port.to)
        if port.to not in present:
            with _opened(far.netns) as inside:
                links.create_veth(nl, port.to, router.name, peer_netns=inside)
        _address(nl, port.to, port.addresses)
        if port.mtu:
            links.set_mtu(nl, port.to, port.mtu)


def make_pod_namespace(name: str) -> str:
    """A namespace for a pod, with loopback up; its path. One that is there is taken as it is."""
    _namespace(name, COMMON)
    return netns.path(name)


def namespaces(lab: str) -> list[str]:
    """The namespaces that exist of a lab, pods' included."""
    return [name for name in netns.list_names() if lab_of_namespace(name) == lab]


def destroy(directory: LabDirectory) -> None:
    """Everything of a lab goes: processes, namespaces with their links, mounts, files. Once or twice is the same."""
    supervisor = processes.read_pid(directory.kubelet_pid)
    if supervisor:  # first, or it would start again what is killed next
        supervisor.signal(signal.SIGKILL)
        processes.wait_gone([supervisor])
    processes.kill_all(lambda: _processes_of(directory.name))
    for name in namespaces(directory.name):
        netns.delete(name)
    for mount in _mounts_below(directory.path):
        subprocess.run(["umount", "--lazy", mount], check=False)
    directory.remove()


def leftovers(directory: LabDirectory) -> list[str]:
    """What is still there of a lab, in words; nothing after `destroy`."""
    names = namespaces(directory.name)
    found = [f"network namespace {name}" for name in names]
    found += [f"process {one.pid}" for one in _processes_of(directory.name)]
    found += [f"mount {mount}" for mount in _mounts_below(directory.path)]
    if directory.path.exists():
        found.append(f"directory {directory.path}")
    return found


def _processes_of(lab: str) -> list[processes.Process]:
    """What the lab started, wherever it is now, and who is in one of its namespaces."""
    return [*processes.marked(processes.LAB_VARIABLE, lab), *processes.inside(namespaces(lab))]


# --- pieces -------------------------------------------------------------------------------------------------------


def _namespaces(lab: Topology) -> Iterable[tuple[str, dict[str, str]]]:
    for router in lab.routers:
        yield router.netns, COMMON | ROUTER
    for node in lab.nodes:
        yield node.netns, COMMON | ROUTER
    yield lab.outside.netns, COMMON


def _namespace(name: str, settings: dict[str, str]) -> None:
    """A namespace with loopback up and these settings."""
    try:
        netns.create(name)
    except Exists:
        try:
            os.close(netns.open_ns(netns.path(name)))
        except ConfigError:  # a name onto which nothing is mounted: who was making it was killed half way
            netns.delete(name)
            netns.create(name)
    with netns.entered(netns.path(name)):
        for key, value in settings.items():
            sysctl.write(key, value)
    with Netlink(netns.path(name)) as nl:
        links.set_up(nl, "lo")


def _attach(nl: Netlink, host: Host, port: str, mtu: int, missing: bool) -> None:
    """A host's `eth0` and the switch's end of it, both up; addresses and default routes in the host."""
    if missing:
        with _opened(host.netns) as inside:
            links.create_veth(nl, port, ETH0, peer_netns=inside, peer_mac=mac(host))
        if mtu:
            links.set_mtu(nl, port, mtu)
    links.set_up(nl, port)
    with Netlink(netns.path(host.netns)) as own:
        if missing and mtu:
            links.set_mtu(own, ETH0, mtu)
        index = _address(own, ETH0, host.addresses)
        for gateway, everything in ((host.gateway, "0.0.0.0/0"), (host.gateway6, "::/0")):
            routes.replace_route(own, routes.Route(parse_net(everything), via=parse_ip(gateway), dev=index))


def mac(host: Host) -> str:
    """The MAC address of a host's `eth0`: its IPv4 address says it."""
    return ":".join(f"{octet:02x}" for octet in (2, 0, *host.ipv4.ip.packed))


def _introduce(nodes: Sequence[Host]) -> None:
    """Tells the nodes of a large rack one another's MAC addresses.

    All namespaces of a machine share one neighbour table, of 1024 entries unless its operator has said more
    (net.ipv4.neigh.default.gc_thresh3). Entries that were written down do not count; those of fifty nodes that ask for
    one another would not fit, and whoever has no place in it hears nobody.
    """
    if len(nodes) <= _LARGE_RACK:
        return
    for node in nodes:
        with Netlink(netns.path(node.netns)) as nl:
            index = links.link_index(nl, ETH0)
            others = [other for other in nodes if other is not node]
            entries = [neighbours.Neighbour(index, str(ip), mac(other)) for other in others for ip in _ips(other)]
            for _, error in neighbours.apply_many(nl, [("replace", entry) for entry in entries]):
                raise error


def _ips(host: Host) -> tuple[IP, IP]:
    return host.ipv4.ip, host.ipv6.ip


@contextlib.contextmanager
def _opened(name: str) -> Iterator[int]:
    """A descriptor of a namespace."""
    fd = netns.open_ns(netns.path(name))
    try:
        yield fd
    finally:
        os.close(fd)


def _address(nl: Netlink, link: str, cidrs: Iterable[str]) -> int:
    """Brings a link up with these addresses; its index."""
    index = links.link_index(nl, link)
    links.set_up(nl, index)
    for cidr in cidrs:
        with contextlib.suppress(Exists):
            addresses.add_address(nl, index, cidr, nodad=":" in cidr)
    return index


def _mounts_below(path: Path) -> list[str]:
    """Mount points under a directory, innermost first: fields of /proc/self/mountinfo, proc_pid_mountinfo(5)."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{path}/")), reverse=True)
