"""The agent dies at every operation of ADD, DEL, GC and of its own start; the next one and its runtime put it right.

    start ─► call, dies at gate k ─► start ─► what the runtime does then ─► the pod is whole ─► DEL ─► nothing left
             k = 1, 2, ... until it survives

What counts as an operation is in `crashes.py`. With TORTIE_CRASH_EXAMPLES set none is left out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from agent_node import NETWORK
from crash_ground import (
    FLAVOURS,
    HALF_CLAIMED,
    THOROUGH,
    Flavour,
    Ground,
    attached,
    dies_in,
    everywhere,
    settled,
    starts,
    stops,
)

import traces
from crashes import Container

pytestmark = pytest.mark.root

USUAL = [name for name in FLAVOURS if name != "scarce"]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    ground = Ground(tmp_path_factory.mktemp("crash"))
    yield ground
    ground.demolish()


# --- what the runtime does after a death --------------------------------------------------------------------------

Then = Callable[[Ground, Flavour, Container], None]


def add_again(ground: Ground, flavour: Flavour, container: Container) -> None:
    """The same call once more."""
    life = ground.life().ready()
    ground.whole(container, life.surely("ADD", container), life)
    life.surely("DEL", container)
    ground.nothing_left(container)


def add_anew(ground: Ground, flavour: Flavour, container: Container) -> None:
    """As the kubelet has it done: the container is given up for another; a late DEL comes for the first."""
    life = ground.life().ready()
    life.surely("DEL", container)
    ground.nothing_left(container, claims=False)
    another = ground.container(flavour)
    answer = life.surely("ADD", another)
    life.surely("DEL", replace(container, netns=""))
    ground.whole(another, answer, life)
    life.surely("DEL", another)
    ground.nothing_left(container, another)


def add_over(ground: Ground, flavour: Flavour, container: Container) -> None:
    """The next container comes before the first one's DEL."""
    life = ground.life().ready()
    another = ground.container(flavour)
    answer = life.surely("ADD", another)
    life.surely("DEL", replace(container, netns=""))
    ground.whole(another, answer, life)
    life.surely("DEL", another)
    ground.nothing_left(container, another)


def delete_again(ground: Ground, flavour: Flavour, container: Container) -> None:
    life = ground.life().ready()
    life.surely("DEL", container)
    ground.nothing_left(container, claims=False)


def delete_without_netns(ground: Ground, flavour: Flavour, container: Container) -> None:
    """The sandbox is gone."""
    life = ground.life().ready()
    life.surely("DEL", replace(container, netns=""))
    ground.nothing_left(container, claims=False)


def collect_again(ground: Ground, flavour: Flavour, container: Container) -> None:
    """The runtime knows of no container any more. A handle that never got its address is for DEL to find."""
    life = ground.life().ready()
    life.surely("GC", container, **{"cni.dev/valid-attachments": []})
    handle = f"handle {NETWORK}.{container.id}"

    def left() -> list[str]:
        found = ground.left((container,))
        return [each for each in found if not (each.startswith(handle) or each.endswith(HALF_CLAIMED))]

    settled(left)
    life.surely("DEL", container)
    ground.nothing_left(container, claims=False)


AFTER_ADD: list[Then] = [add_anew, add_again, add_over]
AFTER_GC: list[Then] = [collect_again, delete_again]
AFTER_DELETE: list[Then] = [delete_again, delete_without_netns, add_over]


def _pairs(every: list[Then]) -> list[Any]:
    """With each flavour; but a sandbox is one container's, unless there is a pod to which both belong."""
    pairs = [(then, name) for then in every for name in USUAL if FLAVOURS[name].pod or then is not add_over]
    return [pytest.param(then, name, id=f"{name}-{then.__name__}") for then, name in pairs]


# --- dying --------------------------------------------------------------------------------------------------------


class TestWhileItAdds:
    """The parts of this file take long: each may go to another worker."""

    @pytest.mark.parametrize(("then", "flavour"), _pairs(AFTER_ADD))
    def test_in_add(self, ground: Ground, then: Then, flavour: str) -> None:
        kind = FLAVOURS[flavour]

        def trial(fatal: int) -> bool:
            container = ground.container(kind)
            life = ground.life().ready()
            answer = dies_in(ground, "ADD", fatal, container, life)
            if answer is not None:  # what the runtime was told is so, whatever happened afterwards
                if ground.place:
                    life = ground.life().ready()
                ground.whole(container, answer, life)
            then(ground, kind, container)
            return bool(ground.place)

        everywhere(ground, kind, trial, 1 + AFTER_ADD.index(then))


@pytest.mark.parametrize(("then", "flavour"), _pairs(AFTER_DELETE))
def test_in_delete(ground: Ground, then: Then, flavour: str) -> None:
    kind = FLAVOURS[flavour]

    def trial(fatal: int) -> bool:
        container, _, life = attached(ground, kind)
        answer = dies_in(ground, "DEL", fatal, container, life)
        if answer is not None:
            if ground.place:
                ground.life().ready()
            ground.nothing_left(container)
        then(ground, kind, container)
        return bool(ground.place)

    everywhere(ground, kind, trial, 1 + AFTER_DELETE.index(then))


@pytest.mark.parametrize("then", AFTER_GC, ids=lambda then: then.__name__)
def test_in_gc(ground: Ground, then: Then) -> None:
    kind = FLAVOURS["ipv4"]

    def trial(fatal: int) -> bool:
        container, _, life = attached(ground, kind)
        dies_in(ground, "GC", fatal, container, life, **{"cni.dev/valid-attachments": []})
        then(ground, kind, container)
        return bool(ground.place)

    everywhere(ground, kind, trial, 1 + AFTER_GC.index(then))


def test_in_add_and_then_gc(ground: Ground) -> None:
    kind = replace(FLAVOURS["ipv4"], stride=11)

    def trial(fatal: int) -> bool:
        container = ground.container(kind)
        dies_in(ground, "ADD", fatal, container, ground.life(reads=False).ready())
        collect_again(ground, kind, container)
        return bool(ground.place)

    everywhere(ground, kind, trial)


class TestItself:
    """As a program: its start, and its end."""

    def test_while_starting(self, ground: Ground) -> None:
        """With a pod that runs: the next start still has it."""
        kind = replace(FLAVOURS["dual"], stride=13)

        def trial(fatal: int) -> bool:
            container, answer, _ = attached(ground, kind)
            survives = starts(ground, fatal)
            ground.whole(container, answer, ground.life().ready())
            delete_again(ground, kind, container)
            return not survives

        everywhere(ground, kind, trial)

    def test_while_stopping(self, ground: Ground) -> None:
        """Told to end, it settles what is due and gives back what it holds ready; or begins to."""
        kind = replace(FLAVOURS["dual"], stride=10)

        def trial(fatal: int) -> bool:
            container, answer, life = attached(ground, kind)
            ground.place = stops(life, fatal)
            ground.whole(container, answer, ground.life().ready())
            delete_again(ground, kind, container)
            return bool(ground.place)

        everywhere(ground, kind, trial)


@pytest.mark.parametrize("flavour", USUAL)
@pytest.mark.parametrize("pause", [0, 0.015, 0.1])
def test_add_that_is_repeated_without_a_death(ground: Ground, flavour: str, pause: float) -> None:
    """Such as when the reply was lost; what the first is still writing must not trip over the second."""
    kind = FLAVOURS[flavour]
    ground.fresh(kind)
    container, _, life = attached(ground, kind)
    for _ in range(3):
        time.sleep(pause)
        answer = life.surely("ADD", container)
    ground.whole(container, answer, life)
    life.surely("DEL", container)
    ground.nothing_left(container)
    life.survive()


@pytest.mark.parametrize("flavour", USUAL)
def test_delete_that_comes_at_once(ground: Ground, flavour: str) -> None:
    kind = FLAVOURS[flavour]
    ground.fresh(kind)
    life = ground.life().ready()
    containers = [ground.container(kind) for _ in range(5)]
    for container in containers:
        life.surely("ADD", container)
        life.surely("DEL", container)
    ground.nothing_left(*containers)
    life.survive()


def test_no_address_is_in_two_sandboxes(ground: Ground) -> None:
    """An ADD is cut short and its container stays where it is; others come until all addresses are taken."""
    kind = replace(FLAVOURS["scarce"], stride=5)

    def trial(fatal: int) -> bool:
        first = ground.container(kind)
        dies_in(ground, "ADD", fatal, first, ground.life().ready())
        life = ground.life().ready()
        others = [ground.container(kind, pod) for pod in ("b", "c", "d", "e")]
        owners: dict[str, str] = dict.fromkeys(traces.addresses(ground.sandboxes[0]), "a")
        for other in others:
            answer = life.call("ADD", other)
            assert answer.good or answer.exhausted, answer.text
            if answer.good:
                twice = [f"{ip} is {owners[ip]}'s and {other.pod}'s" for ip in answer.ips if ip in owners]
                still = traces.addresses(ground.sandboxes[0])
                assert not [text for text in twice if still], "; ".join(twice)
                owners |= dict.fromkeys(answer.ips, other.pod)
        for each in (first, *others):
            life.surely("DEL", each)
        ground.nothing_left(first, *others, claims=False)
        return bool(ground.place)

    everywhere(ground, kind, trial)


@pytest.mark.parametrize("seed", range((THOROUGH and 100) or 5))
def test_again_and_again(ground: Ground, seed: int) -> None:
    """Call after call meets its death, and so does start after start; the runtime makes them all again."""
    dice = random.Random(seed)
    kind = FLAVOURS[dice.choice(list(FLAVOURS))]
    ground.fresh(kind)
    containers, places = [ground.container(kind)], []
    for _ in range(6):
        fatal = dice.randint(1, 60)
        if not starts(ground, dice.randint(1, 120)):
            places.append(ground.place)
        life = ground.life().ready()
        verb = dice.choice(("ADD", "ADD", "DEL"))
        answer = dies_in(ground, verb, fatal, containers[-1], life)
        places.append(f"{verb} {containers[-1].id}: {ground.place or 'done'}")
        if verb == "ADD" and answer is not None:
            life = ground.life().ready()
            ground.whole(containers[-1], answer, life)
        elif kind.pod and dice.random() < 0.5:
            containers.append(ground.container(kind))
    life = ground.life().ready()
    for container in containers:
        life.surely("DEL", container)
    ground.nothing_left(*containers, claims=False)
