"""When what has failed is tried again: each thing by itself, later each time, and not all at the same moment.

A thing that is not as it was when it failed (its `state` differs) is tried at once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

FIRST, LONGEST = 0.5, 300.0
"""Seconds before a thing that has failed is tried again, doubled each time."""


def delay(failures: int, chance: float, first: float = FIRST, longest: float = LONGEST) -> float:
    """Seconds to wait after so many failures in a row, of which up to the half is left to `chance` (0 to 1).

    >>> delay(1, 0.0), delay(2, 1.0), delay(99, 0.0)
    (0.5, 0.5, 300.0)
    """
    return min(first * 2.0 ** min(failures - 1, 60), longest) * (1 - chance / 2)


@dataclass(frozen=True, slots=True)
class _Failure:
    count: int
    state: Hashable
    again: float


class Backoff:
    """The things that have failed and when each is due. `clock` in seconds, forward only; `chance` from 0 to 1."""

    def __init__(
        self,
        first: float = FIRST,
        longest: float = LONGEST,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._first, self._longest = first, longest
        self._clock, self._chance = clock, chance
        self._failures: dict[Hashable, _Failure] = {}
        self._asked: set[Hashable] = set()

    def due(self, thing: Hashable, state: Hashable = None) -> bool:
        """Whether to try a thing now."""
        self._asked.add(thing)
        failure = self._failures.get(thing)
        return failure is None or failure.state != state or self._clock() >= failure.again

    def failed(self, thing: Hashable, state: Hashable = None, *, slowly: bool = False) -> None:
        """`slowly`: it will hardly go right by itself, so that it waits the longest pause at once."""
        before = self._failures.get(thing)
        count = before.count + 1 if before is not None and before.state == state else 1
        pause = delay(99 if slowly else count, self._chance(), self._first, self._longest)
        self._asked.add(thing)
        self._failures[thing] = _Failure(count, state, self._clock() + pause)

    def has_failed(self, thing: Hashable, state: Hashable = None) -> bool:
        """Whether its last attempt, in this state, failed."""
        failure = self._failures.get(thing)
        return failure is not None and failure.state == state

    def succeeded(self, thing: Hashable) -> None:
        self._failures.pop(thing, None)

    def wait(self) -> float | None:
        """Seconds until the first thing is due; None if none waits. Things that nobody has asked for since the last
        call are gone, and forgotten."""
        self._failures = {thing: failure for thing, failure in self._failures.items() if thing in self._asked}
        self._asked = set()
        if not self._failures:
            return None
        return max(0.0, min(failure.again for failure in self._failures.values()) - self._clock())


def at_once() -> Backoff:
    """For who passes once, or has pauses of his own: everything is always due."""
    return Backoff(0.0, 0.0)
