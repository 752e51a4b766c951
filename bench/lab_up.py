"""A cluster from nothing: `tortie lab up` until all BGP sessions are established.

The peer is what cannot be left out: the same namespaces, links and addresses by plain `ip` commands, and one BIRD for
each node with a configuration that is ready, until the same sessions are established. It has no datastore, no agents
and no policy. Where many processes start at once, how many cores there are matters more to us than to the peer.

A large lab has no peer: fifty namespaces that ask for one another's MAC addresses have no place in the machine's
neighbour table, which a lab fills in beforehand. Its memory is what all its processes take, shared pages counted once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench.figures import Figure, Report, against, median
from bench.node import TORTIE, NotReady, program_environment
from bench.plugin import scratch
from bench.progress import Advance, alone
from tortie.base.errors import Unavailable
from tortie.bgp.birdc import parse_protocols
from tortie.kernel import netns
from tortie.kernel.bird import Bird
from tortie.lab import processes
from tortie.lab.topology import Host, Topology, topology

NAME = "lab_up"
TITLE = "A cluster from nothing: tortie lab up, against raw ip commands and bird"
PEER = "ip commands + bird"
SIZES = {3: 7, 10: 3}
"""How many nodes, how many rounds."""
LARGE = 50
"""Nodes of a lab that is brought up once."""
STEPS = sum(SIZES.values()) + 1
TARGET_NODES, TARGET_SECONDS = 3, 6.0
PATIENCE = 60.0
LAB = f"bench{os.getpid()}"

CONFIGURATION = """
log stderr all;
router id {host.ipv4.ip};
protocol device {{ scan time 2; }}
protocol direct {{ ipv4; ipv6; }}
protocol kernel kernel4 {{ learn; persist; scan time 2; metric 0; ipv4 {{ import all; export all; }}; }}
protocol kernel kernel6 {{ learn; persist; scan time 2; metric 0; ipv6 {{ import all; export all; }}; }}
"""
SESSION = """
protocol bgp {name} {{
  local {here} as 64512; neighbor {there} as 64512; multihop; {passive}
  connect delay time 0; connect retry time 5; error wait time 5,30;
  ipv{version} {{ import all; export all; gateway recursive; }};
}}
"""


def ours(nodes: int) -> float:
    """Seconds that `tortie lab up` takes, from start to end of the command. Raises NotReady."""
    try:
        began = time.perf_counter()
        _tortie("up", "--nodes", str(nodes))
        return time.perf_counter() - began
    finally:
        _tortie("down")


def large(nodes: int) -> tuple[float, float]:
    """Seconds that it takes, and megabytes of memory for each node. Raises NotReady."""
    try:
        began = time.perf_counter()
        _tortie("up", "--nodes", str(nodes))
        seconds = time.perf_counter() - began
        return seconds, sum(map(_memory, processes.marked(processes.LAB_VARIABLE, LAB))) / nodes
    finally:
        _tortie("down")


def _memory(process: processes.Process) -> float:
    """Megabytes, those shared with others divided among them; 0 for a process that is gone."""
    try:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1024


def _tortie(verb: str, *options: str) -> None:
    argv = [str(TORTIE), "lab", verb, "--name", LAB, *options]
    done = subprocess.run(argv, env=program_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotReady(f"tortie lab {verb}: {(done.stderr or done.stdout).strip()}")


def peer(nodes: int) -> float:
    """Seconds until everything that a lab consists of on the outside is there. Raises NotReady."""
    lab = topology(LAB, nodes)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(scratch("lab")))
        birds = []
        for host in lab.nodes:
            bird = Bird(directory / host.name, directory / f"{host.name}.ctl", host.netns, log=directory / "log")
            bird.config.write_text("".join(_configuration(lab, host)))
            birds.append(bird)
        for name in lab.namespaces:
            stack.callback(_remove, name)
        began = time.perf_counter()
        for command in _commands(lab):
            subprocess.run(command.split(), check=True)
        for bird in birds:
            bird.start(recover=False)
        _await_established(birds, 2 * (nodes - 1))
        return time.perf_counter() - began


def _remove(name: str) -> None:
    """A namespace and who is in it; one that is not there is fine."""
    if name in netns.list_names():
        for pid in netns.pids_in(netns.path(name)):
            os.kill(pid, 9)
        netns.delete(name)


def _commands(lab: Topology) -> Iterator[str]:
    """The network of a lab, as a person would type it."""
    router = lab.router_of(lab.outside)
    fabric = router.netns
    for name in lab.namespaces:
        yield f"ip netns add {name}"
        yield f"ip -n {name} link set lo up"
        yield f"ip netns exec {name} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
        yield f"ip netns exec {name} sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0"
    yield f"ip -n {fabric} link add br0 type bridge"
    yield f"ip -n {fabric} link set br0 up"
    for address in router.bridge:
        yield f"ip -n {fabric} address add {address} dev br0"
    for host in lab.hosts:
        master = "" if host is lab.outside else "master br0"
        yield f"ip -n {fabric} link add {host.name} type veth peer name eth0 netns {host.netns}"
        yield f"ip -n {fabric} link set {host.name} {master} up"
        yield f"ip -n {host.netns} link set eth0 up"
        for address, gateway in zip(host.addresses, (host.gateway, host.gateway6), strict=True):
            yield f"ip -n {host.netns} address add {address} dev eth0"
            yield f"ip -n {host.netns} route add default via {gateway}"
    for address in lab.uplink_addresses:
        yield f"ip -n {fabric} address add {address} dev {lab.outside.name}"


def _configuration(lab: Topology, host: Host) -> Iterator[str]:
    """A mesh of both families. The first of two nodes waits for the other, which is started later, to dial."""
    yield CONFIGURATION.format(host=host)
    for other in lab.nodes:
        for version, here, there in ((4, host.ipv4.ip, other.ipv4.ip), (6, host.ipv6.ip, other.ipv6.ip)):
            if other is not host:
                passive = "passive on;" if int(here) < int(there) else ""
                name = f"mesh{version}_{other.name}"
                yield SESSION.format(name=name, here=here, there=there, passive=passive, version=version)


def _await_established(birds: list[Bird], sessions: int) -> None:
    deadline = time.monotonic() + PATIENCE
    late = list(birds)
    while late := [bird for bird in late if _established(bird) < sessions]:
        if time.monotonic() > deadline:
            raise NotReady(f"{len(late)} of {len(birds)} BIRDs have no sessions after {PATIENCE:g} s")
        time.sleep(0.02)


def _established(bird: Bird) -> int:
    try:
        protocols = parse_protocols(bird.ask("show protocols all"))
    except Unavailable:
        return 0
    return sum(one.session is not None and one.session.state == "Established" for one in protocols)


def measure(advance: Advance) -> Report:
    """Raises NotReady."""
    report = Report(NAME, TITLE)
    for nodes, rounds in SIZES.items():
        mine: list[float] = []
        theirs: list[float] = []
        for number in range(rounds):
            for side, samples in ((ours, mine), (peer, theirs)) if number % 2 else ((peer, theirs), (ours, mine)):
                samples.append(side(nodes))
            advance(f"{NAME}: {nodes} nodes")
        report.samples |= {f"{nodes} nodes ours s": mine, f"{nodes} nodes peer s": theirs}
        figure = against(f"{nodes} nodes, all BGP sessions established", median(mine), "s", PEER, median(theirs))
        report.figures.append(_with_target(figure) if nodes == TARGET_NODES else figure)
    seconds, memory = large(LARGE)
    advance(f"{NAME}: {LARGE} nodes")
    report.samples |= {f"{LARGE} nodes ours s": [seconds], f"{LARGE} nodes ours MB per node": [memory]}
    report.figures.append(Figure(f"{LARGE} nodes, all BGP sessions established", seconds, "s"))
    report.figures.append(Figure(f"{LARGE} nodes, memory of agents and BIRDs for each", memory, "MB"))
    return report


def _with_target(figure: Figure) -> Figure:
    target = f"value < {TARGET_SECONDS:g} s"
    holds = figure.value < TARGET_SECONDS
    return Figure(figure.figure, figure.value, figure.unit, figure.peer, figure.peer_value, target, holds)


if __name__ == "__main__":
    sys.exit(alone(NAME))
