"""Address plugins: ranges, gateways and routes that fit together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tortie.cni import span
from tortie.cni.validate.calico import POD_CIDRS
from tortie.cni.validate.fields import get, has, list_of, network, objects_of, text_of
from tortie.cni.validate.findings import Report
from tortie.cni.validate.text import Document, Path

LINK_SCOPE = 253  # RT_SCOPE_LINK (linux/rtnetlink.h)
OFF_LINK = ("calico", "ptp")
"""Types whose pods reach any gateway, whatever subnet it is in."""


@dataclass(frozen=True, slots=True)
class Range:
    """A range of host-local that can be used: its subnet, and the addresses from it, where it stands."""

    path: Path
    subnet: span.Cidr
    span: span.Span

    @property
    def family(self) -> str:
        return self.subnet.ip.family


@dataclass(frozen=True, slots=True)
class Subnets:
    """What pods get: subnets with their gateways ("" for none), and families of which nothing more is known."""

    known: tuple[tuple[span.Cidr, str], ...] = ()
    unknown: frozenset[str] = frozenset()

    @property
    def families(self) -> list[str]:
        return [subnet.ip.family for subnet, _ in self.known] + sorted(self.unknown)


def host_local(report: Report, path: Path, ipam: Mapping[str, Any], kind: str, mode: str, ips: bool) -> Subnets:
    """`kind` and `mode` are the interface plugin's; `ips`: a runtime may hand over ranges besides."""
    sets = list(_sets(path, ipam))
    found: list[Range] = []
    subnets: list[tuple[span.Cidr, str]] = []
    podcidrs: set[str] = set()
    if not sets and not ips:
        report.error(path, "no IP ranges specified: neither subnet nor ranges")
    for where, ranges in sets:
        if not ranges:
            report.error(where, "empty range set")
        for inner, conf in ranges:
            word = text_of(conf, "subnet")
            if kind == "calico" and word in POD_CIDRS:
                podcidrs.add(POD_CIDRS[word])
                continue
            one = _range(report, inner, conf)
            if one is not None:
                found.append(one)
                subnets.append((one.subnet, _gateway(report, inner, conf, one, kind, mode)))
        families = {one.family for one in found if one.path[: len(where)] == where}
        if len(families) > 1:
            report.error(where, "mixed address families: a range set has one, and yields one address")
    _overlaps(report, found)
    used = Subnets(tuple(subnets), frozenset(podcidrs))
    _routes(report, path, ipam, used, kind)
    return used


def ranges_of(path: Path, ipam: Mapping[str, Any]) -> Iterator[Range]:
    """The ranges that are right, without a word about others."""
    silent = Report("", Document())
    for _, ranges in _sets(path, ipam):
        for inner, conf in ranges:
            found = _range(silent, inner, conf)
            if found is not None:
                yield found


def _sets(path: Path, ipam: Mapping[str, Any]) -> Iterator[tuple[Path, list[tuple[Path, Mapping[str, Any]]]]]:
    """Range sets with where they stand: the single range of `subnet` first."""
    if text_of(ipam, "subnet"):
        yield path, [(path, ipam)]
    for index, listed in enumerate(list_of(ipam, "ranges")):
        where = (*path, "ranges", index)
        if isinstance(listed, list):
            yield where, [((*where, i), one) for i, one in enumerate(listed) if isinstance(one, dict)]


def _range(report: Report, path: Path, conf: Mapping[str, Any]) -> Range | None:
    """The range if it is one. What is wrong with an address alone is told with the field."""
    word = text_of(conf, "subnet")
    if not word:
        if not has(conf, "subnet") or get(conf, "subnet", str) == "":
            report.error(path, "a range must have a subnet")
        return None
    where = (*path, "subnet")
    if why := network(word):
        report.error(where, why)
        return None
    subnet = span.cidr(word)
    try:
        start, end = (span.ip(text) if (text := text_of(conf, key)) else None for key in ("rangeStart", "rangeEnd"))
    except ValueError:
        return None
    if subnet.length > subnet.bits - 2:
        report.error(where, f"{word} is too small to allocate from: a /{subnet.bits - 2} is the smallest")
        return None
    good = True
    for key, one in (("rangeStart", start), ("rangeEnd", end)):
        if one is not None and one not in subnet:
            report.error((*path, key), f"{one} is not in the subnet {subnet}")
            good = False
    if start is not None and end is not None and good and start.number > end.number:
        report.error((*path, "rangeStart"), f"{start} is behind rangeEnd, {end}")
        good = False
    last = subnet.last if subnet.bits == 128 else subnet.last.plus(-1)
    return Range(path, subnet, span.Span(start or subnet.network.plus(1), end or last)) if good else None


def _gateway(report: Report, path: Path, conf: Mapping[str, Any], one: Range, kind: str, mode: str) -> str:
    """The gateway, the first address if none is named."""
    word = text_of(conf, "gateway")
    if not word:
        return str(one.subnet.network.plus(1))
    if not span.is_ip(word):
        return ""
    gateway = span.ip(word)
    where = (*path, "gateway")
    if gateway.bits != one.subnet.bits:
        report.error(where, f"{gateway} is of another family than the subnet {one.subnet}")
    elif gateway not in one.subnet and kind not in OFF_LINK:
        if kind == "ipvlan" and mode in ("l3", "l3s"):
            report.warning(where, f"{gateway} is not in the subnet {one.subnet}: routes through it are refused")
        else:
            report.error(where, f"{gateway} is not in the subnet {one.subnet}: pods cannot reach it")
    elif one.span.size == 1 and gateway in one.span:
        report.error(where, f"{gateway} is the range's only address: none is left for pods")
    elif gateway == one.subnet.network and gateway.bits == 32:
        report.error(where, f"{gateway} is the address of the subnet itself")
    return str(gateway)


def _overlaps(report: Report, ranges: list[Range]) -> None:
    for index, one in enumerate(ranges):
        for other in ranges[:index]:
            if one.span.overlaps(other.span):
                report.error((*one.path, "subnet"), f"the ranges {other.span} and {one.span} overlap")


def static(report: Report, path: Path, ipam: Mapping[str, Any], kind: str, ips: bool) -> Subnets:
    subnets: list[tuple[span.Cidr, str]] = []
    for index, one in objects_of(ipam, "addresses"):
        where = (*path, "addresses", index)
        word, gateway = text_of(one, "address"), text_of(one, "gateway")
        if not word:
            report.error(where, "an address must be there, such as 10.1.2.3/24")
            continue
        try:
            subnet, near = span.cidr(word), span.ip(gateway) if gateway else None
        except ValueError:
            continue
        subnets.append((subnet, gateway))
        if near is not None and near not in subnet and kind not in OFF_LINK:
            report.error((*where, "gateway"), f"{near} is not in the network of {subnet}: pods cannot reach it")
    if not subnets and not ips:
        report.warning(path, "no addresses: only CNI_ARGS or args can give pods any")
    used = Subnets(tuple(subnets))
    _routes(report, path, ipam, used, kind)
    return used


def _on_link(ipam: Mapping[str, Any]) -> Iterator[span.Cidr]:
    """Destinations that pods reach without a gateway."""
    for _, route in objects_of(ipam, "routes"):
        dst = text_of(route, "dst")
        if get(route, "scope", int) == LINK_SCOPE and not network(dst):
            yield span.cidr(dst)


def _routes(report: Report, path: Path, ipam: Mapping[str, Any], used: Subnets, kind: str) -> None:
    """Routes without an address of their family, or through what no pod can reach."""
    for index, route in objects_of(ipam, "routes"):
        where = (*path, "routes", index)
        dst, via = text_of(route, "dst"), text_of(route, "gw")
        if not dst:
            report.error(where, "a route must have a destination, dst")
            continue
        if not used.families:
            continue
        family = "6" if ":" in dst else "4"
        if family not in used.families:
            report.error((*where, "dst"), f"pods have no IPv{family} address: the route {dst} cannot be added")
            continue
        if not span.is_ip(via) or used.unknown or kind in OFF_LINK:
            continue
        near = span.ip(via)
        if near.family != family:
            report.error((*where, "gw"), f"{via} is of another family than {dst}")
        elif not any(near in subnet for subnet in (*(subnet for subnet, _ in used.known), *_on_link(ipam))):
            report.error((*where, "gw"), f"{via} is in no subnet of the pods: they cannot reach it")
