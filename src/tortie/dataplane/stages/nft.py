"""Policy and NAT: the table `inet tortie`.

Ours: everything in that table, nothing outside it.
Order: first, and a guard: a pod's policy is in the kernel before its route; when it cannot be, the pass ends.
Source: `render.nft`; `nft -f -`, one transaction per pass.

What the kernel has is known from what was applied last. At start, after a failure and at every resync it is not, and
then the table is replaced whole, in one transaction, which costs no packet.
"""

from __future__ import annotations

from dataclasses import dataclass

from tortie.base.errors import NotFound, TortieError
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work
from tortie.kernel import nft
from tortie.render.nft import NftRenderer
from tortie.render.ruleset import TABLE, Ruleset, transaction


@dataclass(frozen=True, slots=True)
class Script:
    """What `nft -f -` is given, and what the table is afterwards."""

    text: str
    after: Ruleset

    def __bool__(self) -> bool:
        return bool(self.text)

    def __str__(self) -> str:
        return self.text


class Nft:
    name = "nft"
    guard = True

    def __init__(self, netns: str | None = None) -> None:
        self._netns = netns
        self._renderer = NftRenderer()
        self._have: Ruleset | None = None
        self._doubt = False

    def plan(self, state: DesiredState) -> Script:
        if self._doubt and self._have is not None and not intact(self._have, self._netns):
            self._have = None
        self._doubt = False
        want = self._renderer.render(state)
        return Script(transaction(want, self._have), want)

    def make(self, work: Work) -> None:
        assert isinstance(work, Script)
        try:
            nft.apply(work.text, self._netns)
        except TortieError:
            self._have = None
            raise
        self._have = work.after

    def unmake(self, work: Work) -> None:
        """Nothing: making was one transaction that also deleted."""

    def forget(self) -> None:
        self._doubt = True


def intact(ruleset: Ruleset, netns: str | None) -> bool:
    """Whether the kernel still has our chains, with as many rules each, and our sets with as many elements."""
    try:
        listed = nft.list_json(["list", "table", *TABLE.split()], netns)
    except NotFound:
        return False
    rules: dict[str, int] = {item["chain"]["name"]: 0 for item in listed if "chain" in item}
    sets: dict[str, int] = {}
    for item in listed:
        if "rule" in item:
            rules[item["rule"]["chain"]] = rules.get(item["rule"]["chain"], 0) + 1
        for word in ("set", "map"):
            if word in item:
                sets[item[word]["name"]] = len(item[word].get("elem", ()))
    want_rules = {name: len(chain.rules) for name, chain in ruleset.chains.items()}
    return rules == want_rules and sets == {name: len(one.elements) for name, one in ruleset.sets.items()}
