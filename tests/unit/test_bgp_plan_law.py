"""The law of plans: no instant of a step is without a route that both the beginning and the end have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgp_clusters import block, config, felix, node, peer, pool
from tortie.bgp.sessions import Peer
from tortie.calc.admission import Objects
from tortie.calc.bgp_plan.changes import Change, copied, has_net, without_net
from tortie.calc.bgp_plan.moment import Moment, Way, moment
from tortie.calc.bgp_plan.plan import Step, plan
from tortie.calc.bgp_plan.reach import differences
from tortie.model.meta import Resource


@dataclass(frozen=True)
class World:
    """A move between two clusters of the same nodes."""

    before: Objects
    after: Objects


@st.composite
def worlds(draw: st.DrawFn) -> World:
    count = draw(st.integers(2, 5))
    subnets = [draw(st.sampled_from([0, 0, 0, 1])) for _ in range(count)]
    holders = [i for i in range(1, count + 1) if draw(st.integers(0, 4))]
    spec = draw(st.sampled_from([{}, {}, {}, {"vxlanMode": "Always"}, {"disableBGPExport": True}]))
    shared = [pool(**spec), *map(block, holders)]
    return World(*(Objects([*shared, *draw(sides(count, subnets))]) for _ in range(2)))


@st.composite
def sides(draw: st.DrawFn, count: int, subnets: list[int]) -> list[Resource]:
    """What may differ between the two: roles, AS numbers, peerings, the mesh, who writes routes."""
    several = draw(st.booleans())
    found: list[Resource] = []
    for i in range(1, count + 1):
        bgp: dict[str, Any] = {}
        label = draw(st.sampled_from(["", "", "rr"]))
        if draw(st.integers(0, 3)) == 0 or label:
            bgp["routeReflectorClusterID"] = draw(st.sampled_from(["1.0.0.1", "1.0.0.1", "1.0.0.2"]))
        if several:
            bgp["asNumber"] = draw(st.sampled_from([64512, 65001, 65002]))
        found.append(node(i, label=label, subnet=subnets[i - 1], **bgp))
    choices = [
        peer("all", nodeSelector="all()", peerSelector="role == 'rr'"),
        peer("clients", nodeSelector="role != 'rr'", peerSelector="role == 'rr'"),
        peer("tor", peerIP="10.0.0.254", asNumber=64999),
        peer("one", node="n1", peerIP=f"10.0.{subnets[1]}.2", asNumber=64512),
    ]
    found += [one for one in choices if draw(st.booleans())]
    said: dict[str, Any] = {"nodeToNodeMeshEnabled": draw(st.booleans())}
    if draw(st.integers(0, 5)) == 0:
        said["programClusterRoutes"] = "Disabled"
    if draw(st.integers(0, 3)) == 0:
        found.append(felix(draw(st.sampled_from(["Enabled", "Disabled", "EnabledNoEncapOnly"]))))
    return [*found, config(**said)]


@given(worlds(), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_instant_of_a_step_is_without_a_route_that_both_ends_of_the_plan_have(world: World, seed: int) -> None:
    """Agents hear of a step's objects one by one, each at its own time; a session whose half changes closes, and none
    that is opened meanwhile is counted on. The routes are found by trying every path."""
    found = plan(world.before, world.after)
    random = Random(seed)
    objects = world.before
    for step in found.steps:
        needed = (found.start.ways | step.before.ways) & found.end.ways - set(step.lost) - set(step.bare)
        for instant in instants(step, objects, random):
            for way in needed:
                assert instant.has(way), f"{way} in {step.kind}"
        objects = applied(objects, step.changes)
    assert moment(objects).ways == found.end.ways == moment(without_net(world.after)).ways
    assert not has_net(objects)


@dataclass(frozen=True)
class Instant:
    """What each agent believes, and which sessions stand."""

    views: Mapping[str, Moment]
    open: frozenset[tuple[str, str]]
    before: Moment

    def has(self, way: Way) -> bool:
        view = self.views[way.source]
        if way in view.built:
            return True
        bird = way.ware.tunnel in view.programming[way.source].bird and way.ware.told
        return bird and way.source in self._learners(way.owner)

    def _learners(self, owner: str) -> set[str]:
        found: set[str] = set()
        self._tell(owner, None, (owner,), (), frozenset(), found)
        return found

    def _tell(
        self, here: str, source: Peer | None, seen: tuple[str, ...], path: tuple[int, ...], clusters: frozenset[Any],
        found: set[str],
    ) -> None:  # fmt: skip
        """By RFC 4271 and 4456, to the letter and without a thought of cost."""
        for there, link in self.before.graphs[4].links[here].items():
            mine, theirs = link.mine, link.theirs
            if there in seen or (here, there) not in self.open:
                continue
            internal = source is not None and source.local_as == source.remote_as
            onwards, through = path, clusters
            if mine.local_as != mine.remote_as:
                onwards, through = (mine.local_as, *path), frozenset()
            elif internal:
                assert source is not None
                if not (source.rr_client or mine.rr_client):
                    continue
                through = clusters | {one.cluster_id for one in (source, mine) if one.rr_client}
            loops = theirs.local_as in onwards or (theirs.rr_client and theirs.cluster_id in through)
            if not loops:
                found.add(there)
                self._tell(there, theirs, (*seen, there), onwards, through, found)


def instants(step: Step, objects: Objects, random: Random) -> Iterator[Instant]:
    """From the beginning of a step to its end, with random agents hearing of random kinds first."""
    heard = {name: dict.fromkeys({type(change.resource) for change in step.changes}, 0) for name in step.before.nodes}
    first = dict.fromkeys(step.before.nodes, step.before)
    links = step.before.graphs[4].links
    standing = {(a, b) for a in links for b in links[a]}
    yield Instant(dict(first), frozenset(standing), step.before)
    memo: dict[tuple[tuple[str, int], ...], Moment] = {}
    views = dict(first)
    left = [(name, kind) for name, kinds in heard.items() for change in step.changes for kind in [type(change.resource)]
            if kind in kinds]  # fmt: skip
    random.shuffle(left)
    for name, kind in left:
        heard[name][kind] += 1
        key = tuple(sorted((one.__name__, number) for one, number in heard[name].items()))
        if key not in memo:
            memo[key] = moment(applied(objects, seen(step.changes, heard[name])))
        views[name] = memo[key]
        standing = {
            (a, b)
            for a, b in standing
            if not (name == a and closed(step.before, views[a], a, b))
            and not (name == b and closed(step.before, views[b], b, a))
        }
        if random.random() < 0.3:
            yield Instant(dict(views), frozenset(standing), step.before)
    yield Instant(dict(views), frozenset(standing), step.before)


def closed(before: Moment, view: Moment, here: str, there: str) -> bool:
    """Whether a node closes a session that it had, as it sees things now."""
    if here not in before.nodes:
        return False
    mine = before.graphs[4].links[here][there].mine
    return not any(not differences(mine, one) for one in view.nodes[here].peers)


def seen(changes: Iterable[Change], heard: Mapping[type[Resource], int]) -> Iterator[Change]:
    """The first few of each kind."""
    counts = dict(heard)
    for change in changes:
        kind = type(change.resource)
        if counts.get(kind, 0):
            counts[kind] -= 1
            yield change


def applied(objects: Objects, changes: Iterable[Change]) -> Objects:
    after = copied(objects)
    for change in changes:
        if change.new is not None:
            after.put(change.new)
        elif change.old is not None:
            after.drop(change.old)
    return after
