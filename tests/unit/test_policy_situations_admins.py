"""What policy means, situation by situation: what administrators say before and after everybody else, and services."""

from __future__ import annotations

import pytest
from situations import (
    ALLOW,
    CALICO_ON_A,
    DENY,
    EOT_IN,
    EOT_OUT,
    IN,
    KNP0,
    ON_A,
    OUT,
    RED_IN,
    RED_OUT,
    Situation,
    W,
    base,
    cases,
    check,
    cluster_of,
    decider,
    explained,
    gnp,
    knp,
    np,
)

from tortie.calc.defaults import defaulted
from tortie.model.clusterpolicy import ClusterNetworkPolicy
from tortie.model.document import parse, shape
from tortie.policy.translate import policy_of


def cnp(tier: str, priority: int, subject: str, rules: str, name: str = "c") -> str:
    head = f"apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: {name}}}"
    return f"{{{head}, spec: {{tier: {tier}, priority: {priority}, subject: {subject}, {rules}}}}}"


RED = "{namespaces: {matchLabels: {team: red}}}"
FROM_BLUE = "from: [{namespaces: {matchLabels: {team: blue}}}]"
TO_BLUE = "to: [{namespaces: {matchLabels: {team: blue}}}]"
EVERYBODY = "from: [{namespaces: {}}]"
OPEN_8080 = knp(f"{ON_A}, ingress: [{{ports: [{{port: 8080}}]}}]")
CLOSED = knp(f"{ON_A}, policyTypes: [Ingress]")
CNP0 = f"kcnp/c|{IN}"

ADMINS = [
    Situation(
        "P37 an administrator's Deny comes before what a namespace allows",
        [cnp("Admin", 10, RED, f"ingress: [{{action: Deny, {FROM_BLUE}}}]"), OPEN_8080],
        [W("d", "a", 8080, DENY, CNP0), W("b", "a", 8080, ALLOW, KNP0), W("b", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P38 and an administrator's Accept before what it denies",
        [cnp("Admin", 10, RED, f"ingress: [{{action: Accept, {FROM_BLUE}}}]"), CLOSED],
        [W("d", "a", 80, ALLOW, CNP0), W("b", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P39 Pass leaves it to the namespace",
        [
            cnp("Admin", 10, RED, f"ingress: [{{action: Pass, {FROM_BLUE}}}, {{action: Deny, {EVERYBODY}}}]"),
            OPEN_8080,
        ],
        [
            W("d", "a", 8080, ALLOW, KNP0),
            W("d", "a", 80, DENY, EOT_IN),
            W("d", "b", 80, ALLOW, RED_IN),
            W("b", "a", 8080, DENY, "kcnp/c|ingress|1"),
        ],
    ),
    Situation(
        "P40 a baseline holds where a namespace says nothing",
        [cnp("Baseline", 10, RED, f"ingress: [{{action: Deny, {EVERYBODY}}}]"), OPEN_8080],
        [W("d", "a", 8080, ALLOW, KNP0), W("d", "b", 80, DENY, CNP0), W("d", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P41 and nowhere else",
        [cnp("Baseline", 10, RED, f"ingress: [{{action: Accept, {EVERYBODY}}}]"), CLOSED],
        [W("d", "a", 80, DENY, EOT_IN), W("d", "b", 80, ALLOW, CNP0)],
    ),
    Situation(
        "the lower priority first, whatever the names",
        [
            cnp("Admin", 2, RED, f"ingress: [{{action: Accept, {FROM_BLUE}}}]", "aaa"),
            cnp("Admin", 1, RED, f"ingress: [{{action: Deny, {FROM_BLUE}}}]", "zzz"),
        ],
        [W("d", "a", 80, DENY, f"kcnp/zzz|{IN}")],
    ),
    Situation(
        "no rule of an administrator isolates nobody, and one direction says nothing about the other",
        [cnp("Admin", 1, RED, f"egress: [{{action: Deny, {TO_BLUE}}}]"), cnp("Admin", 2, RED, "", "none")],
        [W("d", "a", 80, ALLOW, RED_IN), W("a", "d", 80, DENY, f"kcnp/c|{OUT}"), W("a", "X", 80, ALLOW, RED_OUT)],
    ),
    Situation(
        "pods by their labels and those of their namespace",
        [
            cnp(
                "Admin",
                1,
                "{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}",
                "ingress: [{action: Deny, name: no-clients, from: [{pods: {namespaceSelector: {matchLabels: "
                "{team: blue}}, podSelector: {matchLabels: {app: client}}}}]}]",
            )
        ],
        [W("d", "a", 80, DENY, CNP0), W("d", "c", 80, DENY, CNP0), W("c", "a", 80, ALLOW, RED_IN)],
    ),
    Situation(
        "networks, which take in whoever is there",
        [cnp("Admin", 1, RED, "egress: [{action: Deny, to: [{networks: [10.244.2.0/24, 198.51.100.0/24]}]}]")],
        [
            W("a", "X", 80, DENY, f"kcnp/c|{OUT}"),
            W("a", "d", 80, DENY, f"kcnp/c|{OUT}"),
            W("a", "b", 80, ALLOW, RED_IN),
        ],
    ),
    Situation(
        "a rule by protocol, number, range and name; ports by name are of any protocol",
        [
            cnp(
                "Admin",
                1,
                RED,
                f"ingress: [{{action: Deny, {FROM_BLUE}, protocols: [{{destinationNamedPort: pg}}, {{udp: {{}}}}, "
                "{tcp: {destinationPort: {number: 80}}}, {tcp: {destinationPort: {range: {start: 90, end: 99}}}}]}]",
            )
        ],
        [
            W("d", "a", 80, DENY, CNP0),
            W("d", "a", 95, DENY, CNP0),
            W("d", "a", 100, ALLOW, RED_IN),
            W("d", "a", "udp 1", DENY, "kcnp/c|ingress|1"),
            W("d", "b", 5432, DENY, "kcnp/c|ingress|2"),
            W("d", "a", 5432, ALLOW, RED_IN),
        ],
    ),
    Situation(
        "P42 a Deny that cannot be converted denies all of its direction",
        [cnp("Admin", 1, RED, "egress: [{action: Deny, to: [{domainNames: [example.com]}]}]")],
        [
            W("a", "X", 80, DENY, f"kcnp/c|{OUT}"),
            W("a", "d", 80, DENY, f"kcnp/c|{OUT}"),
            W("d", "a", 80, ALLOW, RED_IN),
        ],
    ),
    Situation(
        "P42 and so does a Pass",
        [cnp("Admin", 1, RED, "egress: [{action: Pass, to: [{namespaces: {}}, {nodes: {}}]}]")],
        [W("a", "d", 80, DENY, f"kcnp/c|{OUT}")],
    ),
    Situation(
        "P42 an Accept accepts nothing, and what follows holds",
        [
            cnp(
                "Admin",
                1,
                RED,
                "egress: [{action: Accept, to: [{domainNames: [example.com]}]}, "
                "{action: Deny, to: [{networks: [198.51.100.0/24]}]}]",
            )
        ],
        [W("a", "X", 80, DENY, f"kcnp/c|{OUT}"), W("a", "d", 80, ALLOW, "profile/kns.blue|ingress|0")],
    ),
]

SLICE = """{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {name: svc-a-1,
  namespace: red, labels: {kubernetes.io/service-name: svc-a}}, ports: [{name: http, port: 8080}, {name: any}],
  endpoints: [{addresses: [10.244.1.10], conditions: {ready: %s}}]}"""
SLICE6 = SLICE.replace("IPv4", "IPv6").replace("svc-a-1", "svc-a-6").replace("10.244.1.10", '"fd00:244:1::10"')
READY, NOT_READY = [SLICE % "true", SLICE6 % "true"], [SLICE % "false", SLICE6 % "false"]
SERVICE = "services: {name: svc-a, namespace: red}"
TO_SERVICE = np(f"egress: [{{action: Allow, destination: {{{SERVICE}}}}}]", namespace="blue")

SERVICES = [
    Situation(
        "P57 the pods behind a service, at its ports",
        [*READY, TO_SERVICE],
        [
            W("d", "a", 8080, ALLOW, RED_IN),
            W("d", "a", 9090, DENY, EOT_OUT),
            W("d", "a", "udp 8080", DENY, EOT_OUT),
            W("d", "b", 8080, DENY, EOT_OUT),
        ],
    ),
    Situation("P58 ready or not", [*NOT_READY, TO_SERVICE], [W("d", "a", 8080, ALLOW, RED_IN)]),
    Situation(
        "Q9 without a namespace it is the service of the policy's own",
        [
            *READY,
            np("egress: [{action: Allow, destination: {services: {name: svc-a}}}]", namespace="red"),
            np("egress: [{action: Allow, destination: {services: {name: svc-a}}}]", namespace="blue"),
        ],
        [W("b", "a", 8080, ALLOW, RED_IN), W("d", "a", 8080, DENY, EOT_OUT)],
    ),
    Situation(
        "as a source it is the addresses, whatever the ports",
        [*READY, gnp(f"selector: app == 'db', ingress: [{{action: Allow, source: {{{SERVICE}}}}}]")],
        [W("a", "b", 5432, ALLOW, f"gnp/g|{IN}"), W("c", "b", 5432, DENY, EOT_IN)],
    ),
    Situation(
        "a service that nobody is behind",
        [TO_SERVICE],
        [W("d", "a", 8080, DENY, EOT_OUT)],
    ),
    Situation(
        "both ends, and the protocol, must hold",
        [*READY, gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, protocol: UDP, source: {{{SERVICE}}}}}]")],
        [W("b", "a", "udp 53", DENY, EOT_IN)],
    ),
]


@pytest.mark.parametrize(("situation", "version"), cases([*ADMINS, *SERVICES]))
def test_situation(situation: Situation, version: int) -> None:
    check(situation, version)


@pytest.mark.parametrize(
    "rule",
    [
        {"action": "Deny", "from": []},
        {"action": "Deny", "from": [{}]},
        {"action": "Deny", "from": [{"namespaces": {"matchLabels": {"not a label!": "x"}}}]},
        {"action": "Pass", "from": [{"namespaces": {}}], "protocols": [{}]},
        {"action": "Deny", "from": [{"namespaces": {}}], "protocols": [{"tcp": {}, "udp": {}}]},
        {"action": "Deny", "from": [{"namespaces": {}}], "protocols": [{"tcp": {"destinationPort": {}}}]},
        {"action": "Deny", "from": [{"namespaces": {}}], "protocols": [{"destinationNamedPort": "no port!"}]},
    ],
)
def test_p42_a_rule_that_a_newer_api_may_have_is_on_the_safe_side(rule: dict[str, object]) -> None:
    """Such a rule is refused on admission; a datastore that others write to may hold it all the same."""
    spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": [rule]}
    deny = shape(ClusterNetworkPolicy, {"metadata": {"name": "c"}, "spec": spec})
    assert decider(explained(cluster_of([*base(), deny]), "d", "a", 80, 4)) == CNP0
    accept = shape(
        ClusterNetworkPolicy,
        {"metadata": {"name": "c"}, "spec": {**spec, "ingress": [{**rule, "action": "Accept"}]}},
    )
    assert explained(cluster_of([*base(), accept]), "d", "a", 80, 4).allowed


def test_a_cluster_policy_for_nobody_counts_as_absent() -> None:
    spec = {
        "tier": "Admin",
        "priority": 1,
        "subject": {},
        "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}],
    }
    cluster = cluster_of(base())
    cluster.put(shape(ClusterNetworkPolicy, {"metadata": {"name": "c"}, "spec": spec}))
    assert cluster.problems == {"ClusterNetworkPolicy c": "spec.subject: give exactly one of namespaces, pods"}
    assert explained(cluster, "d", "a", 80, 4).allowed


def test_what_a_rule_notes_for_people_is_carried() -> None:
    named = parse(cnp("Admin", 1, RED, f"ingress: [{{name: no-blue, action: Deny, {FROM_BLUE}}}]"))[0]
    noted = parse(np("ingress: [{action: Allow, metadata: {annotations: {b: '2', a: '1'}}}]"))[0]
    web = parse(np("ingress: [{action: Allow, protocol: TCP, http: {methods: [GET]}}]"))[0]
    assert [policy_of(one).ingress[0].annotations for one in (named, noted, web)] == [
        (("name", "no-blue"),), (("a", "1"), ("b", "2")), (),
    ]  # fmt: skip
    assert policy_of(web).ingress[0].http.methods == ("GET",)


def test_where_a_global_policy_is_asked() -> None:
    plain, forward, raw, pre, hinted = (
        policy_of(defaulted(parse(gnp(spec))[0], None))
        for spec in (
            "",
            "applyOnForward: true",
            "applyOnForward: true, doNotTrack: true",
            "applyOnForward: true, preDNAT: true",
            "performanceHints: [AssumeNeededOnEveryNode]",
        )
    )
    assert [(p.hook, p.on_forward, p.everywhere) for p in (plain, forward, raw, pre, hinted)] == [
        ("filter", False, False), ("filter", True, False), ("untracked", True, False), ("preDNAT", True, False),
        ("filter", False, True),
    ]  # fmt: skip


def test_the_sets_of_a_policy_that_is_assumed_everywhere_are_on_every_node() -> None:
    text = gnp("selector: app == 'nobody', performanceHints: [AssumeNeededOnEveryNode], "
               "ingress: [{action: Allow, source: {selector: app == 'web'}}]")  # fmt: skip
    cluster = cluster_of([*base(), *parse(text)])
    state = cluster.state()
    assert [str(ref) for ref in state.sets] == ['app == "web"']
    assert cluster.state().policies is state.policies
    cluster.put(parse(text.replace("'web'", "'db'"))[0])
    assert [str(ref) for ref in cluster.state().sets] == ['app == "db"']
    cluster.put(parse(text.replace("performanceHints: [AssumeNeededOnEveryNode], ", ""))[0])
    assert not cluster.state().sets
    cluster.put(parse(text)[0])
    assert cluster.state().sets
    cluster.drop(type(parse(text)[0]), "", "g")
    assert not cluster.state().sets
    assert "gnp/g" not in map(str, cluster.state().policies)
