"""An etcd that has come to its quota: it says so, and what is deleted goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest

from etcd_server import Etcd, needs_etcd, running
from store_words import seen, take
from tortie.base.errors import Conflict, NotFound, Unavailable
from tortie.model.apiconfig import ApiConfig
from tortie.model.meta import Metadata
from tortie.model.policy import NetworkSet, NetworkSetSpec
from tortie.store.etcd.store import EtcdStore

pytestmark = needs_etcd

NETS = tuple(f"10.{number // 256}.{number % 256}.0/24" for number in range(8000))


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running(tmp_path_factory.mktemp("etcd"), options=["--quota-backend-bytes=3000000"]) as etcd:
        yield etcd


@pytest.fixture
async def store(etcd: Etcd) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(ApiConfig(etcd_endpoints=etcd.url))
    yield store
    await store.close()


def large(name: str) -> NetworkSet:
    return NetworkSet(metadata=Metadata(name=name, namespace="red"), spec=NetworkSetSpec(nets=NETS))


async def fill(store: EtcdStore) -> None:
    for number in range(100):
        await store.create(large(f"s{number}"))


async def test_a_full_etcd_says_what_to_do_and_still_deletes(etcd: Etcd, store: EtcdStore) -> None:
    with pytest.raises(Unavailable, match=r"^etcd: its database is full: make room .*etcdctl alarm disarm"):
        await fill(store)
    there = await store.list(NetworkSet)
    assert len(there.items) > 5
    first, second, third = there.items[:3]
    other = EtcdStore(ApiConfig(etcd_endpoints=etcd.url))  # has no lease for receipts, and gets none now
    try:
        async with aclosing(store.watch(NetworkSet, there.revision)) as watch:
            await store.delete(NetworkSet, first.name, "red", first.metadata.resource_version)
            await other.delete(NetworkSet, second.name, "red")
            assert seen(await take(watch, 2)) == [("DELETED", first.name), ("DELETED", second.name)]
        with pytest.raises(NotFound):
            await store.delete(NetworkSet, first.name, "red")
        with pytest.raises(Conflict):
            await other.delete(NetworkSet, third.name, "red", "1")
        with pytest.raises(Unavailable, match="its database is full"):
            await other.create(large("late"))
        for one in there.items[2:]:
            await other.delete(NetworkSet, one.name, "red")
        await store.compact((await store.list(NetworkSet)).revision)
        for words in (("defrag",), ("alarm", "disarm")):
            await asyncio.to_thread(etcd.ctl, *words)
        await store.create(large("again"))
    finally:
        await other.close()
