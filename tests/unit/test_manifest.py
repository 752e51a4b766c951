"""`tortie manifest`: what it prints is what an API server is to have, every option changes what it says, accounts may
do what programs do and no more, and the image has what the manifest calls."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import tortie.model.kinds as kinds
from tortie import __version__
from tortie.agent.environment import WITHOUT_EFFECT, read_environment
from tortie.base.errors import ConfigError
from tortie.cli.main import command_line, main
from tortie.cni.hostfiles import conflist
from tortie.model.meta import Resource
from tortie.render.manifest import Options, documents, manifest, without_comments
from tortie.render.manifest.access import (
    CONTROLLERS,
    NODE,
    STANDS_FOR,
    Grant,
    api_group,
    controller_grants,
    fanout_grants,
    node_grants,
    resource,
)
from tortie.render.manifest.removal import transcript
from tortie.render.manifest.text import WHY, text

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src/tortie"
ETCD = Options(datastore="etcd", etcd_endpoints=("https://192.0.2.1:2379", "https://192.0.2.2:2379"))


printed, made = cache(manifest), cache(documents)
"""Both take a while."""
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def found(options: Options = Options(), kind: str = "DaemonSet") -> Any:  # noqa: B008
    """The one document of a kind."""
    (one,) = (document for document in made(options) if document["kind"] == kind)
    return without_comments(one)


def agent(options: Options = Options()) -> dict[str, Any]:  # noqa: B008
    (container,) = found(options)["spec"]["template"]["spec"]["containers"]
    return dict(container)


def variables(options: Options) -> dict[str, str]:
    """Of the agent, those from the ConfigMap filled in."""
    data = found(options, "ConfigMap")["data"]
    values: dict[str, str] = {}
    for one in agent(options)["env"]:
        source = one.get("valueFrom", {})
        if "configMapKeyRef" in source:
            assert source["configMapKeyRef"]["name"] == "calico-config"
            values[one["name"]] = data[source["configMapKeyRef"]["key"]]
        else:
            values[one["name"]] = "node1" if "fieldRef" in source else one["value"]
    return values


# --- the text -----------------------------------------------------------------------------------------------------


def test_the_file_in_the_repository_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """`make manifests` writes it."""
    assert main(["manifest"]) == 0
    assert capsys.readouterr().out == (ROOT / "manifests/tortie.yaml").read_text()


@pytest.mark.parametrize("options", [Options(), ETCD, Options(policy_only=True)], ids=["kubernetes", "etcd", "policy"])
def test_the_yaml_says_what_the_documents_say(options: Options) -> None:
    read = list(yaml.load_all(printed(options), Loader))
    assert read == [without_comments(one) for one in made(options)]
    assert WHY not in json.dumps(read)
    assert max(map(len, printed(options).splitlines())) <= 200


def test_comments_stand_before_what_they_are_about() -> None:
    long = "A reason, with: a colon, and longer than a line of a file, as this one is. " * 2 + "That is all of it."
    document = {"a": [{WHY: "It's why.", "b": 1}, {"c": 2}], "d": {WHY: long, "e": "x\ny\n"}}
    said = text([document], "top")
    assert said.startswith("# top\n---\n")
    assert "# It's why.\n- b: 1\n- c: 2\n" in said
    assert re.search(r"d:\n(  # .*\n){2,3}  e: \|\n    x\n    y\n", said)
    assert list(yaml.safe_load_all(said)) == [without_comments(document)]


def test_a_file_is_written_and_the_command_is_told_in_it(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    etcd = ["--datastore", "etcd", "--etcd-endpoints", "http://192.0.2.1:2379"]  # short: no definitions
    assert main(["manifest", *etcd, "-o", str(file), "--mtu", "1400"]) == 0
    assert "veth_mtu: '1400'" in file.read_text()
    assert main(["manifest", *etcd, "-o", str(tmp_path / "no" / "t.yaml")]) == 2


# --- what options do ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encapsulation", "ipip", "vxlan"),
    [
        ("IPIP", "Always", "Never"),
        ("IPIPCrossSubnet", "CrossSubnet", "Never"),
        ("VXLAN", "Never", "Always"),
        ("VXLANCrossSubnet", "Never", "CrossSubnet"),
        ("None", "Never", "Never"),
    ],
)
def test_first_pools_are_as_they_are_told(encapsulation: Any, ipip: str, vxlan: str) -> None:
    """The agent reads the variables just so."""
    options = Options(pools=("10.44.0.0/16", "fd00:44::/48"), encapsulation=encapsulation)
    environment = read_environment(variables(options))
    four, six = environment.pools
    assert (four.cidr, six.cidr) == ("10.44.0.0/16", "fd00:44::/48")
    assert (four.ipip, four.vxlan, six.vxlan) == (ipip, vxlan, vxlan)
    assert (environment.backend, environment.node, environment.kubernetes_node) == ("bird", "node1", "node1")
    assert environment.felix.ipv6_support is True


def test_without_ipv6_there_is_no_pool_of_it() -> None:
    assert [wish.version for wish in read_environment(variables(Options())).pools] == [4]


def test_ipv6_alone() -> None:
    environment = read_environment(variables(Options(pools=("fd00:44::/48",), encapsulation="None")))
    assert environment.bgp.router_id == "hash"
    assert [(wish.version, wish.cidr) for wish in environment.pools] == [(4, "none"), (6, "fd00:44::/48")]
    ipam = json.loads(conflist({"CNI_NETWORK_CONFIG": network(Options(pools=("fd00:44::/48",), encapsulation="None"))},
                               Path("/etc/cni/net.d")))["plugins"][0]["ipam"]  # fmt: skip
    assert ipam == {"type": "calico-ipam", "assign_ipv4": "false", "assign_ipv6": "true"}


def network(options: Options) -> str:
    text = str(found(options, "ConfigMap")["data"]["cni_network_config"])
    return text.replace("__CNI_MTU__", found(options, "ConfigMap")["data"]["veth_mtu"])


def test_no_bgp_is_the_backend_without_bird_and_nobody_is_ready_for_it() -> None:
    options = Options(encapsulation="VXLAN", bgp=False)
    assert read_environment(variables(options)).backend == "vxlan"
    assert "--bird-ready" not in agent(options)["readinessProbe"]["exec"]["command"]
    assert "--bird-ready" in agent()["readinessProbe"]["exec"]["command"]
    assert variables(options)["CLUSTER_TYPE"] == "k8s"


def test_without_bgp_and_without_a_tunnel_agents_write_the_routes() -> None:
    felix = read_environment(variables(Options(encapsulation="None", bgp=False))).felix
    assert felix.program_cluster_routes == "Enabled"
    assert read_environment(variables(Options(encapsulation="None"))).felix.program_cluster_routes is None


def test_policy_only_leaves_addresses_and_routes_to_others() -> None:
    options = Options(policy_only=True)
    environment = read_environment(variables(options))
    assert (environment.backend, environment.pools, environment.ipv4.address) == ("none", (), "")
    plugin = json.loads(network(options))["plugins"][0]
    assert plugin["ipam"] == {"type": "host-local", "subnet": "usePodCidr"}
    assert "lifecycle" not in agent(options)


def test_etcd_has_its_endpoints_and_certificates_and_no_definitions() -> None:
    names = [one["kind"] for one in made(ETCD)]
    assert "CustomResourceDefinition" not in names
    assert "Secret" not in names, "its contents are the operator's: applying ours again would blank them"
    values = variables(ETCD)
    assert values["ETCD_ENDPOINTS"] == "https://192.0.2.1:2379,https://192.0.2.2:2379"
    assert values["ETCD_CA_CERT_FILE"] == "/calico-secrets/etcd-ca"
    for workload in ("DaemonSet", "Deployment"):
        pod = found(ETCD, workload)["spec"]["template"]["spec"]
        assert {"name": "etcd-certs", "secret": {"secretName": "calico-etcd-secrets", "defaultMode": 0o440}} in pod[
            "volumes"
        ]
        mounts = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
        assert "/calico-secrets" in mounts
    assert "create secret generic calico-etcd-secrets" in printed(ETCD)
    plain = Options(datastore="etcd", etcd_endpoints=("http://192.0.2.1:2379",))
    assert "etcd-certs" not in json.dumps(made(plain))
    for rule in (grant for grant in (*node_grants(ETCD), *controller_grants(ETCD))):
        assert "projectcalico" not in rule.group


def test_fan_out_servers_stand_between() -> None:
    options = Options(fanout=3)
    (deployment,) = (
        one for one in made(options) if one["kind"] == "Deployment" and one["metadata"]["name"] == "tortie-fanout"
    )
    pod = without_comments(deployment)["spec"]["template"]["spec"]
    assert deployment["spec"]["replicas"] == 3
    assert pod["hostNetwork"] is True, "agents need it before there is another network"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert variables(options)["FELIX_TYPHAK8SSERVICENAME"] == "tortie-fanout"
    assert "FELIX_TYPHAK8SSERVICENAME" not in variables(Options())
    service = found(options, "Service")
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["targetPort"] == pod["containers"][0]["ports"][0]["name"]
    for grant in fanout_grants(options):
        assert set(grant.verbs) == {"get", "list", "watch"}
        assert "secrets" not in grant.resources
    if "fanout" in command_line().commands:  # type: ignore[attr-defined]
        _is_command(command_line(), pod["containers"][0]["command"][1:])


def test_offline_every_image_is_the_registrys() -> None:
    options = Options(registry="registry.example:5000/net")
    images = set(re.findall(r'"image": "(\S+?)"', json.dumps(made(options))))
    assert images == {f"registry.example:5000/net/tortie:{__version__}"}
    options = Options(image="docker.io/somebody/tortie:1", registry="r.example")
    assert options.where == "r.example/somebody/tortie:1"


def test_only_on_nodes_with_a_label() -> None:
    spec = found(Options(node_selector=("tortie.dev/network=tortie",)))["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux", "tortie.dev/network": "tortie"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--pool 10.0.0.0/33", '--pool: "10.0.0.0/33"'),
        ("--pool 10.0.0.0/16 --pool 10.1.0.0/16", "--pool: there is one first pool of IPv4"),
        ("--encapsulation GRE", '--encapsulation: "GRE" is not one of IPIP'),
        ("--pool fd00::/48", "--encapsulation: IPIP carries IPv4 only"),
        ("--pool fd00::/48 --encapsulation IPIPCrossSubnet", "--encapsulation: IPIP carries IPv4 only"),
        ("--pool 10.0.0.0/27", '--pool: "10.0.0.0/27" has no room for a block, which is a /26'),
        ("--policy-only --encapsulation VXLAN", "--encapsulation: routes are not ours to make"),
        ("--datastore etcd", "--etcd-endpoints: is required"),
        ("--etcd-endpoints http://a:1", "--etcd-endpoints: goes with --datastore etcd"),
        ("--datastore etcd --etcd-endpoints a:2379", '--etcd-endpoints: "a:2379" is not a URL'),
        ("--datastore zk", '--datastore: "zk" is not one of'),
        ("--mtu 10", "--mtu: 10 is not from 576"),
        ("--offline 'a b'", '--offline: "a b" is not a registry'),
        ("--image 'A B'", '--image: "A B" is not an image'),
        ("--node-selector x", '--node-selector: "x" is not a label'),
        ("--policy-only --pool 10.0.0.0/16", "--pool: addresses are not ours to give"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifest", *shlex.split(words)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1


# --- the workloads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [Options(), ETCD], ids=["kubernetes", "etcd"])
@pytest.mark.parametrize("kind", ["DaemonSet", "Deployment"])
def test_a_workload_fits_together(options: Options, kind: str) -> None:
    spec = found(options, kind)["spec"]
    pod = spec["template"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    volumes = {volume["name"] for volume in pod["volumes"]}
    accounts = {one["metadata"]["name"] for one in made(options) if one["kind"] == "ServiceAccount"}
    assert pod["serviceAccountName"] in accounts
    used = set()
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        used |= {mount["name"] for mount in container["volumeMounts"]}
        context = container["securityContext"]
        assert context["capabilities"]["drop"] == ["ALL"]
        assert context["readOnlyRootFilesystem"] is True
        assert "privileged" not in context
        names = [one["name"] for one in container.get("env", ())]
        assert len(names) == len(set(names))
        for one in container.get("env", ()):
            if "configMapKeyRef" in one.get("valueFrom", {}):
                assert one["valueFrom"]["configMapKeyRef"]["key"] in found(options, "ConfigMap")["data"]
    assert used <= volumes
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["securityContext"]["fsGroup"] == 65532, "who is not root reads etcd's certificates by it"


def test_commands_of_containers_are_commands_of_ours() -> None:
    """With options that there are."""
    tree: Any = command_line()
    seen = []
    for document in made(Options()):
        pod = document.get("spec", {}).get("template", {}).get("spec", {}) if "spec" in document else {}
        containers = (*pod.get("initContainers", ()), *pod.get("containers", ()))
        for container in containers:
            hooks = [container["command"]]
            hooks += [probe["exec"]["command"] for name in PROBES if "exec" in (probe := container.get(name, {}))]
            hooks += [hook["exec"]["command"] for hook in container.get("lifecycle", {}).values()]
            for words in hooks:
                for one in re.findall(r"tortie [^|&]*", " ".join(words)):
                    seen.append(one)
                    _is_command(tree, one.split()[1:])
    assert len(seen) >= 5


PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


def _is_command(command: Any, words: list[str]) -> None:
    for word in words:
        if word in getattr(command, "commands", {}):
            command = command.commands[word]
        elif word.startswith("--"):
            known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            assert word in known, f"{command.name} has no {word}"
    assert not getattr(command, "commands", {}), f"{' '.join(words)} is no whole command"


def test_the_controllers_are_not_root_and_the_agent_says_that_it_is() -> None:
    assert found(kind="Deployment")["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    assert agent()["securityContext"]["runAsUser"] == 0
    assert found(kind="PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == {"k8s-app": CONTROLLERS}


def test_never_on_a_node_with_calicos_own() -> None:
    affinity = found()["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert "calico-node" in term["labelSelector"]["matchExpressions"][0]["values"]
    assert set(term["namespaces"]) == {"kube-system", "calico-system"}


def test_every_variable_is_one_that_the_agent_knows() -> None:
    """None of them is without effect but those that Calico's own manifest has for other programs' sake."""
    needless = {"WAIT_FOR_DATASTORE", "CALICO_DISABLE_FILE_LOGGING", "DATASTORE_TYPE", "CALICO_MANAGE_CNI",
                "USE_POD_CIDR"}  # fmt: skip
    assert not (set(variables(Options())) & set(WITHOUT_EFFECT)) - needless


def test_no_credential_is_on_a_nodes_disk() -> None:
    assert "calico-cni-plugin" not in printed(Options())
    assert "token" not in network(Options())
    assert conflist({"CNI_NETWORK_CONFIG": network(Options())}, Path("/etc/cni/net.d"))


# --- access -------------------------------------------------------------------------------------------------------


def allowed(grants: list[Grant], kind: type[Resource], verb: str, subresource: str = "") -> bool:
    """In a Kubernetes cluster, for whatever the kind is made of there."""

    def one(stored: type[Resource], grant: Grant) -> bool:
        named = grant.group == api_group(stored) and resource(stored) + subresource in grant.resources
        return named and verb in grant.verbs

    return all(any(one(stored, grant) for grant in grants) for stored in STANDS_FOR.get(kind, (kind,)))


def parts(folder: str) -> set[Path]:
    """A program's own modules, and those of IPAM that they use; others are the command's."""
    found, new = set[Path](), set((SOURCES / folder).rglob("*.py"))
    while new:
        found |= new
        names = {name for file in new for name in re.findall(r"tortie\.ipam\.(\w+)", file.read_text())}
        new = {SOURCES / f"ipam/{name}.py" for name in names} - found
    return found


def asked(folder: str) -> Iterator[tuple[type[Resource], str, str]]:
    """What programs ask a store for, as their source has it: kind, verb, place."""
    known = {kind.__name__: kind for kind in kinds.KINDS}
    for file in sorted(one for one in parts(folder) if one.name not in WHERE_NO_KUBERNETES_IS):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            if node.func.attr not in ("get", "list", "watch", "delete") or "store" not in ast.unparse(node.func.value):
                continue
            first = node.args[0]
            if isinstance(first, ast.Name) and first.id in known:
                yield known[first.id], node.func.attr, f"{file.name}:{node.lineno}"


NOT_IN_KUBERNETES = {"WorkloadEndpoint", "Profile"}
"""Derived there: reading one is reading what it is made of; deleting one is a patch of its pod."""
WHERE_NO_KUBERNETES_IS = {"service_addresses.py", "endpoint_slices.py"}
"""Controllers that do what Kubernetes does itself."""


@pytest.mark.parametrize(
    ("grants", "folder"),
    [(node_grants(Options()), "agent"), (controller_grants(Options()), "controllers")],
    ids=[NODE, CONTROLLERS],
)
def test_accounts_may_do_what_programs_ask_for(grants: list[Grant], folder: str) -> None:
    seen = list(asked(folder))
    assert len(seen) > 10
    for kind, verb, where in seen:
        if kind.__name__ in NOT_IN_KUBERNETES and verb == "delete":
            assert allowed(grants, kind, "patch", "/status"), where
        elif kind.__name__ not in ("Secret", "Lease"):  # in roles of a namespace
            assert allowed(grants, kind, verb), f"{where}: {verb} {kind.__name__}"


def test_accounts_may_do_no_more_than_that() -> None:
    for rules in (node_grants(Options()), controller_grants(Options())):
        for grant in rules:
            assert "*" not in (*grant.resources, *grant.verbs, grant.group)
            assert "secrets" not in grant.resources
            assert grant.why.endswith(".")
            if grant.group == "":
                writes = set(grant.verbs) - {"get", "list", "watch"}
                assert not writes or all(name.endswith("/status") for name in grant.resources)
    roles = [one for one in made(Options()) if one["kind"] == "Role"]
    assert [one["metadata"]["name"] for one in roles] == [CONTROLLERS, NODE]
    with_passwords = [one for one in made(Options(bgp_passwords=True)) if one["kind"] == "Role"]
    assert {one["metadata"]["namespace"] for one in with_passwords} == {"kube-system", "tortie-layer2"}
    assert "secrets" in json.dumps(with_passwords)


# --- taking it away -----------------------------------------------------------------------------------------------


def test_all_that_is_made_is_deleted_definitions_last() -> None:
    lines = list(transcript())
    for one in made(Options(bgp_passwords=True, fanout=2)):
        name = one["metadata"]["name"]
        assert any(re.search(rf"delete .*\b{re.escape(name)}\b", line) for line in lines), name
    first = next(i for i, line in enumerate(lines) if "delete customresourcedefinition" in line)
    assert all("delete customresourcedefinition" in line or line.startswith("#") for line in lines[first:])
    assert next(i for i, line in enumerate(lines) if "daemonset" in line) < first


def test_options_know_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="all are http, or all are https"):
        documents(Options(datastore="etcd", etcd_endpoints=("http://a:1", "https://b:1")))
