"""What the server answers when it refuses: `Status` objects, with code, reason and words of the real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec


class Cause(NamedTuple):
    """One field that is wrong. `reason`: FieldValueInvalid, FieldValueRequired ..."""

    field: str
    reason: str
    message: str


class Refusal(Exception):
    """The answer is a Status of `code`. `headers` go with it."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: dict[str, Any] | None = None,
        *,
        metadata: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.metadata = metadata or {}
        self.headers = headers or {}

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            found["reason"] = self.reason
        if self.details:
            found["details"] = self.details
        return found | {"code": self.code}

    def body(self) -> bytes:
        return msgspec.json.encode(self.status())


def shown(plural: str, group: str) -> str:
    """A resource as messages name it: `pods`, `leases.coordination.k8s.io`."""
    return f"{plural}.{group}" if group else plural


def _details(group: str, kind: str, name: str) -> dict[str, Any]:
    found = {"name": name, "group": group, "kind": kind}
    return {key: value for key, value in found.items() if value}


def not_found(group: str, plural: str, name: str) -> Refusal:
    return Refusal(404, "NotFound", f'{shown(plural, group)} "{name}" not found', _details(group, plural, name))


def already_exists(group: str, plural: str, name: str) -> Refusal:
    message = f'{shown(plural, group)} "{name}" already exists'
    return Refusal(409, "AlreadyExists", message, _details(group, plural, name))


STALE = "the object has been modified; please apply your changes to the latest version and try again"


def conflict(group: str, plural: str, name: str, why: str = STALE) -> Refusal:
    message = f'Operation cannot be fulfilled on {shown(plural, group)} "{name}": {why}'
    return Refusal(409, "Conflict", message, _details(group, plural, name))


def forbidden(group: str, plural: str, name: str, why: str, causes: Sequence[Cause] = ()) -> Refusal:
    what = f'{shown(plural, group)} "{name}"' if name else shown(plural, group)
    details = _details(group, plural, name)
    if causes:
        details["causes"] = _causes(causes)
    return Refusal(403, "Forbidden", f"{what} is forbidden: {why}", details)


def bad_request(message: str) -> Refusal:
    return Refusal(400, "BadRequest", message)


def invalid(group: str, kind: str, name: str, causes: Sequence[Cause]) -> Refusal:
    """422. Several causes are listed in brackets, as Go's aggregated errors print."""
    lines = [f"{one.field}: {one.message}" for one in causes]
    said = lines[0] if len(lines) == 1 else f"[{', '.join(lines)}]"
    message = f'{shown(kind, group)} "{name}" is invalid: {said}'
    return Refusal(422, "Invalid", message, _details(group, kind, name) | {"causes": _causes(causes)})


def expired(message: str, continued: str = "") -> Refusal:
    return Refusal(410, "Expired", message, metadata={"continue": continued} if continued else None)


def too_large_revision(asked: int, newest: int) -> Refusal:
    details = {
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    }
    message = f"Timeout: Too large resource version: {asked}, current: {newest}"
    return Refusal(504, "Timeout", message, details, headers={"Retry-After": "1"})


def unauthorized() -> Refusal:
    return Refusal(401, "Unauthorized", "Unauthorized")


def method_not_allowed() -> Refusal:
    return Refusal(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def unsupported_media(accepted: Sequence[str]) -> Refusal:
    words = ", ".join(accepted)
    message = f"the body of the request was in an unknown format - accepted media types include: {words}"
    return Refusal(415, "UnsupportedMediaType", message, {})


def not_acceptable(accepted: Sequence[str]) -> Refusal:
    message = f"only the following media types are accepted: {', '.join(accepted)}"
    return Refusal(406, "NotAcceptable", message, {})


def success(group: str, plural: str, name: str, uid: str) -> dict[str, Any]:
    """What a deletion answers when the object is gone at once."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": _details(group, plural, name) | {"uid": uid},
    }


def invalid_value(field: str, value: str, why: str) -> Cause:
    return Cause(field, "FieldValueInvalid", f"Invalid value: {value}: {why}")


def required(field: str, why: str = "") -> Cause:
    return Cause(field, "FieldValueRequired", f"Required value: {why}" if why else "Required value")


def forbidden_field(field: str, why: str) -> Cause:
    return Cause(field, "FieldValueForbidden", f"Forbidden: {why}")


def unsupported_value(field: str, value: str, allowed: Sequence[str]) -> Cause:
    values = ", ".join(f'"{one}"' for one in allowed)
    return Cause(field, "FieldValueNotSupported", f"Unsupported value: {value}: supported values: {values}")


def _causes(causes: Sequence[Cause]) -> list[dict[str, str]]:
    return [{"reason": one.reason, "message": one.message, "field": one.field} for one in causes]
