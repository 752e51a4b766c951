"""The `calico` CNI plugin, served by the agent: the executable only carries the call here.

ADD     add.py, of a container that is no pod plain.py
DEL     delete.py, plain.py
CHECK   check.py      everything ADD made, compared; the first difference is the error
GC      collect.py    what belongs to no valid attachment: endpoints, links, addresses
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from tortie.agent.cni import calllog, delegate, plain
from tortie.agent.cni.add import add
from tortie.agent.cni.check import check
from tortie.agent.cni.collect import collect
from tortie.agent.cni.delete import delete
from tortie.agent.cni.identity import workload_of
from tortie.agent.cni.records import Records
from tortie.agent.departures import Departures
from tortie.agent.holdings import Holdings
from tortie.agent.links_gone import LinksGone
from tortie.agent.netconf import NetConf, read_netconf
from tortie.agent.pod_mtu import PodMtu
from tortie.agent.view import Progress, View
from tortie.base.errors import TortieError
from tortie.base.logs import Seldom
from tortie.cni.result import Result
from tortie.cni.spec import Call, CniError, Code, format_json, own_netns_error
from tortie.kernel import netns
from tortie.model.store import Store

T = TypeVar("T")
Verb = Callable[[Records, Holdings, Call, NetConf], Awaitable[T]]

log = logging.getLogger(__name__)


class CniServer:
    """Answers calls; many at a time, those about one interface of the node one after the other."""

    def __init__(
        self,
        node: str,
        store: Store,
        view: View,
        progress: Progress,
        holdings: Holdings,
        mtu: PodMtu,
        departures: Departures | None = None,
        links_gone: LinksGone | None = None,
    ) -> None:
        self._records = Records(node, store, view, progress, holdings.pending, mtu, departures, links_gone)
        self._holdings = holdings
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By the name of the interface, as long as somebody has or awaits the turn."""
        self._complain = Seldom(log)
        calllog.install()

    async def answer(self, call: Call) -> str:
        """What the plugin prints on success. Raises CniError or a TortieError, which the border translates."""
        conf = read_netconf(call)
        with calllog.logging_to(conf.log, f"{call.command} {call.network} {call.container_id}".rstrip()):
            try:
                result = await self._serve(call, conf)
            except TortieError as error:
                calllog.calls.error("%s", error)
                raise
        return "" if result is None else format_json(result.dump(call.cni_version))

    async def _serve(self, call: Call, conf: NetConf) -> Result | None:
        if conf.nodename not in ("", self._records.node):
            text = f'the configuration of network {call.network} names node "{conf.nodename}"'
            self._complain.warning(f'{text}; pods are on "{self._records.node}", which is what this agent is told')
        match call.command:
            case "ADD":
                return await self._in_turn(call, conf, add if conf.is_pod else plain.add)
            case "DEL":
                await self._in_turn(call, conf, delete if conf.is_pod else plain.delete)
            case "CHECK":
                await self._in_turn(call, conf, check)
            case "STATUS":
                await self._status(call, conf)
            case "GC":
                await collect(self._records, self._holdings, call, conf, self._turn, self._turns)
        return None

    async def _in_turn(self, call: Call, conf: NetConf, verb: Verb[T]) -> T:
        refuse_own_netns(call)
        async with self._turn(workload_of(self._records.node, call, conf).interface):
            return await verb(self._records, self._holdings, call, conf)

    def _turn(self, interface: str) -> asyncio.Lock:
        return self._turns.setdefault(interface, asyncio.Lock())

    async def _status(self, call: Call, conf: NetConf) -> None:
        try:
            await self._records.ready()
        except TortieError as error:
            raise CniError(Code.NOT_AVAILABLE, str(error)) from None
        if not conf.assigns:
            await delegate.ask(self._records.store, self._records.node, call, conf)
        failures = self._records.progress.failures
        if failures:
            raise CniError(Code.LIMITED_CONNECTIVITY, "; ".join(failures))


def refuse_own_netns(call: Call) -> None:
    """The node's own namespace is nobody's sandbox: `eth0` in it is the node's. Raises CniError 8."""
    if call.netns and not call.netns_override and netns.is_same_as_self(call.netns):
        raise own_netns_error()
