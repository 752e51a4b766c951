"""The log file of a network's calls: what goes there, and what becomes of it when it grows."""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tortie.agent.cni import calllog
from tortie.agent.cni.calllog import CallLog, logging_to
from tortie.agent.netconf import LogFile

log = logging.getLogger("tortie.test")


@pytest.fixture(autouse=True)
def handler() -> Iterator[CallLog]:
    ours = logging.getLogger("tortie")
    made, level = CallLog(), ours.level
    ours.addHandler(made)
    calllog.calls.addHandler(made)
    yield made
    for logger in (ours, calllog.calls):
        logger.removeHandler(made)
    ours.setLevel(level)


def lines(path: Path) -> list[str]:
    """Without their times."""
    return [line.partition(" ")[2] for line in path.read_text().splitlines()]


def test_only_what_belongs_to_the_call_and_its_level_goes_there(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "cni.log"
    log.error("before")
    with logging_to(LogFile(str(file), "info"), "ADD net c1"):
        log.info("one")
        log.debug("two")
        calllog.calls.error("three")
    log.error("after")
    assert lines(file) == ["[INFO] ADD net c1: one", "[ERROR] ADD net c1: three"]
    with logging_to(LogFile(str(file), "error"), "DEL net c1"):
        log.info("four")
    with logging_to(LogFile(str(file), "debug"), "DEL net c1"):
        log.debug("five")
    assert lines(file)[2:] == ["[DEBUG] DEL net c1: five"]
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o644, 0o755)


async def test_calls_at_the_same_time_have_files_of_their_own(tmp_path: Path) -> None:
    async def serve(name: str) -> None:
        with logging_to(LogFile(str(tmp_path / name)), name):
            for i in range(3):
                await asyncio.to_thread(log.info, "in a thread %d", i)
                await asyncio.sleep(0)

    await asyncio.gather(*(serve(name) for name in ("a", "b")))
    for name in ("a", "b"):
        assert lines(tmp_path / name) == [f"[INFO] {name}: in a thread {i}" for i in range(3)]


def test_a_file_that_cannot_be_written_is_complained_about_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with logging_to(LogFile(str(tmp_path / "file" / "cni.log")), "ADD"):
        for _ in range(3):
            log.info("goes nowhere")
    complaints = [one.getMessage() for one in caplog.records if "log_file_path" in one.getMessage()]
    assert len(complaints) == 1
    assert "Not a directory" in complaints[0]


def test_a_large_file_is_set_aside_and_old_ones_go(tmp_path: Path) -> None:
    path = tmp_path / "cni.log"
    ancient = tmp_path / "cni-2001-01-01T00-00-00.000000.log.gz"
    ancient.write_bytes(b"")
    os.utime(ancient, (time.time() - 10 * calllog.DAY,) * 2)
    foreign = tmp_path / "other.log.gz"
    foreign.write_bytes(b"")
    file = LogFile(str(path), "info", 1, 5, 2)
    for number in range(4):
        path.write_bytes(b"x" * 2**20)
        with logging_to(file, f"call {number}"):
            log.info("the drop")
        for thread in threading.enumerate():
            if thread.name == "compress log":
                thread.join(20)
        assert not path.exists()
    kept = sorted(tmp_path.glob("cni-*"))
    assert [one.suffix for one in kept] == [".gz", ".gz"]
    assert ancient not in kept
    assert foreign.exists()
    with gzip.open(kept[-1]) as last:
        assert last.read().endswith(b"[INFO] call 3: the drop\n")
