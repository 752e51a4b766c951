"""What a change of manifests does to connections: which it opens and which it closes, and by which rules.

    before, after ─► parties of both, and an address for every network that a rule names ─► classes that neither tells
    apart ─► verdicts on every lot of packets, both ways ─► what differs, put together for a person to read

Nothing is sampled: lots and classes are as fine as the rules, so "no change" means that no packet fares differently.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tortie.base.addr import IP, Net, nth, parse_net, within
from tortie.base.errors import NotFound
from tortie.calc.explain import Party
from tortie.calc.simulate.names import named
from tortie.calc.simulate.reach import Reach
from tortie.calc.simulate.services import Cuts, Service, words
from tortie.calc.simulate.simulation import OUTSIDE, OUTSIDE_IPS, Simulation
from tortie.policy.rules import DIRECTIONS
from tortie.policy.verdict import Verdict

EVERYWHERE = (parse_net("0.0.0.0/0"), parse_net("::/0"))
ELSEWHERE = "elsewhere"
"""An address of no network that a rule names, when `outside` is in one."""


@dataclass(frozen=True, slots=True)
class Change:
    """Connections that fare differently, all alike: from each source to each destination."""

    opens: bool
    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    services: tuple[Service, ...]
    was: Verdict
    now: Verdict
    said: str
    """The services in words."""


@dataclass(frozen=True, slots=True)
class Difference:
    """All changes, those that open first, and between how many parties they were looked for."""

    changes: tuple[Change, ...]
    pods: tuple[str, ...]
    addresses: Mapping[str, frozenset[int]]
    """Names of addresses, with the IP versions that they have."""
    classes: int
    lots: int
    added: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def opens(self) -> bool:
        return any(change.opens for change in self.changes)

    def who(self, names: Sequence[str], change: Change) -> str:
        """The parties of a change in words."""
        versions = {service.version for service in change.services}
        addresses = [name for name, has in self.addresses.items() if has & versions]
        return named(names, self.pods, addresses)

    @property
    def closes(self) -> bool:
        return any(not change.opens for change in self.changes)


def difference(before: Simulation, after: Simulation) -> Difference:
    names = tuple(sorted({*before.endpoints, *after.endpoints}))
    hosts = tuple(sorted({*before.hosts, *after.hosts}))
    outside = addresses(before, after)
    both = tuple(
        Reach(one, [*(_party(one, name) for name in (*names, *hosts)), *(Party(name, ips) for name, ips in outside)])
        for one in (before, after)
    )
    titles = (*names, *hosts, *(name for name, _ in outside))
    classes = _classes(both, len(titles))
    cuts = Cuts()
    for reach in both:
        reach.choose([members[0] for members in classes])
        reach.cut(cuts)
    services = list(cuts.services())
    changed = _changed(both, classes, services)
    usual = [service for service in services if not all(reach.beside_the_point(service) for reach in both)]
    return Difference(
        tuple(_together(both, changed, classes, titles, usual)),
        names,
        {name: frozenset(ip.version for ip in ips) for name, ips in outside},
        len(classes),
        len(services),
        tuple(name for name in names if name not in before.endpoints),
        tuple(name for name in names if name not in after.endpoints),
    )


def _party(simulation: Simulation, name: str) -> Party | None:
    """None when there is none, or it counts as absent."""
    try:
        return simulation.party(name)
    except NotFound:
        return None


# --- addresses that stand for networks ----------------------------------------------------------------------------


def addresses(*simulations: Simulation) -> list[tuple[str, tuple[IP, ...]]]:
    """`outside`, and an address for each part of the world that some rule tells from the rest: (name, addresses)."""
    nets: set[Net] = set(EVERYWHERE)
    taken: set[IP] = set()
    for simulation in simulations:
        taken |= {ip for endpoint in simulation.endpoints.values() for ip in endpoint.spec.ips}
        taken |= {ip for host in simulation.hosts for ip in simulation.party(host).ips}
        nets |= set(_named_nets(simulation))
    hosts = {net for net in nets if net.num_addresses == 1 and net[0] in taken}
    found: list[tuple[str, tuple[IP, ...]]] = []
    elsewhere: list[IP] = []
    for net, inner in _nested(nets - hosts):
        ip = _free(net, inner, taken, OUTSIDE_IPS if net in EVERYWHERE else ())
        if net in EVERYWHERE:
            elsewhere += [ip] if ip is not None and ip not in OUTSIDE_IPS else []
        elif ip is not None and ip not in OUTSIDE_IPS:
            found.append((str(net) if net.num_addresses > 1 else str(ip), (ip,)))
    rest = [(ELSEWHERE, tuple(elsewhere))] if elsewhere else []
    return [(OUTSIDE, OUTSIDE_IPS), *rest, *found]


def _named_nets(simulation: Simulation) -> Iterator[Net]:
    state = simulation.cluster.state()
    for policy in state.policies.values():
        for rule in (*policy.ingress, *policy.egress):
            for side in (rule.source, rule.destination):
                yield from (*side.nets, *side.not_nets)
    for members in state.sets.values():
        yield from (member for member in members if not isinstance(member, tuple))


def _nested(nets: Iterable[Net]) -> Iterator[tuple[Net, list[Net]]]:
    """Every network with the largest of those inside it."""
    inner: dict[Net, list[Net]] = {}
    open_: list[Net] = []
    for net in sorted(nets, key=lambda net: (net.version, int(net.network_address), net.prefixlen)):
        while open_ and not within(net, open_[-1]):
            open_.pop()
        if open_:
            inner[open_[-1]].append(net)
        inner[net] = []
        open_.append(net)
    yield from inner.items()


def _free(net: Net, inner: Sequence[Net], taken: set[IP], preferred: Sequence[IP]) -> IP | None:
    """An address of a network that is in none inside it and nobody's; None when there is none."""
    for ip in preferred:
        if ip in net and not any(ip in one for one in inner):
            return ip
    ordinal, ahead = min(1, net.num_addresses - 1), iter(inner)
    hole = next(ahead, None)
    while ordinal < net.num_addresses:
        ip = nth(net, ordinal)
        while hole is not None and int(hole.broadcast_address) < int(ip):
            hole = next(ahead, None)
        if hole is not None and ip in hole:
            ordinal += int(hole.broadcast_address) - int(ip) + 1
        elif ip in taken:
            ordinal += 1
        else:
            return ip
    return None


# --- what differs -------------------------------------------------------------------------------------------------

Pair = tuple[int, int]
"""Numbers of two classes."""
_NAMESPACE_PROFILE = re.compile(r"(profile/kns\.)[^ |]+")

Changed = dict[Pair, dict[tuple[Verdict, Verdict], list[Service]]]
"""What was and is now decided about whom, with the packets about which it was."""


def _classes(both: Sequence[Reach], parties: int) -> list[list[int]]:
    """The parties, together where neither before nor after anything tells them apart."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for index in range(parties):
        found[tuple(reach.signature(index) for reach in both)].append(index)
    return list(found.values())


def _changed(both: Sequence[Reach], classes: Sequence[Sequence[int]], services: Sequence[Service]) -> Changed:
    changed: Changed = defaultdict(lambda: defaultdict(list))
    first = [members[0] for members in classes]
    pairs: dict[Hashable, list[Pair]] = {}
    for service in services:
        out, into = (
            [tuple(reach.peers(index, direction, service) for reach in both) for index in first]
            for direction in reversed(DIRECTIONS)
        )
        key = (tuple(out), tuple(into))
        if key not in pairs:
            pairs[key] = [(s, d) for s, d in _differing(out, into) if s != d or len(classes[s]) > 1]
        for s, d in pairs[key]:
            to = classes[d][1] if s == d else first[d]
            was, now = (reach.decision(first[s], to, service) for reach in both)
            changed[s, d][was, now].append(service)
    return changed


def _differing(out: Sequence[tuple[int, ...]], into: Sequence[tuple[int, ...]]) -> Iterator[Pair]:
    """The pairs that could talk and no longer can, or the reverse. Bits of `out`: destinations; of `into`: sources."""
    doubtful = {(s, d) for s, (was, now) in enumerate(out) for d in _bits(was ^ now)}
    doubtful |= {(s, d) for d, (was, now) in enumerate(into) for s in _bits(was ^ now)}
    for s, d in sorted(doubtful):
        was, now = (out[s][i] >> d & into[d][i] >> s & 1 for i in (0, 1))
        if was != now:
            yield s, d


def _bits(number: int) -> Iterator[int]:
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low


# --- for people ---------------------------------------------------------------------------------------------------


def _together(
    both: Sequence[Reach],
    changed: Changed,
    classes: Sequence[Sequence[int]],
    titles: Sequence[str],
    services: Sequence[Service],
) -> Iterator[Change]:
    """Pairs with the same change in as few lines as rows and columns of a table would need.

    `services`: what is worth a word. Of what policy has no say about only that is told which comes alone.
    """
    usual = frozenset(services)
    groups: dict[tuple[bool, str, str, str], list[Pair]] = defaultdict(list)
    kept: dict[tuple[bool, str, str, str], tuple[tuple[Verdict, Verdict], set[Service]]] = {}
    said: dict[tuple[tuple[Service, ...], frozenset[int]], str] = {}
    for pair, reasons in changed.items():
        ends = [classes[number][0] for number in pair]
        versions = frozenset(v for reach in both for v in (4, 6) if all(reach.has(end, v) for end in ends))
        for verdicts, lots in reasons.items():
            about = tuple(lot for lot in lots if lot in usual) or tuple(lots)
            if (about, versions) not in said:
                said[about, versions] = words(about, [one for one in services if one.version in versions])
            was, now = map(_general, verdicts)
            key = (now.allowed, said[about, versions], was.reason, now.reason)
            groups[key].append(pair)
            known, every = kept.setdefault(key, (verdicts, set()))
            kept[key] = (verdicts if known == verdicts else (was, now), every | set(about))
    alone = {number for number, members in enumerate(classes) if len(members) == 1}
    found = []
    for key, pairs in groups.items():
        verdicts, about_all = kept[key]
        for rectangle in _rectangles(pairs, alone):
            sources, destinations = (
                tuple(sorted(titles[index] for one in side for index in classes[one])) for side in rectangle
            )
            found.append(Change(key[0], sources, destinations, tuple(sorted(about_all)), *verdicts, key[1]))
    yield from sorted(found, key=lambda one: (not one.opens, one.destinations, one.sources, one.said))


def _general(verdict: Verdict) -> Verdict:
    """The same for all namespaces: what each one's own profile decides is one line for people."""
    policy, rule, reason = (
        _NAMESPACE_PROFILE.sub(r"\1*", text) for text in (verdict.policy, verdict.rule, verdict.reason)
    )
    return replace(verdict, policy=policy, rule=rule, reason=reason)


def _rectangles(pairs: Iterable[Pair], alone: set[int]) -> Iterator[tuple[list[int], list[int]]]:
    """(sources, destinations) whose products are the pairs; who is alone in a class may be added to himself."""
    by_source: dict[int, set[int]] = defaultdict(set)
    for source, destination in pairs:
        by_source[source].add(destination)
    every: set[int] = set().union(*by_source.values())
    rows: dict[frozenset[int], list[int]] = defaultdict(list)
    for source, destinations in by_source.items():
        rows[frozenset(destinations | ({source} & every & alone))].append(source)
    for columns, sources in rows.items():
        yield sorted(sources), sorted(columns)


def to_document(found: Difference) -> dict[str, Any]:
    """The same as JSON has it."""
    return {
        "changes": [
            {
                "change": "opens" if one.opens else "closes",
                "sources": list(one.sources),
                "destinations": list(one.destinations),
                "packets": one.said,
                "was": _verdict(one.was),
                "now": _verdict(one.now),
            }
            for one in found.changes
        ],
        "podsAdded": list(found.added),
        "podsRemoved": list(found.removed),
        "compared": {"pods": len(found.pods), "addresses": len(found.addresses), "lots": found.lots},
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {"allowed": verdict.allowed, "reason": verdict.reason, "policy": verdict.policy, "rule": verdict.rule}
