"""The node's own entry in the datastore: Node (projectcalico.org/v3) with the addresses that BGP speaks from."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_interface

import msgspec

from tortie.base.errors import ConfigError, Conflict, NotFound, TortieError, Unavailable
from tortie.base.logs import Seldom
from tortie.calc.node_addresses import Family, Sight, Told, conflict, family, recorded
from tortie.calc.versions import CALICO_VERSION, raised
from tortie.model.document import problems
from tortie.model.meta import Metadata
from tortie.model.node import ClusterInformation, Node, NodeBGPSpec, NodeInterface, OrchRef
from tortie.model.store import Store

log = logging.getLogger(__name__)

RETRY = 0.5
MAX_LABEL_VALUE = 63
KUBERNETES = "k8s"
"""The orchestrator's name in an OrchRef."""


class StartUpError(TortieError):
    """This node cannot start as it is told, or as it finds its machine. Exit status 1, as Calico's start-up has it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look at the machine says of its node. `interfaces` None: they are not noted."""

    ipv4: Family = field(default_factory=lambda: Family(4))
    ipv6: Family = field(default_factory=lambda: Family(6))
    interfaces: tuple[NodeInterface, ...] | None = None

    @property
    def families(self) -> tuple[Family, Family]:
        return self.ipv4, self.ipv6

    @property
    def failure(self) -> str:
        """Why the node cannot have these; "" if it can."""
        failed = next((family.failure for family in self.families if family.failure), "")
        if failed or self.ipv4.address or self.ipv6.address:
            return failed
        return "no IPv4 or IPv6 addresses configured or detected, required for Calico networking"


def finding(told: tuple[Told, Told], old: Node | None, sights: tuple[Sight, Sight]) -> Finding:
    """Of the machine that is seen; what is told, and the sights, are of IPv4, then IPv6."""
    (kept4, kept6), (sight4, sight6) = addresses(old), sights
    interfaces = tuple(NodeInterface(name=name, addresses=own) for name, own in recorded(sight4.links))
    return Finding(
        family(4, told[0], kept4, sight4),
        family(6, told[1], kept6, sight6),
        interfaces if any(one.recorded for one in told) else None,
    )


def addresses(node: Node | None) -> tuple[str, str]:
    """What a Node says of its own addresses, IPv4 and IPv6, with their prefix lengths."""
    bgp = node.spec.bgp if node is not None else None
    return (bgp.ipv4_address, bgp.ipv6_address) if bgp is not None else ("", "")


def conflict_with(found: Finding, others: Iterable[Node]) -> tuple[int, str] | None:
    """The IP version, and the name of another node that has an address of ours."""
    ipv4, ipv6 = (one.address for one in found.families)
    return conflict(ipv4, ipv6, ((node.name, *addresses(node)) for node in others))


def is_news(found: Finding, old: Node | None) -> bool:
    """Whether addresses, or the interfaces that are noted, are others than the Node's."""
    if (found.ipv4.address, found.ipv6.address) != addresses(old):
        return True
    return found.interfaces is not None and (old is None or old.spec.interfaces != found.interfaces)


def without(node: Node, versions: Iterable[int]) -> Node:
    """The Node without its addresses of these IP versions."""
    cleared = {f"ipv{version}_address": "" for version in versions}
    bgp = msgspec.structs.replace(node.spec.bgp or NodeBGPSpec(), **cleared)
    spec = msgspec.structs.replace(node.spec, bgp=bgp if bgp != NodeBGPSpec() else None)
    return msgspec.structs.replace(node, spec=spec)


def registered(
    old: Node | None,
    name: str,
    ipv4: str,
    ipv6: str,
    *,
    as_number: int | str | None = None,
    kubernetes_node: str = "",
    interfaces: tuple[NodeInterface, ...] | None = None,
) -> Node:
    """The Node as it should be: what is told here wins, everything else stays. Raises ConfigError."""
    for text, version in ((ipv4, 4), (ipv6, 6)):
        if text and ip_interface_version(text) != version:
            raise ConfigError(f'"{text}" is not an IPv{version} address with its prefix length', f"--ipv{version}")
    # As the kubelet does; the value of a label is shorter than a name may be.
    labels = {"kubernetes.io/hostname": name} if len(name) <= MAX_LABEL_VALUE else {}
    node = old or Node(metadata=Metadata(name=name, labels=labels))
    bgp = node.spec.bgp or NodeBGPSpec()
    bgp = msgspec.structs.replace(
        bgp,
        ipv4_address=ipv4 or bgp.ipv4_address,
        ipv6_address=ipv6 or bgp.ipv6_address,
        as_number=bgp.as_number if as_number is None else as_number,
    )
    spec = msgspec.structs.replace(
        node.spec,
        bgp=bgp if bgp != NodeBGPSpec() else None,
        orch_refs=_orch_refs(node.spec.orch_refs, kubernetes_node, name),
        interfaces=node.spec.interfaces if interfaces is None else interfaces,
    )
    new = msgspec.structs.replace(node, spec=spec)
    if old is None:
        for path, problem in problems(new):
            raise ConfigError(problem, "--node" if path == "metadata.name" else path)
    return new


def _orch_refs(old: tuple[OrchRef, ...], told: str, name: str) -> tuple[OrchRef, ...]:
    """The name of the node in Kubernetes: the one that is told, else the one that is there, else the node's own."""
    if not told and old:
        return old
    others = (ref for ref in old if ref.orchestrator != KUBERNETES)
    return (*others, OrchRef(node_name=told or name, orchestrator=KUBERNETES))


def ip_interface_version(text: str) -> int | None:
    """4, 6, or None for what is not an address with its prefix length."""
    try:
        return ip_interface(text).version if "/" in text else None
    except ValueError:
        return None


UNAUTHORIZED = "connection is unauthorized"
"""How a datastore says that it does not know us: waiting does not help."""


def hopeless(error: Unavailable, waits: bool) -> bool:
    """Whether there is no use in waiting for a datastore, as `WAIT_FOR_DATASTORE` has it.

    >>> hopeless(Unavailable("connection is unauthorized: Unauthorized"), waits=True)
    True
    """
    return not waits or UNAUTHORIZED in str(error)


async def ready(store: Store, hopeless: Callable[[Unavailable], bool] = lambda error: False) -> bool:
    """Until the datastore may be used: not while it is empty, or being migrated. What is in the kernel stays.

    The answer is whether that took a while. A cluster of an older version is told that it has a newer node. Raises
    StartUpError for what is `hopeless`.
    """
    complain, waited = Seldom(log), False
    while True:
        try:
            await demand_ready(store)
            await raise_version(store)
            return waited
        except Unavailable as error:
            if hopeless(error):
                raise StartUpError(f"the datastore cannot be used: {error}") from None
            complain.warning(f"waiting for the datastore: {error}")
            waited = True
            await asyncio.sleep(RETRY)


async def raise_version(store: Store) -> None:
    """Notes our version where an older one is noted. Raises Unavailable."""
    newer = raised(CALICO_VERSION, await store.get(ClusterInformation, "default"))
    if newer is not None:
        with suppress(Conflict):  # another node says the same, or somebody locks: next time
            await store.update(newer)
            log.info("the cluster's version is %s now", CALICO_VERSION)


async def demand_ready(store: Store) -> None:
    """Raises Unavailable while nobody may write to the datastore."""
    try:
        demand_ready_in(await store.get(ClusterInformation, "default"))
    except NotFound:
        demand_ready_in(None)


def demand_ready_in(information: ClusterInformation | None) -> None:
    """Raises Unavailable when this says, or its absence, that nobody may write to the datastore."""
    if information is None:
        raise Unavailable("it has no ClusterInformation default: no cluster has been set up in it")
    if not information.spec.datastore_ready:
        raise Unavailable("Calico is currently not ready to process requests")
