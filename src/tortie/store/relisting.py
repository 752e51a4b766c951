"""How soon a kind is listed again whose history the datastore has forgotten.

    a watch that has lasted for a while ─► at once
    one that ended as it began, and again ─► 0.5, 1, 2, ... 10 s later, less up to a half at random

Where more changes while a kind is listed than the datastore remembers, the watch that comes after the list is told so,
and that comes after the next one. Who lists at once then does nothing else, and with all others who do it keeps the
datastore from becoming any quicker.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

FIRST, LONGEST = 0.5, 10.0
"""Seconds."""
QUIET = 60.0
"""Seconds without a loss after which the next one is the first again."""


class Relisting:
    """Of one kind, for who follows it. `clock` tells seconds."""

    def __init__(
        self, first: float = FIRST, longest: float = LONGEST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._first, self._longest, self._clock = first, longest, clock
        self._pause = 0.0
        self._lost: float | None = None

    def lost(self) -> float:
        """The history is gone: seconds to wait before the kind is listed again, 0 where it is the first time."""
        now, before = self._clock(), self._lost
        self._lost = now
        if before is None or now - before > QUIET:
            self._pause = 0.0
            return 0.0
        self._pause = min(self._longest, max(self._first, 2 * self._pause))
        return self._pause * random.uniform(0.5, 1)
