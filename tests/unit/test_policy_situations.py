"""What policy means, situation by situation: who may talk to whom, and which rule says so. Kubernetes' policies, order,
tiers, and the own host.
"""

from __future__ import annotations

import pytest
from situations import (
    ALLOW,
    BLUE_OUT,
    CALICO_ON_A,
    DENY,
    EOT_IN,
    EOT_OUT,
    GNP0,
    KNP0,
    NP0,
    NP1,
    ON_A,
    OUT,
    RED_IN,
    RED_OUT,
    SEC,
    SEC_PASS,
    SEC_POLICY,
    TCP8080,
    Situation,
    W,
    cases,
    check,
    felix,
    gnp,
    knp,
    np,
    tier,
)

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
        "P18 and what comes through its tunnel is not from the address that it is known by",
        [knp(f"{ON_A}, ingress: [{{from: [{{ipBlock: {{cidr: 10.0.0.2/32}}}}]}}]")],
        [W("n2", "a", 80, ALLOW, KNP0), W("t2", "a", 80, DENY, EOT_IN)],
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


@pytest.mark.parametrize(("situation", "version"), cases([*KUBERNETES, *ORDER, *HOST]))
def test_situation(situation: Situation, version: int) -> None:
    check(situation, version)
