"""Strategic merge patches, as Kubernetes calls them: a piece of a document that says what changes in the stored one.

    a mapping    is merged field by field; a field that is null is removed
    a list       replaces the stored one, unless MERGED has its path: then its items are merged, by one of their fields
    the rest     replaces what is stored

`$patch: replace` in a mapping puts the mapping in the place of the stored one, `$patch: delete` removes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tortie.base.errors import ConfigError
from tortie.model.meta import Resource
from tortie.model.misfit import join, shown

DIRECTIVE = "$patch"
DIRECTIVES = ("merge", "replace", "delete")
PLAIN = ""
"""In the place of a field by which items are merged: the items are texts, and each is there once."""

_OF_ALL = {"metadata.ownerReferences": "uid", "metadata.finalizers": PLAIN}
_OF_CONTAINERS = {"env": "name", "ports": "containerPort", "volumeMounts": "mountPath", "volumeDevices": "devicePath"}
_CONTAINERS = ("spec.containers", "spec.initContainers", "spec.ephemeralContainers")
_OF_KINDS: Mapping[str, Mapping[str, str]] = {
    "Pod": {
        **dict.fromkeys(_CONTAINERS, "name"),
        **{f"{path}.{field}": key for path in _CONTAINERS for field, key in _OF_CONTAINERS.items()},
        "spec.volumes": "name",
        "spec.imagePullSecrets": "name",
        "spec.hostAliases": "ip",
        "spec.topologySpreadConstraints": "topologyKey",
    },
    "Service": {"spec.ports": "port"},
    "ServiceAccount": {"secrets": "name", "imagePullSecrets": "name"},
}


def merged_lists(kind: type[Resource]) -> Mapping[str, str]:
    """The lists of a kind's documents whose items are merged: field path without indexes -> field of the items.

    Calico's own kinds have none in their specs.
    """
    return {**_OF_ALL, **_OF_KINDS.get(kind.KIND.kind, {})}


def merged(stored: Mapping[str, Any], patch: Mapping[str, Any], lists: Mapping[str, str]) -> dict[str, Any]:
    """The document with the patch applied; neither is changed. Raises ConfigError with the path in the patch."""
    return _mapping(stored, patch, lists, "") or {}


def _mapping(stored: Any, patch: Mapping[str, Any], lists: Mapping[str, str], path: str) -> dict[str, Any] | None:
    """What a mapping becomes; None if it goes."""
    directive = _directive(patch, path)
    if directive == "delete":
        return None
    result = dict(stored) if isinstance(stored, Mapping) and directive != "replace" else {}
    for key, value in patch.items():
        where = join(path, key)
        if key == DIRECTIVE:
            continue
        if key.startswith("$"):
            raise ConfigError(f"is not understood: of the directives there is only {DIRECTIVE}", where)
        new = _value(result.get(key), value, lists, where)
        if new is None:
            result.pop(key, None)
        else:
            result[key] = new
    return result


def _value(stored: Any, patch: Any, lists: Mapping[str, str], path: str) -> Any:
    if isinstance(patch, Mapping):
        return _mapping(stored, patch, lists, path)
    if isinstance(patch, list):
        return _list(stored, patch, lists, path)
    return patch


def _list(stored: Any, patch: list[Any], lists: Mapping[str, str], path: str) -> list[Any]:
    key = lists.get(path)
    if key is None:
        return [_value(None, item, lists, path) for item in patch]
    alone = {DIRECTIVE: "replace"}  # as an item of its own it speaks for the whole list
    result = list(stored) if isinstance(stored, list) and alone not in patch else []
    for item in patch:
        if item == alone:
            continue
        if key == PLAIN:
            result += [item] if item not in result else []
        else:
            _merge_item(result, item, key, lists, path)
    return result


def _merge_item(items: list[Any], patch: Any, key: str, lists: Mapping[str, str], path: str) -> None:
    """Merge one item into the one that has the same value in `key`, or add it."""
    if not isinstance(patch, Mapping):
        raise ConfigError(f"{shown(patch)} where a mapping was expected", path)
    if key not in patch:
        raise ConfigError(f"an item has no {key}, by which it is known which one is meant", path)
    place = _index(items, key, patch[key])
    new = _mapping(None if place is None else items[place], patch, lists, path)
    if place is None:
        items += [] if new is None else [new]
    else:
        items[place : place + 1] = [] if new is None else [new]


def _index(items: Iterable[Any], key: str, value: Any) -> int | None:
    return next((i for i, item in enumerate(items) if isinstance(item, Mapping) and item.get(key) == value), None)


def _directive(patch: Mapping[str, Any], path: str) -> str:
    found = patch.get(DIRECTIVE, "merge")
    if found not in DIRECTIVES:
        raise ConfigError(f"{shown(found)} is not one of {', '.join(DIRECTIVES)}", join(path, DIRECTIVE))
    return str(found)
