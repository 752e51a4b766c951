"""What tests of flannel's etcd share: managers that are closed again, and what etcdctl says of the keys."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from etcd_server import Etcd
from etcd_server import running as etcd_running
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.manager import Leases, Previous
from tortie.flannel.managers.etcd import EtcdManager, EtcdOptions
from tortie.flannel.presence import Machine

PREFIX = "/coreos.com/network"
CONFIG = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}
DEADLINE = 20.0


def configure(etcd: Etcd, prefix: str = PREFIX, **keys: Any) -> None:
    etcd.ctl("put", f"{prefix}/config", json.dumps(CONFIG | keys))


def stored(etcd: Etcd, prefix: str = PREFIX) -> dict[str, str]:
    """The leases, as etcdctl has them."""
    lines = etcd.ctl("get", "--prefix", f"{prefix}/subnets/").splitlines()
    return {key.removeprefix(f"{prefix}/subnets/"): value for key, value in zip(lines[::2], lines[1::2], strict=True)}


def etcd_lease(etcd: Etcd, key: str) -> int:
    """The number of the etcd lease that a key hangs on; 0 for none."""
    (found,) = json.loads(etcd.ctl("get", f"{PREFIX}/subnets/{key}", "-w", "json"))["kvs"]
    return int(found.get("lease", 0))


def left(etcd: Etcd, key: str) -> int:
    """Seconds that a key has to live, by etcdctl's word."""
    said = etcd.ctl("lease", "timetolive", f"{etcd_lease(etcd, key):x}")
    return int(said.rpartition("remaining(")[2].split("s")[0])


def manager(etcd: Etcd, number: int = 1, *, host: str = "", **options: Any) -> EtcdManager:
    """Of a machine of its own; `patience` and `beat` are the manager's."""
    timing = {name: options.pop(name) for name in ("patience", "quiet", "beat") if name in options}
    host = host or f"node{number}"
    options = {"endpoints": tuple(etcd.urls.split(",")), "machine": Machine(host, f"id of {host}")} | options
    return EtcdManager(EtcdOptions(**options), **timing)


@asynccontextmanager
async def managers() -> AsyncIterator[Callable[..., EtcdManager]]:
    """Makes some, of any etcd; they are closed at the end."""
    made: list[EtcdManager] = []

    def make(etcd: Etcd, number: int = 1, **options: object) -> EtcdManager:
        made.append(manager(etcd, number, **options))
        return made[-1]

    yield make
    await asyncio.gather(*(one.close() for one in made))


@contextmanager
def one_etcd(directory: Path) -> Iterator[Etcd]:
    """With a network."""
    with etcd_running(directory) as etcd:
        configure(etcd)
        yield etcd


def attrs(number: int = 1, **more: Any) -> Attrs:
    return Attrs(IPv4Address(f"192.0.2.{number}"), backend_type="vxlan", data=f'{{"VNI":{number}}}', **more)


async def joined(one: EtcdManager, number: int = 1, previous: Previous | None = None, **more: Any) -> Lease:
    return await one.acquire(await one.network(), attrs(number, **more), previous or Previous())


class Neighbours:
    """What a manager tells of other nodes: the newest, and all there was."""

    def __init__(self) -> None:
        self.told: list[Leases] = []

    @property
    def keys(self) -> set[str]:
        return set(self.told[-1]) if self.told else set()

    async def follow(self, one: EtcdManager, own: Lease) -> None:
        async for leases in one.neighbours(own):
            self.told.append(leases)


@asynccontextmanager
async def running(*work: Awaitable[Any]) -> AsyncIterator[list[asyncio.Future[Any]]]:
    """Tasks that are cancelled at the end; one that has failed fails the test."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def until(condition: Callable[[], Any], why: Callable[[], Any] = lambda: "") -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, why()
        await asyncio.sleep(0.02)
