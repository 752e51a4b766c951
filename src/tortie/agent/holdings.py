"""The addresses that containers of this node hold in IPAM, by handle: `<network>.<container id>`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_interface

from tortie.agent.netconf import NetConf
from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError, NotFound
from tortie.ipam.assign import Ipam
from tortie.ipam.block import Release
from tortie.ipam.fill import Interface
from tortie.model.ipam import IPAMBlock
from tortie.model.k8s import Namespace
from tortie.model.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Holding:
    """A handle that holds something on this node, and the pod that it is for, "" where that is not known."""

    handle: str
    namespace: str
    pod: str


class Holdings:
    """Assign, release, look up."""

    def __init__(self, node: str, store: Store, ipam: Ipam) -> None:
        self.node = node
        self._store = store
        self._ipam = ipam

    async def assign(self, container_id: str, conf: NetConf) -> tuple[Interface, ...]:
        """All the addresses that the configuration wants, IPv4 first, with their blocks' prefix lengths; or none.

        Raises ConfigError when it wants none or no pool can serve it, NotFound, Unavailable when there are none left,
        Exists when the one that is asked for is taken.
        """
        if conf.ip:
            return await self.assign_these(container_id, conf, (parse_ip(conf.ip),))
        if not conf.ipv4 and not conf.ipv6:
            raise ConfigError("no address is wanted: one of assign_ipv4 and assign_ipv6 must be on", "ipam")
        labels = None
        if conf.pod and conf.namespace:
            labels = (await self._store.get(Namespace, conf.namespace)).labels
        handle, attributes = handle_of(conf.network, container_id), self._attributes(conf)
        got = await self._ipam.auto_assign(
            int(conf.ipv4),
            int(conf.ipv6),
            handle=handle,
            attrs=attributes,
            pools4=conf.pools4,
            pools6=conf.pools6,
            namespace_labels=labels,
        )
        return await self._ipam.all_or_nothing(got)

    async def assign_these(self, container_id: str, conf: NetConf, ips: Iterable[IP]) -> tuple[Interface, ...]:
        """These very addresses, all or none. Raises ConfigError outside all pools, Exists for one that is taken."""
        got: list[IP] = []
        try:
            for ip in ips:
                handle = handle_of(conf.network, container_id)
                await self._ipam.assign_ip(ip, handle=handle, attrs=self._attributes(conf), use="Workload")
                got.append(ip)
        except BaseException:
            await self.give_back(container_id, conf, got)
            raise
        return tuple(ip_interface(ip) for ip in got)

    async def free(self, ips: Iterable[IP]) -> None:
        """These addresses, whoever holds them. Raises Unavailable, Conflict."""
        released = await self._ipam.release_ips([Release(ip) for ip in ips])
        if released.error is not None:
            raise released.error

    def _attributes(self, conf: NetConf) -> dict[str, str]:
        """What is written beside an address about who has it."""
        who = {"node": self.node, "timestamp": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f} +0000 UTC"}
        if conf.pod and conf.namespace:
            who |= {"pod": conf.pod, "namespace": conf.namespace}
        return who

    async def give_back(self, container_id: str, conf: NetConf, ips: Iterable[IP]) -> None:
        """These addresses, and not what the container holds besides. Raises Unavailable, Conflict."""
        handle = handle_of(conf.network, container_id)
        released = await self._ipam.release_ips([Release(ip, handle) for ip in ips])
        if released.error is not None:
            raise released.error

    async def release(self, container_id: str, conf: NetConf) -> None:
        """Everything that the container holds; nothing is fine. Raises Unavailable, Conflict."""
        await self.release_handle(handle_of(conf.network, container_id))
        # As old versions of Calico named it.
        await self.release_handle(f"{conf.namespace}.{conf.pod}" if conf.pod and conf.namespace else container_id)

    async def release_handle(self, handle: str) -> None:
        with contextlib.suppress(NotFound):
            await self._ipam.release_by_handle(handle)

    async def held_by(self, container_id: str, conf: NetConf) -> tuple[IP, ...]:
        with contextlib.suppress(NotFound):
            return await self._ipam.ips_by_handle(handle_of(conf.network, container_id))
        return ()

    async def everything(self) -> set[Holding]:
        """What was assigned by this node and is still held."""
        found: set[Holding] = set()
        for block in (await self._store.list(IPAMBlock)).items:
            for attribute in block.spec.attributes:
                who = attribute.secondary
                if attribute.handle_id and who.get("node") == self.node and not attribute.released_at:
                    found.add(Holding(attribute.handle_id, who.get("namespace", ""), who.get("pod", "")))
        return found


def handle_of(network: str, container_id: str) -> str:
    """The name under which a container's addresses are held."""
    return f"{network}.{container_id}"
