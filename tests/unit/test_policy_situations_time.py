"""Situations of policy in time, and what packets alone do not say."""

from __future__ import annotations

import pytest
from situations import (
    BAD_SET,
    CALICO_ON_A,
    EOT_IN,
    GNP0,
    NODES,
    PODS,
    base,
    calico,
    cluster_of,
    decider,
    documents,
    explained,
    gnp,
    gns,
    judged,
    np,
)

from tortie.base.addr import parse_ip
from tortie.calc.explain import Explainer
from tortie.calc.state import SERVICE_LOOP
from tortie.calc.workloads import endpoint_of_pod
from tortie.model.document import parse, read, shape
from tortie.model.k8s import K8sNetworkPolicy, Namespace, Pod
from tortie.model.policy import GlobalNetworkSet
from tortie.model.workload import WorkloadEndpoint, interface_name
from tortie.policy.translate import policy_of
from tortie.policy.verdict import Packet


@pytest.mark.parametrize(("mode", "allowed"), [("Drop", False), ("Reject", False), ("Disabled", True)])
def test_p104_an_address_of_services_that_none_has(mode: str, allowed: bool) -> None:
    bgp = calico("BGPConfiguration", "default", "serviceClusterIPs: [{cidr: 10.96.0.0/12}, {cidr: 'fd00:96::/112'}]")
    felix = calico("FelixConfiguration", "default", f"serviceLoopPrevention: {mode}")
    cluster = cluster_of([*base(), *parse(f"{bgp}\n---\n{felix}")])
    for source, unused, version in (("X", "10.96.77.7", 4), ("d", "10.96.77.7", 4), ("d", "fd00:96::7", 6)):
        explainer = Explainer(cluster)
        party = explainer.party("198.51.100.9" if source == "X" else "blue/d")
        told = explainer.explain(party, explainer.party(unused), "tcp", 80, version)
        assert told.allowed is allowed
        assert allowed or told.decisive.rule == SERVICE_LOOP


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
