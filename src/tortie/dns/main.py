"""The name server as a program: until SIGTERM.

datastore ─► Mirror ─► Names ─┐
other servers ─► Upstreams ───┴─► Resolver ─► Server: UDP, TCP
                                      └─► health, readiness, figures
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tortie.base.errors import ConfigError, Unavailable, one_of
from tortie.dns import forward
from tortie.dns.forward import Upstreams
from tortie.dns.names import Names, PodMode
from tortie.dns.places import Place
from tortie.dns.records import canonical
from tortie.dns.resolver import Resolver
from tortie.dns.server import Server
from tortie.model.k8s import Namespace, Pod
from tortie.model.meta import Resource
from tortie.model.service import EndpointSlice, Service
from tortie.model.store import Store
from tortie.store import open_store
from tortie.store.mirror import Mirror
from tortie.store.place import is_file

RESOLV_CONF = Path("/etc/resolv.conf")
RETRY = 1.0
WILDCARDS = ("", "0.0.0.0", "::")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Orders:
    """What `tortie dns` is told. `forward` "" is what /etc/resolv.conf says. Ports of 0 are not served. `leave`:
    seconds in which it goes on answering at the end, and is not ready."""

    datastore: str
    listen: tuple[Place, ...]
    zone: str = "cluster.local"
    pods: PodMode = "insecure"
    forward: str = ""
    ttl: int = 5
    health_port: int = 0
    ready_port: int = 0
    metrics_port: int = 0
    leave: float = 0.0


def kinds(pods: PodMode) -> tuple[type[Resource], ...]:
    """What is followed. Pods are many, and change all the time."""
    always: tuple[type[Resource], ...] = (Namespace, Service, EndpointSlice)
    return (*always, Pod) if pods == "verified" else always


def upstreams_of(text: str, listen: Sequence[Place], file: Path = RESOLV_CONF) -> tuple[Place, ...]:
    """Whom names elsewhere are asked of. Raises ConfigError for this server itself, which would ask itself for ever;
    where a file names it, it is left out."""
    given = forward.servers(text, "--forward") if text else forward.of_resolv_conf(file)
    others = tuple(one for one in given if not _is_ours(one, listen))
    for one in given:
        if one not in others and text:
            raise ConfigError(f"{one} is this server itself", "--forward")
        if one not in others:
            log.warning("%s: name server %s is this server itself: it is not asked", file, one)
    return others


def _is_ours(server: Place, listen: Sequence[Place]) -> bool:
    at = [each for each in listen if each.port == server.port]
    return any(each.host == server.host for each in at) or (
        any(each.host in WILDCARDS for each in at) and forward.is_own(server)
    )


async def run(orders: Orders, environment: Mapping[str, str]) -> None:
    """Until SIGTERM or SIGINT. Raises ConfigError, and other TortieErrors when it cannot start."""
    if not canonical(orders.zone):
        raise ConfigError(f'"{orders.zone}" is no domain such as cluster.local', "--zone")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    names = Names(orders.zone, orders.pods)
    upstreams = Upstreams(upstreams_of(orders.forward, orders.listen))
    known = asyncio.Event()
    resolver = Resolver(names, upstreams, ttl=orders.ttl, ready=known.is_set, epoch=int(time.time()))
    log.info("names elsewhere: %s", ", ".join(map(str, upstreams.servers)) or "nobody is asked, they are refused")

    def not_ready() -> str:
        return "stopping" if stop.is_set() else "" if known.is_set() else "the services are not known yet"

    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(upstreams.close)
        server = await stack.enter_async_context(Server(resolver, orders.listen))
        if orders.health_port or orders.ready_port or orders.metrics_port:
            await _observed(stack, orders, resolver, not_ready)
        log.info("answering for %s on %s", orders.zone, ", ".join(str(each) for each in server.places))
        following = asyncio.create_task(_follow(orders, environment, names, known), name="follow the datastore")
        stack.push_async_callback(_end, following)
        await _first(stop, following)
        if orders.leave:
            log.info("stopping in %.0f s", orders.leave)
            await asyncio.sleep(orders.leave)


async def _observed(
    stack: contextlib.AsyncExitStack, orders: Orders, resolver: Resolver, not_ready: Callable[[], str]
) -> None:
    from tortie.dns.observed import metrics, probe_application, serve  # half of what a start takes

    await serve(stack, probe_application("/health", lambda: ""), orders.health_port, "--health-port")
    await serve(stack, probe_application("/ready", not_ready), orders.ready_port, "--ready-port")
    await serve(stack, metrics(resolver), orders.metrics_port, "--metrics-port")


async def _first(stop: asyncio.Event, following: asyncio.Task[None]) -> None:
    """Until told to stop. A bug of whoever follows the datastore ends the program: names would stay as they are."""
    stopped = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait([stopped, following], return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
    finally:
        stopped.cancel()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _follow(orders: Orders, environment: Mapping[str, str], names: Names, known: asyncio.Event) -> None:
    """For ever. `known` is set once everything has been listed."""
    store = await _opened(orders.datastore, environment)
    try:
        mirror = Mirror(store, names, *kinds(orders.pods))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(mirror.run(), name="mirror")
            await mirror.complete.wait()
            log.info("%d services are known", names.services)
            known.set()
    finally:
        await store.close()


def _open(datastore: str, environment: Mapping[str, str]) -> Store:
    """Raises Unavailable for a file that is not there: opening it would make an empty one."""
    path = Path(datastore.removeprefix("sqlite:"))
    if is_file(datastore) and not path.exists():
        raise Unavailable(f"there is no {path} yet")
    return open_store(datastore, environment=environment)


async def _opened(datastore: str, environment: Mapping[str, str]) -> Store:
    """The datastore as soon as it can be opened. Raises ConfigError, NotSupported."""
    said = ""
    while True:
        try:
            return _open(datastore, environment)
        except Unavailable as error:
            if str(error) != said:
                log.warning("waiting for the datastore: %s", error)
            said = str(error)
            await asyncio.sleep(RETRY)


def main(orders: Orders, environment: Mapping[str, str]) -> None:
    """Blocks until told to stop."""
    gc.set_threshold(50_000, 20, 100)  # what is known stays: looking through all of it again and again finds nothing
    try:
        asyncio.run(run(orders, environment))
    except BaseExceptionGroup as group:
        raise one_of(group) from None
