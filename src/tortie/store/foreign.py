"""Objects that other programs keep in the same datastore: read whatever their version, changed without a loss.

    stored JSON ──known──► the part that this version knows ──► a value ──► changed by us ──► JSON
         │                                                                                    │
         └──────────────── what it does not know ──────────────kept───────────────────────────┴──► stored again

A program that is newer writes fields that we have no name for. They are ignored when an object is read, and are still
there when it has been updated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from tortie.base.errors import ConfigError, NotSupported
from tortie.model.document import shape
from tortie.model.meta import Resource
from tortie.store.entries import readable

R = TypeVar("R", bound=Resource)

Closing = Callable[[dict[str, Any], Sequence[str]], dict[str, Any]]
"""What becomes of a spec from which the fields at some paths were left out. Asked of every spec from which some were.
May raise NotSupported."""


def read(kind: type[R], data: bytes, closing: Closing | None = None, told: list[str] | None = None) -> R:
    """An object as another program wrote it, as JSON with or without apiVersion and kind. `closing` is told what was
    left out of its spec; `told` gets a line for each entry of a list that cannot be read and is not needed (`entries`).

    Raises NotSupported when what is left of it without the unknown fields does not fit its type.
    """
    try:
        found = msgspec.json.decode(data, type=_lenient(kind))
    except msgspec.ValidationError:
        return read_document(kind, msgspec.json.decode(data), closing, told)
    except msgspec.DecodeError as error:
        raise NotSupported(f"a stored {kind.KIND.kind} is no JSON: {error}") from None
    return kind(**{name: getattr(found, name) for name in kind.__struct_fields__})


def read_document(kind: type[R], document: Any, closing: Closing | None = None, told: list[str] | None = None) -> R:
    """The same of JSON that was decoded already."""
    if not isinstance(document, dict):
        raise NotSupported(f"a stored {kind.KIND.kind} is not an object")
    try:
        found = msgspec.convert(document, _lenient(kind))
        return kind(**{name: getattr(found, name) for name in kind.__struct_fields__})
    except msgspec.ValidationError:
        pass  # the slow way round
    try:
        part, lines = _closed(kind, document, closing), [] if told is None else told
        return shape(kind, {name: readable(kind, name, body, lines) for name, body in part.items()})
    except ConfigError as error:
        raise NotSupported(f"a stored {kind.KIND.kind} is not known to this version: {error}: upgrade") from None


def _closed(kind: type[Resource], document: dict[str, Any], closing: Closing | None) -> Any:
    part = known(document, kind)
    if closing is None or not isinstance(part.get("spec"), dict):
        return part
    left_out = [path.removeprefix("spec.") for path in unknown(document, kind) if path.startswith("spec.")]
    return {**part, "spec": closing(part["spec"], left_out)} if left_out else part


def known(document: Any, kind: type[msgspec.Struct]) -> Any:
    """The part of a document whose fields a type has."""
    return _known(document, _info(kind))


def unknown(document: Any, kind: type[msgspec.Struct], path: str = "") -> list[str]:
    """Paths of the fields that a type does not have, those of kind and apiVersion aside, and those that say nothing."""
    found = _unknown(document, _info(kind), path)
    return [one for one in found if one not in ("apiVersion", "kind")]


def kept(stored: Any, before: Any, after: Any) -> Any:
    """`after`, with what was stored and is not in `before`: `before` is all that we know of what was stored.

    Entries of a list that are in both states keep what belongs to them wherever they have moved; where as many entries
    are left as there were, a changed one is taken for the one that stood in its place.
    """
    if isinstance(stored, dict) and isinstance(before, dict) and isinstance(after, dict):
        made = {key: kept(stored.get(key), before.get(key), value) for key, value in after.items()}
        made |= {key: value for key, value in stored.items() if key not in before and key not in after}
        return made
    if isinstance(stored, list) and isinstance(before, list) and isinstance(after, list):
        if before == after:
            return stored
        if len(stored) != len(before) or stored == before:
            return after
        return _kept_entries(stored, before, after)
    return after


def _kept_entries(stored: list[Any], before: list[Any], after: list[Any]) -> list[Any]:
    free = list(range(len(before)))
    made: list[Any] = []
    for position, entry in enumerate(after):
        twin = next((number for number in free if before[number] == entry), None)
        if twin is not None:
            free.remove(twin)
            made.append(stored[twin])
        elif len(before) == len(after) and before[position] not in after:
            made.append(kept(stored[position], before[position], entry))
        else:
            made.append(entry)
    return made


@cache
def _lenient(kind: type[R]) -> type[R]:
    """The same type, that looks away from unknown fields at the top: apiVersion and kind are there."""
    return msgspec.defstruct(  # type: ignore[return-value]
        kind.__name__, [], bases=(kind,), frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=False
    )


@cache
def _info(kind: type[msgspec.Struct]) -> inspect.Type:
    return inspect.type_info(kind)


@cache
def _fields(struct: type[msgspec.Struct]) -> dict[str, inspect.Type]:
    """Name in documents -> type."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    return {str(field.encode_name): field.type for field in info.fields}


def _known(value: Any, expected: inspect.Type) -> Any:
    expected = _one(expected)
    if isinstance(expected, inspect.StructType) and isinstance(value, dict):
        fields = _fields(expected.cls)
        return {key: _known(inner, fields[key]) for key, inner in value.items() if key in fields}
    if isinstance(expected, inspect.VarTupleType) and isinstance(value, list):
        return [_known(inner, expected.item_type) for inner in value]
    if isinstance(expected, inspect.DictType) and isinstance(value, dict):
        return {key: _known(inner, expected.value_type) for key, inner in value.items()}
    return value


def _unknown(value: Any, expected: inspect.Type, path: str) -> list[str]:
    expected = _one(expected)
    found: list[str] = []
    if isinstance(expected, inspect.StructType) and isinstance(value, dict):
        fields = _fields(expected.cls)
        for key, inner in value.items():
            place = f"{path}.{key}" if path else key
            found += _unknown(inner, fields[key], place) if key in fields else [place] if inner else []
    elif isinstance(expected, inspect.VarTupleType) and isinstance(value, list):
        for number, inner in enumerate(value):
            found += _unknown(inner, expected.item_type, f"{path}[{number}]")
    return found


def _one(expected: inspect.Type) -> inspect.Type:
    """The one type of an optional or annotated one; the union where there is more than one."""
    if isinstance(expected, inspect.Metadata):
        return _one(expected.type)
    if isinstance(expected, inspect.UnionType):
        choices = [choice for choice in expected.types if not isinstance(choice, inspect.NoneType)]
        if len(choices) == 1:
            return _one(choices[0])
    return expected
