"""Writes to a Kubernetes API server, each about a state that was read: the server refuses what is outdated.

custom resource   PUT, whole, at the revision read; its status under /status where that is a path of its own
native kind       PATCH with what differs, at the revision read; its status under /status
K8sNode           the same; annotations and status in one PATCH under /status where nothing else differs
Node, endpoint    PATCH of annotations under /status, as upstream does: what its roles allow
"""

from __future__ import annotations

from typing import Any

import msgspec

from tortie.base.errors import NotFound
from tortie.store.kube import crd, natives, pods
from tortie.store.kube.api import MERGE_PATCH, Api
from tortie.store.kube.decoding import Document, identity
from tortie.store.kube.forms import Endpoints, Form, Nodes
from tortie.store.kube.overlay import merge_patch


def is_kind(error: NotFound) -> bool:
    """Whether it is the kind, or the path, that the server does not know, not the object."""
    return str(error).startswith("the server does not know")


async def written(api: Api, form: Form[Any], stored: Document, wanted: Document, revision: str) -> bytes:
    """Write a document over what was read; `revision` is the caller's, empty if any will do. The object as it is then.

    Raises Conflict, NotFound, ConfigError, Unavailable.
    """
    metadata = stored["metadata"]
    if isinstance(form, Nodes | Endpoints):
        uid = metadata.get("uid") if isinstance(form, Endpoints) else None
        at = {"uid": uid, "resourceVersion": metadata["resourceVersion"] if revision else None}
        return await patched(api, _path(form, stored, "status"), merge_patch(stored, wanted), at)
    if form.kind in natives.ANNOTATED_BY_STATUS and _annotated(stored) == _annotated(wanted):
        at = {"resourceVersion": metadata["resourceVersion"]}
        return await patched(api, _path(form, stored, "status"), merge_patch(stored, wanted), at)
    main = {name: value for name, value in wanted.items() if name != "status"}
    raw = b""
    if main != {name: value for name, value in stored.items() if name != "status"}:
        if form.puts:
            raw = await api.request("PUT", _path(form, stored), body=msgspec.json.encode(wanted))
            return await with_status(api, form, raw, wanted)
        difference = merge_patch({name: value for name, value in stored.items() if name != "status"}, main)
        raw = await patched(api, _path(form, stored), difference, {"resourceVersion": metadata["resourceVersion"]})
        metadata = msgspec.json.decode(raw)["metadata"]
    if wanted.get("status") == stored.get("status"):
        return raw
    return await _status(api, form, stored, wanted | {"metadata": metadata})


async def with_status(api: Api, form: Form[Any], raw: bytes, wanted: Document) -> bytes:
    """After a write that may have left the status out: write that, too."""
    have = msgspec.json.decode(raw)
    if wanted.get("status") is None or have.get("status") == wanted["status"]:
        return raw
    return await _status(api, form, have, have | {"status": wanted["status"]})


def with_receipt(document: Document, receipt: str) -> Document:
    """The same, told from what another writer would write."""
    metadata = document["metadata"]
    annotations = {**(metadata.get("annotations") or {}), crd.RECEIPT: receipt}
    return document | {"metadata": metadata | {"annotations": annotations}}


def has_receipt(raw: bytes, receipt: str) -> bool:
    return (identity(raw).annotations or {}).get(crd.RECEIPT) == receipt


async def removed(api: Api, form: Form[Any], raw: bytes) -> bytes:
    """Delete what was read. Of an endpoint's pod only what makes it one: the answer is the pod without it.

    Raises Conflict, NotFound, Unavailable.
    """
    stored = msgspec.json.decode(raw)
    metadata = stored["metadata"]
    if isinstance(form, Endpoints):
        at = {"uid": metadata.get("uid"), "resourceVersion": metadata["resourceVersion"]}
        cleared = {"metadata": {"annotations": pods.CLEARED}}
        return await patched(api, _path(form, stored, "status"), cleared, at)
    preconditions = {"resourceVersion": metadata["resourceVersion"]}
    options = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": preconditions}
    await api.request("DELETE", _path(form, stored), body=msgspec.json.encode(options))
    return b""


async def patched(api: Api, path: str, patch: Document, at: Document) -> bytes:
    """`at` must still hold of the object's metadata. Raises Conflict, NotFound, Unavailable; ConfigError for a UID."""
    metadata = patch.get("metadata", {}) | {name: value for name, value in at.items() if value}
    body = msgspec.json.encode(patch | {"metadata": metadata})
    return await api.request("PATCH", path, body=body, content_type=MERGE_PATCH)


async def _status(api: Api, form: Form[Any], have: Document, wanted: Document) -> bytes:
    """Where a custom resource has no path of its own for its status, that is a part of the object."""
    if not form.puts:
        at = {"resourceVersion": wanted["metadata"]["resourceVersion"]}
        difference = merge_patch(have.get("status") or {}, wanted.get("status") or {})
        return await patched(api, _path(form, wanted, "status"), {"status": difference}, at)
    body = msgspec.json.encode(wanted)
    try:
        return await api.request("PUT", _path(form, wanted, "status"), body=body)
    except NotFound as error:
        if not is_kind(error):
            raise
        return await api.request("PUT", _path(form, wanted), body=body)


def _annotated(document: Document) -> Document:
    """All of it that its status and its annotations are not."""
    metadata = {name: value for name, value in document["metadata"].items() if name != "annotations"}
    return {name: value for name, value in document.items() if name != "status"} | {"metadata": metadata}


def _path(form: Form[Any], document: Document, part: str = "") -> str:
    metadata = document["metadata"]
    return form.place.object(metadata["name"], metadata.get("namespace", ""), part)
