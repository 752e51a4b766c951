"""Connections to etcd that break between a request and its answer: a proxy swallows answers, then cuts.

store ──► proxy ──► etcd          another store, straight, sees what etcd did
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from aetcd import rpc

from cut_proxy import Proxy
from etcd_server import Etcd, needs_etcd, running
from store_words import pool, seen, take
from tortie.base.errors import Compacted, Conflict, Exists, NotFound
from tortie.model.apiconfig import ApiConfig
from tortie.model.ipam import BlockAffinity, BlockAffinitySpec, IPPool
from tortie.model.meta import Metadata, changed
from tortie.store.etcd import layout
from tortie.store.etcd.store import EtcdStore

pytestmark = needs_etcd


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture
async def proxy(etcd: Etcd) -> AsyncIterator[Proxy]:
    await asyncio.to_thread(etcd.ctl, "del", "--prefix", "")
    proxy = Proxy(etcd.members[0].port)
    yield proxy
    await proxy.stop()


@pytest.fixture
async def far(proxy: Proxy) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(ApiConfig(etcd_endpoints=await proxy.start()))
    await store.create(pool("warm"))  # a lease for receipts and a connection are there
    yield store
    await store.close()


@pytest.fixture
async def near(etcd: Etcd) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(ApiConfig(etcd_endpoints=etcd.url))
    yield store
    await store.close()


async def unanswered(
    proxy: Proxy, near: EtcdStore, write: Coroutine[Any, Any, IPPool], then: Callable[[], Any] | None = None
) -> tuple[Any, Any]:
    """Makes a write whose answer is lost: what it returned or raised, and what etcd did. `then` is done before the
    writer can look."""
    start = (await near.list(IPPool)).revision
    async with aclosing(near.watch(IPPool, start)) as watch:
        proxy.swallow()
        writing = asyncio.create_task(write)
        (event,) = await take(watch, 1)
        if then is not None:
            await then()
        proxy.cut()
        result = (await asyncio.gather(writing, return_exceptions=True))[0]
    return result, event


async def prepared(store: EtcdStore, name: str, **labels: str) -> IPPool:
    return await store.create(pool(name, labels=labels))


async def test_a_create_without_an_answer_succeeded(proxy: Proxy, far: EtcdStore, near: EtcdStore) -> None:
    result, event = await unanswered(proxy, near, far.create(pool("a")))
    assert event.type.value == "ADDED"
    assert result == event.object == await near.get(IPPool, "a")
    with pytest.raises(Exists):
        await far.create(pool("a"))


async def test_a_create_is_known_to_have_succeeded_though_the_object_is_gone(proxy, far, near) -> None:
    """Somebody has deleted it, and made another, before the writer could look: it was there all the same."""

    async def replace() -> None:
        await near.delete(IPPool, "a")
        await near.create(pool("a", "10.9.0.0/16"))

    result, event = await unanswered(proxy, near, far.create(pool("a")), replace)
    assert result == event.object
    assert (await near.get(IPPool, "a")).spec.cidr == "10.9.0.0/16"


async def test_an_update_without_an_answer_succeeded(proxy, far, near) -> None:
    made = await prepared(near, "a", n="0")

    async def go_on() -> None:
        await near.update(pool("a", labels={"n": "5"}))

    for then in (None, go_on):
        made = await near.get(IPPool, "a")
        # The update reads before it writes: its answer to the read must come through.
        result, event = await lost_update(proxy, far, near, changed(made, labels={"n": made.labels["n"] + "1"}), then)
        assert result == event.object
    assert (await near.get(IPPool, "a")).labels == {"n": "5"}


async def lost_update(proxy, far, near, new, then) -> tuple[Any, Any]:
    """Like `unanswered`, through the store's writes alone: what an update does after it has read."""
    start = (await near.list(IPPool)).revision
    async with aclosing(near.watch(IPPool, start)) as watch:
        proxy.swallow()
        writing = asyncio.create_task(
            far._writes.put(layout.key(new), layout.value(new), int(new.metadata.resource_version))
        )
        (event,) = await take(watch, 1)
        if then is not None:
            await then()
        proxy.cut()
        revision = await writing
    assert revision is not None, "it was told as a conflict"
    return layout.read(IPPool, layout.key(new), layout.value(new), revision, 1), event


async def test_of_two_that_write_the_same_only_one_has_written(proxy, far, near) -> None:
    """The same content over the same revision, by another, while our request is lost on its way: ours is a conflict,
    though what is stored is what we wanted."""
    made = await prepared(near, "a", n="0")
    new = changed(made, labels={"n": "1"})
    theirs = await near.update(new)
    proxy.swallow()
    writing = asyncio.create_task(
        far._writes.put(layout.key(new), layout.value(new), int(made.metadata.resource_version))
    )
    await asyncio.sleep(0.2)  # the refusal is swallowed
    proxy.cut()
    assert await writing is None
    with pytest.raises(Conflict):
        await far.update(new)
    assert await near.get(IPPool, "a") == theirs


async def test_a_delete_without_an_answer_succeeded(proxy, far, near) -> None:
    made = await prepared(near, "a")
    async with aclosing(near.watch(IPPool, made.metadata.resource_version)) as watch:
        proxy.swallow()
        deleting = asyncio.create_task(far._writes.delete(layout.key(made), int(made.metadata.resource_version)))
        (event,) = await take(watch, 1)
        again = await near.create(pool("a"))
        proxy.cut()
        assert await deleting == int(event.object.metadata.resource_version)
    assert await near.get(IPPool, "a") == again, "nothing else was deleted"
    with pytest.raises(NotFound):
        await far.delete(IPPool, "b")


async def test_records_without_a_uid_are_told_rightly(proxy, far, near) -> None:
    """What IPAM keeps has nothing in it that tells two writers apart."""
    affinity = BlockAffinity(
        metadata=Metadata(name="n1-10-0-0-0-26"),
        spec=BlockAffinitySpec(cidr="10.0.0.0/26", node="n1", state="pending", type="host"),
    )
    start = (await near.list(BlockAffinity)).revision
    async with aclosing(near.watch(BlockAffinity, start)) as watch:
        proxy.swallow()
        writing = asyncio.create_task(far.create(affinity))
        (event,) = await take(watch, 1)
        proxy.cut()
        assert await writing == event.object
    with pytest.raises(Exists):
        await near.create(affinity)


async def test_a_watch_goes_on_where_it_was_cut(proxy, far, near) -> None:
    """Ten cuts while another writes: every write once, in order."""
    start = (await near.list(IPPool)).revision
    async with aclosing(far.watch(IPPool, start)) as watch:
        following = asyncio.create_task(take(watch, 60))
        for number in range(60):
            await near.create(pool(f"p{number}"))
            if number % 6 == 5:
                proxy.cut()
        assert [name for _, name in seen(await following)] == [f"p{number}" for number in range(60)]


async def test_a_watch_that_was_cut_learns_of_compaction(etcd, proxy, far, near) -> None:
    await near.create(pool("a"))
    async with aclosing(far.watch(IPPool, (await near.list(IPPool)).revision)) as watch:
        await near.create(pool("b"))
        assert seen(await take(watch, 1)) == [("ADDED", "b")]
        proxy.swallow()
        await near.create(pool("c"))
        await near.delete(IPPool, "c")
        await asyncio.to_thread(etcd.compact)
        proxy.cut()
        with pytest.raises(Compacted):
            await take(watch, 1)


async def test_a_quiet_watch_is_not_broken_off(etcd: Etcd, near: EtcdStore) -> None:
    """etcd answers when it is asked whether it lives: the stream stays the same."""
    store = EtcdStore(ApiConfig(etcd_endpoints=etcd.url), quiet=0.1)
    async with aclosing(store.watch(IPPool, (await store.list(IPPool)).revision)) as watch:
        waiting = asyncio.create_task(take(watch, 2))
        await near.create(pool("q1"))
        await asyncio.sleep(0.1)
        (behind,) = store._watches
        call = behind._call
        await asyncio.sleep(1)
        assert behind._call is call
        await near.create(pool("q2"))
        assert seen(await waiting) == [("ADDED", "q1"), ("ADDED", "q2")]
    await store.close()


async def test_another_etcd_in_the_place_of_the_old_one(tmp_path: Path) -> None:
    """Emptied, or restored from a backup: revisions begin anew, and what watches know is worth nothing."""
    with running(tmp_path / "etcd") as etcd:
        store = EtcdStore(ApiConfig(etcd_endpoints=etcd.url), patience=30)
        for number in range(5):
            await store.create(pool(f"p{number}"))
        start = (await store.list(IPPool)).revision
        async with aclosing(store.watch(IPPool, start)) as watch:
            following = asyncio.create_task(take(watch, 100))
            await store.create(pool("last"))
            (member,) = etcd.members
            member.kill()
            shutil.rmtree(tmp_path / "etcd" / "m0")
            member.arguments = [one.replace("-token=etcd", "-token=another") for one in member.arguments]
            member.start()
            for number in range(20):  # more than there were, so that it is not the number alone that tells
                await store.create(pool(f"q{number}"))
            with pytest.raises(Compacted, match="list again"):
                await following
        assert len((await store.list(IPPool)).items) == 20
        await store.close()


async def test_another_etcd_between_a_list_and_its_watch(tmp_path: Path) -> None:
    """With as many revisions as the old one had, so that the number tells nothing."""
    with running(tmp_path / "etcd") as etcd:
        store = EtcdStore(ApiConfig(etcd_endpoints=etcd.url), patience=30)
        await store.create(pool("old"))
        start = (await store.list(IPPool)).revision
        (member,) = etcd.members
        member.kill()
        shutil.rmtree(tmp_path / "etcd" / "m0")
        member.arguments = [one.replace("-token=etcd", "-token=another") for one in member.arguments]
        member.start()
        for number in range(5):
            await store.create(pool(f"q{number}"))
        async with aclosing(store.watch(IPPool, start)) as watch:
            with pytest.raises(Compacted, match="of another etcd; list again"):
                await take(watch, 1)
        start = (await store.list(IPPool)).revision
        async with aclosing(store.watch(IPPool, start)) as watch:
            await store.create(pool("last"))
            assert seen(await take(watch, 1)) == [("ADDED", "last")]
        await store.close()


async def test_a_deletion_that_compaction_took_is_not_passed_over(etcd: Etcd, near: EtcdStore) -> None:
    """etcd lets a watch begin at the revision that it is compacted to, and says nothing of what was deleted there."""
    await near.create(pool("gone"))
    start = (await near.list(IPPool)).revision
    await near.delete(IPPool, "gone")
    await asyncio.to_thread(etcd.compact)
    async with aclosing(near.watch(IPPool, start)) as watch:
        with pytest.raises(Compacted):
            await take(watch, 1)
    start = (await near.list(IPPool)).revision  # the one that it is compacted to: nothing is missing after it
    async with aclosing(near.watch(IPPool, start)) as watch:
        await near.create(pool("next"))
        assert seen(await take(watch, 1)) == [("ADDED", "next")]


async def test_large_batches_come_in_fragments(etcd: Etcd, near: EtcdStore) -> None:
    """More than etcd sends at once, several revisions of which are of several keys: each key once, in order, though the
    connection is cut while they come."""
    await asyncio.to_thread(etcd.ctl, "del", "--prefix", "")
    start = (await near.list(IPPool)).revision
    expected = []
    for round_ in range(6):
        objects = [pool(f"r{round_}-{n}", annotations={"example.org/x": "x" * 120_000}) for n in range(10)]
        puts = [rpc.PutRequest(key=layout.key(obj), value=layout.value(obj)) for obj in objects]
        await near._wire.ask("Txn", rpc.TxnRequest(success=[rpc.RequestOp(request_put=put) for put in puts]))
        expected += [("ADDED", obj.name) for obj in objects]
    proxy = Proxy(etcd.members[0].port)
    store = EtcdStore(ApiConfig(etcd_endpoints=await proxy.start()))
    try:
        found: list[tuple[str, str]] = []
        async with aclosing(store.watch(IPPool, start)) as watch, asyncio.timeout(20):
            while len(found) < len(expected):
                found += seen(await anext(watch))
                proxy.cut()
        assert found == expected
    finally:
        await store.close()
        await proxy.stop()


async def test_a_lease_of_receipts_that_is_gone_is_replaced(etcd: Etcd, near: EtcdStore) -> None:
    await asyncio.to_thread(etcd.ctl, "del", "--prefix", "")
    await near.create(pool("a"))
    leases = (await asyncio.to_thread(etcd.ctl, "lease", "list")).split()
    for lease in leases:
        if len(lease) == 16:
            await asyncio.to_thread(etcd.ctl, "lease", "revoke", lease)
    left = await asyncio.to_thread(etcd.ctl, "get", "--prefix", "--keys-only", "/tortie/v1/.receipts/")
    assert left == "", "receipts go with their lease"
    made = await near.create(pool("b"))
    assert await near.get(IPPool, "b") == made
    assert (await near.list(IPPool)).items[0].name == "a", "and nothing else goes"
