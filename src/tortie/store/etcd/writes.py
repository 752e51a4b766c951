"""Writes to etcd whose outcome is always told rightly: one transaction each, and a receipt in it.

    compare the key's revision ──► put or delete ──┐ one transaction,
                                   put a receipt ──┘ one revision
    the connection breaks ──► read the receipt ──► it is this write's: done, at the receipt's revision
                                               ──► it is not: the same transaction again; what was compared protects it

Two writers that put the same content over the same revision could not be told apart by what is stored. A receipt is a
key of a writer, `/tortie/v1/.receipts/<client>/<slot>`; a lease takes it away when the client is long gone.

An etcd that is full takes no receipt, but deletes. Then a deletion goes without one, and is Unavailable if its answer
is lost.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import uuid
from typing import Any

from aetcd import rpc

from tortie.base.errors import Unavailable
from tortie.store.etcd.layout import OWN
from tortie.store.etcd.wire import LONGEST_PAUSE, Full, LeaseGone, Unsure, Wire

RECEIPTS = f"{OWN}.receipts/"
LEASE = 600
"""Seconds that a receipt outlives the last write. A lease is replaced when half of that is over."""


class Writes:
    """The writes of one client."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._client = uuid.uuid4().hex
        self._marks = itertools.count(1)
        self._free: list[int] = []
        self._slots = 0
        self._lease = 0
        self._granted = 0.0
        self._granting = asyncio.Lock()

    async def put(self, key: bytes, value: bytes, at: int) -> int | None:
        """Writes a key that is at revision `at` (0: is not there). The revision, or None when it is at another.

        Raises Unavailable, ConfigError.
        """
        return await self._write(key, at, rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value)))

    async def delete(self, key: bytes, at: int) -> int | None:
        """Deletes a key that is at revision `at`. The revision, or None when it is at another. Raises Unavailable."""
        change = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))
        try:
            return await self._write(key, at, change)
        except Full:  # there is no room for a receipt
            return await self._without_receipt(key, at, change)

    async def _without_receipt(self, key: bytes, at: int, change: Any) -> int | None:
        """The same. Raises Unavailable also when nobody can tell what has become of it."""
        try:
            answer = await self._wire.ask_once("Txn", rpc.TxnRequest(compare=[_at(key, at)], success=[change]))
        except Unsure:
            raise Unavailable(f"etcd {self._wire.where}: no answer to a deletion, which may be carried out") from None
        return int(answer.header.revision) if answer.succeeded else None

    async def _write(self, key: bytes, at: int, change: Any) -> int | None:
        """Only a slot whose write is surely over is used again: one that is late would overwrite another's receipt."""
        slot = self._free.pop() if self._free else self._slots
        self._slots = max(self._slots, slot + 1)
        revision = await self._carry_out(key, at, change, f"{RECEIPTS}{self._client}/{slot}".encode())
        self._free.append(slot)
        return revision

    async def _carry_out(self, key: bytes, at: int, change: Any, receipt: bytes) -> int | None:
        mark, begin, unsure = str(next(self._marks)).encode(), time.monotonic(), False
        while True:
            note = rpc.PutRequest(key=receipt, value=mark, lease=await self._leased())
            success = [change, rpc.RequestOp(request_put=note)]
            try:
                answer = await self._wire.ask_once("Txn", rpc.TxnRequest(compare=[_at(key, at)], success=success))
            except LeaseGone:
                self._lease = 0
                continue
            except Unsure:
                unsure = True
            else:
                if answer.succeeded:
                    return int(answer.header.revision)
                return await self._found(receipt, mark) if unsure else None
            if revision := await self._found(receipt, mark):
                return revision
            if time.monotonic() - begin > self._wire.patience:
                raise Unavailable(f"etcd {self._wire.where}: no answer to a write, which may have been carried out")
            await asyncio.sleep(random.uniform(0, LONGEST_PAUSE))

    async def _found(self, receipt: bytes, mark: bytes) -> int | None:
        """The revision of the write whose receipt is there."""
        answer = await self._wire.ask("Range", rpc.RangeRequest(key=receipt))
        return next((int(kv.mod_revision) for kv in answer.kvs if kv.value == mark), None)

    async def _leased(self) -> int:
        if self._lease and time.monotonic() - self._granted <= LEASE / 2:
            return self._lease
        async with self._granting:
            if not self._lease or time.monotonic() - self._granted > LEASE / 2:
                self._granted = time.monotonic()
                self._lease = (await self._wire.ask("LeaseGrant", rpc.LeaseGrantRequest(TTL=LEASE))).ID
            return self._lease


def _at(key: bytes, revision: int) -> Any:
    """Whether a key is at a revision (0: is not there)."""
    return rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=key, mod_revision=revision)
