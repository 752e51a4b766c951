"""The node's own entry in the datastore: Node (projectcalico.org/v3) with the addresses that BGP speaks from."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import ip_interface

import msgspec

from tortie.agent.logs import Seldom
from tortie.base.errors import ConfigError, Conflict, Exists, NotFound, Unavailable
from tortie.model.document import problems
from tortie.model.meta import Metadata
from tortie.model.node import ClusterInformation, Node, NodeBGPSpec, NodeSpec, OrchRef
from tortie.model.store import Store

log = logging.getLogger(__name__)

RETRY = 0.5
MAX_LABEL_VALUE = 63


def registered(old: Node | None, name: str, ipv4: str, ipv6: str) -> Node:
    """The Node as it should be: what is told here wins, everything else stays. Raises ConfigError."""
    for text, version in ((ipv4, 4), (ipv6, 6)):
        if text and ip_interface_version(text) != version:
            raise ConfigError(f'"{text}" is not an IPv{version} address with its prefix length', f"--ipv{version}")
    # As the kubelet does; the value of a label is shorter than a name may be.
    labels = {"kubernetes.io/hostname": name} if len(name) <= MAX_LABEL_VALUE else {}
    node = old or Node(metadata=Metadata(name=name, labels=labels))
    bgp = node.spec.bgp or NodeBGPSpec()
    bgp = msgspec.structs.replace(bgp, ipv4_address=ipv4 or bgp.ipv4_address, ipv6_address=ipv6 or bgp.ipv6_address)
    spec = msgspec.structs.replace(
        node.spec,
        bgp=bgp if bgp != NodeBGPSpec() else None,
        orch_refs=node.spec.orch_refs or (OrchRef(node_name=name, orchestrator="k8s"),),
    )
    assert isinstance(spec, NodeSpec)
    new = msgspec.structs.replace(node, spec=spec)
    if old is None:
        for path, problem in problems(new):
            raise ConfigError(problem, "--node" if path == "metadata.name" else path)
    return new


def ip_interface_version(text: str) -> int | None:
    """4, 6, or None for what is not an address with its prefix length."""
    try:
        return ip_interface(text).version if "/" in text else None
    except ValueError:
        return None


async def ready(store: Store) -> None:
    """Until the datastore may be used: not while it is empty, or being migrated. What is in the kernel stays."""
    complain = Seldom(log)
    while True:
        try:
            await demand_ready(store)
            return
        except Unavailable as error:
            complain.warning(f"waiting for the datastore: {error}")
            await asyncio.sleep(RETRY)


async def demand_ready(store: Store) -> None:
    """Raises Unavailable while nobody may write to the datastore."""
    try:
        information = await store.get(ClusterInformation, "default")
    except NotFound:
        raise Unavailable("it has no ClusterInformation default: no cluster has been set up in it") from None
    if not information.spec.datastore_ready:
        raise Unavailable("Calico is currently not ready to process requests")


async def register(store: Store, name: str, ipv4: str, ipv6: str) -> Node:
    """Write it, however often others write it at the same time and however long the datastore is away.

    Raises ConfigError.
    """
    complain = Seldom(log)
    while True:
        try:
            try:
                old = await store.get(Node, name)
            except NotFound:
                return await store.create(registered(None, name, ipv4, ipv6))
            new = registered(old, name, ipv4, ipv6)
            return old if new == old else await store.update(new)
        except (Conflict, Exists, NotFound):
            continue
        except Unavailable as error:
            complain.warning(f"register node {name}: {error}; trying again")
            await asyncio.sleep(RETRY)
