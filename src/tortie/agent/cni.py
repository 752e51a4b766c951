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
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_interface
from typing import TypeVar
from weakref import WeakValueDictionary

import msgspec

from tortie.agent.collect import Collector, valid_containers
from tortie.agent.endpoints import refresh
from tortie.agent.holdings import Holdings
from tortie.agent.netconf import NetConf, read_netconf
from tortie.agent.registration import demand_ready
from tortie.agent.view import Progress, View
from tortie.agent.wishes import Wishes, wishes
from tortie.base.addr import IP
from tortie.base.errors import ConfigError, Conflict, Exists, KernelError, NotFound, TortieError, Unavailable
from tortie.calc.annotations import IP_ADDRS_NO_IPAM, addresses
from tortie.calc.workloads import ENDPOINT, endpoint_of_pod
from tortie.cni.cnidataplane import AddRequest, ContainerSettings, add_request, del_request
from tortie.cni.external import ExternalDataplane
from tortie.cni.result import Address, Interface, Result, Route
from tortie.cni.spec import Call, CniError, Code, format_json, own_netns_error
from tortie.dataplane.attachment import Attachment, attach, detach, differences
from tortie.ipam import fill
from tortie.kernel import netns
from tortie.model.k8s import Namespace, Pod
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint, endpoint_name, interface_name

T = TypeVar("T")
Verb = Callable[[Call, NetConf], Awaitable[T]]

log = logging.getLogger(__name__)

POLICY_TIMEOUT = 20.0
"""Seconds that ADD waits for its policy; the runtime's own patience is longer."""
DELETE_ATTEMPTS = 6


class CniServer:
    """Answers calls; many at a time, those of one pod one after the other."""

    def __init__(self, node: str, store: Store, view: View, progress: Progress, holdings: Holdings) -> None:
        self._node = node
        self._store = store
        self._view = view
        self._progress = progress
        self._holdings = holdings
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        """By namespace and pod, as long as somebody has or awaits the turn."""

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

    async def _in_turn(self, call: Call, verb: Verb[T]) -> T:
        conf = read_netconf(call)
        if not conf.pod or not conf.namespace:
            text = "K8S_POD_NAME and K8S_POD_NAMESPACE are missing in CNI_ARGS: only Kubernetes pods are supported yet"
            raise CniError(Code.INVALID_ENVIRONMENT, text)
        refuse_own_netns(call)
        async with self._turn(conf.namespace, conf.pod):
            return await verb(call, conf)

    def _turn(self, namespace: str, pod: str) -> asyncio.Lock:
        return self._turns.setdefault((namespace, pod), asyncio.Lock())

    # ------------------------------------------------------------------------------------------------ ADD

    async def _add(self, call: Call, conf: NetConf) -> Result:
        await self._ready()
        pod = await self._pod(conf)
        wanted = wishes(conf, pod.metadata.annotations, await self._namespace_annotations(conf))
        async with contextlib.AsyncExitStack() as undo:
            got = await self._addresses(call.container_id, wanted)
            ips = tuple(each.ip for each in got)
            if not wanted.given:
                undo.push_async_callback(_undone, self._holdings.give_back, call.container_id, conf, ips)
            nats = wanted.nats(pod.metadata.annotations, ips)
            attachment = replace(_attachment(call, conf, ips, conf.interface_mtu), mac=wanted.mac)
            endpoint = endpoint_of_pod(
                pod,
                node=self._node,
                container_id=call.container_id,
                interface=attachment.host_ifname,
                mac="",
                ips=ips,
                nats=nats,
            )
            if conf.dataplane is None:
                result = await self._connect(call, attachment, got, undo)
            else:
                request = _request(call, conf, conf.dataplane, endpoint, pod, got, attachment.mtu)
                result = await self._hand_over(call, conf.dataplane, request, got, undo)
            host, inside = result.interfaces
            spec = msgspec.structs.replace(endpoint.spec, interface_name=host.name, mac=inside.mac)
            await self._publish(msgspec.structs.replace(endpoint, spec=spec), undo)
            undo.pop_all()
        log.info("ADD %s/%s: %s", conf.namespace, conf.pod, ", ".join(map(str, ips)))
        return result

    async def _connect(
        self, call: Call, attachment: Attachment, got: Iterable[fill.Interface], undo: contextlib.AsyncExitStack
    ) -> Result:
        """Join the pod to its node by a veth of ours."""
        log.debug("%s", attachment)
        mac = await asyncio.to_thread(attach, attachment)
        undo.push_async_callback(_undone, self._take_away, call, attachment.host_ifname)
        return _result(attachment, mac, got)

    async def _hand_over(
        self,
        call: Call,
        dataplane: ExternalDataplane,
        request: AddRequest,
        got: Iterable[fill.Interface],
        undo: contextlib.AsyncExitStack,
    ) -> Result:
        """Have an external dataplane join the pod to its node. Addresses keep their blocks' prefix lengths."""
        reply = await asyncio.to_thread(dataplane.add, request)
        undo.push_async_callback(_undone, asyncio.to_thread, dataplane.delete, del_request(call, dataplane.options))
        return Result(
            interfaces=(
                Interface(reply.host_interface_name),
                Interface(call.ifname, reply.mac, request.settings.mtu, call.netns),
            ),
            ips=tuple(Address(str(each), interface=1) for each in got),
            routes=tuple(Route(str(each)) for each in got),
        )

    async def _ready(self) -> None:
        if not self._view.in_sync.is_set():
            raise Unavailable("the agent is not in sync with the datastore yet")
        await demand_ready(self._store)

    async def _pod(self, conf: NetConf) -> Pod:
        try:
            return await self._store.get(Pod, conf.pod, conf.namespace)
        except NotFound:
            raise NotFound(f"Pod {conf.namespace}/{conf.pod} is not in the datastore") from None

    async def _namespace_annotations(self, conf: NetConf) -> Mapping[str, str]:
        return (await self._store.get(Namespace, conf.namespace)).metadata.annotations

    async def _addresses(self, container_id: str, wanted: Wishes) -> tuple[fill.Interface, ...]:
        """Those that the pod asks for by name, else as many as the configuration says."""
        if wanted.given:
            return tuple(ip_interface(ip) for ip in wanted.given)
        if not wanted.fixed:
            return await self._holdings.assign(container_id, wanted.conf)
        # A pod that is attached again gets its address again, although its old container has not been taken away yet.
        name = endpoint_name(self._node, "k8s", wanted.conf.pod, ENDPOINT)
        with contextlib.suppress(NotFound):
            old = await self._store.get(WorkloadEndpoint, name, wanted.conf.namespace)
            await self._holdings.free(set(old.spec.ips) & set(wanted.fixed))
        return await self._holdings.assign_these(container_id, wanted.conf, wanted.fixed)

    async def _publish(self, endpoint: WorkloadEndpoint, undo: contextlib.AsyncExitStack) -> None:
        """Write the endpoint, and wait until the kernel enforces its policy."""
        stored = await self._write(endpoint)
        undo.push_async_callback(_undone, self._withdraw, stored)
        state = self._view.put(stored)
        # From now on the endpoint follows its pod. What happened to the pod since ADD read it is seen here.
        with contextlib.suppress(NotFound):
            pod = await self._store.get(Pod, endpoint.spec.pod, endpoint.namespace)
            state = await refresh(pod, self._node, self._store, self._view) or state
        if state is not None:
            await self._progress.wait(state.generation, POLICY_TIMEOUT)

    async def _write(self, endpoint: WorkloadEndpoint) -> WorkloadEndpoint:
        """The endpoint of a pod is one object however often the pod is attached: the newest container has it."""
        try:
            return await self._store.create(endpoint)
        except Exists:
            return await self._store.update(endpoint)

    async def _withdraw(self, endpoint: WorkloadEndpoint) -> None:
        await self._delete_endpoint(endpoint.spec.container_id, endpoint.namespace, endpoint.spec.pod)

    async def _take_away(self, call: Call, host_ifname: str) -> None:
        await asyncio.to_thread(detach, call.netns, call.ifname, host_ifname)

    # ------------------------------------------------------------------------------------------------ DEL

    async def _delete(self, call: Call, conf: NetConf) -> None:
        """Success whenever nothing of this container is left, however much was there."""
        await demand_ready(self._store)
        # A pod has one link. When the endpoint is another container's, so is the link: attaching that one replaced it.
        last = await self._delete_endpoint(call.container_id, conf.namespace, conf.pod)
        if conf.dataplane is not None:
            await asyncio.to_thread(conf.dataplane.delete, del_request(call, conf.dataplane.options))
        elif last:
            await self._take_away(call, interface_name(conf.namespace, conf.pod))
        await self._holdings.release(call.container_id, conf)
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
        given = addresses((await self._pod(conf)).metadata.annotations, IP_ADDRS_NO_IPAM)
        for ip in set(ips).difference(await self._holdings.held_by(call.container_id, conf), given):
            raise CniError(Code.INTERNAL, f"address {ip} is not assigned to this container in IPAM")
        if conf.dataplane is not None:
            return  # how it connects pods is its own affair
        attachment = _attachment(call, conf, ips)
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
        valid = valid_containers(call.conf)
        await self._ready()
        run = Collector(call.network, valid, self._store, self._holdings)
        held = await self._holdings.everything()
        for endpoint in await run.endpoints(held):
            await run.attempt(endpoint.title, self._discard(endpoint, ours=read_netconf(call).dataplane is None))
        await run.links(held, [interface_name(*pod) for pod in self._turns])
        await run.addresses(held)
        if run.failures:
            raise CniError(Code.INTERNAL, "; ".join(run.failures))

    async def _discard(self, endpoint: WorkloadEndpoint, *, ours: bool) -> None:
        """`ours`: its link is a veth of ours, not an external dataplane's."""
        spec = endpoint.spec
        async with self._turn(endpoint.namespace, spec.pod):
            if await self._delete_endpoint(spec.container_id, endpoint.namespace, spec.pod) and ours:
                await asyncio.to_thread(detach, "", "", spec.interface_name)


def refuse_own_netns(call: Call) -> None:
    """The node's own namespace is nobody's sandbox: `eth0` in it is the node's. Raises CniError 8."""
    if call.netns and not call.netns_override:
        with contextlib.suppress(NotFound, ConfigError, KernelError):  # then it is not ours, whatever it is
            if netns.is_same_as_self(call.netns):
                raise own_netns_error()


async def _undone(step: Callable[..., Awaitable[object]], *arguments: object) -> None:
    """What cannot be undone now is left to the runtime's DEL: why ADD failed is the better message."""
    try:
        await step(*arguments)
    except TortieError as error:
        log.warning("left for DEL: %s", error)


def _attachment(call: Call, conf: NetConf, ips: Iterable[IP], mtu: int = 0) -> Attachment:
    return Attachment(
        call.netns,
        call.ifname,
        interface_name(conf.namespace, conf.pod),
        tuple(ips),
        mtu,
        conf.num_queues,
        conf.ip_forwarding,
    )


def _request(
    call: Call,
    conf: NetConf,
    dataplane: ExternalDataplane,
    endpoint: WorkloadEndpoint,
    pod: Pod,
    got: Iterable[fill.Interface],
    mtu: int,
) -> AddRequest:
    """What an external dataplane is told."""
    settings = ContainerSettings(conf.ip_forwarding, mtu)
    ips = [Address(str(each)) for each in got]
    annotations = pod.metadata.annotations
    return add_request(call, endpoint, ips, dataplane.options, annotations=annotations, settings=settings)


def _result(attachment: Attachment, mac: str, got: Iterable[fill.Interface]) -> Result:
    """As Calico answers: the host's interface, then the pod's; single addresses without gateway; and a route for each
    address with its block's prefix length, which tells of IPAM and is not programmed."""
    return Result(
        interfaces=(
            Interface(attachment.host_ifname),
            Interface(attachment.ifname, mac, attachment.mtu, attachment.netns),
        ),
        ips=tuple(Address(f"{ip}/{ip.max_prefixlen}", interface=1) for ip in attachment.ips),
        routes=tuple(Route(str(each)) for each in got),
    )
