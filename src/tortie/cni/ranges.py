"""Ranges of addresses as host-local is told of them: read, checked, and walked through.

    ipam.subnet, ipam.ranges, runtimeConfig.ipRanges ─► range sets, each of which yields one address ─► next_free

Nothing is listed: what is asked of a range costs by what is taken of it. Pure.
"""

from __future__ import annotations

from tortie.base.record import record
from tortie.cni.ipam import check_families, failed
from tortie.cni.result import Address
from tortie.cni.span import Cidr, Ip, Span, cidr, ip
from tortie.cni.spec import Call, member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence, Set
    from typing import Any


@record(frozen=True, slots=True)
class Range:
    """Addresses of a subnet, from the first to the last of `span`, and its gateway, which is never given out."""

    subnet: Cidr
    span: Span
    gateway: Ip

    @property
    def room(self) -> int:
        """How many addresses there are to give out."""
        return self.span.size - (self.gateway in self.span)

    def give(self, address: Ip) -> Address:
        return Address(f"{address}/{self.subnet.length}", str(self.gateway))


RangeSet = tuple[Range, ...]


def read_range(conf: Mapping[str, Any]) -> Range:
    """A range with what it does not say filled in. Raises ValueError, CniError."""
    subnet, given = _written(conf)
    if subnet.length > subnet.bits - 2:
        raise ValueError(f"Network {subnet} too small to allocate from")
    if subnet.has_host_bits:
        why = f"For a subnet mask of length {subnet.length} the network address is {subnet.network}"
        raise ValueError(f"Network has host bits set. {why}")
    first, last = given["rangeStart"], given["rangeEnd"]
    usual_last = subnet.last if subnet.bits == 128 else subnet.last.plus(-1)
    if first is not None and (first not in subnet or first.number > (last or usual_last).number):
        raise ValueError(f"RangeStart {first} not in network {subnet}")
    first = first or subnet.ip.plus(1)
    if last is not None and (last not in subnet or last.number < first.number):
        raise ValueError(f"RangeEnd {last} not in network {subnet}")
    return Range(subnet, Span(first, last or usual_last), given["gateway"] or subnet.ip.plus(1))


def _written(conf: Mapping[str, Any]) -> tuple[Cidr, dict[str, Ip | None]]:
    """What a range says of itself. Raises ValueError without a subnet, CniError for what cannot be read."""
    keys = ("rangeStart", "rangeEnd", "gateway")
    subnet, *texts = (member(conf, key, str, "") for key in ("subnet", *keys))
    if not subnet:
        raise ValueError("a range needs a subnet")
    try:
        return cidr(subnet), {key: ip(text) if text else None for key, text in zip(keys, texts, strict=True)}
    except ValueError as error:
        raise failed(str(error)) from None


def read_set(conf: Sequence[Any]) -> RangeSet:
    """A range set. Raises ValueError, CniError."""
    if not conf:
        raise ValueError("empty range set")
    found = tuple(read_range(each) for each in conf)
    if len({each.subnet.bits for each in found}) > 1:
        raise ValueError("mixed address families")
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            if one.span.overlaps(other.span):
                raise ValueError(f"subnets {one.span} and {other.span} overlap")
    return found


def read_sets(call: Call, ipam: Mapping[str, Any]) -> list[RangeSet]:
    """The range sets: the runtime's, the single old-style one, those of `ranges`. Raises CniError."""
    runtime = member(member(call.conf, "runtimeConfig", dict, {}), "ipRanges", list, [])
    single = [[ipam]] if member(ipam, "subnet", str, "") else []
    sets: list[RangeSet] = []
    for i, conf in enumerate([*runtime, *single, *member(ipam, "ranges", list, [])]):
        if type(conf) is not list or not all(type(each) is dict for each in conf):
            raise failed(f"failed to load netconf: range set {i} is not a list of objects")
        try:
            sets.append(read_set(conf))
        except ValueError as error:
            raise failed(f"invalid range set {i}: {error}") from None
    if not sets:
        raise failed("no IP ranges specified")
    check_families(call, (each[0].span.first.family for each in sets))
    for i, one in enumerate(sets):
        for j, other in enumerate(sets[i + 1 :], i + 1):
            if any(a.span.overlaps(b.span) for a in one for b in other):
                raise failed(f"range set {i} overlaps with {j}")
    return sets


def range_of(ranges: RangeSet, address: Ip) -> Range | None:
    return next((each for each in ranges if address in each.span), None)


def following(ranges: RangeSet, last: Ip | None) -> Iterator[tuple[Range, Span]]:
    """The addresses of a set in the order in which they are tried: on from the one behind `last`, all around."""
    at = next((i for i, each in enumerate(ranges) if last is not None and last in each.span), None)
    if at is None or last is None:
        yield from ((each, each.span) for each in ranges)
        return
    here = ranges[at]
    yield here, Span(last.plus(1), here.span.last) if last != here.span.last else Span(last, last.plus(-1))
    yield from ((each, each.span) for each in (*ranges[at + 1 :], *ranges[:at]))
    yield here, Span(here.span.first, last)


def next_free(ranges: RangeSet, taken: Set[str], last: Ip | None) -> tuple[Range, Ip] | None:
    """The next address that is neither in `taken` (texts) nor a gateway. Costs by the number of those that are."""
    for one, span in following(ranges, last):
        number = span.first.number
        while number <= span.last.number:
            candidate = Ip(number, span.first.bits)
            if candidate != one.gateway and str(candidate) not in taken:
                return one, candidate
            number += 1
    return None


def shown(ranges: RangeSet) -> str:
    return ",".join(str(each.span) for each in ranges)
