"""Flows of pods that have gone: deleted, so that who is given an address next gets nothing by them.

    dataplane's worker:  ReusedAddresses   an address goes ─► Departed
                                           a pod has it again already ─► its flows go first, and the pod waits for it
    flows' worker:       DepartedFlows     Departed ─► their flows go, and nobody waits

Ours: no object. Flows are deleted from connection tracking, which knows addresses, not pods.
Order: a reused address after policy and before its route; the others after flow tables, from which the kernel deletes
none. No guard: a flow that cannot be deleted must not keep other pods from their routes.
Source: `calc.departed`. Who went before the first state is not known.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from tortie.base.addr import IP
from tortie.base.errors import NotSupported
from tortie.base.flow import Flow
from tortie.base.logs import Seldom
from tortie.calc.departed import departed, reused
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work
from tortie.kernel.conntrack import Conntrack

log = logging.getLogger(__name__)

MOST = 10_000
"""Flows that are held at a time. When there are more to delete, those of one listing go before the next."""

Times = Mapping[IP, int]
"""Addresses, and a number that is another whenever one leaves a pod."""


class Departed:
    """Addresses that have left their pods, and may still have flows. From any thread."""

    def __init__(self) -> None:
        self._times: dict[IP, int] = {}
        self._count = 0
        self._mutex = threading.Lock()

    def note(self, ips: frozenset[IP]) -> None:
        with self._mutex:
            self._count += 1
            self._times.update(dict.fromkeys(ips, self._count))

    def noted(self) -> Times:
        with self._mutex:
            return dict(self._times)

    def strike(self, times: Times) -> None:
        """They have no flows any more of before: one that has left another pod since stays."""
        with self._mutex:
            for ip, time in times.items():
                if self._times.get(ip) == time:
                    del self._times[ip]


@dataclass(frozen=True, slots=True)
class Leavings:
    """Flows to delete. `more`: there may be others of the addresses `ips`."""

    flows: tuple[Flow, ...]
    ips: Times
    more: bool = False

    def __bool__(self) -> bool:
        return bool(self.flows)

    def __str__(self) -> str:
        return "\n".join(map(str, self.flows))


class DepartedFlows:
    name = "departed flows"
    guard = False

    def __init__(self, departed: Departed, netns: str | None = None, *, most: int = MOST) -> None:
        self._departed = departed
        self._netns = netns
        self._most = most
        self._complain = Seldom(log)

    def due(self, state: DesiredState) -> Times:
        """The addresses whose flows are to be deleted."""
        return self._departed.noted()

    def plan(self, state: DesiredState) -> Leavings:
        found = self._look(self.due(state))
        if not found:
            self._departed.strike(found.ips)
        return found

    def make(self, work: Work) -> None:
        """Not left for later: an address must be free of flows before its route is there."""
        assert isinstance(work, Leavings)
        while True:
            self._delete(work.flows)
            if not work.more:
                break
            work = self._look(work.ips)
        self._departed.strike(work.ips)

    def unmake(self, work: Work) -> None:
        """Nothing: making deleted."""

    def forget(self) -> None:
        """Nothing is remembered of the kernel, only whose flows are not deleted yet."""

    def _look(self, ips: Times) -> Leavings:
        if not ips:
            return Leavings((), ips)
        try:
            with Conntrack(self._netns) as tracked:
                found = tuple(islice(tracked.flows_from(ips), self._most))
        except NotSupported as error:
            self._complain.warning(f"flows of pods that have gone stay: {error}")
            found = ()
        return Leavings(found, ips, len(found) == self._most)

    def _delete(self, flows: Iterable[Flow]) -> None:
        """All of them; the first refusal is raised after the others were tried."""
        with Conntrack(self._netns) as tracked:
            failed = tracked.delete(flows)
        if failed:
            raise failed[0][1]


class ReusedAddresses(DepartedFlows):
    name = "reused addresses"

    def __init__(self, departed: Departed, netns: str | None = None, *, most: int = MOST) -> None:
        super().__init__(departed, netns, most=most)
        self._before: DesiredState | None = None

    def due(self, state: DesiredState) -> Times:
        self._departed.note(departed(self._before, state))
        self._before = state
        noted = self._departed.noted()
        return {ip: noted[ip] for ip in reused(noted, state)}
