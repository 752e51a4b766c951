"""PATCH in its forms: JSON patch, merge patch, strategic merge patch, and server-side apply.

Server-side apply is simplified: only those who apply own fields, what others wrote by PUT or PATCH belongs to nobody;
managedFields are not shown.
"""

from __future__ import annotations

import copy
from typing import Any

import msgspec

from kube_api.statuses import Cause, Refusal, bad_request

JSON_PATCH = "application/json-patch+json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"

MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "imagePullSecrets": "name",
    "secrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "conditions": "type",
    "addresses": "type",
    "podIPs": "ip",
    "hostIPs": "ip",
    "ownerReferences": "uid",
    "schedulingGates": "name",
    "resourceClaims": "name",
}
"""Field -> the key by which strategic merge joins its list. Taints, tolerations, rules and peers are replaced whole."""
PRIMITIVES = frozenset({"finalizers", "podCIDRs"})
"""Lists of texts that strategic merge joins."""


def merge(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    found = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = merge(found.get(name), value)
    return found


# --- JSON patch (RFC 6902)


def json_patch(target: Any, steps: Any) -> Any:
    """Raises Refusal: 400 for a patch that is none, 422 for one that does not fit the object."""
    if not isinstance(steps, list):
        raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    found = copy.deepcopy(target)
    for step in steps:
        try:
            found = _step(found, step)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            message = "the server rejected our request due to an error in our request"
            cause = {"message": f"{step.get('op')} operation does not apply: {error}"}
            raise Refusal(422, "Invalid", message, {"causes": [cause]}) from None
    return found


def _step(target: Any, step: dict[str, Any]) -> Any:
    operation, path = step["op"], _pointer(step["path"])
    if operation == "test":
        if _at(target, path) != step.get("value"):
            raise ValueError(f"testing value {step['path']} failed: test failed")
        return target
    if operation in ("move", "copy"):
        source = _pointer(step["from"])
        value = copy.deepcopy(_at(target, source))
        if operation == "move":
            target = _removed(target, source)
        return _added(target, path, value)
    if operation == "remove":
        return _removed(target, path)
    if operation not in ("add", "replace"):
        raise ValueError(f"Unexpected kind: {operation}")
    value = copy.deepcopy(step["value"])
    if operation == "replace":
        _at(target, path)
        if not path:
            return value
        return _replaced(target, path, value)
    return _added(target, path, value)


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise ValueError(f'"{text}" does not begin with /')
    return [one.replace("~1", "/").replace("~0", "~") for one in text.split("/")[1:]]


def _at(target: Any, path: list[str]) -> Any:
    for name in path:
        target = target[_index(target, name)] if isinstance(target, list) else target[name]
    return target


def _index(items: list[Any], name: str, *, adding: bool = False) -> int:
    if name == "-" and adding:
        return len(items)
    number = int(name)
    if not 0 <= number <= len(items) - (not adding):
        raise IndexError(f"index {number} is out of bounds")
    return number


def _added(target: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    place = _at(target, path[:-1])
    if isinstance(place, list):
        place.insert(_index(place, path[-1], adding=True), value)
    else:
        place[path[-1]] = value
    return target


def _replaced(target: Any, path: list[str], value: Any) -> Any:
    place = _at(target, path[:-1])
    place[_index(place, path[-1]) if isinstance(place, list) else path[-1]] = value
    return target


def _removed(target: Any, path: list[str]) -> Any:
    place = _at(target, path[:-1])
    del place[_index(place, path[-1]) if isinstance(place, list) else path[-1]]
    return target


# --- strategic merge


def strategic(target: dict[str, Any], patch: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Merge by the lists' keys, with $patch, $deleteFromPrimitiveList, $setElementOrder and $retainKeys."""
    directive = patch.get("$patch")
    if directive == "replace":
        return {name: copy.deepcopy(value) for name, value in patch.items() if name != "$patch"}
    if directive == "delete":
        return {}
    found = dict(target)
    retained = patch.get("$retainKeys")
    if retained is not None:
        found = {name: value for name, value in found.items() if name in retained}
    for name, value in patch.items():
        if name.startswith("$deleteFromPrimitiveList/"):
            field = name.partition("/")[2]
            found[field] = [one for one in found.get(field) or () if one not in value]
        elif name.startswith("$"):
            continue
        elif value is None:
            found.pop(name, None)
        elif isinstance(value, dict):
            own = found.get(name)
            found[name] = strategic(own if isinstance(own, dict) else {}, value, name)
        elif isinstance(value, list):
            found[name] = _list(found.get(name), value, name, where)
        else:
            found[name] = value
    for name, order in patch.items():
        if name.startswith("$setElementOrder/"):
            field = name.partition("/")[2]
            if isinstance(found.get(field), list):
                found[field] = _ordered(found[field], order, merge_key(field, where))
    return found


def merge_key(field: str, where: str) -> str:
    """`ports` of a Service are joined by port, those of a container by containerPort, others by nothing."""
    if field == "ports":
        return {"spec": "port", "containers": "containerPort", "initContainers": "containerPort"}.get(where, "")
    if (field == "addresses" and where != "status") or (field == "imagePullSecrets" and where != "spec"):
        return ""
    return MERGE_KEYS.get(field, "")


def _list(before: Any, patch: list[Any], name: str, where: str) -> list[Any]:
    own: list[Any] = list(before) if isinstance(before, list) else []
    key = merge_key(name, where)
    if name in PRIMITIVES and where in ("metadata", "spec") and (name, where) != ("finalizers", "spec"):
        return own + [one for one in patch if one not in own]
    if not key:
        return [one for one in copy.deepcopy(patch) if not (isinstance(one, dict) and "$patch" in one)]
    if any(isinstance(one, dict) and one.get("$patch") == "replace" for one in patch):
        return [one for one in copy.deepcopy(patch) if "$patch" not in one]
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise Refusal(
                400,
                "BadRequest",
                f"map: {msgspec.json.encode(item).decode()} does not contain declared merge key: {key}",
            )
        place = next((number for number, one in enumerate(own) if one.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            own = [one for one in own if one.get(key) != item[key]]
        elif place is None:
            own.append(strategic({}, item, name))
        else:
            own[place] = strategic(own[place], item, name)
    return own


def _ordered(items: list[Any], order: list[Any], key: str) -> list[Any]:
    wanted = [one.get(key) if isinstance(one, dict) else one for one in order]

    def rank(item: Any) -> int:
        mark = item.get(key) if isinstance(item, dict) else item
        return wanted.index(mark) if mark in wanted else len(wanted)

    return sorted(items, key=rank)


# --- server-side apply

_ATOMIC_ROOTS = ("apiVersion", "kind")
_IDENTITY = ("name", "namespace", "generateName", "uid", "resourceVersion", "creationTimestamp", "managedFields")


def apply(
    live: dict[str, Any],
    wanted: dict[str, Any],
    applied: dict[str, Any],
    manager: str,
    *,
    force: bool,
    keyed: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The object with what the manager wants, and what every manager has applied by now.

    `keyed`: lists are joined by their keys, as those of built-in kinds. Raises Refusal (409) when another manager owns
    a field with another value.
    """
    own = _own_fields(wanted)
    before = applied.get(manager, {})
    others = {name: fields for name, fields in applied.items() if name != manager}
    conflicts = [
        (name, path)
        for name, fields in others.items()
        for path, value in leaves(fields, keyed)
        if (mine := _leaf(own, path)) is not _ABSENT and mine != value
    ]
    if conflicts and not force:
        raise _apply_conflict(conflicts)
    for name, path in conflicts:
        others[name] = without(others[name], path)
    found = copy.deepcopy(live)
    kept = {path for fields in (own, *others.values()) for path, _ in leaves(fields, keyed)}
    for path, _ in leaves(before, keyed):
        if path not in kept:
            found = without(found, path)
    found = strategic(found, own) if keyed else merge(found, own)
    return found, {name: fields for name, fields in others.items() if fields} | {manager: own}


def _own_fields(wanted: dict[str, Any]) -> dict[str, Any]:
    found = {name: copy.deepcopy(value) for name, value in wanted.items() if name not in _ATOMIC_ROOTS}
    metadata = {name: value for name, value in (found.get("metadata") or {}).items() if name not in _IDENTITY}
    found["metadata"] = metadata
    return {name: value for name, value in found.items() if value not in (None, {}) or name == "spec"}


Path = tuple[Any, ...]
_ABSENT = object()


def leaves(value: Any, keyed: bool, path: Path = (), where: str = "") -> list[tuple[Path, Any]]:
    """Paths to all that is neither object nor keyed list. A step into a list is (key, value)."""
    if isinstance(value, dict) and (value or not path):
        within = path[-1] if path and isinstance(path[-1], str) else where
        return [one for name, inner in value.items() for one in leaves(inner, keyed, (*path, name), within)]
    if isinstance(value, list) and keyed and path and isinstance(path[-1], str):
        key = merge_key(path[-1], where)
        if key and value and all(isinstance(item, dict) and key in item for item in value):
            return [one for item in value for one in leaves(item, keyed, (*path, (key, item[key])), path[-1])]
    return [(path, value)]


def _leaf(target: Any, path: Path) -> Any:
    for step in path:
        if isinstance(step, tuple):
            items = target if isinstance(target, list) else []
            found = [one for one in items if isinstance(one, dict) and one.get(step[0]) == step[1]]
            target = found[0] if found else _ABSENT
        else:
            target = target.get(step, _ABSENT) if isinstance(target, dict) else _ABSENT
        if target is _ABSENT:
            return _ABSENT
    return target


def without(target: Any, path: Path) -> Any:
    """The value without what is at the path, and without what that leaves empty."""
    step, rest = path[0], path[1:]
    if isinstance(step, tuple):
        found = []
        for item in target if isinstance(target, list) else ():
            if isinstance(item, dict) and item.get(step[0]) == step[1]:
                item = without(item, rest) if rest and rest != (step[0],) else {}
                if not item or list(item) == [step[0]]:
                    continue
            found.append(item)
        return found
    if not isinstance(target, dict) or step not in target:
        return target
    found_map = dict(target)
    inner = without(found_map[step], rest) if rest else _ABSENT
    if inner is _ABSENT or inner in ({}, []):
        del found_map[step]
    else:
        found_map[step] = inner
    return found_map


def _apply_conflict(conflicts: list[tuple[str, Path]]) -> Refusal:
    lines = [f'conflict with "{manager}": {field_path(path)}' for manager, path in conflicts]
    count = f"{len(lines)} conflict{'s' if len(lines) > 1 else ''}"
    said = f": {lines[0]}" if len(lines) == 1 else ": " + "\n- ".join(["conflicts:", *lines])
    causes = [
        Cause(field_path(path), "FieldManagerConflict", f'conflict with "{manager}"') for manager, path in conflicts
    ]
    details = {"causes": [{"reason": one.reason, "message": one.message, "field": one.field} for one in causes]}
    return Refusal(409, "Conflict", f"Apply failed with {count}{said}", details)


def field_path(path: Path) -> str:
    return "".join(f'[{step[0]}="{step[1]}"]' if isinstance(step, tuple) else f".{step}" for step in path)
