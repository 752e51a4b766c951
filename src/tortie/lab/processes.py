"""Processes that outlive the program that started them: which they are for all time, starting, waiting, killing.

A pid alone may by now be somebody else's. So a pid file holds the process's own line of /proc/PID/stat, which says when
it started, and the process writes it itself before it becomes what it is to be: it never runs unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tortie.kernel import netns

# proc_pid_stat(5), counted from the third field, which is the first after the name
_STATE, _START_TIME = 3 - 3, 22 - 3

# $1 is the pid file; the rest is what IN_PLACE takes. The shell says $0 first where there is no such program.
_BECOME = """
read -r stat </proc/$$/stat && echo "$stat" >"$1"
shift
"""
# $1 is the host name or "" to keep the machine's own, $2 what is to be /etc/resolv.conf or "" for the machine's, the
# rest is what to become.
IN_PLACE = """
[ -z "$1" ] || echo "$1" >/proc/sys/kernel/hostname
[ -z "$2" ] || mount --bind "$2" /etc/resolv.conf
shift 2
exec "$@"
"""

LAB_VARIABLE = "TORTIE_PROCESS_OF_LAB"
"""Every process that a lab starts has the lab's name in this environment variable, and so has its offspring."""

_GONE_SECONDS = 10.0  # a killed process is gone in milliseconds, unless it is in the middle of a long system call


@dataclass(frozen=True, slots=True)
class Process:
    """A process for all time: its number and when it started, in clock ticks after boot."""

    pid: int
    started: int

    def alive(self) -> bool:
        """A zombie is dead: nobody but its parent sees it any more."""
        fields = _stat(self.pid)
        return fields is not None and int(fields[_START_TIME]) == self.started and fields[_STATE] not in "ZX"

    def signal(self, number: signal.Signals) -> None:
        """Signals this very process or nobody."""
        fd = self._open()
        if fd is None:
            return
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)

    async def ended(self) -> None:
        """Returns when it is no more, whoever's child it is."""
        fd = self._open()
        if fd is None:
            return
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(fd, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(fd)
            os.close(fd)

    def _open(self) -> int | None:
        """A descriptor of the process; None when it is gone."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if self.alive():  # asked after opening: from here on the descriptor cannot come to mean another one
            return fd
        os.close(fd)
        return None


def process(pid: int) -> Process | None:
    """The process that has this number now."""
    fields = _stat(pid)
    return Process(pid, int(fields[_START_TIME])) if fields else None


def read_pid(path: Path) -> Process | None:
    """The living process of a pid file, or None."""
    try:
        line = path.read_text(errors="replace")
        kept = Process(int(line.split()[0]), int(line.rpartition(")")[2].split()[_START_TIME]))
    except (FileNotFoundError, ValueError, IndexError):
        return None
    return kept if kept.alive() else None


def spawn(
    argv: Sequence[str],
    pid_file: Path,
    log: Path,
    *,
    netns_path: str = "",
    hostname: str = "",
    resolv_conf: str = "",
    cwd: str = "",
    env: Mapping[str, str] = {},
    detached: bool = False,
) -> subprocess.Popen[bytes]:
    """Starts a program in a session of its own with its output appended to `log`, in the namespace if one is given.

    `env` is added to this process's own. `hostname` gives it a UTS namespace with that name,
    `resolv_conf` a mount namespace in which that file is /etc/resolv.conf. A program that does not
    exist says so in its log and ends with 127, as in a shell. `detached` makes it nobody's child; the value returned is
    then of no use.
    """
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    become = ["sh", "-c", _BECOME + IN_PLACE, "start", str(pid_file), hostname, resolv_conf, *argv]
    become = [*apart(hostname, resolv_conf), *become]
    if detached:
        become = ["setsid", "--fork", *become]
    with log.open("ab") as output, netns.entered(netns_path) if netns_path else contextlib.nullcontext():
        # A child begins in the namespaces of the thread that makes it.
        started = subprocess.Popen(
            become,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=cwd or "/",
            env=os.environ | dict(env),
        )
    if detached:
        started.wait()
    return started


def apart(hostname: str, resolv_conf: str) -> list[str]:
    """How to begin where IN_PLACE changes nothing of the machine's. What is mounted or goes outside does so inside,
    too: a network namespace that is deleted must not live on there."""
    if not hostname and not resolv_conf:
        return []
    mounts = ["--mount", "--propagation", "slave"] if resolv_conf else []
    return ["unshare", *(["--uts"] if hostname else []), *mounts]


def inside(names: Iterable[str]) -> list[Process]:
    """Every process in one of the named network namespaces, found in one walk through /proc."""
    inodes = set()
    for name in names:
        with contextlib.suppress(OSError):
            inodes.add(os.stat(netns.path(name)).st_ino)
    return _search(lambda pid: os.stat(f"/proc/{pid}/ns/net").st_ino in inodes) if inodes else []


def marked(variable: str, value: str) -> list[Process]:
    """Every process that was born with this environment variable, as all offspring of one that `spawn` marked is."""
    entry = f"{variable}={value}".encode()
    return _search(lambda pid: entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))


def kill_all(find: Callable[[], list[Process]]) -> None:
    """Kills what `find` finds, and what that started meanwhile, until it finds nothing."""
    deadline = time.monotonic() + _GONE_SECONDS
    while (victims := find()) and time.monotonic() < deadline:
        for victim in victims:
            victim.signal(signal.SIGKILL)
        wait_gone(victims)


def end(find: Callable[[], list[Process]], polite_seconds: float) -> None:
    """Asks what `find` finds to end with SIGTERM, then kills it."""
    asked = find()
    for one in asked:
        one.signal(signal.SIGTERM)
    wait_gone(asked, polite_seconds)
    kill_all(find)


def wait_gone(processes: Iterable[Process], seconds: float = _GONE_SECONDS) -> None:
    """Until none is alive, or for so long."""
    deadline = time.monotonic() + seconds
    left = list(processes)
    while (left := [one for one in left if one.alive()]) and time.monotonic() < deadline:
        time.sleep(0.005)


def _search(wanted: Callable[[int], bool]) -> list[Process]:
    """This process itself is never found, nor are zombies."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):  # gone meanwhile
                if wanted(int(entry)) and (one := process(int(entry))) and one.alive():
                    found.append(one)
    return found


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, which may itself hold blanks and parentheses."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
