"""A guest that runs tests: pytest is started in a virtual machine, its reports are read outside as they are written.

pytest ──boots──► tools/stockvm ──► pytest, same node ids ──► reports.jsonl in a directory that both see
   └──────────────────────────── reports of one test, as soon as they are there ◄────────┘
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STOCKVM = ROOT / "tools" / "stockvm"
REPORTS = "TORTIE_VM_REPORTS"
"""In the guest's environment: the file for what becomes of its tests."""
FLANNELD = os.environ.get("TORTIE_FLANNELD", "")
"""In a guest: where the program is that FLANNELD names outside, a copy in the directory that both see."""
SILENCE = 600.0
"""Seconds without a report, from its start on, after which a guest is ended. None takes a tenth of that on a machine
that has nothing else to do."""
LIMIT = 4 * 3600
"""Seconds after which it ends in any case: nobody may be there any more who would end it."""


def inside() -> bool:
    """Whether this is a guest."""
    return "STOCKVM" in os.environ


@functools.cache
def obstacle() -> str:
    """Why this machine cannot run guests; "" when it can, and what that takes is at hand."""
    done = subprocess.run([STOCKVM, "-n"], capture_output=True, text=True, timeout=600, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["stockvm -n says nothing"])[-1]


class Guest:
    """Tests of some files, running on a stock kernel."""

    def __init__(self, tests: Sequence[str], directory: Path, silence: float = SILENCE) -> None:
        self._silence = silence
        self._reports = directory / "reports.jsonl"
        self._reports.touch()
        self._console = directory / "output"
        words = [STOCKVM, "-t", str(LIMIT), "-o", directory, "--", sys.executable, "-m", "pytest", "-q", *tests]
        # In a guest every import takes its time, and those of plugins more than all else.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment |= {REPORTS: str(self._reports), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        if program := os.environ.get("FLANNELD"):
            environment["TORTIE_FLANNELD"] = shutil.copy(program, directory)
        with self._console.open("wb") as output:
            self._process = subprocess.Popen(words, stdout=output, stderr=output, cwd=ROOT, env=environment)
        self._lines = self._read()
        self._found: dict[str, list[pytest.TestReport]] = {}
        self._died = self._was_silent = False

    @property
    def leaves_some(self) -> bool:
        """Whether it died, but not before it had done a test: then the rest is for another one."""
        return self._died and any(_is_done(reports) for reports in self._found.values())

    def reports(self, test: str) -> list[pytest.TestReport]:
        """What became of a test, once it is known: of its set-up, itself and its tear-down, as far as it came. Empty
        when the guest ended before."""
        while not _is_done(mine := self._found.get(test, [])):
            report = next(self._lines, None)
            if report is None:
                self._died = True
                return []
            self._found.setdefault(report.nodeid, []).append(report)
        return mine

    def ending(self) -> str:
        """How the guest ended, for a test that it has not run."""
        text = self._console.read_text(errors="replace").strip()
        why = f", for it had said nothing for {self._silence:g} s" if self._was_silent else ""
        return f"the guest ended, with status {self._process.wait()}, before this test was done{why}:\n{text[-3000:]}"

    def close(self) -> None:
        """It ends, done or not."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait(30)

    def _read(self) -> Iterator[pytest.TestReport]:
        """Reports as they come, until there can be no more."""
        with self._reports.open() as file:
            rest, heard = "", time.monotonic()
            while True:
                ended = self._process.poll() is not None  # asked before reading: what it wrote last is read, too
                *lines, rest = (rest + file.read()).split("\n")
                for line in lines:
                    yield self._report(line)
                if ended:
                    return
                if lines:
                    heard = time.monotonic()
                elif time.monotonic() - heard > self._silence:
                    self._was_silent = True
                    self.close()
                time.sleep(0.05)

    @staticmethod
    def _report(line: str) -> pytest.TestReport:
        data = json.loads(line)
        if isinstance(data["longrepr"], list):  # where and why it was skipped: a tuple, which JSON has not
            data["longrepr"] = tuple(data["longrepr"])
        return pytest.TestReport._from_json(data)


def _is_done(reports: Sequence[pytest.TestReport]) -> bool:
    """Whether these are all that there will be of a test."""
    return bool(reports) and reports[-1].when == "teardown"
