"""DEL: WorkloadEndpoint (unless another container has it) ─► link ─► addresses.

In this order, so that no address is free for another while its interface is still there. What fails is returned, and
nothing after it is touched: the runtime says DEL again. A datastore that is away fails nothing: it is told later
(`departures`).
"""

from __future__ import annotations

import asyncio
import logging

from tortie.agent.cni import status
from tortie.agent.cni.addresses import give_back
from tortie.agent.cni.identity import workload_of
from tortie.agent.cni.joint import separate
from tortie.agent.cni.records import Records
from tortie.agent.departures import Departure
from tortie.agent.holdings import Holdings, handles_of, machine
from tortie.agent.netconf import NetConf
from tortie.agent.pending import LONGEST_NAME
from tortie.base.errors import Unavailable
from tortie.cni.spec import Call

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that DEL tries to tell the datastore: a runtime waits longer, but not for ever."""


async def delete(records: Records, holdings: Holdings, call: Call, conf: NetConf) -> None:
    """Of a Kubernetes pod. Success whenever nothing of this container is left, however much was there."""
    workload = workload_of(records.node, call, conf)
    await records.writable()
    try:
        if records.away:
            raise Unavailable(records.away)
        async with asyncio.timeout(PATIENCE):
            await _delete(records, holdings, call, conf)
    except (Unavailable, TimeoutError) as error:
        if not _may_leave(records, call, conf):
            raise Unavailable(str(error) or f"the datastore has not answered within {PATIENCE:g} s") from None
        await _leave(records, holdings, call, conf)
        log.info("DEL %s: the datastore is told later: %s", workload.title, str(error) or "it is slow")
    else:
        log.info("DEL %s", workload.title)


async def _delete(records: Records, holdings: Holdings, call: Call, conf: NetConf) -> None:
    workload = workload_of(records.node, call, conf)
    # A pod has one link. When the endpoint is another container's, so is the link: attaching that one replaced it.
    last = await records.delete(workload.namespace, workload.endpoint_name, call.container_id)
    if last:
        status.remove(conf.status_dir, workload)
    await separate(records.links_gone, call, conf, workload.interface if last else "")
    await give_back(records, holdings, call, conf)


def _may_leave(records: Records, call: Call, conf: NetConf) -> bool:
    """Whether what is to be told can be told later: the addresses are IPAM's, and whose the endpoint is, is known."""
    known = records.departures is not None and records.view.in_sync.is_set()
    return known and conf.assigns and not machine(conf.pod) and len(call.container_id) <= LONGEST_NAME


async def _leave(records: Records, holdings: Holdings, call: Call, conf: NetConf) -> None:
    """What `_delete` does, as far as it can be done here; the rest is noted."""
    assert records.departures is not None
    workload = workload_of(records.node, call, conf)
    namespace, name = workload.namespace, workload.endpoint_name
    endpoint = records.view.cluster.endpoint((namespace, name))
    last = endpoint is None or endpoint.spec.container_id in ("", call.container_id)
    records.pending.withdraw(call.container_id, name)
    records.departures.note(Departure(call.container_id, namespace, name, handles_of(call.container_id, conf)))
    if last:
        status.remove(conf.status_dir, workload)
    await separate(records.links_gone, call, conf, workload.interface if last else "")
    holdings.forget(call.container_id)
