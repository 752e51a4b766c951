"""The documents that were read last, so that the update that follows a read need not read again.

They are only a place to start from: a write says which revision it is about, and the server refuses what is outdated.
"""

from __future__ import annotations

from collections import OrderedDict

from tortie.store.kube.decoding import number

ROOM = 8 << 20
"""Bytes. A block of 64 addresses has about 10 KB, a pod as much."""

Key = tuple[str, str, str]
"""Collection, namespace, name."""


class Recent:
    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._size = 0
        self._documents: OrderedDict[Key, tuple[str, bytes]] = OrderedDict()

    def put(self, key: Key, revision: str, raw: bytes) -> None:
        """Unless a newer one is there already."""
        known = self._documents.get(key)
        if known is not None and number(known[0]) > number(revision):
            return
        self.drop(key)
        if len(raw) > self._room // 8:
            return
        self._documents[key] = (revision, raw)
        self._size += len(raw)
        while self._size > self._room:
            _, (_, oldest) = self._documents.popitem(last=False)
            self._size -= len(oldest)

    def get(self, key: Key, revision: str = "") -> bytes | None:
        """At a revision, or with "" whatever there is."""
        found = self._documents.get(key)
        if found is None or (revision and found[0] != revision):
            return None
        self._documents.move_to_end(key)
        return found[1]

    def drop(self, key: Key) -> None:
        found = self._documents.pop(key, None)
        if found is not None:
            self._size -= len(found[1])
