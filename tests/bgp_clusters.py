"""Clusters on paper, as far as their routing goes: nodes n1, n2 ... of one subnet, a block each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tortie.calc.admission import Objects
from tortie.calc.bgp_plan.changes import copied
from tortie.model.bgp import BGPConfiguration, BGPPeer
from tortie.model.document import convert
from tortie.model.ipam import BlockAffinity, IPPool
from tortie.model.node import FelixConfiguration, Node
from tortie.model.secret import Secret, encoded


def node(number: int, *, label: str = "", subnet: int = 0, **bgp: Any) -> Node:
    bgp = {"ipv4Address": f"10.0.{subnet}.{number}/24", **bgp}
    labels = {"role": label} if label else {}
    return convert(Node, {"metadata": {"name": f"n{number}", "labels": labels}, "spec": {"bgp": bgp}})


def block(number: int, cidr: str = "") -> BlockAffinity:
    spec = {"node": f"n{number}", "cidr": cidr or f"10.244.{number}.0/26", "state": "confirmed"}
    return convert(BlockAffinity, {"metadata": {"name": f"n{number}-{spec['cidr'].replace('/', '-')}"}, "spec": spec})


def pool(**spec: Any) -> IPPool:
    return convert(IPPool, {"metadata": {"name": "pool"}, "spec": {"cidr": "10.244.0.0/16", **spec}})


def config(**spec: Any) -> BGPConfiguration:
    return convert(BGPConfiguration, {"metadata": {"name": "default"}, "spec": spec})


def felix(said: str, name: str = "default") -> FelixConfiguration:
    return convert(FelixConfiguration, {"metadata": {"name": name}, "spec": {"programClusterRoutes": said}})


def peer(name: str = "reflectors", **spec: Any) -> BGPPeer:
    spec = spec or {"nodeSelector": "all()", "peerSelector": "role == 'rr'"}
    return convert(BGPPeer, {"metadata": {"name": name}, "spec": spec})


def secret(**text: str) -> Secret:
    return convert(Secret, {"metadata": {"name": "bgp", "namespace": "kube-system"}, "data": encoded(text)})


MESH, NO_MESH = config(nodeToNodeMeshEnabled=True), config(nodeToNodeMeshEnabled=False)


def mesh(count: int = 6, holders: Iterable[int] = range(1, 7)) -> Objects:
    return Objects([*(node(i) for i in range(1, count + 1)), *map(block, holders), pool(), MESH])


def reflected(before: Objects) -> Objects:
    """The same with n1 and n2 as reflectors instead of the mesh."""
    after = copied(before)
    for one in (node(1, label="rr", routeReflectorClusterID="1.0.0.1"),
                node(2, label="rr", routeReflectorClusterID="1.0.0.1"), peer(), NO_MESH):  # fmt: skip
        after.put(one)
    return after
