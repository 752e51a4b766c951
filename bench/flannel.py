"""Flannel's ways: TCP from pod to pod through `tortie flanneld`, against the same made by hand, and how soon 200 nodes
are in the kernel.

pod ─ veth ─ node1 ─ flannel.1, or eth0 itself ═ veth ═ bridge ═ veth ═ node2 ─ veth ─ pod

By hand there is a device, a route, a neighbour and an entry of the forwarding table, as `ip` and `bridge` make them,
and the rules that the daemon has, masquerading included; without those it is measured a second time, which tells what
connection tracking costs. For 200 nodes the peer is the same kernel objects from files: `ip -batch`, `bridge -batch`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from bench import fabric, wire
from bench.encap import ENCAPSULATIONS, Encapsulation, Side, by_hand
from bench.fabric import NODES
from bench.figures import Report, against, median
from bench.node import TORTIE, NotReady, program_environment, write
from bench.plugin import scratch
from bench.progress import Advance, alone
from bench.throughput import Test
from tortie.dataplane.converge import Stage, converge
from tortie.flannel import backends
from tortie.flannel.backend import Setting
from tortie.flannel.config import Family, NetworkConfig
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.stages.devices import Devices
from tortie.flannel.stages.far_ends import FarEnds
from tortie.flannel.stages.routes import Routes
from tortie.flannel.state import External, FlannelState, Place, Site
from tortie.kernel import links, netns, nft
from tortie.kernel.netlink import Netlink
from tortie.model.k8s import K8sNode, K8sNodeSpec
from tortie.model.meta import Metadata

NAME = "flannel"
TITLE = "Flannel: through our daemon's ways, against the same made by hand"
OURS, RULES, BARE = "ours", "by hand, with flannel's rules", "by hand, without rules"
BACKENDS = {"host-gw": ENCAPSULATIONS[0], "vxlan": ENCAPSULATIONS[1]}
TESTS = (
    Test("TCP, 1 stream", "Gbit/s", 2.0, wire.tcp_throughput),
    Test("UDP round trips, 64 bytes", "/s CPU", 0.5, wire.udp_round_trips),
)
ROUNDS = 9
TARGET = 0.97
PEERS, TIMES = 200, 7
"""Nodes that appear at once, and how often."""
READY = 20.0
"""Seconds that a daemon has to be ready."""
STEPS = ROUNDS * len(BACKENDS) * len(TESTS) + TIMES
NETWORK = IPv4Network("10.91.0.0/16")
SUBNETS = ("10.91.1.0/24", "10.91.2.0/24")


# --- throughput ---------------------------------------------------------------------------------------------------


def rules(node: int) -> str:
    """What flannel has on a node, 0 or 1, with its option for masquerading."""
    own = SUBNETS[node]
    return f"""table ip flannel-ipv4 {{
  chain forward {{
    type filter hook forward priority filter
    ip saddr {NETWORK} accept
    ip daddr {NETWORK} accept
  }}
  chain postrtg {{
    type nat hook postrouting priority srcnat
    meta mark & 0x4000 == 0x4000 return
    ip saddr {own} ip daddr {NETWORK} return
    ip saddr {NETWORK} ip daddr {own} return
    ip saddr != {own} ip daddr {own} return
    ip saddr {NETWORK} ip daddr != 224.0.0.0/4 masquerade fully-random
    ip saddr != {NETWORK} ip daddr {NETWORK} masquerade fully-random
  }}
}}
"""


@contextlib.contextmanager
def ours(backend: str, one: Encapsulation, prefix: str, directory: Path) -> Iterator[Side]:
    """A daemon on each of two nodes; the pods are connected by hand."""
    datastore, conf = directory / f"{prefix}.db", directory / f"{prefix}.json"
    conf.write_text(json.dumps({"Network": str(NETWORK), "Backend": {"Type": backend}}))
    names = ("node1", "node2")
    specs = (K8sNodeSpec(pod_cidr=subnet, pod_cidrs=(subnet,)) for subnet in SUBNETS)
    write(
        datastore, (K8sNode(metadata=Metadata(name=name), spec=spec) for name, spec in zip(names, specs, strict=True))
    )
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(fabric.nodes(prefix))
        client, _, server = stack.enter_context(fabric.pods(prefix, hosts))
        for place in (client, server):
            with Netlink(place.netns) as nl:
                links.set_mtu(nl, "eth0", 1500 - one.overhead)
        for name, host in zip(names, hosts, strict=True):
            words = ("-kube-subnet-mgr", "-datastore", str(datastore), "-net-config-path", str(conf), "-iface", "eth0")
            stack.enter_context(_daemon(name, host, directory / f"{prefix}-{name}", words))
        yield Side(client.netns, server.netns, server.ip)


@contextlib.contextmanager
def _daemon(name: str, host: str, directory: Path, words: tuple[str, ...]) -> Iterator[None]:
    """Ready when the block begins. Raises NotReady."""
    directory.mkdir()
    file, log = directory / "subnet.env", directory / "log"
    command = [TORTIE, "flanneld", *words, "-ip-masq", "-subnet-file", file]
    with netns.entered(host), log.open("wb") as output:
        environment = program_environment() | {"NODE_NAME": name}
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + READY
        while not file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise NotReady(f"flanneld of {name}: {log.read_text(errors='replace')[-1000:]}")
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(READY)


def measured(backend: str, advance: Advance) -> dict[str, dict[str, list[float]]]:
    """What each side moves, in turn, by test."""
    one = BACKENDS[backend]
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(scratch("flannel")))
        prefix = f"tb-{directory.name[-8:]}"
        sides = {
            OURS: stack.enter_context(ours(backend, one, f"{prefix}o", directory)),
            RULES: stack.enter_context(by_hand(one, f"{prefix}r")),
            BARE: stack.enter_context(by_hand(one, f"{prefix}b")),
        }
        for node in (0, 1):
            nft.apply(rules(node), f"{netns.DIRECTORY}/{prefix}r-node{node + 1}")
        for side in sides.values():
            wire.await_path(side.client, side.server, side.ip)
        samples: dict[str, dict[str, list[float]]] = {test.words: {name: [] for name in sides} for test in TESTS}
        for test in TESTS:
            for number in range(ROUNDS):
                for name in list(sides) if number % 2 else list(sides)[::-1]:
                    side = sides[name]
                    samples[test.words][name].append(test.run(side.client, side.server, side.ip, test.seconds))
                advance(f"{NAME}: {test.words}, {backend}")
        return samples


# --- many nodes at once -------------------------------------------------------------------------------------------


class Node:
    """A node of vxlan that has its own device and nobody to send to."""

    def __init__(self, path: str) -> None:
        self.path = path
        with Netlink(path) as nl:
            index = links.link_index(nl, "eth0")
        external = External("eth0", index, 1500, IPv4Address(NODES[0]))
        family = Family(NETWORK, 24, NETWORK.network_address + 256, NETWORK.broadcast_address)
        site = Site(NetworkConfig(family, None, "vxlan", {"Type": "vxlan"}), external, external.ipv4)
        self._backend = backends.load(site.config, Setting())
        with netns.entered(path):
            published = asyncio.run(self._backend.begin(site, None))
        attrs = Attrs(external.ipv4, backend_type="vxlan", data=published.data)
        self._place = Place(site, Lease(IPv4Network(SUBNETS[0]), None, attrs))
        self._stages: tuple[Stage[FlannelState], ...] = Devices(path), FarEnds(path), Routes(path)

    def know(self, leases: list[Lease]) -> float:
        """Seconds until the kernel has the ways to these, and to no others."""
        began = time.perf_counter()
        failures = converge(self._stages, self._backend.want(self._place, leases, {}))
        took = time.perf_counter() - began
        if failures:
            raise NotReady(str(failures[0]))
        return took

    def has(self, count: int) -> None:
        """Raises NotReady unless ip and bridge see so many."""
        name = Path(self.path).name
        listings = (
            ("ip", "-n", name, "-j", "route", "show", "dev", "flannel.1"),
            ("ip", "-n", name, "-j", "neighbour", "show", "dev", "flannel.1", "nud", "permanent"),
            ("bridge", "-n", name, "-j", "fdb", "show", "dev", "flannel.1"),
        )
        for words in listings:
            found = json.loads(subprocess.run(words, capture_output=True, check=True, text=True).stdout or "[]")
            if len(found) != count:
                raise NotReady(f"{' '.join(words)}: {len(found)} entries instead of {count}")


def peers() -> list[Lease]:
    found = []
    for number in range(2, PEERS + 2):
        mac = f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
        public = IPv4Address("198.51.100.0") + number
        subnet = IPv4Network((int(NETWORK.network_address) + (number << 8), 24))
        data = json.dumps({"VNI": 1, "VtepMAC": mac}, separators=(",", ":"))
        found.append(Lease(subnet, None, Attrs(public, backend_type="vxlan", data=data)))
    return found


def batches(leases: list[Lease]) -> tuple[str, str]:
    """The same for `ip -batch` and `bridge -batch`."""
    ip, bridge = [], []
    for lease in leases:
        assert lease.subnet is not None
        at, mac = lease.subnet.network_address, json.loads(lease.attrs.data or "")["VtepMAC"]
        ip += [f"neighbour replace {at} lladdr {mac} dev flannel.1 nud permanent"]
        ip += [f"route replace {lease.subnet} via {at} dev flannel.1 onlink"]
        bridge += [f"fdb replace {mac} dev flannel.1 dst {lease.attrs.public_ip} self permanent"]
    return "\n".join(ip), "\n".join(bridge)


def by_batch(path: str, leases: list[Lease]) -> float:
    """Seconds that `bridge` and `ip` take."""
    name = Path(path).name
    ip, bridge = batches(leases)
    began = time.perf_counter()
    subprocess.run(["bridge", "-n", name, "-batch", "-"], input=bridge, check=True, text=True)
    subprocess.run(["ip", "-n", name, "-batch", "-"], input=ip, check=True, text=True)
    return time.perf_counter() - began


def appearing(advance: Advance) -> tuple[list[float], list[float]]:
    """Milliseconds, ours and by hand, for the same nodes to come to be in the kernel."""
    leases = peers()
    found: tuple[list[float], list[float]] = ([], [])
    with fabric.nodes(f"tb-{os.getpid()}p", 1) as (host,):
        node = Node(host)
        node.know([])
        for _ in range(TIMES):
            found[0].append(node.know(leases) * 1000)
            node.has(PEERS)
            node.know([])
            found[1].append(by_batch(host, leases) * 1000)
            node.has(PEERS)
            node.know([])
            advance(f"{NAME}: {PEERS} nodes")
    return found


def measure(advance: Advance) -> Report:
    """Raises NotReady, NoTraffic."""
    report = Report(NAME, TITLE)
    for backend in BACKENDS:
        for test, samples in zip(TESTS, measured(backend, advance).values(), strict=True):
            words = f"{test.words}, {backend}"
            report.samples |= {f"{words}, {side}, {test.unit}": values for side, values in samples.items()}
            found = {side: median(values) for side, values in samples.items()}
            report.figures.append(against(words, found[OURS], test.unit, RULES, found[RULES], at_least=TARGET))
            report.figures.append(against(f"{words}, no rules", found[OURS], test.unit, BARE, found[BARE]))
    own, hand = appearing(advance)
    words = f"{PEERS} vxlan nodes appear, until all is in the kernel"
    report.samples |= {f"{words}, {OURS}, ms": own, f"{words}, ip and bridge -batch, ms": hand}
    report.figures.append(against(words, median(own), "ms", "ip -batch and bridge -batch", median(hand)))
    return report


if __name__ == "__main__":
    sys.exit(alone(NAME))
