"""Established TCP connections of pods past the rules, where FelixConfiguration says `tortie.dev/flow-tables: Enabled`.

Ours: the table `inet tortie-flows`, all of it.
Order: after policy is in the kernel. No guard: without it packets take the way by the rules, which is slower and the
same. It runs in a worker of its own: no pod waits for it.
Source: `calc.flow_tables`, `render.flow_tables`; the links are looked at each time, for the kernel takes one that goes
out of the table, and says so to nobody. What others do to the table is heard of from when it is wanted first.

A link, a pod or one of its addresses that has to leave leaves connections in the table: they go when it does, so it is
made anew.
Connections do not notice: their next packets take the way by the rules, which then puts them back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tortie.base.errors import KernelError, NotFound
from tortie.calc.flow_tables import LACKING, FlowTable, flow_table, narrowed
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work
from tortie.dataplane.interfaces import host_interfaces
from tortie.dataplane.table_stage import TableStage
from tortie.kernel import features, links, nft
from tortie.kernel.nft import Contents
from tortie.kernel.nft_events import Monitor
from tortie.model.workload import INTERFACE_PREFIX
from tortie.render.flow_tables import FLOWS, TABLE, fresh, more, removal

log = logging.getLogger(__name__)

Settled = tuple[FlowTable | None, frozenset[int]]
"""What is wanted, and the indexes of its links."""


@dataclass(frozen=True, slots=True)
class Change:
    """Scripts for nft, one after the other, and the table after them: None where there is none."""

    texts: tuple[str, ...]
    after: FlowTable | None

    def __bool__(self) -> bool:
        return bool(self.texts)

    def __str__(self) -> str:
        return "".join(self.texts)


def change(want: FlowTable | None, have: FlowTable | None, intact: bool) -> Change:
    """What leads from what is there, None for no table, to what is wanted. `have` has only links that are there;
    `intact`: the rest of the table is known to be as it was made."""
    if want is None:
        return Change((removal(),) if have is not None else (), None)
    if have is None:
        return Change((fresh(want),), want)
    if not intact or want.slow != have.slow or have.devices - want.devices:
        return Change((removal(), fresh(want)), want)
    return Change(tuple(filter(None, (more(want.devices - have.devices),))), want)


class FlowTables(TableStage):
    """`watch` is given, in the thread of the stage, what tells of others' changes once there is a table."""

    name = "flow tables"
    guard = False

    def __init__(self, netns: str | None = None, watch: Callable[[Monitor], None] | None = None) -> None:
        super().__init__(TABLE, netns)
        self._watch = watch
        self._made: Contents = {}
        """What nft listed of the table, without its links, when it had just been made."""
        self._settled: Settled | None = None
        """What was wanted when last nothing was to be done. A link that is made again has another index."""
        self.lacking = False
        """The kernel has been asked for a flow table, and has none. Asked again when all is looked at anew."""
        self._said = False
        self.devices: frozenset[str] | None = None
        """The links of the table, as it was left; None while there is none. For any thread."""
        self._before: DesiredState | None = None
        self._outdated = False
        """Whether connections are in the table that have to leave it."""

    def plan(self, state: DesiredState) -> Change:
        self._outdated = self._outdated or narrowed(self._before, state)
        self._before = state
        want, indexes = self._want(state)
        if want is not None and not self._told and self._watch is not None:
            self._watch(self.monitor())
        if self._take_changes():
            self._settled = None
        settled = (want, indexes) == self._settled and not self._outdated
        if settled or (want is not None and self.lacking):
            return Change((), want)
        found = self._list()
        intact = _rest(found) == self._made and not self._outdated
        planned = change(want, _table(found) if found else None, intact)
        self._settled = None if planned else (want, indexes)
        if not planned:
            self.devices = None if want is None else want.devices
        self._outdated = self._outdated and bool(planned)
        return planned

    def _want(self, state: DesiredState) -> Settled:
        if not state.settings.flow_tables:
            return None, frozenset()
        indexes = {name: index for index, name in links.names(self._netns).items()}
        pods = {name for name in indexes if name.startswith(INTERFACE_PREFIX)}
        want = flow_table(state, host_interfaces(self._netns), pods)
        return want, frozenset(indexes.get(name, 0) for name in want.devices) if want is not None else frozenset()

    def make(self, work: Work) -> None:
        assert isinstance(work, Change)
        try:
            self._apply(work.texts, None)
        except KernelError:
            if work.after is None or features.has_flow_tables():
                raise
            self.lacking = True
            if not self._said:
                log.warning(f"tortie.dev/flow-tables is Enabled, but {LACKING}")
            self._said = True
            return
        self._made = _rest(self._list())
        self._outdated = False
        self.devices = None if work.after is None else work.after.devices

    def forget(self) -> None:
        self._settled, self.lacking = None, False

    def _list(self) -> Contents:
        """The table, empty if there is none."""
        try:
            return nft.comparable(nft.list_json(["list", "table", *TABLE.split()], self._netns))
        except NotFound:
            return {}


def _table(found: Contents) -> FlowTable:
    """What is listed of links and pods."""
    return FlowTable(_listed(found, f"flowtable {FLOWS}", "dev"), _listed(found, "set slow", "elem"))


def _listed(found: Contents, name: str, key: str) -> frozenset[str]:
    """A single one is listed as itself."""
    listed: Any = found[name][0].get(key, ()) if name in found else ()
    return frozenset([listed] if isinstance(listed, str) else listed)


def _rest(found: Contents) -> Contents:
    """What does not change while the table stands: all but its links."""
    return {
        name: [{key: value for key, value in one.items() if key != "dev"} for one in things]
        for name, things in found.items()
    }
