"""`tortie flanneld` on real nodes: packets, restarts, and what others do to a node's kernel."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flannel_daemons import TORTIE, Daemon, Town, until
from flannel_nodes import Wire, paths, pod_ip
from namespaces import Ns
from pings import Ping

pytestmark = pytest.mark.root


@pytest.fixture
def founded(make_ns: Callable[..., Ns], tmp_path: Path) -> Iterator[Callable[..., Town]]:
    towns: list[Town] = []

    def found(backend: str = "vxlan", **more: object) -> Town:
        town = Town(Wire(make_ns), tmp_path, backend, **more)  # type: ignore[arg-type]
        towns.append(town)
        return town

    yield found
    for town in towns:
        town.close()


def pair(town: Town, *flags: str) -> tuple[Daemon, Daemon]:
    one, two = (town.node(number, *flags).start() for number in (1, 2))
    one.until_ready().knows(2)
    two.until_ready().knows(1)
    return one, two


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_killed_and_started_again_under_traffic(founded: Callable[..., Town], backend: str, tmp_path: Path) -> None:
    """Not one packet is lost, whichever node's daemon dies; and none when it ends as it is told."""
    one, two = pair(founded(backend), "-ip-masq")
    ping = Ping("pod to pod", one.node.pod.name, pod_ip(2), tmp_path / "ping")
    ping.start()
    for daemon, end in ((one, one.kill), (two, two.kill), (one, one.stop)):
        time.sleep(0.3)
        end()
        time.sleep(0.3)
        daemon.start().until_ready()
    one.knows(2)
    time.sleep(0.3)
    ping.stop()
    assert len(ping.answered) > 100
    assert ping.lost == 0
    assert one.stop() == 0, one.said()
    assert not one.subnet_file.with_suffix(".sock").exists()


def test_both_versions(founded: Callable[..., Town]) -> None:
    one, two = pair(founded(dual=True))
    assert one.node.reaches(two.node)
    until("pods' own addresses are settled", lambda: one.node.reaches(two.node, 6))
    assert "FLANNEL_IPV6_SUBNET=fd00:5:0:1::1/64\n" in one.subnet_file.read_text()


def test_what_others_delete_comes_back(founded: Callable[..., Town]) -> None:
    """The device with all that is on it, a route, a stolen one, a rule. At once, not at the next look at everything."""
    one, two = pair(founded(flags=("-kube-subnet-mgr", "-ip-masq", "-iptables-resync", "600")))
    ns = one.node.ns
    as_it_was = paths(ns)
    assert as_it_was

    ns.ip("link", "delete", "flannel.1")
    until("the device is back", lambda: paths(ns) == as_it_was)
    assert one.node.reaches(two.node)

    ns.ip("route", "delete", "10.5.2.0/24")
    until("the route is back", lambda: paths(ns) == as_it_was)
    ns.ip("route", "replace", "10.5.2.0/24", "via", "192.0.2.77", "dev", "eth0")
    until("the route is ours again", lambda: paths(ns) == as_it_was)
    assert one.node.reaches(two.node)

    entries = ns.run("bridge", "fdb", "show", "dev", "flannel.1")
    ns.run("bridge", "fdb", "delete", entries.split()[0], "dev", "flannel.1", "dst", "192.0.2.2")
    until("the entry is back", lambda: ns.run("bridge", "fdb", "show", "dev", "flannel.1") == entries)

    rules = ns.run("nft", "-s", "list", "table", "ip", "flannel-ipv4")
    ns.run("nft", "flush", "chain", "ip", "flannel-ipv4", "postrtg")
    until("the rules are back", lambda: ns.run("nft", "-s", "list", "table", "ip", "flannel-ipv4") == rules)
    assert one.status()["failures"] == []


def test_117_118_host_gw(founded: Callable[..., Town]) -> None:
    """A route that is deleted by hand is back, long before ten seconds are over; behind NAT it does not start."""
    one, two = pair(founded("host-gw"))
    ns = one.node.ns
    as_it_was = paths(ns)
    ns.ip("route", "delete", "10.5.2.0/24")
    until("the route is back", lambda: paths(ns) == as_it_was, 10)
    assert one.node.reaches(two.node)
    one.stop()
    one.flags = ("-public-ip", "203.0.113.7")
    one.start()
    assert one.process is not None
    assert one.process.wait(20) == 1
    assert "your PublicIP differs from interface IP" in one.said().splitlines()[-1]
    assert "Traceback" not in one.said()


def test_nodes_come_and_go(founded: Callable[..., Town]) -> None:
    town = founded("host-gw")
    one, _ = pair(town)
    three = town.node(3).start().until_ready()
    one.knows(2, 3)
    assert one.node.reaches(three.node)
    town.remove(2)
    one.knows(3)
    assert "10.5.2.0/24" not in paths(one.node.ns)


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_a_node_that_changes_its_address(founded: Callable[..., Town], backend: str) -> None:
    """While its daemon runs: it tells the others, and all go on with its new one."""
    one, two = pair(founded(backend))
    ns = two.node.ns
    ns.ip("address", "add", "192.0.2.99/24", "dev", "eth0")
    ns.ip("address", "delete", "192.0.2.2/24", "dev", "eth0")  # the other is a second one, and goes with it
    ns.ip("address", "replace", "192.0.2.99/24", "dev", "eth0")

    def is_told() -> bool:
        return [each["public_ip"] for each in one.status()["neighbours"]] == ["192.0.2.99"]

    until("the other node hears of it", is_told)
    until("packets go there", lambda: one.node.reaches(two.node))
    assert two.process is not None
    assert two.process.poll() is None


def test_mtu_of_the_interface_changes(founded: Callable[..., Town]) -> None:
    one, _ = pair(founded())
    assert "FLANNEL_MTU=1450\n" in one.subnet_file.read_text()
    one.node.ns.ip("link", "set", "eth0", "mtu", "1400")
    until("the file says so", lambda: "FLANNEL_MTU=1350\n" in one.subnet_file.read_text())
    [device] = one.node.ns.json("link", "show", "flannel.1")
    assert device["mtu"] == 1350


def test_what_it_answers(founded: Callable[..., Town]) -> None:
    """To kubelet's probes on a port, and to an operator over a socket of root's."""
    one, _ = pair(founded(), "-healthz-ip", "127.0.0.1", "-healthz-port", "8081")
    code = (
        "import urllib.request as r; "
        "print(*(r.urlopen('http://127.0.0.1:8081' + path).read().decode() for path in ('/healthz', '/readyz')))"
    )
    assert one.node.ns.run("python3", "-c", code) == "flanneld is running flanneld is ready\n"
    assert stat.S_IMODE(os.stat(one.subnet_file.with_suffix(".sock")).st_mode) == 0o600
    assert stat.S_IMODE(one.subnet_file.stat().st_mode) == 0o644
    status = one.status()
    assert (status["mode"], status["backend"], status["ready"]) == ("kubernetes", "vxlan", True)
    assert (status["node"]["subnet"], status["node"]["pod_mtu"]) == ("10.5.1.0/24", 1450)
    shown = one.node.ns.run(TORTIE, "flannel", "status", "--socket", str(one.subnet_file.with_suffix(".sock")))
    assert "10.5.2.0/24" in shown
    assert "192.0.2.2" in shown


def test_a_second_one_is_refused(founded: Callable[..., Town]) -> None:
    one = founded().node(1).start().until_ready()
    second = Daemon(one.town, one.node)
    second.start()
    assert second.process is not None
    assert second.process.wait(20) == 1
    assert "another flanneld runs with this subnet file" in one.said()
    assert one.ask("/readyz")[0] == 200


def test_annotations_are_flannels(founded: Callable[..., Town]) -> None:
    town = founded()
    pair(town)
    prefix = "flannel.alpha.coreos.com"
    said = town.annotations(1)
    assert said[f"{prefix}/public-ip"] == "192.0.2.1"
    assert said[f"{prefix}/backend-type"] == "vxlan"
    assert said[f"{prefix}/kube-subnet-manager"] == "true"
    assert said[f"{prefix}/backend-data"].startswith('{"VNI":1,"VtepMAC":"')


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"Network": "10.5.0.0/16", "Backend": {"Type": "gce"}}', "gce"),
        ('{"Network": "10.5.0.0/16", "Backend": {}}', "unknown backend type"),
        ('{"Network": "10.9.0.0/16", "Backend": {"Type": "vxlan"}}', "doesn't contain"),
        ('{"Network": ', "net-conf.json"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(founded: Callable[..., Town], config: str, said: str) -> None:
    town = founded()
    one = town.node(1)
    town.net_conf.write_text(config)
    one.start()
    assert one.process is not None
    assert one.process.wait(20) == 1
    assert said in one.said().splitlines()[-1]
    assert "Traceback" not in one.said()


def test_not_root() -> None:
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--clear-groups", TORTIE, "flanneld", "-kube-subnet-mgr"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PATH": os.environ["PATH"]},
    )
    assert done.returncode != 0
    assert "root" in done.stderr
