"""Calico's own kinds as custom resources, in both layouts that clusters have.

    crd.projectcalico.org/v1   what a user sees as metadata is JSON in one annotation, the UID another one
    projectcalico.org/v3       the object as the user sees it

Everything here is a value in, a value out. Source: Calico's documentation of its datastores, and objects of clusters.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from tortie.model.bgpfilter import BGPFilter
from tortie.model.closed_rules import closed
from tortie.model.document import dump
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMConfig, IPAMHandle
from tortie.model.kinds import KINDS
from tortie.model.meta import NAME, Metadata, Resource
from tortie.model.node import Node
from tortie.model.policy import GlobalNetworkPolicy, NetworkPolicy, Profile
from tortie.model.staged import StagedGlobalNetworkPolicy, StagedKubernetesNetworkPolicy, StagedNetworkPolicy
from tortie.model.workload import WorkloadEndpoint
from tortie.store.kube.decoding import BAD, Document, Found, Refused, WireMetadata, metadata_of, read
from tortie.store.kube.overlay import overlaid
from tortie.store.kube.places import Place

R = TypeVar("R", bound=Resource)

METADATA = "projectcalico.org/metadata"
"""The annotation of a custom resource that has what users see as metadata."""
OURS = ("projectcalico.org/", "operator.tigera.io/")
"""Labels and annotations with one of these in their name are also on the custom resource itself."""
ELSEWHERE = (Node, Profile, WorkloadEndpoint)
"""Calico's kinds that are views of Kubernetes' own objects."""
CLOSED = (NetworkPolicy, GlobalNetworkPolicy, StagedNetworkPolicy, StagedGlobalNetworkPolicy)
"""Kinds of which a rule with a condition that we do not know lets nothing through."""
STRICT = (StagedKubernetesNetworkPolicy, BGPFilter)
"""Kinds of which a field that we do not know may be a condition: without it a rule would match too much."""
DERIVED = frozenset({"name", "namespace", "uid", "resourceVersion", "creationTimestamp", "generation", "selfLink",
                     "managedFields", "deletionTimestamp", "deletionGracePeriodSeconds", "finalizers"})  # fmt: skip
"""Metadata that is the custom resource's own."""
RECEIPT = "tortie.dev/receipt"
"""The annotation with the number of the last write, of custom resources whose writes must not be done twice; nobody
but `tortie.store.kubernetes` sees it."""
COUNTED = (IPAMBlock, IPAMHandle, BlockAffinity)
"""Kinds of which a write may add up with itself, when it is taken and its answer is lost."""
DIGEST, ROOM = 11, 200
"""Characters of a hash, and of the name before it, where a name cannot stand as it is."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A way to keep Calico's kinds. `wrapped`: users' metadata is in the annotation. `names`: plural and kind where
    they are not those of the model."""

    version: str
    wrapped: bool
    names: Mapping[str, tuple[str, str]]

    def place(self, kind: type[Resource]) -> Place:
        plural = self.names.get(kind.KIND.kind, (kind.KIND.plural, ""))[0]
        return Place(f"/apis/{self.version}", plural, kind.KIND.namespaced)

    def word(self, kind: type[Resource]) -> str:
        """The kind as documents name it."""
        return self.names.get(kind.KIND.kind, ("", kind.KIND.kind))[1]


V1 = Layout("crd.projectcalico.org/v1", True, {})
V3 = Layout("projectcalico.org/v3", False, {"IPAMConfig": ("ipamconfigurations", "IPAMConfiguration")})
LAYOUTS = {"crd.projectcalico.org": V1, "projectcalico.org": V3}
"""By API group, which is also what CALICO_API_GROUP may say, with its version or without."""

CUSTOM = tuple(kind for kind in KINDS if kind.KIND.api_version == "projectcalico.org/v3" and kind not in ELSEWHERE)
OPTIONAL = frozenset({
    "BGPFilter", "CalicoNodeStatus", "IPReservation", "KubeControllersConfiguration", "Tier", "NetworkSet",
    "StagedNetworkPolicy", "StagedGlobalNetworkPolicy", "StagedKubernetesNetworkPolicy",
})  # fmt: skip
"""Kinds that older installations of Calico do not have: there are no objects of them then."""

REQUIRED: dict[type[Resource], dict[str, Any]] = {
    IPAMBlock: {"allocations": [], "unallocated": [], "attributes": [], "strictAffinity": False, "deleted": False},
    BlockAffinity: {"deleted": False, "state": ""},
    IPAMHandle: {"block": {}, "deleted": False},
    IPAMConfig: {"strictAffinity": False, "autoAllocateBlocks": True},
}
"""Fields that upstream's schemas require also when they say nothing."""


def layout_of(group: str) -> Layout | None:
    """The layout that CALICO_API_GROUP names; None when it names none that there is."""
    return LAYOUTS.get(group.partition("/")[0])


def shown_uid(uid: str) -> str:
    """The UID that users see, from the custom resource's, and back: the bits of each byte in reverse order, but for
    those that say which version and variant of UUID it is. Neither is taken for the other in a precondition.

    >>> shown_uid("01000000-0000-4000-8000-000000000080")
    '80000000-0000-4000-8000-000000000001'
    """
    try:
        raw = uuid.UUID(uid).bytes
    except ValueError:
        return uid
    turned = (byte if i in (6, 8) else int(f"{byte:08b}"[::-1], 2) for i, byte in enumerate(raw))
    return str(uuid.UUID(bytes=bytes(turned)))


def stored_name(kind: type[Resource], name: str) -> str:
    """The custom resource's name. Handles are named after networks, which may have other names than Kubernetes allows.

    >>> stored_name(IPAMHandle, "k8s-pod-network.4f0c")
    'k8s-pod-network.4f0c'
    """
    if kind is not IPAMHandle or (NAME.match(name) and len(name) <= 253):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:DIGEST]
    return f"{re.sub('[^a-z0-9]+', '-', name)[:ROOM]}-{digest}".lstrip("-")


def from_document(kind: type[R], raw: bytes, layout: Layout) -> tuple[R, tuple[str, ...]]:
    """A custom resource as our value, and the fields that we do not know. Raises Refused."""
    found = read(kind, raw, lax=kind is BlockAffinity)
    if found.unknown and kind in STRICT:
        raise Refused(found.metadata, f"{found.unknown[0]}: is not known to this version")
    if found.unknown and kind in CLOSED:
        found = found._replace(parts=found.parts | {"spec": _closed(found)})
    metadata = _shown(found.metadata) if layout.wrapped else metadata_of(found.metadata)
    if kind is IPAMHandle:
        metadata = msgspec.structs.replace(metadata, name=found.parts["spec"].handle_id.lower())
    if RECEIPT in metadata.annotations:
        rest = {name: text for name, text in metadata.annotations.items() if name != RECEIPT}
        metadata = msgspec.structs.replace(metadata, annotations=rest)
    return kind(metadata=metadata, **found.parts), found.unknown


def _closed(found: Found) -> Any:
    """The spec of a policy. What is written keeps a closed rule as it is stored: nothing of it has changed."""
    spec = found.parts["spec"]
    unknown = (path.removeprefix("spec.") for path in found.unknown if path.startswith("spec."))
    return msgspec.convert(closed(msgspec.json.decode(msgspec.json.encode(spec)), unknown), type(spec))


def to_document(resource: Resource, layout: Layout) -> Document:
    """The custom resource that a new object becomes."""
    document = dump(resource)
    given = {name: value for name, value in document["metadata"].items() if name not in DERIVED}
    metadata: Document = {"name": stored_name(type(resource), resource.name)}
    if resource.namespace:
        metadata["namespace"] = resource.namespace
    if layout.wrapped:
        metadata |= _wrapped(given)
    else:
        metadata |= given
    body = {name: value for name, value in document.items() if name not in ("apiVersion", "kind", "metadata")}
    head = {"apiVersion": layout.version, "kind": layout.word(type(resource)), "metadata": metadata}
    return head | body | {"spec": _spec(type(resource), body.get("spec", {}), layout)}


def _spec(kind: type[Resource], spec: Document, layout: Layout) -> Document:
    spec = REQUIRED.get(kind, {}) | spec
    if kind is BlockAffinity and layout.wrapped:
        spec["deleted"] = "true" if spec["deleted"] else "false"
    return spec


def _wrapped(given: Document) -> Document:
    """What of users' metadata is on the custom resource: all of it in the annotation, and ours as it is."""
    labels = {name: value for name, value in given.get("labels", {}).items() if _is_ours(name)}
    annotations = {name: value for name, value in given.get("annotations", {}).items() if _is_ours(name)}
    text = msgspec.json.encode({**given, "creationTimestamp": None}).decode()
    metadata: Document = {"annotations": {**annotations, METADATA: text}}
    return metadata | ({"labels": labels} if labels else {})


def carry_over(stored: Document, before: Document, after: Document) -> None:
    """Sees to it that `after` has in its annotation what is unknown in the one that is stored."""
    had = (stored["metadata"].get("annotations") or {}).get(METADATA)
    texts = [one["metadata"]["annotations"] for one in (before, after)]
    if had is None or texts[0][METADATA] == texts[1][METADATA]:
        return
    try:
        inner = overlaid(*(msgspec.json.decode(text) for text in (had, texts[0][METADATA], texts[1][METADATA])))
    except BAD:
        return
    texts[1][METADATA] = msgspec.json.encode(inner).decode()


def _shown(wire: WireMetadata) -> Metadata:
    """What users see: the annotation says it. Without it somebody has written the custom resource by hand, whose own
    labels and annotations then count."""
    own = metadata_of(wire)
    own = msgspec.structs.replace(own, uid=shown_uid(own.uid))
    text = own.annotations.get(METADATA)
    rest = {name: value for name, value in own.annotations.items() if name != METADATA}
    if text is None:
        return own
    try:
        kept = msgspec.json.decode(text, type=WireMetadata)
    except BAD:
        return msgspec.structs.replace(own, annotations=rest)
    return msgspec.structs.replace(
        own,
        labels={name: value for name, value in own.labels.items() if _is_ours(name)} | (kept.labels or {}),
        annotations={name: value for name, value in rest.items() if _is_ours(name)} | (kept.annotations or {}),
        creation_timestamp=kept.creation_timestamp or own.creation_timestamp,
        owner_references=metadata_of(kept).owner_references or own.owner_references,
    )


def _is_ours(name: str) -> bool:
    return any(part in name for part in OURS)
