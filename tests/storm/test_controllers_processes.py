"""`tortie controllers` as processes over one file: one works, the next takes over, probes tell."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tortie.controllers.leader import NAME, NAMESPACE
from tortie.model.lease import Lease, LeaseSpec
from tortie.store.sqlite import SqliteStore

TORTIE = (sys.executable, "-m", "tortie.cli.main")
PATIENCE = 40.0
"""Seconds: a lease that nobody gives back runs out after 15, on a machine that is busy."""


def environment(**more: str) -> dict[str, str]:
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("TORTIE_", "ETCD_", "KUBE"))}
    return ours | more


@dataclass
class Fleet:
    home: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *options: str, **more: str) -> subprocess.Popen[bytes]:
        where = ("--datastore", f"sqlite:{self.home / 'store.db'}", "--status-file", str(self.home / f"{name}.json"))
        with (self.home / f"{name}.log").open("wb") as out:
            command = (*TORTIE, "controllers", *where, *options)
            self.running[name] = subprocess.Popen(command, env=environment(**more), stdout=out, stderr=out)
        return self.running[name]

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text()

    def leads(self, name: str) -> bool:
        return "leading as" in self.log(name)

    def lease(self) -> LeaseSpec:
        async def read() -> LeaseSpec:
            store = SqliteStore(self.home / "store.db")
            try:
                return (await store.get(Lease, NAME, NAMESPACE)).spec
            finally:
                await store.close()

        return asyncio.run(read())

    def probe(self, name: str, option: str) -> subprocess.CompletedProcess[str]:
        command = (*TORTIE, "controllers", "--status-file", str(self.home / f"{name}.json"), option)
        return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=30, check=False)


def wait(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    found = Fleet(tmp_path)
    yield found
    for process in found.running.values():
        process.kill()
        process.wait()


def test_one_works_and_the_next_takes_over(fleet: Fleet) -> None:
    """Given back on SIGTERM, left behind by SIGKILL."""
    first = fleet.start("first")
    wait(lambda: fleet.leads("first"))
    second, alone = fleet.start("second"), fleet.start("alone", "--no-leader-elect")
    wait(lambda: "leads; waiting" in fleet.log("second"))
    wait(lambda: fleet.probe("second", "--ready").returncode == 0)  # who waits is ready
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == 0
    wait(lambda: fleet.leads("second"))
    assert fleet.lease().lease_transitions == 1
    down = fleet.probe("first", "-l")
    assert (down.returncode, down.stdout.partition(": ")[0]) == (1, "controllers are not live")
    wait((fleet.home / "alone.json").exists)
    alone.send_signal(signal.SIGTERM)
    assert alone.wait(20) == 0
    assert not fleet.leads("alone")
    third = fleet.start("third")
    wait(lambda: "leads; waiting" in fleet.log("third"))
    second.kill()
    second.wait()
    killed = time.monotonic()
    wait(lambda: fleet.leads("third"))
    assert time.monotonic() - killed > 10
    assert fleet.lease().lease_transitions == 2
    assert third.poll() is None


def test_what_cannot_be_is_told_in_one_line(fleet: Fleet) -> None:
    process = fleet.start("wrong", ENABLED_CONTROLLERS="nodes")
    assert process.wait(30) == 2
    assert fleet.log("wrong").strip().endswith('ENABLED_CONTROLLERS: "nodes" is not a controller; did you mean "node"?')
    assert len(fleet.log("wrong").strip().splitlines()) == 1
