"""A node of a Kubernetes cluster: a namespace with an agent, and the API server's double on its loopback.

thread in the namespace: KubeApi ◄─ HTTP ─ tortie agent ◄─ socket ─ the CNI executable, as a kubelet calls it
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_node import RED, Node, Sandbox, Site, conflist, site_in, soon

from kube_api import KubeApi
from kube_thread import ApiThread
from tortie.render.crds import crds

CRD = "crd.projectcalico.org/v1"
GUID = "0123456789abcdef0123456789abcdef"
NODE = "node1"


class Cluster(ApiThread):
    """The double, and what a manifest and a kubelet put into it."""

    def __init__(self, netns_path: str, kubeconfig: Path) -> None:
        super().__init__(netns_path, KubeApi(bookmark_every=1.0))
        self._kubeconfig = kubeconfig

    def start(self) -> None:
        super().start()
        self.do(self.api.kubeconfig, self._kubeconfig)

    def furnish(self, guid: str = GUID) -> None:
        """What a manifest and a kubelet bring."""
        for one in crds():
            self.do(self.api.create, one)
        self.create(CRD, "ClusterInformation", "default", spec={"clusterGUID": guid, "datastoreReady": True})
        spec = {"cidr": "10.65.0.0/16", "ipipMode": "Never", "vxlanMode": "Never", "natOutgoing": False}
        self.create(CRD, "IPPool", "pool4", spec=spec)
        self.create("v1", "Node", NODE, metadata={"labels": {"kubernetes.io/hostname": NODE}})
        self.create("v1", "Namespace", RED, metadata={"labels": {"kubernetes.io/metadata.name": RED}})

    def pod(self, name: str, node: str = NODE, **metadata: Any) -> dict[str, Any]:
        spec = {"nodeName": node, "containers": [{"name": "main", "image": "x"}]}
        return self.create("v1", "Pod", name, RED, spec=spec, metadata=metadata)


@dataclass
class KubeSandbox(Sandbox):
    """Of a pod whose UID the runtime knows, as every kubelet's does."""

    uid: str = ""

    @property
    def where(self) -> dict[str, Any]:
        found = super().where
        args: Mapping[str, str] = found["args"]
        return {**found, "args": {**args, "K8S_POD_UID": self.uid}}


@dataclass
class Town:
    site: Site
    node: Node
    cluster: Cluster

    def status(self) -> Any:
        """What `tortie status` is told."""
        return json.loads(self.node.ask("/status")[1])

    def readiness(self) -> tuple[int, str]:
        """The status, and what is said of the picture."""
        code, text = self.node.ask("/readiness")
        return code, json.loads(text)["CalculationGraph"]["reason"]

    def told(self, name: str) -> dict[str, str]:
        """What the agent has written of a pod."""
        annotations = self.cluster.get("pods", name, RED)["metadata"].get("annotations", {})
        return {key.rpartition("/")[2]: value for key, value in annotations.items() if "projectcalico.org" in key}

    async def rested(self) -> None:
        """Until Kubernetes has been told of every pod, and some addresses are ready."""
        await soon(lambda: self.status()["cni"], lambda cni: cni["ready"] > 2 and not cni["pending"], "it rests")

    @asynccontextmanager
    async def pods(self, make_ns: Callable[..., Any]) -> AsyncIterator[Callable[..., Any]]:
        """Makes pods that the agent knows of; afterwards DEL, and their end."""
        made: list[KubeSandbox] = []

        async def make(name: str, *, add: bool = True, **metadata: Any) -> KubeSandbox:
            known = self.status()["cni"]["pods"]
            one = self.sandbox(self.cluster.pod(name, **metadata), make_ns(name))
            made.append(one)
            await soon(lambda: self.status()["cni"]["pods"] == known + 1, what=f"{name} is known")
            if add:
                await one.add()
            return one

        yield make
        for one in made:
            await one.delete()
            self.cluster.do(self.cluster.api.delete, "pods", one.pod, RED)
        await soon(lambda: self.status()["cni"]["pods"] == 0, what="the pods are gone")

    def sandbox(self, pod: Mapping[str, Any], ns: Any) -> KubeSandbox:
        metadata = pod["metadata"]
        return KubeSandbox(self.node, metadata["name"], ns, conflist=conflist(ipv6=False), uid=metadata["uid"])


@contextmanager
def town(directory: Path, *words: str) -> Iterator[Town]:
    """A node whose agent is not started yet."""
    with site_in(directory) as site:
        node = site.node(NODE, *words)
        node.ns.ip("link", "set", "lo", "up")
        kubeconfig = directory / "kubeconfig"
        cluster = Cluster(node.ns.path, kubeconfig)
        cluster.start()
        try:
            cluster.furnish()
            site.datastore = f"kubernetes:{kubeconfig}"  # type: ignore[assignment]
            yield Town(site, node, cluster)
        finally:
            if node.process is not None and node.process.poll() is None:
                node.kill()
            cluster.stop()


async def reaches(source: KubeSandbox, destination: KubeSandbox) -> bool:
    """Whether a packet and its answer come through."""
    assert source.ns is not None
    assert destination.ns is not None
    links = destination.ns.json("-4", "addr", "show", "dev", "eth0")
    (address,) = [one["local"] for link in links for one in link["addr_info"]]
    said = await asyncio.to_thread(source.ns.run, "ping", "-c1", "-W1", str(address), check=False)
    return " 1 received" in said
