"""A virtual machine that has moved to this node: from then on the pod that it runs in now has its addresses."""

from __future__ import annotations

import asyncio
import logging

from tortie.agent.view import RETRY
from tortie.base.errors import Compacted, Conflict, NotFound, NotSupported, Unavailable
from tortie.base.logs import Seldom
from tortie.ipam.vm import VmAddresses
from tortie.model.k8s import VirtualMachineInstance
from tortie.model.store import EventType, Store
from tortie.store.relisting import Relisting

log = logging.getLogger(__name__)


async def follow_migrations(node: str, store: Store, addresses: VmAddresses) -> None:
    """Forever, where there is KubeVirt. Whatever moved while nobody looked is found at the start."""
    complain, again = Seldom(log), Relisting()
    while True:
        try:
            listing = await store.list(VirtualMachineInstance)
            for instance in listing.items:
                await arrived(instance, node, addresses)
            async for batch in store.watch(VirtualMachineInstance, listing.revision):
                for event in batch:
                    if event.type is not EventType.DELETED:
                        await arrived(event.object, node, addresses)
        except Compacted:
            await asyncio.sleep(again.lost())
        except (NotFound, NotSupported):
            return  # a cluster without KubeVirt
        except (Unavailable, Conflict) as error:
            complain.warning(f"{error}; trying again")
            await asyncio.sleep(RETRY)


async def arrived(instance: VirtualMachineInstance, node: str, addresses: VmAddresses) -> None:
    """Hands the addresses of an instance over if it runs here. Raises Unavailable, Conflict."""
    if instance.node != node:
        return
    for handle in await addresses.handles(instance):
        for ip in await addresses.promote(handle, node):
            log.info("%s: %s/%s runs here now", ip, instance.namespace, instance.name)
