"""One datastore, some new connections, three answers to each: the verdict, the tracer, and what the packets do.

Nothing is timed: a probe is settled when what must arrive has arrived and the counters of the rules that must decide
have grown, by exactly as much as predicted.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from town import Town, until

from policy_oracles import Prediction, World, minimal, report, smallest, state_of
from policy_places import PLACES, TCP, Chance
from policy_worlds import Probe, some_probe, some_resources
from tortie.model.meta import Resource
from tortie.model.node import FelixConfiguration
from tortie.model.policy import GlobalNetworkPolicy
from tortie.policy.rules import DIRECTIONS
from tortie.policy.verdict import failsafe_id

PROBES = 10
"""New connections in each datastore."""


NEIGHBOURS = {failsafe_id(direction, "link") for direction in DIRECTIONS}
"""What the link itself has to say, at any time."""


@dataclass(frozen=True)
class Sent:
    """What packets have done: which probes arrived, and what has been counted, by rule."""

    arrived: tuple[bool, ...]
    counted: Counter[str]
    strange: tuple[str, ...]
    """What has arrived and was not sent so."""


@dataclass(frozen=True)
class Round:
    """What came of one: the number of probes that arrived, and the differences, "" when there are none."""

    probes: int
    arrived: int
    problem: str = ""


def play(town: Town, rng: Chance) -> Round:
    """Bring the town to a new datastore, sometimes as after a restart, and send some probes in it."""
    resources = list(some_resources(rng))
    if any(isinstance(one, GlobalNetworkPolicy) and one.spec.do_not_track for one in resources):
        # A rejection is an answer, and answers to what is not tracked meet policy themselves: let nothing be rejected.
        resources = [one for one in resources if not isinstance(one, FelixConfiguration)]
    whole = rng.maybe(0.3)
    state = town.apply(resources, whole=whole)
    fresh = state_of(rng.sample(resources, len(resources)))
    assert replace(fresh, generation=0) == replace(state, generation=0), "the order of resources makes a difference"
    world = World(resources, state)
    hosts, replies = world.has_hosts, not world.has_untracked
    probes = [some_probe(rng, hosts=hosts, replies=replies) for _ in range(PROBES)]
    problem = "\n".join(_explained(town, world, probe) for probe in probes if world.differ(probe))
    expected = [world.judged(probe) for probe in probes]
    sent = send(town, world, probes, expected)
    if not problem and not as_expected(sent, expected):
        problem = _narrowed(town, world, probes) or _all(world, probes, expected, sent, town)
    return Round(PROBES, sum(sent.arrived), problem)


def send(town: Town, world: World, probes: list[Probe], expected: list[Prediction]) -> Sent:
    """Send the probes, and wait for what is expected of them; what comes besides is seen, too."""
    ends = [(str(PLACES[probe.source].ips[probe.version]), str(probe.source_port)) for probe in probes]
    tokens: list[Any] = [
        end if probe.protocol == TCP else f"probe {i} {'/'.join(end)}".ljust(60).encode()
        for i, (probe, end) in enumerate(zip(probes, ends, strict=True))
    ]
    must_arrive = {token for token, outcome in zip(tokens, expected, strict=True) if outcome.arrives}
    must_count = Counter(rule for outcome in expected for rule in outcome.rules)
    before, seen, counted = Counter(town.counters()), set[Any](), Counter[str]()

    def arrived() -> bool:
        seen.update(town.arrived())
        return must_arrive <= seen

    def decided() -> bool:
        nonlocal counted
        now = town.counters().items()
        counted = Counter({name: count for name, count in now if name not in world.undecided | NEIGHBOURS})
        counted.subtract(before)
        counted = +counted
        return counted.total() >= must_count.total()

    with contextlib.ExitStack() as opened:
        for probe, token, outcome in zip(probes, tokens, expected, strict=True):
            made = town.send(probe, token if isinstance(token, bytes) else b"")
            if probe.protocol == TCP and not outcome.arrives:
                made.close()  # or a second SYN would be counted on a slow machine
            else:
                opened.callback(made.close)
        until(arrived)
        until(decided)
    seen.update(town.arrived())
    ours = {token for token in seen if isinstance(token, bytes) and token.startswith(b"probe")}
    return Sent(tuple(token in seen for token in tokens), counted, tuple(map(str, ours - set(tokens))))


def as_expected(sent: Sent, expected: list[Prediction]) -> bool:
    rules = Counter(rule for outcome in expected for rule in outcome.rules)
    return (sent.arrived, sent.counted, sent.strange) == (tuple(one.arrives for one in expected), rules, ())


def _explained(town: Town, world: World, probe: Probe) -> str:
    """A difference between verdict and tracer in the smallest datastore, with what packets do there."""

    found = smallest(world, probe)
    return report(found, probe, _alone(town, found, probe)[1])


def _narrowed(town: Town, world: World, probes: list[Probe]) -> str:
    """The first probe that does another thing than predicted when it is sent alone, in the smallest datastore in which
    it does; "" if none does."""
    did = ""

    def wrong(resources: list[Resource], probe: Probe) -> bool:
        nonlocal did
        with contextlib.suppress(KeyError):
            right, what = _alone(town, World(resources), probe)
            did = did if right else what
            return not right
        return False

    for probe in probes:
        if wrong(world.resources, probe):
            found = World(minimal(world.resources, lambda resources, probe=probe: wrong(resources, probe)))
            return report(found, probe, did)
    return ""


def _alone(town: Town, world: World, probe: Probe) -> tuple[bool, str]:
    """Send one like it in this datastore: whether it does as predicted, and what it does."""
    town.apply(world.resources, whole=True)
    again = replace(probe, source_port=Probe(probe.source, probe.destination, 4, 0, 0).source_port)
    if probe.source_port >= 40000:
        again = replace(again, source_port=again.source_port + 20000)
    expected = [world.judged(again)]
    sent = send(town, world, [again], expected)
    return as_expected(sent, expected), str(Prediction(tuple(sorted(sent.counted.elements())), sent.arrived[0]))


def _all(world: World, probes: list[Probe], expected: list[Prediction], sent: Sent, town: Town) -> str:
    """A difference that shows only when all probes are sent together."""
    lines = [f"{probe}: {outcome}{'' if came == outcome.arrives else '; NOT SO'}"
             for probe, outcome, came in zip(probes, expected, sent.arrived, strict=True)]  # fmt: skip
    lines += [f"{rule}: {count} packets" for rule, count in sorted(sent.counted.items())]
    lines += [f"unexpected: {one}" for one in sent.strange]
    return "\n".join((report(world, probes[0]), *lines, town.table()))
