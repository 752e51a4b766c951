"""An nftables table as a value, and the one transaction that turns one such value into another.

`transaction(want, have)` is the plan: a text for `nft -f -` that a person could have typed, applied by the kernel at
once or not at all. With `have` unknown (None) it replaces the whole table, in the same single step: no packet meets
half a ruleset, and connection tracking is not touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
    elements: frozenset[str] = frozenset()
    is_map: bool = False

    @property
    def word(self) -> str:
        return "map" if self.is_map else "set"


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Chains and sets by name. Rules may refer to any of them."""

    chains: Mapping[str, Chain] = field(default_factory=dict)
    sets: Mapping[str, Set] = field(default_factory=dict)


def transaction(want: Ruleset, have: Ruleset | None, table: str = TABLE) -> str:
    """The nft script leading from `have` to `want`; "" when there is nothing to do."""
    if have is None or _redefines(want, have):
        # `add` first, so that `delete` never fails; all of it is one transaction.
        return "\n".join((f"add table {table}", f"delete table {table}", *_create(want, table), ""))
    lines = list(_update(want, have, table))
    return "\n".join((*lines, "")) if lines else ""


def _redefines(want: Ruleset, have: Ruleset) -> bool:
    """Whether a set changes its type or a chain its hook: rare, and simplest done by replacing the table."""
    sets = any(name in have.sets and have.sets[name].spec != new.spec for name, new in want.sets.items())
    return sets or any(name in have.chains and have.chains[name].hook != c.hook for name, c in want.chains.items())


def _create(want: Ruleset, table: str) -> Iterator[str]:
    yield f"add table {table}"
    yield from _declare(want.sets, want.chains, table)
    for name in sorted(want.chains):
        yield from _rules(name, want.chains[name], table)
    for name in sorted(want.sets):
        yield from _elements("add", name, want.sets[name].elements, table)


def _update(want: Ruleset, have: Ruleset, table: str) -> Iterator[str]:
    """Make before break: what is new, then what changed, then what is gone."""
    yield from _declare(
        {name: new for name, new in want.sets.items() if name not in have.sets},
        {name: new for name, new in want.chains.items() if name not in have.chains},
        table,
    )
    for name in sorted(want.sets):
        old, new = have.sets.get(name), want.sets[name]
        if old is not new and not new.is_map:
            yield from _element_changes(name, new, old, table)
    for name in sorted(want.chains):
        old_chain, chain = have.chains.get(name), want.chains[name]
        if old_chain is not chain and old_chain != chain:
            if old_chain is not None:
                yield f"flush chain {table} {name}"
            yield from _rules(name, chain, table)
    for name in sorted(want.sets):
        old, new = have.sets.get(name), want.sets[name]
        if old is not new and new.is_map:
            yield from _element_changes(name, new, old, table)
    # Chains that go may refer to one another, to sets and maps that go; and those maps to the chains.
    gone = sorted(have.chains.keys() - want.chains.keys())
    yield from (f"flush chain {table} {name}" for name in gone)
    for name in sorted(have.sets.keys() - want.sets.keys()):
        yield f"delete {have.sets[name].word} {table} {name}"
    yield from (f"delete chain {table} {name}" for name in gone)


def _declare(sets: Mapping[str, Set], chains: Mapping[str, Chain], table: str) -> Iterator[str]:
    for name in sorted(chains):
        hook = f" {{ {chains[name].hook} }}" if chains[name].hook else ""
        yield f"add chain {table} {name}{hook}"
    for name in sorted(sets):
        yield f"add {sets[name].word} {table} {name} {{ {sets[name].spec} }}"


def _rules(name: str, chain: Chain, table: str) -> Iterator[str]:
    yield from (f"add rule {table} {name} {rule}" for rule in chain.rules)


def _element_changes(name: str, new: Set, old: Set | None, table: str) -> Iterator[str]:
    before = old.elements if old is not None else frozenset()
    gone = before - new.elements
    yield from _elements("delete", name, (key.partition(" : ")[0] for key in gone) if new.is_map else gone, table)
    yield from _elements("add", name, new.elements - before, table)


def _elements(verb: str, name: str, elements: Iterable[str], table: str) -> Iterator[str]:
    every = sorted(elements)
    for start in range(0, len(every), _CHUNK):
        yield f"{verb} element {table} {name} {{ {', '.join(every[start : start + _CHUNK])} }}"
