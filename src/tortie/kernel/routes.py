"""Routes of both families as values that print as `ip route` would have them, and getting thousands into the kernel.

A table that does not exist is empty. What the kernel makes up when left alone (scope, the metric of IPv6) is made up
here the same way, so that a route read back equals the route that was added.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network

from tortie.base.addr import IP, Net, host_net, parse_ip
from tortie.base.errors import ConfigError, Exists, KernelError, NotFound
from tortie.kernel.netlink import Netlink, Request
from tortie.kernel.netlink.codec import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE
from tortie.kernel.netlink.tables import (
    AF_INET,
    AF_INET6,
    PROTOCOLS,
    ROUTE,
    ROUTE_TYPE_NUMBERS,
    ROUTE_TYPES,
    RT_TABLE_COMPAT,
    RT_TABLE_MAIN,
    RTM_DELROUTE,
    RTM_F_CLONED,
    RTM_F_FIB_MATCH,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTNH_F_ONLINK,
    RTNLGRP_IPV6_ROUTE,
    RTPROT_BOOT,
    SCOPES,
    TABLES,
    scope_number,
)

TYPE_CHECKING = False  # as in netlink.codec
if TYPE_CHECKING:
    from typing import Any

# What a packet meets that is not forwarded. IPv6 hangs these on loopback, of which nobody needs to hear.
_DISCARDS = frozenset({"blackhole", "unreachable", "prohibit", "throw"})

SPARE = 4096
"""Routes that were read and are gone, which are remembered at least."""
_RTMSG = struct.Struct("=5xB2xI")  # rtm_protocol and rtm_flags of struct rtmsg (linux/rtnetlink.h)
_IPV6_METRIC = 1024  # IP6_RT_PRIO_USER (linux/ipv6_route.h): what the kernel makes of metric 0

_REQUESTS = {
    "add": (RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL),
    "replace": (RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE),
    "delete": (RTM_DELROUTE, 0),
}


@dataclass(frozen=True, slots=True)
class Nexthop:
    """One of several ways of a multipath route. `weight` is 1 to 256."""

    via: IP | None = None
    dev: int | None = None
    weight: int = 1
    onlink: bool = False

    def words(self, dst: Net, names: Mapping[int, str]) -> str:
        return " ".join([*_way(dst, self.via, self.dev, names), f"weight {self.weight}", *["onlink"] * self.onlink])


@dataclass(frozen=True, slots=True)
class Route:
    """A route as the kernel has it. `dev` is an index, `protocol` and `table` are numbers, the rest is as `ip` says it.

    `scope` "" becomes what `ip` would choose. `metric` 0 is the kernel's own: none, or 1024 for IPv6, and is read back
    as 0. `nexthops` are more than one way; then `via` and `dev` are None.
    """

    dst: Net
    via: IP | None = None
    dev: int | None = None
    table: int = RT_TABLE_MAIN
    protocol: int = RTPROT_BOOT
    scope: str = ""
    metric: int = 0
    type: str = "unicast"
    onlink: bool = False
    src: IP | None = None
    mtu: int = 0
    nexthops: tuple[Nexthop, ...] = ()

    def __post_init__(self) -> None:
        if self.type not in ROUTE_TYPE_NUMBERS:
            raise ConfigError(f'"{self.type}" is no type of route')
        if not self.scope or self.dst.version == 6:
            object.__setattr__(self, "scope", self._own_scope())
        if self.dst.version == 6 and self.metric == _IPV6_METRIC:
            object.__setattr__(self, "metric", 0)

    def _own_scope(self) -> str:
        """IPv6 knows no scopes of routes; with IPv4 it says how far the next hop is."""
        if self.dst.version == 6:
            return "global"
        if self.type in ("local", "nat"):
            return "host"
        if self.type in ("broadcast", "multicast", "anycast"):
            return "link"
        return "link" if self.type == "unicast" and self.via is None and not self.nexthops else "global"

    def __str__(self) -> str:
        return self.words({})

    def words(self, names: Mapping[int, str]) -> str:
        """The route as `ip route` writes it, given links' names; a link without one is `if7`, which `ip` takes too."""
        words = [] if self.type == "unicast" else [self.type]
        words.append(_destination(self.dst))
        words += _way(self.dst, self.via, self.dev, names)
        if self.table != RT_TABLE_MAIN:
            words.append(f"table {TABLES.get(self.table, self.table)}")
        if self.protocol != RTPROT_BOOT:
            words.append(f"proto {PROTOCOLS.get(self.protocol, self.protocol)}")
        if self.scope != "global":
            words.append(f"scope {self.scope}")
        if self.src is not None:
            words.append(f"src {self.src}")
        if self.metric:
            words.append(f"metric {self.metric}")
        if self.mtu:
            words.append(f"mtu {self.mtu}")
        if self.onlink:
            words.append("onlink")
        words += [f"nexthop {hop.words(self.dst, names)}" for hop in self.nexthops]
        return " ".join(words)


def _destination(dst: Net) -> str:
    if dst.prefixlen == 0:
        return "default"
    return str(dst.network_address) if dst.prefixlen == dst.max_prefixlen else str(dst)


def _way(dst: Net, via: IP | None, dev: int | None, names: Mapping[int, str]) -> list[str]:
    words: list[str] = []
    if via is not None:
        words.append(f"via {via}" if via.version == dst.version else f"via inet{'6' * (via.version == 6)} {via}")
    if dev is not None:
        words.append(f"dev {names.get(dev, f'if{dev}')}")
    return words


# --- the wire -----------------------------------------------------------------------------------------------------


def forget_older(there: int) -> None:
    """So many routes have been listed: what was read of others before is forgotten, once that is most of it."""
    if decode.cache_info().currsize > 4 * there + SPARE:
        decode.cache_clear()


@lru_cache(maxsize=65536)  # the same table is listed over and over
def decode(payload: bytes) -> Route:
    """The route in the body of an RTM_NEWROUTE or RTM_DELROUTE message; the same one for the same bytes."""
    values = ROUTE.unpack(payload)
    kind = ROUTE_TYPES.get(values["rtm_type"], "unicast")
    hops = tuple(_nexthop(hop) for hop in values.get("multipath", ()))
    scope = values["rtm_scope"]
    src = values.get("prefsrc")
    return Route(
        dst=_net(values["rtm_family"], values.get("dst", ""), values["rtm_dst_len"]),
        via=_via(values),
        dev=None if kind in _DISCARDS else values.get("oif"),
        table=values.get("table", values["rtm_table"]),
        protocol=values["rtm_protocol"],
        scope=SCOPES.get(scope, str(scope)),
        metric=values.get("priority", 0),
        type=kind,
        onlink=bool(values["rtm_flags"] & RTNH_F_ONLINK) and not hops,
        src=parse_ip(src) if src else None,
        mtu=values.get("metrics", {}).get("mtu", 0),
        nexthops=hops,
    )


def _net(family: int, address: str, length: int) -> Net:
    if address and length == (128 if family == AF_INET6 else 32):
        return host_net(parse_ip(address))
    if family == AF_INET6:
        return IPv6Network((address or "::", length))
    return IPv4Network((address or "0.0.0.0", length))


def _via(values: Mapping[str, Any]) -> IP | None:
    text = values.get("gateway") or values.get("via")
    return parse_ip(text) if text else None


def _nexthop(values: Mapping[str, Any]) -> Nexthop:
    return Nexthop(
        via=_via(values),
        dev=values["rtnh_ifindex"] or None,
        weight=values["rtnh_hops"] + 1,
        onlink=bool(values["rtnh_flags"] & RTNH_F_ONLINK),
    )


def _via_values(dst: Net, via: IP | None) -> dict[str, str]:
    """The next hop: RTA_GATEWAY, or RTA_VIA when it is of the other family (RFC 5549)."""
    if via is None:
        return {}
    return {"gateway" if via.version == dst.version else "via": str(via)}


def encode(route: Route) -> bytes:
    """The body of a message about the route."""
    v6 = route.dst.version == 6
    values: dict[str, Any] = {
        "rtm_family": AF_INET6 if v6 else AF_INET,
        "rtm_dst_len": route.dst.prefixlen,
        "rtm_table": route.table if route.table < 256 else RT_TABLE_COMPAT,
        "rtm_protocol": route.protocol,
        "rtm_scope": scope_number(route.scope),
        "rtm_type": ROUTE_TYPE_NUMBERS[route.type],
        "rtm_flags": RTNH_F_ONLINK if route.onlink else 0,
        "dst": str(route.dst.network_address) if route.dst.prefixlen else None,
        **_via_values(route.dst, route.via),
        "oif": route.dev,
        "table": route.table,
        "priority": route.metric or (_IPV6_METRIC if v6 else None),
        "prefsrc": None if route.src is None else str(route.src),
        "metrics": {"mtu": route.mtu} if route.mtu else None,
    }
    if route.nexthops:
        values["multipath"] = [
            {
                **_via_values(route.dst, hop.via),
                "rtnh_ifindex": hop.dev or 0,
                "rtnh_hops": hop.weight - 1,
                "rtnh_flags": RTNH_F_ONLINK if hop.onlink else 0,
            }
            for hop in route.nexthops
        ]
    return ROUTE.pack(values)


# --- asking and changing ------------------------------------------------------------------------------------------


def lookup(nl: Netlink, source: IP | None, destination: IP, dev: int = 0, mark: int = 0) -> Route:
    """The route that a packet would take now: one that comes in by the link with index `dev`, or the host's own.

    Raises KernelError in the kernel's words where there is none, or where it would be an `unreachable` or the like.
    """
    values = {
        "rtm_family": AF_INET if destination.version == 4 else AF_INET6,
        "rtm_dst_len": destination.max_prefixlen,
        "rtm_src_len": source.max_prefixlen if source is not None else 0,
        "rtm_flags": RTM_F_FIB_MATCH,
        "dst": str(destination),
        "src": str(source) if source is not None else None,
        "iif": dev or None,
        "mark": mark or None,
    }
    doing = f"ip route get fibmatch {destination}{f' from {source}' if source else ''}{f' iif if{dev}' if dev else ''}"
    answers = nl.request(RTM_GETROUTE, 0, ROUTE.pack(values), doing)
    return next(decode(message.payload) for message in answers if message.type == RTM_NEWROUTE)


def list_routes(
    nl: Netlink,
    family: int,
    table: int | None = None,
    protocol: int | None = None,
    dev: int | None = None,
    without: int | None = None,
) -> list[Route]:
    """The routes of a family (AF_INET, AF_INET6), of all tables unless told; the kernel chooses where it can.

    Those of the protocol `without` are passed over unread: the kernel's own are many and seldom of interest.
    """
    body = ROUTE.pack(
        {
            "rtm_family": family,
            "rtm_protocol": protocol or 0,
            "rtm_table": table if table is not None and table < 256 else 0,
            "table": table,
            "oif": dev,
        }
    )
    doing = f"ip {'-6 ' if family == AF_INET6 else ''}route show table {'all' if table is None else table}"
    try:
        return list(_matching(nl, body, doing, family, table, protocol, dev, without))
    except KernelError as why:
        if why.errno in (errno.ENOENT, errno.ENODEV):  # no such table, no such link
            return []
        raise


def _matching(
    nl: Netlink,
    body: bytes,
    doing: str,
    family: int,
    table: int | None,
    protocol: int | None,
    dev: int | None,
    without: int | None,
) -> Iterator[Route]:
    # An IPv6 dump goes on by counting entries when its table changes, so it misses some, and does not tell.
    watch = RTNLGRP_IPV6_ROUTE if family == AF_INET6 else 0
    for message in nl.dump(RTM_GETROUTE, body, doing, watch=watch):
        if message.type != RTM_NEWROUTE:
            continue
        made_by, flags = _RTMSG.unpack_from(message.payload)
        if flags & RTM_F_CLONED or made_by == without or protocol not in (None, made_by):
            continue
        route = decode(message.payload)
        if table not in (None, route.table):
            continue
        if dev is None or route.dev == dev or any(hop.dev == dev for hop in route.nexthops):
            yield route


@dataclass(frozen=True, slots=True)
class _Step:
    """What is done to a route, in words that are put together only when it fails."""

    verb: str
    route: Route

    def __str__(self) -> str:
        return f"ip {'-6 ' if self.route.dst.version == 6 else ''}route {self.verb} {self.route}"


def _request(verb: str, route: Route) -> Request:
    type_, flags = _REQUESTS[verb]
    step = _Step(verb, route)
    try:
        return Request(type_, flags, encode(route), step)
    except ValueError as why:
        raise ConfigError(str(why), str(step)) from None


def _one(nl: Netlink, verb: str, route: Route) -> None:
    request = _request(verb, route)
    try:
        nl.request(request.type, request.flags, request.payload, request.doing)
    except KernelError as why:
        if why.errno == errno.EEXIST:
            raise Exists(str(why)) from None
        if why.errno == errno.ESRCH:
            raise NotFound(str(why)) from None
        raise


def add_route(nl: Netlink, route: Route) -> None:
    """Adds a route. Raises Exists when there is one to this destination with this metric in the table."""
    _one(nl, "add", route)


def replace_route(nl: Netlink, route: Route) -> None:
    """Adds a route in the place of whatever led to this destination with this metric, in one step of the kernel."""
    _one(nl, "replace", route)


def delete_route(nl: Netlink, route: Route) -> None:
    """Deletes this route. Raises NotFound. IPv4 without a metric stands for the one with the least, as in `ip`."""
    _one(nl, "delete", route)


def apply_many(nl: Netlink, steps: Iterable[tuple[str, Route]]) -> list[tuple[int, KernelError]]:
    """Does many (verb, route) in order, verbs "add", "replace", "delete"; (index, error) of those that failed."""
    requests: Sequence[Request] = [_request(verb, route) for verb, route in steps]
    return nl.batch(requests)
