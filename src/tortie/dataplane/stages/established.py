"""Flows that policy forbids, cut where FelixConfiguration says `tortie.dev/established-flows: Cut`.

Ours: no object. Flows of this node's pods that policy would not let begin now are deleted from connection tracking.
Order: after policy is in the kernel, or a flow could begin anew under the old one. It runs in a worker of its own: no
pod waits for a listing of flows.
Source: `calc.established`.

Looked at are the flows of pods about whom something else may be decided than the last time; of all pods at the first
time, so that what was forbidden while the agent was away is cut when it starts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from tortie.base.addr import IP, parse_ip
from tortie.calc.established import Forbidden, forbidden, touched
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work
from tortie.kernel.addresses import list_addresses
from tortie.kernel.conntrack import Conntrack
from tortie.kernel.netlink import Netlink

log = logging.getLogger(__name__)

MOST = 10_000
"""Flows that are held at a time. When there are more to cut, those of one listing are cut before the next."""


@dataclass(frozen=True, slots=True)
class Cuts:
    """Flows to delete. `more`: there may be others; `state` is what they are judged by, `ips` whose they are."""

    flows: tuple[Forbidden, ...]
    state: DesiredState
    ips: frozenset[IP]
    more: bool = False

    def __bool__(self) -> bool:
        return bool(self.flows)

    def __str__(self) -> str:
        return "\n".join(map(str, self.flows))


class Established:
    name = "established"
    guard = False

    def __init__(self, netns: str | None = None) -> None:
        self._netns = netns
        self._judged: DesiredState | None = None
        """The last state by which all flows have been judged."""
        self.cut = 0
        """Flows cut so far."""

    def plan(self, state: DesiredState) -> Cuts:
        if state.settings.established != "Cut":
            self._judged = None
            return Cuts((), state, frozenset())
        ips = touched(self._judged, state)
        found = self._look(state, ips) if ips else Cuts((), state, ips)
        if not found:
            self._judged = state
        return found

    def make(self, work: Work) -> None:
        """Nothing: cutting is breaking."""

    def unmake(self, work: Work) -> None:
        assert isinstance(work, Cuts)
        while True:
            self._delete(work.flows)
            if not work.more:
                break
            work = self._look(work.state, work.ips)
        self._judged = work.state

    def forget(self) -> None:
        """Nothing is remembered of the kernel, only by which state all flows have been judged already."""

    def _look(self, state: DesiredState, ips: frozenset[IP]) -> Cuts:
        with Conntrack(self._netns) as tracked:
            found = tuple(islice(forbidden(tracked.flows(ips), state, self._own()), MOST))
        return Cuts(found, state, ips, len(found) == MOST)

    def _own(self) -> frozenset[IP]:
        """Every address of this node."""
        with Netlink(self._netns) as nl:
            return frozenset(parse_ip(address.ip.partition("/")[0]) for address in list_addresses(nl))

    def _delete(self, flows: Iterable[Forbidden]) -> None:
        """All of them; the first refusal is raised after the others were tried."""
        every = list(flows)
        with Conntrack(self._netns) as tracked:
            failed = tracked.delete(one.flow for one in every)
        self.cut += len(every) - len(failed)
        if every:
            log.info("cut established flows that policy forbids: %d, first: %s", len(every) - len(failed), every[0])
        if failed:
            raise failed[0][1]
