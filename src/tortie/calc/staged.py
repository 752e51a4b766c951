"""What staged policies would do: which connections each of them would newly deny or allow, were it set.

Asked are all connections between pods, and between pods and the outside, to the ports that somebody declares or a
staged rule names, and to one that nobody speaks of. Pods that no rule can tell apart are asked once: they consult the
same policies, are in the same sets and on the same side of every network in a rule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product

from tortie.base.addr import IP, Net, parse_ip
from tortie.calc.cluster import Cluster
from tortie.calc.state import DesiredState, LocalEndpoint
from tortie.model.policy import PORT_PROTOCOLS, protocol_number
from tortie.policy.rules import (
    DIRECTIONS,
    Direction,
    Policy,
    PolicyKey,
    PolicyRule,
    rule_id,
    staged_end_id,
)
from tortie.policy.verdict import EndpointPolicy, Packet, TierPolicies, Verdict, judge, judge_pending, membership

OUTSIDE = "outside"
OUTSIDES = {4: ("203.0.113.9", "198.51.100.9", "192.0.2.9"), 6: ("2001:db8:9::9", "2001:db8:51::9", "3fff::9")}
"""Addresses for documentation (RFC 5737, 3849, 9637): the first that no rule's network holds stands for the outside."""
CLIENT_PORT = 40000
TCP = 6

Port = tuple[int, int]
"""Protocol number and port."""
Asked = tuple[int, int | None]
"""The same; None stands for the ports that nobody speaks of."""


@dataclass(slots=True)
class Alike:
    """Ends that no rule can tell apart. `policy` is None for the outside."""

    policy: EndpointPolicy | None
    ports: frozenset[Port]
    names: list[str] = field(default_factory=list)
    ips: list[dict[int, IP]] = field(default_factory=list)
    """Addresses by IP version, of each end."""

    def __str__(self) -> str:
        more = len(self.names) - 1
        return self.names[0] + (f" and {more} more" if more else "")


@dataclass(frozen=True, slots=True)
class Change:
    """Connections that fare otherwise if a staged policy is set. `verdict` is what then decides."""

    source: Alike
    destination: Alike
    ports: tuple[Asked, ...]
    versions: tuple[int, ...]
    verdict: Verdict

    @property
    def pairs(self) -> int:
        """How many ends it is about, times the others."""
        there = len(self.destination.names) - (self.source is self.destination)
        return len(self.source.names) * there


@dataclass(frozen=True, slots=True)
class Counted:
    """A rule, or (action None) the end of a tier, with the kernel's names of what counts it on its nodes."""

    direction: Direction
    index: int | None
    action: str | None
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one staged policy would do. `counted` are a policy's rules; of one to delete, those that it deletes."""

    policy: Policy
    selected: tuple[str, ...]
    changes: tuple[Change, ...]
    counted: tuple[Counted, ...]


class StagedReport:
    """Of one moment of a cluster, which must be one with `node=None`."""

    def __init__(self, cluster: Cluster) -> None:
        self.nodes = cluster.nodes()
        self._state: DesiredState = cluster.state()
        self._contains = membership(lambda ref: self._state.sets.get(ref, frozenset()))
        self._alike = [*_alike(cluster, self._state), _outside(self._state)]
        self._other = _unspoken(self._state, self._alike)

    def predictions(self, staged: Iterable[Policy]) -> list[Prediction]:
        """In the order of their tiers' names and their own."""
        every = sorted((one for one in staged if one.staged is not None), key=lambda one: (one.tier, one.sort_key))
        return [self._prediction(policy) for policy in every]

    def ends(self) -> Iterator[tuple[str, Counted]]:
        """The tiers that staged policies alone would close, and what counts those that they would keep out."""
        names: dict[tuple[str, Direction], list[str]] = defaultdict(list)
        for endpoint in self._state.endpoints.values():
            for direction, tier in _staged_tiers(endpoint):
                if tier.default_action != "Pass" and all(policy.staged is not None for policy in tier.policies):
                    names[tier.name, direction].append(staged_end_id(tier.name, endpoint.interface, direction))
        for (tier_name, direction), counts in sorted(names.items()):
            yield tier_name, Counted(direction, None, None, tuple(counts))

    def _prediction(self, policy: Policy) -> Prediction:
        touched = [one for one in self._alike if one.policy is not None and _concerns(policy, one.policy)]
        selected = sorted(name for one in touched for name in one.names)
        ids = {id(one) for one in touched}
        pairs = (
            (source, destination)
            for source, destination in product(self._alike, self._alike)
            if id(source) in ids or id(destination) in ids
        )
        ports = _ports_of(policy)
        changes = tuple(change for pair in pairs for change in self._changes(*pair, ports, policy.key))
        obeyed = self._state.policies.get(policy.key.target) if policy.staged == "Delete" else policy
        return Prediction(policy, tuple(selected), changes, tuple(_counted(obeyed)) if obeyed is not None else ())

    def _changes(self, source: Alike, destination: Alike, ports: frozenset[Port], key: PolicyKey) -> Iterator[Change]:
        last = -1 if source is destination else 0
        if source is destination and len(source.names) < 2:
            return  # what a pod sends to itself never leaves it
        found: dict[tuple[Verdict, tuple[int, ...]], list[Asked]] = defaultdict(list)
        for protocol, port in (*sorted(destination.ports | ports), (TCP, None)):
            verdicts: dict[Verdict, list[int]] = defaultdict(list)
            for version in sorted(source.ips[0].keys() & destination.ips[last].keys()):
                ips = source.ips[0][version], destination.ips[last][version]
                packet = Packet(*ips, protocol, CLIENT_PORT, self._other if port is None else port)
                then = self._change(packet, source.policy, destination.policy, key)
                if then is not None:
                    verdicts[then].append(version)
            for verdict, versions in verdicts.items():
                found[verdict, tuple(versions)].append((protocol, port))
        for (verdict, both), asked in found.items():
            yield Change(source, destination, tuple(asked), both, verdict)

    def _change(
        self, packet: Packet, source: EndpointPolicy | None, destination: EndpointPolicy | None, key: PolicyKey
    ) -> Verdict | None:
        """The verdict that makes the difference if the policy is set; None if none does."""
        ways: tuple[tuple[EndpointPolicy | None, Direction], ...] = ((source, "egress"), (destination, "ingress"))
        asked = [(endpoint, direction) for endpoint, direction in ways if endpoint is not None]
        now = [judge(packet, endpoint, direction, self._contains) for endpoint, direction in asked]
        then = [judge_pending(packet, endpoint, direction, self._contains, key) for endpoint, direction in asked]
        if all(one.allowed for one in now) == all(one.allowed for one in then):
            return None
        changed = [after for before, after in zip(now, then, strict=True) if before.allowed != after.allowed]
        return next((one for one in changed if not one.allowed), changed[0])


def _concerns(policy: Policy, endpoint: EndpointPolicy) -> bool:
    """Whether a staged policy changes what an endpoint consults."""
    staging = endpoint.staging
    if staging is None:
        return False
    there = (one.key for tier in (*staging.ingress, *staging.egress) for one in tier.policies)
    return policy.key.target in staging.gone or policy.key in there


def _counted(policy: Policy) -> Iterator[Counted]:
    for direction in DIRECTIONS:
        for index, rule in enumerate(policy.rules(direction)):
            if direction in policy.directions:
                yield Counted(direction, index, rule.action, (rule_id(policy.key, direction, index),))


def _staged_tiers(endpoint: LocalEndpoint) -> Iterator[tuple[Direction, TierPolicies]]:
    if endpoint.policy.staging is not None:
        for direction in DIRECTIONS:
            yield from ((direction, tier) for tier in endpoint.policy.staging.tiers(direction))


def _ports_of(policy: Policy) -> frozenset[Port]:
    """The first port of every range that its rules name."""
    rules = (*policy.ingress, *policy.egress)
    return frozenset(
        (rule.protocol or TCP, first)
        for rule in rules
        for first, _ in (*rule.destination.ports, *rule.destination.not_ports)
        if rule.protocol in (None, *PORT_PROTOCOLS)
    )


# --- who is alike -----------------------------------------------------------------------------------------------------


def _alike(cluster: Cluster, state: DesiredState) -> list[Alike]:
    nets = _networks(state)
    memberships = _Memberships(state)
    found: dict[Hashable, Alike] = {}
    for local in sorted(state.endpoints.values(), key=lambda one: one.key):
        endpoint = cluster.endpoint(local.key)
        if endpoint is None or not local.ips:
            continue
        numbers = ((protocol_number(port.protocol), port.port) for port in endpoint.spec.ports)
        ports = frozenset((number, port) for number, port in numbers if number in PORT_PROTOCOLS)
        where = tuple((ip.version, memberships.of(ip), frozenset(net for net in nets if ip in net)) for ip in local.ips)
        one = found.setdefault((_asked(local.policy), ports, where), Alike(local.policy, ports))
        one.names.append(f"{endpoint.namespace}/{endpoint.spec.pod or endpoint.spec.workload or endpoint.name}")
        one.ips.append({ip.version: ip for ip in reversed(local.ips)})
    return list(found.values())


def _outside(state: DesiredState) -> Alike:
    """Somewhere that no rule names, if there is such a place."""
    nets = _networks(state) | {net for members in state.sets.values() for net in members if not isinstance(net, tuple)}
    ips = {}
    for version, texts in OUTSIDES.items():
        places = [parse_ip(text) for text in texts]
        ips[version] = next((ip for ip in places if not any(ip in net for net in nets)), places[0])
    return Alike(None, frozenset(), [OUTSIDE], [ips])


def _unspoken(state: DesiredState, ends: Iterable[Alike]) -> int:
    """A port that nobody declares and no rule names."""
    rules = (rule for one in state.policies.values() for rule in (*one.ingress, *one.egress))
    ranges = [range_ for rule in rules for range_ in (*rule.destination.ports, *rule.destination.not_ports)]
    members = (member for members in state.sets.values() for member in members)
    taken = {port for one in ends for _, port in one.ports} | {one[2] for one in members if isinstance(one, tuple)}
    free = (port for port in range(65535, 0, -1) if port not in taken)
    return next((port for port in free if not any(first <= port <= last for first, last in ranges)), 1)


def _asked(endpoint: EndpointPolicy) -> Hashable:
    """What an endpoint consults, by name; profiles by what they say, for every namespace has its own."""
    staging = endpoint.staging
    tiers = (endpoint.ingress, endpoint.egress, *((staging.ingress, staging.egress) if staging else ()))
    return (
        tuple(tuple((tier.name, tuple(one.key for one in tier.policies)) for tier in side) for side in tiers),
        staging.gone if staging is not None else None,
        tuple(
            None if one is None else (one.ingress, one.egress)
            for _, one in endpoint.profiles
            if one is None or _says(one)
        ),
    )


def _says(profile: Policy) -> bool:
    return bool(profile.ingress or profile.egress)


def _networks(state: DesiredState) -> set[Net]:
    """Every network that a rule names."""
    rules: Iterable[PolicyRule] = (rule for one in state.policies.values() for rule in (*one.ingress, *one.egress))
    return {net for rule in rules for side in (rule.source, rule.destination) for net in (*side.nets, *side.not_nets)}


class _Memberships:
    """The sets that an address is in, and the ports with which it is in some."""

    def __init__(self, state: DesiredState) -> None:
        self._single: dict[IP, set[Hashable]] = defaultdict(set)
        self._broad: list[tuple[Net, str]] = []
        for ref, members in state.sets.items():
            for member in members:
                if isinstance(member, tuple):
                    self._single[member[0]].add((ref.uid, member[1:]))
                elif member.prefixlen == member.max_prefixlen:
                    self._single[member.network_address].add(ref.uid)
                else:
                    self._broad.append((member, ref.uid))

    def of(self, ip: IP) -> frozenset[Hashable]:
        return frozenset((*self._single.get(ip, ()), *(uid for net, uid in self._broad if ip in net)))
