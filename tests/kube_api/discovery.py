"""What is no resource: versions, health, discovery."""

from __future__ import annotations

from typing import Any

import msgspec

from kube_api import openapi
from kube_api.kinds import VIRTUAL, Kind, Kinds

VERSION = {
    "major": "1",
    "minor": "32",
    "gitVersion": "v1.32.0-double",
    "gitCommit": "0000000000000000000000000000000000000000",
    "gitTreeState": "clean",
    "buildDate": "2026-01-01T00:00:00Z",
    "goVersion": "go1.23.0",
    "compiler": "gc",
    "platform": "linux/amd64",
}

_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_OWN = {"binding": "Binding", "eviction": "Eviction", "token": "TokenRequest"}
_GROUPS = {"eviction": ("policy", "v1"), "token": ("authentication.k8s.io", "v1")}


def answer(kinds: Kinds, path: str) -> tuple[bytes, str] | None:
    """Body and content type; None: nothing is there."""
    parts = path.strip("/").split("/")
    if path in ("/healthz", "/livez", "/readyz", "/healthz/ping"):
        return b"ok", "text/plain; charset=utf-8"
    if path.startswith("/openapi/v3"):
        document = openapi.answer(kinds, path)
        return (document, "application/json") if document is not None else None
    found: dict[str, Any] | None = None
    if path.rstrip("/") == "/version":
        found = VERSION
    elif parts == ["api"]:
        found = {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    elif parts == ["api", "v1"]:
        found = _resources(kinds, "", "v1")
    elif parts == ["apis"]:
        groups = [_group(kinds, group) for group in kinds.groups()]
        found = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    elif parts[0] == "apis" and len(parts) == 2 and parts[1] in kinds.groups():
        found = {"kind": "APIGroup", "apiVersion": "v1"} | _group(kinds, parts[1])
    elif parts[0] == "apis" and len(parts) == 3 and parts[2] in _versions(kinds, parts[1]):
        found = _resources(kinds, parts[1], parts[2])
    return (msgspec.json.encode(found), "application/json") if found is not None else None


def _versions(kinds: Kinds, group: str) -> list[str]:
    virtual = [version for own, version, *_ in VIRTUAL if own == group]
    return list(dict.fromkeys([*kinds.versions(group), *virtual]))


def _group(kinds: Kinds, group: str) -> dict[str, Any]:
    versions = [{"groupVersion": f"{group}/{one}", "version": one} for one in _versions(kinds, group)]
    return {"name": group, "versions": versions, "preferredVersion": versions[0]}


def _resources(kinds: Kinds, group: str, version: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    for kind in kinds.served.values():
        if (kind.group, kind.version) == (group, version):
            found.append(_resource(kind))
            found += [_subresource(kind, sub) for sub in sorted(kind.subresources)]
    for own, own_version, plural, name, namespaced in VIRTUAL:
        if (own, own_version) == (group, version):
            words = {"name": plural, "singularName": "", "namespaced": namespaced, "kind": name, "verbs": ["create"]}
            found.append(words)
    named = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": named, "resources": found}


def _resource(kind: Kind) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": kind.plural,
        "singularName": kind.singular or kind.kind.lower(),
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": [verb for verb in _VERBS if kind.plural != "namespaces" or verb != "deletecollection"],
    }
    if kind.short:
        found["shortNames"] = list(kind.short)
    if kind.categories:
        found["categories"] = list(kind.categories)
    return found


def _subresource(kind: Kind, sub: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": f"{kind.plural}/{sub}",
        "singularName": "",
        "namespaced": kind.namespaced,
        "kind": _OWN.get(sub, kind.kind),
        "verbs": ["create"] if sub in _OWN else ["update"] if sub == "finalize" else ["get", "patch", "update"],
    }
    if sub in _GROUPS:
        found["group"], found["version"] = _GROUPS[sub]
    return found
