"""Where objects are on a Kubernetes API server: paths, without a query."""

from __future__ import annotations

from dataclasses import dataclass

from tortie.model.meta import NAME, SHORT_NAME, Kind


@dataclass(frozen=True, slots=True)
class Place:
    """A kind of object, as `/apis/<group>/<version>/[namespaces/<namespace>/]<plural>`."""

    api: str
    """`/api/v1`, `/apis/crd.projectcalico.org/v1`."""
    plural: str
    namespaced: bool = False

    @property
    def group(self) -> str:
        """The API group, as messages name it."""
        return self.api.removeprefix("/apis/").rpartition("/")[0] if self.api.startswith("/apis/") else "Kubernetes"

    def collection(self, namespace: str | None = None) -> str:
        """All objects, or those of a namespace."""
        within = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{self.api}{within}/{self.plural}"

    def object(self, name: str, namespace: str = "", part: str = "") -> str:
        """One object, or a subresource of it (`status`)."""
        return f"{self.collection(namespace)}/{name}" + (f"/{part}" if part else "")


def can_be(name: str, namespace: str, namespaced: bool) -> bool:
    """Whether an object may have this name: one that no server would have is not worth asking for, and what is put
    into a path is a part of it and no more."""
    where = bool(SHORT_NAME.match(namespace)) if namespaced else True
    return bool(NAME.match(name)) and len(name) <= 253 and where


def native(kind: Kind) -> Place:
    """Where Kubernetes keeps its own kinds."""
    root = "/api/" if "/" not in kind.api_version else "/apis/"
    return Place(root + kind.api_version, kind.plural, kind.namespaced)
