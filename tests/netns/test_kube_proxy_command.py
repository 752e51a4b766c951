"""`tortie services` from end to end: a stand-alone proxy beside kube-proxy's rules, asked by the command line."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kube_proxy_ground import KUBE_PROXY, POD, TARGET, VIP, Ground, echoes, process_named, until

from namespaces import Ns
from tortie.cli.main import main

pytestmark = pytest.mark.root

OBJECTS = f"""
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec:
  clusterIP: {VIP[4]}
  clusterIPs: [{VIP[4]}]
  ports: [{{name: http, port: 80, protocol: TCP, targetPort: {TARGET}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, namespace: default, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
endpoints: [{{addresses: [{POD[4]}], conditions: {{ready: true}}}}]
ports: [{{name: http, port: {TARGET}, protocol: TCP}}]
"""


class Node:
    """`tortie proxy` with files of its own, and commands that ask it."""

    def __init__(self, ground: Ground, directory: Path) -> None:
        self.ground, self.directory = ground, directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.directory / "proxy.sock"

    def furnish(self) -> None:
        objects = self.directory / "objects.yaml"
        objects.write_text(OBJECTS)
        status, _, error = _tortie("apply", "-f", str(objects), "--datastore", str(self.directory / "store.db"))
        assert status == 0, error

    def start(self, *options: str) -> None:
        words = [
            "nsenter", f"--net={self.ground.node.path}", sys.executable, "-m", "tortie.cli.main", "proxy",
            "--node", "n1", "--datastore", str(self.directory / "store.db"), "--run-dir", str(self.directory),
            "--lib-dir", str(self.directory), "--cluster-cidr", "203.0.113.0/24", *options,
        ]  # fmt: skip
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log)
        until(lambda: self.socket.exists() and self.status()["why"] != "not looked yet", "the proxy answers")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None
            self.socket.unlink(missing_ok=True)

    def status(self) -> dict[str, object]:
        (answer,) = json.loads(self.ask("status", "-o", "json")[1])
        return {"why": "", **answer}

    def ask(self, *words: str) -> tuple[int, str, str]:
        return _tortie("services", *words, "--socket", str(self.socket))

    def table(self) -> str:
        return self.ground.node.run("nft", "list", "table", "inet", "tortie-services", check=False)


def _tortie(*words: str) -> tuple[int, str, str]:
    """A command, in this process: its status, and what it prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(words)
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def node(make_ns: Callable[..., Ns], tmp_path: Path) -> Iterator[Node]:
    ground = Ground(make_ns("node"), make_ns("pod"), make_ns("client"))
    ground.begin()
    made = Node(ground, tmp_path)
    try:
        made.furnish()
        yield made
    finally:
        made.stop()
        ground.end()


def test_from_kube_proxy_and_back(node: Node, tmp_path: Path) -> None:
    node.ground.restore("nft", KUBE_PROXY)
    process = process_named(tmp_path, node.ground.node)
    try:
        node.start()
        status, text, _ = node.ask("status")
        assert status == 0, text
        assert "kube-proxy (iptables)" in text
        assert node.table() == ""
        with contextlib.closing(node.ground.dial()) as old:
            assert echoes(old)
            status, text, _ = node.ask("takeover", "--plan")
            assert status == 0
            assert f"kill {process.pid}" in text
            assert node.table() == ""
            status, text, _ = node.ask("takeover")
            assert status == 1
            assert "once more: tortie services takeover" in text
            assert "dnat" in node.table()
            process.kill()
            process.wait()
            status, text, _ = node.ask("takeover")
            assert status == 0, text
            assert "KUBE-SERVICES" not in node.ground.node.run("nft", "list", "ruleset")
            assert echoes(old, b"still here")
            with contextlib.closing(node.ground.dial()) as new:
                assert echoes(new)
            assert node.ask("status")[0] == 0

            node.stop()
            node.start()  # the choice is still there
            assert (node.status()["asked"], node.status()["on"]) == ("on", True)
            status, text, _ = node.ask("release")
            assert status == 1
            assert "dnat" in node.table()
            node.ground.restore("nft", KUBE_PROXY)
            process = process_named(tmp_path, node.ground.node)
            status, text, _ = node.ask("release")
            assert status == 0, text
            assert node.table() == ""
            assert echoes(old, b"and after")
            with contextlib.closing(node.ground.dial()) as new:
                assert echoes(new)
    finally:
        process.kill()
        process.wait()


def test_it_says_what_to_do_when_nothing_says_where_pods_are(node: Node) -> None:
    node.start("--cluster-cidr", "", "--services", "on")
    until(lambda: "nothing says where pods" in (node.directory / "log").read_text(), "it is in the log")
    _, text, _ = node.ask("status")
    assert "set TORTIE_CLUSTER_CIDR in the agent's environment, or --cluster-cidr of tortie proxy" in text
    here = node.directory / "node.yaml"
    here.write_text("{apiVersion: v1, kind: Node, metadata: {name: n9}, spec: {podCIDRs: [10.244.9.0/24]}}")
    status, _, error = _tortie("apply", "-f", str(here), "--datastore", str(node.directory / "store.db"))
    assert status == 0, error
    until(lambda: "nothing says where" not in node.ask("status")[1], "the Node says it")
    assert (node.directory / "log").read_text().count("nothing says where pods") == 1


def test_what_is_configured_is_not_undone(node: Node) -> None:
    node.start("--services", "off")
    status, _, error = node.ask("takeover")
    assert status == 1
    assert "--services or TORTIE_SERVICES" in error
    assert error.count("\n") == 1
    status, text, _ = node.ask("status")
    assert status == 1
    assert "nobody serves services" in text
