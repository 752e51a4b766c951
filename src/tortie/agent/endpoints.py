"""The endpoints of this node follow their pods: a label that changes on a running pod changes its policy."""

from __future__ import annotations

import asyncio
import logging

from tortie.agent.view import RETRY, View
from tortie.base.errors import Compacted, Conflict, NotFound, Unavailable
from tortie.calc.workloads import ENDPOINT, refreshed
from tortie.model.k8s import Pod
from tortie.model.store import EventType, Store
from tortie.model.workload import WorkloadEndpoint, endpoint_name

log = logging.getLogger(__name__)


async def follow_pods(node: str, store: Store, view: View) -> None:
    """Forever. The endpoint is written by ADD and deleted by DEL; in between only labels, ports and profiles change."""
    while True:
        try:
            listing = await store.list(Pod)
            for pod in listing.items:
                await _refresh(pod, node, store, view)
            async for batch in store.watch(Pod, listing.revision):
                for event in batch:
                    if event.type is not EventType.DELETED:
                        await _refresh(event.object, node, store, view)
        except Compacted:
            continue
        except Unavailable as error:
            log.warning("pods: %s; trying again", error)
            await asyncio.sleep(RETRY)


async def _refresh(pod: Pod, node: str, store: Store, view: View) -> None:
    if pod.spec.node_name != node:
        return
    name = endpoint_name(node, "k8s", pod.name, ENDPOINT)
    known = view.cluster.endpoint((pod.namespace, name))
    if known is None or refreshed(known, pod) == known:
        return
    try:
        endpoint = await store.get(WorkloadEndpoint, name, pod.namespace)
        wanted = refreshed(endpoint, pod)
        if wanted != endpoint:
            view.put(await store.update(wanted))
    except (NotFound, Conflict):
        return  # deleted or attached again in the meantime; that write sees the pod as it is now
