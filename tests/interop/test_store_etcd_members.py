"""Three members of an etcd on loopback: some are killed under load, one stops answering, and come back."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress

import pytest

from etcd_server import Etcd, Member, needs_etcd, running
from store_words import PATIENCE, increasing, pool, seen, take
from tortie.base.errors import Conflict, Unavailable
from tortie.model.apiconfig import ApiConfig
from tortie.model.ipam import IPPool
from tortie.model.meta import Metadata, changed
from tortie.model.policy import GlobalNetworkSet
from tortie.store.etcd.store import EtcdStore

pytestmark = needs_etcd

WRITERS = 4
DEADLINE = 20.0


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running(tmp_path_factory.mktemp("etcd"), members=3) as etcd:
        yield etcd


@pytest.fixture
def whole(etcd: Etcd) -> Etcd:
    """All members are there, and nothing is stored."""
    for member in etcd.members:
        if member.process is None:
            member.start()
    etcd.ready()
    etcd.ctl("del", "--prefix", "")
    return etcd


def client(etcd: Etcd, first: Member | None = None, **options: float) -> EtcdStore:
    """One that knows all members, and begins with `first`."""
    store = EtcdStore(ApiConfig(etcd_endpoints=etcd.urls), **options)
    if first is not None:
        store._wire.members.sort(key=lambda member: member.url != first.url)
    return store


async def until_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


class Load:
    """Writers that each create objects of their own and all add to one counter, and what was acknowledged."""

    def __init__(self, etcd: Etcd) -> None:
        self.stores = [client(etcd) for _ in range(WRITERS)]
        self.created: dict[str, int] = {}
        self.added: list[int] = []
        self.stop = asyncio.Event()

    async def write(self, number: int) -> None:
        store = self.stores[number]
        for count in itertools.count():
            if self.stop.is_set():
                return
            made = await store.create(pool(f"w{number}-{count}"))
            self.created[made.name] = int(made.metadata.resource_version)
            await self.add(store)

    async def add(self, store: EtcdStore) -> None:
        while True:
            counter = await store.get(GlobalNetworkSet, "counter")
            with suppress(Conflict):
                new = await store.update(changed(counter, labels={"n": str(int(counter.labels["n"]) + 1)}))
                self.added.append(int(new.metadata.resource_version))
                return

    async def grows(self, by: int = 10) -> None:
        """Waits until so many more writes were acknowledged to each writer, on the average."""
        until = len(self.added) + by * WRITERS
        await until_true(lambda: len(self.added) >= until)


async def test_members_die_under_load(whole: Etcd) -> None:
    """A follower, then the leader, without a goodbye. No acknowledged write is lost, none is carried out twice, and
    every watch sees each of them once, in order."""
    etcd, load = whole, Load(whole)
    readers = [client(etcd, member) for member in etcd.members]
    await load.stores[0].create(GlobalNetworkSet(metadata=Metadata(name="counter", labels={"n": "0"})))
    start = (await load.stores[0].list(IPPool)).revision
    told: list[list[tuple[str, int]]] = [[] for _ in readers]

    async def follow(reader: EtcdStore, found: list[tuple[str, int]]) -> None:
        async for batch in reader.watch(IPPool, start):
            found += [(event.object.name, int(event.object.metadata.resource_version)) for event in batch]

    async with asyncio.TaskGroup() as group:
        watching = [group.create_task(follow(*pair)) for pair in zip(readers, told, strict=True)]
        writing = [group.create_task(load.write(number)) for number in range(WRITERS)]
        await load.grows()
        leader = await asyncio.to_thread(etcd.leader)
        follower = next(member for member in etcd.members if member is not leader)
        follower.kill()
        await load.grows()
        follower.start()
        await asyncio.to_thread(etcd.ready)
        await load.grows()
        leader = await asyncio.to_thread(etcd.leader)
        leader.kill()
        await load.grows()
        leader.start()
        await asyncio.to_thread(etcd.ready)
        await load.grows()
        load.stop.set()
        await asyncio.gather(*writing)
        listing = await readers[0].list(IPPool)
        await until_true(lambda: all(len(found) >= len(listing.items) for found in told))
        for store in (*load.stores, *readers):
            await store.close()
        await asyncio.gather(*watching)

    assert {one.name: int(one.metadata.resource_version) for one in listing.items} == load.created
    expected = sorted(load.created.items(), key=lambda one: one[1])
    assert all(found == expected for found in told)
    assert len(set(load.added)) == len(load.added)
    counter = client(etcd)
    assert (await counter.get(GlobalNetworkSet, "counter")).labels == {"n": str(len(load.added))}
    await counter.close()


async def test_a_member_that_says_nothing_is_left(whole: Etcd) -> None:
    """It keeps its connections and answers nothing, as behind a broken network: its watches go elsewhere."""
    silent = next(member for member in whole.members if member is not whole.leader())
    watcher, writer = client(whole, silent, quiet=0.5), client(whole, whole.leader())
    async with aclosing(watcher.watch(IPPool, (await watcher.list(IPPool)).revision)) as watch:
        made = await writer.create(pool("a"))
        assert seen(await take(watch, 1)) == [("ADDED", "a")]
        silent.pause()
        try:
            begin = time.monotonic()
            new = await writer.update(changed(made, labels={"x": "y"}))
            assert seen(await take(watch, 1)) == [("MODIFIED", "a")]
            assert (await watcher.get(IPPool, "a")) == new
            assert time.monotonic() - begin < DEADLINE
        finally:
            silent.resume()
    await watcher.close()
    await writer.close()


async def test_a_write_through_a_silent_leader_is_told_rightly(whole: Etcd) -> None:
    """The leader freezes with a write under way: another member takes it, or it is found to be done. Once, in both
    cases."""
    leader = whole.leader()
    store = client(whole, leader, patience=30)
    made = await store.create(pool("a", labels={"n": "0"}))
    async with aclosing(store.watch(IPPool, made.metadata.resource_version)) as watch:
        leader.pause()
        try:
            new = await store.update(changed(made, labels={"n": "1"}))
        finally:
            leader.resume()
        assert await store.get(IPPool, "a") == new
        last = await store.update(changed(new, labels={"n": "2"}))
        found = await take(watch, 2)
        assert [event.object for event in found] == [new, last]
        assert increasing([int(event.object.metadata.resource_version) for event in found])
    await store.close()


async def test_without_a_majority_nothing_is_acknowledged(whole: Etcd) -> None:
    """One member of three: calls end as Unavailable, in time; when the others are back, everything goes on."""
    store = client(whole, patience=2)
    await store.create(pool("a"))
    async with aclosing(store.watch(IPPool, (await store.list(IPPool)).revision)) as watch:
        for member in whole.members[1:]:
            member.kill()
        begin = time.monotonic()
        with pytest.raises(Unavailable, match=r"^etcd http://.*: .+"):
            await store.create(pool("b"))
        assert time.monotonic() - begin < 15
        for member in whole.members[1:]:
            member.start()
        await asyncio.to_thread(whole.ready)
        await store.create(pool("c"))
        names: list[str] = []
        async with asyncio.timeout(PATIENCE):
            while "c" not in names:
                names += [event.object.name for event in await anext(watch)]
        assert names in (["c"], ["b", "c"]), "what was unsure may have been carried out"
    assert {one.name for one in (await store.list(IPPool)).items} in ({"a", "c"}, {"a", "b", "c"})
    await store.close()
