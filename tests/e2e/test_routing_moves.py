"""From the mesh to reflectors that carry pods, and back, under pings between the pods of all nodes: none is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from labs import PATIENCE, Lab, pod, until
from pings import Ping, Pings, wait_for_answers
from tortie.lab import network

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]

NODES = 6
REFLECTORS = ("node1", "node2")
NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "red"}}
API = "projectcalico.org/v3"


def node(name: str, reflects: bool) -> dict[str, Any]:
    labels = {"route-reflector": "true"} if reflects else {}
    spec = {"bgp": {"routeReflectorClusterID": "244.0.0.1"}} if reflects else {}
    return {"apiVersion": API, "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": spec}


def configuration(mesh: bool) -> dict[str, Any]:
    spec = {"nodeToNodeMeshEnabled": mesh, "asNumber": 64512}
    return {"apiVersion": API, "kind": "BGPConfiguration", "metadata": {"name": "default"}, "spec": spec}


PEERS = {
    "apiVersion": API, "kind": "BGPPeer", "metadata": {"name": "to-reflectors"},
    "spec": {"nodeSelector": "all()", "peerSelector": "has(route-reflector)"},
}  # fmt: skip
WITH_REFLECTORS = [*(node(name, True) for name in REFLECTORS), PEERS, configuration(False)]
WITH_MESH = [*(node(name, False) for name in REFLECTORS), configuration(True)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A pod on each of the nodes."""
    lab = Lab(f"m{os.getpid()}")
    try:
        lab.up(NODES)
        lab.apply(NAMESPACE, *(pod(f"p{i}", node=f"node{i}") for i in range(1, NODES + 1)))
        until(lambda: all(lab.phase(f"p{i}") == "Running" for i in range(1, NODES + 1)))
        yield lab
    finally:
        lab.tortie("lab", "down", "--name", lab.name)
        assert network.leftovers(lab.directory) == []


@pytest.fixture
def pings(lab: Lab, tmp_path: Path) -> Iterator[Pings]:
    """From every pod to every other, one of each two over IPv6 as well."""
    topology = lab.directory.read()
    ips = {f"p{i}": [entry.ip for entry in lab.pod(f"p{i}").status.pod_ips] for i in range(1, NODES + 1)}
    every = [
        Ping(f"{a} to {ip}", topology.pod_netns("red", a), ip, tmp_path / f"{a}-{ip}")
        for a in ips
        for b in ips
        for ip in ips[b]
        if a != b and (":" not in ip or a < b)
    ]
    with Pings(every) as running:
        wait_for_answers(running)
        yield running


def written(path: Path, documents: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))
    return str(path)


def sessions(lab: Lab) -> dict[str, list[str]]:
    """The names of each node's established sessions, as BIRD has them."""
    every = json.loads(lab.tortie("node", "status", "-o", "json"))
    return {one["node"]: sorted(p["name"] for p in one["peers"] if p["state"] == "Established") for one in every}


def protocols(lab: Lab, name: str) -> set[str]:
    """Who wrote the routes to pods of other nodes, in a node's kernel."""
    netns = lab.directory.read().node(name).netns
    text = subprocess.run(["ip", "-n", netns, "-j", "route"], capture_output=True, text=True, check=True).stdout
    return {
        route["protocol"] for route in json.loads(text) if route["dst"].startswith("10.244.") and "gateway" in route
    }


def test_to_reflectors_and_back_no_packet_is_lost(lab: Lab, pings: Pings, tmp_path: Path) -> None:
    """Situation 3. The first attempt is interrupted, and goes back; the second one gets there; then the way back. All
    hang in the net while sessions are closed and opened."""
    wanted = written(tmp_path / "reflectors.yaml", WITH_REFLECTORS)
    interrupted(lab, wanted)
    assert all(name.startswith("Mesh_") for names in full(lab).values() for name in names)

    said = lab.tortie("bgp", "plan", "-f", wanted, "--apply")
    assert "no node loses its route to another's pods in any step" in said
    assert [line for line in said.splitlines() if line.startswith("step ") and " of " in line] == [
        "step 1 of 3: net on", "step 2 of 3: change", "step 3 of 3: net off",
    ]  # fmt: skip
    found = sessions(lab)
    assert len(found["node1"]) == 2 * (NODES - 1)
    assert found["node6"] == [
        "Node_172_30_0_11", "Node_172_30_0_12", "Node_fd00_172_30__11", "Node_fd00_172_30__12",
    ]  # fmt: skip
    assert protocols(lab, "node6") == {"bird"}, "nothing is left of the net"
    assert "nothing to do" in lab.tortie("bgp", "plan", "-f", wanted)

    lab.tortie("bgp", "plan", "-f", written(tmp_path / "mesh.yaml", WITH_MESH), "--prune", "--apply")
    assert all(name.startswith("Mesh_") for names in full(lab).values() for name in names)
    assert lab.tortie("get", "felixconfigurations", "-o", "name") == ""
    wait_for_answers(pings)
    assert pings.lost == {}


def full(lab: Lab) -> dict[str, list[str]]:
    """The sessions of a mesh."""
    found = sessions(lab)
    assert all(len(names) == 2 * (NODES - 1) for names in found.values())
    return found


def interrupted(lab: Lab, wanted: str) -> None:
    """Begins a move, and ends it in the middle of its second step: then all is as it was."""
    before = lab.tortie("get", "bgpconfigurations", "default", "-o", "yaml", "--export")
    process = lab.start("bgp", "plan", "-f", wanted, "--apply")
    try:
        assert process.stdout is not None
        until_said(process.stdout, "step 2 of 3")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "all is as it was" in out
    assert lab.tortie("get", "bgpconfigurations", "default", "-o", "yaml", "--export") == before
    assert lab.tortie("get", "bgppeers", "-o", "name") + lab.tortie("get", "felixconfigurations", "-o", "name") == ""


def until_said(stream: IO[str], words: str) -> None:
    """Reads lines until one begins so."""
    for line in stream:
        if line.startswith(words):
            return
    raise AssertionError(f"it ended without saying {words}")
