"""The quick way to verdicts about many against the explainer, and the diff against both, in worlds at random."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from policy_rules import some_policy
from policy_worlds import ICMP_REQUESTS, NODE, PLACES, Chance, made, some_resources
from tortie.base.addr import parse_ip
from tortie.calc.explain import Party
from tortie.calc.simulate import OUTSIDE, OUTSIDE_IPS, Simulation
from tortie.calc.simulate.diff import Difference, difference
from tortie.calc.simulate.names import named
from tortie.calc.simulate.reach import Reach
from tortie.calc.simulate.services import ICMP, OTHER, Cuts, Service, of_port, words
from tortie.model.hostendpoint import HostEndpoint
from tortie.model.meta import Resource
from tortie.model.policy import PORT_PROTOCOLS

PORTS = (0, 1, 53, 79, 80, 81, 8080, 9090, 65535)
SOURCE_PORTS = (1, 1023, 20000, 40000, 60000)
PROTOCOLS = (1, 4, 6, 17, 47, 58, 132, 136, 200)

seeds = st.integers(0, 2**32)


def service_at_random(rng: Chance) -> Service:
    version, protocol = rng.choice((4, 6)), rng.choice(PROTOCOLS)
    if protocol in (1, 58):
        kind = rng.choice((*ICMP_REQUESTS[version], 3))
        return Service(version, ICMP[version], icmp=(kind, rng.choice((0, 3))))
    port, source = rng.choice(PORTS), rng.choice(SOURCE_PORTS)
    if protocol not in PORT_PROTOCOLS:
        return Service(version, protocol)
    return Service(version, protocol, port, port, (source, source))


def lot_of(services: list[Service], one: Service) -> Service:
    """The lot that a packet is of: there is exactly one."""
    protocols = {each.protocol for each in services if each.version == one.version}
    protocol = one.protocol if one.protocol in protocols else OTHER
    near = [each for each in services if (each.version, each.protocol) == (one.version, protocol)]
    if protocol == ICMP[one.version]:
        kinds, codes = {each.icmp[0] for each in near}, {each.icmp[1] for each in near}
        kind = one.icmp[0] if one.icmp[0] in kinds else max(kinds)
        code = one.icmp[1] if one.icmp[1] in codes else max(codes)
        near = [each for each in near if each.icmp == (kind, code)]
    elif protocol in PORT_PROTOCOLS:
        port = one.source[0]
        near = [each for each in near if each.first <= one.first <= each.last]
        near = [each for each in near if each.source[0] <= port <= each.source[1]]
    (found,) = near
    return found


def explained(simulation: Simulation, source: Party, destination: Party, service: Service) -> bool:
    packet = service.packet(OUTSIDE_IPS[0], OUTSIDE_IPS[0])
    return simulation.explainer.explain(
        source,
        destination,
        str(service.protocol),
        packet.destination_port,
        service.version,
        source_port=packet.source_port,
        icmp=(packet.icmp_type, packet.icmp_code),
    ).allowed


def parties(simulation: Simulation) -> list[Party]:
    strangers = (Party(ip, (parse_ip(ip),)) for ip in ("198.51.100.77", "2001:db8:51::77", "10.244.1.200"))
    return [*map(simulation.party, simulation.endpoints), simulation.party(OUTSIDE), *strangers]


def host_endpoint(rng: Chance) -> Resource:
    spec = {"node": NODE, "interfaceName": rng.choice(("*", "eth0")), "profiles": ["own"]}
    return made(HostEndpoint, "host", labels=rng.labels(), spec=spec)


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_the_quick_way_and_the_explainer_agree(seed: int) -> None:
    rng = Chance(seed)
    simulation = Simulation.of_stored(list(some_resources(rng)))
    every = parties(simulation)
    reach, cuts = Reach(simulation, every), Cuts()
    reach.cut(cuts)
    services = list(cuts.services())
    for _ in range(60):
        source, destination = rng.sample(range(len(every)), 2)
        asked = service_at_random(rng)
        ends = every[source], every[destination]
        if not all(end.ip(asked.version) for end in ends):
            assert not reach.decision(source, destination, asked).allowed
            continue
        allowed = explained(simulation, *ends, asked)
        lot = lot_of(services, asked)
        assert reach.decision(source, destination, lot).allowed is allowed, (ends, asked, lot)
        bits = reach.peers(source, "egress", lot) >> destination & reach.peers(destination, "ingress", lot) >> source
        assert bool(bits & 1) is allowed


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_host_endpoints_on_the_way_are_asked_too(seed: int) -> None:
    rng = Chance(seed)
    simulation = Simulation.of_stored([*some_resources(rng), host_endpoint(rng)])
    every = [*parties(simulation), *map(simulation.party, simulation.hosts)]
    assert len(simulation.hosts) == 1
    reach = Reach(simulation, every)
    for _ in range(20):
        source, destination = rng.sample(range(len(every)), 2)
        service = of_port(4, 6, rng.choice((22, 80, 8080)))
        ends = every[source], every[destination]
        if all(end.ip(4) for end in ends):
            allowed = explained(simulation, *ends, service)
            assert reach.decision(source, destination, service).allowed is allowed
            out, into = reach.peers(source, "egress", service), reach.peers(destination, "ingress", service)
            assert bool(out >> destination & into >> source & 1) is allowed


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_what_nothing_tells_apart_fares_alike(seed: int) -> None:
    rng = Chance(seed)
    simulation = Simulation.of_stored(list(some_resources(rng)))
    every = parties(simulation)
    reach = Reach(simulation, every)
    alike = [
        (a, b) for a, b in product(range(len(every)), repeat=2) if a < b and reach.signature(a) == reach.signature(b)
    ]
    for (a, b), _ in product(alike[:5], range(5)):
        peer, service = rng.randrange(len(every)), service_at_random(rng)
        if peer not in (a, b) and every[peer].ip(service.version):
            assert reach.decision(a, peer, service).allowed is reach.decision(b, peer, service).allowed
            assert reach.decision(peer, a, service).allowed is reach.decision(peer, b, service).allowed


# --- diff ---------------------------------------------------------------------------------------------------------


def changed_world(rng: Chance) -> tuple[Simulation, Simulation]:
    """A world, and the same with a policy less, or more, or another pod gone."""
    before = list(some_resources(rng))
    if rng.maybe(0.9):  # host endpoints take their time
        before = [one for one in before if not isinstance(one, HostEndpoint)]
    after = list(before)
    for _ in range(rng.randint(0, 2)):
        if rng.maybe(0.5) and len(after) > 1:
            gone = rng.choice(
                [one for one in after if "Policy" in one.KIND.kind or one.KIND.kind == "WorkloadEndpoint"]
            )
            after.remove(gone)
        after.append(some_policy(rng, f"policy{rng.randint(0, 9)}"))
    return Simulation.of_stored(before), Simulation.of_stored(after)


def told(found: Difference, source: str, destination: str, service: Service, opens: bool) -> bool:
    return any(
        one.opens is opens
        and source in one.sources
        and destination in one.destinations
        and any(lot_of(list(one.services), service) == each for each in one.services if covers(each, service))
        for one in found.changes
    )


def covers(lot: Service, one: Service) -> bool:
    if (lot.version, lot.protocol) != (one.version, one.protocol):
        return lot.version == one.version and lot.protocol == OTHER
    ports = lot.first <= one.first <= lot.last and lot.source[0] <= one.source[0] <= lot.source[1]
    return ports or one.protocol == ICMP[one.version] or one.protocol not in PORT_PROTOCOLS


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_a_diff_tells_every_change_and_no_other(seed: int) -> None:
    rng = Chance(seed)
    before, after = changed_world(rng)
    found = difference(before, after)
    names = [name for name in found.pods if name in before.endpoints and name in after.endpoints] + [OUTSIDE]
    for _ in range(80):
        source, destination = rng.sample(names, 2)
        service = of_port(rng.choice((4, 6)), rng.choice((6, 17)), rng.choice(PORTS))
        was, now = (explained(one, one.party(source), one.party(destination), service) for one in (before, after))
        changes = [
            one
            for one in found.changes
            if source in one.sources and destination in one.destinations
            if any(covers(lot, service) for lot in one.services if lot.protocol == service.protocol)
        ]
        assert [one.opens for one in changes] == ([now] if was is not now else []), (source, destination, service)
    for one in found.changes:
        source, destination = rng.choice(one.sources), rng.choice(one.destinations)
        service = rng.choice(one.services)
        if source == destination or not {source, destination} <= set(names) or service.protocol == OTHER:
            continue
        was, now = (explained(each, each.party(source), each.party(destination), service) for each in (before, after))
        assert (was, now) == (not one.opens, one.opens), (one, source, destination, service)


def test_the_same_manifests_make_no_difference() -> None:
    rng = Chance(7)
    world = list(some_resources(rng))
    found = difference(Simulation.of_stored(world), Simulation.of_stored(list(reversed(world))))
    assert not found.changes
    assert not found.opens
    assert not found.closes


def test_addresses_of_the_world_are_places_as_such() -> None:
    assert {place.ips[4] for place in PLACES.values()} >= {parse_ip("198.51.100.9")}


def test_words_for_packets() -> None:
    cuts = Cuts()
    cuts.add_port(6, 80)
    cuts.add_port(6, 443)
    cuts.add_port(17, 53)
    every = list(cuts.services())
    tcp = [one for one in every if one.protocol == 6]
    assert words(every, every) == "everything"
    assert words([one for one in tcp if one.first == 80], every) == "tcp 80"
    assert words([one for one in tcp if one.first != 80], every) == "tcp but 80"
    assert words([one for one in tcp if one.first in (80, 443)], every) == "tcp 80,443"
    assert words([one for one in every if one.first != 53], every) == "everything but udp 53"
    assert words([one for one in every if one.version == 4 and one.first == 53], every) == "udp 53 (IPv4)"
    assert words(tcp, every) == "tcp"


def test_words_for_many() -> None:
    pods = [f"{space}/{app}-{i}" for space in ("a", "b", "c") for app in ("web", "db") for i in (1, 2)]
    outside = ["outside", "192.0.2.0/24"]
    assert named(pods, pods, outside) == "all pods"
    assert named([*pods, *outside], pods, outside) == "everybody"
    assert named([*pods[:4], "b/web-1", *outside], pods, outside) == "a/*, b/web-1, any address"
    assert named(["a/web-1", "a/web-2", "b/db-1", "outside"], pods, outside) == "a/web-*, b/db-1, outside"
    assert named([name for name in pods if name.endswith("1")], pods, most=2) == "a/db-1, a/web-1 and 4 more"
    assert named([name for name in pods if name not in ("a/db-1", "b/web-1")], pods) == "all pods (but a/db-1, b/web-1)"
