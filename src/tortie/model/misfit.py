"""Where and why a document does not fit its type, in the words of someone who writes YAML.

msgspec decides whether it fits; this finds the place, one level at a time, with msgspec as the judge.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from tortie.base.errors import suggest

Misfit = tuple[str, str]
"""A field path and what is wrong there."""

MAX_SHOWN = 60
"""Characters of a wrong text that a message repeats."""

_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}


@cache
def fields(struct: type[msgspec.Struct]) -> tuple[tuple[str, str], ...]:
    """Every field as (name in documents, attribute)."""
    return tuple(zip(struct.__struct_encode_fields__, struct.__struct_fields__, strict=True))


def unknown_field(body: Any, expected: Any, path: str = "") -> Iterator[Misfit]:
    """Every field of a document that its type does not have."""
    expected = _structured(expected)
    if isinstance(expected, type) and issubclass(expected, msgspec.Struct):
        if not isinstance(body, dict) or not expected.__struct_config__.forbid_unknown_fields:
            return
        hints = _hints(expected)
        for key, value in body.items():
            if key in hints:
                yield from unknown_field(value, hints[key], join(path, key))
            else:
                hint = suggest(key, hints)
                yield join(path, key), "is not a known field" + (f", {hint}" if hint else "")
    elif get_origin(expected) is tuple and isinstance(body, list):
        for i, item in enumerate(body):
            yield from unknown_field(item, get_args(expected)[0], f"{path}[{i}]")


def without_nulls(body: Any, expected: Any) -> Any:
    """The same document with the fields left out that are null: Kubernetes takes null for a field not given."""
    expected = _structured(expected)
    if isinstance(expected, type) and issubclass(expected, msgspec.Struct) and isinstance(body, dict):
        hints = _hints(expected)
        return {key: without_nulls(value, hints.get(key)) for key, value in body.items() if value is not None}
    if get_origin(expected) is dict and get_args(expected)[1] is str and isinstance(body, dict):
        return {key: "" if value is None else value for key, value in body.items()}
    if get_origin(expected) is tuple and isinstance(body, list):
        return [without_nulls(item, get_args(expected)[0]) for item in body]
    return body


def first_misfit(body: Any, expected: Any, path: str = "") -> Misfit | None:
    """The first place, in the order of the document, where a value does not fit its type."""
    try:
        msgspec.convert(body, expected)
    except msgspec.ValidationError:
        pass
    else:
        return None
    inner = _structured(expected)
    for name, value, hint in _parts(body, inner):
        found = first_misfit(value, hint, join(path, name))
        if found:
            return found
    if isinstance(inner, type) and issubclass(inner, msgspec.Struct) and isinstance(body, dict):
        required = [info.encode_name for info in msgspec.structs.fields(inner) if info.required]
        return next(((join(path, name), "is required") for name in required if name not in body), None)
    return path, _problem(body, expected)


def _parts(body: Any, expected: Any) -> Iterator[tuple[str, Any, Any]]:
    """What a list or mapping is made of: (name in a path, value, type)."""
    if isinstance(expected, type) and issubclass(expected, msgspec.Struct) and isinstance(body, dict):
        hints = _hints(expected)
        yield from ((key, value, hints[key]) for key, value in body.items() if key in hints)
    elif get_origin(expected) is tuple and isinstance(body, list):
        yield from ((f"[{i}]", item, get_args(expected)[0]) for i, item in enumerate(body))
    elif get_origin(expected) is dict and isinstance(body, dict):
        yield from ((f"[{key}]", value, get_args(expected)[1]) for key, value in body.items())


def _problem(value: Any, expected: Any) -> str:
    """What is wrong with one value that fits none of the types that may stand there."""
    choices = _choices(expected)
    literals = [word for choice, _ in choices if get_origin(choice) is Literal for word in get_args(choice)]
    found = shown(value)
    if literals:
        words = ", ".join(str(word) for word in literals if word != "")
        return f"{found} is not one of {words}" if _scalar(value) else f"is {found}, must be one of {words}"
    for choice, limits in choices:
        if limits is not None and type(value) is choice and limits.ge is not None:
            return f"{found} is not from {limits.ge} to {limits.le}"
        if limits is not None and isinstance(value, list) and get_origin(choice) is tuple:
            return f"has {len(value)} entries, at most {limits.max_length} are allowed"
    types_ = [_plain(choice) for choice, _ in choices]
    wanted = " or ".join(dict.fromkeys(_NAMES.get(type_, "a mapping") if type_ is not tuple else "a list"
                                       for type_ in types_))  # fmt: skip
    if not _scalar(value) or value is None:
        return f"is {found}, must be {wanted}"
    return f"{found} must be {wanted}{_hint(value, types_)}"


def _hint(value: Any, wanted: list[Any]) -> str:
    """How to write what was probably meant."""
    if str in wanted:
        return ": put it in quotes"
    if isinstance(value, str) and value.isdecimal() and (int in wanted or float in wanted):
        return ": write it without quotes"
    return ": write it without quotes" if value in ("true", "false") and bool in wanted else ""


def _structured(expected: Any) -> Any:
    """The one type of an optional or annotated one; None where there is more than one."""
    choices = _choices(expected)
    return choices[0][0] if len(choices) == 1 else None


def _choices(expected: Any, limits: msgspec.Meta | None = None) -> list[tuple[Any, msgspec.Meta | None]]:
    """The types that may stand in a place, nothing left aside, each with its limits."""
    origin = get_origin(expected)
    if origin is Annotated:
        inner, *notes = get_args(expected)
        return _choices(inner, next((note for note in notes if isinstance(note, msgspec.Meta)), None))
    if origin in (Union, types.UnionType):
        return [choice for arg in get_args(expected) for choice in _choices(arg)]
    return [] if expected in (type(None), msgspec.UnsetType) else [(expected, limits)]


def _plain(choice: Any) -> Any:
    return get_origin(choice) or choice


def _scalar(value: Any) -> bool:
    return not isinstance(value, list | dict)


def shown(value: Any) -> str:
    """A value as a message of one line names it."""
    if value is None:
        return "empty"
    if isinstance(value, str):
        one_line = value.replace("\n", "\\n")
        return f'"{one_line if len(one_line) <= MAX_SHOWN else one_line[: MAX_SHOWN - 3] + "..."}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    return "a list" if isinstance(value, list) else "a mapping" if isinstance(value, dict) else str(value)


@cache
def _hints(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """Document field name -> type."""
    hints = get_type_hints(struct, include_extras=True)
    return {name: hints[attribute] for name, attribute in fields(struct)}


def join(path: str, name: str) -> str:
    """A field path one step further: `spec` and `cidr`, `spec.nets` and `[0]`."""
    return f"{path}.{name}" if path and name and not name.startswith("[") else path + name
