"""An immutable set that remembers what it was made from: two that are kin say at once in what they differ.

    first = KinSet(20_000 members)                        base
    second = first.changed(come={a}, gone={b})            base + {a} - {b}         the base is shared
    second - first                                        {a}, without a look at the base

A change costs by what changed, and so does a comparison with an earlier one. It is a set like any other besides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from itertools import chain, filterfalse
from typing import Any, TypeGuard, TypeVar

T = TypeVar("T")

SMALLEST = 64
SHARE = 5
"""One that differs from its base in more than SMALLEST members, and in more than a 32nd, becomes a base of its own."""


class KinSet(Set[T]):
    __slots__ = ("_base", "_come", "_gone")

    def __init__(self, members: Iterable[T] = ()) -> None:
        self._base: frozenset[T] = frozenset(members)
        self._come: frozenset[T] = frozenset()
        """Not in the base."""
        self._gone: frozenset[T] = frozenset()
        """In the base."""

    def changed(self, come: Iterable[T], gone: Iterable[T]) -> KinSet[T]:
        """With those that come, and without those that go and do not come; the very same where that changes nothing."""
        wanted = frozenset(come)
        unwanted = frozenset(gone) - wanted
        more = self._come - unwanted | (wanted - self._base)
        less = (self._gone | (unwanted & self._base)) - wanted
        if more == self._come and less == self._gone:
            return self
        if len(more) + len(less) > max(SMALLEST, len(self._base) >> SHARE):
            return KinSet(self._base - less | more)  # sets of sets: nothing is hashed again
        kin: KinSet[T] = KinSet.__new__(KinSet)
        kin._base, kin._come, kin._gone = self._base, more, less
        return kin

    def __contains__(self, one: object) -> bool:
        return (one in self._base and one not in self._gone) or one in self._come

    def __iter__(self) -> Iterator[T]:
        base = filterfalse(self._gone.__contains__, self._base) if self._gone else self._base
        return chain(base, self._come)

    def __len__(self) -> int:
        return len(self._base) - len(self._gone) + len(self._come)

    def __sub__(self, other: Set[Any]) -> frozenset[T]:
        if self._is_kin(other):
            return (self._come - other._come) | (other._gone - self._gone)
        return self._whole() - _whole(other)

    def __rsub__(self, other: Set[Any]) -> frozenset[T]:
        return _whole(other) - self._whole()

    def __xor__(self, other: Set[Any]) -> frozenset[T]:
        if self._is_kin(other):
            return (self._come ^ other._come) | (self._gone ^ other._gone)
        return self._whole() ^ _whole(other)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Set):
            return NotImplemented
        if self._is_kin(other):
            return self._come == other._come and self._gone == other._gone
        return len(self) == len(other) and self._whole() == _whole(other)

    def __hash__(self) -> int:
        return hash(self._whole())

    def __repr__(self) -> str:
        return f"KinSet({set(self)!r})"

    def _whole(self) -> frozenset[T]:
        return self._base - self._gone | self._come if self._gone or self._come else self._base

    def _is_kin(self, other: object) -> TypeGuard[KinSet[T]]:
        return isinstance(other, KinSet) and other._base is self._base

    @classmethod
    def _from_iterable(cls, members: Iterable[Any]) -> frozenset[Any]:
        return frozenset(members)


def _whole(members: Set[T]) -> frozenset[T]:
    return members._whole() if isinstance(members, KinSet) else frozenset(members)
