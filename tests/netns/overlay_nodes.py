"""Nodes with agents on a network of their own, for the tests of overlays: a switch in a namespace, each node's `eth0`
plugged into it, and pods that ping each other.

    node a ── eth0 ──┐
    node b ── eth0 ──┤ switch (a bridge)          a router is one more namespace with a leg in several switches
    node c ── eth0 ──┘
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from agent_node import Node, Sandbox, Site, conflist, ips, pod, until
from msgspec.structs import replace

from namespaces import Ns
from tortie.base.errors import Conflict
from tortie.model.ipam import IPPool
from tortie.model.store import Store

MakeNs = Callable[..., Ns]


@dataclass
class Switch:
    """A bridge in a namespace. Whoever is plugged in has its `eth0`, or a name of its choice, there."""

    ns: Ns
    legs: int = 0

    @classmethod
    def made(cls, make_ns: MakeNs, label: str = "switch") -> Switch:
        ns = make_ns(label)
        ns.ip("link", "add", "br0", "type", "bridge")
        ns.ip("link", "set", "br0", "up")
        return cls(ns)

    def plug(self, ns: Ns, *addresses: str, name: str = "eth0") -> None:
        self.legs += 1
        leg = f"leg{self.legs}"
        self.ns.ip("link", "add", leg, "type", "veth", "peer", "name", name, "netns", ns.name)
        self.ns.ip("link", "set", leg, "master", "br0", "up")
        for address in addresses:
            ns.ip("address", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
        ns.ip("link", "set", name, "up")


@dataclass
class Town:
    """Nodes by name, all plugged into one switch unless told, and pods on them."""

    site: Site
    make_ns: MakeNs
    nodes: dict[str, Node] = field(default_factory=dict)
    pods: dict[str, tuple[Sandbox, Ns, list[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.switch = Switch.made(self.make_ns)

    def node(self, name: str, *words: str, ipv4: str, ipv6: str = "", switch: Switch | None = None) -> Node:
        made = self.site.node(name, *words, ipv4=ipv4, ipv6=ipv6)
        (switch or self.switch).plug(made.ns, *([ipv4, ipv6] if ipv6 else [ipv4]))
        self.nodes[name] = made
        return made

    async def pod(self, store: Store, name: str, node: str) -> Ns:
        await store.create(pod(name, node))
        ns = self.make_ns(name)
        one = Sandbox(self.nodes[node], name, ns, conflist=conflist("1.1.0"))
        self.pods[name] = one, ns, ips(await one.add())
        return ns

    def ip(self, name: str, version: int = 4) -> str:
        return next(ip for ip in self.pods[name][2] if (":" in ip) == (version == 6))

    def pings(self, source: Ns, ip: str, wait: float = 1.0, *options: str) -> bool:
        words = ["ping", "-c", "1", "-W", str(wait), "-n", *options, ip]
        return "1 received" in source.run(*words, check=False)

    def reach(self, source: str, target: str, version: int = 4) -> None:
        """Until a ping from one pod to another is answered."""
        ip = self.ip(target, version)
        # A session that is refused because the other BIRD is not there yet is tried again after some seconds.
        what = f"{source} reaches {target} at {ip}"
        until(lambda: self.pings(self.pods[source][1], ip, 0.2), what=what, seconds=60)


async def change_pool(store: Store, name: str, **fields: Any) -> None:
    """Fields of its spec, as the model calls them."""
    while True:
        one = await store.get(IPPool, name)
        with suppress(Conflict):
            await store.update(replace(one, spec=replace(one.spec, **fields)))
            return
