"""The node's tunnel addresses follow the pools, the node's labels and keys, and the settings of encryption."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Set

from tortie.agent.registration import demand_ready
from tortie.base.errors import Compacted, NotFound, TortieError, Unavailable
from tortie.base.logs import Seldom
from tortie.calc.overlay import device_of
from tortie.ipam.assign import Ipam
from tortie.ipam.tunnel import IPIP, VXLAN, VXLAN_V6, TunnelAddresses
from tortie.model.ipam import IPPool
from tortie.model.meta import Resource
from tortie.model.node import FelixConfiguration, Node
from tortie.model.store import Store
from tortie.policy.selector import parse
from tortie.store.relisting import Relisting

log = logging.getLogger(__name__)

REASONS: tuple[type[Resource], ...] = (IPPool, FelixConfiguration, Node)
FIRST_RETRY, LONGEST_RETRY = 0.5, 30.0
"""Seconds before a pass that failed is made again, doubled each time."""


UNTIL_MODPROBE = 10.0
"""Seconds before it is looked again whether a tunnel that could not be made is there."""
Built = Callable[[], Awaitable[Set[str]]]
"""Waits until the tunnels' devices are there; the answer is the names of those that cannot be."""
DEVICES = {device_of("VXLAN", 4): VXLAN, device_of("VXLAN", 6): VXLAN_V6, device_of("IPIP", 4): IPIP}


async def follow_tunnels(node: str, store: Store, ipam: Ipam, built: Built) -> None:
    """Forever: a pass, and another one whenever something that it looks at has changed. No address is told before the
    tunnel is `built`: others would send there."""
    changed = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for kind in REASONS:
            tasks.create_task(_wake(node, store, kind, changed), name=f"tunnels: follow {kind.KIND.plural}")
        await _keep_settled(
            node, store, TunnelAddresses(store, ipam, lambda text, labels: parse(text).matches(labels)), changed, built
        )


async def _keep_settled(
    node: str, store: Store, addresses: TunnelAddresses, changed: asyncio.Event, built: Built
) -> None:
    complain, retry = Seldom(log), FIRST_RETRY
    pause: float | None
    while True:
        changed.clear()
        try:
            await demand_ready(store)
            lacking = {DEVICES[name] for name in await built()}
            await addresses.settle(await encrypts_hosts(store, node), lacking)
            pause, retry = UNTIL_MODPROBE if lacking else None, FIRST_RETRY
        except TortieError as error:
            complain.warning(f"tunnel addresses: {error}; trying again")
            pause, retry = retry, min(2 * retry, LONGEST_RETRY)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), pause)


async def encrypts_hosts(store: Store, node: str) -> bool:
    """Whether the node's WireGuard carries the traffic of nodes too: what is said of this node, else of all."""
    for name in (f"node.{node}", "default"):
        with contextlib.suppress(NotFound):
            said = (await store.get(FelixConfiguration, name)).spec.wireguard_host_encryption_enabled
            if said is not None:
                return bool(said)
    return False


async def _wake(node: str, store: Store, kind: type[Resource], changed: asyncio.Event) -> None:
    complain, again = Seldom(log), Relisting()
    while True:
        try:
            listing = await store.list(kind)
            changed.set()
            async for batch in store.watch(kind, listing.revision):
                if any(kind is not Node or event.object.name == node for event in batch):
                    changed.set()
        except Compacted:
            await asyncio.sleep(again.lost())
        except Unavailable as error:
            complain.warning(f"{error}; trying again")
            await asyncio.sleep(FIRST_RETRY)
