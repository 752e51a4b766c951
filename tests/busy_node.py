"""A busy node on values: fifty pods, two hundred policies of every kind, and what they mean for any two pods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from tortie.base.addr import parse_ip
from tortie.calc.admission import bootstrap
from tortie.calc.cluster import Cluster
from tortie.calc.state import DesiredState
from tortie.model.document import convert
from tortie.model.k8s import K8sNetworkPolicy, Namespace
from tortie.model.meta import Resource
from tortie.model.policy import GlobalNetworkPolicy, NetworkPolicy, Tier
from tortie.model.workload import WorkloadEndpoint
from tortie.policy.verdict import Packet, Verdict, judge, membership

RED = "red"
PODS, APPS, TEAMS = 50, 10, 4
PORTS = (5000, 5001)
UDP = 17


@dataclass(frozen=True)
class Pod:
    number: int

    @property
    def name(self) -> str:
        return f"p{self.number}"

    @property
    def ip(self) -> str:
        return f"10.65.200.{self.number + 1}"

    @property
    def interface(self) -> str:
        return f"cali{self.number:011d}"

    @property
    def labels(self) -> dict[str, str]:
        return {"app": f"a{self.number % APPS}", "team": f"t{self.number % TEAMS}"}

    @property
    def endpoint(self) -> Resource:
        own = {"projectcalico.org/namespace": RED, "projectcalico.org/orchestrator": "k8s"}
        spec = {
            "node": "node1",
            "orchestrator": "k8s",
            "pod": self.name,
            "endpoint": "eth0",
            "interfaceName": self.interface,
            "ipNetworks": [f"{self.ip}/32"],
            "profiles": [f"kns.{RED}"],
        }
        return made(WorkloadEndpoint, f"node1-k8s-{self.name}-eth0", RED, self.labels | own, spec=spec)


def made(kind: type[Resource], name: str, namespace: str = "", labels: Any = None, **body: Any) -> Resource:
    metadata = {"name": name, "labels": labels or {}, **({"namespace": namespace} if namespace else {})}
    return convert(kind, {"metadata": metadata, **body})


def app(number: int) -> str:
    return f"app == 'a{number % APPS}'"


def team(number: int) -> str:
    return f"team == 't{number % TEAMS}'"


def some_ports(number: int) -> list[Any]:
    return ([5000], [5001], [5000, 5001], ["4990:5000"], [80, 443])[number % 5]


def udp(action: str, number: int, **source: Any) -> dict[str, Any]:
    return {"action": action, "protocol": "UDP", "source": source, "destination": {"ports": some_ports(number)}}


def policies() -> Iterator[Resource]:
    """Two hundred: of every pod and of some, in two tiers, for sets, networks and both."""
    yield made(Tier, "security", spec={"order": 10, "defaultAction": "Pass"})
    for i in range(20):
        rules = [udp("Deny", i, selector=f"{app(i)} && {team(i // 2)}"), udp("Pass", 2)]
        spec = {"tier": "security", "order": i, "selector": f"{team(i)} && {app(3 * i)}", "ingress": rules}
        yield made(GlobalNetworkPolicy, f"security.g{i}", spec=spec)
    for i in range(100):  # of everybody, in a row
        rule = udp("Allow" if i % 7 else "Deny", i // 3, selector=f"{app(i)} && {team(i + i // APPS)} && rare != '{i}'")
        if i % 10 == 9:
            rule["source"] = {"nets": [f"10.65.200.{2 * i % 64}/31"]}
        yield made(NetworkPolicy, f"w{i}", RED, spec={"order": 100 + i, "selector": "all()", "ingress": [rule]})
    for i in range(40):
        rules = [udp("Deny", i, selector=app(i + 3), notSelector=team(i)), udp("Allow", i + 1, selector=app(i + 1))]
        yield made(
            NetworkPolicy, f"n{i}", RED, spec={"order": 50 + i, "selector": f"{app(i)} && {team(i)}", "ingress": rules}
        )
    for i in range(20):
        peers = {"selector": f"{app(i)} || {app(i + 4)}"}
        egress = [
            {"action": "Allow", "protocol": "UDP", "destination": peers},
            {"action": "Deny", "notProtocol": "UDP"},
        ]
        yield made(
            NetworkPolicy, f"e{i}", RED, spec={"order": i, "selector": f"{app(i)} && {team(i)}", "egress": egress}
        )
    for i in range(20):
        block = {"ipBlock": {"cidr": "10.65.200.0/24", "except": [f"10.65.200.{16 * (i % 8)}/28", "10.65.200.128/25"]}}
        pods = {"podSelector": {"matchLabels": {"app": f"a{i % APPS}"}}}
        ingress = [{"from": [block if i % 2 else pods], "ports": [{"protocol": "UDP", "port": 5000 + i % 2}]}]
        spec = {
            "podSelector": {"matchLabels": {"team": f"t{i % TEAMS}", "app": f"a{3 * i % APPS}"}},
            "ingress": ingress,
        }
        yield made(K8sNetworkPolicy, f"k{i}", RED, spec=spec)


def world(pods: Iterable[Pod]) -> list[Resource]:
    return [one.endpoint for one in pods] + list(policies())


Way = tuple[Pod, Pod, int]
"""From whom, to whom, to which port."""


def state_of(resources: Iterable[Resource]) -> DesiredState:
    """Of the node on which all of them are."""
    cluster = Cluster("node1")
    cluster.put(made(Namespace, RED, labels={"kubernetes.io/metadata.name": RED}))
    for one in (*bootstrap("0" * 32), *resources):
        cluster.put(one)
    assert not cluster.problems
    return cluster.state()


def packet(way: Way) -> Packet:
    source, target, port = way
    return Packet(parse_ip(source.ip), parse_ip(target.ip), UDP, 40000, port)


def judged(state: DesiredState, way: Way) -> Verdict:
    """What policy means for it: the verdict of the pod that sends, if that forbids it; else that of the other."""
    contains = membership(lambda ref: state.sets[ref])
    out, into = (state.endpoints[pod.interface].policy for pod in way[:2])
    sending = judge(packet(way), out, "egress", contains)
    return judge(packet(way), into, "ingress", contains) if sending.allowed else sending


def ways(pods: Iterable[Pod]) -> list[Way]:
    """Between any two of them."""
    return [(a, b, port) for a, b in permutations(pods, 2) for port in PORTS]


def verdicts(resources: Iterable[Resource], pods: Iterable[Pod]) -> dict[Way, bool]:
    """Whether each of their ways is open."""
    state = state_of(resources)
    return {way: judged(state, way).allowed for way in ways(pods)}


def changed_policies() -> Iterator[Resource]:
    """Some of those of everybody, for other applications."""
    for i in range(0, 100, 2):
        rule = udp("Deny" if i % 3 else "Allow", i // 2, selector=f"{app(i + 5)} || {team(i)}")
        yield made(NetworkPolicy, f"w{i}", RED, spec={"order": 100 + i, "selector": "all()", "ingress": [rule]})
