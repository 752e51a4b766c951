"""Documents to values and back: YAML and JSON in, typed resources out, errors that name the exact field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from tortie.base.errors import ConfigError
from tortie.model.kinds import kind_of_document
from tortie.model.meta import LABEL_KEY, LABEL_VALUE, NAME, SHORT_NAME, Resource, Value
from tortie.model.misfit import fields, first_misfit, join, shown, unknown_field, without_nulls

R = TypeVar("R", bound=Resource)

MAX_ANNOTATIONS = 256 * 1024
"""Bytes that all annotations of an object may have together, as Kubernetes allows."""


def load_documents(text: str | bytes, source: str = "") -> list[dict[str, Any]]:
    """The documents of a YAML stream (JSON is YAML too); Lists are taken apart. Raises ConfigError naming the line."""
    from tortie.model import text as yaml_text  # 18 ms for YAML, which no daemon speaks

    documents: list[dict[str, Any]] = []
    try:
        for i, document in enumerate(yaml_text.load_all(text)):
            if isinstance(document, list):
                documents.extend(_items(document, f"document {i + 1}", {}))
            elif isinstance(document, dict):
                documents.extend(_taken_apart(document))
            elif document is not None:
                raise ConfigError(f"is {shown(document)}, not an object with kind", f"document {i + 1}")
    except ConfigError as error:
        raise error.within(source) from None
    return documents


def parse(text: str | bytes, source: str = "") -> list[Resource]:
    """Every resource of a YAML stream, each checked on its own. Raises ConfigError: source: object: field: problem."""
    return [read(document, source) for document in load_documents(text, source)]


def read(document: dict[str, Any], source: str = "") -> Resource:
    """One document as its typed value. Raises ConfigError."""
    if not isinstance(document, dict):
        raise ConfigError(f"{shown(document)} where an object was expected", source)
    try:
        for key in ("apiVersion", "kind"):
            if not isinstance(document.get(key), str) or not document[key]:
                raise ConfigError("is required", key)
        kind = kind_of_document(document["apiVersion"], document["kind"])
        return convert(kind, {key: value for key, value in document.items() if key not in ("apiVersion", "kind")})
    except ConfigError as error:
        raise error.within(source, _shown(document)) from None


def convert(kind: type[R], body: dict[str, Any]) -> R:
    """A document without apiVersion and kind as a value; what does not fit is a ConfigError."""
    resource = shape(kind, body)
    check(resource)
    return resource


def shape(kind: type[R], body: dict[str, Any]) -> R:
    """The body of a document as a value of the right types, not looked into any further. Raises ConfigError."""
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError:
        pass  # the slow way round finds out what is wrong, or that there are only nulls where a field is left out
    for path, problem in unknown_field(body, kind):
        raise ConfigError(problem, path)
    body = without_nulls(body, kind)
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        path, problem = first_misfit(body, kind) or ("", str(error))
        raise ConfigError(problem, path) from None


def check(resource: Resource) -> None:
    """Raises ConfigError for the first of the value's problems."""
    for path, problem in problems(resource):
        raise ConfigError(problem, path)


def problems(resource: Resource) -> Iterator[tuple[str, str]]:
    """Everything that is wrong with a value beyond its types: (field path, what)."""
    yield from _metadata_problems(resource)
    yield from _deep_problems(resource, "")


def dump(resource: Resource) -> dict[str, Any]:
    """The document of a value, as plain dicts and lists, apiVersion and kind first."""
    body = msgspec.json.decode(encode(resource))
    metadata = body.pop("metadata", {})
    kind = resource.KIND
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, **body}


def dump_yaml(*resources: Resource) -> str:
    """The documents as a YAML stream."""
    from tortie.model import text as yaml_text

    return yaml_text.dump(*(dump(resource) for resource in resources))


def encode(resource: Resource) -> bytes:
    """The compact JSON of a value without apiVersion and kind: what our own stores keep."""
    return msgspec.json.encode(resource)


def decode(kind: type[R], data: bytes | str) -> R:
    """A value that `encode` wrote."""
    return msgspec.json.decode(data, type=kind)


def _taken_apart(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of a List, or the one object. Items of a PodList may leave out what its kind says."""
    kind, items = document.get("kind"), document.get("items")
    if not (isinstance(kind, str) and kind.endswith("List") and (isinstance(items, list) or "items" in document)):
        return [document]
    implied = {"apiVersion": document.get("apiVersion"), "kind": kind.removesuffix("List")} if kind != "List" else {}
    return _items(items or [], "items", implied)


def _items(items: Any, where: str, implied: dict[str, Any]) -> list[dict[str, Any]]:
    if not isinstance(items, list):
        raise ConfigError(f"is {shown(items)}, must be a list", where)
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            raise ConfigError(f"is {shown(item)}, not an object with kind", f"{where}[{i}]")
    return [{**implied, **item} for item in items]


def _shown(document: dict[str, Any]) -> str:
    """How a message names a document that may be wrong in any way."""
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    kind, name, namespace = document.get("kind"), metadata.get("name"), metadata.get("namespace")
    words = [str(kind) if isinstance(kind, str) and kind else "object"]
    if isinstance(name, str | int) and name != "":
        words.append(f"{namespace}/{name}" if isinstance(namespace, str) and namespace else str(name))
    return " ".join(words)


def _metadata_problems(resource: Resource) -> Iterator[tuple[str, str]]:
    kind, metadata = resource.KIND, resource.metadata
    if not metadata.name:
        extra = " (generateName is not supported)" if metadata.generate_name else ""
        yield "metadata.name", f"is required{extra}"
    elif kind.kind in ("Namespace", "Tier") and not (SHORT_NAME.match(metadata.name) and len(metadata.name) <= 63):
        yield "metadata.name", f'"{metadata.name}" must be lower-case letters, digits and "-", at most 63'
    elif kind.kind != "IPAMHandle" and not (NAME.match(metadata.name) and len(metadata.name) <= 253):
        yield "metadata.name", f'"{metadata.name}" must be lower-case letters, digits, "-" and ".", at most 253'
    if metadata.namespace and not kind.namespaced:
        problem = "namespace should not be specified for a non-namespaced resource"
        yield "metadata.namespace", f"{problem}. {kind.kind} is not a namespaced resource"
    if metadata.namespace and not (SHORT_NAME.match(metadata.namespace) and len(metadata.namespace) <= 63):
        yield "metadata.namespace", f'"{metadata.namespace}" must be lower-case letters, digits and "-", at most 63'
    for key, value in metadata.labels.items():
        if not LABEL_KEY.match(key):
            yield f"metadata.labels[{key}]", f'"{key}" is not a label name'
        if not LABEL_VALUE.match(value):
            yield f"metadata.labels[{key}]", f'"{value}" is not a label value: at most 63 of letters, digits, "-_."'
    size = sum(len(key.encode()) + len(value.encode()) for key, value in metadata.annotations.items())
    if size > MAX_ANNOTATIONS:
        yield "metadata.annotations", f"have {size} bytes, at most {MAX_ANNOTATIONS} are allowed"


def _deep_problems(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Value):
        for inner, problem in value.problems():
            yield join(path, inner), problem
        for name, attribute in fields(type(value)):
            inside = getattr(value, attribute)
            if isinstance(inside, Value | tuple):
                yield from _deep_problems(inside, join(path, name))
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from _deep_problems(item, f"{path}[{i}]")
