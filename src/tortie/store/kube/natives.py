"""Kubernetes' own kinds, as the server has them.

Documents are the same on both sides: what is left to say is which kinds have a status of their own, and which a
cluster may do without.
"""

from __future__ import annotations

from typing import TypeVar

from tortie.model.clusterpolicy import ClusterNetworkPolicy
from tortie.model.document import dump
from tortie.model.k8s import (
    K8sNetworkPolicy,
    K8sNode,
    Namespace,
    ServiceAccount,
    VirtualMachine,
    VirtualMachineInstance,
)
from tortie.model.lease import Lease
from tortie.model.meta import Resource
from tortie.model.secret import Secret
from tortie.model.service import EndpointSlice, Service
from tortie.store.kube.decoding import Document, Refused, metadata_of, read

R = TypeVar("R", bound=Resource)

NATIVE: tuple[type[Resource], ...] = (
    Namespace,
    ServiceAccount,
    K8sNode,
    Secret,
    Service,
    EndpointSlice,
    K8sNetworkPolicy,
    ClusterNetworkPolicy,
    VirtualMachine,
    VirtualMachineInstance,
    Lease,
)
"""All but Pod, of which there are so many that it is read in a way of its own."""
OPTIONAL = (ClusterNetworkPolicy, VirtualMachine, VirtualMachineInstance)
"""Kinds that are not Kubernetes' own but an addition's, which a cluster may not have."""
WITH_STATUS = (Namespace, K8sNode, Service, ClusterNetworkPolicy, VirtualMachine, VirtualMachineInstance)
"""Kinds whose status is written under a path of its own."""
ANNOTATED_BY_STATUS = (K8sNode,)
"""Kinds of which networks write annotations with the right to their status alone (`nodes/status`: patch)."""
STRICT = (ClusterNetworkPolicy,)
"""Kinds of which a field that we do not know may be a condition, in rules that allow as well as in ones that deny."""
FROM_SERVER = ("uid", "resourceVersion", "creationTimestamp", "generation", "selfLink", "managedFields",
               "deletionTimestamp", "deletionGracePeriodSeconds")  # fmt: skip
"""Metadata that the server alone decides."""


def from_document(kind: type[R], raw: bytes) -> tuple[R, tuple[str, ...]]:
    """Our value of an object, and what of it is not known. Raises Refused."""
    found = read(kind, raw)
    if found.unknown and kind in STRICT:
        raise Refused(found.metadata, f"{found.unknown[0]}: is not known to this version")
    return kind(metadata=metadata_of(found.metadata), **found.parts), found.unknown


def to_document(resource: Resource) -> Document:
    """The document of a new object, or of one as it should be: without what the server alone decides."""
    document = dump(resource)
    for name in FROM_SERVER:
        document["metadata"].pop(name, None)
    return document
