"""Packets between pods: our dataplane with policy, against the same veths and routes made by hand, without nft.

same node    pod ─ veth ─ node ─ veth ─ pod
two nodes    pod ─ veth ─ node ─ veth ─ bridge ─ veth ─ node ─ veth ─ pod; ours learns the route from BGP
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import fabric, wire
from bench.fabric import Place
from bench.figures import Figure, Report, against, median
from bench.node import Node, cluster_objects, namespace, pod_object, write
from bench.plugin import Pod, addresses, call, pod_name, scratch
from bench.progress import Advance, alone
from tortie.kernel import nft
from tortie.model.document import parse

NAME = "throughput"
TITLE = "Pod to pod: through our agent's policy and routes, against bare routed veths"
BARE, TRACKED = "bare veths and routes", "bare, with one rule of connection tracking"
TARGET = 0.95
ROUNDS, SECONDS = 9, 2.0
SHORT_ROUNDS, SHORT_SECONDS = 15, 0.3
POD_NODES = (0, 0, 1)

ONE_RULE = """
add table ip tracked
add chain ip tracked forward { type filter hook forward priority filter; }
add rule ip tracked forward ct state new,established,related accept
"""

POLICIES = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: default.quarantine}
spec:
  order: 10
  selector: all()
  types: [Ingress, Egress]
  ingress: [{action: Deny, source: {selector: quarantine == 'true'}}, {action: Pass}]
  egress: [{action: Pass}]
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: default.server, namespace: default}
spec:
  order: 100
  selector: role == 'server'
  types: [Ingress]
  ingress:
    - {action: Deny, source: {nets: [198.51.100.0/24, 203.0.113.0/24]}}
    - {action: Allow, protocol: TCP, source: {selector: role == 'monitor'}, destination: {ports: [9090, '9100:9200']}}
    - {action: Allow, protocol: TCP, source: {selector: role == 'client'}, destination: {ports: [5201]}}
    - {action: Allow, protocol: UDP, source: {selector: role == 'client'}, destination: {ports: [5201]}}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: default.client, namespace: default}
spec:
  order: 200
  selector: role == 'client'
  types: [Egress]
  egress:
    - {action: Deny, destination: {nets: [169.254.169.254/32]}}
    - {action: Allow, protocol: UDP, destination: {ports: [53]}}
    - {action: Allow, destination: {selector: "role in {'server', 'cache'}"}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  podSelector: {matchLabels: {role: server}}
  ingress: [{ports: [{port: 8080}], from: [{podSelector: {matchLabels: {role: web}}}]}]
"""


@dataclass(frozen=True, slots=True)
class Side:
    """A client on the first node, a server beside it, and a server on the second node."""

    name: str
    client: Place
    near: Place
    far: Place

    def server(self, where: str) -> Place:
        return self.near if where == "same node" else self.far


@dataclass(frozen=True, slots=True)
class Test:
    """A measurement, in which more is better: (client's namespace, server's, server's address, seconds) -> value."""

    words: str
    unit: str
    seconds: float
    run: Callable[[str, str, str, float], float]
    rounds: int = ROUNDS
    target: float | None = TARGET


TESTS = (
    Test("TCP, 1 stream", "Gbit/s", SECONDS, wire.tcp_throughput),
    Test("UDP round trips, 64 bytes", "/s CPU", SHORT_SECONDS, wire.udp_round_trips, SHORT_ROUNDS),
    Test("new TCP connections", "/s CPU", SHORT_SECONDS, wire.tcp_connections, SHORT_ROUNDS, None),
)
WHERE = ("same node", "two nodes")
STEPS = sum(test.rounds for test in TESTS) * len(WHERE)


@contextlib.contextmanager
def by_hand(name: str, prefix: str, rules: str = "") -> Iterator[Side]:
    with fabric.nodes(prefix) as hosts, fabric.pods(prefix, hosts) as places:
        for host in hosts if rules else ():
            nft.apply(rules, host)
        yield Side(name, *places)


@contextlib.contextmanager
def ours(prefix: str, directory: Path) -> Iterator[Side]:
    """Two agents with BGP between them, policies, and pods that are connected by the plugin."""
    roles = ("client", "server", "server")
    pods = [pod_object(pod_name(i), f"node{POD_NODES[i] + 1}", role=role) for i, role in enumerate(roles)]
    datastore = directory / "store.db"
    write(datastore, (*cluster_objects(), *parse(POLICIES), *pods))
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(fabric.nodes(prefix))
        nodes = [Node(f"node{i + 1}", path, datastore, directory) for i, path in enumerate(hosts)]
        for node, ip in zip(nodes, fabric.NODES, strict=True):
            stack.enter_context(node.agent(ipv4=f"{ip}/{fabric.PREFIX_LENGTH}", bgp=True))
        places = []
        for i, host in enumerate(POD_NODES):
            path = stack.enter_context(namespace(f"{prefix}-pod{i}"))
            _, answer = call(nodes[host].network(), "ADD", Pod(pod_name(i), path))
            places.append(Place(path, addresses(answer)[0]))
        side = Side("ours", *places)
        wire.await_path(side.client.netns, side.far.netns, side.far.ip)
        yield side


def measure(advance: Advance) -> Report:
    """Raises PluginFailed, NotReady, NoTraffic."""
    report = Report(NAME, TITLE)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(scratch("wire")))
        prefix = f"tb-{directory.name[-8:]}"
        sides = (
            stack.enter_context(ours(f"{prefix}o", directory)),
            stack.enter_context(by_hand(BARE, f"{prefix}b")),
            stack.enter_context(by_hand(TRACKED, f"{prefix}t", ONE_RULE)),
        )
        for test in TESTS:
            for where in WHERE:
                words = f"{test.words}, {where}"
                samples: dict[str, list[float]] = {side.name: [] for side in sides}
                for number in range(test.rounds):
                    for side in sides if number % 2 else sides[::-1]:
                        server = side.server(where)
                        value = test.run(side.client.netns, server.netns, server.ip, test.seconds)
                        samples[side.name].append(value)
                    advance(f"{NAME}: {words}")
                report.samples |= {f"{words}, {side}, {test.unit}": values for side, values in samples.items()}
                report.figures += _figures(test, words, {side: median(values) for side, values in samples.items()})
    return report


def _figures(test: Test, words: str, found: dict[str, float]) -> Iterator[Figure]:
    yield against(words, found["ours"], test.unit, BARE, found[BARE], at_least=test.target)
    yield against(f"{words}, tracked", found["ours"], test.unit, TRACKED, found[TRACKED])


if __name__ == "__main__":
    sys.exit(alone(NAME))
