"""This node's own addresses: found when it starts, looked at again while it runs, and explained to whoever asks.

    the kernel announces links and addresses ─► settled? ─┐
    AUTODETECT_POLL_INTERVAL ─────────────────────────────┴► look ─► the Node, written if it is another now
                                                                       └─► BGP, tunnels and routes follow the Node

A node that starts with what it cannot have ends; one that runs keeps what it has, and says that it is not ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from tortie.agent.environment import Environment
from tortie.agent.host import concerns, host_links, sight
from tortie.agent.registration import (
    RETRY,
    Finding,
    StartUpError,
    addresses,
    conflict_with,
    finding,
    is_news,
    registered,
    without,
)
from tortie.base.addr import IP
from tortie.base.errors import Conflict, Exists, NotFound, TortieError, Unavailable
from tortie.base.logs import Seldom
from tortie.calc.default_pools import NONE
from tortie.calc.node_addresses import AUTODETECT, INTERNAL_IP, Link, Sight, internal_addresses
from tortie.kernel.events import Event
from tortie.model.k8s import K8sNode
from tortie.model.node import Node
from tortie.model.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

SETTLED = 0.5
"""Seconds without news after which a look is worth it: an address that moves is gone for a moment."""
UNSETTLED = 10
"""How often that is waited for: on some machines there is always news."""


class NodeAddresses:
    """Of one node. `links` are those of the last look; `changed` is told of it."""

    def __init__(self, node: str, environment: Environment, store: Store, changed: Callable[[], None]) -> None:
        self.links: tuple[Link, ...] = ()
        self.failure = ""
        self._node = node
        self._environment = environment
        self._store = store
        self._changed = changed
        self._finding = Finding()
        self._heard = asyncio.Event()
        self._complain = Seldom(log)

    async def start(self) -> Node:
        """The Node, written as this machine is. Raises StartUpError for a node that cannot have what it is to have."""
        while True:
            try:
                return await self._settle(clears=True)
            except (Conflict, Exists, NotFound) as error:
                log.debug("register node %s: %s; trying again", self._node, error)
                await asyncio.sleep(random.uniform(0, RETRY))  # whoever else writes it may do so for a while
            except Unavailable as error:
                self._complain.warning(f"register node {self._node}: {error}; trying again")
                await asyncio.sleep(RETRY)

    async def look_here(self) -> None:
        """See this machine's links, while nobody can be asked what its Node is to be."""
        self.links = await asyncio.to_thread(host_links)
        self._changed()

    def heard(self, events: Iterable[Event]) -> None:
        """The kernel has announced these."""
        if any(map(concerns, events)):
            self._heard.set()

    async def follow(self) -> None:
        """Forever: look again when the kernel has news, and from time to time."""
        while True:
            await _within(self._environment.poll, self._heard.wait())
            for _ in range(UNSETTLED):
                self._heard.clear()
                await _within(SETTLED, self._heard.wait())
                if not self._heard.is_set():
                    break
            await self._look_again()

    async def _look_again(self) -> None:
        try:
            await self._settle(clears=False)
            self.failure = ""
        except (Conflict, Exists, NotFound):
            self._heard.set()
        except StartUpError as error:
            self.failure = str(error)
            self._complain.warning(f"the node keeps its addresses: {error}")
        except TortieError as error:
            self._complain.warning(f"looking at this node's addresses: {error}; trying again")
            await asyncio.sleep(RETRY)
            self._heard.set()

    async def _settle(self, *, clears: bool) -> Node:
        """One look, and the Node written if need be. Raises StartUpError, Conflict, Exists, NotFound, Unavailable."""
        try:
            old: Node | None = await self._store.get(Node, self._node)
        except NotFound:
            old = None
        found = await self._look(old)
        await self._demand_good(found, old, clears)
        told = self._environment
        new = registered(
            old,
            self._node,
            found.ipv4.address,
            found.ipv6.address,
            as_number=told.as_number,
            kubernetes_node=told.kubernetes_node,
            interfaces=found.interfaces,
        )
        if old is None:
            return await self._store.create(new)
        if new == old:
            return old
        self._tell(addresses(old), addresses(new))
        return await self._store.update(new)

    def _tell(self, before: tuple[str, str], after: tuple[str, str]) -> None:
        for old, new in zip(before, after, strict=True):
            if old and old != new:
                text = "node %s had %s and has %s now; if two machines have this name, give each its own"
                log.warning(text, self._node, old, new)

    async def _look(self, old: Node | None) -> Finding:
        told = self._environment.ipv4, self._environment.ipv6
        internal = await self._internal(old) if any(one.method.kind == INTERNAL_IP for one in told) else ()
        self.links, sights = await asyncio.to_thread(self._see, internal)
        self._changed()
        if self._environment.backend == NONE:
            return Finding()
        self._finding = found = finding(told, old, sights)
        for one in found.families:
            if one.warning:
                self._complain.warning(one.warning)
        return found

    def _see(self, internal: tuple[IP, ...]) -> tuple[tuple[Link, ...], tuple[Sight, Sight]]:
        """In a thread: the kernel, and perhaps a name server, are asked."""
        links, told = host_links(), self._environment
        return links, (sight(told.ipv4.method, 4, links, internal), sight(told.ipv6.method, 6, links, internal))

    async def _internal(self, node: Node | None) -> tuple[IP, ...]:
        """Raises StartUpError without a Kubernetes Node."""
        refs = node.spec.orch_refs if node is not None else ()
        name = self._environment.kubernetes_node or next((ref.node_name for ref in refs), "") or self._node
        try:
            return internal_addresses((await self._store.get(K8sNode, name)).status)
        except NotFound:
            raise StartUpError(f"{INTERNAL_IP}: there is no Kubernetes Node {name} in the datastore") from None

    async def _demand_good(self, found: Finding, old: Node | None, clears: bool) -> None:
        """Raises StartUpError; before that, if it `clears`, takes from the Node what Calico takes from it then."""
        told = self._environment
        if told.backend == NONE:
            return
        if found.failure:
            if clears:
                await self._clear(old, [i for i, one in ((4, told.ipv4), (6, told.ipv6)) if one.address == AUTODETECT])
            raise StartUpError(found.failure)
        if not (told.check_conflicts and is_news(found, old)):
            return
        others = [node for node in (await self._store.list(Node)).items if node.name != self._node]
        against = conflict_with(found, others)
        if against is not None:
            version, name = against
            mine = found.ipv4 if version == 4 else found.ipv6
            if clears and mine.source == "detected":
                await self._clear(old, [version])
            text = f"conflicting node detected: IPv{version} address conflict: node {name} has {mine.address} too"
            raise StartUpError(text)

    async def _clear(self, old: Node | None, versions: list[int]) -> None:
        if old is not None and versions and (cleared := without(old, versions)) != old:
            log.warning("node %s: its IPv%s address is taken out", self._node, " and IPv".join(map(str, versions)))
            await self._store.update(cleared)

    # --- asked ---

    def answer(self) -> Mapping[str, Any]:
        """Every address of this machine, and why it is the node's or not."""
        told = self._environment
        families = {
            f"ipv{one.version}": {
                "address": one.address,
                "source": one.source,
                "told": said.address,
                "method": said.method.text,
                "warning": one.warning,
                "failure": one.failure,
                "candidates": [asdict(candidate) for candidate in one.ranking],
            }
            for one, said in zip(self._finding.families, (told.ipv4, told.ipv6), strict=True)
        }
        return {"node": self._node, "backend": told.backend, "failure": self.failure, **families}


async def _within(seconds: float, awaited: Awaitable[T]) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(awaited, seconds)
