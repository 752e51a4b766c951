"""A connection to one of several fan-out servers; another one when it is lost.

    no link ─► all addresses in random order ─► link ─► lost ─► no link ...
       └─ GRACE seconds and some chance later: fall back, which ends with the next link

While there is no link and no falling back yet, whoever watches waits: a server that restarts, or another one, is there
within seconds, and what happens meanwhile is told then. The chance is there because all agents of a cluster lose a
server at the same moment, and must not come to the datastore at the same moment; no more do they come back together.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tortie.base.errors import TortieError
from tortie.store.fanout.address import Address
from tortie.store.fanout.link import CONNECT, SILENCE, Link, connected
from tortie.store.fanout.tls import Tls

log = logging.getLogger(__name__)

Addresses = Callable[[], Awaitable[tuple[Address, ...]]]
"""Where servers are, asked before each round. May raise TortieError."""


@dataclass(frozen=True, slots=True)
class Patience:
    """In seconds. `grace`: without a server until the datastore is asked itself, plus up to `spread` at random. Between
    two rounds over all addresses: `first_retry`, doubled up to `longest_retry`, less up to a half at random. `again`:
    until a server is asked again for a kind that it could not tell, doubled each time, plus up to twice that. `avoid`:
    how long a server that was lost is tried last."""

    connect: float = CONNECT
    silence: float = SILENCE
    grace: float = 2.0
    spread: float = 10.0
    first_retry: float = 0.5
    longest_retry: float = 10.0
    again: float = 5.0
    avoid: float = 30.0


class Servers:
    """`start` it in a running loop, `close` it. `link` is the connection of this moment."""

    def __init__(self, addresses: Addresses, tls: Tls, who: str = "", patience: Patience | None = None) -> None:
        self.link: Link | None = None
        self.fallen_back = False
        self.falls = 0
        """How often."""
        self.closed = False
        self.patience = patience or Patience()
        self._addresses, self._tls, self._who = addresses, tls, who
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._avoided: dict[Address, float] = {}
        self._said = ""

    def start(self) -> None:
        """Does nothing when it has been started."""
        if self._task is None and not self.closed:
            self._without()
            self._task = asyncio.create_task(self._run(), name="fan-out servers")

    async def current(self) -> Link | None:
        """The link; None when the datastore is to be asked itself. Waits while that is not known."""
        self.start()
        while not self.closed:
            if self.link is not None and not self.link.closed.is_set():
                return self.link
            if self.link is None and self.fallen_back:
                break
            await self.change()
        return None

    async def change(self) -> None:
        """Until a link is there, or lost, or waited for no longer."""
        changed = self._changed
        await changed.wait()

    async def close(self) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.link is not None:
            self.link.close("this store is closed")
        self._tell(None)

    async def _run(self) -> None:
        tries = 0
        while True:
            link = await self._round()
            if link is None:
                longest = self.patience.longest_retry
                await asyncio.sleep(min(longest, self.patience.first_retry * 2**tries) * random.uniform(0.5, 1))
                tries = min(tries + 1, 16)
                continue
            tries = 0
            self._with(link)
            await link.closed.wait()
            log.info("fan-out server %s is lost: %s", link.address, link.why)
            self._avoided[link.address] = self._now() + self.patience.avoid
            self._without()
            await asyncio.sleep(random.uniform(0, self.patience.first_retry))

    async def _round(self) -> Link | None:
        """The first that answers; those that were lost lately come last."""
        try:
            found = list(await self._addresses())
        except TortieError as error:
            self._complain(f"where fan-out servers are is not known: {error}")
            return None
        random.shuffle(found)
        now = self._now()
        found.sort(key=lambda one: self._avoided.get(one, 0) > now)
        for each in found:
            try:
                patience = self.patience
                return await connected(each, self._tls, self._who, seconds=patience.connect, silence=patience.silence)
            except TortieError as error:
                self._complain(str(error))
        return None

    def _with(self, link: Link) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        log.info("the cluster is followed by way of the fan-out server %s", link.address)
        self.fallen_back, self._said = False, ""
        self._tell(link)

    def _without(self) -> None:
        wait = self.patience.grace + random.uniform(0, self.patience.spread)
        self._timer = asyncio.get_running_loop().call_later(wait, self._fall_back)
        self._tell(None)

    def _fall_back(self) -> None:
        log.warning("no fan-out server answers: the datastore is followed itself")
        self._timer, self.fallen_back = None, True
        self.falls += 1
        self._tell(None)

    def _tell(self, link: Link | None) -> None:
        self.link = link
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _complain(self, text: str) -> None:
        if text != self._said:
            log.warning("%s", text)
        self._said = text

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
