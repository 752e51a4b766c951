"""A child of `fanout`: many agents' clients in one process, each following the kinds that most change.

Arguments: the datastore, the addresses of fan-out servers or "", and how many. It answers when all have listed; to
`report` with when each write came to the last of them, by the machine's monotonic clock.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time

from bench.large import say
from tortie.base.errors import Compacted, Unavailable
from tortie.model.ipam import BlockAffinity, IPPool
from tortie.model.k8s import Namespace
from tortie.model.meta import Resource
from tortie.model.node import Node
from tortie.model.policy import NetworkPolicy
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint
from tortie.store import open_store
from tortie.store.fanout.wanted import by_fanout

KINDS: tuple[type[Resource], ...] = (WorkloadEndpoint, NetworkPolicy, Node, Namespace, IPPool, BlockAffinity)
COUNTED = WorkloadEndpoint


class Watchers:
    def __init__(self, where: str, servers: str, many: str) -> None:
        self.stores = [by_fanout(open_store(where), servers, f"n{number}", {}) for number in range(int(many))]
        self.waiting = len(self.stores) * len(KINDS)
        self.listed = asyncio.Event()
        self.came: dict[str, list[float]] = {}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            follows = [tasks.create_task(self._follow(store, kind)) for store in self.stores for kind in KINDS]
            await self.listed.wait()
            say(self._used())
            while (await asyncio.to_thread(sys.stdin.readline)).strip() == "report":
                last = {name: max(times) for name, times in self.came.items() if len(times) == len(self.stores)}
                say(self._used() | {"last": last})
            for task in follows:
                task.cancel()
        for store in self.stores:
            await store.close()

    def _used(self) -> dict[str, object]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {"cpu": used.ru_utime + used.ru_stime}

    async def _follow(self, store: Store, kind: type[Resource]) -> None:
        first = True
        while True:
            try:
                listing = await store.list(kind)
                if first:
                    first = False
                    self.waiting -= 1
                    if not self.waiting:
                        self.listed.set()
                async for batch in store.watch(kind, listing.revision):
                    if kind is COUNTED:
                        now = time.monotonic()
                        for event in batch:
                            self.came.setdefault(event.object.name, []).append(now)
            except (Compacted, Unavailable):
                await asyncio.sleep(0.2)


if __name__ == "__main__":
    asyncio.run(Watchers(*sys.argv[1:]).run())
