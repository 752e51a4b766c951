"""Datastores: writes per second, and how long until a watcher has a write, alone and as one of fifty.

Each backend is asked through the same protocol: `memory`, `sqlite`, a real `etcd` of one member that syncs to disk, and
`kubernetes` against the tests' double of an API server, which runs in this process and says more about requests than
about time. What is measured is a create; then updates of one object by compare-and-swap, one after the other and by
sixteen at once, each on an object of its own.

The limit for etcd is measured in the same run: bare puts of the same bytes through gRPC, and a bare watch.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from bench.figures import Figure, Report, against, median, percentile
from bench.progress import Advance, alone
from tortie.model.apiconfig import ApiConfig
from tortie.model.k8s import Namespace
from tortie.model.meta import Metadata, changed
from tortie.model.policy import NetworkSet, NetworkSetSpec
from tortie.model.store import Store
from tortie.store.memory import MemoryStore
from tortie.store.sqlite import SqliteStore

NAME = "store"
TITLE = "Datastores: writes and watches"
TESTS = Path(__file__).parents[1] / "tests"
ROUNDS, EACH = 6, 40
"""How often backends and peer take turns, and how many writes each makes of a kind in a turn."""
ABREAST = 16
WATCHERS = (1, 50)
NETS = tuple(f"10.{number}.0.0/16" for number in range(40))
"""About a kilobyte, as endpoints and blocks have."""
NAMESPACE = "bench"
BARE = "bare gRPC"
MS = 1000
LEAST = 0.5
"""Of bare puts per second, what updates must come to: each is compared, has a receipt, and is JSON."""

Samples = dict[str, list[float]]


def netset(name: str, **labels: str) -> NetworkSet:
    metadata = Metadata(name=name, namespace=NAMESPACE, labels=labels)
    return NetworkSet(metadata=metadata, spec=NetworkSetSpec(nets=NETS))


def measure(advance: Advance) -> Report:
    report = Report(NAME, TITLE)
    asyncio.run(_measure(report, advance))
    return report


async def _measure(report: Report, advance: Advance) -> None:
    samples: dict[str, Samples] = {}
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tortie-bench-")))
        stores = await _opened(stack, directory, report)
        peer = await _peer(stack, report)
        for name, store in stores.items():
            with suppress(Exception):
                await store.create(Namespace(metadata=Metadata(name=NAMESPACE)))
            samples[name] = {}
        for number in range(ROUNDS):
            for name, store in stores.items():
                await _turn(store, samples[name], number)
            if peer is not None:
                await peer.turn(samples.setdefault(BARE, {}), number)
            advance(f"{NAME}: round {number + 1}")
        for watchers in WATCHERS:
            for name, store in stores.items():
                samples[name][_told(watchers)] = await _latency(store, watchers)
            if peer is not None:
                samples[BARE][_told(watchers)] = await peer.latency(watchers)
            advance(f"{NAME}: {watchers} watching")
    _figures(report, samples)


async def _opened(stack: AsyncExitStack, directory: Path, report: Report) -> dict[str, Store]:
    """The backends that can be had here, by name; why others cannot goes into the report."""
    stores: dict[str, Store] = {"memory": MemoryStore(), "sqlite": SqliteStore(directory / "store.db")}
    sys.path[:0] = [str(TESTS), str(TESTS / "interop")]
    for name, open_ in (("etcd", _etcd), ("kubernetes", _kubernetes)):
        try:
            stores[name] = await stack.enter_async_context(open_(directory))
        except (ImportError, OSError, RuntimeError) as error:
            report.missing[name] = str(error)
    for name in ("memory", "sqlite"):
        stack.push_async_callback(stores[name].close)
    return stores


@asynccontextmanager
async def _etcd(directory: Path) -> AsyncIterator[Store]:
    import etcd_server
    from tortie.store.etcd.store import EtcdStore

    if etcd_server.ETCD is None:
        raise RuntimeError("etcd is not installed")
    with etcd_server.running(directory / "etcd", sync=True) as etcd:
        store = EtcdStore(ApiConfig(etcd_endpoints=etcd.url))
        try:
            yield store
        finally:
            await store.close()


@asynccontextmanager
async def _kubernetes(directory: Path) -> AsyncIterator[Store]:
    import kube_store

    with kube_store.server(directory) as server:
        await asyncio.to_thread(server.empty, "networksets")
        store = server.store()
        try:
            yield store
        finally:
            await store.close()


async def timed(count: int, call: Callable[[int], Awaitable[Any]]) -> list[float]:
    """Seconds of each of so many calls, one after the other."""
    spent = []
    for number in range(count):
        before = time.perf_counter()
        await call(number)
        spent.append(time.perf_counter() - before)
    return spent


async def _turn(store: Store, samples: Samples, round_: int) -> None:
    samples.setdefault("create", []).extend(
        await timed(EACH, lambda number: store.create(netset(f"made-{round_}-{number}")))
    )
    kept = [await store.create(netset(f"kept-{round_}-{number}")) for number in range(ABREAST)]

    async def update(which: int, number: int) -> None:
        kept[which] = await store.update(replace(kept[which], metadata=_labelled(kept[which].metadata, number)))

    samples.setdefault("update", []).extend(await timed(EACH, lambda number: update(0, number)))
    samples.setdefault("abreast", []).append(await abreast(lambda which, number: update(which, -number - 1)))


async def abreast(call: Callable[[int, int], Awaitable[Any]]) -> float:
    """Seconds of a call when so many are made at once."""
    begin = time.perf_counter()

    async def some(which: int) -> None:
        for number in range(EACH // 4):
            await call(which, number)

    await asyncio.gather(*(some(which) for which in range(ABREAST)))
    return (time.perf_counter() - begin) / (ABREAST * (EACH // 4))


def _labelled(metadata: Metadata, number: int) -> Metadata:
    return replace(metadata, labels={"n": str(number).replace("-", "x")})


async def _latency(store: Store, watchers: int) -> list[float]:
    """Seconds from before a write until each of the watchers has it."""
    obj = await store.create(netset(f"watched-{watchers}"))
    start = (await store.list(NetworkSet)).revision
    spent: list[float] = []
    arrived = asyncio.Condition()
    counts: dict[str, int] = {}
    begun: dict[str, float] = {}

    async def follow() -> None:
        async with aclosing(store.watch(NetworkSet, start)) as watch:  # type: ignore[type-var]
            async for batch in watch:
                for event in batch:
                    now, mark = time.perf_counter(), event.object.labels.get("n", "")
                    if mark in begun:
                        spent.append(now - begun[mark])
                    async with arrived:
                        counts[mark] = counts.get(mark, 0) + 1
                        arrived.notify_all()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(follow()) for _ in range(watchers)]
        for number in range(EACH + 1):
            mark = str(number)
            if number:  # the first brings the watches up
                begun[mark] = time.perf_counter()
            obj = await store.update(changed(obj, labels={"n": mark}))
            async with arrived:
                await arrived.wait_for(lambda mark=mark: counts.get(mark, 0) == watchers)  # type: ignore[misc]
        for task in tasks:
            task.cancel()
    return spent


class Peer:
    """etcd itself: puts and a watch without a datastore around them."""

    def __init__(self, target: str) -> None:
        import grpc
        from aetcd import rpc

        self.rpc = rpc
        self.channel = grpc.aio.insecure_channel(target)
        self.kv = rpc.KVStub(self.channel)
        self.watches = rpc.WatchStub(self.channel)

    async def put(self, key: str, value: bytes) -> None:
        await self.kv.Put(self.rpc.PutRequest(key=key.encode(), value=value))

    async def turn(self, samples: Samples, round_: int) -> None:
        from tortie.store.etcd.layout import value

        body = value(netset("bare"))
        samples.setdefault("create", []).extend(
            await timed(EACH, lambda number: self.put(f"/bare/{round_}-{number}", body))
        )
        samples.setdefault("update", []).extend(await timed(EACH, lambda _: self.put("/bare/kept", body)))
        samples.setdefault("abreast", []).append(await abreast(lambda which, _: self.put(f"/bare/{which}", body)))

    async def latency(self, watchers: int) -> list[float]:
        """As many streams as there are watchers."""
        from tortie.store.etcd.layout import value

        request = self.rpc.WatchRequest(
            create_request=self.rpc.WatchCreateRequest(key=b"/watched/", range_end=b"/watched0", prev_kv=True)
        )
        calls = [self.watches.Watch() for _ in range(watchers)]
        for call in calls:
            await call.write(request)
            await call.read()
        spent: list[float] = []

        async def arrives(call: Any, begin: float) -> None:
            await call.read()
            spent.append(time.perf_counter() - begin)

        body = value(netset("bare"))
        for _ in range(EACH):
            begin = time.perf_counter()
            waiting = [asyncio.ensure_future(arrives(call, begin)) for call in calls]
            await self.put("/watched/one", body)
            await asyncio.gather(*waiting)
        for call in calls:
            call.cancel()
        return spent


async def _peer(stack: AsyncExitStack, report: Report) -> Peer | None:
    """On an etcd of its own, so that neither waits for the other's disk in the same file."""
    if "etcd" in report.missing:
        return None
    import etcd_server

    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tortie-bench-")))
    etcd = stack.enter_context(etcd_server.running(directory / "bare", sync=True))
    peer = Peer(etcd.url.removeprefix("http://"))
    stack.push_async_callback(peer.channel.close)
    return peer


def _told(watchers: int) -> str:
    return f"told, {watchers} watching"


def _figures(report: Report, samples: dict[str, Samples]) -> None:
    bare = samples.pop(BARE, None)
    for name, found in samples.items():
        limit = bare if name == "etcd" else None
        for what, words in (("create", "creates"), ("update", "updates"), ("abreast", f"updates, {ABREAST} at once")):
            per_second = 1 / median(found[what])
            if limit:
                theirs, least = 1 / median(limit[what]), LEAST if what == "update" else None
                report.figures.append(against(f"{name}: {words}", per_second, "/s", BARE, theirs, at_least=least))
            else:
                report.figures.append(Figure(f"{name}: {words}", per_second, "/s"))
        for watchers in WATCHERS:
            for percent in (50, 99):
                figure = f"{name}: {_told(watchers)}, p{percent}"
                mine = MS * percentile(found[_told(watchers)], percent)
                if limit:
                    theirs = MS * percentile(limit[_told(watchers)], percent)
                    report.figures.append(against(figure, mine, "ms", BARE, theirs))
                else:
                    report.figures.append(Figure(figure, mine, "ms"))
    for name, found in {**samples, **({BARE: bare} if bare else {})}.items():
        report.samples |= {f"{name} {what} ms": [MS * one for one in values] for what, values in found.items()}


STEPS = ROUNDS + len(WATCHERS)


if __name__ == "__main__":
    sys.exit(alone(NAME))
