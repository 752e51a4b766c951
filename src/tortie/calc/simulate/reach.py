"""Who reaches whom with what, for many parties at once: the explainer's answers without asking for each pair.

Parties that no rule tells apart are one class, and of a policy every question is answered once. What a policy's rules
ask of an address is whether sets and lists of networks hold it; two addresses with the same answers are the same to
that policy. So a verdict is remembered under

    (whose policy, direction, answers of the own address, answers of the peer's address, lot of packets)

and 5,000 pods under 300 policies come to a few thousand verdicts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from tortie.base.addr import IP, Net, parse_ip
from tortie.base.flow import UDP
from tortie.calc.established import IPIP, guard
from tortie.calc.explain import Party
from tortie.calc.explain.journey import Journey
from tortie.calc.explain.picture import Picture
from tortie.calc.simulate.services import ICMP, Cuts, Service
from tortie.calc.simulate.simulation import Simulation
from tortie.calc.state import Settings
from tortie.policy.rules import DIRECTIONS, Direction, NamedPort, PolicyRule, SelectorSet, SetRef
from tortie.policy.verdict import LINK_TYPES, NO_TIERS, EndpointPolicy, Verdict, judge

NOT_THERE = Verdict(False, "", "", "", "one of them is not there")
NEITHER = Verdict(True, "", "", "", "neither end is a pod: nothing here decides about it")
UNSPECIFIED = {4: parse_ip("0.0.0.0"), 6: parse_ip("::")}
Answers = tuple[Hashable, ...]
"""What a policy learns of an address."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the policy of an endpoint asks in one direction: of its own address, of the peer's, of the packet."""

    policy: EndpointPolicy
    settings: Settings
    own: tuple[int, ...]
    peer: tuple[int, ...]
    cuts: Cuts


class Reach:
    """The verdicts between parties of one simulation; those that it does not have are None in `parties`."""

    def __init__(self, simulation: Simulation, parties: Sequence[Party | None]) -> None:
        self.parties = parties
        self._state = simulation.explainer.state
        self._settings = simulation.cluster.settings_of
        self._picture = Picture(simulation.cluster, self._state)
        self._hosts = bool(self._state.host_endpoints)
        self._numbers: dict[Hashable, int] = {}
        self._holds: dict[IP, dict[int, Hashable]] = {ip: {} for party in parties if party for ip in party.ips}
        self._ips = {v: [party.ip(v) if party is not None else None for party in parties] for v in (4, 6)}
        self._held = {v: [self._holds[ip] if ip is not None else {} for ip in ips] for v, ips in self._ips.items()}
        self._sorted = {v: sorted((int(ip), ip) for ip in self._holds if ip.version == v) for v in (4, 6)}
        for ref, members in self._state.sets.items():
            self._note_set(self._number(ref), members)
        self._ports: dict[SetRef, frozenset[tuple[int, int]]] = {}
        self._groups: dict[Hashable, int] = {}
        self._asked: list[dict[Direction, _Asked]] = []
        self._group = [self._group_of(party) for party in parties]
        self._chosen: Sequence[int] = range(len(parties))
        self._peers: dict[tuple[int, tuple[int, ...]], dict[Answers, tuple[int, int]]] = {}
        self._admitted: dict[Hashable, int] = {}
        self._verdicts: dict[Hashable, Verdict] = {}
        self._lots: dict[tuple[int, Direction, Service], Service] = {}

    def signature(self, index: int) -> Hashable:
        """Equal for parties that nothing tells apart."""
        party = self.parties[index]
        if party is None:
            return None
        holds = tuple((ip.version, frozenset(self._holds[ip].items())) for ip in party.ips)
        return self._group[index], holds, party.node if self._hosts else ""

    def rules(self) -> Iterable[PolicyRule]:
        """Every rule that somebody here consults."""
        return (rule for policy in self._state.policies.values() for rule in (*policy.ingress, *policy.egress))

    def cut(self, cuts: Cuts) -> None:
        """Adds what these rules tell apart."""
        for rule in self.rules():
            cuts.add(rule, self._ports_of)
        for asked in self._asked:
            _cut_guards(cuts, asked["egress"].settings)
        cuts.include(self._host_cuts)

    def has(self, index: int, version: int) -> bool:
        """Whether a party has an address of an IP version."""
        return self._ips[version][index] is not None

    def beside_the_point(self, service: Service) -> bool:
        """Whether packets are such as policy has no say about: tunnels of pods, what hosts need on an IPv6 link."""
        if self._hosts and service.protocol == ICMP[6] and service.icmp[0] in LINK_TYPES:
            return True
        ip = UNSPECIFIED[service.version]
        return bool(guard(service.packet(ip, ip), self._settings(None)))

    def decision(self, source: int, destination: int, service: Service) -> Verdict:
        """The verdict that a person wants to see first: the denial, else the last."""
        if self._ip(source, service) is None or self._ip(destination, service) is None:
            return NOT_THERE
        if self._asks_hosts(source) or self._asks_hosts(destination):
            return self._walked(source, destination, service)
        return self._judged(source, destination, service)

    def _judged(self, source: int, destination: int, service: Service) -> Verdict:
        """What the policies of pods say."""
        verdict = NEITHER
        if self._group[source] >= 0:
            verdict = self._verdict(source, "egress", destination, service)
        if verdict.allowed and self._group[destination] >= 0:
            verdict = self._verdict(destination, "ingress", source, service)
        return verdict

    def choose(self, parties: Sequence[int]) -> None:
        """From now on `peers` is about these."""
        self._chosen = parties
        self._peers.clear()
        self._admitted.clear()

    def peers(self, index: int, direction: Direction, service: Service) -> int:
        """Which of the chosen parties the policy of one admits in a direction, as the bits of a number."""
        group = self._group[index]
        if self._ip(index, service) is None:
            return 0
        if self._hosts and direction == "egress":
            return sum(1 << bit for bit, peer in enumerate(self._chosen) if self._passes(index, peer, service))
        if group < 0 or self._hosts:
            return sum(bits for bits, _ in self._alike((), service).values())
        asked, lot = self._asked[group][direction], self._lot(group, direction, service)
        question = (group, direction, self._answers(index, asked.own, service.version), lot)
        found = self._admitted.get(question)
        if found is None:
            alike = self._alike(asked.peer, service).values()
            found = sum(bits for bits, peer in alike if self._verdict(index, direction, peer, service).allowed)
            self._admitted[question] = found
        return found

    def _alike(self, asked: tuple[int, ...], service: Service) -> dict[Answers, tuple[int, int]]:
        """The chosen parties, together where somebody who asks this learns the same of them: their bits, and one."""
        found = self._peers.get((service.version, asked))
        if found is None:
            found = self._peers[service.version, asked] = {}
            for bit, index in enumerate(self._chosen):
                if self._ip(index, service) is not None:
                    answers = self._answers(index, asked, service.version)
                    bits, first = found.get(answers, (0, index))
                    found[answers] = (bits | 1 << bit, first)
        return found

    def policy(self, index: int) -> EndpointPolicy:
        """What a pod consults."""
        party = self.parties[index]
        assert party is not None
        return self._state.endpoints[party.interface].policy

    def differs(self, index: int, direction: Direction, service: Service, other: EndpointPolicy) -> bool:
        """Whether another policy made of the same rules would decide otherwise about some of the chosen parties."""
        own = self._ip(index, service)
        if own is None:
            return False
        for _, peer in self._alike(self._asked[self._group[index]][direction].peer, service).values():
            ip = self._ip(peer, service)
            assert ip is not None
            packet = service.packet(own, ip) if direction == "egress" else service.packet(ip, own)
            now = judge(packet, self.policy(index), direction, self._contains)
            if now.allowed is not judge(packet, other, direction, self._contains).allowed:
                return True
        return False

    def _asks_hosts(self, index: int) -> bool:
        """Whether a party is a node, or on one whose host endpoint has a say about what it forwards."""
        party = self.parties[index]
        return party is not None and bool(party.node) and (not party.is_pod or party.node in self._forwarding)

    @cached_property
    def _forwarding(self) -> frozenset[str]:
        hosts = self._state.host_endpoints.values()
        return frozenset(one.node for one in hosts if {one.untracked, one.pre_dnat, one.forward} != {NO_TIERS})

    def _passes(self, source: int, destination: int, service: Service) -> bool:
        """Whether a connection is allowed. Policies of pods may spare us the question to host endpoints."""
        if self._ip(source, service) is None or self._ip(destination, service) is None:
            return False
        pods = self._group[source] < 0 or self._judged(source, destination, service).allowed
        return pods and self.decision(source, destination, service).allowed

    def _walked(self, source: int, destination: int, service: Service) -> Verdict:
        """The same where host endpoints have a say on the way, which depends on nodes: every station is asked."""
        lots = (
            self._lot(self._group[source], "egress", service) if self._group[source] >= 0 else None,
            self._lot(self._group[destination], "ingress", service) if self._group[destination] >= 0 else None,
            self._host_cuts.lot(service),
        )
        key = (source, destination, lots)
        if key not in self._verdicts:
            ends, ips = [self.parties[index] for index in (source, destination)], self._ips[service.version]
            assert ends[0] is not None
            assert ends[1] is not None
            packet = service.packet(ips[source], ips[destination])  # type: ignore[arg-type]
            last = list(Journey(self._picture, ends[0], ends[1], packet).steps())[-1]
            self._verdicts[key] = Verdict(last.allowed, last.tier, last.policy, last.rule, last.reason)
        return self._verdicts[key]

    @cached_property
    def _host_cuts(self) -> Cuts:
        """What host endpoints tell apart."""
        cuts = Cuts()
        for host in self._state.host_endpoints.values():
            policies = [policy for tier in host.all_tiers for policy in tier.policies]
            policies += [profile for _, profile in host.profiles if profile is not None]
            for rule in (rule for policy in policies for way in DIRECTIONS for rule in policy.rules(way)):
                cuts.add(rule, self._ports_of)
            failsafes = self._settings(host.node or None).failsafes
            for one in (*failsafes.inbound, *failsafes.outbound):
                cuts.add_port(one.protocol, one.port)
            cuts.icmp.update((kind, None) for kind in LINK_TYPES)
            cuts.protocols.update(ICMP.values())
        return cuts

    def _ip(self, index: int, service: Service) -> IP | None:
        return self._ips[service.version][index]

    def _answers(self, index: int, asked: tuple[int, ...], version: int) -> Answers:
        holds = self._held[version][index]
        return tuple([holds.get(number) for number in asked])

    def _verdict(self, index: int, direction: Direction, peer: int, service: Service) -> Verdict:
        group, version = self._group[index], service.version
        asked, lot = self._asked[group][direction], self._lot(group, direction, service)
        answers = self._answers(index, asked.own, version), self._answers(peer, asked.peer, version)
        key = (group, direction, answers, lot)
        found = self._verdicts.get(key)
        if found is None:
            own, other = self._ip(index, service), self._ip(peer, service)
            assert own is not None
            assert other is not None
            packet = service.packet(own, other) if direction == "egress" else service.packet(other, own)
            name = guard(packet, asked.settings) if direction == "egress" else ""
            found = judge(packet, asked.policy, direction, self._contains)
            if name:
                found = Verdict(False, "", "", name, f"{name}: not let through whatever policy says")
            self._verdicts[key] = found
        return found

    def _lot(self, group: int, direction: Direction, service: Service) -> Service:
        key = (group, direction, service)
        found = self._lots.get(key)
        if found is None:
            found = self._lots[key] = self._asked[group][direction].cuts.lot(service)
        return found

    def _contains(self, ref: SetRef, item: NamedPort | IP) -> bool:
        if isinstance(item, tuple):
            held = self._holds[item[0]].get(self._numbers.get(ref, -1))
            return isinstance(held, frozenset) and item[1:] in held
        return self._numbers.get(ref, -1) in self._holds[item]

    def _group_of(self, party: Party | None) -> int:
        """The number of the policy that a party has; -1 for one that has none. Equal policies are one."""
        if party is None or not party.is_pod:
            return -1
        policy, settings = self._state.endpoints[party.interface].policy, self._settings(party.node or None)
        tiers = (policy.ingress, policy.egress)
        key = (
            tuple(tuple((tier.name, *(one.key for one in tier.policies)) for tier in side) for side in tiers),
            tuple(name for name, _ in policy.profiles),
            (settings.vxlan_port, settings.allow_vxlan, settings.allow_ipip),
        )
        if key not in self._groups:
            self._groups[key] = len(self._asked)
            self._asked.append({way: self._questions(policy, settings, way) for way in DIRECTIONS})
        return self._groups[key]

    def _questions(self, policy: EndpointPolicy, settings: Settings, direction: Direction) -> _Asked:
        rules = [rule for tier in policy.tiers(direction) for one in tier.policies for rule in one.rules(direction)]
        rules += [rule for _, one in policy.profiles if one is not None for rule in one.rules(direction)]
        sources: set[int] = set()
        destinations: set[int] = set()
        cuts = Cuts()
        if direction == "egress":
            _cut_guards(cuts, settings)
        for rule in rules:
            cuts.add(rule, self._ports_of)
            for side, numbers in ((rule.source, sources), (rule.destination, destinations)):
                numbers.update(map(self._number, side.refs))
                numbers.update(self._note_nets(nets) for nets in (side.nets, side.not_nets) if nets)
        own, peer = (sources, destinations) if direction == "egress" else (destinations, sources)
        return _Asked(policy, settings, tuple(sorted(own)), tuple(sorted(peer)), cuts)

    def _ports_of(self, ref: SetRef) -> frozenset[tuple[int, int]]:
        """Protocol and port of everything that a set of named ports holds."""
        if isinstance(ref, SelectorSet):
            return frozenset()
        if ref not in self._ports:
            members = self._state.sets.get(ref, ())
            self._ports[ref] = frozenset(member[1:] for member in members if isinstance(member, tuple))
        return self._ports[ref]

    def _number(self, what: Hashable) -> int:
        return self._numbers.setdefault(what, len(self._numbers))

    def _note_nets(self, nets: tuple[Net, ...]) -> int:
        """The number of a list of networks; the addresses that it holds are noted the first time."""
        new = nets not in self._numbers
        number = self._number(nets)
        if new:
            self._note_set(number, nets)
        return number

    def _note_set(self, number: int, members: Iterable[Net | NamedPort]) -> None:
        named: dict[IP, set[tuple[int, int]]] = {}
        for member in members:
            if isinstance(member, tuple):
                if member[0] in self._holds:
                    named.setdefault(member[0], set()).add(member[1:])
                continue
            every = self._sorted[member.version]
            low, high = int(member.network_address), int(member.broadcast_address)
            start = bisect_left(every, low, key=_first)
            for _, ip in every[start : bisect_right(every, high, key=_first)]:
                self._holds[ip][number] = True
        for ip, ports in named.items():
            self._holds[ip][number] = frozenset(ports)


def _cut_guards(cuts: Cuts, settings: Settings) -> None:
    """What pods may not send whatever policy says."""
    if not settings.allow_vxlan:
        cuts.add_port(UDP, settings.vxlan_port)
    if not settings.allow_ipip:
        cuts.protocols.add(IPIP)


def _first(pair: tuple[int, IP]) -> int:
    return pair[0]
