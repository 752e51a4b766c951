"""ADD and DEL of a container that is no Kubernetes pod: of podman, Mesos, a person.

Its policy is that of its endpoint's labels, in the namespace `default`, and of a profile that is named after the
network. A container has one endpoint: attached to a second network it gets that network's profile, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

import msgspec

from tortie.agent.cni import gates, status
from tortie.agent.cni.add import completed
from tortie.agent.cni.addresses import give_back, ips_of, take
from tortie.agent.cni.identity import CONTAINER, Workload, container_labels, is_of, owner_of, workload_of
from tortie.agent.cni.joint import join, separate
from tortie.agent.cni.profile import network_profile
from tortie.agent.cni.records import Records
from tortie.agent.cni.wishes import Wishes
from tortie.agent.holdings import Holdings
from tortie.agent.netconf import NetConf
from tortie.base.addr import IP
from tortie.base.errors import ConfigError, NotFound
from tortie.cni.result import Address, Interface, Result
from tortie.cni.spec import Call, CniError, Code
from tortie.kernel import links
from tortie.kernel.netlink import Netlink
from tortie.model.meta import Metadata
from tortie.model.workload import NETWORK, WorkloadEndpoint, WorkloadEndpointSpec
from tortie.policy.translate import NAMESPACE, ORCHESTRATOR, without_reserved

log = logging.getLogger(__name__)


async def add(records: Records, holdings: Holdings, call: Call, conf: NetConf) -> Result:
    """Raises CniError or a TortieError; then nothing is left of the call."""
    if conf.may_skip_ipam:
        raise ConfigError("is for Kubernetes pods, and this container is none", "feature_control", "ip_addrs_no_ipam")
    workload = workload_of(records.node, call, conf)
    mtu = records.mtu.of(conf)
    await records.ready()
    await records.gone(call.container_id)
    await gates.passed(conf.readiness_gates)
    for endpoint in await records.endpoints():
        if not is_of(endpoint, call.container_id):
            if endpoint.spec.interface_name == workload.interface:
                text = f"{workload.interface} is the interface of {owner_of(endpoint).title}"
                raise CniError(Code.INTERNAL, f"{text}: ids that are numbers must differ in their first 11 digits")
            continue
        if conf.dataplane is not None or await asyncio.to_thread(_is_inside, call.netns, endpoint.spec):
            return await _join_network(records, call, conf, endpoint, mtu)
        # Of a container before this one, of which no runtime has said that it went: ids that people choose come again.
        await delete(records, holdings, replace(call, netns="", ifname=endpoint.spec.endpoint), conf)
    async with AsyncExitStack() as undo:
        got = await take(records, holdings, call, Wishes(conf), undo, workload.endpoint_name)
        endpoint = _endpoint(workload, call, conf, ips_of(got))
        result = await join(call, conf, endpoint, got, undo, mtu=mtu)
        if not conf.policy_type:
            await records.profile(network_profile(call.network, CONTAINER))
        endpoint = completed(endpoint, result)
        await records.publish(endpoint, undo, conf.policy_timeout)
        undo.pop_all()
    status.write(conf.status_dir, workload, endpoint.spec)
    log.info("ADD %s: %s", workload.title, ", ".join(map(str, ips_of(result))))
    return result


async def _join_network(records: Records, call: Call, conf: NetConf, endpoint: WorkloadEndpoint, mtu: int) -> Result:
    """A container that is attached already is given the network's profile, and told what it has."""
    spec = endpoint.spec
    if not conf.policy_type:
        await records.profile(network_profile(call.network, CONTAINER))
    if call.network not in spec.profiles:
        spec = msgspec.structs.replace(spec, profiles=(*spec.profiles, call.network))
        endpoint = await records.write(msgspec.structs.replace(endpoint, spec=spec))
    await records.enforce(endpoint, conf.policy_timeout)
    log.info("ADD container %s: network %s", call.container_id, call.network)
    return Result(
        interfaces=(Interface(spec.interface_name), Interface(spec.endpoint, spec.mac, mtu, call.netns)),
        ips=tuple(Address(net, interface=1) for net in spec.ip_networks),
    )


def _is_inside(netns: str, spec: WorkloadEndpointSpec) -> bool:
    """Whether the endpoint's interface is in this very namespace."""
    with suppress(NotFound), Netlink(netns) as nl:
        return links.get_link(nl, spec.endpoint).mac == spec.mac
    return False


async def delete(records: Records, holdings: Holdings, call: Call, conf: NetConf) -> None:
    """Success whenever nothing of this container is left, however much was there. In the order that delete.py has."""
    workload = workload_of(records.node, call, conf)
    await records.writable()
    every = await records.endpoints()
    there = [one for one in every if is_of(one, call.container_id)]
    another = any(one.spec.interface_name == workload.interface for one in every if one not in there)
    if there and all(one.spec.endpoint != call.ifname for one in there):
        log.info("DEL %s: %s is of its first network and stays", workload.title, there[0].spec.endpoint)
        return
    for endpoint in there:
        await records.delete(endpoint.namespace, endpoint.name, call.container_id)
    status.remove(conf.status_dir, workload)
    await separate(records.links_gone, call, conf, "" if another else workload.interface)
    await give_back(records, holdings, call, conf)
    log.info("DEL %s", workload.title)


def _endpoint(workload: Workload, call: Call, conf: NetConf, ips: tuple[IP, ...]) -> WorkloadEndpoint:
    own = {NAMESPACE: workload.namespace, ORCHESTRATOR: CONTAINER}
    return WorkloadEndpoint(
        metadata=Metadata(
            name=workload.endpoint_name,
            namespace=workload.namespace,
            labels=without_reserved(container_labels(conf.labels)) | own,
            annotations={NETWORK: call.network},
        ),
        spec=WorkloadEndpointSpec(
            orchestrator=CONTAINER,
            node=workload.node,
            container_id=call.container_id,
            endpoint=workload.endpoint,
            ip_networks=tuple(f"{ip}/{ip.max_prefixlen}" for ip in ips),
            profiles=(call.network,),
            interface_name=workload.interface,
        ),
    )
