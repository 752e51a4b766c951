"""The built-in topologies as their user has them: up, who reaches whom, status, map, faults, down; nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from labs import PATIENCE, Lab, until
from tortie.lab import network, processes
from tortie.lab.cluster import charted, status, wait_running
from tortie.lab.guide import pods_of
from tortie.lab.picture import CONVERTERS
from tortie.lab.places import opened
from tortie.lab.topology import Host, Topology

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]

EXAMPLES = Path(__file__).parents[2] / "examples/topologies"


@contextmanager
def up(name: str, topology: str, sessions: int) -> Iterator[Lab]:
    lab = Lab(f"{name}{os.getpid()}")
    try:
        said = lab.tortie("lab", "up", "--name", lab.name, "--topology", topology)
        assert f"✓ {sessions} BGP sessions" in said
        assert f"{sessions} BGP sessions, {sessions} up" in said  # the map below
        yield lab
        lab.tortie("lab", "down", "--name", lab.name)
        assert network.leftovers(lab.directory) == []
    finally:
        network.destroy(lab.directory)


def pods(lab: Lab, manifest: str) -> None:
    lab.tortie("apply", "-f", str(EXAMPLES / manifest))

    async def run() -> None:
        async with opened(lab.directory) as store:
            await wait_running(store, pods_of(EXAMPLES / manifest), PATIENCE)

    asyncio.run(run())


def everybody(lab: Lab, *options: str) -> set[tuple[str, str]]:
    """Pairs, all but those from outside, that do not reach each other once there has been time."""
    found: set[tuple[str, str]] = set()

    def settled() -> bool:
        pairs = lab.matrix(*options)
        found.clear()
        found.update(pair for pair, entry in pairs.items() if pair[0] != "outside" and not entry["passed"])
        return not found

    until(settled, 30)
    return found


def ip(netns: str, *words: str) -> list[dict[str, Any]]:
    done = subprocess.run(["ip", "-n", netns, "-j", *words], capture_output=True, text=True, check=True)
    return [item for item in json.loads(done.stdout or "[]") if item]


def plan_of(lab: Lab) -> Topology:
    return lab.directory.read()


def node(lab: Lab, name: str) -> Host:
    return plan_of(lab).node(name)


def test_reflectors() -> None:
    with up("r", "rr", 10) as lab:
        pods(lab, "pods.yaml")
        assert everybody(lab) == set()
        shown = lab.tortie("lab", "status")
        assert (shown.count("6 of 6 up"), shown.count("4 of 4 up")) == (2, 2)
        # A client has the other client's block by way of a reflector, and straight to that node.
        block = _block(lab, "node4")
        (route,) = ip(node(lab, "node3").netns, "route", "show", block)
        assert route["gateway"] == "172.30.0.14"
        _unplugged(lab)


def _block(lab: Lab, name: str) -> str:
    """The IPv4 block of a node that it announces."""
    drawn = asyncio.run(charted(lab.directory))
    return next(spot.blocks[0] for spot in drawn.nodes if spot.name == name)


def _unplugged(lab: Lab) -> None:
    """A node whose cable is pulled has no carrier and reaches nobody; plugged in again it does."""
    lab.tortie("lab", "link", "down", "node4")
    (link,) = ip(node(lab, "node4").netns, "link", "show", "eth0")
    assert "NO-CARRIER" in link["flags"]
    assert lab.matrix(status=1)["shop/web-1", "shop/web-4"]["result"] != "connected"
    lab.tortie("lab", "link", "up", "node4")
    lab.tortie("lab", "link", "set", "node4", "--mtu", "1400")
    (link,) = ip(node(lab, "node4").netns, "link", "show", "eth0")
    (port,) = ip(plan_of(lab).fabric, "link", "show", "node4")
    assert (link["mtu"], port["mtu"]) == (1400, 1400)
    until(lambda: lab.matrix()["shop/web-1", "shop/web-4"]["passed"], 30)
    assert "nothing to set" in lab.tortie("lab", "link", "set", "node4", status=2)
    assert 'has no node "node9"' in lab.tortie("lab", "link", "down", "node9", status=2)
    _disturbed(lab)


def _disturbed(lab: Lab) -> None:
    """Losses and delays where the kernel can, else one line that says so."""
    netns = node(lab, "node3").netns
    words = ("lab", "link", "set", "node3", "--loss", "5%", "--delay", "20ms")
    probe = ["tc", "-n", netns, "qdisc", "add", "dev", "lo", "root", "netem"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        assert "has no netem" in lab.tortie(*words, status=1)
        return
    lab.tortie(*words)
    assert "delay 20ms loss 5%" in _qdiscs(netns)
    lab.tortie("lab", "link", "set", "node3", "--loss", "0", "--delay", "0")
    assert "netem" not in _qdiscs(netns)


def _qdiscs(netns: str) -> str:
    command = ["tc", "-n", netns, "qdisc", "show", "dev", "eth0"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_two_racks(tmp_path: Path) -> None:
    with up("t", "two-racks", 16) as lab:
        assert f"lab {lab.name} was up already" in lab.tortie("lab", "up", "--name", lab.name)
        pods(lab, "two-racks-pods.yaml")
        assert everybody(lab, "-4") == set()
        assert everybody(lab, "-6") == set()
        topology = plan_of(lab)
        tor = topology.router("tor-a").netns
        routes = {str(route["dst"]) for route in ip(tor, "route", "show", "proto", "bird")}
        assert {_block(lab, "node3"), _block(lab, "node4")} <= routes
        assert not [dst for dst in routes if dst.startswith("10.245.")], "the routers know nothing of the overlay"
        assert "tor-a" in lab.tortie("lab", "exec", "router:tor-a", "--", "hostname")
        assert "<INFO> Started" in lab.tortie("lab", "logs", "router:tor-a")
        _mapped(lab, tmp_path)
        _router_killed(lab)


def _mapped(lab: Lab, folder: Path) -> None:
    """The picture has everybody, and the prefixes they announce."""
    lab.tortie("lab", "map", "-o", str(folder / "map.svg"))
    picture = ElementTree.parse(folder / "map.svg")
    written = " ".join(text.text or "" for text in picture.iter("{http://www.w3.org/2000/svg}text"))
    assert {"spine", "tor-a", "tor-b", "node1", "node4", "outside"} <= set(written.split())
    assert "16 BGP sessions, 16 up" in written
    assert _block(lab, "node2") in written
    image = folder / "map.png"
    if any(map(shutil.which, CONVERTERS)):
        lab.tortie("lab", "map", "-o", str(image))
        assert image.read_bytes().startswith(b"\x89PNG")
    else:
        assert "apt-get install librsvg2-bin" in lab.tortie("lab", "map", "-o", str(image), status=1)
    assert "ends with .svg or .png" in lab.tortie("lab", "map", "-o", "map.gif", status=2)


def _router_killed(lab: Lab) -> None:
    """It is started again, and status says how things are meanwhile."""
    first = processes.read_pid(lab.directory.router_pid("tor-b"))
    assert first is not None
    kubelet = processes.read_pid(lab.directory.kubelet_pid)
    assert kubelet is not None
    kubelet.signal(signal.SIGSTOP)  # or it would be back at once
    try:
        first.signal(signal.SIGKILL)
        until(lambda: not first.alive())
        assert "not running" in lab.tortie("lab", "status", status=1)
    finally:
        kubelet.signal(signal.SIGCONT)
    until(lambda: asyncio.run(status(lab.directory)).healthy)


def test_two_subnets() -> None:
    with up("c", "cross-subnet", 12) as lab:
        pods(lab, "pods.yaml")
        assert everybody(lab, "-4", "--protocol", "icmp") == set()
        assert everybody(lab, "-6") == set()
        routes = ip(node(lab, "node1").netns, "route", "show")
        ways = {str(route["dst"]): str(route.get("dev")) for route in routes}
        assert ways[_block(lab, "node2")] == "eth0"
        assert ways[_block(lab, "node3")].startswith("vxlan")
        gate = {str(route["dst"]) for route in ip(plan_of(lab).router("gate-a").netns, "route", "show")}
        assert not [dst for dst in gate if dst.startswith("10.244.")]
        assert "a plain router" in lab.tortie("lab", "logs", "router:gate-a", status=2)


@pytest.mark.skipif(not Path("/usr/lib/frr/bgpd").exists(), reason="FRR is not installed: apt-get install frr")
def test_a_router_may_be_frr() -> None:
    with up("f", str(EXAMPLES / "frr-rack.yaml"), 8) as lab:
        pods(lab, "pods.yaml")
        assert everybody(lab) == set()
        assert "frr, pid" in lab.tortie("lab", "status")
        routes = {str(route["dst"]) for route in ip(plan_of(lab).fabric, "route", "show", "proto", "bgp")}
        assert {_block(lab, f"node{i}") for i in range(1, 5)} <= routes
        # The pid is the shell's that began both daemons; they go with it, and all three come back.
        first = processes.read_pid(lab.directory.router_pid("tor"))
        assert first is not None
        first.signal(signal.SIGKILL)
        until(lambda: processes.read_pid(lab.directory.router_pid("tor")) not in (None, first))
        until(lambda: asyncio.run(status(lab.directory)).healthy)
