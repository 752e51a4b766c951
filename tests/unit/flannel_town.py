"""Kubernetes' Nodes as flannel has them, and an API server that lies, lags and goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from ipaddress import IPv4Address
from typing import Any, TypeVar

from msgspec.structs import replace

from tortie.base.errors import Compacted, NotFound, Unavailable
from tortie.flannel.config import NetworkConfig, parse
from tortie.flannel.lease import Attrs
from tortie.model.k8s import K8sNode, K8sNodeSpec
from tortie.model.meta import Metadata, Resource, changed
from tortie.model.store import Event, Listing
from tortie.store.memory import MemoryStore

R = TypeVar("R", bound=Resource)

P = "flannel.alpha.coreos.com/"
MAC = '{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}'
MAC6 = '{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e4"}'
NET = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
DUAL = (
    '{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:244::/48", "Backend": {"Type": "vxlan"}}'
)
OWN = Attrs(IPv4Address("192.0.2.1"), None, "vxlan", MAC)


def config(text: str = NET) -> NetworkConfig:
    return parse(text, "net-conf.json")


def node(name: str = "n1", *cidrs: str, status: Any = None, **annotations: str) -> K8sNode:
    """With flannel's annotations, `_` for `-`. Without `cidrs` node n7 has 10.244.7.0/24."""
    said = {P + key.replace("_", "-"): value for key, value in annotations.items()}
    spec = K8sNodeSpec(pod_cidrs=cidrs or (f"10.244.{name[1:]}.0/24",))
    return K8sNode(metadata=Metadata(name=name, annotations=said), spec=spec, status=status)


def flannels(name: str, **more: str) -> K8sNode:
    said = {"backend_type": "vxlan", "backend_data": MAC, "public_ip": f"192.0.2.{name[1:]}"}
    return node(name, **{**said, "kube_subnet_manager": "true", **more})


class Town(MemoryStore):
    """An API server that can be away, forget, and leave out of lists what it has."""

    def __init__(self) -> None:
        super().__init__()
        self.away = ""
        self.hidden: set[str] = set()
        self.forgets = False
        self.revision = ""
        self.lists = 0
        self.broken = asyncio.Event()
        self.others: list[Callable[[], Awaitable[Any]]] = []
        """What others write, each just before a write of ours."""

    def _open(self) -> None:
        if self.away:
            raise Unavailable(self.away)

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        self._open()
        if self.forgets:
            raise NotFound(f"no {name}")
        return await super().get(kind, name, namespace)

    async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
        self._open()
        self.lists += 1
        found = await super().list(kind, namespace)
        items = tuple(one for one in found.items if one.name not in self.hidden and not self.forgets)
        return Listing(items, self.revision or found.revision)

    async def update(self, obj: R) -> R:
        self._open()
        if self.others:
            await self.others.pop(0)()
        return await super().update(obj)

    async def watch(self, kind: type[R], revision: str) -> AsyncIterator[tuple[Event[R], ...]]:
        """Ends with `cut`."""
        self._open()
        self.broken.clear()
        batches = super().watch(kind, revision)
        async with aclosing(batches):  # type: ignore[type-var]
            while True:
                cut = asyncio.ensure_future(self.broken.wait())
                batch = asyncio.ensure_future(anext(batches))  # type: ignore[arg-type]
                try:
                    await asyncio.wait((cut, batch), return_when=asyncio.FIRST_COMPLETED)
                    if cut.done():
                        raise Compacted("gone") if not self.away else Unavailable(self.away)
                    found = batch.result()
                finally:
                    for task in (cut, batch):
                        task.cancel()
                    await asyncio.wait((cut, batch))  # and whoever cancels us meanwhile is heard
                yield found

    def cut(self, why: str = "") -> None:
        """Every watch ends: with the history lost, or because the server is away."""
        self.away = why
        self.broken.set()

    async def touch(self, name: str = "n1") -> None:
        """As a kubelet does."""
        there = await MemoryStore.get(self, K8sNode, name)
        beats = (there.status or {}).get("beats", 0) + 1
        await MemoryStore.update(self, replace(there, status={**(there.status or {}), "beats": beats}))

    async def put(self, one: K8sNode) -> None:
        """Whatever was there of that name; annotations and CIDRs as they are here."""
        try:
            there = await MemoryStore.get(self, K8sNode, one.name)
        except NotFound:
            await self.create(one)
        else:
            new = changed(there, annotations=one.metadata.annotations)
            await MemoryStore.update(self, replace(new, spec=one.spec))
