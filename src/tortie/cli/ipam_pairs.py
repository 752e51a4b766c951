"""IPAM's objects as keys and values of Calico's etcd, which is how an exported datastore carries them. Pure.

{"blocks": [{"Key": "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26", "Value": {...}, "TTL": 0}, ...], ...}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tortie.base.errors import ConfigError, NotSupported
from tortie.model.document import check
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMConfig, IPAMHandle
from tortie.model.meta import Resource, changed
from tortie.store.etcd import layout as etcd_layout

GROUPS: Mapping[type[Resource], str] = {
    BlockAffinity: "block_affinities",
    IPAMBlock: "blocks",
    IPAMHandle: "handles",
    IPAMConfig: "config",
}
"""Under which name a kind is in the document; `config` is one pair, the others are lists. Source: Calico's exporter."""


def document(objects: Iterable[Resource]) -> dict[str, Any]:
    """The pairs of all objects, by group. Raises ConfigError for an object that is not named as it must be."""
    found: dict[str, Any] = {}
    for one in objects:
        pair = {"Key": etcd_layout.key(one).decode(), "Value": json.loads(etcd_layout.value(one)), "TTL": 0}
        if isinstance(one, IPAMConfig):
            found[GROUPS[IPAMConfig]] = pair
        else:
            found.setdefault(GROUPS[type(one)], []).append(pair)
    return found


def objects_of(found: Mapping[str, Any]) -> list[Resource]:
    """The objects of a document. Raises ConfigError naming the pair."""
    read: list[Resource] = []
    for kind, group in GROUPS.items():
        pairs = found.get(group) or ()
        for i, pair in enumerate([pairs] if isinstance(pairs, dict) else pairs):
            try:
                read.append(_object(kind, pair))
            except (ConfigError, NotSupported) as error:
                raise ConfigError(str(error), group if isinstance(pairs, dict) else f"{group}[{i}]") from None
    return read


def _object(kind: type[Resource], pair: Any) -> Resource:
    key = pair.get("Key") if isinstance(pair, dict) else None
    if not isinstance(key, str):
        raise ConfigError('must be text, as in "/calico/ipam/v2/config"', "Key")
    value = json.dumps(pair.get("Value") or {}).encode()
    one = changed(etcd_layout.read(kind, key.encode(), value, 0, 0), uid="", resource_version="")
    check(one)
    if etcd_layout.key(one) != key.encode():
        raise ConfigError(f'"{key}" is not the key of a {kind.KIND.kind}', "Key")
    return one
