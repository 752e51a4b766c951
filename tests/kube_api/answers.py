"""One request for resources after the other: what is answered, and what is written for it.

Call + query + body ──► list, get, create, update, patch, delete ──► Answer (status, bytes, headers)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import yaml

from kube_api import lists, patches, protobuf
from kube_api.faults import Faults
from kube_api.kinds import NAMESPACES, Kind, Kinds
from kube_api.objects import Objects, Options, Written
from kube_api.paths import Call
from kube_api.selectors import Selection, selection
from kube_api.statuses import (
    Refusal,
    bad_request,
    conflict,
    invalid,
    method_not_allowed,
    required,
    success,
    too_large_revision,
    unsupported_media,
    unsupported_value,
)
from kube_api.storage import Record, Storage

JSON, YAML = "application/json", "application/yaml"


class NoSuchPath(Exception):
    """The answer is a 404 in plain text."""


@dataclass
class Answer:
    status: int
    body: bytes
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def decoded(body: bytes, content_type: str) -> dict[str, Any]:
    """The object in a body. Raises Refusal: 400, 415."""
    media = content_type.partition(";")[0].strip().lower() or JSON
    if media == protobuf.MEDIA:
        return protobuf.decoded(body)
    if media not in (JSON, YAML, "application/x-yaml", "text/yaml"):
        raise unsupported_media((JSON, YAML))
    return document(body, media != JSON)


def document(body: bytes, as_yaml: bool) -> dict[str, Any]:
    try:
        found = yaml.safe_load(body) if as_yaml else msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise bad_request(f"error decoding the request's body: {error}") from None
    if not isinstance(found, dict):
        raise bad_request(
            "couldn't get version/kind; json parse error: json: cannot unmarshal into Go value of an object"
        )
    return found


def options(query: Mapping[str, str], method: str, content_type: str) -> Options:
    """Raises Refusal (422) for values that are none."""
    dry, strictness = query.get("dryRun", ""), query.get("fieldValidation", "") or "Warn"
    if dry not in ("", "All"):
        raise _invalid_option("dryRun", dry, ("All",))
    if strictness not in ("Strict", "Warn", "Ignore"):
        raise _invalid_option("fieldValidation", strictness, ("Ignore", "Strict", "Warn"))
    return Options(
        dry_run=dry == "All",
        strictness=strictness,
        manager=query.get("fieldManager", ""),
        force=query.get("force", "") in ("1", "true", "True", "t"),
    )


def _invalid_option(name: str, value: str, allowed: tuple[str, ...]) -> Refusal:
    return invalid("meta.k8s.io", "WriteOptions", "", [unsupported_value(name, f'"{value}"', allowed)])


class Answers:
    def __init__(self, storage: Storage, kinds: Kinds, faults: Faults) -> None:
        self.storage = storage
        self.kinds = kinds
        self.faults = faults
        self.objects = Objects(storage, kinds)

    def kind_of(self, call: Call) -> Kind:
        """Raises NoSuchPath, and Refusal (405) for what this path cannot do."""
        kind = self.kinds.find(call.group, call.version, call.plural)
        if kind is None or (call.sub and call.sub not in kind.subresources):
            raise NoSuchPath
        if call.namespace and not kind.namespaced:
            raise NoSuchPath
        if call.name and kind.namespaced and not call.namespace:
            raise NoSuchPath
        if not call.verb or (not call.name and call.verb in ("update", "patch")):
            raise method_not_allowed()
        if call.verb == "create" and call.name and call.sub not in ("binding", "eviction", "token"):
            raise method_not_allowed()
        if call.verb == "create" and kind.namespaced and not call.namespace:
            raise method_not_allowed()
        if call.sub and call.verb == "delete":
            raise method_not_allowed()
        return kind

    def selection(self, kind: Kind, call: Call, query: Mapping[str, str]) -> Selection:
        what = f"{call.group}/{call.version}, Resource={call.plural}"
        own = query.get("labelSelector", ""), query.get("fieldSelector", "")
        return selection(call.namespace, *own, what=what, known=kind.fields, namespaced=kind.namespaced)

    def answer(self, call: Call, path: str, query: Mapping[str, str], body: bytes, content_type: str) -> Answer:
        """Everything but watches. Raises Refusal and NoSuchPath."""
        kind = self.kind_of(call)
        if call.verb == "list":
            chosen = self.selection(kind, call, query)
            lie = self.faults.lie(path, any_revision=query.get("resourceVersion") == "0")
            return Answer(200, lists.listing(self.storage, kind, chosen, query, lie))
        if call.verb == "get":
            return self._get(kind, call, query)
        asked = options(query, call.verb, content_type)
        if call.verb == "create":
            done = self._create(kind, call, decoded(body, content_type), asked)
        elif call.verb == "update":
            done = self._update(kind, call, decoded(body, content_type), asked)
        elif call.verb == "patch":
            done = self._patch(kind, call, body, content_type, asked)
        else:
            return self._delete(kind, call, query, decoded(body, content_type) if body else {}, asked)
        return Answer(201 if done.created else 200, done.body, warnings=asked.warnings)

    def _get(self, kind: Kind, call: Call, query: Mapping[str, str]) -> Answer:
        revision = lists.revision_of(query.get("resourceVersion", ""))
        if revision is not None and revision > self.storage.revision:
            raise too_large_revision(revision, self.storage.revision)
        return Answer(200, self.objects.get(kind, call.namespace, call.name).full(kind))

    # --- create and its subresources

    def _create(self, kind: Kind, call: Call, obj: dict[str, Any], asked: Options) -> Written:
        if call.sub == "binding":
            return self._bind(kind, call, obj, asked)
        if call.sub == "eviction":
            return self._evict(kind, call, obj, asked)
        return self.objects.create(kind, call.namespace, obj, asked)

    def _bind(self, kind: Kind, call: Call, obj: dict[str, Any], asked: Options) -> Written:
        record = self.objects.get(kind, call.namespace, call.name)
        target = (obj.get("target") or {}).get("name") or ""
        if not target:
            raise invalid("", "Binding", call.name, [required("target.name")])
        pod = record.object(kind)
        if pod["spec"].get("nodeName"):
            why = f'pod {call.name} is already assigned to node "{pod["spec"]["nodeName"]}"'
            raise conflict("", "pods/binding", call.name, why)
        pod["spec"]["nodeName"] = target
        status = pod.setdefault("status", {})
        status.setdefault("conditions", []).append({"type": "PodScheduled", "status": "True"})
        if not asked.dry_run:
            self.storage.put(kind, pod)
        return Written(msgspec.json.encode(_succeeded()), created=True)

    def _evict(self, kind: Kind, call: Call, obj: dict[str, Any], asked: Options) -> Written:
        record = self.objects.get(kind, call.namespace, call.name)
        budgets = self.kinds.of("policy/poddisruptionbudgets")
        assert budgets is not None
        for other in self.storage.table(budgets.resource).records.values():
            budget = other.object(budgets)
            own = other.namespace == call.namespace and _selects(budget["spec"].get("selector"), record.labels)
            if own and (budget.get("status") or {}).get("disruptionsAllowed", 0) < 1:
                words = "Cannot evict pod as it would violate the pod's disruption budget."
                raise Refusal(429, "TooManyRequests", words, {"causes": [{"reason": "DisruptionBudget"}]})
        self.objects.delete(kind, record, obj.get("deleteOptions") or {}, asked)
        return Written(msgspec.json.encode(_succeeded()), created=True)

    # --- update and patch

    def _update(self, kind: Kind, call: Call, obj: dict[str, Any], asked: Options) -> Written:
        if call.sub == "finalize":
            return self._finalize(kind, call, obj, asked)
        return self.objects.update(kind, call.namespace, call.name, obj, asked, call.sub)

    def _finalize(self, kind: Kind, call: Call, obj: dict[str, Any], asked: Options) -> Written:
        record = self.objects.get(kind, call.namespace, call.name)
        found = record.object(kind)
        found["spec"] = {"finalizers": (obj.get("spec") or {}).get("finalizers") or []}
        if kind.resource == NAMESPACES and not asked.dry_run:
            return Written(self.storage.put(kind, found).full(kind))
        return Written(record.full(kind))

    def _patch(self, kind: Kind, call: Call, body: bytes, content_type: str, asked: Options) -> Written:
        media = content_type.partition(";")[0].strip().lower()
        allowed = [patches.JSON_PATCH, patches.MERGE, patches.APPLY]
        if not kind.custom:
            allowed.insert(2, patches.STRATEGIC)
        if media not in allowed:
            raise unsupported_media(allowed)
        if media == patches.APPLY:
            return self._apply(kind, call, document(body, True), asked)
        record = self.objects.get(kind, call.namespace, call.name)
        try:
            patch = msgspec.json.decode(body)
        except msgspec.DecodeError as error:
            raise bad_request(f"error decoding patch: {error}") from None
        old = record.object(kind)
        if media == patches.JSON_PATCH:
            new = patches.json_patch(old, patch)
        elif not isinstance(patch, dict):
            raise bad_request(
                "error decoding patch: json: cannot unmarshal into Go value of type map[string]interface {}"
            )
        elif media == patches.STRATEGIC:
            new = patches.strategic(old, patch)
        else:
            new = patches.merge(old, patch)
        return self._replaced(kind, call, record, new, asked)

    def _replaced(
        self, kind: Kind, call: Call, record: Record, new: Any, asked: Options, applied: dict[str, Any] | None = None
    ) -> Written:
        if not isinstance(new, dict) or not isinstance(new.get("metadata"), dict):
            raise bad_request("the patch leaves no object")
        self.objects._check_identity(kind, call.namespace, call.name, new)
        return self.objects.replace(kind, record, new, asked, call.sub, applied)

    def _apply(self, kind: Kind, call: Call, wanted: dict[str, Any], asked: Options) -> Written:
        if not asked.manager:
            raise invalid("meta.k8s.io", "PatchOptions", "", [required("fieldManager", "is required for apply patch")])
        if "managedFields" in (wanted.get("metadata") or {}):
            raise bad_request("metadata.managedFields must be nil")
        if not wanted.get("apiVersion") or not wanted.get("kind"):
            raise bad_request("invalid object type: apiVersion and kind must be set for apply")
        record = self.storage.get(kind, f"{call.namespace}/{call.name}" if call.namespace else call.name)
        if record is None:
            if call.sub:
                self.objects.get(kind, call.namespace, call.name)
            made = copy.deepcopy(wanted)
            self.objects._check_identity(kind, call.namespace, call.name, made)
            written = self.objects.create(kind, call.namespace, made, asked)
            if not asked.dry_run:
                record = self.objects.get(kind, call.namespace, call.name)
                _, record.applied = patches.apply({}, wanted, {}, asked.manager, force=True, keyed=not kind.custom)
            return written
        new, applied = patches.apply(
            record.object(kind), wanted, record.applied, asked.manager, force=asked.force, keyed=not kind.custom
        )
        for name in ("uid", "resourceVersion"):
            if (wanted.get("metadata") or {}).get(name):
                new["metadata"][name] = wanted["metadata"][name]
        return self._replaced(kind, call, record, new, asked, applied)

    # --- delete

    def _delete(self, kind: Kind, call: Call, query: Mapping[str, str], body: dict[str, Any], asked: Options) -> Answer:
        if body.get("dryRun") == ["All"]:
            asked.dry_run = True
        for name in ("propagationPolicy", "gracePeriodSeconds", "orphanDependents"):
            if name in query and name not in body:
                body[name] = query[name] if name == "propagationPolicy" else msgspec.json.decode(query[name])
        policy = body.get("propagationPolicy")
        if policy not in (None, "Background", "Foreground", "Orphan"):
            raise _invalid_option("propagationPolicy", str(policy), ("Background", "Foreground", "Orphan"))
        if call.verb == "deletecollection":
            return self._delete_collection(kind, call, query, body, asked)
        record = self.objects.get(kind, call.namespace, call.name)
        written, gone = self.objects.delete(kind, record, body, asked)
        if gone and not kind.returns_deleted:
            return Answer(200, msgspec.json.encode(success(kind.group, kind.plural, record.name, record.uid)))
        return Answer(202 if written.accepted else 200, written.body)

    def _delete_collection(
        self, kind: Kind, call: Call, query: Mapping[str, str], body: dict[str, Any], asked: Options
    ) -> Answer:
        if kind.resource == NAMESPACES:
            raise method_not_allowed()
        if kind.namespaced and not call.namespace:
            raise method_not_allowed()
        chosen = self.selection(kind, call, query)
        listed = lists.listing(self.storage, kind, chosen, {}, None)
        for record in list(self.storage.snapshot(kind.resource, self.storage.revision)):
            if chosen.holds(record.namespace, record.name, record.labels, record.fields):
                self.objects.delete(kind, record, body, asked)
        return Answer(200, listed)


def _succeeded() -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def _selects(selector: Any, labels: Mapping[str, str]) -> bool:
    """A LabelSelector of a budget; absent selects nothing."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for one in selector.get("matchExpressions") or ():
        own, values = labels.get(one["key"]), one.get("values") or []
        holds = {
            "In": own in values,
            "NotIn": own not in values,
            "Exists": own is not None,
            "DoesNotExist": own is None,
        }
        if not holds[one["operator"]]:
            return False
    return True
