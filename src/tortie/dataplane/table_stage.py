"""What the stages that keep a table of nftables alike do: fill it in place, and hear what others do to it.

    stage.monitor ─► dataplane.drift ─► stage.changed ─┐
                                        stage.forget ──┴─► the next plan

Without a monitor the table is looked at instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue

from tortie.base.errors import KernelError
from tortie.dataplane.converge import Work
from tortie.kernel import nft
from tortie.kernel.events import Overrun
from tortie.kernel.nft_events import Change, Monitor


class TableStage:
    """What is told of the table, and writing it. What to write is the stage's own."""

    def __init__(self, table: str, netns: str | None) -> None:
        self._table = table
        self._log = logging.getLogger(type(self).__module__)
        self._netns = netns
        self._session = nft.Session(netns)
        self._doubt = False
        self._told = False
        self._changes: SimpleQueue[Change | Overrun] = SimpleQueue()

    def _apply(self, texts: Iterable[str], otherwise: Callable[[], str] | None) -> None:
        """One after the other; when nft refuses one, what is to be tried in their place. Raises KernelError."""
        try:
            for text in texts:
                self._session.apply(text)
        except KernelError as error:
            if otherwise is None:
                raise
            self._log.warning("table %s cannot be filled in place, making it again: %s", self._table, error)
            self._session.apply(otherwise())

    def unmake(self, work: Work) -> None:
        """Nothing: making deleted, too."""

    def forget(self) -> None:
        """From any thread."""
        self._doubt = not self._told

    def monitor(self) -> Monitor:
        """Tells from now on what others do to the table. Before the first plan."""
        self._session.open()
        monitor = Monitor(self._table, self._netns)
        self._session.begun = monitor.ignore
        self._told = True
        return monitor

    def changed(self, change: Change | Overrun) -> None:
        """By somebody else, or perhaps so. From any thread; the next plan puts it right."""
        self._changes.put(change)

    def _take_changes(self) -> list[Change | Overrun]:
        changes: list[Change | Overrun] = []
        with suppress(Empty):
            while True:
                changes.append(self._changes.get_nowait())
        return changes

    def _doubted(self, told: Collection[Change | Overrun]) -> bool:
        """Whether the table has to be looked at, as far as is known with this; it is said once."""
        doubt, self._doubt = self._doubt or Overrun() in told, False
        return doubt

    def _complain(self) -> None:
        self._log.warning("table %s is not as it was left: somebody changed it; writing it anew", self._table)
