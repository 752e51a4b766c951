"""A lock of a network namespace: one process in it does a thing, and the next one learns who that is.

It is an abstract Unix socket. Its name is there once in each network namespace, whatever directories and mounts its
processes have, and goes with the process, however that ends. Who listens at it is told by SO_PEERCRED, also across
process namespaces. Such a name has no permissions: whoever is not root could take it, and is not heeded.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tortie.base.errors import KernelError
from tortie.base.logs import Seldom
from tortie.kernel.netns import entered

log = logging.getLogger(__name__)

BACKLOG = 128
"""Callers who have not been turned away yet."""
TRIES, PAUSE = 10, 0.005
"""For a name that is taken and where nobody listens, and seconds between: its holder is just beginning, or ending."""
PROGRAM = "tortie"
_CREDENTIALS = struct.Struct("=iII")  # linux/socket.h struct ucred: pid, uid, gid


@dataclass(frozen=True, slots=True)
class Holder:
    """`pid` 0: of another process namespace. `uid` None: it does not say who it is."""

    pid: int = 0
    uid: int | None = None
    command: str = ""

    @property
    def counts(self) -> bool:
        """Whether it may do what the lock is about."""
        return self.uid in (0, os.geteuid())

    def __str__(self) -> str:
        if not self.pid:
            return "a process that cannot be seen from here"
        return f"process {self.pid}{f' ({self.command})' if self.command else ''}"


class NetnsLock:
    """Of the namespace at a path; None is that of the thread that asks. From any thread."""

    def __init__(self, name: str, netns: str | None = None) -> None:
        self.name = name
        self._netns = netns
        self._socket: socket.socket | None = None
        self._call: tuple[socket.socket, Holder] | None = None
        """To who has it, and who that is. It is kept: who asks again and again must not fill the backlog."""
        self._mutex = threading.Lock()
        self._complain = Seldom(log)

    def take(self) -> Holder | None:
        """None: it is ours from now on, or nobody's who counts. Raises KernelError."""
        with self._mutex:
            if self._socket is None:
                self._socket = self._bound()
            if self._socket is not None:
                self._hang_up()
            found = None if self._socket is not None else self._other()
        if found is None or found.counts:
            return found
        self._complain.warning(f"@{self.name}, a lock for root, is held by {found} and not heeded: stop that one")
        return None

    def release(self) -> None:
        with self._mutex:
            self._hang_up()
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def holder(self) -> Holder | None:
        """Who else has it, without taking it. Raises KernelError."""
        with self._mutex:
            found = self._asked() if self._socket is None else None
        return found if found is not None and found.counts else None

    def turn_away(self) -> None:
        """Those who have asked who we are: they know, but are kept in the backlog until somebody takes them."""
        with self._mutex, suppress(OSError):  # there is nobody more, or no descriptor to spare
            for _ in range(BACKLOG + 1):
                if self._socket is None:
                    return
                self._socket.accept()[0].close()

    def _other(self) -> Holder | None:
        """Who has it; None if it has become ours meanwhile."""
        for _ in range(TRIES):
            if (found := self._asked()) is not None:
                return found
            time.sleep(PAUSE)
            self._socket = self._bound()
            if self._socket is not None:
                return None
        return Holder()

    def _bound(self) -> socket.socket | None:
        made = self._made()
        try:
            made.bind(f"\0{self.name}")
            made.listen(BACKLOG)
        except OSError as error:
            made.close()
            if error.errno == errno.EADDRINUSE:
                return None
            raise KernelError(error.errno or 0, f"bind @{self.name}") from None
        return made

    def _asked(self) -> Holder | None:
        """Who listens; None if nobody does."""
        if self._call is not None and _stands(self._call[0]):
            return self._call[1]
        self._hang_up()
        caller = self._made()
        try:
            caller.connect(f"\0{self.name}")
            told = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except BlockingIOError:  # nobody takes callers, and their queue is full
            caller.close()
            return Holder()
        except OSError:
            caller.close()
            return None
        pid, uid, _ = _CREDENTIALS.unpack(told)
        self._call = caller, Holder(pid, uid, _command(pid))
        return self._call[1]

    def _hang_up(self) -> None:
        if self._call is not None:
            self._call[0].close()
            self._call = None

    def _made(self) -> socket.socket:
        with entered(self._netns):
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.setblocking(False)
        return made


def _stands(call: socket.socket) -> bool:
    """Whether who was called has neither ended nor turned us away."""
    try:
        return bool(call.recv(1))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return ""
    return called(words)


def called(words: Sequence[str]) -> str:
    """A command as a person calls it: without its interpreter, its options, which may hold secrets, and its directory.

    >>> called(["/usr/bin/python3", "/usr/bin/tortie", "agent", "--node", "n1"]), called(["/usr/bin/sleep", "9"])
    ('tortie agent', 'sleep')
    >>> called(["python", "-m", "tortie.cli.main", "proxy"]), called(["python", "-m", "tortie.agent"])
    ('tortie proxy', 'tortie agent')
    """
    for at, word in enumerate(words[:4]):
        parts = os.path.basename(word).split(".")
        if parts[0] == PROGRAM:
            verb = parts[-1] if parts[-1] not in (PROGRAM, "main") else "".join(words[at + 1 : at + 2])
            return f"{PROGRAM} {verb}".strip() if verb.isidentifier() else PROGRAM
    name = os.path.basename(words[0])
    return name if name.isprintable() else ""
