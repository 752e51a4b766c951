"""The tour as `make demo` takes it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tortie.lab import demo_racks, network
from tortie.lab.demo import NAME
from tortie.lab.processes import read_pid
from tortie.lab.state import LabDirectory

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]

DEMO = [sys.executable, "-m", "tortie.cli.main", "lab", "demo"]


@pytest.fixture(autouse=True)
def taken_away() -> Iterator[None]:
    """The tour's labs have names of their own; what a tour leaves that failed would be in the way of the next."""
    yield
    for name in (NAME, demo_racks.NAME):
        network.destroy(LabDirectory(name))


def test_every_check_passes_and_nothing_is_left() -> None:
    began = time.monotonic()
    done = subprocess.run(DEMO, capture_output=True, text=True, check=False, timeout=180)
    assert re.fullmatch(r"demo: [1-9]\d+ checks, 0 failed", done.stdout.splitlines()[-1]), done.stdout + done.stderr
    assert (done.returncode, done.stderr) == (0, "")
    assert network.leftovers(LabDirectory(NAME)) == []
    assert network.leftovers(LabDirectory(demo_racks.NAME)) == []
    assert "16 BGP sessions, 16 up" in done.stdout
    assert time.monotonic() - began < 120  # half a minute when nothing else runs


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(number: signal.Signals) -> None:
    tour = subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    deadline = time.monotonic() + 30
    while read_pid(LabDirectory(NAME).agent_pid("node3")) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(tour.pid, number)
    output, _ = tour.communicate(timeout=30)
    assert tour.returncode == 128 + number, output
    assert network.leftovers(LabDirectory(NAME)) == []
