"""Addresses per second: in memory and on SQLite, by one process and by eight, and with how many blocks a node holds.

Nothing touches a kernel here. One assignment is what a pod costs: choose a pool, find a block, count the handle up,
write the block. It is held against a limit measured on the same file system in the same run: bare compare-and-swaps of
one row, each in a transaction of its own, as any program could make them with SQLite.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import fmean

from msgspec.structs import replace

from bench.figures import Figure, Report, against, median
from bench.progress import Advance, alone
from tortie.base.addr import parse_net
from tortie.ipam.affinity import obtain
from tortie.ipam.assign import Ipam
from tortie.ipam.ledger import Ledger
from tortie.ipam.owner import Owner
from tortie.model.ipam import AllocationAttribute, IPAMBlockSpec, IPAMConfig, IPAMConfigSpec, IPPool, IPPoolSpec
from tortie.model.meta import Metadata
from tortie.model.node import Node
from tortie.model.store import Store
from tortie.policy.selector import parse
from tortie.store.memory import MemoryStore
from tortie.store.sqlite import SqliteStore

NAME = "ipam"
TITLE = "Assigning addresses, one by one"
BARE = "a bare SQLite transaction"
POOL, BLOCK = "10.0.0.0/12", 26
PROCESSES, EACH = 8, 400
ALONE = 1_500
BLOCKS = (1, 100, 1000, 1563)
"""How many blocks a node holds, all but one of them full; the last are those of 100,000 addresses."""
ROUND, ROUNDS, WARM = 8, 72, 9
"""Assignments between two looks at another number of blocks, so that all have the same weather; how many looks; and how
many before that, in which each node claims a block and makes the one look at all of them."""
BODY = 8_000
"""Bytes of a block that is half full, about."""
SWAP = "a compare-and-swap through the datastore"
MOST = 4.0
"""Of those, what one assignment may cost: it makes two, and reads what it decides on."""
FLAT, CLAIMS_TOO = 1.5, 2.0
"""How much longer it may take with many blocks: as such, and with the claims, one in 64, that list all others."""
US = 1_000_000


def now() -> datetime:
    return datetime.now(UTC)


def matches(text: str, labels: Mapping[str, str]) -> bool:
    return parse(text).matches(labels)


def node(number: int) -> str:
    return f"node{number}"


async def furnish(store: Store, nodes: int) -> None:
    """A cluster with one pool, whose nodes may hold as many blocks as they like."""
    await store.create(IPPool(metadata=Metadata(name="main"), spec=IPPoolSpec(cidr=POOL)))
    config = IPAMConfigSpec(strict_affinity=True, max_blocks_per_host=100_000)
    await store.create(IPAMConfig(metadata=Metadata(name="default"), spec=config))
    for number in range(nodes):
        await store.create(Node(metadata=Metadata(name=node(number))))


def noted(where: str, pod: str) -> dict[str, str]:
    """What is noted with each address, as the agent does."""
    return {"node": where, "pod": pod, "namespace": "default", "timestamp": f"{now():%Y-%m-%d %H:%M:%S.%f} +0000 UTC"}


async def assign(ipam: Ipam, handles: Iterator[str], times: int) -> list[float]:
    """Seconds of each of so many assignments."""
    spent: list[float] = []
    for handle in (next(handles) for _ in range(times)):
        before = time.perf_counter()
        attrs = noted(ipam.owner.name, handle)
        (_,) = await ipam.all_or_nothing(await ipam.auto_assign(1, handle=handle, attrs=attrs))
        spent.append(time.perf_counter() - before)
    return spent


def handles(where: str) -> Iterator[str]:
    return (f"k8s-pod-network.{where}-{number:032x}" for number in count())


async def fill(store: Store, where: str, blocks: int) -> None:
    """Gives a node so many blocks, all but the last of them full of pods."""
    ledger, nets = Ledger(store, now), parse_net(POOL).subnets(new_prefix=BLOCK)
    for number in range(blocks):
        block = await obtain(ledger, Owner(where), next(nets))
        if number + 1 < blocks:
            await ledger.write_block(block, _full(block.spec, where))


def _full(spec: IPAMBlockSpec, where: str) -> IPAMBlockSpec:
    slots = range(len(spec.allocations))
    handles = [f"k8s-pod-network.{spec.cidr}-{slot:032x}" for slot in slots]
    attributes = tuple(AllocationAttribute(handle_id=each, secondary=noted(where, each)) for each in handles)
    sequences = {str(slot): spec.sequence_number for slot in slots}
    return replace(
        spec,
        allocations=tuple(slots),
        unallocated=(),
        attributes=attributes,
        sequence_number_for_allocation=sequences,
    )


def measure(advance: Advance) -> Report:
    report = Report(NAME, TITLE)
    with tempfile.TemporaryDirectory(prefix="tortie-bench-") as directory:
        asyncio.run(_single(report, Path(directory), advance))
        _many(report, Path(directory), advance)
        asyncio.run(_held(report, Path(directory), advance))
    return report


async def _single(report: Report, directory: Path, advance: Advance) -> None:
    """One process with a datastore of its own; bare transactions in between."""
    memory, sqlite = MemoryStore(), SqliteStore(directory / "alone.db")
    spent: dict[str, list[float]] = {"memory": [], "SQLite": [], SWAP: [], BARE: []}
    ipams = {name: Ipam(store, node(0), now, matches) for name, store in (("memory", memory), ("SQLite", sqlite))}
    some = handles(node(0))
    for store in (memory, sqlite):
        await furnish(store, 1)
    prepare(directory / "bare.db")
    for _ in range(ROUNDS):
        for name, ipam in ipams.items():
            spent[name] += await assign(ipam, some, ALONE // ROUNDS)
        spent[SWAP] += await swap(sqlite, ALONE // ROUNDS)
        spent[BARE] += await asyncio.to_thread(bare, directory / "bare.db", ALONE // ROUNDS)
    for store in (memory, sqlite):
        await store.close()
    for name, one in spent.items():
        report.samples[f"{name} us"] = [US * each for each in one]
    cost, through, one = (US * median(spent[name]) for name in (BARE, SWAP, "SQLite"))
    report.figures += [
        Figure("assigned in memory", len(spent["memory"]) / sum(spent["memory"]), "/s"),
        Figure("assigned on SQLite", len(spent["SQLite"]) / sum(spent["SQLite"]), "/s"),
        against("one assignment on SQLite", one, "µs", BARE, cost),
        against(f"  {SWAP}", through, "µs", BARE, cost),
        against("  one assignment, in those", one, "µs", SWAP, through, at_most=MOST),
    ]
    advance(f"{NAME}: one process")


async def swap(store: Store, times: int) -> list[float]:
    """Seconds of each of so many writes of a block that somebody uses."""
    ledger, spent = Ledger(store, now), []
    (block, *_) = await ledger.blocks()
    for _ in range(times):
        before = time.perf_counter()
        block = await ledger.write_block(block)
        spent.append(time.perf_counter() - before)
    return spent


def prepare(path: Path) -> None:
    """A table with one row, which bare transactions change."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS one (revision INTEGER, body BLOB)")
        connection.execute("INSERT INTO one VALUES (0, ?)", (b"x" * BODY,))


def bare(path: Path, times: int) -> list[float]:
    """Seconds of each of so many compare-and-swaps, as durable as the datastore's."""
    spent: list[float] = []
    with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as connection:
        connection.execute("PRAGMA synchronous = NORMAL")
        for _ in range(times):
            before = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            (revision,) = connection.execute("SELECT revision FROM one").fetchone()
            wanted = (revision + 1, b"x" * BODY, revision)
            assert connection.execute("UPDATE one SET revision = ?, body = ? WHERE revision = ?", wanted).rowcount == 1
            connection.execute("COMMIT")
            spent.append(time.perf_counter() - before)
    return spent


def _many(report: Report, directory: Path, advance: Advance) -> None:
    """Eight processes, each a node of its own, on one datastore; then as many that make bare transactions."""
    path = directory / "together.db"

    async def furnished() -> None:
        store = SqliteStore(path)
        await furnish(store, PROCESSES)
        await store.close()

    asyncio.run(furnished())
    ours = _at_once(_assign_as, path)
    theirs = _at_once(_bare_as, directory / "bare.db")
    report.figures.append(
        against(
            f"assigned by {PROCESSES} processes", ours, "/s", f"pairs of bare transactions by {PROCESSES}", theirs / 2
        )
    )
    advance(f"{NAME}: {PROCESSES} processes")


def _at_once(work: Callable[[Path, int, float], tuple[float, float]], path: Path) -> float:
    """How often a second all of them together did it."""
    start = time.monotonic() + 2
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(work, path, number, start) for number in range(PROCESSES)]
        spans = [each.result() for each in running]
    return PROCESSES * EACH / (max(end for _, end in spans) - min(begin for begin, _ in spans))


def _assign_as(path: Path, number: int, start: float) -> tuple[float, float]:
    async def run() -> tuple[float, float]:
        store = SqliteStore(path, patience=60)
        ipam = Ipam(store, node(number), now, matches)
        await asyncio.sleep(max(0.0, start - time.monotonic()))
        begin = time.monotonic()
        await assign(ipam, handles(node(number)), EACH)
        end = time.monotonic()
        await store.close()
        return begin, end

    return asyncio.run(run())


def _bare_as(path: Path, number: int, start: float) -> tuple[float, float]:
    time.sleep(max(0.0, start - time.monotonic()))
    begin = time.monotonic()
    bare(path, EACH)
    return begin, time.monotonic()


async def _held(report: Report, directory: Path, advance: Advance) -> None:
    """The same assignment on nodes that hold more and more blocks. All figures but the first are held against it."""
    stores = {blocks: SqliteStore(directory / f"{blocks}.db") for blocks in BLOCKS}
    spent: dict[int, list[float]] = {blocks: [] for blocks in BLOCKS}
    ipams = {blocks: Ipam(store, node(0), now, matches) for blocks, store in stores.items()}
    some = handles(node(0))
    for blocks, store in stores.items():
        await furnish(store, 1)
        await fill(store, node(0), blocks)
        advance(f"{NAME}: {blocks} blocks")
    first = {blocks: US * sum(await assign(ipam, some, 1)) for blocks, ipam in ipams.items()}
    for _ in range(WARM + ROUNDS):
        for blocks, ipam in ipams.items():
            spent[blocks] += await assign(ipam, some, ROUND)
    spent = {blocks: each[WARM * ROUND :] for blocks, each in spent.items()}
    for store in stores.values():
        await store.close()
    few, many = BLOCKS[0], BLOCKS[-1]
    for blocks, each in spent.items():
        report.samples[f"{blocks} blocks us"] = [US * one for one in each]
    for what, of, most in (("typical", median, FLAT), ("mean, claims of blocks in it", fmean, CLAIMS_TOO)):
        least = US * of(spent[few])
        report.figures.append(Figure(f"{what}, {few} block", least, "µs"))
        report.figures += [
            against(f"{what}, {blocks} blocks", US * of(spent[blocks]), "µs", f"{few} block", least, at_most=most)
            for blocks in BLOCKS[1:]
        ]
    report.figures.append(Figure(f"the first after a start, {many} blocks", first[many], "µs"))
    advance(f"{NAME}: blocks held")


STEPS = 3 + len(BLOCKS)


if __name__ == "__main__":
    sys.exit(alone(NAME))
