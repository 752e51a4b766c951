"""How a controller runs: passes at intervals, whenever what it looks at changes, and when what has failed is due again.

    watches ─► wake ─┐
    period ──────────┼─► keep_running ─► run_once ─► failures, what is due when ─┐
    retries ◄────────┴────────────────────────────────────────────────────────────┘

A pass that fails is made again after a pause that doubles; things that fail in a pass have pauses of their own. The
other controllers do not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

from tortie.base.errors import Compacted, TortieError
from tortie.controllers.backoff import Backoff, delay
from tortie.controllers.configuration import Settings
from tortie.model.meta import Resource
from tortie.model.store import Event, EventType, Store
from tortie.store.relisting import Relisting

log = logging.getLogger(__name__)

FIRST_RETRY, LONGEST_RETRY = 0.5, 30.0
"""Seconds before a failed pass is made again, doubled each time."""
BURST = 0.2
"""Seconds in which changes that come together are gathered into one pass; also the shortest pause."""
REST = 3.0
"""Where a pass takes longer, as it does over thousands of pods: how many times as long they are gathered."""

Reasons = Mapping[str, frozenset[EventType]]


class Pass(Protocol):
    """`run_once` makes a pass and returns how many things failed. May raise any TortieError."""

    @property
    def name(self) -> str: ...

    async def run_once(self) -> int: ...


class Controller(Pass, Protocol):
    """`option`: its word in ENABLED_CONTROLLERS; `period`: between two passes when nothing happens; `later`: what has
    failed and when it is due."""

    @property
    def option(self) -> str: ...

    @property
    def later(self) -> Backoff: ...

    def period(self, settings: Settings) -> timedelta: ...


@runtime_checkable
class Prompt(Protocol):
    """One that somebody waits for. `burst`: seconds in which changes are gathered for it instead of BURST."""

    @property
    def burst(self) -> float: ...


@runtime_checkable
class Told(Protocol):
    """One that keeps a picture of its own: it hears what the watches say that wake it, before it is woken."""

    def listed(self, kind: type[Resource], items: Sequence[Resource]) -> None: ...

    def happened(self, kind: type[Resource], batch: Sequence[Event[Any]]) -> None: ...


async def keep_running(
    controller: Pass,
    period: timedelta | Callable[[], timedelta],
    wake: asyncio.Event,
    later: Backoff | None = None,
) -> None:
    """Forever: a pass, then a pause until the next one is due or something has happened."""
    burst = controller.burst if isinstance(controller, Prompt) else BURST
    tries, told = 0, ""
    while True:
        wake.clear()
        begin = time.monotonic()
        failures, error = await one_pass(controller)
        took = time.monotonic() - begin
        whole = error is None
        if error is not None and str(error) != told:
            log.warning("%s: %s; trying again", controller.name, error)
        told = "" if error is None else str(error)
        due = later.wait() if later is not None and whole else None
        regular = (period if isinstance(period, timedelta) else period()).total_seconds()
        if due is not None:
            tries, wait = 0, min(regular, max(due, BURST))
        elif failures:
            tries += 1
            wait = delay(tries, random.random(), FIRST_RETRY, LONGEST_RETRY)
        else:
            tries, wait = 0, regular
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):  # wait_for may swallow the end of a program that is woken just then
                await wake.wait()
            await asyncio.sleep(max(burst, min(REST * took, LONGEST_RETRY)))


async def one_pass(controller: Pass) -> tuple[int, TortieError | None]:
    """How many things failed, and why the pass did not come to its end."""
    try:
        return await controller.run_once(), None
    except TortieError as error:
        return 1, error


async def wake_on(
    store: Store,
    kind: type[Resource],
    wakes: Mapping[str, asyncio.Event],
    reasons: Reasons,
    these: Sequence[Pass] = (),
) -> None:
    """Forever. What may have happened before a watch began, at first or while the datastore was away, is a reason to
    look. Those of the controllers `these` that want to be told are told first."""
    hearing = [each for each in these if each.name in reasons and isinstance(each, Told)]
    tries, told, again = 0, "", Relisting()
    while True:
        try:
            listing = await store.list(kind)
            for each in hearing:
                each.listed(kind, listing.items)
            for name in reasons:
                wakes[name].set()
            tries, told = 0, ""
            async for batch in store.watch(kind, listing.revision):
                for each in hearing:
                    each.happened(kind, batch)
                happened = {event.type for event in batch}
                for name, awaited in reasons.items():
                    if happened & awaited:
                        wakes[name].set()
            await asyncio.sleep(BURST)
        except Compacted:
            await asyncio.sleep(max(BURST, again.lost()))
        except TortieError as error:
            if str(error) != told:
                log.warning("%s: %s; trying again", kind.KIND.plural, error)
            tries, told = tries + 1, str(error)
            await asyncio.sleep(delay(tries, random.random(), FIRST_RETRY, LONGEST_RETRY))
