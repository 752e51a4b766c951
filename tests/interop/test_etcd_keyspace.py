"""Plain keys of a real etcd: swaps whose answers are lost, leases, a watch that is broken off.

keyspace ──► proxy ──► etcd          where answers are to be lost
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from cut_proxy import Proxy
from etcd_server import Etcd, needs_etcd, running
from flannel_etcds import until
from tortie.base.errors import Compacted, Unavailable
from tortie.model.apiconfig import ApiConfig
from tortie.store.etcd.keyspace import Entry, Keyspace, Span

pytestmark = needs_etcd


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


async def unanswered(etcd: Etcd, key: str, value: str, lease: int, at: int, then: str = "") -> Entry | None:
    """What a swap returns whose answer was lost; `then` is what somebody else writes before it can look."""
    proxy = Proxy(etcd.members[0].port)
    keys = Keyspace(ApiConfig(etcd_endpoints=await proxy.start()), "/")
    try:
        reading = await keys.read(Span.key(key))
        proxy.swallow()
        writing = asyncio.ensure_future(keys.swap(key, value, lease, at))
        await until(lambda: etcd.ctl("get", key, "--print-value-only").strip() == value)
        if then:
            etcd.ctl("put", key, then)
        proxy.cut()
        found = await writing
        assert reading.revision < int((await keys.read(Span.key(key))).revision)
        return found
    finally:
        await keys.close()
        await proxy.stop()


async def test_a_create_without_an_answer(etcd: Etcd) -> None:
    lease = int(etcd.ctl("lease", "grant", "1000").split()[1], 16)
    found = await unanswered(etcd, "/a", "one", lease, 0)
    assert found is not None
    assert (found.key, found.value, found.lease) == ("/a", "one", lease)
    again = await unanswered(etcd, "/a", "two", 0, found.revision)
    assert again is not None
    assert again.revision > found.revision


async def test_one_that_somebody_has_written_over(etcd: Etcd) -> None:
    assert await unanswered(etcd, "/b", "one", 0, 0, then="other") is None


async def test_a_swap_and_what_goes_for_it(etcd: Etcd) -> None:
    """All or nothing."""
    keys = Keyspace(ApiConfig(etcd_endpoints=etcd.url), "/")
    old = await keys.swap("/old", "1")
    assert old is not None
    etcd.ctl("put", "/old", "2")
    assert await keys.swap("/new", "1", instead=[old]) is None
    assert await keys.get("/new") is None
    old = await keys.get("/old")
    assert old is not None
    assert await keys.swap("/new", "1", instead=[old]) is not None
    assert (await keys.get("/old"), await keys.swap("/new", "2")) == (None, None)
    with pytest.raises(Unavailable, match="the lease for /late is gone already"):
        await keys.swap("/late", "", lease=12345)
    assert not await keys.keep_alive(12345)
    assert await keys.remaining(12345) == 0
    await keys.revoke(12345)
    await keys.close()


async def test_a_watch_that_is_broken_off(etcd: Etcd) -> None:
    keys = Keyspace(ApiConfig(etcd_endpoints=etcd.url), "/")
    watch = keys.watch(Span.prefix("/w/"), await keys.read(Span.prefix("/w/")))
    etcd.ctl("put", "/w/a", "1")
    (change,) = await anext(watch)
    assert (change.key, change.entry and change.entry.value) == ("/w/a", "1")
    keys.break_off()
    with pytest.raises(Compacted):
        await asyncio.wait_for(anext(watch), 5)
    await keys.close()
