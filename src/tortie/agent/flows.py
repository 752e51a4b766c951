"""Connections that are established: those that policy allows no more, and those of pods that went, are ended; others
go past the rules where that is wanted.

In a worker of its own: among many connections it takes its time, and no pod waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tortie.agent.past_rules import flow_table_answer
from tortie.agent.view import View
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Failure
from tortie.dataplane.drift import repair_table
from tortie.dataplane.stages.departed_flows import Departed, DepartedFlows
from tortie.dataplane.stages.established import Established
from tortie.dataplane.stages.flow_tables import FlowTables
from tortie.dataplane.worker import Worker
from tortie.kernel.nft_events import Monitor


class Flows:
    """`passed` and `broke` are called in the worker's thread: after each look at the kernel, and with a bug."""

    def __init__(
        self, view: View, departed: Departed, passed: Callable[[], None], broke: Callable[[BaseException], None]
    ) -> None:
        self._view = view
        self._passed = passed
        self._table = FlowTables(watch=self._listen)
        self._worker = Worker("flows", (Established(), self._table, DepartedFlows(departed)), self._looked, broke)
        self._failures: Mapping[str, tuple[str, ...]] = {}
        """By stage."""
        self._begun: asyncio.Future[Monitor] | None = None

    def start(self) -> None:
        """In the event loop."""
        self._begun = asyncio.get_running_loop().create_future()
        self._worker.start()

    def close(self) -> None:
        self._worker.close()

    def submit(self, state: DesiredState) -> None:
        """Its policy is in the kernel."""
        self._worker.submit(state)

    async def repair(self) -> None:
        """What others do to the flow table is put right, from when there is one. For ever."""
        assert self._begun is not None
        await repair_table(await self._begun, self._table, self._worker.again)

    @property
    def failure(self) -> str:
        """Why connections that are to end may still be there, "" if none are."""
        return "; ".join(text for name, texts in self._failures.items() if name != FlowTables.name for text in texts)

    def table(self) -> Mapping[str, Any]:
        """How established connections of this node's pods go past the rules."""
        failures = self._failures.get(FlowTables.name, ())
        return flow_table_answer(self._view.latest, self._table, failures, self._view.pod_at)

    def _looked(self, state: DesiredState, failures: Sequence[Failure], seconds: float) -> None:
        by_stage: dict[str, tuple[str, ...]] = {}
        for one in failures:
            by_stage[one.stage] = (*by_stage.get(one.stage, ()), str(one))
        self._failures = by_stage
        self._passed()

    def _listen(self, monitor: Monitor) -> None:
        """In the worker's thread, once."""
        assert self._begun is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: we are stopping
            self._begun.get_loop().call_soon_threadsafe(_fulfil, self._begun, monitor)


def _fulfil(future: asyncio.Future[Monitor], monitor: Monitor) -> None:
    """A future that nobody waits for any more takes none: we are stopping."""
    if future.done():
        monitor.close()
    else:
        future.set_result(monitor)
