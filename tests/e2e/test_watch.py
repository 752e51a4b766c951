"""`tortie watch drops` as its user has it: a lab, real packets, Ctrl-C, an agent that dies meanwhile."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import pytest

from labs import PATIENCE, Lab, pod
from tortie.lab import network
from tortie.lab.processes import read_pid

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]

NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "red"}}
DENY = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "NetworkPolicy",
    "metadata": {"name": "quiet", "namespace": "red"},
    "spec": {"types": ["Ingress"], "ingress": [{"action": "Deny", "protocol": "TCP"}]},
}
RULE = "NetworkPolicy red/quiet, rule 0, tier default"
LINE = re.compile(rf"\d\d:\d\d:\d\d  (node\d)  (\S+):\d+ → (\S+):80 tcp  ingress: {RULE}(  ×\d+)?")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes with a pod each, and a policy by which nobody reaches them over TCP."""
    lab = Lab(f"w{os.getpid()}")
    try:
        lab.up()
        lab.apply(NAMESPACE, DENY, pod("a", node="node1"), pod("b", node="node2"))
        deadline = time.monotonic() + PATIENCE
        while not all(lab.phase(name) == "Running" for name in "ab"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield lab
    finally:
        lab.tortie("lab", "down", "--name", lab.name)
        assert network.leftovers(lab.directory) == []


class Watching:
    """The command while it runs: what it has printed, line by line."""

    def __init__(self, lab: Lab, *words: str) -> None:
        self.process = lab.start("watch", "drops", *words)
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._thread = threading.Thread(target=self._collect, args=(self.process.stdout,))
        self._thread.start()
        self.first = self.process.stderr.readline()

    def _collect(self, out: IO[str]) -> None:
        for line in out:
            self.lines.put(line.rstrip("\n"))

    def next(self, wanted: Callable[[str], Any]) -> str:
        """The next line that is as wanted."""
        deadline = time.monotonic() + PATIENCE
        while not wanted(line := self.lines.get(timeout=max(0.0, deadline - time.monotonic()))):
            pass
        return line

    def end(self) -> list[str]:
        """What it prints when it is interrupted, if it runs; it ends well."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        assert self.process.wait(PATIENCE) == 0
        self._thread.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        rest = []
        while not self.lines.empty():
            rest.append(self.lines.get())
        return rest


def denied(lab: Lab) -> None:
    """Both pods and the outside try to reach both pods."""
    lab.tortie("lab", "matrix")


def test_drops_of_all_nodes_until_ctrl_c(lab: Lab) -> None:
    watching = Watching(lab)
    assert watching.first == "watching node1, node2: Ctrl-C ends it\n"
    denied(lab)
    wanted = {("node2", "red/a", "red/b"), ("node1", "red/b", "red/a")}
    while wanted:
        found = LINE.fullmatch(watching.next(LINE.fullmatch))
        assert found is not None
        wanted.discard((found[1], found[2], found[3]))
    *_, heading, row = [line for line in watching.end() if line and "were not shown" not in line]
    assert heading.split() == ["PACKETS", "SHOWN", "RULE"]
    packets, shown, words = row.split(maxsplit=2)
    assert words == f"ingress: {RULE}"
    assert int(packets) >= int(shown) >= 2


def test_so_many_lines_of_one_pod_on_one_node_as_json(lab: Lab) -> None:
    watching = Watching(lab, "--pod", "red/b", "--node", "node2", "--count", "1", "-o", "json")
    assert watching.first == "watching node2: 1 line or Ctrl-C ends it\n"
    denied(lab)
    assert watching.process.wait(PATIENCE) == 0
    drop, end = map(json.loads, watching.end())
    assert drop["node"] == "node2"
    assert drop["rule"] == {
        "name": "np/red/quiet|ingress|0",
        "words": RULE,
        "tier": "default",
        "policy": "np/red/quiet",
        "index": 0,
    }
    assert drop["destination"]["pod"] == "red/b"
    assert end == {"summary": [{"words": f"ingress: {RULE}", "shown": 1, "packets": 1}], "lost": 0}


def test_for_so_many_seconds(lab: Lab) -> None:
    said = lab.tortie("watch", "drops", "--seconds", "0.2", "--pod", "red/nobody")
    assert said == "nothing was denied\nwatching node1, node2: 0.2 s or Ctrl-C ends it\n"


def test_an_agent_that_comes_back_is_watched_again(lab: Lab) -> None:
    watching = Watching(lab, "--node", "node1")
    agent = read_pid(lab.directory.agent_pid("node1"))
    assert agent is not None
    agent.signal(signal.SIGKILL)
    assert "node1  not watched now: its agent has ended" in watching.next(lambda line: "not watched" in line)
    deadline = time.monotonic() + PATIENCE
    while watching.lines.empty():
        assert time.monotonic() < deadline, "nothing is told any more"
        denied(lab)
    assert LINE.fullmatch(watching.next(LINE.fullmatch))
    watching.end()


def test_a_reader_that_closes_the_pipe_ends_it(lab: Lab) -> None:
    with lab.start("watch", "drops") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline().startswith("watching")
        process.stdout.close()
        denied(lab)
        assert process.wait(PATIENCE) == 1
        assert process.stderr.read() == ""


def test_without_agents_it_says_so(lab: Lab) -> None:
    words = ("watch", "drops", "--node", "node9")
    assert 'has no node "node9": it has node1, node2' in lab.tortie(*words, status=2)
