"""/openapi/v3 as far as kubectl needs it: that writes take fieldValidation, and the schemas of custom resources."""

from __future__ import annotations

from typing import Any

import msgspec

from kube_api.kinds import Kind, Kinds

_PARAMETERS = ("dryRun", "fieldManager", "fieldValidation", "force")


def answer(kinds: Kinds, path: str) -> bytes | None:
    """None: nothing is there. /openapi/v2 is protobuf to kubectl, and not served."""
    places = {f"apis/{kind.api_version}" if kind.group else f"api/{kind.version}" for kind in kinds.served.values()}
    if path == "/openapi/v3":
        found = {place: {"serverRelativeURL": f"/openapi/v3/{place}"} for place in sorted(places)}
        return msgspec.json.encode({"paths": found})
    place = path.removeprefix("/openapi/v3/")
    if place not in places:
        return None
    own = [kind for kind in kinds.served.values() if place.split("/", 1)[1] == kind.api_version]
    return msgspec.json.encode(_document(own, place))


def _document(own: list[Kind], place: str) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    for kind in own:
        mark = {"group": kind.group, "version": kind.version, "kind": kind.kind}
        schema = dict(kind.schema or {"type": "object"})
        schema["properties"] = {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            **{name: inner for name, inner in (schema.get("properties") or {}).items() if name != "metadata"},
        }
        name = ".".join(reversed(kind.group.split("."))) + f".{kind.version}.{kind.kind}"
        schemas[name] = schema | {"x-kubernetes-group-version-kind": [mark]}
        prefix = f"/{place}/namespaces/{{namespace}}/{kind.plural}" if kind.namespaced else f"/{place}/{kind.plural}"
        paths[prefix] = {"post": _operation(mark, "post")}
        paths[f"{prefix}/{{name}}"] = {verb: _operation(mark, verb) for verb in ("get", "put", "patch", "delete")}
    info = {"title": "Kubernetes", "version": "v1.32.0-double"}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _operation(mark: dict[str, str], verb: str) -> dict[str, Any]:
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in _PARAMETERS]
    return {
        "parameters": parameters,
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": verb,
        "x-kubernetes-group-version-kind": mark,
    }
