"""The `calico` CNI plugin, served by the agent: the executable only carries the call here.

    ADD    IPAM ─► veth ─► WorkloadEndpoint ─► policy and route in the kernel ─► reply
    DEL    WorkloadEndpoint (unless another container has it) ─► veth ─► addresses
    CHECK  everything ADD made, compared; the first difference is the error
    GC     what belongs to no valid attachment: endpoints, links, addresses

Each step of ADD undoes itself when a later one fails. When the agent dies in between, the runtime's DEL finds the
addresses by the container's handle and the link by its name, and the next ADD replaces the link.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tortie.agent.netconf import NetConf, read_netconf
from tortie.agent.view import Progress, View
from tortie.base.addr import IP, host_net
from tortie.base.errors import Conflict, Exists, NotFound, TortieError, Unavailable
from tortie.calc.workloads import ENDPOINT, endpoint_of_pod
from tortie.cni.result import Address, Interface, Result, Route
from tortie.cni.spec import Call, CniError, Code, format_json, lookup
from tortie.dataplane.attachment import Attachment, attach, detach, differences
from tortie.ipam.assign import Ipam
from tortie.model.ipam import IPAMBlock
from tortie.model.k8s import Namespace, Pod
from tortie.model.node import ClusterInformation
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint, endpoint_name, interface_name

log = logging.getLogger(__name__)

POLICY_TIMEOUT = 20.0
"""Seconds that ADD waits for its policy; the runtime's own patience is longer."""
DELETE_ATTEMPTS = 6


class CniServer:
    """Answers calls; many at a time, those of one pod one after the other."""

    def __init__(self, node: str, store: Store, view: View, progress: Progress, ipam: Ipam) -> None:
        self._node = node
        self._store = store
        self._view = view
        self._progress = progress
        self._ipam = ipam
        self._pods: dict[str, asyncio.Lock] = {}

    async def answer(self, call: Call) -> str:
        """What the plugin prints on success. Raises CniError or a TortieError, which the border translates."""
        match call.command:
            case "ADD":
                result = await self._in_turn(call, self._add)
                return format_json(result.dump(call.cni_version))
            case "DEL":
                await self._in_turn(call, self._delete)
            case "CHECK":
                await self._in_turn(call, self._check)
            case "STATUS":
                await self._status()
            case "GC":
                await self._collect(call)
        return ""

    async def _in_turn(self, call: Call, verb: Any) -> Any:
        conf = read_netconf(call)
        if not conf.pod or not conf.namespace:
            text = "K8S_POD_NAME and K8S_POD_NAMESPACE are missing in CNI_ARGS: only Kubernetes pods are supported yet"
            raise CniError(Code.INVALID_ENVIRONMENT, text)
        name = f"{conf.namespace}/{conf.pod}"
        lock = self._pods.setdefault(name, asyncio.Lock())
        try:
            async with lock:
                return await verb(call, conf)
        finally:
            if not lock.locked() and self._pods.get(name) is lock:
                del self._pods[name]

    # ------------------------------------------------------------------------------------------------ ADD

    async def _add(self, call: Call, conf: NetConf) -> Result:
        await self._ready()
        pod = await self._pod(conf)
        async with contextlib.AsyncExitStack() as undo:
            ips = await self._assign(call, conf, undo)
            attachment = self._attachment(call, conf, ips)
            log.debug("%s/%s:\n%s", conf.namespace, conf.pod, attachment)
            mac = await asyncio.to_thread(attach, attachment)
            undo.push_async_callback(self._take_away, call, attachment.host_ifname)
            endpoint = endpoint_of_pod(
                pod,
                node=self._node,
                container_id=call.container_id,
                interface=attachment.host_ifname,
                mac=mac,
                ips=ips,
            )
            await self._publish(endpoint, undo)
            undo.pop_all()
        log.info("ADD %s/%s: %s", conf.namespace, conf.pod, ", ".join(map(str, ips)))
        return _result(attachment, mac, call)

    async def _ready(self) -> None:
        if not self._view.in_sync.is_set():
            raise Unavailable("the agent is not in sync with the datastore yet")
        information = await self._store.get(ClusterInformation, "default")
        if not information.spec.datastore_ready:
            raise Unavailable("Calico is currently not ready to process requests")

    async def _pod(self, conf: NetConf) -> Pod:
        try:
            return await self._store.get(Pod, conf.pod, conf.namespace)
        except NotFound:
            raise NotFound(f"Pod {conf.namespace}/{conf.pod} is not in the datastore") from None

    async def _assign(self, call: Call, conf: NetConf, undo: contextlib.AsyncExitStack) -> tuple[IP, ...]:
        namespace = await self._store.get(Namespace, conf.namespace)
        handle = handle_of(conf.network, call.container_id)
        attributes = {
            "node": self._node,
            "timestamp": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f} +0000 UTC",
            "pod": conf.pod,
            "namespace": conf.namespace,
        }
        undo.push_async_callback(self._release, handle)
        got = await self._ipam.auto_assign(
            int(conf.ipv4),
            int(conf.ipv6),
            handle=handle,
            attrs=attributes,
            pools4=conf.pools4,
            pools6=conf.pools6,
            namespace_labels=namespace.labels,
        )
        return tuple(interface.ip for interface in await self._ipam.all_or_nothing(got))

    def _attachment(self, call: Call, conf: NetConf, ips: tuple[IP, ...]) -> Attachment:
        return Attachment(
            call.netns,
            call.ifname,
            interface_name(conf.namespace, conf.pod),
            ips,
            conf.mtu,
            conf.num_queues,
            conf.ip_forwarding,
        )

    async def _publish(self, endpoint: WorkloadEndpoint, undo: contextlib.AsyncExitStack) -> None:
        """Write the endpoint, and wait until the kernel enforces its policy."""
        stored = await self._write(endpoint)
        undo.push_async_callback(self._withdraw, stored)
        state = self._view.put(stored)
        if state is not None:
            await self._progress.wait(state.generation, POLICY_TIMEOUT)

    async def _write(self, endpoint: WorkloadEndpoint) -> WorkloadEndpoint:
        """The endpoint of a pod is one object however often the pod is attached: the newest container has it."""
        try:
            return await self._store.create(endpoint)
        except Exists:
            return await self._store.update(endpoint)

    async def _withdraw(self, endpoint: WorkloadEndpoint) -> None:
        with contextlib.suppress(NotFound, Conflict):
            self._view.drop(
                await self._store.delete(
                    WorkloadEndpoint, endpoint.name, endpoint.namespace, endpoint.metadata.resource_version
                )
            )

    async def _take_away(self, call: Call, host_ifname: str) -> None:
        await asyncio.to_thread(detach, call.netns, call.ifname, host_ifname)

    async def _release(self, handle: str) -> None:
        with contextlib.suppress(NotFound):
            await self._ipam.release_by_handle(handle)

    # ------------------------------------------------------------------------------------------------ DEL

    async def _delete(self, call: Call, conf: NetConf) -> None:
        """Success whenever nothing of this container is left, however much was there."""
        host_ifname = interface_name(conf.namespace, conf.pod)
        if not await self._delete_endpoint(call.container_id, conf.namespace, conf.pod):
            host_ifname = ""  # another container's by now
        await asyncio.to_thread(detach, call.netns, call.ifname, host_ifname)
        await self._release(handle_of(conf.network, call.container_id))
        await self._release(f"{conf.namespace}.{conf.pod}")  # as old versions named it
        log.info("DEL %s/%s", conf.namespace, conf.pod)

    async def _delete_endpoint(self, container_id: str, namespace: str, pod: str) -> bool:
        """False when the endpoint belongs to another container."""
        name = endpoint_name(self._node, "k8s", pod, ENDPOINT)
        for attempt in range(DELETE_ATTEMPTS):
            try:
                endpoint = await self._store.get(WorkloadEndpoint, name, namespace)
                if endpoint.spec.container_id not in ("", container_id):
                    return False
                revision = endpoint.metadata.resource_version
                self._view.drop(await self._store.delete(WorkloadEndpoint, name, namespace, revision))
            except NotFound:
                return True
            except Conflict:
                if attempt + 1 == DELETE_ATTEMPTS:
                    raise
            else:
                return True
        return True

    # ------------------------------------------------------------------------------------------------ CHECK, STATUS, GC

    async def _check(self, call: Call, conf: NetConf) -> None:
        name = endpoint_name(self._node, "k8s", conf.pod, ENDPOINT)
        try:
            endpoint = await self._store.get(WorkloadEndpoint, name, conf.namespace)
        except NotFound:
            raise CniError(Code.UNKNOWN_CONTAINER, f"WorkloadEndpoint {conf.namespace}/{name} is missing") from None
        if endpoint.spec.container_id != call.container_id:
            text = f"WorkloadEndpoint {conf.namespace}/{name} belongs to container {endpoint.spec.container_id}"
            raise CniError(Code.UNKNOWN_CONTAINER, text)
        ips = endpoint.spec.ips
        held = await self._ipam.ips_by_handle(handle_of(conf.network, call.container_id))
        for ip in ips:
            if ip not in {getattr(one, "ip", one) for one in held}:
                raise CniError(Code.INTERNAL, f"address {ip} is not assigned to this container in IPAM")
        attachment = self._attachment(call, conf, ips)
        found = await asyncio.to_thread(lambda: next(differences(attachment), None))
        if found is not None:
            raise CniError(Code.INTERNAL, found)

    async def _status(self) -> None:
        try:
            await self._ready()
        except TortieError as error:
            raise CniError(Code.NOT_AVAILABLE, str(error)) from None
        if self._progress.failures:
            raise CniError(Code.LIMITED_CONNECTIVITY, "; ".join(self._progress.failures))

    async def _collect(self, call: Call) -> None:
        """Best effort over all that is left of containers that are not in the list; the errors are joined."""
        valid = _valid_attachments(call.conf)
        failures: list[str] = []
        for endpoint in (await self._store.list(WorkloadEndpoint)).items:
            spec = endpoint.spec
            if spec.node == self._node and spec.orchestrator == "k8s" and spec.container_id not in valid:
                try:
                    await self._delete_endpoint(spec.container_id, endpoint.namespace, spec.pod)
                    await asyncio.to_thread(detach, "", "", spec.interface_name)
                except TortieError as error:
                    failures.append(f"{endpoint.title}: {error}")
        for handle in await self._stale_handles(call.network, valid):
            try:
                await self._release(handle)
            except TortieError as error:
                failures.append(f"{handle}: {error}")
        if failures:
            raise CniError(Code.INTERNAL, "; ".join(failures))

    async def _stale_handles(self, network: str, valid: Sequence[str]) -> list[str]:
        """Handles of this network and node whose container is in no valid attachment."""
        mine = {handle_of(network, container) for container in valid}
        found: set[str] = set()
        for block in (await self._store.list(IPAMBlock)).items:
            for attribute in block.spec.attributes:
                handle = attribute.handle_id or ""
                if handle.startswith(f"{network}.") and attribute.secondary.get("node") == self._node:
                    found.add(handle)
        return sorted(found - mine)


def handle_of(network: str, container_id: str) -> str:
    """The name under which a container's addresses are held."""
    return f"{network}.{container_id}"


def _valid_attachments(conf: Mapping[str, Any]) -> list[str]:
    listed = lookup(conf, "cni.dev/valid-attachments", lookup(conf, "cni.dev/attachments"))
    if not isinstance(listed, list):
        text = "cni.dev/valid-attachments is missing: everything would be collected"
        raise CniError(Code.INVALID_CONFIG, text)
    return [str(lookup(one, "containerID", "")) for one in listed if isinstance(one, dict)]


def _result(attachment: Attachment, mac: str, call: Call) -> Result:
    """As Calico answers: the host's interface, then the pod's; addresses without gateway; a route per address."""
    return Result(
        interfaces=(
            Interface(attachment.host_ifname),
            Interface(attachment.ifname, mac, attachment.mtu, attachment.netns),
        ),
        ips=tuple(Address(str(host_net(ip)), interface=1) for ip in attachment.ips),
        routes=tuple(Route(str(host_net(ip))) for ip in attachment.ips),
    )
