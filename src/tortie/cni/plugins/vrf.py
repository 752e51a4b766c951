"""vrf: puts an interface into a routing domain of its own (VRF), made for the first and gone with the last.

Fields: `vrfname` (required), `table` (of its routes; the first from 1 on that no VRF of the pod has).

    eth1 10.0.0.5/24, 10.9.0.0/16 via 10.0.0.1 in main      ──ADD──►      blue (vrf, table 1) ◄── eth1
                                                                          both routes in table 1

The kernel sets an interface down and up when it enters: routes through gateways and IPv6 addresses that it loses are
put back, the routes into the VRF's table. Source: plugins/meta/vrf of the CNI reference plugins.
"""

from __future__ import annotations

import errno

from tortie.base.errors import Exists, KernelError
from tortie.cni.interface import Pod, canonical, delete_if_there, failed, find_link, open_pod, pod_if_there, settle
from tortie.cni.plugin import Plugin, Undo
from tortie.cni.result import Result, Route, prev_result
from tortie.cni.spec import SUPPORTED_VERSIONS, Call, CniError, Code, check_ifname, member, quote
from tortie.kernel import addresses, links
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import AF_INET, AF_INET6
from tortie.kernel.plain_routes import PlainRoute, add_route, list_routes

KIND = "vrf"
FAMILIES = (AF_INET, AF_INET6)
NO_KERNEL = 'this kernel has no VRF: load the module "vrf" (modprobe vrf)'


def add(call: Call) -> Result:
    name, table = _wishes(call)
    previous = prev_result(call)
    if previous is None:
        raise failed("missing prevResult from earlier plugin")
    with open_pod(call) as pod, Undo() as undo:
        try:
            vrf = _find(pod.nl, name) or _make(undo, pod.nl, name, table)
            _check_table(vrf, table)
            links.set_up(pod.nl, vrf.index)
            moved = _enslave(undo, pod, call.ifname, vrf)
        except CniError as error:
            raise failed(f"cmdAdd failed: {error.msg}") from None
        except KernelError as error:
            raise failed(f"cmdAdd failed: {error}") from None
    return _told(previous, moved, vrf.info["table"])


def delete(call: Call) -> None:
    """The interface leaves the VRF; the last one takes it along. What is gone already is no error."""
    name, _ = _wishes(call)
    pod = pod_if_there(call)
    if pod is None:
        return
    with pod:
        vrf = find_link(pod.nl, name)
        if vrf is None or vrf.kind != KIND:
            return
        link = find_link(pod.nl, call.ifname)
        if link is not None and link.master == vrf.index:
            links.set_master(pod.nl, link.index, None)
        if not links.list_links(pod.nl, master=vrf.index):
            delete_if_there(pod.nl, name)


def check(call: Call) -> None:
    name, table = _wishes(call)
    if prev_result(call) is None:
        raise failed("Required prevResult missing")
    with open_pod(call) as pod:
        vrf = _find(pod.nl, name)
        link = find_link(pod.nl, call.ifname)
        if vrf is None or link is None or link.master != vrf.index:
            raise failed(f"failed to find {call.ifname} associated to vrf {name}")
        _check_table(vrf, table)
        if not vrf.up:
            raise failed(f"VRF {name} is down")


def status(call: Call) -> None:
    """Asks for a VRF without a table, which a kernel that knows them refuses in another way than one that does not."""
    with Netlink() as nl:
        try:
            links.create_link(nl, "vrf-probe", KIND)
        except KernelError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise CniError(Code.NOT_AVAILABLE, NO_KERNEL) from None


def _wishes(call: Call) -> tuple[str, int]:
    """The VRF's name and its table, 0 for any. Raises CniError."""
    name = member(call.conf, "vrfname", str, "")
    if not name:
        raise failed("configuration is expected to have a valid vrf name")
    try:
        check_ifname(name)
    except CniError as error:
        raise failed(f"configuration is expected to have a valid vrf name: {quote(name)}: {error.msg}") from None
    table = member(call.conf, "table", int, 0)
    if not 0 <= table < 1 << 32:
        raise failed(f"invalid table {table}: must be between 1 and {(1 << 32) - 1}")
    return name, table


def _find(nl: Netlink, name: str) -> links.Link | None:
    link = find_link(nl, name)
    if link is not None and link.kind != KIND:
        raise failed(f"{name} is not a VRF")
    return link


def _check_table(vrf: links.Link, table: int) -> None:
    if table and vrf.info["table"] != table:
        raise failed(f"VRF {vrf.name} already exist with different routing table {vrf.info['table']}")


def _make(undo: Undo, nl: Netlink, name: str, table: int) -> links.Link:
    taken = {each.info.get("table") for each in links.list_links(nl, kind=KIND)}
    if not table:
        table = next(number for number in range(1, 1 << 32) if number not in taken)
    try:
        links.create_link(nl, name, KIND, {"table": table})
        undo.then(delete_if_there, nl, name)
    except Exists:
        pass  # another call for the same pod was quicker
    except KernelError as error:
        raise failed(NO_KERNEL if error.errno == errno.EOPNOTSUPP else str(error)) from None
    return links.get_link(nl, name)


def _enslave(undo: Undo, pod: Pod, ifname: str, vrf: links.Link) -> set[str]:
    """Puts the interface into the VRF; the destinations of its routes, which are in the VRF's table now."""
    link = find_link(pod.nl, ifname)
    if link is None:
        raise failed(f"failed to lookup {quote(ifname)}: Link not found")
    if link.master == vrf.index:
        return {each.dst for family in FAMILIES for each in list_routes(pod.nl, family, table=0, dev=link.index)}
    if link.master:
        master = links.get_link(pod.nl, link.master)
        raise failed(f"interface {ifname} has already a master set: {master.name}")
    had = [each for each in addresses.list_addresses(pod.nl, link.index, family=AF_INET6) if each.scope == "global"]
    routes = [each for family in FAMILIES for each in list_routes(pod.nl, family, dev=link.index)]
    undo.then(_put_back, pod, link, had, routes, 0)
    undo.then(links.set_master, pod.nl, link.index, None)
    links.set_master(pod.nl, link.index, vrf.index)
    _put_back(pod, link, had, routes, vrf.info["table"])
    return {each.dst for each in routes}


def _told(previous: Result, moved: set[str], table: int) -> Result:
    """The result with the table that its routes are in now: who checks them looks there."""

    def told(one: Route) -> Route:
        now = table if one.table is None and canonical(one.dst) in moved else one.table
        return Route(one.dst, one.gw, one.mtu, one.advmss, one.priority, now, one.scope, one.extra)

    return Result(previous.interfaces, previous.ips, tuple(map(told, previous.routes)), previous.dns, previous.extra)


def _put_back(pod: Pod, link: links.Link, had: list[addresses.Address], routes: list[PlainRoute], table: int) -> None:
    """Addresses and routes that are not there any more; routes into `table`, 0: the one in which they were."""
    there = {each.ip for each in addresses.list_addresses(pod.nl, link.index, family=AF_INET6)}
    lost = [each for each in had if each.ip not in there]
    for each in lost:
        addresses.add_address(pod.nl, link.index, each.ip)
    if lost and link.up:
        settle(pod.nl, link.index, link.name)
    for route in sorted(routes, key=lambda each: bool(each.via)):
        if route.dst.startswith("fe80:") or (not route.via and _is_connected(route)):
            continue  # the kernel's own, which it has made anew
        moved = _moved(route, table or route.table)
        try:
            add_route(pod.nl, moved, "append" if route.family == AF_INET else "replace")
        except Exists:
            pass


def _is_connected(route: PlainRoute) -> bool:
    return route.protocol == 2  # RTPROT_KERNEL (linux/rtnetlink.h): it comes with an address


def _moved(route: PlainRoute, table: int) -> PlainRoute:
    scope = route.scope if route.family == AF_INET else None
    return PlainRoute(
        route.dst,
        dev=route.dev,
        via=route.via,
        src=route.src,
        metric=route.metric,
        table=table,
        scope=scope,
        mtu=route.mtu,
        advmss=route.advmss,
        protocol=route.protocol,
        type=route.type,
        onlink=route.onlink,
    )


PLUGIN = Plugin("vrf", add, delete, check, None, status, SUPPORTED_VERSIONS[SUPPORTED_VERSIONS.index("0.3.1") :])
