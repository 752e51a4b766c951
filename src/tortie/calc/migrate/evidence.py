"""What a cluster that another network runs shows of itself: objects as `kubectl get -o yaml` prints them.

Objects of kinds that mean something to the network are read as ours; those that do not fit are kept with the reason,
for that is what a migration has to tell. Of other software's objects a few say how the network is installed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tortie.base.errors import ConfigError
from tortie.model.document import read
from tortie.model.k8s import K8sNode, Pod
from tortie.model.kinds import API_ALIASES, KINDS
from tortie.model.meta import Resource

R = TypeVar("R", bound=Resource)

INSTALLERS = ("DaemonSet", "Deployment", "ConfigMap", "Installation")
"""Kinds of objects that are looked at as they are."""
OF_A_SERVER = frozenset({"managedFields", "selfLink", "resourceVersion"})
"""Metadata that means nothing elsewhere."""
_READ = frozenset((kind.KIND.api_version, kind.KIND.kind) for kind in KINDS)
_GROUPS = ("projectcalico.org/", "crd.projectcalico.org/", "networking.k8s.io/", "policy.networking.k8s.io/")
"""Where what we do not know matters."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """`refused`: (object, what our types say to it). `unknown` counts objects of networks of kinds not ours."""

    resources: tuple[Resource, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    unknown: Mapping[str, int] = field(default_factory=dict)
    installers: tuple[Mapping[str, Any], ...] = ()

    def all(self, kind: type[R]) -> list[R]:
        """The objects of a kind, by name."""
        found = [one for one in self.resources if type(one) is kind]
        return sorted(found, key=lambda one: (one.namespace, one.name))

    def installer(self, kind: str, *names: str) -> Mapping[str, Any] | None:
        """The first object of that kind with one of the names; any, without names."""
        for one in self.installers:
            if one.get("kind") == kind and (not names or _name(one) in names):
                return one
        return None

    def pods_on(self, node: str) -> int:
        """How many pods of a node have its network, and are not host's."""
        pods = (pod for pod in self.resources if isinstance(pod, Pod))
        return sum(pod.spec.node_name == node and not pod.spec.host_network and not _finished(pod) for pod in pods)


def gathered(documents: Iterable[Mapping[str, Any]]) -> Evidence:
    """Everything that the documents say."""
    resources: list[Resource] = []
    refused: list[tuple[str, str]] = []
    unknown: Counter[str] = Counter()
    installers: list[Mapping[str, Any]] = []
    for document in documents:
        kind, version = str(document.get("kind", "")), str(document.get("apiVersion", ""))
        if kind in INSTALLERS:
            installers.append(document)
        elif (API_ALIASES.get(version, version), kind) in _READ or kind == "IPAMConfiguration":
            try:
                resources.append(read(_bare(document)))
            except ConfigError as error:
                refused.append((f"{kind} {_name(document)}", ": ".join((*error.where[1:], error.message))))
        elif version.startswith(_GROUPS):
            unknown[f"{kind} ({version})"] += 1
    return Evidence(tuple(resources), tuple(refused), dict(sorted(unknown.items())), tuple(installers))


def _bare(document: Mapping[str, Any]) -> dict[str, Any]:
    """Without what belongs to one API server."""
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        return dict(document)
    kept = {key: value for key, value in metadata.items() if key not in OF_A_SERVER}
    found = {**document, "metadata": kept}
    if document.get("kind") == "BlockAffinity" and isinstance(found.get("spec"), dict):
        deleted = found["spec"].get("deleted")
        if isinstance(deleted, str):  # as crd.projectcalico.org/v1 keeps it
            found["spec"] = {**found["spec"], "deleted": deleted == "true"}
    return found


def _name(document: Mapping[str, Any]) -> str:
    metadata = document.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, dict) else ""


def _finished(pod: Pod) -> bool:
    phase = pod.status.phase if not isinstance(pod.status, dict) else pod.status.get("phase")
    return phase in ("Succeeded", "Failed")


def environment(workload: Mapping[str, Any] | None) -> dict[str, str]:
    """The plain variables of all containers of a DaemonSet."""
    found: dict[str, str] = {}
    for container in inside(workload, "spec", "template", "spec", "containers") or ():
        for one in container.get("env") or () if isinstance(container, dict) else ():
            if isinstance(one, dict) and isinstance(one.get("value"), str):
                found[str(one.get("name"))] = one["value"]
    return found


def inside(document: Any, *path: str) -> Any:
    """What is at a path of nested mappings; None where there is nothing."""
    for name in path:
        document = document.get(name) if isinstance(document, Mapping) else None
    return document


def addresses(node: K8sNode) -> list[str]:
    """The node's own, InternalIP first."""
    listed = inside(node.status, "addresses") if isinstance(node.status, Mapping) else node.status
    found = listed if isinstance(listed, list | tuple) else getattr(listed, "addresses", ())
    texts: list[str] = []
    for one in found or ():
        kind = one.get("type") if isinstance(one, Mapping) else getattr(one, "type", "")
        if kind == "InternalIP":
            texts.append(str(one.get("address") if isinstance(one, Mapping) else one.address))
    return texts
