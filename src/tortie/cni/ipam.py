"""What the address plugins have in common: their part of the configuration, its routes, and asking for addresses.

Source: plugins/ipam of the CNI reference plugins, whose texts the errors are.
"""

from __future__ import annotations

import errno
import os

from tortie.cni.result import Dns, Result, Route
from tortie.cni.span import cidr, ip
from tortie.cni.spec import Call, CniError, at_least, lookup, member
from tortie.cni.spec import failed as failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any


def reason(error: OSError) -> str:
    """What the kernel said, in Go's letters: `no such file or directory`."""
    return os.strerror(error.errno or errno.EIO).lower()


def section(call: Call) -> Mapping[str, Any]:
    """`ipam` of the configuration. Raises CniError when there is none."""
    found = member(call.conf, "ipam", dict, None)
    if found is None:
        raise failed("IPAM config missing 'ipam' key")
    return found


def routes(ipam: Mapping[str, Any]) -> tuple[Route, ...]:
    """`routes` as they are to be returned. Raises CniError for a destination or gateway that is none."""
    try:
        found = Result.load({"cniVersion": "1.0.0", "routes": member(ipam, "routes", list, [])}).routes
    except CniError as error:
        raise failed(f"failed to load netconf: {error.msg}") from None
    try:
        return tuple(_canonical(each) for each in found)
    except ValueError as error:
        raise failed(str(error)) from None


def _canonical(route: Route) -> Route:
    dst, gw = str(cidr(route.dst)), str(ip(route.gw)) if route.gw else ""
    return Route(dst, gw, route.mtu, route.advmss, route.priority, route.table, route.scope, route.extra)


def strings(conf: Mapping[str, Any], key: str) -> list[str]:
    """A list of strings, empty if it is not there. Raises CniError for anything else."""
    found: list[Any] = member(conf, key, list, [])
    for each in found:
        if type(each) is not str:
            raise failed(f"failed to load netconf: json: cannot unmarshal {each!r} into field {key} of type string")
    return found


def wished(call: Call) -> tuple[list[str], list[str]]:
    """The addresses asked for in `args.cni.ips` and in `runtimeConfig.ips`, as they are written. Raises CniError."""
    cni = member(member(call.conf, "args", dict, {}), "cni", dict, {})
    return strings(cni, "ips"), strings(member(call.conf, "runtimeConfig", dict, {}), "ips")


def check_families(call: Call, families: Iterable[str]) -> None:
    """Raises CniError when the version has no room for two addresses of a family ("4" or "6")."""
    listed = list(families)
    if len(listed) > len(set(listed)) and not at_least(call.cni_version, "0.3.0"):
        version = lookup(call.conf, "cniVersion", "")
        raise failed(f"CNI version {version} does not support more than 1 address per family")


def read_resolv_conf(path: str) -> Dns:
    """resolv.conf(5): name servers, search lists and options add up, of domains the last one counts."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file if not line.startswith(("#", ";"))]
    except OSError as error:
        raise failed(f"open {path}: {reason(error)}") from None
    words = [each for each in lines if len(each) > 1]
    return Dns(
        nameservers=tuple(each[1] for each in words if each[0] == "nameserver"),
        domain=next((each[1] for each in reversed(words) if each[0] == "domain"), ""),
        search=tuple(word for each in words if each[0] == "search" for word in each[1:]),
        options=tuple(word for each in words if each[0] == "options" for word in each[1:]),
    )
