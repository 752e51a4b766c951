"""The thread that keeps the kernel as the newest state says. Between it and the asyncio side is a slot for one state:
a newer one replaces one that has not been looked at, so a slow kernel never builds a backlog."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Failure, Stage, converge

log = logging.getLogger(__name__)

FIRST_RETRY = 0.1
LONGEST_RETRY = 10.0
RESYNC = 90.0
"""Seconds after which the kernel is read again although nothing has changed; Calico's refresh interval."""

Applied = Callable[[DesiredState, Sequence[Failure], float], None]
"""Called in the worker's thread after a pass: the state, what failed, seconds taken."""


class Worker:
    """`submit` from any thread; `close` waits for the pass under way and leaves the kernel as it is."""

    def __init__(self, name: str, stages: Sequence[Stage], applied: Applied, resync: float = RESYNC) -> None:
        self._stages = stages
        self._applied = applied
        self._resync = resync
        self._wake = threading.Condition()
        self._slot: DesiredState | None = None
        self._look_again = False
        self._closing = False
        self.last_pass = time.monotonic()
        """When the last pass ended or an idle wait began; a liveness probe looks at it."""
        self.busy = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, state: DesiredState) -> None:
        """The newest wins."""
        with self._wake:
            self._slot = state
            self._wake.notify()

    def look_again(self) -> None:
        """The kernel may have changed behind our back: read it and repair."""
        with self._wake:
            self._look_again = True
            self._wake.notify()

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        state: DesiredState | None = None
        retry: float | None = None
        while True:
            with self._wake:
                if self._slot is None and not self._look_again and not self._closing:
                    woken = self._wake.wait(retry if retry is not None else self._resync)
                    if not woken and retry is None:
                        self._look_again = True
                if self._closing:
                    return
                state, self._slot = self._slot or state, None
                look_again, self._look_again = self._look_again, False
            self.last_pass = time.monotonic()
            if state is None:
                continue
            if look_again:
                for stage in self._stages:
                    stage.forget()
            retry = self._pass(state, retry)

    def _pass(self, state: DesiredState, retry: float | None) -> float | None:
        """One pass; the answer is how long to wait before the next try, None when all is done."""
        self.busy = True
        started = time.monotonic()
        failures = converge(self._stages, state)
        self.busy = False
        self.last_pass = time.monotonic()
        for failure in failures:
            log.warning("%s", failure)
        self._applied(state, failures, self.last_pass - started)
        if not failures:
            return None
        return min(LONGEST_RETRY, retry * 2) if retry is not None else FIRST_RETRY
