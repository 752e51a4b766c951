"""One agent at a time in a run directory, and the next one as soon as the one before is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tortie.base.errors import Unavailable
from tortie.kernel.occupied import occupied

HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); f and {}"


def held(lock: Path, then: str) -> subprocess.Popen[bytes]:
    """A process that has the lock, and what it does then."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(then), str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_lock_that_goes_in_a_moment_is_waited_for(tmp_path: Path) -> None:
    """A program that a killed agent had just begun has it for so long."""
    with held(tmp_path / "agent.lock", "__import__('time').sleep(0.3)"), occupied(tmp_path):
        assert (tmp_path / "agent.lock").read_text().strip().isdigit()


def test_a_lock_that_stays_is_another_agents(tmp_path: Path) -> None:
    (tmp_path / "agent.lock").write_text("77\n")
    with held(tmp_path / "agent.lock", "sys.stdin.read()") as process:
        with pytest.raises(Unavailable, match=f"an agent runs already in {tmp_path}, pid 77"), occupied(tmp_path):
            pass
        assert process.stdin is not None
        process.stdin.close()
