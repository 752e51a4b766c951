"""What breaks under a running cluster, and what becomes of the routes: a BIRD is killed, reflectors go, nodes start
again together, a link flaps, a node dies, somebody else takes a route away. Everything is read back from the kernel."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from labs import Lab, pod, until
from pings import Ping, Pings, wait_for_answers
from tortie.agent.client import ask
from tortie.base.errors import TortieError
from tortie.lab import network
from tortie.lab.processes import read_pid

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]

NODES = 4
RESTART_TIME = 3
"""Seconds that the clients keep a reflector's routes: the `maxRestartTime` of their peering."""
API = "projectcalico.org/v3"
OBJECTS: list[dict[str, Any]] = [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "red"}},
    {"apiVersion": API, "kind": "BGPPeer", "metadata": {"name": "to-reflectors"},
     "spec": {"nodeSelector": "all()", "peerSelector": "has(route-reflector)", "maxRestartTime": f"{RESTART_TIME}s"}},
    *(pod(f"p{i}", node=f"node{i}") for i in range(1, NODES + 1)),
]  # fmt: skip
REFLECTORS = ("node1", "node2")


class Town:
    """A lab of two reflectors and two clients, a pod on each."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.topology = lab.directory.read()
        self.ips = {f"p{i}": lab.pod(f"p{i}").status.pod_ip for i in range(1, NODES + 1)}
        blocks = json.loads(lab.tortie("get", "blockaffinities", "-o", "json"))["items"]
        self.blocks = {one["spec"]["node"]: one["spec"]["cidr"] for one in blocks if ":" not in one["spec"]["cidr"]}

    def run(self, where: str, *command: str) -> str:
        """In the namespace of a node, or of the `fabric` between them."""
        netns = self.topology.fabric if where == "fabric" else self.topology.node(where).netns
        words = ["ip", "netns", "exec", netns, *command]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout

    def routes(self, node: str, owner: str) -> dict[str, str]:
        """A node's routes to another's block: the next hop by who wrote it."""
        found = json.loads(self.run(node, "ip", "-j", "route", "show", self.blocks[owner]) or "[]")
        return {route["protocol"]: route.get("gateway", "") for route in found}

    def sessions(self, node: str) -> dict[str, str]:
        """Since when each session of a node is established."""
        peers = ask(self.lab.directory.agent_socket(node), "/node")["peers"]
        return {one["name"]: one["since"] for one in peers if one["state"] == "Established"}

    def whole(self) -> bool:
        """Whether all sessions stand and every node has BIRD's route to every other's block."""
        try:
            return self._whole()
        except TortieError:  # an agent is not there yet
            return False

    def _whole(self) -> bool:
        counts = {node: 2 * (NODES - 1) if node in REFLECTORS else 4 for node in self.blocks}
        every = (self.routes(a, b) for a in self.blocks for b in self.blocks if a != b)
        return all("bird" in routes for routes in every) and all(
            len(self.sessions(node)) == count for node, count in counts.items()
        )

    def agent(self, node: str, number: signal.Signals) -> None:
        agent = read_pid(self.lab.directory.agent_pid(node))
        assert agent is not None
        agent.signal(number)

    def bird(self, node: str) -> int:
        """Its pid; 0 while it starts and has not written it."""
        file = self.lab.directory.node(node) / "bird.ctl.pid"
        return int(file.read_text() or 0) if file.exists() else 0

    def pings(self, directory: Path, pairs: Sequence[tuple[str, str]]) -> Pings:
        name = f"{len(list(directory.iterdir()))}-"
        return Pings(
            Ping(f"{a} to {b}", self.topology.pod_netns("red", a), self.ips[b], directory / f"{name}{a}-{b}")
            for a, b in pairs
        )


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    lab = Lab(f"f{os.getpid()}")
    try:
        lab.tortie("lab", "up", "--name", lab.name, "--topology", "rr")
        lab.apply(*OBJECTS)
        until(lambda: all(lab.phase(f"p{i}") == "Running" for i in range(1, NODES + 1)))
        town = Town(lab)
        until(town.whole)
        yield town
    finally:
        lab.tortie("lab", "down", "--name", lab.name)
        assert network.leftovers(lab.directory) == []


EVERYBODY = [(f"p{i}", f"p{j}") for i in range(1, NODES + 1) for j in range(1, NODES + 1) if i != j]
BETWEEN_CLIENTS = [("p3", "p4"), ("p4", "p3")]


def test_birds_that_are_killed_lose_no_packet(town: Town, tmp_path: Path) -> None:
    """A reflector's and a client's, one after the other: their routes stay in the kernel, those of theirs at their
    peers' too, and the agents start them again."""
    with town.pings(tmp_path, EVERYBODY) as pings:
        wait_for_answers(pings)
        for node in ("node1", "node4"):
            before = town.bird(node)
            os.kill(before, signal.SIGKILL)
            until(partial(lambda node, before: town.bird(node) not in (0, before), node, before))
            until(town.whole)
        wait_for_answers(pings)
    assert pings.lost == {}


class Outage:
    """Of the reflectors' BIRDs: from when `begin` is called in the block to its end."""

    def __init__(self, town: Town) -> None:
        self.town = town

    def __enter__(self) -> Outage:
        return self

    def begin(self) -> float:
        """Since when it lasts, in seconds since 1970."""
        for node in REFLECTORS:
            self.town.agent(node, signal.SIGSTOP)
        for node in REFLECTORS:
            os.kill(self.town.bird(node), signal.SIGKILL)
        return time.time()

    def __exit__(self, *_: object) -> None:
        for node in REFLECTORS:
            self.town.agent(node, signal.SIGCONT)


def test_without_reflectors_routes_stay_for_the_restart_time_and_with_the_net_for_ever(
    town: Town, tmp_path: Path
) -> None:
    """Both reflectors' BIRDs die, and their agents, stopped, do not start them again."""
    with town.pings(tmp_path, BETWEEN_CLIENTS) as pings:
        wait_for_answers(pings)
        with Outage(town) as outage:
            began = outage.begin()
            time.sleep(RESTART_TIME / 2)
            assert town.routes("node3", "node4") == {"bird": "172.30.0.14"}, "kept: the reflectors may come back"
            until(lambda: not town.routes("node3", "node4"))
            assert time.time() - began > RESTART_TIME / 2
        until(town.whole)
        wait_for_answers(pings)
    assert pings.lost, "without a route there is no way"

    felix = {"apiVersion": API, "kind": "FelixConfiguration", "metadata": {"name": "default"},
             "spec": {"programClusterRoutes": "Enabled"}}  # fmt: skip
    town.lab.apply(felix)
    until(lambda: town.routes("node3", "node4") == {"bird": "172.30.0.14", "80": "172.30.0.14"})
    with town.pings(tmp_path, BETWEEN_CLIENTS) as pings:
        wait_for_answers(pings)
        with Outage(town) as outage:
            outage.begin()
            until(lambda: town.routes("node3", "node4") == {"80": "172.30.0.14"})
            wait_for_answers(pings)
        until(town.whole)
    assert pings.lost == {}
    town.lab.tortie("delete", "felixconfiguration", "default")
    until(lambda: town.routes("node3", "node4") == {"bird": "172.30.0.14"})


def test_a_link_that_flaps_comes_back_with_its_sessions(town: Town, tmp_path: Path) -> None:
    """For shorter than the hold time, 240 s: no session ends, and the routes are there again with the link."""
    before = town.sessions("node4")
    with town.pings(tmp_path, [("p3", "p4"), ("p1", "p4"), ("p1", "p3")]) as pings:
        wait_for_answers(pings)
        for _ in range(3):
            town.run("fabric", "ip", "link", "set", "node4", "down")
            time.sleep(0.3)
            town.run("fabric", "ip", "link", "set", "node4", "up")
            time.sleep(0.3)
        wait_for_answers(pings)
    until(town.whole)
    assert town.sessions("node4") == before
    assert set(pings.lost) <= {"p3 to p4", "p1 to p4"}, "nobody else notices"


def test_nodes_that_start_again_together_are_whole_again(town: Town, tmp_path: Path) -> None:
    """A reflector and a client lose agent, BIRD, its files, their link and all routes at the same time."""
    nodes = ("node2", "node4")
    for node in nodes:
        os.kill(town.bird(node), signal.SIGKILL)
        town.agent(node, signal.SIGKILL)
        town.run(node, "ip", "link", "delete", "eth0")
        town.run(node, "ip", "route", "flush", "table", "main")
        town.run(node, "nft", "flush", "ruleset")
        for name in ("bird.conf", "bird.ctl", "bird.ctl.pid"):
            (town.lab.directory.node(node) / name).unlink(missing_ok=True)
    town.lab.tortie("lab", "up", "--name", town.lab.name, "--topology", "rr")
    until(town.whole)
    with town.pings(tmp_path, EVERYBODY) as pings:
        wait_for_answers(pings)
    assert pings.lost == {}


def test_a_route_that_somebody_takes_away_is_put_back(town: Town) -> None:
    """Deleted, BIRD writes it again when it looks, every 2 s. Another daemon's in its place, of the same metric, it
    leaves alone, as the kernel has room for one; the agent deletes that."""
    block = town.blocks["node4"]
    town.run("node3", "ip", "route", "delete", block, "proto", "bird")
    until(lambda: town.routes("node3", "node4") == {"bird": "172.30.0.14"}, 20)
    town.run("node3", "ip", "route", "replace", block, "via", "172.30.0.11", "metric", "1024", "proto", "ospf")
    until(lambda: town.routes("node3", "node4") == {"bird": "172.30.0.14"}, 20)
    log = (town.lab.directory.node("node3") / "agent.log").read_text()
    assert f"{block} via 172.30.0.11" in log
    assert f"is in the place of BIRD's {block} via 172.30.0.14" in log


def test_a_node_that_dies_is_forgotten_with_its_object(town: Town) -> None:
    """BIRD tells nobody that a link is dead: the others wait for the hold time. Without its Node there is no session,
    and its routes are gone at once. It is the last test: nothing brings node4 back."""
    socket = str(town.lab.directory.node("node1") / "bird.ctl")
    about = town.run("node1", "birdc", "-s", socket, "show", "protocols", "all", "Node_172_30_0_14")
    assert re.search(r"Hold timer: +\S+/240$", about, re.MULTILINE)
    town.run("fabric", "ip", "link", "set", "node4", "down")
    town.agent("node4", signal.SIGSTOP)
    assert town.routes("node3", "node4") == {"bird": "172.30.0.14"}
    town.lab.tortie("delete", "node", "node4")
    until(lambda: not town.routes("node3", "node4") and not town.routes("node1", "node4"), 20)
