"""`tortie policy staged report`, and the kinds of policy and services in the verbs of the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tortie.cli.main import main
from tortie.model.document import parse
from tortie.model.meta import Resource
from tortie.store import open_store

V3 = "apiVersion: projectcalico.org/v3"
PODS = f"""
{{apiVersion: v1, kind: Namespace, metadata: {{name: red}}}}
---
{{{V3}, kind: Node, metadata: {{name: n1}}, spec: {{bgp: {{ipv4Address: 10.0.0.1/24}}}}}}
---
{V3}
kind: WorkloadEndpoint
metadata: {{name: n1-k8s-a-eth0, namespace: red, labels: {{app: web, projectcalico.org/namespace: red}}}}
spec: {{node: n1, orchestrator: k8s, pod: a, endpoint: eth0, interfaceName: cali00000000a, profiles: [kns.red],
       ipNetworks: [10.244.1.1/32], ports: [{{name: http, protocol: TCP, port: 8080}}]}}
---
{V3}
kind: WorkloadEndpoint
metadata: {{name: n1-k8s-b-eth0, namespace: red, labels: {{app: db, projectcalico.org/namespace: red}}}}
spec: {{node: n1, orchestrator: k8s, pod: b, endpoint: eth0, interfaceName: cali00000000b, profiles: [kns.red],
       ipNetworks: [10.244.1.2/32]}}
"""
STAGED = f"""
{V3}
kind: StagedNetworkPolicy
metadata: {{name: web, namespace: red}}
spec: {{order: 10, selector: app == 'web', ingress: [{{action: Allow, protocol: TCP, destination: {{ports: [80]}}}}]}}
---
{V3}
kind: StagedGlobalNetworkPolicy
metadata: {{name: learnt}}
spec: {{stagedAction: Learn}}
"""

Shell = Callable[..., str]


@pytest.fixture
def tortie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    """A datastore with two pods, and commands over it."""
    store = str(tmp_path / "store.db")

    async def fill(resources: list[Resource]) -> None:
        opened = open_store(store)
        try:
            for one in resources:
                await opened.create(one)
        finally:
            await opened.close()

    asyncio.run(fill(parse(PODS)))

    def run(*arguments: str, text: str = "", status: int = 0) -> str:
        if text:
            (tmp_path / "all.yaml").write_text(text)
            arguments = (*arguments, "-f", str(tmp_path / "all.yaml"))
        got = main([*arguments, "--datastore", store])
        out, err = capsys.readouterr()
        assert got == status, err
        return out if not status else err

    return run


def test_the_report_for_people(tortie: Shell) -> None:
    assert tortie("policy", "staged", "report") == "No policy is staged\n"
    tortie("apply", text=STAGED)
    assert tortie("policy", "staged", "report").splitlines() == [
        "snp/red/web  would set np/red/web in tier default, order 10; about 1 pod",
        "  WOULD   SOURCE    DESTINATION   PORTS                 IP      BECAUSE",
        "  deny    red/b     red/a         tcp 8080, tcp other   IPv4    end of tier default",
        "  deny    outside   red/a         tcp 8080, tcp other   IPv4    end of tier default",
        "  RULE        ACTION   PACKETS",
        "  ingress 0   Allow    0",
        "",
        "ends of tiers that nothing but staged policies is in: would be denied there",
        "  TIER      DIRECTION   PACKETS",
        "  default   ingress     0",
        "",
        "without the counts of n1: no agent answers from there",
    ]


def test_the_report_for_machines(tortie: Shell) -> None:
    tortie("apply", text=STAGED)
    found = json.loads(tortie("policy", "staged", "report", "-o", "json"))
    [policy] = found["policies"]
    assert (policy["policy"], policy["action"], policy["selects"]) == ("snp/red/web", "Set", ["red/a"])
    assert policy["allows"] == []
    assert policy["rules"] == [{"direction": "ingress", "rule": 0, "action": "Allow", "packets": 0}]
    change = policy["denies"][0]
    assert (change["sources"], change["destinations"], change["pairs"]) == (["red/b"], ["red/a"], 1)
    assert change["ports"] == [{"protocol": "tcp", "port": 8080}, {"protocol": "tcp", "port": None}]
    assert (change["ipVersions"], change["tier"]) == ([4], "default")
    assert found["endOfTier"] == [
        {"tier": "default", "direction": "ingress", "rule": None, "action": None, "packets": 0}
    ]
    assert found["silentNodes"] == ["n1"]


def test_what_would_not_change_and_what_nobody_is_selected_by(tortie: Shell) -> None:
    plain = STAGED.partition("---")[0]
    tortie("apply", text=plain.replace("protocol: TCP, destination: {ports: [80]}", "protocol: TCP"))
    report = tortie("policy", "staged", "report")
    assert "would deny and allow the same connections as now" in report
    tortie("apply", text=plain.replace("'web'", "'nobody'"))
    assert "about no pod\n  RULE" in tortie("policy", "staged", "report")
    tortie("apply", text=f"{{{V3}, kind: NetworkPolicy, metadata: {{name: gone, namespace: red}}, spec: {{}}}}")
    delete = (
        f"{{{V3}, kind: StagedNetworkPolicy, metadata: {{name: gone, namespace: red}}, spec: {{stagedAction: Delete}}}}"
    )
    tortie("apply", text=delete)
    report = tortie("policy", "staged", "report")
    assert "snp/red/gone  would delete np/red/gone in tier default; about 2 pods" in report
    assert "  allow   red/b     red/a         tcp 8080, tcp other   IPv4    profile/kns.red|ingress|0" in report


def test_a_format_that_there_is_not(tortie: Shell) -> None:
    assert tortie("policy", "staged", "report", "-o", "yaml", status=2) == (
        'tortie: --output: "yaml" is not one of text, json\n'
    )


SERVICES = """
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: red}, spec: {type: NodePort, clusterIP: 10.96.0.1,
 selector: {app: web}, ports: [{port: 80, nodePort: 30080}, {port: 53, protocol: UDP}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: out, namespace: red},
 spec: {type: ExternalName, externalName: a.example}}
---
{apiVersion: v1, kind: Service, metadata: {name: lb, namespace: red},
 spec: {type: LoadBalancer, externalIPs: [192.0.2.7]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-1, namespace: red,
 labels: {kubernetes.io/service-name: web}}, addressType: IPv4, ports: [{port: 8080}, {name: any}],
 endpoints: [{addresses: [10.244.1.1]}, {addresses: [10.244.1.2]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: none, namespace: red}, addressType: IPv6}
---
{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: first},
 spec: {tier: Admin, priority: 3, subject: {namespaces: {}}}}
---
{apiVersion: projectcalico.org/v3, kind: StagedKubernetesNetworkPolicy, metadata: {name: k, namespace: red},
 spec: {podSelector: {matchLabels: {app: web}}}}
"""


def test_the_tables(tortie: Shell) -> None:
    tortie("apply", text=STAGED)
    tortie("apply", text=SERVICES)
    wanted = {
        ("snp", "-A"): ["NAMESPACE   NAME    TIER", "red         web     default"],
        ("snp", "-n", "red", "-o", "wide"): [
            "NAMESPACE   NAME    TIER      ORDER   SELECTOR",
            "red         web     default   10      app == 'web'",
        ],
        ("sgnp", "-o", "custom-columns=NAME,TIER,ACTION"): ["NAME     TIER      ACTION", "learnt   default   Learn"],
        ("sknp", "-A", "-o", "wide"): ["NAMESPACE   NAME    PODSELECTOR", "red         k       app=web"],
        ("sknp", "-A", "-o", "custom-columns=NAME,ACTION,TYPES"): [
            "NAMESPACE   NAME    ACTION   TYPES",
            "red         k       Set      Ingress",
        ],
        ("kcnp",): ["NAME    TIER    PRIORITY", "first   Admin   3"],
        ("svc", "-A", "-o", "wide"): [
            "NAMESPACE   NAME    TYPE           CLUSTER-IP   EXTERNAL-IP   PORT(S)               SELECTOR   ENDPOINTS   HITS",  # noqa: E501
            "red         lb      LoadBalancer   <none>       192.0.2.7     <none>                <none>     0/0         -",  # noqa: E501
            "red         out     ExternalName   <none>       a.example     <none>                <none>     0/0         -",  # noqa: E501
            "red         web     NodePort       10.96.0.1    <none>        80:30080/TCP,53/UDP   app=web    2/2         -",  # noqa: E501
        ],
        ("endpointslices", "-A", "-o", "wide"): [
            "NAMESPACE   NAME    ADDRESSTYPE   PORTS     ENDPOINTS               SERVICE",
            "red         none    IPv6          <unset>   <unset>",
            "red         web-1   IPv4          8080,*    10.244.1.1,10.244.1.2   web",
        ],
    }
    for arguments, lines in wanted.items():
        assert tortie("get", *arguments).splitlines() == lines
