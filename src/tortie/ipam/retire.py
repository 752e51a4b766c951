"""How a pool is deleted: closed first, so that nobody claims a block of it while the claims that there are end.

disabled ─► a pause, for those who have just read it ─► affinities released ─► deleted

Blocks with addresses in use stay, without owner, and go with their last address. Cut short anywhere, the pool is still
there, closed, and deleting it again goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from msgspec.structs import replace

from tortie.base.errors import Conflict
from tortie.ipam import affinity as claims
from tortie.ipam.ledger import ATTEMPTS, Ledger, exhausted, pause
from tortie.model.ipam import IPPool
from tortie.model.store import Store

REST = 0.5
"""Seconds between closing a pool and ending its claims, as in Calico."""


async def retire(store: Store, name: str, now: Callable[[], datetime], rest: float = REST) -> None:
    """Deletes a pool. Raises NotFound when there is none, and what kept a claim from being released."""
    pool = await _closed(store, name)
    await asyncio.sleep(rest)
    errors = await claims.release_pool(Ledger(store, now), pool.spec.net)
    if errors:
        raise errors[0]
    await store.delete(IPPool, name)


async def _closed(store: Store, name: str) -> IPPool:
    for tried in range(ATTEMPTS):
        await pause(tried)
        pool = await store.get(IPPool, name)
        if pool.spec.disabled:
            return pool
        try:
            return await store.update(replace(pool, spec=replace(pool.spec, disabled=True)))
        except Conflict:
            continue
    raise exhausted(f"disable IPPool {name}")
