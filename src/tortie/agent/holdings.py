"""The addresses that containers of this node hold in IPAM, by handle: `<network>.<container id>`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_interface
from pathlib import Path

from tortie.agent.netconf import NetConf
from tortie.agent.pending import LONGEST_NAME, Pending
from tortie.agent.stock import Stock
from tortie.agent.upgrade import AffinityLabels
from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError, NotFound, Unavailable
from tortie.ipam.assign import Ipam
from tortie.ipam.block import Release
from tortie.ipam.fill import Interface
from tortie.ipam.handover import Transfer
from tortie.ipam.vm import LAUNCHER, VmAddresses, Wanted
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

    def __init__(self, node: str, store: Store, ipam: Ipam, stock: Stock, pending: Pending, marker: Path) -> None:
        self.node = node
        self.pending = pending
        self._store = store
        self._ipam = ipam
        self._stock = stock
        self._labels = AffinityLabels(ipam, marker)
        self._machines = VmAddresses(store, ipam)

    async def take(self, container_id: str, conf: NetConf, netns: str) -> tuple[Interface, ...]:
        """The same as `assign`, from what is held ready if it can be: then it is a promise of `pending`'s, which is
        noted with the endpoint. Raises what `assign` raises."""
        await self.pending.settled(container_id)  # of the same id before, whose DEL never came or failed
        if (left := self.pending.forget(container_id)) is not None:
            self._stock.put_back(left.addresses)
        if ordinary(container_id, conf):
            versions = [version for version, wanted in ((4, conf.ipv4), (6, conf.ipv6)) if wanted]
            choices = self._stock.choices(conf.namespace, versions)
            got = await self._stock.take(choices) if choices else None
            if got is not None:
                transfer = Transfer(got, handle_of(conf.network, container_id), self._attributes(conf))
                try:
                    self.pending.promise(container_id, transfer, netns)
                except Unavailable:
                    self._stock.put_back(got)
                    raise
                return got
        return await self.assign(container_id, conf)

    async def assign(self, container_id: str, conf: NetConf) -> tuple[Interface, ...]:
        """All the addresses that the configuration wants, IPv4 first, with their blocks' prefix lengths; or none.

        Raises ConfigError when it wants none or no pool can serve it, NotFound, Unavailable when there are none left,
        Exists when the one that is asked for is taken.
        """
        launcher = await self._machines.launcher(conf.namespace, conf.pod) if conf.reads_pod else None
        if conf.ip and launcher is None:
            await self._labels.ensure()
            return await self.assign_these(container_id, conf, (parse_ip(conf.ip),))
        if not conf.ipv4 and not conf.ipv6:
            raise ConfigError("no address is wanted: one of assign_ipv4 and assign_ipv6 must be on", "ipam")
        labels = None
        if conf.reads_namespace:
            labels = (await self._store.get(Namespace, conf.namespace)).labels
        handle, attributes = handle_of(conf.network, container_id), self._attributes(conf)
        if launcher is not None:
            wanted = Wanted(conf.ipv4, conf.ipv6, conf.pools4, conf.pools6, labels)
            return await self._machines.assign(launcher, conf.network, attributes, wanted)
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
                handle, attributes = handle_of(conf.network, container_id), self._attributes(conf)
                if (ready := self._stock.pick(ip)) is not None:
                    await self._ipam.hand_over(self._stock.handle, [Transfer((ready,), handle, attributes)])
                else:
                    await self._ipam.assign_ip(ip, handle=handle, attrs=attributes, use="Workload")
                got.append(ip)
        except BaseException:
            await self.give_back(container_id, conf, got)
            raise
        return tuple(ip_interface(ip) for ip in got)

    async def of_pod(self, conf: NetConf, ips: Iterable[IP]) -> set[IP]:
        """Those of the addresses that a container of this very pod holds, by what is noted beside them."""
        found: set[IP] = set()
        for ip in ips:
            with contextlib.suppress(NotFound, Unavailable):  # free, or cooling down
                who = (await self._ipam.attributes_of(ip)).secondary
                if (who.get("namespace"), who.get("pod")) == (conf.namespace, conf.pod):
                    found.add(ip)
        return found

    async def free(self, ips: Iterable[IP]) -> None:
        """These addresses, whoever holds them. Raises Unavailable, Conflict."""
        released = await self._ipam.release_ips([Release(ip) for ip in ips])
        if released.error is not None:
            raise released.error

    def _attributes(self, conf: NetConf) -> dict[str, str]:
        """What is written beside an address about who has it."""
        who = {"node": self.node, "timestamp": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f} +0000 UTC"}
        if conf.reads_namespace:  # else nobody could ask whether the pod is still there
            who |= {"pod": conf.pod, "namespace": conf.namespace}
        return who

    async def give_back(self, container_id: str, conf: NetConf, ips: Iterable[IP]) -> None:
        """These addresses, and not what the container holds besides. Raises Unavailable, Conflict."""
        if (promised := self.pending.forget(container_id)) is not None:
            self._stock.put_back(promised.addresses)
            return
        if conf.reads_pod and await self._machines.release(conf.network, conf.namespace, conf.pod):
            return
        handle = handle_of(conf.network, container_id)
        released = await self._ipam.release_ips([Release(ip, handle) for ip in ips])
        if released.error is not None:
            raise released.error

    async def release(self, container_id: str, conf: NetConf) -> None:
        """Everything that the container holds; nothing is fine. Raises Unavailable, Conflict."""
        # Besides what it is promised it may hold what an ADD that was cut short has left it.
        self.forget(container_id)
        if conf.reads_pod and await self._machines.release(conf.network, conf.namespace, conf.pod):
            return
        for handle in handles_of(container_id, conf):
            await self.release_handle(handle)

    def forget(self, container_id: str) -> None:
        """What the container is only promised goes back to the stock, which gives it back in its time."""
        if (promised := self.pending.forget(container_id)) is not None:
            self._stock.put_back(promised.addresses)

    async def release_handle(self, handle: str) -> None:
        await self.pending.handle_settled(handle)
        with contextlib.suppress(NotFound):
            await self._ipam.release_by_handle(handle)

    async def held_by(self, container_id: str, conf: NetConf) -> tuple[IP, ...]:
        await self.pending.settled(container_id)
        launcher = await self._machines.launcher(conf.namespace, conf.pod) if conf.reads_pod else None
        handle = launcher.handle(conf.network) if launcher else handle_of(conf.network, container_id)
        with contextlib.suppress(NotFound):
            return await self._ipam.ips_by_handle(handle)
        return ()

    async def routed(self, conf: NetConf) -> bool:
        """Whether packets to what a pod gets are for this node yet: not while its virtual machine is elsewhere."""
        launcher = await self._machines.launcher(conf.namespace, conf.pod) if conf.reads_pod else None
        return launcher is None or not launcher.migration

    async def everything(self) -> set[Holding]:
        """What was assigned by this node and is still held."""
        await self.pending.all_settled()
        found: set[Holding] = set()
        for block in (await self._store.list(IPAMBlock)).items:
            for attribute in block.spec.attributes:
                who = attribute.secondary
                if attribute.handle_id and who.get("node") == self.node and not attribute.released_at:
                    found.add(Holding(attribute.handle_id, who.get("namespace", ""), who.get("pod", "")))
        return found


def ordinary(container_id: str, conf: NetConf) -> bool:
    """Whether any address of the pools that select a pod will do, and everything about the pod is ours to do."""
    special = conf.ip or conf.pools4 or conf.pools6 or conf.dataplane is not None or not conf.reads_pod
    return not special and (conf.ipv4 or conf.ipv6) and len(container_id) <= LONGEST_NAME and not machine(conf.pod)


def machine(pod: str) -> bool:
    """Whether a pod runs a virtual machine, whose addresses outlive it, by the name that KubeVirt gives it."""
    return pod.startswith(LAUNCHER)


def handles_of(container_id: str, conf: NetConf) -> tuple[str, str]:
    """All the names under which a container may hold something: ours, and that of old versions of Calico."""
    old = f"{conf.namespace}.{conf.pod}" if conf.pod and conf.namespace else container_id
    return handle_of(conf.network, container_id), old


def handle_of(network: str, container_id: str) -> str:
    """The name under which a container's addresses are held."""
    return f"{network}.{container_id}"
