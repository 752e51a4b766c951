"""One pod's veth or netkit pair: build it, take it away, compare it with what it should be. `str(attachment)` is the
transcript.

    pod namespace                          host namespace
    eth0  <ip>/32, <ip>/128   ◄── veth ──► cali…  ee:ee:ee:ee:ee:ee, no IPv4 address, proxy ARP
      default via 169.254.1.1                     fe80::ecee:eeff:feee:eeee/64
      default via fe80::ecee:eeff:feee:eeee

169.254.1.1 is assigned nowhere: the host answers ARP for everything on this link, which Linux does only for what it has
a route to, so that without a default route on the host no pod would reach anything. The pod is therefore told the
gateways' MAC address, too, and the host is told the pod's: a question that it asks while the link is coming up is lost,
and it would ask again a second later. Source, but for the gateways: Calico's Linux dataplane.
The route on the host and the policy are the stages' work.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tortie.base.addr import IP, Net, parse_ip, parse_net
from tortie.base.errors import ConfigError, KernelError, NotFound
from tortie.kernel import addresses, links, neighbours, netns, routes, sysctl
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import AF_INET, AF_INET6
from tortie.model.workload import INTERFACE_PREFIX

log = logging.getLogger(__name__)

HOST_MAC = "ee:ee:ee:ee:ee:ee"
GATEWAY4 = parse_ip("169.254.1.1")
GATEWAY6 = parse_ip("fe80::ecee:eeff:feee:eeee")
"""The link-local address that EUI-64 makes of HOST_MAC."""
DEFAULT = {4: parse_net("0.0.0.0/0"), 6: parse_net("::/0")}
EVERYWHERE = tuple(DEFAULT.values())
EOPNOTSUPP = 95
ADDR_GEN_NONE = 1
"""IN6_ADDR_GEN_MODE_NONE (linux/if_link.h): we add the link-local address ourselves and need not wait for it."""

_HOST_SYSCTLS4 = {"route_localnet": 1, "proxy_arp": 1, "forwarding": 1}
_HOST_SYSCTLS6 = {"disable_ipv6": 0, "accept_dad": 0, "proxy_ndp": 1, "forwarding": 1}
_DISPENSABLE = ("proxy_delay", "accept_ra")
"""Settings that a kernel may lack: without IPv6 there is no router advertisement to refuse."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a pod's connection looks like. `netns` is the path of its network namespace; `mtu` 0 is the kernel's."""

    netns: str
    ifname: str
    host_ifname: str
    ips: tuple[IP, ...]
    mtu: int = 0
    num_queues: int = 1
    ip_forwarding: bool = False
    mac: str = ""
    """Of the interface in the pod; "": the kernel's choice."""
    kind: str = "veth"
    """`netkit` is a veth where the kernel has none."""
    destinations: tuple[Net, ...] = EVERYWHERE
    """Where the routes in the pod lead."""
    host_netns: str | None = None
    """The node's namespace; None is that of the calling thread."""

    def has(self, version: int) -> bool:
        return any(ip.version == version for ip in self.ips)

    @property
    def gateways(self) -> tuple[IP, ...]:
        return tuple(ip for ip in (GATEWAY4, GATEWAY6) if self.has(ip.version))

    def host_sysctls(self) -> Iterator[tuple[str, int]]:
        name = self.host_ifname
        if self.has(4):
            yield f"net/ipv4/neigh/{name}/proxy_delay", 0
            yield from ((f"net/ipv4/conf/{name}/{key}", value) for key, value in _HOST_SYSCTLS4.items())
        if self.has(6):
            yield f"net/ipv6/conf/{name}/addr_gen_mode", ADDR_GEN_NONE
            yield from ((f"net/ipv6/conf/{name}/{key}", value) for key, value in _HOST_SYSCTLS6.items())
        yield f"net/ipv6/conf/{name}/accept_ra", 0

    def pod_sysctls(self) -> Iterator[tuple[str, int]]:
        if self.has(4):
            yield "net/ipv4/ip_forward", int(self.ip_forwarding)
        if self.has(6):
            yield from ((f"net/ipv6/conf/{scope}/disable_ipv6", 0) for scope in ("all", "default", "lo"))
            yield f"net/ipv6/conf/{self.ifname}/accept_dad", 0
            yield "net/ipv6/conf/all/forwarding", int(self.ip_forwarding)

    def __str__(self) -> str:
        inside = f"nsenter --net={self.netns} ip"
        queues = f" numtxqueues {self.num_queues} numrxqueues {self.num_queues}" if self.num_queues > 1 else ""
        mtu = f" mtu {self.mtu}" if self.mtu else ""
        mac = f" address {self.mac}" if self.mac else ""
        if self.kind == "netkit":
            made = f"ip link add {self.host_ifname} address {HOST_MAC}{mtu}{queues} type netkit mode l2 forward peer"
            made += f" forward name {self.ifname}{mac}{mtu}{queues} netns {self.netns}"
        else:
            made = f"{inside} link add {self.ifname}{mac}{mtu}{queues} type veth"
            made += f" peer name {self.host_ifname} address {HOST_MAC}"
        lines = [
            made,
            *(f"sysctl -w {path}={value}" for path, value in self.host_sysctls()),
            *(f"nsenter --net={self.netns} sysctl -w {path}={value}" for path, value in self.pod_sysctls()),
            f"ip link set {self.host_ifname} up",
            f"{inside} link set {self.ifname} up",
        ]
        if self.has(6):
            lines.append(f"ip addr add {GATEWAY6}/64 dev {self.host_ifname} scope link nodad")
        lines.extend(f"{inside} addr add {ip}/{ip.max_prefixlen} dev {self.ifname}" for ip in self.ips)
        lines.extend(f"{inside} route add {route.words({0: self.ifname})}" for route in self.pod_routes(0))
        lines.extend(
            f"{inside} neigh replace {gateway} lladdr {HOST_MAC} dev {self.ifname}" for gateway in self.gateways
        )
        lines.extend(f"ip neigh replace {ip} lladdr {self.mac or '$mac'} dev {self.host_ifname}" for ip in self.ips)
        return "\n".join(lines)

    def pod_routes(self, index: int) -> list[routes.Route]:
        """The routes inside the pod, given its link's index."""
        found: list[routes.Route] = []
        if self.has(4):
            found.append(routes.Route(parse_net(str(GATEWAY4)), dev=index, scope="link"))
        for gateway in self.gateways:
            own = (net for net in self.destinations if net.version == gateway.version)
            found.extend(routes.Route(net, via=gateway, dev=index) for net in own)
        return found


def attach(attachment: Attachment) -> str:
    """Build it; the answer is the MAC address in the pod. What was half built is taken away again on failure.

    A host interface of the same name, left by an earlier attachment, goes first. Raises KernelError, ConfigError.
    """
    host = netns.open_ns(attachment.host_netns or netns.OWN)
    try:
        pod = netns.open_ns(attachment.netns)
        try:
            with Netlink(host) as host_nl, Netlink(pod) as pod_nl, contextlib.ExitStack() as undo:
                with contextlib.suppress(NotFound):
                    links.delete_link(host_nl, attachment.host_ifname)
                _create(attachment, host_nl, pod_nl, host, pod)
                undo.callback(_delete_if_there, host_nl, attachment.host_ifname)
                mac = _configure(attachment, host_nl, pod_nl, host, pod)
                undo.pop_all()
                return mac
        finally:
            os.close(pod)
    finally:
        os.close(host)


def _create(attachment: Attachment, host_nl: Netlink, pod_nl: Netlink, host: int, pod: int) -> None:
    if attachment.kind == "netkit":
        try:
            _create_netkit(attachment, host_nl, pod)
        except KernelError as error:
            if error.errno != EOPNOTSUPP:
                raise
            log.info("%s: this kernel has no netkit, which came with Linux 6.7: a veth instead", attachment.host_ifname)
            _create(replace(attachment, kind="veth"), host_nl, pod_nl, host, pod)
        return
    links.create_veth(
        pod_nl,
        attachment.ifname,
        attachment.host_ifname,
        peer_netns=host,
        mtu=attachment.mtu,
        num_queues=max(1, attachment.num_queues),
        mac=attachment.mac,
        peer_mac=HOST_MAC,
    )


def _create_netkit(attachment: Attachment, host_nl: Netlink, pod: int) -> None:
    """The host's end is the primary one: programs that watch over the pod can only be attached there."""
    links.create_netkit(
        host_nl,
        attachment.host_ifname,
        attachment.ifname,
        peer_netns=pod,
        mtu=attachment.mtu,
        num_queues=max(1, attachment.num_queues),
        mac=HOST_MAC,
        peer_mac=attachment.mac,
    )


def _configure(attachment: Attachment, host_nl: Netlink, pod_nl: Netlink, host: int, pod: int) -> str:
    with netns.entered(host):
        for path, value in attachment.host_sysctls():
            with contextlib.suppress(KernelError) if path.endswith(_DISPENSABLE) else contextlib.nullcontext():
                sysctl.write(path, value)
    with netns.entered(pod):
        for path, value in attachment.pod_sysctls():
            sysctl.write(path, value)
    host_index = links.link_index(host_nl, attachment.host_ifname)
    inside = links.get_link(pod_nl, attachment.ifname)
    links.set_up(host_nl, host_index)
    links.set_up(pod_nl, inside.index)
    if attachment.has(6):
        addresses.add_address(host_nl, host_index, f"{GATEWAY6}/64", scope="link", nodad=True)
    for ip in attachment.ips:
        addresses.add_address(pod_nl, inside.index, f"{ip}/{ip.max_prefixlen}", nodad=ip.version == 6)
    refused = routes.apply_many(pod_nl, [("add", route) for route in attachment.pod_routes(inside.index)])
    if refused:
        raise refused[0][1]
    for gateway in attachment.gateways:
        neighbours.replace(pod_nl, neighbours.Neighbour(inside.index, str(gateway), HOST_MAC))
    for ip in attachment.ips:
        neighbours.replace(host_nl, neighbours.Neighbour(host_index, str(ip), inside.mac))
    return inside.mac


def _delete_if_there(nl: Netlink, link: str | int) -> None:
    """What cannot be deleted, as loopback and devices of metal cannot, we have not made."""
    try:
        links.delete_link(nl, link)
    except NotFound:
        pass
    except KernelError as error:
        if error.errno != EOPNOTSUPP:
            raise


def detach(
    pod_netns: str,
    ifname: str,
    host_ifname: str,
    host_netns: str | None = None,
    *,
    found: Callable[[], None] = lambda: None,
) -> None:
    """Take it away, from either end; what is gone already is fine. Raises KernelError.

    `found` is called once both ends are known by their indexes: from then on their names may be others'.
    """
    with contextlib.ExitStack() as stack:
        host_nl = stack.enter_context(Netlink(host_netns))
        host = _index(host_nl, host_ifname) if host_ifname else 0
        pod_nl = _inside(pod_netns, stack) if pod_netns else None
        inside = _index(pod_nl, ifname) if pod_nl is not None else 0
        found()
        if host:
            _leave(host, host_netns)
        if pod_nl is not None and inside:
            _delete_if_there(pod_nl, inside)
        if host:
            _delete_if_there(host_nl, host)


def _inside(path: str, stack: contextlib.ExitStack) -> Netlink | None:
    try:
        pod = netns.open_ns(path)
    except (NotFound, ConfigError, KernelError):
        return None  # whatever is at that path, it is no namespace that a link of ours could be in
    stack.callback(os.close, pod)
    return stack.enter_context(Netlink(pod))


def _index(nl: Netlink, name: str) -> int:
    try:
        return links.link_index(nl, name)
    except NotFound:
        return 0


_turn = threading.Lock()
_leaving: dict[str | None, list[int]] = {}
"""Host ends that are to go, by namespace."""


def _leave(host: int, host_netns: str | None) -> None:
    """Take a host's end away together with all that others want away meanwhile: the kernel takes as long for many links
    as for one. Whatever goes wrong, each looks after its own afterwards."""
    _leaving.setdefault(host_netns, []).append(host)
    with _turn:
        every = _leaving.pop(host_netns, [])
        if len(every) > 1:
            with contextlib.suppress(KernelError), Netlink(host_netns) as nl:
                links.delete_links(nl, every)


def host_ends(host_netns: str | None = None) -> list[str]:
    """The host's ends of attachments that are there, by their names and the MAC address that they all have."""
    with Netlink(host_netns) as nl:
        every = [link for kind in ("veth", "netkit") for link in links.list_links(nl, kind=kind)]
    return [link.name for link in every if link.name.startswith(INTERFACE_PREFIX) and link.mac == HOST_MAC]


def differences(attachment: Attachment) -> Iterator[str]:
    """What is not as it should be, one line each; what is there in addition is no difference."""
    host = attachment.host_netns or netns.OWN
    with Netlink(attachment.host_netns) as nl:
        try:
            link = links.get_link(nl, attachment.host_ifname)
        except NotFound:
            yield f"host interface {attachment.host_ifname} is missing"
            return
        if not link.up:
            yield f"host interface {attachment.host_ifname} is down"
        if link.mac != HOST_MAC:
            yield f"host interface {attachment.host_ifname} has MAC {link.mac}, not {HOST_MAC}"
        there = {
            str(route.dst.network_address)
            for family in (AF_INET, AF_INET6)
            for route in routes.list_routes(nl, family, dev=link.index)
            if route.dst.num_addresses == 1
        }
        yield from (f"route to {ip} dev {link.name} is missing" for ip in attachment.ips if str(ip) not in there)
    with netns.entered(host):
        found = _sysctl_differences(attachment)
    yield from found
    yield from _pod_differences(attachment)


def _sysctl_differences(attachment: Attachment) -> list[str]:
    found = []
    for path, value in attachment.host_sysctls():
        with contextlib.suppress(KernelError) if path.endswith(_DISPENSABLE) else contextlib.nullcontext():
            real = sysctl.read(path)
            if real != str(value):
                found.append(f"sysctl {path} is {real}, not {value}")
    return found


def _pod_differences(attachment: Attachment) -> Iterator[str]:
    with Netlink(attachment.netns) as nl:
        try:
            link = links.get_link(nl, attachment.ifname)
        except NotFound:
            yield f"interface {attachment.ifname} is missing in the pod"
            return
        if not link.up:
            yield f"interface {attachment.ifname} is down in the pod"
        there = {address.ip for address in addresses.list_addresses(nl, link.index)}
        for ip in attachment.ips:
            if f"{ip}/{ip.max_prefixlen}" not in there:
                yield f"address {ip} is missing on {attachment.ifname} in the pod"
        have = [
            (route.dst, route.via)
            for family in (AF_INET, AF_INET6)
            for route in routes.list_routes(nl, family, dev=link.index)
        ]
        for want in attachment.pod_routes(link.index):
            if (want.dst, want.via) not in have:
                yield f"route {want.words({link.index: attachment.ifname})} is missing in the pod"
