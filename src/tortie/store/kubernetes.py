"""The datastore that a Kubernetes cluster has anyway: its API server.

    IPPool default ──Form──► /apis/crd.projectcalico.org/v1/ippools/default     written whole, at the revision read
    Pod, Namespace ────────► /api/v1/...                                         patched with what differs
    Node           ────────► annotations of /api/v1/nodes/<name>                 patched through its status
    WorkloadEndpoint ──────► annotations of a pod                                patched through its status
    Profile        ────────► derived from Namespaces and ServiceAccounts         read only

What our model does not know of an object stays as it is when we write it. An object that cannot be read is left out of
lists and watches, with a warning, and hides no other. Revisions are the server's resource versions, which are of the
whole cluster as etcd's are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar, cast

import msgspec

from tortie.base.errors import (
    Compacted,
    ConfigError,
    Conflict,
    Exists,
    NotFound,
    NotSupported,
    TortieError,
    Unavailable,
)
from tortie.model.k8s import Namespace, Pod, ServiceAccount
from tortie.model.meta import Kind, Resource, changed
from tortie.model.node import Node
from tortie.model.policy import Profile
from tortie.model.secret import Secret
from tortie.model.store import Event, EventType, Listing
from tortie.model.workload import WorkloadEndpoint
from tortie.store.kube import pods, profiles
from tortie.store.kube.api import Api
from tortie.store.kube.changes import Changes, Remarks, Uncounted, Whose
from tortie.store.kube.decoding import Document, Head, Refused, blank, identity, metadata_of, number
from tortie.store.kube.forms import Endpoints, Form, Nodes
from tortie.store.kube.kinds import Kinds, no_kind
from tortie.store.kube.lists import TOO_LARGE, at_least, listed
from tortie.store.kube.overlay import merge_patch
from tortie.store.kube.places import can_be
from tortie.store.kube.recent import Recent
from tortie.store.kube.watches import Happened, notices
from tortie.store.kube.writes import has_receipt, is_kind, patched, removed, with_receipt, with_status, written
from tortie.store.rules import named

R = TypeVar("R", bound=Resource)

log = logging.getLogger(__name__)

ATTEMPTS = 100
"""How often a write that is to win whatever is there is tried again when others write at the same time."""
LONGEST_PAUSE = 0.2
"""Seconds between two of them, at most."""


class KubernetesStore:
    """Implements `tortie.model.store.Store`, for all kinds. `node`: the store is of that node's agent, which asks for
    no pods but its own, and derives profiles itself. `group`: Calico's API group where it is not to be found out.

    Raises ConfigError for a group that is none.
    """

    def __init__(self, api: Api, *, node: str = "", group: str = "", use_pod_cidr: bool = False) -> None:
        self.api = self._api = api
        self._node = node
        self._kinds = Kinds(api, group=group, use_pod_cidr=use_pod_cidr)
        self._recent = Recent()
        self._uncounted = Uncounted()
        self._remarks = Remarks()
        self._newest = 0
        self._closed = asyncio.Event()

    # --- reading ---

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        if kind is Profile:
            return cast(R, await self._profile(name))
        form = await self._form(kind)
        _, found = await self._stored(form, name, namespace)
        return found

    async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
        if kind is Profile:
            return cast(Listing[R], await self._profiles())
        form = await self._form(kind)
        if namespace is not None and not can_be("a", namespace, form.place.namespaced):
            return Listing((), "0")
        own = bool(self._node) and kind is Pod

        def read(raw: bytes) -> R | Whose:
            found = self._read(form, raw)
            if found is not None and not own:
                return found
            who = identity(raw)
            if own:
                self._remember(form, who, raw)
            return (who.namespace, who.name) if found is None else found

        def seen(wire: Any) -> R | Whose:
            found, _ = form.seen(wire)
            return (wire.metadata.namespace, wire.metadata.name) if found is None else found

        try:
            every, revision = await self._listed(form, namespace, own, read, seen)
        except NotFound as error:
            self._missing(form, error)
            return Listing((), "0")
        found = [one for one in every if not isinstance(one, tuple)]
        self._newest = max(self._newest, int(revision))
        self._uncounted.note(kind.KIND, revision, (one for one in every if isinstance(one, tuple)))
        found.sort(key=lambda one: (one.namespace, one.name))
        wanted = found if namespace is None or form.place.namespaced else []
        return Listing(tuple(wanted), revision)

    async def watch(self, kind: type[R], revision: str) -> AsyncIterator[tuple[Event[R], ...]]:
        if kind is Profile:
            await self._forever_without_profiles()
            return
        form = await self._form(kind)
        if form.optional and revision == "0":
            await self._kinds.until_there(kind, self._closed)
            return
        changes = Changes(form, self._uncounted.at(kind.KIND, revision))
        path, selection = form.place.collection(), self._selection(kind)
        wire = msgspec.Raw if self._node and kind is Pod else form.wire
        try:
            happened = notices(self._api, path, selection, revision, self._newest, self._closed, wire)
            async with contextlib.aclosing(cast(Any, happened)) as news:
                async for one in news:
                    self._follow(form, one)
                    event = changes.event(one, self._read)
                    if event is not None:
                        yield (event,)
        except NotFound as error:
            self._missing(form, error)
            raise Compacted(f"watch {kind.KIND.key}: the cluster has no such kind any more: list again") from None
        except Unavailable:
            if not self._closed.is_set():
                raise

    # --- writing ---

    async def create(self, obj: R) -> R:
        self._open()
        if not obj.name:
            raise ConfigError("is required", obj.KIND.kind, "metadata.name")
        form = await self._writable(type(obj), "Create", obj.name)
        if isinstance(form, Endpoints):
            return cast(R, await self._attach(form, cast(WorkloadEndpoint, obj)))
        if isinstance(form, Nodes):
            return await self._register(obj)
        body = msgspec.json.encode(form.made(obj))
        try:
            raw = await self._api.request("POST", form.place.collection(obj.namespace), body=body)
        except Exists:
            raise Exists(f"resource already exists: {named(obj.KIND, obj.name, obj.namespace)}") from None
        except NotFound as error:
            if is_kind(error):
                raise no_kind(form) from None
            raise NotFound(f"{named(obj.KIND, obj.name, obj.namespace)}: {error}") from None
        raw = await with_status(self._api, form, raw, form.made(obj))
        return self._written(form, raw)

    async def update(self, obj: R) -> R:
        form = await self._writable(type(obj), "Update", obj.name)
        revision = obj.metadata.resource_version
        for attempt in range(ATTEMPTS):
            at = revision if attempt == 0 else ""
            raw, old = await self._stored(form, obj.name, obj.namespace, at)
            self._demand(old, revision)
            stored = msgspec.json.decode(raw)
            wanted = form.written(stored, old, obj)
            if wanted == stored:
                return await self._confirmed(form, old, revision) if at else old
            receipt = uuid.uuid4().hex if form.receipts else ""
            wanted = with_receipt(wanted, receipt) if receipt else wanted
            try:
                return self._written(form, await written(self._api, form, stored, wanted, revision))
            except Conflict:
                self._forget(form, old)
                if receipt and (mine := await self._receipted(form, old, receipt)) is not None:
                    return mine
                if revision:
                    raise _conflict(old) from None
            except NotFound:
                raise _absent(obj.KIND, obj.name, obj.namespace) from None
            await asyncio.sleep(random.uniform(0, min(LONGEST_PAUSE, 0.005 * (attempt + 1))))
        raise Conflict(f"update conflict: {named(obj.KIND, obj.name, obj.namespace)}: others write it all the time")

    async def delete(self, kind: type[R], name: str, namespace: str = "", revision: str = "") -> R:
        form = await self._writable(kind, "Delete", name)
        if isinstance(form, Nodes):
            raise _unsupported("Delete", kind, name, "Kubernetes deletes its nodes")
        for attempt in range(ATTEMPTS):
            raw, old = await self._doomed(form, name, namespace, revision if attempt == 0 else "")
            self._demand(old, revision)
            self._forget(form, old)
            try:
                left = await removed(self._api, form, raw)
                if left:
                    self._remember(form, identity(left), left)
                return old
            except Conflict:
                if revision:
                    raise _conflict(old) from None
            except NotFound:
                raise _absent(kind.KIND, name, namespace) from None
            await asyncio.sleep(random.uniform(0, min(LONGEST_PAUSE, 0.005 * (attempt + 1))))
        raise Conflict(f"update conflict: {named(kind.KIND, name, namespace)}: others write it all the time")

    async def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            await self._api.close()

    # --- documents ---

    async def _form(self, kind: type[R]) -> Form[R]:
        """How a kind is kept here. Raises Unavailable, NotSupported."""
        self._open()
        return await self._kinds.form(kind)

    async def _writable(self, kind: type[R], doing: str, name: str) -> Form[R]:
        if kind is Profile:
            raise _unsupported(doing, kind, name, "profiles are those of namespaces and service accounts")
        return await self._form(kind)

    async def _stored(self, form: Form[R], name: str, namespace: str, at: str = "") -> tuple[bytes, R]:
        """The document of an object and what it is to us, at a revision perhaps without asking. Raises NotFound,
        NotSupported, Unavailable."""
        kind = form.kind
        stored_name = form.stored_name(name)
        if stored_name is None or not can_be(stored_name, namespace, form.place.namespaced):
            raise _absent(kind.KIND, name, namespace)
        key = (form.place.collection(), namespace, stored_name)
        raw = self._recent.get(key, at) if at else None
        if raw is None:
            try:
                raw = await self._api.request("GET", form.place.object(stored_name, namespace))
            except NotFound as error:
                if is_kind(error) and not form.optional:
                    raise no_kind(form) from None
                raise _absent(kind.KIND, name, namespace) from None
            self._remember(form, identity(raw), raw)
        try:
            found, unknown = form.read(raw)
        except Refused as refusal:
            text = f"a stored {kind.KIND.kind}({name}) is not known to this version: {refusal}: upgrade"
            raise NotSupported(text) from None
        self._remarks.unknown(form.kind.KIND, raw, unknown)
        if found is None or found.name != name:
            raise _absent(kind.KIND, name, namespace)
        return raw, found

    async def _doomed(self, form: Form[R], name: str, namespace: str, at: str) -> tuple[bytes, R]:
        """The same of what is to be deleted, also when it cannot be read."""
        try:
            return await self._stored(form, name, namespace, at)
        except NotSupported:
            raw = await self._api.request("GET", form.place.object(form.stored_name(name) or name, namespace))
            return raw, blank(form.kind, metadata_of(identity(raw)))

    async def _confirmed(self, form: Form[R], old: R, revision: str) -> R:
        """What was remembered, as it is now, when it still holds; a document of a derived kind may have changed since,
        as pods do all the time. Raises Conflict, NotFound."""
        self._forget(form, old)
        _, newest = await self._stored(form, old.name, old.namespace)
        if not form.derived or changed(newest, resource_version=old.metadata.resource_version) != old:
            self._demand(newest, revision)
        return newest

    async def _receipted(self, form: Form[R], old: R, receipt: str) -> R | None:
        """The object when the last write was the one with this receipt: its answer was lost, and it was sent again.

        Raises NotFound, NotSupported, Unavailable.
        """
        raw, newest = await self._stored(form, old.name, old.namespace)
        return newest if has_receipt(raw, receipt) else None

    # --- views ---

    async def _attach(self, form: Endpoints, endpoint: WorkloadEndpoint) -> WorkloadEndpoint:
        """Make a pod an endpoint. Of a pod that this store follows anyway it knows that it is none, and does not ask.

        Raises Exists, NotFound when the pod is gone, whoever has its name now, Conflict, NotSupported.
        """
        name, namespace = endpoint.name, endpoint.namespace
        found = pods.pod_name(name)
        if found is None or not can_be(found[1], namespace, True):
            raise _unsupported("Create", WorkloadEndpoint, name, "in Kubernetes only pods are endpoints")
        pod = found[1]
        known = self._recent.get((form.place.collection(), namespace, pod))
        if known is not None and pods.whose(known, endpoint) == "nobody":
            with contextlib.suppress(Conflict, ConfigError, NotFound):
                return await self._attached(form, known, endpoint)
        self._recent.drop((form.place.collection(), namespace, pod))
        try:
            raw = await self._api.request("GET", form.place.object(pod, namespace))
            whose = pods.whose(raw, endpoint)
        except NotFound:
            whose = "another"
        if whose == "another":
            raise _absent(Pod.KIND, pod, namespace)
        if whose == "its":
            raise Exists(f"resource already exists: {named(endpoint.KIND, name, namespace)}")
        try:
            return await self._attached(form, raw, endpoint)
        except (Conflict, ConfigError, NotFound) as error:
            raise Conflict(f"update conflict: {named(endpoint.KIND, name, namespace)}: {error}") from None

    async def _attached(self, form: Endpoints, raw: bytes, endpoint: WorkloadEndpoint) -> WorkloadEndpoint:
        """Patch the pod that was read, if it is the same one still. Raises Conflict, ConfigError, NotFound."""
        stored = msgspec.json.decode(raw)
        metadata, status = stored["metadata"], stored.get("status")
        wanted = pods.written(stored, endpoint).get("status")
        patch: Document = {"metadata": {"annotations": pods.noted(endpoint)}}
        if wanted != status:
            patch["status"] = merge_patch(status, wanted)
        path = form.place.object(metadata["name"], metadata["namespace"], "status")
        return self._written(form, await patched(self._api, path, patch, {"uid": metadata.get("uid")}))

    async def _register(self, node: R) -> R:
        """A Node that is made is Kubernetes' with our annotations."""
        try:
            return await self.update(changed(node, resource_version=""))
        except NotFound:
            text = "Kubernetes makes its nodes, and has none of this name: join the machine first, or see --node"
            raise _unsupported("Create", Node, node.name, text) from None

    async def _profile(self, name: str) -> Profile:
        self._open()
        if name == profiles.ALLOW_ALL.name:
            return profiles.ALLOW_ALL
        found = profiles.source(name)
        if found is None:
            raise _absent(Profile.KIND, name, "")
        kind, source, namespace = found
        try:
            if kind is Namespace:
                return profiles.of_namespace(await self.get(Namespace, source))
            return profiles.of_account(await self.get(ServiceAccount, source, namespace))
        except NotFound:
            raise _absent(Profile.KIND, name, "") from None

    async def _profiles(self) -> Listing[Profile]:
        """All that can be derived; none for an agent, which follows what they are derived from."""
        self._open()
        if self._node:
            return Listing((), "0")
        accounts, revision = await self._whole(ServiceAccount, {})
        exactly = {"resourceVersion": revision, "resourceVersionMatch": "NotOlderThan"}
        namespaces, revision = await self._whole(Namespace, exactly)
        found = [profiles.ALLOW_ALL]
        found += [*map(profiles.of_namespace, namespaces), *map(profiles.of_account, accounts)]
        return Listing(tuple(sorted(found, key=lambda one: one.name)), revision)

    async def _whole(self, kind: type[R], query: dict[str, str]) -> tuple[tuple[R, ...], str]:
        form = await self._form(kind)
        found, revision = await listed(self._api, form.place.collection(), query, lambda raw: self._read(form, raw))
        return tuple(one for one in found if one is not None), revision

    async def _forever_without_profiles(self) -> None:
        self._open()
        if not self._node:
            raise NotSupported("watch profiles: watch Namespaces and ServiceAccounts, which they are derived from")
        await self._closed.wait()

    # --- what lists and watches are made of ---

    def _selection(self, kind: type[Resource]) -> dict[str, str]:
        """An agent asks for the pods of its node; of endpoints it needs all."""
        return {"fieldSelector": f"spec.nodeName={self._node}"} if self._node and kind is Pod else {}

    async def _listed(
        self,
        form: Form[R],
        namespace: str | None,
        own: bool,
        read: Callable[[bytes], R | Whose],
        seen: Callable[[Any], R | Whose],
    ) -> tuple[Sequence[R | Whose], str]:
        """All of a kind. `own`: an agent's pods, which a server picks out of its memory, and would else look for
        among all pods of the cluster. Raises NotFound, Unavailable."""
        path, selection = form.place.collection(namespace), self._selection(form.kind)
        if own:
            try:
                return await listed(self._api, path, selection | await at_least(self._api), read)
            except Unavailable as error:
                if TOO_LARGE not in str(error):
                    raise
                # its memory does not come to where its etcd is
        wire = None if own or form.wire is msgspec.Raw else form.wire
        return await listed(self._api, path, selection, read, wire, seen)

    def _read(self, form: Form[R], raw: bytes) -> R | None:
        """An object; None when it does not count."""
        try:
            found, unknown = form.read(raw)
        except Refused as refusal:
            self._remarks.refused(form.kind.KIND, refusal)
            return None
        self._remarks.unknown(form.kind.KIND, raw, unknown)
        return found

    def _follow(self, form: Form[R], one: Happened) -> None:
        """What is at hand stays up to date. The pods of an agent's node are kept at hand for their endpoints."""
        who = one.who
        self._newest = max(self._newest, int(who.resource_version))
        if one.type is EventType.DELETED:
            self._recent.drop((form.place.collection(), who.namespace, who.name))
        elif self._node and form.kind is Pod:
            self._remember(form, who, one.raw)

    def _written(self, form: Form[R], raw: bytes) -> R:
        """What an answer to a write is to us."""
        who = identity(raw)
        self._remember(form, who, raw)
        try:
            found, _ = form.read(raw)
        except Refused as refusal:
            raise NotSupported(f"what was written of {form.kind.KIND.kind} {who.name} came back as {refusal}") from None
        return found if found is not None else form.last(raw)

    def _remember(self, form: Form[Any], who: Head, raw: bytes) -> None:
        self._newest = max(self._newest, number(who.resource_version))
        if form.kind is not Secret:
            self._recent.put((form.place.collection(), who.namespace, who.name), who.resource_version, raw)

    def _forget(self, form: Form[Any], obj: Resource) -> None:
        stored_name = form.stored_name(obj.name)
        if stored_name is not None:
            self._recent.drop((form.place.collection(), obj.namespace, stored_name))

    def _demand(self, old: Resource, revision: str) -> None:
        if revision and old.metadata.resource_version != revision:
            raise _conflict(old)

    # --- kinds that are not there ---

    def _missing(self, form: Form[Any], error: TortieError) -> None:
        """Raises Unavailable unless a cluster may do without the kind."""
        if not form.optional:
            raise no_kind(form) from None
        self._remarks.say(f"the cluster has no {form.place.plural}: {error}", logging.INFO)

    def _open(self) -> None:
        if self._closed.is_set():
            raise Unavailable("this store is closed")


def _absent(kind: Kind, name: str, namespace: str) -> NotFound:
    return NotFound(f"resource does not exist: {named(kind, name, namespace)}")


def _conflict(obj: Resource) -> Conflict:
    return Conflict(f"update conflict: {named(obj.KIND, obj.name, obj.namespace)}")


def _unsupported(doing: str, kind: type[Resource], name: str, why: str) -> NotSupported:
    return NotSupported(f"operation {doing} is not supported on {kind.KIND.kind}({name}): {why}")
