"""`tortie migrate`: what is said of a cluster is what its objects say, and the steps go in an order that works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError, NotFound
from tortie.calc.migrate import Migration, calico, flannel, gathered
from tortie.cli.main import command_line, main
from tortie.model.document import load_documents
from tortie.model.ipam import IPPool
from tortie.render.manifest import Options, documents

ROOT = Path(__file__).parents[2]
CALICO, FLANNEL = (ROOT / f"examples/migrate/{name}.yaml" for name in ("calico", "flannel"))


def objects(file: Path, *more: str) -> list[dict[str, Any]]:
    return [*load_documents(file.read_text()), *(one for text in more for one in load_documents(text))]


def from_calico(*more: str) -> Migration:
    return calico(gathered(objects(CALICO, *more)))


def from_flannel(*more: str, pool: str = "") -> Migration:
    return flannel(gathered(objects(FLANNEL, *more)), pool)


def said(plan: Migration, weight: str) -> str:
    return "\n".join(f"{one.what}: {one.message}" for one in plan.findings if one.weight == weight)


def position(plan: Migration, text: str) -> int:
    return next(i for i, step in enumerate(plan.steps) if text in step.command)


# --- Calico -------------------------------------------------------------------------------------------------------


def test_what_calicos_cluster_has() -> None:
    plan = from_calico()
    (pool,) = plan.pools
    assert (pool.cidr, pool.now, pool.then, pool.block_size) == ("10.48.0.0/16", "VXLAN", "the same", 26)
    rows = {one.name: (one.address, one.networks, one.pods) for one in plan.nodes}
    assert rows == {
        "worker-1": ("192.0.2.11/24", ("10.48.0.0/26",), 1),
        "worker-2": ("192.0.2.12/24", ("10.48.0.64/26",), 1),
    }, "pods of the host's network are not counted"
    assert plan.possible
    assert "bpfConnectTimeLoadBalancing" in said(plan, "differs")
    assert "FELIX_LOGSEVERITYSCREEN" in said(plan, "note")
    assert "CALICO_IPV4POOL_VXLAN" not in said(plan, "note"), "the manifest has it"
    assert any("1 policy:" in line for line in plan.equal)


def test_the_manifest_is_for_a_cluster_like_it() -> None:
    assert from_calico().manifest == (
        "tortie manifest --node-selector tortie.dev/network=tortie --no-bgp --encapsulation VXLAN"
    )
    data = "data: {calico_backend: bird, veth_mtu: '1440'}"
    data = f"{{apiVersion: v1, kind: ConfigMap, metadata: {{name: calico-config}}, {data}}}"
    evidence = gathered([*load_documents(data), *(one for one in objects(CALICO) if one["kind"] != "ConfigMap")])
    assert calico(evidence).manifest.endswith("--encapsulation VXLAN --mtu 1440")
    assert any("BGP" in line for line in calico(evidence).equal)


def test_its_command_is_one_that_there_is() -> None:
    command = command_line().commands["manifest"]  # type: ignore[attr-defined]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for plan in (from_calico(), from_flannel()):
        for step in plan.steps:
            for words in re.findall(r"tortie manifest([^|&]*)", step.command):
                assert {word for word in words.split() if word.startswith("-")} <= known


def test_a_node_is_drained_then_changed_then_cleared_then_used() -> None:
    plan = from_calico()
    order = [
        position(plan, text)
        for text in (
            "kubectl apply -f tortie.yaml",
            "patch daemonset calico-node",
            "drain worker-1",
            "label node worker-1",
            "on worker-1: restart it",
            "spec.nodeName=worker-1",
            "uncordon worker-1",
            "drain worker-2",
            "uncordon worker-2",
            "delete daemonset/calico-node",
        )
    ]
    assert order == sorted(order)


def test_calicos_pods_stay_away_from_nodes_that_changed_and_ours_from_others() -> None:
    plan = from_calico()
    patch = json.loads(plan.steps[position(plan, "patch daemonset")].command.split("--patch ")[1].strip("'"))
    terms = patch["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = terms["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    (expression,) = term["matchExpressions"]
    assert expression == {"key": "tortie.dev/network", "operator": "DoesNotExist"}
    options = Options(node_selector=("tortie.dev/network=tortie",))
    (ours,) = (one for one in documents(options) if one["kind"] == "DaemonSet")
    assert ours["spec"]["template"]["spec"]["nodeSelector"]["tortie.dev/network"] == "tortie"


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("{apiVersion: crd.projectcalico.org/v1, kind: FelixConfiguration, metadata: {name: node.a},"
         " spec: {bpfEnabled: true}}", "spec.bpfEnabled: the eBPF dataplane"),
        ("{apiVersion: crd.projectcalico.org/v1, kind: FelixConfiguration, metadata: {name: node.a},"
         " spec: {wireguardEnabled: true}}", "is not encrypted by Tortie"),
        ("{apiVersion: v1, kind: Node, metadata: {name: w, labels: {kubernetes.io/os: windows}}}",
         "is no Linux machine"),
        ("{apiVersion: operator.tigera.io/v1, kind: Installation, metadata: {name: default}}",
         "the operator would put"),
        ("{apiVersion: crd.projectcalico.org/v1, kind: NetworkPolicy, metadata: {name: new, namespace: a},"
         " spec: {aFieldOfTheNextVersion: 1}}", "NetworkPolicy new: would be refused: spec.aFieldOfTheNextVersion"),
    ],
    ids=["eBPF", "WireGuard", "Windows", "operator", "unknown field"],
)  # fmt: skip
def test_what_stands_in_the_way_is_said(document: str, problem: str) -> None:
    """A policy with a field that we do not know above all: it would be cut off, and the policy mean something else."""
    plan = from_calico(document)
    assert not plan.possible
    assert problem in said(plan, "stop")
    assert "What has to be settled first" in str(plan)


def test_kinds_that_are_not_ours_are_counted_and_other_software_is_not() -> None:
    plan = from_calico(
        "{apiVersion: projectcalico.org/v3, kind: EgressGatewayPolicy, metadata: {name: a}}",
        "{apiVersion: batch/v1, kind: Job, metadata: {name: a}}",
    )
    assert "EgressGatewayPolicy (projectcalico.org/v3): 1 object" in said(plan, "differs")
    assert "Job" not in str(plan)


# --- Flannel ------------------------------------------------------------------------------------------------------


def test_what_flannels_cluster_becomes() -> None:
    plan = from_flannel()
    old, new = plan.pools
    assert (old.cidr, old.now) == ("10.244.0.0/16", "vxlan")
    assert not parse_net(new.cidr).overlaps(parse_net(old.cidr))
    assert new.then == "VXLAN"
    assert [(one.name, one.address, one.networks) for one in plan.nodes] == [
        ("worker-1", "192.0.2.11", ("10.244.0.0/24",)),
        ("worker-2", "192.0.2.12", ("10.244.1.0/24",)),
    ]
    assert "NetworkPolicy shop/deny: nobody enforces it under Flannel" in said(plan, "differs")
    assert plan.possible


def test_both_networks_are_there_until_the_last_pod_has_moved() -> None:
    plan = from_flannel()
    order = [
        position(plan, text)
        for text in ("kubectl apply -f tortie.yaml", "rollout status", "kind: IPPool", "drain worker-1",
                     "uncordon worker-2", "delete daemonset kube-flannel-ds", "delete flannel.1",
                     "delete ippool flannel")
    ]  # fmt: skip
    assert order == sorted(order)
    (pool,) = re.findall(r"echo '(.*)'", plan.steps[order[2]].command)
    (found,) = gathered([yaml.safe_load(pool)]).resources
    assert isinstance(found, IPPool)
    assert found.spec.disabled
    assert found.spec.cidr == "10.244.0.0/16"


@pytest.mark.parametrize(
    ("backend", "encapsulation", "possible"),
    [("host-gw", "None", True), ("udp", "VXLAN", True), ("wireguard", "VXLAN", False), ("gre", "VXLAN", False)],
)
def test_backends(backend: str, encapsulation: str, possible: bool) -> None:
    conf = json.dumps({"network": "10.244.0.0/16", "backend": {"type": backend}})  # names in any case
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-flannel-cfg"},
              "data": {"net-conf.json": conf}}  # fmt: skip
    plan = flannel(gathered([config, *(one for one in objects(FLANNEL) if one["kind"] != "ConfigMap")]))
    assert f"--encapsulation {encapsulation}" in plan.manifest
    assert plan.possible is possible


def test_the_new_pool_can_be_said() -> None:
    assert "--pool 10.99.0.0/16 " in from_flannel(pool="10.99.0.0/16").manifest
    for wrong, message in (
        ("10.244.3.0/24", "overlaps Flannel's"),
        ("fd00::/48", "is not of IPv4"),
        ("10.0.0.0/33", "--pool"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_flannel(pool=wrong)


def test_the_new_pool_is_not_where_nodes_are() -> None:
    status = "{addresses: [{type: InternalIP, address: 10.245.3.4}]}"
    plan = from_flannel(f"{{apiVersion: v1, kind: Node, metadata: {{name: x}}, status: {status}}}")
    assert plan.pools[1].cidr == "10.246.0.0/16"


def test_without_its_configuration_nothing_is_guessed() -> None:
    with pytest.raises(NotFound, match="no ConfigMap kube-flannel-cfg"):
        flannel(gathered([]))
    broken = "{apiVersion: v1, kind: ConfigMap, metadata: {name: kube-flannel-cfg}, data: {net-conf.json: '{'}}"
    with pytest.raises(ConfigError, match="is not JSON"):
        flannel(gathered(load_documents(broken)))


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_prints_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "--from", "calico", "--plan", "-f", str(CALICO)]) == 0
    assert capsys.readouterr().out == f"{from_calico()}\n"
    assert main(["migrate", "--from", "flannel", "--plan", "-f", str(FLANNEL), "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["possible"] is True
    assert [one["name"] for one in found["nodes"]] == ["worker-1", "worker-2"]
    assert found["steps"][0]["command"].startswith("tortie manifest --pool")


def test_something_to_be_settled_is_status_1(tmp_path: Path) -> None:
    felix = "kind: FelixConfiguration, metadata: {name: default}, spec: {bpfEnabled: true}"
    felix = f"{{apiVersion: crd.projectcalico.org/v1, {felix}}}"
    (tmp_path / "felix.yaml").write_text(felix)
    assert main(["migrate", "--from", "calico", "--plan", "-f", str(tmp_path)]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plan"], "say what the cluster has now: --from calico or --from flannel"),
        (["--from", "cilium", "--plan", "-f", "x"], '"cilium" is not one of calico, flannel'),
        (["--from", "calico", "-f", "x"], "say --plan"),
        (["--from", "calico", "--plan"], "give -f with files of objects, or --kubeconfig"),
        (["--from", "calico", "--plan", "-f", "x", "--pool", "10.0.0.0/8"], "goes with --from flannel"),
        (["--from", "flannel", "--plan", "--kubeconfig", "x"], "is in a ConfigMap"),
        (["--from", "calico", "--plan", "--kubeconfig", "/no/such"], "there is no file /no/such"),
        (["--from", "calico", "--plan", "-f", "/no/such"], "/no/such: cannot be read"),
        (["--from", "calico", "--plan", "-f", "x", "-o", "xml"], '"xml" is not one of text, json'),
    ],
)
def test_what_is_asked_wrongly(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", *words]) == 2
    assert message in capsys.readouterr().err
