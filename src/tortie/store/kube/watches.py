"""A watch that outlives those of the server, which ends each after some minutes.

revision ─► GET ?watch ─► ADDED, MODIFIED, DELETED ─► the caller
    ▲                  ─► BOOKMARK: the revision up to which nothing else has happened
    └──────ended, broken────────┘
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from functools import cache
from typing import Any, Generic, TypeVar, cast

import msgspec

from tortie.base.errors import Compacted, Unavailable
from tortie.model.store import EventType
from tortie.store.kube.api import Api
from tortie.store.kube.decoding import BAD, Head, identity
from tortie.store.kube.lists import TOO_LARGE, newest

W = TypeVar("W")

QUICK = 1.0
"""Seconds: a watch that ends sooner has not really been one, and the next is not begun at once."""
SHORT = 3
"""Watches in a row that may break at once, without a word."""


class _Notice(msgspec.Struct, Generic[W]):
    type: str
    object: W


class _Status(msgspec.Struct):
    code: int = 0
    reason: str = ""
    message: str = ""


@cache
def _notices(wire: Any) -> msgspec.json.Decoder[_Notice[Any]]:
    return msgspec.json.Decoder(cast(Any, _Notice)[wire])


_whole = _notices(msgspec.Raw)
_TYPES = {one.value: one for one in EventType}


class Happened:
    """One event of an object: `wire` is the object decoded, None where that is left to who reads `raw`."""

    __slots__ = ("_line", "_raw", "type", "who", "wire")

    def __init__(self, type_: EventType, who: Head, wire: Any, line: bytes, raw: bytes = b"") -> None:
        self.type = type_
        self.who = who
        self.wire = wire
        self._line = line
        self._raw = raw

    @property
    def raw(self) -> bytes:
        """Its JSON; cut out of the event's when somebody asks."""
        self._raw = self._raw or bytes(_whole.decode(self._line).object)
        return self._raw


async def notices(
    api: Api,
    path: str,
    query: Mapping[str, str],
    revision: str,
    seen: int,
    closed: asyncio.Event,
    wire: type[Any] = msgspec.Raw,
) -> AsyncIterator[Happened]:
    """What happens after a revision, in order, each once; until `closed`. `seen` is a revision that there has been.

    Raises Compacted when the server does not remember it, NotFound where there is no such kind, Unavailable when it
    cannot be reached. A connection that breaks is made again before that.
    """
    if not (revision.isascii() and revision.isdecimal() and int(revision) > 0):
        raise Compacted(f'watch {path}: no history from revision "{revision}": list again')
    if int(revision) > seen:
        await _demand_reached(api, path, revision)
    short = 0
    while not closed.is_set():
        begin, heard = _now(), False
        asked = {**query, "resourceVersion": revision, "allowWatchBookmarks": "true"}
        try:
            async with aclosing(cast(Any, api.watch(path, asked))) as lines:
                async for line in lines:
                    type_, who, decoded, raw = _read(path, line, wire)
                    heard = True
                    revision = who.resource_version
                    if type_ is not None:
                        yield Happened(type_, who, decoded, line, raw)
        except Unavailable as error:
            short = 0 if heard or _now() - begin > QUICK else short + 1
            if TOO_LARGE in str(error):
                raise Compacted(f'watch {path}: revision "{revision}" is not this server\'s: list again') from None
            if closed.is_set() or short > SHORT:
                raise
            await _demand_reached(api, path, revision)
        if not closed.is_set() and _now() - begin < QUICK:
            await asyncio.sleep(random.uniform(QUICK / 20, QUICK / 2))


async def _demand_reached(api: Api, path: str, revision: str) -> None:
    """Raises Compacted when the server has not come to a revision: it was replaced by an older self, and a watch from
    there would be silent until it has caught up."""
    now = await newest(api, path)
    if int(now) < int(revision):
        text = f'watch {path}: the server is at revision {now}, not yet at "{revision}"'
        raise Compacted(f"{text}: list again")


def _now() -> float:
    return asyncio.get_running_loop().time()


def _read(path: str, line: bytes, wire: type[Any]) -> tuple[EventType | None, Head, Any, bytes]:
    """The type, None for a bookmark, the object's metadata, and the object: decoded, or else its JSON.

    Raises Compacted, Unavailable.
    """
    if wire is not msgspec.Raw:
        try:
            quick = _notices(cast(Any, wire)).decode(line)
        except BAD:
            pass  # the object does not fit: more slowly
        else:
            if quick.type in _TYPES:
                return _TYPES[quick.type], _checked(path, quick.object.metadata), quick.object, b""
    try:
        notice = _whole.decode(line)
    except BAD as error:
        raise Unavailable(f"watch {path}: the server sent what is no event: {error}") from None
    raw = bytes(notice.object)
    if notice.type == "ERROR":
        raise _error(path, raw)
    return _TYPES.get(notice.type), _checked(path, identity(raw)), None, raw


def _checked(path: str, who: Head) -> Head:
    """Raises Unavailable for a revision from which no watch could go on."""
    if who.resource_version.isascii() and who.resource_version.isdecimal():
        return who
    raise Unavailable(f'watch {path}: the server sent an event of resource version "{who.resource_version}"')


def _error(path: str, raw: bytes) -> Exception:
    try:
        status = msgspec.json.decode(raw, type=_Status)
    except BAD:
        status = _Status()
    if status.code == 410 or status.reason in ("Expired", "Gone") or TOO_LARGE in status.message:
        return Compacted(f"watch {path}: {status.message or 'history is gone'}: list again")
    return Unavailable(f"watch {path}: {status.message or status.reason or 'the server gave up'}")
