"""Policy and NAT: the table `inet tortie`.

Ours: everything in that table, nothing outside it.
Order: first, and a guard: a pod's policy is in the kernel before its route; when it cannot be, the pass ends.
Source: `render.nft`; `nft -f -`, one transaction per pass.

What the kernel has is known from what was applied last. At start and after a failure it is not, and then the table is
filled anew in place, in one transaction, which costs no packet. Only a table whose sets or hooks are of another kind
than ours, such as another version's, is deleted and made again.

What somebody else does to the table is put right when it is told (`changed`), without a comparison: the chains and sets
that were touched are filled anew, so that all others go on counting, or when it was more than that, everything. Where
nobody tells (no `monitor`), or something was lost on the way, the kernel's table is compared with what it should be;
that takes seconds for a large one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tortie.base.errors import KernelError, NotFound, TortieError
from tortie.calc.hosts import NO_INTERFACES, asks_interfaces
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work
from tortie.dataplane.interfaces import host_interfaces
from tortie.dataplane.table_stage import TableStage
from tortie.kernel import nft
from tortie.kernel.nft_events import Change
from tortie.render.denials import PROBE as DENIAL_PROBE
from tortie.render.nft import NftRenderer
from tortie.render.ruleset import TABLE, Chain, Remains, Ruleset, transaction

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Script:
    """What `nft -f -` is given, and what the table is afterwards."""

    text: str
    after: Ruleset
    otherwise: Callable[[], str] | None = None
    """What to try when nft refuses the text."""

    def __bool__(self) -> bool:
        return bool(self.text)

    def __str__(self) -> str:
        return self.text


class Nft(TableStage):
    name = "nft"
    guard = True

    def __init__(self, netns: str | None = None) -> None:
        super().__init__(TABLE, netns)
        self._renderer: NftRenderer | None = None
        self._have: Ruleset | None = None

    def plan(self, state: DesiredState) -> Script:
        changes = self._take_changes()
        doubt = self._doubted(changes)
        if any(isinstance(change, Change) and change.whole for change in changes):
            self._have = None
        if doubt:
            self._look()
        want = self._render(state)
        if self._have is None:
            return Script(transaction(want, remains(self._netns)), want, lambda: transaction(want, None))
        flushes, have = touched(self._have, [change for change in changes if isinstance(change, Change)])
        return Script(flushes + transaction(want, have), want)

    def _look(self) -> None:
        """Whether the kernel still has what was applied last."""
        if self._have is None:
            return
        try:
            same = intact(self._have, self._netns)
        except TortieError:
            self._have = None  # the doubt is not told again
            raise
        if not same:
            self._complain()
            self._have = None

    @property
    def ruleset(self) -> Ruleset | None:
        """What the kernel has, where that is known. For any thread."""
        return self._have

    def _render(self, state: DesiredState) -> Ruleset:
        if self._renderer is None:
            told = nft.takes(DENIAL_PROBE, self._netns)
            if not told:
                log.warning("this kernel has no log group (nfnetlink_log): nobody can watch denied packets")
            self._renderer = NftRenderer(told=told)
        interfaces = host_interfaces(self._netns) if asks_interfaces(state) else NO_INTERFACES
        return self._renderer.render(state, interfaces)

    def make(self, work: Work) -> None:
        assert isinstance(work, Script)
        self._have = None
        self._apply((work.text,), work.otherwise)
        self._have = work.after


def touched(have: Ruleset, changes: Sequence[Change]) -> tuple[str, Ruleset]:
    """What empties the sets that were touched, and what there is then. A chain that was touched is unlike any other."""
    chains = have.chains.keys() & {name for change in changes for name in change.chains}
    sets = have.sets.keys() & {name for change in changes for name in change.sets}
    if not chains and not sets:
        return "", have
    after = Ruleset(
        {**have.chains, **{name: Chain((*have.chains[name].rules, "?"), have.chains[name].hook) for name in chains}},
        {**have.sets, **{name: replace(have.sets[name], elements=frozenset()) for name in sets}},
    )
    return "".join(f"flush {have.sets[name].word} {TABLE} {name}\n" for name in sorted(sets)), after


def remains(netns: str | None) -> Remains:
    """The names of what is in our table. Of a table that cannot be listed nothing is known."""
    try:
        listed = nft.list_json(["-t", "list", "table", *TABLE.split()], netns)
    except (NotFound, KernelError):
        return Remains()
    chains = frozenset(item["chain"]["name"] for item in listed if "chain" in item)
    sets = {item[word]["name"]: word == "map" for item in listed for word in ("set", "map") if word in item}
    return Remains(chains, sets)


def intact(ruleset: Ruleset, netns: str | None) -> bool:
    """Whether the kernel still has all of our table as it was given, and nothing else in it."""
    found = nft.contents(TABLE, netns)
    return found is not None and found == nft.contents_of(transaction(ruleset, None), TABLE)
