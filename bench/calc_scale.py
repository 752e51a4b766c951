"""Deciding at scale: what one change costs a node of a big cluster, against deciding everything anew.

A node with 100 pods in a cluster of 10,000 others, under 1,000 policies. Nothing touches a kernel here: measured is the
way from a resource to the text that nft is given. The peer is the same node that starts with no memory.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count

from bench.figures import Figure, Report, against, median
from bench.progress import Advance, alone
from tortie.calc.cluster import Cluster
from tortie.model.document import convert
from tortie.model.ipam import BlockAffinity, IPPool
from tortie.model.k8s import Namespace
from tortie.model.meta import Resource
from tortie.model.node import Node
from tortie.model.policy import GlobalNetworkPolicy, GlobalNetworkSet, NetworkPolicy
from tortie.model.workload import WorkloadEndpoint
from tortie.render.nft import NftRenderer
from tortie.render.ruleset import Ruleset, transaction

NAME = "calc_scale"
TITLE = "Deciding: 10,000 remote pods, 1,000 policies, 100 local pods, 200 nodes"
PEER = "everything anew"
REMOTE, LOCAL, POLICIES, NODES = 10_000, 100, 1_000, 200
NAMESPACES, APPS, WIDE = 100, 10, 20
"""A policy is about one application in one namespace; but WIDE ones are global, and look at an application anywhere."""
NETS = 2_000
"""Networks in a set that some policies look into."""
ROUNDS = 40
ANEW = 3
TARGET = 0.02
MS = 1000
PARTS = ("put", "state", "render", "transaction")
NOTHING = "a node says again what it said"


def some_namespace(number: int) -> Namespace:
    return convert(Namespace, {"metadata": {"name": f"ns{number}", "labels": {"team": f"t{number % 10}"}}})


def node(number: int) -> Node:
    bgp = {"ipv4Address": f"192.0.2.{number}/24", "ipv6Address": f"2001:db8::{number}/64"}
    return convert(Node, {"metadata": {"name": f"n{number}"}, "spec": {"bgp": bgp}})


def block(number: int) -> BlockAffinity:
    net = f"10.{number >> 10 & 255}.{number >> 2 & 255}.{(number & 3) << 6}/26"
    spec = {"cidr": net, "node": f"n{number % NODES}", "state": "confirmed"}
    return convert(BlockAffinity, {"metadata": {"name": f"b{number}"}, "spec": spec})


def pod(number: int, host: int, app: int | None = None) -> WorkloadEndpoint:
    """A pod with addresses of both families, labels and a named port, as Calico writes it for Kubernetes."""
    where = f"ns{number % NAMESPACES}"
    labels = {
        "app": f"a{number // NAMESPACES % APPS if app is None else app}",
        "projectcalico.org/namespace": where,
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "default",
    }
    spec = {
        "node": f"n{host}",
        "orchestrator": "k8s",
        "pod": f"p{number}",
        "endpoint": "eth0",
        "interfaceName": f"cali{number:011x}",
        "ipNetworks": [f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/32", f"fd00:10::{number:x}/128"],
        "profiles": [f"kns.{where}", f"ksa.{where}.default"],
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    }
    metadata = {"name": f"n{host}-k8s-p{number}-eth0", "namespace": where, "labels": labels}
    return convert(WorkloadEndpoint, {"metadata": metadata, "spec": spec})


def policy(number: int, port: int = 80) -> NetworkPolicy:
    """About an application of a namespace: two others may come, one of them from anywhere; egress to a third."""
    app = number // NAMESPACES
    callers = {"selector": f"app in {{'a{(app + 1) % APPS}', 'a{(app + 2) % APPS}'}}"}
    team = {"namespaceSelector": f"team == 't{number % 10}'", "selector": f"app == 'a{(app + 3) % APPS}'"}
    spec = {
        "order": number,
        "selector": f"app == 'a{app}'",
        "types": ["Ingress", "Egress"],
        "ingress": [
            {"action": "Allow", "protocol": "TCP", "source": callers, "destination": {"ports": ["http", port]}},
            {"action": "Allow", "protocol": "TCP", "source": team, "destination": {"ports": [443, "9000:9100"]}},
        ],
        "egress": [{"action": "Allow", "destination": {"selector": f"app == 'a{(app + 4) % APPS}'"}}],
    }
    metadata = {"name": f"p{number}", "namespace": f"ns{number % NAMESPACES}"}
    return convert(NetworkPolicy, {"metadata": metadata, "spec": spec})


def wide_policy(number: int) -> GlobalNetworkPolicy:
    """About every pod, with a set of a tenth of all of them and one of networks."""
    spec = {
        "order": number,
        "selector": "all()",
        "types": ["Ingress"],
        "ingress": [
            {"action": "Deny", "source": {"selector": f"feed == 'f{number % 4}'"}},
            {"action": "Allow", "protocol": "TCP", "source": {"selector": f"app == 'a{number % APPS}'"}},
        ],
    }
    return convert(GlobalNetworkPolicy, {"metadata": {"name": f"wide{number}"}, "spec": spec})


def feed(number: int) -> GlobalNetworkSet:
    nets = [f"198.{18 + (i >> 10)}.{i >> 2 & 255}.{(i & 3) << 6}/27" for i in range(NETS)]
    metadata = {"name": f"feed{number}", "labels": {"feed": f"f{number}"}}
    return convert(GlobalNetworkSet, {"metadata": metadata, "spec": {"nets": nets}})


def world() -> Iterator[Resource]:
    """All of it, in the order in which an agent lists it at its start."""
    yield from (some_namespace(number) for number in range(NAMESPACES))
    yield from (node(number) for number in range(NODES))
    yield convert(IPPool, {"metadata": {"name": "four"}, "spec": {"cidr": "10.0.0.0/8", "natOutgoing": True}})
    yield convert(IPPool, {"metadata": {"name": "six"}, "spec": {"cidr": "fd00:10::/64"}})
    yield from (block(number) for number in range(2 * NODES))
    yield from (feed(number) for number in range(4))
    yield from (policy(number) for number in range(POLICIES - WIDE))
    yield from (wide_policy(number) for number in range(WIDE))
    yield from (pod(number, _host(number)) for number in range(REMOTE))
    yield from (pod(REMOTE + number * 11, 0) for number in range(LOCAL))


class Desk:
    """A node's decisions from the first resource to the last line of nft."""

    def __init__(self) -> None:
        self.cluster = Cluster("n0")
        self.renderer = NftRenderer()
        self.have: Ruleset | None = None
        self.script = ""

    def decide(self, *changes: Resource) -> dict[str, float]:
        """Seconds of each part."""
        marks = [time.perf_counter()]
        for change in changes:
            self.cluster.put(change)
        marks.append(time.perf_counter())
        state = self.cluster.state()
        marks.append(time.perf_counter())
        want = self.renderer.render(state)
        marks.append(time.perf_counter())
        self.script = transaction(want, self.have)
        marks.append(time.perf_counter())
        self.have = want
        return {part: marks[i + 1] - marks[i] for i, part in enumerate(PARTS)}


def measure(advance: Advance) -> Report:
    """One node that has everything, and one change after the other."""
    report = Report(NAME, TITLE)
    resources = tuple(world())
    gc.freeze()
    anew: list[dict[str, float]] = []
    for _ in range(ANEW):
        desk = Desk()
        anew.append(desk.decide(*resources))
        advance(f"{NAME}: {PEER}")
    report.title = f"{TITLE}; {len(desk.cluster.state().sets)} sets, {len(desk.script.splitlines())} lines of nft"
    whole = MS * median([sum(one.values()) for one in anew])
    report.figures.append(Figure(PEER, whole, "ms"))
    report.figures += [Figure(f"  {part}", MS * median([one[part] for one in anew]), "ms") for part in PARTS]
    report.samples[f"{PEER} ms"] = [MS * sum(one.values()) for one in anew]
    for words, change in events().items():
        parts: list[dict[str, float]] = []
        for number in range(ROUNDS):
            parts.append(desk.decide(change(number)))
            assert bool(desk.script) is (words != NOTHING), words
        advance(f"{NAME}: {words}")
        spent = [MS * sum(one.values()) for one in parts]
        report.samples[f"{words} ms"] = spent
        report.figures.append(against(words, median(spent), "ms", PEER, whole, at_most=TARGET))
        report.figures += [Figure(f"  {part}", MS * median([one[part] for one in parts]), "ms") for part in PARTS]
    return report


def events() -> dict[str, Callable[[int], Resource]]:
    """What happens, each time to somebody else."""
    fresh = count(REMOTE + 20_000)
    return {
        "a local pod is added": lambda number: pod(next(fresh), 0),
        "a remote pod is added": lambda number: pod(next(fresh), 7),
        "a remote pod changes its label": lambda number: pod(number, _host(number), number // NAMESPACES + 1),
        "a policy changes a port": lambda number: policy(number, 8000 + number),
        NOTHING: lambda number: node(number % NODES),
    }


def _host(number: int) -> int:
    """The node that a remote pod runs on; node 0 is ours."""
    return 1 + number % (NODES - 1)


STEPS = ANEW + len(events())


if __name__ == "__main__":
    sys.exit(alone(NAME))
