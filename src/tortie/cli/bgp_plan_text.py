"""A plan of routing for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from tortie.calc.bgp_plan.difference import Fate, Session, one_sided, session_changes
from tortie.calc.bgp_plan.moment import Moment, Way
from tortie.calc.bgp_plan.plan import Kind, Plan, Step

SHOWN = 6
"""Of what there are many, so many are named."""

WHAT = {
    Kind.NET_ON: "the net: agents write the routes to all blocks themselves, under BIRD's",
    Kind.CHANGE: "the change",
    Kind.NET_OFF: "the net away: routes are BIRD's alone again",
}


def printed(plan: Plan) -> str:
    """Sessions and routes before and after, the steps, and what is lost, if anything."""
    return "\n".join(_lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    if not plan.steps:
        yield "nothing to do: everything is as the documents say"
        return
    changes = session_changes(plan.start, plan.end)
    yield f"sessions  {_counted(changes, plan)}"
    yield from _sessions(changes)
    for half in one_sided(plan.end):
        yield f"  not coming about  {half.node} – {half.there}: {half.why}"
    yield f"routes    {_routes(plan.start)} before, {_routes(plan.end)} after"
    gone = plan.start.ways - plan.end.ways
    if gone:
        yield f"  gone for good  {_ways(sorted(gone))}"
    if _unseen(plan.end):
        yield f"  taken to pass on routes, as they are no nodes  {_few(_unseen(plan.end))}"
    for number, step in enumerate(plan.steps, 1):
        yield ""
        yield from _step(number, step)
    yield ""
    yield _verdict(plan)


def _counted(changes: Sequence[Session], plan: Plan) -> str:
    fates = Counter(one.fate for one in changes)
    before = len(changes) - fates[Fate.ADDED]
    after = len(changes) - fates[Fate.REMOVED]
    words = [f"{fates[fate]} {fate}" for fate in Fate if fates[fate]]
    return f"{before} before, {after} after" + (f": {', '.join(words)}" if words else "")


def _sessions(changes: Sequence[Session]) -> Iterator[str]:
    """One line for those that have the same fate for the same reasons."""
    alike: dict[tuple[Fate, str, tuple[str, ...]], dict[tuple[str, str], set[int]]] = {}
    for one in changes:
        if one.fate is not Fate.KEPT:
            alike.setdefault((one.fate, one.kind, one.why), {}).setdefault(one.ends, set()).add(one.version)
    every = {one.version for one in changes}
    for (fate, kind, why), ends in alike.items():
        about = f" for {', '.join(why)}" if why else f" {kind}"
        yield f"  {fate}{about}: {_few([_ends(one, versions, every) for one, versions in ends.items()])}"


def _ends(ends: tuple[str, str], versions: set[int], every: set[int]) -> str:
    """Without the IP version where there is only one, or where it is all of them."""
    only = "" if versions == every else f" (IPv{min(versions)})"
    return " – ".join(ends) + only


def _step(number: int, step: Step) -> Iterator[str]:
    yield f"step {number}  {WHAT[step.kind]}"
    for line in _changes(step):
        yield f"  {line}"
    changes = Counter(one.fate for one in session_changes(step.before, step.after))
    words = [f"{changes[fate]} {fate}" for fate in Fate if changes[fate] and fate is not Fate.KEPT]
    if words:
        yield f"  sessions: {', '.join(words)}"
    stay = len(step.before.ways & step.after.ways) - len(step.lost) - len(step.bare)
    yield f"  routes: {stay} stay throughout"
    if step.lost:
        yield f"  LOST for seconds: {_ways(step.lost)}"
    if step.bare:
        nodes = _few(sorted({way.source for way in step.bare}))
        yield f"  {nodes}: without pods, and without routes for seconds"
    yield f"  then wait for {_awaited(step)}"


def _changes(step: Step) -> Iterator[str]:
    named: dict[tuple[str, str], list[str]] = {}
    for change in step.changes:
        one = change.resource
        named.setdefault((change.verb, one.KIND.kind), []).append(one.name)
    for (verb, kind), names in named.items():
        yield f"{verb} {kind} {_few(names)}"


def _awaited(step: Step) -> str:
    if step.kind is Kind.NET_ON:
        return f"the {_number(len(step.after.built), 'route')} of the agents"
    if step.kind is Kind.NET_OFF:
        return "the agents' routes to go"
    sessions = len(session_changes(step.after, step.after))
    return f"{_number(sessions, 'session')} and {_number(len(step.after.told), 'route')} of BIRD's"


def _verdict(plan: Plan) -> str:
    if plan.gone:
        return f"what is wanted leaves no way for {_ways(plan.gone)}: no session, and nobody who passes routes on"
    if not plan.lost:
        return "no node loses its route to another's pods in any step"
    return f"no order of steps keeps every route: lost for seconds are {_ways(plan.lost)}"


def _routes(moment: Moment) -> str:
    every = len(moment.nodes) * (len(moment.nodes) - 1)
    per = Counter(way.ware.version for way in moment.ways)
    found = " and ".join(f"{per[version]} IPv{version}" for version in sorted(per))
    return f"{found or 'none'} of {every} pairs" if len({way.ware for way in moment.ways}) <= 2 else found


def _ways(ways: Sequence[Way]) -> str:
    return _few([f"{way.source} → {way.owner}" + (" (IPv6)" if way.ware.version == 6 else "") for way in ways])


def _unseen(moment: Moment) -> list[str]:
    return sorted({name for graph in moment.graphs.values() for name in graph.links if name not in moment.nodes})


def _few(words: Sequence[str]) -> str:
    more = len(words) - SHOWN
    return ", ".join(words[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _number(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


# --- for programs -------------------------------------------------------------------------------------------------


def to_document(plan: Plan) -> dict[str, Any]:
    """The whole plan. `learned` says of whom each node learns each other's blocks first."""
    return {
        "sessions": [
            {
                "ends": list(one.ends), "version": one.version, "fate": str(one.fate), "kind": one.kind,
                "why": list(one.why),
            }
            for one in session_changes(plan.start, plan.end)
        ],
        "before": _moment(plan.start),
        "after": _moment(plan.end),
        "steps": [_step_document(step) for step in plan.steps],
        "lost": [_way(way) for way in plan.lost],
        "goneForGood": [_way(way) for way in plan.gone],
    }  # fmt: skip


def _step_document(step: Step) -> dict[str, Any]:
    return {
        "kind": str(step.kind),
        "changes": [
            {"verb": one.verb, "kind": one.resource.KIND.kind, "name": one.resource.name} for one in step.changes
        ],
        "after": _moment(step.after),
        "lost": [_way(way) for way in step.lost],
        "lostByNodesWithoutPods": [_way(way) for way in step.bare],
    }  # fmt: skip


def _moment(moment: Moment) -> dict[str, Any]:
    return {
        "learned": [{**_way(way), "from": neighbour} for way, neighbour in sorted(moment.told.items())],
        "writtenByAgents": [_way(way) for way in sorted(moment.built)],
        "problems": dict(moment.problems),
    }


def _way(way: Way) -> dict[str, Any]:
    return {"source": way.source, "owner": way.owner, "version": way.ware.version, "tunnel": way.ware.tunnel}
