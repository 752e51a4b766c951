"""The cluster in which the situations of policy happen, and how they are told. Dual stack:

    n1 10.0.0.1                                   n2 10.0.0.2                X 198.51.100.9
      red/a   10.244.1.10  app=web    http=8080     blue/d  10.244.2.10        outside
      red/b   10.244.1.11  app=db     pg=5432               app=client
      blue/c  10.244.1.12  app=web

The numbers P.. of situations are those of the catalogue of Calico's packet-level situations that we keep to.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import pytest

from tortie.calc.cluster import Cluster
from tortie.calc.explain import Explainer, Explanation
from tortie.model.document import parse
from tortie.model.meta import Resource
from tortie.policy.rules import Direction
from tortie.policy.verdict import Contains, EndpointPolicy, Packet, Verdict, judge, membership

NODES = """
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: red, labels: {team: red}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: blue, labels: {team: blue}}}
- {apiVersion: v1, kind: ServiceAccount, metadata: {name: web-sa, namespace: red, labels: {tier: front}}}
- {apiVersion: v1, kind: ServiceAccount, metadata: {name: web-sa, namespace: blue}}
- {apiVersion: v1, kind: ServiceAccount, metadata: {name: default, namespace: red}}
- {apiVersion: v1, kind: ServiceAccount, metadata: {name: default, namespace: blue}}
- apiVersion: projectcalico.org/v3
  kind: Node
  metadata: {name: n1}
  spec: {bgp: {ipv4Address: 10.0.0.1/24, ipv6Address: "fd00:10::1/64"}}
- apiVersion: projectcalico.org/v3
  kind: Node
  metadata: {name: n2}
  spec: {bgp: {ipv4Address: 10.0.0.2/24, ipv6Address: "fd00:10::2/64"}}
- apiVersion: projectcalico.org/v3
  kind: IPPool
  metadata: {name: pool4}
  spec: {cidr: 10.244.0.0/16, vxlanMode: Always, natOutgoing: true}
- apiVersion: projectcalico.org/v3
  kind: IPPool
  metadata: {name: pool6}
  spec: {cidr: "fd00:244::/32", vxlanMode: Always, natOutgoing: true}
"""

PODS = """
apiVersion: v1
kind: List
items:
- apiVersion: projectcalico.org/v3
  kind: WorkloadEndpoint
  metadata:
    name: n1-k8s-a-eth0
    namespace: red
    labels:
      app: web
      projectcalico.org/namespace: red
      projectcalico.org/orchestrator: k8s
      projectcalico.org/serviceaccount: web-sa
  spec:
    orchestrator: k8s
    node: n1
    containerID: c-a
    pod: a
    endpoint: eth0
    serviceAccountName: web-sa
    ipNetworks: [10.244.1.10/32, "fd00:244:1::10/128"]
    profiles: [kns.red, ksa.red.web-sa]
    interfaceName: cali00000000a
    mac: 02:00:00:00:00:0a
    ports: [{name: http, protocol: TCP, port: 8080}]
- apiVersion: projectcalico.org/v3
  kind: WorkloadEndpoint
  metadata:
    name: n1-k8s-b-eth0
    namespace: red
    labels:
      app: db
      projectcalico.org/namespace: red
      projectcalico.org/orchestrator: k8s
      projectcalico.org/serviceaccount: default
  spec:
    orchestrator: k8s
    node: n1
    pod: b
    endpoint: eth0
    ipNetworks: [10.244.1.11/32, "fd00:244:1::11/128"]
    profiles: [kns.red, ksa.red.default]
    interfaceName: cali00000000b
    ports: [{name: pg, protocol: TCP, port: 5432}]
- apiVersion: projectcalico.org/v3
  kind: WorkloadEndpoint
  metadata:
    name: n1-k8s-c-eth0
    namespace: blue
    labels:
      app: web
      projectcalico.org/namespace: blue
      projectcalico.org/orchestrator: k8s
      projectcalico.org/serviceaccount: web-sa
  spec:
    orchestrator: k8s
    node: n1
    pod: c
    endpoint: eth0
    ipNetworks: [10.244.1.12/32, "fd00:244:1::12/128"]
    profiles: [kns.blue, ksa.blue.web-sa]
    interfaceName: cali00000000c
- apiVersion: projectcalico.org/v3
  kind: WorkloadEndpoint
  metadata:
    name: n2-k8s-d-eth0
    namespace: blue
    labels:
      app: client
      projectcalico.org/namespace: blue
      projectcalico.org/orchestrator: k8s
      projectcalico.org/serviceaccount: default
  spec:
    orchestrator: k8s
    node: n2
    pod: d
    endpoint: eth0
    ipNetworks: [10.244.2.10/32, "fd00:244:2::10/128"]
    profiles: [kns.blue, ksa.blue.default]
    interfaceName: cali00000000d
"""

CAST = {"a": "red/a", "b": "red/b", "c": "blue/c", "d": "blue/d"}
PLACES = {
    4: {"X": "198.51.100.9", "n1": "10.0.0.1", "n2": "10.0.0.2", "t2": "10.244.2.0", "e": "10.244.2.11"},
    6: {"X": "2001:db8:51::9", "n1": "fd00:10::1", "n2": "fd00:10::2", "t2": "fd00:244:2::", "e": "fd00:244:2::11"},
}
"""What is no pod: the outside, the nodes, n2's end of a tunnel, and `e`, an address of n2's block that no pod has."""

TWIN = {
    "10.244.2.0/24": '"fd00:244:2::/64"',
    "10.244.2.10/32": '"fd00:244:2::10/128"',
    "198.51.100.0/24": '"2001:db8:51::/64"',
    "198.51.100.9/32": '"2001:db8:51::9/128"',
    "192.0.2.0/24": '"2001:db8:2::/64"',
    "0.0.0.0/0": '"::/0"',
    "10.0.0.1/32": '"fd00:10::1/128"',
    "10.0.0.2/32": '"fd00:10::2/128"',
    "protocol: ICMP,": "protocol: ICMPv6,",
    "type: 8}": "type: 128}",
}
"""What a policy about IPv4 says about IPv6."""

ALLOW, DENY = True, False


def knp(spec: str, name: str = "k", namespace: str = "red") -> str:
    head = f"apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: {namespace}}}"
    return f"{{{head}, spec: {{{spec}}}}}"


def calico(kind: str, name: str, spec: str, metadata: str = "") -> str:
    return f"{{apiVersion: projectcalico.org/v3, kind: {kind}, metadata: {{name: {name}{metadata}}}, spec: {{{spec}}}}}"


def np(spec: str, name: str = "n", namespace: str = "red") -> str:
    return calico("NetworkPolicy", name, spec, f", namespace: {namespace}")


def gnp(spec: str, name: str = "g") -> str:
    return calico("GlobalNetworkPolicy", name, spec)


def tier(name: str, spec: str) -> str:
    return calico("Tier", name, spec)


def gns(name: str, nets: str, labels: str) -> str:
    return calico("GlobalNetworkSet", name, f"nets: [{nets}]", f", labels: {{{labels}}}")


def felix(spec: str, name: str = "default") -> str:
    return calico("FelixConfiguration", name, spec)


class Way(NamedTuple):
    """One first packet, what becomes of it, and who decides: a rule's name, or what `decider` calls the rest."""

    source: str
    destination: str
    what: int | str
    allowed: bool
    by: str


class Situation(NamedTuple):
    id: str
    objects: list[str]
    ways: list[Way]
    versions: tuple[int, ...] = (4, 6)


def W(source: str, destination: str, what: int | str, allowed: bool, by: str) -> Way:
    """`what` is a TCP port, or `udp 53`, or `icmp`."""
    return Way(source, destination, what, allowed, by)


ON_A = "podSelector: {matchLabels: {app: web}}"
CALICO_ON_A = "selector: app == 'web' && projectcalico.org/namespace == 'red'"
TCP8080 = "protocol: TCP, destination: {ports: [8080]}"
SEC = tier("sec", "order: 100")
SEC_PASS = tier("sec", "order: 100, defaultAction: Pass")
SEC_POLICY = gnp(f"tier: sec, selector: all(), ingress: [{{action: Pass, {TCP8080}}}]")
BAD_SET = gns("ext", "198.51.100.0/24", "bad: 'true'")
BLUE_SET = calico(
    "NetworkSet", "partner", "nets: [198.51.100.9/32]", ", namespace: blue, labels: {p: q}"
)  # labels of its own; those of the namespace it inherits

IN, OUT = "ingress|0", "egress|0"
RED_IN, RED_OUT = f"profile/kns.red|{IN}", f"profile/kns.red|{OUT}"
BLUE_IN, BLUE_OUT = f"profile/kns.blue|{IN}", f"profile/kns.blue|{OUT}"
KNP0, NP0, NP1, GNP0 = f"knp/red/k|{IN}", f"np/red/n|{IN}", "np/red/n|ingress|1", f"gnp/g|{IN}"
EOT_IN, EOT_OUT = "end of default, ingress", "end of default, egress"


def cluster_of(objects: Iterable[Resource]) -> Cluster:
    cluster = Cluster(node=None)
    for resource in objects:
        cluster.put(resource)
    assert not cluster.problems
    return cluster


@cache
def base() -> tuple[Resource, ...]:
    return (*parse(NODES), *parse(PODS))


def documents(objects: Iterable[str], version: int) -> list[Resource]:
    """The YAML of a situation as resources, said about IPv4 or IPv6."""
    text = "\n---\n".join(objects)
    if version == 6:
        for literal, twin in TWIN.items():
            text = text.replace(literal, twin)
    return parse(text)


def explained(cluster: Cluster, source: str, destination: str, what: int | str, version: int) -> Explanation:
    explainer = Explainer(cluster)
    ends = [explainer.party(CAST.get(name) or PLACES[version][name]) for name in (source, destination)]
    protocol, _, port = f"tcp {what}".partition(" ") if isinstance(what, int) else what.partition(" ")
    return explainer.explain(ends[0], ends[1], protocol, int(port or 0), version)


def decider(explanation: Explanation) -> str:
    """Who had the last word: the denial, or else the last policy that was asked."""
    asked = [step for step in explanation.steps if step.hook in ("ingress", "egress")]
    step = asked[-1] if explanation.allowed else explanation.decisive
    if step.rule.startswith("tier/"):
        return f"end of {step.tier}, {step.hook}"
    if step.rule.startswith("no-profile|"):
        return f"no profile, {step.hook}"
    if step.hook == "input":
        return step.hook
    return step.rule or ("own host" if step.hook == "ingress" else step.hook)


def cases(situations: Iterable[Situation]) -> list[Any]:
    """For `parametrize`: every situation, in every IP version that it is about."""
    every = ((situation, version) for situation in situations for version in situation.versions)
    return [pytest.param(situation, version, id=f"{situation.id} IPv{version}") for situation, version in every]


def check(situation: Situation, version: int) -> None:
    """Everything goes the way that the situation says."""
    cluster = cluster_of([*base(), *documents(situation.objects, version)])
    for way in situation.ways:
        explanation = explained(cluster, way.source, way.destination, way.what, version)
        found = explanation.allowed, decider(explanation)
        assert found == (way.allowed, way.by), f"{way}: {[str(step) for step in explanation.steps]}"


def consulted(cluster: Cluster, pod: str) -> tuple[EndpointPolicy, Contains]:
    """What a pod's endpoint consults, and who is in which set."""
    state = cluster.state()
    return state.endpoints[f"cali00000000{pod}"].policy, membership(lambda ref: state.sets[ref])


def judged(cluster: Cluster, pod: str, direction: Direction, packet: Packet) -> Verdict:
    endpoint, contains = consulted(cluster, pod)
    return judge(packet, endpoint, direction, contains)
