"""Addresses from another plugin: the executable that `ipam.type` names, found where the runtime says (CNI_PATH).

It is run by the agent, in the node's network namespace, with the whole configuration; its errors are passed on as they
are. `host-local` gets the node's pod CIDRs put in (hostlocal.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tortie.agent.cni.hostlocal import ANYTHING, custom_routes, pod_cidrs, wants_pod_cidrs, with_pod_cidrs
from tortie.agent.netconf import HOST_LOCAL, NetConf
from tortie.base.addr import Net
from tortie.base.errors import ConfigError, NotFound
from tortie.cni.cache import Attachment
from tortie.cni.result import Result
from tortie.cni.runtime import Runtime
from tortie.cni.spec import Call, CniError, Code, read_json
from tortie.dataplane.attachment import EVERYWHERE
from tortie.model.k8s import K8sNode
from tortie.model.store import Store

TIMEOUT = 60.0
"""Seconds that the plugin may take: less than the runtime's patience with us."""


async def assign(store: Store, node: str, call: Call, conf: NetConf) -> Result:
    """What the plugin answers to ADD. Raises CniError, also when that is no address, ConfigError, Unavailable."""
    document = await _document(store, node, call, conf)
    answer = await _run("ADD", document, call, conf)
    try:
        result = Result.load(read_json(answer), call.cni_version)
        if not result.ips:
            raise CniError(Code.INTERNAL, f"IPAM plugin {conf.ipam_type} returned no IP addresses")
        return result
    except (ValueError, CniError) as error:
        await _run("DEL", document, call, conf)
        if isinstance(error, CniError):
            raise
        raise CniError(Code.DECODING_FAILURE, f"cannot decode the result of {conf.ipam_type}: {error}") from None


async def release(store: Store, node: str, call: Call, conf: NetConf) -> None:
    """Raises what the plugin answers to DEL."""
    try:
        document = await _document(store, node, call, conf)
    except (NotFound, ConfigError):  # the node has gone, or changed
        document = with_pod_cidrs(call.conf, ANYTHING)
    await _run("DEL", document, call, conf)


async def ask(store: Store, node: str, call: Call, conf: NetConf) -> None:
    """CHECK, STATUS or GC, as the call says. Raises the plugin's error."""
    await _run(call.command, await _document(store, node, call, conf), call, conf)


def pod_routes(call: Call, conf: NetConf) -> tuple[Net, ...]:
    """Where the pod's routes lead: what host-local is told, else everywhere. Raises ConfigError."""
    custom = custom_routes(call.conf) if conf.ipam_type == HOST_LOCAL else ()
    if not custom:
        return EVERYWHERE
    return tuple(dict.fromkeys((*EVERYWHERE, *custom) if conf.include_default_routes else custom))


async def _document(store: Store, node: str, call: Call, conf: NetConf) -> dict[str, Any]:
    """The configuration as the plugin is to read it."""
    if conf.ipam_type != HOST_LOCAL or not wants_pod_cidrs(call.conf):
        return dict(call.conf)
    name = conf.kubernetes_node or node
    try:
        found = await store.get(K8sNode, name)
    except NotFound:
        raise NotFound(f"Node {name} is not in the datastore: its pod CIDR is not known") from None
    return with_pod_cidrs(call.conf, pod_cidrs(found))


async def _run(command: str, document: Mapping[str, Any], call: Call, conf: NetConf) -> bytes:
    args = {"IgnoreUnknown": "1", **call.args}
    whose = None
    if call.container_id:
        whose = Attachment(call.network, call.container_id, call.ifname, call.netns, args)
    return await Runtime(call.path, timeout=TIMEOUT).run(command, conf.ipam_type, document, whose)
