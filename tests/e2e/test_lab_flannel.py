"""Labs whose pods flannel connects, as their user has them: alone and with policy (canal), on each backend that this
kernel has; daemons that are killed, nodes that go and come; and nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cni_labs import eth0, ipv4, up
from labs import Lab, until
from tortie.calc.defaults import defaulted
from tortie.kernel import features
from tortie.lab import processes
from tortie.lab.flanneld import state_of
from tortie.lab.places import opened
from tortie.model.k8s import K8sNode
from tortie.model.meta import Metadata
from tortie.model.store import Store

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]

EXAMPLES = Path(__file__).parents[2] / "examples"
DENY = (EXAMPLES / "flannel/closed.yaml").read_text()


def routes(lab: Lab, node: str, *words: str) -> dict[str, dict[str, Any]]:
    """flannel's of a node, by destination."""
    command = ("ip", "-j", *words, "route", "show", "proto", "70")
    return {route["dst"]: route for route in json.loads(lab.tortie("lab", "exec", f"node:{node}", "--", *command))}


def without_loss(lab: Lab, node: str) -> None:
    """Pings from pod1 to pod2 while the flanneld of a node is killed, until another one is ready."""
    daemon = processes.read_pid(lab.directory.flanneld_pid(node))
    assert daemon is not None
    ping = lab.start("lab", "exec", "default/pod1", "--", "ping", "-i", "0.01", "-q", ipv4(lab, "default/pod2"))
    try:
        until(lambda: _pings(lab), 30)
        daemon.signal(signal.SIGKILL)
        until(lambda: not daemon.alive())

        def again() -> bool:
            now = processes.read_pid(lab.directory.flanneld_pid(node))
            return now not in (None, daemon) and state_of(lab.directory.flanneld_socket(node)).ready

        until(again)
    finally:
        ping.send_signal(signal.SIGINT)
        said, _ = ping.communicate(timeout=10)
    sent, received = map(int, re.findall(r"(\d+) (?:packets transmitted|received)", said))
    assert sent > 10
    assert sent == received, said


def _pings(lab: Lab) -> bool:
    names = [name for name in os.listdir("/run/netns") if name.startswith(f"tortie-{lab.name}-pod-default.pod1")]
    return any(b"ping" in _command(one.pid) for one in processes.inside(names))


def _command(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read()
    except OSError:
        return b""


def in_store(lab: Lab, work: Any) -> None:
    async def run() -> None:
        async with opened(lab.directory) as store:
            await work(store)

    asyncio.run(run())


# --- flannel alone ------------------------------------------------------------------------------------------------


def test_vxlan_carries_both_families_and_outlives_its_daemons() -> None:
    with up("v", "--cni", "flannel", "--pool6", "fd00:10:244::/56") as (lab, said):
        assert "✓ flanneld on 3 nodes" in said
        assert "39 of 42 pass" in said
        assert "packets and configuration agree on all 42 pairs compared" in said
        _looked_at(lab)
        assert sum(entry["passed"] for entry in lab.matrix("-6").values()) == 39
        assert sum(entry["passed"] for entry in lab.matrix("--protocol", "udp").values()) == 39
        assert eth0(lab, "default/pod1")["mtu"] == 1430, "the header of the nodes' IPv6 is longer"
        (route,) = (one for dst, one in routes(lab, "node1").items() if dst == "10.244.2.0/24")
        assert (route["gateway"], route["dev"], route["flags"]) == ("10.244.2.0", "flannel.1", ["onlink"])
        assert routes(lab, "node1", "-6").keys() == {"fd00:10:244:2::/64", "fd00:10:244:3::/64"}
        for node in ("node1", "node2"):
            without_loss(lab, node)
        _nodes_go_and_come(lab)


def _looked_at(lab: Lab) -> None:
    shown = lab.tortie("lab", "status")
    assert "flannel vxlan, 10.244.2.0/24, fd00:10:244:2::/64" in shown
    assert shown.count(", ready") == 7, "flanneld and proxy on each node, and the controllers"
    assert "BGP" not in shown
    drawn = lab.tortie("lab", "map")
    assert "flannel tells the nodes the ways to one another's pods" in " ".join(drawn.split())
    assert "lease 10.244.1.0/24" in lab.tortie("lab", "logs", "flanneld:node1")
    assert "TCP from " in lab.tortie("lab", "logs", "node:node1")
    net_d = lab.directory.net_d("node1")
    conflist = json.loads((net_d / "10-flannel.conflist").read_text())
    assert (conflist["name"], [one["type"] for one in conflist["plugins"]]) == ("cbr0", ["flannel", "portmap"])
    assert "FLANNEL_SUBNET=10.244.1.1/24" in lab.directory.subnet_file("node1").read_text()
    page = lab.tortie("lab", "exec", "default/pod1", "--", "busybox", "wget", "-qO-", "http://198.51.100.9/")
    assert page.startswith("outside on outside saw 172.30.0.11 "), "it leaves with its node's address"
    assert "was up already" in lab.tortie("lab", "up", "--name", lab.name)
    again = lab.tortie("lab", "up", "--name", lab.name, "--cni", "flannel", "--backend", "host-gw", status=2)
    assert "is there already with 3 nodes, flannel vxlan" in again


def _nodes_go_and_come(lab: Lab) -> None:
    async def remove(store: Store) -> None:
        await store.delete(K8sNode, "node3")

    async def add(store: Store) -> None:
        node = await store.get(K8sNode, "node2")
        spec = replace(node.spec, pod_cidr="10.244.9.0/24", pod_cidrs=("10.244.9.0/24", "fd00:10:244:9::/64"))
        await store.create(defaulted(K8sNode(metadata=Metadata(name="node3"), spec=spec), None))

    assert routes(lab, "node1").keys() == {"10.244.2.0/24", "10.244.3.0/24"}
    in_store(lab, remove)
    until(lambda: routes(lab, "node1").keys() == {"10.244.2.0/24"})
    assert "not ready" in lab.tortie("lab", "status", status=1) or "not running" in lab.tortie(
        "lab", "status", status=1
    )
    in_store(lab, add)
    until(lambda: routes(lab, "node1").keys() == {"10.244.2.0/24", "10.244.9.0/24"})
    until(lambda: routes(lab, "node3").keys() == {"10.244.1.0/24", "10.244.2.0/24"})


@pytest.mark.parametrize("backend", ["host-gw", "udp"])
def test_on_another_backend(backend: str) -> None:
    with up(backend[0], "--cni", "flannel", "--backend", backend, "--nodes", "2") as (lab, said):
        assert "18 of 20 pass" in said
        assert f"flannel {backend}, 10.244.2.0/24" in lab.tortie("lab", "status")
        if backend == "host-gw":
            (route,) = routes(lab, "node1").values()
            assert (route["dst"], route["gateway"], route["dev"]) == ("10.244.2.0/24", "172.30.0.12", "eth0")
            without_loss(lab, "node2")
        else:
            assert eth0(lab, "default/pod1")["mtu"] == 1472


def test_racks_with_a_tunnel_between_them_alone() -> None:
    with up("r", "--topology", str(EXAMPLES / "topologies/flannel-racks.yaml")) as (lab, said):
        assert "53 of 56 pass" in said
        assert "iBGP" not in said
        ways = {dst: (route["gateway"], route["dev"]) for dst, route in routes(lab, "node1").items()}
        assert ways == {
            "10.244.2.0/24": ("172.30.0.12", "eth0"),
            "10.244.3.0/24": ("10.244.3.0", "flannel.1"),
            "10.244.4.0/24": ("10.244.4.0", "flannel.1"),
        }
        lab.tortie("lab", "status")


# --- with policy --------------------------------------------------------------------------------------------------


def test_canal_enforces_policy_on_flannels_ways() -> None:
    with up("c", "--cni", "canal", "--nodes", "2") as (lab, said):
        assert "✓ agents of 2 nodes" in said
        assert "✓ flanneld on 2 nodes" in said
        assert "BGP sessions" not in said
        pods = {("default/pod1", "default/pod2"), ("default/pod2", "default/pod1")}
        before = lab.matrix()
        assert all(before[pair]["passed"] for pair in pods)
        lab.tortie("apply", "-f", "-", stdin=DENY)
        until(lambda: not any(lab.matrix()[pair]["passed"] for pair in pods))
        assert lab.matrix()["default/pod1", "outside"]["passed"]
        lab.tortie("delete", "-f", "-", stdin=DENY)
        until(lambda: all(lab.matrix()[pair]["passed"] for pair in pods))
        assert eth0(lab, "default/pod1")["mtu"] == 1450
        assert ipv4(lab, "default/pod2").startswith("10.244.2.")
        table = routes(lab, "node1")
        assert table["10.244.1.0/24"]["type"] == "blackhole"
        assert table["10.244.2.0/24"]["dev"] == "flannel.1"
        assert not list(lab.directory.path.glob("nodes/*/bird.conf")), "there is no BIRD"
        pods4 = lab.tortie("lab", "exec", "node:node1", "--", "nft", "list", "set", "inet", "tortie-services", "pods4")
        assert "10.244.0.0/16" in pods4, "a service's pods see who asks"
        without_loss(lab, "node1")
        shown = lab.tortie("lab", "status")
        assert shown.count(", ready") == 5
        assert " bad" not in lab.tortie("doctor"), "what has no BIRD lacks none"
        assert "lease 10.244.2.0/24" in lab.tortie("lab", "logs", "flanneld:node2")


# --- what cannot be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--backend vxlan", "--backend: is for --cni flannel and --cni canal"),
        ("--cni macvlan --backend udp", "--backend: is for --cni flannel and --cni canal"),
        ("--cni flannel --backend vxlna", '--backend: "vxlna" is no backend of a lab, did you mean "vxlan"?'),
        ("--cni canal --backend udp --pool6 fd00:1::/56", "--pool6: udp carries IPv4 alone"),
        ("--cni flannel --pool 10.9.0.0/23", "--pool: 10.9.0.0/23 has no /24 for each of 3 nodes, after the first"),
        ("--cni flannel --pool fd00:1::/56", "--pool: fd00:1::/56 is not an IPv4 network"),
        ("--cni flannel --pool 172.30.0.0/16", "--pool: 172.30.0.0/16 overlaps 172.30.0.0/24 of rack all"),
        ("--cni flannle", '--cni: "flannle" is no network of a lab, did you mean "flannel"?'),
        ("--cni flannel --topology rr", "--topology: and --cni exclude each other"),
        ("--cni canal --no-routes", "--no-routes: does not go with --cni canal"),
    ],
)
def test_it_is_refused_in_one_line(words: str, complaint: str) -> None:
    lab = Lab(f"x{os.getpid()}")
    said = lab.tortie("lab", "up", "--name", lab.name, *words.split(), status=2)
    assert complaint in said
    assert said.count("\n") == 1
    assert not lab.directory.path.exists()


@pytest.mark.parametrize("backend", ["ipip", "wireguard"])
def test_a_backend_that_the_kernel_lacks_is_told_before_anything_is_made(backend: str) -> None:
    if features.has_link_kind(backend):
        pytest.skip(f"this kernel has {backend}")
    lab = Lab(f"y{os.getpid()}")
    said = lab.tortie("lab", "up", "--name", lab.name, "--cni", "flannel", "--backend", backend, status=1)
    assert said == f'tortie: this kernel has no {backend}: load the module "{backend}" (modprobe {backend})\n'
    assert not lab.directory.path.exists()


def test_a_lab_without_flannel_has_no_log_of_it() -> None:
    with up("n", "--cni", "bridge", "--nodes", "1") as (lab, _):
        assert "has no flanneld" in lab.tortie("lab", "logs", "flanneld:node1", status=2)
