"""Labs on CNI plugins alone, as their user has them: the cases' files, bridges, agents; and nothing is left."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cni_labs import eth0, ipv4, running, up
from labs import Lab, pod, until
from tortie.lab import processes

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]

CASES = Path(__file__).parents[2] / "examples" / "cases"
RANGES = {1: (129, 139), 2: (140, 149), 3: (119, 128)}
"""By node the last octets of 10.211.55.0/24 that its file gives."""


def closed(pairs: dict[tuple[str, str], dict[str, Any]]) -> set[tuple[str, str]]:
    return {pair for pair, entry in pairs.items() if not entry["passed"]}


def own_nodes(*numbers: int) -> set[tuple[str, str]]:
    ends = [(f"default/pod{i}", f"node{i}") for i in numbers]
    return {*ends, *((node, name) for name, node in ends)}


# --- the cases ----------------------------------------------------------------------------------------------------


def test_the_macvlan_case() -> None:
    with up("m", "--cni", "macvlan") as (lab, said):
        assert "packets and configuration agree on all 42 pairs compared" in said
        assert '"hostAccess": "sibling" in the configuration mends it' in " ".join(said.split())
        for number, (first, last) in RANGES.items():
            case = ("master", "node1", "node2")[number - 1]
            file = lab.directory.net_d(f"node{number}") / "10-macvlan.conf"
            assert file.read_bytes() == (CASES / f"macvlan/{case}.conf").read_bytes()
            address = ipv4(lab, f"default/pod{number}")
            assert address.startswith("10.211.55.")
            assert first <= int(address.rpartition(".")[2]) <= last
            assert ipv4(lab, f"node:node{number}") == f"10.211.55.{6 + number}"
            assert eth0(lab, f"default/pod{number}")["address"] != eth0(lab, f"node:node{number}")["address"]
        assert closed(lab.matrix()) == own_nodes(1, 2, 3)
        assert closed(lab.matrix("--protocol", "icmp")) == own_nodes(1, 2, 3)
        assert closed(lab.matrix("--protocol", "udp")) == own_nodes(1, 2, 3)
        page = lab.tortie("lab", "exec", "default/pod2", "--", "busybox", "wget", "-qO-", "http://198.51.100.9/")
        assert page.startswith(f"outside on outside saw {ipv4(lab, 'default/pod2')} port ")
        _looked_at(lab)
        _more_pods(lab)


def _looked_at(lab: Lab) -> None:
    """What is there without agents, and what is not."""
    shown = lab.tortie("lab", "status")
    assert "macvlan bridge, 10.211.55.140 to 10.211.55.149" in shown
    assert "agent" not in shown
    assert "no agents and no BGP" in lab.tortie("lab", "map")
    assert "TCP from " in lab.tortie("lab", "logs", "node:node1")
    assert f"lab {lab.name} was up already" in lab.tortie("lab", "up", "--name", lab.name, "--cni", "macvlan")
    assert "is there already with 3 nodes, macvlan" in lab.tortie(
        "lab", "up", "--name", lab.name, "--cni", "bridge", status=2
    )


def _more_pods(lab: Lab) -> None:
    """They come beside the others, and their addresses go back when they go."""
    lab.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "red"}},
        pod("a", node="node3"), pod("b", node="node3"), pod("own", node="node2", hostNetwork=True),
    )  # fmt: skip
    running(lab, "a", "b", "own")
    kept = lab.directory.node("node3") / "var-lib-cni/networks/ipvlannet"
    assert {ipv4(lab, "red/a"), ipv4(lab, "red/b")} == {"10.211.55.120", "10.211.55.121"}
    pairs = lab.matrix()
    assert pairs["red/a", "red/b"]["passed"]
    assert pairs["red/a", "default/pod3"]["passed"]
    assert not pairs["red/own", "default/pod2"]["passed"], "it is its node"
    assert pairs["red/own", "default/pod1"]["passed"]
    lab.tortie("delete", "pods", "a", "b", "own", "-n", "red")
    until(lambda: {file.name for file in kept.glob("1*")} == {"10.211.55.119"})


def test_a_sibling_mends_what_is_closed(tmp_path: Path) -> None:
    files = _with(tmp_path, hostAccess="sibling")
    with up("s", "--cni", "macvlan", *files) as (lab, said):
        assert "42 of 42 pass" in said
        assert "mends it" not in said
        assert closed(lab.matrix("--protocol", "icmp")) == set()


def _with(folder: Path, **more: Any) -> list[str]:
    """Options for the case's files with something added."""
    words = []
    for name in ("master", "node1", "node2"):
        conf = json.loads((CASES / f"macvlan/{name}.conf").read_text())
        (folder / f"{name}.conf").write_text(json.dumps(conf | more))
        words += ["--netconf", str(folder / f"{name}.conf")]
    return words


def test_bridges_are_joined_by_routes() -> None:
    with up("b", "--cni", "bridge") as (lab, said):
        assert "42 of 42 pass" in said
        table = json.loads(lab.tortie("lab", "exec", "node:node1", "--", "ip", "-j", "-4", "route", "list"))
        routes = {route["dst"]: route.get("gateway") for route in table}
        assert (routes["10.211.57.0/24"], routes["10.211.58.0/24"]) == ("10.211.55.8", "10.211.55.9")
        # The next kubelet has the pods that the first one had.
        kubelet = processes.read_pid(lab.directory.kubelet_pid)
        assert kubelet is not None
        kubelet.signal(signal.SIGKILL)
        until(lambda: not kubelet.alive())
        assert "kubelet is not running" in lab.tortie("lab", "status", status=1)
        assert "42 of 42 pass" in lab.tortie("lab", "up", "--name", lab.name)


def test_without_routes_bridges_are_islands() -> None:
    with up("i", "--cni", "bridge", "--nodes", "2", "--no-routes") as (lab, said):
        assert "pods of other nodes are not reached" in said
        assert {("default/pod1", "default/pod2"), ("default/pod2", "default/pod1")} <= closed(lab.matrix())


def test_files_that_say_auto_routes_have_agents_that_tell_the_nodes(tmp_path: Path) -> None:
    files = []
    for number in (56, 57):
        ipam = {"type": "host-local", "subnet": f"10.211.{number}.0/24", "routes": [{"dst": "0.0.0.0/0"}]}
        conf = {"cniVersion": "1.1.0", "name": "routed", "type": "bridge", "isGateway": True, "autoRoutes": True}
        (tmp_path / f"{number}.conf").write_text(json.dumps(conf | {"ipam": ipam}))
        files += ["--netconf", str(tmp_path / f"{number}.conf")]
    with up("a", "--cni", "own", *files) as (lab, said):
        assert "✓ agents of 2 nodes" in said
        assert "20 of 20 pass" in said
        table = json.loads(lab.tortie("lab", "exec", "node:node1", "--", "ip", "-j", "-4", "route", "list"))
        (route,) = (one for one in table if one["dst"] == "10.211.57.0/24")
        assert (route["gateway"], route["protocol"]) == ("10.211.55.8", "87")
        assert "ready" in lab.tortie("lab", "status")
