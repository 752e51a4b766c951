"""What leaves a node for somebody who helps, and what must not; what calicoctl says of a node; what a node needs."""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tortie.cli import node_check
from tortie.cli.cluster_diags import first
from tortie.cli.main import main
from tortie.cli.node_diags import QUESTIONS, collect, dumps
from tortie.cli.node_status_text import lines
from tortie.cli.redact import redacted
from tortie.cli.tarball import MOST_OF_A_FILE, Tarball

PEERS = [
    {"name": "Mesh_10_0_0_2", "ip": "10.0.0.2", "as": 64512, "state": "Established", "since": "2026-01-02 10:20:30.5",
     "error": "", "imported": 3, "filtered": 0, "exported": 1},
    {"name": "Global_10_0_0_9", "ip": "10.0.0.9", "as": 64999, "state": "Active", "since": "10:20:31.25",
     "error": "Socket: Connection refused", "imported": 0, "filtered": 0, "exported": 0},
]  # fmt: skip
NODE: dict[str, Any] = {
    "node": "n1",
    "bird": {"state": "ready", "version": "2.0.12", "routerID": "10.0.0.1"},
    "peers": PEERS,
    "routes": [],
    "problems": {},
}
SECRETS = {
    'password "hunter2";': 'password "<redacted>";',
    "  password 'hunter2'": "  password '<redacted>'",
    'etcdPassword: hunter2\nuser: x': "etcdPassword: <redacted>\nuser: x",
    '{"token": "hunter2", "a": 1}': '{"token": "<redacted>", "a": 1}',
    "ETCD_PASSWORD=hunter2 tortie agent": "ETCD_PASSWORD=<redacted> tortie agent",
    "Authorization: Bearer hunter2hunter2": "Authorization: <redacted>",
    "a:\n  password: |-\n    hunter2\n\n    more\n  user: x": "a:\n  password: <redacted>\n  user: x",
    "password: correct horse, battery": "password: <redacted>",
    "password:\n  hunter2\nuser: x": "password:\n  <redacted>\nuser: x",
    "x?token=a,b;c}&y=1 next": "x?token=<redacted> next",
    "sent Bearer hunter2hunter2 to it": "sent Bearer <redacted> to it",
    "client-key-data: aHVudGVyMg==": "client-key-data: <redacted>",
    "https://root:hunter2@10.0.0.1:2379/x": "https://<redacted>@10.0.0.1:2379/x",
    "private_key = hunter2hunter2=": "private_key = <redacted>",
    "-----BEGIN EC PRIVATE KEY-----\nhunter2\nhunter2==\n-----END EC PRIVATE KEY-----\nafter": (
        "-----BEGIN EC PRIVATE KEY-----\n<redacted>\n-----END EC PRIVATE KEY-----\nafter"
    ),
    "hunter2\nhunter2==\n-----END RSA PRIVATE KEY-----\n": "<redacted>\n-----END RSA PRIVATE KEY-----\n",
    "jwt eyJhbGciOiJSUzI1NiJ9.eyJodW50ZXIyIjoxfQ.c2ln here": "jwt <redacted> here",
}  # fmt: skip


# --- secrets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_taken_out(text: str) -> None:
    assert redacted(text) == SECRETS[text]


@pytest.mark.parametrize(
    "text",
    [
        "password:\n  secretKeyRef:\n    name: bgp-passwords\n    key: rack\n",
        "automountServiceAccountToken: true",
        "tokens: 3",
        "secretName: x",
        "10.9.0.0/16 via 10.0.0.2 dev eth0 proto bird",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "2026-01-02 10:20:30 <INFO> Mesh_10_0_0_2: Connected",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert redacted(text) == text


@given(
    st.sampled_from(["password", "BGP_PASSWORD", "clientSecret", "token", "k8sAPIToken", "etcdKey", "api-key"]),
    st.sampled_from([": ", "=", ' = "', ": '"]),
    st.text(alphabet="abcdefghXYZ23456789,;]}", min_size=6).filter(lambda word: not word.isdecimal()),
    st.text(alphabet="abc \n{}[]:=\"'", max_size=20),
)
def test_no_secret_with_a_name_gets_through(name: str, between: str, secret: str, before: str) -> None:
    assume(secret not in before)
    quote = between[-1] if between[-1] in "\"'" else ""
    assert secret not in redacted(f"{before}\n{name}{between}{secret}{quote}\nend")


# --- a node's archive ---------------------------------------------------------------------------------------------


class _Answers(BaseHTTPRequestHandler):
    """An agent's socket: says the question and a secret."""

    def do_GET(self) -> None:
        asked = self.path.strip("/")
        document = NODE if asked == "node" else {"asked": asked, "password": "hunter2"}
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "test"

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    """The socket of one that answers."""
    path = tmp_path / "run" / "agent.sock"
    path.parent.mkdir()
    with socketserver.ThreadingUnixStreamServer(str(path), _Answers) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield path
        finally:
            server.shutdown()
            thread.join()


def contents(path: Path) -> dict[str, str]:
    with tarfile.open(path) as tar:
        opened = {member.name.partition("/")[2]: tar.extractfile(member) for member in tar.getmembers()}
        return {name: file.read().decode() for name, file in opened.items() if file is not None}


def test_the_archive_has_programs_answers_and_logs_and_no_secret(agent: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "cni"
    logs.mkdir(parents=True)
    (logs / "cni.log").write_text("began\ntoken=hunter2\n")
    (agent.parent / "bird.conf").write_text('protocol bgp a {\n  password "hunter2";\n}\n')
    (agent.parent / "bird.log").write_text("password=hunter2\n" + "x" * (MOST_OF_A_FILE - 16) + "\nlast\n")
    (tmp_path / "logs" / "secret").symlink_to("/etc/shadow")
    file = tmp_path / "diags.tar.gz"
    tar = Tarball(file, "diags-n1")
    collect(tar, agent, tmp_path / "logs", ("env", "--", "echo", "password=hunter2"))
    tar.close()
    assert file.stat().st_mode & 0o777 == 0o600
    found = contents(file)
    assert {dump.name for dump in dumps(agent.parent)} <= set(found)
    assert {f"agent/{question}.json" for question in QUESTIONS} <= set(found)
    assert json.loads(found["agent/status.json"]) == {"asked": "status", "password": "<redacted>"}
    assert found["routes.txt"].startswith("$ ip -d route show table all\npassword=<redacted> ip -d route")
    assert found["run/bird.conf"] == 'protocol bgp a {\n  password "<redacted>";\n}\n'
    assert found["logs/cni.log"] == "began\ntoken=<redacted>\n"
    assert found["run/bird.log"].strip("x") == "\nlast\n", "half a line could be half a secret"
    assert "logs/secret" not in found
    assert "hunter2" not in "".join(found.values())


def test_what_cannot_be_collected_is_said(tmp_path: Path) -> None:
    tar = Tarball(tmp_path / "diags.tar.gz", "diags")
    collect(tar, tmp_path / "none" / "agent.sock", tmp_path / "no-logs", ("/nowhere/program",))
    tar.close()
    found = contents(tmp_path / "diags.tar.gz")
    assert found["links.txt"].endswith("cannot be run: No such file or directory\n")
    assert "agent" in found["agent/node.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_it_leaves_no_archive(tmp_path: Path, number: signal.Signals) -> None:
    script = (
        "import pathlib, sys, time\n"
        "from tortie.cli.stopping import stopped_as_by_interrupt\n"
        "from tortie.cli.tarball import Tarball\n"
        "with stopped_as_by_interrupt(), Tarball(pathlib.Path(sys.argv[1]), 'diags') as tar:\n"
        "    tar.add('a', 'text')\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "diags.tar.gz")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == (-number if number == signal.SIGINT else 128 + number), (
        "our main makes 130 of an interrupt"
    )
    assert list(tmp_path.iterdir()) == []


def test_it_is_stopped_where_ctrl_c_is_ignored() -> None:
    """As in the background of a shell."""
    script = (
        "import signal, time\n"
        "from tortie.cli.stopping import stopped_as_by_interrupt\n"
        "with stopped_as_by_interrupt():\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(20)\n"
    )
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM


def test_an_archive_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    file = tmp_path / "file" / "x.tar.gz"  # not of a node: which is meant depends on the labs of the machine
    assert main(["cluster", "diags", "--datastore", "memory:", "-o", str(file)]) == 2
    assert "cannot be written: " in capsys.readouterr().err


# --- what calicoctl says of a node --------------------------------------------------------------------------------


def test_the_status_of_a_node_as_calicoctl_prints_it() -> None:
    assert "\n".join(lines(NODE)) == (
        "Calico process is running.\n"
        "\n"
        "IPv4 BGP status\n"
        "+--------------+-------------------+-------+----------+-----------------------------------+\n"
        "| PEER ADDRESS |     PEER TYPE     | STATE |  SINCE   |               INFO                |\n"
        "+--------------+-------------------+-------+----------+-----------------------------------+\n"
        "| 10.0.0.2     | node-to-node mesh | up    | 10:20:30 | Established                       |\n"
        "| 10.0.0.9     | global            | start | 10:20:31 | Active Socket: Connection refused |\n"
        "+--------------+-------------------+-------+----------+-----------------------------------+\n"
        "\n"
        "IPv6 BGP status\n"
        "No IPv6 peers found.\n"
    )
    away = {**NODE, "bird": {"state": "none"}, "peers": []}
    assert "INFO: BIRDv6 process: 'bird6' is not running." in lines(away)


def test_a_node_without_an_agent_is_not_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["node", "status", "-o", "xml"]) == 2
    assert "is not one of table, json, calicoctl" in capsys.readouterr().err


# --- what a node needs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "good"), [("6.1.0-26-amd64", True), ("6.12.1", True), ("5.10.0-8", False), ("10.0", True), ("6", False)]
)
def test_kernels_that_are_new_enough(release: str, good: bool) -> None:
    assert node_check.new_enough(release) is good


def test_what_is_required_fails_and_what_is_not_is_a_warning() -> None:
    found = {need.name: True for need in node_check.NEEDS}
    assert node_check.missing("6.1.0", found) == []
    found |= {"nf_tables": False, "ipip": False}
    assert node_check.missing("4.4.0", found) == ["kernel", "nf_tables"]
    printed = list(node_check.lines("4.4.0", found))
    assert "\t\t4.4.0               \t\tFAIL, at least 6.1" in printed
    assert "\t\tnf_tables           \t\tFAIL" in printed
    assert "\t\tipip                \t\tWARNING, needed for pools with ipipMode" in printed
    assert "\t\tveth                \t\tOK" in printed


def test_nodes_in_focus_come_first() -> None:
    assert first(["a", "b", "c", "d"], ["d", "x"], 3) == ["d", "a", "b"]
    assert first(["a", "b"], ["b", "a"], 1) == ["b", "a"]
    assert first(["a"], [], 0) == []


# --- a cluster of Kubernetes --------------------------------------------------------------------------------------

KUBECTL = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/asked"
case "$*" in
  *"-l k8s-app=calico-node"*) printf 'kube-system node-a n1\\nkube-system node-b n2\\nred stranger n2\\n' ;;
  *" logs "*) echo "log of $*"; echo "token=hunter2" ;;
  *events*) echo "no events for you" >&2; exit 3 ;;
  *) echo "answer to $*" ;;
esac
"""


def test_what_kubectl_tells_of_a_cluster(tmp_path: Path) -> None:
    """A kubectl of ours, and an API server that is away: what can be had is had."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL)
    program.chmod(0o755)
    kubeconfig = tmp_path / "kubeconfig"
    cluster = "{name: c, cluster: {server: 'http://127.0.0.1:9'}}"
    context = "{name: c, context: {cluster: c, user: u}}"
    kubeconfig.write_text(
        f"{{apiVersion: v1, kind: Config, clusters: [{cluster}], contexts: [{context}], current-context: c, "
        "users: [{name: u, user: {}}]}"
    )
    config = tmp_path / "calicoctl.cfg"
    config.write_text(
        "{apiVersion: projectcalico.org/v3, kind: CalicoAPIConfig, spec: {datastoreType: kubernetes, "
        f"kubeconfig: {kubeconfig}}}}}"
    )
    file = tmp_path / "out.tar.gz"
    command = [sys.executable, "-m", "tortie.cli.main", "cluster", "diags", "-o", str(file), "--since", "5m"]
    command += ["--max-logs", "1", "--focus-nodes", "n2", "--config", str(config), "--context", "c"]
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1, "the datastore is away, in one line"
    found = contents(file)
    assert "objects.error" in found
    logs = {name: text for name, text in found.items() if name.startswith("kubernetes/logs/")}
    assert list(logs) == ["kubernetes/logs/kube-system/node-b.txt"], "the node in focus, and no more than one"
    assert "--since=5m" in logs["kubernetes/logs/kube-system/node-b.txt"]
    assert "hunter2" not in "".join(found.values())
    assert "no events for you" in found["kubernetes/events.txt"]
    assert "exit status 3" in found["kubernetes/events.txt"]
    asked = (program.parent / "asked").read_text()
    assert f"--kubeconfig {kubeconfig} --context c get nodes -o wide" in asked
    assert " secret" not in asked
