"""What a pod's policies cost its packets: throughput and new connections through 0, 10, 100 and 1,000 of them.

For each number a node of its own, with two pods and our nft table, all of them in turn. Every policy selects the server
and lets another application in; the client is of the one that comes last. With `networks`, one policy in ten lets a
network in instead.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import wire
from bench.figures import Report, against, median
from bench.node import namespace
from bench.plugin import scratch
from bench.progress import Advance, alone
from tortie.base.addr import parse_ip
from tortie.calc.cluster import Cluster
from tortie.dataplane.attachment import Attachment, attach
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.nft import Nft
from tortie.dataplane.stages.routes import Routes
from tortie.kernel import netns, sysctl
from tortie.model.document import convert
from tortie.model.k8s import Namespace
from tortie.model.policy import NetworkPolicy
from tortie.model.workload import WorkloadEndpoint

NAME = "policy_throughput"
TITLE = "A pod that many policies select: its throughput, and the connections that are opened to it"
PEER = "without policies"
COUNTS = (0, 10, 100, 1000)
NETWORKS = 1000
"""The number of policies of the node on which one in ten is about a network."""
CLIENT, SERVER = "10.91.1.2", "10.91.1.3"
ROUNDS, SECONDS = 9, 2.0
SHORT_ROUNDS, SHORT_SECONDS = 25, 0.4
THREADS = 2
PORT = wire.PORT
SOURCE = Path(__file__).with_name("connect_rate.c")

Measured = Callable[[str, str, str, float], float]
"""(client's namespace, server's, server's address, seconds) -> value, of which more is better."""


@dataclass(frozen=True, slots=True)
class Test:
    words: str
    unit: str
    run: Measured
    rounds: int
    seconds: float
    target: float


def tests(program: Path) -> tuple[Test, ...]:
    def connections(source: str, target: str, ip: str, seconds: float) -> float:
        return connect_rate(program, source, target, ip, seconds)

    return (
        Test("TCP, 1 stream", "Gbit/s", wire.tcp_throughput, ROUNDS, SECONDS, 0.95),
        Test("TCP connections", "/s", connections, SHORT_ROUNDS, SHORT_SECONDS, 0.9),
        Test("TCP connections, one thread", "/s CPU", wire.tcp_connections, SHORT_ROUNDS, SHORT_SECONDS, 0.9),
    )


STEPS = 2 * SHORT_ROUNDS + ROUNDS + SHORT_ROUNDS
"""Rounds of the three tests, and of the client alone."""


def connect_rate(program: Path, source: str, target: str, ip: str, seconds: float) -> float:
    """Connections a second that the threads of a program open from one namespace to another. Raises NoTraffic."""
    with netns.entered(target):
        server = subprocess.Popen([program, "server", str(PORT), str(THREADS)], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        with netns.entered(source):
            words = [program, "client", ip, str(PORT), str(THREADS), f"{seconds:g}"]
            done = subprocess.run(words, capture_output=True, text=True, timeout=wire.PATIENCE + seconds, check=False)
    finally:
        server.kill()
        server.communicate()
    if done.returncode:
        raise wire.NoTraffic(done.stderr.strip())
    return float(done.stdout)


def endpoint(number: int, ip: str, app: str, node: str = "node") -> WorkloadEndpoint:
    labels = {
        "app": app,
        "projectcalico.org/namespace": "default",
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "default",
    }
    spec = {
        "node": node,
        "pod": f"p{number}",
        "endpoint": "eth0",
        "interfaceName": f"cali{number:011d}",
        "ipNetworks": [f"{ip}/32"],
        "profiles": ["kns.default"],
    }
    metadata = {"name": f"{node}-k8s-p{number}-eth0", "namespace": "default", "labels": labels}
    return convert(WorkloadEndpoint, {"metadata": metadata, "spec": spec})


def policy(number: int, app: str, *, network: bool) -> NetworkPolicy:
    source = {"nets": [f"198.51.{number % 256}.0/{24 + number % 5}"]} if network else {"selector": f"app == '{app}'"}
    rule = {"action": "Allow", "protocol": "TCP", "source": source, "destination": {"ports": [PORT, 8080]}}
    spec = {"order": number, "selector": "app == 'server'", "types": ["Ingress"], "ingress": [rule]}
    return convert(NetworkPolicy, {"metadata": {"name": f"p{number}", "namespace": "default"}, "spec": spec})


def cluster(count: int, *, networks: bool) -> Cluster:
    """A client and a server on this node, and two pods on another for each application that a policy lets in."""
    made = Cluster("node")
    made.put(convert(Namespace, {"metadata": {"name": "default"}}))
    made.put(endpoint(0, CLIENT, "client"))
    made.put(endpoint(1, SERVER, "server"))
    for number in range(count):
        last = number == count - 1
        made.put(policy(number, "client" if last else f"a{number}", network=networks and number % 10 == 5))
        for which in range(2):
            made.put(
                endpoint(2 + 2 * number + which, f"10.92.{number >> 7}.{2 * number + which & 255}", f"a{number}", "o")
            )
    return made


@dataclass(frozen=True, slots=True)
class Place:
    """The namespaces of two pods."""

    client: str
    server: str


@contextlib.contextmanager
def node(prefix: str, count: int, *, networks: bool = False) -> Iterator[Place]:
    with contextlib.ExitStack() as stack:
        host, client, server = (stack.enter_context(namespace(f"{prefix}-{name}")) for name in ("node", "c", "s"))
        with netns.entered(host):
            sysctl.write("net/ipv4/ip_forward", 1)
        for number, (pod, ip) in enumerate(((client, CLIENT), (server, SERVER))):
            attach(Attachment(pod, "eth0", f"cali{number:011d}", (parse_ip(ip),), host_netns=host))
        failures = converge([Nft(host), Routes(host)], cluster(count, networks=networks).state())
        assert not failures, failures
        yield Place(client, server)


def measure(advance: Advance) -> Report:
    """Raises NoTraffic."""
    report = Report(NAME, TITLE)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(scratch("policy")))
        program = directory / "connect_rate"
        subprocess.run(["cc", "-O2", "-pthread", "-o", program, SOURCE], check=True)
        prefix = f"tb-{directory.name[-8:]}"
        places = {named(count): stack.enter_context(node(f"{prefix}{count}", count)) for count in COUNTS}
        of_networks = f"{NETWORKS:,} policies, of networks 100"
        places[of_networks] = stack.enter_context(node(f"{prefix}net", NETWORKS, networks=True))
        every = tests(program)
        for test in every:
            samples: dict[str, list[float]] = {name: [] for name in places}
            for number in range(test.rounds):
                for name in list(places)[:: 1 if number % 2 else -1]:
                    place = places[name]
                    samples[name].append(test.run(place.client, place.server, SERVER, test.seconds))
                advance(f"{NAME}: {test.words}")
            report.samples |= {f"{test.words}, {name}, {test.unit}": values for name, values in samples.items()}
            found = {name: median(values) for name, values in samples.items()}
            base = found.pop(named(0))
            for name, value in found.items():
                target = test.target if name == named(COUNTS[-1]) else None
                report.figures.append(against(f"{test.words}, {name}", value, test.unit, PEER, base, at_least=target))
        _client_alone(report, program, stack.enter_context(namespace(f"{prefix}-alone")), advance)
    return report


def named(count: int) -> str:
    return f"{count:,} policies"


def _client_alone(report: Report, program: Path, place: str, advance: Advance) -> None:
    """The same client and server over loopback: whether it is they that set the pace."""
    alone_rates = []
    for _ in range(SHORT_ROUNDS):
        alone_rates.append(connect_rate(program, place, place, "127.0.0.1", SHORT_SECONDS))
        advance(f"{NAME}: the client alone")
    through = median(report.samples[f"TCP connections, {named(0)}, /s"])
    report.samples["TCP connections, over loopback, /s"] = alone_rates
    report.figures.append(against("TCP connections, over loopback", median(alone_rates), "/s", PEER, through))


if __name__ == "__main__":
    sys.exit(alone(NAME))
