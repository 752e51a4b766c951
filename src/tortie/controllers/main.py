"""The controllers as a program: every one in a task of its own, in the process that leads.

serve ─┬─► Election ─ leads ─► run ─┬─► keep_running, for each controller
       │                            └─► wake_on, for each kind that is a reason to look
       ├─► Health: the status file                       whoever leads
       └─► Board.follow: log level, metrics, health checks, periods, as the configuration says
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from tortie.calc.service_addresses import Ranges
from tortie.controllers.backoff import at_once
from tortie.controllers.compaction import forgetful
from tortie.controllers.configuration import PERIOD, Configured, Settings, configuration, in_force
from tortie.controllers.health import STATUS_FILE, Health
from tortie.controllers.leader import NAMESPACE, Election, identity
from tortie.controllers.roster import Orders, controllers, reasons
from tortie.controllers.running import Controller, keep_running, one_pass, wake_on
from tortie.controllers.running_config import RunningConfig
from tortie.model.controllers import KubeControllersConfiguration, KubeControllersConfigurationSpec
from tortie.model.store import EventType, Store
from tortie.store import open_store
from tortie.store.place import place

log = logging.getLogger(__name__)

__all__ = ["Program", "keep_running", "once", "run", "run_once", "serve"]


@dataclass(frozen=True)
class Program:
    """What `tortie controllers` is told. `level` sets the log level; None where somebody has said it by an option.
    `ranges` are for services."""

    elect: bool = True
    status_file: Path = STATUS_FILE
    level: Callable[[str], None] | None = None
    ranges: Ranges = field(default_factory=Ranges)


class Board:
    """The settings of this moment, for whoever needs them between passes; `changed` is told of others.

    Raises ConfigError for an environment that cannot be.
    """

    def __init__(self, configured: Configured, changed: Callable[[Settings], None] = lambda settings: None) -> None:
        self._configured = configured
        self._changed = changed
        self.wakes: set[asyncio.Event] = set()
        """Set when the settings change: who sleeps does so by the old ones."""
        self.settings = self._of(KubeControllersConfigurationSpec())

    async def follow(self, store: Store) -> None:
        """Forever. What cannot be read changes nothing."""
        reading, wake = _Reading(self, store), asyncio.Event()
        why = {reading.name: frozenset(EventType)}
        watching = wake_on(store, KubeControllersConfiguration, {reading.name: wake}, why)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(keep_running(reading, PERIOD, wake), name=reading.name)
            tasks.create_task(watching, name=f"watch {reading.name}")

    def read(self, spec: KubeControllersConfigurationSpec) -> None:
        """Raises ConfigError for what cannot be."""
        settings = self._of(spec)
        if settings != self.settings:
            self.settings = settings
            self._changed(settings)
            for wake in self.wakes:
                wake.set()

    def _of(self, spec: KubeControllersConfigurationSpec) -> Settings:
        return in_force(spec, self._configured.environment, self._configured.datastore)


@dataclass(frozen=True)
class _Reading:
    """A pass that brings a board to what the datastore says."""

    board: Board
    store: Store
    name: str = "settings"

    async def run_once(self) -> int:
        """Raises Unavailable, NotSupported, ConfigError."""
        self.board.read((await configuration(self.store)).spec)
        return 0


async def run(
    store: Store, grace: timedelta | None = None, orders: Orders | None = None, board: Board | None = None
) -> None:
    """Until cancelled. Without `grace` the configuration's counts, as it is at each pass. Who has a board follows the
    settings there himself."""
    given = orders or Orders()
    given = replace(given, grace=given.grace if grace is None else grace)
    told = board or Board(given.configured)
    these = controllers(store, given, told.settings.enabled)
    teller: Controller = RunningConfig(store, given.configured, given.later())
    every = (*these, teller)
    wakes = {each.name: asyncio.Event() for each in every}
    told.wakes = set(wakes.values())
    async with asyncio.TaskGroup() as tasks:
        if board is None:
            tasks.create_task(told.follow(store), name="settings")
        for each in every:
            work = keep_running(each, _period(each, told), wakes[each.name], each.later)
            tasks.create_task(work, name=each.name)
        for kind, why in reasons(every).items():
            tasks.create_task(wake_on(store, kind, wakes, why, every), name=f"watch {kind.KIND.plural}")


def _period(controller: Controller, board: Board) -> Callable[[], timedelta]:
    return lambda: controller.period(board.settings)


async def run_once(store: Store, grace: timedelta | None = None, orders: Orders | None = None) -> int:
    """One pass of each; how many things failed. Raises ConfigError for an environment that cannot be."""
    given = replace(orders or Orders(), later=at_once)
    given = replace(given, grace=given.grace if grace is None else grace)
    enabled = Board(given.configured).settings.enabled
    failures = 0
    for each in controllers(store, given, enabled):
        failed, error = await one_pass(each)
        failures += failed
        if error is not None:
            log.warning("%s: %s", each.name, error)
    return failures


async def serve(
    datastore: str,
    grace: timedelta | None,
    environment: Mapping[str, str] = os.environ,
    program: Program | None = None,
) -> None:
    """Until SIGTERM or SIGINT. `environment` says what the text leaves out."""
    configured = _configured(datastore, environment)
    store = open_store(datastore, environment=environment)
    work = asyncio.create_task(_serve(store, grace, configured, program or Program()), name="controllers")
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, work.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await work
    finally:
        await store.close()


def _configured(datastore: str, environment: Mapping[str, str]) -> Configured:
    """Raises ConfigError for a text or an environment that cannot be."""
    where = place(datastore, environment)
    configured = Configured(environment, where.backend, where.kubernetes_too)
    Board(configured)
    return configured


async def _serve(store: Store, grace: timedelta | None, configured: Configured, program: Program) -> None:
    from tortie.controllers.metrics import IpamMetrics, MetricsPort  # what passes once serves none

    me = identity()
    metrics = IpamMetrics()
    port = MetricsPort(metrics)
    election = Election(store, me, namespace=configured.environment.get("NAMESPACE") or NAMESPACE)
    health = Health(store, program.status_file, (lambda: election.holder) if program.elect else (lambda: me), me)
    try:
        async with asyncio.TaskGroup() as tasks:

            def changed(settings: Settings) -> None:
                health.wanted = settings.spec.health_checks != "Disabled"
                if program.level is not None:
                    program.level(settings.spec.log_severity_screen)
                tasks.create_task(port.move(settings.spec.prometheus_metrics_port or 0), name="metrics")

            board = Board(configured, changed)
            changed(board.settings)
            orders = Orders(
                grace, configured, observed=metrics.observe, history=forgetful(store), ranges=program.ranges
            )
            tasks.create_task(board.follow(store), name="settings")
            tasks.create_task(health.run(), name="health")

            async def work(fenced: Store) -> None:
                await run(fenced, None, orders, board)

            tasks.create_task(election.run(work) if program.elect else work(store), name="lead")
    finally:
        await port.close()


async def once(
    datastore: str,
    grace: timedelta | None,
    environment: Mapping[str, str] = os.environ,
    ranges: Ranges | None = None,
) -> int:
    """One pass over a datastore; how many things failed."""
    configured = _configured(datastore, environment)
    store = open_store(datastore, environment=environment)
    try:
        return await run_once(store, grace, Orders(configured=configured, ranges=ranges or Ranges()))
    finally:
        await store.close()
