"""Policy on real packets: what the verdict says is what the kernel does, and the rule it names is the one that counts.

Datastores are generated, hundreds per run, and so are connections. Nothing is timed: a probe is settled when what must
arrive has arrived and the counters of the rules that must decide have grown, by exactly as much as predicted.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from town import (
    HIGH_PORTS,
    HOST_ACTION,
    ICMP,
    ICMP6,
    ICMP_REQUESTS,
    LOW_PORTS,
    PODS,
    PORTS,
    TCP,
    UDP,
    Party,
    Probe,
    Town,
    built_town,
    endpoint,
    made,
    until,
)

from tortie.base.errors import ConfigError
from tortie.calc.cluster import Cluster
from tortie.calc.state import DesiredState
from tortie.dataplane.stages.nft import intact
from tortie.model.document import dump_yaml
from tortie.model.k8s import K8sNetworkPolicy, Namespace, ServiceAccount
from tortie.model.meta import Resource
from tortie.model.policy import GlobalNetworkPolicy, GlobalNetworkSet, NetworkPolicy, NetworkSet, Profile, Tier
from tortie.policy.rules import Direction, rule_id
from tortie.policy.verdict import Packet, judge, membership
from tortie.render.nft import NftRenderer

pytestmark = pytest.mark.root

SEED = int(os.environ.get("TORTIE_SEED") or random.randrange(2**32))
"""Printed by what fails; TORTIE_SEED repeats a run."""


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    yield from built_town()


# --- generated policies ----------------------------------------------------------------------------------------------

APPS, NAMESPACES, ACCOUNTS = ("web", "db", "client"), ("red", "blue"), ("default", "robot")
SELECTORS = (
    "app == 'web'", "app != 'web'", "app in {'db', 'client'}", "app not in {'db'}", "has(zone)", "!has(zone)",
    "zone == 'z1' || app == 'db'", "all()", "zone starts with 'z' && !(app == 'web')", "outside == 'yes'",
)  # fmt: skip
NAMESPACE_SELECTORS = ("all()", "global()", "team == 'red'", "team != 'red'", "!has(team)")
NETS = {
    4: ("10.244.1.10/32", "10.244.1.10/31", "10.244.1.12/30", "10.244.0.0/16", "198.51.100.0/24", "198.51.100.9/32",
        "198.51.100.64/26", "0.0.0.0/0"),
    6: ("fd00:244::10/128", "fd00:244::10/127", "fd00:244::12/127", "fd00:244::/64", "2001:db8:51::/64",
        "2001:db8:51::9/128", "2001:db8:51::40/122", "::/0"),
}  # fmt: skip
BLOCKS = (
    ("10.244.1.8/29", "10.244.1.10/31"),
    ("fd00:244::/64", "fd00:244::10/127"),
    ("0.0.0.0/0", "198.51.100.64/26"),
    ("2001:db8:51::/64", "2001:db8:51::9/128"),
)
"""Of an ipBlock, each with an exception."""
KUBERNETES_PORTS: tuple[dict[str, Any], ...] = (
    {"port": 80, "endPort": 8080},
    {"port": 53, "protocol": "UDP"},
    {"protocol": "UDP"},
    {"port": "http"},
    {"port": "dns", "protocol": "UDP"},
    {"port": 9090},
)
PORT_ENTRIES: tuple[int | str, ...] = (53, 80, 8080, "80:81", "8000:9999", "http", "dns", "nobody")
SOURCE_PORT_ENTRIES: tuple[int | str, ...] = ("20000:39999", "40000:60000", "1:1023")


class Chance(random.Random):
    """Random choices that read well."""

    def maybe(self, probability: float) -> bool:
        return self.random() < probability

    def some(self, choices: Iterable[Any], most: int) -> list[Any]:
        every = list(choices)
        return self.sample(every, self.randint(1, min(most, len(every))))

    def labels(self) -> dict[str, str]:
        found = {"app": self.choice(APPS)} if self.maybe(0.9) else {}
        return found | ({"zone": self.choice(("z1", "z2"))} if self.maybe(0.5) else {})


def some_entity(rng: Chance, version: int, ports: bool, source: bool) -> dict[str, Any]:
    entity: dict[str, Any] = {}
    if rng.maybe(0.25):
        entity["nets"] = rng.some(NETS[version], 3)
    if rng.maybe(0.15):
        entity["notNets"] = rng.some(NETS[version][:-1], 2)
    if rng.maybe(0.4):
        entity["selector"] = rng.choice(SELECTORS)
    if rng.maybe(0.2):
        entity["notSelector"] = rng.choice(SELECTORS)
    if rng.maybe(0.2):
        entity["namespaceSelector"] = rng.choice(NAMESPACE_SELECTORS)
    if rng.maybe(0.1):
        entity["serviceAccounts"] = rng.choice(
            ({"names": ["robot"]}, {"selector": "rank == 'high'"}, {"names": ["default", "robot"], "selector": "all()"})
        )
    entries = SOURCE_PORT_ENTRIES if source else PORT_ENTRIES
    if ports and rng.maybe(0.2 if source else 0.6):
        entity["ports"] = rng.some(entries, 3)
    if ports and rng.maybe(0.1):
        entity["notPorts"] = rng.some(entries, 2)
    return entity


def some_rule(rng: Chance) -> dict[str, Any]:
    rule: dict[str, Any] = {"action": rng.choice(("Allow", "Allow", "Allow", "Deny", "Deny", "Pass", "Pass", "Log"))}
    if rng.maybe(0.6):
        rule["protocol"] = rng.choice(("TCP", "UDP", "TCP", "UDP", "ICMP", "ICMPv6", "ICMP", "ICMPv6", 17))
    elif rng.maybe(0.3):
        rule["notProtocol"] = rng.choice(("TCP", "UDP", "ICMP", "ICMPv6"))
    protocol = rule.get("protocol")
    if protocol in ("ICMP", "ICMPv6"):
        version = 4 if protocol == "ICMP" else 6
        for name in ("icmp", "notICMP"):
            if rng.maybe(0.4):
                code = {"code": rng.choice((0, 3))} if rng.maybe(0.5) else {}
                rule[name] = {"type": rng.choice(ICMP_REQUESTS[version]), **code}
    else:
        version = rng.choice((4, 6))
        if rng.maybe(0.1):
            rule["ipVersion"] = version
    ports = protocol in ("TCP", "UDP", 17)
    rule["source"] = some_entity(rng, version, ports, source=True)
    rule["destination"] = some_entity(rng, version, ports, source=False)
    if protocol is None and rng.maybe(0.1):
        rule["destination"]["ports"] = ["http"]
    return rule


def some_spec(rng: Chance) -> dict[str, Any]:
    return {
        "tier": rng.choice(("first", "second", "default", "default", "ghost")),
        "order": rng.choice((None, 1, 2, 2, 1500)),
        "selector": rng.choice((*SELECTORS, "all()", "")),
        "types": rng.some(("Ingress", "Egress"), 2),
        "ingress": [some_rule(rng) for _ in range(rng.randint(0, 3))],
        "egress": [some_rule(rng) for _ in range(rng.randint(0, 3))],
        **({"serviceAccountSelector": "rank == 'high'"} if rng.maybe(0.1) else {}),
    }


def some_peer(rng: Chance) -> dict[str, Any]:
    if rng.maybe(0.3):
        cidr, inside = rng.choice(BLOCKS)
        return {"ipBlock": {"cidr": cidr, **({"except": [inside]} if rng.maybe(0.5) else {})}}
    peer: dict[str, Any] = {}
    if rng.maybe(0.7):
        operator = rng.choice(("In", "NotIn", "Exists", "DoesNotExist"))
        values = {"values": rng.some(APPS, 2)} if "In" in operator else {}
        peer["podSelector"] = rng.choice(
            (
                {},
                {"matchLabels": {"app": rng.choice(APPS)}},
                {"matchExpressions": [{"key": "app", "operator": operator, **values}]},
            )
        )
    if rng.maybe(0.5) or not peer:
        peer["namespaceSelector"] = rng.choice(({}, {"matchLabels": {"team": "red"}}))
    return peer


def some_kubernetes_rule(rng: Chance, peers: str) -> dict[str, Any]:
    rule: dict[str, Any] = {}
    if rng.maybe(0.8):
        rule[peers] = [some_peer(rng) for _ in range(rng.randint(1, 2))]
    if rng.maybe(0.6):
        rule["ports"] = rng.some(KUBERNETES_PORTS, 3)
    return rule


def some_kubernetes_spec(rng: Chance) -> dict[str, Any]:
    return {
        "podSelector": rng.choice(({}, {"matchLabels": {"app": rng.choice(APPS)}})),
        "policyTypes": rng.some(("Ingress", "Egress"), 2),
        "ingress": [some_kubernetes_rule(rng, "from") for _ in range(rng.randint(0, 2))],
        "egress": [some_kubernetes_rule(rng, "to") for _ in range(rng.randint(0, 2))],
    }


def some_policy(rng: Chance, name: str) -> Resource:
    """Drawn until admission would take it: a rule must not mix IP versions, for instance."""
    for _ in range(1000):
        kind = rng.choice((NetworkPolicy, NetworkPolicy, GlobalNetworkPolicy, GlobalNetworkPolicy, K8sNetworkPolicy))
        spec = some_kubernetes_spec(rng) if kind is K8sNetworkPolicy else some_spec(rng)
        if kind is GlobalNetworkPolicy and rng.maybe(0.3):
            spec["namespaceSelector"] = rng.choice(NAMESPACE_SELECTORS[:-1])
        with contextlib.suppress(ConfigError):
            return made(kind, name, "" if kind is GlobalNetworkPolicy else rng.choice(NAMESPACES), spec=spec)
    raise AssertionError("no policy that admission takes")


def some_resources(rng: Chance, town: Town) -> Iterator[Resource]:
    """A whole datastore."""
    for name in NAMESPACES:
        yield made(Namespace, name, labels={"team": rng.choice(NAMESPACES)} if rng.maybe(0.8) else {})
        for account in ACCOUNTS:
            yield made(ServiceAccount, account, name, {"rank": rng.choice(("high", "low"))})
    for pod in PODS:
        namespace = rng.choice(NAMESPACES)
        ports = [
            {"name": rng.choice(("http", "dns")), "protocol": rng.choice(("TCP", "UDP")), "port": rng.choice(PORTS)}
            for _ in range(rng.randint(0, 3))
        ]
        profiles = rng.sample(("own", f"kns.{namespace}", "missing"), 2) if rng.maybe(0.3) else ()
        labels = rng.labels()
        yield endpoint(town.parties[pod], namespace, rng.choice(ACCOUNTS), profiles, labels=labels, ports=ports)
    for name, order in (("first", 10), ("second", 20)):
        if rng.maybe(0.8):
            yield made(Tier, name, spec={"order": order, "defaultAction": rng.choice(("Deny", "Pass"))})
    for i in range(rng.randint(0, 3)):
        nets = rng.some((*NETS[4], *NETS[6]), 4)
        labels = {"outside": rng.choice(("yes", "no")), **rng.labels()}
        if rng.maybe(0.5):
            yield made(GlobalNetworkSet, f"set{i}", labels=labels, spec={"nets": nets})
        else:
            yield made(NetworkSet, f"set{i}", rng.choice(NAMESPACES), labels, spec={"nets": nets})
    rules = {
        "ingress": [{"action": rng.choice(("Allow", "Pass", "Deny")), "protocol": "TCP"}],
        "egress": [{"action": "Allow"}],
    }
    yield made(Profile, "own", spec={**rules, "labelsToApply": {"zone": "z1"}})
    for i in range(rng.randint(1, 7)):
        yield some_policy(rng, f"policy{i}")


def some_probe(rng: Chance) -> Probe:
    """At least one end is a pod."""
    source, destination = rng.sample((*PODS, "X", "Y", "node"), 2)
    while not {source, destination} & set(PODS):
        source, destination = rng.sample((*PODS, "X", "Y", "node"), 2)
    version, source_port = rng.choice((4, 6)), next(rng.choice((LOW_PORTS, HIGH_PORTS)))
    if rng.maybe(0.25):
        kind = rng.choice(ICMP_REQUESTS[version])
        code = rng.choice((0, 3)) if kind != 13 else 0  # Linux answers a timestamp with code 0, which then is invalid
        return Probe(source, destination, version, ICMP if version == 4 else ICMP6, kind, source_port, code)
    return Probe(source, destination, version, rng.choice((TCP, UDP)), rng.choice(PORTS), source_port)


# --- the verdict against the kernel ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """What becomes of a probe: the rules that decide on its way, and whether it arrives."""

    rules: tuple[str, ...]
    arrives: bool


def predict(town: Town, state: DesiredState, probe: Probe) -> Prediction:
    contains = membership(lambda ref: state.sets[ref])
    source, destination = town.parties[probe.source], town.parties[probe.destination]
    ends = source.ips[probe.version], destination.ips[probe.version]
    if probe.is_icmp:
        packet = Packet(*ends, probe.protocol, icmp_type=probe.what, icmp_code=probe.code)
    else:
        packet = Packet(*ends, probe.protocol, probe.source_port, probe.what)
    asked: list[tuple[Party, Direction]] = [(source, "egress")] if probe.source in PODS else []
    if probe.destination in PODS and probe.source != "node":
        asked.append((destination, "ingress"))
    rules: list[str] = []
    for party, direction in asked:
        verdict = judge(packet, state.endpoints[party.interface].policy, direction, contains)
        rules.append(verdict.rule)
        if not verdict.allowed:
            return Prediction(tuple(rules), False)
    if probe.destination == "node":
        return Prediction((*rules, HOST_ACTION), False)
    return Prediction(tuple(rules), True)


def undecided(state: DesiredState) -> set[str]:
    """The names of the rules that count and have not the last word: Log and Pass."""
    return {
        rule_id(policy.key, direction, i)
        for policy in state.policies.values()
        for direction in ("ingress", "egress")
        for i, rule in enumerate(policy.rules(direction))  # type: ignore[arg-type]
        if rule.action in ("Log", "Pass")
    }


def observe(
    town: Town, probes: list[Probe], expected: list[Prediction], ignored: set[str], before: Counter[str]
) -> str:
    """Send the probes; the answer is what is not as expected, "" when all is."""
    ends = [(str(town.parties[probe.source].ips[probe.version]), str(probe.source_port)) for probe in probes]
    tokens: list[Any] = [
        end if probe.protocol == TCP else f"probe {i} {'/'.join(end)}".ljust(60).encode()
        for i, (probe, end) in enumerate(zip(probes, ends, strict=True))
    ]
    must_arrive = {token for token, outcome in zip(tokens, expected, strict=True) if outcome.arrives}
    must_count = Counter(rule for outcome in expected for rule in outcome.rules)
    seen: set[Any] = set()
    counted: Counter[str] = Counter()

    def arrived() -> bool:
        seen.update(town.arrived())
        return must_arrive <= seen

    def decided() -> bool:
        nonlocal counted
        now = Counter({name: count for name, count in town.counters().items() if name not in ignored})
        now.subtract(before)
        counted = +now
        return counted.total() >= must_count.total()

    with contextlib.ExitStack() as opened:
        for probe, token, outcome in zip(probes, tokens, expected, strict=True):
            sent = town.send(probe, token if isinstance(token, bytes) else b"")
            if probe.protocol == TCP and not outcome.arrives:
                sent.close()  # or a second SYN would be counted on a slow machine
            else:
                opened.callback(sent.close)
        until(arrived)
        until(decided)
    seen.update(town.arrived())
    wrong = [f"{probe}: {outcome}" for probe, token, outcome in zip(probes, tokens, expected, strict=True)
             if (token in seen) != outcome.arrives]  # fmt: skip
    strange = [str(token) for token in seen - set(tokens) if isinstance(token, bytes) and token.startswith(b"probe")]
    differ = [f"{rule}: {counted[rule]} packets, expected {must_count[rule]}"
              for rule in sorted(counted.keys() | must_count.keys()) if counted[rule] != must_count[rule]]  # fmt: skip
    return "\n".join((*(f"not so: {one}" for one in wrong), *(f"unexpected: {one}" for one in strange), *differ))


COMBINATIONS, BATCHES, PROBES = 26, 8, 10


@pytest.mark.parametrize("batch", range(BATCHES))
def test_the_kernel_does_what_the_verdict_says(town: Town, batch: int) -> None:
    """208 datastores, each reached from the one before, sometimes as after a restart; ten new connections in each."""
    allowed = denied = 0
    for number in range(COMBINATIONS):
        rng = Chance(f"{SEED} {batch} {number}")
        resources = list(some_resources(rng, town))
        whole = rng.maybe(0.3)
        state = town.apply(resources, whole=whole)
        fresh = Cluster("node")
        for resource in rng.sample(resources, len(resources)):
            fresh.put(resource)
        assert replace(fresh.state(), generation=0) == replace(state, generation=0), f"TORTIE_SEED={SEED}"
        probes = [some_probe(rng) for _ in range(PROBES)]
        expected = [predict(town, state, probe) for probe in probes]
        ignored = undecided(state)
        before = Counter() if whole else Counter(town.counters())  # a new table counts from zero
        problem = observe(town, probes, expected, ignored, before)
        if problem:
            where = f"TORTIE_SEED={SEED}, batch {batch}, combination {number}"
            everything = "\n".join(f"{probe}: {outcome}" for probe, outcome in zip(probes, expected, strict=True))
            pytest.fail(f"{where}\n{problem}\n\n{everything}\n\n{dump_yaml(*resources)}\n{town.table()}")
        allowed += sum(outcome.arrives for outcome in expected)
        denied += sum(not outcome.arrives for outcome in expected)
    assert min(allowed, denied) > COMBINATIONS, f"the draw is lopsided: {allowed} allowed, {denied} denied"
    assert intact(NftRenderer().render(town.cluster.state()), town.node.netns)
