"""What a program does while there is nothing to do, told by others: it must be nothing, on whatever kernel.

    kernel     `ip`, `bridge`, `tc` and `nft` monitors in its namespace: every line is somebody's write
    counts     whatever a test can count: passes over the kernel, revisions of a datastore, requests to a server
    files      what is in its directories: names, inodes, sizes, times
    wake-ups   how often its threads have gone to sleep, as /proc says

Nothing is measured in seconds of work: a machine that is slow, or busy with others, changes no count. Who begins may
have this and that to do, so that it is waited for a while in which nothing is done; who loops never has one.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from namespaces import Ns

STILL = 6.0
"""Seconds in which nothing may be done."""
PATIENCE = 60.0
"""Seconds until there must have been such."""
MONITORS = (
    ("ip", "monitor", "link", "address", "route", "rule", "neigh", "nexthop"),
    ("bridge", "monitor", "all"),
    ("tc", "monitor"),
    ("nft", "monitor"),
)
_BY_THEMSELVES = ("INCOMPLETE", "REACHABLE", "STALE", "DELAY", "PROBE", "FAILED", "NOARP")
"""How lines end about neighbours that the kernel itself has put into such a state, or taken away."""

Count = Callable[[], object]
"""Another answer: something was done."""


@dataclass
class Watched:
    """Programs of a namespace. `counts` by what is counted; `directories` with all that is below them, but for files
    whose names end as one of `but` does."""

    ns: Ns
    pids: Sequence[int]
    counts: Mapping[str, Count] = field(default_factory=dict)
    directories: Sequence[Path] = ()
    but: tuple[str, ...] = ()

    def rests(self, most: float) -> None:
        """Fails unless there comes a while in which nothing is done, and `most` wake-ups a second at most."""
        with _monitors(self.ns) as lines:
            deadline = time.monotonic() + PATIENCE
            while True:
                before, begun, slept = self._seen(lines), time.monotonic(), self._slept()
                time.sleep(STILL)
                took, slept = time.monotonic() - begun, self._slept() - slept
                done = _differences(before, self._seen(lines))
                if slept > most * took:
                    done["wake-ups a second"] = [f"{slept / took:.1f}, {most:g} at most"]
                if not done:
                    return
                said = "\n".join(f"{what}: {one}" for what, every in done.items() for one in every)
                assert time.monotonic() < deadline, f"always something is done; the last {STILL:g} s:\n{said}"

    def _seen(self, lines: Callable[[], list[str]]) -> dict[str, Any]:
        counted = {what: count() for what, count in self.counts.items()}
        return {**counted, "files": dict(self._files()), "kernel": dict(enumerate(lines()))}

    def _files(self) -> Iterator[tuple[str, object]]:
        for directory in self.directories:
            for path in (directory, *directory.rglob("*")):
                if not path.name.endswith(self.but or "/"):
                    about = path.lstat()
                    yield str(path), (about.st_ino, about.st_size, about.st_mtime_ns)

    def _slept(self) -> int:
        return sum(wake_ups(pid) for pid in self.pids)


def revision(datastore: Path, but: str = "none") -> Count:
    """Of an SQLite file: the number of the last write, whoever made it, and what it was about. What is written of kinds
    that begin with `but` does not count."""

    def last() -> object:
        with closing(sqlite3.connect(f"file:{datastore}?mode=ro", uri=True)) as connection:
            written = "SELECT revision, type, kind FROM changes WHERE kind NOT LIKE ? ORDER BY revision DESC"
            return connection.execute(written, (f"{but}%",)).fetchone()

    return last


def wake_ups(pid: int) -> int:
    """How often threads of a process have gone to sleep so far."""
    found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        words = (task / "status").read_text().split()
        found += int(words[words.index("voluntary_ctxt_switches:") + 1])
    return found


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for what, now in after.items():
        old = before[what]
        if old != now:
            whole = not (isinstance(old, dict) and isinstance(now, dict))
            news = [now] if whole else [f"{key}: {now.get(key)}" for key in old | now if old.get(key) != now.get(key)]
            found[what] = [str(one) for one in news[:20]]
    return found


@contextmanager
def _monitors(ns: Ns) -> Iterator[Callable[[], list[str]]]:
    """What they have said so far, as far as it is about a write."""
    files: list[IO[str]] = []
    running: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        for words in MONITORS:
            file = stack.enter_context(tempfile.TemporaryFile("w+"))
            files.append(file)
            command = ["ip", "netns", "exec", ns.name, "stdbuf", "-oL", *words]
            one = subprocess.Popen(command, stdout=file, stderr=file)
            stack.callback(one.wait)
            stack.callback(one.kill)
            running.append(one)
        _await_ears(ns, files)
        yield lambda: [line for file in files for line in _lines(file)]
        assert all(one.poll() is None for one in running), "a monitor ended"


def _await_ears(ns: Ns, files: Sequence[IO[str]]) -> None:
    """Until each has told of something that we do ourselves; whoever hears nothing would find everybody idle."""
    deadline = time.monotonic() + PATIENCE
    while True:
        ns.ip("link", "add", "ears0", "type", "bridge")
        ns.run("tc", "qdisc", "add", "dev", "ears0", "root", "pfifo")
        ns.ip("link", "delete", "ears0")
        ns.run("nft", "add table inet ears; delete table inet ears")
        if all("ears" in "".join(_read(file)) for file in files):
            return
        assert time.monotonic() < deadline, "monitors that hear nothing"
        time.sleep(0.2)


def _read(file: IO[str]) -> str:
    return os.pread(file.fileno(), 1 << 22, 0).decode()


def _lines(file: IO[str]) -> Iterator[str]:
    for line in _read(file).splitlines():
        if line.strip() and not line.rstrip().endswith(_BY_THEMSELVES):
            yield line
