"""Staged policies in generated datastores: they change nothing in the kernel, and count what they should.

A staged policy counts new connections that come to its place, by the rule that they match; what would end there, or go
on to the next tier, is no other staged policy's to count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from policy_oracles import World, packet_of
from policy_places import NODE, PLACES, PODS, SEED, Chance, Place, made
from policy_rules import STAGED, some_policy
from policy_worlds import Probe, some_probe, some_resources
from tortie.model.document import convert, dump
from tortie.model.hostendpoint import HostEndpoint
from tortie.model.meta import Resource
from tortie.policy.rules import Direction, rule_id, staged_end_id
from tortie.policy.verdict import judge, judge_pending, matches, membership
from tortie.render.staged import tiers_with_staged

BATCHES, WORLDS, PROBES = 8, 20, 8


def some_staged(rng: Chance, name: str) -> Resource:
    """A policy as it would be staged."""
    policy = some_policy(rng, name)
    while type(policy) not in STAGED:
        policy = some_policy(rng, name)
    body = {key: value for key, value in dump(policy).items() if key in ("metadata", "spec")}
    return convert(STAGED[type(policy)], body)


def some_deletion(rng: Chance, policies: list[Resource]) -> Resource:
    policy = rng.choice(policies)
    return made(STAGED[type(policy)], policy.name, policy.namespace, spec={"stagedAction": "Delete"})


def some_world(rng: Chance) -> list[Resource]:
    """Nothing staged in it yet, and about pods alone."""
    left_out = (HostEndpoint, *STAGED.values())
    return [one for one in some_resources(rng) if not isinstance(one, left_out)]


def some_stage(rng: Chance, resources: list[Resource]) -> Iterator[Resource]:
    """Policies of new names, of names that are there, and deletions."""
    yield from (some_staged(rng, f"staged{i}") for i in range(rng.randint(1, 3)))
    obeyed = [one for one in resources if type(one) in STAGED]
    if obeyed and rng.maybe(0.5):
        yield some_staged(rng, rng.choice(obeyed).name)
    elif obeyed and rng.maybe(0.5):
        yield some_deletion(rng, obeyed)


def counts(world: World, probe: Probe) -> Counter[str]:
    """What staged policies count of a probe, by the meaning of policy."""
    found: Counter[str] = Counter()
    asked: list[tuple[Place, Direction]] = [(PLACES[probe.source], "egress")] if probe.source in PODS else []
    if probe.destination in PODS and probe.source != NODE:
        asked.append((PLACES[probe.destination], "ingress"))
    contains = membership(lambda ref: world.state.sets[ref])
    for place, direction in asked:
        policy = world.state.endpoints[place.interface].policy
        found += _counts_at(world, probe, place, direction)
        if not judge(packet_of(probe), policy, direction, contains).allowed:
            break
    return found


def _counts_at(world: World, probe: Probe, place: Place, direction: Direction) -> Counter[str]:
    found: Counter[str] = Counter()
    contains = membership(lambda ref: world.state.sets[ref])
    policy = world.state.endpoints[place.interface].policy
    ended = False
    for tier in tiers_with_staged(policy, direction):
        passed = skipped = False
        for one in tier.policies:
            if passed or (one.staged is not None and (ended or skipped)):
                continue
            for i, rule in enumerate(one.rules(direction)):
                if not matches(rule, packet_of(probe), contains):
                    continue
                if one.staged is not None:
                    found[rule_id(one.key, direction, i)] += 1
                    ended, skipped = ended or rule.action in ("Allow", "Deny"), skipped or rule.action == "Pass"
                elif rule.action in ("Allow", "Deny"):
                    return found
                else:
                    passed = passed or rule.action == "Pass"
                if rule.action != "Log":
                    break
        if tier.default_action == "Pass" or passed:
            continue
        if any(one.staged is None for one in tier.policies):
            return found
        if not ended and not skipped:
            found[staged_end_id(tier.name, place.interface, direction)] += 1
            ended = True
    return found


@pytest.mark.parametrize("batch", range(BATCHES))
def test_they_change_nothing_and_count_what_comes_to_them(batch: int) -> None:
    arrived = counted = 0
    for number in range(WORLDS):
        rng = Chance(f"{SEED} staged {batch} {number}")
        resources = some_world(rng)
        plain, staged = World(resources), World([*resources, *some_stage(rng, resources)])
        for _ in range(PROBES):
            probe = some_probe(rng)
            before, after = plain.trace(probe), staged.trace(probe)
            where = f"TORTIE_SEED={SEED}, batch {batch}, world {number}, {probe}\n{after}"
            theirs = Counter({name: n for name, n in after.counters.items() if name.startswith("s")})
            assert (after.verdict, after.counters - theirs) == (before.verdict, before.counters), where
            assert theirs == counts(staged, probe), where
            arrived, counted = arrived + after.allowed, counted + theirs.total()
    assert 0 < arrived < WORLDS * PROBES
    assert counted > WORLDS, "hardly anything comes to a staged policy"


def test_what_counts_is_what_would_decide() -> None:
    """Where no staged policy passes anything on or takes another's place, the staged rule that would decide is one that
    counts. Few worlds have such a decision, so as many are made as it takes to meet some."""
    decided, number = 0, 0
    while decided < 5:
        number += 1
        assert number < 2000, "no staged policy ever decides"
        rng = Chance(f"{SEED} pending {number}")
        resources = some_world(rng)
        stage = [one for one in some_stage(rng, resources) if one.name.startswith("staged") and not _passes(one)]
        world = World([*resources, *stage])
        contains = membership(lambda ref, world=world: world.state.sets[ref])  # type: ignore[misc]
        for _ in range(PROBES):
            probe = some_probe(rng)
            if probe.destination in PODS:
                place = PLACES[probe.destination]
                policy = world.state.endpoints[place.interface].policy
                rule = judge_pending(packet_of(probe), policy, "ingress", contains).rule
                if rule.startswith(("snp/", "sgnp/", "sknp/")):
                    decided += 1
                    assert _counts_at(world, probe, place, "ingress")[rule] == 1


def _passes(one: Resource) -> bool:
    return any(getattr(rule, "action", "") == "Pass" for rule in (*one.spec.ingress, *one.spec.egress))  # type: ignore[attr-defined]
