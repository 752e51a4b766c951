"""A store by way of a fan-out server keeps the contract of all stores (tests/store_contract.py)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fanned import QUICK, servers
from store_contract import *  # noqa: F403
from store_words import namespaces, netset, pool, revisions
from tortie.fanout.server import Server, Settings
from tortie.model.meta import changed
from tortie.model.policy import GlobalNetworkSet, NetworkSet
from tortie.model.store import Store
from tortie.store.fanout.address import Address
from tortie.store.fanout.client import FanoutStore
from tortie.store.memory import MemoryStore
from tortie.store.sqlite import SqliteStore

HISTORY = 500


class Served(FanoutStore):
    """A client that has a server, and a store behind it, for itself alone."""

    def __init__(self, server: Server, address: Address, direct: Store) -> None:
        super().__init__(direct, servers([address], patience=QUICK))
        self.server = server

    async def close(self) -> None:
        await super().close()
        await self.server.close()


class Fanned:
    """A `Backend`. The store behind it and the server forget by writing on."""

    many = 20_000

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name
        self.numbers = itertools.count()
        self.made: list[Served] = []

    async def fresh(self) -> Store:
        number = next(self.numbers)
        path = self.directory / f"{number}.db"
        direct = MemoryStore(HISTORY) if self.name == "memory" else SqliteStore(path, HISTORY)
        server = Server(direct, Settings(history=HISTORY))
        address = await server.listen(Address(path=str(self.directory / f"{number}.sock")))
        self.made.append(Served(server, address, direct))
        return self.made[-1]

    async def compact(self, store: Store) -> None:
        """The datastore forgets by many writes to another kind, the server when it is told to."""
        filler = await store.create(GlobalNetworkSet(metadata=pool("filler").metadata))
        for number in range(HISTORY + HISTORY // 64 + 1):
            filler = await store.update(changed(filler, labels={"n": str(number)}))
        for served in self.made:
            for feed in served.server.feeds.values():
                feed.shelf.forget()

    async def bulk(self, store: Store, objects: Sequence[NetworkSet]) -> None:
        assert isinstance(store, FanoutStore)
        for obj in objects:
            await store.direct.create(obj)


@pytest.fixture(params=["memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fanned]:
    found = Fanned(tmp_path, request.param)
    yield found
    assert not any(one.servers.falls for one in found.made), "the server was away: this shows nothing of it"
    if "list" in request.node.name or "watch" in request.node.name:
        assert sum(one.served + one.followed for one in found.made), "nothing came by way of the server"


async def test_a_list_is_sorted_and_knows_its_revision(store: Store) -> None:
    """In the place of the contract's: revisions of lists count for their kind, as agents need it; a list is not made to
    wait for what has happened to other kinds."""
    await namespaces(store, "red", "blue", "blue-2")
    assert (await store.list(NetworkSet)).items == ()
    for namespace, name in (("red", "b"), ("blue", "z"), ("red", "a"), ("red", "a.b"), ("red", "a-b"), ("blue-2", "a")):
        last = await store.create(netset(namespace, name))
    listing = await store.list(NetworkSet)
    places = [(obj.namespace, obj.name) for obj in listing.items]
    assert places == sorted(places)
    assert len(places) == 6
    assert int(listing.revision) >= revisions(last)[0]
    assert [obj.name for obj in (await store.list(NetworkSet, "red")).items] == ["a", "a-b", "a.b", "b"]
    assert listing.items[0] == await store.get(NetworkSet, "z", "blue")
