"""Connecting a pod: the `calico` plugin and its agent against the reference plugins `bridge` and `host-local`.

Each ADD goes into a network namespace of its own that is new; DEL follows. What is measured is the time from spawning
the executable to its end, which for us includes that the pod's policy and route are in the kernel; the peer has
neither. CPU is that of the processes, and for us of the agent all the while.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from bench.figures import Report, against, median, percentile
from bench.node import POOL, POOL6, Node, cluster_objects, namespace, pod_object, write
from bench.plugin import Network, Pod, Pods, call, call_together, go_bridge, pod_name, scratch
from bench.progress import Advance, alone

NAME = "cni_add"
TITLE = "CNI ADD and DEL: calico and its agent, against Go's bridge and host-local"
PEER = "Go bridge + host-local"
ROUNDS = 120
CROWD = 100
"""Pods that are there already in the measurement of a full node: Kubernetes allows 110."""
CROWDED_ROUNDS = 60
TOGETHER, TOGETHER_ROUNDS = 32, 7
WARM_UP = 5
TARGET, TARGET_P99 = 1.0, 1.5
"""Of the median and of the 99th percentile of either; many at once are to be as many a second at least."""
MS = 1000


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to be connected, which both sides are asked for. `target` bounds the ratio of the medians,
    `target_p99` that of the slowest in a hundred."""

    name: str
    words: str
    ipv6: bool = False
    bgp: bool = False
    crowd: int = 0
    rounds: int = ROUNDS
    target: float | None = None
    target_p99: float | None = None


SCENARIOS = (
    Scenario("ipv4", "IPv4", target=TARGET, target_p99=TARGET_P99),
    Scenario("bgp", "IPv4, BIRD running", bgp=True),
    Scenario("dual", "IPv4 and IPv6", ipv6=True),
    Scenario("crowd", f"IPv4, {CROWD} pods there", crowd=CROWD, rounds=CROWDED_ROUNDS),
)
STEPS = sum(scenario.rounds for scenario in SCENARIOS) + TOGETHER_ROUNDS


@dataclass(frozen=True, slots=True)
class Side:
    """A plugin, namespaces for pods to connect with it, and the seconds of CPU that its daemon has taken so far."""

    name: str
    network: Network
    pods: Pods
    daemon_cpu: Callable[[], float]


@contextlib.contextmanager
def sides(scenario: Scenario, pods: int) -> Iterator[tuple[Side, Side]]:
    """Two node namespaces, in one of them an agent that knows so many pods."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(scratch("cni")))
        prefix = f"tb-{directory.name[-8:]}"
        ours, peer = (stack.enter_context(namespace(f"{prefix}-{side}")) for side in ("ours", "peer"))
        theirs, mine = (stack.enter_context(contextlib.closing(Pods(f"{prefix}-{side}"))) for side in ("p", "o"))
        datastore = directory / "store.db"
        write(datastore, (*cluster_objects(), *(pod_object(pod_name(i + 1), "node1") for i in range(pods))))
        node = Node("node1", ours, datastore, directory)
        stack.enter_context(node.agent(ipv4="192.0.2.1/24", bgp=scenario.bgp))
        subnets = (POOL, POOL6) if scenario.ipv6 else (POOL,)
        yield (
            Side("ours", node.network(ipv6=scenario.ipv6), mine, node.cpu),
            Side("peer", go_bridge(peer, directory / "host-local", subnets), theirs, lambda: 0.0),
        )


def one_by_one(scenario: Scenario, report: Report, advance: Advance) -> None:
    """ADD and DEL in turns of both sides."""
    samples: dict[tuple[str, str], list[float]] = {}
    with sides(scenario, scenario.crowd + WARM_UP + scenario.rounds) as both:
        for side in both:
            for _ in range(scenario.crowd):
                call(side.network, "ADD", side.pods.fresh())
        for number in range(-WARM_UP, scenario.rounds):
            for side in both if number % 2 else both[::-1]:
                measured = _add_and_delete(side)
                for what, value in measured.items() if number >= 0 else ():
                    samples.setdefault((side.name, what), []).append(value)
            if number >= 0:
                advance(f"{NAME}: {scenario.words}")
    report.samples |= {f"{scenario.name} {' '.join(key)} ms": values for key, values in samples.items()}
    for command in ("ADD", "DEL"):
        mine, theirs = samples["ours", command], samples["peer", command]
        words, slowest = f"{command} {scenario.words}", (percentile(mine, 99), percentile(theirs, 99))
        report.figures += [
            against(f"{words}, p50", median(mine), "ms", PEER, median(theirs), at_most=scenario.target),
            against(f"{words}, p99", slowest[0], "ms", PEER, slowest[1], at_most=scenario.target_p99),
        ]
    cpu = mean(samples["ours", "CPU"]), mean(samples["peer", "CPU"])
    report.figures.append(against(f"CPU of ADD and DEL {scenario.words}", cpu[0], "ms", PEER, cpu[1]))


def _add_and_delete(side: Side) -> dict[str, float]:
    """Milliseconds of either, and of CPU for both."""
    before = side.daemon_cpu(), _children_cpu()
    pod = side.pods.fresh()
    measured = {command: call(side.network, command, pod)[0] * MS for command in ("ADD", "DEL")}
    side.pods.delete(pod)
    after = side.daemon_cpu(), _children_cpu()
    return measured | {"CPU": (sum(after) - sum(before)) * MS}


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def together(report: Report, advance: Advance) -> None:
    """Many calls at once: how many a second."""
    rates: dict[tuple[str, str], list[float]] = {}
    with sides(Scenario("together", ""), TOGETHER * (TOGETHER_ROUNDS + 1)) as both:
        for number in range(-1, TOGETHER_ROUNDS):
            for side in both if number % 2 else both[::-1]:
                pods: list[Pod] = [side.pods.fresh() for _ in range(TOGETHER)]
                for command in ("ADD", "DEL"):
                    seconds = call_together(side.network, command, pods)
                    if number >= 0:
                        rates.setdefault((side.name, command), []).append(TOGETHER / seconds)
                for pod in pods:
                    side.pods.delete(pod)
            if number >= 0:
                advance(f"{NAME}: {TOGETHER} at once")
    report.samples |= {f"{TOGETHER} at once {' '.join(key)} /s": values for key, values in rates.items()}
    for command in ("ADD", "DEL"):
        mine, theirs = median(rates["ours", command]), median(rates["peer", command])
        words = f"{command} IPv4, {TOGETHER} at once"
        report.figures.append(against(words, mine, "/s", PEER, theirs, at_least=TARGET))


def measure(advance: Advance) -> Report:
    """Raises PluginFailed, NotReady."""
    report = Report(NAME, TITLE)
    for scenario in SCENARIOS:
        one_by_one(scenario, report, advance)
    together(report, advance)
    return report


if __name__ == "__main__":
    sys.exit(alone(NAME))
