"""What people call an address or a rule's number, asked while somebody watches; nothing is kept of it otherwise."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tortie.base.addr import IP, Net, parse_ip
from tortie.calc.cluster import Cluster
from tortie.calc.denials import Denial, denial
from tortie.calc.sets import ItemKey
from tortie.calc.state import EndpointKey
from tortie.calc.workloads import endpoint_addresses
from tortie.policy.rules import DIRECTIONS, Policy, PolicyKey, rule_id
from tortie.render.match import fit
from tortie.render.ruleset import Chain, Ruleset

_DENIES = re.compile(r' meta mark set (0x[0-9a-f]{8}) goto \w+ comment "(.*)"')
_CUT = re.compile(r".*_[0-9a-f]{16}")
"""A name as `fit` makes it of one that does not fit."""
REST = 20
"""How many times as long as looking at all addresses has taken is waited before they are looked at again."""


@dataclass(frozen=True, slots=True)
class Name:
    """`kind` is pod, node or networkset."""

    kind: str
    text: str


@dataclass(slots=True)
class _Book:
    """Everybody's addresses at one moment. `nets` are by version and prefix length, then by the number before it."""

    endpoints: dict[IP, EndpointKey] = field(default_factory=dict)
    nodes: dict[IP, str] = field(default_factory=dict)
    nets: dict[tuple[int, int], dict[int, list[str]]] = field(default_factory=dict)

    def add(self, item: ItemKey, ips: tuple[IP, ...], nets: tuple[Net, ...]) -> None:
        kind, namespace, name = item
        if kind == "wep":
            self.endpoints.update((ip, (namespace, name)) for ip in ips)
        for net in nets:
            number = int(net.network_address) >> (net.max_prefixlen - net.prefixlen)
            numbers = self.nets.setdefault((net.version, net.prefixlen), {})
            numbers.setdefault(number, []).append(f"{namespace}/{name}".removeprefix("/"))

    def networksets(self, ip: IP) -> list[str]:
        """Those with the narrowest network around an address."""
        for version, length in sorted(self.nets, reverse=True):
            if version == ip.version:
                found = self.nets[version, length].get(int(ip) >> (ip.max_prefixlen - length))
                if found:
                    return sorted(found)
        return []


class AddressNames:
    """Of pods, nodes and network sets of the whole cluster. After `changed` they are looked at again, though not at
    every question: whoever has come a moment ago may be nobody yet, but nobody is called as another was before."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._clock = clock
        self._book: _Book | None = None
        self._stale = False
        self._rest_until = 0.0

    def changed(self) -> None:
        """Something in the cluster is not as it was."""
        self._stale = True

    def of(self, ip: IP) -> Name | None:
        found = self._look_up(ip)
        if found is None and self._stale and self._clock() >= self._rest_until:
            self._book = None
            found = self._look_up(ip)
        return found

    def pod(self, key: EndpointKey) -> str | None:
        """`namespace/pod` of an endpoint."""
        endpoint = self._cluster.endpoint(key)
        return f"{endpoint.namespace}/{endpoint.spec.pod or endpoint.name}" if endpoint is not None else None

    def _look_up(self, ip: IP) -> Name | None:
        book = self._book = self._book or self._written()
        key = book.endpoints.get(ip)
        endpoint = self._cluster.endpoint(key) if key is not None else None
        if endpoint is not None and ip in endpoint_addresses(endpoint).ips:
            return Name("pod", f"{endpoint.namespace}/{endpoint.spec.pod or endpoint.name}")
        if (node := book.nodes.get(ip)) is not None and str(ip) == self._cluster.address_of(node, ip.version):
            return Name("node", node)
        sets = book.networksets(ip)
        return Name("networkset", ", ".join(sets)) if sets else None

    def _written(self) -> _Book:
        began = self._clock()
        book = _Book()
        for item, addresses in self._cluster.addresses():
            book.add(item, addresses.ips, addresses.nets)
        for node in self._cluster.nodes():
            for version in (4, 6):
                if (text := self._cluster.address_of(node, version)) is not None:
                    book.nodes[parse_ip(text)] = node
        self._stale = False
        self._rest_until = self._clock() + max(1.0, REST * (self._clock() - began))
        return book


class RuleNames:
    """Of all rulesets that it has seen: what was dropped by a rule that is gone now is still told by its name."""

    def __init__(self) -> None:
        self._seen: Ruleset | None = None
        self._chains: dict[str, Chain] = {}
        self._names: dict[int, list[str]] = {}
        self._whole: dict[str, str] = {}

    def learn(self, ruleset: Ruleset | None) -> None:
        """Costs a look at each chain, and a reading of those that are new."""
        if ruleset is None or ruleset is self._seen:
            return
        self._seen = ruleset
        for name, chain in ruleset.chains.items():
            if self._chains.get(name) is not chain:
                self._chains[name] = chain
                for rule in chain.rules:
                    if found := _DENIES.search(rule):
                        names = self._names.setdefault(int(found[1], 16), [])
                        if found[2] not in names:
                            names.append(found[2])

    def all(self) -> set[str]:
        return {name for names in self._names.values() for name in names}

    def of(self, number: int, policies: Mapping[PolicyKey, Policy]) -> Denial:
        """What a mark means. Of two rules with one number it cannot be told which it was: both are named."""
        found = [self.say(name, policies) for name in self._names.get(number, ())]
        if not found:
            return Denial("", f"a rule that this agent does not know, number {number:#010x}")
        if len(found) == 1:
            return found[0]
        return Denial(" or ".join(one.name for one in found), " or ".join(one.words for one in found))

    def say(self, name: str, policies: Mapping[PolicyKey, Policy]) -> Denial:
        return denial(self._uncut(name, policies), policies)

    def _uncut(self, name: str, policies: Mapping[PolicyKey, Policy]) -> str:
        """The whole name of a policy's rule whose name in the kernel is cut."""
        if not _CUT.fullmatch(name):
            return name
        if name not in self._whole:
            every = (
                rule_id(key, direction, index)
                for key, policy in policies.items()
                for direction in DIRECTIONS
                for index in range(len(policy.rules(direction)))
            )
            self._whole[name] = next((one for one in every if fit(one) == name), name)
        return self._whole[name]
