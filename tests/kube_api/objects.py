"""Writing objects as the API server does: admission of a request's body, create, update, delete.

    body ──decoded──► metadata, schema, own rules ──► Storage.put
    update: read ─► revision and uid as the caller saw them? ─► what this path may change ─► put, unless nothing changed
    delete: preconditions ─► finalizers or grace: only marked ─► else Storage.remove

Nothing here waits, so that a read and the write after it are one step.
"""

from __future__ import annotations

import copy
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kube_api import definitions, natives, schemas, validation
from kube_api.kinds import CRDS, NAMESPACES, PODS, Kind, Kinds
from kube_api.statuses import (
    Cause,
    Refusal,
    already_exists,
    bad_request,
    conflict,
    forbidden,
    forbidden_field,
    invalid,
    invalid_value,
    not_found,
)
from kube_api.storage import Record, Storage, encoded

LARGEST = 1_572_864
"""Bytes that etcd takes in one request."""

LASTING = ("default", "kube-system", "kube-public")
"""Namespaces that nobody may delete."""


@dataclass
class Options:
    """Of a write. `strictness`: fieldValidation. `warnings` are for the answer's headers."""

    dry_run: bool = False
    strictness: str = "Warn"
    manager: str = ""
    force: bool = False
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Written:
    """What a write answers: the object, and whether it was made now."""

    body: bytes
    created: bool = False
    accepted: bool = False


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Objects:
    def __init__(self, storage: Storage, kinds: Kinds) -> None:
        self.storage = storage
        self.kinds = kinds

    def get(self, kind: Kind, namespace: str, name: str) -> Record:
        record = self.storage.get(kind, f"{namespace}/{name}" if namespace else name)
        if record is None:
            raise not_found(kind.group, kind.plural, name)
        return record

    # --- create

    def create(self, kind: Kind, namespace: str, obj: dict[str, Any], options: Options) -> Written:
        self._check_identity(kind, namespace, "", obj)
        metadata = obj["metadata"]
        if metadata.get("resourceVersion"):
            raise Refusal(500, "", "resourceVersion should not be set on objects to be created")
        if kind.namespaced:
            self._check_namespace(kind, namespace, metadata.get("name") or "")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = validation.generated_name(metadata["generateName"])
        for name in ("selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "generation"):
            metadata.pop(name, None)
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
        if kind.generation:
            metadata["generation"] = 1
        if kind.has_status and not kind.status_on_create:
            obj.pop("status", None)
        self._admit(kind, obj, None, options)
        key = f"{namespace}/{metadata['name']}" if namespace else metadata["name"]
        if self.storage.get(kind, key) is not None:
            raise already_exists(kind.group, kind.plural, metadata["name"])
        return Written(self._write(kind, obj, options), created=True)

    # --- update

    def update(
        self, kind: Kind, namespace: str, name: str, obj: dict[str, Any], options: Options, sub: str = ""
    ) -> Written:
        """PUT. Makes the object where its kind allows that."""
        self._check_identity(kind, namespace, name, obj)
        record = self.storage.get(kind, f"{namespace}/{name}" if namespace else name)
        if record is None:
            if not kind.create_on_update or sub:
                raise not_found(kind.group, kind.plural, name)
            if obj["metadata"].get("uid"):
                raise conflict(
                    kind.group,
                    kind.plural,
                    name,
                    f"StorageError: invalid object, Code: 4, Key: /registry/{kind.plural}/{namespace}/{name}, "
                    f"ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: "
                    f"{obj['metadata']['uid']}, UID in object meta: ",
                )
            obj["metadata"].pop("resourceVersion", None)
            return self.create(kind, namespace, obj, options)
        if obj["metadata"].get("resourceVersion") in (None, "", "0") and not kind.unconditional:
            cause = invalid_value("metadata.resourceVersion", "0x0", "must be specified for an update")
            raise invalid(kind.group, kind.plural, name, [cause])
        return self.replace(kind, record, obj, options, sub)

    def replace(
        self,
        kind: Kind,
        record: Record,
        obj: dict[str, Any],
        options: Options,
        sub: str = "",
        applied: dict[str, Any] | None = None,
    ) -> Written:
        """The stored object becomes what `obj` says, as far as this path may change it."""
        old = record.object(kind)
        metadata, before = obj["metadata"], old["metadata"]
        self._check_seen(kind, record, metadata)
        if sub == "status":
            obj = _status_only(kind, obj, old)
        elif kind.has_status:
            obj.pop("status", None)
            if "status" in old:
                obj["status"] = copy.deepcopy(old["status"])
        metadata = obj["metadata"]
        for name in ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"):
            metadata.pop(name, None)
            if name in before:
                metadata[name] = before[name]
        for name in ("selfLink", "managedFields"):
            metadata.pop(name, None)
        metadata["resourceVersion"] = before["resourceVersion"]
        if before.get("generateName"):
            metadata.setdefault("generateName", before["generateName"])
        self._admit(kind, obj, old, options)
        if kind.generation and _described(kind, obj) != _described(kind, old):
            metadata["generation"] = before.get("generation", 0) + 1
        if obj == old and (applied is None or applied == record.applied):
            return Written(record.full(kind))
        if before.get("deletionTimestamp") and not metadata.get("finalizers") and _grace_is_over(kind, obj):
            return Written(self._finish(kind, record, obj, options))
        return Written(self._write(kind, obj, options, applied))

    def _check_seen(self, kind: Kind, record: Record, metadata: dict[str, Any]) -> None:
        """The caller speaks of this object in this state, as far as the body says so."""
        uid = metadata.get("uid")
        if uid and uid != record.uid:
            why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {record.uid}"
            raise conflict(kind.group, kind.plural, record.name, why)
        seen = metadata.get("resourceVersion")
        if seen and not str(seen).isdigit():
            cause = invalid_value("metadata.resourceVersion", f'"{seen}"', "must be an unsigned integer")
            raise invalid(kind.group, kind.kind, record.name, [cause])
        if seen and seen != "0" and int(seen) != record.revision:
            raise conflict(kind.group, kind.plural, record.name)

    # --- delete

    def delete(self, kind: Kind, record: Record, body: dict[str, Any], options: Options) -> tuple[Written, bool]:
        """Take the object away, or mark it. Returns its last state, and whether it is gone."""
        conditions = body.get("preconditions") or {}
        wanted, revision = conditions.get("uid"), conditions.get("resourceVersion")
        for name, value, own in (("UID", wanted, record.uid), ("ResourceVersion", revision, str(record.revision))):
            if value is not None and value != own:
                happened = "deleted and then recreated" if name == "UID" else "modified"
                why = (
                    f"the {name} in the precondition ({value}) does not match the {name} in record ({own}). The object "
                    f"might have been {happened}"
                )
                raise conflict(kind.group, kind.plural, record.name, why)
        if kind.resource == NAMESPACES and record.name in LASTING:
            raise forbidden("", "namespaces", record.name, "this namespace may not be deleted")
        obj = record.object(kind)
        metadata = obj["metadata"]
        finalizers = list(metadata.get("finalizers") or ())
        policy = body.get("propagationPolicy") or ("Orphan" if body.get("orphanDependents") else "Background")
        mark = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}.get(policy)
        if mark and mark not in finalizers and "deletionTimestamp" not in metadata:
            finalizers.append(mark)
        grace = self._grace(kind, obj, body)
        gone = not finalizers and grace == 0 and kind.resource != NAMESPACES
        if gone:
            return Written(self._finish(kind, record, obj, options)), True
        marked = copy.deepcopy(obj)
        if finalizers:
            marked["metadata"]["finalizers"] = finalizers
        self._mark(kind, marked, grace)
        if marked == obj:
            return Written(record.full(kind)), False
        body_now = self._write(kind, marked, options)
        return Written(body_now, accepted=mark is not None), False

    def _mark(self, kind: Kind, obj: dict[str, Any], grace: int) -> None:
        metadata = obj["metadata"]
        already = metadata.get("deletionGracePeriodSeconds")
        if "deletionTimestamp" not in metadata or (kind.resource == PODS and already is not None and grace < already):
            moment = datetime.now(UTC).timestamp() + grace
            metadata["deletionTimestamp"] = datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            metadata["deletionGracePeriodSeconds"] = grace
            if kind.generation:
                metadata["generation"] = metadata.get("generation", 0) + 1
        if kind.resource == NAMESPACES:
            obj["status"] = {**(obj.get("status") or {}), "phase": "Terminating"}

    def _grace(self, kind: Kind, obj: dict[str, Any], body: dict[str, Any]) -> int:
        """Seconds until the object goes; only pods that run somewhere have any."""
        if kind.resource != PODS:
            return 0
        if not (obj.get("spec") or {}).get("nodeName") or (obj.get("status") or {}).get("phase") in (
            "Succeeded",
            "Failed",
        ):
            return 0
        asked = body.get("gracePeriodSeconds")
        if asked is None:
            asked = obj["spec"].get("terminationGracePeriodSeconds", 30)
        return max(0, int(asked))

    def _finish(self, kind: Kind, record: Record, obj: dict[str, Any], options: Options) -> bytes:
        if options.dry_run:
            return kind.header + encoded(obj)[1:]
        if kind.resource == CRDS:
            self._forget_kind(record.name)
        return self.storage.remove(kind, record.key).full(kind)

    def _forget_kind(self, name: str) -> None:
        """A definition goes: its objects go before it, its watches hear of that."""
        plural, _, group = name.partition(".")
        kind = self.kinds.of(f"{group}/{plural}")
        if kind is not None:
            for key in list(self.storage.table(kind.resource).keys):
                self.storage.remove(kind, key)
        self.kinds.replace_custom(name, [])

    # --- what all of them share

    def _check_identity(self, kind: Kind, namespace: str, name: str, obj: dict[str, Any]) -> None:
        """Kind, version, namespace and name in the body are those of the path; what is missing is filled in."""
        own_version, own_kind = obj.get("apiVersion"), obj.get("kind")
        if kind.custom and not (own_version and own_kind):
            raise bad_request(f"Object '{'apiVersion' if own_kind else 'Kind'}' is missing in the request's body")
        if own_version and own_version != kind.api_version:
            raise bad_request(
                f"the API version in the data ({own_version}) does not match the expected API version "
                f"({kind.api_version})"
            )
        if own_kind and own_kind != kind.kind:
            raise bad_request(
                f'{own_kind} in version "{kind.version}" cannot be handled as a {kind.kind}: no kind "{own_kind}" is '
                f'registered for version "{kind.api_version}"'
            )
        obj["apiVersion"], obj["kind"] = kind.api_version, kind.kind
        metadata = obj.setdefault("metadata", {})
        why = natives.metadata_undecodable(metadata)
        if why:
            raise bad_request(f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {why}')
        if not kind.namespaced:
            metadata.pop("namespace", None)
        elif metadata.setdefault("namespace", namespace) != namespace:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        if name and metadata.setdefault("name", name) != name:
            raise bad_request(
                f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
            )

    def _check_namespace(self, kind: Kind, namespace: str, name: str) -> None:
        namespaces = self.kinds.of(NAMESPACES)
        assert namespaces is not None
        record = self.storage.get(namespaces, namespace)
        if record is None:
            raise not_found("", "namespaces", namespace)
        if "deletionTimestamp" in record.object(namespaces)["metadata"]:
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            cause = Cause("metadata.namespace", "NamespaceTerminating", f"namespace {namespace} is being terminated")
            raise forbidden(kind.group, kind.plural, name, why, [cause])

    def _admit(self, kind: Kind, obj: dict[str, Any], old: dict[str, Any] | None, options: Options) -> None:
        """Prune, fill in and validate. Raises Refusal 400 for what cannot be read, 422 for what is wrong."""
        unknown = natives.tidy_metadata(obj["metadata"])
        if kind.custom:
            assert kind.schema is not None
            unknown += schemas.prune(kind.schema, obj)
            schemas.default(kind.schema, obj)
        else:
            unknown += natives.read(kind, obj)
        if unknown and options.strictness == "Strict":
            words = ", ".join(f'unknown field "{path}"' for path in unknown)
            raise bad_request(
                f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: strict decoding error: '
                f"{words}"
            )
        if options.strictness == "Warn":
            options.warnings += [f'unknown field "{path}"' for path in unknown]
        problems = validation.metadata_problems(kind, obj) if old is None or obj["metadata"] != old["metadata"] else []
        if old is not None and old["metadata"].get("deletionTimestamp"):
            added = set(obj["metadata"].get("finalizers") or ()) - set(old["metadata"].get("finalizers") or ())
            if added:
                why = "no new finalizers can be added if the object is being deleted, found new finalizers "
                why += str(sorted(added))
                problems.append(forbidden_field("metadata.finalizers", why))
        if kind.custom and kind.schema is not None:
            rest = {name: value for name, value in obj.items() if name != "metadata"}
            problems += schemas.problems(kind.schema, rest)
        elif kind.resource == CRDS:
            problems += definitions.problems(obj, old)
        else:
            problems += validation.spec_problems(kind, obj, old)
        if problems:
            raise invalid(kind.group, kind.kind, obj["metadata"].get("name") or "", problems)
        natives.complete(kind, obj, old)
        if kind.resource == CRDS:
            definitions.complete(obj)

    def _write(self, kind: Kind, obj: dict[str, Any], options: Options, applied: dict[str, Any] | None = None) -> bytes:
        body = encoded(obj)
        if len(body) > LARGEST:
            raise Refusal(500, "", "etcdserver: request is too large")
        if options.dry_run:
            return kind.header + body[1:]
        record = self.storage.put(kind, obj, applied)
        if kind.resource == CRDS:
            self.kinds.replace_custom(record.name, definitions.kinds(obj))
            finished = definitions.established(obj, now())
            if finished != obj:
                self.storage.put(kind, finished)
        return record.full(kind)


def _grace_is_over(kind: Kind, obj: dict[str, Any]) -> bool:
    return kind.resource != PODS or obj["metadata"].get("deletionGracePeriodSeconds", 0) == 0


def _described(kind: Kind, obj: dict[str, Any]) -> dict[str, Any]:
    """What a generation counts the changes of; of a custom resource without /status the status, too."""
    own = ("metadata", "kind", "apiVersion", *(("status",) if kind.has_status or not kind.custom else ()))
    return {name: value for name, value in obj.items() if name not in own}


def _status_only(kind: Kind, obj: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """Of a write to /status: custom resources change nothing but it; built-in kinds labels and annotations, too."""
    found = copy.deepcopy(old)
    if "status" in obj:
        found["status"] = obj["status"]
    else:
        found.pop("status", None)
    if not kind.custom:
        found["metadata"] = {
            **obj["metadata"],
            "name": old["metadata"]["name"],
            **({"ownerReferences": old["metadata"]["ownerReferences"]} if "ownerReferences" in old["metadata"] else {}),
        }
    return found
