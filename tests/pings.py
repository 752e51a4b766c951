"""Many pings at once between places of a lab, every one of them counted."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

INTERVAL = 0.01
"""Seconds between two echo requests of one ping."""
TIMEOUT = 60.0

_ANSWER = re.compile(r"^\[(\d+\.\d+)\] \d+ bytes from .* icmp_seq=(\d+) ", re.MULTILINE)


@dataclass
class Ping:
    """Echo requests from a network namespace to an address, from `start` to `stop`."""

    name: str
    netns: str
    ip: str
    file: Path
    interval: float = INTERVAL
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _output: IO[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        words = ["ip", "netns", "exec", self.netns, "ping", "-n", "-D", "-i", str(self.interval), self.ip]
        self._output = self.file.open("wb")
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output)

    def stop(self) -> None:
        if self._process is not None and self._output is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(TIMEOUT)
            self._output.close()
            self._process = None

    @property
    def answered(self) -> dict[int, float]:
        """When each answer came, in seconds since 1970, by the number of its request, which counts from 1."""
        return {int(number): float(when) for when, number in _ANSWER.findall(self.file.read_text(errors="replace"))}

    @property
    def lost(self) -> int:
        """Requests without an answer, of those before the last that has one: what is on its way is not lost."""
        found = self.answered
        return max(found, default=0) - len(found)


class Pings:
    """All of them for as long as the block lasts."""

    def __init__(self, pings: Iterable[Ping]) -> None:
        self.pings = list(pings)

    def __enter__(self) -> Pings:
        for ping in self.pings:
            ping.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for ping in self.pings:
            ping.stop()

    @property
    def lost(self) -> dict[str, int]:
        """How many each has lost, if any."""
        return {ping.name: ping.lost for ping in self.pings if ping.lost}

    def all_answer(self, since: float) -> bool:
        """Whether every one of them has had an answer after that time, in seconds since 1970."""
        return all(max(ping.answered.values(), default=0.0) > since for ping in self.pings)


def wait_for_answers(pings: Pings, seconds: float = TIMEOUT) -> None:
    """Until all of them have an answer that is newer than this call."""
    began = time.time()
    while not pings.all_answer(began):
        silent = [ping.name for ping in pings.pings if max(ping.answered.values(), default=0.0) <= began]
        assert time.time() - began < seconds, f"no answer for {seconds:g} s: {', '.join(silent[:6])}"
        time.sleep(0.2)
