"""Protobuf bodies of the few kinds for which kubectl sends nothing else: `kubectl create namespace`, `auth can-i` ...

    k8s\\0 + Unknown{typeMeta, raw} ──► raw by its kind's fields ──► the object as JSON would give it

Answers are JSON: every client that sends protobuf accepts that, too.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from kube_api.statuses import unsupported_media

MEDIA = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\0"

_TEXT = """
Unknown: 1=typeMeta/TypeMeta 2=raw/y
TypeMeta: 1=apiVersion 2=kind
ObjectMeta: 1=name 2=generateName 3=namespace 5=uid 6=resourceVersion 11=labels/{s} 12=annotations/{s}
  14=finalizers/[s]
Namespace: 1=metadata/ObjectMeta
ServiceAccount: 1=metadata/ObjectMeta 4=automountServiceAccountToken/b
ConfigMap: 1=metadata/ObjectMeta 2=data/{s} 3=binaryData/{y} 4=immutable/b
Secret: 1=metadata/ObjectMeta 2=data/{y} 3=type 4=stringData/{s} 5=immutable/b
SelfSubjectAccessReview: 1=metadata/ObjectMeta 2=spec/AccessSpec
AccessSpec: 1=resourceAttributes/ResourceAttributes 2=nonResourceAttributes/NonResourceAttributes
ResourceAttributes: 1=namespace 2=verb 3=group 4=version 5=resource 6=subresource 7=name
NonResourceAttributes: 1=path 2=verb
SelfSubjectReview: 1=metadata/ObjectMeta
TokenRequest: 1=metadata/ObjectMeta 2=spec/TokenRequestSpec
TokenRequestSpec: 1=audiences/[s] 3=boundObjectRef/BoundObjectReference 4=expirationSeconds/i
BoundObjectReference: 1=kind 2=apiVersion 3=name 4=uid
DeleteOptions: 1=gracePeriodSeconds/i 2=preconditions/Preconditions 3=orphanDependents/b 4=propagationPolicy
  5=dryRun/[s]
Preconditions: 1=uid 2=resourceVersion
Eviction: 1=metadata/ObjectMeta 2=deleteOptions/DeleteOptions
ClusterRole: 1=metadata/ObjectMeta 2=rules/[PolicyRule]
Role: 1=metadata/ObjectMeta 2=rules/[PolicyRule]
PolicyRule: 1=verbs/[s] 2=apiGroups/[s] 3=resources/[s] 4=resourceNames/[s] 5=nonResourceURLs/[s]
ClusterRoleBinding: 1=metadata/ObjectMeta 2=subjects/[Subject] 3=roleRef/RoleRef
RoleBinding: 1=metadata/ObjectMeta 2=subjects/[Subject] 3=roleRef/RoleRef
Subject: 1=kind 2=apiGroup 3=name 4=namespace
RoleRef: 1=apiGroup 2=kind 3=name
Lease: 1=metadata/ObjectMeta 2=spec/LeaseSpec
LeaseSpec: 1=holderIdentity 2=leaseDurationSeconds/i 3=acquireTime/t 4=renewTime/t 5=leaseTransitions/i
"""


def _messages() -> dict[str, dict[int, tuple[str, str]]]:
    found: dict[str, dict[int, tuple[str, str]]] = {}
    own: dict[int, tuple[str, str]] = {}
    for word in _TEXT.split():
        if word.endswith(":"):
            own = found[word[:-1]] = {}
        else:
            number, _, rest = word.partition("=")
            name, _, code = rest.partition("/")
            own[int(number)] = (name, code or "s")
    return found


_MESSAGES = _messages()


def decoded(body: bytes) -> dict[str, Any]:
    """The object. Raises Refusal (415) for kinds that the double knows only as JSON."""
    unknown = _message("Unknown", body.removeprefix(_MAGIC), raw=True)
    kind = unknown.get("typeMeta") or {}
    if not body.startswith(_MAGIC) or kind.get("kind") not in _MESSAGES:
        raise unsupported_media(("application/json", "application/yaml"))
    return kind | _message(kind["kind"], unknown.get("raw", b""))


def _message(name: str, body: bytes, *, raw: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, value in _fields(body):
        if number not in _MESSAGES[name]:
            continue
        field, code = _MESSAGES[name][number]
        if code[0] == "[":
            found.setdefault(field, []).append(_value(code[1:-1], value))
        elif code[0] == "{":
            entry = dict(_fields(value))
            key = entry.get(1, b"").decode()
            found.setdefault(field, {})[key] = _value(code[1:-1], entry.get(2, b""))
        elif raw and code == "y":
            found[field] = value
        elif (one := _value(code, value)) not in ("", {}):
            found[field] = one
    return found


def _value(code: str, value: Any) -> Any:
    if code == "s":
        return value.decode()
    if code == "y":
        return base64.b64encode(value).decode()
    if code == "b":
        return bool(value)
    if code == "t":
        parts = dict(_fields(value))
        moment = datetime.fromtimestamp(parts.get(1, 0), UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{parts.get(2, 0) // 1000:06}Z"
    if code == "i":
        return value - (1 << 64) if value >> 63 else value
    return _message(code, value)


def _fields(body: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value: an int of a varint, bytes of what has a length."""
    position = 0
    while position < len(body):
        tag, position = _varint(body, position)
        if tag & 7 == 0:
            value, position = _varint(body, position)
            yield tag >> 3, value
        elif tag & 7 == 2:
            size, position = _varint(body, position)
            yield tag >> 3, body[position : position + size]
            position += size
        else:
            position += 8 if tag & 7 == 1 else 4


def _varint(body: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
