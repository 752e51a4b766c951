"""The embedded datastores keep the contract (tests/store_contract.py), and what only they promise."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, closing
from pathlib import Path

import pytest

from store_contract import *  # noqa: F403
from store_words import increasing, namespaces, netset, pool, revisions, seen, take
from tortie.base.errors import Compacted
from tortie.model.document import encode
from tortie.model.ipam import IPPool
from tortie.model.meta import changed
from tortie.model.policy import GlobalNetworkSet, NetworkSet
from tortie.model.store import EventType, Store
from tortie.store.memory import MemoryStore
from tortie.store.sqlite import SqliteStore

HISTORY = 500
"""Writes that the stores of the contract remember: enough for its tests, few enough to be forgotten quickly."""


class Embedded:
    """A `Backend` whose stores are new each time; they forget by writing on."""

    many = 100_000

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name
        self.numbers = itertools.count()

    def make(self, history: int = HISTORY) -> MemoryStore | SqliteStore:
        if self.name == "memory":
            return MemoryStore(history=history)
        return SqliteStore(self.path(next(self.numbers)), history=history)

    def path(self, number: int) -> Path:
        return self.directory / f"{number}.db"

    async def fresh(self) -> Store:
        return self.make()

    async def compact(self, store: Store) -> None:
        filler = await store.create(GlobalNetworkSet(metadata=pool("filler").metadata))
        for number in range(HISTORY + HISTORY // 64 + 1):
            filler = await store.update(changed(filler, labels={"n": str(number)}))

    async def bulk(self, store: Store, objects: Sequence[NetworkSet]) -> None:
        if isinstance(store, MemoryStore):
            for obj in objects:
                store._put(EventType.ADDED, changed(obj, resource_version=str(store._next)))
            return
        newest = int((await store.list(IPPool)).revision)
        with closing(sqlite3.connect(self.path(0))) as connection, connection:
            written = [changed(obj, resource_version=str(newest + n)) for n, obj in enumerate(objects, 1)]
            rows = ((obj.KIND.key, obj.namespace, obj.name, encode(obj)) for obj in written)
            connection.executemany("INSERT INTO objects (kind, namespace, name, body) VALUES (?, ?, ?, ?)", rows)
            last = [
                (int(obj.metadata.resource_version), "ADDED", obj.KIND.key, encode(obj)) for obj in written[-HISTORY:]
            ]
            connection.execute("DELETE FROM changes")
            connection.executemany("INSERT INTO changes (revision, type, kind, body) VALUES (?, ?, ?, ?)", last)


@pytest.fixture(params=["memory", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Embedded:
    return Embedded(tmp_path, request.param)


@pytest.fixture
async def make(backend: Embedded) -> Iterator[Callable[..., Store]]:
    """Makes fresh stores, `make(history=10)`; all are closed after the test."""
    made: list[Store] = []

    def make(history: int = HISTORY) -> Store:
        made.append(backend.make(history))
        return made[-1]

    yield make
    for store in made:
        await store.close()


# What only the embedded ones promise: revisions count the writes, and exactly so many are remembered ----------------


async def test_revisions_count_the_writes(make):
    store = make()
    assert (await store.list(IPPool)).revision == "0"
    made = await store.create(pool("a"))
    new = await store.update(changed(made, labels={"x": "y"}))
    assert await store.update(new) == new
    await store.delete(IPPool, "a")
    again = await store.create(pool("a"))
    assert revisions(made, new, again) == [1, 2, 4], "the deletion was a write, the update that changes nothing is none"
    assert (await store.list(NetworkSet)).revision == "4"


async def test_just_so_much_is_remembered(make):
    store = make(history=10)
    for i in range(25):
        await store.create(pool(f"p{i}"))
    for revision in ("0", "14", "26", "", "x"):
        with pytest.raises(Compacted, match="list again"):
            await anext(store.watch(IPPool, revision))
    async with aclosing(store.watch(IPPool, "15")) as watch:
        assert revisions(*(event.object for event in await take(watch, 10))) == list(range(16, 26))


async def test_a_watch_that_falls_behind_the_history_is_compacted(make):
    store = make(history=10)
    async with aclosing(store.watch(IPPool, "0")) as watch:
        await store.create(pool("first"))
        await take(watch, 1)
        for i in range(300):
            await store.create(pool(f"p{i}"))
        with pytest.raises(Compacted, match="list again"):
            await take(watch, 300)


async def test_a_quiet_watch_never_falls_behind(make):
    store = make(history=10)
    await store.create(pool("old"))
    async with aclosing(store.watch(IPPool, "1")) as watch:
        waiting = asyncio.create_task(take(watch, 1))
        await namespaces(store, "red")
        for i in range(300):
            await store.create(netset("red", f"w{i}"))
        new = await store.create(pool("new"))
        found = await waiting
        assert seen(found) == [("ADDED", "new")]
        assert found[0].object == new
        assert increasing([1, *revisions(new)])
