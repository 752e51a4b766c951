"""The thread that keeps the kernel as the newest state says. Between it and the asyncio side is a slot for one state:
a newer one replaces one that has not been looked at, so a slow kernel never builds a backlog."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from tortie.dataplane.converge import Failure, Stage, converge

S = TypeVar("S")

log = logging.getLogger(__name__)

FIRST_RETRY = 0.1
LONGEST_RETRY = 10.0
RESYNC = 90.0
"""Seconds between two times that everything in the kernel is looked at; Calico's refresh interval."""

Applied = Callable[[S, Sequence[Failure], float], None]
"""Called in the worker's thread after a pass: the state, what failed, seconds taken."""
Broken = Callable[[BaseException], None]
"""Called in the worker's thread, which ends with it: an error that nobody expected, a bug."""


class Worker(Generic[S]):
    """`submit` from any thread; `close` waits for the pass under way and leaves the kernel as it is."""

    def __init__(
        self, name: str, stages: Sequence[Stage[S]], applied: Applied[S], broken: Broken, resync: float = RESYNC
    ) -> None:
        self._stages = stages
        self._applied = applied
        self._broken = broken
        self._resync = resync
        self._wake = threading.Condition()
        self._slot: tuple[S] | None = None
        self._again = False
        self._doubt = False
        self._closing = False
        self._busy_since: float | None = None
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def busy_for(self) -> float:
        """Seconds that the pass under way has taken so far; a liveness probe looks at it."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def start(self) -> None:
        self._thread.start()

    def submit(self, state: S) -> None:
        """The newest wins."""
        with self._wake:
            self._slot = (state,)
            self._wake.notify()

    def again(self) -> None:
        """The same state once more: what it speaks of has come or gone."""
        with self._wake:
            self._again = True
            self._wake.notify()

    def look_again(self) -> None:
        """The kernel may have changed behind our back: doubt all that is remembered of it, and repair."""
        with self._wake:
            self._again = self._doubt = True
            self._wake.notify()

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as bug:
            self._broken(bug)

    def _work(self) -> None:
        newest: tuple[S] | None = None
        retry: float | None = None
        resync = time.monotonic() + self._resync
        while True:
            with self._wake:
                if not (self._slot is not None or self._again or self._closing):
                    due = max(0.0, resync - time.monotonic())
                    self._wake.wait(due if retry is None else min(retry, due))
                if self._closing:
                    return
                newest, self._slot, self._again = self._slot or newest, None, False
                doubt, self._doubt = self._doubt or time.monotonic() >= resync, False
            if doubt:  # however busy the cluster keeps us
                resync = time.monotonic() + self._resync
                for stage in self._stages:
                    stage.forget()
            if newest is not None:
                retry = self._pass(newest[0], retry)

    def _pass(self, state: S, retry: float | None) -> float | None:
        """One pass; the answer is how long to wait before the next try, None when all is done."""
        started = self._busy_since = time.monotonic()
        failures = converge(self._stages, state)
        self._busy_since = None
        texts = {str(failure) for failure in failures}
        for text in sorted(texts - self._said):  # not again at every try
            log.warning("%s", text)
        self._said = texts
        self._applied(state, failures, time.monotonic() - started)
        if not failures:
            return None
        return min(LONGEST_RETRY, retry * 2) if retry is not None else FIRST_RETRY
