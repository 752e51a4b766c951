"""sbr: answers leave by the interface that the question came in by, in a pod with several (source based routing).

Fields: `table` (this one, in which nothing is written, instead of a new one for each address), `gateways` (one of each
family, instead of those of the result), `addSourceHints` (routes of subnets stay in the main table, with `src`).

    main table                                    main table        10.2.0.0/16 dev eth1 src 10.2.0.5, with hints
    10.2.0.0/16 dev eth1              ──ADD──►    rule              from 10.2.0.5 lookup 100
    172.16.0.0/12 via 10.2.0.1 dev eth1           table 100         default via 10.2.0.1 dev eth1
                                                                    10.2.0.0/16, 172.16.0.0/12 as they were

Source: plugins/meta/sbr of the CNI reference plugins.
"""

from __future__ import annotations

from fcntl import LOCK_EX, flock

from tortie.base.errors import Exists, NotFound
from tortie.cni import span
from tortie.cni.interface import canonical, failed, find_link, open_pod, pod_if_there
from tortie.cni.plugin import Plugin, Undo
from tortie.cni.result import Address, Result, Route, prev_result
from tortie.cni.spec import Call, CniError, member, quote, wrong_type
from tortie.kernel import addresses
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import AF_INET, AF_INET6, RT_TABLE_MAIN
from tortie.kernel.plain_routes import (
    UNIVERSE,
    PlainRoute,
    PlainRule,
    add_route,
    add_rule,
    delete_route,
    delete_rule,
    list_routes,
    list_rules,
)

FIRST_TABLE = 100
FAMILIES = (AF_INET, AF_INET6)
LINK_LOCAL = "fe80::/64"
"""Stays in the main table: it is the same on every link, and there are no answers to it from elsewhere."""


class Wishes:
    """What a configuration wants; `table` 0: a new one for each address; `gateways` by family, "" for none."""

    __slots__ = ("gateways", "hints", "table")

    def __init__(self, table: int, gateways: dict[int, str], hints: bool) -> None:
        self.table = table
        self.gateways = gateways
        self.hints = hints


def add(call: Call) -> Result:
    wishes, previous = _wishes(call), _previous(call)
    with open_pod(call) as pod, Undo() as undo:
        flock(pod.fd, LOCK_EX)  # two of us in one pod would choose the same table
        link = find_link(pod.nl, call.ifname)
        if link is None:
            raise failed(f"failed to lookup {quote(call.ifname)}: Link not found")
        mine = [each for family in FAMILIES for each in list_routes(pod.nl, family, dev=link.index)]
        mine = [each for each in mine if each.dst != LINK_LOCAL]
        tables: dict[str, int] = {}
        for ip in _addresses(call, previous):
            table = wishes.table or _free_table(pod.nl)
            if not wishes.table:
                for route in _own_routes(ip, wishes, mine, link.index, table):
                    add_route(pod.nl, route, "replace")
                    undo.then(_drop_route, pod.nl, route)
                    tables.setdefault(route.dst, table)
            _make_rule(undo, pod.nl, PlainRule(table, _host(ip.address), family=_family(ip.address)))
        if not wishes.table:
            _clear_main(undo, pod.nl, mine, _addresses(call, previous), wishes.hints)
    return _told(previous, tables)


def delete(call: Call) -> None:
    """The rules, and what is in the tables that only they lead to. A pod that is gone has neither."""
    wishes = _wishes(call, strict=False)
    pod = pod_if_there(call)
    if pod is None:
        return
    with pod:
        flock(pod.fd, LOCK_EX)
        link = find_link(pod.nl, call.ifname)
        there = [each.ip for each in addresses.list_addresses(pod.nl, link.index)] if link is not None else []
        mine = {_host(canonical(each)) for each in (*there, *_known(call))}
        for family in FAMILIES:
            for rule in list_rules(pod.nl, family):
                if rule.src in mine or (wishes.table and rule.table == wishes.table):
                    _drop_rule(pod.nl, rule)
                    if link is not None and not wishes.table and rule.table >= FIRST_TABLE:
                        for route in list_routes(pod.nl, family, table=rule.table, dev=link.index):
                            _drop_route(pod.nl, route)


def check(call: Call) -> None:
    wishes, previous = _wishes(call), _previous(call)
    with open_pod(call) as pod:
        rules = [each for family in FAMILIES for each in list_rules(pod.nl, family)]
        for ip in _addresses(call, previous):
            tables = [each.table for each in rules if each.src == _host(canonical(ip.address))]
            tables = [each for each in tables if wishes.table in (0, each)]
            if not tables:
                raise failed(f"no rule for packets from {_host(ip.address)}")
            gateway = canonical(_gateway(ip, wishes))
            if wishes.table or not gateway:
                continue
            family = _family(ip.address)
            routes = [each for table in tables for each in list_routes(pod.nl, family, table=table)]
            if not any(each.via == gateway and each.dst.endswith("/0") for each in routes):
                raise failed(f"no default route via {gateway} in table {tables[0]}, for packets from {ip.address}")


# --- what is wanted -----------------------------------------------------------------------------------------------


def _wishes(call: Call, strict: bool = True) -> Wishes:
    """Raises CniError for what cannot be; not `strict`, it is left out."""
    table = member(call.conf, "table", int, 0)
    gateways: dict[int, str] = {}
    listed = member(call.conf, "gateways", list, [])
    for gateway in listed if strict else ():
        if not isinstance(gateway, str):
            raise failed(f"failed to load netconf: {wrong_type(gateway, 'gateways', str)}")
        if not span.is_ip(gateway):
            raise failed(f"invalid gateway address: {gateway}")
        if gateways.setdefault(_family(gateway), gateway) != gateway:
            raise failed(f"more than one gateway of a family: {', '.join(listed)}")
    if strict and not 0 <= table < 1 << 32:
        raise failed(f"invalid table {table}: must be between 1 and {(1 << 32) - 1}")
    return Wishes(table, gateways, member(call.conf, "addSourceHints", bool, False))


def _previous(call: Call) -> Result:
    previous = prev_result(call)
    if previous is None:
        raise failed("This plugin must be called as chained plugin")
    return previous


def _addresses(call: Call, previous: Result) -> list[Address]:
    """Those of the interface. Raises CniError when there is none."""
    found = _own(call, previous)
    if not found:
        raise failed(f"No IP addresses supplied on interface: {call.ifname}")
    return found


def _own(call: Call, previous: Result) -> list[Address]:
    """Addresses of the result that are on this interface, in the pod. Old results do not say where any are."""
    if not previous.interfaces:
        return list(previous.ips)
    found: list[Address] = []
    for ip in previous.ips:
        if ip.interface is not None and 0 <= ip.interface < len(previous.interfaces):
            interface = previous.interfaces[ip.interface]
            if interface.name == call.ifname and interface.sandbox:
                found.append(ip)
    return found


def _told(previous: Result, tables: dict[str, int]) -> Result:
    """The result with the tables that its routes are in now: who checks them looks there."""

    def moved(one: Route) -> Route:
        table = tables.get(canonical(one.dst)) if one.table is None else one.table
        return Route(one.dst, one.gw, one.mtu, one.advmss, one.priority, table, one.scope, one.extra)

    routes = tuple(map(moved, previous.routes))
    return Result(previous.interfaces, previous.ips, routes, previous.dns, previous.extra)


def _known(call: Call) -> list[str]:
    """The addresses of the result, if there is one that can be read: DEL has to work with what is left."""
    try:
        previous = prev_result(call)
    except CniError:
        return []
    return [each.address for each in _own(call, previous)] if previous is not None else []


def _gateway(ip: Address, wishes: Wishes) -> str:
    return wishes.gateways.get(_family(ip.address)) or ip.gateway


# --- routes -------------------------------------------------------------------------------------------------------


def _own_routes(ip: Address, wishes: Wishes, mine: list[PlainRoute], index: int, table: int) -> list[PlainRoute]:
    """What is to be in the table of an address: subnets first, as the kernel wants to know the way to a gateway."""
    family = _family(ip.address)
    routes = [_copy(each, table=table) for each in mine if each.family == family and _concerns(each, ip)]
    routes.sort(key=lambda each: bool(each.via))
    gateway = _gateway(ip, wishes)
    if gateway:
        routes = [each for each in routes if not each.dst.endswith("/0")]
        default = "::/0" if family == AF_INET6 else "0.0.0.0/0"
        on_link = not _within(gateway, ip.address) and not any(
            not each.via and _within(gateway, each.dst) for each in routes
        )
        routes.append(PlainRoute(default, dev=index, via=gateway, table=table, scope=UNIVERSE, onlink=on_link))
    return routes


def _concerns(route: PlainRoute, ip: Address) -> bool:
    """Whether packets from the address may want the route: it names a source or a gateway of its subnet, or neither."""
    if not route.src and not route.via:
        return True
    return any(near and _within(near, ip.address) for near in (route.src, route.via))


def _clear_main(undo: Undo, nl: Netlink, mine: list[PlainRoute], ips: list[Address], hints: bool) -> None:
    """Takes the interface's routes out of the main table, or leaves those of subnets with the address as source."""
    families = {_family(ip.address) for ip in ips}
    for route in sorted(mine, key=lambda each: not each.via):  # a gateway's subnet goes after the routes through it
        if route.family not in families:
            continue
        hint = next((ip for ip in ips if hints and not route.via and _within(ip.address, route.dst)), None)
        delete_route(nl, route)
        undo.then(add_route, nl, route, "append")
        if hint is not None:
            stays = _copy(route, src=hint.address.partition("/")[0])
            add_route(nl, stays, "replace")
            undo.then(_drop_route, nl, stays)


def _copy(route: PlainRoute, *, table: int = RT_TABLE_MAIN, src: str = "") -> PlainRoute:
    return PlainRoute(
        route.dst,
        dev=route.dev,
        via=route.via,
        src=src or route.src,
        metric=route.metric,
        table=table,
        scope=route.scope if route.family == AF_INET else UNIVERSE,
        mtu=route.mtu,
        advmss=route.advmss,
        protocol=route.protocol,
        type=route.type,
        onlink=route.onlink,
    )


def _free_table(nl: Netlink) -> int:
    """The first from 100 on that no rule leads to and no route is in."""
    taken = {each.table for family in FAMILIES for each in list_rules(nl, family)}
    taken |= {each.table for family in FAMILIES for each in list_routes(nl, family, table=0)}
    table = FIRST_TABLE
    while table in taken:
        table += 1
    return table


def _make_rule(undo: Undo, nl: Netlink, rule: PlainRule) -> None:
    try:
        add_rule(nl, rule)
    except Exists:
        return
    undo.then(_drop_rule, nl, rule)


def _drop_rule(nl: Netlink, rule: PlainRule) -> None:
    try:
        delete_rule(nl, rule)
    except NotFound:
        pass


def _drop_route(nl: Netlink, route: PlainRoute) -> None:
    try:
        delete_route(nl, route)
    except NotFound:
        pass


# --- addresses ----------------------------------------------------------------------------------------------------


def _family(text: str) -> int:
    return AF_INET6 if ":" in text else AF_INET


def _host(address: str) -> str:
    """The address alone, as a CIDR: `10.0.0.5/24` is `10.0.0.5/32`."""
    return f"{address.partition('/')[0]}/{128 if ':' in address else 32}"


def _within(address: str, net: str) -> bool:
    """Whether an address is in the network of another, `10.0.0.5/24`."""
    return span.ip(address.partition("/")[0]) in span.cidr(net)


PLUGIN = Plugin("sbr", add, delete, check)
