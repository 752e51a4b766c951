"""The host's own child of an ipvlan or macvlan master, by which a node and its own pods reach each other.

A master and its children do not hear one another. Children do, so the node gets one, too (`hostAccess: "sibling"`):

    node's addresses        eth0 ───────────────────── wire
                             │  │  └── pod's eth0        what the node sends to a pod goes out of the sibling,
      route POD/32 ─► cniv1234abcd └── pod's eth0        and the driver hands it over; sender: the node's own address

It has a route for each pod, and goes with the last of them. Where there is ARP (ipvlan l2, macvlan) nobody asks for
addresses: the node knows the pods' MACs and the pods that of the sibling (permanent neighbours), so that the wire never
hears the node's address with another MAC than the master's. In ipvlan l3 and l3s the sibling has 169.254.77.1 besides,
which is the node to its pods wherever they are.

Ours: a link of that name, all routes out of it. What is left when a pod went without a word is seen by comparing them
with the children that there are (`prune`); nothing is counted.
"""

from __future__ import annotations

from tortie.base.errors import Exists, KernelError, NotFound
from tortie.base.record import record
from tortie.cni import child
from tortie.cni.interface import canonical, failed, find_link, hashed
from tortie.cni.result import prev_result
from tortie.cni.spec import Call, CniError, Code, member, quote
from tortie.kernel import addresses, children, links, sysctl
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.codec import NLM_F_CREATE, NLM_F_REPLACE
from tortie.kernel.netlink.tables import (
    AF_INET,
    AF_INET6,
    NEIGHBOUR,
    NEIGHBOUR_STATE_NUMBERS,
    RTM_DELNEIGH,
    RTM_NEWNEIGH,
)
from tortie.kernel.plain_routes import PlainRoute, add_route, delete_route, list_routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from tortie.cni.interface import Pod
    from tortie.cni.plugin import Undo
    from tortie.cni.result import Result

PREFIX = "cniv"
ROUTED_ADDRESS = "169.254.77.1"
"""The node's address for pods of ipvlan l3 and l3s. It never leaves the machine, so all may have the same."""


@record(frozen=True, slots=True)
class Sibling:
    """What the sibling of a network is like: its kind and settings, on the master of that name.

    `address` is an address of its own ("" for none) and `arp` says whether its kind knows ARP.
    """

    kind: str
    mode: str
    data: Mapping[str, Any]
    master: str
    address: str
    arp: bool

    @property
    def name(self) -> str:
        """Of 12 characters, and the same in every call."""
        return hashed(12, PREFIX, f"{self.kind} {self.mode} {self.master}")


def wanted(call: Call) -> bool:
    """Whether the configuration asks for one. Raises CniError for a word that says neither."""
    word = member(call.conf, "hostAccess", str, "none")
    if word not in ("none", "sibling"):
        raise CniError(Code.INVALID_CONFIG, f'hostAccess: {quote(word)} is neither "none" nor "sibling"')
    return word == "sibling"


def own_address(call: Call) -> str:
    """`hostAddress`, without a prefix length; "" for none. Raises CniError."""
    from tortie.cni.span import ip_or_cidr

    text = member(call.conf, "hostAddress", str, "")
    try:
        return str(ip_or_cidr(text)[0]) if text else ""
    except ValueError as why:
        raise CniError(Code.INVALID_CONFIG, f"hostAddress: {why}") from None


# --- ADD ----------------------------------------------------------------------------------------------------------


def connect(host: Netlink, pod: Pod, undo: Undo, sibling: Sibling, own: links.Link, result: Result) -> None:
    """The node and the pod reach each other: `own` is the pod's link, the result's addresses are on it.

    Raises CniError, KernelError.
    """
    master = child.master(host, sibling.master)
    ips = _ips(result)
    with children.Alone():
        link = find_link(host, sibling.name)
        if link is None or link.parent != master.index:
            _refuse_strictness(sibling)
            link = _make(host, sibling, master)
        undo.then(_undo, host, sibling.kind, sibling.name, ips)
        there = _of_node(host, master)
        for ip in ips:
            source = _source(sibling, there, ip)
            add_route(host, PlainRoute(_whole(ip), dev=link.index, src=source), "replace")
            if sibling.arp:
                _know(host, link.index, ip, own.mac)
    if sibling.arp:
        families = {":" in ip for ip in ips}
        for ip in (*there, *filter(None, [sibling.address])):
            if (":" in ip) in families:
                _know(pod.nl, own.index, ip, link.mac)


def _make(host: Netlink, sibling: Sibling, master: links.Link) -> links.Link:
    """A link that keeps quiet: it takes no addresses from routers, and answers for no address but its own."""
    name = sibling.name
    if find_link(host, name) is not None:  # of a master that has gone and come again
        links.delete_link(host, name)
    # The same MAC each time: pods know it.
    mac = "" if sibling.kind == "ipvlan" else f"02:{bytes.fromhex(hashed(10, '', name + master.mac)).hex(':')}"
    try:
        links.create_link(host, name, sibling.kind, sibling.data, parent=master.index, mac=mac)
    except (KernelError, Exists) as error:
        raise child.refused(sibling.kind, error) from None
    try:
        _set(name, {"ipv6": {"accept_ra": 0, "autoconf": 0}, "ipv4": {"arp_ignore": 1, "rp_filter": 2}})
        link = links.get_link(host, name)
        links.set_alias(host, link.index, f"the node's way to pods on {master.name}")
        if sibling.address:
            addresses.add_address(host, link.index, _whole(sibling.address), nodad=":" in sibling.address)
        links.set_up(host, link.index)
    except BaseException:
        links.delete_link(host, name)
        raise
    return link


def _set(name: str, settings: Mapping[str, Mapping[str, int]]) -> None:
    for family, values in settings.items():
        for key, value in values.items():
            try:
                sysctl.write(f"net/{family}/conf/{name}/{key}", value)
            except KernelError:
                continue  # a kernel without IPv6


def _refuse_strictness(sibling: Sibling) -> None:
    """In ipvlan l2 what a pod sends to the node comes in by the master, not by the sibling, which leads back to it."""
    if sibling.kind != "ipvlan" or not sibling.arp or sibling.address:
        return
    values = [sysctl.read(f"net/ipv4/conf/{each}/rp_filter") for each in ("all", sibling.master)]
    if max(map(int, values)) == 1:
        raise failed(
            f"hostAccess: the node would drop what its pods send to it (net.ipv4.conf.{sibling.master}.rp_filter is 1):"
            f' give the sibling an address of its own, "hostAddress", or set rp_filter to 2'
        )


def _of_node(host: Netlink, master: links.Link) -> list[str]:
    """The master's addresses, without prefix lengths."""
    found = addresses.list_addresses(host, master.index)
    return [each.ip.partition("/")[0] for each in found if each.scope == "global"]


def _source(sibling: Sibling, there: Iterable[str], ip: str) -> str:
    """Whose address the node sends to the pod with: the configured one, the master's; "": the kernel's choice."""
    six = ":" in ip
    candidates = [sibling.address] if sibling.arp else []
    candidates += [*there, sibling.address]
    return next((each for each in candidates if each and (":" in each) == six), "")


# --- DEL, GC ------------------------------------------------------------------------------------------------------


def leave(call: Call, kind: str) -> None:
    """After the pod's link went: the ways to it go, too. Without a result of ADD it is looked which pods there are.

    The configuration is not asked whether, nor for the master: it may be another one by now. Raises KernelError.
    """
    try:
        result = prev_result(call)
    except CniError:
        result = None
    with Netlink() as host:
        _leave(host, kind, result)


def prune(kind: str) -> None:
    """Takes away the ways to pods that are no more, and siblings without any. Raises KernelError."""
    with Netlink() as host:
        _leave(host, kind, None)


def _leave(host: Netlink, kind: str, result: Result | None) -> None:
    """A pod's addresses are those of the result. Where there are siblings on several masters, one of which may have
    another pod with such an address, and without a result, every namespace is asked who is still there."""
    if not _siblings(host, kind):
        return
    with children.Alone():
        there = _siblings(host, kind)
        for link in there:
            ips = _ips(result) if result and len(there) == 1 else _stale(host, link)
            _forget(host, link, [ip for ip in ips if result is None or ip in _ips(result)])


def _undo(host: Netlink, kind: str, name: str, ips: list[str]) -> None:
    with children.Alone():
        for link in _siblings(host, kind):
            if link.name == name:
                _forget(host, link, ips)


def _siblings(host: Netlink, kind: str) -> list[links.Link]:
    return [each for each in links.list_links(host, kind=kind) if each.name.startswith(PREFIX)]


def _stale(host: Netlink, link: links.Link) -> list[str]:
    """The addresses that are routed to pods, and no child of the master has."""
    held = children.held(host, link.parent, link.kind)
    return [ip for ip in _routed(host, link) if ip not in held]


def _forget(host: Netlink, link: links.Link, ips: Iterable[str]) -> None:
    gone = [ip for ip in _routed(host, link) if ip in ips]
    for ip in gone:
        try:
            delete_route(host, PlainRoute(_whole(ip), dev=link.index))
            _forget_mac(host, link.index, ip)
        except NotFound:
            continue
    if not _routed(host, link):
        try:
            links.delete_link(host, link.index)
        except NotFound:
            pass


def _routed(host: Netlink, link: links.Link) -> list[str]:
    """The addresses of pods that have routes out of the sibling."""
    found = [each for family in (AF_INET, AF_INET6) for each in list_routes(host, family, dev=link.index)]
    return [each.dst.partition("/")[0] for each in found if each.dst == _whole(each.dst.partition("/")[0])]


# --- CHECK --------------------------------------------------------------------------------------------------------


def check(host: Netlink, sibling: Sibling, result: Result) -> None:
    """The sibling is there and up, and has routes to the result's addresses. Raises CniError."""
    link = find_link(host, sibling.name)
    if link is None or not link.up:
        raise failed(f"the host's sibling {sibling.name} on {sibling.master} is not there, or down")
    routed = _routed(host, link)
    for ip in _ips(result):
        if ip not in routed:
            raise failed(f"the host has no route to {ip} by its sibling {sibling.name}")


# --- small things -------------------------------------------------------------------------------------------------


def _ips(result: Result) -> list[str]:
    return [canonical(each.address).partition("/")[0] for each in result.ips]


def _whole(ip: str) -> str:
    return f"{ip}/128" if ":" in ip else f"{ip}/32"


def _know(nl: Netlink, index: int, ip: str, mac: str) -> None:
    values = {**_neighbour(index, ip), "ndm_state": NEIGHBOUR_STATE_NUMBERS["permanent"], "lladdr": mac}
    doing = f"ip neigh replace {ip} lladdr {mac} dev if{index} nud permanent"
    nl.request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, NEIGHBOUR.pack(values), doing)


def _forget_mac(nl: Netlink, index: int, ip: str) -> None:
    try:
        nl.request(RTM_DELNEIGH, 0, NEIGHBOUR.pack(_neighbour(index, ip)), f"ip neigh delete {ip} dev if{index}")
    except KernelError:
        pass  # it has none where there is no ARP


def _neighbour(index: int, ip: str) -> dict[str, Any]:
    return {"ndm_family": AF_INET6 if ":" in ip else AF_INET, "ndm_ifindex": index, "dst": ip}
