"""The node's own entry in the datastore: Node (projectcalico.org/v3) with the addresses that BGP speaks from."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import ip_interface

import msgspec

from tortie.base.errors import ConfigError, Conflict, Exists, NotFound, Unavailable
from tortie.model.meta import Metadata
from tortie.model.node import Node, NodeBGPSpec, NodeSpec, OrchRef
from tortie.model.store import Store

log = logging.getLogger(__name__)

ATTEMPTS = 20
RETRY = 0.5


def registered(old: Node | None, name: str, ipv4: str, ipv6: str) -> Node:
    """The Node as it should be: what is told here wins, everything else stays. Raises ConfigError."""
    for text, version in ((ipv4, 4), (ipv6, 6)):
        if text and ip_interface_version(text) != version:
            raise ConfigError(f'"{text}" is not an IPv{version} address with its prefix length', f"--ipv{version}")
    node = old or Node(metadata=Metadata(name=name, labels={"kubernetes.io/hostname": name}))
    bgp = node.spec.bgp or NodeBGPSpec()
    bgp = msgspec.structs.replace(bgp, ipv4_address=ipv4 or bgp.ipv4_address, ipv6_address=ipv6 or bgp.ipv6_address)
    spec = msgspec.structs.replace(
        node.spec,
        bgp=bgp if bgp != NodeBGPSpec() else None,
        orch_refs=node.spec.orch_refs or (OrchRef(node_name=name, orchestrator="k8s"),),
    )
    assert isinstance(spec, NodeSpec)
    return msgspec.structs.replace(node, spec=spec)


def ip_interface_version(text: str) -> int | None:
    try:
        return ip_interface(text).version
    except ValueError:
        return None


async def register(store: Store, name: str, ipv4: str, ipv6: str) -> Node:
    """Write it, however often others write it at the same time. Raises ConfigError, Unavailable."""
    for _ in range(ATTEMPTS):
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
            log.warning("register node %s: %s; trying again", name, error)
            await asyncio.sleep(RETRY)
    raise Unavailable(f"register node {name}: the datastore was busy or away for {ATTEMPTS} attempts")
