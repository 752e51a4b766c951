"""A real etcd goes away, forgets its history, changes its leader: flannel's nodes keep their ways.

node ──► proxy ──► etcd          where answers are to be lost, or connections cut
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

import flannel_etcds
from cut_proxy import Proxy
from etcd_server import Etcd, needs_etcd, running
from flannel_etcds import PREFIX, Neighbours, attrs, configure, etcd_lease, joined, stored, until
from tortie.base.errors import Unavailable
from tortie.flannel.lease import value
from tortie.flannel.managers.etcd import EtcdManager
from tortie.store.etcd.keyspace import Entry

pytestmark = needs_etcd

Make = Callable[..., EtcdManager]
SOON = 24 * 60 - 2 / 60
"""A margin, in minutes, that has a lease renewed after two seconds."""


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    """One of its own for each test: it is killed."""
    with flannel_etcds.one_etcd(tmp_path / "etcd") as etcd:
        yield etcd


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    async with flannel_etcds.managers() as make:
        yield make


async def test_an_etcd_that_is_not_there(etcd: Etcd, make: Make) -> None:
    etcd.members[0].kill()
    begin = time.monotonic()
    for ask in (make(etcd).network, make(etcd).leases, lambda: make(etcd).remembered(attrs())):
        with pytest.raises(Unavailable, match=f"^etcd {etcd.url}: "):
            await ask()
    assert time.monotonic() - begin < 12


async def test_questions_about_many_leases_end_with_the_first_that_gets_no_answer(etcd: Etcd, make: Make) -> None:
    one = make(etcd, patience=0.5)
    await one.leases()
    etcd.members[0].pause()
    try:
        before = len(asyncio.all_tasks())
        with pytest.raises(Unavailable):
            await one._ask_ends([Entry(f"{PREFIX}/subnets/{number}", "", 1, number) for number in range(1, 1000)])
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) < before + 100
    finally:
        etcd.members[0].resume()


async def test_a_restart_is_not_noticed(etcd: Etcd, make: Make) -> None:
    one = make(etcd)
    own, seen = await joined(one), Neighbours()
    await joined(make(etcd, 2), 2)
    async with flannel_etcds.running(seen.follow(one, own), one.keep(own)) as tasks:
        await until(lambda: len(seen.keys) == 1)
        etcd.members[0].kill()
        await asyncio.sleep(1)
        etcd.members[0].start()
        etcd.ready()
        await joined(make(etcd, 3), 3)
        await until(lambda: len(seen.keys) == 2)
        assert not any(task.done() for task in tasks)
    assert all(seen.told), "never fewer than there were"
    assert one.problems == ()


async def test_a_long_outage_is_told_and_survived(etcd: Etcd, make: Make) -> None:
    """Renewing, too, is tried until it works."""
    one = make(etcd, renew_margin=SOON, patience=1)
    own, seen = await joined(one), Neighbours()
    await joined(make(etcd, 2), 2)
    (key,) = (key for key in stored(etcd) if '"192.0.2.1"' in stored(etcd)[key])
    first = etcd_lease(etcd, key)
    async with flannel_etcds.running(seen.follow(one, own), one.keep(own)):
        await until(lambda: len(seen.keys) == 1)
        etcd.members[0].kill()
        await until(lambda: any("cannot be renewed yet" in line for line in one.problems), lambda: one.problems)
        assert any(line.startswith(f"etcd {etcd.url}: ") for line in one.problems)
        etcd.members[0].start()
        etcd.ready()
        await until(lambda: etcd_lease(etcd, key) != first)
        await until(lambda: not one.problems, lambda: one.problems)
    assert all(seen.told)


async def test_a_compaction_while_a_node_was_cut_off(etcd: Etcd, make: Make) -> None:
    """Whoever went in the meantime is gone: the list says so, and the history is the same."""
    proxy = Proxy(etcd.members[0].port)
    one = make(etcd, endpoints=(await proxy.start(),))
    own, seen = await joined(one), Neighbours()
    for number in (2, 3):
        await joined(make(etcd, number), number)
    async with flannel_etcds.running(seen.follow(one, own), one.keep(own)):
        await until(lambda: len(seen.keys) == 2)
        proxy.swallow()
        gone = min(seen.keys)
        etcd.ctl("del", f"{PREFIX}/subnets/{gone}")
        etcd.ctl("put", f"{PREFIX}/subnets/10.5.200.0-24", value(attrs(4)))
        etcd.compact()
        etcd.ctl("put", "elsewhere", "")
        proxy.cut()
        await until(lambda: "10.5.200.0-24" in seen.keys)
        assert gone not in seen.keys
        assert len(seen.keys) == 2
    await proxy.stop()


async def test_another_leader(tmp_path: Path, make: Make) -> None:
    with running(tmp_path / "three", members=3) as etcd:
        configure(etcd)
        one = make(etcd)
        own, seen = await joined(one), Neighbours()
        async with flannel_etcds.running(seen.follow(one, own), one.keep(own)) as tasks:
            await until(lambda: seen.told)
            etcd.leader().kill()
            await joined(make(etcd, 2), 2)
            await until(lambda: len(seen.keys) == 1)
            assert not any(task.done() for task in tasks)
