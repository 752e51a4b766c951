"""This node's networks of stand-alone plugins: published for the other nodes, and theirs kept routed here.

    /etc/cni/net.d, looked at all the time ──┐                       ┌─► annotation of this Node ─► the other agents
    this machine's links and addresses ─────┴─► files, as they are ─┤
    what is refused, or cannot be routed ───────────────────────────┴─► condition of this Node

Looked at, not listened to: a directory of a few files costs nothing to look at, and what is mounted, linked to, or made
later than the agent is found as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tortie.agent.conditions import with_condition
from tortie.agent.pod_network_files import Found, read, signature, since
from tortie.agent.view import View
from tortie.base.addr import Net
from tortie.base.errors import ConfigError, Conflict, NotFound, TortieError
from tortie.base.logs import Seldom
from tortie.calc.node_addresses import Link
from tortie.calc.state import DesiredState
from tortie.dataplane.stages.pod_networks import PodNetworkRoutes
from tortie.dataplane.worker import Worker
from tortie.kernel import events, links
from tortie.kernel.events import may_matter
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import AF_INET, AF_INET6, RT_TABLE_MAIN, RTPROT_BIRD, RTPROT_POD_NETWORKS
from tortie.kernel.routes import list_routes
from tortie.model.node import Node
from tortie.model.pod_networks import PodNetwork, pod_networks, with_pod_networks, written
from tortie.model.store import Store
from tortie.model.workload import INTERFACE_PREFIX

log = logging.getLogger(__name__)

LOOK = 1.0
"""Seconds between two looks at the files. What is wrong is told on the Node if it still is at the next one."""
PAUSE = 0.2
"""Seconds from one repair to the next: a link that comes up brings a dozen announcements with it."""
GROUPS = (
    events.Group.LINK,
    events.Group.IPV4_ADDRESS,
    events.Group.IPV6_ADDRESS,
    events.Group.IPV4_ROUTE,
    events.Group.IPV6_ROUTE,
)


class OwnPodNetworks:
    """Of one node. `links` gives this machine's as they were seen last; `routes` is the stage that has others'."""

    def __init__(
        self, node: str, store: Store, view: View, directory: Path, links: Callable[[], Sequence[Link]],
        routes: PodNetworkRoutes,
    ) -> None:  # fmt: skip
        self._node = node
        self._store = store
        self._view = view
        self._directory = directory
        self._links = links
        self._routes = routes
        self._found = Found()
        self._seen: tuple[object, ...] = ()
        self._told: tuple[PodNetwork, ...] = ()
        """What was published last: since when a subnet is ours does not change, whoever spoils the Node."""
        self._trouble: str | None = None
        """What was wrong at the look before this one; None before the first."""
        self._complain = Seldom(log)

    def problems(self) -> Mapping[str, str]:
        """Why configurations are not published and routes not there, by what they are."""
        files = {f"autoRoutes in {self._directory / name}": why for name, why in self._found.problems.items()}
        return {**files, **self._routes.selection.problems}

    async def run(self) -> None:
        """Forever."""
        await self._view.in_sync.wait()
        while True:
            try:
                await self._look()
            except (Conflict, NotFound):
                log.debug("node %s has changed meanwhile", self._node)
            except (TortieError, OSError) as error:
                self._complain.warning(f"the pod networks of this node: {error}; trying again")
            await asyncio.sleep(LOOK)

    async def _look(self) -> None:
        """One look, and the Node written if need be. Raises OSError, KernelError, Conflict, NotFound, Unavailable."""
        node = self._view.known.get(Node, self._node)
        if node is None:
            return
        files = await asyncio.to_thread(signature, self._directory)
        own = self._links()
        if self._seen != (files, own) or self._found.problems:
            before = self._found.networks or _published(node)
            names = [name for name, *_ in files]
            self._found = await asyncio.to_thread(read, names, self._directory, before, own, default_master)
            self._seen = files, own
            for name, why in self._found.problems.items():
                self._complain.warning(f"{self._directory / name}: {why}")
        trouble = "; ".join(f"{what}: {why}" for what, why in sorted(self._troubles()))
        self._trouble, lasting = trouble, trouble == self._trouble
        if self._as_it_should_be(node, lasting) != node:
            fresh = await self._store.get(Node, self._node)
            new = self._as_it_should_be(fresh, lasting)
            if new != fresh:
                self._view.put(await self._store.update(new))
                self._told = _published(new)

    def _troubles(self) -> Iterator[tuple[str, str]]:
        yield from self.problems().items()
        latest = self._view.latest
        if latest is not None:
            yield from latest.pod_networks.refused.items()

    def _as_it_should_be(self, node: Node, lasting: bool) -> Node:
        """`lasting`: what is wrong was so at the last look, too, and is to be told."""
        now = datetime.now(UTC)
        published = (*self._told, *_published(node))
        networks = since(self._found.networks, published, now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
        new = with_pod_networks(node, written(networks))
        if not lasting:
            return new
        return replace(new, status=with_condition(new.status, self._node, self._trouble or "", now))


def _published(node: Node) -> tuple[PodNetwork, ...]:
    """What a Node says; nothing where somebody has spoilt it."""
    try:
        return pod_networks(node)
    except ConfigError:
        return ()


def default_master() -> str:
    """The name of the link that the default route leaves by, as ipvlan and macvlan choose their master; "" without one.
    Raises KernelError."""
    with Netlink() as nl:
        for family in (AF_INET, AF_INET6):
            for route in list_routes(nl, family, table=RT_TABLE_MAIN):
                if not route.dst.prefixlen and route.dev and route.type == "unicast":
                    return links.get_link(nl, route.dev).name
    return ""


def routes_answer(state: DesiredState | None, stage: PodNetworkRoutes) -> list[dict[str, Any]]:
    """Every other node's network, with the way there; "" where this agent has written none."""
    if state is None:
        return []
    there = {dst: route for (dst, _), route in stage.selection.routes.items()}
    return [
        {
            "network": one.network,
            "node": one.node,
            "dst": str(one.dst),
            "via": str(there[one.dst].via or "the link") if one.dst in there else "",
        }
        for one in state.pod_networks.routes
    ]


# --- repair -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Concern:
    """What of the kernel's news is about the routes to pod networks."""

    made_of: object
    dsts: frozenset[Net]

    def about(self, event: events.Event) -> bool:
        match event:
            case events.LinkEvent():
                return not event.name.startswith(INTERFACE_PREFIX)
            case events.AddressEvent(address):
                return address.scope != "link"
            case events.RouteEvent(route, gone):
                if route.protocol == RTPROT_POD_NETWORKS:
                    return gone == (route.dst in self.dsts)
                return route.dst in self.dsts
        return isinstance(event, events.Overrun)


async def repair_pod_routes(worker: Worker[DesiredState], latest: Callable[[], DesiredState | None]) -> None:
    """Forever: whatever takes a route away, or stands in its way no more, has the kernel looked at again. Listens only
    while there are such networks: most clusters have none, and BIRD may have much to announce."""
    while True:
        if _routed(latest()):
            await _repair(worker, latest)
        await asyncio.sleep(LOOK)


def _routed(state: DesiredState | None) -> bool:
    return state is not None and bool(state.pod_networks.routes)


async def _repair(worker: Worker[DesiredState], latest: Callable[[], DesiredState | None]) -> None:
    """As long as there are such networks."""
    loop = asyncio.get_running_loop()
    known = _Concern(None, frozenset())
    with events.Monitor(groups=GROUPS, matters=may_matter(RTPROT_BIRD, lambda: False)) as monitor:
        readable = asyncio.Event()
        loop.add_reader(monitor.fileno(), readable.set)
        worker.again()  # what came before is in nobody's news
        try:
            while (state := latest()) is not None and state.pod_networks.routes:
                if known.made_of is not state.pod_networks:
                    known = _Concern(state.pod_networks, frozenset(one.dst for one in state.pod_networks.routes))
                if any(map(known.about, monitor.read())):
                    worker.again()
                    await asyncio.sleep(PAUSE)
                await readable.wait()
                readable.clear()
        finally:
            loop.remove_reader(monitor.fileno())
