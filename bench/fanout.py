"""What many agents cost a datastore, each by itself and by way of a fan-out server.

    datastore ◄── N clients                              directly: N lists and N watches of every kind
    datastore ◄── fan-out server ◄── N clients           by way of a server: one

Measured are lists and watches that reach the datastore, processor time of each side while all begin and while pods are
written at a steady rate, and how long until the last of the N has a write. The datastore is an etcd of one member, with
processor time of its own, and an SQLite file, whose time is its clients'. N is WATCHERS in the environment.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.figures import Report, against, median, percentile
from bench.large import children, cpu
from bench.progress import Advance, alone
from bench.world import World, pod
from tortie.model.ipam import BlockAffinity
from tortie.store import open_store

NAME = "fanout"
WATCHERS = int(os.environ.get("WATCHERS", "100"))
PROCESSES = 2
WORLD = World(pods=2000, local=20, policies=200)
TITLE = f"{WATCHERS} agents on one datastore with {WORLD.pods:,} pods"
WRITES, RATE = 80, 20
FRESH = 50_000
DEADLINE = 120.0
KINDS = 6
BACKENDS = ("etcd",)
DIRECT, SERVED = "each by itself", "by way of a server"
TESTS = Path(__file__).parents[1] / "tests"
STEPS = 4

Measured = dict[str, Any]


def measure(advance: Advance) -> Report:
    report = Report(NAME, TITLE)
    for backend in BACKENDS:
        with tempfile.TemporaryDirectory(prefix="tortie-bench-") as place, ExitStack() as stack:
            try:
                where, pids = stack.enter_context(_datastore(backend, Path(place)))
            except (ImportError, RuntimeError) as error:
                report.missing[backend] = str(error)
                continue
            asyncio.run(_fill(where))
            found: dict[str, Measured] = {}
            for words in (DIRECT, SERVED):
                found[words] = _mode(where, pids, Path(place), served=words is SERVED)
                advance(f"{NAME}: {backend}, {words}")
            _figures(report, backend, found)
    return report


@contextmanager
def _datastore(backend: str, directory: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Its name, and its processes."""
    if backend == "sqlite":
        yield f"sqlite:{directory}/store.db", ()
        return
    sys.path.insert(0, str(TESTS))
    import etcd_server

    if etcd_server.ETCD is None:
        raise RuntimeError("etcd is not installed")
    with etcd_server.running(directory / "etcd") as etcd:
        process = etcd.members[0].process
        assert process is not None
        yield f"etcd:{etcd.url}", (process.pid,)


async def _fill(where: str) -> None:
    store = open_store(where)
    limit = asyncio.Semaphore(32)

    async def put(one: Any) -> None:
        async with limit:
            await store.create(one)

    # Of block affinities etcd demands names that say what they are of; there are no writes to them here.
    await asyncio.gather(*(put(one) for one in WORLD.resources() if not isinstance(one, BlockAffinity)))
    await store.close()


def _mode(where: str, pids: tuple[int, ...], place: Path, *, served: bool) -> Measured:
    """N clients begin, then watch pods come."""
    before, socket = cpu(*pids), place / "fanout.sock"
    with ExitStack() as stack:
        servers = stack.enter_context(children("bench.large_server", [(where, str(socket))] * served))
        for one in servers:
            one.hear()
        address, each = (f"unix:{socket}" if served else ""), str(WATCHERS // PROCESSES)
        begun = time.monotonic()
        watchers = stack.enter_context(children("bench.large_watchers", [(where, address, each)] * PROCESSES))
        started = [one.hear() for one in watchers]
        found: Measured = {"begin": time.monotonic() - begun, "begin datastore": cpu(*pids) - before}
        found["begin server"] = cpu(*(one.pid for one in servers))
        found["begin clients"] = sum(one["cpu"] for one in started)
        middle, server = cpu(*pids), cpu(*(one.pid for one in servers))
        written = asyncio.run(_write(where, FRESH + served * WRITES))
        last = _last(watchers, len(written))
        found["datastore"] = cpu(*pids) - middle
        found["server"] = cpu(*(one.pid for one in servers)) - server
        found["clients"] = sum(one.ask("report")["cpu"] for one in watchers) - found["begin clients"]
        found["told"] = [last[name] - at for name, at in written.items()]
        found["questions"] = (
            servers[0].ask("report") if served else {"lists": WATCHERS * KINDS, "watches": WATCHERS * KINDS}
        )
    return found


async def _write(where: str, first: int) -> dict[str, float]:
    """Pods come, numbered from `first`; by name when it was begun to write them."""
    store = open_store(where)
    written: dict[str, float] = {}
    begun = time.monotonic()
    for number in range(WRITES):
        await asyncio.sleep(begun + number / RATE - time.monotonic())
        one = pod(first + number, 1 + number % (WORLD.namespaces - 1), WORLD.host(first + number))
        at = time.monotonic()
        await store.create(one)
        written[one.name] = at
    await store.close()
    return written


def _last(watchers: list[Any], writes: int) -> dict[str, float]:
    """By write, when the last client of all had it."""
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        told = [one.ask("report")["last"] for one in watchers]
        if all(len(one) >= writes for one in told):
            return {name: max(one[name] for one in told) for name in told[0]}
        time.sleep(0.2)
    raise RuntimeError("not every client has every write")


def _figures(report: Report, backend: str, found: dict[str, Measured]) -> None:
    direct, served = found[DIRECT], found[SERVED]

    def add(name: str, mine: float, unit: str, theirs: float, at_most: float | None = None) -> None:
        report.figures.append(against(f"{backend}: {name}", mine, unit, DIRECT, theirs, at_most=at_most))

    for what in ("lists", "watches"):
        add(f"{what} at the datastore", served["questions"][what], "", direct["questions"][what], 0.2)
    add("all have listed after", served["begin"], "s", direct["begin"])
    for phase, words in (("begin ", "to begin"), ("", f"of {WRITES} writes")):
        for side in ("datastore", "server", "clients"):
            if direct[phase + side] or served[phase + side]:
                add(f"CPU {words}, {side}", served[phase + side], "s", direct[phase + side])
    for percent in (50, 99):
        theirs = 1000 * percentile(direct["told"], percent)
        add(f"all told, p{percent}", 1000 * percentile(served["told"], percent), "ms", theirs)
    for words, one in found.items():
        report.samples[f"{backend} {words}: told ms"] = [1000 * sample for sample in one["told"]]
    assert median(served["told"]) > 0


if __name__ == "__main__":
    sys.exit(alone(NAME))
