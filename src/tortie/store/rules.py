"""What a write means, the same in every backend: identity, revisions, and the texts of refusals.

A backend looks up the stored object, asks here what becomes of it, and keeps the answer.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from tortie.base.errors import Compacted, ConfigError, Conflict, Exists, NotFound, NotSupported
from tortie.model.document import decode
from tortie.model.meta import Kind, Resource, changed

R = TypeVar("R", bound=Resource)

HISTORY = 20_000
"""How many of the newest writes a backend of ours remembers for watchers, unless told otherwise."""


def named(kind: Kind, name: str, namespace: str = "") -> str:
    """`IPPool(default)`, `Pod(red/a)`: an object in the text of an error, as Calico's clients print it."""
    return f"{kind.kind}({namespace}/{name})" if namespace else f"{kind.kind}({name})"


def created(obj: R, stored: R | None, revision: int) -> R:
    """The object that a create leaves behind, with a new identity. Raises Exists, ConfigError."""
    if not obj.name:
        raise ConfigError("is required", obj.KIND.kind, "metadata.name")
    if stored is not None:
        raise Exists(f"resource already exists: {named(obj.KIND, obj.name, obj.namespace)}")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return changed(obj, uid=str(uuid.uuid4()), creation_timestamp=now, resource_version=str(revision))


def updated(obj: R, stored: R | None, revision: int) -> R:
    """The object that an update leaves behind; `stored` itself when nothing changes, which needs no new revision.

    Raises NotFound, Conflict.
    """
    current = present(type(obj), obj.name, obj.namespace, stored)
    at_revision(current, obj.metadata.resource_version)
    identity = current.metadata
    same = changed(
        obj,
        uid=identity.uid,
        creation_timestamp=identity.creation_timestamp,
        resource_version=identity.resource_version,
    )
    return current if same == current else changed(same, resource_version=str(revision))


def deleted(stored: R, revision: int) -> R:
    """The object that the event of a deletion carries: the last state, at the revision of the deletion."""
    return changed(stored, resource_version=str(revision))


def present(kind: type[R], name: str, namespace: str, stored: R | None) -> R:
    """The stored object. Raises NotFound."""
    if stored is None:
        raise NotFound(f"resource does not exist: {named(kind.KIND, name, namespace)}")
    return stored


def at_revision(stored: Resource, revision: str) -> None:
    """Raises Conflict unless the stored object is at `revision`; an empty one agrees with any."""
    if revision and revision != stored.metadata.resource_version:
        raise Conflict(f"update conflict: {named(stored.KIND, stored.name, stored.namespace)}")


def watch_from(kind: str, revision: str, floor: int, newest: int) -> int:
    """The revision after which a watch begins.

    Raises Compacted when it is older than what is remembered, and also when it is none that this store has handed
    out (the database was replaced by another): in all these cases listing again is what helps.
    """
    if not (revision.isascii() and revision.isdecimal() and floor <= int(revision) <= newest):
        raise Compacted(
            f'watch {kind}: no history from revision "{revision}": this store remembers {floor} to {newest}; list again'
        )
    return int(revision)


def read_back(kind: type[R], body: bytes) -> R:
    """A stored object. Raises NotSupported when another version of this program wrote what this one does not know."""
    try:
        return decode(kind, body)
    except msgspec.MsgspecError as error:
        raise NotSupported(f"a stored {kind.KIND.kind} is not known to this version: {error}: upgrade") from None
