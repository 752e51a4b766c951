"""Keeps one kind as the datastore has it.

    list ─► shelf.begin ─► watch ─► shelf.put ─► watch ─► ...
     ▲                       │ away: watch again from where it was
     └── history is gone ◄───┴── silent: it has not told of what a second list has

A watch says nothing of the revisions at which nothing happened. A client that comes from the datastore itself may be
at one of these, so `reached` lists the kind once more when it is asked for a revision that was not heard of: what the
list has and the watch has told is then known up to the list's revision. All clients that wait share one such list.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tortie.base.errors import Compacted, NotFound, NotSupported, TortieError
from tortie.fanout.shelf import Key, Shelf, Snapshot, compressed
from tortie.model.document import encode
from tortie.model.meta import Resource, changed
from tortie.model.node import ClusterInformation
from tortie.model.store import Event, Listing, Store
from tortie.store.fanout.wire import Record, Why
from tortie.store.relisting import Relisting

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """In seconds. `first_retry`, `longest_retry`: between two tries of a datastore that is away, doubled, less
    up to a half at random. `away`: without the datastore, after which clients are sent to it themselves. `late`: that
    the watch is given to bring a revision before the kind is listed for it; `silent`: after such a list, in which the
    watch must have told what is in it; `pause`: between two such lists of a kind, at least. `patience`: that a client
    waits for a revision, at most."""

    first_retry: float = 0.2
    longest_retry: float = 5.0
    away: float = 5.0
    late: float = 0.3
    silent: float = 5.0
    pause: float = 2.0
    patience: float = 8.0


Absent = tuple[tuple[str, str, int], ...]


class Refusal(TortieError):
    """A client's wish that comes to nothing, and why."""

    def __init__(self, why: Why, text: str = "") -> None:
        super().__init__(text)
        self.why = why


class Feed:
    """Of one kind, from `store`. `run` it as a task. `requests` counts the lists that were asked for."""

    def __init__(
        self,
        store: Store,
        kind: type[Resource],
        shelf: Shelf,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kind = kind
        self.shelf = shelf
        self.unserved = ""
        """Why this datastore cannot be asked for the kind."""
        self.away_since: float | None = None
        self.error = ""
        self.requests = 0
        self._store = store
        self._pace = pace or Pace()
        self._clock = clock
        self._limit: asyncio.Timeout | None = None
        self._relist = True
        self._checking: asyncio.Task[int] | None = None
        self._checked = -self._pace.pause
        self._making: asyncio.Task[Snapshot] | None = None

    # --- from the datastore ---

    async def run(self) -> None:
        """Until the datastore is closed, or does not serve the kind."""
        pause, again = self._pace.first_retry, Relisting(self._pace.first_retry, self._pace.longest_retry)
        while not self.unserved:
            try:
                if self._relist:
                    self._begin(await self._list())
                elif self.away_since is not None:
                    await self._answers()
                pause = self._pace.first_retry
                async with asyncio.timeout(None) as limit:
                    await self._watch(limit)
                return
            except Compacted:
                self._relist = True
                log.info("%s: history is gone, listing again", self.kind.KIND.plural)
                await asyncio.sleep(again.lost())
            except TimeoutError:
                if not self._relist:
                    raise
            except NotSupported as error:
                self.unserved = str(error)
                self._tell()
            except TortieError as error:
                self._fails(error)
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, self._pace.longest_retry)

    async def close(self) -> None:
        """Its own tasks end."""
        for task in (self._checking, self._making):
            if task is not None:
                task.cancel()

    @property
    def ready(self) -> bool:
        """Whether clients can be told of the kind, or that they cannot."""
        return bool(self.unserved) or self.shelf.revision >= 0

    @property
    def away(self) -> bool:
        """Whether the datastore has not answered for a while, so that what is here may be old."""
        return self.away_since is not None and self._clock() - self.away_since > self._pace.away

    async def _list(self) -> Listing[Resource]:
        self.requests += 1
        return await self._store.list(self.kind)

    def _begin(self, listing: Listing[Resource]) -> None:
        self.shelf.begin((recorded("ADDED", one) for one in listing.items), int(listing.revision))
        self._relist = False
        self._back()

    async def _watch(self, limit: asyncio.Timeout) -> None:
        self._limit = limit
        try:
            async for batch in self._store.watch(self.kind, str(self.shelf.revision)):
                self._back()
                self.shelf.put([written(event) for event in batch])
        finally:
            self._limit = None

    async def _answers(self) -> None:
        """Raises Unavailable."""
        try:
            await self._store.get(ClusterInformation, "default")
        except NotFound:
            pass
        self._back()

    def _fails(self, error: TortieError) -> None:
        if self.away_since is None:
            self.away_since = self._clock()
            asyncio.get_running_loop().call_later(self._pace.away * 1.01, self._tell)
        if str(error) != self.error:
            log.warning("%s: %s", self.kind.KIND.plural, error)
        self.error = str(error)

    def _back(self) -> None:
        if self.away_since is not None:
            log.info("%s: the datastore is back", self.kind.KIND.plural)
            self.away_since, self.error = None, ""
            self._tell()

    def _tell(self) -> None:
        """Something else than writes is new: who waits looks again."""
        for bell in tuple(self.shelf.bells):
            bell()

    # --- for clients ---

    async def reached(self, least: int, absent: Absent = ()) -> None:
        """Until the kind is known at this revision, without these objects. For the first list it waits as long as it
        takes: clients that asked for it themselves would not have it sooner. Raises Refusal."""
        await self._heard(0, (), None)
        try:
            async with asyncio.timeout(self._pace.patience):
                if await self._heard(least, absent, self._pace.late):
                    return
                while not self._is_at(least, absent):
                    if 0 <= await self._look() < least:  # the datastore itself is not there
                        break
                    await self._heard(least, absent, self._pace.pause)
                else:
                    return
        except TimeoutError:
            pass
        self._refuse()
        text = f"{self.kind.KIND.plural} are known up to revision {self.shelf.revision}, not to {least}"
        raise Refusal(Why.BEHIND, text)

    async def snapshot(self) -> Snapshot:
        """All objects. One is made at a time, in a thread, for all who ask."""
        found = self.shelf.fresh_snapshot()
        if found is not None:
            return found
        if self._making is None or self._making.done():
            self._making = asyncio.create_task(self._make(), name=f"snapshot {self.kind.KIND.key}")
        return await asyncio.shield(self._making)

    async def _make(self) -> Snapshot:
        records, sequence = self.shelf.freeze()
        found = await asyncio.to_thread(compressed, records, sequence)
        self.shelf.snapshot = found
        self.shelf.snapshots += 1
        return found

    def _is_at(self, least: int, absent: Absent) -> bool:
        shelf = self.shelf
        if shelf.revision < max(0, least) or self.away:
            return False
        return all(shelf.has_gone((namespace, name), revision) for namespace, name, revision in absent)

    def _refuse(self) -> None:
        if self.unserved:
            raise Refusal(Why.UNSERVED, self.unserved)
        if self.away or (self.shelf.revision < 0 and self.error):
            raise Refusal(Why.AWAY, self.error)

    async def _heard(self, least: int, absent: Absent, seconds: float | None) -> bool:
        """Waits for the watch to bring it, so long at most; whether it did. Raises Refusal."""
        rung = asyncio.Event()
        self.shelf.bells.add(rung.set)
        try:
            async with asyncio.timeout(seconds):
                while not self._is_at(least, absent):
                    self._refuse()
                    rung.clear()
                    await rung.wait()
        except TimeoutError:
            return False
        finally:
            self.shelf.bells.discard(rung.set)
        return True

    async def _look(self) -> int:
        """List once more, for all who wait."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self.look(), name=f"look at {self.kind.KIND.key}")
        return await asyncio.shield(self._checking)

    async def look(self) -> int:
        """Whether the watch tells everything: if so the revision of a list is reached, if not all is listed anew. That
        revision; -1 for none."""
        await asyncio.sleep(self._checked + self._pace.pause - self._clock())
        self._checked = self._clock()
        try:
            listing = await self._list()
        except TortieError as error:
            log.debug("look at %s: %s", self.kind.KIND.plural, error)
            return -1
        until = self._clock() + self._pace.silent
        rung = asyncio.Event()
        self.shelf.bells.add(rung.set)
        try:
            while news := untold(self.shelf, listing.items, int(listing.revision)):
                rung.clear()
                async with asyncio.timeout(max(0, until - self._clock())):
                    await rung.wait()
            self.shelf.mark(int(listing.revision))
        except TimeoutError:
            log.warning("the watch of %s is silent: it has not told of %s; listing again", self.kind.KIND.plural, news)
            self._relist = True
            if self._limit is not None:
                self._limit.reschedule(0)
                self._limit = None
        finally:
            self.shelf.bells.discard(rung.set)
        return int(listing.revision)


def recorded(type_: str, one: Resource) -> Record:
    metadata = one.metadata
    return Record(type_, metadata.namespace, metadata.name, int(metadata.resource_version or 0), encode(one))


def written(event: Event[Resource]) -> Record:
    return recorded(event.type.value, event.object)


def untold(shelf: Shelf, items: Sequence[Resource], revision: int) -> str:
    """What a list at `revision` has and the shelf does not, in words; "" where the shelf knows all of it.

    An object whose revision has grown and which is the same otherwise is known: of some, events tell only what counts.
    """
    listed: set[Key] = set()
    for one in items:
        key = one.namespace, one.name
        listed.add(key)
        at = int(one.metadata.resource_version or 0)
        known = shelf.objects.get(key)
        if known is None:
            if shelf.tombstone(key) < at:
                return one.title
        elif known[0] < at:
            same = recorded("ADDED", changed(one, resource_version=str(known[0])))
            if not known[1].endswith(same.body):
                return one.title
    for key, (at, _) in shelf.objects.items():
        if at <= revision and key not in listed:
            return f"the deletion of {'/'.join(filter(None, key))}"
    return ""
