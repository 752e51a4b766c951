"""CustomResourceDefinitions: what must hold of them, and the kinds that they make."""

from __future__ import annotations

import copy
from typing import Any

from kube_api.kinds import Kind
from kube_api.schemas import structure_problems
from kube_api.statuses import Cause, invalid_value, required, unsupported_value


def problems(obj: dict[str, Any], old: dict[str, Any] | None) -> list[Cause]:
    """What the server refuses in a definition."""
    spec = obj.get("spec") or {}
    names, group, versions = spec.get("names") or {}, spec.get("group") or "", spec.get("versions") or []
    found = [required(f"spec.{name}") for name in ("group", "scope") if not spec.get(name)]
    found += [required(f"spec.names.{name}") for name in ("plural", "kind") if not names.get(name)]
    if obj["metadata"]["name"] != f"{names.get('plural')}.{group}":
        shown = f'"{obj["metadata"]["name"]}"'
        found.append(invalid_value("metadata.name", shown, 'must be spec.names.plural+"."+spec.group'))
    if spec.get("scope") not in (None, "", "Namespaced", "Cluster"):
        found.append(unsupported_value("spec.scope", f'"{spec["scope"]}"', ("Cluster", "Namespaced")))
    if not versions or sum(bool(one.get("storage")) for one in versions) != 1:
        why = "must have exactly one version marked as storage version"
        found.append(invalid_value("spec.versions", "[]", why))
    if group.endswith((".k8s.io", ".kubernetes.io")) and not (obj["metadata"].get("annotations") or {}).get(
        "api-approved.kubernetes.io"
    ):
        why = (
            'protected groups must have approval annotation "api-approved.kubernetes.io", see '
            "https://github.com/kubernetes/enhancements/pull/1111"
        )
        found.append(required("metadata.annotations[api-approved.kubernetes.io]", why))
    for number, version in enumerate(versions):
        at = f"spec.versions[{number}].schema.openAPIV3Schema"
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        found += structure_problems(schema, at) if schema else [required(at, "schemas are required")]
        if "served" not in version:
            found.append(required(f"spec.versions[{number}].served"))
    if old is not None:
        before = old["spec"]
        for name in ("scope", "group"):
            if before[name] != spec.get(name):
                found.append(invalid_value(f"spec.{name}", f'"{spec.get(name)}"', "field is immutable"))
    return found


def complete(obj: dict[str, Any]) -> None:
    """The names and versions that may be left out; the status once the kind is served."""
    spec = obj["spec"]
    names = spec["names"]
    names.setdefault("singular", names["kind"].lower())
    names.setdefault("listKind", f"{names['kind']}List")
    spec.setdefault("conversion", {"strategy": "None"})


def established(obj: dict[str, Any], now: str) -> dict[str, Any]:
    """The definition with the status that says that its kind is served."""
    found = copy.deepcopy(obj)
    spec = found["spec"]
    storage = [version["name"] for version in spec["versions"] if version.get("storage")]
    known = {one["type"]: one for one in (found.get("status") or {}).get("conditions") or ()}
    conditions = [
        known.get(name)
        or {"type": name, "status": "True", "lastTransitionTime": now, "reason": reason, "message": message}
        for name, reason, message in (
            ("NamesAccepted", "NoConflicts", "no conflicts found"),
            ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        )
    ]
    stored = (found.get("status") or {}).get("storedVersions") or []
    found["status"] = {
        "conditions": conditions,
        "acceptedNames": spec["names"],
        "storedVersions": list(dict.fromkeys([*stored, *storage])),
    }
    return found


def kinds(obj: dict[str, Any]) -> list[Kind]:
    """One for each served version."""
    spec = obj["spec"]
    names = spec["names"]
    found = []
    for version in spec["versions"]:
        if not version.get("served"):
            continue
        found.append(
            Kind(
                spec["group"],
                version["name"],
                names["plural"],
                names["kind"],
                namespaced=spec["scope"] == "Namespaced",
                short=tuple(names.get("shortNames") or ()),
                subresources=frozenset(
                    {"status"} if (version.get("subresources") or {}).get("status") is not None else set()
                ),
                unconditional=False,
                generation=True,
                fields=tuple(one["jsonPath"].lstrip(".") for one in version.get("selectableFields") or ()),
                custom=True,
                schema=version["schema"]["openAPIV3Schema"],
                singular=names["singular"],
                list_kind=names["listKind"],
                categories=tuple(names.get("categories") or ()),
            )
        )
    return found
