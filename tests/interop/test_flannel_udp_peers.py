"""The udp backend with flannel's own daemon on the other node: packets both ways, whoever is restarted.

FLANNELD names it; it has to be built with cgo, for amd64, for its proxy is in C.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from etcd_server import needs_etcd, running
from flannel_daemons import Daemon, Town, until
from flannel_nodes import NETWORK, FlannelNode, Wire, network_config, pod_ip, subnet_of
from namespaces import Ns, namespaces

FLANNELD = os.environ.get("FLANNELD", "")
SERVER = "192.0.2.254"
PREFIX = "/coreos.com/network"

pytestmark = [
    pytest.mark.root,
    needs_etcd,
    pytest.mark.skipif(not FLANNELD, reason="FLANNELD does not name flannel's own daemon"),
]


@dataclass
class Two:
    """Node 1 has flannel's daemon, node 2 ours."""

    theirs: FlannelNode
    ours: Daemon
    url: str
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    def start_theirs(self) -> None:
        words = (
            FLANNELD,
            "-etcd-endpoints",
            self.url,
            "-iface",
            "eth0",
            "-subnet-file",
            f"{self.directory}/theirs.env",
        )
        with (self.directory / "theirs.log").open("ab") as log:
            command = ["ip", "netns", "exec", self.theirs.ns.name, *words]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(
            f"flannel's daemon is there: {self.said()}", lambda: self.theirs.ns.json("route", "show", str(NETWORK)), 60
        )

    def said(self) -> str:
        return (self.directory / "theirs.log").read_text(errors="replace")[-3000:]

    def stop_theirs(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(20)

    def reach_each_other(self) -> None:
        one, two = self.theirs, self.ours.node
        until(f"pod to pod: {self.said()}", lambda: one.reaches(two) and two.reaches(one), 60)


@pytest.fixture
def make_ns() -> Iterator[Callable[..., Ns]]:
    yield from namespaces()


@pytest.fixture
def two(make_ns: Callable[..., Ns], tmp_path: Path) -> Iterator[Two]:
    wire = Wire(make_ns)
    wire.ns.ip("address", "add", f"{SERVER}/24", "dev", "wire")
    with ExitStack() as stack:
        within = ("ip", "netns", "exec", wire.ns.name)
        etcd = stack.enter_context(running(tmp_path / "etcd", host=SERVER, within=within))
        config = {"Network": str(NETWORK), "EnableNFTables": True, "Backend": {"Type": "udp"}}
        etcd.ctl("put", f"{PREFIX}/config", json.dumps(config))
        for number in (1, 2):
            value = json.dumps({"PublicIP": f"192.0.2.{number}"})
            etcd.ctl("put", f"{PREFIX}/subnets/{subnet_of(number).network_address}-24", value)
        one, other = (wire.node(number, network_config("udp")) for number in (1, 2))
        for node in (one, other):
            node.pod.ip("link", "set", "eth0", "mtu", "1472")
        town = Town(wire, tmp_path, flags=("-etcd-endpoints", etcd.url))
        found = Two(one, Daemon(town, other), etcd.url, tmp_path)
        stack.callback(found.ours.kill)
        stack.callback(found.stop_theirs)
        yield found


def rate(source: Ns, target: Ns, ip: str) -> float:
    """Mbit/s of a short TCP transfer; it has to be whole."""
    server = subprocess.Popen(["ip", "netns", "exec", target.name, "iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    try:
        until("iperf3 listens", lambda: "5201" in target.run("ss", "-ltn"))
        said = json.loads(source.run("iperf3", "-c", ip, "-n", "20M", "--json"))
    finally:
        server.kill()
        server.wait()
    return float(said["end"]["sum_received"]["bits_per_second"]) / 1e6


def test_both_ways_whoever_is_restarted(two: Two) -> None:
    two.start_theirs()
    two.ours.start().until_ready()
    two.reach_each_other()
    rates = rate(two.theirs.pod, two.ours.node.pod, pod_ip(2)), rate(two.ours.node.pod, two.theirs.pod, pod_ip(1))
    print("Mbit/s to us and from us: {:.0f} and {:.0f}".format(*rates))
    two.ours.kill()
    two.ours.start().until_ready()
    two.reach_each_other()
    two.stop_theirs()
    two.start_theirs()
    two.reach_each_other()


def test_a_hop_costs_the_same_with_either(two: Two) -> None:
    two.start_theirs()
    two.ours.start().until_ready()
    two.reach_each_other()
    ways = ((two.theirs.pod, pod_ip(2)), (two.ours.node.pod, pod_ip(1)))
    said = [source.run("ping", "-n", "-c", "1", "-w", "5", ip) for source, ip in ways]
    assert [re.findall(r"ttl=(\d+)", text) for text in said] == [["60"], ["60"]]
