"""Services under a flood of connections: what changes, an agent that is killed, and somebody who meddles."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from service_ground import (
    CLUSTER_IP,
    LISTENS,
    NODE,
    PATIENCE,
    TCP,
    Ground,
    backends,
    built_ground,
    entrance,
    frontend,
    served,
    state_of,
)

from tortie.calc.proxy.state import Backend, ProxyState, Served
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.services import Services
from tortie.kernel.events import Overrun
from tortie.kernel.nft_events import Monitor
from tortie.render.proxy.chains import TABLE

pytestmark = pytest.mark.root

RNG = random.Random(7)


@pytest.fixture(scope="module")
def built() -> Iterator[Ground]:
    with built_ground() as ground:
        yield ground


@pytest.fixture
def ground(built: Ground) -> Iterator[Ground]:
    built.stage = Services(built.spaces["node"].path)
    built.apply(None)
    yield built
    built.apply(None)


def web(version: int, *names: str) -> Served:
    answers = backends(version, *names)
    return served(
        "web",
        entrance("ClusterIP", frontend(version, CLUSTER_IP[version], 80), answers),
        entrance("NodePort", frontend(version, None, 30080), answers),
    )


def others(number: int) -> list[Served]:
    """Services that nobody asks for, so that the table is large."""
    return [
        served(
            f"other{i}",
            entrance(
                "ClusterIP",
                frontend(4, str(ip_address("10.96.1.0") + i), 80),
                [Backend(ip_address("10.244.8.0") + 2 * i + j, LISTENS) for j in range(2)],
            ),
        )
        for i in range(number)
    ]


class Flood:
    """Connections one after the other from several threads while the block lasts; who answered, and what failed."""

    def __init__(self, ground: Ground, places: list[tuple[str, str, int]]) -> None:
        self.found: Counter[str] = Counter()
        self.failed: list[str] = []
        self.done = 0
        self._stop = threading.Event()
        self._ground = ground
        self._threads = [threading.Thread(target=self._run, args=place, daemon=True) for place in places]

    def __enter__(self) -> Flood:
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for one in self._threads:
            one.join()

    def _run(self, place: str, to: str, port: int) -> None:
        while not self._stop.is_set():
            try:
                self.found[self._ground.ask(place, to, port).name] += 1
            except OSError as why:
                self.failed.append(f"{place} {to}: {why}")
            self.done += 1

    def go_on(self, number: int = 40) -> None:
        """Returns so many connections later."""
        wanted = self.done + number
        until(lambda: self.done >= wanted)


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


PLACES = [("client", CLUSTER_IP[4], 80), ("outside", NODE[4], 30080), ("node", CLUSTER_IP[4], 80)]


def test_backends_come_and_go_under_load(ground: Ground) -> None:
    """New connections find those that are there, and never fail; established ones stay with theirs."""
    ground.apply(state_of(web(4, "one", "two")))
    kept: list[tuple[socket.socket, str]] = []
    for _ in range(20):
        one = ground.open("client", 4, TCP)
        one.connect((CLUSTER_IP[4], 80))
        kept.append((one, one.recv(100).decode().split()[0]))
    assert {name for _, name in kept} == {"one", "two"}
    with Flood(ground, PLACES) as flood:
        for _ in range(8):
            for names in (("one",), ("one", "two"), ("two",), ("one", "two")):
                ground.apply(state_of(web(4, *names)))
                if len(names) == 1:
                    # What began before this is over by the second.
                    asked = {ground.ask(place, to, port).name for place, to, port in PLACES for _ in range(2)}
                    assert asked == set(names)
        flood.go_on()
    assert not flood.failed
    assert flood.found.keys() == {"one", "two"}
    for one, _ in kept:
        one.sendall(b"still there?")
        assert one.recv(100) == b"still there?"
        one.close()


def test_services_of_one_shape_do_not_meddle(ground: Ground) -> None:
    """One that gets and loses backends, another of the same shape beside it."""
    with_other = [web(4, "one"), served("b", entrance("ClusterIP", frontend(4, "10.96.0.2", 80), backends(4, "two")))]
    ground.apply(state_of(*with_other))
    for names in ((), ("one", "two"), ("one",), ()):
        ground.apply(state_of(web(4, *names), with_other[1]))
        assert ground.ask("client", "10.96.0.2", 80).name == "two"
    ground.apply(state_of(with_other[1]))
    assert ground.ask("client", "10.96.0.2", 80).name == "two"


RESTARTED = """
import sys
sys.path[:0] = {path!r}
from service_ground import state_of
from test_services_stage_load import others, web
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.services import Services
states = [state_of(web(4, "one", "two"), *others(1_000)), state_of(web(4, "one"), *others(900))]
print("ready", flush=True)
while True:
    for state in states:
        assert converge([Services({netns!r})], state) == []
"""


def test_killed_and_begun_again_under_load(ground: Ground) -> None:
    """Each life finds a table of the last one, whole or half filled, and fills it while connections come."""
    ground.apply(state_of(web(4, "one", "two"), *others(1_000)))
    script = RESTARTED.format(path=sys.path, netns=ground.spaces["node"].path)
    with Flood(ground, PLACES) as flood:
        for _ in range(3):
            with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as life:
                assert life.stdout is not None
                life.stdout.readline()
                time.sleep(RNG.uniform(0.05, 0.6))
                life.send_signal(signal.SIGKILL)
            flood.go_on(10)
        ground.stage = Services(ground.spaces["node"].path)
        ground.apply(state_of(web(4, "one", "two")))
        flood.go_on()
    assert not flood.failed
    assert flood.found.keys() == {"one", "two"}


# --- somebody meddles ---------------------------------------------------------------------------------------------

MEDDLING = (
    f"delete table {TABLE}",
    "flush ruleset",
    f"flush table {TABLE}",
    f"flush map {TABLE} services4",
    f"flush map {TABLE} backends4",
    f"flush chain {TABLE} nat-prerouting",
    f"flush chain {TABLE} to4-2",
    f"insert rule {TABLE} nat-prerouting return",
    f"delete element {TABLE} services4 {{ 10.96.0.1 . 6 . 80 }}",
    f"add element {TABLE} unserved4 {{ 10.96.0.77 . 6 . 80 : drop }}",
    f"add chain {TABLE} mine",
    f"add set {TABLE} mine {{ type ipv4_addr; }}",
    f"add map {TABLE} mine {{ type ipv4_addr : verdict; elements = {{ 192.0.2.1 : goto to4-2 }}; }}",
)


@pytest.mark.parametrize("told", [True, False], ids=["told", "looks"])
@pytest.mark.parametrize("script", MEDDLING)
def test_meddling_is_put_right(ground: Ground, script: str, told: bool) -> None:
    node = ground.spaces["node"]
    state = state_of(web(4, "one", "two"), *others(20))
    monitor: Monitor | None = ground.stage.monitor() if told else None
    try:
        ground.apply(state)
        assert monitor is None or monitor.read() == [], "our own changes are not told"
        before = node.run("nft", "-s", "list", "table", *TABLE.split())
        node.run("nft", *script.split(" ", 1)[0:1], script.split(" ", 1)[1])
        if monitor is not None:
            for change in monitor.read():
                ground.stage.changed(change)
        else:
            ground.stage.forget()
        ground.apply(state)
        assert ordered(node.run("nft", "-s", "list", "table", *TABLE.split())) == ordered(before)
        assert ground.ask("client", CLUSTER_IP[4], 80).name in ("one", "two")
        assert not ground.stage.plan(state)
    finally:
        if monitor is not None:
            monitor.close()


def ordered(listing: str) -> list[str]:
    """Elements come in any order."""
    return sorted(
        word for line in listing.replace("elements = {", "").split("\n") for word in line.strip(" }\t").split(", ")
    )


def test_doubt_outlives_a_look_that_fails(ground: Ground, tmp_path: Path) -> None:
    """The programs that look are away for once; what somebody changed is put right all the same."""
    state, node = state_of(web(4, "one")), ground.spaces["node"]
    with ground.stage.monitor():
        ground.apply(state)
        node.run("nft", f"flush map {TABLE} services4")
        path = os.environ["PATH"]
        os.environ["PATH"] = str(tmp_path)
        try:
            ground.stage.changed(Overrun())
            assert converge([ground.stage], state)
        finally:
            os.environ["PATH"] = path
        ground.apply(state)
    assert ground.ask("client", CLUSTER_IP[4], 80).name == "one"


def test_untouched_counters_go_on_when_a_chain_is_put_right(ground: Ground) -> None:
    node, state = ground.spaces["node"], state_of(web(4, "one"))
    with ground.stage.monitor() as monitor:
        ground.apply(state)
        for _ in range(3):
            ground.ask("client", CLUSTER_IP[4], 80)
        node.run("nft", "insert", "rule", *TABLE.split(), "nat-output", "return")
        for change in monitor.read():
            ground.stage.changed(change)
        ground.apply(state)
        assert "packets 3 " in node.run("nft", "list", "map", *TABLE.split(), "backends4")
        assert ground.ask("node", CLUSTER_IP[4], 80).name == "one"


def test_a_table_of_another_kind_is_made_again(ground: Ground) -> None:
    node = ground.spaces["node"]
    node.run(
        "nft", "-f", "-", stdin=f"add table {TABLE}\nadd set {TABLE} services4 {{ type ifname; }}\nadd chain {TABLE} x"
    )
    state: ProxyState = state_of(web(4, "one"))
    ground.apply(state)
    assert ground.ask("client", CLUSTER_IP[4], 80).name == "one"
    assert not ground.stage.plan(state)


@pytest.mark.parametrize("affinity", [0, 300], ids=["", "affinity"])
@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
def test_dice_for_a_backend_that_has_just_gone(ground: Ground, version: int, affinity: int) -> None:
    """As a packet finds it that was in the chain while elements went: there is one backend less than the dice have."""
    ip = CLUSTER_IP[version]
    where, answers = frontend(version, ip, 80), backends(version, "one", "two")
    ground.apply(state_of(served("web", entrance("ClusterIP", where, answers, affinity=affinity))))
    key = f"{ip} . 6 . 80 . 1" if version == 4 or not affinity else f"6 . 80 . 1 . {ip}"
    name = f"{'ids' if affinity else 'backends'}{version}"
    ground.spaces["node"].run("nft", f"delete element {TABLE} {name} {{ {key} }}")
    assert ground.many("client", ip, 80).keys() == {"one"}
