"""What a datastore promises. The backends live in `tortie.store`; decisions that need one take it as an argument.

Revisions are opaque strings that a store hands out (a decimal number in every backend we have). Writing with an
outdated one is a Conflict: read again, decide again. Nothing here locks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from tortie.model.meta import Resource

R = TypeVar("R", bound=Resource)


class EventType(StrEnum):
    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


@dataclass(frozen=True, slots=True)
class Event(Generic[R]):
    """One write as a watcher sees it. On DELETED `object` is the last state; `object.metadata.resource_version` is
    the revision of this very write in all cases."""

    type: EventType
    object: R


@dataclass(frozen=True, slots=True)
class Listing(Generic[R]):
    """All objects of a kind at one revision, sorted by namespace, then name."""

    items: tuple[R, ...]
    revision: str


class Store(Protocol):
    """Keeps resources. Every method may raise Unavailable; what was acknowledged survives a kill -9 of anybody."""

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        """The object. Raises NotFound."""
        ...

    async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
        """The objects of a kind, in one namespace or (None) in all."""
        ...

    async def create(self, obj: R) -> R:
        """Write a new object; returns it with uid, creation time and revision filled in. Raises Exists."""
        ...

    async def update(self, obj: R) -> R:
        """Replace the object if its `resource_version` is still the newest; empty means whatever is there.

        uid and creation time stay those of the stored object. Raises NotFound, Conflict.
        """
        ...

    async def delete(self, kind: type[R], name: str, namespace: str = "", revision: str = "") -> R:
        """Remove the object, only at `revision` if one is given; returns its last state. Raises NotFound, Conflict."""
        ...

    def watch(self, kind: type[R], revision: str) -> AsyncIterator[tuple[Event[R], ...]]:
        """Batches of the writes to a kind after `revision`, in order, each exactly once.

        Raises Compacted when the history since `revision` is gone: list again and watch from there.
        """
        ...

    async def close(self) -> None:
        """Free everything; running watches end."""
        ...
