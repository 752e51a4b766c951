"""Where the time of an ADD goes: its steps, one after the other, as an agent notes them while it serves the plugin.

The peer is the whole of the ADD, so the ratio is a step's share of it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.figures import Report, against
from bench.node import Node, cluster_objects, namespace, pod_object, write
from bench.plugin import Pods, call, pod_name, scratch
from bench.progress import Advance, alone

NAME = "add_steps"
TITLE = "Where the time of an IPv4 ADD goes"
PEER = "the whole ADD"
CROWDS = (0, 100)
ROUNDS = 60
STEPS = ROUNDS * len(CROWDS)
MS = 1000

WORDS = {
    "stub": "stub, socket, HTTP",
    "ipam": "an address that is ready",
    "attach": "veth and the pod's network",
    "note": "endpoint noted",
    "calc": "desired state",
    "nft plan": "nft rendered, compared",
    "nft make": "nft transaction",
    "routes plan": "routes read, compared",
    "routes make": "routes written",
    "rest": "small reads, waiting",
}
"""The steps in their order."""


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when something took place."""

    name: str
    begin: float
    end: float

    @property
    def ms(self) -> float:
        return (self.end - self.begin) * MS


def spans(crowd: int, advance: Advance) -> tuple[list[Span], list[Span]]:
    """The ADDs as the plugin's caller sees them, and the steps that the agent noted."""
    adds: list[Span] = []
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(scratch("steps")))
        prefix = f"tb-{directory.name[-8:]}"
        path = stack.enter_context(namespace(prefix))
        pods = stack.enter_context(contextlib.closing(Pods(f"{prefix}-")))
        datastore, notes = directory / "store.db", directory / "notes"
        write(datastore, (*cluster_objects(), *(pod_object(pod_name(i + 1), "node1") for i in range(crowd + ROUNDS))))
        node = Node("node1", path, datastore, directory)
        program = (sys.executable, "-m", "bench.traced_agent", str(notes))
        with node.agent(ipv4="192.0.2.1/24", program=program):
            network = node.network()
            for _ in range(crowd):
                call(network, "ADD", pods.fresh())
            for _ in range(ROUNDS):
                pod = pods.fresh()
                time.sleep(0.02)  # what the last DEL left to do is done by then
                began = time.monotonic()
                call(network, "ADD", pod)
                adds.append(Span("add", began, time.monotonic()))
                call(network, "DEL", pod)
                pods.delete(pod)
                advance(f"{NAME}: {crowd} pods there")
        return adds, [Span(*json.loads(line)) for line in notes.read_text().splitlines()]


def shares(adds: list[Span], noted: list[Span]) -> Iterator[dict[str, float]]:
    """Of each ADD the milliseconds of its steps."""
    for add in adds:
        inside = [span for span in noted if add.begin <= span.begin and span.end <= add.end]
        (served,) = (span for span in inside if span.name == "call")
        inside.remove(served)
        found = dict.fromkeys(WORDS, 0.0)
        for span in inside:
            found[span.name] += span.ms - sum(other.ms for other in inside if _within(other, span))
        found["stub"] = add.ms - served.ms
        found["rest"] = max(0.0, add.ms - sum(found.values()))
        yield found | {"add": add.ms}


def _within(span: Span, other: Span) -> bool:
    return span is not other and other.begin <= span.begin and span.end <= other.end


def measure(advance: Advance) -> Report:
    """Raises PluginFailed, NotReady."""
    report = Report(NAME, TITLE)
    for crowd in CROWDS:
        every = list(shares(*spans(crowd, advance)))
        whole = median(each["add"] for each in every)
        report.samples |= {f"{crowd} pods, {step} ms": [each[step] for each in every] for step in every[0]}
        for step, words in WORDS.items():
            value = median(each[step] for each in every)
            report.figures.append(against(f"{words}, {crowd} pods", value, "ms", PEER, whole))
    return report


if __name__ == "__main__":
    sys.exit(alone(NAME))
