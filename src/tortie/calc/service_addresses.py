"""The addresses and ports that services get where no API server gives them any: ClusterIPs, NodePorts, and the ports of
health checks.

    services, oldest first ─► what is written is theirs ─► what is missing is chosen ─► an Outcome for each

What somebody has written stays; of two who wrote the same the older one has it. What is chosen depends on the name of
the service, so that one which is applied again without its addresses, or made anew, gets those that it had. The first
of each range are given last: they are for who asks for one by name.

Source: Kubernetes' defaulting of services and its allocators. What differs: a service that says nothing of IP families
gets one address of each that the cluster has pods of, not of the first only; a service that changes its mind about a
family, a port or its type is served at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as _replaced
from datetime import datetime
from typing import Literal

from msgspec import UNSET
from msgspec.structs import replace

from tortie.base.addr import IP, Net, nth, parse_ip, parse_net
from tortie.base.errors import ConfigError
from tortie.model.conditions import conditions, with_conditions
from tortie.model.service import Service, ServicePort, ServiceSpec

SERVICE_NETS = (parse_net("10.96.0.0/12"), parse_net("fd00:10:96::/112"))
"""Where kubeadm puts services, and the same for IPv6."""
NODE_PORTS = range(30000, 32768)
HEADLESS = "None"
CONDITION = "tortie.dev/ServiceAddresses"
"""With status False, of a service that does not have all that it asks for."""

Family = Literal["IPv4", "IPv6"]
Reason = Literal["AddressInUse", "PortInUse", "OutOfRange", "NoFreeAddress", "NoFreePort", "BadRequest"]
FAMILIES: dict[int, Family] = {4: "IPv4", 6: "IPv6"}
VERSIONS = {family: version for version, family in FAMILIES.items()}
SINGLE, PREFER, REQUIRE = "SingleStack", "PreferDualStack", "RequireDualStack"


@dataclass(frozen=True, slots=True)
class Ranges:
    """What there is to give: at most one net of each family, the first being that of who wants only one; NodePorts."""

    nets: tuple[Net, ...] = SERVICE_NETS
    ports: range = NODE_PORTS

    @property
    def versions(self) -> tuple[int, ...]:
        return tuple(net.version for net in self.nets)


@dataclass(frozen=True, slots=True)
class Complaint:
    """Why a service does not have all that it asks for. `full` names the range that has nothing left."""

    reason: Reason
    message: str
    full: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A service as it is and as it should be, the very same one if so."""

    before: Service
    after: Service
    complaint: Complaint | None = None

    def __str__(self) -> str:
        had, has = _given(self.before.spec), _given(self.after.spec)
        words = [f"+ {each}" for each in has if each not in had] + [f"- {each}" for each in had if each not in has]
        return f"{self.after.title}: {', '.join(words) or 'IP families ' + ', '.join(self.after.spec.ip_families)}"


def read_nets(text: str) -> tuple[Net, ...]:
    """`10.96.0.0/12,fd00:10:96::/112`: one CIDR, or one of each family. Raises ConfigError."""
    nets = tuple(parse_net(part.strip()) for part in text.split(",") if part.strip())
    if not nets or len({net.version for net in nets}) < len(nets):
        raise ConfigError(f'"{text}" is not one CIDR, or one of IPv4 and one of IPv6')
    for net in nets:
        if net.num_addresses < 4:
            raise ConfigError(f'"{net}" is too small: give at least four addresses')
    return nets


def read_ports(text: str) -> range:
    """`30000-32767`. Raises ConfigError."""
    first, dash, last = text.partition("-")
    if dash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= 65535:
        return range(int(first), int(last) + 1)
    raise ConfigError(f'"{text}" is not a range of ports such as {NODE_PORTS[0]}-{NODE_PORTS[-1]}')


class Memory:
    """What services asked for in an earlier pass over the same ranges: few of ten thousand change in between."""

    def __init__(self) -> None:
        self._wishes: dict[str, tuple[str, frozenset[int], _Wish]] = {}

    def wish(self, service: Service, configured: Sequence[int], populated: frozenset[int]) -> _Wish:
        """Raises ConfigError."""
        title, revision = service.title, service.metadata.resource_version
        found = self._wishes.get(title)
        if found is not None and revision and found[:2] == (revision, populated):
            return found[2]
        wish = _wish(service.spec, configured, populated)
        self._wishes[title] = revision, populated, wish
        return wish

    def forget_others(self, titles: Collection[str]) -> None:
        self._wishes = {title: found for title, found in self._wishes.items() if title in titles}


def addressed(
    services: Iterable[Service], ranges: Ranges, populated: Collection[int], memory: Memory | None = None
) -> Iterator[Outcome]:
    """What becomes of each service. `populated`: the IP versions that the cluster has pods of, as far as is known."""
    register, memory = _Register(ranges), memory or Memory()
    waiting: list[tuple[Service, _Wish, list[Complaint]]] = []
    configured, populated = ranges.versions, frozenset(populated)
    for service in sorted(services, key=_age):
        try:
            wish = memory.wish(service, configured, populated)
        except ConfigError as error:
            yield Outcome(service, service, Complaint("BadRequest", str(error)))
        else:
            waiting.append((service, wish, register.claim(service, wish)))
    for service, wish, complaints in waiting:
        spec = service.spec if wish.settled else register.fill(service, wish, complaints)
        after = service if wish.settled or spec == service.spec else replace(service, spec=spec)
        yield Outcome(service, after, _joined(complaints))
    memory.forget_others({service.title for service, _, _ in waiting})


def complained(service: Service, complaint: Complaint | None, now: datetime) -> Service:
    """The service with this in its status, or without any; the very same one when it is so. The time of a complaint is
    when it was first made."""
    have = conditions(service.status)
    others = [each for each in have if each.get("type") != CONDITION]
    if complaint is None:
        if len(others) == len(have):
            return service
        return replace(service, status=with_conditions(service.status, others))
    said = {"type": CONDITION, "status": "False", "reason": complaint.reason, "message": complaint.message}
    if any(said.items() <= each.items() for each in have):
        return service
    new = said | {"lastTransitionTime": f"{now:%Y-%m-%dT%H:%M:%SZ}"}
    return replace(service, status=with_conditions(service.status, [*others, new]))


# --- what a service asks for ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a service is to have. `ips`: those that are written, by version; `numbers`: its NodePorts that are, and its
    health check's; `settled`: it has all of it."""

    spec: ServiceSpec
    versions: tuple[int, ...] = ()
    ips: Mapping[int, IP] = field(default_factory=dict)
    addresses: bool = False
    node_ports: bool = False
    check: bool = False
    numbers: tuple[tuple[str, int], ...] = ()
    settled: bool = False


def _joined(complaints: Sequence[Complaint]) -> Complaint | None:
    if not complaints:
        return None
    first = complaints[0]
    return Complaint(first.reason, "; ".join(each.message for each in complaints), first.full)


def _wish(spec: ServiceSpec, configured: Sequence[int], populated: Collection[int]) -> _Wish:
    """Raises ConfigError naming the field."""
    wish = _asked(spec, configured, populated)
    wanted, ports = wish.spec, wish.spec.ports
    numbers = [(port.protocol, port.node_port) for port in ports if port.node_port]
    if wanted.health_check_node_port:
        numbers.append(("TCP", wanted.health_check_node_port))
    complete = (
        (not wish.addresses or wanted.cluster_ips == tuple(str(wish.ips.get(version)) for version in wish.versions))
        and not (wish.addresses and wanted.cluster_ip != wanted.cluster_ips[0])
        and not (wish.node_ports and any(port.node_port == 0 for port in ports))
        and not (wish.check and not wanted.health_check_node_port)
    )
    return _replaced(wish, numbers=tuple(numbers), settled=complete and wanted == spec)


def _asked(spec: ServiceSpec, configured: Sequence[int], populated: Collection[int]) -> _Wish:
    """Raises ConfigError naming the field."""
    if spec.type == "ExternalName":
        bare = replace(_without_ports(spec), cluster_ip="", cluster_ips=(), ip_families=(), ip_family_policy=UNSET)
        return _Wish(bare)
    headless = (spec.cluster_ip or "".join(spec.cluster_ips[:1])) == HEADLESS
    ips = {} if headless else _written(spec)
    if headless and not spec.selector:
        populated = configured  # whose endpoints they are says somebody else
    policy, versions = _families(spec, tuple(ips), configured, populated)
    spec = replace(spec, ip_family_policy=policy, ip_families=tuple(FAMILIES[version] for version in versions))
    if headless:
        spec = replace(spec, cluster_ip=HEADLESS, cluster_ips=(HEADLESS,))
    balancer = spec.type == "LoadBalancer"
    ported = balancer or spec.type == "NodePort"
    check = balancer and spec.external_traffic_policy == "Local"
    spec = spec if ported else _without_ports(spec)
    spec = spec if check else replace(spec, health_check_node_port=0)
    allocate = ported and not (balancer and spec.allocate_load_balancer_node_ports is False)
    kept = {version: ip for version, ip in ips.items() if version in versions}
    return _Wish(spec, versions, kept, not headless, allocate, check)


def _written(spec: ServiceSpec) -> dict[int, IP]:
    """By version, in order. Where `clusterIP` is another than the first of `clusterIPs`, somebody has written it."""
    found: dict[int, IP] = {}
    if spec.cluster_ip:
        ip = parse_ip(spec.cluster_ip)
        found[ip.version] = ip
    listed = [parse_ip(text) for text in spec.cluster_ips if text != HEADLESS]
    if len({ip.version for ip in listed}) < len(listed):
        raise ConfigError("holds more than one address of an IP version", "spec.clusterIPs")
    for ip in listed:
        found.setdefault(ip.version, ip)
    return found


def _families(
    spec: ServiceSpec, written: Sequence[int], configured: Sequence[int], populated: Collection[int]
) -> tuple[str, tuple[int, ...]]:
    """The policy, and IP versions in order. Raises ConfigError."""
    policy = spec.ip_family_policy or None
    if policy not in (None, SINGLE, PREFER, REQUIRE):
        raise ConfigError(f'"{policy}" is not one of {SINGLE}, {PREFER}, {REQUIRE}', "spec.ipFamilyPolicy")
    said = [VERSIONS[family] for family in spec.ip_families]
    if len(set(said)) < len(said):
        raise ConfigError("names a family twice", "spec.ipFamilies")
    if any(version != other for version, other in zip(said, written, strict=False)):
        raise ConfigError("are of other families, or in another order, than clusterIPs", "spec.ipFamilies")
    versions = list(dict.fromkeys((*written, *said)))
    usual = [version for version in configured if version in populated]
    if policy is None:
        one = len(versions) == 1 or (not versions and len(usual) == 1)
        policy = REQUIRE if len(versions) == 2 else SINGLE if one else PREFER
    versions = versions or (usual or list(configured))[:1]
    if policy == SINGLE:
        versions = versions[:1]
    elif policy == REQUIRE:
        versions += [version for version in (4, 6) if version not in versions]
    else:
        versions += [version for version in usual if version not in versions]
    for version in versions:
        if version not in configured:
            raise ConfigError(f"services of this cluster have no {FAMILIES[version]} addresses", "spec.ipFamilies")
    return policy, tuple(versions)


def _without_ports(spec: ServiceSpec) -> ServiceSpec:
    if not any(port.node_port for port in spec.ports) and not spec.health_check_node_port:
        return spec
    return replace(spec, ports=tuple(replace(port, node_port=0) for port in spec.ports), health_check_node_port=0)


# --- who has what -----------------------------------------------------------------------------------------------------


class _Numbers:
    """Those from 0 to `size` - 1, of which the first `reserved` are given last and those below `never` never."""

    def __init__(self, size: int, reserved: int, never: int = 0) -> None:
        self._size, self._first, self._never = size, max(reserved, never), never
        self._taken: set[int] = set()

    def take(self, number: int) -> None:
        if self._never <= number < self._size:
            self._taken.add(number)

    def choose(self, name: str) -> int | None:
        """One for who has this name, the same if it is free; None when all are taken."""
        if len(self._taken) >= self._size - self._never:
            return None
        number = next(number for number in self._in_order(name) if number not in self._taken)
        self._taken.add(number)
        return number

    def _in_order(self, name: str) -> Iterator[int]:
        usual = self._size - self._first
        if usual > 0:
            start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16]) % usual
            yield from (self._first + (start + i) % usual for i in range(usual))
        yield from range(self._first - 1, self._never - 1, -1)


def reserved(size: int, step: int, most: int) -> int:
    """How many of a range Kubernetes leaves for who asks by name.

    >>> reserved(254, 16, 256), reserved(2**20 - 2, 16, 256), reserved(2768, 32, 128), reserved(14, 16, 256)
    (16, 256, 86, 0)
    """
    return 0 if size < 16 else min(max(16, size // step), most)


class _Register:
    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges
        self._nets: dict[int, Net] = {net.version: net for net in ranges.nets}
        self._free: dict[int, _Numbers] = {net.version: _of_net(net) for net in ranges.nets}
        ports = len(ranges.ports)
        self._ports = _Numbers(ports, reserved(ports, 32, 128) if ports > 16 else 0)
        self._owners: dict[IP | tuple[str, int], str] = {}

    def claim(self, service: Service, wish: _Wish) -> list[Complaint]:
        """What is written, if nobody older has it."""
        title, complaints = service.title, list[Complaint]()
        for version, ip in wish.ips.items():
            net = self._nets[version]
            number = int(ip) - int(net.network_address)
            if not 0 <= number < net.num_addresses:
                complaints.append(Complaint("OutOfRange", f"{ip} is not of {net}, the services' addresses"))
            elif (owner := self._owners.setdefault(ip, title)) != title:
                complaints.append(Complaint("AddressInUse", f"{ip} is {owner}'s"))
            else:
                self._free[version].take(number - 1)
        for i, (protocol, number) in enumerate(wish.numbers):
            twice = (protocol, number) in wish.numbers[:i]
            complaints += self._claimed_port(title, protocol, number, twice=twice)
        return complaints

    def _claimed_port(self, title: str, protocol: str, number: int, *, twice: bool) -> Iterator[Complaint]:
        ports = self._ranges.ports
        owner = self._owners.setdefault((protocol, number), title)
        self._ports.take(number - ports[0])
        if owner != title:
            yield Complaint("PortInUse", f"NodePort {number}/{protocol} is {owner}'s")
        elif twice:
            yield Complaint("PortInUse", f"NodePort {number}/{protocol} is asked for twice")
        elif number not in ports:
            yield Complaint("OutOfRange", f"NodePort {number} is not from {ports[0]} to {ports[-1]}")

    def fill(self, service: Service, wish: _Wish, complaints: list[Complaint]) -> ServiceSpec:
        """What is not written, as far as there is some."""
        spec, name = wish.spec, f"{service.namespace}/{service.name}"
        if wish.addresses:
            ips = [ip for version in wish.versions if (ip := self._ip(version, name, wish, complaints)) is not None]
            texts = tuple(map(str, ips))
            families = tuple(FAMILIES[ip.version] for ip in ips) or spec.ip_families
            spec = replace(spec, cluster_ip=texts[0] if texts else "", cluster_ips=texts, ip_families=families)
        if wish.node_ports:
            spec = replace(spec, ports=tuple(self._with_port(port, name, complaints) for port in spec.ports))
        if wish.check and not spec.health_check_node_port:
            spec = replace(spec, health_check_node_port=self._port(f"{name} health check", complaints))
        return spec

    def _ip(self, version: int, name: str, wish: _Wish, complaints: list[Complaint]) -> IP | None:
        if version in wish.ips:
            return wish.ips[version]
        net = self._nets[version]
        number = self._free[version].choose(name)
        if number is None:
            complaints.append(Complaint("NoFreeAddress", f"{net} has no free address", str(net)))
            return None
        return nth(net, number + 1)

    def _with_port(self, port: ServicePort, name: str, complaints: list[Complaint]) -> ServicePort:
        if port.node_port:
            return port
        return replace(port, node_port=self._port(f"{name} {port.protocol} {port.port} {port.name}", complaints))

    def _port(self, name: str, complaints: list[Complaint]) -> int:
        number = self._ports.choose(name)
        if number is not None:
            return self._ranges.ports[number]
        ports = self._ranges.ports
        full = f"NodePorts {ports[0]}-{ports[-1]}"
        if all(each.full != full for each in complaints):
            complaints.append(Complaint("NoFreePort", f"{full}: none is free", full))
        return 0


def _of_net(net: Net) -> _Numbers:
    """Number 0 is the first address, which is the API server's; IPv4's last one is the broadcast address."""
    size = net.num_addresses - (2 if net.version == 4 else 1)
    return _Numbers(size, reserved(size, 16, 256), never=1)


def _age(service: Service) -> tuple[str, str, str]:
    return service.metadata.creation_timestamp or "", service.namespace, service.name


def _given(spec: ServiceSpec) -> list[str]:
    """For people."""
    ports = [f"NodePort {port.node_port}/{port.protocol}" for port in spec.ports if port.node_port]
    check = [f"health check at {spec.health_check_node_port}"] if spec.health_check_node_port else []
    return [*(spec.cluster_ips or filter(None, [spec.cluster_ip])), *ports, *check]
