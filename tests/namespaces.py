"""Network namespaces for tests: made with `ip netns`, deleted after each test, never left behind.

A directory of tests has the fixtures by importing them into its conftest.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_serial = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Ns:
    """A named network namespace, and programs run inside it."""

    name: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def run(self, *command: str, stdin: str | None = None, check: bool = True, timeout: float = 30) -> str:
        """Standard output of a program run in the namespace; a failure shows its standard error."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"{self.name}: {' '.join(command)}: exit {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout

    def ip(self, *words: str) -> None:
        """`ip -n NAME words...`."""
        self._ip("-n", self.name, *words)

    def batch(self, *lines: str) -> None:
        """`ip -n NAME` with each of the lines, in one process: in an emulated machine to start one takes its time."""
        self._ip("-n", self.name, "-batch", "-", stdin="\n".join(lines))

    def json(self, *words: str) -> list[dict[str, Any]]:
        """What `ip -j -d words...` prints for the namespace, parsed."""
        return [item for item in json.loads(self._ip("-n", self.name, "-j", "-d", *words) or "[]") if item]

    def _ip(self, *words: str, stdin: str = "") -> str:
        done = subprocess.run(["ip", *words], input=stdin, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            pytest.fail(f"ip {' '.join(words)}: exit {done.returncode}: {done.stderr}")
        return done.stdout


def namespaces() -> Iterator[Callable[..., Ns]]:
    """Gives what makes fresh namespaces, `make()` or `make("label")`, with `lo` up; afterwards all are deleted."""
    made: list[Ns] = []

    def make(label: str = "") -> Ns:
        ns = Ns(f"tt-{os.getpid()}-{next(_serial)}{label and '-' + label}")
        subprocess.run(["ip", "netns", "add", ns.name], check=True, timeout=30)
        made.append(ns)
        ns.ip("link", "set", "lo", "up")
        return ns

    try:
        yield make
    finally:
        for ns in made:
            if Path(ns.path).exists():
                subprocess.run(["ip", "netns", "delete", ns.name], check=False, timeout=30)
        left = [ns.name for ns in made if Path(ns.path).exists()]
        assert not left, f"namespaces left behind: {left}"


@pytest.fixture
def make_ns() -> Iterator[Callable[..., Ns]]:
    """Makes fresh namespaces, `make_ns()` or `make_ns("label")`, with `lo` up; all are deleted after the test."""
    yield from namespaces()


@pytest.fixture
def ns(make_ns: Callable[..., Ns]) -> Ns:
    """One fresh network namespace with `lo` up."""
    return make_ns()
