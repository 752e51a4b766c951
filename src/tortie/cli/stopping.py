"""Commands that undo or take away what they began when they are stopped, not with Ctrl-C alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LIKE_AN_INTERRUPT = (signal.SIGTERM, signal.SIGHUP)
"""What `timeout` and CI runners send, and what a terminal sends that goes away."""


@contextmanager
def stopped_as_by_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP do what SIGINT does, where they are not ignored, as by nohup. Raises SystemExit with their
    status where one of them ended the block."""
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if number == signal.SIGHUP:
            _leave_terminal()
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # in the background of a shell: Ctrl-C is not meant for us, but this is
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    before = {number: signal.getsignal(number) for number in LIKE_AN_INTERRUPT}
    ours = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        if not came:
            raise
    finally:
        for number in ours:
            signal.signal(number, before[number])
    if came:
        raise SystemExit(128 + came[0])  # as a shell reports it


def _leave_terminal() -> None:
    """Every word to one that has gone would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if os.isatty(stream):
            os.dup2(nowhere, stream)
    os.close(nowhere)
