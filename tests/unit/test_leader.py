"""Who leads: decisions on values, and races in every order."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tortie.controllers.leader import (
    NAME,
    NAMESPACE,
    Seen,
    Times,
    Wait,
    Write,
    decide,
    identity,
    observe,
    released,
)
from tortie.model.lease import Lease, LeaseSpec
from tortie.model.meta import Metadata

UTC_NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
TIMES = Times()


def lease(spec: LeaseSpec, revision: str = "7") -> Lease:
    return Lease(metadata=Metadata(name=NAME, namespace=NAMESPACE, resource_version=revision), spec=spec)


def held(by: str, **more: object) -> LeaseSpec:
    spec = LeaseSpec(holder_identity=by, lease_duration_seconds=15, renew_time="2026-01-02T03:00:00.000000Z")
    return replace(spec, **more)


# --- decisions --------------------------------------------------------------------------------------------------------


def test_the_first_takes_it() -> None:
    first = decide(None, None, "a", 100.0, UTC_NOW, TIMES)
    assert first == Write(
        LeaseSpec(
            holder_identity="a",
            lease_duration_seconds=15,
            acquire_time="2026-01-02T03:04:05.678901Z",
            renew_time="2026-01-02T03:04:05.678901Z",
            lease_transitions=0,
        )
    )


def test_anothers_runs_out_by_ones_own_clock() -> None:
    theirs = lease(held("b", lease_transitions=3))
    seen = observe(theirs, None, 100.0)
    assert seen == Seen("7", 100.0, "b", 15.0)
    assert decide(theirs, seen, "a", 100.0, UTC_NOW, TIMES) == Wait("b", 2.0)
    assert decide(theirs, observe(theirs, seen, 114.0), "a", 114.0, UTC_NOW, TIMES) == Wait("b", 1.0)
    taken = decide(theirs, observe(theirs, seen, 115.0), "a", 115.0, UTC_NOW, TIMES)
    assert isinstance(taken, Write)
    assert (taken.revision, taken.spec.holder_identity, taken.spec.lease_transitions) == ("7", "a", 4)
    assert taken.spec.acquire_time == taken.spec.renew_time


def test_a_renewal_is_any_write_whatever_it_says_of_the_time() -> None:
    old, new = lease(held("b"), "7"), lease(held("b"), "8")
    seen = observe(old, None, 100.0)
    assert observe(new, seen, 114.0) == Seen("8", 114.0, "b", 15.0)


def test_who_held_a_lease_that_somebody_has_deleted_may_still_work() -> None:
    seen = observe(lease(held("b")), None, 100.0)
    gone = observe(None, seen, 101.0)
    assert decide(None, gone, "a", 114.0, UTC_NOW, TIMES) == Wait("b", 1.0)
    assert isinstance(decide(None, gone, "a", 115.0, UTC_NOW, TIMES), Write)
    assert isinstance(decide(None, gone, "b", 101.0, UTC_NOW, TIMES), Write)  # it makes it again


@pytest.mark.parametrize("years", [-20, 0, 20])
def test_what_the_wall_says_elsewhere_does_not_matter(years: int) -> None:
    when = (UTC_NOW + timedelta(days=365 * years)).isoformat()
    theirs = lease(held("b", renew_time=when, acquire_time=when))
    assert isinstance(decide(theirs, observe(theirs, None, 100.0), "a", 114.9, UTC_NOW, TIMES), Wait)
    assert isinstance(decide(theirs, observe(theirs, None, 100.0), "a", 115.0, UTC_NOW, TIMES), Write)


@pytest.mark.parametrize("said", ["2027-01-01T00:00:00.000000Z", "2026-01-02T03:04:05.678901Z", "yesterday", "", None])
def test_a_renewal_differs_from_what_it_renews(said: str | None) -> None:
    mine = held("a", renew_time=said, acquire_time="2026-01-01T00:00:00Z", lease_transitions=2)
    renewed = decide(lease(mine), Seen("7", 0.0), "a", 1.0, UTC_NOW, TIMES)
    assert isinstance(renewed, Write)
    assert renewed.spec.renew_time != said
    assert renewed.spec.acquire_time == "2026-01-01T00:00:00Z"
    assert renewed.spec.lease_transitions == 2


def test_a_lease_without_zone_in_its_time() -> None:
    mine = lease(held("a", renew_time="2026-01-02T03:04:05"))
    assert isinstance(decide(mine, Seen("7", 0.0), "a", 1.0, UTC_NOW, TIMES), Write)


def test_given_back_is_free_at_once() -> None:
    free = lease(released(held("b", lease_transitions=3)))
    taken = decide(free, Seen("7", 100.0), "a", 100.0, UTC_NOW, TIMES)
    assert isinstance(taken, Write)
    assert taken.spec.lease_transitions == 4


def test_the_durations_are_those_of_the_holder() -> None:
    theirs = lease(held("b", lease_duration_seconds=60))
    assert isinstance(decide(theirs, observe(theirs, None, 100.0), "a", 159.0, UTC_NOW, TIMES), Wait)
    unsaid = lease(held("b", lease_duration_seconds=0))
    assert isinstance(decide(unsaid, observe(unsaid, None, 100.0), "a", 114.0, UTC_NOW, TIMES), Wait)


def test_identities_differ_and_say_where() -> None:
    one, other = identity(), identity()
    assert one != other
    assert one.rpartition("_")[0] == other.rpartition("_")[0]


# --- every order of steps ---------------------------------------------------------------------------------------------


@dataclass
class Candidate:
    """A process: reads and writes are steps of their own, between which anything happens."""

    name: str
    offset: float
    rate: float
    wall: datetime
    seen: Seen | None = None
    read: tuple[Lease | None, Write, float] | None = None
    until: float = float("-inf")

    def now(self, time: float) -> float:
        return self.offset + time * self.rate

    def leads(self, time: float) -> bool:
        return self.now(time) < self.until


@dataclass
class World:
    candidates: list[Candidate]
    time: float = 0.0
    lease: Lease | None = None
    revision: int = 0
    led: set[str] = field(default_factory=set)

    def look(self, one: Candidate) -> None:
        now = one.now(self.time)
        one.seen = observe(self.lease, one.seen, now)
        decision = decide(self.lease, one.seen, one.name, now, one.wall, TIMES)
        one.read = (self.lease, decision, now) if isinstance(decision, Write) else None
        if isinstance(decision, Wait):
            one.until = float("-inf")

    def write(self, one: Candidate, *, heard: bool) -> None:
        """Compare-and-swap; not `heard`: it arrives, and the answer does not."""
        if one.read is None:
            return
        (read, decision, before), one.read = one.read, None
        if read is not self.lease:
            return
        self.revision += 1
        self.lease = lease(decision.spec, str(self.revision))
        if heard:
            one.until = before + TIMES.renew

    def check(self) -> None:
        leading = [one.name for one in self.candidates if one.leads(self.time)]
        assert len(leading) <= 1, f"at {self.time}: {leading}"
        self.led |= set(leading)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["try", "try", "try", "look", "write", "lost", "crash"]),
        st.sampled_from([0, 1, 0, 1, 2]),
        st.sampled_from([0.0, 0.0, 2.0, 9.0, 15.5, 17.0]) | st.floats(0.0, 6.0),
    ),
    min_size=1,
    max_size=60,
)
CLOCKS = st.lists(
    st.tuples(st.floats(0, 1e6), st.floats(0.9, 1.1), st.integers(-(10**8), 10**8)), min_size=3, max_size=3
)


@given(STEPS, CLOCKS)
@settings(max_examples=200, deadline=None)
def test_never_two(steps: list[tuple[str, int, float]], clocks: list[tuple[float, float, int]]) -> None:
    """Clocks that differ by days and by a tenth in speed; crashes; answers that are lost; reads that are old."""
    world = World(
        [
            Candidate(f"c{i}", offset, rate, UTC_NOW + timedelta(seconds=wall))
            for i, (offset, rate, wall) in enumerate(clocks)
        ]
    )
    for number, (verb, who, pause) in enumerate(steps):
        world.time += pause
        world.check()
        one = world.candidates[who]
        if verb in ("look", "try"):
            world.look(one)
        if verb in ("write", "try", "lost"):
            world.write(one, heard=verb != "lost")
        if verb == "crash":
            world.candidates[who] = replaced = Candidate(f"c{who}-{number}", one.offset, one.rate, one.wall)
            assert not replaced.leads(world.time)
        world.check()
    world.time += 40  # and whatever has happened, somebody leads in the end
    for one in world.candidates:
        world.look(one)
    world.time += 20
    world.look(world.candidates[0])
    world.write(world.candidates[0], heard=True)
    world.check()
    assert world.candidates[0].leads(world.time)


@pytest.mark.parametrize("rates", [(1.0, 1.0), (0.9, 1.1), (1.1, 0.9)])
@pytest.mark.parametrize("other", ["look", "lost", "try"])
def test_nobody_takes_over_too_early_or_never(rates: tuple[float, float], other: str) -> None:
    """Every half second after the last renewal, and whenever the other has looked before."""
    taken = set()
    for looked in range(20):
        for tried in range(looked, 80):
            one, two = (Candidate(name, 1000.0 * i, rates[i], UTC_NOW) for i, name in enumerate("ab"))
            world = World([one, two])
            world.look(one)
            world.write(one, heard=True)
            for at, verb in ((looked, other), (tried, "try")):
                world.time = at / 2
                world.look(two)
                if verb != "look":
                    world.write(two, heard=verb == "try")
                world.check()
            if two.leads(world.time):
                taken.add((tried - looked) / 2 * rates[1])
    assert 15.0 <= min(taken) <= 15.6
