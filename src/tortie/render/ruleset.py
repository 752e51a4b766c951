"""An nftables table as a value, and the one transaction that turns one such value into another.

`transaction(want, have)` is the plan: a text for `nft -f -` that a person could have typed, applied by the kernel at
once or not at all. What is in the kernel may be known exactly (a Ruleset), by name (Remains: of an earlier life, or
changed by somebody), or not be worth a look (None: the table is deleted and made anew).

Only the first two cost no packet. A packet that is inside a chain when its table is deleted finds the verdict maps
empty and is dropped by the rule behind them; so a table with remains is emptied and filled in place, in one step.

An update is written in the words for which nft need not ask the kernel what is there. Before `add rule` it has all
tables, chains and sets listed to it, before `add element` all networks in sets, too, be they ours or others': that
takes longer than everything else. To declare once more what is there changes nothing, and costs nothing:

    add element inet tortie s { 10.0.0.3 }      add set inet tortie s { type ipv4_addr; elements = { 10.0.0.3 } }

    add rule inet tortie c ip saddr @s drop     add set inet tortie s { type ipv4_addr; }
                                                add chain inet tortie c {
                                                  ip saddr @s drop
                                                }
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

TABLE = "inet tortie"
"""Everything of ours is in this table; what is in it is ours."""

_CHUNK = 500
"""Elements per line: long lines are hard to read, and nft parses many short ones no slower."""


@dataclass(frozen=True, slots=True)
class Chain:
    """`hook` is the text between the braces of a base chain, "" for a regular one."""

    rules: tuple[str, ...]
    hook: str = ""


@dataclass(frozen=True, slots=True)
class Set:
    """A set or (when `spec` says so) a map: `spec` is its declaration, elements are as nft writes them."""

    spec: str
    elements: AbstractSet[str] = frozenset()
    is_map: bool = False

    @property
    def word(self) -> str:
        return "map" if self.is_map else "set"

    @property
    def has_intervals(self) -> bool:
        return "flags interval" in self.spec


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Chains and sets by name. Rules may refer to any of them."""

    chains: Mapping[str, Chain] = field(default_factory=dict)
    sets: Mapping[str, Set] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Remains:
    """A table of which only the names are known. `sets` says of each whether it is a map."""

    chains: frozenset[str] = frozenset()
    sets: Mapping[str, bool] = field(default_factory=dict)


def transaction(want: Ruleset, have: Ruleset | Remains | None, table: str = TABLE) -> str:
    """The nft script leading from `have` to `want`; "" when there is nothing to do.

    In place of remains, nft refuses a set of another type or a chain of another hook; then only None leads there.
    """
    if isinstance(have, Remains):
        return "\n".join((*_refill(want, have, table), ""))
    if have is None or any(name in have.chains and have.chains[name].hook != c.hook for name, c in want.chains.items()):
        # `add` first, so that `delete` never fails.
        return "\n".join((f"add table {table}", f"delete table {table}", *_create(want, table), ""))
    lines = list(_update(want, have, table))
    return "\n".join((*lines, "")) if lines else ""


def _create(want: Ruleset, table: str) -> Iterator[str]:
    yield f"add table {table}"
    yield from _declare(want.sets, want.chains, table)
    yield from _fill(want, table)


def _fill(want: Ruleset, table: str) -> Iterator[str]:
    for name in sorted(want.chains):
        yield from (f"add rule {table} {name} {rule}" for rule in want.chains[name].rules)
    for name in sorted(want.sets):
        yield from _elements("add", name, want.sets[name].elements, table)


def _refill(want: Ruleset, remains: Remains, table: str) -> Iterator[str]:
    """Empty everything and fill it again, under the same names; what nobody wants goes last."""
    yield f"add table {table}"
    yield f"flush table {table}"  # the rules of all chains; sets and chains stay
    yield from _declare(want.sets, want.chains, table)
    for name, is_map in sorted(remains.sets.items()):
        yield f"flush {'map' if is_map else 'set'} {table} {name}"
    yield from _fill(want, table)
    for name, is_map in sorted(remains.sets.items()):
        if name not in want.sets:
            yield f"delete {'map' if is_map else 'set'} {table} {name}"
    yield from (f"delete chain {table} {name}" for name in sorted(remains.chains - want.chains.keys()))


def _update(want: Ruleset, have: Ruleset, table: str) -> Iterator[str]:
    """Make before break: what is new, then what changed, then what is gone."""
    retyped = {name for name, new in want.sets.items() if name in have.sets and have.sets[name].spec != new.spec}
    if retyped:
        yield from _retype(want, have, retyped, table)
        have = _without(have, retyped)
    other_sets = sorted(name for name, new in want.sets.items() if have.sets.get(name) is not new)
    other_chains = sorted(name for name, new in want.chains.items() if _rules_of(have, name) != new.rules)
    looked_into = {name for chain in other_chains for name in _sets_of(want.chains[chain]) & want.sets.keys()}
    yield from _declare(
        {name: want.sets[name] for name in looked_into.union(want.sets.keys() - have.sets.keys())},
        {name: new for name, new in want.chains.items() if name not in have.chains},
        table,
    )
    for name in other_sets:
        if not want.sets[name].is_map:
            yield from _element_changes(name, want.sets[name], have.sets.get(name), table)
    for name in other_chains:
        if _rules_of(have, name):
            yield f"flush chain {table} {name}"
        if want.chains[name].rules:
            yield from (f"add chain {table} {name} {{", *(f"  {rule}" for rule in want.chains[name].rules), "}")
    for name in other_sets:
        if want.sets[name].is_map:
            yield from _element_changes(name, want.sets[name], have.sets.get(name), table)
    # Chains that go may refer to one another, to sets and maps that go; and those maps to the chains.
    gone = sorted(have.chains.keys() - want.chains.keys())
    yield from (f"flush chain {table} {name}" for name in gone)
    for name in sorted(have.sets.keys() - want.sets.keys()):
        yield f"delete {have.sets[name].word} {table} {name}"
    yield from (f"delete chain {table} {name}" for name in gone)


def _retype(want: Ruleset, have: Ruleset, retyped: set[str], table: str) -> Iterator[str]:
    """Sets that change their type have to go first, and before them the rules that look into them."""
    for name in _users(have, retyped):
        yield f"flush chain {table} {name}"
    for name in sorted(retyped):
        yield f"delete {have.sets[name].word} {table} {name}"


def _without(have: Ruleset, retyped: set[str]) -> Ruleset:
    """What is left after `_retype`: those sets are gone, and the chains that used them are empty."""
    users = _users(have, retyped)
    chains = {name: Chain((), chain.hook) if name in users else chain for name, chain in have.chains.items()}
    return Ruleset(chains, {name: one for name, one in have.sets.items() if name not in retyped})


def _users(have: Ruleset, sets: set[str]) -> list[str]:
    """The chains whose rules refer to one of the sets."""
    return sorted(name for name, chain in have.chains.items() if not sets.isdisjoint(_sets_of(chain)))


def _sets_of(chain: Chain) -> set[str]:
    """What its rules may refer to as a set."""
    return {word[1:] for rule in chain.rules for word in rule.split() if word[0] == "@"}


def _rules_of(have: Ruleset, name: str) -> tuple[str, ...]:
    return have.chains[name].rules if name in have.chains else ()


def _declare(sets: Mapping[str, Set], chains: Mapping[str, Chain], table: str) -> Iterator[str]:
    for name in sorted(chains):
        hook = f" {{ {chains[name].hook} }}" if chains[name].hook else ""
        yield f"add chain {table} {name}{hook}"
    for name in sorted(sets):
        yield f"add {sets[name].word} {table} {name} {{ {sets[name].spec} }}"


def _element_changes(name: str, new: Set, old: Set | None, table: str) -> Iterator[str]:
    before = old.elements if old is not None else frozenset()
    gone = before - new.elements
    yield from _elements("delete", name, (key.partition(" : ")[0] for key in gone) if new.is_map else gone, table)
    if new.has_intervals:  # networks must not overlap: nft has to know those that are there
        yield from _elements("add", name, new.elements - before, table)
    else:
        for some in _chunks(new.elements - before):
            yield f"add {new.word} {table} {name} {{ {new.spec} elements = {{ {some} }} }}"


def _elements(verb: str, name: str, elements: Iterable[str], table: str) -> Iterator[str]:
    yield from (f"{verb} element {table} {name} {{ {some} }}" for some in _chunks(elements))


def _chunks(elements: Iterable[str]) -> Iterator[str]:
    every = sorted(elements)
    for start in range(0, len(every), _CHUNK):
        yield ", ".join(every[start : start + _CHUNK])
