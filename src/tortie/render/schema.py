"""Types of the model as Kubernetes' structural schemas: what an API server checks of a custom resource.

    class IPPoolSpec(Value):                  type: object
        cidr: str                     ──►     required: [cidr]
        block_size: int | None = None         properties: {cidr: {type: string}, blockSize: {type: integer}}

The rules of a structural schema (apiextensions.k8s.io/v1) are kept: each level has a type, or says that anything may
stand there; there are no references. What types do not say stays with admission (`problems`): a schema is for the
mistakes that `kubectl apply` is to refuse at once.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from tortie.base.errors import NotSupported
from tortie.model.meta import Metadata

Schema = dict[str, Any]

ANYTHING = "x-kubernetes-preserve-unknown-fields"
INT_OR_STRING = "x-kubernetes-int-or-string"
LONGEST_DESCRIPTION = 240
"""Characters. A longer docstring is for the readers of the source."""

_SCALARS: dict[Any, Schema] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer", "format": "int64"},
    float: {"type": "number"},
}


def schema(type_: Any, *, lenient: bool = False, open_: bool = False) -> Schema:
    """The schema of what may stand where a type is expected.

    `open_`: fields that the outermost struct does not name are kept, too. `lenient`: so are those of all structs
    within, and words of a choice are any text, for objects that other programs write in their own way. Raises
    NotSupported for a type that no structural schema can express.
    """
    inner, limits, nullable = _peeled(type_)
    choices = [each for each in inner if each is not type(None)]
    if not choices or Any in choices:
        return {ANYTHING: True}
    if len(choices) == 1:
        found = _one(choices[0], lenient, open_)
    elif {int, str} == set(choices):
        found = {INT_OR_STRING: True}
    elif {int, float} == set(choices):
        found = dict(_SCALARS[float])
    else:
        raise NotSupported(f"no structural schema has a choice between {' and '.join(map(str, choices))}")
    found |= _limited(limits, found.get("type", ""))
    return found | ({"nullable": True} if nullable else {})


def element(type_: Any, *, lenient: bool = False) -> Schema:
    """The schema of an entry of a list or a mapping: null may stand there only if the type says so."""
    found = schema(type_, lenient=lenient)
    return found | ({"nullable": True} if type(None) in _peeled(type_)[0] and ANYTHING not in found else {})


def _peeled(type_: Any) -> tuple[list[Any], msgspec.Meta | None, bool]:
    """The types that may stand in a place, and the limits that are said of them."""
    origin = get_origin(type_)
    if origin is Annotated:
        inner, *notes = get_args(type_)
        found, _, nullable = _peeled(inner)
        return found, next((note for note in notes if isinstance(note, msgspec.Meta)), None), nullable
    if origin in (Union, types.UnionType):
        found, limits = [], None
        for each in get_args(type_):
            part, said, _ = _peeled(each)
            found += part
            limits = said or limits
        return found, limits, False
    return ([] if type_ is msgspec.UnsetType else [type_]), None, False


def _one(type_: Any, lenient: bool, open_: bool) -> Schema:
    if type_ in _SCALARS:
        return dict(_SCALARS[type_])
    origin, arguments = get_origin(type_), get_args(type_)
    if origin is Literal:
        kind = _SCALARS[type(arguments[0])]
        if lenient:
            return dict(kind) | {"description": f"One of {', '.join(map(str, arguments))}, in any case."}
        return dict(kind) | {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": element(arguments[0], lenient=lenient)}
    if origin is dict or type_ is dict:
        values = element(arguments[1], lenient=lenient) if arguments else {ANYTHING: True}
        return {"type": "object", "additionalProperties": values}
    if isinstance(type_, type) and issubclass(type_, Metadata):
        return {"type": "object"}  # an API server knows metadata, and takes no schema of it
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return _struct(type_, lenient, open_)
    raise NotSupported(f"no structural schema is known of {type_}")


def _struct(struct: type[msgspec.Struct], lenient: bool, open_: bool) -> Schema:
    kept = open_ or lenient or not struct.__struct_config__.forbid_unknown_fields
    properties: dict[str, Schema] = {}
    required: list[str] = []
    for each in msgspec.structs.fields(struct):
        inside = schema(each.type, lenient=lenient)
        if not (kept and inside == {ANYTHING: True}):  # it is kept as it is, named or not
            properties[each.encode_name] = inside
        if each.required:
            required.append(each.encode_name)
    found: Schema = {"type": "object"}
    found |= {"description": text} if (text := description(struct)) else {}
    found |= {"properties": properties} if properties else {}
    found |= {"required": sorted(required)} if required else {}
    return found | ({ANYTHING: True} if kept else {})


def description(struct: type) -> str:
    """The first paragraph of a class' own docstring, if it is short."""
    text = struct.__dict__.get("__doc__") or ""
    first = " ".join(text.partition("\n\n")[0].split()).replace("`", "")
    return first if len(first) <= LONGEST_DESCRIPTION else ""


def _limited(limits: msgspec.Meta | None, kind: str) -> Schema:
    if limits is None:
        return {}
    names = {"ge": "minimum", "le": "maximum", "pattern": "pattern"}
    names |= {"max_length": "maxItems", "min_length": "minItems"} if kind == "array" else {}
    names |= {"max_length": "maxLength", "min_length": "minLength"} if kind == "string" else {}
    return {word: value for name, word in names.items() if (value := getattr(limits, name)) is not None}


def faults(found: Any, path: str = "") -> Iterator[str]:
    """Where a schema is not structural: an API server would refuse the CRD. None of ours has any, which a test says."""
    if not isinstance(found, dict):
        yield f"{path}: is no schema"
        return
    for word in ("$ref", "definitions", "uniqueItems", "oneOf", "allOf", "anyOf", "not", "patternProperties"):
        if word in found:
            yield f"{path}: has {word}"
    kind, free = found.get("type"), found.get(ANYTHING) or found.get(INT_OR_STRING)
    if not kind and not free:
        yield f"{path}: has no type"
    if kind and found.get(INT_OR_STRING):
        yield f"{path}: has a type, and is an integer or a text"
    if kind != "object" and ("properties" in found or "additionalProperties" in found):
        yield f"{path}: has fields, and is no object"
    if "properties" in found and "additionalProperties" in found:
        yield f"{path}: has both properties and additionalProperties"
    if found.get(ANYTHING) and kind not in (None, "object"):
        yield f"{path}: keeps unknown fields, and is no object"
    if (kind == "array") != ("items" in found):
        yield f"{path}: a list has items, and nothing else has"
    for name in found.get("required", ()):
        if name not in found.get("properties", {}) and not found.get(ANYTHING):
            yield f"{path}: requires {name}, which it does not have"
    for name, each in found.get("properties", {}).items():
        yield from faults(each, f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        if word in found:
            yield from faults(found[word], f"{path}[]")
