"""How processes that share a database wake each other: one small file beside it, watched with inotify.

    writer: COMMIT, then write a byte ──► the kernel ──► IN_MODIFY readable in every process that listens

The write-ahead log itself would not do: it changes before a commit can be seen. What the file holds means nothing.
Losing a notice, or the file, costs latency only: whoever listens also looks at the database now and then.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

# <sys/inotify.h>; the two flags are defined there as the O_ ones.
IN_MODIFY = 0x00000002
IN_CLOEXEC = os.O_CLOEXEC
IN_NONBLOCK = os.O_NONBLOCK

DRAIN = 4096
"""Bytes to read at a time; an event about a watched file is 16, and equal ones that nobody has read yet are one."""


class Notices:
    """The file, open for writing. Raises OSError when it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def post(self) -> None:
        """Wake every listener. Never fails: a full disk must not turn a write that is committed into an error."""
        try:
            os.pwrite(self._file, b"\n", 0)
        except OSError:
            pass

    def close(self) -> None:
        os.close(self._file)


def listen(path: Path, wake: Callable[[], object]) -> Callable[[], None] | None:
    """Call `wake` on the running loop after each notice. Returns what ends that, or None without inotify."""
    descriptor = inotify(path)
    if descriptor < 0:
        return None
    loop = asyncio.get_running_loop()

    def heard() -> None:
        try:
            os.read(descriptor, DRAIN)
        except BlockingIOError:
            return
        wake()

    def stop() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)

    loop.add_reader(descriptor, heard)
    return stop


def inotify(path: Path) -> int:
    """A non-blocking inotify descriptor that is readable after each write to a file, or -1."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "inotify_init1"):
        return -1
    descriptor: int = libc.inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
    if descriptor >= 0 and libc.inotify_add_watch(descriptor, os.fsencode(path), IN_MODIFY) < 0:
        os.close(descriptor)
        return -1
    return descriptor
