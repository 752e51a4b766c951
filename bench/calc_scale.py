"""Deciding at scale: what one change costs a node of a big cluster, against deciding everything anew.

A node with 100 of 10,000 pods, under 1,000 policies. Nothing touches a kernel here: measured is the way from a resource
to the text that nft is given. The peer is the same node that starts with no memory. `policy_scale` has the whole way.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from itertools import count

from bench.figures import Figure, Report, against, median
from bench.progress import Advance, alone
from bench.world import APPS, US, World, node, pod, policy
from tortie.calc.cluster import Cluster
from tortie.model.meta import Resource
from tortie.render.nft import NftRenderer
from tortie.render.ruleset import Ruleset, transaction

NAME = "calc_scale"
WORLD = World()
TITLE = f"Deciding: {WORLD.pods:,} pods, {WORLD.local} of them here, {WORLD.policies:,} policies, {WORLD.nodes} nodes"
PEER = "everything anew"
ROUNDS = 40
ANEW = 3
TARGET = 0.02
MS = 1000
PARTS = ("put", "state", "render", "transaction")
NOTHING = "a node says again what it said"


class Desk:
    """A node's decisions from the first resource to the last line of nft."""

    def __init__(self) -> None:
        self.cluster = Cluster(US)
        self.renderer = NftRenderer()
        self.have: Ruleset | None = None
        self.script = ""

    def decide(self, *changes: Resource) -> dict[str, float]:
        """Seconds of each part."""
        marks = [time.perf_counter()]
        for change in changes:
            self.cluster.put(change)
        marks.append(time.perf_counter())
        state = self.cluster.state()
        marks.append(time.perf_counter())
        want = self.renderer.render(state)
        marks.append(time.perf_counter())
        self.script = transaction(want, self.have)
        marks.append(time.perf_counter())
        self.have = want
        return {part: marks[i + 1] - marks[i] for i, part in enumerate(PARTS)}


def measure(advance: Advance) -> Report:
    """One node that has everything, and one change after the other."""
    report = Report(NAME, TITLE)
    resources = tuple(WORLD.resources())
    gc.freeze()
    anew: list[dict[str, float]] = []
    for _ in range(ANEW):
        desk = Desk()
        anew.append(desk.decide(*resources))
        advance(f"{NAME}: {PEER}")
    report.title = f"{TITLE}; {len(desk.cluster.state().sets)} sets, {len(desk.script.splitlines())} lines of nft"
    whole = MS * median([sum(one.values()) for one in anew])
    report.figures.append(Figure(PEER, whole, "ms"))
    report.figures += [Figure(f"  {part}", MS * median([one[part] for one in anew]), "ms") for part in PARTS]
    report.samples[f"{PEER} ms"] = [MS * sum(one.values()) for one in anew]
    for words, change in events().items():
        parts: list[dict[str, float]] = []
        for number in range(ROUNDS):
            parts.append(desk.decide(change(number)))
            assert bool(desk.script) is (words != NOTHING), words
        advance(f"{NAME}: {words}")
        spent = [MS * sum(one.values()) for one in parts]
        report.samples[f"{words} ms"] = spent
        report.figures.append(against(words, median(spent), "ms", PEER, whole, at_most=TARGET))
        report.figures += [Figure(f"  {part}", MS * median([one[part] for one in parts]), "ms") for part in PARTS]
    return report


def events() -> dict[str, Callable[[int], Resource]]:
    """What happens, each time to somebody else; but the policy is the same one, which is added first."""
    fresh = count(WORLD.pods + 20_000)
    return {
        "a local pod is added": lambda number: pod(next(fresh), 1 + number, 0),
        "a remote pod is added": lambda number: pod(next(fresh), 1 + number, 7),
        "a remote pod changes its label": lambda number: WORLD.pod(number, app=(number // 7 + 1) % APPS),
        "a policy changes a port": lambda n: policy(WORLD.policies, WORLD.local_namespace(0), 8000 + n, of_all=True),
        NOTHING: lambda number: node(number % WORLD.nodes),
    }


STEPS = ANEW + len(events())


if __name__ == "__main__":
    sys.exit(alone(NAME))
