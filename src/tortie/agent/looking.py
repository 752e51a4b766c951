"""Threads for what takes a while, apart from those of pods' calls, which must not wait for it.

Looks around take seconds, and the doctor takes many of them. BIRD is asked by probes, too, which want their answer
meanwhile: for it there are others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

THREADS, ASKING = 16, 8
_THREADS = ThreadPoolExecutor(THREADS, "look around")
_ASKING = ThreadPoolExecutor(ASKING, "ask BIRD")


async def looking(look: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `look` returns, in a thread for looks around."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, lambda: look(*args, **kwargs))


async def asking(ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `ask` returns, in a thread that asks BIRD, and reads the answer: of ten thousand routes for a second."""
    return await asyncio.get_running_loop().run_in_executor(_ASKING, lambda: ask(*args, **kwargs))
