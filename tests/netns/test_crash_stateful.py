"""A cluster whose agents die anywhere, driven at random: pods come and go, hosts too, and controllers clean.

    hosts     a namespace each, with the real agent in a process of its own; one SQLite datastore; pools of 16 addresses
    rules     what kubelets, runtimes, operators and controllers do; an ADD, DEL or GC may meet its death at a gate
    always    no address in two pods, neither by IPAM nor in the kernel; what a runtime was told of a pod is so
    in the end, when all pods have been taken away: nothing is held, and what is stored fits together

TORTIE_CRASH_EXAMPLES is how many histories are tried, TORTIE_CRASH_SEED which.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from crash_world import World

pytestmark = pytest.mark.root

EXAMPLES = int(os.environ.get("TORTIE_CRASH_EXAMPLES", "10"))
SEED = int(os.environ.get("TORTIE_CRASH_SEED", "1"))
STEPS = 30

which = st.integers(0, 11)
"""One of the pods, containers or hosts that a rule could be about."""
death = st.sampled_from((0,) * 20 + tuple(range(1, 61)))
"""The gate at which the agent dies; 0: it does not."""


class Cluster(RuleBasedStateMachine):
    world: World

    @initialize(hosts=st.integers(2, 4), strict=st.booleans(), dual=st.booleans())
    def begin(self, hosts: int, strict: bool, dual: bool) -> None:
        self.world.begin(hosts, strict=strict, dual=dual)

    @rule(host=which, fatal=death)
    def run_pod(self, host: int, fatal: int) -> None:
        self.world.run_pod(host, fatal)

    @rule(host=which, fatal=death)
    def rush(self, host: int, fatal: int) -> None:
        self.world.rush(host, fatal)

    @rule(pod=which, fatal=death)
    def attach(self, pod: int, fatal: int) -> None:
        self.world.attach(pod, fatal)

    @rule(container=which, fatal=death)
    def add_again(self, container: int, fatal: int) -> None:
        self.world.add_again(container, fatal)

    @rule(container=which, fatal=death, sandbox=st.booleans())
    def take_away(self, container: int, fatal: int, sandbox: bool) -> None:
        self.world.take_away(container, fatal, sandbox=sandbox)

    @rule(container=which, fatal=death)
    def late_delete(self, container: int, fatal: int) -> None:
        self.world.late_delete(container, fatal)

    @rule(pod=which)
    def delete_pod(self, pod: int) -> None:
        self.world.delete_pod(pod)

    @rule(host=which, fatal=death)
    def collect(self, host: int, fatal: int) -> None:
        self.world.collect(host, fatal)

    @rule()
    def housekeeping(self) -> None:
        self.world.housekeeping()

    @rule(host=which, fatal=death)
    def restart(self, host: int, fatal: int) -> None:
        self.world.restart(host, fatal)

    @rule(host=which)
    def lose_host(self, host: int) -> None:
        self.world.lose_host(host)

    @rule(disabled=st.integers(0, 3), first=st.one_of(st.none(), st.integers(0, 15)))
    def operate(self, disabled: int, first: int | None) -> None:
        self.world.disable_pool(disabled == 0)
        self.world.reserve(first)

    @invariant()
    def sound(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        try:
            self.world.finish()
        finally:
            for line in self.world.history:
                note(line)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.demolish()


def test_histories(world: World) -> None:
    machine = seed(SEED)(type("Histories", (Cluster,), {"world": world}))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),
        ),
    )
    print(world.summary())
    assert world.deaths > EXAMPLES
