"""Who of several processes does the work: the holder of a Lease in the datastore, which the others wait to run out.

    lease as stored ─► seen: since when by my own clock ─► decide: write (take, renew) or wait
         ▲                                                            │ compare-and-swap
         └────────────────────────────────────────────────────────────┘

    holder:  renewed ├── may write ── 10 s ┤ stopped                 (counted from before the renewal was sent)
    others:    seen  ├──────────────── 15 s ──────────────┤ may take (counted from after it was read)

No clock is compared with another machine's: a renewal is a change of the stored lease, and how long ago it was seen is
counted on a clock that only goes forward and does not stand still while the machine sleeps. The times that are written
are for people. The holder stops by itself when it could not renew in time, and a write that begins later is refused
(`Fenced`), whatever its tasks do.

Source: client-go's leader election, its durations and its way to observe; the fence is ours.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from tortie.base.errors import Conflict, Exists, NotFound, NotSupported, TortieError, Unavailable
from tortie.model.lease import Lease, LeaseSpec
from tortie.model.meta import Metadata
from tortie.model.store import Event, Listing, R, Store

log = logging.getLogger(__name__)

NAME, NAMESPACE = "tortie-controllers", "kube-system"
NEVER = float("-inf")
PARTING = 2.0
"""Seconds that a process which stops takes to give its lease back."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: how long a lease holds, how long its holder tries to renew it before it stops, how often all look."""

    lease: float = 15.0
    renew: float = 10.0
    retry: float = 2.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A state of the lease, when it was first seen in seconds of one's own clock, and who held it for how long."""

    revision: str
    at: float
    holder: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Write:
    """The lease is free, or mine: write this; it is new where `revision` is empty."""

    spec: LeaseSpec
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """Somebody else's; look again in `seconds`."""

    holder: str
    seconds: float


def observe(lease: Lease | None, seen: Seen | None, now: float) -> Seen | None:
    """What has been seen after reading the lease: every write to it counts as a renewal. One that somebody has deleted
    was still held by whom it was held by."""
    if lease is None:
        return seen
    spec, revision = lease.spec, lease.metadata.resource_version
    if seen is not None and seen.revision == revision:
        return seen
    return Seen(revision, now, spec.holder_identity, float(spec.lease_duration_seconds))


def decide(lease: Lease | None, seen: Seen | None, me: str, now: float, utc: datetime, times: Times) -> Write | Wait:
    """What to do about a lease that was read; `seen` is `observe` of it. `now` is in seconds of one's own clock."""
    if seen is not None and seen.holder not in ("", me):
        left = seen.at + (seen.seconds or times.lease) - now
        if left > 0:
            return Wait(seen.holder, min(left, times.retry))
    if lease is None:
        return Write(_spec(LeaseSpec(), me, utc, times))
    return Write(_spec(lease.spec, me, utc, times), lease.metadata.resource_version)


def _spec(old: LeaseSpec, me: str, utc: datetime, times: Times) -> LeaseSpec:
    """A renewal always differs from what it renews, also when the clock on the wall stands or was put back: else the
    others could not see it."""
    before = _parsed(old.renew_time)
    when = _text(utc if before is None or utc > before else before + timedelta(microseconds=1))
    mine = old.holder_identity == me
    return LeaseSpec(
        holder_identity=me,
        lease_duration_seconds=max(1, round(times.lease)),
        acquire_time=old.acquire_time if mine and old.acquire_time else when,
        renew_time=when,
        lease_transitions=old.lease_transitions + (not mine and old.renew_time is not None),
    )


def released(spec: LeaseSpec) -> LeaseSpec:
    """The lease given back: anybody may have it at once."""
    return LeaseSpec(
        lease_duration_seconds=1,
        acquire_time=spec.acquire_time,
        renew_time=spec.renew_time,
        lease_transitions=spec.lease_transitions,
    )


def _text(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def _parsed(text: str | None) -> datetime | None:
    """None for what is no time, which somebody else may have written; one without a zone is UTC."""
    try:
        found = datetime.fromisoformat(text or "")
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    except ValueError:
        return None


def identity() -> str:
    """Whom the lease names: this host and this process, once in the world."""
    return f"{socket.gethostname()}_{uuid.uuid4()}"


# --- doing ------------------------------------------------------------------------------------------------------------


class Clock(Protocol):
    """`now` in seconds, forward only; `utc` is what the wall says."""

    def now(self) -> float: ...

    def utc(self) -> datetime: ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's. The time that it was suspended counts: leases do not wait for it."""

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def utc(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Election:
    """One process's part in it. `run` does the work whenever, and as long as, this process leads."""

    def __init__(
        self,
        store: Store,
        me: str,
        *,
        namespace: str = NAMESPACE,
        name: str = NAME,
        clock: Clock | None = None,
        times: Times | None = None,
    ) -> None:
        self.me = me
        self.holder = ""
        """Who leads as far as this process knows."""
        self._store = store
        self._where = (name, namespace)
        self._clock = clock or SystemClock()
        self._times = times or Times()
        self._seen: Seen | None = None
        self._until = NEVER
        self._complaint = ""

    @property
    def leads(self) -> bool:
        """Whether this process may write, at this very moment."""
        return self._clock.now() < self._until

    async def run(self, work: Callable[[Store], Awaitable[None]]) -> None:
        """Until cancelled, or until the work ends or raises. Whenever the lead is lost the work is cancelled, and begun
        anew when it is won again. The store that the work gets refuses writes without the lead. A datastore that keeps
        no leases is worked on without one."""
        try:
            await self._campaign()
        except NotSupported as error:
            log.warning("%s; working without electing a leader: run one process only", error)
            await work(self._store)
            return
        try:
            while not await self._hold(work):
                await self._campaign()
        finally:
            await self._release()

    async def _campaign(self) -> None:
        """Until this process leads. Raises NotSupported."""
        while True:
            wait = await self._attempt(self._times.renew)
            if self.leads:
                return
            await self._clock.sleep(wait)

    async def _hold(self, work: Callable[[Store], Awaitable[None]]) -> bool:
        """The work while this process leads; whether the work ended by itself. Raises what the work raises."""
        log.info("leading as %s", self.me)
        task = asyncio.ensure_future(work(Fenced(self._store, self)))
        try:
            wait = self._times.retry
            while not task.done() and self.leads:
                await self._before(min(wait, self._until - self._clock.now()), task)
                if not task.done() and self.leads:
                    wait = await self._attempt(self._until - self._clock.now())
        finally:
            ended = task.done()
            await _stopped(task)
        if ended:
            task.result()
        else:
            log.warning("the lease could not be renewed in time: another may lead now")
        return ended

    async def _attempt(self, patience: float) -> float:
        """One try to get or to keep the lead, of `patience` seconds at most; seconds until the next one.

        Raises NotSupported.
        """
        work = asyncio.ensure_future(self._try())
        try:
            await self._before(max(patience, 0.0), work)
            if work.done():
                return work.result()
            raise Unavailable("the datastore does not answer")
        except NotSupported:
            if self._seen is None:
                raise
            return self._times.retry  # it has kept one before
        except (Conflict, Exists):
            return self._times.retry / 10  # somebody was faster: look who it was
        except TortieError as error:
            self._complain(f"{self._where[1]}/{self._where[0]}: {error}; trying again")
            return self._times.retry
        finally:
            await _stopped(work)

    async def _try(self) -> float:
        lease = await self._read()
        self._seen = observe(lease, self._seen, self._clock.now())
        before = self._clock.now()
        decision = decide(lease, self._seen, self.me, before, self._clock.utc(), self._times)
        if isinstance(decision, Wait):
            self._until = NEVER
            self._know(decision.holder)
            return decision.seconds
        await self._write(lease, decision)
        self._until = before + self._times.renew
        self._know(self.me)
        return self._times.retry

    async def _read(self) -> Lease | None:
        """Raises Unavailable for a lease that cannot be read, which somebody may hold; NotSupported where none are
        kept: a datastore that keeps leases can list those that it can read."""
        try:
            return await self._store.get(Lease, *self._where)
        except NotFound:
            return None
        except NotSupported as error:
            await self._store.list(Lease, self._where[1])
            raise Unavailable(f"{error}; or delete it, if nobody holds it") from None

    async def _write(self, lease: Lease | None, decision: Write) -> None:
        """Raises Conflict or Exists when somebody was faster."""
        name, namespace = self._where
        if lease is None:
            stored = await self._store.create(
                Lease(metadata=Metadata(name=name, namespace=namespace), spec=decision.spec)
            )
        else:
            stored = await self._store.update(Lease(metadata=lease.metadata, spec=decision.spec))
        self._seen = observe(stored, self._seen, self._clock.now())

    async def _release(self) -> None:
        """Gives the lease back if it is this process's; the work has stopped."""
        if not self.leads:
            return
        self._until = NEVER
        work = asyncio.ensure_future(self._give_back())
        try:
            await self._before(PARTING, work)
            if work.done():
                work.result()
        except TortieError as error:
            log.warning("the lease is not given back, others wait until it ends: %s", error)
        finally:
            await _stopped(work)

    async def _give_back(self) -> None:
        lease = await self._read()
        if lease is not None and lease.spec.holder_identity == self.me:
            await self._store.update(Lease(metadata=lease.metadata, spec=released(lease.spec)))
            log.info("the lease is given back")

    async def _before(self, seconds: float, task: asyncio.Future[Any]) -> None:
        """Until the task is done, or so long."""
        sleep = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({task, sleep}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _stopped(sleep)

    def _know(self, holder: str) -> None:
        self._complaint = ""
        if holder != self.holder:
            self.holder = holder
            if holder != self.me:
                log.info("%s leads; waiting", holder)

    def _complain(self, text: str) -> None:
        """Once, until something goes right again."""
        if text != self._complaint:
            self._complaint = text
            log.warning("%s", text)


async def _stopped(task: asyncio.Future[Any]) -> None:
    """Cancels a task and waits for its end. What it raises is left in it."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


class Fenced:
    """A store as its reader has it, which only the leader may write to. Implements `tortie.model.store.Store`."""

    def __init__(self, store: Store, election: Election) -> None:
        self._store = store
        self._election = election

    def _may_write(self) -> None:
        if not self._election.leads:
            raise Unavailable("this process does not lead any more: nothing is written")

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        return await self._store.get(kind, name, namespace)

    async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
        return await self._store.list(kind, namespace)

    async def create(self, obj: R) -> R:
        self._may_write()
        return await self._store.create(obj)

    async def update(self, obj: R) -> R:
        self._may_write()
        return await self._store.update(obj)

    async def delete(self, kind: type[R], name: str, namespace: str = "", revision: str = "") -> R:
        self._may_write()
        return await self._store.delete(kind, name, namespace, revision)

    def watch(self, kind: type[R], revision: str) -> AsyncIterator[tuple[Event[R], ...]]:
        return self._store.watch(kind, revision)

    async def close(self) -> None:
        """The store is not this one's to close."""
