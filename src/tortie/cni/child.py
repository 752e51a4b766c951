"""Making one link in a pod, mostly on top of another of the host: what ipvlan, macvlan, vlan and dummy have in common.

    make:   a link under a temporary name, directly in the pod's namespace ─► its own name
    remove: the link, then its addresses, whatever of it is gone already

Source: plugins/main of the CNI reference plugins, whose texts the errors are.
"""

from __future__ import annotations

import errno
import os

from tortie.base.errors import Exists, KernelError, NotFound
from tortie.cni import delegate, span
from tortie.cni.attachments import all_of
from tortie.cni.interface import (
    NO_RESULT,
    delete_if_there,
    failed,
    find_link,
    own_interface,
    pod_if_there,
    temporary_name,
)
from tortie.cni.result import Result, Route
from tortie.cni.spec import Call, CniError, Code, at_least, lookup, member, quote
from tortie.kernel import links
from tortie.kernel.netlink import Netlink
from tortie.kernel.plain_routes import LINK, PlainRoute, add_route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from tortie.cni.interface import Pod
    from tortie.cni.plugin import Undo
    from tortie.cni.result import Interface

MODULES = {"vlan": "8021q", "tap": "tun"}
"""Kernel modules that are not called as the kind of link that they bring."""
NOT_THERE = "Link not found"
_NO_KIND = "Unknown device type"
"""What the kernel says besides EOPNOTSUPP of a kind that it does not have (net/core/rtnetlink.c)."""
_NO_MAC = "ff:ff:ff:ff:ff:ff"


# --- errors -------------------------------------------------------------------------------------------------------


def words(error: Exception) -> str:
    """An error of the kernel in the words of Go, in which operators and runtimes know it."""
    if isinstance(error, NotFound):
        return NOT_THERE
    if isinstance(error, Exists):
        return "file exists"
    if isinstance(error, OSError):
        return os.strerror(error.errno or 0).lower()
    return str(error)


def refused(kind: str, error: Exception) -> CniError:
    """The error for a link that the kernel has not made."""
    if is_lacking(error):
        return failed(f"failed to create {kind}: {lack(kind)}")
    hint = "; the master is a bridge's port or has children of another kind" if words(error).endswith("busy") else ""
    return CniError(Code.INTERNAL, f"failed to create {kind}: {words(error)}", f"{error}{hint}")


def is_lacking(error: Exception) -> bool:
    """Whether that is the answer of a kernel without this kind of link."""
    if not isinstance(error, KernelError) or error.errno != errno.EOPNOTSUPP:
        return False
    return error.detail in ("", _NO_KIND)


def lack(kind: str) -> str:
    module = MODULES.get(kind, kind)
    return f'this kernel has no {kind}: load the module "{module}" (modprobe {module})'


# --- making -------------------------------------------------------------------------------------------------------


def master(nl: Netlink, name: str) -> links.Link:
    """The link to make another one on. Raises CniError."""
    found = find_link(nl, name)
    if found is None:
        raise failed(f"failed to lookup master {quote(name)}: {NOT_THERE}")
    return found


def make(
    pod: Pod,
    nl: Netlink,
    undo: Undo,
    ifname: str,
    kind: str,
    data: Mapping[str, Any] | None = None,
    *,
    parent: int = 0,
    mtu: int = 0,
    mac: str = "",
) -> links.Link:
    """Makes a link in the pod; `parent` is an index in the namespace of `nl`. Raises CniError."""
    name = temporary_name()
    where = None if nl is pod.nl else pod.fd
    try:
        links.create_link(nl, name, kind, data, parent=parent, netns=where, mtu=mtu, mac=mac)
    except (KernelError, Exists) as error:
        raise refused(kind, error) from None
    index = links.link_index(pod.nl, name)
    undo.then(links.delete_link, pod.nl, index)
    try:
        links.rename(pod.nl, index, ifname)
    except (KernelError, Exists) as error:
        raise failed(f"failed to rename {kind} to {quote(ifname)}: {words(error)}") from None
    return links.get_link(pod.nl, index)


def announce(pod: Pod, ifname: str) -> None:
    """Lets the kernel tell the neighbours the link's addresses when it comes up, where it can."""
    pod.try_sysctl(f"net/ipv4/conf/{ifname}/arp_notify", 1)
    pod.try_sysctl(f"net/ipv6/conf/{ifname}/ndisc_notify", 1)


def addresses(call: Call, undo: Undo) -> Result:
    """The addresses for the pod. Raises CniError when there is none."""
    result = delegate.ipam_add(call)
    undo.then(delegate.ipam_delete, call)
    if not result.ips:
        raise failed("IPAM plugin returned missing IP config")
    return result


def mtu(conf: Mapping[str, Any], above: links.Link) -> int:
    """`mtu` of the configuration; 0 for none. Raises CniError when the link below cannot carry it."""
    wanted = member(conf, "mtu", int, 0)
    if not 0 <= wanted <= above.mtu:
        raise failed(f"invalid MTU {wanted}, must be [0, master MTU({above.mtu})]")
    return wanted


def hardware_address(text: str) -> str:
    """A MAC address in one of Go's three spellings, as the kernel writes it. Raises CniError."""
    try:
        return span.mac(text)
    except ValueError as error:
        raise failed(f"invalid args {text} for MAC addr: {error}") from None


# --- device routes: `defaultRoute` and `clusterRoutes` --------------------------------------------------------------


def device_routes(call: Call, result: Result, without_arp: bool) -> tuple[Route, ...]:
    """The routes out of the interface without a gateway that the configuration wants besides the result's.

    `defaultRoute: "auto"`, which `autoRoutes` implies, is for links without ARP: there the node routes all that leaves
    the pod. Raises CniError.
    """
    networks = _cidrs(call.conf, "clusterRoutes")
    routed = lookup(call.conf, "autoRoutes", False)
    if routed not in (True, False, "bgp"):
        raise CniError(Code.INVALID_CONFIG, f'autoRoutes: {quote(str(routed))} is neither true, false nor "bgp"')
    implied = "auto" if routed and not networks else "none"
    default = member(call.conf, "defaultRoute", str, implied)
    if default not in ("auto", "none"):
        raise CniError(Code.INVALID_CONFIG, f'defaultRoute: {quote(default)} is neither "auto" nor "none"')
    if default == "auto" and without_arp:
        there = {each.dst for each in result.routes}
        families = {each.family for each in result.ips}
        wanted = {"4": "0.0.0.0/0", "6": "::/0"}
        networks += [dst for family, dst in wanted.items() if family in families and dst not in there]
    scope = LINK if at_least(call.cni_version, "1.1.0") else None
    return tuple(Route(dst, scope=scope) for dst in networks)


def add_device_routes(pod: Pod, link: links.Link, routes: Iterable[Route]) -> None:
    """Raises CniError."""
    for route in routes:
        try:
            add_route(pod.nl, PlainRoute(route.dst, dev=link.index), "append")
        except Exists:
            continue  # an address of the pod is in that network
        except KernelError as error:
            raise failed(f"failed to add route '{route.dst} dev {link.name}': {words(error)}") from None


def _cidrs(conf: Mapping[str, Any], key: str) -> list[str]:
    from tortie.cni.span import cidr

    found: list[str] = []
    for each in member(conf, key, list, []):
        try:
            one = cidr(each)
        except (ValueError, TypeError, AttributeError):
            raise CniError(Code.INVALID_CONFIG, f"{key}: {each!r} is not a CIDR such as 10.96.0.0/12") from None
        found.append(f"{one.network}/{one.length}")
    return found


# --- DEL, CHECK and STATUS ------------------------------------------------------------------------------------------


def remove(call: Call, *rest: Callable[[], object]) -> None:
    """The link goes, then the rest of what leads to it, then its addresses, so that nobody gets one still in use."""

    def link() -> None:
        pod = pod_if_there(call)
        if pod is not None:
            with pod:
                delete_if_there(pod.nl, call.ifname)

    def given() -> None:
        if delegate.ipam_type(call):
            delegate.ipam_delete(call)

    all_of(link, *rest, given)


def checked(
    call: Call, pod: Pod, result: Result | None, kind: str, missing: str = NO_RESULT
) -> tuple[links.Link, Result]:
    """What CHECK begins with: IPAM knows the addresses, and the link is as ADD's result has it. Raises CniError."""
    if delegate.ipam_type(call):
        delegate.ipam_check(call)
    interface = own_interface(call, result, missing)
    assert result is not None  # own_interface has seen it
    return check_link(pod, interface, kind), result


def check_link(pod: Pod, interface: Interface, kind: str) -> links.Link:
    """The link of a result is there, of its kind and with its MAC address. Raises CniError."""
    link = find_link(pod.nl, interface.name)
    if link is None:
        raise failed(f"Container Interface name in prevResult: {interface.name} not found")
    if link.kind != kind:
        raise failed(f"Container interface {link.name} is not of type {kind}")
    if interface.mac and interface.mac.lower() != link.mac:
        raise failed(f"Interface {link.name} Mac {interface.mac} doesn't match container Mac: {link.mac}")
    return link


def check_parent(nl: Netlink, link: links.Link, name: str) -> None:
    """The link is on top of the one of that name. Raises CniError."""
    if link.parent != master(nl, name).index:
        raise failed(f"Interface {link.name} is not on top of master {quote(name)}")


def check_kernel(nl: Netlink, kind: str) -> None:
    """Raises CniError when the kernel has no such links; nothing is made.

    It is asked for one with a MAC address that no link can have, and says which of the two is wrong.
    """
    try:
        links.create_link(nl, temporary_name(), kind, mac=_NO_MAC)
    except (KernelError, Exists) as error:
        if is_lacking(error):
            raise CniError(Code.NOT_AVAILABLE, lack(kind)) from None


def check_master(nl: Netlink, name: str) -> None:
    """For STATUS. Raises CniError."""
    if find_link(nl, name) is None:
        raise CniError(Code.NOT_AVAILABLE, f"master {quote(name)} is not there")


def status(call: Call, kind: str, master: str = "") -> None:
    """The kernel has such links, the host the master ("": there is none to look for), and IPAM addresses. Raises
    CniError."""
    with Netlink() as host:
        check_kernel(host, kind)
        if master:
            check_master(host, master)
    delegate.ipam_status(call)
