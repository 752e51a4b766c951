"""Long lists of a Kubernetes API server: page by page, all of one revision.

    GET ?limit=500 ──► 500 objects, continue=... ──► GET ?continue=... ──► ... ──► the last page
                                                       └─410: too slow, or history was cut ──► from the start

Pages are decoded as they come and let go of: of 100,000 pods, 500 MB of JSON, 2.5 MB are there at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Generic, TypeVar, cast

import msgspec
from msgspec import field

from tortie.base.errors import Compacted, Unavailable
from tortie.store.kube.api import Api
from tortie.store.kube.decoding import BAD

T = TypeVar("T")
W = TypeVar("W")

PAGE = 500
"""Objects in a page: client-go's."""
ATTEMPTS = 3
"""The last of them asks for all at once, which cannot expire in between."""
TOO_LARGE = "Too large resource version"
"""The server's words for a revision that it has not come to."""
SMALLEST = "/api/v1/namespaces"
"""A collection that whoever reads pods may list, of which one object is asked for to be told the newest revision."""


class _Place(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = field(name="continue", default="")


class _Page(msgspec.Struct, Generic[W]):
    metadata: _Place = field(default_factory=_Place)
    items: list[W] | None = None


@cache
def _pages(wire: Any) -> msgspec.json.Decoder[_Page[Any]]:
    return msgspec.json.Decoder(cast(Any, _Page)[wire])


async def listed(
    api: Api,
    path: str,
    query: Mapping[str, str],
    read: Callable[[bytes], T],
    wire: type[W] | None = None,
    seen: Callable[[W], T] | None = None,
) -> tuple[list[T], str]:
    """What `read` makes of every object, and the revision of the list, a number. With `wire` objects become that while
    their page is decoded, and `seen` is asked; `read` only in pages with an object that does not fit.

    Raises NotFound where there is no such kind, Unavailable.
    """
    for attempt in range(1, ATTEMPTS + 1):
        asked = dict(query) | ({"limit": str(PAGE)} if attempt < ATTEMPTS and "resourceVersion" not in query else {})
        try:
            return await _once(api, path, asked, read, wire, seen)
        except Compacted:
            continue
    raise Unavailable(f"{path}: the list expired {ATTEMPTS} times while it was being read")


async def at_least(api: Api) -> dict[str, str]:
    """What to ask a list for that may come from a server's memory, and is not older than this very moment. Such a list
    comes in one piece. Raises Unavailable."""
    revision = await newest(api, SMALLEST)
    return {"resourceVersion": revision, "resourceVersionMatch": "NotOlderThan"}


async def newest(api: Api, path: str) -> str:
    """The revision that the cluster is at, a number. Raises NotFound, Unavailable."""
    _, place = _items(path, await api.request("GET", path, query={"limit": "1"}), lambda raw: None, None, None)
    return place.resource_version


async def _once(
    api: Api,
    path: str,
    query: dict[str, str],
    read: Callable[[bytes], T],
    wire: type[W] | None,
    seen: Callable[[W], T] | None,
) -> tuple[list[T], str]:
    found: list[T] = []
    while True:
        items, place = _items(path, await api.request("GET", path, query=query), read, wire, seen)
        found.extend(items)
        if not place.continue_:
            return found, place.resource_version
        query = {name: value for name, value in query.items() if not name.startswith("resourceVersion")}
        query["continue"] = place.continue_


def _items(
    path: str, body: bytes, read: Callable[[bytes], T], wire: type[W] | None, seen: Callable[[W], T] | None
) -> tuple[list[T], _Place]:
    """What a page has, and how to go on. Raises Unavailable."""
    if wire is not None and seen is not None:
        try:
            page = _pages(cast(Any, wire)).decode(body)
        except BAD:
            pass  # one of them does not fit: each by itself
        else:
            return [seen(one) for one in page.items or ()], _checked(path, page.metadata)
    try:
        whole = _pages(msgspec.Raw).decode(body)
    except BAD as error:
        raise Unavailable(f"{path}: the answer is no list of objects: {error}") from None
    return [read(bytes(one)) for one in whole.items or ()], _checked(path, whole.metadata)


def _checked(path: str, place: _Place) -> _Place:
    """Raises Unavailable for a revision that cannot be compared with another."""
    if place.resource_version.isascii() and place.resource_version.isdecimal():
        return place
    raise Unavailable(f'{path}: the server lists at resource version "{place.resource_version}", which is no number')
