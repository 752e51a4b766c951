"""Many processes on one SQLite store: no address is ever held twice, and whoever is killed leaves nothing broken.

Each process keeps a journal: when an assignment returned, when a release began. An address is surely held from the one
to the other, on a clock that all processes share; two such intervals of one address must not overlap.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

from tortie.base.errors import NotFound, Unavailable
from tortie.ipam.assign import Ipam
from tortie.ipam.block import Release, held_slots
from tortie.ipam.check import Finding, check
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMHandle, IPPool, IPPoolSpec
from tortie.model.meta import Metadata
from tortie.model.node import Node
from tortie.model.store import Store
from tortie.policy.selector import parse
from tortie.store import open_store

WORKERS = 8
EACH = 500
"""Addresses that a worker holds at the end."""
SINGLES = 150
"""How many of them come one by one."""
NODES = [f"node{max(1, i)}" for i in range(WORKERS)]
"""The first two workers are two processes of one node."""


def matches(selector: str, labels: Mapping[str, str]) -> bool:
    return parse(selector).matches(labels)


def now() -> datetime:
    return datetime.now(UTC)


class Journal:
    """What a process knows to hold, line by line, so that it survives a kill."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def note(self, verb: str, at: int, handle: str, ips: list[str]) -> None:
        self._file.write(f"{verb} {at} {handle} {' '.join(ips)}\n".encode())


async def assign(ipam: Ipam, journal: Journal, handle: str, count: int) -> list[str]:
    got = await ipam.auto_assign(count, handle=handle, attrs={"node": ipam.owner.name})
    ips = [str(ip.ip) for ip in got.ips]
    journal.note("+", time.monotonic_ns(), handle, ips)
    if got.v4.error:
        raise got.v4.error
    return ips


async def fill(path: str, node: str, name: str, journal: Journal) -> None:
    """Assigns until this worker holds EACH addresses, releasing some of them on the way."""
    store, dice = open_store(path), random.Random(name)
    ipam, held, singles = Ipam(store, node, now, matches), dict[str, list[str]](), 0
    while (missing := EACH - sum(map(len, held.values()))) > 0:
        handle = f"net.{name}-{len(held)}-{missing}-{singles}"
        singles += singles < SINGLES
        held[handle] = await assign(
            ipam, journal, handle, 1 if singles < SINGLES else min(missing, dice.randint(4, 12))
        )
        if dice.random() < 0.1:
            journal.note("-", time.monotonic_ns(), handle, held.pop(handle))
            await ipam.release_by_handle(handle)
        elif dice.random() < 0.1:
            some = dice.choice(list(held))
            ip = held[some].pop()
            journal.note("-", time.monotonic_ns(), some, [ip])
            assert (await ipam.release_ips([Release(ip_address(ip), some)])).error is None
            held = {handle: ips for handle, ips in held.items() if ips}
    await store.close()


async def churn(path: str, node: str, name: str, journal: Journal) -> None:
    """Assigns and releases for ever, blocks included; waits to be killed."""
    store, dice = open_store(path), random.Random(name)
    ipam, handles = Ipam(store, node, now, matches), list[str]()
    for i in range(1_000_000):
        handle = f"net.{name}-{i}"
        handles.append(handle)
        try:
            await assign(ipam, journal, handle, dice.randint(1, 3))
        except Unavailable:
            journal.note("!", time.monotonic_ns(), handle, [])
        while handles and dice.random() < 0.5:
            gone = handles.pop(dice.randrange(len(handles)))
            journal.note("-", time.monotonic_ns(), gone, [])
            try:
                await ipam.release_by_handle(gone)
            except NotFound:
                pass
        if dice.random() < 0.3:
            await ipam.release_host_affinities(require_empty=True)


def spawn(work: str, path: Path, node: str, name: str) -> asyncio.Future[asyncio.subprocess.Process]:
    """This file as a program: one worker in a process of its own."""
    command = (sys.executable, __file__, work, str(path), node, name, str(path.with_name(f"{name}.journal")))
    return asyncio.ensure_future(asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE))


async def cluster(path: Path, cidr: str, block: int) -> Store:
    store = open_store(path)
    await store.create(IPPool(metadata=Metadata(name="pool"), spec=IPPoolSpec(cidr=cidr, block_size=block)))
    for node in sorted(set(NODES)):
        await store.create(Node(metadata=Metadata(name=node)))
    return store


async def findings(store: Store) -> list[Finding]:
    blocks = (await store.list(IPAMBlock)).items
    return check(blocks, (await store.list(IPAMHandle)).items, (await store.list(BlockAffinity)).items)


async def stored(store: Store) -> Counter[tuple[str, str]]:
    """(address, handle) pairs that the blocks have."""
    return Counter(
        (str(block.spec.net[slot]), held.handle_id or "")
        for block in (await store.list(IPAMBlock)).items
        for slot, held in held_slots(block.spec)
    )


def intervals(journals: list[Path]) -> dict[str, list[tuple[int, int, str]]]:
    """When each address was surely held, and by which handle; for ever if it was not released."""
    found: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for journal in journals:
        held: dict[tuple[str, str], int] = {}
        for line in journal.read_text().splitlines():
            verb, at, handle, *ips = line.split(" ")
            if verb == "+":
                held |= {(ip, handle): int(at) for ip in ips if ip}
                continue
            every = [ip for ip, holder in held if holder == handle]
            for ip in [ip for ip in ips if ip] or every:
                found[ip].append((held.pop((ip, handle)), int(at), handle))
        for (ip, handle), start in held.items():
            found[ip].append((start, sys.maxsize, handle))
    return found


def assert_never_twice(held: dict[str, list[tuple[int, int, str]]]) -> None:
    for ip, times in held.items():
        times.sort()
        for (_, end, first), (start, _, second) in pairwise(times):
            assert end <= start, f"{ip} was given to {second} while {first} held it"


async def test_eight_processes_fill_a_pool(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = await cluster(path, "10.0.0.0/20", 26)
    names = [f"w{i}" for i in range(WORKERS)]
    workers = await asyncio.gather(*(spawn("fill", path, node, name) for node, name in zip(NODES, names, strict=True)))
    for worker in workers:
        _, errors = await worker.communicate()
        assert worker.returncode == 0, errors.decode()
    held = intervals([path.with_name(f"{name}.journal") for name in names])
    assert_never_twice(held)
    final = {(ip, handle) for ip, times in held.items() for _, end, handle in times if end == sys.maxsize}
    assert len(final) == WORKERS * EACH
    assert await stored(store) == Counter(final)
    assert [str(finding) for finding in await findings(store)] == []
    handles = (await store.list(IPAMHandle)).items
    assert Counter(handle for _, handle in final) == {
        each.spec.handle_id: sum(each.spec.block.values()) for each in handles
    }
    await store.close()


ROUNDS = 5
KILLED = ("node1", "node1", "node2")
ROOM = 80
"""Addresses that fit into 10 blocks: there are 32, a node may hold 20, and two processes of it that see 19 hold 21."""


async def test_killed_processes_leave_nothing_broken(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = await cluster(path, "10.0.0.0/24", 29)
    names: list[str] = []
    for turn in range(ROUNDS):
        fresh = [f"k{turn}-{i}" for i in range(len(KILLED))]
        names += fresh
        workers = await asyncio.gather(
            *(spawn("churn", path, node, name) for node, name in zip(KILLED, fresh, strict=True))
        )
        await first_lines([path.with_name(f"{name}.journal") for name in fresh])
        for worker in workers:
            await asyncio.sleep(random.uniform(0.02, 0.15))
            assert worker.returncode is None, (await worker.communicate())[1].decode()
            worker.send_signal(signal.SIGKILL)
        for worker in workers:
            await worker.communicate()
            assert worker.returncode == -signal.SIGKILL
        bad = [str(finding) for finding in await findings(store) if not finding.harmless]
        assert bad == [], f"after round {turn}"
    journals = [path.with_name(f"{name}.journal") for name in names]
    assert_never_twice(intervals(journals))
    await recovers(store)
    await store.close()


async def first_lines(journals: list[Path]) -> None:
    """Until every worker is at work."""
    for _ in range(2000):
        if all(journal.exists() and journal.stat().st_size for journal in journals):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the workers did not start in 20 s")


async def recovers(store: Store) -> None:
    """New processes of the nodes assign as if nothing had happened; when all is released, nothing is left over."""
    ipams = [Ipam(store, node, now, matches) for node in sorted(set(KILLED))]
    for handle in (await store.list(IPAMHandle)).items:
        await ipams[0].release_by_handle(handle.spec.handle_id)
    assert await stored(store) == Counter()
    for i, ipam in enumerate(ipams):
        got = await ipam.auto_assign(ROOM, handle=f"after-{i}", attrs={})
        assert len(got.ips) == ROOM, got.v4
        assert {ip.network for ip in got.ips} <= set(await ipam.host_blocks())
    assert [str(finding) for finding in await findings(store) if not finding.harmless] == []
    for i, ipam in enumerate(ipams):
        await ipam.release_by_handle(f"after-{i}")
        assert await ipam.release_host_affinities(require_empty=True) == ()
    assert (await store.list(IPAMHandle)).items == ()
    assert (await store.list(BlockAffinity)).items == ()
    assert [str(finding) for finding in await findings(store) if not finding.harmless] == []


if __name__ == "__main__":
    work, store_path, node_name, worker_name, journal_path = sys.argv[1:]
    asyncio.run({"fill": fill, "churn": churn}[work](store_path, node_name, worker_name, Journal(Path(journal_path))))
