"""A child of `agent_load`: an agent's picture of a large cluster, `View` and `Cluster`, without a kernel.

Arguments: the datastore, and the addresses of fan-out servers or "". It answers when it is in sync; to each line that
it is told it answers with what it has had until then.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time

from bench.large import memory, say
from bench.world import US
from tortie.agent import collector
from tortie.agent.known import ALSO
from tortie.agent.view import View
from tortie.calc.cluster import INPUTS
from tortie.calc.state import DesiredState
from tortie.store import open_store
from tortie.store.fanout.wanted import by_fanout


class Picture:
    def __init__(self, where: str, servers: str) -> None:
        self.started = time.monotonic()
        self.states = 0
        self.events = 0
        self.view = View(US, by_fanout(open_store(where), servers, US, {}), self._publish)
        hear = self.view.hear

        def counted(event: object) -> None:
            self.events += 1
            hear(event)  # type: ignore[arg-type]

        self.view.hear = counted  # type: ignore[assignment, method-assign]

    def _publish(self, state: DesiredState) -> None:
        self.states += 1

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            follows = [tasks.create_task(self.view.follow(kind)) for kind in (*INPUTS, *ALSO)]
            await self.view.in_sync.wait()
            while not self.states:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            collector.settle()
            say(self.figures())
            while await asyncio.to_thread(sys.stdin.readline):
                say(self.figures())
            for task in follows:
                task.cancel()

    def figures(self) -> dict[str, float]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "seconds": time.monotonic() - self.started,
            "cpu": used.ru_utime + used.ru_stime,
            "memory": memory(os.getpid()),
            "peak": used.ru_maxrss / 1024,
            "states": self.states,
            "events": self.events,
            "endpoints": len(self.view.latest.endpoints) if self.view.latest else 0,
        }


if __name__ == "__main__":
    collector.begin()
    asyncio.run(Picture(*sys.argv[1:]).run())
