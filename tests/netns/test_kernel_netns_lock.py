"""The lock of a network namespace: who has it, when it is free, and who is not heeded."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from agent_node import until
from conftest import Ns

from tortie.kernel.netns_lock import BACKLOG, Holder, NetnsLock, called

pytestmark = pytest.mark.root

NAME = "tortie/test"
HOLD = f"""
import sys, time
from tortie.kernel.netns_lock import NetnsLock
lock = NetnsLock({NAME!r})
print(lock.take(), flush=True)
time.sleep(60)
"""
NOBODY_S = f"""
import os, socket, sys, time
os.setgid(65534)
os.setuid(65534)
mine = socket.socket(socket.AF_UNIX)
mine.bind("\\0{NAME}")
if "listen" in sys.argv:
    mine.listen()
print(None, flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def holding(ns: Ns, program: str = HOLD, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lock, or tried to; it ends with the block."""
    command = ["nsenter", f"--net={ns.path}", sys.executable, "-c", program, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def ns(make_ns: Callable[..., Ns]) -> Ns:
    return make_ns()


@pytest.fixture
def lock(ns: Ns) -> Iterator[NetnsLock]:
    made = NetnsLock(NAME, ns.path)
    yield made
    made.release()


def test_the_second_learns_who_has_it(ns: Ns, lock: NetnsLock) -> None:
    assert lock.take() is None
    assert lock.take() is None, "it is ours already"
    assert lock.holder() is None
    with holding(ns) as other:
        assert said(other) == f"process {os.getpid()} ({called(sys.orig_argv)})"
    lock.release()
    with holding(ns) as other:
        assert said(other) == "None"
        assert lock.take() == Holder(other.pid, 0, os.path.basename(sys.executable)) == lock.holder()


def test_each_namespace_has_its_own(lock: NetnsLock, make_ns: Callable[..., Ns]) -> None:
    assert lock.take() is None
    with holding(make_ns()) as other:
        assert said(other) == "None"


def test_it_is_free_as_soon_as_its_holder_is_killed(ns: Ns, lock: NetnsLock) -> None:
    with holding(ns) as other:
        assert said(other) == "None"
        other.send_signal(signal.SIGSTOP)
        assert lock.take() is not None, "a stopped one goes on some time"
        other.kill()
        other.wait()
        assert lock.take() is None


def test_programs_that_the_holder_has_started_do_not_keep_it(ns: Ns, lock: NetnsLock) -> None:
    program = HOLD.replace("time.sleep(60)", "import subprocess; subprocess.run(['sleep', '60'])")
    with holding(ns, program) as other:
        assert said(other) == "None"
        children = Path(f"/proc/{other.pid}/task/{other.pid}/children")
        child = int(until(children.read_text, what="it has started a program"))
        until(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n")
        other.kill()
        other.wait()
        try:
            assert lock.take() is None
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("word", ["listen", "bind"])
def test_who_is_not_root_is_not_heeded(ns: Ns, lock: NetnsLock, word: str, caplog: pytest.LogCaptureFixture) -> None:
    with holding(ns, NOBODY_S, word) as other:
        assert said(other) == "None"
        assert lock.take() is None
        assert lock.holder() is None
        who = f"process {other.pid}" if word == "listen" else "a process that cannot be seen from here"
        (line,) = caplog.messages
        assert line.startswith(f"@{NAME}, a lock for root, is held by {who}")
    assert lock.take() is None
    with holding(ns) as later:
        assert said(later) != "None", "once that one has gone it is a lock again"


def test_a_holder_that_hangs_is_heeded_however_often_it_is_asked(ns: Ns, lock: NetnsLock) -> None:
    with holding(ns) as other:
        assert said(other) == "None"
        other.send_signal(signal.SIGSTOP)
        asked = {lock.take() for _ in range(BACKLOG + 10)} | {lock.holder() for _ in range(BACKLOG + 10)}
        assert asked == {Holder(other.pid, 0, os.path.basename(sys.executable))}


def test_however_many_have_asked_the_next_is_told(ns: Ns, lock: NetnsLock) -> None:
    """While nobody turns callers away their queue fills, and the last ones are not told who it is."""
    assert lock.take() is None

    def ask() -> Holder | None:
        other = NetnsLock(NAME, ns.path)
        try:
            return other.take()
        finally:
            other.release()

    asked = [ask() for _ in range(BACKLOG + 10)]
    assert asked[0] is not None
    assert asked[-1] is None
    lock.turn_away()
    assert ask() == asked[0]


def test_who_was_turned_away_is_told_again(ns: Ns, lock: NetnsLock) -> None:
    other = NetnsLock(NAME, ns.path)
    assert lock.take() is None
    first = other.take()
    assert first is not None
    lock.turn_away()
    assert other.take() == first
    lock.release()
    assert other.take() is None
    other.release()


def test_it_changes_hands_while_many_ask(ns: Ns, lock: NetnsLock) -> None:
    """Never two at a time, and no descriptor that is closed and used."""
    every = [NetnsLock(NAME, ns.path) for _ in range(4)]
    inside = threading.Semaphore(1)
    end = time.monotonic() + 2

    def fight(mine: NetnsLock) -> int:
        had = 0
        while time.monotonic() < end:
            if mine.take() is None:
                assert inside.acquire(blocking=False)
                had += 1
                inside.release()
                mine.release()
            mine.turn_away()
        return had

    with ThreadPoolExecutor(5) as threads:
        asking = threads.submit(lambda: [every[0].turn_away() for _ in iter(lambda: time.monotonic() < end, False)])
        assert sum(threads.map(fight, every)) > 10
        asking.result()
