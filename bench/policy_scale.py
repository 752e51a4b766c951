"""Policy at scale, from datastore to kernel: a node that starts in a big cluster, and one change after the other.

Each change is measured twice. In a process that has nothing but the parts that decide and write, one after the other,
as the agent has them:

    datastore ─► resources ─► calc.Cluster ─► DesiredState ─► render ─► transaction ─► nft's library ─► kernel
                 put          state           plan                                     make

and with a real agent, from before the write to the datastore until the kernel announces the transaction. Both are in
network namespaces of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import node
from bench.figures import Figure, Report, median, percentile
from bench.node import Node, memory_of, program_environment, write
from bench.progress import Advance, alone
from bench.world import CROWD, TEAMS, US, World, namespace, pod, policy
from tortie.agent import collector
from tortie.base.errors import NotFound
from tortie.calc.admission import bootstrap
from tortie.calc.cluster import INPUTS, Cluster
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work, converge
from tortie.dataplane.stages.nft import Nft
from tortie.kernel.nft_events import Monitor
from tortie.model.meta import Resource, changed
from tortie.model.store import Store
from tortie.render.ruleset import TABLE
from tortie.store import open_store

NAME = "policy_scale"
MS = 1000
PARTS = ("put", "state", "plan", "make")
PATIENCE = 120.0
"""Seconds in which an agent has to be ready, or has to do anything at all."""
PAUSE = 0.02
"""Seconds between two changes that an agent is told: it makes a state every 10 ms at most."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Something that happens again and again, each time to somebody else, and how long one in a hundred may take."""

    words: str
    change: Callable[[World, int], Resource]
    gone: bool = False
    target: float | None = None


def a_policy(world: World, number: int, port: int = 80) -> Resource:
    """One more, about a pod of ours."""
    return policy(world.policies + number, world.local_namespace(number), port, of_all=True)


def a_pod(world: World, number: int, host: int = 0) -> Resource:
    return pod(world.pods + 50_000 * (1 + host) + number, 1 + number % (world.namespaces - 1), host)


ROUNDS_OF: tuple[tuple[Kind, ...], ...] = (
    (
        Kind("a policy is added", a_policy, target=60),
        Kind("a policy is changed", lambda world, number: a_policy(world, number, 9000 + number), target=60),
        Kind("a policy is removed", a_policy, gone=True, target=60),
    ),
    (
        Kind("a pod of this node is added", a_pod, target=30),
        Kind("a pod of this node is removed", a_pod, gone=True),
    ),
    (
        Kind("a pod elsewhere is added", lambda world, number: a_pod(world, number, 1)),
        Kind("a pod elsewhere is removed", lambda world, number: a_pod(world, number, 1), gone=True),
    ),
    (Kind(f"a namespace of {CROWD:,} pods changes its label", lambda _, n: namespace(0, (n + 1) % TEAMS), target=300),),
)
"""What happens in turn, so that the cluster stays as big as it is."""
KINDS = tuple(kind for in_turn in ROUNDS_OF for kind in in_turn)
START, MOST_START, MOST_MEMORY = "cold start to programmed", 5.0, 200.0


def everything_that_happens(rounds: int) -> Iterator[tuple[Kind, int]]:
    return ((kind, number) for in_turn in ROUNDS_OF for number in range(rounds) for kind in in_turn)


# --- the parts alone -------------------------------------------------------------------------------------------------


class Timed:
    """The stage, and how long each part of its last pass took. Only the nft stage: no other has to do with policy."""

    def __init__(self) -> None:
        self._stage = Nft()
        self.name, self.guard = self._stage.name, self._stage.guard
        self.plan_seconds = self.make_seconds = 0.0

    def plan(self, state: DesiredState) -> Work:
        began = time.perf_counter()
        work = self._stage.plan(state)
        self.plan_seconds, self.make_seconds = time.perf_counter() - began, 0.0
        return work

    def make(self, work: Work) -> None:
        began = time.perf_counter()
        self._stage.make(work)
        self.make_seconds = time.perf_counter() - began

    def unmake(self, work: Work) -> None:
        self._stage.unmake(work)

    def forget(self) -> None:
        self._stage.forget()


class Desk:
    """A node's decisions and its kernel, in one thread."""

    def __init__(self) -> None:
        self.cluster = Cluster(US)
        self.stage = Timed()

    def decide(self, changes: Sequence[Resource], *, gone: bool = False) -> list[float]:
        """Milliseconds of each part, and of CPU in all."""
        cpu = time.thread_time()
        marks = [time.perf_counter()]
        for one in changes:
            if gone:
                self.cluster.drop(type(one), one.namespace, one.name)
            else:
                self.cluster.put(one)
        marks.append(time.perf_counter())
        state = self.cluster.state()
        marks.append(time.perf_counter())
        failures = converge([self.stage], state)
        assert not failures, failures
        parts = (marks[1] - marks[0], marks[2] - marks[1], self.stage.plan_seconds, self.stage.make_seconds)
        return [MS * seconds for seconds in (*parts, time.thread_time() - cpu)]


async def everything(datastore: Path) -> list[Resource]:
    """As an agent lists it."""
    store = open_store(datastore)
    try:
        return [one for kind in INPUTS for one in (await store.list(kind)).items]
    finally:
        await store.close()


def parts_alone(datastore: Path, world: World, rounds: int) -> dict[str, Any]:
    """What a process of its own prints: milliseconds, and MB."""
    collector.begin()
    began = time.perf_counter()
    resources = asyncio.run(everything(datastore))
    read = MS * (time.perf_counter() - began)
    desk = Desk()
    start = [read, *desk.decide(resources)]
    del resources
    collector.settle()
    after = memory_of(os.getpid())
    changes: dict[str, list[list[float]]] = {kind.words: [] for kind in KINDS}
    for kind, number in everything_that_happens(rounds):
        changes[kind.words].append(desk.decide([kind.change(world, number)], gone=kind.gone))
        assert changes[kind.words][-1][3], f"{kind.words}: {number} is no news to the kernel"
    found = {"start": start, "changes": changes, "started": after.now, "memory": memory_of(os.getpid())}
    return found | {"sizes": sizes(desk)}


def sizes(desk: Desk) -> str:
    state = desk.cluster.state()
    members = sum(map(len, state.sets.values()))
    return f"{len(state.policies)} policies and profiles active, {len(state.sets)} sets with {members:,} members"


# --- the whole agent -------------------------------------------------------------------------------------------------


class Kernel:
    """When the transactions of an agent are in the kernel."""

    def __init__(self, netns: str) -> None:
        self._monitor = Monitor(TABLE, netns, everybody=True)

    def settle(self) -> None:
        while self._monitor.read():
            pass

    def wait(self) -> None:
        while not self._monitor.read():
            assert select.select([self._monitor], [], [], PATIENCE)[0], "nothing has come to the kernel"


class Operator:
    """Somebody who writes to the datastore, one change after the other."""

    def __init__(self, datastore: Path) -> None:
        self._runner = asyncio.Runner()
        self._store = self._runner.run(self._open(datastore))
        self._there: dict[tuple[type[Resource], str, str], Resource] = {}

    async def _open(self, datastore: Path) -> Store:
        return open_store(datastore)

    def close(self) -> None:
        self._runner.run(self._store.close())
        self._runner.close()

    def prepare(self, change: Resource) -> None:
        """Read what is there, if it is."""
        with contextlib.suppress(NotFound):
            self._there[_key(change)] = self._runner.run(self._store.get(type(change), change.name, change.namespace))

    def write(self, change: Resource, *, gone: bool) -> None:
        there = self._there.pop(_key(change), None)
        if gone:
            self._runner.run(self._store.delete(type(change), change.name, change.namespace))
        elif there is None:
            self._runner.run(self._store.create(change))
        else:
            new = changed(change, resource_version=there.metadata.resource_version, uid=there.metadata.uid)
            self._runner.run(self._store.update(new))


def _key(one: Resource) -> tuple[type[Resource], str, str]:
    return type(one), one.namespace, one.name


def whole_agent(us: Node, world: World, rounds: int, advance: Advance) -> dict[str, Any]:
    """The same with a `tortie agent`: milliseconds from the write to the kernel's announcement."""
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(us.agent(ipv4="192.0.0.0/16", patience=PATIENCE))
        start, started = time.perf_counter() - began, us.memory()
        advance("an agent is ready")
        operator, kernel = Operator(us.datastore), Kernel(us.netns)
        stack.callback(operator.close)
        changes: dict[str, list[float]] = {kind.words: [] for kind in KINDS}
        cpu = dict.fromkeys(changes, 0.0)
        for kind, number in everything_that_happens(rounds):
            change = kind.change(world, number)
            operator.prepare(change)
            kernel.settle()
            before, wrote = us.cpu(), time.perf_counter()
            operator.write(change, gone=kind.gone)
            kernel.wait()
            changes[kind.words].append(MS * (time.perf_counter() - wrote))
            time.sleep(PAUSE)
            cpu[kind.words] += MS * (us.cpu() - before) / rounds
        advance("an agent: all changes")
        return {"start": start, "started": started.now, "changes": changes, "cpu": cpu, "memory": us.memory()}


# --- figures ---------------------------------------------------------------------------------------------------------


def measure(advance: Advance) -> Report:
    return measured(NAME, World(), 200, advance)


def measured(name: str, world: World, rounds: int, advance: Advance, *, targets: bool = True) -> Report:
    title = f"Policy to kernel: {world.pods:,} pods, {world.local} of them here, {world.policies:,} policies"
    report = Report(name, title)
    with tempfile.TemporaryDirectory(prefix="tortie-bench-") as name_:
        directory = Path(name_)
        datastore = directory / "store.db"
        write(datastore, (*bootstrap("0" * 32), *world.resources()))
        advance(f"{name}: the datastore is written")
        with node.namespace(f"bench-{os.getpid()}-parts") as netns:
            found = in_a_process(netns, datastore, world, rounds)
        report.title = f"{title}; {found['sizes']}"
        add_parts(report, found)
        advance(f"{name}: parts alone")
        with node.namespace(f"bench-{os.getpid()}-agent") as netns:
            add_agent(report, whole_agent(Node(US, netns, datastore, directory), world, rounds, advance))
    if not targets:
        report.figures = [replace(figure, target="", holds=None) for figure in report.figures]
    return report


def in_a_process(netns: str, datastore: Path, world: World, rounds: int) -> dict[str, Any]:
    task = json.dumps([str(datastore), world.pods, world.local, world.policies, rounds])
    argv = ["nsenter", f"--net={netns}", sys.executable, "-m", "bench.policy_scale", task]
    done = subprocess.run(argv, stdout=subprocess.PIPE, env=program_environment(), check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def add_parts(report: Report, found: dict[str, Any]) -> None:
    *start, _ = found["start"]
    report.figures.append(at_most(START, sum(start) / MS, "s", MOST_START))
    report.figures += [Figure(f"  {part}", ms, "ms") for part, ms in zip(("read", *PARTS), start, strict=True)]
    for kind in KINDS:
        rows = found["changes"][kind.words]
        spent = [sum(row[:-1]) for row in rows]
        report.samples[f"{kind.words} ms"] = spent
        report.figures.append(at_most(f"{kind.words}: p99", percentile(spent, 99), "ms", kind.target))
        report.figures.append(Figure("  median", median(spent), "ms"))
        for part, of_part in zip((*PARTS, "CPU"), zip(*rows, strict=True), strict=True):
            report.figures.append(Figure(f"    {part}", median(of_part), "ms"))
    report.figures.append(Figure("memory after the start", found["started"], "MB"))
    report.figures.append(at_most("memory after all changes", found["memory"][0], "MB", MOST_MEMORY))
    report.figures.append(at_most("memory at most", found["memory"][1], "MB", MOST_MEMORY))


def add_agent(report: Report, found: dict[str, Any]) -> None:
    report.figures.append(at_most(f"agent: {START}", found["start"], "s", MOST_START))
    for kind in KINDS:
        spent = found["changes"][kind.words]
        report.samples[f"agent: {kind.words} ms"] = spent
        report.figures.append(at_most(f"agent: {kind.words}: p99", percentile(spent, 99), "ms", kind.target))
        report.figures.append(Figure("  median", median(spent), "ms"))
        report.figures.append(Figure("  CPU of the agent", found["cpu"][kind.words], "ms"))
    report.figures.append(Figure("agent: memory after the start", found["started"], "MB"))
    report.figures.append(at_most("agent: memory after all changes", found["memory"].now, "MB", MOST_MEMORY))
    report.figures.append(at_most("agent: memory at most", found["memory"].peak, "MB", MOST_MEMORY))


def at_most(words: str, value: float, unit: str, target: float | None) -> Figure:
    if target is None:
        return Figure(words, value, unit)
    return Figure(words, value, unit, target=f"<= {target:g} {unit}", holds=value <= target)


STEPS = 4


if __name__ == "__main__":
    if len(sys.argv) == 2:
        path, pods, local, policies, times = json.loads(sys.argv[1])
        print(json.dumps(parts_alone(Path(path), World(pods, local, policies), times)))
    else:
        sys.exit(alone(NAME))
