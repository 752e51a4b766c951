"""What the configuration says of DHCP: which options are sent, which are asked for, and what the answer makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tortie.cni.dhcp.lease import Terms
from tortie.cni.dhcp.wire import Option
from tortie.cni.ipam import failed
from tortie.cni.result import Address, Dns, Result, Route
from tortie.cni.spec import Call, load_args, member, quote

NAMES = {
    "dhcp-client-identifier": Option.CLIENT_ID,
    "host-name": Option.HOST_NAME,
    "routers": Option.ROUTERS,
    "subnet-mask": Option.SUBNET_MASK,
    "user-class": Option.USER_CLASS,
    "vendor-class-identifier": Option.VENDOR_CLASS,
}
"""As dhcp-options(5) has them."""

ALWAYS = (Option.ROUTERS, Option.SUBNET_MASK)
LONGEST_ID = 254
LINK_SCOPE = 253  # linux/rtnetlink.h


@dataclass(frozen=True, slots=True)
class Wishes:
    """`provide`: options to send; `request`: options to ask for; `priority`: the metric of the routes, 0 for none."""

    provide: Mapping[int, bytes] = field(default_factory=dict)
    request: tuple[int, ...] = ALWAYS
    priority: int = 0


def client_id(container: str, network: str, ifname: str) -> str:
    """Who the lease is for. It is what tells pods with one MAC address apart."""
    return f"{container}/{network}/{ifname}"[:LONGEST_ID]


def code(name: str) -> int:
    """An option by its name or number. Raises CniError."""
    if name in NAMES:
        return NAMES[name]
    if name.isascii() and name.isdigit() and int(name) < Option.END:
        return int(name)
    raise failed(f"can not parse option {quote(name)}: it is neither a number nor one of {', '.join(NAMES)}")


def wishes(call: Call) -> Wishes:
    """Raises CniError."""
    ipam = member(call.conf, "ipam", dict, {})
    provide: dict[int, bytes] = {}
    for each in _objects(ipam, "provide"):
        number, value = code(member(each, "option", str, "")), member(each, "value", str, "")
        if name := member(each, "fromArg", str, ""):
            value = _argument(call, name) or value
        if len(value.encode()) > 255:
            raise failed(f"value too long for option {quote(member(each, 'option', str, ''))}")
        if value:
            provide[number] = value.encode()
    request: list[int] = []
    skip = False
    for each in _objects(ipam, "request"):
        skip = skip or member(each, "skipDefault", bool, False)
        if name := member(each, "option", str, ""):
            request.append(code(name))
    request = [*request, *(() if skip else ALWAYS)]
    return Wishes(provide, tuple(dict.fromkeys(request)), member(ipam, "priority", int, 0))


def _objects(ipam: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found: list[Any] = member(ipam, key, list, [])
    if not all(isinstance(each, dict) for each in found):
        raise failed(f"failed to load netconf: {key} is not a list of objects")
    return found


def _argument(call: Call, name: str) -> str:
    """One of CNI_ARGS; all others are somebody else's. Raises CniError for what are no pairs."""
    return load_args(f"IgnoreUnknown=1;{call.args_text}" if call.args_text else "", (name,)).get(name, "")


def result(terms: Terms, priority: int = 0) -> Result:
    """What ADD answers for a lease. A gateway of 0.0.0.0 means that the destination is on the link."""
    routes = tuple(
        Route(dst, "", priority=priority, scope=LINK_SCOPE) if gw == "0.0.0.0" else Route(dst, gw, priority=priority)
        for dst, gw in terms.routes
    )
    dns = Dns(nameservers=terms.dns, domain=terms.domain)
    return Result(ips=(Address(f"{terms.address}/{terms.length}", terms.gateway),), routes=routes, dns=dns)
