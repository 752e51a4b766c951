"""Small clusters for tests of BGP: objects go in, and what one node's bird.conf says comes out.

A, B, C are nodes with the addresses 10.0.0.1, .2, .3 in AS 64512; A has the block 192.168.1.0/26 and B 192.168.2.0/26
of the pool 192.168.0.0/16.
"""

from __future__ import annotations

import re
from typing import Any

from tortie.calc.cluster import Cluster
from tortie.calc.routing import BgpEnvironment
from tortie.model.bgp import BGPConfiguration, BGPPeer
from tortie.model.document import convert
from tortie.model.ipam import BlockAffinity, IPPool
from tortie.model.meta import Resource
from tortie.model.node import FelixConfiguration, Node
from tortie.model.secret import Secret, encoded
from tortie.model.service import EndpointSlice, Service
from tortie.render.bird import render
from tortie.render.routing import bird_config


def named(kind: type[Resource], name: str, namespace: str = "", **body: Any) -> Any:
    metadata = {"name": name, "labels": body.pop("labels", {})} | ({"namespace": namespace} if namespace else {})
    return convert(kind, {"metadata": metadata, **body})


def node(name: str, number: int, labels: dict[str, str] | None = None, **bgp: Any) -> Node:
    bgp = {"ipv4Address": f"10.0.0.{number}/24", **bgp}
    made: Node = named(Node, name, labels=labels or {}, spec={"bgp": bgp})
    return made


def block(name: str, cidr: str, state: str = "confirmed") -> BlockAffinity:
    text = cidr.replace(".", "-").replace("::/", "-").replace(":", "-").replace("/", "-")
    spec = {"cidr": cidr, "node": name, "state": state, "deleted": False, "type": "host"}
    made: BlockAffinity = named(BlockAffinity, f"{name}-{text}", spec=spec)
    return made


def pool(cidr: str = "192.168.0.0/16", **spec: Any) -> IPPool:
    made: IPPool = named(IPPool, f"pool-{cidr.partition('.')[0]}", spec={"cidr": cidr, **spec})
    return made


def bgp(name: str = "default", **spec: Any) -> BGPConfiguration:
    made: BGPConfiguration = named(BGPConfiguration, name, spec=spec)
    return made


def felix(**spec: Any) -> FelixConfiguration:
    made: FelixConfiguration = named(FelixConfiguration, "default", spec=spec)
    return made


def peer(name: str = "peer", **spec: Any) -> BGPPeer:
    made: BGPPeer = named(BGPPeer, name, spec=spec)
    return made


A, B, C = node("a", 1), node("b", 2), node("c", 3)
BLOCKS = (block("a", "192.168.1.0/26"), block("b", "192.168.2.0/26"))
TOR = {"peerIP": "10.0.0.9", "asNumber": 64999}


class Seen:
    """What a node makes of objects."""

    def __init__(self, here: str, *resources: Resource, environment: BgpEnvironment | None = None) -> None:
        self.cluster = Cluster(here, environment=environment)
        if not any(isinstance(one, IPPool) for one in resources):
            self.put(pool())
        self.put(*BLOCKS, *resources)

    def put(self, *resources: Resource) -> None:
        for one in resources:
            self.cluster.put(one)

    @property
    def text(self) -> str:
        """bird.conf."""
        config = bird_config(self.cluster.state(), 2)
        assert config is not None
        return render(config)

    @property
    def sessions(self) -> dict[str, str]:
        """The text of each session, by name."""
        return dict(re.findall(r"^protocol bgp (\S+) from [^{]*\{\n(.*?)^\}", self.text, re.MULTILINE | re.DOTALL))

    @property
    def names(self) -> set[str]:
        return set(self.sessions)

    @property
    def blackholes(self) -> set[str]:
        """What the node announces of its own."""
        return set(re.findall(r"^  route (\S+) blackhole;", self.text, re.MULTILINE))

    def part(self, start: str) -> str:
        """A function, filter or protocol, from its first words to its end."""
        begin = self.text.index(f"\n{start}")
        return self.text[begin : self.text.index("\n}", begin)]


def service(name: str = "web", number: int = 1, **spec: Any) -> Service:
    status = {"loadBalancer": {"ingress": [{"ip": ip} for ip in spec.pop("ingress", ())]}}
    spec = {"type": "LoadBalancer", "clusterIP": f"10.96.0.{number}", **spec}
    made: Service = named(Service, name, "default", spec=spec, status=status)
    return made


def slice_(*nodes: str, of: str = "web", ready: bool | None = None, family: str = "IPv4") -> EndpointSlice:
    conditions = {} if ready is None else {"ready": ready}
    ips = (f"10.244.0.{i}" if family == "IPv4" else f"fd00:244::{i}" for i in range(1, 9))
    endpoints = [
        {"addresses": [ip], "nodeName": where, "conditions": conditions} for ip, where in zip(ips, nodes, strict=False)
    ]
    labels = {"kubernetes.io/service-name": of}
    made: EndpointSlice = named(
        EndpointSlice, f"{of}-{family.lower()}", "default", labels=labels, addressType=family, endpoints=endpoints
    )
    return made


def nets(*cidrs: str) -> list[dict[str, str]]:
    return [{"cidr": cidr} for cidr in cidrs]


def secret(name: str = "bgp", namespace: str = "kube-system", **text: str) -> Secret:
    made: Secret = named(Secret, name, namespace, data=encoded(text))
    return made
