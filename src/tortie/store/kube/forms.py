"""How each of our kinds is written in Kubernetes: where it is, how it is read, and what an update does to the document.

    Custom     Calico's kinds              a custom resource each
    Native     Kubernetes' kinds           the object itself
    Pods       Pod                         the same, but only what a network looks at is read
    Nodes      Node (projectcalico.org)    annotations of Kubernetes' Node
    Endpoints  WorkloadEndpoint            a view of a Pod

All pure; `tortie.store.kubernetes` does what they say.
"""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

import msgspec

from tortie.calc.workloads import ENDPOINT
from tortie.model.k8s import K8sNode, Pod
from tortie.model.meta import Metadata, Resource
from tortie.model.node import Node
from tortie.model.workload import WorkloadEndpoint, endpoint_name
from tortie.store.kube import crd, natives, nodes, pods, podviews
from tortie.store.kube.decoding import Document, Refused, blank, identity, metadata_of
from tortie.store.kube.overlay import overlaid
from tortie.store.kube.places import Place, native

R = TypeVar("R", bound=Resource)
Reading = tuple[R | None, tuple[str, ...]]
"""What a document is to us, None when it is none of ours, and a line for each thing in it that is not understood."""


class Form(Protocol[R]):
    kind: type[R]
    place: Place
    optional: bool
    """Whether a cluster may have no such kind."""
    puts: bool
    """Whether an update replaces the document, or patches what differs."""
    receipts: bool
    """Whether an update leaves a receipt, so that it is never done twice."""
    derived: bool
    """Whether the document may change without our value changing."""
    wire: type[Any]
    """What a document becomes while the list or event around it is decoded: `Raw`, or what `seen` takes."""

    def stored_name(self, name: str) -> str | None:
        """The document's name; None when there cannot be one."""
        ...

    def read(self, raw: bytes) -> Reading[R]:
        """Raises Refused."""
        ...

    def seen(self, wire: Any) -> Reading[R]:
        """The same of a document that was decoded already, as `wire`."""
        ...

    def shape(self, wire: Any) -> int | None:
        """A number that changes when our value does, its revision aside; None where that is not to be had."""
        ...

    def last(self, raw: bytes) -> R:
        """The last that can be told of an object that counts as gone."""
        ...

    def made(self, new: R) -> Document:
        """The document of a new object."""
        ...

    def written(self, stored: Document, old: R, new: R) -> Document:
        """The stored document as it should be: `old` is what was read of it."""
        ...


class _Whole(Generic[R]):
    """Documents that are decoded one by one."""

    receipts = False
    wire: type[Any] = msgspec.Raw

    def seen(self, wire: Any) -> Reading[R]:
        raise AssertionError("is read from its JSON")

    def shape(self, wire: Any) -> int | None:
        return None


class Custom(_Whole[R]):
    puts = True
    derived = False

    def __init__(self, kind: type[R], layout: crd.Layout) -> None:
        self.kind = kind
        self.layout = layout
        self.place = layout.place(kind)
        self.optional = kind.KIND.kind in crd.OPTIONAL
        self.receipts = kind in crd.COUNTED

    def stored_name(self, name: str) -> str | None:
        return crd.stored_name(self.kind, name)

    def read(self, raw: bytes) -> Reading[R]:
        return crd.from_document(self.kind, raw, self.layout)

    def last(self, raw: bytes) -> R:
        return _last(self, raw)

    def made(self, new: R) -> Document:
        return crd.to_document(new, self.layout)

    def written(self, stored: Document, old: R, new: R) -> Document:
        before, after = (crd.to_document(one, self.layout) for one in (old, new))
        if self.layout.wrapped:
            crd.carry_over(stored, before, after)
        return _kept(stored, overlaid(stored, before, after))


class Native(_Whole[R]):
    puts = False
    derived = False

    def __init__(self, kind: type[R]) -> None:
        self.kind = kind
        self.place = native(kind.KIND)
        self.optional = kind in natives.OPTIONAL
        self.has_status = kind in natives.WITH_STATUS or kind is Pod

    def stored_name(self, name: str) -> str | None:
        return name

    def read(self, raw: bytes) -> Reading[R]:
        """Fields of a newer server are no news; what cannot be read is."""
        found, unknown = natives.from_document(self.kind, raw)
        return found, tuple(line for line in unknown if " " in line)

    def last(self, raw: bytes) -> R:
        return _last(self, raw)

    def made(self, new: R) -> Document:
        return natives.to_document(new)

    def written(self, stored: Document, old: R, new: R) -> Document:
        return _kept(stored, overlaid(stored, natives.to_document(old), natives.to_document(new)))


class Pods(Native[Pod]):
    wire = pods.Wire

    def __init__(self) -> None:
        super().__init__(Pod)

    def read(self, raw: bytes) -> Reading[Pod]:
        return pods.pod_of(raw), ()

    def seen(self, wire: pods.Wire) -> Reading[Pod]:
        return pods.pod_of_wire(wire), ()


class Nodes(_Whole[Node]):
    puts = False
    optional = False
    derived = True
    kind = Node

    def __init__(self, *, use_pod_cidr: bool = False) -> None:
        self.place = native(K8sNode.KIND)
        self._use_pod_cidr = use_pod_cidr

    def stored_name(self, name: str) -> str | None:
        return name

    def read(self, raw: bytes) -> Reading[Node]:
        kube, _ = natives.from_document(K8sNode, raw)
        return nodes.node_of(kube, use_pod_cidr=self._use_pod_cidr)

    def last(self, raw: bytes) -> Node:
        return _last(self, raw)

    def made(self, new: Node) -> Document:
        raise AssertionError("Kubernetes makes its nodes")

    def written(self, stored: Document, old: Node, new: Node) -> Document:
        return nodes.written(stored, new)


class Endpoints:
    puts = False
    optional = False
    derived = True
    receipts = False
    kind = WorkloadEndpoint
    wire = podviews.Seen

    def __init__(self) -> None:
        self.place = native(Pod.KIND)

    def stored_name(self, name: str) -> str | None:
        found = pods.pod_name(name)
        return found[1] if found else None

    def read(self, raw: bytes) -> Reading[WorkloadEndpoint]:
        return podviews.endpoint_of(podviews.seen(raw)), ()

    def seen(self, wire: podviews.Seen) -> Reading[WorkloadEndpoint]:
        return podviews.endpoint_of(wire), ()

    def shape(self, wire: podviews.Seen) -> int:
        return podviews.shape(wire)

    def last(self, raw: bytes) -> WorkloadEndpoint:
        try:
            return podviews.last_endpoint(podviews.seen(raw))
        except Refused as refusal:
            metadata = metadata_of(refusal.metadata)
            name = endpoint_name("", "k8s", metadata.name, ENDPOINT)
            return WorkloadEndpoint(metadata=msgspec.structs.replace(metadata, name=name))

    def made(self, new: WorkloadEndpoint) -> Document:
        raise AssertionError("an endpoint is a view of a pod")

    def written(self, stored: Document, old: WorkloadEndpoint, new: WorkloadEndpoint) -> Document:
        return pods.written(stored, new)


def _last(form: Form[R], raw: bytes) -> R:
    try:
        found, _ = form.read(raw)
    except Refused:
        found = None
    if found is not None:
        return found
    who = identity(raw)
    return blank(form.kind, Metadata(name=who.name, namespace=who.namespace, resource_version=who.resource_version))


def _kept(stored: Document, wanted: Document) -> Document:
    """What says which document it is, is never changed."""
    head = {name: stored[name] for name in ("apiVersion", "kind") if name in stored}
    own = {name: value for name, value in stored.get("metadata", {}).items() if name in ("name", "namespace")}
    return wanted | head | {"metadata": wanted.get("metadata", {}) | own}
