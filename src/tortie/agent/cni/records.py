"""What a call reads of the cluster's records, and the WorkloadEndpoint that it writes there.

Every read and write that a pod waits for goes through here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TypeVar

from tortie.agent.cni.undo import on_failure
from tortie.agent.departures import Departures
from tortie.agent.endpoints import follows_pod, refresh
from tortie.agent.links_gone import LinksGone
from tortie.agent.pending import Pending
from tortie.agent.pod_mtu import PodMtu
from tortie.agent.registration import demand_ready_in
from tortie.agent.view import Progress, View
from tortie.base.errors import Conflict, Exists, NotFound, Unavailable
from tortie.model.k8s import Namespace, Pod
from tortie.model.meta import Resource
from tortie.model.node import ClusterInformation
from tortie.model.policy import Profile
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint

R = TypeVar("R", bound=Resource)

POLICY_TIMEOUT = 20.0
"""Seconds that ADD waits for its policy; the runtime's own patience is longer."""
DELETE_ATTEMPTS = 6


class Records:
    """The datastore, and this agent's picture of it, as the calls of one node use them."""

    def __init__(
        self,
        node: str,
        store: Store,
        view: View,
        progress: Progress,
        pending: Pending,
        mtu: PodMtu,
        departures: Departures | None = None,
        links_gone: LinksGone | None = None,
    ) -> None:
        self.node = node
        self.store = store
        self.view = view
        self.progress = progress
        self.pending = pending
        self.mtu = mtu
        self.departures = departures
        self.links_gone = links_gone or LinksGone()

    @property
    def away(self) -> str:
        """Why nobody should wait for the datastore; "" while it answers."""
        return self.view.datastore.away or self.view.datastore.disbelief

    # --- reading ---

    async def ready(self) -> None:
        """Raises Unavailable while pods cannot be connected."""
        if not self.view.in_sync.is_set():
            raise Unavailable("the agent is not in sync with the datastore yet")
        await self.writable()

    async def gone(self, container_id: str) -> None:
        """Until nothing is left of a container of this id before. Raises Unavailable."""
        if self.departures is not None:
            await self.departures.gone(container_id)

    async def writable(self) -> None:
        """Raises Unavailable while nobody may write to the datastore."""
        try:
            demand_ready_in(await self._known(ClusterInformation, "default"))
        except NotFound:
            demand_ready_in(None)

    async def _known(self, kind: type[R], name: str, namespace: str = "") -> R:
        """From what is followed; else from the datastore, and if that is away as it was last seen."""
        found = self.view.known.get(kind, name, namespace)
        if found is not None and self.view.serves(kind):
            return found
        try:
            return await self.store.get(kind, name, namespace)
        except Unavailable:
            if found is None:
                raise
            return found

    async def pod(self, namespace: str, name: str, uid: str = "") -> Pod:
        """With its UID, from what is known of it. Raises NotFound, Unavailable."""
        try:
            known = self.view.known.get(Pod, name, namespace)
            if uid and known is not None and known.metadata.uid == uid:
                return await self._known(Pod, name, namespace)
            return await self.store.get(Pod, name, namespace)
        except NotFound:
            raise NotFound(f"Pod {namespace}/{name} is not in the datastore") from None

    async def namespace_annotations(self, namespace: str) -> Mapping[str, str]:
        """Raises NotFound, Unavailable."""
        return (await self._known(Namespace, namespace)).metadata.annotations

    async def endpoint(self, namespace: str, name: str) -> WorkloadEndpoint:
        """Raises NotFound, Unavailable."""
        await self.pending.endpoint_settled(namespace, name)
        return await self.store.get(WorkloadEndpoint, name, namespace)

    async def endpoints(self) -> list[WorkloadEndpoint]:
        """All of this node. Raises Unavailable."""
        listed = (await self.store.list(WorkloadEndpoint)).items
        return [one for one in listed if one.spec.node == self.node]

    # --- writing ---

    async def profile(self, profile: Profile) -> None:
        """See to it that a profile is there; one that is there already stays as it is. Raises Unavailable."""
        with contextlib.suppress(Exists):
            self.view.put(await self.store.create(profile))

    async def write(self, endpoint: WorkloadEndpoint) -> WorkloadEndpoint:
        """The endpoint of a pod is one object however often the pod is attached: the newest container has it."""
        await self.pending.endpoint_settled(endpoint.namespace, endpoint.name)
        try:
            return await self.store.create(endpoint)
        except Exists:
            return await self.store.update(endpoint)

    async def delete(self, namespace: str, name: str, container_id: str) -> bool:
        """Delete an endpoint unless another container has it; then the answer is False.

        Raises Conflict when it changes each time we look, Unavailable.
        """
        if self.pending.withdraw(container_id, name):
            return True  # there was no endpoint of that name before
        await self.pending.endpoint_settled(namespace, name)
        for attempt in range(DELETE_ATTEMPTS):
            try:
                endpoint = await self.store.get(WorkloadEndpoint, name, namespace)
                if endpoint.spec.container_id not in ("", container_id):
                    return False
                revision = endpoint.metadata.resource_version
                self.view.drop(await self.store.delete(WorkloadEndpoint, name, namespace, revision))
            except NotFound:
                return True
            except Conflict:
                if attempt + 1 == DELETE_ATTEMPTS:
                    raise
            else:
                return True
        return True

    async def publish(self, endpoint: WorkloadEndpoint, undo: AsyncExitStack, patience: float = 0) -> None:
        """Write an endpoint, and wait until the kernel enforces its policy, at least `patience` seconds if need be.

        That of a container whose addresses were held ready is noted, and written once the call is answered, unless the
        pod has an endpoint already. Raises Unavailable, also when that takes too long.
        """
        container_id = endpoint.spec.container_id
        promised = self.pending.promised(container_id)
        if promised and promised == frozenset(endpoint.spec.ips):
            if self.view.cluster.endpoint((endpoint.namespace, endpoint.name)) is None:
                await self._promise(endpoint, undo, patience)
                return
            await self.pending.hand_over(container_id)
        stored = await self.write(endpoint)
        on_failure(undo, self.delete, stored.namespace, stored.name, stored.spec.container_id)
        await self.enforce(stored, patience)

    async def _promise(self, endpoint: WorkloadEndpoint, undo: AsyncExitStack, patience: float) -> None:
        """Note an endpoint, and have it written once the kernel enforces its policy."""
        container_id = endpoint.spec.container_id
        generation = self.pending.note(endpoint)
        on_failure(undo, self.delete, endpoint.namespace, endpoint.name, container_id)
        if generation is not None:
            await self.progress.wait(generation, max(POLICY_TIMEOUT, patience))
        self.pending.settle(container_id)

    async def enforce(self, stored: WorkloadEndpoint, patience: float = 0) -> None:
        """Wait until the kernel enforces the policy of an endpoint that is written. Raises Unavailable."""
        state = self.view.put(stored)
        if follows_pod(stored):
            # From now on the endpoint follows its pod. What happened to the pod since ADD read it is seen here.
            with contextlib.suppress(NotFound):
                pod = await self.store.get(Pod, stored.spec.pod, stored.namespace)
                state = await refresh(pod, self.node, self.store, self.view) or state
        if state is not None:
            await self.progress.wait(state.generation, max(POLICY_TIMEOUT, patience))
