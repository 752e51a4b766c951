"""GC: what of this node belongs to no attachment that the runtime still knows.

A WorkloadEndpoint belongs to a container, as its addresses do; a link only to a pod, by its name. So a link goes when
no endpoint and no container that stays has a pod of that name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Mapping
from typing import Any

from tortie.agent.holdings import Holding, Holdings, handle_of
from tortie.base.errors import TortieError
from tortie.cni.spec import CniError, Code, lookup
from tortie.dataplane.attachment import detach, host_ends
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint, interface_name


def valid_containers(conf: Mapping[str, Any]) -> frozenset[str]:
    """The containers that the runtime lists. Raises CniError when it lists nothing, not even none."""
    listed = lookup(conf, "cni.dev/valid-attachments", lookup(conf, "cni.dev/attachments"))
    if not isinstance(listed, list):
        text = "cni.dev/valid-attachments is missing: everything would be collected"
        raise CniError(Code.INVALID_CONFIG, text)
    return frozenset(str(lookup(one, "containerID", "")) for one in listed if isinstance(one, dict))


def is_stale(handle: str, network: str, valid: Collection[str]) -> bool:
    """Whether a handle is of a container of this network that is not valid. Names of networks may have dots in them:
    what may be another network's stays."""
    container = handle.removeprefix(f"{network}.")
    return container != handle and "." not in container and container not in valid


def elsewhere(endpoint: WorkloadEndpoint, network: str, held: Collection[Holding]) -> bool:
    """Whether the endpoint's container holds addresses of another network."""
    container = endpoint.spec.container_id
    own = handle_of(network, container)
    return any(each.handle != own and each.handle.endswith(f".{container}") for each in held)


class Collector:
    """One run over one network. It goes on after a failure; what failed is in `failures`."""

    def __init__(self, network: str, valid: Collection[str], store: Store, holdings: Holdings) -> None:
        self.network = network
        self.valid = valid
        self.failures: list[str] = []
        self._store = store
        self._holdings = holdings

    async def endpoints(self, held: Collection[Holding]) -> list[WorkloadEndpoint]:
        """Those to delete."""
        return [
            endpoint
            for endpoint in await self._of_node()
            if endpoint.spec.orchestrator == "k8s"
            and endpoint.spec.container_id
            and endpoint.spec.container_id not in self.valid
            and not elsewhere(endpoint, self.network, held)
        ]

    async def links(self, held: Collection[Holding], busy: Collection[str]) -> None:
        """Delete the links of which nobody knows; `busy` are those of calls under way. The endpoints went before."""
        kept = {endpoint.spec.interface_name for endpoint in await self._of_node()} | set(busy)
        for each in held:
            if each.pod and not is_stale(each.handle, self.network, self.valid):
                kept.add(interface_name(each.namespace, each.pod))
        for name in await asyncio.to_thread(host_ends):
            if name not in kept:
                await self.attempt(name, asyncio.to_thread(detach, "", "", name))

    async def addresses(self, held: Collection[Holding]) -> None:
        """Release what is held for containers that are gone."""
        for handle in sorted({each.handle for each in held}):
            if is_stale(handle, self.network, self.valid):
                await self.attempt(handle, self._holdings.release_handle(handle))

    async def attempt(self, what: str, step: Awaitable[object]) -> None:
        try:
            await step
        except TortieError as error:
            self.failures.append(f"{what}: {error}")

    async def _of_node(self) -> list[WorkloadEndpoint]:
        every = (await self._store.list(WorkloadEndpoint)).items
        return [one for one in every if one.spec.node == self._holdings.node]
