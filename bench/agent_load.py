"""One agent of a large cluster: what its picture costs, from nothing to in sync, and with every change after that.

    datastore (SQLite) ──────────────────────────► an agent's picture      directly
         └──► fan-out server (a process) ────────► an agent's picture      by way of a server

The picture is `View` and `Cluster`, a process of its own without a kernel. The peer is the same picture straight from
the datastore, which is the quickest one there is: a file on this machine. SCALE says how large the cluster is.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from bench.figures import Figure, Report, against, median
from bench.large import TITLE, WORLD, Child, children, cpu, fill, made, memory
from bench.progress import Advance, alone
from bench.world import APPS, pod
from tortie.model.workload import WorkloadEndpoint
from tortie.store.sqlite import SqliteStore

NAME = "agent_load"
ROUNDS = 2
RATES = (20, 100)
"""Changes of pods elsewhere in the cluster, a second."""
SECONDS = 4.0
DEADLINE = 120.0
STEPS = 1 + ROUNDS * 2
DIRECT, SERVED = "from the datastore", "by way of a server"

Figures = Mapping[str, float]


def measure(advance: Advance) -> Report:
    report = Report(NAME, f"An agent's picture: {TITLE}")
    asyncio.run(_measure(report, advance))
    return report


async def _measure(report: Report, advance: Advance) -> None:
    with tempfile.TemporaryDirectory(prefix="tortie-bench-") as place:
        file, socket = Path(place, "store.db"), Path(place, "fanout.sock")
        store = await made(file)
        fill(file, WORLD.resources())
        where = f"sqlite:{file}"
        with children("bench.large_server", [(where, str(socket))]) as (server,):
            server.hear()
            advance(f"{NAME}: a server")
            report.figures.append(Figure("the server, CPU to be ready", cpu(server.pid), "s"))
            report.figures.append(Figure("the server, memory", memory(server.pid), "MiB"))
            fresh = count(WORLD.pods)
            for _ in range(ROUNDS):
                for words, servers in ((DIRECT, ""), (SERVED, f"unix:{socket}")):
                    with children("bench.large_picture", [(where, servers)]) as (picture,):
                        await _one(report, words, picture, store, fresh)
                    advance(f"{NAME}: {words}")
            report.figures.append(Figure("the server, CPU for all of that", cpu(server.pid), "s"))
        await store.close()
    _figures(report)


async def _one(report: Report, words: str, picture: Child, store: SqliteStore, fresh: count[int]) -> None:
    start: Figures = await asyncio.to_thread(picture.hear)
    samples = report.samples
    for what in ("seconds", "cpu", "memory", "peak"):
        samples.setdefault(f"{words}: {what}", []).append(start[what])
    assert start["endpoints"] == WORLD.local
    before: Figures = await asyncio.to_thread(picture.ask, "now")
    for rate in RATES:
        begun, written = time.monotonic(), await _write(store, rate, fresh)
        after = before
        async with asyncio.timeout(DEADLINE):
            while after["events"] < before["events"] + written:
                await asyncio.sleep(0.05)
                after = await asyncio.to_thread(picture.ask, "now")
        spent = time.monotonic() - begun
        share = 100 * (after["cpu"] - before["cpu"]) / spent
        samples.setdefault(f"{words}: CPU at {rate} changes/s, %", []).append(share)
        samples.setdefault(f"{words}: a change at {rate}/s, ms", []).append(
            1000 * (after["cpu"] - before["cpu"]) / written
        )
        before = after


async def _write(store: SqliteStore, rate: int, fresh: count[int]) -> int:
    """Pods come on other nodes; how many."""
    begun, total = time.monotonic(), int(rate * SECONDS)
    for number in range(total):
        await asyncio.sleep(begun + number / rate - time.monotonic())
        new = next(fresh)
        await store.create(_pod(new))
    return total


def _pod(number: int) -> WorkloadEndpoint:
    return pod(number, 1 + number % (WORLD.namespaces - 1), WORLD.host(number), number % APPS)


def _figures(report: Report) -> None:
    units = {"seconds": ("in sync after", "s"), "cpu": ("CPU to be in sync", "s"), "memory": ("memory in sync", "MiB")}
    units["peak"] = ("most memory", "MiB")
    rows = [(what, name, unit) for what, (name, unit) in units.items()]
    for rate in RATES:
        rows.append((f"CPU at {rate} changes/s, %", f"{rate} changes/s", "% CPU"))
        rows.append((f"a change at {rate}/s, ms", "  each", "ms"))
    for what, name, unit in rows:
        mine, theirs = (median(report.samples[f"{words}: {what}"]) for words in (SERVED, DIRECT))
        report.figures.append(against(name, mine, unit, DIRECT, theirs))


if __name__ == "__main__":
    sys.exit(alone(NAME))
