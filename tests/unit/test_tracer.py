"""The packet tracer agrees with the verdict about generated policies, and finds what is wrong with a ruleset."""

from __future__ import annotations

from functools import cache

import pytest

from policy_oracles import Count, World, rendered, report, smallest, state_of, verdict_and_tracer
from policy_places import SEED, Chance
from policy_worlds import some_probe, some_resources
from tortie.calc.state import DesiredState
from tortie.render.ruleset import Chain, Ruleset

DATASTORES, PROBES = 120, 25


def test_verdict_and_tracer_agree() -> None:
    """A slice of `make prove`."""
    print(f"TORTIE_SEED={SEED}")
    count = Count()
    for number in range(DATASTORES):
        problem = verdict_and_tracer(Chance(f"{SEED} unit {number}"), PROBES, count)
        assert not problem, f"TORTIE_SEED={SEED}, datastore {number}\n{problem}"
    assert count.cases // 10 < count.arrived < count.cases * 9 // 10, f"the draw is lopsided: {count}"


def test_what_is_established_passes_whatever_policy_says() -> None:
    for number in range(20):
        rng = Chance(f"{SEED} established {number}")
        world = World(some_resources(rng))
        if world.has_untracked:
            continue  # who is asked before connection tracking knows no connections
        for _ in range(10):
            trace = world.trace(some_probe(rng, hosts=world.has_hosts), state="established")
            assert trace.allowed, f"TORTIE_SEED={SEED}, datastore {number}\n{trace}"
            assert not trace.counters


def test_what_is_allowed_before_connection_tracking_is_not_tracked() -> None:
    """In datastores that are the same in every run."""
    untracked = 0
    for number in range(150):
        rng = Chance(f"untracked {number}")
        world = World(some_resources(rng))
        for _ in range(50 if world.has_untracked else 0):
            probe = some_probe(rng, hosts=True)
            trace = world.trace(probe)
            assert trace.tracked == world.is_tracked(probe), f"datastore {number}\n{trace}"
            untracked += not trace.tracked
    assert untracked


def tampered(right: Ruleset, old: str, new: str) -> Ruleset:
    """A ruleset with something else in place of what it should have."""
    chains = {
        name: Chain(tuple(rule.replace(old, new) for rule in chain.rules), chain.hook)
        for name, chain in right.chains.items()
    }
    return Ruleset(chains, right.sets)


@cache
def datastore_for_faults(number: int) -> tuple[DesiredState, Ruleset, str]:
    """With its ruleset, and what to draw packets with."""
    state = state_of(some_resources(Chance(f"faults {number}")))
    return state, rendered(state), f"packets for faults {number}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (" daddr != @s", " daddr @s"),
        ("th dport != ", "th dport "),
        ("th sport ", "th dport "),
        ("meta l4proto != ", "meta l4proto "),
        (" . meta l4proto . th dport @n", " . meta l4proto . th sport @n"),
        ("icmp type 8", "icmp type 13"),
        ("icmpv6 type 128", "icmpv6 type 139"),
        ("meta mark set meta mark & 0xfffdffff", "meta mark set meta mark & 0xffffffff"),
        ("| 0x00020000 return", "| 0x00010000 return"),
        ('goto denied comment "tier/', 'return comment "tier/'),
        ('goto denied comment "hep/', 'return comment "hep/'),
        ("daddr . meta l4proto . th dport @svc", "daddr . meta l4proto . th sport @svc"),
        ("th dport @failsafe-in ", "th dport @failsafe-out "),
        ("ct status dnat accept", "accept"),
    ],
)
def test_a_fault_of_the_renderer_is_found(old: str, new: str) -> None:
    """In datastores that are the same in every run."""
    for number in range(300):
        state, right, seed = datastore_for_faults(number)
        wrong = tampered(right, old, new)
        if wrong != right:
            rng = Chance(seed)
            world = World((), state, lambda _, wrong=wrong: wrong)
            if any(world.differ(some_probe(rng, hosts=world.has_hosts)) for _ in range(8 * PROBES)):
                return
    pytest.fail("nobody has noticed")


def test_a_difference_is_shown_in_the_smallest_datastore() -> None:
    rng = Chance("a difference")
    while True:
        world = World(some_resources(rng), render=lambda state: tampered(rendered(state), "goto denied", "return"))
        probe = some_probe(rng)
        if world.differ(probe):
            break
    found = smallest(world, probe)
    assert len(world.resources) > 15
    assert len(found.resources) <= 2, "a pod at most at each end"
    shown = report(found, probe, "what packets do")
    for text in (
        "kind: WorkloadEndpoint",
        str(probe),
        "verdict: does not arrive: ",
        "tracer:  ",
        "packets: what packets",
    ):
        assert text in shown
