"""Addresses for Services of type LoadBalancer, from the pools whose use that is; BGP announces them.

    Service, pools, what IPAM holds for it ─► decide: keep, release, assign
    status tells what is kept ─► release ─► assign ─► status.loadBalancer.ingress tells what there is

Source: Calico's loadbalancer controller in kube-controllers. Which services are ours: `controllers.loadBalancer
.assignIPs` and the service's class. A service asks for pools or for addresses by annotations; `spec.loadBalancerIP` is
heard where there are none. Each service is served on its own: one that asks for nonsense keeps no other waiting.

What differs: a service that wants both families and has one gets the other. One that can have no address is told so in
its status, by a condition, and is looked at again when pools change, an address is given back, or after a while.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError, Conflict, NotFound, TortieError, Unavailable
from tortie.controllers.backoff import Backoff, at_once
from tortie.controllers.configuration import LOAD_BALANCER, Configured, Settings, locked
from tortie.controllers.unreadable import Unreadable
from tortie.ipam.allocation import Allocation, allocations
from tortie.ipam.assign import Ipam
from tortie.ipam.pools import Matches, pool_of
from tortie.model.conditions import conditions, with_conditions
from tortie.model.ipam import IPAMBlock, IPPool
from tortie.model.service import Service
from tortie.model.store import Store

log = logging.getLogger(__name__)

OWNER = "load-balancer"
CLASS = "calico"
POOLS = {4: "projectcalico.org/ipv4pools", 6: "projectcalico.org/ipv6pools"}
ADDRESSES = "projectcalico.org/loadBalancerIPs"
ANNOTATIONS = (*POOLS.values(), ADDRESSES)
FAMILIES = {"IPv4": 4, "IPv6": 6}
HANDLE_LIMIT = 253
ASSIGNED = "tortie.dev/AddressAssigned"
"""The condition, with status False, of a service that cannot have what it asks for."""


@dataclass(frozen=True)
class Wish:
    """What a service asks for: IP versions, pools of each (names or CIDRs; none: any automatic one), or addresses."""

    versions: tuple[int, ...]
    pools: Mapping[int, tuple[str, ...]]
    addresses: tuple[IP, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What is to be given back, kept, and assigned: addresses by name, and one of pools (CIDRs) by IP version. `ours`:
    the service's status is this controller's to write."""

    release: tuple[Allocation, ...] = ()
    keep: tuple[IP, ...] = ()
    assign: tuple[IP, ...] = ()
    pools: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    ours: bool = True

    def __str__(self) -> str:
        return "\n".join(
            (
                *(f"release {each}" for each in self.release),
                *(f"assign {ip}" for ip in self.assign),
                *(f"assign an IPv{version} address of {' or '.join(nets)}" for version, nets in self.pools.items()),
            )
        )


def handle_of(service: Service) -> str:
    """The handle of a service's addresses, as Calico names it."""
    named = f"{service.name}-{service.namespace}-{service.metadata.uid}".lower()
    digest = base64.urlsafe_b64encode(hashlib.sha256(named.encode()).digest()).decode()
    return ("lb-" + "".join(char for char in digest if char not in "-_.="))[:HANDLE_LIMIT]


def is_ours(service: Service, mode: str) -> bool:
    """Whether this controller gives the service its addresses."""
    spec = service.spec
    wanted_class = spec.load_balancer_class if isinstance(spec.load_balancer_class, str) else ""
    if spec.type != "LoadBalancer" or wanted_class not in ("", CLASS):
        return False
    asks = bool(spec.load_balancer_ip) or any(name in service.metadata.annotations for name in ANNOTATIONS)
    return mode == "AllServices" or wanted_class == CLASS or asks


def wish(service: Service) -> Wish:
    """Raises ConfigError naming the annotation or the field."""
    annotations = service.metadata.annotations
    texts = _list(annotations, ADDRESSES) if ADDRESSES in annotations else ()
    where = f"annotation {ADDRESSES}"
    if not texts and service.spec.load_balancer_ip:
        texts, where = (service.spec.load_balancer_ip,), "spec.loadBalancerIP"
    try:
        ips = tuple(map(parse_ip, texts))
    except ConfigError as error:
        raise error.within(service.title, where) from None
    if len({ip.version for ip in ips}) < len(ips):
        raise ConfigError("holds more than one address of an IP version", service.title, where)
    versions = tuple(FAMILIES[each] for each in service.spec.ip_families) or (4,)
    pools = {version: _list(annotations, name) for version, name in POOLS.items()}
    return Wish(versions, pools, ips)


def _list(annotations: Mapping[str, str], name: str) -> tuple[str, ...]:
    """An annotation that is a JSON list of strings; none is an empty one."""
    text = annotations.get(name, "")
    if not text:
        return ()
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ConfigError(f"{text!r} is not a JSON list of strings", f"annotation {name}")
    return tuple(found)


def eligible(pools: Iterable[IPPool], named: Sequence[str], version: int) -> tuple[IPPool, ...]:
    """The pools of an IP version that a service may have addresses of: those that it names, else the automatic ones."""
    return tuple(
        pool
        for pool in pools
        if "LoadBalancer" in pool.spec.uses and not pool.spec.disabled and pool.spec.version == version
        if ({pool.name, pool.spec.cidr} & set(named) if named else pool.spec.assignment_mode != "Manual")
    )


def decide(asked: Wish | None, held: Iterable[Allocation], pools: Sequence[IPPool]) -> Decision:
    """What a service holds against what it asks for; None: it is not ours, or no more."""
    held = tuple(held)
    if asked is None:
        return Decision(held, ours=False)
    usable = {version: eligible(pools, asked.pools[version], version) for version in asked.versions}

    def fits(ip: IP) -> bool:
        if asked.addresses:
            return ip in asked.addresses
        return pool_of(usable.get(ip.version, ()), ip) is not None

    keep: dict[int, IP] = {}
    release = []
    for each in held:
        if fits(each.ip) and each.ip.version not in keep:
            keep[each.ip.version] = each.ip
        else:
            release.append(each)
    kept = tuple(keep.values())
    if asked.addresses:
        return Decision(tuple(release), kept, tuple(ip for ip in asked.addresses if ip not in kept))
    missing = [version for version in asked.versions if version not in keep and usable[version]]
    nets = {version: tuple(pool.spec.cidr for pool in usable[version]) for version in missing}
    return Decision(tuple(release), kept, pools=nets)


def told(service: Service, has: Collection[IP], decision: Decision) -> Service:
    """The service with the addresses that it has in its status; the very same one when they are there.

    Of a service that is not ours any more only what it had of us goes: somebody else may have told his there.
    """
    status: dict[str, Any] = dict(service.status) if isinstance(service.status, Mapping) else {}
    balancer = status.get("loadBalancer")
    listed = balancer.get("ingress") if isinstance(balancer, Mapping) else None
    before = [each for each in listed or () if isinstance(each, Mapping)]
    leaving = {str(each.ip) for each in decision.release}
    after: list[Any] = [{"ip": str(ip)} for ip in sorted(has, key=lambda ip: (ip.version, ip))]
    if not decision.ours:
        after = [each for each in before if each.get("ip") not in leaving]
    if [each.get("ip") for each in before] == [each.get("ip") for each in after]:
        return service
    status["loadBalancer"] = {"ingress": after}  # empty, not left out: a patch would leave what it leaves out
    return replace(service, status=status)


def complained(service: Service, error: TortieError | None, now: datetime) -> Service:
    """The service with why it has no address in its status, or without it; the very same one when that is there. The
    time of a complaint is when it was first made."""
    have = conditions(service.status)
    others = [each for each in have if each.get("type") != ASSIGNED]
    if error is None:
        if len(others) == len(have):
            return service
        return replace(service, status={**service.status, "conditions": others})
    said = {"type": ASSIGNED, "status": "False", "reason": _reason(error), "message": str(error)}
    if any(said.items() <= each.items() for each in have):
        return service
    complaint = said | {"lastTransitionTime": f"{now:%Y-%m-%dT%H:%M:%SZ}"}
    return replace(service, status=with_conditions(service.status, [*others, complaint]))


def _reason(error: TortieError) -> str:
    if isinstance(error, NoAddress):
        return "NoFreeAddress"
    return "BadRequest" if isinstance(error, ConfigError) else "NotAssigned"


class NoAddress(NotFound):
    """Every pool that a service may have an address of is full, or there is none."""


class LoadBalancerIpam:
    """Decides and acts. `now` tells the time in UTC."""

    name = "load-balancer-ipam"
    option = LOAD_BALANCER

    def __init__(
        self,
        store: Store,
        now: Callable[[], datetime],
        matches: Matches,
        *,
        configured: Configured | None = None,
        later: Backoff | None = None,
    ) -> None:
        self._store = store
        self._now = now
        self._configured = configured or Configured()
        self.later = later or at_once()
        self._ipam = Ipam(store, OWNER, now, matches, type="virtual")

    def period(self, settings: Settings) -> timedelta:
        return settings.period(LOAD_BALANCER)

    async def run_once(self) -> int:
        """One pass; how many services could not be served. Raises Unavailable."""
        every = (await self._store.list(IPPool)).items
        blocks = await self._blocks()
        if not blocks and not any("LoadBalancer" in pool.spec.uses for pool in every):
            return 0
        if await locked(self._store):
            return 0
        settings = await self._configured(self._store)
        mode = settings.spec.controllers.load_balancer.assign_ips or "AllServices"
        held: dict[str, list[Allocation]] = defaultdict(list)
        for each in allocations(blocks):
            if each.handle and not each.cooling:
                held[each.handle].append(each)
        services = [(each, held.pop(handle_of(each), [])) for each in (await self._store.list(Service)).items]
        unreadable = Unreadable(self._store)
        failures = 0
        for handle, of_none in held.items():
            if not await _is_hidden(of_none, unreadable):
                failures += await self._release(handle)
        pools = [pool for pool in every if _readable(pool)]
        supply = _supply(pools, await self._blocks() if held else blocks)
        for service, own in services:
            failures += await self._tried(service, mode, own, pools, supply)
        return failures

    async def _blocks(self) -> list[IPAMBlock]:
        every = (await self._store.list(IPAMBlock)).items
        return [each for each in every if each.spec.affinity == f"virtual:{OWNER}"]

    async def _tried(
        self, service: Service, mode: str, own: list[Allocation], pools: Sequence[IPPool], supply: Hashable
    ) -> int:
        """What a service lacks is tried again when it, or what there is to have (`supply`), is another."""
        ours = is_ours(service, mode)
        if not ours and not own:
            return 0  # another's, whose status is not our business
        said = (service.spec.load_balancer_ip, *(service.metadata.annotations.get(name) for name in ANNOTATIONS))
        state = (said, service.spec.ip_families, mode, supply)
        if not self.later.due(service.title, state):
            return 0
        try:
            await self._serve(service, decide(wish(service) if ours else None, own, pools))
        except TortieError as error:
            self.later.failed(service.title, state, slowly=isinstance(error, NoAddress | ConfigError))
            await self._complain(service, error)
            return 1
        self.later.succeeded(service.title)
        await self._complain(service, None)
        return 0

    async def _complain(self, service: Service, error: TortieError | None) -> None:
        """In the status of a service; what is there already is not said again, neither there nor in the log."""
        transient = isinstance(error, Unavailable | Conflict)
        if error is None and complained(service, None, self._now()) is service:
            return
        try:
            stored = await self._store.get(Service, service.name, service.namespace)
            new = stored if transient else complained(stored, error, self._now())
            if error is not None and (transient or new is not stored):
                log.warning("%s: %s", service.title, error)
            if new is not stored:
                await self._store.update(new)
        except NotFound:
            return
        except TortieError as why:
            log.warning("%s: %s", service.title, error or why)

    async def _serve(self, service: Service, decision: Decision) -> None:
        """An address is told of no more before it is given back, and not before it is assigned: BGP announces it by
        that, and whoever dies in between leaves nothing that the next pass does not see."""
        log.debug("%s: %s", service.title, decision)
        has = list(decision.keep)
        service = await self._tell(service, has, decision)
        if decision.release:
            answer = await self._ipam.release_ips([each.release for each in decision.release])
            if answer.error is not None:
                raise answer.error
        try:
            await self._assign(service, decision, has)
        finally:
            await self._tell(service, has, decision)

    async def _tell(self, service: Service, has: Collection[IP], decision: Decision) -> Service:
        """The service as it is stored then. Raises Conflict."""
        new = told(service, has, decision)
        if new is service:
            return service
        log.info("%s has %s", service.title, " and ".join(map(str, has)) or "no address")
        return await self._store.update(new)

    async def _assign(self, service: Service, decision: Decision, has: list[IP]) -> None:
        """Appends to `has`. Raises NotFound where no pool has a free address."""
        handle = handle_of(service)
        attrs = {
            "service": service.name,
            "namespace": service.namespace,
            "type": "loadBalancer",
            "timestamp": f"{self._now():%Y-%m-%d %H:%M:%S.%f} +0000 UTC",
        }
        for ip in decision.assign:
            await self._ipam.assign_ip(ip, handle=handle, attrs=attrs, use="LoadBalancer")
            has.append(ip)
        if not decision.pools:
            return
        got = await self._ipam.auto_assign(
            int(4 in decision.pools),
            int(6 in decision.pools),
            handle=handle,
            attrs=attrs,
            pools4=decision.pools.get(4, ()),
            pools6=decision.pools.get(6, ()),
            use="LoadBalancer",
        )
        has += [each.ip for each in got.ips]
        if len(got.ips) < len(decision.pools):
            raise NoAddress("no pool with allowedUses LoadBalancer has a free address")

    async def _release(self, handle: str) -> int:
        if not self.later.due(handle):
            return 0
        try:
            await self._ipam.release_by_handle(handle)
        except NotFound:
            return 0
        except TortieError as error:
            log.warning("release %s: its service is gone: %s", handle, error)
            self.later.failed(handle)
            return 1
        log.info("released %s: its service is gone", handle)
        return 0


async def _is_hidden(held: Iterable[Allocation], unreadable: Unreadable) -> bool:
    """Whether a service that holds addresses is there, and in no list because it cannot be read."""
    named = {(each.attrs.get("namespace", ""), each.attrs.get("service", "")) for each in held}
    return any([await unreadable.hides(Service, name, namespace) for namespace, name in named if namespace and name])


def _readable(pool: IPPool) -> bool:
    """Not every datastore's pools come through the model's checks."""
    try:
        return bool(pool.spec.version)
    except ConfigError:
        return False


def _supply(pools: Iterable[IPPool], blocks: Iterable[IPAMBlock]) -> Hashable:
    """Changes whenever somebody who found no address might find one: with the pools, and with what is held of them."""
    return (
        frozenset((pool.name, pool.metadata.resource_version) for pool in pools),
        frozenset((block.name, block.metadata.resource_version) for block in blocks),
    )
