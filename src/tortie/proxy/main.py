"""The proxy as a program of its own, for nodes without our agent: until SIGTERM, and services go on without it.

open_store ─► Mirror ─► Heard ─► ProxyState ─► Proxy ─► the kernel
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from tortie.base.errors import ConfigError, KernelError, Unavailable, one_of
from tortie.base.logs import Seldom, to_stderr
from tortie.kernel import nft, sysctl
from tortie.kernel.netns_lock import NetnsLock
from tortie.kernel.occupied import LINGER, occupied
from tortie.kernel.scraped import metrics_application
from tortie.kernel.serving import serving
from tortie.model.store import Store
from tortie.proxy.config import ProxyConfig
from tortie.proxy.inputs import KINDS, OPTIONAL, Heard
from tortie.proxy.proxy import LOCK as SERVICES
from tortie.proxy.proxy import Proxy
from tortie.proxy.server import application
from tortie.store import open_store
from tortie.store.cluster import api_of
from tortie.store.mirror import Mirror
from tortie.store.place import place

log = logging.getLogger("tortie.proxy")

RUN_DIR, LIB_DIR = Path("/run/tortie"), Path("/var/lib/calico")
"""The machine's own; a proxy with a run directory of its own keeps all of its files there."""
RETRY = 1.0
SOCKET, LOCK = "proxy.sock", "proxy.lock"
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Orders:
    """What `tortie proxy` is told. `node` empty: $NODENAME, or this machine's name."""

    datastore: str
    node: str
    run_dir: Path
    lib_dir: Path
    config: ProxyConfig
    metrics_port: int = 0


async def run(orders: Orders, environment: Mapping[str, str], lock: NetnsLock) -> None:
    """Until cancelled. Raises TortieError when it cannot start or go on."""
    nft.available()
    sysctl.write("net/ipv4/ip_forward", 1)
    with suppress(KernelError):  # a kernel without IPv6
        sysctl.write("net/ipv6/conf/all/forwarding", 1)
    node = orders.node or environment.get("NODENAME", "") or socket.gethostname().lower()
    store = await _opened(orders.datastore)
    broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    registry, where = CollectorRegistry(), str(place(orders.datastore))
    proxy = Proxy(
        node,
        orders.config,
        orders.lib_dir,
        store,
        _teller(broken),
        datastore=where,
        api=api_of(store),
        registry=registry,
        lock=lock,
    )
    heard = Heard(node, proxy.see)
    mirror = Mirror(store, heard, *KINDS, optional=OPTIONAL)
    proxy.also = lambda: tuple(why for kind, why in mirror.problems.items() if kind not in OPTIONAL)
    try:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(proxy.close)
            await stack.enter_async_context(serving(application(proxy), orders.run_dir / SOCKET))
            if orders.metrics_port:
                await stack.enter_async_context(serving(metrics_application(registry), (LOOPBACK, orders.metrics_port)))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(mirror.run(), name="follow the datastore")
                tasks.create_task(_begin(mirror, heard), name="first state")
                tasks.create_task(proxy.run(), name="proxy")
                tasks.create_task(_watched(broken), name="watch the worker")
    finally:
        await store.close()


async def _begin(mirror: Mirror, heard: Heard) -> None:
    """Nothing is programmed before everything has been listed once."""
    await mirror.complete.wait()
    heard.complete = True
    heard.heard()


async def _watched(broken: asyncio.Future[None]) -> None:
    await broken


def _teller(broken: asyncio.Future[None]) -> Any:
    """For the worker's thread: what ends it ends the program."""
    loop = asyncio.get_running_loop()

    def fail(bug: BaseException) -> None:
        if not broken.done():
            broken.set_exception(bug)

    def tell(bug: BaseException) -> None:
        with suppress(RuntimeError):  # the loop is closed: we are stopping
            loop.call_soon_threadsafe(fail, bug)

    return tell


async def _opened(datastore: str) -> Store:
    complain = Seldom(log)
    while True:
        try:
            return open_store(datastore)
        except Unavailable as error:
            complain.warning(f"waiting for the datastore: {error}")
            await asyncio.sleep(RETRY)


async def _alone() -> NetnsLock:
    """The lock of who serves in this network namespace. Raises ConfigError naming who has it."""
    lock = NetnsLock(SERVICES)
    deadline = asyncio.get_running_loop().time() + LINGER
    while (holder := lock.take()) is not None:
        if asyncio.get_running_loop().time() > deadline:
            raise ConfigError(
                f"services are served on this node already, by {holder}, and two would undo each other's rules: "
                "stop that one, or have it serve none (--services off), before this one starts"
            )
        await asyncio.sleep(LINGER / 20)
    return lock


async def _until_signal(orders: Orders, environment: Mapping[str, str]) -> None:
    with occupied(orders.run_dir, LOCK, "a proxy"):
        lock = await _alone()
        work = asyncio.create_task(run(orders, environment, lock), name="tortie proxy")
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
        with suppress(asyncio.CancelledError):
            await work


def main(orders: Orders, level: str = "info", environment: Mapping[str, str] = os.environ) -> None:
    """Blocks until told to stop. Raises TortieError."""
    to_stderr(level)
    try:
        asyncio.run(_until_signal(orders, environment))
    except BaseExceptionGroup as group:
        raise one_of(group) from None
