"""The controllers as a program: every one in a task of its own, at intervals and whenever a node or a pod goes.

A pass that fails, wholly or for some objects, is made again after a pause that doubles; the others do not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from tortie.base.errors import Compacted, TortieError, Unavailable
from tortie.controllers.ipam_gc import IpamGc
from tortie.controllers.node import NodeCleanup
from tortie.model.k8s import K8sNode, Pod
from tortie.model.meta import Resource
from tortie.model.node import Node
from tortie.model.store import EventType, Store
from tortie.policy.selector import parse
from tortie.store import open_store

log = logging.getLogger(__name__)

RECONCILER_PERIOD = timedelta(minutes=5)
"""Calico's reconcilerPeriod, and its scan interval when there is no grace period to halve."""
FIRST_RETRY, LONGEST_RETRY = 0.5, 30.0
"""Seconds before a failed pass is made again, doubled each time."""
BURST = 0.2
"""Seconds in which deletions that come together are gathered into one pass."""

REASONS: tuple[type[Resource], ...] = (Pod, Node, K8sNode)
"""Kinds whose deletion is a reason to look at once."""


class Controller(Protocol):
    """`run_once` makes a pass and returns how many things failed. May raise any TortieError."""

    name: str

    async def run_once(self) -> int: ...


def controllers(store: Store, grace: timedelta) -> tuple[tuple[Controller, timedelta], ...]:
    """All of them, with the time between two passes."""
    gc = IpamGc(store, lambda: datetime.now(UTC), lambda text, labels: parse(text).matches(labels), grace)
    return (NodeCleanup(store), RECONCILER_PERIOD), (gc, grace / 2 or RECONCILER_PERIOD)


async def run(store: Store, grace: timedelta) -> None:
    """Until cancelled."""
    every = [(controller, period, asyncio.Event()) for controller, period in controllers(store, grace)]
    wakes = [wake for _, _, wake in every]
    async with asyncio.TaskGroup() as tasks:
        for controller, period, wake in every:
            tasks.create_task(keep_running(controller, period, wake), name=controller.name)
        for kind in REASONS:
            tasks.create_task(wake_on_deletion(store, kind, wakes), name=f"watch {kind.KIND.plural}")


async def run_once(store: Store, grace: timedelta) -> int:
    """One pass of each; how many things failed."""
    return sum([await _pass(controller) for controller, _ in controllers(store, grace)])


async def keep_running(controller: Controller, period: timedelta, wake: asyncio.Event) -> None:
    """Forever: a pass, then a pause until the next one is due or something has happened."""
    retry = FIRST_RETRY
    while True:
        wake.clear()
        if await _pass(controller):
            wait, retry = retry, min(2 * retry, LONGEST_RETRY)
        else:
            wait, retry = period.total_seconds(), FIRST_RETRY
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wake.wait(), wait)
            await asyncio.sleep(BURST)


async def _pass(controller: Controller) -> int:
    try:
        return await controller.run_once()
    except TortieError as error:
        log.warning("%s: %s; trying again", controller.name, error)
        return 1


async def wake_on_deletion(store: Store, kind: type[Resource], wakes: Iterable[asyncio.Event]) -> None:
    """Forever. Whatever is missed while the datastore is away, the next pass finds."""
    while True:
        try:
            listing = await store.list(kind)
            async for batch in store.watch(kind, listing.revision):
                if any(event.type is EventType.DELETED for event in batch):
                    for wake in wakes:
                        wake.set()
        except Compacted:
            continue
        except Unavailable as error:
            log.warning("%s: %s; trying again", kind.KIND.plural, error)
            await asyncio.sleep(FIRST_RETRY)


async def serve(datastore: str, grace: timedelta) -> None:
    """Until SIGTERM or SIGINT."""
    store = open_store(datastore)
    work = asyncio.create_task(run(store, grace), name="controllers")
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, work.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await work
    finally:
        await store.close()


async def once(datastore: str, grace: timedelta) -> int:
    """One pass over a datastore; how many things failed."""
    store = open_store(datastore)
    try:
        return await run_once(store, grace)
    finally:
        await store.close()
