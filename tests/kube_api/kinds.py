"""Which kinds there are, and how each differs: its place in the paths, its subresources, what an update may do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec


@dataclass(frozen=True)
class Kind:
    """One resource at one version.

    `create_on_update`: PUT makes what is not there. `unconditional`: PUT needs no resourceVersion. `generation`: the
    server counts it. `status_on_create`: a status that is given at creation is kept. `returns_deleted`: a deletion
    answers with the object, not a Status. `fields`: what a fieldSelector may name besides metadata.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    short: tuple[str, ...] = ()
    subresources: frozenset[str] = frozenset()
    create_on_update: bool = False
    unconditional: bool = True
    generation: bool = False
    status_on_create: bool = False
    returns_deleted: bool = False
    fields: tuple[str, ...] = ()
    custom: bool = False
    schema: dict[str, Any] | None = field(default=None, compare=False, hash=False)
    singular: str = ""
    list_kind: str = ""
    categories: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """Where its objects are kept, whatever the version."""
        return f"{self.group}/{self.plural}"

    @property
    def has_status(self) -> bool:
        return "status" in self.subresources

    @property
    def header(self) -> bytes:
        """What stands before the rest of an object; the stored bodies have neither kind nor version."""
        kind, version = msgspec.json.encode(self.kind), msgspec.json.encode(self.api_version)
        if self.custom:
            return b'{"apiVersion":' + version + b',"kind":' + kind + b","
        return b'{"kind":' + kind + b',"apiVersion":' + version + b","

    @property
    def list_header(self) -> bytes:
        words = {"kind": self.list_kind or f"{self.kind}List", "apiVersion": self.api_version}
        return msgspec.json.encode(words)[:-1] + b","


_STATUS = frozenset({"status"})
_RBAC = "rbac.authorization.k8s.io"

NATIVE: tuple[Kind, ...] = (
    Kind(
        "",
        "v1",
        "namespaces",
        "Namespace",
        namespaced=False,
        short=("ns",),
        subresources=frozenset({"status", "finalize"}),
        fields=("status.phase",),
    ),
    Kind(
        "",
        "v1",
        "pods",
        "Pod",
        short=("po",),
        subresources=frozenset({"status", "binding", "eviction", "ephemeralcontainers"}),
        returns_deleted=True,
        fields=(
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ),
        categories=("all",),
    ),
    Kind(
        "",
        "v1",
        "nodes",
        "Node",
        namespaced=False,
        short=("no",),
        subresources=_STATUS,
        status_on_create=True,
        fields=("spec.unschedulable",),
    ),
    Kind(
        "",
        "v1",
        "services",
        "Service",
        short=("svc",),
        subresources=_STATUS,
        create_on_update=True,
        returns_deleted=True,
        fields=("spec.clusterIP", "spec.type"),
        categories=("all",),
    ),
    Kind(
        "",
        "v1",
        "serviceaccounts",
        "ServiceAccount",
        short=("sa",),
        subresources=frozenset({"token"}),
        returns_deleted=True,
    ),
    Kind("", "v1", "secrets", "Secret", fields=("type",)),
    Kind("", "v1", "configmaps", "ConfigMap", short=("cm",)),
    Kind("", "v1", "endpoints", "Endpoints", short=("ep",), create_on_update=True),
    Kind(
        "",
        "v1",
        "events",
        "Event",
        short=("ev",),
        create_on_update=True,
        fields=(
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ),
    ),
    Kind("apps", "v1", "daemonsets", "DaemonSet", short=("ds",), subresources=_STATUS, generation=True),
    Kind("apps", "v1", "deployments", "Deployment", short=("deploy",), subresources=_STATUS, generation=True),
    Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", generation=True),
    Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", short=("netpol",), generation=True),
    Kind("coordination.k8s.io", "v1", "leases", "Lease", create_on_update=True, unconditional=False),
    Kind(
        "policy",
        "v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        short=("pdb",),
        subresources=_STATUS,
        unconditional=False,
        generation=True,
    ),
    Kind("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", namespaced=False, short=("pc",)),
    Kind(_RBAC, "v1", "clusterroles", "ClusterRole", namespaced=False, create_on_update=True),
    Kind(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False, create_on_update=True),
    Kind(_RBAC, "v1", "roles", "Role", create_on_update=True),
    Kind(_RBAC, "v1", "rolebindings", "RoleBinding", create_on_update=True),
    Kind(
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        namespaced=False,
        short=("crd", "crds"),
        subresources=_STATUS,
        unconditional=False,
        generation=True,
    ),
)

VIRTUAL: tuple[tuple[str, str, str, str, bool], ...] = (
    ("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", False),
    ("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", False),
    ("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", False),
    ("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", False),
)
"""Group, version, plural, kind, namespaced: what may only be created, and is kept nowhere."""

NAMESPACES, PODS, CRDS = "/namespaces", "/pods", "apiextensions.k8s.io/customresourcedefinitions"


class Kinds:
    """The kinds that are served now: those built in, and those of the CustomResourceDefinitions."""

    def __init__(self) -> None:
        self.served: dict[tuple[str, str, str], Kind] = {
            (kind.group, kind.version, kind.plural): kind for kind in NATIVE
        }

    def find(self, group: str, version: str, plural: str) -> Kind | None:
        return self.served.get((group, version, plural))

    def of(self, resource: str) -> Kind | None:
        """Any version of it."""
        return next((kind for kind in self.served.values() if kind.resource == resource), None)

    def of_object(self, obj: dict[str, Any]) -> Kind | None:
        named = (obj.get("apiVersion"), obj.get("kind"))
        return next((kind for kind in self.served.values() if (kind.api_version, kind.kind) == named), None)

    def versions(self, group: str) -> list[str]:
        return list(dict.fromkeys(version for own, version, _ in self.served if own == group))

    def groups(self) -> list[str]:
        own = [group for group, _, _ in self.served if group] + [virtual[0] for virtual in VIRTUAL]
        return list(dict.fromkeys(own))

    def replace_custom(self, name: str, kinds: list[Kind]) -> None:
        """The versions that the definition `name` (plural.group) serves; none: it is gone."""
        plural, _, group = name.partition(".")
        for key in [key for key in self.served if key[0] == group and key[2] == plural]:
            del self.served[key]
        for kind in kinds:
            self.served[kind.group, kind.version, kind.plural] = kind
