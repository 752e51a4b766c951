"""What happens to a range of etcd's keys, each write once and in order, whichever member tells of it.

    revision ──► a stream from it on, by the member in use ──► batches
                        ▲              │ breaks, is silent, or has lost the others
                        └── the last revision that was told: from the next member

A stream begins at the revision that was told, not after it. etcd lets one begin at the very revision that its history
is compacted to, though the deletions of that one are gone: those were told. Where more is gone, it says so itself.

A stream that is quiet is asked for a sign of life: a member that died without a word is noticed by that.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from aetcd import rpc
from grpc.aio import AioRpcError

from tortie.base.errors import Compacted, Unavailable
from tortie.store.etcd.wire import AGAIN, ATTEMPT, LONGEST_PAUSE, Member, Wire, raise_final, reason, refusal

Events = Sequence[Any]
"""etcd's own: type, kv, prev_kv."""


class Broken(Exception):
    """This stream will tell nothing more; another may."""


class Watch:
    """A position in the history of the keys from `first` to before `end`: all up to `after` was told."""

    def __init__(self, wire: Wire, first: bytes, end: bytes, kind: str, revision: str, cluster: int = 0) -> None:
        """`cluster` is the id of the etcd whose revision it is, if that is known. Raises Compacted when it is none."""
        self._wire = wire
        self._first, self._end = first, end
        self._kind = kind
        if not (revision.isascii() and revision.isdecimal() and len(revision) < 20):
            raise Compacted(f'watch {kind}: "{revision}" is no revision of etcd\'s; list again')
        self._after = int(revision)
        self._cluster = cluster
        self._call: Any = None
        self._closed = False

    def close(self) -> None:
        """Ends `batches`."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    async def batches(self) -> AsyncGenerator[Events, None]:
        """Raises Compacted; Unavailable when no member tells anything for as long as the wire has patience."""
        failing = 0.0
        while not self._closed:
            member = self._wire.member
            try:
                if failing:  # for one that answers, and to say what is wrong with those that do not
                    await self._look()
                    member = self._wire.member
                async with aclosing(self._told_by(member)) as told:
                    async for events in told:
                        failing = 0.0
                        if events:
                            yield events
            except (Broken, AioRpcError) as error:
                if self._closed or self._wire.closed:
                    return
                if isinstance(error, AioRpcError):
                    raise_final(error, self._wire.config, self._wire.keys)
                    error = Broken(reason(error, member))
                failing = failing or time.monotonic()
                if time.monotonic() - failing > self._wire.patience:
                    raise Unavailable(f"etcd {self._wire.where}: watch {self._kind}: {error}") from None
                self._wire.leave(member)
                await asyncio.sleep(LONGEST_PAUSE * random.uniform(0.1, 1))
            except Unavailable:
                if self._closed:
                    return
                raise

    async def _look(self) -> None:
        """Whether this is the etcd that the revision is of, by word of a majority. Raises Compacted, Unavailable."""
        header = (await self._wire.ask("Range", rpc.RangeRequest(key=self._first, keys_only=True))).header
        self._recognize(header)
        if self._after > header.revision:
            raise self._another()

    async def _begins(self, header: Any) -> None:
        """The same for what a member says at the beginning of a stream: it may be behind the others."""
        self._recognize(header)
        if self._after > header.revision:
            await self._look()

    def _recognize(self, header: Any) -> None:
        if self._cluster not in (0, header.cluster_id):
            raise self._another()
        self._cluster = header.cluster_id

    def _another(self) -> Compacted:
        return Compacted(f"watch {self._kind}: revision {self._after} is of another etcd; list again")

    async def _told_by(self, member: Member) -> AsyncGenerator[Events, None]:
        """What one member tells; an empty batch is a sign of life."""
        self._call = call = await self._wire.stream(member)
        held: list[Any] = []
        reading: asyncio.Task[Any] | None = None
        try:
            if self._closed:  # while there was no stream to cancel
                raise Broken("it is closed")
            await _say(call, rpc.WatchRequest(create_request=self._request()))
            asked = False
            while True:
                reading = reading or asyncio.ensure_future(call.read())
                await asyncio.wait({reading}, timeout=self._wire.quiet)
                if not reading.done():
                    if asked:
                        raise Broken("it is silent")
                    await _say(call, rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
                    asked = True
                    continue
                response, reading, asked = _result(reading), None, False
                self._check(response)
                if response.created:
                    await self._begins(response.header)
                new = (event for event in response.events if event.kv.mod_revision > self._after)
                events, held = _whole([*held, *new], response.fragment)
                if events:
                    self._after = events[-1].kv.mod_revision
                elif not (response.events or response.created) and response.watch_id >= 0:  # progress
                    self._after = max(self._after, response.header.revision)
                yield events
        finally:
            call.cancel()
            if reading is not None:
                reading.cancel()
                await asyncio.wait({reading})
                _ = reading.cancelled() or reading.exception()  # whatever it was, it is nobody's any more

    def _request(self) -> Any:
        return rpc.WatchCreateRequest(
            key=self._first,
            range_end=self._end,
            start_revision=max(1, self._after),  # 0 would be the present
            prev_kv=True,
            progress_notify=True,
            fragment=True,
        )

    def _check(self, response: Any) -> None:
        """Raises what a cancellation by the server means."""
        if response.compact_revision:
            raise Compacted(f"watch {self._kind}: no history from revision {self._after}: compacted; list again")
        if response.canceled:
            why = response.cancel_reason
            if any(word in why for word in (*AGAIN, "permission denied")) and self._wire.forget_token():
                raise Broken(why)
            wire = self._wire
            raise refusal(grpc.StatusCode.UNKNOWN, why, wire.config, wire.keys) or Broken(why or "it was cancelled")


def _whole(events: list[Any], more: bool) -> tuple[list[Any], list[Any]]:
    """The events of revisions of which all is here, and the rest, which has `more` coming."""
    if not more or not events:
        return events, []
    last = events[-1].kv.mod_revision
    whole = [event for event in events if event.kv.mod_revision < last]
    return whole, events[len(whole) :]


async def _say(call: Any, request: Any) -> None:
    """Raises Broken when the stream has ended. One that is cancelled before it has begun, gRPC lets wait for ever."""
    try:
        async with asyncio.timeout(ATTEMPT):
            await call.write(request)
    except TimeoutError:
        raise Broken("it takes no question") from None
    except asyncio.InvalidStateError:
        raise Broken("the stream ended") from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and not task.cancelling():  # it is the call that was cancelled
            raise Broken("the connection was closed") from None
        raise


def _result(reading: asyncio.Task[Any]) -> Any:
    """What was read. Raises Broken at the end of the stream."""
    if reading.cancelled():
        raise Broken("the connection was closed")
    response = reading.result()
    if response is grpc.aio.EOF:
        raise Broken("the stream ended")
    return response
