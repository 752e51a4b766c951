"""Memory, as an agent needs it: the cyclic garbage collector, and what the C library keeps.

Next to nothing of ours is garbage in cycles, and a million objects that stay are read at the start. The collector would
walk them again and again: a fifth of the start, and a tenth of a second of standstill whenever it is their turn later.

glibc gives threads areas of their own, each of which keeps what was needed once. Python lets one thread run at a time,
so that they would seldom have to wait for one another: one area is a twentieth less memory. Source: mallopt(3).
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

THRESHOLDS = (20_000, 20, 50)
"""New objects before the youngest are looked at, and how often that before the next older."""
M_ARENA_MAX = -8  # malloc.h


def begin() -> None:
    """Before everything else, and before there are threads."""
    gc.set_threshold(*THRESHOLDS)
    with suppress(AttributeError):  # musl has neither
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def settle() -> None:
    """What is there now stays: it is not looked at any more. What is replaced goes all the same, as its users do."""
    gc.freeze()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
