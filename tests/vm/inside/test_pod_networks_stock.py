"""ipvlan in mode l3 over two nodes with agents, as the issue of many users has it: nothing is typed, and pods that may
do nothing to their network reach one another.

    pod ── ipvlan l3 ── eth0 of node a, 10.211.55.8 ──┐
                                                      switch
    pod ── ipvlan l3 ── eth0 of node b, 10.211.55.9 ──┘
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest

import tortie.agent.main  # noqa: F401 (once, before agents are forked off)
from cni_plugins import Caller, put
from namespaces import Ns, namespaces
from tortie.agent import __main__ as agent
from tortie.calc.admission import bootstrap
from tortie.kernel.netns import open_ns, set_ns
from tortie.store import open_store

pytestmark = pytest.mark.root

FORK = multiprocessing.get_context("fork")
NODES = {"a": (8, "10.211.57.0/24"), "b": (9, "10.211.59.0/24")}
PATIENCE = 200.0
"""Seconds: everything takes ten times as long here as on a machine that is not emulated."""


@dataclass
class Town:
    directory: Path
    plugins: Path
    nodes: dict[str, Ns] = field(default_factory=dict)
    agents: dict[str, ForkProcess] = field(default_factory=dict)
    pods: dict[str, tuple[Ns, dict[str, Any]]] = field(default_factory=dict)

    def conf(self, name: str) -> dict[str, Any]:
        """A case's file, with the one word that is new, and the way to the own node's pods."""
        ipam = {"type": "host-local", "subnet": NODES[name][1], "dataDir": str(self.directory / name / "ipam")}
        ipvlan = {"name": "ipvlannet", "type": "ipvlan", "master": "eth0", "mode": "l3", "ipam": ipam}
        return {"cniVersion": "1.1.0", **ipvlan, "autoRoutes": True, "hostAccess": "sibling"}

    def start(self, name: str) -> None:
        own = self.directory / name
        (own / "net.d").mkdir(parents=True, exist_ok=True)
        (own / "net.d" / "10-ipvlan.conf").write_text(json.dumps(self.conf(name)))
        words = ["--node", name, "--datastore", str(self.directory / "store.db"), "--run-dir", str(own)]
        words += ["--ipv4", f"10.211.55.{NODES[name][0]}/24", "--no-bgp", "--no-defaults", "--health-port", "0"]
        words += ["--metrics-port", "0"]
        process = FORK.Process(target=run_agent, args=(self.nodes[name].path, words, own / "agent.log"))
        process.start()
        self.agents[name] = process

    def kill(self, name: str) -> None:
        self.agents[name].kill()
        self.agents[name].join(30)

    def pod(self, name: str, ns: Ns) -> None:
        node = self.nodes[name].name
        result = Caller(self.plugins, node).add(self.conf(name), netns=ns.name, container=f"pod-{name}")
        self.pods[name] = ns, result

    def ip(self, name: str) -> str:
        return str(self.pods[name][1]["ips"][0]["address"]).partition("/")[0]

    def routes(self, name: str) -> dict[str, str]:
        found = self.nodes[name].json("route", "show", "proto", "87")
        return {row["dst"]: row["gateway"] for row in found}


def run_agent(netns: str, words: list[str], log: Path) -> None:
    """In a process of its own, which need not load the program again: that takes half a minute here."""
    file = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    set_ns(open_ns(netns))
    os._exit(agent.main(words))


def until(look: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def pings(source: Ns, ip: str) -> bool:
    """By somebody who may neither change the network nor make packets of his own."""
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    return "1 received" in source.run(*nobody, "ping", "-c", "1", "-W", "5", "-n", ip, check=False)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    directory = tmp_path_factory.mktemp("town")
    town = Town(directory, put(directory / "plugins"))
    spaces = namespaces()
    make = next(spaces)
    try:
        switch = make("switch")
        switch.ip("link", "add", "br0", "type", "bridge")
        switch.ip("link", "set", "br0", "up")
        for name, (number, _) in NODES.items():
            node = town.nodes[name] = make(name)
            switch.ip("link", "add", f"leg-{name}", "type", "veth", "peer", "name", "eth0", "netns", node.name)
            switch.ip("link", "set", f"leg-{name}", "master", "br0", "up")
            node.ip("address", "add", f"10.211.55.{number}/24", "dev", "eth0")
            node.ip("link", "set", "eth0", "up")
        asyncio.run(_set_up(directory / "store.db"))
        for name in NODES:
            town.start(name)
            pod = make(f"pod-{name}")
            pod.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
            town.pod(name, pod)
        yield town
    finally:
        for name in town.agents:
            town.kill(name)
            sys.stdout.write((directory / name / "agent.log").read_text()[-3000:])
        next(spaces, None)


async def _set_up(file: Path) -> None:
    store = open_store(file)
    for one in bootstrap("0" * 32):
        await store.create(one)
    await store.close()


def right(town: Town) -> None:
    until(lambda: town.routes("a") == {"10.211.59.0/24": "10.211.55.9"}, "a's routes")
    until(lambda: town.routes("b") == {"10.211.57.0/24": "10.211.55.8"}, "b's routes")


def test_pods_without_privileges_reach_one_another(town: Town) -> None:
    right(town)
    for name, other in (("a", "b"), ("b", "a")):
        ns, result = town.pods[name]
        assert {"dst": "0.0.0.0/0", "scope": 253} in result["routes"]
        (default,) = [row for row in ns.json("route", "show") if row["dst"] == "default"]
        assert (default["dev"], default["scope"]) == ("eth0", "link")
        assert pings(ns, town.ip(other))
        assert pings(ns, f"10.211.55.{NODES[other][0]}")
        for node in town.nodes.values():  # of others by their routes, its own by the sibling's, which nobody disturbs
            assert "1 received" in node.run("ping", "-c", "1", "-W", "5", "-n", town.ip(name), check=False)


def test_the_master_goes_down_and_comes_up(town: Town) -> None:
    right(town)
    node, pod = town.nodes["a"], town.pods["a"][0]
    node.ip("link", "set", "eth0", "down")
    until(lambda: not town.routes("a"), "with the link go its routes")
    assert not pings(pod, town.ip("b"))
    node.ip("link", "set", "eth0", "up")
    right(town)
    until(lambda: pings(pod, town.ip("b")), "ping resumes")


def test_without_the_routes_packets_go_nowhere_and_nobody_says_so(town: Town) -> None:
    """What the routes are for: the link is asked for the pod itself, and a ping just times out."""
    right(town)
    node, pod = town.nodes["a"], town.pods["a"][0]
    pid = town.agents["a"].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    node.ip("route", "flush", "proto", "87")
    node.ip("neigh", "flush", "dev", "eth0")
    assert not pings(pod, town.ip("b"))
    asked = [row for row in node.json("neigh", "show", "dev", "eth0") if row["dst"] == town.ip("b")]
    assert [row["state"] for row in asked] in ([["INCOMPLETE"]], [["FAILED"]])
    os.kill(pid, signal.SIGCONT)
    right(town)
    until(lambda: pings(pod, town.ip("b")), "ping resumes")


def test_a_network_that_goes_from_a_node(town: Town) -> None:
    right(town)
    file = town.directory / "b" / "net.d" / "10-ipvlan.conf"
    text = file.read_text()
    file.unlink()
    until(lambda: not town.routes("a"), "withdrawn")
    new = file.with_name(".new")
    new.write_text(text)
    os.rename(new, file)
    right(town)
