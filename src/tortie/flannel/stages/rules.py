"""Masquerading and forwarding: the tables `ip flannel-ipv4` and `ip6 flannel-ipv6`.

Ours: everything in those tables, also what another flanneld has put there, and nothing outside of them. Where several
daemons run on a node, each has tables of other names (`flannel.rules.names`).
Order: before the routes, so that no packet leaves by one with the wrong address. No guard: pods without masquerading
still reach each other.
Source: `flannel.rules`; `nft -f -`, one transaction for both.

What the kernel has is known from what was applied last. When something may have changed (`forget`), and at start, the
tables are listed and compared with what the kernel makes of our text; only one that differs is made anew, so that an
undisturbed table goes on counting through a restart. Two listings take 7 ms. A container that may make no namespace in
which to try that writes them anew at its start, and compares with what it lists then.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from tortie.base.errors import KernelError, NotSupported
from tortie.dataplane.converge import Work
from tortie.flannel.rules import TABLES
from tortie.flannel.state import FlannelState
from tortie.kernel import nft
from tortie.kernel.nft_events import Monitor

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Script:
    """What `nft -f -` is given, and the tables' texts afterwards."""

    text: str
    after: Mapping[str, str]

    def __bool__(self) -> bool:
        return bool(self.text)

    def __str__(self) -> str:
        return self.text


class Rules:
    name = "rules"
    guard = False

    def __init__(self, netns: str | None = None, tables: Mapping[int, str] = TABLES) -> None:
        self._netns = netns
        self._tables = tables
        self._session = nft.Session(netns)
        self._have: dict[str, str] = {}
        """The text of each table that is known to be in the kernel; one that is not here has to be looked at."""
        self._doubt = False
        self._contents: dict[str, nft.Contents | None] = {"": None}
        """What the kernel makes of a text."""

    def plan(self, state: FlannelState) -> Script:
        if state.rules is None:
            return Script("", self._have)
        doubt, self._doubt = self._doubt, False
        if doubt:
            self._look()
        text = ""
        for table, wanted in state.rules.items():
            if table not in self._have and self._is_there(table, wanted):
                self._have[table] = wanted
            if self._have.get(table) != wanted:
                text += replacement(table, wanted)
        return Script(text, state.rules)

    def _look(self) -> None:
        """Whether the kernel still has what was applied last."""
        for table, text in list(self._have.items()):
            if not self._is_there(table, text):
                log.warning("table %s is not as it was left: somebody changed it; writing it anew", table)
                del self._have[table]

    def _is_there(self, table: str, text: str) -> bool:
        if text not in self._contents:
            try:
                self._contents[text] = nft.contents_of(text, table)
            except KernelError as error:
                log.debug("table %s is written anew: %s", table, error)
                return False
        return nft.contents(table, self._netns) == self._contents[text]

    def make(self, work: Work) -> None:
        assert isinstance(work, Script)
        self._have = {}
        self._session.apply(work.text)
        self._have = dict(work.after)
        for table, text in self._have.items():
            if text not in self._contents:
                self._contents[text] = nft.contents(table, self._netns)

    def unmake(self, work: Work) -> None:
        """Nothing: making was one transaction that also deleted."""

    def forget(self) -> None:
        """From any thread."""
        self._doubt = True

    def counts(self) -> dict[str, nft.Counts]:
        """Packets and bytes by the rule's comment, of each table that is there and can be read. From any thread."""
        found: dict[str, nft.Counts] = {}
        for table in self._tables.values():
            with suppress(KernelError, NotSupported):
                if counts := nft.counters(table, self._netns):
                    found[table] = counts
        return found

    def monitors(self) -> tuple[Monitor, ...]:
        """One for each table: they tell from now on what others do to it, and not what this does."""
        self._session.open()
        monitors = tuple(Monitor(table, self._netns) for table in self._tables.values())

        def ignore(process: int) -> None:
            for monitor in monitors:
                monitor.ignore(process)

        self._session.begun = ignore
        return monitors


def replacement(table: str, text: str) -> str:
    """What makes a table so, whatever was there. All of it is one transaction: no packet goes without."""
    return f"add table {table}\ndelete table {table}\n{text}"
