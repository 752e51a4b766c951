"""What happens behind the writes: dependents follow their owners, a namespace takes its contents with it, pods end.

Storage.events ──► an owner went: delete what only it owned
               ──► a namespace is Terminating: delete what is in it, then itself
               ──► a pod's grace is over: gone (the double has no kubelet that would say so)
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime

from kube_api.kinds import NAMESPACES, PODS, Kind
from kube_api.objects import Objects, Options
from kube_api.storage import Event, Record

TICK = 0.25
"""Seconds between looks at pods whose grace may be over."""


class Collector:
    """`kubelet`: pods end by themselves when their grace is over."""

    def __init__(self, objects: Objects, *, kubelet: bool) -> None:
        self.objects = objects
        self.storage = objects.storage
        self.kubelet = kubelet
        self.ending: set[str] = set()
        """Keys of pods that have a deletionTimestamp."""

    async def run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.storage.happened.wait(), TICK if self.ending else None)
            self.storage.happened.clear()
            events, self.storage.events[:] = list(self.storage.events), []
            for kind, event in events:
                self._look(kind, event)
            self._end_pods()
            await asyncio.sleep(0)

    def _look(self, kind: Kind, event: Event) -> None:
        record = event.record
        if event.type == "DELETED":
            self._orphans(record.uid)
            for owner in record.owners:
                self._look_again(owner)
            if kind.namespaced:
                self._namespace(record.namespace)
            return
        marked = b'"deletionTimestamp"' in record.body
        if record.owners and not marked and not any(owner in self.storage.by_uid for owner in record.owners):
            self._delete(kind, record.key)
        if marked:
            self._marked(kind, record)

    def _marked(self, kind: Kind, record: Record) -> None:
        if kind.resource == NAMESPACES:
            self._namespace(record.name)
        elif kind.resource == PODS:
            self.ending.add(record.key)
        current = self.storage.get(kind, record.key)
        finalizers = (current.object(kind)["metadata"].get("finalizers") or []) if current is not None else []
        if "foregroundDeletion" in finalizers:
            for resource, key in sorted(self.storage.dependents.get(record.uid, ())):
                dependent = self.objects.kinds.of(resource)
                if dependent is not None:
                    self._delete(dependent, key)
            if not self.storage.dependents.get(record.uid):
                self._unmark(kind, record.key, "foregroundDeletion")
        if "orphan" in finalizers:
            self._let_go(record.uid)
            self._unmark(kind, record.key, "orphan")

    def _orphans(self, uid: str) -> None:
        """Those of which the object with this uid was the last owner."""
        for resource, key in sorted(self.storage.dependents.get(uid, ())):
            kind = self.objects.kinds.of(resource)
            record = self.storage.get(kind, key) if kind is not None else None
            if kind is None or record is None:
                continue
            if not any(owner in self.storage.by_uid for owner in record.owners):
                self._delete(kind, key)

    def _look_again(self, uid: str) -> None:
        """The owner may be waiting for its dependents to go."""
        kind, key = self.storage.by_uid.get(uid, (None, ""))
        record = self.storage.get(kind, key) if kind is not None else None
        if kind is not None and record is not None and b'"deletionTimestamp"' in record.body:
            self._marked(kind, record)

    def _let_go(self, uid: str) -> None:
        for resource, key in sorted(self.storage.dependents.get(uid, ())):
            kind = self.objects.kinds.of(resource)
            record = self.storage.get(kind, key) if kind is not None else None
            if kind is not None and record is not None:
                obj = record.object(kind)
                metadata = obj["metadata"]
                metadata["ownerReferences"] = [one for one in metadata["ownerReferences"] if one["uid"] != uid]
                self.objects.replace(kind, record, obj, Options())

    def _unmark(self, kind: Kind, key: str, finalizer: str) -> None:
        record = self.storage.get(kind, key)
        if record is None:
            return
        obj = record.object(kind)
        left = [one for one in obj["metadata"].get("finalizers") or () if one != finalizer]
        obj["metadata"]["finalizers"] = left
        self.objects.replace(kind, record, obj, Options())

    def _namespace(self, name: str) -> None:
        """Empty a namespace that is to go, and let it go when it is empty."""
        namespaces = self.objects.kinds.of(NAMESPACES)
        assert namespaces is not None
        record = self.storage.get(namespaces, name)
        if record is None or b'"deletionTimestamp"' not in record.body:
            return
        left = False
        for kind in {kind.resource: kind for kind in self.objects.kinds.served.values() if kind.namespaced}.values():
            for key in [key for key in self.storage.table(kind.resource).keys if key.startswith(f"{name}/")]:
                self._delete(kind, key, grace=0)
                left = left or self.storage.get(kind, key) is not None
        obj = record.object(namespaces)
        if not left and not obj["metadata"].get("finalizers"):
            self.storage.remove(namespaces, name)

    def _delete(self, kind: Kind, key: str, grace: int | None = None) -> None:
        record = self.storage.get(kind, key)
        if record is not None:
            body = {"gracePeriodSeconds": grace} if grace is not None else {}
            self.objects.delete(kind, record, body, Options())

    def _end_pods(self) -> None:
        pods = self.objects.kinds.of(PODS)
        assert pods is not None
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for key in list(self.ending):
            record = self.storage.get(pods, key)
            metadata = record.object(pods)["metadata"] if record is not None else {}
            if "deletionTimestamp" not in metadata:
                self.ending.discard(key)
            elif self.kubelet and metadata["deletionTimestamp"] <= moment and not metadata.get("finalizers"):
                self.ending.discard(key)
                self.storage.remove(pods, key)
            elif not self.kubelet:
                self.ending.discard(key)
