"""Other nodes of a flannel network, as a manager shows them to a daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tortie.flannel.lease import Lease
from tortie.flannel.manager import Leases, SubnetManager

PATIENCE = 30.0
"""Seconds."""


class Watched:
    """All that a manager has shown, by a task."""

    def __init__(self, manager: SubnetManager, own: Lease) -> None:
        self.shown: list[Leases] = []
        self._task = asyncio.ensure_future(self._run(manager, own))

    async def _run(self, manager: SubnetManager, own: Lease) -> None:
        async for leases in manager.neighbours(own):
            self.shown.append(dict(leases))

    @property
    def names(self) -> set[str]:
        assert not self._task.done()
        return set(self.shown[-1]) if self.shown else set()

    async def until(self, *names: str) -> None:
        await soon(lambda: self.names == set(names), lambda: str(self.shown))

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def soon(true: Callable[[], Any], why: Callable[[], str] = str) -> None:
    for _ in range(int(PATIENCE / 0.01)):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(why())
