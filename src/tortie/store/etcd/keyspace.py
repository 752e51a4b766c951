"""Plain keys of an etcd, for programs whose records are not resources: flannel's.

    read ──► all keys of spans at one revision ──► watch from there ──► changes, each once
    swap ──► a key is as it was read? ──► put it, and delete others for it: one transaction, told rightly
    grant, keep alive, revoke ──► leases: keys that hang on one go with it

Connections, tokens, TLS and what is tried again are those of `wire`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from aetcd import rpc

from tortie.base.errors import Compacted, Unavailable
from tortie.model.apiconfig import ApiConfig
from tortie.store.etcd.watch import Watch
from tortie.store.etcd.wire import LONGEST_PAUSE, PATIENCE, QUIET, LeaseGone, Unsure, Wire

LIST_TIME = 30.0
"""Seconds that an answer with many keys may take."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a key holds, and the revision of its last write. `lease` is 0 for a key that stays."""

    key: str
    value: str
    revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class Reading:
    """Keys at one revision of one etcd."""

    entries: tuple[Entry, ...]
    revision: int
    cluster: int


@dataclass(frozen=True, slots=True)
class Change:
    """`entry` is what a key holds from now on; None: it is gone."""

    key: str
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Span:
    """Keys from the first to before the end."""

    first: bytes
    end: bytes

    @classmethod
    def key(cls, key: str) -> Span:
        return cls(key.encode(), key.encode() + b"\0")

    @classmethod
    def prefix(cls, prefix: str) -> Span:
        """Everything that begins with a text that ends in `/`."""
        return cls(prefix.encode(), prefix[:-1].encode() + b"0")


class Keyspace:
    """Every method may raise Unavailable, and ConfigError when etcd does not let us in."""

    def __init__(self, config: ApiConfig, keys: str, patience: float = PATIENCE, quiet: float = QUIET) -> None:
        """`keys` says which, for an operator whose roles do not allow them. Raises ConfigError."""
        self._wire = Wire(config, patience, quiet, keys)
        self._watches: set[Watch] = set()

    @property
    def where(self) -> str:
        return f"etcd {self._wire.where}"

    async def get(self, key: str) -> Entry | None:
        return next(iter((await self.read(Span.key(key))).entries), None)

    async def read(self, *spans: Span) -> Reading:
        ranges = [rpc.RangeRequest(key=span.first, range_end=span.end) for span in spans]
        request = rpc.TxnRequest(success=[rpc.RequestOp(request_range=one) for one in ranges])
        answer = await self._wire.ask("Txn", request, LIST_TIME)
        found = tuple(_entry(kv) for one in answer.responses for kv in one.response_range.kvs)
        return Reading(found, answer.header.revision, answer.header.cluster_id)

    async def swap(
        self, key: str, value: str, lease: int = 0, at: int = 0, instead: Sequence[Entry] = ()
    ) -> Entry | None:
        """Writes a key that is at revision `at` (0: is not there), with a lease (0: none), and deletes others that are
        as they were read. What is stored then; None when one of them has changed, and nothing was done."""
        compare = [_unchanged(key, at), *(_unchanged(other.key, other.revision) for other in instead)]
        gone = [rpc.DeleteRangeRequest(key=other.key.encode()) for other in instead]
        success = [
            *(rpc.RequestOp(request_delete_range=one) for one in gone),
            rpc.RequestOp(request_put=rpc.PutRequest(key=key.encode(), value=value.encode(), lease=lease)),
        ]
        request, begin, unsure = rpc.TxnRequest(compare=compare, success=success), time.monotonic(), False
        while True:
            refused = False
            try:
                answer = await self._wire.ask_once("Txn", request)
                if answer.succeeded:
                    return Entry(key, value, int(answer.header.revision), lease)
                refused = True
            except LeaseGone:
                raise Unavailable(f"{self.where}: the lease for {key} is gone already") from None
            except Unsure:
                unsure = True
            found = await self.get(key) if unsure else None
            if found and found.revision != at and (found.value, found.lease) == (value, lease):
                return found  # an attempt of which nothing was heard
            if refused:
                return None
            if time.monotonic() - begin > self._wire.patience:
                raise Unavailable(f"{self.where}: no answer to a write of {key}, which may have been carried out")
            await asyncio.sleep(random.uniform(0, LONGEST_PAUSE))

    async def watch(self, span: Span, since: Reading) -> AsyncGenerator[Sequence[Change], None]:
        """What happens after a reading. Raises Compacted when that cannot be told, and etcd has to be read again."""
        name = span.first.decode(errors="replace")
        watch = Watch(self._wire, span.first, span.end, name, str(since.revision), since.cluster)
        self._watches.add(watch)
        try:
            async with aclosing(watch.batches()) as batches:
                async for batch in batches:
                    yield [_change(event) for event in batch]
        finally:
            self._watches.discard(watch)
            watch.close()
        raise Compacted(f"watch {name}: was broken off; read again")

    def break_off(self) -> None:
        """Ends all watches: somebody knows that there is reason to read again."""
        for watch in self._watches:
            watch.close()

    async def grant(self, seconds: int) -> int:
        """A new lease's number."""
        return int((await self._wire.ask("LeaseGrant", rpc.LeaseGrantRequest(TTL=seconds))).ID)

    async def revoke(self, lease: int) -> None:
        """Ends a lease, and deletes the keys that hang on it. One that is gone already is no error."""
        with suppress(LeaseGone):
            await self._wire.ask("LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease))

    async def keep_alive(self, lease: int) -> bool:
        """Begins a lease's time anew. Whether it is still there."""
        answer = await self._wire.ask("LeaseKeepAlive", rpc.LeaseKeepAliveRequest(ID=lease))
        return bool(answer.TTL > 0)

    async def remaining(self, lease: int) -> int:
        """Seconds until a lease ends; 0 for one that is gone."""
        answer = await self._wire.ask("LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=lease))
        return max(0, int(answer.TTL))

    async def close(self) -> None:
        self._wire.closed = True
        self.break_off()
        await self._wire.close()


def _unchanged(key: str, at: int) -> Any:
    return rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=key.encode(), mod_revision=at)


def _change(event: Any) -> Change:
    gone = event.type == rpc.Event.DELETE
    return Change(event.kv.key.decode(errors="replace"), None if gone else _entry(event.kv))


def _entry(kv: Any) -> Entry:
    key, value = kv.key.decode(errors="replace"), kv.value.decode(errors="replace")
    return Entry(key, value, int(kv.mod_revision), int(kv.lease))
