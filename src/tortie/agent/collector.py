"""Python's cyclic garbage collector, as an agent needs it.

Next to nothing of ours is garbage in cycles, and a million objects that stay are read at the start. The collector would
walk them again and again: a fifth of the start, and a tenth of a second of standstill whenever it is their turn later.
"""

from __future__ import annotations

import gc

THRESHOLDS = (20_000, 20, 50)
"""New objects before the youngest are looked at, and how often that before the next older."""


def begin() -> None:
    """Before everything else."""
    gc.set_threshold(*THRESHOLDS)


def settle() -> None:
    """What is there now stays: it is not looked at any more. What is replaced goes all the same, as its users do."""
    gc.freeze()
