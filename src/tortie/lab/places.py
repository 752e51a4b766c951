"""Places in a lab as people write them: `red/web`, `web` (of namespace default), `node:node1`, `outside`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tortie.base.errors import ConfigError, NotFound
from tortie.kernel import netns
from tortie.lab.cluster import netns_of, opened
from tortie.lab.podspec import PodKey
from tortie.lab.sandbox import log_file
from tortie.lab.state import LabDirectory
from tortie.lab.topology import OUTSIDE
from tortie.model.k8s import Pod

KUBELET = "kubelet"
_NODE = "node:"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program can be run."""

    netns_path: str
    hostname: str


async def find(directory: LabDirectory, where: str) -> Place:
    """Raises ConfigError for what names no place, NotFound for a pod that is not there or does not run."""
    lab = directory.read()
    if where == OUTSIDE:
        return Place(netns.path(lab.outside.netns), OUTSIDE)
    if where.startswith(_NODE):
        node = lab.node(where.removeprefix(_NODE))
        return Place(netns.path(node.netns), node.name)
    namespace, name = pod_key(where)
    async with opened(directory) as store:
        pod = await store.get(Pod, name, namespace)
    if pod.status.phase != "Running":
        why = f": {pod.status.message}" if pod.status.message else ""
        raise NotFound(f"Pod {namespace}/{name} does not run, it is {pod.status.phase or 'Pending'}{why}")
    return Place(netns.path(netns_of(lab, pod)), pod.name)


def log_of(directory: LabDirectory, where: str) -> Path:
    """The log of a place, whether it exists or not; also of the `kubelet`."""
    lab = directory.read()
    if where == OUTSIDE:
        return directory.outside_log
    if where == KUBELET:
        return directory.kubelet_log
    if where.startswith(_NODE):
        return directory.agent_log(lab.node(where.removeprefix(_NODE)).name)
    return log_file(directory, pod_key(where))


def pod_key(where: str) -> PodKey:
    """Namespace and name of a pod. Raises ConfigError."""
    namespace, _, pod = where.rpartition("/")
    if not pod or "/" in namespace or ":" in where:
        raise ConfigError(f'"{where}" is not a pod such as red/web, nor node:node1, nor outside')
    return namespace or "default", pod
