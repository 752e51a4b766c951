"""The API server's double as kubectl sees it: a client that nobody here wrote."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kube_server import kube_program

KUBECTL = shutil.which("kubectl")
pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")

OLDEST = (1, 27)

Kubectl = Callable[..., str]

OBJECTS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: red}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: node}
spec:
  selector: {matchLabels: {app: node}}
  template:
    metadata: {labels: {app: node}}
    spec:
      containers: [{name: node, image: "node:1"}]
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: pools.crd.example.org}
spec:
  group: crd.example.org
  scope: Cluster
  names: {plural: pools, kind: Pool, shortNames: [po2]}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              cidr: {type: string}
              mode: {type: string, enum: [Always, Never]}
"""
POOL = """
apiVersion: crd.example.org/v1
kind: Pool
metadata: {name: first}
spec: {cidr: 10.0.0.0/8, mode: Never}
"""


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    said = subprocess.run([str(KUBECTL), "version", "--client", "-o", "json"], capture_output=True, check=True).stdout
    version = json.loads(said)["clientVersion"]
    if (int(version["major"]), int(version["minor"].rstrip("+"))) < OLDEST:
        pytest.skip(f"kubectl {version['gitVersion']} is too old: it validates with what the double does not serve")
    home = tmp_path_factory.mktemp("kubectl")
    kubeconfig = home / "kubeconfig"
    with kube_program(kubeconfig, "--tls", "--rbac"):

        def run(*words: str, stdin: str = "", fails: bool = False) -> str:
            assert KUBECTL is not None
            environment = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(kubeconfig)}
            done = subprocess.run(
                [KUBECTL, *words], input=stdin, env=environment, capture_output=True, text=True, timeout=30, check=False
            )
            assert (done.returncode != 0) == fails, done.stderr
            return done.stderr if fails else done.stdout

        yield run


def test_objects_come_change_and_go(kubectl: Kubectl, tmp_path: Path) -> None:
    file = tmp_path / "objects.yaml"
    file.write_text(OBJECTS)
    assert kubectl("apply", "-f", str(file)).count("created") == 3
    assert kubectl("apply", "-f", str(file)).count("unchanged") == 3
    file.write_text(OBJECTS.replace("node:1", "node:2").replace("red", "blue"))
    assert kubectl("apply", "-f", str(file)).count("configured") == 2
    node = json.loads(kubectl("get", "daemonset", "node", "-o", "json"))
    containers = node["spec"]["template"]["spec"]["containers"]
    assert ([one["image"] for one in containers], node["metadata"]["generation"]) == (["node:2"], 2)
    strategic = '{"spec":{"template":{"spec":{"containers":[{"name":"node","env":[{"name":"A","value":"b"}]}]}}}}'
    assert "patched" in kubectl("patch", "daemonset", "node", "-p", strategic)
    kubectl("wait", "--for=condition=Established", "crd/pools.crd.example.org", "--timeout=5s")
    kubectl("apply", "-f", "-", stdin=POOL)
    assert 'Unsupported value: "Maybe"' in kubectl(
        "patch", "pool", "first", "--type=merge", "-p", '{"spec":{"mode":"Maybe"}}', fails=True
    )
    assert "unknown field" in kubectl("apply", "-f", "-", stdin=POOL.replace("cidr", "cidrs"), fails=True)
    kubectl("label", "pool", "first", "a=b")
    assert kubectl("get", "pools", "-l", "a=b", "-o", "name") == "pool.crd.example.org/first\n"
    assert "serverside-applied" in kubectl("apply", "--server-side", "-f", "-", stdin=POOL)
    dry = kubectl("apply", "--dry-run=server", "-f", "-", stdin=POOL.replace("Never", "Always"))
    assert "configured (server dry run)" in dry
    assert kubectl("get", "pool", "first", "-o", "jsonpath={.spec.mode}") == "Never"
    assert "deleted" in kubectl("delete", "pool", "first")
    assert kubectl("delete", "-f", str(file)).count("deleted") == 3


def test_accounts_and_what_they_may(kubectl: Kubectl) -> None:
    kubectl("create", "namespace", "shop")
    kubectl("create", "serviceaccount", "bot", "-n", "shop")
    kubectl("create", "clusterrole", "reader", "--verb=list", "--resource=pods")
    kubectl("create", "clusterrolebinding", "reader", "--clusterrole=reader", "--serviceaccount=shop:bot")
    token = kubectl("create", "token", "bot", "-n", "shop").strip()
    assert token.count(".") == 2
    bot = "--as=system:serviceaccount:shop:bot"
    assert kubectl("auth", "can-i", "list", "pods", bot) == "yes\n"
    assert 'cannot list resource "nodes" in API group ""' in kubectl("get", "nodes", bot, fails=True)
    kubectl("delete", "namespace", "shop")
    assert "NotFound" in kubectl("get", "namespace", "shop", fails=True)
