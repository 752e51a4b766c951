"""Long rows of policies: looked up by who the peer is, instead of asked one after the other.

    tw-<if> ─► ri-<row>: ip saddr vmap @ri4-<row>-<n> ─┬─ in a set or network of one policy ──► pi-<policy>
    fw-<if> ─► ro-<row>: ip daddr vmap @ro4-<row>-<n>  ├─ in those of several ──► gi-<group>: pi-<policy>, pi-<policy>
                                                       └─ not there: nobody in the row has a rule for such a peer

A policy can only match a peer that is in a set, or a network, of one of its rules. What its rules ask besides, they ask
themselves: a map says who is worth asking, in the row's order, and decides nothing. A policy with a rule for anybody or
for most of a cluster is asked in its place, between two maps.

A row is a piece of a tier. Pieces end where a policy's name says so, wherever it stands: one policy more or less makes
one piece another, and endpoints to which the same policies apply share them.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from itertools import groupby, pairwise
from operator import is_
from types import MappingProxyType
from typing import Any

from tortie.base.addr import Net
from tortie.calc.state import LocalEndpoint
from tortie.policy.rules import DIRECTIONS, Direction, Member, Policy, PolicyKey, SelectorSet, SetRef
from tortie.policy.verdict import TierPolicies
from tortie.render import staged
from tortie.render.match import ACCEPT, FAMILY, PASS, policy_chain
from tortie.render.members import ADDRESS, element, is_broad
from tortie.render.ruleset import Chain, Set

SHORTEST = 32
"""Policies below which a row is not worth its chain: the kernel asks them in 7 microseconds."""
PIECE = 128
"""How many policies a piece has on average; at most four times as many."""
LARGE = 500
"""Members from which on a set counts as most of a cluster."""
DECIDED = f"meta mark & {ACCEPT | PASS:#010x} != 0 return"

_EMPTY: AbstractSet[Member] = frozenset()
_ADDRESS: dict[Direction, str] = {"ingress": "saddr", "egress": "daddr"}

Row = tuple[Policy, ...]
Peers = SelectorSet | Net
Positions = tuple[int, ...]
"""Of policies among others, in their order."""
Members = Mapping[SetRef, AbstractSet[Member]]


def rows(policies: Sequence[Policy]) -> Iterator[Row]:
    """The policies of a tier in rows, in their order; those that are in none, and staged ones, by themselves."""
    for is_staged, several in groupby(policies, lambda policy: policy.staged is not None):
        found = tuple(several)
        if is_staged or len(found) < SHORTEST:
            yield from ((one,) for one in found)
        else:
            yield from _pieces(found)


def _pieces(policies: Row) -> Iterator[Row]:
    start = 0
    for end in _ends(tuple(policy.key for policy in policies)):
        yield policies[start:end]
        start = end


@lru_cache(maxsize=1024)  # the pods of a namespace have the same policies
def _ends(keys: tuple[PolicyKey, ...]) -> tuple[int, ...]:
    ends = [0]
    for end in range(SHORTEST, len(keys) - SHORTEST + 1):
        so_far = end - ends[-1]
        if so_far >= SHORTEST and (so_far >= 4 * PIECE or zlib.crc32(str(keys[end - 1]).encode()) % PIECE == 0):
            ends.append(end)
    return (*ends[1:], len(keys))


def row_chain(row: Row, direction: Direction) -> str:
    """`ri-<digest>`: named after the policies, so that it is the same for every endpoint that has them."""
    return f"r{direction[0]}-{_row_digest(tuple(policy.key for policy in row))}"


@lru_cache(maxsize=4096)
def _row_digest(keys: tuple[PolicyKey, ...]) -> str:
    return _digest(map(str, keys))


class Rows:
    """All rows of a node. What does not change is the very same object as before."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[LocalEndpoint, dict[str, tuple[Row, Direction]]]] = {}
        self._rows: dict[str, _Row] = {}

    def render(
        self, endpoints: Mapping[str, LocalEndpoint], members: Members
    ) -> tuple[dict[str, Chain], dict[str, Set]]:
        """Chains and maps."""
        wanted: dict[str, tuple[Row, Direction]] = {}
        for name, endpoint in endpoints.items():
            known = self._of.get(name)
            if known is None or known[0] is not endpoint:
                known = self._of[name] = endpoint, dict(_rows_of(endpoint))
            wanted.update(known[1])
        self._of = {name: known for name, known in self._of.items() if name in endpoints}
        self._rows = {name: one for name, one in self._rows.items() if name in wanted}
        chains: dict[str, Chain] = {}
        sets: dict[str, Set] = {}
        for name, (row, direction) in wanted.items():
            one = self._rows.get(name)
            if one is None or not one.serves(row):
                one = self._rows[name] = _Row(name, row, direction)
            one.update(members)
            chains.update(one.chains)
            sets.update(one.sets)
        return chains, sets


def _rows_of(endpoint: LocalEndpoint) -> Iterator[tuple[str, tuple[Row, Direction]]]:
    for direction in DIRECTIONS:
        tiers: tuple[TierPolicies, ...] = staged.tiers_with_staged(endpoint.policy, direction)
        for row in (row for tier in tiers for row in rows(tier.policies) if len(row) > 1):
            yield row_chain(row, direction), (row, direction)


class _Row:
    """The chain of one row, and the maps and groups that it needs."""

    def __init__(self, name: str, row: Row, direction: Direction) -> None:
        self._row = row
        self.chains: dict[str, Chain] = {}
        self.sets: dict[str, Set] = {}
        self._name = name
        self._direction = direction
        self._peers = [peers_of(policy, direction) for policy in row]
        self._refs = {ref for peers in self._peers for ref in peers or () if isinstance(ref, SelectorSet)}
        self._members: dict[SetRef, AbstractSet[Member]] = {}
        self._unfit: frozenset[SetRef] = frozenset()
        self._parts: list[_InTurn | _ByPeer] = []

    def serves(self, row: Row) -> bool:
        """Whether policies of the same names are looked up in the same way."""
        same = all(map(is_, row, self._row)) or [peers_of(policy, self._direction) for policy in row] == self._peers
        self._row = row if same else self._row
        return same

    def update(self, members: Members) -> None:
        """These are the members of all sets now."""
        changed = {ref for ref in self._refs if members.get(ref, _EMPTY) is not self._members.get(ref)}
        if self._parts and not changed:
            return
        self._members |= {ref: members.get(ref, _EMPTY) for ref in changed}
        unfit = self._unfit - changed | {ref for ref in changed if not _is_fit(self._members[ref])}
        if unfit != self._unfit or not self._parts:
            self._unfit = unfit
            self._parts = list(self._split())
        for part in self._parts:
            part.update(self._members)
        rules = tuple(rule for part in self._parts for rule in part.rules())
        self.chains = {self._name: Chain(rules)}
        self.sets = {}
        for part in self._parts:
            self.chains |= part.chains
            self.sets |= part.sets

    def _split(self) -> Iterator[_InTurn | _ByPeer]:
        fits = [peers is not None and self._unfit.isdisjoint(peers) for peers in self._peers]
        for number, (fit, several) in enumerate(groupby(range(len(self._row)), fits.__getitem__)):
            at = list(several)
            chains = [policy_chain(self._row[i].key, self._direction) for i in at]
            if fit:
                peers = [self._peers[i] or () for i in at]
                yield _ByPeer(f"{self._name}-{number}", self._direction, chains, peers)
            else:
                yield _InTurn(chains)


def _is_fit(members: AbstractSet[Member]) -> bool:
    """Whether it tells some peers from all others."""
    return len(members) < LARGE


def peers_of(policy: Policy, direction: Direction) -> tuple[Peers, ...] | None:
    """Sets and networks; a peer has to be in one of them for any rule of the policy to match. None: there are none."""
    found: dict[Peers, None] = {}
    for rule in policy.rules(direction):
        side = rule.source if direction == "ingress" else rule.destination
        mine = side.sets[:1] or side.nets
        if not mine or len(mine) >= LARGE:
            return None
        found.update(dict.fromkeys(mine))
    return tuple(found)


class _InTurn:
    """Policies that are asked one after the other."""

    chains: Mapping[str, Chain] = MappingProxyType({})
    sets: Mapping[str, Set] = MappingProxyType({})

    def __init__(self, chains: Sequence[str]) -> None:
        self._chains = chains

    def update(self, members: Members) -> None:
        """Makes no difference."""

    def rules(self) -> Iterator[str]:
        yield from in_turn(self._chains)
        yield DECIDED


class _ByPeer:
    """Policies, of each the sets and networks in one of which a peer has to be: a map, and a group for the peers who
    have to do with several.

    Where peers fall into more groups than are worth it, the policies are asked in turn after all.
    """

    def __init__(
        self, name: str, direction: Direction, chains: Sequence[str], peers: Sequence[tuple[Peers, ...]]
    ) -> None:
        self.chains: dict[str, Chain] = {}
        self.sets: dict[str, Set] = {}
        self._direction = direction
        self._policies = chains
        self._peers = peers
        self._maps = {version: f"{name[:2]}{version}{name[2:]}" for version in FAMILY}
        self._verdicts: dict[int, dict[str, Positions]] = {version: {} for version in FAMILY}
        """By the key of a map's element: the policies that it leads to."""
        self._spans = dict.fromkeys(FAMILY, False)
        self._users: dict[SelectorSet, list[int]] = {}
        self._members: dict[SetRef, AbstractSet[Member]] = {}
        self._positions: dict[Net, set[int]] = {}
        """Of the policies in whose sets a peer, or a network of peers, is."""
        for position, every in enumerate(peers):
            for one in every:
                if isinstance(one, SelectorSet):
                    self._users.setdefault(one, []).append(position)
                else:
                    self._positions.setdefault(one, set()).add(position)
        self._touched: set[Any] = set(self._positions)  # networks, as all that a SelectorSet has

    def rules(self) -> Iterator[str]:
        if self.sets:
            for version, family in FAMILY.items():
                yield f"{family} {_ADDRESS[self._direction]} vmap @{self._maps[version]}"
        else:
            yield from in_turn(self._policies)
        yield DECIDED

    def update(self, members: Members) -> None:
        """Costs by who came and went; with networks, by all."""
        for ref, positions in self._users.items():
            new, old = members[ref], self._members.get(ref, _EMPTY)
            if new is not old:
                self._members[ref] = new
                self._take_in(positions, new - old, old - new)
                self._touched |= new ^ old
        for version in FAMILY:
            if touched := [one for one in self._touched if one.version == version]:
                self._find(version, touched)
        self._touched = set()
        self._write()

    def _take_in(self, positions: list[int], come: Iterable[Any], gone: Iterable[Any]) -> None:
        """Of a set that the policies at these positions look into."""
        for one in come:
            self._positions.setdefault(one, set()).update(positions)
        for one in gone:
            still = {at for at in positions if any(self._holds(peers, one) for peers in self._peers[at])}
            self._positions[one] -= set(positions) - still

    def _holds(self, peers: Peers, one: Net) -> bool:
        return one in self._members.get(peers, _EMPTY) if isinstance(peers, SelectorSet) else one == peers

    def _find(self, version: int, touched: Iterable[Net]) -> None:
        """To whom the elements of a map lead now."""
        for one in touched:
            if not self._positions[one]:
                del self._positions[one]
        mine = {one: at for one, at in self._positions.items() if one.version == version}
        had_spans, self._spans[version] = self._spans[version], any(map(is_broad, mine))
        if self._spans[version]:
            self._verdicts[version] = dict(spans(mine))
        elif had_spans:
            self._verdicts[version] = {element(one): tuple(sorted(at)) for one, at in mine.items()}
        else:
            for one in touched:
                self._verdicts[version].pop(element(one), None)
            self._verdicts[version] |= {element(one): tuple(sorted(mine[one])) for one in touched if one in mine}

    def _write(self) -> None:
        groups = {at for verdicts in self._verdicts.values() for at in verdicts.values() if len(at) > 1}
        if sum(map(len, groups)) > 4 * len(self._policies) + SHORTEST:
            self.chains, self.sets = {}, {}
            return
        targets = {at: self._target(at) for verdicts in self._verdicts.values() for at in verdicts.values()}
        self.chains = {targets[at]: Chain(tuple(in_turn([self._policies[i] for i in at]))) for at in groups}
        self.sets = {}
        for version, name in self._maps.items():
            flags = " flags interval;" if self._spans[version] else ""
            elements = frozenset(f"{key} : jump {targets[at]}" for key, at in self._verdicts[version].items())
            self.sets[name] = Set(f"type {ADDRESS[version]} : verdict;{flags}", elements, is_map=True)

    def _target(self, positions: Positions) -> str:
        """The chain for a peer who has to do with these."""
        chains = [self._policies[at] for at in positions]
        return chains[0] if len(chains) == 1 else f"g{self._direction[0]}-{_digest(chains)}"


def spans(positions: Mapping[Net, Collection[int]]) -> Iterator[tuple[str, Positions]]:
    """Networks that may lie inside one another as spans of addresses that do not: to whom each of them belongs."""
    turns: dict[int, Counter[int]] = {}
    for net, at in positions.items():
        turns.setdefault(int(net.network_address), Counter()).update(at)
        turns.setdefault(int(net.broadcast_address) + 1, Counter()).subtract(at)
    made = type(next(iter(positions)).network_address)
    here: Counter[int] = Counter()
    points = sorted(turns)
    for first, after in pairwise(points):
        here.update(turns[first])
        if at := tuple(sorted(one for one, count in here.items() if count)):
            yield str(made(first)) if after == first + 1 else f"{made(first)}-{made(after - 1)}", at


def in_turn(chains: Sequence[str]) -> Iterator[str]:
    """Ask one after the other until one has decided."""
    for number, chain in enumerate(chains):
        if number:
            yield DECIDED
        yield f"jump {chain}"


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:20]
