"""A fan-out server as a process, killed at random under load, and two hundred agents' clients."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from etcd_server import free_ports
from fanned import Shared, servers
from store_words import pool
from tortie.base.errors import Compacted, Unavailable
from tortie.model.ipam import IPPool
from tortie.model.meta import changed
from tortie.store.fanout.address import Address
from tortie.store.fanout.client import FanoutStore
from tortie.store.fanout.servers import Patience
from tortie.store.sqlite import SqliteStore

DEADLINE = 30.0
HASTE = Patience(grace=0.3, spread=0.3, first_retry=0.1, longest_retry=0.5, again=0.5, avoid=0.1)


class Process:
    """`tortie fanout` on a file."""

    def __init__(self, directory: Path, file: Path) -> None:
        self.health, self.metrics = free_ports(2)
        self.address = Address(path=str(directory / f"fanout-{os.getpid()}.sock"))
        self.log = directory / "fanout.log"
        self._arguments = [
            *(sys.executable, "-m", "tortie.cli.main", "fanout", "--datastore", f"sqlite:{file}"),
            *("--listen", str(self.address), "--leave", "2"),
            *("--health-port", str(self.health), "--metrics-port", str(self.metrics)),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._arguments, stdout=log, stderr=log)

    def end(self, how: signal.Signals = signal.SIGKILL) -> int:
        """Its exit status."""
        if self._process is None:
            return 0
        self._process.send_signal(how)
        status = self._process.wait(15)
        self._process = None
        return status

    def asked(self, port: int, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    async def ready(self) -> None:
        async with asyncio.timeout(DEADLINE):
            while (await asyncio.to_thread(self.asked, self.health, "/readiness"))[0] != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    found = Process(tmp_path, tmp_path / "store.db")
    found.start()
    yield found
    found.end()


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not true():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.02)


class Agent:
    """A client that follows pools. `missed` says what must not be."""

    def __init__(self, client: FanoutStore) -> None:
        self.client = client
        self.picture: dict[str, int] = {}
        self.newest = -1
        self.lists = 0
        self.missed = ""
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            try:
                listing = await self.client.list(IPPool)
                self.lists += 1
                self._come_to(int(listing.revision), 0)
                self.picture = {one.name: int(one.metadata.resource_version) for one in listing.items}
                async for batch in self.client.watch(IPPool, listing.revision):
                    for event in batch:
                        revision = int(event.object.metadata.resource_version)
                        self._come_to(revision, 1)
                        self.picture[event.object.name] = revision
            except Compacted:
                continue
            except Unavailable:
                await asyncio.sleep(0.1)

    def _come_to(self, revision: int, step: int) -> None:
        """Every revision is a write to a pool here: none may be left out by a watch, or come twice."""
        if step and revision != self.newest + 1:
            self.missed = self.missed or f"{revision} came after {self.newest}"
        if revision < self.newest:
            self.missed = self.missed or f"{revision} came after {self.newest}"
        self.newest = revision

    async def stop(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task
        await self.client.close()


async def test_a_server_is_killed_under_load_and_no_agent_loses_a_write(tmp_path: Path, process: Process) -> None:
    """Killed three times at once, in the middle of writes; then it goes for good."""
    await process.ready()
    direct = SqliteStore(tmp_path / "store.db")
    agents = [Agent(FanoutStore(Shared(direct), servers([process.address], patience=HASTE))) for _ in range(20)]
    try:
        await until(lambda: all(one.lists for one in agents))
        assert all(one.client.served == 1 for one in agents)
        made = await direct.create(pool("a"))
        for round_ in range(4):
            for number in range(60):
                made = await direct.update(changed(made, labels={"n": f"{round_}-{number}"}))
                await asyncio.sleep(0.005)
                if number == 20:
                    await asyncio.to_thread(process.end)
                if number == 40 and round_ < 3:
                    process.start()
            if round_ == 1:
                await until(lambda: all(one.client.servers.link is not None for one in agents))
        newest = int(made.metadata.resource_version)
        await until(lambda: all(one.newest == newest for one in agents))
        assert not [one.missed for one in agents if one.missed]
        assert all(one.picture == {"a": newest} for one in agents)
        assert all(one.client.servers.falls for one in agents)
        assert all(one.client.servers.fallen_back for one in agents)
    finally:
        for one in agents:
            await one.stop()
        await direct.close()


async def test_two_hundred_agents(tmp_path: Path, process: Process) -> None:
    """One watch upstream, whatever their number; all of them see each write; at the end they are told to go."""
    await process.ready()
    direct = SqliteStore(tmp_path / "store.db")
    for number in range(20):
        await direct.create(pool(f"p{number}"))
    patience = Patience(grace=20)
    agents = [Agent(FanoutStore(Shared(direct), servers([process.address], patience=patience))) for _ in range(200)]
    try:
        await until(lambda: all(one.lists for one in agents))
        for number in range(20):
            made = await direct.create(pool(f"q{number}"))
        newest = int(made.metadata.resource_version)
        await until(lambda: all(one.newest == newest for one in agents))
        assert not [one.missed for one in agents if one.missed]
        assert all((one.client.served, one.client.asked) == (1, 0) for one in agents)
        _, text = await asyncio.to_thread(process.asked, process.metrics, "/metrics")
        figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert figures["typha_connections_active"] == "200.0"
        assert figures['tortie_fanout_lists{kind="ippools"}'] in ("1.0", "2.0")
        assert figures['tortie_fanout_objects{kind="ippools"}'] == "40.0"
        assert float(figures["typha_snapshots_generated_total"]) >= 1
        assert figures["tortie_fanout_most_behind"] == "0.0"
        assert await asyncio.to_thread(process.end, signal.SIGTERM) == 0
        await until(lambda: all(one.client.servers.link is None for one in agents))
        assert "200 clients are told to go elsewhere" in process.log.read_text()
    finally:
        for one in agents:
            await one.stop()
        await direct.close()


async def test_what_cannot_be_is_said_in_one_line(tmp_path: Path, process: Process) -> None:
    await process.ready()
    port = free_ports(1)[0]

    def said(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "tortie.cli.main", "fanout", "--health-port=0", "--metrics-port=0"]
        command += [f"--datastore={tmp_path}/store.db", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stderr.splitlines()[-1]

    assert said("--listen=nobody:x") == (2, 'tortie: --listen: "nobody:x" is no address: write HOST:PORT, or unix:PATH')
    assert said("--tls-cert=x") == (
        2,
        "tortie: --tls-ca: is missing: TLS needs an authority, a certificate and its key",
    )
    taken = f"127.0.0.1:{process.health}"
    assert said(f"--listen={taken}") == (2, f"tortie: {taken}: cannot listen: Address already in use")
    where = f"127.0.0.1:{port}"
    assert said(f"--listen={where}", f"--metrics-port={process.metrics}")[0] == 2
