"""Real flanneld and ours in one network: packets both ways, whoever is restarted, and one in the place of the other.

FLANNELD names flannel's own daemon, a release of 2025 or later (its rules have to be nftables').
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from etcd_server import Etcd, needs_etcd, running
from flannel_daemons import Daemon, Town, until
from flannel_nodes import NETWORK, NETWORK6, FlannelNode, Wire, network_config, paths, pod_ip, subnet6_of, subnet_of
from namespaces import Ns, namespaces
from overlay_kernel import device, forwarding, pinging

FLANNELD = os.environ.get("FLANNELD", "")

pytestmark = [
    pytest.mark.root,
    needs_etcd,
    pytest.mark.skipif(not FLANNELD, reason="FLANNELD does not name flannel's own daemon"),
]

PREFIX = "/coreos.com/network"
SERVER = "192.0.2.254"
NUMBERS = (1, 2, 3)


@dataclass
class Upstream:
    """flannel's own daemon on a node."""

    node: FlannelNode
    url: str
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        words = [
            *("ip", "netns", "exec", self.node.ns.name, FLANNELD, "-etcd-endpoints", self.url, "-iface", "eth0"),
            *("-subnet-file", str(self.directory / "subnet.env")),
        ]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def knows(self, *numbers: int) -> None:
        wanted = {str(subnet_of(number)) for number in numbers}
        until(f"flanneld of node {self.node.number} knows {wanted}", lambda: wanted <= set(paths(self.node.ns)))

    def said(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-3000:]

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(20)


@dataclass
class World:
    """Nodes 1, 2 and 3, each with its subnet reserved, and a daemon of either kind for each of them."""

    nodes: dict[int, FlannelNode]
    etcd: Etcd
    ours: dict[int, Daemon]
    upstream: dict[int, Upstream]

    def configure(self, backend: str, *, dual: bool = False, **options: Any) -> None:
        config: dict[str, Any] = {"Network": str(NETWORK), "EnableNFTables": True}
        config |= {"Backend": {"Type": backend, **options}}
        if dual:
            config |= {"EnableIPv6": True, "IPv6Network": str(NETWORK6)}
        self.etcd.ctl("put", f"{PREFIX}/config", json.dumps(config))
        for number in NUMBERS:
            v6 = f"&{subnet6_of(number)}".replace("/", "-") if dual else ""
            value = {"PublicIP": f"192.0.2.{number}"} | ({"PublicIPv6": f"2001:db8::{number}"} if dual else {})
            self.etcd.ctl("put", f"{PREFIX}/subnets/{subnet_of(number).network_address}-24{v6}", json.dumps(value))

    def all_reach(self, *versions: int) -> None:
        every = [(a, b, version) for a in NUMBERS for b in NUMBERS if a != b for version in versions]
        missing = [one for one in every if not self.nodes[one[0]].reaches(self.nodes[one[1]], one[2])]
        assert missing == []


@pytest.fixture
def make_ns() -> Iterator[Callable[..., Ns]]:
    yield from namespaces()


@pytest.fixture
def world(make_ns: Callable[..., Ns], tmp_path: Path) -> Iterator[World]:
    wire = Wire(make_ns)
    wire.ns.ip("address", "add", f"{SERVER}/24", "dev", "wire")
    within = ("ip", "netns", "exec", wire.ns.name)
    with ExitStack() as stack:
        etcd = stack.enter_context(running(tmp_path / "etcd", host=SERVER, within=within))
        nodes = {number: wire.node(number, network_config()) for number in NUMBERS}
        for node in nodes.values():
            node.ns.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0")
        town = Town(wire, tmp_path, flags=("-etcd-endpoints", etcd.url))
        found = World(
            nodes,
            etcd,
            {number: Daemon(town, node) for number, node in nodes.items()},
            {number: Upstream(node, etcd.url, tmp_path / f"flanneld{number}") for number, node in nodes.items()},
        )
        for daemon in (*found.ours.values(), *found.upstream.values()):
            stack.callback(daemon.kill)
        yield found


BACKENDS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "vxlan": ("vxlan", False, {}),
    "vxlan of both IP versions": ("vxlan", True, {"VNI": 42, "Port": 4789}),
    "vxlan, DirectRouting": ("vxlan", False, {"DirectRouting": True}),
    "host-gw": ("host-gw", False, {}),
    "host-gw of both IP versions": ("host-gw", True, {}),
    "ipip": ("ipip", False, {}),
}


@pytest.mark.parametrize("name", BACKENDS)
def test_a_mixed_network_whoever_is_restarted(world: World, name: str) -> None:
    """Node 1 runs flannel's, nodes 2 and 3 ours."""
    backend, dual, options = BACKENDS[name]
    if backend == "ipip" and not has_ipip(world.nodes[1].ns):
        pytest.skip("this kernel has no IPIP")
    world.configure(backend, dual=dual, **options)
    versions = (4, 6) if dual else (4,)
    theirs, ours, third = world.upstream[1], world.ours[2], world.ours[3]
    theirs.start()
    for daemon in (ours, third):
        daemon.start().until_ready()
    theirs.knows(2, 3)
    ours.knows(1, 3)
    third.knows(1, 2)
    world.all_reach(*versions)
    one, two = world.nodes[1], world.nodes[2]
    with ExitStack() as stack:
        pings = [stack.enter_context(pinging(two.pod, pod_ip(1, version))) for version in versions]
        ours.kill()
        ours.start().until_ready()
        ours.knows(1, 3)
        theirs.kill()
        theirs.start()
        theirs.knows(2, 3)
        ours.knows(1, 3)
    assert [ping.lost for ping in pings] == [0] * len(versions)
    assert all(ping.sent > 50 for ping in pings)
    world.all_reach(*versions)
    if name == "vxlan":
        assert mac_at(two.ns, "192.0.2.1") == device(one.ns, "flannel.1")["mac"]
        assert mac_at(one.ns, "192.0.2.2") == device(two.ns, "flannel.1")["mac"]


def has_ipip(ns: Ns) -> bool:
    return "ipip" in ns.run(
        "sh", "-c", "ip link add try type ipip local 127.0.0.9 && ip -d link show try; ip link del try", check=False
    )


def test_what_both_make_is_the_same(world: World) -> None:
    """Devices, routes, neighbours and forwarding entries, as ip and bridge show them with all details. Only what fits
    into a packet over IPv6 differs: there flannel's takes the tunnel to be 20 bytes smaller than it is."""
    world.configure("vxlan", dual=True, VNI=7, MTU=1400, Learning=True)
    world.upstream[1].start()
    world.ours[2].start().until_ready()
    world.upstream[1].knows(2)
    world.ours[2].knows(1)
    for name in ("flannel.7", "flannel-v6.7"):
        theirs, ours = (details(world.nodes[number].ns, name) for number in (1, 2))
        mtus = theirs.pop("mtu"), ours.pop("mtu")
        assert mtus == ((1350, 1350) if name == "flannel.7" else (1350, 1330))
        assert theirs == ours


def details(ns: Ns, name: str) -> dict[str, Any]:
    """Without what is each node's own: numbers, MAC addresses, and the digit by which its addresses differ."""
    (link,) = (one for one in ns.json("link", "show") if one["ifname"] == name)
    info = {key: value for key, value in link["linkinfo"]["info_data"].items() if not key.startswith("local")}
    kept = ("mtu", "flags", "operstate", "min_mtu", "max_mtu", "num_tx_queues", "num_rx_queues")
    listings = [
        ns.json("-4", "route", "show", "dev", name),
        ns.json("-6", "route", "show", "dev", name),
        ns.json("neigh", "show", "dev", name, "nud", "permanent"),
        json.loads(ns.run("bridge", "-d", "-j", "fdb", "show", "dev", name)),
    ]
    every = ({key: value for key, value in one.items() if key not in OWN} for listing in listings for one in listing)
    mine = sorted(json.dumps(one, sort_keys=True) for one in every)
    return {"info": info, "listed": mine, "accept_ra": accept_ra(ns, name)} | {key: link[key] for key in kept}


OWN = ("protocol", "dst", "gateway", "lladdr", "mac")


def accept_ra(ns: Ns, name: str) -> str:
    return ns.run("cat", f"/proc/sys/net/ipv6/conf/{name}/accept_ra").strip()


def mac_at(ns: Ns, host: str) -> str | None:
    """By which MAC address a node knows another, whose public address is given."""
    return next((mac for mac, dst in forwarding(ns, "flannel.1") if dst == host), None)


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_one_takes_the_place_of_the_other_and_no_packet_is_lost(world: World, backend: str) -> None:
    """flannel's is killed and ours started on the same node, as in a migration; then the other way round."""
    world.configure(backend)
    theirs, ours = world.upstream[1], world.ours[1]
    world.ours[2].start().until_ready()
    world.ours[3].start().until_ready()
    theirs.start()
    theirs.knows(2, 3)
    for number in (2, 3):
        world.ours[number].knows(1, 5 - number)
    world.all_reach(4)
    one, two = world.nodes[1], world.nodes[2]
    before = device(one.ns, "flannel.1"), index(one.ns)
    with pinging(one.pod, pod_ip(2)) as away, pinging(two.pod, pod_ip(1)) as back:
        theirs.kill()
        ours.start().until_ready()
        ours.knows(2, 3)
        ours.kill()
        theirs.start()
        until(
            "flannel's is there again", lambda: "Running backend" in theirs.said() or theirs.said().count("lease") > 3
        )
        theirs.knows(2, 3)
    assert (away.lost, back.lost) == (0, 0)
    assert (device(one.ns, "flannel.1"), index(one.ns)) == before
    world.all_reach(4)


def index(ns: Ns) -> int | None:
    """A device that is made anew has another."""
    return next((link["ifindex"] for link in ns.json("link", "show") if link["ifname"] == "flannel.1"), None)


def test_a_node_that_left_is_forgotten_by_both(world: World) -> None:
    world.configure("vxlan")
    world.upstream[1].start()
    for number in (2, 3):
        world.ours[number].start().until_ready()
    world.upstream[1].knows(2, 3)
    world.ours[2].knows(1, 3)
    world.ours[3].kill()
    key = f"{PREFIX}/subnets/{subnet_of(3).network_address}-24"
    world.etcd.ctl("del", key)
    world.ours[2].knows(1)
    gone = str(subnet_of(3))
    for number in (1, 2):
        until(f"node {number} has no way to node 3", lambda number=number: gone not in paths(world.nodes[number].ns))
        assert mac_at(world.nodes[number].ns, "192.0.2.3") is None
