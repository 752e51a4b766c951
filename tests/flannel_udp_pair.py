"""Two nodes of the udp backend with a pod each, their proxies, and what tests of them have in common."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flannel_nodes import FlannelNode, Wire, all_know, network_config
from namespaces import Ns
from tortie.flannel.backend import Setting
from tortie.flannel.backends.udp import Udp
from tortie.flannel.udp import build, proxy
from tortie.kernel.netns import entered

ALIAS = "tortie flannel 10.5.0.0/16"


def compiled(directory: Path) -> Setting:
    build.build(directory)
    return Setting(directory)


@dataclass
class Pair:
    one: FlannelNode
    two: FlannelNode
    wire: Wire

    def carry_out(self, node: FlannelNode) -> list[str]:
        leases = [each.lease for each in (self.one, self.two) if each is not node]
        with entered(node.ns.path):
            return list(asyncio.run(node.backend.carry_out(node.place, leases)))

    def ready(self, *nodes: FlannelNode) -> None:
        for node in nodes or (self.one, self.two):
            node.start()
            node.pod.ip("link", "set", "eth0", "mtu", "1472")
        all_know((self.one, self.two))
        for node in (self.one, self.two):
            assert self.carry_out(node) == []


def udp_of(node: FlannelNode) -> Udp:
    assert isinstance(node.backend, Udp)
    return node.backend


def proxy_of(node: FlannelNode) -> proxy.Proxy:
    found = udp_of(node)._proxy
    assert found is not None
    return found


def end(node: FlannelNode) -> None:
    with contextlib.suppress(AttributeError):  # it was not started
        asyncio.run(node.backend.end())


@contextlib.contextmanager
def two_nodes(make_ns: Callable[..., Ns], setting: Setting) -> Iterator[Pair]:
    wire = Wire(make_ns)
    one, two = (wire.node(number, network_config("udp"), setting=setting) for number in (1, 2))
    made = Pair(one, two, wire)
    try:
        made.ready()
        yield made
    finally:
        for node in (one, two):
            end(node)


def sock(ns: Ns, kind: int = socket.SOCK_DGRAM, protocol: int = 0, timeout: float = 5) -> socket.socket:
    with entered(ns.path):
        made = socket.socket(socket.AF_INET, kind, protocol)
    made.settimeout(timeout)
    return made


def eventually(what: Callable[[], bool], seconds: float = 5) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Ended with all of its threads, whether or not somebody has asked for its status."""
    try:
        first = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return first == "Z" and len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
    except (FileNotFoundError, ProcessLookupError):
        return True
