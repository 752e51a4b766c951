"""A cluster on paper: what is read, what is implied, what is refused, and what the commands print and end with."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from test_lint import EXAMPLES, PODS

from tortie.base.errors import ConfigError, NotFound
from tortie.calc.admission import Offline, admit, bootstrap
from tortie.calc.simulate import Simulation
from tortie.calc.simulate.matrix import Question, table
from tortie.cli.main import main
from tortie.cli.simulate import parse_connection
from tortie.model.document import parse

SHOP = Path(__file__).parents[2] / "examples/simulate"
BEFORE, AFTER = str(SHOP / "before"), str(SHOP / "after")


def manifest(text: str) -> Simulation:
    return Simulation.of(parse(text))


def files(directory: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = directory / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def deployment(name: str = "web", kind: str = "Deployment", labels: str = "{app: web}", more: str = "") -> str:
    return f"""
apiVersion: apps/v1
kind: {kind}
metadata: {{name: {name}, namespace: shop}}
spec:
  template:
    metadata: {{labels: {labels}}}
    spec: {{containers: [{{name: c, ports: [{{containerPort: 8080, name: http}}]}}]{more}}}
---
"""


# --- what is read -------------------------------------------------------------------------------------------------


def test_directories_are_read_all_the_way_down_and_what_is_not_ours_is_counted(tmp_path: Path) -> None:
    other = (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n---\nkind: Ingress\napiVersion: networking.k8s.io/v1\n"
    )
    files(tmp_path, a__b__deep=deployment() + other, c=PODS, kustomization="resources: [a]", values="replicas: 3")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": {"containers": [{"name": "c"}]}}
    (tmp_path / "list.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [pod]}))
    simulation = Simulation.read(tmp_path)
    assert simulation.names == ("db/postgres", "default/one", "shop/web", "web/frontend")
    assert simulation.skipped == {"ConfigMap": 1, "Ingress": 1}
    again = Simulation.read([tmp_path, tmp_path / "c.yaml"])  # a file that is named twice is read once
    assert [key for key, given in again.written.items() if len(given) > 1] == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{apiVersion: projectcalico.org/v3, kind: NetworkPolcy}", 'NetworkPolcy: kind: unknown kind "NetworkPolcy"'),
        ("{apiVersion: networking.k8s.io/v1, kind: AdminPolicy}", "document 2: AdminPolicy: kind: unknown kind"),
        (
            deployment().replace("containers:", "container:"),
            "document 2: Deployment shop/web: spec.template.spec.container: is not",
        ),
        ("kind: Pod", "document 2: Pod: apiVersion: is required"),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: [{name: c, prots: []}]}}",
            'spec.containers[0].prots: is not a known field, did you mean "ports"?',
        ),
        ("a: [", "not valid YAML"),
        ("- 3", "document 2: [0]: is not an object with kind"),
    ],
)
def test_a_broken_document_is_one_line_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    files(tmp_path, bad=f"{deployment()}{text}")
    with pytest.raises(ExceptionGroup) as caught:
        Simulation.read(tmp_path)
    (error,) = caught.value.exceptions
    assert problem in str(error)
    assert str(error).startswith(f"{tmp_path}/bad.yaml: ")


def test_what_apply_refuses_is_refused_with_the_same_words() -> None:
    (pod, policy) = parse(
        "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: [{name: c}]}}\n---\n"
        "{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: p}, spec: {selector: 'a = b'}}"
    )
    with pytest.raises(ConfigError) as refused:
        admit(policy, None, Offline(bootstrap("0" * 32)))
    with pytest.raises(ExceptionGroup) as caught:
        Simulation.of([pod, policy])
    assert [str(error) for error in caught.value.exceptions] == [f"NetworkPolicy default/p: {refused.value}"]


def test_standard_input_is_a_file_like_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for given in (deployment("b"), "a:\n\tb: 1\n"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        if "\t" in given:
            with pytest.raises(ExceptionGroup) as caught:
                Simulation.read("-")
            assert str(caught.value.exceptions[0]).startswith("standard input: line 2")
        else:
            assert Simulation.read([files(tmp_path, a=deployment("a")), "-"]).names == ("shop/a", "shop/b")


def test_a_missing_directory_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for command in ("simulate", "lint"):
        assert main([command, "-f", "/nowhere"]) == 2
        assert capsys.readouterr().err == "tortie: /nowhere: there is no such file or directory\n"
    assert main(["diff", "-f", "/nowhere", "-f", BEFORE]) == 2
    assert main(["simulate", "-f", str(tmp_path)]) == 2
    assert "holds no file that ends in" in capsys.readouterr().err


# --- what is implied ----------------------------------------------------------------------------------------------


def test_a_namespace_that_is_only_named_has_its_label_and_a_service_account() -> None:
    simulation = manifest(PODS)
    labels = simulation.labels("web/frontend")
    assert labels["pcns.kubernetes.io/metadata.name"] == "web"
    assert labels["pcsa.projectcalico.org/name"] == "default"
    assert labels["app"] == "frontend"


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"])
def test_a_workload_is_one_pod(tmp_path: Path, kind: str) -> None:
    simulation = Simulation.read(files(tmp_path, a=deployment(kind=kind)))
    assert simulation.names == ("shop/web",)
    assert [str(port) for port in simulation.ports("shop/web")] == ["8080/tcp"]
    assert simulation.party("shop/web").ip(6) is not None


def test_pods_of_a_deployment_take_its_place(tmp_path: Path) -> None:
    pod = (
        "{apiVersion: v1, kind: Pod, metadata: {name: web-5f7b9-x2k4q, namespace: shop, labels: {app: web, hash: '5'}},"
        " spec: {containers: [{name: c}]}, status: {phase: Running, podIPs: [{ip: 10.9.8.7}]}}\n---\n"
    )
    owned = deployment(name="web-5f7b9", kind="ReplicaSet").replace(
        "namespace: shop}", "namespace: shop, ownerReferences: [{apiVersion: v1, kind: Deployment, name: web, uid: u}]}"
    )
    assert Simulation.read(files(tmp_path / "a", a=deployment() + owned)).names == ("shop/web",)
    simulation = Simulation.read(files(tmp_path / "b", a=deployment() + owned + pod))
    assert simulation.names == ("shop/web-5f7b9-x2k4q",)
    assert str(simulation.party("shop/web-5f7b9-x2k4q").ip(4)) == "10.9.8.7"


def test_addresses_are_of_the_pools_and_stay_as_they_are(tmp_path: Path) -> None:
    pool = "{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: p}, spec: {cidr: 192.0.2.0/26}}\n---\n"
    first = Simulation.read(files(tmp_path / "a", a=pool + deployment("b")))
    assert str(first.party("shop/b").ip(4)) == "192.0.2.1"
    second = Simulation.read(files(tmp_path / "b", a=pool + deployment("a") + deployment("b")), like=first)
    assert second.party("shop/b").ips == first.party("shop/b").ips
    assert second.party("shop/a").ips != first.party("shop/b").ips
    with pytest.raises(ConfigError, match="more pods than addresses"):
        manifest(pool.replace("/26", "/30, blockSize: 30") + PODS + PODS.replace("name: frontend", "name: third"))


def test_a_pod_on_the_hosts_network_is_its_node(tmp_path: Path) -> None:
    simulation = Simulation.read(files(tmp_path, a=deployment(more=", hostNetwork: true") + PODS))
    assert simulation.party("shop/web").ips == simulation.party("node1").ips
    assert "shop/web" not in simulation.endpoints


def test_a_service_leads_to_the_pods_that_it_selects(tmp_path: Path) -> None:
    service = (
        "{apiVersion: v1, kind: Service, metadata: {name: front, namespace: shop},"
        " spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}}\n---\n"
    )
    policy = (
        "{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: out, namespace: web}, spec: {types:"
        " [Egress], egress: [{action: Allow, destination: {services: {name: front, namespace: shop}}}]}}\n---\n"
    )
    simulation = Simulation.read(files(tmp_path, a=deployment() + PODS + service + policy))
    found = simulation.explain("web/frontend", "svc/shop/front", port=80)
    assert found.allowed
    assert any(":8080 is the only backend" in step.reason for step in found.steps)
    assert simulation.explain("web/frontend", "svc/shop/front:80").allowed
    assert not simulation.explain("web/frontend", "db/postgres", port="sql").allowed


def test_questions_that_make_no_sense_are_answered_with_what_would() -> None:
    simulation = manifest(PODS)
    with pytest.raises(NotFound, match='did you mean "web/frontend"'):
        simulation.explain("web/frontnd", "db/postgres")
    with pytest.raises(ConfigError, match=r"it declares sql \(5432/tcp\)"):
        simulation.explain("web/frontend", "db/postgres", port="http")
    with pytest.raises(ConfigError, match="no addresses of the same IP version"):
        simulation.explain("web/frontend", "2001:db8::1", version=4)
    assert simulation.explain("web/frontend", "db/postgres", port="sql").port == 5432
    assert simulation.explain("outside", "web/frontend", version=6).version == 6


# --- the matrix ---------------------------------------------------------------------------------------------------


def test_a_large_matrix_has_equal_rows_and_columns_once_and_says_the_same(tmp_path: Path) -> None:
    pods = "".join(deployment(f"{app}-{i}", labels=f"{{app: {app}}}") for app in ("a", "b") for i in range(3))
    policy = (
        "{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: p, namespace: shop}, spec:"
        " {selector: app == 'b', ingress: [{action: Allow, source: {selector: app == 'a'}}]}}"
    )
    simulation = Simulation.read(files(tmp_path, a=pods + policy))
    question = Question((*simulation.endpoints, "outside"), (*simulation.endpoints, "outside"))
    plain, merged = table(simulation, question), table(simulation, question, large=1)
    assert not plain.merged
    assert len(plain.rows) == 7
    assert [len(row) for row in merged.rows] == [3, 4]  # outside may do what b may
    said = {
        (source, to): merged.cells[i, j]
        for i, row in enumerate(merged.rows)
        for j, column in enumerate(merged.columns)
        for source in row
        for to in column.destinations
    }
    for (i, j), versions in plain.cells.items():
        source, to = plain.rows[i][0], plain.columns[j].destinations[0]
        assert versions is None or said[source, to] == versions


def test_the_matrix_of_the_shop(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "-f", BEFORE, "--from", "web/*", "--to", "app == 'postgres'", "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["connections"]
    assert [(one["sources"], one["destinations"], one["port"], one["allowed"]) for one in found] == [
        (["web/api"], ["db/postgres"], 5432, {"ipv4": True, "ipv6": True}),
        (["web/frontend"], ["db/postgres"], 5432, {"ipv4": True, "ipv6": True}),
    ]
    assert main(["simulate", "-f", BEFORE, "-4", "--protocol", "icmp"]) == 0
    assert "icmp" in capsys.readouterr().out
    assert main(["simulate", "-f", BEFORE, "--from", "app = x"]) == 2
    assert main(["simulate", "-f", BEFORE, "--from", "wbe/*"]) == 2
    assert "matches no pod" in capsys.readouterr().err
    assert main(["simulate", "-f", BEFORE, "-o", "yaml", "--to", "web/api"]) == 0
    assert "merged: false" in capsys.readouterr().out


# --- connections --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("web/a -> db/b:5432/tcp = allow", ("web/a", "db/b", "5432", "tcp", True)),
        ("web/a->db/b", ("web/a", "db/b", "", "", None)),
        ("a → b:dns/udp = deny", ("a", "b", "dns", "udp", False)),
        ("a -> [2001:db8::1]:443", ("a", "2001:db8::1", "443", "", None)),
        ("outside -> b:icmp", ("outside", "b", "", "icmp", None)),
    ],
)
def test_how_connections_are_written(text: str, read: tuple[object, ...]) -> None:
    found = parse_connection(text)
    assert (found.source, found.destination, found.port, found.protocol, found.expected) == read


@pytest.mark.parametrize("text", ["web/a", "a -> ", "a -> b = maybe", "a -> b:80:90", "a -> b allow"])
def test_what_is_no_connection_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_connection(text)


def test_expectations_decide_about_the_exit_status(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    expect = ["--expect", str(SHOP / "connections.txt")]
    assert main(["simulate", "-f", AFTER, *expect]) == 0
    assert "all 8 expectations met" in capsys.readouterr().out
    assert main(["simulate", "-f", BEFORE, *expect]) == 1
    assert "3 of 8 expectations not met" in capsys.readouterr().out
    assert main(["simulate", "-f", BEFORE, "--connection", "outside -> db/postgres:sql"]) == 0
    (tmp_path / "list").write_text("# only this\n\na -> b\n")
    assert main(["simulate", "-f", BEFORE, "--expect", str(tmp_path / "list")]) == 2
    assert 'list: line 3: "a -> b" expects nothing' in capsys.readouterr().err
    assert main(["simulate", "-f", BEFORE, "--connection", "outside -> db/postgers"]) == 2
    assert 'did you mean "db/postgres"' in capsys.readouterr().err
    assert main(["simulate", "-f", AFTER, "-o", "json", "--connection", "web/api -> db/postgres:sql = deny"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["met"], found["expected"], {one["verdict"] for one in found["explanations"]}) == (
        False,
        "deny",
        {"allow"},
    )


# --- diff and lint ------------------------------------------------------------------------------------------------


def test_diff_ends_as_ci_wants_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "-f", BEFORE, "-f", BEFORE]) == 0
    assert "no change of connectivity among 4 pods" in capsys.readouterr().out
    assert main(["diff", "--before", BEFORE, "--after", AFTER]) == 1
    assert main(["diff", "-f", BEFORE, "-f", AFTER, "--fail-on", "opens"]) == 0
    assert main(["diff", "-f", AFTER, "-f", BEFORE, "--fail-on", "opens"]) == 1
    capsys.readouterr()
    assert main(["diff", "-f", BEFORE, "-f", AFTER, "-o", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    closed = [one for one in found["changes"] if one["sources"] == ["web/frontend"]]
    assert [(one["change"], one["destinations"], one["packets"]) for one in closed] == [
        ("closes", ["db/postgres"], "everything")
    ]
    assert closed[0]["was"]["policy"] == "knp/db/postgres"


@pytest.mark.parametrize(
    "arguments",
    [
        ["-f", BEFORE],
        ["-f", BEFORE, "-f", AFTER, "-f", AFTER],
        ["--before", BEFORE],
        ["-f", BEFORE, "--after", AFTER],
        ["-f", BEFORE, "--against", "lvie"],
        ["--against", "live"],
        ["-f", AFTER, "--against", "live", "--datastore", "/nowhere/store.db"],
        ["-f", BEFORE, "-f", AFTER, "--fail-on", "opened"],
        ["-f", BEFORE, "-f", AFTER, "-o", "yaml"],
        ["-f", "-", "-f", "-"],
        ["--before", "-", "--after", "-"],
    ],
)
def test_what_diff_cannot_compare_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_against_a_datastore_manifests_are_put_over_what_is_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = f"{tmp_path}/store.db"
    namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: NAME}}\n---\n"
    here = files(tmp_path / "a", a=namespace.replace("NAME", "web") + namespace.replace("NAME", "db") + PODS)
    change = files(tmp_path / "b", b=EXAMPLES["TL002"][0], c=EXAMPLES["TL014"][0])
    assert main(["apply", "-f", str(here), "--datastore", store]) == 0
    capsys.readouterr()
    assert main(["diff", "-f", str(here), "--against", "live", "--datastore", store]) == 0
    assert main(["diff", "-f", str(change), "--against", "live", "--datastore", store]) == 1
    assert "closes  web/frontend →" in capsys.readouterr().out
    assert main(["lint", "-f", str(change), "--against", "live", "--datastore", store, "-o", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(one["code"], one["file"]) for one in found] == [
        ("TL002", f"{change}/b.yaml"),
        ("TL014", f"{change}/c.yaml"),
    ]


def test_lint_ends_as_ci_wants_it(capsys: pytest.CaptureFixture[str]) -> None:
    mistakes = ["-f", f"{BEFORE}/shop.yaml", "-f", str(SHOP / "mistakes")]
    assert main(["lint", "-f", AFTER]) == 0
    assert capsys.readouterr().out == "nothing found\n"
    assert main(["lint", *mistakes]) == 1
    assert main(["lint", *mistakes, "--level", "error"]) == 0
    assert main(["lint", *mistakes, "--level", "fatal"]) == 2
