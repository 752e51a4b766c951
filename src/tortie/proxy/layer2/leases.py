"""Which nodes are alive: a Lease of each that could answer for some address, renewed every two seconds.

    hold(networks) ─► own Lease: create, renew; deleted when this node stops    ┐ the datastore
    follow         ─► roll: all nodes' leases, by list and watch, with our own ◄┘

A node's own lease has to come back by its own watch, or that watch is taken for deaf and begun anew: who cannot hear
itself would take all others for dead. Source: the form of a lease is Kubernetes' (coordination.k8s.io/v1).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from tortie.base.addr import Net
from tortie.base.errors import Compacted, Conflict, Exists, NotFound, TortieError, Unavailable
from tortie.base.logs import Seldom
from tortie.calc.proxy.election import DEAD, FRESH, NAMESPACE, NETWORKS, PREFIX, Roll, node_of, written
from tortie.model.lease import Lease, LeaseSpec
from tortie.model.meta import Metadata, changed
from tortie.model.store import EventType, Store

log = logging.getLogger(__name__)

WATCHLESS = 60.0
"""Seconds until a watch that was refused is asked for again."""
PARTING = 2.0
"""Seconds that a node which stops takes to give its lease back."""
REMEDY = "`tortie manifest | kubectl apply -f -` makes it, and gives agents their rights there"


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: between two renewals, and for one to be answered; in which a renewal must come by the watch; between two
    tries."""

    renew: float = 2.0
    deaf: float = 3.0
    retry: float = 1.0


assert Times().renew + Times().retry < FRESH < DEAD - Times().renew


class Leases:
    """Of one node. `news` is called when something may be to be decided again. `clock` is in seconds, forward only, and
    counts sleep."""

    def __init__(
        self,
        store: Store,
        node: str,
        news: Callable[[], None],
        clock: Callable[[], float],
        times: Times | None = None,
    ) -> None:
        self.roll = Roll()
        self.known = False
        """Whether all leases have been heard of."""
        self.deaf = self.mute = ""
        """Why the leases are not followed; why the own one is not renewed."""
        self._store = store
        self._node = node
        self._news = news
        self._clock = clock
        self._times = times or Times()
        self._follow = asyncio.Event()
        self._wish = asyncio.Event()
        """Set when `hold` has said another thing."""
        self._nets: tuple[Net, ...] | None = None
        self._stored: Lease | None = None
        """The own lease as it was written last."""
        self._written = False
        """Whether there may be one."""
        self._limit: asyncio.Timeout | None = None
        """Of the watch."""
        self._no_watch = ""
        self._no_watch_until = float("-inf")
        self._complain = Seldom(log)

    def follow(self, wanted: bool) -> None:
        """Whether anybody's leases are of interest."""
        if wanted:
            self._follow.set()
        elif self._follow.is_set():
            self._follow.clear()
            self._wish.set()
            if self._limit is not None and not self._limit.expired():
                self._limit.reschedule(0)

    def hold(self, nets: tuple[Net, ...] | None) -> None:
        """This node can answer on these networks; None: it does not answer, and gives its lease back."""
        if nets != self._nets:
            self._nets = nets
            self._wish.set()

    async def run(self) -> None:
        """Until cancelled; `release` comes after it."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name="layer 2 leases")
            tasks.create_task(self._renew(), name="layer 2 lease")

    async def release(self) -> None:
        """Gives the own lease back, so that others take over at once."""
        if not self._written:
            return
        self._written, self._stored, self.mute = False, None, ""
        try:
            async with asyncio.timeout(PARTING):
                await self._store.delete(Lease, PREFIX + self._node, NAMESPACE)
        except NotFound:
            return
        except (TortieError, TimeoutError) as error:
            log.warning("the lease of layer 2 is not given back, others wait until it ends: %s", error or "no answer")

    # --- all leases ---------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await self._follow.wait()
            try:
                async with asyncio.timeout(self._times.renew + self._times.deaf):
                    revision = await self._list()
            except (TortieError, TimeoutError) as error:
                self.deaf = words(error)
                self._complain.warning(f"leases of layer 2: {self.deaf}; trying again")
                self._news()
            else:
                await self._hear_from(revision)
            if self._follow.is_set():
                await asyncio.sleep(self._times.retry)
            else:
                self.known, self.deaf = False, ""

    async def _list(self) -> str:
        """All leases, and the revision from which to watch them."""
        listing = await self._store.list(Lease, NAMESPACE)
        self.roll.take(listing.items, self._clock())
        self.known, self.deaf = True, ""
        self._news()
        return listing.revision

    async def _hear_from(self, revision: str) -> None:
        """Until the watch ends. Where there can be none they are listed every second, which is enough: the manifest's
        role is for one namespace, and a watch is of all."""
        if self._clock() < self._no_watch_until:
            return
        try:
            async with asyncio.timeout(None) as self._limit:
                async with aclosing(self._store.watch(Lease, revision)) as batches:  # type: ignore[type-var]
                    async for batch in batches:
                        for event in batch:
                            self._hear(event.object, event.type is EventType.DELETED)
        except Compacted:
            return
        except TimeoutError:  # deaf, or not wanted any more
            if self._follow.is_set():
                self._complain.warning("the watch of leases of layer 2 does not tell what is written: listing them")
        except TortieError as error:
            self._watchless(str(error))
        finally:
            self._limit = None

    def _watchless(self, why: str) -> None:
        """Said once for each reason: it may be meant, and is asked for again, though not every second."""
        self._no_watch_until = self._clock() + WATCHLESS
        if why != self._no_watch:
            self._no_watch = why
            log.info("leases of layer 2 cannot be watched: %s; they are listed every second instead", why)

    def _hear(self, lease: Lease, gone: bool) -> None:
        told = self.roll.hear(lease, self._clock(), gone=gone)
        if node_of(lease) == self._node:
            told = True
            if self._limit is not None:
                self._limit.reschedule(None)
        if told:
            self._news()

    def _expect(self) -> None:
        """What was just written must be heard of."""
        if self._limit is not None and self._limit.when() is None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + self._times.deaf)

    # --- the own lease ------------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        while True:
            self._wish.clear()
            if self._nets is None or not self._follow.is_set():
                await self.release()
                await self._wish.wait()
                continue
            await self._attempt(self._nets)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._times.renew):
                    await self._wish.wait()

    async def _attempt(self, nets: tuple[Net, ...]) -> None:
        try:
            async with asyncio.timeout(self._times.renew):
                await self._write(nets)
            self.mute = ""
            self._expect()
            await self._bury()
            return
        except (Conflict, Exists, NotFound):  # somebody else has written or deleted it
            self._stored = None
            self._wish.set()
            await asyncio.sleep(self._times.retry / 10)
            return
        except (TortieError, TimeoutError) as error:
            self.mute = words(error)
        self._complain.warning(f"the lease of layer 2 is not renewed: {self.mute}; trying again")
        self._news()

    async def _write(self, nets: tuple[Net, ...]) -> None:
        if self._stored is None:
            with suppress(NotFound):
                self._stored = await self._store.get(Lease, PREFIX + self._node, NAMESPACE)
        new, self._written = self._lease(self._stored, nets), True
        if self._stored is not None:
            self._stored = await self._store.update(new)
            return
        try:
            self._stored = await self._store.create(new)
        except NotFound:  # only Kubernetes wants it to be there before what is in it
            raise Unavailable(f"there is no namespace {NAMESPACE}: {REMEDY}") from None

    def _lease(self, old: Lease | None, nets: tuple[Net, ...]) -> Lease:
        """The times are for people: others see that it changes, and count by their own clocks."""
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        since = old.spec.acquire_time if old is not None and old.spec.holder_identity else None
        spec = LeaseSpec(
            holder_identity=self._node, lease_duration_seconds=int(DEAD), acquire_time=since or now, renew_time=now
        )
        if old is None:
            own = Metadata(name=PREFIX + self._node, namespace=NAMESPACE, annotations=written(nets))
            return Lease(metadata=own, spec=spec)
        others = {key: value for key, value in old.metadata.annotations.items() if key != NETWORKS}
        return changed(Lease(metadata=old.metadata, spec=spec), annotations=others | written(nets))

    async def _bury(self) -> None:
        """A node that has long been silent: who begins now would wait for it. If it lives, it writes a new one."""
        now = self._clock()
        if self.roll.age(self._node, now) >= FRESH:
            return
        for node, revision in self.roll.forgotten(now)[:1]:
            with suppress(TortieError):
                await self._store.delete(Lease, PREFIX + node, NAMESPACE, revision)


def words(error: TortieError | TimeoutError) -> str:
    """With what to do where a cluster has an older manifest than this program."""
    text = str(error) or "the datastore does not answer"
    return f"{text}; {REMEDY}" if "in the namespace" in text and "forbidden" in text else text
