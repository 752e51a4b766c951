"""A hall with a switch: nodes and a client on one link, for tests of addresses that a node answers for.

Behind each address of a load balancer is the node itself (nft redirects), where a server tells the node's name.

`python layer2_hall.py NODE DATABASE ADDRESS...` is one node as a process of its own, in its namespace.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest

from namespaces import Ns
from tortie.base.addr import IP
from tortie.calc.proxy.state import ProxyState
from tortie.kernel.netns import entered
from tortie.model.store import Store
from tortie.proxy.layer2.announcer import Layer2
from tortie.proxy.layer2.frames import announcements, probe
from tortie.store.memory import MemoryStore
from tortie.store.sqlite import SqliteStore

PORT = 8080
CLIENT4, CLIENT6 = "192.0.2.9", "fd00::9"
VIP, VIP6 = ip_address("192.0.2.100"), ip_address("fd00::100")
PATIENCE = 30.0
REDIRECT = """
table inet hall {{
    chain prerouting {{
        type nat hook prerouting priority dstnat
        ip daddr 192.0.2.100-192.0.15.255 redirect
        ip6 daddr fd00::100-fd00::ffff redirect
    }}
}}
"""


@dataclass
class Hall:
    """`switch` has the bridge; each party an interface eth0, with the address that its number says. `snooping`: groups
    reach only those who have told the switch that they are members."""

    make: Callable[..., Ns]
    snooping: bool = False
    switch: Ns = field(init=False)
    client: Ns = field(init=False)
    servers: list[socket.socket] = field(default_factory=list)
    _numbers: int = 0

    def __post_init__(self) -> None:
        self.switch = self.make("switch")
        listens = str(int(self.snooping))
        snoop = ["mcast_snooping", listens, "mcast_querier", listens]
        self.switch.ip("link", "add", "br0", "type", "bridge", *snoop)
        self.switch.ip("link", "set", "br0", "up")
        self.client = self.party("client", "192.0.2.9/20", "fd00::9/64")

    def party(self, label: str, *addresses: str, interface: str = "eth0", ns: Ns | None = None) -> Ns:
        """A fresh namespace, or `ns`, with one more interface on the switch."""
        self._numbers += 1
        found = ns or self.make(label)
        port = f"p{self._numbers}"
        found.ip("link", "add", interface, "type", "veth", "peer", "name", port, "netns", self.switch.name)
        self.switch.batch(f"link set {port} master br0", f"link set {port} up")
        found.ip("link", "set", interface, "up")
        for address in addresses:
            found.ip("address", "add", address, "dev", interface, *(["nodad"] if ":" in address else []))
        return found

    def node(self, number: int) -> Ns:
        """A node where every address of a load balancer leads to a server that tells `node<number>`."""
        found = self.party(f"node{number}", f"192.0.2.{number}/20", f"fd00::{number}/64")
        found.run("nft", "-f", "-", stdin=REDIRECT.format())
        self.serve(found, f"node{number}")
        return found

    def serve(self, ns: Ns, text: str) -> None:
        with entered(ns.path):
            server = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
        self.servers.append(server)
        threading.Thread(target=_serve, args=(server, text.encode()), daemon=True).start()

    def close(self) -> None:
        for server in self.servers:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()

    def forget(self) -> None:
        """The client knows no neighbours any more."""
        self.client.ip("neigh", "flush", "all")

    def ask(self, ip: IP, timeout: float = 3.0) -> str:
        """Who serves the client at an address; "" for nobody."""
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        with entered(self.client.path):
            sock = socket.socket(family, socket.SOCK_STREAM)
        with sock:
            sock.settimeout(timeout)
            try:
                sock.connect((str(ip), PORT))
                return sock.recv(64).decode()
            except OSError:
                return ""

    def neighbour(self, ip: IP) -> str:
        """The MAC address that the client's kernel knows for an address."""
        entries = self.client.json("neigh", "show", "to", str(ip), "dev", "eth0")
        return next((entry["lladdr"] for entry in entries if "lladdr" in entry), "")

    def babble(self, frames: int) -> None:
        """The client sends nonsense to everybody."""
        mac = bytes.fromhex(mac_of(self.client).replace(":", ""))
        with entered(self.client.path):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with sock:
            sock.bind(("eth0", 0))
            for frame in _strays(mac, frames):
                sock.send(frame)

    def arping(self, ip: IP, seconds: float = 0.7) -> set[str]:
        """All that answer an ARP request of the client's."""
        mac = bytes.fromhex(mac_of(self.client).replace(":", ""))
        request = struct.pack(
            "!6s6sHHHBBH6s4s6s4s", b"\xff" * 6, mac, 0x0806, 1, 0x0800, 6, 4, 1, mac,
            socket.inet_aton(CLIENT4), bytes(6), ip.packed,
        )  # fmt: skip
        with entered(self.client.path):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
        answers = set()
        with sock:
            sock.bind(("eth0", 0x0806))
            sock.send(request)
            deadline = time.monotonic() + seconds
            while (left := deadline - time.monotonic()) > 0:
                sock.settimeout(left)
                with suppress(OSError):
                    frame = sock.recv(128)
                    if frame[:6] == mac and frame[20:22] == b"\0\2" and frame[28:32] == ip.packed:
                        answers.add(frame[22:28].hex(":"))
        return answers


class Running:
    """Nodes of one datastore, run by this process."""

    def __init__(self) -> None:
        self.store: Store = MemoryStore()
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, ns: Ns, layer2: dict[IP, frozenset[str] | None], store: Store | None = None) -> Layer2:
        made = Layer2(name, store or self.store, ns.path)
        made.see(state_of(layer2), serving=True)
        self.tasks[name] = asyncio.create_task(made.run(), name=name)
        return made

    async def stop(self, name: str) -> None:
        task = self.tasks.pop(name)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _strays(mac: bytes, frames: int) -> Iterator[bytes]:
    """Frames of a host that has gone mad: cut short, damaged, or of nothing but chance."""
    chance = random.Random(1)
    for n in range(frames):
        ip = VIP if n % 2 else VIP6
        frame = bytearray(probe(ip, mac) if n % 3 else announcements(ip, mac)[0])
        for _ in range(n % 5):
            frame[chance.randrange(14, len(frame))] = chance.randrange(256)
        yield bytes(frame[: chance.randrange(14, len(frame) + 1)]) if n % 4 else frame[:14] + chance.randbytes(60)


@pytest.fixture
def hall(make_ns: Callable[..., Ns]) -> Iterator[Hall]:
    found = Hall(make_ns)
    yield found
    found.close()


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    found = Running()
    yield found
    for name in list(found.tasks):
        await found.stop(name)
    await found.store.close()


def _serve(server: socket.socket, text: bytes) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection, suppress(OSError):
            connection.sendall(text)


def mac_of(ns: Ns, interface: str = "eth0") -> str:
    return str(ns.json("link", "show", interface)[0]["address"])


def state_of(layer2: Mapping[IP, frozenset[str] | None]) -> ProxyState:
    return ProxyState(layer2=layer2)


async def until(what: str, holds: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Waits on the loop. `holds` must not block."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        await asyncio.sleep(0.02)
    return found


async def _main(node: str, database: str, *addresses: str) -> None:
    logging.basicConfig(level=logging.INFO)
    store = SqliteStore(database)
    layer2 = Layer2(node, store)
    layer2.see(state_of({ip_address(text): None for text in addresses}), serving=True)
    try:
        await layer2.run()
    finally:
        await store.close()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
