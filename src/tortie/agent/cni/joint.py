"""How a container is joined to its node: by a link of ours, or by an external dataplane.

Each way is a function that does it, has it undone when the call fails later, and says what the runtime is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace

from tortie.agent.cni import delegate
from tortie.agent.cni.addresses import ips_of
from tortie.agent.cni.undo import on_failure
from tortie.agent.links_gone import LinksGone
from tortie.agent.netconf import NetConf
from tortie.base.addr import IP
from tortie.cni.cnidataplane import AddRequest, ContainerSettings, add_request, del_request
from tortie.cni.external import ExternalDataplane
from tortie.cni.result import Address, Interface, Result
from tortie.cni.spec import Call
from tortie.dataplane.attachment import Attachment, attach, detach
from tortie.model.workload import WorkloadEndpoint

log = logging.getLogger(__name__)


async def join(
    call: Call,
    conf: NetConf,
    endpoint: WorkloadEndpoint,
    got: Result,
    undo: AsyncExitStack,
    *,
    mtu: int,
    annotations: Mapping[str, str] | None = None,
    mac: str = "",
) -> Result:
    """Join a container to its node as the configuration says, with the addresses that were got. `endpoint` is as it is
    to be but for its MAC address; `annotations` are its pod's, `mac` is what it asks for.

    Raises KernelError, ConfigError, CniError, NotSupported.
    """
    if conf.dataplane is not None:
        request = add_request(
            call,
            endpoint,
            got.ips,
            conf.dataplane.options,
            annotations=annotations or {},
            settings=ContainerSettings(conf.ip_forwarding, mtu),
            routes=map(str, delegate.pod_routes(call, conf)),
        )
        return await _hand_over(call, conf.dataplane, request, got, undo)
    attachment = attachment_of(call, conf, endpoint.spec.interface_name, ips_of(got))
    return await _connect(replace(attachment, mac=mac, mtu=mtu), got, undo)


def attachment_of(call: Call, conf: NetConf, interface: str, ips: tuple[IP, ...]) -> Attachment:
    """What the container's connection looks like, but for what CHECK cannot know. Raises ConfigError."""
    return Attachment(
        call.netns,
        call.ifname,
        interface,
        ips,
        0,
        conf.num_queues,
        conf.ip_forwarding,
        kind=conf.device_type,
        destinations=delegate.pod_routes(call, conf),
    )


async def separate(gone: LinksGone, call: Call, conf: NetConf, host_ifname: str) -> None:
    """Take away what `join` made, however much is there; "" is a link that is not ours to take. Of a link nobody waits
    for what the kernel does when it is gone.

    Raises KernelError, CniError, NotSupported.
    """
    if conf.dataplane is not None:
        await asyncio.to_thread(conf.dataplane.delete, del_request(call, conf.dataplane.options))
    elif host_ifname:
        await gone.after(host_ifname, lambda found: detach(call.netns, call.ifname, host_ifname, found=found))


async def take_away(netns: str, ifname: str, host_ifname: str) -> None:
    """A link of ours, from either end; what is gone already is fine. Raises KernelError."""
    await asyncio.to_thread(detach, netns, ifname, host_ifname)


async def _connect(attachment: Attachment, got: Result, undo: AsyncExitStack) -> Result:
    """As Calico answers: the host's interface, then the container's; single addresses without gateway; the rest as it
    came from IPAM."""
    log.debug("%s", attachment)
    mac = await asyncio.to_thread(attach, attachment)
    on_failure(undo, take_away, attachment.netns, attachment.ifname, attachment.host_ifname)
    return replace(
        got,
        interfaces=(
            Interface(attachment.host_ifname),
            Interface(attachment.ifname, mac, attachment.mtu, attachment.netns),
        ),
        ips=tuple(Address(f"{ip}/{ip.max_prefixlen}", interface=1) for ip in attachment.ips),
    )


async def _hand_over(
    call: Call, dataplane: ExternalDataplane, request: AddRequest, got: Result, undo: AsyncExitStack
) -> Result:
    """Have the external dataplane do it. Addresses keep the prefix lengths that they came with."""
    reply = await asyncio.to_thread(dataplane.add, request)
    on_failure(undo, asyncio.to_thread, dataplane.delete, del_request(call, dataplane.options))
    return replace(
        got,
        interfaces=(
            Interface(reply.host_interface_name),
            Interface(call.ifname, reply.mac, request.settings.mtu, call.netns),
        ),
        ips=tuple(Address(one.address, interface=1) for one in got.ips),
    )
