"""CHECK: everything that ADD made, compared; the first difference is the error."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tortie.agent.cni import delegate
from tortie.agent.cni.identity import Workload, is_of, workload_of
from tortie.agent.cni.joint import attachment_of
from tortie.agent.cni.records import Records
from tortie.agent.holdings import Holdings
from tortie.agent.netconf import NetConf
from tortie.base.addr import IP
from tortie.base.errors import NotFound
from tortie.calc.annotations import IP_ADDRS_NO_IPAM, addresses
from tortie.cni.spec import Call, CniError, Code
from tortie.dataplane.attachment import differences
from tortie.model.workload import NETWORK, WorkloadEndpoint


async def check(records: Records, holdings: Holdings, call: Call, conf: NetConf) -> None:
    """Raises CniError."""
    workload = workload_of(records.node, call, conf)
    await records.ready()  # before that it is not known what an earlier agent has promised
    endpoint = await _endpoint(records, workload, call, conf)
    await _check_addresses(records, holdings, call, conf, endpoint)
    if conf.dataplane is not None:
        return  # how it connects pods is its own affair
    ifname = call.ifname if conf.is_pod else endpoint.spec.endpoint
    attachment = replace(attachment_of(call, conf, workload.interface, endpoint.spec.ips), ifname=ifname)
    found = await asyncio.to_thread(lambda: next(differences(attachment), None))
    if found is not None:
        raise CniError(Code.INTERNAL, found)


async def _endpoint(records: Records, workload: Workload, call: Call, conf: NetConf) -> WorkloadEndpoint:
    title = f"WorkloadEndpoint {workload.namespace}/{workload.endpoint_name}"
    missing = CniError(Code.UNKNOWN_CONTAINER, f"{title} is missing")
    if conf.is_pod:
        try:
            endpoint = await records.endpoint(workload.namespace, workload.endpoint_name)
        except NotFound:
            raise missing from None
        if endpoint.spec.container_id != call.container_id:
            raise CniError(Code.UNKNOWN_CONTAINER, f"{title} belongs to container {endpoint.spec.container_id}")
        return endpoint
    for endpoint in await records.endpoints():
        if not is_of(endpoint, call.container_id):
            continue
        if call.network not in endpoint.spec.profiles:
            raise CniError(Code.INTERNAL, f"{endpoint.title} has no profile {call.network}")
        return endpoint
    raise missing


async def _check_addresses(
    records: Records, holdings: Holdings, call: Call, conf: NetConf, endpoint: WorkloadEndpoint
) -> None:
    if not conf.assigns:
        await delegate.ask(records.store, records.node, call, conf)
        return
    given: tuple[IP, ...] = ()
    if conf.reads_pod:
        given = addresses((await records.pod(conf.namespace, conf.pod)).metadata.annotations, IP_ADDRS_NO_IPAM)
    # A container on a second network has its addresses of the first.
    conf = replace(conf, network=endpoint.metadata.annotations.get(NETWORK, conf.network))
    for ip in set(endpoint.spec.ips).difference(await holdings.held_by(call.container_id, conf), given):
        raise CniError(Code.INTERNAL, f"address {ip} is not assigned to this container in IPAM")
