"""ADD of a Kubernetes pod.

    Pod, Namespace ─► wishes ─► addresses ─► veth ─► WorkloadEndpoint ─► policy and route in the kernel ─► reply

Each step undoes itself when a later one fails. When the agent dies in between, the runtime's DEL finds the addresses
by the container's handle and the link by its name, and the next ADD replaces the link.
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

import msgspec

from tortie.agent.cni import gates, status
from tortie.agent.cni.addresses import ips_of, take
from tortie.agent.cni.identity import POD, Workload, workload_of
from tortie.agent.cni.joint import join
from tortie.agent.cni.profile import network_profile
from tortie.agent.cni.records import Records
from tortie.agent.cni.wishes import Wishes, wishes
from tortie.agent.holdings import Holdings
from tortie.agent.netconf import NetConf
from tortie.base.addr import IP
from tortie.calc.workloads import disregarded, endpoint_of_pod
from tortie.cni.result import Result
from tortie.cni.spec import Call
from tortie.model.k8s import Pod
from tortie.model.meta import Metadata
from tortie.model.workload import IPNAT, NETWORK, WorkloadEndpoint, WorkloadEndpointSpec
from tortie.policy.translate import NAMESPACE, ORCHESTRATOR

log = logging.getLogger(__name__)


async def add(records: Records, holdings: Holdings, call: Call, conf: NetConf) -> Result:
    """Raises CniError or a TortieError; then nothing is left of the call."""
    workload = workload_of(records.node, call, conf)
    mtu = records.mtu.of(conf)
    await records.ready()
    await records.gone(call.container_id)
    await gates.passed(conf.readiness_gates)
    pod = await records.pod(conf.namespace, conf.pod, conf.pod_uid) if conf.reads_pod else None
    annotations = pod.metadata.annotations if pod is not None else {}
    wanted = Wishes(conf)
    if pod is not None:
        wanted = wishes(conf, annotations, await records.namespace_annotations(conf.namespace))
    async with AsyncExitStack() as undo:
        got = await take(records, holdings, call, wanted, undo, workload.endpoint_name)
        ips = ips_of(got)
        endpoint = _endpoint(workload, call, pod, ips, wanted.nats(annotations, ips))
        with records.view.attaching():
            result = await join(call, conf, endpoint, got, undo, mtu=mtu, annotations=annotations, mac=wanted.mac)
        if pod is None:
            await records.profile(network_profile(call.network, POD))
        endpoint = completed(endpoint, result)
        await records.publish(endpoint, undo, conf.policy_timeout)
        undo.pop_all()
    status.write(conf.status_dir, workload, endpoint.spec)
    log.info("ADD %s: %s", workload.title, ", ".join(map(str, ips)))
    if pod is not None:
        for line in disregarded(pod):
            log.warning("%s: %s", pod.title, line)
    return result


def completed(endpoint: WorkloadEndpoint, result: Result) -> WorkloadEndpoint:
    """The endpoint with what is known once the container is joined to its node."""
    host, inside = result.interfaces
    spec = msgspec.structs.replace(endpoint.spec, interface_name=host.name, mac=inside.mac)
    return msgspec.structs.replace(endpoint, spec=spec)


def _endpoint(
    workload: Workload, call: Call, pod: Pod | None, ips: tuple[IP, ...], nats: tuple[IPNAT, ...]
) -> WorkloadEndpoint:
    """As the pod says, or for a configuration without Kubernetes policy as the network does."""
    if pod is not None:
        endpoint = endpoint_of_pod(
            pod,
            node=workload.node,
            container_id=call.container_id,
            interface=workload.interface,
            mac="",
            ips=ips,
            nats=nats,
        )
        metadata = msgspec.structs.replace(endpoint.metadata, annotations={NETWORK: call.network})
        return msgspec.structs.replace(endpoint, metadata=metadata)
    return WorkloadEndpoint(
        metadata=Metadata(
            name=workload.endpoint_name,
            namespace=workload.namespace,
            labels={NAMESPACE: workload.namespace, ORCHESTRATOR: POD},
            annotations={NETWORK: call.network},
        ),
        spec=WorkloadEndpointSpec(
            orchestrator=POD,
            node=workload.node,
            container_id=call.container_id,
            pod=workload.name,
            endpoint=workload.endpoint,
            ip_networks=tuple(f"{ip}/{ip.max_prefixlen}" for ip in ips),
            profiles=(call.network,),
            interface_name=workload.interface,
        ),
    )
