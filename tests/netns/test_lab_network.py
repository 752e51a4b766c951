"""The lab's network in the kernel: everybody reaches everybody, half-built is completed, and nothing is left behind."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from tortie.lab import link, network, processes
from tortie.lab.blueprint import load
from tortie.lab.state import LabDirectory, find_labs
from tortie.lab.topology import Topology, laid_out, topology

pytestmark = pytest.mark.root

_serial = itertools.count()


def ip(netns: str, *words: str) -> list[dict[str, object]]:
    done = subprocess.run(["ip", "-n", netns, "-j", *words], capture_output=True, text=True, check=True, timeout=10)
    return [item for item in json.loads(done.stdout or "[]") if item]


def reaches(netns: str, address: str) -> bool:
    command = ["ip", "netns", "exec", netns, "busybox", "ping", "-c", "1", "-W", "1", address]
    return subprocess.run(command, capture_output=True, check=False, timeout=10).returncode == 0


def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come about"
        time.sleep(0.01)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[LabDirectory]:
    """A lab of its own, which is gone after the test whatever the test did."""
    lab = LabDirectory(f"t{os.getpid()}n{next(_serial)}", tmp_path / "lab")
    yield lab
    network.destroy(lab)
    assert network.leftovers(lab) == []


@pytest.fixture
def built(directory: LabDirectory) -> Topology:
    lab = topology(directory.name, 2)
    directory.write(lab)
    network.build(lab)
    return lab


def test_nodes_reach_each_other_and_the_outside_in_both_families(built: Topology) -> None:
    one, two = built.nodes
    for address in (two.ipv4.ip, two.ipv6.ip, built.outside.ipv4.ip, built.outside.ipv6.ip):
        assert reaches(one.netns, str(address)), address
    assert reaches(built.outside.netns, str(two.ipv4.ip))


def test_the_outside_has_no_way_to_pods(built: Topology) -> None:
    routes = {str(route["dst"]) for family in ("-4", "-6") for route in ip(built.fabric, family, "route", "show")}
    assert "default" not in routes
    assert {"172.30.0.0/24", "198.51.100.0/24"} <= routes


def test_nothing_is_linked_to_the_machine_itself(built: Topology) -> None:
    own = subprocess.run(["ip", "-j", "netns", "list-id"], capture_output=True, text=True, check=True).stdout
    ids = {entry.get("name") for entry in json.loads(own or "[]")}
    assert not ids & set(network.namespaces(built.name))


def test_building_again_completes_what_is_missing(built: Topology) -> None:
    before = {str(one["ifname"]): one["ifindex"] for one in ip(built.fabric, "link", "show")}
    subprocess.run(["ip", "-n", built.fabric, "link", "delete", "node2"], check=True)
    subprocess.run(["ip", "-n", built.nodes[0].netns, "route", "delete", "default"], check=True)
    network.build(built)
    after = {str(one["ifname"]): one["ifindex"] for one in ip(built.fabric, "link", "show")}
    assert after["node1"] == before["node1"]  # what was there is left alone
    assert reaches(built.nodes[1].netns, str(built.outside.ipv4.ip))
    assert reaches(built.nodes[0].netns, str(built.outside.ipv4.ip))


def test_racks_reach_each_other_over_their_routers(directory: LabDirectory) -> None:
    lab = laid_out(directory.name, replace(load("two-racks"), mtu=1400))
    directory.write(lab)
    assert directory.read() == lab
    network.build(lab)
    network.build(lab)  # again is the same
    one, *_, last = lab.nodes
    for address in (last.ipv4.ip, last.ipv6.ip, lab.outside.ipv4.ip, lab.outside.ipv6.ip):
        assert reaches(one.netns, str(address)), address
    every = [one for netns in lab.namespaces for one in ip(netns, "link", "show")]
    mtus = {one["mtu"] for one in every if one["ifname"] != "lo"}
    assert mtus == {1400}
    assert set(network.namespaces(lab.name)) == set(lab.namespaces)


def test_a_link_of_its_own_mtu(directory: LabDirectory) -> None:
    blueprint = load("cross-subnet")
    narrow = replace(blueprint, links=tuple(replace(link, mtu=1300) for link in blueprint.links))
    lab = laid_out(directory.name, narrow)
    network.build(lab)
    mtus = {str(one["ifname"]): one["mtu"] for one in ip(lab.router("gate-a").netns, "link", "show")}
    assert (mtus["gate-b"], mtus["br0"], mtus["node1"]) == (1300, 1500, 1500)


def test_nodes_of_a_large_rack_need_not_ask_for_one_another(directory: LabDirectory) -> None:
    lab = topology(directory.name, 17)
    network.build(lab)
    first, *others = lab.nodes
    known = {str(entry["dst"]): (entry["lladdr"], entry["state"]) for entry in ip(first.netns, "neigh", "show")}
    for other in others:
        (eth0,) = ip(other.netns, "link", "show", "eth0")
        for address in (other.ipv4.ip, other.ipv6.ip):
            assert known[str(address)] == (eth0["address"], ["PERMANENT"])
    assert reaches(first.netns, str(others[-1].ipv6.ip))


def test_a_cable_that_is_pulled_and_plugged_in(built: Topology) -> None:
    one, two = built.nodes
    link.plug(built, "node2", up=False)
    assert not reaches(one.netns, str(two.ipv4.ip))
    link.plug(built, "node2", up=True)
    link.set_mtu(built, "node2", 1400)
    until(lambda: reaches(one.netns, str(two.ipv6.ip)))
    (own,), (port,) = ip(two.netns, "link", "show", "eth0"), ip(built.fabric, "link", "show", "node2")
    assert (own["mtu"], port["mtu"]) == (1400, 1400)
    (bridge,) = ip(built.fabric, "link", "show", "br0")
    assert bridge["mtu"] == 1500, "the others keep theirs"


def test_a_namespace_whose_maker_was_killed_half_way_is_made_again(directory: LabDirectory) -> None:
    lab = topology(directory.name, 1)
    Path("/run/netns").mkdir(exist_ok=True)
    Path("/run/netns", lab.nodes[0].netns).touch()
    network.build(lab)
    assert reaches(lab.nodes[0].netns, lab.nodes[0].gateway)


def test_destroy_kills_who_is_inside_and_nobody_else(built: Topology, directory: LabDirectory) -> None:
    inside = subprocess.Popen(["ip", "netns", "exec", built.nodes[0].netns, "sleep", "60"])
    outside = subprocess.Popen(["sleep", "60"])
    try:
        until(lambda: inside.pid in [one.pid for one in processes.inside([built.nodes[0].netns])])
        # Somebody else's process has the number that an old pid file names.
        directory.kubelet_pid.write_text(f"{outside.pid} (python) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 42 0 0\n")
        network.destroy(directory)
        assert inside.wait(5) == -signal.SIGKILL
        assert outside.poll() is None
        assert network.leftovers(directory) == []
        network.destroy(directory)  # nothing to do is fine
    finally:
        outside.kill()
        outside.wait()
        inside.kill()
        inside.wait()


def test_two_labs_do_not_touch_each_other(built: Topology, directory: LabDirectory) -> None:
    other = LabDirectory(directory.name + "x", directory.root)
    try:
        network.build(topology(other.name, 1))
        assert {directory.name, other.name} <= set(find_labs(directory.root))
        network.destroy(other)
        assert reaches(built.nodes[0].netns, str(built.nodes[1].ipv4.ip))
    finally:
        network.destroy(other)


def test_a_spawned_process_is_known_by_its_pid_file_from_its_first_moment(built: Topology, tmp_path: Path) -> None:
    pid_file, log = tmp_path / "pid", tmp_path / "log"
    program = ["sh", "-c", "hostname; readlink /proc/self/ns/net; sleep 60"]
    path = f"/run/netns/{built.nodes[0].netns}"
    child = processes.spawn(program, pid_file, log, netns_path=path, hostname="web-0", env={"MARK": path})
    try:
        until(lambda: log.read_text().count("\n") == 2)
        name, namespace = log.read_text().split()
        assert name == "web-0"
        assert namespace == f"net:[{os.stat(path).st_ino}]"
        known = processes.read_pid(pid_file)
        assert known is not None
        assert known.pid == child.pid
        assert known in processes.inside([built.nodes[0].netns])
    finally:
        processes.end(lambda: processes.marked("MARK", path), 1)
        child.wait()
    assert processes.read_pid(pid_file) is None
