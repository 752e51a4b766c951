"""Where a container's addresses come from: IPAM of ours, the plugin that `ipam.type` names, or the pod itself.

Each way answers as an IPAM plugin does: addresses with their blocks' prefix lengths, and routes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from contextlib import AsyncExitStack

from tortie.agent.cni import delegate
from tortie.agent.cni.records import Records
from tortie.agent.cni.undo import on_failure
from tortie.agent.cni.wishes import Wishes
from tortie.agent.holdings import Holdings
from tortie.agent.netconf import NetConf
from tortie.base.addr import IP, parse_ip
from tortie.base.errors import NotFound
from tortie.cni.result import Address, Result, Route
from tortie.cni.spec import Call
from tortie.ipam import fill


def of_ipam(got: Iterable[fill.Interface], routed: bool = True) -> Result:
    """What the plugin `calico-ipam` answers: with each address a route of its block's length, which tells of IPAM and
    is not programmed; none with what is not `routed` to this node yet."""
    texts = [str(each) for each in got]
    return Result(ips=tuple(map(Address, texts)), routes=tuple(map(Route, texts)) if routed else ())


def ips_of(result: Result) -> tuple[IP, ...]:
    return tuple(parse_ip(one.address.partition("/")[0]) for one in result.ips)


async def take(
    records: Records, holdings: Holdings, call: Call, wanted: Wishes, undo: AsyncExitStack, endpoint: str
) -> Result:
    """Assign what is wanted; given back when the call fails later. `endpoint` is the name of the one to be.

    Raises ConfigError, NotFound, Exists, Unavailable, CniError.
    """
    conf = wanted.conf
    if wanted.given:
        return Result(ips=tuple(Address(f"{ip}/{ip.max_prefixlen}") for ip in wanted.given))
    if not conf.assigns:
        result = await delegate.assign(records.store, records.node, call, conf)
        on_failure(undo, delegate.release, records.store, records.node, call, conf)
        return result
    if wanted.fixed:
        # A pod that is attached again gets its address again, although its old container has not been taken away yet.
        old = await holdings.of_pod(conf, wanted.fixed)
        with contextlib.suppress(NotFound):
            old |= set((await records.endpoint(conf.namespace, endpoint)).spec.ips) & set(wanted.fixed)
        await holdings.free(old)
        got = await holdings.assign_these(call.container_id, conf, wanted.fixed)
    else:
        got = await holdings.take(call.container_id, conf, call.netns)
    on_failure(undo, holdings.give_back, call.container_id, conf, tuple(each.ip for each in got))
    return of_ipam(got, await holdings.routed(conf))


async def give_back(records: Records, holdings: Holdings, call: Call, conf: NetConf) -> None:
    """Everything that the container holds; nothing is fine. Raises Unavailable, Conflict, CniError."""
    if conf.assigns:
        await holdings.release(call.container_id, conf)
    else:
        await delegate.release(records.store, records.node, call, conf)
