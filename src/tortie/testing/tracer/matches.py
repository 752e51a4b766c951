"""Comparisons: `ip saddr != @set`, `th dport { 80, 8000-8080 }`, `meta mark & 0x10000 == 0`, `iifname vmap @map`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from tortie.testing.tracer.datatypes import VERDICT, DataType, Span
from tortie.testing.tracer.elements import Elements, Verdict, datum
from tortie.testing.tracer.fields import Field, Read, field
from tortie.testing.tracer.flight import Flight
from tortie.testing.tracer.words import Words

Outcome = bool | Verdict
"""False: the rule does not match. True: on with its next step. A verdict: the rule ends with it."""
Step = Callable[[Flight], Outcome]
Find = Callable[[Flight], Elements]

_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge,
}  # fmt: skip


def match(words: Words) -> Step:
    """The comparison that comes next."""
    fields = list(operand(words))
    read, kinds = joined(fields), tuple(one.kind for one in fields)
    if words.skip("vmap"):
        return _verdict_map(read, elements(words, kinds, VERDICT))
    if words.skip("&"):
        return _masked(read, kinds[0], words)
    relation = words.take() if words.next in ("==", "!=", *_ORDER) else ""
    if relation in _ORDER:
        return _ordered(read, _ORDER[relation], kinds[0].scalar(words.take()))
    if words.next == "{" or words.next.startswith("@"):
        return _member(read, elements(words, kinds), relation != "!=")
    if kinds[0].bits:
        return _any_bit(read, _bits(words, kinds[0]), relation, words)
    spans = tuple(_literal(words, kinds))
    return _within(read, spans, relation != "!=")


def operand(words: Words) -> Iterator[Field]:
    """One field, or several joined by dots."""
    while True:
        found = field(words)
        if found is None:
            raise words.unknown("no expression that the tracer knows")
        yield found
        if not words.skip("."):
            return


def joined(fields: list[Field]) -> Read:
    """What they read together: None when one of them reads nothing."""
    if len(fields) == 1:
        return fields[0].read
    readers = [one.read for one in fields]

    def read(flight: Flight) -> tuple[Any, ...] | None:
        parts = tuple(reader(flight) for reader in readers)
        return None if None in parts else parts

    return read


def elements(words: Words, kinds: tuple[DataType, ...], data: DataType | None = None) -> Find:
    """`@name`, which is looked up in the ruleset, or elements on the spot. `data` is the type of what a map gives."""
    if words.next.startswith("@"):
        name = words.take()[1:]
        return lambda flight: flight.sets(name)
    words.need("{")
    entries = []
    while True:
        spans = tuple(_literal(words, kinds))
        entries.append((spans, True if data is None else _datum(words, data)))
        if words.skip("}"):
            break
        words.need(",")
    found = Elements(entries)
    return lambda flight: found


def _datum(words: Words, kind: DataType) -> Any:
    words.need(":")
    text = words.take()
    return datum(kind, f"{text} {words.take()}" if text in ("jump", "goto") else text)


def _literal(words: Words, kinds: tuple[DataType, ...]) -> Iterator[Span]:
    for index, kind in enumerate(kinds):
        if index:
            words.need(".")
        yield kind.span(words.take())


def _member(read: Read, find: Find, wanted: bool) -> Step:
    def step(flight: Flight) -> bool:
        key = read(flight)
        return key is not None and (find(flight).find(key) is not None) == wanted

    return step


def _verdict_map(read: Read, find: Find) -> Step:
    def step(flight: Flight) -> Outcome:
        key = read(flight)
        found = None if key is None else find(flight).find(key)
        return found if isinstance(found, Verdict) else False

    return step


def _within(read: Read, spans: tuple[Span, ...], wanted: bool) -> Step:
    if len(spans) == 1:
        (first, last) = spans[0]

        def one(flight: Flight) -> bool:
            key = read(flight)
            return key is not None and (first <= key <= last) == wanted

        return one
    whole = Elements([(spans, True)])
    return _member(read, lambda flight: whole, wanted)


def _ordered(read: Read, compare: Callable[[Any, Any], bool], limit: Any) -> Step:
    def step(flight: Flight) -> bool:
        key = read(flight)
        return key is not None and compare(key, limit)

    return step


def _bits(words: Words, kind: DataType) -> int:
    """`established,related`."""
    found = int(kind.scalar(words.take()))
    while words.skip(","):
        found |= int(kind.scalar(words.take()))
    return found


def _any_bit(read: Read, bits: int, relation: str, words: Words) -> Step:
    if relation == "!=" and bits & (bits - 1):
        raise words.unknown("nft compares the whole value with several bits, which nobody means")

    def step(flight: Flight) -> bool:
        key = read(flight)
        return key is not None and bool(key & bits) == (relation != "!=")

    return step


def _constant(words: Words, kind: DataType) -> int:
    """A number, or some in brackets: `(fin | syn)`."""
    if not words.skip("("):
        return int(kind.scalar(words.take()))
    found = int(kind.scalar(words.take()))
    while words.skip("|"):
        found |= int(kind.scalar(words.take()))
    words.need(")")
    return found


def _masked(read: Read, kind: DataType, words: Words) -> Step:
    mask = _constant(words, kind)
    relation = words.take()
    if relation not in ("==", "!="):
        raise words.unknown("== or != expected")
    wanted = _constant(words, kind)

    def step(flight: Flight) -> bool:
        key = read(flight)
        return key is not None and (key & mask == wanted) == (relation == "==")

    return step
