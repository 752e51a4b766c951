"""`tortie explain` beside real kernels and packets, and established flows that a new policy cuts, in one lab."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from labs import Lab, pod, until
from tortie.cli.explain_show import DIFFERS
from tortie.kernel import netns
from tortie.lab import network
from tortie.lab.processes import read_pid

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]

NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "red"}}
CLOSED = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "NetworkPolicy",
    "metadata": {"name": "closed", "namespace": "red"},
    "spec": {"selector": "role == 'server'", "types": ["Ingress"], "ingress": [{"action": "Deny"}]},
}
CUT = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "FelixConfiguration",
    "metadata": {"name": "node.node2", "annotations": {"tortie.dev/established-flows": "Cut"}},
    "spec": {},
}


def labelled(name: str, node: str) -> dict[str, Any]:
    one = pod(name, node=node)
    one["metadata"]["labels"] = {"role": "server" if name == "b" else "client"}
    return one


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes; red/a and red/c on the first, red/b on the second."""
    lab = Lab(f"x{os.getpid()}")
    try:
        lab.up()
        lab.apply(NAMESPACE, labelled("a", "node1"), labelled("b", "node2"), labelled("c", "node1"))
        until(lambda: all(lab.phase(name) == "Running" for name in "abc"))
        yield lab
    finally:
        lab.tortie("lab", "down", "--name", lab.name)
        assert network.leftovers(lab.directory) == []


@contextmanager
def closed(lab: Lab) -> Iterator[None]:
    lab.apply(CLOSED)
    try:
        yield
    finally:
        lab.tortie("delete", "networkpolicies.projectcalico.org", "closed", "-n", "red")


def explained(lab: Lab, *words: str, status: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(lab.tortie("explain", *words, "-o", "json", status=status))
    return found


@pytest.mark.parametrize(
    ("source", "destination"), [("red/a", "red/b"), ("red/a", "red/c"), ("red/a", "outside"), ("node1", "red/b")]
)
def test_a_probe_and_the_kernel_agree_with_the_prediction(lab: Lab, source: str, destination: str) -> None:
    for one in explained(lab, source, destination, "--probe"):
        assert one["verdict"] == "allow"
        assert one["probe"]["agrees"]
        assert one["probe"]["result"].startswith("connected")
        assert one["differences"] == []
        for step in one["steps"]:
            if step["rule"]:
                assert step["kernelRules"], step
                assert step["counter"]["packets"] > 0, step


def test_a_denial_is_probed_too_and_its_rule_counts(lab: Lab) -> None:
    with closed(lab):
        for one in explained(lab, "red/a", "red/b", "--probe", "-4"):
            assert (one["verdict"], one["probe"]) == ("deny", {"result": "timeout", "agrees": True})
        (again,) = explained(lab, "red/a", "red/b", "-4")
        assert again["steps"][-1]["rule"] == "np/red/closed|ingress|0"
        assert again["steps"][-1]["counter"]["packets"] > 0
        assert "drop" not in again["steps"][-1]["reason"]


HOSTS = """
{apiVersion: projectcalico.org/v3, kind: HostEndpoint, metadata: {name: eth0, labels: {host: a}},
 spec: {node: node1, interfaceName: eth0}}
---
{apiVersion: projectcalico.org/v3, kind: HostEndpoint, metadata: {name: every, labels: {host: b}},
 spec: {node: node2, interfaceName: "*"}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: forward}, spec: {selector: has(host),
 applyOnForward: true, types: [Ingress, Egress], ingress: [{action: Deny, protocol: UDP}, {action: Allow}],
 egress: [{action: Deny, protocol: TCP, destination: {ports: [5432]}}, {action: Allow}]}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: before}, spec: {selector: has(host),
 applyOnForward: true, preDNAT: true, types: [Ingress],
 ingress: [{action: Deny, protocol: TCP, destination: {ports: [81]}}]}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: raw}, spec: {selector: has(host),
 applyOnForward: true, doNotTrack: true, types: [Ingress],
 ingress: [{action: Deny, protocol: TCP, destination: {ports: [82]}}]}}
"""
AT_HOSTS = [
    ("red/a red/b", "allow", "host forward egress"),
    ("red/a red/c", "allow", "ingress"),
    ("red/a red/b --protocol udp", "deny", "host forward ingress"),
    ("red/b red/a --port 5432", "deny", "host forward egress"),
    ("outside node1 --port 81", "deny", "host preDNAT ingress"),
    ("outside node1 --port 82", "deny", "host untracked ingress"),
    ("outside node2 --port 82", "allow", "host normal ingress"),
    ("outside node1 --port 22", "allow", "host untracked ingress"),
    ("outside node1 --port 83", "allow", "host normal ingress"),
    ("red/b outside --port 81", "deny", "host preDNAT ingress"),
    ("node2 node1 --protocol icmp", "allow", "host normal ingress"),
    ("node1 red/b", "allow", "host forward egress"),
    ("red/b node2", "deny", "input"),
]
"""Who asks for what, what becomes of it, and where the last word is spoken."""


def test_every_class_of_a_host_endpoint_with_real_packets(lab: Lab) -> None:
    lab.tortie("apply", "-f", "-", stdin=HOSTS)
    try:
        for question, verdict, hook in AT_HOSTS:
            (one,) = explained(lab, *question.split(), "-4", "--probe")
            assert (one["verdict"], one["steps"][-1]["hook"]) == (verdict, hook), question
            assert one["probe"]["agrees"], question
            assert one["differences"] == [], question
    finally:
        lab.tortie("delete", "-f", "-", stdin=HOSTS)


SERVICES = """
{apiVersion: v1, kind: Service, metadata: {name: one, namespace: red}, spec: {type: NodePort, clusterIP: 10.96.7.1,
 selector: {role: server}, ports: [{port: 80, nodePort: 30090}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: both, namespace: red}, spec: {clusterIP: 10.96.7.2,
 sessionAffinity: ClientIP, selector: {role: client}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: near, namespace: red}, spec: {type: NodePort, clusterIP: 10.96.7.3,
 externalTrafficPolicy: Local, internalTrafficPolicy: Local, selector: {role: server},
 ports: [{port: 80, nodePort: 30093}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: nobody, namespace: red}, spec: {type: NodePort, clusterIP: 10.96.7.4,
 selector: {role: nobody}, ports: [{port: 80, nodePort: 30094}]}}
"""
AT_SERVICES = [
    ("red/a svc/red/one", "allow", "ingress", "connected"),
    ("red/b 10.96.7.1", "allow", "ingress", "connected"),  # itself
    ("node1 svc/red/one", "allow", "ingress", "connected"),
    ("red/a node1 --port 30090", "allow", "ingress", "connected"),
    ("red/b node1 --port 30090", "allow", "ingress", "connected"),  # there and back
    ("outside node1 --port 30090", "allow", "ingress", "connected"),
    ("outside node2 --port 30093", "allow", "ingress", "connected"),
    ("outside node1 --port 30093", "deny", "input", "timeout"),
    ("red/a svc/red/near", "deny", "forward", "timeout"),
    ("node2 svc/red/near", "allow", "ingress", "connected"),
    ("red/a svc/red/nobody", "deny", "forward", "refused"),
    ("node1 svc/red/nobody", "deny", "output", "refused"),
    ("outside node2 --port 30094", "deny", "input", "refused"),
    ("red/a 10.96.7.1 --port 81", "deny", "forward", "refused"),
    ("red/b svc/red/both", "allow", "ingress", "connected"),
]


def test_services_with_real_packets_and_the_kernels_counters(lab: Lab) -> None:
    lab.tortie("apply", "-f", "-", stdin=SERVICES)
    try:
        until(lambda: "1/1" in lab.tortie("get", "services", "near", "-n", "red", "-o", "wide"))
        for question, verdict, hook, result in AT_SERVICES:
            for one in explained(lab, *question.split(), "-4", "--probe"):
                assert (one["verdict"], one["steps"][-1]["hook"]) == (verdict, hook), question
                assert one["probe"]["result"].startswith(result), question
                assert one["probe"]["agrees"], question
                assert one["differences"] == [], question
        (one,) = explained(lab, "red/a", "svc/red/one", "-4")
        assert one["steps"][0]["service"]["connections"] == 2  # and one of the node itself
        lines = lab.tortie("get", "services", "one", "-n", "red", "-o", "wide").splitlines()
        assert lines[0].split()[-2:] == ["ENDPOINTS", "HITS"]
        assert lines[1].split()[-2] == "1/1"
        head, first = lines[3:5]
        assert head == "10.96.7.1:80/TCP  ClusterIP"
        assert first.split()[2:] == ["node2", "ready", "node1", "2,", "node2", "1"]
    finally:
        lab.tortie("delete", "-f", "-", stdin=SERVICES)


def test_the_kernels_route_is_beside_the_expected_one(lab: Lab) -> None:
    (one,) = explained(lab, "red/a", "red/b", "-4")
    leaving, arriving = one["routes"]
    assert (leaving["node"], leaving["blockOf"], leaving["kernel"]["via"]) == ("node1", "node2", "172.30.0.12")
    assert leaving["kernel"]["to"] == leaving["block"]
    assert leaving["kernel"]["mtu"] == 1500
    assert arriving["kernel"]["dev"].startswith("cali")


def test_another_table_that_drops_is_found_by_a_probe(lab: Lab) -> None:
    """Nothing of ours differs; the packet does."""
    on_node = ("lab", "exec", "node:node2", "--", "nft")
    lab.tortie(*on_node, "add", "table", "inet", "mine")
    try:
        lab.tortie(*on_node, "add", "chain", "inet", "mine", "x", "{ type filter hook forward priority 5; }")
        lab.tortie(*on_node, "add", "rule", "inet", "mine", "x", "meta", "l4proto", "{ tcp, udp }", "drop")
        explained(lab, "red/a", "red/b")
        said = lab.tortie("explain", "red/a", "red/b", "-4", "--probe", status=3)
        assert DIFFERS in said
        assert "the connection is allowed, and a real packet found: timeout" in said
    finally:
        lab.tortie(*on_node, "delete", "table", "inet", "mine")


def test_a_route_that_is_not_there_is_said_loudly(lab: Lab) -> None:
    on_node = ("lab", "exec", "node:node1", "--", "ip", "rule")
    lab.tortie(*on_node, "add", "priority", "10", "to", "10.244.0.0/16", "unreachable")
    try:
        (one,) = explained(lab, "red/a", "red/b", "-4", status=3)
        assert one["verdict"] == "allow"
        (difference,) = one["differences"]
        assert difference.startswith(f"node1: no route to {one['destination']['ip']}: ")
        assert DIFFERS in lab.tortie("explain", "red/a", "red/b", "-4", status=3)
    finally:
        lab.tortie(*on_node, "del", "priority", "10")
    assert explained(lab, "red/a", "red/b", "-4")[0]["differences"] == []


def test_an_agent_that_does_not_answer_is_compared_with_nothing(lab: Lab) -> None:
    agent = read_pid(lab.directory.agent_pid("node2"))
    assert agent is not None
    agent.signal(signal.SIGSTOP)
    try:
        (one,) = explained(lab, "red/a", "red/b", "-4")
        assert list(one["notCompared"]) == ["node2"]
        assert one["steps"][-1]["counter"] is None
        assert one["steps"][0]["counter"] is not None
    finally:
        agent.signal(signal.SIGCONT)
    until(lambda: "notCompared" not in explained(lab, "red/a", "red/b", "-4")[0])


# --- established flows --------------------------------------------------------------------------------------------


class Stream:
    """An established connection from red/a to red/b."""

    def __init__(self, lab: Lab) -> None:
        ip = lab.pod("b").status.pod_ip
        ends = [netns.path(lab.directory.read().pod_netns("red", name)) for name in "ab"]
        with netns.entered(ends[1]):
            server = socket.create_server((ip, 0))
        with netns.entered(ends[0]):
            self._client = socket.create_connection(server.getsockname(), 10)
        self._server = server.accept()[0]
        server.close()
        assert self.carries(10)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._server.close()

    def carries(self, patience: float = 0.3) -> bool:
        """Whether a word of the server's gets through."""
        word = str(time.monotonic_ns()).encode()
        seen = b""
        deadline = time.monotonic() + patience
        with suppress(OSError):
            self._server.send(word)
            while word not in seen and time.monotonic() < deadline:
                if select.select([self._client], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    seen += self._client.recv(1 << 16)
        return word in seen


@pytest.fixture
def cutting(lab: Lab) -> Iterator[None]:
    lab.apply(CUT)
    yield
    lab.tortie("delete", "felixconfiguration", "node.node2")


def test_a_flow_outlives_a_denial_unless_somebody_says_otherwise(lab: Lab) -> None:
    with Stream(lab) as stream, closed(lab):
        until(lambda: explained(lab, "red/a", "red/b", "-4")[0]["differences"] == [])
        assert stream.carries(5)


def test_the_agent_cuts_a_flow_that_a_new_policy_forbids(lab: Lab, cutting: None) -> None:
    with Stream(lab) as stream, closed(lab):
        applied = time.monotonic()
        until(lambda: not stream.carries(), 5)
        assert time.monotonic() - applied < 2  # of which 0.3 s is the waiting for a word
        assert re.search(r"cut established flows that policy forbids: \d+", lab.tortie("lab", "logs", "node:node2"))


def test_what_was_forbidden_while_the_agent_was_away_is_cut_when_it_is_back(lab: Lab, cutting: None) -> None:
    with Stream(lab) as stream:
        file = lab.directory.agent_pid("node2")
        agent = read_pid(file)
        assert agent is not None
        agent.signal(signal.SIGSTOP)
        with closed(lab):
            assert stream.carries(5)
            agent.signal(signal.SIGKILL)
            until(lambda: (now := read_pid(file)) is not None and now != agent)
            until(lambda: not stream.carries())


def test_another_word_is_refused(lab: Lab) -> None:
    wrong = {**CUT, "metadata": {"name": "default", "annotations": {"tortie.dev/established-flows": "cut"}}}
    said = lab.tortie("apply", "-f", "-", stdin=json.dumps(wrong), status=2)
    assert 'metadata.annotations["tortie.dev/established-flows"]: "cut" is not one of Keep, Cut' in said
