"""How soon a pod is reached from another node, and how soon all nodes know that one is gone; with 3 and with 20 nodes.

    ADD on node1 ── agent ── route ── BIRD ══ BGP ══► BIRD of another node ── route ── the first packet arrives

Nodes with agents and BIRD, in a full mesh, and in turn as many bare BIRDs to which the same route is given by `ip route
add`: no agent, no plugin, no policy, no address management. Every sample asks another node. Three cases of an ADD:

    held        the node has the block already, others have a route to it: nothing is to be told
    another's   the address lies in the block of another node: a route of its own has to go round
    new block   the address lies in a block that nobody has: claimed, announced by a new configuration of BIRD

A node that fails loses all its processes at once. Its peers wait for RESTART before they give its routes up.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Network
from pathlib import Path

from bench import bare_bird, fabric
from bench.bare_bird import Session, configuration, until
from bench.fabric import node_ip
from bench.figures import Figure, Report, against, median, percentile
from bench.node import POOL, Node, NotReady, cluster_objects, namespace, pod_object, write
from bench.plugin import Pod, Pods, addresses, call, scratch
from bench.progress import Advance, alone
from tortie.base.addr import parse_ip, parse_net
from tortie.kernel import netns, routes
from tortie.kernel.bird import Bird
from tortie.kernel.netlink import Netlink
from tortie.kernel.routes import Route
from tortie.model.bgp import BGPConfiguration, BGPConfigurationSpec
from tortie.model.meta import Metadata, Resource, changed

NAME = "convergence"
TITLE = "Routes between nodes: with agents, against bare BIRDs that are given routes by hand"
PEER = "bare BIRDs and ip route add"
SIZES = (3, 20)
ROUNDS, FAILURES = 100, 5
CASES = ("held", "another's", "new block")
FLOOR = "bare"
FAILING = ("node fails", "bare node fails")
STEPS = len(SIZES) * (ROUNDS + FAILURES)
PROGRAM = (sys.executable, "-m", "tortie.agent")
RESTART = 1
"""Seconds, BGP's restart time: 120 unless somebody says otherwise."""
INTERVAL = 0.0005
"""Seconds between two packets of those that ask."""
PATIENCE = 30.0
PORT = 5201
BLOCK_BITS = 26
ADDRESSES = IPv4Network("10.91.0.0/16")
"""Those of the pod in whose node there is no agent."""


# --- a packet that arrives ----------------------------------------------------------------------------------------


def reached(act: Callable[[], object], source: str, target: str, ip: str) -> float:
    """Seconds from when `act` begins until a packet arrives from one namespace (a path) at an address in another.

    Raises NotReady when none does.
    """
    here, there = (_socket(path) for path in (source, target))
    there.bind(("", PORT))
    there.settimeout(PATIENCE)
    arrived: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(INTERVAL):
            with contextlib.suppress(OSError):  # no route yet
                here.sendto(b"?", (ip, PORT))

    def listen() -> None:
        with contextlib.suppress(TimeoutError):
            there.recv(1)
            arrived.append(time.perf_counter())

    threads = [threading.Thread(target=ask), threading.Thread(target=listen)]
    with here, there:
        for thread in threads:
            thread.start()
        try:
            began = time.perf_counter()
            act()
            threads[1].join()
        finally:
            stop.set()
            threads[0].join()
    if not arrived:
        raise NotReady(f"no packet reaches {ip} after {PATIENCE:g} s")
    return arrived[0] - began


def _socket(path: str) -> socket.socket:
    with netns.entered(path):
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def given_up(paths: Sequence[str], net: str) -> None:
    """Returns when no node has a route to it any more. Raises NotReady."""
    late = list(paths)

    def nobody() -> bool:
        late[:] = [path for path in late if net in bare_bird.routes(path)]
        return not late

    until(nobody, f"{net} given up by all", 0.002)


def known(paths: Sequence[str], net: str) -> None:
    """Returns when every node has a route to it. Raises NotReady."""
    until(lambda: all(net in bare_bird.routes(path) for path in paths), f"{net} known to all", 0.05)


def killed(path: str) -> None:
    """Everything that runs in a namespace."""
    for pid in netns.pids_in(path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# --- nodes with agents --------------------------------------------------------------------------------------------


class Agents:
    """Nodes with agents; pods come on the first, and the last is the one that fails. Raises NotReady, PluginFailed."""

    def __init__(self, stack: contextlib.ExitStack, hosts: Sequence[str], directory: Path, prefix: str) -> None:
        self.hosts = hosts
        datastore = directory / "store.db"
        mesh = BGPConfigurationSpec(node_to_node_mesh_enabled=True, node_mesh_max_restart_time=f"{RESTART}s")
        write(datastore, (*cluster_objects(), BGPConfiguration(metadata=Metadata(name="default"), spec=mesh)))
        self._nodes = [Node(f"node{i}", path, datastore, directory) for i, path in enumerate(hosts, 1)]
        self._last = stack.enter_context(contextlib.ExitStack())
        for number in range(1, len(hosts)):
            stack.enter_context(self._agent(number))
        self.start_last()
        self._pods = Pods(f"{prefix}pod")
        stack.callback(self._pods.close)
        first, *others = [self._sample(node, datastore) for node in (1, 2, len(hosts))]
        self.lasting = str(others[-1])
        free = (net for net in IPv4Network(POOL).subnets(new_prefix=BLOCK_BITS) if net not in (first, *others))
        wishes = {
            "held": [str(first[-2])],
            "another's": [str(others[0][-2])],
            "new block": [str(net[5]) for net in itertools.islice(free, ROUNDS)],
        }
        pods = {case: [(self._pods.fresh(), ip) for ip in ips] for case, ips in wishes.items()}
        write(datastore, [_object(pod, "node1", ip) for each in pods.values() for pod, ip in each])
        self._wishes = {case: itertools.cycle(each) for case, each in pods.items()}

    def _agent(self, number: int) -> contextlib.AbstractContextManager[None]:
        ipv4 = f"{node_ip(number)}/{fabric.PREFIX_LENGTH}"
        return self._nodes[number - 1].agent(ipv4=ipv4, bgp=True, program=PROGRAM)

    def _sample(self, node: int, datastore: Path) -> IPv4Network:
        """The block of a node, in which there is a pod from now on."""
        pod = self._pods.fresh()
        write(datastore, [_object(pod, f"node{node}")])
        _, answer = call(self._nodes[node - 1].network(), "ADD", pod)
        return IPv4Network(f"{addresses(answer)[0]}/{BLOCK_BITS}", strict=False)

    def add(self, case: str, asking: str) -> float:
        """Seconds until a pod that is added is reached from a node; it is deleted again, and nobody has its route."""
        network = self._nodes[0].network()
        pod, ip = next(self._wishes[case])
        seconds = reached(lambda: call(network, "ADD", pod), asking, pod.netns, ip)
        call(network, "DEL", pod)
        given_up(self.hosts, f"{ip}/32")
        return seconds

    def start_last(self) -> None:
        self._last.enter_context(self._agent(len(self.hosts)))

    def fail_last(self) -> None:
        killed(self.hosts[-1])
        self._last.close()


def _object(pod: Pod, node: str, ip: str = "") -> Resource:
    """A pod, which may ask for an address."""
    made = pod_object(pod.name, node)
    return changed(made, annotations={"cni.projectcalico.org/ipAddrs": f'["{ip}"]'}) if ip else made


# --- bare BIRDs ---------------------------------------------------------------------------------------------------


class Bare:
    """As many nodes with a BIRD each; on the first there is a pod that has all addresses. Raises NotReady."""

    lasting = "10.92.0.0/26"

    def __init__(self, stack: contextlib.ExitStack, hosts: Sequence[str], directory: Path, prefix: str) -> None:
        self.hosts = hosts
        self._directory = directory
        self._last = stack.enter_context(contextlib.ExitStack())
        for number in range(1, len(hosts)):
            stack.enter_context(self._bird(number))
        self._pod = stack.enter_context(namespace(f"{prefix}pod"))
        with Netlink(hosts[0]) as nl:
            fabric.plug(nl, "pod", self._pod)
            self._dev = fabric.address(nl, "pod", f"{fabric.GATEWAY}/32")
        with Netlink(self._pod) as nl:
            dev = fabric.address(nl, "eth0", "10.91.0.1/32")
            routes.add_route(nl, Route(parse_net(fabric.GATEWAY), dev=dev, scope="link"))
            routes.add_route(nl, Route(parse_net("0.0.0.0/0"), via=parse_ip(fabric.GATEWAY), dev=dev))
        ip_command(self._pod, "route", "add", "local", str(ADDRESSES), "dev", "lo")
        ip_command(hosts[-1], "route", "add", "blackhole", self.lasting)
        self._ips = iter(ADDRESSES)
        self.start_last()

    def _bird(self, number: int) -> contextlib.AbstractContextManager[Bird]:
        here = node_ip(number)
        others = [i for i in range(1, len(self.hosts) + 1) if i != number]
        more = f"graceful restart; graceful restart time {RESTART};"
        text = configuration(here, [Session(here, node_ip(i), passive=number < i, more=more) for i in others])
        return bare_bird.running(text, self._directory, f"bare{number}", self.hosts[number - 1])

    def add(self, case: str, asking: str) -> float:
        """Seconds until an address that is routed to the pod is reached from a node; the route is deleted again."""
        address = next(self._ips)
        route = Route(parse_net(f"{address}/32"), dev=self._dev, scope="link")
        with Netlink(self.hosts[0]) as nl:
            seconds = reached(lambda: routes.add_route(nl, route), asking, self._pod, str(address))
            routes.delete_route(nl, route)
        given_up(self.hosts, f"{address}/32")
        return seconds

    def start_last(self) -> None:
        self._last.enter_context(self._bird(len(self.hosts)))

    def fail_last(self) -> None:
        killed(self.hosts[-1])
        self._last.close()


def ip_command(path: str, *words: str) -> None:
    subprocess.run(["ip", "-n", Path(path).name, *words], check=True, timeout=30)


# --- measuring ----------------------------------------------------------------------------------------------------


def failure(side: Agents | Bare) -> float:
    """Seconds from when the last node fails until no other has a route to what it announced; it is back then."""
    others = side.hosts[:-1]
    began = time.perf_counter()
    side.fail_last()
    given_up(others, side.lasting)
    seconds = time.perf_counter() - began
    side.start_last()
    known(others, side.lasting)
    return seconds


def measure(advance: Advance) -> Report:
    """Raises NotReady, PluginFailed, NoTraffic."""
    report = Report(NAME, TITLE)
    for size in SIZES:
        with contextlib.ExitStack() as stack:
            directory = Path(stack.enter_context(scratch("routes")))
            prefix = f"tb-{directory.name[-8:]}"
            ours = Agents(stack, stack.enter_context(fabric.nodes(f"{prefix}o", size)), directory, f"{prefix}o")
            bare = Bare(stack, stack.enter_context(fabric.nodes(f"{prefix}b", size)), directory, f"{prefix}b")
            for side in (ours, bare):
                known(side.hosts[:-1], side.lasting)
            found: dict[str, list[float]] = {name: [] for name in (*CASES, *FAILING, FLOOR)}
            for number in range(ROUNDS):
                asking = 1 + number % (size - 1)
                for case in CASES:
                    found[case].append(ours.add(case, ours.hosts[asking]))
                found[FLOOR].append(bare.add(FLOOR, bare.hosts[asking]))
                advance(f"{NAME}: {size} nodes")
            for _ in range(FAILURES):
                for name, side in zip(FAILING, (ours, bare), strict=True):
                    found[name].append(failure(side))
                advance(f"{NAME}: {size} nodes, of which one fails")
        report.samples |= {f"{size} nodes, {name}, s": values for name, values in found.items()}
        report.figures += figures(size, found)
    return report


def figures(size: int, found: dict[str, list[float]]) -> Iterator[Figure]:
    for case in CASES:
        words = f"{size} nodes, address {case}"
        for percent in (50, 99):
            mine, floor = (1000 * percentile(found[name], percent) for name in (case, FLOOR))
            yield against(f"{words}, p{percent}", mine, "ms", PEER, floor)
    mine, floor = (median(found[name]) for name in FAILING)
    yield against(f"{size} nodes, one fails: given up by all", mine, "s", PEER, floor)


if __name__ == "__main__":
    sys.exit(alone(NAME))
