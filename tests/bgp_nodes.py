"""Nodes that speak BGP as their resources say: a namespace, what `calc` and `render` make of the resources, and BIRD.

No agent: the pods' routes are written by hand.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from namespaces import Ns
from tortie.bgp.birdc import Route, parse_protocols, parse_routes
from tortie.calc.cluster import Cluster
from tortie.kernel.bird import Bird
from tortie.model.document import parse
from tortie.model.ipam import BlockAffinity, BlockAffinitySpec
from tortie.model.meta import Metadata, Resource
from tortie.model.secret import encoded
from tortie.render.bird import render
from tortie.render.routing import bird_config

T = TypeVar("T")


def eventually(look: Callable[[], T], want: Callable[[T], bool] = bool, what: str = "", seconds: float = 20.0) -> T:
    """What `look` returns once it is as wanted."""
    deadline = time.monotonic() + seconds
    while not want(seen := look()):
        assert time.monotonic() < deadline, f"{what}: after {seconds:g} s still {seen}"
        time.sleep(0.1)
    return seen


def base64(text: str) -> str:
    """As a Secret has it."""
    return encoded({"": text})[""]


def resources(text: str, **values: object) -> tuple[Resource, ...]:
    """The objects of a YAML text in which `@name@` stands for a value."""
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return tuple(parse(text))


def configuration(node: str, every: Iterable[Resource]) -> str:
    """bird.conf of a node in a cluster of these objects."""
    cluster = Cluster(node)
    for one in every:
        cluster.put(one)
    assert not cluster.problems, cluster.problems
    config = bird_config(cluster.state(), connect_delay=0)
    assert config is not None, f"{node} has no address to speak from"
    return render(config)


@dataclass(eq=False)
class BgpNode:
    """A node and its BIRD. `directory` is where bird.conf and the control socket are."""

    name: str
    ns: Ns
    directory: Path
    bird: Bird = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        files = (self.directory / name for name in ("bird.conf", "bird.ctl", "bird.log"))
        config, control, log = files
        self.bird = Bird(config, control, self.ns.name, log=log)

    def start(self, *every: Resource) -> None:
        self.bird.swap(configuration(self.name, every))
        assert self.bird.start(recover=False)

    def configure(self, *every: Resource) -> bool:
        """Whether anything changed."""
        return self.bird.swap(configuration(self.name, every))

    def sessions(self) -> dict[str, bool]:
        """Whether each is established, by name."""
        rows = parse_protocols(self.bird.ask("show protocols all"))
        return {row.name: row.session.established for row in rows if row.session is not None}

    def since(self) -> dict[str, str]:
        """Since when each session is as it is."""
        return {row.name: row.since for row in parse_protocols(self.bird.ask("show protocols all")) if row.session}

    def table(self, where: str = "") -> dict[str, Route]:
        """BIRD's best routes, by prefix."""
        rows = parse_routes(self.bird.ask(f"show route all {where}".rstrip()))
        return {str(row.prefix): row for row in rows if row.best}

    def fib(self, protocol: str = "bird") -> Mapping[str, dict[str, Any]]:
        """Routes of a protocol in the main table, both families, by destination."""
        every = [row for version in (4, 6) for row in self.ns.json(f"-{version}", "route", "show", "proto", protocol)]
        return {row["dst"]: row for row in every}


def link(switch: Ns, ns: Ns, number: int) -> None:
    """eth0 of a namespace, with the addresses 10.9.0.NUMBER and fd00:9::NUMBER, on the bridge br0 of the switch."""
    ns.ip("link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", switch.name)
    switch.ip("link", "set", f"port{number}", "master", "br0", "up")
    ns.ip("link", "set", "eth0", "up")
    ns.ip("addr", "add", f"10.9.0.{number}/24", "dev", "eth0")
    ns.ip("addr", "add", f"fd00:9::{number}/64", "dev", "eth0", "nodad")


def workloads(ns: Ns, *addresses: str) -> None:
    """The routes that an agent writes for pods, on a veth whose far end stays here."""
    ns.ip("link", "add", "cali1", "type", "veth", "peer", "name", "pod1")
    for name in ("cali1", "pod1"):
        ns.ip("link", "set", name, "up")
    for address in addresses:
        ns.ip("route", "add", address, "dev", "cali1", "proto", "boot", "metric", "1024")


def block(node: str, cidr: str) -> BlockAffinity:
    """A block that a node holds."""
    name = f"{node}-{cidr.replace('.', '-').replace(':', '-').replace('/', '-')}"
    spec = BlockAffinitySpec(cidr=cidr, node=node, state="confirmed", deleted=False)
    return BlockAffinity(metadata=Metadata(name=name), spec=spec)


@contextmanager
def deleted(ns: Ns) -> Iterator[list[str]]:
    """What is deleted of the routing tables meanwhile, as `ip monitor` tells it; filled in at the end."""
    said: list[str] = []
    words = ["ip", "-n", ns.name, "monitor", "route"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as monitor:
        try:
            yield said
        finally:
            monitor.terminate()
            assert monitor.stdout is not None
            said += [line for line in monitor.stdout.read().splitlines() if line.startswith("Deleted")]
