"""Nodes on one wire, as the classic cases have them, each with plugins of its own: for tests of data paths.

                    wire (a bridge)
    ┌──────────┬──────────┴──────────┬─────────────┐
    gateway .1  master .7             node1 .8      node2 .9        10.211.55.0/24, all on their eth0

A plugin that a node runs sees the node's network namespace and the node's own /var/lib/cni.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cni_plugins import Caller, Said, put
from namespaces import Ns

ROOT = Path(__file__).parents[1]
CASES = ROOT / "examples" / "cases"
NODES = {"master": 7, "node1": 8, "node2": 9}
GATEWAY = 1
LAN = "10.211.55"
NET = {"node1": "10.211.57.0/24", "node2": "10.211.59.0/24"}
"""Of the pods of ipvlan-l3."""
PING_SECONDS = 1
PORT = "8080"

_serial = itertools.count(1)


@dataclass
class Pod:
    """A namespace attached to a network, and what was said about it. `id` is the container's."""

    ns: Ns
    id: str
    conf: dict[str, Any]
    result: Any = None

    @property
    def ip(self) -> str:
        """Its first address, without the prefix length."""
        result = self.result
        first = result["ip4"]["ip"] if "ip4" in result else result["ips"][0]["address"]
        return str(first.partition("/")[0])

    @property
    def eth0(self) -> dict[str, Any]:
        (link,) = self.ns.json("link", "show", "eth0")
        return link

    def reaches(self, address: str) -> bool:
        return reaches(self.ns, address)


@dataclass
class Machine:
    """A node: its namespace, and the plugins as it runs them."""

    ns: Ns
    address: str
    call: Caller
    pods: list[Pod] = field(default_factory=list)

    @property
    def mac(self) -> str:
        (link,) = self.ns.json("link", "show", "eth0")
        return str(link["address"])

    def say(self, command: str, pod: Pod, conf: Mapping[str, Any] | None = None, **env: str) -> Said:
        return self.call(command, pod.conf if conf is None else conf, netns=pod.ns.path, container=pod.id, **env)

    def add(self, pod: Pod) -> Pod:
        pod.result = self.call.add(pod.conf, netns=pod.ns.path, container=pod.id)
        self.pods.append(pod)
        return pod

    def delete(self, pod: Pod, *, told: bool = False) -> None:
        """`told`: with the result of ADD, as runtimes do it from 0.4.0 on."""
        said = self.say("DEL", pod, {**pod.conf, "prevResult": pod.result} if told else None)
        assert said.code == 0, said

    def reaches(self, address: str) -> bool:
        return reaches(self.ns, address)

    def siblings(self) -> list[str]:
        return [each["ifname"] for each in self.ns.json("link", "show") if each["ifname"].startswith("cniv")]


def reaches(ns: Ns, address: str) -> bool:
    words = ("ping", "-n", "-c", "1", "-W", str(PING_SECONDS), address)
    return "1 received" in ns.run(*words, check=False)


class Wire:
    """The segment, with as many of NODES as are wanted."""

    def __init__(self, make_ns: Callable[..., Ns], directory: Path, names: tuple[str, ...] = tuple(NODES)) -> None:
        self.make_ns = make_ns
        self.bin = put(directory / "bin")
        self.switch = make_ns("wire")
        self.switch.ip("link", "add", "br0", "type", "bridge")
        self.switch.ip("link", "set", "br0", "up")
        self.gateway = self._plug("gw", GATEWAY)
        self.nodes = {name: self._node(name, directory / name) for name in names}

    def _plug(self, name: str, number: int) -> Ns:
        ns = self.make_ns(name)
        ns.ip("link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", self.switch.name)
        self.switch.ip("link", "set", f"port{number}", "master", "br0", "up")
        ns.run("ip", "-batch", "-", stdin=f"link set eth0 up\naddress add {LAN}.{number}/24 dev eth0\n")
        return ns

    def _node(self, name: str, directory: Path) -> Machine:
        number = NODES[name]
        ns = self._plug(name, number)
        ns.ip("route", "add", "default", "via", f"{LAN}.{GATEWAY}")
        state = directory / "state"
        state.mkdir(parents=True)
        return Machine(ns, f"{LAN}.{number}", Caller(self.bin, ns.name, state=state))

    def pod(self, conf: Mapping[str, Any]) -> Pod:
        """A namespace that is not attached yet."""
        number = next(_serial)
        return Pod(self.make_ns("pod"), f"ctr{number}", dict(conf))

    def attached(self, node: str, conf: Mapping[str, Any]) -> Pod:
        return self.nodes[node].add(self.pod(conf))


def case(name: str, node: str) -> dict[str, Any]:
    """A file of the classic cases, as it is."""
    conf: dict[str, Any] = json.loads((CASES / name / f"{node}.conf").read_text())
    return conf


def l3_pods(wire: Wire, **more: Any) -> tuple[Pod, Pod]:
    """Of ipvlan-l3, one on each of node1 and node2."""
    one, two = (wire.attached(name, {**case("ipvlan-l3", name), **more}) for name in NET)
    return one, two


def route_nodes(wire: Wire) -> None:
    """What had to be typed on the nodes: routes 2 and 4."""
    for name, other in (("node1", "node2"), ("node2", "node1")):
        wire.nodes[name].ns.ip("route", "add", NET[other], "via", wire.nodes[other].address, "dev", "eth0")


# --- servers and translation --------------------------------------------------------------------------------------


@contextmanager
def serving(ns: Ns) -> Iterator[None]:
    """A server on PORT that says hello to each who comes."""
    words = ["ip", "netns", "exec", ns.name, "busybox", "nc", "-ll", "-p", PORT, "-e", "echo", "hello"]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def greeted(ns: Ns, address: str) -> bool:
    words = ["busybox", "timeout", "2", "busybox", "nc", "-w", "2", address, PORT]
    return any("hello" in ns.run(*words, check=False) for _ in range(2))  # the server may be about to start


def nat(node: Machine, rules: str) -> None:
    node.ns.run("nft", "-f", "-", stdin=f"table ip nat\ndelete table ip nat\ntable ip nat {{\n{rules}\n}}")


MASQUERADE = "chain post { type nat hook postrouting priority 100; ct status dnat masquerade; }"


def published(pod: Pod) -> str:
    return f"chain pre {{ type nat hook prerouting priority -100; tcp dport {PORT} dnat to {pod.ip}; }}"
