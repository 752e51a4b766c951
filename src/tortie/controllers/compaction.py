"""Lets etcd forget its history: what is older than a period, as Calico's controllers do.

    pass ──► the revision of this moment, noted
    a period later ──► what was noted is forgotten up to, and the revision of that moment noted

So between one period and two of history are kept. A watcher that lags farther behind is told so (`Compacted`), and
lists again. Calico's own controllers may do the same beside us: what is forgotten already is forgotten.

Source: `etcdV3CompactionPeriod` of KubeControllersConfiguration, and COMPACTION_PERIOD; 10 minutes, 0 is never.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple, Protocol, runtime_checkable

from tortie.base.duration import parse_duration
from tortie.base.errors import ConfigError
from tortie.controllers.backoff import Backoff, at_once
from tortie.controllers.configuration import PERIOD, Configured, Settings
from tortie.model.controllers import KubeControllersConfiguration
from tortie.model.store import Store
from tortie.store.composite import CompositeStore

log = logging.getLogger(__name__)

DEFAULT = timedelta(minutes=10)
EARLY = 0.9
"""The part of a period after which a pass is taken for the next one: a timer may be a little early."""


@runtime_checkable
class Forgetful(Protocol):
    """A datastore that keeps its history until somebody says how much of it may go."""

    async def compact(self, revision: str) -> None:
        """Raises Unavailable."""


class Noted(NamedTuple):
    """A revision, and when it was the newest (seconds of a clock that only goes forward)."""

    revision: str
    when: float


def forgetful(store: Store) -> Forgetful | None:
    """The one whose history is ours to cut; None where there is none."""
    inner = store.main if isinstance(store, CompositeStore) else store
    return inner if isinstance(inner, Forgetful) else None


def period_of(settings: Settings) -> timedelta:
    """How much history is kept; nothing is forgotten if it is 0. What cannot be read counts as not said."""
    said = settings.spec.etcd_v3_compaction_period
    try:
        return parse_duration(said) if said else DEFAULT
    except ConfigError:
        return DEFAULT


def decide(noted: Noted | None, now: float, period: timedelta) -> tuple[bool, bool]:
    """Whether to forget what is older than what was noted, and whether to note anew."""
    if not period:
        return False, False
    due = noted is not None and now - noted.when >= EARLY * period.total_seconds()
    return due, due or noted is None


class Compaction:
    """Remembers one revision. Another process that takes over begins anew, and keeps a little more for once."""

    name = "compaction"
    option = ""

    def __init__(
        self,
        store: Store,
        history: Forgetful,
        *,
        configured: Configured | None = None,
        later: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._history = history
        self._configured = configured or Configured()
        self._clock = clock
        self._noted: Noted | None = None
        self.later = later or at_once()

    def period(self, settings: Settings) -> timedelta:
        return period_of(settings) or PERIOD

    async def run_once(self) -> int:
        """One pass. Raises Unavailable."""
        period = period_of(await self._configured(self._store))
        now = self._clock()
        forget, note = decide(self._noted, now, period)
        if forget and self._noted is not None:
            await self._history.compact(self._noted.revision)
            log.debug("etcd forgot what was before revision %s", self._noted.revision)
        if note:
            self._noted = Noted((await self._store.list(KubeControllersConfiguration)).revision, now)
        if not period:
            self._noted = None
        return 0
