"""How often and how patiently a server is asked: a bucket of tokens, pauses between tries. Pure; clock and dice are
arguments.
"""

from __future__ import annotations

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 3.0
"""Seconds: the longest pause before the second try is the first of them, and doubles up to the second."""


class Bucket:
    """Lets `burst` requests through at once, and `qps` a second after that; 0: no limit."""

    def __init__(self, qps: float, burst: int) -> None:
        self._qps = qps
        self._burst = max(1, burst)
        self._full_at = float("-inf")

    def take(self, now: float) -> float:
        """Seconds to wait before the next request; its place is taken. `now` in seconds of a clock that only grows."""
        if self._qps <= 0:
            return 0.0
        self._full_at = max(self._full_at, now) + 1 / self._qps
        return max(0.0, self._full_at - now - self._burst / self._qps)


def pause(tries: int, chance: float, asked: float | None = None) -> float:
    """Seconds before the next try, after `tries` of them; `chance` from 0 to 1.

    Full jitter: many clients that failed together do not come back together. When the server has asked for some
    seconds (`asked`), those and up to a tenth more.
    """
    jitter = chance * min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(tries - 1, 20))
    return jitter if not asked else asked + chance * asked / 10
