"""This node as Kubernetes sees it: whether its network is there, as a condition that its scheduler looks at.

    the Node object ── must be there ──► start
    everything in sync, policy in the kernel, BGP up, or five minutes ──► NetworkUnavailable=False, CalicoIsUp
    `tortie node shutdown`, before the agent is stopped ───────────────► NetworkUnavailable=True,  CalicoIsDown

Taints are left to Kubernetes, which makes them of the condition. Source: Calico's node start-up and shutdown.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from tortie.agent.registration import RETRY, StartUpError
from tortie.base.errors import Conflict, NotFound, Unavailable
from tortie.base.logs import Seldom
from tortie.model.conditions import NetworkCondition, with_network
from tortie.model.k8s import K8sNode
from tortie.model.store import Store

log = logging.getLogger(__name__)

PATIENCE = 300.0
"""Seconds until the condition is set whatever is not there yet."""
LOOK = 1.0
"""Seconds between two looks at whether everything is there."""
ASK = 2.0
"""Seconds for the first question about the Node."""
ATTEMPTS = 8
"""The kubelet writes the same status."""


UP = NetworkCondition("False", "CalicoIsUp", "Calico is running on this node")
DOWN = NetworkCondition("True", "CalicoIsDown", "Calico is shutting down on this node")


class KubernetesNode:
    """`name` is the Node's in Kubernetes; `demanded`: it must be there. `note` is the file that says when the node was
    shut down. `networked` says whether pods can be connected, and everything is in sync. `conditioned` False: the
    network is somebody else's (backend none), and nobody is told that it went."""

    def __init__(
        self,
        name: str,
        store: Store,
        note: Path,
        networked: Callable[[], Awaitable[bool]],
        *,
        demanded: bool,
        conditioned: bool = True,
    ) -> None:
        self.name = name
        self._store = store
        self._note = note
        self._networked = networked
        self._demanded = demanded
        self._conditioned = conditioned
        self._is_down = False
        self._complain = Seldom(log)

    @property
    def demanded(self) -> bool:
        """Whether this is a node of Kubernetes for certain."""
        return self._demanded

    async def demand(self) -> None:
        """Raises StartUpError without the Node, or an answer to whether it is there, where there must be one."""
        if not self._demanded:
            return
        try:
            async with asyncio.timeout(ASK):
                await self._store.get(K8sNode, self.name)
        except NotFound:
            why = "name it by CALICO_K8S_NODE_REF, or NODENAME"
            raise StartUpError(f"there is no Kubernetes Node {self.name}: {why}") from None
        except (TimeoutError, Unavailable) as error:
            why = str(error) or f"no answer within {ASK:g} s"
            raise Unavailable(f"Kubernetes Node {self.name}: {why}") from None

    async def run(self) -> None:
        """Tell Kubernetes that the network is there, once it is, or enough was waited. Ends when it is told."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while not await self._networked():
            if asyncio.get_running_loop().time() > deadline:
                log.warning("not everything is there after %.0f s; Kubernetes may use the node all the same", PATIENCE)
                break
            await asyncio.sleep(LOOK)
        while not self._is_down:
            try:
                if await self._set(UP):
                    log.info("Kubernetes Node %s: the network is available", self.name)
                self._note.unlink(missing_ok=True)
                return
            except (Unavailable, Conflict) as error:
                self._complain.warning(f"Kubernetes Node {self.name}: {error}; trying again")
                await asyncio.sleep(random.uniform(RETRY, 4 * RETRY))
            except OSError as error:
                self._complain.warning(f"{self._note}: {error.strerror}")
                return

    async def shut_down(self) -> None:
        """The agent is about to be stopped: no new pods here. Raises Unavailable, Conflict."""
        self._is_down = True
        try:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            self._note.write_text(datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        except OSError as error:
            raise Unavailable(f"{self._note}: {error.strerror}") from None
        if self._conditioned:
            await self._set(DOWN)

    async def _set(self, wanted: NetworkCondition) -> bool:
        """Whether there was something to write. Raises Unavailable, Conflict."""
        for attempt in range(ATTEMPTS):
            try:
                node = await self._store.get(K8sNode, self.name)
                status = with_network(node.status, wanted, datetime.now(UTC))
                if status is node.status:
                    return False
                await self._store.update(msgspec.structs.replace(node, status=status))
            except NotFound:
                return False  # a cluster without Kubernetes, or a Node that was deleted: nobody to tell
            except Conflict:
                if attempt + 1 == ATTEMPTS:
                    raise
                await asyncio.sleep(random.uniform(0, 0.05 * 2**attempt))
            else:
                return True
        return False
