"""The order in which a change of routing breaks nothing, and the fewest steps it takes.

    present objects ─┐            groups of changes        each order of groups: who keeps a way while sessions
    wanted objects ──┴─ differing ─────────────────► search ─► come and go, with and without the net ─► Plan

Between two steps everybody waits until all is as the objects say. Within a step nothing is waited for: agents hear of
its objects one by one, and each at its own time. So a session counts within a step only if every mixture of old and new
objects leaves it as it is, and a way counts only if it goes over such sessions, or if the agent writes it throughout.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import combinations, count, pairwise, product

from tortie.calc.admission import Objects
from tortie.calc.bgp_plan.changes import Change, copied, differing, has_net, with_net, without_net
from tortie.calc.bgp_plan.moment import VERSIONS, Moment, Way, moment
from tortie.calc.bgp_plan.reach import kept

MAX_GROUPS = 5
"""More are put together: an order of n groups is one of about 3 to the power of n."""
MAX_MIXTURES = 24
"""Of old and new objects that are looked at within one step; of more, those in which whole kinds are old or new."""


class Kind(StrEnum):
    """What a step does."""

    NET_ON = "net on"
    CHANGE = "change"
    NET_OFF = "net off"


@dataclass(frozen=True, slots=True)
class Step:
    """Objects to be written together. After it one waits until `after` is true of the cluster.

    `lost` are the ways that are gone for a moment although both the beginning and the end have them. Nodes without
    blocks have no pods: what they lose, in `bare`, is for the hosts themselves only, and no reason for another order.
    """

    kind: Kind
    changes: tuple[Change, ...]
    before: Moment
    after: Moment
    lost: tuple[Way, ...]
    bare: tuple[Way, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps from one moment to another. `start` and `end` have no net."""

    start: Moment
    end: Moment
    steps: tuple[Step, ...]

    @property
    def lost(self) -> tuple[Way, ...]:
        """What no order of steps keeps."""
        return tuple(sorted({way for step in self.steps for way in step.lost}))

    @property
    def gone(self) -> tuple[Way, ...]:
        """What the end has no more, whatever the steps: ways between nodes that stay, from those that have pods."""
        end = self.end
        ways = self.start.ways - end.ways
        return tuple(sorted(way for way in ways if end.blocks.get(way.source) and way.owner in end.nodes))


def plan(present: Objects, wanted: Objects) -> Plan:
    """The fewest steps of those orders that break the fewest ways. The net of an earlier plan is taken away at last."""
    return _Search(present, wanted).found


@dataclass(frozen=True, slots=True, order=True)
class _At:
    """How far one has come: which groups of changes are made, and whether the net is there."""

    made: frozenset[int]
    net: bool


_Reached = tuple[tuple[int, int, int], int, bool, tuple[_At, ...]]
"""The cost, a number that no other has, whether what the last step loses is in the cost, and the road."""


class _Search:
    """One plan being made. What is known of a moment is kept: orders have most of their moments in common."""

    def __init__(self, present: Objects, wanted: Objects) -> None:
        self._base = without_net(present)
        self._changes = differing(self._base, without_net(wanted))
        self._groups = _grouped(self._changes)
        self._begin = _At(frozenset(), has_net(present))
        self._goal = _At(frozenset(range(len(self._groups))), False)
        self._objects: dict[tuple[frozenset[int], bool], Objects] = {}
        self._moments: dict[tuple[frozenset[int], bool], Moment] = {}

    @cached_property
    def found(self) -> Plan:
        """The road to the goal that is cheapest: in ways lost, then in steps, then in steps with the net. It is an A*
        search; what a step loses is only looked at when no other is cheaper even if it loses nothing."""
        turn = count()
        queue: list[_Reached] = [(self._cost(0, 0, 0, self._begin), next(turn), True, (self._begin,))]
        done: set[_At] = set()
        while queue:
            cost, _, looked_at, road = heapq.heappop(queue)
            here = road[-1]
            if here in done:
                continue
            if not looked_at:
                lost = len(self._lost(road[-2], here)[0])
                heapq.heappush(queue, ((cost[0] + lost, *cost[1:]), next(turn), True, road))
                continue
            if here == self._goal:
                return self._plan(road)
            done.add(here)
            for there in self._next(here):
                if there not in done:
                    netted = sum(at.net for at in road[1:]) + there.net
                    heapq.heappush(
                        queue, (self._cost(cost[0], len(road), netted, there), next(turn), False, (*road, there))
                    )
        raise AssertionError("every group can be made at once")

    def _cost(self, lost: int, steps: int, netted: int, at: _At) -> tuple[int, int, int]:
        """Of a road to there, with the steps that it takes at least from there to the goal."""
        return lost, steps + (at.made != self._goal.made) + at.net, netted

    def _plan(self, road: tuple[_At, ...]) -> Plan:
        steps = [self._step(here, there) for here, there in pairwise(road)]
        start, end = self._moment(frozenset(), False), self._moment(self._numbers(self._goal), False)
        return Plan(start, end, tuple(steps))

    def _step(self, here: _At, there: _At) -> Step:
        kind = Kind.CHANGE if here.net == there.net else Kind.NET_ON if there.net else Kind.NET_OFF
        before, after = self._object(self._numbers(here), here.net), self._object(self._numbers(there), there.net)
        changes = differing(before, after)
        lost, bare = (tuple(sorted(ways)) for ways in self._lost(here, there))
        return Step(kind, changes, self._at(here), self._at(there), lost, bare)

    def _next(self, here: _At) -> Iterator[_At]:
        """The most at once first, so that of equals the plan does little and late, not much and early."""
        left = sorted(self._goal.made - here.made)
        for size in range(len(left), 0, -1):
            yield from (_At(here.made | set(some), here.net) for some in combinations(left, size))
        yield _At(here.made, not here.net)

    def _lost(self, here: _At, there: _At) -> tuple[set[Way], set[Way]]:
        """The ways that beginning and end have, and the step from here to there does not keep: from nodes with blocks,
        and from nodes without."""
        before, after = self._at(here), self._at(there)
        between = [self._moment(numbers, here.net) for numbers in self._mixtures(here, there)]
        every = (before, *between, after)
        end = self._moment(self._numbers(self._goal), False)
        needed = (self._moment(frozenset(), self._begin.net).ways | before.ways) & end.ways
        lost = {*needed.difference(_kept_ways(every))}
        bare = {way for way in lost if not before.blocks.get(way.source)}
        return lost - bare, bare

    def _mixtures(self, here: _At, there: _At) -> Iterator[frozenset[int]]:
        """What agents may see between the two: of each kind, the first few of the changes."""
        old = self._numbers(here)
        kinds: dict[type, list[int]] = {}
        for number in sorted(self._numbers(there) - old):
            kinds.setdefault(type(self._changes[number].resource), []).append(number)
        size = 1
        for numbers in kinds.values():
            size *= len(numbers) + 1
        whole = size > MAX_MIXTURES
        firsts = [[n[:i] for i in ((0, len(n)) if whole else range(len(n) + 1))] for n in kinds.values()]
        for some in product(*firsts):
            yield old | {number for numbers in some for number in numbers}

    def _numbers(self, at: _At) -> frozenset[int]:
        """Of the changes that are made."""
        return frozenset(number for group in at.made for number in self._groups[group])

    def _at(self, at: _At) -> Moment:
        return self._moment(self._numbers(at), at.net)

    def _moment(self, numbers: frozenset[int], net: bool) -> Moment:
        key = numbers, net
        if key not in self._moments:
            self._moments[key] = moment(self._object(numbers, net))
        return self._moments[key]

    def _object(self, numbers: frozenset[int], net: bool) -> Objects:
        key = numbers, net
        if key not in self._objects:
            objects = _applied(self._base, (self._changes[number] for number in sorted(numbers)))
            self._objects[key] = with_net(objects) if net else objects
        return self._objects[key]


def _grouped(changes: tuple[Change, ...]) -> list[tuple[int, ...]]:
    """Numbers of changes that are made together, in the order in which they are written."""
    groups: dict[tuple[int, str], list[int]] = {}
    for number, change in enumerate(changes):
        groups.setdefault(change.group, []).append(number)
    found = [tuple(numbers) for numbers in groups.values()]
    while len(found) > MAX_GROUPS:
        found[:2] = [found[0] + found[1]]
    return found


def _applied(objects: Objects, changes: Iterable[Change]) -> Objects:
    after = copied(objects)
    for change in changes:
        if change.new is not None:
            after.put(change.new)
        elif change.old is not None:
            after.drop(change.old)
    return after


def _kept_ways(moments: tuple[Moment, ...]) -> Iterator[Way]:
    """The ways that are there all through these."""
    first, *others = moments
    stay = {version: kept([one.graphs[version] for one in moments]) for version in VERSIONS}
    for way, _ in first.through(stay):
        if all(way.ware.tunnel in one.programming[way.source].bird for one in others if way.source in one.nodes):
            yield way
    yield from first.built.intersection(*(one.built for one in others))
