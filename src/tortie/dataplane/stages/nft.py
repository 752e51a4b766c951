"""Policy and NAT: the table `inet tortie`.

Ours: everything in that table, nothing outside it.
Order: first, and a guard: a pod's policy is in the kernel before its route; when it cannot be, the pass ends.
Source: `render.nft`; `nft -f -`, one transaction per pass.

What the kernel has is known from what was applied last. At start and after a failure it is not, and then the table is
filled anew in place, in one transaction, which costs no packet. At a resync the kernel's table is compared with what it
should be, and filled anew when somebody has changed it. Only a table whose sets or hooks are of another kind than ours,
such as another version's, is deleted and made again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from tortie.base.errors import KernelError, NotFound
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work
from tortie.kernel import nft
from tortie.render.nft import NftRenderer
from tortie.render.ruleset import TABLE, Remains, Ruleset, transaction

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Script:
    """What `nft -f -` is given, and what the table is afterwards."""

    text: str
    after: Ruleset
    otherwise: str = ""
    """What to try when nft refuses the text."""

    def __bool__(self) -> bool:
        return bool(self.text)

    def __str__(self) -> str:
        return self.text


class Nft:
    name = "nft"
    guard = True

    def __init__(self, netns: str | None = None) -> None:
        self._netns = netns
        self._session = nft.Session(netns)
        self._renderer = NftRenderer()
        self._have: Ruleset | None = None
        self._doubt = False

    def plan(self, state: DesiredState) -> Script:
        if self._doubt and self._have is not None and not intact(self._have, self._netns):
            log.warning("table %s is not as it was left: somebody changed it; writing it anew", TABLE)
            self._have = None
        self._doubt = False
        want = self._renderer.render(state)
        if self._have is not None:
            return Script(transaction(want, self._have), want)
        return Script(transaction(want, remains(self._netns)), want, transaction(want, None))

    def make(self, work: Work) -> None:
        assert isinstance(work, Script)
        self._have = None
        try:
            self._session.apply(work.text)
        except KernelError as error:
            if not work.otherwise:
                raise
            log.warning("table %s cannot be filled in place, making it again: %s", TABLE, error)
            self._session.apply(work.otherwise)
        self._have = work.after

    def unmake(self, work: Work) -> None:
        """Nothing: making was one transaction that also deleted."""

    def forget(self) -> None:
        self._doubt = True


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
