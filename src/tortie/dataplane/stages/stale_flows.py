"""Flows to services that lead to no backend of theirs: deleted, so that the next packet gets one.

Ours: no object. Flows are deleted from connection tracking, which keeps the backend of a flow's first packet for ever.
Order: after the services, or a flow could begin anew with the old backend.
Source: `calc.proxy.stale`. None in place of a state: services are somebody else's, and so are their flows.

Looked at are the flows of addresses where a backend went, or came to a frontend that had none; those of all services at
the first state, and again when something may have changed unseen: a packet that was under way while the rules changed
opens a flow as they were.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import NotSupported
from tortie.base.flow import TCP, Flow
from tortie.base.logs import Seldom
from tortie.calc.proxy.stale import JUDGED, OWN, destinations, judge, touched
from tortie.calc.proxy.state import ProxyState
from tortie.dataplane.converge import Work
from tortie.kernel.addresses import list_addresses
from tortie.kernel.conntrack import Conntrack
from tortie.kernel.netlink import Netlink

log = logging.getLogger(__name__)

MOST = 10_000
"""Flows that are held at a time. When there are more to delete, those of one listing go before the next."""


@dataclass(frozen=True, slots=True)
class Leavings:
    """Flows to delete. `more`: there may be others of these addresses, None being all; `state` is what judges them."""

    flows: tuple[Flow, ...]
    state: ProxyState | None
    ips: frozenset[IP] | None = None
    more: bool = False

    def __bool__(self) -> bool:
        return bool(self.flows)

    def __str__(self) -> str:
        return "\n".join(map(str, self.flows))


class StaleFlows:
    name = "stale flows"
    guard = False

    def __init__(self, netns: str | None = None, *, most: int = MOST) -> None:
        self._netns = netns
        self._most = most
        self._judged: ProxyState | None = None
        """The last state by which all flows have been judged."""
        self._complain = Seldom(log)
        self.deleted = 0
        """Flows deleted so far."""

    def plan(self, state: ProxyState | None) -> Leavings:
        if state is None or state is self._judged:
            self._judged = state
            return Leavings((), state)
        ips = None if self._judged is None else touched(self._judged, state)
        if ips is not None and not ips:
            self._judged = state
            return Leavings((), state)
        try:
            found = self._look(state, ips)
        except NotSupported as error:
            self._complain.warning(f"flows to backends that went stay: {error}")
            found = Leavings((), state)
        if not found:
            self._judged = state
        return found

    def make(self, work: Work) -> None:
        """Nothing: deleting is breaking."""

    def unmake(self, work: Work) -> None:
        assert isinstance(work, Leavings)
        while True:
            self._delete(work.flows)
            if not work.more or work.state is None:
                break
            work = self._look(work.state, work.ips)
        self._judged = work.state

    def forget(self) -> None:
        """From any thread: judge all flows again."""
        self._judged = None

    def _look(self, state: ProxyState, ips: frozenset[IP] | None) -> Leavings:
        own = self._own()
        marks = frozenset(OWN.values())
        where = destinations(state, own) if ips is None else ips if marks.isdisjoint(ips) else ips - marks | own
        verdict = judge(state, own)
        with Conntrack(self._netns) as tracked:
            every = (
                flow
                for protocol in JUDGED
                for flow in tracked.flows(where, protocol, verdict, unanswered=protocol == TCP)
                if flow.opened.protocol == protocol  # old kernels tell of all
            )
            found = tuple(islice(every, self._most))
        return Leavings(found, state, ips, len(found) == self._most)

    def _own(self) -> frozenset[IP]:
        """Every address of this node."""
        with Netlink(self._netns) as nl:
            return frozenset(parse_ip(address.ip.partition("/")[0]) for address in list_addresses(nl))

    def _delete(self, flows: Iterable[Flow]) -> None:
        """All of them; the first refusal is raised after the others were tried."""
        every = list(flows)
        with Conntrack(self._netns) as tracked:
            failed = tracked.delete(every)
        self.deleted += len(every) - len(failed)
        if every:
            log.info("deleted flows that led to no backend: %d, first: %s", len(every) - len(failed), every[0])
        if failed:
            raise failed[0][1]
