"""The lab as its user has it: the command line, real agents, real packets, and programs that are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from labs import PATIENCE, Lab, pod
from nobody import as_nobody
from tortie.lab import network, processes
from tortie.lab.processes import read_pid

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]

NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "red"}}


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not come about: {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes and a pod on each, shared by the tests that leave it as it is."""
    lab = Lab(f"e{os.getpid()}")
    try:
        lab.up()
        lab.apply(NAMESPACE, pod("a", node="node1"), pod("b", node="node2"), pod("c", node="node2"))
        until(lambda: all(lab.phase(name) == "Running" for name in "abc"), "a, b and c run")
        yield lab
    finally:
        lab.tortie("lab", "down", "--name", lab.name)
        assert network.leftovers(lab.directory) == []


@pytest.fixture
def other() -> Iterator[Lab]:
    """A second lab, not up yet; gone after the test."""
    lab = Lab(f"o{os.getpid()}")
    yield lab
    network.destroy(lab.directory)
    assert network.leftovers(lab.directory) == []


# --- what it shows ------------------------------------------------------------------------------------------------


def test_up_again_finds_everything_there(lab: Lab) -> None:
    assert f"lab {lab.name} was up already" in lab.up()


def test_status_has_nodes_sessions_and_pods(lab: Lab) -> None:
    shown = lab.tortie("lab", "status")
    assert shown.count("2 of 2 up") == 2
    assert "Running" in shown
    assert shown.count(", ready") == 3, "two agents and the controllers"


def test_a_pipe_gets_whole_addresses_whatever_else_is_in_the_line(lab: Lab) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TORTIE_LAB": lab.name}
    until(lambda: "kube-system: 2 of 2 pods ready" in lab.tortie("lab", "status"), "nobody has a message")
    command = [sys.executable, "-m", "tortie.cli.main", "lab", "status"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, timeout=PATIENCE)
    shown = set(done.stdout.replace("│", " ").split())
    assert {entry.ip for name in "abc" for entry in lab.pod(name).status.pod_ips} <= shown
    assert "message" not in shown


def test_a_narrow_terminal_loses_nothing(lab: Lab) -> None:
    variables = os.environ | {"TORTIE_LAB": lab.name, "COLUMNS": "40"}
    command = [sys.executable, "-m", "tortie.cli.main", "lab", "status"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert "…" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) == 40


@pytest.mark.parametrize("options", [(), ("-6",), ("--protocol", "icmp"), ("--protocol", "icmp", "-6")], ids=" ".join)
def test_every_pod_reaches_every_pod_and_the_outside(lab: Lab, options: tuple[str, ...]) -> None:
    pairs = lab.matrix(*options)
    names = {"red/a", "red/b", "red/c", "outside"}
    assert set(pairs) == {(a, b) for a in names for b in names if a != b}
    for (source, _), entry in pairs.items():
        assert entry["passed"] is (source != "outside")
        assert entry.get("agrees", True)


def test_a_closed_port_is_refused_not_dropped(lab: Lab) -> None:
    assert lab.matrix("--port", "81")["red/a", "red/b"]["result"] == "refused"
    assert lab.matrix("--protocol", "udp")["red/a", "red/c"]["result"] == "refused"  # its containerPort is TCP


def test_policy_is_in_the_packets_and_in_the_verdicts(lab: Lab) -> None:
    policy = {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "none", "namespace": "red"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    }  # fmt: skip
    lab.apply(policy)
    try:
        until(lambda: lab.matrix(status=0)["red/a", "red/b"]["result"] == "timeout", "the policy holds", 20)
        pairs = lab.matrix()
        assert pairs["red/a", "red/b"] == {
            "from": "red/a", "to": "red/b", "result": "timeout", "passed": False, "expected": False, "agrees": True,
        }  # fmt: skip
        assert pairs["red/a", "outside"]["passed"]
    finally:
        lab.tortie("delete", "networkpolicies.networking.k8s.io", "none", "-n", "red")
    until(lambda: lab.matrix()["red/a", "red/b"]["passed"], "the policy is gone", 20)


def test_exec_is_in_the_pods_network_with_the_pods_name(lab: Lab) -> None:
    ip = lab.pod("a").status.pod_ip
    assert lab.tortie("lab", "exec", "red/a", "--", "hostname").strip() == "a"
    assert ip in lab.tortie("lab", "exec", "red/a", "--", "ip", "-4", "address")
    assert "172.30.0.12" in lab.tortie("lab", "exec", "node:node2", "--", "ip", "-4", "address")
    page = lab.tortie("lab", "exec", "red/b", "--", "busybox", "wget", "-qO-", f"http://{ip}/hello")
    assert page.startswith("red/a on node1 saw ")
    lab.tortie("lab", "exec", "red/a", "sh", "-c", "exit 7", status=7)


def test_logs_say_who_came(lab: Lab) -> None:
    ip = lab.pod("c").status.pod_ip
    caller = lab.pod("a").status.pod_ip
    lab.tortie("lab", "exec", "red/a", "--", "busybox", "wget", "-qO-", f"http://{ip}/from-a")
    line = next(line for line in lab.tortie("lab", "logs", "red/c").splitlines() if "GET /from-a" in line)
    assert f"HTTP from {caller} port " in line


def test_a_log_that_is_followed_ends_with_its_pod(lab: Lab) -> None:
    lab.apply(pod("brief", command=["sh", "-c", "echo begun; exec sleep 600"]))
    until(lambda: lab.phase("brief") == "Running", "brief runs")
    process = lab.start("lab", "logs", "-f", "red/brief")
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    lab.tortie("delete", "pod", "brief", "-n", "red")
    try:
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_pod_goes_outside_with_its_nodes_address(lab: Lab) -> None:
    page = lab.tortie("lab", "exec", "red/a", "--", "busybox", "wget", "-qO-", "http://198.51.100.9/")
    assert page.startswith("outside on outside saw 172.30.0.11 port ")
    assert "from 172.30.0.11 port " in lab.tortie("lab", "logs", "outside")


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (("exec", "red/nobody", "--", "true"), 1, "red"),
        (("exec", "node:node9", "--", "true"), 2, 'has no node "node9"; it has node1 and node2'),
        (("exec", "a/b/c", "--", "true"), 2, "is not a pod such as red/web"),
        (("logs", "red/nobody"), 1, "red/nobody has no log"),
        (("status", "--name", "nowhere"), 2, 'no lab "nowhere" here'),
        (("up", "--nodes", "0"), 2, "a lab has from 1 to 240"),
        (("up", "--name", "no-dash"), 2, "cannot be the name of a lab"),
    ],
)
def test_mistakes_are_one_clear_line(lab: Lab, words: tuple[str, ...], status: int, complaint: str) -> None:
    said = lab.tortie("lab", *words, status=status)
    assert complaint in said
    assert said.count("\n") == 1


def test_another_size_under_the_same_name_is_refused(lab: Lab) -> None:
    said = lab.tortie("lab", "up", "--name", lab.name, "--nodes", "3", status=2)
    assert "is there already with 2 nodes" in said


# --- pods ---------------------------------------------------------------------------------------------------------


def test_programs_run_restart_and_end_as_the_manifest_says(lab: Lab) -> None:
    once = pod("once", command=["sh", "-c", "hostname; exit 3"], restartPolicy="Never")
    again = pod("again", command=["sh", "-c", "echo round; exit 0"])
    none = pod("none", command=["/no/such/program"], restartPolicy="Never")
    done = pod("done", command=["true"], restartPolicy="OnFailure")
    lab.apply(once, again, done, none)
    try:
        until(lambda: lab.phase("once") == "Failed", "once has failed")
        until(lambda: lab.phase("done") == "Succeeded", "done has succeeded")
        until(lambda: lab.tortie("lab", "logs", "red/again").count("round") >= 2, "again ran again")
        assert lab.tortie("lab", "logs", "red/once").split() == ["once"]
        until(lambda: lab.phase("none") == "Failed", "none has failed")
        assert re.fullmatch(r"start: .*/no/such/program: not found\n", lab.tortie("lab", "logs", "red/none"))
        assert "exit code 3" in lab.pod("once").status.message
        # What is over has given its network back.
        until(lambda: not [ns for ns in network.namespaces(lab.name) if ns.endswith((".once", ".done"))], "no sandbox")
    finally:
        for name in ("once", "again", "done", "none"):
            lab.tortie("delete", "pod", name, "-n", "red")
    until(lambda: not lab.directory.pod("red", "again").exists(), "again is forgotten")


def test_a_pod_that_cannot_be_says_why_and_others_are_not_disturbed(lab: Lab) -> None:
    lab.apply(pod("strange", node="node7"), pod("choosy", nodeSelector={"disk": "tape"}))
    try:
        until(lambda: 'no node "node7"' in lab.pod("strange").status.message, "strange says why")
        until(lambda: "nodeSelector" in lab.pod("choosy").status.message, "choosy says why")
        assert 'no node "node7"' in lab.tortie("lab", "status")
        assert lab.phase("a") == "Running"
    finally:
        lab.tortie("delete", "pod", "strange", "-n", "red")
        lab.tortie("delete", "pod", "choosy", "-n", "red")


def test_a_pod_without_an_address_says_why_and_runs_when_there_is_one(lab: Lab) -> None:
    pools = json.loads(lab.tortie("get", "ippools", "-o", "json"))["items"]
    lab.apply(*({**pool, "spec": {**pool["spec"], "disabled": True}} for pool in pools))
    try:
        lab.apply(pod("waiting"))
        until(lambda: "pool" in lab.pod("waiting").status.message.lower(), "waiting says why")
        assert lab.phase("waiting") == "Pending"
        assert lab.phase("a") == "Running"
    finally:
        lab.apply(*({**pool, "metadata": {"name": pool["metadata"]["name"]}} for pool in pools))
    until(lambda: lab.phase("waiting") == "Running", "waiting runs")
    assert lab.pod("waiting").status.message == ""
    lab.tortie("delete", "pod", "waiting", "-n", "red")


def test_a_deleted_pod_leaves_no_process_namespace_or_address(lab: Lab) -> None:
    lab.apply(pod("gone", command=["sh", "-c", "trap '' TERM; sleep 1000 & wait"]))
    until(lambda: lab.phase("gone") == "Running", "gone runs")
    netns = f"tortie-{lab.name}-pod-red.gone"
    until(lambda: len(processes.inside([netns])) == 2, "its processes run")
    victims = processes.inside([netns])
    lab.tortie("delete", "pod", "gone", "-n", "red")
    until(lambda: netns not in network.namespaces(lab.name), "its namespace is gone")
    assert not [one for one in victims if one.alive()]
    until(lambda: "gone" not in lab.tortie("get", "workloadendpoints", "-A"), "its endpoint is gone")


def test_a_host_network_pod_has_its_nodes_addresses(lab: Lab) -> None:
    lab.apply(pod("host", node="node2", hostNetwork=True))
    try:
        until(lambda: lab.phase("host") == "Running", "host runs")
        assert lab.pod("host").status.pod_ip == "172.30.0.12"
        page = lab.tortie("lab", "exec", "red/a", "--", "busybox", "wget", "-qO-", "http://172.30.0.12/")
        assert page.startswith("red/host on node2 saw ")
    finally:
        lab.tortie("delete", "pod", "host", "-n", "red")
    until(lambda: not lab.directory.pod("red", "host").exists(), "host is forgotten")
    assert network.namespaces(lab.name).count(f"tortie-{lab.name}-node2") == 1


# --- faults -------------------------------------------------------------------------------------------------------


def test_a_killed_agent_is_started_again(lab: Lab) -> None:
    file = lab.directory.agent_pid("node1")
    first = read_pid(file)
    assert first is not None
    first.signal(signal.SIGKILL)
    until(lambda: (now := read_pid(file)) is not None and now != first, "there is another agent")
    until(lambda: lab.tortie("lab", "status", status=0) if _healthy(lab) else "", "the lab is healthy")
    assert lab.matrix()["red/a", "red/b"]["passed"]


def _healthy(lab: Lab) -> bool:
    process = lab.start("lab", "status")
    process.communicate(timeout=PATIENCE)
    return process.returncode == 0


def test_a_killed_kubelet_is_started_by_up_and_takes_over(lab: Lab) -> None:
    lab.apply(pod("steady", command=["sleep", "1000"]))
    until(lambda: lab.phase("steady") == "Running", "steady runs")
    program = processes.inside([f"tortie-{lab.name}-pod-red.steady"])
    agents = [read_pid(lab.directory.agent_pid(node)) for node in ("node1", "node2")]
    kubelet = read_pid(lab.directory.kubelet_pid)
    assert kubelet is not None
    kubelet.signal(signal.SIGKILL)
    until(lambda: not kubelet.alive(), "the kubelet is dead")
    assert "kubelet is not running" in lab.tortie("lab", "status", status=1)
    lab.tortie("delete", "pod", "c", "-n", "red")
    lab.apply(pod("late"))
    lab.up()
    until(lambda: lab.phase("late") == "Running", "what was applied meanwhile runs")
    until(lambda: f"tortie-{lab.name}-pod-red.c" not in network.namespaces(lab.name), "what was deleted is gone")
    assert processes.inside([f"tortie-{lab.name}-pod-red.steady"]) == program
    assert [read_pid(lab.directory.agent_pid(node)) for node in ("node1", "node2")] == agents
    until(lambda: lab.matrix()["red/a", "red/b"]["passed"], "responders answer again")
    for name in ("steady", "late"):
        lab.tortie("delete", "pod", name, "-n", "red")
    lab.apply(pod("c", node="node2"))
    until(lambda: lab.phase("c") == "Running", "c runs")


def test_down_cleans_up_whatever_was_killed_before(other: Lab) -> None:
    other.up(1)
    other.apply(NAMESPACE, pod("x", command=["sleep", "1000"]), pod("y"))
    until(lambda: other.phase("x") == "Running" and other.phase("y") == "Running", "x and y run")
    kubelet = read_pid(other.directory.kubelet_pid)
    assert kubelet is not None
    kubelet.signal(signal.SIGKILL)
    agent = read_pid(other.directory.agent_pid("node1"))
    assert agent is not None
    agent.signal(signal.SIGKILL)
    assert "is gone" in other.tortie("lab", "down", "--name", other.name)
    assert network.leftovers(other.directory) == []
    assert "there is no lab" in other.tortie("lab", "down", "--name", other.name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_up_leaves_nothing(other: Lab, number: signal.Signals) -> None:
    process = other.start("lab", "up", "--name", other.name, "--nodes", "2", start_new_session=True)
    until(lambda: read_pid(other.directory.kubelet_pid) is not None, "it has begun")
    os.killpg(process.pid, number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert network.leftovers(other.directory) == []


def test_two_labs_live_side_by_side(lab: Lab, other: Lab) -> None:
    other.up(2)
    other.apply(NAMESPACE, pod("a"), pod("z"))
    until(lambda: other.phase("a") == "Running" and other.phase("z") == "Running", "the other's pods run")
    assert {name for pair in other.matrix() for name in pair} == {"red/a", "red/z", "outside"}
    other.tortie("lab", "down", "--name", other.name)
    assert network.leftovers(other.directory) == []
    assert lab.matrix()["red/a", "red/b"]["passed"]


def test_ten_nodes(other: Lab) -> None:
    assert "90 BGP sessions" in other.up(10)
    other.apply(NAMESPACE, *(pod(f"p{i}") for i in range(10)))
    until(lambda: all(other.phase(f"p{i}") == "Running" for i in range(10)), "all pods run")
    assert {other.pod(f"p{i}").spec.node_name for i in range(10)} == {f"node{i}" for i in range(1, 11)}
    pairs = other.matrix()
    assert [pair for pair, entry in pairs.items() if pair[0] != "outside" and not entry["passed"]] == []


@pytest.mark.parametrize("command", ["up", "down", "status", "matrix"])
def test_without_root_one_line(command: str) -> None:
    argv = as_nobody(sys.executable, "-m", "tortie.cli.main", "lab", command)
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "try again with sudo" in done.stderr
