"""One agent, or proxy, at a time: two in one run directory would undo each other's work."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tortie.base.errors import ConfigError, Unavailable

LINGER = 1.0
"""Seconds that the lock of a killed program may stay: a program that it had just begun has it until its exec."""


@contextlib.contextmanager
def occupied(run_dir: Path, lock_name: str = "agent.lock", who: str = "an agent") -> Iterator[None]:
    """The run directory is ours: two of us would undo each other's work. Ends with the process, however it ends.

    Raises Unavailable naming the other one, ConfigError for what cannot be a directory.
    """
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (run_dir / lock_name).open("a+", encoding="ascii")
    except OSError as error:
        raise ConfigError(f"{run_dir}: {error.strerror}", "--run-dir") from None
    with lock:
        if not _locked(lock):
            lock.seek(0)
            other = lock.read().strip() or "unknown"
            raise Unavailable(f"{who} runs already in {run_dir}, pid {other}")
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _locked(lock: IO[str]) -> bool:
    deadline = time.monotonic() + LINGER
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(LINGER / 50)
