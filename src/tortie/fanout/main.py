"""The fan-out server as a program: until SIGTERM, when clients are told to go elsewhere first.

open_store ─► Server ─► listen ─┬─► agents
                          health, metrics
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from tortie.base.errors import Unavailable, one_of
from tortie.fanout.kinds import FANNED, of_kubernetes
from tortie.fanout.observed import Watchdog, health_application, metrics, serve
from tortie.fanout.server import Server, Settings
from tortie.model.store import Store
from tortie.store import open_store
from tortie.store.fanout.address import Address
from tortie.store.place import place

log = logging.getLogger(__name__)

RETRY = 1.0
LOOPBACK = "127.0.0.1"
SPARE_FILES = 200
"""Open files beside those of clients."""


@dataclass(frozen=True)
class Orders:
    """What `tortie fanout` is told. Ports of 0 are not served; health is for this machine alone unless `health_host`
    says otherwise."""

    datastore: str
    listen: tuple[Address, ...]
    settings: Settings
    health_port: int = 0
    metrics_port: int = 0
    health_host: str = LOOPBACK


async def run(orders: Orders, environment: Mapping[str, str]) -> None:
    """Until SIGTERM or SIGINT. Raises TortieError when it cannot start or go on."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    enough_files(orders.settings.max_connections)
    store = await _opened(orders.datastore, environment, stop)
    if store is None:
        return
    try:
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(Server(store, orders.settings))
            await _serve(server, orders, stack)
            await _until(stop, server)
            log.info("stopping: %d clients are told to go elsewhere", len(server.sessions))
            await server.leave()
    finally:
        await store.close()


async def _serve(server: Server, orders: Orders, stack: contextlib.AsyncExitStack) -> None:
    watchdog = Watchdog()
    task = asyncio.create_task(watchdog.run(), name="watchdog")
    stack.callback(task.cancel)
    if orders.health_port:
        await serve(stack, health_application(server, watchdog), orders.health_host, orders.health_port)
    if orders.metrics_port:
        await serve(stack, metrics(server), "", orders.metrics_port)
    for each in orders.listen:
        log.info("listening on %s%s", await server.listen(each), ", TLS" if orders.settings.tls else "")


async def _until(stop: asyncio.Event, server: Server) -> None:
    """Until told to stop. A bug ends the program: its feed would tell nobody anything any more."""
    tasks = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(server.broken())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _opened(datastore: str, environment: Mapping[str, str], stop: asyncio.Event) -> Store | None:
    """The datastore as soon as it can be opened; None when told to stop before. Raises ConfigError, NotSupported."""
    said = False
    while not stop.is_set():
        try:
            return open_store(datastore, environment=environment)
        except Unavailable as error:
            if not said:
                log.warning("waiting for the datastore: %s", error)
            said = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY):
                    await stop.wait()
    return None


def kinds_of(datastore: str, environment: Mapping[str, str]) -> tuple[type, ...]:
    """What is fanned out of a datastore. Raises ConfigError."""
    return of_kubernetes() if place(datastore, environment).backend == "kubernetes" else FANNED


def enough_files(connections: int) -> None:
    """As many open files as clients may come, as far as the machine allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        log.warning("only %d files may be open: not more than %d clients", most, most - SPARE_FILES)


def main(orders: Orders, environment: Mapping[str, str]) -> None:
    """Blocks until told to stop."""
    gc.set_threshold(50_000, 20, 100)  # what is known stays: looking through all of it again and again finds nothing
    try:
        asyncio.run(run(orders, environment))
    except BaseExceptionGroup as group:
        raise one_of(group) from None
