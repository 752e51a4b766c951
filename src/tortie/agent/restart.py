"""How an agent begins and ends, as to what it knows: with what the one before it has left, for the one after it.

start ─► snapshot read ─► picture (nothing published) ─► journals ─┬─► datastore there: listed, compared, published
                                                                   └─► still not after GRACE seconds: the snapshot is
                                                                       published, pods get addresses that were ready
while it runs ─► snapshot ◄─ at its end
"""

from __future__ import annotations

import asyncio
import logging
import time

from tortie.agent.addresses import NodeAddresses
from tortie.agent.departures import Departures
from tortie.agent.pending import Pending
from tortie.agent.snapshot import Restored, Snapshots
from tortie.agent.stock import Stock
from tortie.agent.view import View

log = logging.getLogger(__name__)

GRACE = 5.0
"""Seconds that a datastore has to answer, before what is known without it counts."""
TOGETHER = 100
"""Objects that are put into the picture at a time; others have their turn in between."""


class Restart:
    """Of one agent. Runs on the event loop."""

    def __init__(
        self,
        view: View,
        snapshots: Snapshots,
        pending: Pending,
        departures: Departures,
        stock: Stock,
        addresses: NodeAddresses,
    ) -> None:
        self._view = view
        self._snapshots = snapshots
        self._pending = pending
        self._departures = departures
        self._stock = stock
        self._addresses = addresses

    async def begin(self, tasks: asyncio.TaskGroup) -> bool:
        """Put together what is known without the datastore; whether it is something. Raises Unavailable."""
        restored = await self._snapshots.read()
        if restored is not None:
            self._view.datastore.guid = restored.about.guid
            for first in range(0, len(restored.objects), TOGETHER):
                self._view.restore(restored.objects[first : first + TOGETHER], restored.about.revisions)
                await asyncio.sleep(0)
        self._pending.replay()
        self._departures.replay()
        tasks.create_task(self._departures.run(), name="tell the datastore of pods that went")
        tasks.create_task(self._snapshots.run(), name="write the snapshot")
        if restored is not None:
            tasks.create_task(self._without_datastore(restored), name="go on without the datastore")
        return restored is not None

    async def _without_datastore(self, restored: Restored) -> None:
        """Once the datastore has had its time. Whatever it says later goes over this."""
        await asyncio.sleep(GRACE)
        if self._view.in_sync.is_set():
            return
        heard = restored.about.heard
        why = self._view.datastore.disbelief or self._view.datastore.away or "it is slow"
        age = max(0.0, time.time() - heard)
        log.warning("going on with what was known %.0f s ago, without the datastore: %s", age, why)
        await self._addresses.look_here()
        if not self._stock.is_open:
            self._stock.restore()
            self._stock.open()
        self._view.publish_restored(heard)

    async def close(self) -> None:
        """For the next agent."""
        await self._snapshots.close()
