"""Somebody else has changed our table: it is put right at once, not only when everything is looked at again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from tortie.base.logs import Seldom
from tortie.kernel.events import Overrun
from tortie.kernel.nft_events import Change, Monitor

log = logging.getLogger(__name__)

PAUSE = 0.1
"""Seconds from one repair to the next: somebody who does it again and again must not keep us from everything else."""


class Tabled(Protocol):
    """A stage that has a table of its own."""

    def changed(self, change: Change | Overrun) -> None: ...


async def repair_table(
    monitor: Monitor, stage: Tabled, again: Callable[[], None], ours: Callable[[], bool] = lambda: True
) -> None:
    """Forever. `monitor` is the stage's; `again` has its worker look. A table that is not `ours` is let alone."""
    complain = Seldom(log)
    with monitor:
        while True:
            await _readable(monitor.fileno())
            if (found := monitor.read()) and ours():
                for change in found:
                    if isinstance(change, Change):
                        complain.warning(f"{change.program or 'somebody'} changed table {monitor.table}: repairing it")
                    stage.changed(change)
                again()
                await asyncio.sleep(PAUSE)


async def _readable(descriptor: int) -> None:
    """Nobody looks at the descriptor between two calls, however much there is to read."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
