"""Routes and rules of one destination each, with addresses as text: for programs whose start somebody waits for.

`routes` and `rules` say more and compare what they say, with objects of `ipaddress`; to import that takes a plugin as
long as to start Python. What a CIDR's host bits are is left to the kernel, which refuses them.
"""

from __future__ import annotations

import errno

from tortie.base.errors import Exists, KernelError, NotFound
from tortie.base.record import record
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.codec import NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE
from tortie.kernel.netlink.tables import (
    AF_INET,
    AF_INET6,
    ROUTE,
    ROUTE_TYPE_NUMBERS,
    ROUTE_TYPES,
    RT_TABLE_COMPAT,
    RT_TABLE_MAIN,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_F_CLONED,
    RTM_GETROUTE,
    RTM_GETRULE,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    RTNH_F_ONLINK,
    RTPROT_BOOT,
    RULE,
    RULE_ACTION_NUMBERS,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

UNIVERSE, LINK, HOST = 0, 253, 254
"""Scopes, as numbers: rtmsg.rtm_scope (linux/rtnetlink.h)."""

HOW = {
    "add": NLM_F_CREATE | NLM_F_EXCL,
    "append": NLM_F_CREATE | NLM_F_APPEND,
    "replace": NLM_F_CREATE | NLM_F_REPLACE,
}


@record(frozen=True, slots=True)
class PlainRoute:
    """A route by `dst` (`10.0.0.0/8`, `0.0.0.0/0`, `fd00::/64`), out of the link with index `dev`, through `via`.

    "" and 0 mean none, or the kernel's choice: its metric, the main table; `scope` None is link without a gateway and
    global with one, as ip(8) has it. Of a route with several ways `dev` and `via` are 0 and "".
    """

    dst: str
    dev: int = 0
    via: str = ""
    src: str = ""
    metric: int = 0
    table: int = RT_TABLE_MAIN
    scope: int | None = None
    mtu: int = 0
    advmss: int = 0
    protocol: int = RTPROT_BOOT
    type: str = "unicast"
    onlink: bool = False

    @property
    def family(self) -> int:
        return AF_INET6 if ":" in self.dst else AF_INET

    def __str__(self) -> str:
        words = ["-6 route" if self.family == AF_INET6 else "route", self.dst]
        words += [f"via {self.via}"] if self.via else []
        words += [f"dev if{self.dev}"] if self.dev else []
        words += [f"src {self.src}"] if self.src else []
        words += [f"metric {self.metric}"] if self.metric else []
        words += [f"table {self.table}"] if self.table != RT_TABLE_MAIN else []
        return " ".join(words)


@record(frozen=True, slots=True)
class PlainRule:
    """A rule that sends packets of `src` (a CIDR, "" for all) to a routing table."""

    table: int
    src: str = ""
    priority: int | None = None
    family: int = AF_INET


def add_route(nl: Netlink, route: PlainRoute, how: str = "add") -> None:
    """`how` is `add`, `append` or `replace`, as with ip(8). Raises Exists, KernelError."""
    _change(nl, RTM_NEWROUTE, HOW[how], _values(route), f"ip {_verb(route, how)}")


def delete_route(nl: Netlink, route: PlainRoute) -> None:
    """Deletes the route that agrees with all that is said. Raises NotFound."""
    values = _values(route)
    if route.scope is None:
        values["rtm_scope"] = 255  # RT_SCOPE_NOWHERE: any
    values["rtm_protocol"] = 0 if route.protocol == RTPROT_BOOT else route.protocol
    _change(nl, RTM_DELROUTE, 0, values, f"ip {_verb(route, 'delete')}")


def list_routes(nl: Netlink, family: int, *, table: int = RT_TABLE_MAIN, dev: int = 0) -> list[PlainRoute]:
    """The routes of a table (0: of all), or those of them that leave through one link."""
    body = ROUTE.pack({"rtm_family": family, "table": table or None, "oif": dev or None})
    try:
        messages = list(nl.dump(RTM_GETROUTE, body, "ip route show"))
    except KernelError as why:
        if why.errno in (errno.ENOENT, errno.ENODEV):
            return []
        raise
    found = (_decode(ROUTE.unpack(each.payload)) for each in messages if each.type == RTM_NEWROUTE)
    return [each for each in found if each is not None and table in (0, each.table) and dev in (0, each.dev)]


def dev_to(nl: Netlink, ip: str) -> int:
    """The index of the link that a packet of this machine's to the address leaves by. Raises KernelError for none."""
    return way_to(nl, ip)[0]


def way_to(nl: Netlink, ip: str) -> tuple[int, str]:
    """The same with the address that the packet is sent from. Raises KernelError for none."""
    family, length = (AF_INET6, 128) if ":" in ip else (AF_INET, 32)
    values = {"rtm_family": family, "rtm_dst_len": length, "dst": ip}
    answers = nl.request(RTM_GETROUTE, 0, ROUTE.pack(values), f"ip route get {ip}")
    found = next(ROUTE.unpack(each.payload) for each in answers if each.type == RTM_NEWROUTE)
    return int(found.get("oif", 0)), str(found.get("prefsrc", ""))


def add_rule(nl: Netlink, rule: PlainRule) -> None:
    """Raises Exists."""
    _change(nl, RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, _rule_values(rule), f"ip rule add {_rule_words(rule)}")


def delete_rule(nl: Netlink, rule: PlainRule) -> None:
    """Raises NotFound."""
    _change(nl, RTM_DELRULE, 0, _rule_values(rule), f"ip rule delete {_rule_words(rule)}")


def list_rules(nl: Netlink, family: int) -> list[PlainRule]:
    found: list[PlainRule] = []
    for message in nl.dump(RTM_GETRULE, RULE.pack({"frh_family": family}), "ip rule show"):
        values = RULE.unpack(message.payload)
        src = values.get("src")
        found.append(
            PlainRule(
                table=values.get("table", values["frh_table"]),
                src=f"{src}/{values['frh_src_len']}" if src else "",
                priority=values.get("priority", 0),
                family=values["frh_family"],
            )
        )
    return found


def _verb(route: PlainRoute, verb: str) -> str:
    return str(route).replace("route ", f"route {verb} ", 1)


def _values(route: PlainRoute) -> dict[str, Any]:
    address, _, length = route.dst.partition("/")
    bits = 128 if ":" in address else 32
    if not length.isdecimal() or int(length) > bits:
        raise KernelError(errno.EINVAL, str(route), f"{route.dst} is not a CIDR")
    scope = route.scope if route.scope is not None else UNIVERSE if route.via or bits == 128 else LINK
    metrics = {"mtu": route.mtu or None, "advmss": route.advmss or None}
    return {
        "rtm_family": route.family,
        "rtm_dst_len": int(length),
        "rtm_table": route.table if route.table < 256 else RT_TABLE_COMPAT,
        "rtm_protocol": route.protocol,
        "rtm_scope": scope,
        "rtm_type": ROUTE_TYPE_NUMBERS[route.type],
        "rtm_flags": RTNH_F_ONLINK * route.onlink,
        "dst": address if int(length) else None,
        "gateway": route.via or None,
        "oif": route.dev or None,
        "prefsrc": route.src or None,
        "priority": route.metric or None,
        "table": route.table,
        "metrics": metrics if any(metrics.values()) else None,
    }


def _decode(values: Mapping[str, Any]) -> PlainRoute | None:
    """None for entries of a cache."""
    if values["rtm_flags"] & RTM_F_CLONED:
        return None
    metrics = values.get("metrics") or {}
    any_address = "::" if values["rtm_family"] == AF_INET6 else "0.0.0.0"
    return PlainRoute(
        dst=f"{values.get('dst', any_address)}/{values['rtm_dst_len']}",
        dev=values.get("oif", 0),
        via=values.get("gateway", ""),
        src=values.get("prefsrc", ""),
        metric=values.get("priority", 0),
        table=values.get("table", values["rtm_table"]),
        scope=values["rtm_scope"],
        mtu=metrics.get("mtu", 0),
        advmss=metrics.get("advmss", 0),
        protocol=values["rtm_protocol"],
        type=ROUTE_TYPES.get(values["rtm_type"], str(values["rtm_type"])),
        onlink=bool(values["rtm_flags"] & RTNH_F_ONLINK),
    )


def _rule_values(rule: PlainRule) -> dict[str, Any]:
    address, _, length = rule.src.partition("/")
    return {
        "frh_family": AF_INET6 if ":" in address else rule.family,
        "frh_src_len": int(length) if length else 0,
        "frh_table": rule.table if rule.table < 256 else RT_TABLE_COMPAT,
        "frh_action": RULE_ACTION_NUMBERS["lookup"],
        "src": address or None,
        "table": rule.table,
        "priority": rule.priority,
    }


def _rule_words(rule: PlainRule) -> str:
    return f"from {rule.src or 'all'} table {rule.table}"


def _change(nl: Netlink, type: int, flags: int, values: Mapping[str, Any], doing: str) -> None:
    try:
        nl.request(type, flags, (RULE if "frh_family" in values else ROUTE).pack(values), doing)
    except KernelError as why:
        if why.errno == errno.EEXIST:
            raise Exists(str(why)) from None
        if why.errno in (errno.ENOENT, errno.ESRCH, errno.ENODEV) and type in (RTM_DELROUTE, RTM_DELRULE):
            raise NotFound(str(why)) from None
        raise
