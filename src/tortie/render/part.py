"""The part of a ruleset that the packets of some interfaces meet, and the rules that bear a name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from tortie.render.match import fit
from tortie.render.ruleset import Chain, Ruleset, Set

_TARGET = re.compile(r"\b(?:jump|goto) (\S+)")
_SET = re.compile(r"@(\S+)")


def part(ruleset: Ruleset, interfaces: Collection[str]) -> Ruleset:
    """The hooks, the chains of the pods' interfaces, what is reached from these, and the sets that they look into.

    Of the maps that lead to chains only those entries are there whose chains are.
    """
    names = {name for name, chain in ruleset.chains.items() if chain.hook}
    names |= {f"{end}-{interface}" for interface in interfaces for end in ("fw", "tw")} & ruleset.chains.keys()
    names |= {target for name in names for one in _maps(ruleset.chains[name], ruleset) for target in _hosts(one)}
    reached: set[str] = set()
    while names - reached:
        name = min(names - reached)
        reached.add(name)
        rules = ruleset.chains[name].rules
        names |= {target for rule in rules for target in _TARGET.findall(rule)} & ruleset.chains.keys()
    chains = {name: ruleset.chains[name] for name in sorted(reached)}
    used = {name for chain in chains.values() for rule in chain.rules for name in _SET.findall(rule)}
    sets = {name: _leading(ruleset.sets[name], reached) for name in sorted(used & ruleset.sets.keys())}
    return Ruleset(chains, sets)


def named(ruleset: Ruleset, name: str) -> dict[str, list[str]]:
    """The rules of a name, as they are written, by chain."""
    ending = f'comment "{fit(name)}"'
    found = {chain: [rule for rule in body.rules if rule.endswith(ending)] for chain, body in ruleset.chains.items()}
    return {chain: rules for chain, rules in found.items() if rules}


def _maps(chain: Chain, ruleset: Ruleset) -> Iterator[Set]:
    """The verdict maps that a chain looks into."""
    for rule in chain.rules:
        for name in _SET.findall(rule):
            if name in ruleset.sets and "verdict" in ruleset.sets[name].spec:
                yield ruleset.sets[name]


def _hosts(one: Set) -> Iterable[str]:
    """The chains of host endpoints that a map leads to; those of pods are named by who asks."""
    for element in one.elements:
        for target in _TARGET.findall(element):
            if not target.startswith(("fw-", "tw-")):
                yield target


def _leading(one: Set, chains: Collection[str]) -> Set:
    if "verdict" not in one.spec:
        return one
    elements = (element for element in one.elements if all(target in chains for target in _TARGET.findall(element)))
    return Set(one.spec, frozenset(elements), one.is_map)
