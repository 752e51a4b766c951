"""How a kind is followed: listed, then watched; again whenever the history is lost, the datastore was away, or a watch
has fallen silent.

    list ─► believed? (`belief`) ─► the picture ─► watch ─► the picture
      ▲         └─ no: look again                    │
      └──────────── lost, away, silent ◄─────────────┘

Every list is judged: what it lacks goes only once a second question has said so too.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from tortie.agent.datastore import Datastore
from tortie.base.errors import Compacted, NotFound, NotSupported, Unavailable
from tortie.base.logs import Seldom
from tortie.model.belief import (
    FEW,
    FIRST_LOOK_AGAIN,
    LONGEST_LOOK_AGAIN,
    PATIENCE,
    SECOND_LOOK,
    Judgement,
    Key,
    Verdict,
    gone,
    sample,
)
from tortie.model.meta import Resource
from tortie.model.store import Event, Listing
from tortie.store.relisting import LONGEST, Relisting

log = logging.getLogger(__name__)

LONGEST_RETRY = 10.0
"""Seconds between two tries of a kind that fails while the datastore answers, as where nobody lets us read it."""


class Picture(Protocol):
    """What the kinds are followed for."""

    def judge(self, kind: type[Resource], listing: Listing[Resource]) -> Judgement: ...
    def add(self, kind: type[Resource], listing: Listing[Resource]) -> None: ...
    def complete(self, kind: type[Resource], revision: str, gone: Iterable[Key]) -> None: ...
    def hear(self, event: Event[Resource]) -> None: ...
    def lose(self, kind: type[Resource]) -> None: ...
    def loses_nothing(self, kind: type[Resource]) -> bool: ...


@dataclass
class Word:
    """What was heard of a kind. `heard` is by the clock; `why` says why it is not followed, or its lists not taken."""

    listed: bool = False
    heard: float | None = None
    why: str = ""
    limit: asyncio.Timeout | None = None


class Following:
    """Of one picture. Runs on the event loop."""

    def __init__(self, picture: Picture, datastore: Datastore, clock: Callable[[], float] = time.monotonic) -> None:
        self.words: dict[type[Resource], Word] = {}
        self._picture = picture
        self._datastore = datastore
        self._clock = clock
        self._complain = Seldom(log)

    async def follow(self, kind: type[Resource]) -> None:
        """Forever."""
        word, failures, again = self.words.setdefault(kind, Word()), 0, Relisting(clock=self._clock)
        while True:
            limit: asyncio.Timeout | None = None
            try:
                revision = await self._believable(kind, word)
                failures = 0
                async with asyncio.timeout(None) as limit:
                    word.limit = limit
                    async for batch in self._datastore.watch(kind, revision):
                        word.heard = self._clock()
                        for event in batch:
                            self._picture.hear(event)
            except Compacted:
                word.limit = None
                log.info("%s: history is gone, listing again", kind.KIND.plural)
                if pause := again.lost():
                    await self._wait(kind, word, pause)
            except TimeoutError:
                if limit is None or not limit.expired():
                    raise
            except Unavailable as error:
                word.listed, word.limit, word.why = False, None, str(error)
                self._picture.lose(kind)
                if failures:  # the datastore was back meanwhile: it is this kind that there is something with
                    self._complain.warning(f"{error}; trying again")
                await self._datastore.back()
                failures += 1
                if failures > 1:
                    await asyncio.sleep(random.uniform(0.5, 1) * min(LONGEST_RETRY, 2 ** (failures - 2)))

    async def _wait(self, kind: type[Resource], word: Word, pause: float) -> None:
        """Before the next list of a kind whose history goes faster than it can be listed."""
        word.listed = False
        word.why = f"{kind.KIND.plural}: the datastore forgets what has changed while they are listed, again and again"
        self._complain.warning(f"{word.why}; what is known may be {LONGEST:g} s old")
        self._picture.lose(kind)
        await asyncio.sleep(pause)

    def look_again(self, *kinds: type[Resource]) -> None:
        """End the watch of these kinds, of all if none is named, and list them."""
        for kind in kinds or tuple(self.words):
            word = self.words[kind]
            word.listed = False
            if word.limit is not None:
                word.limit.reschedule(0)
                word.limit = None

    def agreed(self, kind: type[Resource]) -> None:
        """Somebody has asked, and the picture of this kind is as the datastore has it."""
        self.words[kind].heard = self._clock()

    async def _believable(self, kind: type[Resource], word: Word) -> str:
        """Bring the picture to what a list says; the revision from which to watch. Raises Unavailable."""
        pause, since, told = FIRST_LOOK_AGAIN, self._clock(), False
        while True:
            listing = await self._datastore.list(kind)
            verdict, why, revision = await self._take(kind, listing)
            if verdict is Verdict.TAKE:
                self._datastore.trust(kind)
                word.listed, word.heard, word.why = True, self._clock(), ""
                return revision
            if not told:
                self._complain.warning(f"{why}; looking again")
            elif verdict is Verdict.REWRITTEN or self._clock() - since > PATIENCE:
                self._datastore.refuse(kind, why)
            word.why, told = why, True
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_LOOK_AGAIN)

    async def _take(self, kind: type[Resource], listing: Listing[Resource]) -> tuple[Verdict, str, str]:
        """TAKE with the revision from which to watch; else why a listing is not taken. Raises Unavailable."""
        if not self._picture.loses_nothing(kind):
            await self._datastore.check()
        judgement = self._picture.judge(kind, listing)
        missing: tuple[Key, ...] = ()
        first = listing.revision  # watched from here, what goes between two lists is told
        if judgement.verdict is Verdict.DOUBT:
            missing, second = judgement.missing, listing
            if len(missing) > FEW:
                self._picture.add(kind, listing)
                await asyncio.sleep(SECOND_LOOK)
                second = await self._datastore.list(kind)
                again = self._picture.judge(kind, second)
                judgement = again if again.verdict is not Verdict.TAKE else Judgement(Verdict.DOUBT)
            if judgement.verdict is Verdict.DOUBT:
                both = tuple(sorted(set(missing) & set(judgement.missing)))
                there = [key for key in sample(both) if await self._is_there(kind, key)]
                await self._datastore.check()
                if there:
                    name = "/".join(filter(None, there[0]))
                    why = f"{kind.KIND.plural}: {name} is missing from the list, and is there"
                    return Verdict.DOUBT, why, ""
                missing, listing = gone(missing, judgement.missing, there), second
        if judgement.verdict in (Verdict.STALE, Verdict.REWRITTEN):
            return judgement.verdict, judgement.why, ""
        self._picture.add(kind, listing)
        self._picture.complete(kind, listing.revision, missing)
        return Verdict.TAKE, "", first

    async def _is_there(self, kind: type[Resource], key: Key) -> bool:
        """What this version cannot read is not there: lists leave it out, and watches tell that it went."""
        namespace, name = key
        try:
            await self._datastore.peek(kind, name, namespace)
        except (NotFound, NotSupported):
            return False
        return True
