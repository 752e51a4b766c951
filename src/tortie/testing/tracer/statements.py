"""What a rule does once it matches. A new statement is a function and a line in the table at the end.

What depends on how much has passed before is taken as not too much: a traced packet is within every limit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tortie.testing.tracer.datatypes import INET_SERVICE, IPV4_ADDR, IPV6_ADDR, DataType
from tortie.testing.tracer.elements import Verdict
from tortie.testing.tracer.fields import FIELDS, WRITES, Read, field
from tortie.testing.tracer.flight import Flight
from tortie.testing.tracer.matches import Step, elements, joined, operand
from tortie.testing.tracer.words import Words

_LOG_OPTIONS = ("prefix", "group", "level", "snaplen", "queue-threshold", "flags")
_NAT_FLAGS = ("random", "fully-random", "persistent")
_PASSED = Verdict("accept")
_SUMS: tuple[tuple[str, Callable[[int, int], int]], ...] = (
    ("|", lambda left, right: left | right),
    ("^", lambda left, right: left ^ right),
    ("&", lambda left, right: left & right),
)
"""From the loosest to the tightest."""


def _go_on(flight: Flight) -> bool:
    return True


def _never(flight: Flight) -> bool:
    return False


def verdict(word: str) -> Callable[[Words], Step]:
    def parse(words: Words) -> Step:
        found = Verdict(word, words.take() if word in ("jump", "goto") else "")
        return lambda flight: found

    return parse


def _reject(words: Words) -> Step:
    if words.skip("with"):
        words.take()  # what the sender is told: tcp reset, icmp type X, icmpx X
        if words.take() == "type":
            words.take()
    found = Verdict("reject")
    return lambda flight: found


def _log(words: Words) -> Step:
    while words.next in _LOG_OPTIONS:
        words.take()
        words.take()
        while words.skip(","):
            words.take()
    return _go_on


def _limit(words: Words) -> Step:
    words.need("rate")
    over = words.skip("over")
    rate = words.take()
    if "/" not in rate:
        rate = words.take()
    if words.skip("burst"):
        words.take()
        words.take()
    return _never if over else _go_on


def _connections(words: Words) -> Step:
    """`ct count [over] N`."""
    over = words.skip("over")
    words.take()
    return _never if over else _go_on


def _notrack(words: Words) -> Step:
    def step(flight: Flight) -> bool:
        flight.notrack()
        return True

    return step


def _assign(name: str) -> Callable[[Words], Step]:
    """`meta mark set ...`."""
    attribute, kind = WRITES[name], FIELDS[name].kind

    def parse(words: Words) -> Step:
        read = value(words, kind)

        def step(flight: Flight) -> bool:
            found = read(flight)
            if found is None:
                return False
            setattr(flight, attribute, found)
            return True

        return step

    return parse


def value(words: Words, kind: DataType, level: int = 0) -> Read:
    """Numbers, fields and maps, joined by | ^ and &, of which & binds tightest."""
    if level == len(_SUMS):
        return _term(words, kind)
    sign, combine = _SUMS[level]
    read = value(words, kind, level + 1)
    while words.skip(sign):
        read = _combined(combine, read, value(words, kind, level + 1))
    return read


def _combined(combine: Callable[[int, int], int], left: Read, right: Read) -> Read:
    def read(flight: Flight) -> int | None:
        one, other = left(flight), right(flight)
        return None if one is None or other is None else combine(one, other)

    return read


def _term(words: Words, kind: DataType) -> Read:
    if words.skip("("):
        inner = value(words, kind)
        words.need(")")
        return inner
    found = field(words)
    if found is None:
        constant = kind.scalar(words.take())
        return lambda flight: constant
    fields = [found]
    while words.skip("."):
        fields.extend(operand(words))
    read = joined(fields)
    if not words.skip("map"):
        return read
    find = elements(words, tuple(one.kind for one in fields), kind)

    def mapped(flight: Flight) -> Any:
        key = read(flight)
        return None if key is None else find(flight).find(key)

    return mapped


def _nat(end: str) -> Callable[[Words], Step]:
    """`dnat ip to ip daddr map @floating4`, `snat ip to 192.0.2.1`."""

    def parse(words: Words) -> Step:
        family = words.take() if words.next in ("ip", "ip6") else ""
        words.need("to")
        kind = IPV6_ADDR if family == "ip6" else IPV4_ADDR
        read, port = _nat_target(words, kind)
        _nat_flags(words)
        version = 6 if family == "ip6" else 4

        def step(flight: Flight) -> bool | Verdict:
            found = read(flight) if flight.version == version else None
            if found is None:
                return False
            flight.translate(**{end: found}, port=port)
            return _PASSED

        return step

    return parse


def _nat_target(words: Words, kind: DataType) -> tuple[Read, int | None]:
    """An address, with a port perhaps, or what a map gives."""
    target, colon, port = words.next.rpartition(":")
    if kind is IPV4_ADDR and colon:
        words.take()
        constant = kind.scalar(target)
        return (lambda flight: constant), int(INET_SERVICE.scalar(port))
    return value(words, kind), None


def _masquerade(words: Words) -> Step:
    if words.skip("to"):
        words.take()  # the range of ports
    _nat_flags(words)

    def step(flight: Flight) -> Verdict:
        mine = flight.host.own(flight.oif, flight.version)
        flight.translate(source=flight.saddr if mine is None else int(mine))
        return _PASSED

    return step


def _nat_flags(words: Words) -> None:
    while words.next in _NAT_FLAGS:
        words.take()
        words.skip(",")


STATEMENTS: dict[str, Callable[[Words], Step]] = {
    **{word: verdict(word) for word in ("accept", "drop", "return", "jump", "goto", "continue")},
    "reject": _reject,
    "log": _log,
    "limit": _limit,
    "ct count": _connections,
    "notrack": _notrack,
    **{f"{name} set": _assign(name) for name in WRITES},
    "dnat": _nat("destination"),
    "snat": _nat("source"),
    "masquerade": _masquerade,
}
"""`counter` and `comment` concern the rule as a whole: see `rule`."""
