"""The agent of a busy node is killed and started again: no packet is lost that policy allows, and none passes that it
forbids. Fifty pods, two hundred policies; every packet is counted.

    new           each datagram from a socket of its own: policy is asked about every one of them
    established   datagrams with an answer: two pods that have talked before
"""

from __future__ import annotations

import asyncio
import os
import random
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from agent_node import Node, Site, site_in, until

from busy_node import PODS, PORTS, Pod, Way, changed_policies, verdicts, world
from tortie.base.addr import parse_ip
from tortie.dataplane.attachment import Attachment, attach
from tortie.kernel import netns
from tortie.model.meta import Resource

pytestmark = pytest.mark.root

TALKERS = 32
"""Pods that send and are sent to."""
FLOWS = 25
"""Of each: allowed, forbidden, established."""
INTERVAL = 0.02
KILLS = 3
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
RNG = random.Random(200)

# --- the flood ----------------------------------------------------------------------------------------------------


@dataclass
class Flow:
    """Numbered datagrams one way."""

    way: Way
    number: int
    talks: bool = False
    """Whether it is one connection, with answers."""
    sent: int = 0
    arrived: set[int] = field(default_factory=set)
    client: socket.socket | None = None

    @property
    def lost(self) -> list[int]:
        return [one for one in range(self.sent) if one not in self.arrived]


class Flood:
    """Every flow sends in each round, for as long as the block lasts."""

    def __init__(self, spaces: dict[Pod, str], flows: list[Flow]) -> None:
        self.flows = flows
        self.rounds = 0
        self._spaces = {pod: netns.open_ns(path) for pod, path in spaces.items()}
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        for pod in spaces:
            for port in PORTS:
                self._listen(pod, port)
        for flow in flows:
            if flow.talks:
                flow.client = self._listen(flow.way[0], 0)
        self._clients = {flow.client.fileno() for flow in flows if flow.client is not None}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=one, name=one.__name__) for one in (self._send, self._receive)]

    def _listen(self, pod: Pod, port: int) -> socket.socket:
        made = self._open(pod)
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
        made.setblocking(False)
        made.bind((pod.ip, port))
        self._sockets[made.fileno()] = made
        self._epoll.register(made.fileno(), select.EPOLLIN)
        return made

    def _open(self, pod: Pod) -> socket.socket:
        with netns.entered(self._spaces[pod]):
            return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def __enter__(self) -> Flood:
        for thread in reversed(self._threads):
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for one in self._sockets.values():
            one.close()
        for fd in self._spaces.values():
            os.close(fd)
        self._epoll.close()

    def _send(self) -> None:
        began = time.monotonic()
        while not self._stop.is_set():
            for flow in self.flows:
                source, target, port = flow.way
                payload = flow.number.to_bytes(4, "big") + flow.sent.to_bytes(4, "big")
                if flow.client is not None:
                    flow.client.sendto(payload, (target.ip, port))
                else:
                    with self._open(source) as one:
                        one.sendto(payload, (target.ip, port))
                flow.sent += 1
            self.rounds += 1
            self._stop.wait(max(0.0, began + self.rounds * INTERVAL - time.monotonic()))

    def _receive(self) -> None:
        """Until a little after the last was sent. What belongs to a conversation has arrived when the answer has."""
        last = time.monotonic()
        while not self._stop.is_set() or time.monotonic() < last + 0.5:
            for fd, _ in self._epoll.poll(0.1):
                last = time.monotonic()
                try:
                    payload, peer = self._sockets[fd].recvfrom(100)
                except BlockingIOError:
                    continue
                flow = self.flows[int.from_bytes(payload[:4], "big")]
                if flow.talks and fd not in self._clients:
                    self._sockets[fd].sendto(payload, peer)
                else:
                    flow.arrived.add(int.from_bytes(payload[4:], "big"))

    def go_on(self, rounds: int = 10) -> None:
        """Returns so many rounds later."""
        wanted = self.rounds + rounds
        until(lambda: self.rounds >= wanted, what="the flood goes on")


# --- the node -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pods() -> list[Pod]:
    return [Pod(number) for number in range(PODS)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, pods: list[Pod]) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("site")) as site:
        site.set_up()
        site.write(*world(pods))
        yield site


@pytest.fixture(scope="module")
def spaces(pods: list[Pod]) -> Iterator[dict[Pod, str]]:
    names = {pod: f"tt-{os.getpid()}-load-{pod.name}" for pod in pods}
    try:
        yield {pod: netns.create(name) for pod, name in names.items()}
    finally:
        for name in names.values():
            netns.delete(name)


@pytest.fixture(scope="module")
def node(site: Site, spaces: dict[Pod, str]) -> Node:
    node = site.node("node1", "--no-bgp")
    for pod, path in spaces.items():
        attach(Attachment(path, "eth0", pod.interface, (parse_ip(pod.ip),), host_netns=node.ns.path))
        subprocess.run(["ip", "-n", netns_name(path), "link", "set", "lo", "up"], check=True, timeout=30)
    return node.start()


def netns_name(path: str) -> str:
    return Path(path).name


def chosen(ways: dict[Way, bool], want: bool, count: int) -> list[Way]:
    return RNG.sample([way for way, is_allowed in ways.items() if is_allowed is want], count)


def flows_of(*groups: tuple[list[Way], bool]) -> list[Flow]:
    every = [(way, talks) for ways, talks in groups for way in ways]
    return [Flow(way, number, talks) for number, (way, talks) in enumerate(every)]


def warmed(spaces: dict[Pod, str], flows: list[Flow]) -> None:
    """Everybody has found his neighbours."""
    with Flood(spaces, flows) as flood:
        flood.go_on(20)


def check(flows: Iterable[Flow], ways: dict[Way, bool]) -> None:
    for flow in flows:
        source, target, port = flow.way
        words = f"{source.name} to {target.name}:{port}, {'established' if flow.talks else 'new'}"
        assert flow.sent > 50, words
        if ways[flow.way]:
            assert flow.lost == [], f"{words}: {len(flow.lost)} of {flow.sent} lost"
        else:
            assert not flow.arrived, f"{words}: {len(flow.arrived)} of {flow.sent} got through"


def test_killed_under_load(node: Node, spaces: dict[Pod, str], pods: list[Pod]) -> None:
    ways = verdicts(world(pods), pods[:TALKERS])
    assert min(sum(ways.values()), len(ways) - sum(ways.values())) > 200
    assert "vmap @ri4-" in node.ns.run("nft", "list", "table", "inet", "tortie")
    groups = (chosen(ways, True, FLOWS), False), (chosen(ways, False, FLOWS), False), (chosen(ways, True, FLOWS), True)
    warmed(spaces, flows_of(*groups))
    flows = flows_of(*groups)
    with Flood(spaces, flows) as flood:
        for number in range(KILLS):
            flood.go_on()
            node.kill()
            flood.go_on()
            if number % 2:
                node.spawn()  # and again, while it starts: a little later each time
                flood.go_on(10 * number)
                node.kill()
            node.start()
        flood.go_on()
    print(f"{flood.rounds} rounds of {len(flows)} packets")
    check(flows, ways)


def test_killed_and_the_policies_are_others_when_it_comes_back(
    node: Node, site: Site, spaces: dict[Pod, str], pods: list[Pod]
) -> None:
    """As long as nobody is there the old ones hold; from when it is ready, the new ones."""
    old = verdicts(world(pods), pods[:TALKERS])
    changes = list(changed_policies())
    others = {(type(one), one.name): one for one in changes}
    now = verdicts([others.get((type(one), one.name), one) for one in world(pods)], pods[:TALKERS])
    steady = {way: is_allowed for way, is_allowed in old.items() if now[way] is is_allowed}
    turned = {way: is_allowed for way, is_allowed in now.items() if old[way] is not is_allowed}
    opened, closed = chosen(turned, True, 10), chosen(turned, False, 10)
    unchanged = [(chosen(steady, True, FLOWS), False), (chosen(steady, False, FLOWS), False)]
    talking = (chosen(steady, True, FLOWS), True)
    warmed(spaces, flows_of(*unchanged, (closed, False), talking))
    flows = flows_of(*unchanged, talking, (opened + closed, False))
    with Flood(spaces, flows) as flood:
        flood.go_on()
        node.kill()
        flood.go_on()
        replace(site, changes)
        flood.go_on()
        before = {flow.number: flow.sent - 2 for flow in flows}  # one may be on its way, and one not be counted yet
        node.start()
        after = {flow.number: flow.sent + 2 for flow in flows}
        flood.go_on(20)
    turning = [flow for flow in flows if flow.way in turned]
    check([flow for flow in flows if flow.way in steady], steady)
    for flow in turning:
        is_open = flow.way in opened
        old_times, new_times = set(range(before[flow.number])), set(range(after[flow.number], flow.sent))
        assert len(old_times) > 20 < 20 + len(new_times)
        assert flow.arrived & old_times == (set() if is_open else old_times)
        assert flow.arrived & new_times == (new_times if is_open else set())


def replace(site: Site, resources: Iterable[Resource]) -> None:
    async def write() -> None:
        async with site.store() as store:
            for one in resources:
                await store.delete(type(one), one.name, one.namespace)
                await store.create(one)

    asyncio.run(write())
