"""A decision as a value: what to add, change and delete, printing as the shell transcript that would do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Verb(StrEnum):
    """What an operation does to its object."""

    ADD = "add"
    CHANGE = "change"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Op(Generic[K, V]):
    """One step on one object. `want` is None for DELETE, `have` for ADD; `text` is what a person would type."""

    verb: Verb
    key: K
    want: V | None
    have: V | None
    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def makes(self) -> bool:
        """True for the steps that make; make comes before break."""
        return self.verb is not Verb.DELETE


@dataclass(frozen=True, slots=True)
class Plan(Generic[K, V]):
    """Steps in the order in which they are safe: additions and changes first, then deletions."""

    ops: tuple[Op[K, V], ...] = ()

    def __iter__(self) -> Iterator[Op[K, V]]:
        return iter(self.ops)

    def __len__(self) -> int:
        return len(self.ops)

    def __bool__(self) -> bool:
        return bool(self.ops)

    def __str__(self) -> str:
        return "\n".join(op.text for op in self.ops)


def diff(want: Mapping[K, V], have: Mapping[K, V], text: Callable[[Verb, K, V], str]) -> Plan[K, V]:
    """The plan that leads from `have` to `want`. `text(verb, key, value)` prints a step (DELETE: the old value).

    >>> str(diff({"a": 1, "b": 2}, {"b": 1, "c": 3}, lambda verb, key, value: f"{verb.value} {key}={value}"))
    'add a=1\\nchange b=2\\ndelete c=3'
    """
    ops: list[Op[K, V]] = []
    for key, value in want.items():
        old = have.get(key)
        if old is None:
            ops.append(Op(Verb.ADD, key, value, None, text(Verb.ADD, key, value)))
        elif old != value:
            ops.append(Op(Verb.CHANGE, key, value, old, text(Verb.CHANGE, key, value)))
    gone = [(key, value) for key, value in have.items() if key not in want]
    ops.extend(Op(Verb.DELETE, key, None, value, text(Verb.DELETE, key, value)) for key, value in gone)
    return Plan(tuple(ops))
