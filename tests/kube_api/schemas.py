"""openAPIV3Schema of custom resources: unknown fields pruned, defaults filled in, values validated.

    object ──prune──► (names of unknown fields) ──default──► ──problems──► causes of a 422

x-kubernetes-validations (CEL) are not evaluated.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import msgspec

from kube_api.statuses import Cause, invalid_value, required, unsupported_value

Schema = dict[str, Any]

_KEEP = "x-kubernetes-preserve-unknown-fields"
_EMBEDDED = "x-kubernetes-embedded-resource"
_INT_OR_STRING = "x-kubernetes-int-or-string"
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}


def at(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def prune(schema: Schema, value: Any, path: str = "") -> list[str]:
    """Take out what the schema does not know; returns the paths of it. The root's apiVersion, kind, metadata stay."""
    if isinstance(value, list):
        items = schema.get("items")
        return [one for number, item in enumerate(value) for one in prune(items or {}, item, f"{path}[{number}]")]
    if not isinstance(value, dict):
        return []
    unknown: list[str] = []
    properties = schema.get("properties") or {}
    additional = schema.get("additionalProperties")
    own = not path or schema.get(_EMBEDDED)
    for name in list(value):
        if own and name in ("apiVersion", "kind", "metadata"):
            continue
        if name in properties:
            unknown += prune(properties[name], value[name], at(path, name))
        elif isinstance(additional, dict):
            unknown += prune(additional, value[name], at(path, name))
        elif additional is not True and not schema.get(_KEEP):
            del value[name]
            unknown.append(at(path, name))
    return unknown


def default(schema: Schema, value: Any) -> None:
    """Fill in the defaults of absent fields, and of nulls where null is not allowed."""
    if isinstance(value, list):
        for item in value:
            default(schema.get("items") or {}, item)
    elif isinstance(value, dict):
        properties = schema.get("properties") or {}
        for name, inner in properties.items():
            if "default" in inner and (name not in value or (value[name] is None and not inner.get("nullable"))):
                value[name] = copy.deepcopy(inner["default"])
            if name in value:
                default(inner, value[name])
        additional = schema.get("additionalProperties")
        if isinstance(additional, dict):
            for name, item in value.items():
                if name not in properties:
                    default(additional, item)


def problems(schema: Schema, value: Any, path: str = "") -> list[Cause]:
    """What is wrong with a value, in the server's words."""
    if value is None:
        if schema.get("nullable") or not schema.get("type"):
            return []
        return [_wrong_type(path, schema["type"], "null")]
    if schema.get(_INT_OR_STRING):
        if isinstance(value, bool) or not isinstance(value, int | str):
            return [_wrong_type(path, "integer,string", _type_of(value))]
    elif schema.get("type") and not _is(value, schema["type"]):
        return [_wrong_type(path, schema["type"], _type_of(value))]
    found = _choices(schema, value, path)
    if isinstance(value, dict):
        found += _object(schema, value, path)
    elif isinstance(value, list):
        found += _list(schema, value, path)
    elif isinstance(value, str):
        found += _string(schema, value, path)
    elif not isinstance(value, bool):
        found += _number(schema, value, path)
    return found


def _choices(schema: Schema, value: Any, path: str) -> list[Cause]:
    found: list[Cause] = []
    if schema.get("enum") is not None and value not in schema["enum"]:
        found.append(unsupported_value(path, shown(value), [str(one) for one in schema["enum"]]))
    for inner in schema.get("allOf") or ():
        found += problems(inner, value, path)
    if schema.get("anyOf") and all(problems(inner, value, path) for inner in schema["anyOf"]):
        found.append(_said(path, '""', "must validate at least one schema (anyOf)"))
    if schema.get("oneOf") and sum(not problems(inner, value, path) for inner in schema["oneOf"]) != 1:
        found.append(_said(path, '""', "must validate one and only one schema (oneOf)"))
    if schema.get("not") is not None and not problems(schema["not"], value, path):
        found.append(_said(path, '""', "must not validate the schema (not)"))
    return found


def _object(schema: Schema, value: dict[str, Any], path: str) -> list[Cause]:
    found = [required(at(path, name)) for name in schema.get("required") or () if name not in value]
    properties = schema.get("properties") or {}
    additional = schema.get("additionalProperties")
    for name, item in value.items():
        if name in properties:
            found += problems(properties[name], item, at(path, name))
        elif isinstance(additional, dict):
            found += problems(additional, item, at(path, name))
    least, most = schema.get("minProperties"), schema.get("maxProperties")
    if least is not None and len(value) < least:
        found.append(_said(path, str(len(value)), f"should have at least {least} properties"))
    if most is not None and len(value) > most:
        found.append(Cause(path, "FieldValueTooMany", f"Too many: {len(value)}: must have at most {most} items"))
    return found


def _list(schema: Schema, value: list[Any], path: str) -> list[Cause]:
    found = [
        cause
        for number, item in enumerate(value)
        for cause in problems(schema.get("items") or {}, item, f"{path}[{number}]")
    ]
    least, most = schema.get("minItems"), schema.get("maxItems")
    if least is not None and len(value) < least:
        found.append(_said(path, str(len(value)), f"should have at least {least} items"))
    if most is not None and len(value) > most:
        found.append(Cause(path, "FieldValueTooMany", f"Too many: {len(value)}: must have at most {most} items"))
    kind = schema.get("x-kubernetes-list-type")
    if kind in ("set", "map"):
        keys = schema.get("x-kubernetes-list-map-keys") or ()
        seen = []
        for number, item in enumerate(value):
            mark = {key: item.get(key) for key in keys} if kind == "map" and isinstance(item, dict) else item
            if mark in seen:
                found.append(Cause(f"{path}[{number}]", "FieldValueDuplicate", f"Duplicate value: {shown(mark)}"))
            seen.append(mark)
    return found


def _string(schema: Schema, value: str, path: str) -> list[Cause]:
    found = []
    least, most = schema.get("minLength"), schema.get("maxLength")
    if least is not None and len(value) < least:
        found.append(_said(path, shown(value), f"should be at least {least} chars long"))
    if most is not None and len(value) > most:
        found.append(Cause(path, "FieldValueTooLong", f"Too long: may not be more than {most} bytes"))
    if schema.get("pattern") and not re.search(schema["pattern"], value):
        found.append(_said(path, shown(value), f"should match '{schema['pattern']}'"))
    if schema.get("format") == "date-time" and not _DATE_TIME.fullmatch(value):
        found.append(_said(path, shown(value), f'must be of type date-time: "{value}"'))
    return found


def _number(schema: Schema, value: float, path: str) -> list[Cause]:
    found = []
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and (value < least or (value == least and schema.get("exclusiveMinimum"))):
        word = "greater than" if schema.get("exclusiveMinimum") else "greater than or equal to"
        found.append(_said(path, shown(value), f"should be {word} {least}"))
    if most is not None and (value > most or (value == most and schema.get("exclusiveMaximum"))):
        word = "less than" if schema.get("exclusiveMaximum") else "less than or equal to"
        found.append(_said(path, shown(value), f"should be {word} {most}"))
    bounds = _RANGES.get(schema.get("format") or "")
    if bounds and not bounds[0] <= value <= bounds[1]:
        found.append(_said(path, shown(value), f"must be of type {schema['format']}: {shown(value)}"))
    if schema.get("multipleOf") and value % schema["multipleOf"]:
        found.append(_said(path, shown(value), f"should be a multiple of {schema['multipleOf']}"))
    return found


def shown(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _said(path: str, value: str, why: str) -> Cause:
    return invalid_value(path, value, f"{path or '<nil>'} in body {why}")


def _wrong_type(path: str, wanted: str, got: str) -> Cause:
    why = f'Invalid value: "{got}": {path} in body must be of type {wanted}: "{got}"'
    return Cause(path, "FieldValueTypeInvalid", why)


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "integer", float: "number", dict: "object", list: "array"}
    return names.get(type(value), "null")


def _is(value: Any, wanted: str) -> bool:
    got = _type_of(value)
    if got == wanted or (wanted == "number" and got == "integer"):
        return True
    return wanted == "integer" and isinstance(value, float) and value.is_integer()


_VALUE_ONLY = ("type", "default", "additionalProperties", "nullable", "title", "description", _KEEP, _EMBEDDED)


def structure_problems(schema: Schema, path: str, *, top: bool = True) -> list[Cause]:
    """Why a schema is not structural: what the server refuses in a CustomResourceDefinition."""
    found: list[Cause] = []
    if "$ref" in schema:
        found.append(Cause(f"{path}.$ref", "FieldValueForbidden", "Forbidden: $ref is not supported"))
    if schema.get("uniqueItems"):
        why = "Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        found.append(Cause(f"{path}.uniqueItems", "FieldValueForbidden", why))
    if schema.get(_KEEP) is False:
        found.append(invalid_value(f"{path}.{_KEEP}", "false", "must be true or undefined"))
    kind = schema.get("type")
    if top and kind != "object":
        found.append(invalid_value(f"{path}.type", f'"{kind or ""}"', "must be object at the root"))
    elif not kind and not schema.get(_KEEP) and not schema.get(_INT_OR_STRING):
        found.append(required(f"{path}.type", "must not be empty for specified object fields"))
    if kind == "array" and not isinstance(schema.get("items"), dict):
        found.append(required(f"{path}.items", "must be specified"))
    properties, additional = schema.get("properties"), schema.get("additionalProperties")
    if properties and additional not in (None, False):
        found.append(
            Cause(f"{path}.additionalProperties", "FieldValueForbidden", "Forbidden: must not be set with properties")
        )
    if top and additional is not None:
        found.append(
            Cause(f"{path}.additionalProperties", "FieldValueForbidden", "Forbidden: must not be used at the root")
        )
    for name, inner in (properties or {}).items():
        if not (top and name == "metadata"):
            found += structure_problems(inner, f"{path}.properties[{name}]", top=False)
    if isinstance(additional, dict):
        found += structure_problems(additional, f"{path}.additionalProperties", top=False)
    if isinstance(schema.get("items"), dict):
        found += structure_problems(schema["items"], f"{path}.items", top=False)
    for junction in ("allOf", "anyOf", "oneOf"):
        for number, inner in enumerate(schema.get(junction) or ()):
            found += _value_only(inner, f"{path}.{junction}[{number}]", bool(schema.get(_INT_OR_STRING)))
    return found


def _value_only(schema: Schema, path: str, int_or_string: bool) -> list[Cause]:
    """Inside of allOf, anyOf, oneOf and not, only values are spoken of."""
    found = []
    for name in _VALUE_ONLY:
        if name in schema and not (name == "type" and int_or_string):
            why = "Forbidden: must be empty to be structural"
            found.append(Cause(f"{path}.{name}", "FieldValueForbidden", why))
    for name, inner in (schema.get("properties") or {}).items():
        found += _value_only(inner, f"{path}.properties[{name}]", False)
    if isinstance(schema.get("items"), dict):
        found += _value_only(schema["items"], f"{path}.items", False)
    return found
