"""What a set or a map holds, asked as the kernel asks: single values by hash, ranges and networks by search."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tortie.render.ruleset import Set
from tortie.testing.tracer.datatypes import BY_NAME, VERDICT, DataType, Scalar, Span
from tortie.testing.tracer.words import NotUnderstood

Key = Scalar | tuple[Scalar, ...]
"""Of a concatenation it is a tuple."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ends a rule: accept, drop, reject, return, jump or goto, the last two with a chain."""

    word: str
    chain: str = ""

    def __str__(self) -> str:
        return f"{self.word} {self.chain}".strip()


class Elements:
    """Spans, one for each part of the key, and what a map has there (of a set: True)."""

    def __init__(self, entries: Iterable[tuple[tuple[Span, ...], Any]]) -> None:
        self._exact: dict[Key, Any] = {}
        self._ranges: list[tuple[Scalar, Scalar, Any]] = []
        self._joined: list[tuple[tuple[Span, ...], Any]] = []
        for spans, data in entries:
            if all(first == last for first, last in spans):
                values = tuple(first for first, _ in spans)
                self._exact[values if len(values) > 1 else values[0]] = data
            elif len(spans) == 1:
                self._ranges.append((*spans[0], data))
            else:
                self._joined.append((spans, data))
        self._ranges.sort(key=lambda entry: entry[0])
        self._starts: list[Any] = [first for first, _, _ in self._ranges]

    def find(self, key: Any) -> Any:
        """What is there; None when the key is not in it. Ranges do not overlap: the kernel would not take them."""
        if (found := self._exact.get(key)) is not None:
            return found
        if self._starts and (at := bisect_right(self._starts, key)):
            _, last, data = self._ranges[at - 1]
            return data if key <= last else None
        for spans, data in self._joined:
            if all(first <= part <= last for part, (first, last) in zip(key, spans, strict=True)):
                return data
        return None


def elements_of(declared: Set) -> Elements:
    """The elements of a set as the ruleset has it."""
    keys, data = declared_types(declared.spec)
    return Elements(_element(keys, data, text) for text in declared.elements)


@lru_cache(maxsize=1 << 10)
def declared_types(spec: str) -> tuple[tuple[DataType, ...], DataType | None]:
    """The types of the key, and of a map's data. `flags interval` and its like change nothing about the meaning."""
    for clause in filter(None, (part.strip() for part in spec.split(";"))):
        word, _, rest = clause.partition(" ")
        if word == "type":
            keys, colon, data = rest.partition(" : ")
            try:
                types = tuple(BY_NAME[name.strip()] for name in keys.split(" . "))
                return types, BY_NAME[data.strip()] if colon else None
            except KeyError as error:
                raise NotUnderstood(f"type {error} of a set: {spec}") from None
    raise NotUnderstood(f"a set without a type: {spec}")


@lru_cache(maxsize=1 << 17)
def _element(keys: tuple[DataType, ...], data: DataType | None, text: str) -> tuple[tuple[Span, ...], Any]:
    key, colon, value = text.partition(" : ")
    parts = key.split(" . ")
    if len(parts) != len(keys) or bool(colon) != (data is not None):
        raise NotUnderstood(f"element {text}")
    spans = tuple(kind.span(part.strip()) for kind, part in zip(keys, parts, strict=True))
    return spans, True if data is None else datum(data, value)


def datum(kind: DataType, text: str) -> Any:
    """What a map gives: a verdict or a value."""
    if kind is not VERDICT:
        return kind.scalar(text.strip())
    word, _, chain = text.strip().partition(" ")
    if word not in ("accept", "drop", "return", "jump", "goto", "continue"):
        raise NotUnderstood(f"verdict {text}")
    return Verdict(word, chain)
