"""GC: what of this node belongs to no attachment that the runtime still knows.

A WorkloadEndpoint belongs to a container, as its addresses do; a link only to its name, which is made of a pod's. So a
link goes when no endpoint and no container that stays has a pod of that name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from tortie.agent.cni import delegate, status
from tortie.agent.cni.identity import CONTAINER, POD, owner_of
from tortie.agent.cni.joint import take_away
from tortie.agent.cni.records import Records
from tortie.agent.holdings import Holding, Holdings, handle_of
from tortie.agent.netconf import NetConf
from tortie.base.errors import TortieError
from tortie.cni.spec import Call, CniError, Code, lookup
from tortie.dataplane.attachment import host_ends
from tortie.model.workload import NETWORK, WorkloadEndpoint, container_interface_name, interface_name


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
    """Whether the endpoint is another network's: it says so, or its container holds addresses of another."""
    said = endpoint.metadata.annotations.get(NETWORK)
    if said is not None:
        return said != network
    container = endpoint.spec.container_id
    own = handle_of(network, container)
    return any(each.handle != own and each.handle.endswith(f".{container}") for each in held)


async def collect(
    records: Records,
    holdings: Holdings,
    call: Call,
    conf: NetConf,
    turn: Callable[[str], asyncio.Lock],
    busy: Collection[str],
) -> None:
    """Best effort over all that is left of containers that are not in the runtime's list; the errors are joined.

    `turn` is to be taken before something of an interface is touched; `busy` are those of calls under way.
    """
    run = Sweep(records, holdings, call, conf, valid_containers(call.conf))
    await records.ready()
    held = await holdings.everything()
    for endpoint in await run.endpoints(held):
        async with turn(owner_of(endpoint).interface):
            await run.attempt(endpoint.title, run.discard(endpoint))
    await run.links(held, list(busy))
    await run.addresses(held)
    if run.failures:
        raise CniError(Code.INTERNAL, "; ".join(run.failures))


class Sweep:
    """One run over one network. It goes on after a failure; what failed is in `failures`."""

    def __init__(self, records: Records, holdings: Holdings, call: Call, conf: NetConf, valid: Collection[str]) -> None:
        self.valid = valid
        self.failures: list[str] = []
        self._call = call
        self._conf = conf
        self._records = records
        self._holdings = holdings

    async def endpoints(self, held: Collection[Holding]) -> list[WorkloadEndpoint]:
        """Those to delete."""
        return [
            endpoint
            for endpoint in await self._records.endpoints()
            if endpoint.spec.orchestrator in (POD, CONTAINER)
            and endpoint.spec.container_id
            and endpoint.spec.container_id not in self.valid
            and not elsewhere(endpoint, self._call.network, held)
        ]

    async def discard(self, endpoint: WorkloadEndpoint) -> None:
        """As DEL would, but without its namespace, of which nobody tells: an external dataplane could do nothing."""
        spec = endpoint.spec
        if not await self._records.delete(endpoint.namespace, endpoint.name, spec.container_id):
            return
        status.remove(self._conf.status_dir, owner_of(endpoint))
        if self._conf.dataplane is None:
            await take_away("", "", spec.interface_name)
        if not self._conf.assigns:
            call = replace(self._call, container_id=spec.container_id, ifname=spec.endpoint)
            await delegate.release(self._records.store, self._records.node, call, self._conf)

    async def links(self, held: Collection[Holding], busy: Collection[str]) -> None:
        """Delete the links of which nobody knows; `busy` are those of calls under way. The endpoints went before."""
        kept = {endpoint.spec.interface_name for endpoint in await self._records.endpoints()} | set(busy)
        for container in self.valid:
            kept.add(container_interface_name(container))
        for each in held:
            if not is_stale(each.handle, self._call.network, self.valid):
                kept.update(_interfaces(each))
        for name in await asyncio.to_thread(host_ends):
            if name not in kept:
                await self.attempt(name, take_away("", "", name))

    async def addresses(self, held: Collection[Holding]) -> None:
        """Release what is held for containers that are gone."""
        for handle in sorted({each.handle for each in held}):
            if is_stale(handle, self._call.network, self.valid):
                await self.attempt(handle, self._holdings.release_handle(handle))
        if not self._conf.assigns:
            ask = delegate.ask(self._records.store, self._records.node, self._call, self._conf)
            await self.attempt(self._conf.ipam_type, ask)

    async def attempt(self, what: str, step: Awaitable[object]) -> None:
        try:
            await step
        except TortieError as error:
            self.failures.append(f"{what}: {error}")


def _interfaces(held: Holding) -> Iterator[str]:
    """What a holder's link may be called. Both parts of a handle may have dots, so of a container it is a guess."""
    if held.pod:
        yield interface_name(held.namespace, held.pod)
        return
    parts = held.handle.split(".")
    yield from (container_interface_name(".".join(parts[i:])) for i in range(1, len(parts)))
