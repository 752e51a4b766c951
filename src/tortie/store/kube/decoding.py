"""JSON of a Kubernetes API server to our values: leniently, quickly, and never one object at the cost of another.

    raw ──fast: msgspec, strict types──────────────────────────────► value
         └─slow: nulls and what we do not know are left out ──fits?─► value, or Refused

A newer server has fields that our model does not know. They are left out here, and are still there after an update:
see `overlay`. Where leaving one out would change what an object means (a condition of a rule), it is refused instead.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, Protocol, TypeVar, get_type_hints

import msgspec
from msgspec import field, inspect

from tortie.model.k8s import K8sNetworkPolicy
from tortie.model.meta import Metadata, OwnerReference, Resource
from tortie.model.misfit import first_misfit, join
from tortie.store.entries import readable

R = TypeVar("R", bound=Resource)
Document = dict[str, Any]


BAD = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What decoding raises for what does not fit, or is no JSON. Anybody who may make a pod may write an annotation of a
thousand brackets, or half a surrogate: that must end nobody's agent."""


class Refused(Exception):
    """An object that is there and cannot be read. Only the readers of this package see it."""

    def __init__(self, who: WireMetadata, why: str) -> None:
        super().__init__(why)
        self.metadata = who


class Owner(msgspec.Struct, rename="camel"):
    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class WireMetadata(msgspec.Struct, rename="camel"):
    """ObjectMeta without what nobody here reads: `managedFields` alone may be half of a pod."""

    name: str = ""
    namespace: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    generation: int | None = None
    generate_name: str = ""
    owner_references: list[Owner] | None = None
    finalizers: list[str] | None = None


class _Identity(msgspec.Struct):
    metadata: WireMetadata = field(default_factory=WireMetadata)


class _Name(msgspec.Struct, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""


class _Named(msgspec.Struct):
    metadata: _Name = field(default_factory=_Name)


class Head(Protocol):
    """What says which object it is, and which state of it."""

    name: str
    namespace: str
    resource_version: str


_identities = msgspec.json.Decoder(_Identity)


class Part(NamedTuple):
    """A field of a kind: attribute, name in documents, type, and what it is when it is left out."""

    attribute: str
    name: str
    type: Any
    default: Any


class Found(NamedTuple):
    """What was read of an object: its metadata as the server has it, the other fields by attribute, and the paths of
    fields that the model does not know."""

    metadata: WireMetadata
    parts: dict[str, Any]
    unknown: tuple[str, ...]


def identity(raw: bytes) -> WireMetadata:
    """The metadata of an object, whatever else is in it; its name and revision where other metadata cannot be read."""
    try:
        return _identities.decode(raw).metadata
    except BAD:
        pass
    try:
        who = msgspec.json.decode(raw, type=_Named).metadata
    except BAD:
        return WireMetadata()
    return WireMetadata(name=who.name, namespace=who.namespace, uid=who.uid, resource_version=who.resource_version)


def number(revision: str) -> int:
    """Of a revision; 0 of what is none."""
    return int(revision) if revision.isascii() and revision.isdecimal() else 0


def metadata_of(wire: WireMetadata) -> Metadata:
    owners = wire.owner_references or ()
    return Metadata(
        name=wire.name,
        namespace=wire.namespace,
        labels=wire.labels or {},
        annotations=wire.annotations or {},
        uid=wire.uid,
        resource_version=wire.resource_version,
        creation_timestamp=wire.creation_timestamp,
        deletion_timestamp=wire.deletion_timestamp,
        deletion_grace_period_seconds=wire.deletion_grace_period_seconds,
        generation=wire.generation,
        generate_name=wire.generate_name,
        owner_references=tuple(OwnerReference(**msgspec.structs.asdict(one)) for one in owners),
        finalizers=tuple(wire.finalizers or ()),
    )


def read(kind: type[Resource], raw: bytes, *, lax: bool = False) -> Found:
    """An object of a kind. `lax`: "true" counts as true. Raises Refused when it does not fit the model."""
    try:
        wire = msgspec.json.decode(raw, type=_envelope(kind), strict=not lax)
    except BAD:
        return _slowly(kind, raw, lax)
    return Found(wire.metadata, {part.attribute: getattr(wire, part.attribute) for part in parts(kind)}, ())


def blank(kind: type[R], metadata: Metadata) -> R:
    """An object of which no more is known than that it is gone: what is required of it is empty."""
    return kind(metadata=metadata, **{part.attribute: _nothing(part) for part in parts(kind)})


@cache
def parts(kind: type[Resource]) -> tuple[Part, ...]:
    """Every field of a kind but its metadata."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(
        Part(
            one.name,
            one.encode_name,
            hints[one.name],
            one.default if one.default_factory is msgspec.NODEFAULT else one.default_factory(),
        )
        for one in msgspec.structs.fields(kind)
        if one.name != "metadata"
    )


@cache
def _envelope(kind: type[Resource]) -> type[Any]:
    """The kind as it comes: metadata as the server writes it, and fields that we do not know at the top."""
    fields: list[Any] = [("metadata", WireMetadata, field(default_factory=WireMetadata))]
    for part in parts(kind):
        default: Any = {} if part.default is msgspec.NODEFAULT else {"default": part.default}
        default = {"default_factory": dict} if isinstance(part.default, dict) else default
        fields.append((part.attribute, part.type, field(name=part.name, **default)))
    return msgspec.defstruct(f"{kind.__name__}Envelope", fields, kw_only=True)


def _slowly(kind: type[Resource], raw: bytes, lax: bool) -> Found:
    wire = identity(raw)
    try:
        document = msgspec.json.decode(raw)
    except BAD as error:
        raise Refused(wire, f"is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise Refused(wire, "is no object")
    try:
        msgspec.convert(document.get("metadata") or {}, WireMetadata)
    except msgspec.ValidationError as error:
        raise Refused(wire, f"metadata: {error}") from None
    unknown: list[str] = []
    found: dict[str, Any] = {}
    for part in parts(kind):
        body = document.get(part.name)
        if body is None and part.default is not msgspec.NODEFAULT:
            found[part.attribute] = part.default
            continue
        body = _pruned({} if body is None else body, _info(kind)[part.attribute], part.name, unknown)
        if kind is K8sNetworkPolicy:
            body = _without_rules(body, part.name, unknown)
        body = readable(kind, part.name, body, unknown)
        try:
            found[part.attribute] = msgspec.convert(body, part.type, strict=not lax)
        except msgspec.ValidationError as error:
            path, problem = first_misfit(body, part.type, part.name) or (part.name, str(error))
            raise Refused(wire, f"{path}: {problem}") from None
    return Found(wire, found, tuple(unknown))


@cache
def _info(kind: type[Resource]) -> dict[str, inspect.Type]:
    return {part.attribute: inspect.type_info(part.type) for part in parts(kind)}


def _pruned(body: Any, info: inspect.Type, path: str, unknown: list[str]) -> Any:
    """The same without what the type does not have, and without nulls where a field is left out."""
    if isinstance(info, inspect.UnionType):
        fitting = (inspect.StructType, inspect.DictType) if isinstance(body, dict) else (inspect.VarTupleType,)
        choices = [one for one in info.types if isinstance(one, fitting)]
        return _pruned(body, choices[0], path, unknown) if len(choices) == 1 else body
    if isinstance(info, inspect.Metadata):
        return _pruned(body, info.type, path, unknown)
    if isinstance(info, inspect.StructType) and isinstance(body, dict):
        known = {one.encode_name: one.type for one in info.fields}
        told = info.cls.__struct_config__.forbid_unknown_fields
        unknown.extend(join(path, name) for name in body if told and name not in known)
        return {
            name: _pruned(value, known[name], join(path, name), unknown)
            for name, value in body.items()
            if name in known and value is not None
        }
    if isinstance(info, inspect.VarTupleType) and isinstance(body, list):
        return [_pruned(one, info.item_type, f"{path}[{i}]", unknown) for i, one in enumerate(body)]
    if isinstance(info, inspect.DictType) and isinstance(info.value_type, inspect.StrType) and isinstance(body, dict):
        return {name: "" if value is None else value for name, value in body.items()}
    return body


def _without_rules(spec: Any, path: str, unknown: list[str]) -> Any:
    """Of a NetworkPolicy of Kubernetes, whose rules all allow: without those that have a condition unknown to us.

    Without the condition a rule would allow more than was meant; without the rule the policy still isolates.
    """
    if not isinstance(spec, dict):
        return spec
    for direction in ("ingress", "egress"):
        rules = spec.get(direction)
        if isinstance(rules, list):
            begins = [f"{path}.{direction}[{i}]." for i in range(len(rules))]
            known = [not any(one.startswith(begin) for one in unknown) for begin in begins]
            spec = spec | {direction: [rule for rule, whole in zip(rules, known, strict=True) if whole]}
    return spec


def _nothing(part: Part) -> Any:
    if part.default is not msgspec.NODEFAULT:
        return part.default
    if isinstance(part.type, type) and issubclass(part.type, msgspec.Struct):
        hints = get_type_hints(part.type, include_extras=True)
        required = [one.name for one in msgspec.structs.fields(part.type) if one.required]
        return part.type(**{name: _empty(hints[name]) for name in required})
    return _empty(part.type)


def _empty(kind: Any) -> Any:
    match inspect.type_info(kind):
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.VarTupleType():
            return ()
        case inspect.DictType():
            return {}
    return ""
