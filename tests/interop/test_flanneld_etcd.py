"""`tortie flanneld` with a real etcd: whole nodes, etcd that goes and comes, leases that are lost."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from etcd_server import ETCD, ETCDCTL, needs_etcd
from flannel_daemons import Daemon, Town, until
from flannel_nodes import FlannelNode, Wire, network_config
from namespaces import Ns, namespaces
from pings import Ping

pytestmark = [pytest.mark.root, needs_etcd]

PREFIX = "/coreos.com/network"
SERVER = "192.0.2.254"
URL = f"http://{SERVER}:2379"
CONFIG = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}


@dataclass
class Etcd:
    """One member, on the wire between the nodes."""

    ns: Ns
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert ETCD
        urls = ("--listen-client-urls", URL, "--advertise-client-urls", URL)
        peers = ("--listen-peer-urls", "http://127.0.0.1:2380")
        words = [
            *("ip", "netns", "exec", self.ns.name, ETCD, "--data-dir", str(self.directory), *urls, *peers),
            *("--unsafe-no-fsync", "--logger=zap", "--log-level=error"),
        ]
        with (self.directory.parent / "etcd.log").open("ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until("etcd answers", lambda: "is healthy" in self.ctl("endpoint", "health", check=False))

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(20)

    def ctl(self, *words: str, check: bool = True) -> str:
        assert ETCDCTL
        command = ("env", "ETCDCTL_API=3", ETCDCTL, "--endpoints", URL, *words)
        done = subprocess.run(
            ["ip", "netns", "exec", self.ns.name, *command], capture_output=True, text=True, timeout=30, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def leases(self, prefix: str = PREFIX) -> dict[str, dict[str, Any]]:
        """Subnets and their values."""
        lines = self.ctl("get", "--prefix", f"{prefix}/subnets/").splitlines()
        return {key.rpartition("/")[2]: json.loads(text) for key, text in zip(lines[::2], lines[1::2], strict=True)}


@dataclass
class World:
    wire: Wire
    etcd: Etcd
    directory: Path
    daemons: list[Daemon] = field(default_factory=list)

    def daemon(self, node: FlannelNode, name: str, *flags: str) -> Daemon:
        """That of another network has another `name`: a folder of its own, and so a subnet file."""
        folder = self.directory / name
        folder.mkdir(exist_ok=True)
        town = Town(self.wire, folder, flags=("-etcd-endpoints", URL))
        daemon = Daemon(town, node, flags)
        self.daemons.append(daemon)
        return daemon

    def node(self, number: int, *flags: str) -> Daemon:
        """With no pod yet: who knows what subnet it will have."""
        node = self.wire.node(number, network_config())
        node.ns.ip("link", "delete", "cni0")
        return self.daemon(node, f"net{number}", *flags)


@pytest.fixture
def make_ns() -> Iterator[Callable[..., Ns]]:
    yield from namespaces()


@pytest.fixture
def world(make_ns: Callable[..., Ns], tmp_path: Path) -> Iterator[World]:
    wire = Wire(make_ns)
    wire.ns.ip("address", "add", f"{SERVER}/24", "dev", "wire")
    etcd = Etcd(wire.ns, tmp_path / "etcd")
    etcd.directory.mkdir(mode=0o700)
    found = World(wire, etcd, tmp_path)
    try:
        etcd.start()
        etcd.ctl("put", f"{PREFIX}/config", json.dumps(CONFIG))
        yield found
    finally:
        for daemon in found.daemons:
            daemon.kill()
        etcd.kill()


def subnet(daemon: Daemon) -> str:
    """As the plugin reads it: the first address and the length."""
    lines = dict(line.split("=", 1) for line in daemon.subnet_file.read_text().splitlines())
    return lines["FLANNEL_SUBNET"]


def pod(daemon: Daemon) -> str:
    """Gives the node its bridge's address and its pod one; the pod's."""
    first, _, length = subnet(daemon).partition("/")
    ns, pod = daemon.node.ns, daemon.node.pod
    address = first.rpartition(".")[0] + ".2"
    ns.ip("link", "add", "cni0", "type", "veth", "peer", "name", "eth0", "netns", pod.name)
    ns.ip("address", "add", f"{first}/{length}", "dev", "cni0")
    ns.ip("link", "set", "cni0", "up")
    pod.ip("address", "add", f"{address}/{length}", "dev", "eth0")
    pod.ip("link", "set", "eth0", "up")
    pod.ip("route", "add", "default", "via", first)
    return address


def two(world: World, *flags: str) -> tuple[Daemon, Daemon]:
    one, other = (world.node(number, *flags).start().until_ready() for number in (1, 2))
    until("both know each other", lambda: all(len(each.status()["neighbours"]) == 1 for each in (one, other)))
    return one, other


def test_etcd_comes_and_goes_under_traffic(world: World, tmp_path: Path) -> None:
    """A daemon that is killed meanwhile waits for it, and the network goes on. Then it has its subnet again."""
    one, other = two(world, "-ip-masq")
    had, target = subnet(one), pod(other)
    pod(one)
    until("pods reach each other", lambda: "1 received" in one.node.pod.run("ping", "-c1", "-w1", target, check=False))
    ping = Ping("pod to pod", one.node.pod.name, target, tmp_path / "ping")
    ping.start()
    world.etcd.kill()
    time.sleep(0.3)
    one.kill()
    one.start()
    until(
        "it says for what it waits",
        lambda: "waiting" in "".join(one.status()["problems"]) if one.ask("/healthz")[0] else False,
    )
    assert one.ask("/readyz")[0] == 503
    world.etcd.start()
    one.until_ready()
    until("it knows the other", lambda: one.status()["neighbours"])
    ping.stop()
    assert len(ping.answered) > 100
    assert ping.lost == 0
    assert subnet(one) == had
    assert other.process is not None
    assert other.process.poll() is None


def test_what_is_in_etcd(world: World) -> None:
    one, other = two(world)
    leases = world.etcd.leases()
    assert {value["PublicIP"] for value in leases.values()} == {"192.0.2.1", "192.0.2.2"}
    assert {value["BackendType"] for value in leases.values()} == {"vxlan"}
    [device] = one.node.ns.json("link", "show", "flannel.1")
    key = subnet(one).replace(".1/", ".0-")
    assert leases[key]["BackendData"] == {"VNI": 1, "VtepMAC": device["address"]}
    assert other.node.ns.json("route", "show", key.replace("-", "/"))


def test_own_lease_is_revoked(world: World) -> None:
    """The daemon ends and says so; the others take the way out."""
    one, other = two(world)
    key = subnet(one).replace(".1/", ".0-")
    world.etcd.ctl("del", f"{PREFIX}/subnets/{key}")
    assert one.process is not None
    assert one.process.wait(20) == 1
    assert "Lease has been revoked. Shutting down daemon." in one.said()
    until("the other knows", lambda: other.status()["neighbours"] == [])
    assert not other.node.ns.json("route", "show", key.replace("-", "/"))


def test_reservation_stays_one(world: World) -> None:
    world.etcd.ctl("put", f"{PREFIX}/subnets/10.5.77.0-24", '{"PublicIP":"192.0.2.1"}')
    one = world.node(1).start().until_ready()
    assert subnet(one) == "10.5.77.1/24"
    found = json.loads(world.etcd.ctl("get", "-w", "json", f"{PREFIX}/subnets/10.5.77.0-24"))["kvs"][0]
    assert found.get("lease", 0) == 0


def test_address_changes_and_the_subnet_stays(world: World) -> None:
    """Pods keep their addresses when the node gets another one."""
    one, other = two(world)
    had = subnet(one)
    ns = one.node.ns
    ns.ip("address", "delete", "192.0.2.1/24", "dev", "eth0")
    ns.ip("address", "add", "192.0.2.99/24", "dev", "eth0")
    until("the other is told", lambda: [each["public_ip"] for each in other.status()["neighbours"]] == ["192.0.2.99"])
    assert subnet(one) == had
    assert len(world.etcd.leases()) == 2


def test_two_networks_on_a_node(world: World) -> None:
    """Two daemons, each with keys, files, device and rules of its own; what one ends is nothing to the other."""
    one, _ = two(world, "-ip-masq")
    red = "/red/network"
    config = {"Network": "10.6.0.0/16", "Backend": {"Type": "vxlan", "VNI": 2, "Port": 8473}}
    world.etcd.ctl("put", f"{red}/config", json.dumps(config))
    second = world.daemon(one.node, "red", "-etcd-prefix", red, "-ip-masq")
    second.start().until_ready()
    assert subnet(second).startswith("10.6.")
    ns = one.node.ns
    assert {"flannel.1", "flannel.2"} <= {link["ifname"] for link in ns.json("link", "show")}
    assert "10.5.0.0/16" in ns.run("nft", "list", "ruleset")
    assert "10.6.0.0/16" in ns.run("nft", "list", "ruleset")
    time.sleep(1.0)
    for daemon in (one, second):
        assert daemon.status()["failures"] == []
        assert "changed" not in daemon.said()
    assert second.stop() == 0
    assert one.status()["failures"] == []


def test_dual_stack(world: World) -> None:
    config = CONFIG | {"EnableIPv6": True, "IPv6Network": "fc00:5::/48"}
    world.etcd.ctl("put", f"{PREFIX}/config", json.dumps(config))
    one, other = two(world)
    keys = world.etcd.leases()
    assert len(keys) == 2
    assert all("&fc00:5:0:" in key for key in keys)
    for daemon in (one, other):
        ways = daemon.node.ns.json("-6", "route", "show", "dev", "flannel-v6.1")
        (way,) = (way for way in ways if "gateway" in way)
        assert way["dst"] == f"{way['gateway']}/64"
