"""A real etcd loses its data, or gets back what it had some time ago: flannel's nodes keep their ways.

node ──► proxy ──► etcd          where a node is to be late
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

import flannel_etcds
from cut_proxy import Proxy
from etcd_server import ETCDCTL, Etcd, Member, free_ports, needs_etcd
from flannel_etcds import PREFIX, Neighbours, attrs, etcd_lease, joined, stored, until
from tortie.flannel.lease import value
from tortie.flannel.manager import LeaseLost
from tortie.flannel.managers.etcd import EtcdManager

pytestmark = needs_etcd

Make = Callable[..., EtcdManager]


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    """One of its own for each test: it loses its data."""
    with flannel_etcds.one_etcd(tmp_path / "etcd") as etcd:
        yield etcd


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    async with flannel_etcds.managers() as make:
        yield make


def directory_of(member: Member) -> str:
    return next(word for word in member.arguments if word.startswith("--data-dir=")).partition("=")[2]


def restart_empty(etcd: Etcd) -> None:
    (member,) = etcd.members
    member.kill()
    shutil.rmtree(directory_of(member))
    member.start()
    etcd.ready()


@pytest.mark.parametrize("silent", [False, True])
async def test_an_etcd_that_was_restarted_empty(etcd: Etcd, make: Make, silent: bool) -> None:
    """Two nodes of ours, and one of flannel's that does nothing until it renews. With `silent` the new etcd is at the
    revision of the old one when it is met again: no watch can tell."""
    ones = [make(etcd, number, beat=0.5) for number in (1, 2)]
    leases = [await joined(one, number) for number, one in enumerate(ones, 1)]
    before = stored(etcd)
    etcd.ctl("put", f"{PREFIX}/subnets/10.5.200.0-24", value(attrs(9)))
    seen = [Neighbours(), Neighbours()]
    follow = [one.follow(which, own) for one, which, own in zip(seen, ones, leases, strict=True)]
    keep = [which.keep(own) for which, own in zip(ones, leases, strict=True)]
    async with flannel_etcds.running(*follow, *keep) as tasks:
        await until(lambda: all(len(one.keys) == 2 for one in seen))
        _restart_far_ahead(etcd) if silent else restart_empty(etcd)
        await until(lambda: stored(etcd) == before, lambda: stored(etcd))
        await until(lambda: all(len(one.told) > 1 for one in seen))
        await asyncio.sleep(1)
        assert all(len(one.keys) == 2 for one in seen)
        assert not any(task.done() for task in tasks)
        etcd.ctl("put", f"{PREFIX}/subnets/10.5.200.0-25", value(attrs(8)))  # somebody else has it now
        await until(lambda: all("10.5.200.0-24" not in one.keys for one in seen))
        assert all(len(one.keys) == 2 for one in seen)
    assert all(len(leases) == 2 for one in seen for leases in one.told), "nobody was ever forgotten"
    assert all(etcd_lease(etcd, key) for key in before)


def _restart_far_ahead(etcd: Etcd) -> None:
    """Empty, and with more revisions than the other one had, before anybody is let in."""
    (member,) = etcd.members
    member.kill()
    shutil.rmtree(directory_of(member))
    port, aside = str(member.port), str(free_ports(1)[0])
    arguments, member.arguments = member.arguments, [word.replace(port, aside) for word in member.arguments]
    url, member.url = member.url, member.url.replace(port, aside)
    member.start()
    etcd.ready()
    for _ in range(30):
        etcd.ctl("put", "elsewhere", "")
    member.stop()
    member.arguments, member.url = arguments, url
    member.start()
    etcd.ready()


async def test_a_backup_that_was_restored(etcd: Etcd, tmp_path: Path, make: Make) -> None:
    """Who joined after it was made is not in it."""
    one, two = make(etcd, 1, beat=0.5), make(etcd, 2, beat=0.5)
    own = await joined(one)
    (member,) = etcd.members
    etcd.ctl("snapshot", "save", str(tmp_path / "backup"))
    other, seen = await joined(two, 2), Neighbours()
    before = stored(etcd)
    async with flannel_etcds.running(seen.follow(one, own), one.keep(own), two.keep(other)):
        await until(lambda: len(seen.keys) == 1)
        member.kill()
        _restore(etcd, tmp_path / "backup")
        await until(lambda: stored(etcd) == before, lambda: stored(etcd))
    assert all(leases.keys() == seen.keys for leases in seen.told)


def _restore(etcd: Etcd, backup: Path) -> None:
    (member,) = etcd.members
    words = [word for word in member.arguments if word.startswith(("--name", "--data", "--initial-a", "--initial-c"))]
    words = [word for word in words if not word.startswith("--initial-cluster-state")]
    shutil.rmtree(directory_of(member))
    subprocess.run([str(ETCDCTL), "snapshot", "restore", str(backup), *words], check=True, capture_output=True)
    member.start()
    etcd.ready()


async def test_who_comes_second_after_a_loss(etcd: Etcd, make: Make) -> None:
    """Another node has got the subnet before this one could publish it again: then it is lost."""
    proxy = Proxy(etcd.members[0].port)
    one = make(etcd, endpoints=(await proxy.start(),), beat=0.5)
    own = await joined(one)
    (key,) = stored(etcd)
    keeping = asyncio.ensure_future(one.keep(own))
    await asyncio.sleep(0.5)
    proxy.swallow()
    restart_empty(etcd)
    etcd.ctl("put", f"{PREFIX}/subnets/{key.replace('-24', '-25')}", value(attrs(9)))
    proxy.cut()
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(keeping, 10)
    await proxy.stop()
