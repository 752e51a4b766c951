"""Places in a lab as people write them: `red/web`, `web` (of default), `node:node1`, `router:a`, `outside`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tortie.base.errors import ConfigError, NotFound
from tortie.kernel import netns
from tortie.lab.state import LabDirectory
from tortie.lab.topology import OUTSIDE, Topology
from tortie.model.k8s import Pod
from tortie.model.store import Store
from tortie.store import open_store

KUBELET, CONTROLLERS = "kubelet", "controllers"
_NODE, _ROUTER, _FLANNELD, _PROXY = "node:", "router:", "flanneld:", "proxy:"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program can be run."""

    netns_path: str
    hostname: str
    resolv_conf: str = ""
    """What is /etc/resolv.conf there; "" for the machine's own."""


async def find(directory: LabDirectory, where: str) -> Place:
    """Raises ConfigError for what names no place, NotFound for a pod that is not there or does not run."""
    lab = directory.read()
    if where == OUTSIDE:
        return Place(netns.path(lab.outside.netns), OUTSIDE)
    if where.startswith(_NODE):
        node = lab.node(where.removeprefix(_NODE))
        return Place(netns.path(node.netns), node.name)
    if where.startswith(_ROUTER):
        router = lab.router(where.removeprefix(_ROUTER))
        return Place(netns.path(router.netns), router.name)
    namespace, name = pod_key(where)
    async with opened(directory) as store:
        pod = await store.get(Pod, name, namespace)
    if pod.status.phase != "Running":
        why = f": {pod.status.message}" if pod.status.message else ""
        raise NotFound(f"Pod {namespace}/{name} does not run, it is {pod.status.phase or 'Pending'}{why}")
    file = directory.pod_resolv_conf(namespace, name)
    return Place(netns.path(netns_of(lab, pod)), pod.name, str(file) if file.exists() else "")


def log_of(directory: LabDirectory, where: str) -> Path:
    """The log of a place, whether it exists or not; also of the `kubelet` and the `controllers`."""
    lab = directory.read()
    if where == OUTSIDE:
        return directory.outside_log
    if where == KUBELET:
        return directory.kubelet_log
    if where == CONTROLLERS:
        if not lab.has_services:
            raise ConfigError(f'lab "{lab.name}" has no controllers: CNI plugins alone connect its pods')
        return directory.controllers_log
    if where.startswith(_NODE):
        node = lab.node(where.removeprefix(_NODE)).name
        return directory.agent_log(node) if lab.has_agents else directory.node_log(node)
    if where.startswith(_FLANNELD):
        node = lab.node(where.removeprefix(_FLANNELD)).name
        if lab.blueprint.flannel is None:
            raise ConfigError(f'lab "{lab.name}" has no flanneld: tortie lab up --cni flannel makes one that has')
        return directory.flanneld_log(node)
    if where.startswith(_PROXY):
        node = lab.node(where.removeprefix(_PROXY)).name
        if not lab.has_proxies:
            raise ConfigError(f'lab "{lab.name}" has no proxies: its agents serve services, if somebody does')
        return directory.proxy_log(node)
    if where.startswith(_ROUTER):
        router = lab.router(where.removeprefix(_ROUTER))
        if not router.daemon:
            raise ConfigError(f"{router.name} is a plain router: nothing runs there that would have a log")
        return directory.router_log(router.name)
    return directory.pod_log(*pod_key(where))


def pod_key(where: str) -> tuple[str, str]:
    """Namespace and name of a pod. Raises ConfigError."""
    namespace, _, pod = where.rpartition("/")
    if not pod or "/" in namespace or ":" in where:
        raise ConfigError(f'"{where}" is not a pod such as red/web, nor node:node1, router:NAME or outside')
    return namespace or "default", pod


@asynccontextmanager
async def opened(directory: LabDirectory) -> AsyncIterator[Store]:
    """The lab's datastore."""
    store = open_store(str(directory.store))
    try:
        yield store
    finally:
        await store.close()


def netns_of(lab: Topology, pod: Pod) -> str:
    """The name of the namespace a pod's processes are in."""
    return lab.node(pod.spec.node_name).netns if pod.spec.host_network else lab.pod_netns(pod.namespace, pod.name)
