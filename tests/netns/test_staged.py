"""Staged policies and services on real packets: staged ones count and change nothing, services are their pods."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import pytest
from town import PODS, TCP, UDP, Probe, Town, built_town, endpoint, until

from tortie.model.document import parse
from tortie.model.meta import Resource
from tortie.render.match import fit

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    yield from built_town()


def calico(kind: str, name: str, spec: str, more: str = "") -> str:
    return f"{{apiVersion: projectcalico.org/v3, kind: {kind}, metadata: {{name: {name}{more}}}, spec: {{{spec}}}}}"


def snp(name: str, spec: str) -> str:
    return calico("StagedNetworkPolicy", name, f"selector: app == 'p1', {spec}", ", namespace: red")


def np(name: str, spec: str) -> str:
    return calico("NetworkPolicy", name, f"selector: app == 'p1', {spec}", ", namespace: red")


def sgnp(name: str, spec: str) -> str:
    return calico("StagedGlobalNetworkPolicy", name, f"selector: app == 'p1', {spec}")


TIERS = (calico("Tier", "early", "order: 1"), calico("Tier", "sec", "order: 100"))


def everybody(town: Town, *documents: str) -> list[Resource]:
    """All pods in one namespace, whose profile allows everything, and these documents."""
    world = "{apiVersion: v1, kind: Namespace, metadata: {name: red}}"
    ends = [endpoint(town.parties[pod], "red", labels={"app": pod}) for pod in PODS]
    return [*parse("\n---\n".join((world, *documents))), *ends]


def reaches(town: Town, probe: Probe) -> bool:
    """Whether the first packet of a connection comes, or else is counted by something that denies."""
    before = Counter(town.counters())
    token = f"staged {probe.source_port}".encode()
    mine = (str(town.parties[probe.source].ips[probe.version]), str(probe.source_port))
    came: list[object] = []

    def settled() -> bool:
        came.extend(town.arrived())
        return any(one in (token, mine) for one in came) or denied()

    def denied() -> bool:
        now = Counter(town.counters())
        now.subtract(before)
        return any(count > 0 and name.startswith(("tier/", "np/red/closed", "no-")) for name, count in now.items())

    with contextlib.closing(town.send(probe, token)):
        assert until(settled), f"{probe} is nowhere"
        return any(one in (token, mine) for one in came)


def counted(town: Town, *probes: Probe) -> tuple[list[bool], dict[str, int]]:
    """What arrives, and what the counters of staged policies have counted of it."""
    before = Counter(town.counters())
    arrived = [reaches(town, probe) for probe in probes]
    after = Counter(town.counters())
    after.subtract(before)
    names = ("snp/", "sgnp/", "staged-tier/")
    return arrived, {name: count for name, count in after.items() if count and name.startswith(names)}


RULES = "ingress: [{action: Deny, protocol: UDP}, {action: Allow, protocol: TCP, destination: {ports: [80]}}]"


@pytest.mark.parametrize("version", [4, 6])
def test_a_staged_policy_counts_and_everything_passes(town: Town, version: int) -> None:
    town.apply(everybody(town, snp("s", RULES)))
    ways = (("p0", "p1", UDP, 53), ("X", "p1", TCP, 80), ("p2", "p1", TCP, 81), ("p0", "p2", UDP, 53))
    arrived, counts = counted(town, *(Probe(source, to, version, *what) for source, to, *what in ways))
    assert arrived == [True, True, True, True]
    end = f"staged-tier/default|{town.parties['p1'].interface}|ingress"
    assert counts == {"snp/red/s|ingress|0": 1, "snp/red/s|ingress|1": 1, end: 1}


@pytest.mark.parametrize("version", [4, 6])
def test_it_counts_what_comes_to_its_place_and_no_other(town: Town, version: int) -> None:
    """Before it a policy that allows TCP 80, behind it one that denies all: both are obeyed as if it were not there."""
    first = np("first", "order: 1, ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}]")
    last = np("closed", "order: 3, ingress: [{action: Deny}]")
    staged = snp("s", "order: 2, ingress: [{action: Allow, protocol: TCP}, {action: Log}, {action: Deny}]")
    probes = [("p0", TCP, 80), ("p0", TCP, 81), ("p0", UDP, 53)]
    for objects, expected in (
        ((first, last), {}),
        ((first, staged, last), {"snp/red/s|ingress|0": 1, "snp/red/s|ingress|1": 1, "snp/red/s|ingress|2": 1}),
    ):
        town.apply(everybody(town, *objects))
        arrived, counts = counted(town, *(Probe(who, "p1", version, *what) for who, *what in probes))
        assert arrived == [True, False, False]
        assert counts == expected


def test_one_that_has_counted_leaves_nothing_to_those_behind_it_but_what_it_passes_on(town: Town) -> None:
    early = sgnp("early", "tier: early, ingress: [{action: Pass, protocol: UDP}, {action: Deny, protocol: TCP}]")
    same = sgnp("same", "tier: early, order: 9, ingress: [{action: Deny}]")
    later = sgnp("later", "tier: sec, ingress: [{action: Allow}]")
    town.apply(everybody(town, *TIERS, early.replace("early, ingress", "early, order: 1, ingress"), same, later))
    arrived, counts = counted(town, Probe("p0", "p1", 4, UDP, 53), Probe("p0", "p1", 4, TCP, 80))
    assert arrived == [True, True]
    assert counts == {"sgnp/early|ingress|0": 1, "sgnp/early|ingress|1": 1, "sgnp/later|ingress|0": 1}


def test_the_end_of_a_tier_in_which_all_is_staged(town: Town) -> None:
    town.apply(everybody(town, *TIERS, sgnp("g", "tier: sec, ingress: [{action: Pass, protocol: UDP}]")))
    arrived, counts = counted(town, Probe("p0", "p1", 4, UDP, 53), Probe("p0", "p1", 4, TCP, 80))
    assert arrived == [True, True]
    assert counts == {
        "sgnp/g|ingress|0": 1,
        f"staged-tier/sec|{town.parties['p1'].interface}|ingress": 1,
    }


def test_staging_comes_and_goes_under_the_same_interface(town: Town) -> None:
    staged = snp("s", RULES)
    town.apply(everybody(town, staged))
    with_it = town.table()
    town.apply(everybody(town))
    assert "si-snp" not in town.table()
    assert counted(town, Probe("p0", "p1", 4, UDP, 53)) == ([True], {})
    town.apply(everybody(town, staged))
    assert town.table() == with_it


def behind(town: Town, *pods: str, name: str = "web", ports: str = "{port: 80}") -> Iterator[str]:
    """The slices of a service, one of each family."""
    for version, kind in ((4, "IPv4"), (6, "IPv6")):
        ends = ", ".join(
            f'{{addresses: ["{town.parties[pod].ips[version]}"], conditions: {{ready: false}}}}' for pod in pods
        )
        labels = f"kubernetes.io/service-name: {name}"
        yield (
            f"{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: {kind}, metadata: "
            f"{{name: {name}-{version}, namespace: red, labels: {{{labels}}}}}, endpoints: [{ends}], ports: [{ports}]}}"
        )


@pytest.mark.parametrize("version", [4, 6])
def test_a_service_as_a_destination_is_its_pods_at_its_ports(town: Town, version: int) -> None:
    rules = "selector: app == 'p0', types: [Egress], egress: [{action: Allow, destination: {services: {name: web}}}]"
    policy = calico("NetworkPolicy", "out", rules, ", namespace: red")
    asked = (("p1", TCP, 80), ("p1", TCP, 81), ("p1", UDP, 80), ("p2", TCP, 80), ("X", TCP, 80))

    def reached(*documents: str) -> list[bool]:
        town.apply(everybody(town, policy, *documents))
        return [reaches(town, Probe("p0", to, version, protocol, port)) for to, protocol, port in asked]

    assert reached() == [False] * 5
    assert reached(*behind(town, "p1")) == [True, False, False, False, False]
    more = "{port: 81}, {protocol: UDP, port: 80}, {name: any}"
    assert reached(*behind(town, "p1", "p2", ports=more)) == [False, True, True, False, False]
    assert reached(*behind(town, "p2")) == [False, False, False, True, False]


@pytest.mark.parametrize("version", [4, 6])
def test_a_service_as_a_source_is_its_pods_whatever_the_port(town: Town, version: int) -> None:
    policy = np("in", "ingress: [{action: Allow, source: {services: {name: web}}}]")
    town.apply(everybody(town, policy, *behind(town, "p2")))
    arrived = [
        reaches(town, Probe(who, "p1", version, UDP, port)) for who, port in (("p2", 53), ("p2", 80), ("p3", 80))
    ]
    assert arrived == [True, True, False]


def test_names_of_any_length_are_counted_under_the_name_that_the_report_asks_for(town: Town) -> None:
    name, rules = "a" * 200 + "." + "b" * 52, "ingress: [{action: Deny}], egress: [{action: Log}]"
    town.apply(everybody(town, calico("StagedGlobalNetworkPolicy", name, rules)))
    before = Counter(town.counters())
    assert reaches(town, Probe("p0", "p1", 4, UDP, 53))
    after = Counter(town.counters())
    after.subtract(before)
    for direction in ("ingress", "egress"):
        assert after[fit(f"sgnp/{name}|{direction}|0")] == 1
