"""Labs on CNI plugins alone when something is not as usual: other plugins, mistakes, interruptions; and the tour."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cni_labs import ipv4, running, up
from cni_plugins import GO
from labs import Lab, pod, until
from tortie.kernel.features import has_link_kind
from tortie.lab import demo_cni, network, processes
from tortie.lab.state import LabDirectory

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]


# --- other plugins, other files -----------------------------------------------------------------------------------


@pytest.mark.skipif(not (GO / "macvlan").exists(), reason="apt-get install containernetworking-plugins")
def test_the_plugins_of_another_directory() -> None:
    with up("g", "--cni", "macvlan", "--nodes", "2", "--plugins", str(GO)) as (lab, said):
        assert "packets and configuration agree on all 20 pairs compared" in said
        assert not lab.directory.plugins.exists()


def test_what_a_plugin_complains_about_is_the_pods_message(tmp_path: Path) -> None:
    """A range of two: the third pod says why it does not run."""
    subnet = {"subnet": "10.211.55.0/24", "rangeStart": "10.211.55.50", "rangeEnd": "10.211.55.51"}
    conf = {"cniVersion": "1.0.0", "name": "small", "type": "macvlan", "ipam": {"type": "host-local", **subnet}}
    (tmp_path / "10-small.conf").write_text(json.dumps(conf | {"master": "eth0"}))
    with up("x", "--cni", "own", "--nodes", "1", "--netconf", str(tmp_path / "10-small.conf")) as (lab, _):
        red = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "red"}}
        lab.apply(red, pod("a"))
        running(lab, "a")
        lab.apply(pod("b"))
        complaint = "no IP addresses available in range set: 10.211.55.50-10.211.55.51"
        until(lambda: complaint in lab.pod("b").status.message, 20)


def test_two_labs_have_the_same_addresses_at_once() -> None:
    with up("p", "--cni", "macvlan", "--nodes", "2") as (one, first), up("q", "--cni", "macvlan") as (other, second):
        assert "all 20 pairs" in first
        assert "all 42 pairs" in second
        assert ipv4(one, "default/pod1") == ipv4(other, "default/pod1") == "10.211.55.129"
        assert "all 20 pairs" in one.tortie("lab", "matrix")


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (("--cni", "macvlan", "--topology", "rr"), 2, "--topology: and --cni exclude each other"),
        (("--cni", "macvlan", "--pool", "10.0.0.0/16"), 2, "--pool: and --cni exclude each other"),
        (("--plugins", "/usr/lib/cni"), 2, "--plugins: is for --cni"),
        (("--cni", "macvlan", "--plugins", "/nowhere"), 1, 'failed to find plugin "macvlan" in path [/nowhere]'),
        (("--cni", "own"), 2, "own wants your files"),
        (("--netconf", "a.json", "--netconf", "b.json"), 2, "several files are for --cni"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_built(words: Sequence[str], status: int, complaint: str) -> None:
    lab = Lab(f"w{os.getpid()}")
    said = lab.tortie("lab", "up", "--name", lab.name, *words, status=status)
    assert complaint in said
    assert said.count("\n") == 1
    assert network.leftovers(lab.directory) == []


@pytest.mark.skipif(
    os.geteuid() == 0 and has_link_kind("ipvlan"),
    reason="this kernel has ipvlan: see tests/vm/inside/test_lab_ipvlan.py",
)
@pytest.mark.parametrize(
    "words", [("up", "--cni", "ipvlan-l2"), ("up", "--cni", "ipvlan-l3"), ("demo", "--cni", "ipvlan-l2")]
)
def test_a_kernel_without_ipvlan_says_so_before_anything_is_built(words: Sequence[str]) -> None:
    lab = Lab(f"k{os.getpid()}")
    said = lab.tortie("lab", *words, status=1)
    assert said == 'tortie: this kernel has no ipvlan: load the module "ipvlan" (modprobe ipvlan)\n'
    assert network.leftovers(lab.directory) == []


# --- interrupted --------------------------------------------------------------------------------------------------


def _half_way(lab: Lab) -> subprocess.Popen[str]:
    """`lab up` in the middle: kubelet and pods are coming."""
    command = [sys.executable, "-m", "tortie.cli.main", "lab", "up", "--name", lab.name, "--cni", "macvlan"]
    env = os.environ | lab.environment
    begun = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 30
    while processes.read_pid(lab.directory.kubelet_pid) is None:
        assert time.monotonic() < deadline
        assert begun.poll() is None
        time.sleep(0.01)
    return begun


def test_interrupted_it_takes_away_what_it_began() -> None:
    lab = Lab(f"c{os.getpid()}")
    try:
        begun = _half_way(lab)
        begun.send_signal(signal.SIGINT)
        said, _ = begun.communicate(timeout=30)
        assert begun.returncode == 130, said
        assert network.leftovers(lab.directory) == []
    finally:
        network.destroy(lab.directory)


def test_killed_it_leaves_what_lab_down_finds() -> None:
    lab = Lab(f"d{os.getpid()}")
    try:
        begun = _half_way(lab)
        begun.kill()
        begun.communicate(timeout=30)
        assert network.leftovers(lab.directory) != []
        lab.tortie("lab", "down", "--name", lab.name)
        assert network.leftovers(lab.directory) == []
    finally:
        network.destroy(lab.directory)


def test_the_tour_of_a_network() -> None:
    lab = Lab(demo_cni.NAME)
    try:
        said = lab.tortie("lab", "demo", "--cni", "macvlan")
        assert said.splitlines()[-1].endswith("checks, 0 failed"), said
        assert network.leftovers(LabDirectory(demo_cni.NAME)) == []
    finally:
        network.destroy(lab.directory)
