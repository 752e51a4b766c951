"""The datastore as this agent meets it: when it answered last, whether it is away, and whether it is believed.

    every call ─► believed? ─► the store ─► an answer: it is there; Unavailable: it is away
                     └─ no: Unavailable, so that nothing is written to a cluster that may not be ours

Whoever is told Unavailable tries again by itself; those that follow a kind wait here, and one of them asks for all.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from tortie.base.errors import NotFound, NotSupported, Unavailable
from tortie.model.belief import wrong_cluster
from tortie.model.meta import Resource
from tortie.model.node import ClusterInformation
from tortie.model.store import Event, Listing, Store

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Resource)
T = TypeVar("T")

SLOW = 5.0
"""Seconds without an answer to a call that is under way after which nobody who has another way waits for it."""
FIRST_RETRY, LONGEST_RETRY = 0.5, 5.0
"""Seconds between two questions to a datastore that is away, doubled each time, less up to a half at random."""
QUIET = 60.0
"""Seconds in which a datastore that comes and goes is not told of again."""
ACCEPT = "if this is right, accept it: tortie status --accept"


class Datastore:
    """A `Store` around another. `guid` is the cluster's, as soon as it is known; `disbelief` says why nothing that this
    datastore says is taken, "" where it is believed. Runs on the event loop."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self.guid = ""
        self.failure = ""
        """Why the last call found it away; "" when it answered."""
        self.answered: float | None = None
        """When it answered last, by the clock."""
        self.refused: dict[str, str] = {}
        """By kind why its lists have not been taken for a while."""
        self._store = store
        self._clock = clock
        self._wrong_cluster = ""
        self._under_way: dict[object, float] = {}
        self._away_since: float | None = None
        self._told_at = -QUIET
        self._told_of = False
        self._asking: asyncio.Task[None] | None = None

    # --- how it is ---

    @property
    def disbelief(self) -> str:
        return self._wrong_cluster or next(iter(self.refused.values()), "")

    @property
    def away(self) -> str:
        """Why nobody should wait for it; "" while it answers."""
        if self.failure:
            return self.failure
        oldest = min(self._under_way.values(), default=None)
        waited = 0.0 if oldest is None else self._clock() - oldest
        return f"no answer for {waited:.0f} s" if waited > SLOW else ""

    @property
    def age(self) -> float | None:
        """Seconds since it answered; None if it never has."""
        return None if self.answered is None else self._clock() - self.answered

    def refuse(self, kind: type[Resource], why: str) -> None:
        """Lists of a kind cannot be true: nothing is believed until they can."""
        if kind.KIND.key not in self.refused:
            log.error("the datastore is not believed, and everything stays as it is: %s; %s", why, ACCEPT)
        self.refused[kind.KIND.key] = why

    def trust(self, kind: type[Resource]) -> None:
        """Lists of a kind are as they should be."""
        if self.refused.pop(kind.KIND.key, None) and not self.disbelief:
            log.info("the datastore is believed again")

    def accept(self) -> None:
        """A person says that this is the cluster now, whatever it was."""
        self.guid = self._wrong_cluster = ""
        self.refused.clear()
        log.warning("the datastore is accepted as it is")

    def see(self, information: ClusterInformation | None) -> None:
        """Whose datastore it says it is."""
        why = wrong_cluster(self.guid, information)
        if why and not self._wrong_cluster:
            log.error("the datastore is not believed, and everything stays as it is: %s; %s", why, ACCEPT)
        if self._wrong_cluster and not why and not self.refused:
            log.info("the datastore is believed again")
        self._wrong_cluster = why
        if information is not None and not self.guid:
            self.guid = information.spec.cluster_guid

    # --- asking ---

    async def check(self) -> None:
        """Whether it answers, and is still the cluster's. Raises Unavailable."""
        try:
            await self.get(ClusterInformation, "default")
        except NotFound:
            pass
        except NotSupported as error:  # whose it is cannot be told
            raise Unavailable(str(error)) from None
        if self._wrong_cluster:
            raise Unavailable(f"the datastore is not believed: {self._wrong_cluster}")

    async def back(self) -> None:
        """Until it answers, and is the cluster's. Of all who wait one asks."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_until_back(), name="ask for the datastore")
        await asyncio.shield(self._asking)

    async def _ask_until_back(self) -> None:
        pause = FIRST_RETRY
        while True:
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            try:
                await self.check()
                return
            except Unavailable:
                pause = min(2 * pause, LONGEST_RETRY)

    # --- the Store ---

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        if kind is not ClusterInformation:
            await self._demand_belief()
            return await self._asked(self._store.get(kind, name, namespace))
        try:
            found = await self._asked(self._store.get(kind, name, namespace))
        except NotFound:
            self.see(None)
            raise
        assert isinstance(found, ClusterInformation)
        self.see(found)
        return found

    async def peek(self, kind: type[R], name: str, namespace: str = "") -> R:
        """The same of an object that is only looked at to find out whether the rest can be believed."""
        return await self._asked(self._store.get(kind, name, namespace))

    async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
        """Whoever follows a kind judges it: what one is refused for can only be found right by listing it."""
        if self._wrong_cluster:
            await self.check()
        return await self._asked(self._store.list(kind, namespace))

    async def create(self, obj: R) -> R:
        await self._demand_belief()
        return await self._asked(self._store.create(obj))

    async def update(self, obj: R) -> R:
        await self._demand_belief()
        return await self._asked(self._store.update(obj))

    async def delete(self, kind: type[R], name: str, namespace: str = "", revision: str = "") -> R:
        await self._demand_belief()
        return await self._asked(self._store.delete(kind, name, namespace, revision))

    async def watch(self, kind: type[R], revision: str) -> AsyncIterator[tuple[Event[R], ...]]:
        """One that breaks says little: servers cut connections now and then. Who asks next finds out."""
        async for batch in self._store.watch(kind, revision):
            self._answers()
            yield batch

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        await self._store.close()

    async def _demand_belief(self) -> None:
        """Raises Unavailable. Of another cluster's it is looked at first whether it still is."""
        if self._wrong_cluster:
            await self.check()
        if self.disbelief:
            raise Unavailable(f"the datastore is not believed: {self.disbelief}")

    async def _asked(self, call: Awaitable[T]) -> T:
        ticket = object()
        self._under_way[ticket] = self._clock()
        try:
            answer = await call
        except Unavailable as error:
            self._fails(error)
            raise
        except Exception:  # it says no: it is there
            self._answers()
            raise
        finally:
            del self._under_way[ticket]
        self._answers()
        return answer

    def _answers(self) -> None:
        now = self.answered = self._clock()
        if self._away_since is not None:
            if self._told_of:
                log.info("the datastore is back after %.0f s", now - self._away_since)
            self._away_since, self.failure = None, ""

    def _fails(self, error: Unavailable) -> None:
        now = self._clock()
        self.failure = str(error)
        if self._away_since is None:
            self._away_since = now
            self._told_of = now - self._told_at >= QUIET
            if self._told_of:
                self._told_at = now
                log.warning("the datastore is away: %s; the dataplane stays as it is", error)
