"""Builds a lab's network in the kernel, and takes it away again. Nothing is ever linked to the machine's own network.

Both directions look at what is there first: `build` makes what is missing of a half-built lab, `destroy` goes by the
names of namespaces alone and needs no memory of what was built. Order: namespaces, bridge, links, addresses, routes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tortie.base.addr import parse_ip, parse_net
from tortie.base.errors import ConfigError, Exists
from tortie.kernel import addresses, links, netns, routes, sysctl
from tortie.kernel.netlink import Netlink
from tortie.lab import processes
from tortie.lab.state import LabDirectory
from tortie.lab.topology import Host, Topology, lab_of_namespace

BRIDGE = "br0"
BRIDGE_MAC = "02:00:ac:1e:00:01"  # without one of its own it takes a port's, and another when ports come and go
UPLINK = "uplink"  # the gateway's link to the outside host
ETH0 = "eth0"

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
    with Netlink(netns.path(lab.fabric)) as fabric:
        present = {link.name for link in links.list_links(fabric)}
        if BRIDGE not in present:
            links.create_bridge(fabric, BRIDGE, mac=BRIDGE_MAC)
        _address(fabric, BRIDGE, lab.bridge_addresses)
        for node in lab.nodes:
            _attach(fabric, node, node.name, missing=node.name not in present)
            links.set_master(fabric, node.name, BRIDGE)
        _attach(fabric, lab.outside, UPLINK, missing=UPLINK not in present)
        _address(fabric, UPLINK, lab.uplink_addresses)
    with Netlink(netns.path(lab.outside.netns)) as outside:
        # The gateway would say so too, but the kernel lets it say so only about once a second.
        for pool in (lab.pool, lab.pool6):
            routes.replace_route(outside, routes.Route(parse_net(pool), type="unreachable"))


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
    yield lab.fabric, COMMON | ROUTER
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


def _attach(fabric: Netlink, host: Host, port: str, missing: bool) -> None:
    """A host's `eth0` and the fabric's end of it, both up; addresses and default routes in the host."""
    if missing:
        inside = netns.open_ns(netns.path(host.netns))
        try:
            links.create_veth(fabric, port, ETH0, peer_netns=inside)
        finally:
            os.close(inside)
    links.set_up(fabric, port)
    with Netlink(netns.path(host.netns)) as nl:
        index = _address(nl, ETH0, host.addresses)
        for gateway, everything in ((host.gateway, "0.0.0.0/0"), (host.gateway6, "::/0")):
            routes.replace_route(nl, routes.Route(parse_net(everything), via=parse_ip(gateway), dev=index))


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
