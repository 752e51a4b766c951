"""Who leads: whole runs of several processes, on a clock that the test turns."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from tortie.base.errors import Conflict, NotSupported, TortieError, Unavailable
from tortie.controllers.leader import (
    NAME,
    NAMESPACE,
    Election,
    Fenced,
    Times,
)
from tortie.model.k8s import Namespace
from tortie.model.lease import Lease, LeaseSpec
from tortie.model.meta import Metadata, Resource
from tortie.model.store import Listing, R, Store
from tortie.store.memory import MemoryStore
from tortie.store.sqlite import SqliteStore

UTC_NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


class Time:
    """A clock for many, which the test turns."""

    def __init__(self) -> None:
        self.time = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    async def until(self, time: float) -> None:
        self._count += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (time, self._count, future))
        await future

    async def pass_by(self, seconds: float) -> None:
        target = self.time + seconds
        while True:
            for _ in range(60):  # whatever can be done without time going on
                await asyncio.sleep(0)
            if not self._sleepers or self._sleepers[0][0] > target:
                self.time = target
                return
            when, _, future = heapq.heappop(self._sleepers)
            self.time = max(self.time, when)
            if not future.done():
                future.set_result(None)


class Watch:
    """One process's clock: `offset` seconds away, `wall` away from the truth."""

    def __init__(self, time: Time, offset: float = 0.0, wall: timedelta = timedelta()) -> None:
        self._time, self._offset, self._wall = time, offset, wall

    def now(self) -> float:
        return self._time.time + self._offset

    def utc(self) -> datetime:
        return UTC_NOW + timedelta(seconds=self._time.time) + self._wall

    async def sleep(self, seconds: float) -> None:
        await self._time.until(self._time.time + seconds)


class Cable(Fenced):
    """A store behind a cable that can be cut (calls hang) or broken (calls fail)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.state = "whole"

    def _may_write(self) -> None:
        pass

    async def _pass(self) -> None:
        if self.state == "cut":
            await asyncio.get_running_loop().create_future()
        if self.state == "broken":
            raise Unavailable("the cable is broken")

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        await self._pass()
        return await super().get(kind, name, namespace)

    async def create(self, obj: R) -> R:
        await self._pass()
        return await super().create(obj)

    async def update(self, obj: R) -> R:
        await self._pass()
        return await super().update(obj)


class Process:
    """A candidate with its work, which counts how many work at once."""

    working: set[str]

    def __init__(self, name: str, store: Store, time: Time, working: set[str], offset: float = 0.0, days: int = 0):
        self.cable = Cable(store)
        self.name = name
        self.election = Election(self.cable, name, clock=Watch(time, offset, timedelta(days=days)))
        self.working = working
        self.given: Store | None = None
        self.task = asyncio.ensure_future(self.election.run(self.work))

    async def work(self, store: Store) -> None:
        self.given = store
        self.working.add(self.name)
        assert len(self.working) == 1, self.working
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.working.discard(self.name)

    async def kill(self) -> None:
        """As kill -9: nothing is given back."""
        self.cable.state = "broken"
        await self.stop()

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@dataclass
class Scene:
    time: Time
    store: MemoryStore
    working: set[str]
    processes: list[Process]

    def start(self, name: str, **more: int) -> Process:
        process = Process(name, self.store, self.time, self.working, **more)
        self.processes.append(process)
        return process

    async def lease(self) -> LeaseSpec:
        return (await self.store.get(Lease, NAME, NAMESPACE)).spec


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene(Time(), MemoryStore(), set(), [])
    yield scene
    for process in scene.processes:
        process.cable.state = "broken"
        process.task.cancel()
    await asyncio.gather(*(process.task for process in scene.processes), return_exceptions=True)


async def test_one_of_three_leads_and_the_next_when_it_is_killed(scene: Scene) -> None:
    one, two, three = (
        scene.start("one"),
        scene.start("two", offset=10**6, days=900),
        scene.start("three", offset=-5, days=-900),
    )
    await scene.time.pass_by(60)
    assert scene.working == {"one"}
    assert [each.election.holder for each in (one, two, three)] == ["one"] * 3
    await one.kill()
    await scene.time.pass_by(12)
    assert scene.working == set()  # nobody knows whether it still works
    await scene.time.pass_by(6)
    assert len(scene.working) == 1
    spec = await scene.lease()
    assert spec.lease_transitions == 1
    assert {spec.holder_identity} == scene.working
    await scene.time.pass_by(120)
    assert {(await scene.lease()).holder_identity} == scene.working == {spec.holder_identity}


async def test_given_back_when_stopped(scene: Scene) -> None:
    one = scene.start("one")
    await scene.time.pass_by(5)
    scene.start("two")
    await scene.time.pass_by(5)
    assert scene.working == {"one"}
    await one.stop()
    assert (await scene.lease()).holder_identity == ""
    await scene.time.pass_by(2.1)
    assert scene.working == {"two"}


@pytest.mark.parametrize("state", ["cut", "broken"])
async def test_a_leader_that_is_cut_off_stops_before_another_starts(scene: Scene, state: str) -> None:
    one, two = scene.start("one"), scene.start("two")
    await scene.time.pass_by(7)
    assert scene.working == {"one"}
    one.cable.state = state
    cut_at = scene.time.time
    stopped = started = None
    while started is None:
        await scene.time.pass_by(0.5)
        if not scene.working and stopped is None:
            stopped = scene.time.time
        if scene.working == {"two"}:
            started = scene.time.time
    assert stopped is not None
    assert stopped - cut_at <= 10.5
    assert 3 <= started - stopped <= 9
    assert one.given is not None
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable, match="does not lead"):
            await one.given.create(Namespace(metadata=Metadata(name="late")))
    one.cable.state = "whole"
    await scene.time.pass_by(30)
    assert scene.working == {"two"}
    assert one.election.holder == "two"
    await two.stop()
    await scene.time.pass_by(3)
    assert scene.working == {"one"}  # it leads again, without having been restarted
    assert one.given is not None
    await one.given.create(Namespace(metadata=Metadata(name="now")))


async def test_a_short_outage_is_ridden_out(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    one = scene.start("one")
    scene.start("two")
    await scene.time.pass_by(10)
    one.cable.state = "broken"
    await scene.time.pass_by(6)
    one.cable.state = "whole"
    await scene.time.pass_by(60)
    assert scene.working == {"one"}
    assert (await scene.lease()).lease_transitions == 0
    assert caplog.text.count("the cable is broken") == 1


async def test_a_process_that_stood_still_writes_nothing(scene: Scene) -> None:
    """Its tasks run before it looks at the lease again: what they would write is refused."""
    one = scene.start("one")
    await scene.time.pass_by(5)
    assert one.given is not None
    await one.given.create(Namespace(metadata=Metadata(name="before")))
    scene.time.time += 10  # nobody runs
    for verb in (one.given.create, one.given.update):
        with pytest.raises(Unavailable, match="nothing is written"):
            await verb(Namespace(metadata=Metadata(name="after")))
    with pytest.raises(Unavailable, match="nothing is written"):
        await one.given.delete(Namespace, "before")
    assert [each.name for each in (await one.given.list(Namespace)).items] == ["before"]


async def test_a_lease_taken_by_hand_ends_the_work(scene: Scene) -> None:
    scene.start("one")
    await scene.time.pass_by(5)
    stored = await scene.store.get(Lease, NAME, NAMESPACE)
    await scene.store.update(Lease(metadata=stored.metadata, spec=replace(stored.spec, holder_identity="hand")))
    await scene.time.pass_by(2.1)
    assert scene.working == set()
    await scene.time.pass_by(16)
    assert scene.working == {"one"}


class NoLeases(Cable):
    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        if kind is Lease:
            raise NotSupported("this datastore keeps no leases")
        return await super().get(kind, name, namespace)

    async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
        if kind is Lease:
            raise NotSupported("this datastore keeps no leases")
        return await super().list(kind, namespace)


async def test_without_leases_the_work_is_done_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    done: list[Store] = []

    async def work(store: Store) -> None:
        done.append(store)

    await Election(NoLeases(MemoryStore()), "one", clock=Watch(Time())).run(work)
    assert len(done) == 1
    assert "keeps no leases; working without electing a leader" in caplog.text


class Strange(Cable):
    """Keeps leases, of which one cannot be read: it is in no list then."""

    strange = True

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        if kind is Lease and self.strange:
            raise NotSupported("a stored Lease is not known to this version")
        return await super().get(kind, name, namespace)


async def test_a_lease_that_cannot_be_read_is_somebodys(caplog: pytest.LogCaptureFixture) -> None:
    time, store, working = Time(), Strange(MemoryStore()), asyncio.Event()

    async def work(_: Store) -> None:
        working.set()

    task = asyncio.ensure_future(Election(store, "one", clock=Watch(time)).run(work))
    await time.pass_by(60)
    assert not working.is_set()
    assert not task.done()
    assert caplog.text.count("a stored Lease is not known to this version; or delete it") == 1
    store.strange = False
    await time.pass_by(3)
    assert working.is_set()
    await task


@pytest.mark.parametrize("error", [Conflict("of the work"), ValueError("a bug")])
async def test_what_the_work_raises_ends_the_run_and_the_lead(error: Exception) -> None:
    store = MemoryStore()

    async def work(_: Store) -> None:
        raise error

    with pytest.raises(type(error)):
        await Election(store, "one").run(work)
    assert (await store.get(Lease, NAME, NAMESPACE)).spec.holder_identity == ""


async def test_two_over_one_file(tmp_path: Path) -> None:
    """The real clock and real processes' stores, in small."""
    times = Times(lease=1.0, renew=0.6, retry=0.1)
    stores = [SqliteStore(tmp_path / "store.db") for _ in range(2)]
    led: list[str] = []
    begun = [asyncio.Event(), asyncio.Event()]
    working: set[str] = set()

    async def work(name: str) -> None:
        begun[len(led)].set()
        led.append(name)
        working.add(name)
        assert len(working) == 1
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            working.discard(name)

    cables = [Cable(store) for store in stores]
    tasks = [
        asyncio.ensure_future(Election(cable, name, times=times).run(lambda _, name=name: work(name)))
        for name, cable in zip("ab", cables, strict=True)
    ]
    try:
        async with asyncio.timeout(15):
            await begun[0].wait()
            first = "ab".index(led[0])
            cables[first].state = "broken"
            await begun[1].wait()
            assert led[1] != led[0]
    finally:
        for cable in cables:
            cable.state = "broken"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for store in stores:
            await store.close()


def test_the_kind_is_kubernetes_own() -> None:
    assert issubclass(Lease, Resource)
    assert Lease.KIND.key == "leases.coordination.k8s.io"
    assert issubclass(Unavailable, TortieError)
