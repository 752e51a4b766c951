"""What a datastore has of some kinds, told object by object to somebody who keeps a picture of it.

    list ─► judged (`model.belief`) ─► put, drop ─► watch ─► put, drop
      ▲         └─ not believed: look again              │
      └──────── history lost, datastore away ◄───────────┘

A datastore that is away, restarted empty or behind its peers changes nothing: what is known stays. One that goes on
saying so is believed after a while (`PATIENCE`), unless it says that one of the objects it leaves out is there.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from tortie.base.errors import Compacted, NotFound, NotSupported, Unavailable
from tortie.base.logs import Seldom
from tortie.model.belief import (
    FEW,
    FIRST_LOOK_AGAIN,
    LONGEST_LOOK_AGAIN,
    PATIENCE,
    SECOND_LOOK,
    Key,
    Verdict,
    judge,
    revision_of,
    sample,
)
from tortie.model.meta import Resource
from tortie.model.store import Event, EventType, Listing, Store
from tortie.store.relisting import Relisting

log = logging.getLogger(__name__)

TRIES = 3
"""Of what is optional, before it counts as not there. One of them while all else is: the datastore is not away."""


class Picture(Protocol):
    """Who is told. `heard` comes after everything that a list or a batch of a watch brought."""

    def put(self, resource: Resource) -> None: ...
    def drop(self, kind: type[Resource], namespace: str, name: str) -> None: ...
    def heard(self) -> None: ...


class Mirror:
    """Of one datastore. `run` it; `complete` is set once every kind has been listed, and stays so. A kind that the
    datastore does not have counts as one of which there is nothing; so does one of `optional` that cannot be had, until
    it can: a Kubernetes cluster need not know the resources of Calico."""

    def __init__(
        self, store: Store, picture: Picture, *kinds: type[Resource], optional: Collection[type[Resource]] = ()
    ) -> None:
        self.complete = asyncio.Event()
        self.problems: dict[type[Resource], str] = {}
        """Why a kind is not followed, or its lists are not taken, while that is so."""
        self._store = store
        self._picture = picture
        self._kinds = kinds
        self._optional = optional
        self._revisions: dict[type[Resource], dict[Key, int]] = {kind: {} for kind in kinds}
        self._seen: dict[type[Resource], int] = dict.fromkeys(kinds, 0)
        self._unlisted = set(kinds)
        self._complain = Seldom(log)

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            for kind in self._kinds:
                tasks.create_task(self._follow(kind), name=f"follow {kind.KIND.key}")

    async def _follow(self, kind: type[Resource]) -> None:
        pause, failures, again = FIRST_LOOK_AGAIN, 0, Relisting()
        while True:
            try:
                revision = await self._believable(kind)
                pause, failures = FIRST_LOOK_AGAIN, 0
                async for batch in self._store.watch(kind, revision):
                    self._hear(kind, batch)
            except Compacted:
                log.info("%s: history is gone, listing again", kind.KIND.plural)
                await asyncio.sleep(again.lost())
            except NotSupported as error:
                log.info("%s are not followed: %s", kind.KIND.plural, error)
                self._listed(kind)
                return
            except Unavailable as error:
                failures += 1
                if failures >= TRIES and kind in self._unlisted and self._unlisted <= set(self._optional):
                    self._listed(kind)
                self.problems[kind] = f"{kind.KIND.plural} count as they were: {error}"
                self._complain.warning(f"{error}; trying again")
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, LONGEST_LOOK_AGAIN)

    def _listed(self, kind: type[Resource]) -> None:
        self._unlisted.discard(kind)
        if not self._unlisted:
            self.complete.set()
            self._picture.heard()

    async def _believable(self, kind: type[Resource]) -> str:
        """Brings the picture to what a list says; the revision from which to watch. Raises Unavailable."""
        pause, since = SECOND_LOOK, time.monotonic()
        before: frozenset[Key] = frozenset()
        while True:
            listing: Listing[Any] = await self._store.list(kind)
            patient = time.monotonic() - since < PATIENCE
            why, before = await self._take(kind, listing, before, patient=patient)
            if not why:
                self.problems.pop(kind, None)
                self._listed(kind)
                return listing.revision
            self.problems[kind] = why
            self._complain.warning(f"{why}; looking again")
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_LOOK_AGAIN)

    async def _take(
        self, kind: type[Resource], listing: Listing[Any], before: frozenset[Key], *, patient: bool
    ) -> tuple[str, frozenset[Key]]:
        """Why a list is not taken, "" if it is, and what it lacks; `before` is what the one before it lacked."""
        listed = {(one.namespace, one.name): revision_of(one.metadata.resource_version) for one in listing.items}
        known = self._revisions[kind]
        seen = self._seen[kind] if patient else 0
        found = judge(kind.KIND.plural, seen, known, revision_of(listing.revision), listed)
        if found.verdict in (Verdict.STALE, Verdict.REWRITTEN) and patient:
            return found.why, frozenset()
        missing = frozenset(known.keys() - listed.keys() if found.verdict is Verdict.REWRITTEN else found.missing)
        if len(missing) > FEW and not missing <= before:
            return f"{found.why}; they count as they were", missing
        for namespace, name in sample(sorted(missing)):
            if await self._is_there(kind, namespace, name):
                return f"{kind.KIND.plural}: {name} is missing from the list, and is there", missing
        self._seen[kind] = max(self._seen[kind] if patient else 0, revision_of(listing.revision))
        self._replace(kind, listing, listed, missing)
        return "", frozenset()

    async def _is_there(self, kind: type[Resource], namespace: str, name: str) -> bool:
        try:
            await self._store.get(kind, name, namespace)
        except (NotFound, NotSupported):
            return False
        return True

    def _replace(
        self, kind: type[Resource], listing: Listing[Any], listed: dict[Key, int], missing: frozenset[Key]
    ) -> None:
        known = self._revisions[kind]
        for one in listing.items:
            key = one.namespace, one.name
            if known.get(key) != listed[key] or not listed[key]:
                self._picture.put(one)
        for namespace, name in missing:
            self._picture.drop(kind, namespace, name)
            known.pop((namespace, name), None)
        known.update(listed)
        self._picture.heard()

    def _hear(self, kind: type[Resource], batch: Sequence[Event[Any]]) -> None:
        known = self._revisions[kind]
        for event in batch:
            one = event.object
            key = one.namespace, one.name
            at = revision_of(one.metadata.resource_version)
            self._seen[kind] = max(self._seen[kind], at)
            if event.type is EventType.DELETED:
                known.pop(key, None)
                self._picture.drop(kind, *key)
            else:
                known[key] = at
                self._picture.put(one)
        self._picture.heard()
