"""A fan-out server on etcd and on a Kubernetes API server: clients go from it to the datastore and back at revisions
that both know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import kube_store
import pytest

import etcd_server
from fanned import Ground, Shared, servers
from store_words import pool, seen
from tortie.base.errors import Compacted
from tortie.fanout.feed import Pace
from tortie.fanout.kinds import FANNED, of_kubernetes
from tortie.fanout.server import Settings
from tortie.model.ipam import IPPool
from tortie.model.meta import changed
from tortie.model.store import Store
from tortie.store import open_store
from tortie.store.fanout.client import FanoutStore
from tortie.store.fanout.servers import Patience
from tortie.store.kubernetes import KubernetesStore

DEADLINE = 20.0
HASTE = Patience(grace=0.05, spread=0.05, first_retry=0.02, longest_retry=0.1, again=0.1, avoid=0.05)
PACE = Pace(pause=0.1)


@pytest.fixture(scope="module", params=["etcd", "kubernetes"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Store]]:
    """Opens another client of the same datastore."""
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "etcd":
        if etcd_server.ETCD is None:
            pytest.skip("etcd is not installed")
        with etcd_server.running(directory) as etcd:
            yield lambda: open_store(f"etcd:{etcd.url}", environment={})
        return
    with kube_store.server(directory) as server:
        server.empty()
        yield server.store


@pytest.fixture
async def ground(opened: Callable[[], Store], tmp_path: Path) -> AsyncIterator[Ground]:
    store = opened()
    kinds = of_kubernetes() if isinstance(store, KubernetesStore) else FANNED
    async with Ground(tmp_path, store, Settings(pace=PACE, kinds=kinds)) as ground:
        yield ground
    await store.close()


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not true():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.02)


async def test_from_a_server_to_the_datastore_and_back(ground: Ground, opened: Callable[[], Store]) -> None:
    own = opened()
    client = FanoutStore(Shared(own), servers([ground.address], patience=HASTE))
    writer = ground.direct
    told: list[tuple[str, str]] = []
    relists = 0

    async def follow() -> None:
        nonlocal relists
        while True:
            listing = await client.list(IPPool)
            try:
                async for batch in client.watch(IPPool, listing.revision):
                    told.extend(seen(batch))
            except Compacted:
                relists += 1

    try:
        await until(lambda: not ground.server.unready)
        made = await writer.create(pool("a"))
        shelf = ground.server.feeds[IPPool.KIND.key].shelf
        await until(lambda: shelf.revision >= int(made.metadata.resource_version))
        following = asyncio.create_task(follow())
        await until(lambda: client.followed)
        assert (client.served, client.asked) == (1, 0)
        await writer.update(changed(made, labels={"n": "1"}))
        await until(lambda: told == [("MODIFIED", "a")])
        await ground.stop()
        await writer.create(pool("b"))
        await until(lambda: told[1:] == [("ADDED", "b")])
        assert client.servers.fallen_back
        assert relists == 0
        await writer.delete(IPPool, "b")
        await until(lambda: told[2:] == [("DELETED", "b")])
        await ground.start()
        await until(lambda: any(session.readings for session in ground.server.sessions))
        await writer.create(pool("c"))
        await until(lambda: told[-1:] == [("ADDED", "c")])
        assert relists <= 1
        following.cancel()
        mine = await client.create(pool("d"))
        await client.delete(IPPool, "a")
        listed = (await client.list(IPPool)).items
        assert [one.name for one in listed] == ["c", "d"]
        assert mine in listed
        assert client.served >= 2
    finally:
        await client.close()
        await own.close()


async def test_every_kind_is_listed_as_the_datastore_lists_it(ground: Ground, opened: Callable[[], Store]) -> None:
    own = opened()
    client = FanoutStore(Shared(own), servers([ground.address], patience=HASTE))
    try:
        await until(lambda: not ground.server.unready)
        for kind in ground.settings.kinds:
            assert (await client.list(kind)).items == (await own.list(kind)).items, kind
        assert client.asked == 0
    finally:
        await client.close()
        await own.close()
