"""What policy means, situation by situation: who may talk to whom, and which rule says so.

The cluster of every situation, dual stack:

    n1 10.0.0.1                                   n2 10.0.0.2                X 198.51.100.9
      red/a   10.244.1.10  app=web    http=8080     blue/d  10.244.2.10        outside
      red/b   10.244.1.11  app=db     pg=5432               app=client
      blue/c  10.244.1.12  app=web

The numbers P.. are those of the catalogue of Calico's packet-level situations that we keep to.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import pytest

from tortie.base.addr import parse_ip
from tortie.calc.cluster import Cluster
from tortie.calc.explain import Explainer, Explanation
from tortie.calc.workloads import endpoint_of_pod
from tortie.model.document import parse, read, shape
from tortie.model.k8s import K8sNetworkPolicy, Namespace, Pod
from tortie.model.meta import Resource
from tortie.model.policy import GlobalNetworkSet
from tortie.model.workload import WorkloadEndpoint, interface_name
from tortie.policy.translate import policy_of
from tortie.policy.verdict import Packet, Verdict, judge, membership

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
    4: {"X": "198.51.100.9", "n1": "10.0.0.1", "n2": "10.0.0.2", "e": "10.244.2.11"},
    6: {"X": "2001:db8:51::9", "n1": "fd00:10::1", "n2": "fd00:10::2", "e": "fd00:244:2::11"},
}
"""What is no pod: the outside, the nodes, and `e`, an address of n2's block that no pod has."""

TWIN = {
    "10.244.2.0/24": '"fd00:244:2::/64"',
    "10.244.2.10/32": '"fd00:244:2::10/128"',
    "198.51.100.0/24": '"2001:db8:51::/64"',
    "198.51.100.9/32": '"2001:db8:51::9/128"',
    "192.0.2.0/24": '"2001:db8:2::/64"',
    "0.0.0.0/0": '"::/0"',
    "10.0.0.1/32": '"fd00:10::1/128"',
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

KUBERNETES = [
    Situation("P01", [], [W("d", "a", 8080, ALLOW, RED_IN)]),
    Situation(
        "P02-P03 only the direction that is named is isolated",
        [knp(f"{ON_A}, policyTypes: [Ingress]")],
        [W("d", "a", 8080, DENY, EOT_IN), W("a", "X", 443, ALLOW, RED_OUT)],
    ),
    Situation(
        "P05 a podSelector means the policy's own namespace",
        [knp(f"{ON_A}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: client}}}}}}]}}]")],
        [W("d", "a", 8080, DENY, EOT_IN)],
    ),
    Situation(
        "P06-P07 both selectors of one peer must hold",
        [
            knp(
                f"{ON_A}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{team: blue}}}}, "
                "podSelector: {matchLabels: {app: client}}}]}]"
            )
        ],
        [W("d", "a", 8080, ALLOW, KNP0), W("c", "a", 8080, DENY, EOT_IN)],
    ),
    Situation(
        "P08 peers are alternatives",
        [
            knp(
                f"{ON_A}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{team: blue}}}}}}, "
                "{podSelector: {matchLabels: {app: db}}}]}]"
            )
        ],
        [W("c", "a", 80, ALLOW, KNP0), W("b", "a", 80, ALLOW, "knp/red/k|ingress|1")],
    ),
    Situation(
        "P09 ports without peers",
        [knp(f"{ON_A}, ingress: [{{ports: [{{protocol: TCP, port: 8080}}]}}]")],
        [
            W("d", "a", 8080, ALLOW, KNP0),
            W("d", "a", 8081, DENY, EOT_IN),
            W("d", "a", "udp 8080", DENY, EOT_IN),
            W("X", "a", 8080, ALLOW, KNP0),
        ],
    ),
    Situation(
        "P10 a range of ports",
        [knp(f"{ON_A}, ingress: [{{ports: [{{port: 8000, endPort: 8090}}]}}]")],
        [
            W("d", "a", 8000, ALLOW, KNP0),
            W("d", "a", 8085, ALLOW, KNP0),
            W("d", "a", 8090, ALLOW, KNP0),
            W("d", "a", 8091, DENY, EOT_IN),
            W("d", "a", 7999, DENY, EOT_IN),
        ],
    ),
    Situation(
        "P11 a named port",
        [knp(f"{ON_A}, ingress: [{{ports: [{{port: http}}]}}]")],
        [W("d", "a", 8080, ALLOW, KNP0), W("d", "a", 80, DENY, EOT_IN), W("d", "a", "udp 8080", DENY, EOT_IN)],
    ),
    Situation(
        "P12 ipBlock with an exception",
        [knp(f"{ON_A}, ingress: [{{from: [{{ipBlock: {{cidr: 10.244.2.0/24, except: [10.244.2.10/32]}}}}]}}]")],
        [W("d", "a", 80, DENY, EOT_IN), W("e", "a", 80, ALLOW, KNP0)],
    ),
    Situation(
        "P13 ipBlock of everything",
        [knp(f"{ON_A}, ingress: [{{from: [{{ipBlock: {{cidr: 0.0.0.0/0}}}}]}}]")],
        [W("X", "a", 8080, ALLOW, KNP0)],
    ),
    Situation(
        "P14 any namespace is not anybody",
        [knp(f"{ON_A}, ingress: [{{from: [{{namespaceSelector: {{}}}}]}}]")],
        [W("d", "a", 80, ALLOW, KNP0), W("X", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P15 egress only",
        [knp(f"{ON_A}, policyTypes: [Egress]")],
        [W("a", "X", 80, DENY, EOT_OUT), W("d", "a", 80, ALLOW, RED_IN)],
    ),
    Situation(
        "P16-P17 P112 the own host is not policed, another host is",
        [knp(f"{ON_A}, policyTypes: [Ingress]")],
        [W("n1", "a", 8080, ALLOW, "own host"), W("n2", "a", 8080, DENY, EOT_IN)],
    ),
    Situation(
        "P19 a protocol without a port",
        [knp(f"{ON_A}, ingress: [{{from: [{{podSelector: {{}}}}], ports: [{{protocol: UDP}}]}}]")],
        [
            W("b", "a", "udp 53", ALLOW, KNP0),
            W("b", "a", 53, DENY, EOT_IN),
            W("d", "a", "udp 53", DENY, EOT_IN),
            W("b", "a", "icmp", DENY, EOT_IN),
        ],
    ),
    Situation(
        "one rule per protocol, in sorted order, and per peer",
        [
            knp(
                f"{ON_A}, ingress: [{{from: [{{podSelector: {{}}}}, {{ipBlock: {{cidr: 198.51.100.0/24}}}}], "
                "ports: [{protocol: UDP, port: 53}, {port: 53}]}]"
            )
        ],
        [
            W("b", "a", 53, ALLOW, KNP0),
            W("X", "a", 53, ALLOW, "knp/red/k|ingress|1"),
            W("b", "a", "udp 53", ALLOW, "knp/red/k|ingress|2"),
            W("X", "a", "udp 53", ALLOW, "knp/red/k|ingress|3"),
        ],
    ),
    Situation(
        "egress peers and a named port of the destination",
        [
            knp(
                "podSelector: {matchExpressions: [{key: app, operator: In, values: [db, web]}]}, "
                "policyTypes: [Egress], "
                "egress: [{to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: pg}]}]"
            )
        ],
        [W("a", "b", 5432, ALLOW, RED_IN), W("a", "b", 5433, DENY, EOT_OUT), W("b", "a", 5432, DENY, EOT_OUT)],
    ),
    Situation(
        "NotIn holds of a missing label, DoesNotExist of nothing else",
        [
            knp(f"{ON_A}, ingress: [{{from: [{{podSelector: {{matchExpressions: [{{key: zone, operator: NotIn, "
                "values: [z1]}, {key: app, operator: Exists}]}}], ports: [{port: 80}]}, "
                "{from: [{podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}]}]")
        ],
        [W("b", "a", 80, ALLOW, KNP0), W("b", "a", 81, DENY, EOT_IN)],
    ),
]  # fmt: skip

ORDER = [
    Situation(
        "P21 the lower order first",
        [
            gnp(f"order: 10, selector: app == 'web', ingress: [{{action: Deny, {TCP8080}}}]"),
            np("order: 20, ingress: [{action: Allow}]"),
        ],
        [W("d", "a", 8080, DENY, GNP0), W("d", "a", 8081, ALLOW, NP0)],
    ),
    Situation(
        "P22 no order is last",
        [np("order: 10, ingress: [{action: Allow}]"), gnp("selector: all(), ingress: [{action: Deny}]")],
        [W("d", "a", 80, ALLOW, NP0)],
    ),
    Situation(
        "P23 a tie is broken by the name",
        [
            np("order: 100, ingress: [{action: Deny}]", name="aaa"),
            gnp("order: 100, selector: all(), ingress: [{action: Allow}]", name="zzz"),
        ],
        [W("d", "a", 80, DENY, "np/red/aaa|ingress|0")],
    ),
    Situation(
        "the tie is broken on `name/namespace/kind` as one text, where - comes before /",
        [
            np("order: 100, ingress: [{action: Deny}]", name="aaa"),
            gnp("order: 100, selector: all(), ingress: [{action: Allow}]", name="aaa-b"),
        ],
        [W("d", "a", 80, ALLOW, "gnp/aaa-b|ingress|0")],
    ),
    Situation(
        "P24 Kubernetes policies stand at order 1000, behind 900",
        [
            knp(f"{ON_A}, ingress: [{{ports: [{{port: 8080}}]}}]"),
            gnp(f"order: 900, ingress: [{{action: Deny, {TCP8080}}}]"),
        ],
        [W("d", "a", 8080, DENY, GNP0)],
    ),
    Situation(
        "P25 and before no order",
        [knp(f"{ON_A}, ingress: [{{ports: [{{port: 8080}}]}}]"), gnp(f"ingress: [{{action: Deny, {TCP8080}}}]")],
        [W("d", "a", 8080, ALLOW, KNP0)],
    ),
    Situation(
        "P26 Pass leads to the profiles, no match to the tier's Deny",
        [SEC, SEC_POLICY],
        [W("d", "a", 8080, ALLOW, RED_IN), W("d", "a", 9090, DENY, "end of sec, ingress")],
    ),
    Situation("P27 a tier that passes", [SEC_PASS, SEC_POLICY], [W("d", "a", 9090, ALLOW, RED_IN)]),
    Situation(
        "P28 a tier without a policy for the pod is not consulted",
        [SEC, gnp("tier: sec, selector: app == 'db', ingress: [{action: Deny}]")],
        [W("d", "a", 80, ALLOW, RED_IN), W("d", "b", 80, DENY, GNP0)],
    ),
    Situation(
        "a tier is consulted for a direction only if a policy has that direction",
        [SEC, gnp("tier: sec, selector: all(), types: [Egress], egress: [{action: Allow}]")],
        [W("d", "a", 80, ALLOW, RED_IN), W("a", "X", 80, ALLOW, f"gnp/g|{OUT}")],
    ),
    Situation(
        "P29 Pass in the last tier",
        [np(f"{CALICO_ON_A}, ingress: [{{action: Pass}}]")],
        [W("d", "a", 80, ALLOW, RED_IN)],
    ),
    Situation(
        "Pass skips the rest of its tier only",
        [
            SEC,
            gnp("tier: sec, order: 1, ingress: [{action: Pass}]", name="first"),
            gnp("tier: sec, order: 2, ingress: [{action: Deny}]", name="second"),
            np(f"{CALICO_ON_A}, ingress: [{{action: Allow, {TCP8080}}}]"),
        ],
        [W("d", "a", 8080, ALLOW, NP0), W("d", "a", 80, DENY, EOT_IN), W("d", "b", 80, ALLOW, RED_IN)],
    ),
    Situation(
        "Allow ends all tiers",
        [
            SEC,
            gnp(f"tier: sec, ingress: [{{action: Allow, {TCP8080}}}, {{action: Pass}}]"),
            np(f"{CALICO_ON_A}, ingress: [{{action: Deny}}]"),
        ],
        [W("d", "a", 8080, ALLOW, GNP0), W("d", "a", 80, DENY, NP0)],
    ),
    Situation(
        "tiers by order, then those without, then by name",
        [
            tier("zz", "order: 5"),
            tier("late", ""),
            tier("aa", "order: 7"),
            gnp("tier: zz, ingress: [{action: Pass, protocol: TCP}]", name="one"),
            gnp(f"tier: aa, ingress: [{{action: Allow, {TCP8080}}}, {{action: Pass}}]", name="two"),
            gnp("tier: late, ingress: [{action: Allow, protocol: TCP, destination: {ports: [81]}}]", name="three"),
            gnp("tier: default, ingress: [{action: Pass}]", name="four"),
        ],
        [
            W("d", "a", "udp 1", DENY, "end of zz, ingress"),
            W("d", "a", 8080, ALLOW, "gnp/two|ingress|0"),
            W("d", "a", 81, ALLOW, "gnp/three|ingress|0"),
            W("d", "a", 82, DENY, "end of late, ingress"),
        ],
    ),
    Situation(
        "P30-P31 Log decides nothing",
        [np(f"{CALICO_ON_A}, ingress: [{{action: Log}}, {{action: Allow, {TCP8080}}}]")],
        [W("d", "a", 80, DENY, EOT_IN), W("d", "a", 8080, ALLOW, NP1)],
    ),
    Situation(
        "P33 the next in the tier decides",
        [np(f"order: 2, {CALICO_ON_A}, ingress: [{{action: Allow}}]")],
        [W("d", "a", 80, ALLOW, NP0)],
    ),
    Situation(
        "P34 a tier that does not exist comes last and denies",
        [gnp(f"tier: ghost, ingress: [{{action: Allow, {TCP8080}}}]")],
        [W("d", "a", 8080, ALLOW, GNP0), W("d", "a", 9090, DENY, "end of ghost, ingress")],
    ),
    Situation(
        "P34 last means behind a tier without an order",
        [
            tier("late", ""),
            gnp("tier: ghost, ingress: [{action: Deny}]"),
            np("tier: late, ingress: [{action: Allow, protocol: TCP}, {action: Pass}]"),
        ],
        [W("d", "a", 80, ALLOW, NP0), W("d", "a", "udp 80", DENY, GNP0)],
    ),
    Situation(
        "P35 only egress rules",
        [np(f"{CALICO_ON_A}, egress: [{{action: Allow, {TCP8080}}}]")],
        [W("d", "a", 80, ALLOW, RED_IN), W("a", "b", 80, DENY, EOT_OUT), W("a", "b", 8080, ALLOW, RED_IN)],
    ),
    Situation(
        "P36 no rules at all",
        [np(CALICO_ON_A)],
        [W("d", "a", 80, DENY, EOT_IN), W("a", "X", 80, ALLOW, RED_OUT)],
    ),
    Situation(
        "P111 policies of host endpoints' own classes are no policies of pods",
        [
            gnp("preDNAT: true, applyOnForward: true, ingress: [{action: Deny}]", name="pre"),
            gnp("doNotTrack: true, applyOnForward: true, types: [Ingress, Egress]", name="raw"),
        ],
        [W("d", "a", 80, ALLOW, RED_IN), W("a", "X", 80, ALLOW, RED_OUT)],
    ),
    Situation(
        "applyOnForward alone is a policy of pods, too",
        [gnp("applyOnForward: true, selector: app == 'web', ingress: [{action: Deny}]")],
        [W("d", "a", 80, DENY, GNP0)],
    ),
]

PEERS = [
    Situation(
        "P44 all() means the known ones",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{selector: all()}}}}]")],
        [W("d", "a", 80, ALLOW, GNP0), W("X", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P45 notSelector alone takes in the unknown ones",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{notSelector: app == 'client'}}}}]")],
        [W("X", "a", 80, ALLOW, GNP0), W("b", "a", 80, ALLOW, GNP0), W("d", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P46 but in a namespaced policy only those of the namespace",
        [np(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{notSelector: app == 'client'}}}}]")],
        [
            W("b", "a", 80, ALLOW, NP0),
            W("X", "a", 80, DENY, EOT_IN),
            W("d", "a", 80, DENY, EOT_IN),
            W("c", "a", 80, DENY, EOT_IN),
        ],
    ),
    Situation(
        "P47 of any namespace",
        [
            np(
                f"{CALICO_ON_A}, ingress: [{{action: Allow, "
                "source: {selector: app == 'client', namespaceSelector: all()}}]"
            )
        ],
        [W("d", "a", 80, ALLOW, NP0), W("X", "a", 80, DENY, EOT_IN), W("c", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "a namespaceSelector alone",
        [np(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{namespaceSelector: team == 'blue'}}}}]")],
        [W("d", "a", 80, ALLOW, NP0), W("c", "a", 80, ALLOW, NP0), W("b", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "a namespaceSelector that negates",
        [np(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{namespaceSelector: \"!(team == 'blue')\"}}}}]")],
        [W("d", "a", 80, DENY, EOT_IN), W("b", "a", 80, ALLOW, NP0), W("X", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "all() inside a larger namespaceSelector, and as a text, is not rewritten blindly",
        [
            np(
                f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{namespaceSelector: "
                "\"all() && team != 'all()' && team != 'red'\"}}]"
            )
        ],
        [W("d", "a", 80, ALLOW, NP0), W("b", "a", 80, DENY, EOT_IN), W("X", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P48 a global network set",
        [BAD_SET, gnp("order: 1, ingress: [{action: Deny, source: {selector: bad == 'true'}}, {action: Allow}]")],
        [W("X", "a", 80, DENY, GNP0), W("d", "a", 80, ALLOW, "gnp/g|ingress|1")],
    ),
    Situation(
        "P49 a global set is in no namespace",
        [BAD_SET, np(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{selector: bad == 'true'}}}}]")],
        [W("X", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P50 which global() says",
        [
            BAD_SET,
            np(
                f"{CALICO_ON_A}, ingress: [{{action: Allow, "
                "source: {selector: bad == 'true', namespaceSelector: global()}}]"
            ),
        ],
        [W("X", "a", 80, ALLOW, NP0), W("d", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P51 a network set inherits its namespace's labels",
        [
            BLUE_SET,
            np(
                f"{CALICO_ON_A}, ingress: [{{action: Allow, "
                "source: {selector: p == 'q', namespaceSelector: team == 'blue'}}]"
            ),
        ],
        [W("X", "a", 80, ALLOW, NP0), W("d", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P51 and is a member of it",
        [BLUE_SET, np(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{selector: p == 'q'}}}}]")],
        [W("X", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "a network set of everything",
        [
            gns("world", "0.0.0.0/0", "net: world"),
            gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{selector: net == 'world'}}}}]"),
        ],
        [W("X", "a", 80, ALLOW, GNP0), W("d", "a", 80, ALLOW, GNP0)],
    ),
    Situation(
        "P53 the clauses of a rule must all hold",
        [
            gnp(
                f"{CALICO_ON_A}, ingress: [{{action: Allow, "
                "source: {nets: [10.244.2.0/24], selector: app == 'web'}}]"
            )
        ],
        [W("d", "a", 80, DENY, EOT_IN), W("c", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P54 ports are alternatives",
        [
            gnp(
                f"{CALICO_ON_A}, ingress: [{{action: Allow, protocol: TCP, "
                'destination: {ports: [80, "http", "9000:9010"]}}]'
            )
        ],
        [
            W("d", "a", 80, ALLOW, GNP0),
            W("d", "a", 8080, ALLOW, GNP0),
            W("d", "a", 9005, ALLOW, GNP0),
            W("d", "a", 81, DENY, EOT_IN),
            W("d", "a", "udp 80", DENY, EOT_IN),
        ],
    ),
    Situation(
        "a named port is that of the endpoints that the selector matches",
        [
            gnp(
                "selector: app == 'client', egress: [{action: Allow, protocol: TCP, "
                'destination: {selector: app == \'db\', ports: ["http", "pg"]}}]'
            )
        ],
        [
            W("d", "b", 5432, ALLOW, RED_IN),
            W("d", "a", 8080, DENY, EOT_OUT),
            W("d", "b", 8080, DENY, EOT_OUT),
        ],
    ),
    Situation(
        "with a number beside the name, the selector still holds",
        [
            gnp(
                "selector: app == 'client', egress: [{action: Allow, protocol: TCP, "
                'destination: {selector: app == \'db\', ports: [80, "pg"]}}]'
            )
        ],
        [W("d", "b", 80, ALLOW, RED_IN), W("d", "a", 80, DENY, EOT_OUT), W("d", "b", 5432, ALLOW, RED_IN)],
    ),
    Situation(
        "a named port without a protocol is that of any protocol that declares it",
        [gnp(f'{CALICO_ON_A}, ingress: [{{action: Allow, destination: {{ports: ["http"]}}}}]')],
        [W("d", "a", 8080, ALLOW, GNP0), W("d", "a", "udp 8080", DENY, EOT_IN)],
    ),
    Situation(
        "notPorts: none of the ranges and none of the named",
        [
            gnp(
                f"{CALICO_ON_A}, ingress: [{{action: Allow, protocol: TCP, "
                'destination: {notPorts: [80, "http", "9000:9010"]}}]'
            )
        ],
        [
            W("d", "a", 80, DENY, EOT_IN),
            W("d", "a", 8080, DENY, EOT_IN),
            W("d", "a", 9010, DENY, EOT_IN),
            W("d", "a", 9011, ALLOW, GNP0),
        ],
    ),
    Situation(
        "ports of the source",
        [gnp(f'{CALICO_ON_A}, ingress: [{{action: Allow, protocol: TCP, source: {{ports: ["39999:40001"]}}}}]')],
        [W("d", "a", 1, ALLOW, GNP0), W("d", "a", "udp 1", DENY, EOT_IN)],
    ),
    Situation(
        "notNets",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{notNets: [10.244.2.0/24]}}}}]")],
        [W("d", "a", 1, DENY, EOT_IN), W("c", "a", 1, ALLOW, GNP0), W("X", "a", 1, ALLOW, GNP0)],
    ),
    Situation(
        "selector and notSelector of one end are one set",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{selector: has(app), notSelector: app == 'db'}}}}]")],
        [W("d", "a", 1, ALLOW, GNP0), W("b", "a", 1, DENY, EOT_IN), W("X", "a", 1, DENY, EOT_IN)],
    ),
    Situation(
        "P55 service accounts by name are those of the namespace",
        [np("selector: app == 'db', ingress: [{action: Allow, source: {serviceAccounts: {names: [web-sa]}}}]")],
        [W("a", "b", 80, ALLOW, NP0), W("c", "b", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P56 service accounts by label",
        [
            gnp(
                "selector: app == 'db', ingress: [{action: Allow, "
                "source: {serviceAccounts: {selector: tier == 'front'}}}]"
            )
        ],
        [W("a", "b", 80, ALLOW, GNP0), W("c", "b", 80, DENY, EOT_IN)],
    ),
    Situation(
        "service account names and selector must both hold",
        [
            gnp(
                "selector: app == 'db', ingress: [{action: Allow, "
                "source: {serviceAccounts: {names: [default, web-sa], selector: tier == 'front'}}}]"
            )
        ],
        [W("a", "b", 80, ALLOW, GNP0), W("c", "b", 80, DENY, EOT_IN), W("d", "b", 80, DENY, EOT_IN)],
    ),
    Situation(
        "serviceAccountSelector says to which pods a policy applies",
        [gnp("serviceAccountSelector: tier == 'front', ingress: [{action: Deny}]")],
        [W("d", "a", 80, DENY, GNP0), W("d", "b", 80, ALLOW, RED_IN), W("d", "c", 80, ALLOW, BLUE_IN)],
    ),
    Situation(
        "namespaceSelector of a global policy says so by namespace",
        [gnp("namespaceSelector: team == 'red', selector: app == 'web', ingress: [{action: Deny}]")],
        [W("d", "a", 80, DENY, GNP0), W("d", "b", 80, ALLOW, RED_IN), W("d", "c", 80, ALLOW, BLUE_IN)],
    ),
    Situation(
        "P60 notProtocol",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, notProtocol: TCP}}]")],
        [W("d", "a", "udp 80", ALLOW, GNP0), W("d", "a", 80, DENY, EOT_IN), W("d", "a", "icmp", ALLOW, GNP0)],
    ),
    Situation(
        "P59 an ICMP rule is one of its family",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, protocol: ICMP, icmp: {{type: 8}}}}]")],
        [W("d", "a", "icmp", ALLOW, GNP0)],
    ),
    Situation(
        "P59 so ping6 does not match IPv4's",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, protocol: 1, icmp: {{type: 8, code: 0}}}}]")],
        [W("d", "a", "icmp", DENY, EOT_IN)],
        (6,),
    ),
    Situation(
        "P61 ipVersion of the other family",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, ipVersion: 6}}]")],
        [W("d", "a", 80, DENY, EOT_IN)],
        (4,),
    ),
    Situation(
        "P62 networks of the other family make the rule one of that family",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{nets: ['2001:db8::/32']}}}}]")],
        [W("d", "a", 80, DENY, EOT_IN), W("X", "a", 80, DENY, EOT_IN)],
        (4,),
    ),
    Situation(
        "P63 HTTP is not the kernel's to ask",
        [
            np(
                f"{CALICO_ON_A}, ingress: [{{action: Allow, protocol: TCP, "
                "http: {methods: [GET], paths: [{prefix: /public}]}}]"
            )
        ],
        [W("d", "a", 8080, ALLOW, NP0)],
    ),
]  # fmt: skip

HOST = [
    Situation("P74 a pod to its own host", [], [W("a", "n1", 10250, DENY, "input")]),
    Situation(
        "P74 when the operator accepts it",
        [felix("defaultEndpointToHostAction: Accept")],
        [W("a", "n1", 10250, ALLOW, RED_OUT)],
    ),
    Situation(
        "P75 or leaves it to the host",
        [felix("defaultEndpointToHostAction: Return")],
        [W("a", "n1", 10250, ALLOW, RED_OUT)],
    ),
    Situation(
        "P76 the pod's egress policy comes first",
        [
            felix("defaultEndpointToHostAction: Accept"),
            np(f"{CALICO_ON_A}, egress: [{{action: Deny, destination: {{nets: [10.0.0.1/32]}}}}, {{action: Allow}}]"),
        ],
        [W("a", "n1", 22, DENY, f"np/red/n|{OUT}"), W("a", "n2", 22, ALLOW, "np/red/n|egress|1")],
    ),
    Situation("another host is an ordinary destination", [], [W("d", "n1", 22, ALLOW, BLUE_OUT)]),
]

SITUATIONS = [*KUBERNETES, *ORDER, *PEERS, *HOST]


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
    return step.rule or ("own host" if step.hook == "ingress" else step.hook)


CASES = [
    pytest.param(situation, version, id=f"{situation.id} IPv{version}")
    for situation in SITUATIONS
    for version in situation.versions
]


@pytest.mark.parametrize(("situation", "version"), CASES)
def test_situation(situation: Situation, version: int) -> None:
    cluster = cluster_of([*base(), *documents(situation.objects, version)])
    for way in situation.ways:
        explanation = explained(cluster, way.source, way.destination, way.what, version)
        found = explanation.allowed, decider(explanation)
        assert found == (way.allowed, way.by), f"{way}: {[str(step) for step in explanation.steps]}"


# --- situations in time, and what packets alone do not say ---------------------------------------------------------


def judged(cluster: Cluster, pod: str, direction: str, packet: Packet) -> Verdict:
    state = cluster.state()
    interface = f"cali00000000{pod}"
    contains = membership(lambda ref: state.sets[ref])
    return judge(packet, state.endpoints[interface].policy, direction, contains)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [4, 6])
def test_p43_a_profile_that_is_not_known_denies(version: int) -> None:
    cluster = cluster_of(base())
    cluster.drop(Namespace, "", "red")
    explanation = explained(cluster, "d", "a", 8080, version)
    assert (explanation.allowed, decider(explanation)) == (False, "no profile, ingress")
    assert "kns.red" in explanation.decisive.reason
    cluster.put(parse(NODES)[0])
    assert explained(cluster, "d", "a", 8080, version).allowed


def test_a_pod_without_profiles_is_closed_and_default_allow_opens() -> None:
    endpoint = parse(PODS)[0]
    for profiles, allowed in (((), False), (("projectcalico-default-allow",), True)):
        changed = parse(PODS.replace("[kns.red, ksa.red.web-sa]", f"[{', '.join(profiles)}]"))[0]
        assert changed != endpoint
        cluster = cluster_of([*parse(NODES), *parse(PODS), changed])
        assert explained(cluster, "d", "a", 80, 4).allowed is allowed


def test_profiles_are_asked_in_the_order_listed() -> None:
    deny80 = calico("Profile", "p1", "ingress: [{action: Deny, protocol: TCP, destination: {ports: [80]}}]")
    allow = calico("Profile", "p2", "ingress: [{action: Allow, protocol: TCP}]")
    for listed, by in (("p1, p2", "profile/p1|ingress|0"), ("p2, p1", "profile/p2|ingress|0")):
        pods = parse(PODS.replace("[kns.red, ksa.red.web-sa]", f"[{listed}]"))
        cluster = cluster_of([*parse(NODES), *pods, *parse(f"{deny80}\n---\n{allow}")])
        assert decider(explained(cluster, "d", "a", 80, 4)) == by
        assert decider(explained(cluster, "d", "a", 81, 4)) == "profile/p2|ingress|0"
        assert decider(explained(cluster, "d", "a", "udp 80", 4)) == "no profile, ingress"


def test_an_endpoints_own_label_wins_over_its_profiles() -> None:
    profile = calico("Profile", "p1", "labelsToApply: {app: other, zone: z1}")
    pods = parse(PODS.replace("[kns.red, ksa.red.web-sa]", "[p1, kns.red]"))
    policy = gnp("selector: app == 'web' && zone == 'z1', ingress: [{action: Deny}]")
    cluster = cluster_of([*parse(NODES), *pods, *parse(f"{profile}\n---\n{policy}")])
    assert decider(explained(cluster, "d", "a", 80, 4)) == GNP0


@pytest.mark.parametrize("version", [4, 6])
def test_p52_an_address_stays_in_a_set_as_long_as_one_object_brings_it(version: int) -> None:
    allow = gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{selector: bad == 'true'}}}}]")
    objects = [BAD_SET, gns("one", "198.51.100.9/32", "bad: 'true'"), gns("two", "198.51.100.9/32", "bad: 'true'")]
    cluster = cluster_of([*base(), *documents([*objects, allow], version)])
    for gone, allowed in (("one", True), ("ext", True), ("two", False)):
        cluster.drop(GlobalNetworkSet, "", gone)
        assert explained(cluster, "X", "a", 80, version).allowed is allowed, gone


@pytest.mark.parametrize(
    ("kind", "code", "allowed"), [(8, 0, True), (8, 1, False), (13, 0, True), (13, 1, True), (0, 1, True)]
)
def test_not_icmp_excludes_the_type_with_the_code_only(kind: int, code: int, allowed: bool) -> None:
    """Quirk Q3, in iptables' sense: NOT (type and code)."""
    policy = gnp("ingress: [{action: Allow, protocol: ICMP, notICMP: {type: 8, code: 1}}]")
    cluster = cluster_of([*base(), *parse(policy)])
    packet = Packet(parse_ip("10.244.2.10"), parse_ip("10.244.1.10"), 1, icmp_type=kind, icmp_code=code)
    assert judged(cluster, "a", "ingress", packet).allowed is allowed


@pytest.mark.parametrize(("kind", "allowed"), [(8, True), (13, False)])
def test_p59_the_type_of_icmp(kind: int, allowed: bool) -> None:
    cluster = cluster_of([*base(), *parse(gnp("ingress: [{action: Allow, protocol: ICMP, icmp: {type: 8}}]"))])
    packet = Packet(parse_ip("10.244.2.10"), parse_ip("10.244.1.10"), 1, icmp_type=kind)
    assert judged(cluster, "a", "ingress", packet).allowed is allowed


GOOD_RULE = {"ports": [{"port": 8080}]}
BAD_RULES = {
    "cidr": {"from": [{"ipBlock": {"cidr": "10.0.0.0/99"}}]},
    "except": {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["nonsense"]}}]},
    "label": {"from": [{"podSelector": {"matchLabels": {"not a label!": "x"}}}]},
    "protocol": {"ports": [{"protocol": "HOPOPT", "port": 80}]},
}


@pytest.mark.parametrize("bad", BAD_RULES)
def test_p20_a_rule_that_cannot_be_converted_is_left_out_and_no_other(bad: str) -> None:
    """Such a rule is refused on admission; a datastore that others write to may hold it all the same."""
    body = {
        "metadata": {"name": "k", "namespace": "red"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [BAD_RULES[bad], GOOD_RULE]},
    }
    policy = shape(K8sNetworkPolicy, body)
    cluster = cluster_of([*base(), policy])
    assert explained(cluster, "d", "a", 8080, 4).allowed
    assert decider(explained(cluster, "d", "a", 80, 4)) == EOT_IN
    assert len(policy_of(policy).ingress) == 1


def test_a_policy_that_cannot_be_read_counts_as_absent_and_is_reported() -> None:
    cluster = cluster_of(base())
    cluster.put(parse(np("selector: all(), ingress: [{action: Deny}]"))[0])
    assert not explained(cluster, "d", "a", 80, 4).allowed
    document = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "NetworkPolicy",
        "metadata": {"name": "n", "namespace": "red"},
        "spec": {"selector": "app = 'web'"},
    }
    cluster.put(read(document))
    assert list(cluster.problems) == ["NetworkPolicy red/n"]
    assert explained(cluster, "d", "a", 80, 4).allowed


@pytest.mark.parametrize("version", [4, 6])
def test_p102_where_the_source_address_is_replaced(version: int) -> None:
    cluster = cluster_of(base())

    def replaced(source: str, destination: str) -> bool:
        steps = explained(cluster, source, destination, 80, version).steps
        return any(step.hook == "postrouting" for step in steps)

    assert replaced("a", "X")
    assert replaced("a", "n2")
    assert not replaced("a", "d")
    assert not replaced("X", "a")


def test_the_endpoint_of_a_pod_is_what_a_datastore_holds() -> None:
    """The endpoints above are what a Pod becomes when it is attached."""
    pod = parse(
        """
        apiVersion: v1
        kind: Pod
        metadata: {name: a, namespace: red, labels: {app: web, pcns.team: forged, pcsa.tier: forged}}
        spec:
          serviceAccountName: web-sa
          containers:
          - {name: main, ports: [{name: http, containerPort: 8080}, {containerPort: 9}]}
        """
    )[0]
    assert isinstance(pod, Pod)
    ips = (parse_ip("10.244.1.10"), parse_ip("fd00:244:1::10"))
    made = endpoint_of_pod(
        pod, node="n1", container_id="c-a", interface="cali00000000a", mac="02:00:00:00:00:0a", ips=ips
    )
    expected = parse(PODS)[0]
    assert isinstance(expected, WorkloadEndpoint)
    assert made == expected
    assert interface_name("default", "nginx") == "calic440f455693"
