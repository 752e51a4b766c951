"""Manifests under test: the fixture `network` as pytest has it, and what its answers say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tortie.base.errors import ConfigError, NotFound
from tortie.testing.policies import Disagreement, Network

MANIFESTS = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: frontend, namespace: web}
spec:
  selector: {matchLabels: {app: frontend}}
  template:
    metadata: {labels: {app: frontend}}
    spec: {containers: [{name: main, image: frontend}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: backup, namespace: ops}
spec:
  schedule: 0 3 * * *
  jobTemplate: {spec: {template: {spec: {containers: [{name: main, image: backup}]}}}}
---
apiVersion: v1
kind: Pod
metadata: {name: postgres, namespace: db, labels: {app: postgres}}
spec: {containers: [{name: main, image: postgres, ports: [{name: sql, containerPort: 5432}]}]}
"""
POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: sql, namespace: db}
spec:
  podSelector: {}
  ingress:
    - from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: web}}}]
      ports: [{port: sql}]
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: four, namespace: web}
spec:
  selector: app == 'frontend'
  types: [Ingress]
  ingress: [{action: Allow, ipVersion: 4, protocol: TCP, destination: {ports: [80]}}]
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A user's, with its manifests."""
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "workloads.yaml").write_text(MANIFESTS)
    (tmp_path / "manifests" / "policies.yaml").write_text(POLICY)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntortie_manifests = manifests\n")
    return tmp_path


def run(repository: Path, test: str, *arguments: str) -> tuple[int, str]:
    """What pytest says about a test file, as a user runs it."""
    (repository / "test_policies.py").write_text(test)
    without = ("cacheprovider", "asyncio", "hypothesispytest", "xdist")  # slow to import, and of no use here
    plugins = [word for name in without for word in ("-p", f"no:{name}")]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *arguments]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_fixture_answers_from_the_manifests(repository: Path) -> None:
    test = """
def test_who_reaches_the_database(network):
    assert network.allows("web/frontend", "db/postgres", 5432)
    assert network.allows("web/frontend", "db/postgres", "sql")
    assert not network.allows("web/frontend", "db/postgres", 22)
    assert not network.allows("ops/backup", "db/postgres", 5432)
    assert not network.allows("outside", "db/postgres", 5432, "tcp")
    assert not network.allows("web/frontend", "db/postgres", 5432, "udp")
    assert network.allows("db/postgres", "ops/backup", protocol="icmp")
    assert network.pods == ("db/postgres", "ops/backup", "web/frontend")
"""
    assert run(repository, test)[0] == 0


def test_a_failure_names_the_rule_that_decides(repository: Path) -> None:
    test = """
def test_open(network):
    assert network.allows("web/frontend", "db/postgres", 22)

def test_closed(network):
    assert not network.allows("web/frontend", "db/postgres", 5432)
"""
    code, said = run(repository, test)
    assert code == 1
    assert "assert web/frontend → db/postgres tcp 22: denied, ingress: no rule matched in tier default" in said
    assert "knp/db/sql in tier default (manifests/policies.yaml: document 1)" in said
    assert "✔ egress on node1   Allow by rule 0 (egress) of profile/kns.web" in said
    assert "✘ ingress on node1  no rule matched" in said
    assert "simulate.py" not in said


def test_a_wrong_name_is_one_line(repository: Path) -> None:
    test = """
def test_open(network):
    assert network.allows("web/frontent", "db/postgres", 22)
"""
    code, said = run(repository, test)
    assert code == 1
    assert 'did you mean "web/frontend"?' in said
    assert "simulate.py" not in said
    assert "policies.py:" not in said.replace("test_policies.py:", "")


def test_wrong_manifests_are_told_in_the_words_of_apply(repository: Path) -> None:
    wrong = POLICY.replace("action: Allow", "action: Alow").replace("podSelector: {}", "podSelector: 7")
    (repository / "manifests" / "policies.yaml").write_text(wrong)
    code, said = run(repository, "def test_any(network): pass")
    assert code == 1
    assert '"Alow" is not one of Allow, Deny, Log, Pass' in said
    assert "spec.podSelector" in said
    assert "Traceback" not in said


def test_option_and_mark_choose_other_manifests(repository: Path) -> None:
    (repository / "east").mkdir()
    (repository / "east" / "workloads.yaml").write_text(MANIFESTS)
    asks = 'def test_it(network): assert network.allows("outside", "db/postgres", 5432)'
    assert run(repository, asks)[0] == 1
    assert run(repository, asks, "--tortie-manifests", "east")[0] == 0
    marked = f"import pytest\npytestmark = pytest.mark.tortie_manifests('east')\n{asks}"
    assert run(repository, marked, "--strict-markers")[0] == 0


def test_without_manifests_it_says_what_to_do(repository: Path) -> None:
    (repository / "pytest.ini").write_text("[pytest]\n")
    code, said = run(repository, "def test_any(network): pass\ndef test_none(): pass")
    assert code == 1
    assert "say tortie_manifests in the ini file, or --tortie-manifests PATH" in said
    assert "1 passed, 1 error" in said


def test_tests_that_do_not_ask_import_nothing(repository: Path) -> None:
    test = """
import sys

def test_any():
    assert "tortie.testing.pytest_plugin" in sys.modules
    assert not {name for name in sys.modules if name.startswith(("tortie.calc", "msgspec", "yaml"))}
"""
    assert run(repository, test)[0] == 0


def test_what_differs_between_ip_versions_is_neither_yes_nor_no(repository: Path) -> None:
    network = Network.read(repository / "manifests")
    answer = network.allows("ops/backup", "web/frontend", 80)
    with pytest.raises(Disagreement, match=r"IPv4: allowed(.|\n)*IPv6: denied"):
        assert answer
    with pytest.raises(Disagreement):
        assert not answer
    assert network.allows("ops/backup", "web/frontend", 80, version=4)
    assert not network.allows("ops/backup", "web/frontend", 80, version=6)


def test_ends_and_ports_that_there_are_not(repository: Path) -> None:
    network = Network.read(repository / "manifests")
    with pytest.raises(NotFound, match="web/nobody"):
        network.allows("web/nobody", "db/postgres")
    with pytest.raises(ConfigError, match=r'declares no tcp port "sqll"; it declares sql \(5432/tcp\)'):
        network.allows("web/frontend", "db/postgres", "sqll")
    assert network.asked == []


def test_addresses_are_ends_too(repository: Path) -> None:
    network = Network.read(repository / "manifests")
    assert network.allows("db/postgres", "203.0.113.7", 443)
    assert not network.allows("203.0.113.7", "db/postgres", 443)
    assert str(network.asked[-1]).startswith("203.0.113.7 → db/postgres  tcp 443, IPv4: denied\n")
