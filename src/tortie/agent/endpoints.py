"""The endpoints of this node follow their pods: a label that changes on a running pod changes its policy."""

from __future__ import annotations

import asyncio
import logging

from tortie.agent.view import RETRY, View
from tortie.base.errors import Compacted, Conflict, NotFound, Unavailable
from tortie.base.logs import Seldom
from tortie.calc.state import DesiredState
from tortie.calc.workloads import ENDPOINT, disregarded, refreshed
from tortie.model.k8s import Pod
from tortie.model.store import EventType, Store
from tortie.model.workload import NETWORK, WorkloadEndpoint, endpoint_name
from tortie.store.relisting import Relisting

log = logging.getLogger(__name__)


async def follow_pods(node: str, store: Store, view: View) -> None:
    """Forever. The endpoint is written by ADD and deleted by DEL; in between `refreshed` says what changes."""
    complain, again = Seldom(log), Relisting()
    await view.in_sync.wait()  # before that an endpoint that is there may not be known yet
    while True:
        try:
            listing = await store.list(Pod)
            view.known.replace(Pod, listing.items)
            view.known.listed(Pod)
            for pod in listing.items:
                await refresh(pod, node, store, view)
            async for batch in store.watch(Pod, listing.revision):
                for event in batch:
                    if event.type is EventType.DELETED:
                        view.known.drop(Pod, event.object.namespace, event.object.name)
                    else:
                        view.known.put(event.object)
                        await refresh(event.object, node, store, view)
        except Compacted:
            await asyncio.sleep(again.lost())
        except Unavailable as error:
            view.known.lost(Pod)
            complain.warning(f"{error}; trying again")
            await asyncio.sleep(RETRY)


def follows_pod(endpoint: WorkloadEndpoint) -> bool:
    """Whether labels, ports and profiles are a pod's: not where a network has one profile for all."""
    return endpoint.metadata.annotations.get(NETWORK) not in endpoint.spec.profiles


async def refresh(pod: Pod, node: str, store: Store, view: View) -> DesiredState | None:
    """Write what has changed on a pod into its endpoint, if it has one; the state that has it. Raises Unavailable."""
    if pod.spec.node_name != node:
        return None
    name = endpoint_name(node, "k8s", pod.name, ENDPOINT)
    known = view.cluster.endpoint((pod.namespace, name))
    if known is None or not follows_pod(known) or refreshed(known, pod) == known:
        return None
    try:
        endpoint = await store.get(WorkloadEndpoint, name, pod.namespace)
        wanted = refreshed(endpoint, pod)
        if wanted != endpoint:
            for line in disregarded(pod):
                log.warning("%s: %s", pod.title, line)
            return view.put(await store.update(wanted))
    except (NotFound, Conflict):
        pass  # deleted or attached again in the meantime; that write sees the pod as it is now
    return None
