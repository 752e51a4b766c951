"""A datastore whose lists and watches come from a fan-out server, if one answers.

    list, watch ──► a fan-out server ─────────────────────┐
         └─ none answers, or it cannot tell: ──► the datastore ◄── get, create, update, delete
                                                      ▲
    watch: from one to the other at the revision that it has come to, so that nothing is missed or told twice

What a server says may be behind the datastore. A list is never behind what this client has seen or written of the kind:
the server is told the revision that it must have come to, and what this client has deleted, and waits for it. What must
not be behind at all (compare-and-swap) is read with `get`, and lists of `NEVER` kinds are the datastore's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, TypeVar, cast

from tortie.base.errors import Unavailable
from tortie.model.meta import Resource
from tortie.model.store import Event, EventType, Listing, Store
from tortie.store.fanout.link import Elsewhere, Link, Lost
from tortie.store.fanout.servers import Servers
from tortie.store.fanout.wire import NEVER, Record
from tortie.store.rules import read_back

R = TypeVar("R", bound=Resource)

GONE = 256
"""Deletions of a kind that a server is told of. After more of them the datastore itself is listed once."""
LONGEST = 5
"""How often the time doubles until a server is asked again for a kind that it cannot tell."""
DECODED = 2000
"""Objects of a list that are decoded before others may do something: about 10 ms."""


class FanoutStore:
    """Implements `tortie.model.store.Store` on `direct`, which it closes. `servers` is closed, too."""

    def __init__(self, direct: Store, servers: Servers) -> None:
        self.direct = direct
        self.servers = servers
        self.served = 0
        """Lists that came from a server."""
        self.followed = 0
        """Watches that a server told."""
        self.asked = 0
        """Lists and watches of kinds that might have, and were asked of the datastore."""
        self._seen: dict[type[Resource], int] = {}
        self._gone: dict[type[Resource], dict[tuple[str, str], int]] = {}
        self._unsure: set[type[Resource]] = set()
        self._avoid: dict[type[Resource], float] = {}
        self._refused: dict[type[Resource], int] = {}
        """How often in a row a server could not tell a kind."""

    # --- of the datastore itself ---

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        return self._see(await self.direct.get(kind, name, namespace))

    async def create(self, obj: R) -> R:
        return self._see(await self.direct.create(obj))

    async def update(self, obj: R) -> R:
        return self._see(await self.direct.update(obj))

    async def delete(self, kind: type[R], name: str, namespace: str = "", revision: str = "") -> R:
        last = await self.direct.delete(kind, name, namespace, revision)
        if kind not in NEVER:
            gone = self._gone.setdefault(kind, {})
            gone[namespace, name] = _number(last.metadata.resource_version)
            if len(gone) > GONE:
                gone.clear()
                self._unsure.add(kind)
        return last

    async def close(self) -> None:
        await self.servers.close()
        await self.direct.close()

    # --- by way of a server ---

    async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
        """Those of one namespace are the datastore's own."""
        if namespace is None and kind not in NEVER and kind not in self._unsure:
            while (link := await self.servers.current()) is not None and self._serves(link, kind):
                with contextlib.suppress(Lost):
                    try:
                        return await self._served(link, kind)
                    except Elsewhere as no:
                        self._avoided(link, kind, no)
        self.asked += kind not in NEVER
        gone = dict(self._gone.get(kind, {}))
        listing = await self.direct.list(kind, namespace)
        if namespace is None:
            self._come_to(kind, listing.revision, gone)
            self._unsure.discard(kind)
        return listing

    async def watch(self, kind: type[R], revision: str) -> AsyncIterator[tuple[Event[R], ...]]:
        if self.servers.closed:
            raise Unavailable("this store is closed")
        after = revision
        while not self.servers.closed:
            link = None if kind in NEVER else await self.servers.current()
            if link is not None and self._serves(link, kind):
                try:
                    self.followed += 1
                    told = cast(AsyncGenerator[tuple[tuple[Record, ...], str], None], link.watch(kind.KIND.key, after))
                    async with contextlib.aclosing(told):
                        async for records, after in told:
                            self._refused.pop(kind, None)
                            self._come_to(kind, after)
                            if records:
                                yield self._events(kind, records)
                except Lost:
                    pass
                except Elsewhere as no:
                    self._avoided(link, kind, no)
                continue
            if self.servers.closed:
                return
            self.asked += kind not in NEVER
            ended = True
            own = self._directly(kind, after)
            async with contextlib.aclosing(own):
                async for batch in own:
                    if batch is None:
                        ended = False
                        break
                    after = batch[-1].object.metadata.resource_version
                    self._told(kind, batch)
                    yield batch
            if ended:
                return

    async def _served(self, link: Link, kind: type[R]) -> Listing[R]:
        gone = dict(self._gone.get(kind, {}))
        absent = tuple((namespace, name, revision) for (namespace, name), revision in gone.items())
        found, revision = await link.list(kind.KIND.key, self._seen.get(kind, 0), absent)
        items: list[R] = []
        for number, key in enumerate(sorted(found)):
            items.append(read_back(kind, found.pop(key).body))
            if number % DECODED == DECODED - 1:
                await asyncio.sleep(0)
        self._come_to(kind, revision, gone)
        self.served += 1
        self._refused.pop(kind, None)
        return Listing(tuple(items), revision)

    async def _directly(self, kind: type[R], after: str) -> AsyncGenerator[tuple[Event[R], ...] | None, None]:
        """Batches of the datastore's own watch; None when a server can be asked instead."""
        watch = cast(AsyncGenerator[tuple[Event[R], ...], None], self.direct.watch(kind, after))
        if kind in NEVER:
            async with contextlib.aclosing(watch):
                async for batch in watch:
                    yield batch
            return
        back = asyncio.create_task(self._back(kind), name=f"wait for a fan-out server: {kind.KIND.key}")
        step: asyncio.Task[Any] | None = None
        try:
            while True:
                step = asyncio.create_task(_step(watch), name=f"watch {kind.KIND.key}")
                await asyncio.wait({step, back}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    yield None
                    return
                batch = step.result()
                if batch is None:
                    return
                yield batch
        finally:
            tasks = [task for task in (step, back) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await watch.aclose()

    async def _back(self, kind: type[Resource]) -> None:
        """Until there is a server that may be asked for the kind."""
        while (link := self.servers.link) is None or not self._serves(link, kind):
            wait = self._avoid.get(kind, 0.0) - self._now()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait if wait > 0 else None):
                    await self.servers.change()

    # --- what this client knows already ---

    def _serves(self, link: Link, kind: type[Resource]) -> bool:
        return kind.KIND.key in link.kinds and self._avoid.get(kind, 0.0) <= self._now()

    def _avoided(self, link: Link, kind: type[Resource], no: Elsewhere) -> None:
        if no.forever:
            link.kinds -= {kind.KIND.key}
        tries = self._refused.get(kind, 0)
        self._refused[kind] = min(tries + 1, LONGEST)
        again = self.servers.patience.again * 2**tries
        self._avoid[kind] = self._now() + again + random.uniform(0, 2 * again)

    def _see(self, one: R) -> R:
        """It was read or written: no list may be older."""
        if type(one) not in NEVER:
            self._come_to(type(one), one.metadata.resource_version)
        return one

    def _come_to(self, kind: type[Resource], revision: str, gone: dict[tuple[str, str], int] | None = None) -> None:
        """`gone` are deletions that are known to be in what was seen."""
        self._seen[kind] = max(self._seen.get(kind, 0), _number(revision))
        if gone:
            left = self._gone[kind]
            for key, at in gone.items():
                if left.get(key) == at:
                    del left[key]

    def _events(self, kind: type[R], records: Sequence[Record]) -> tuple[Event[R], ...]:
        batch = tuple(Event(EventType(one.type), read_back(kind, one.body)) for one in records)
        self._told(kind, batch)
        return batch

    def _told(self, kind: type[R], batch: Sequence[Event[R]]) -> None:
        self._come_to(kind, batch[-1].object.metadata.resource_version)
        if gone := self._gone.get(kind):
            for event in batch:
                if event.type is EventType.DELETED:
                    gone.pop((event.object.namespace, event.object.name), None)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


async def _step(watch: AsyncIterator[tuple[Event[R], ...]]) -> tuple[Event[R], ...] | None:
    return await anext(watch, None)


def _number(revision: str) -> int:
    return int(revision) if revision.isascii() and revision.isdecimal() else 0
