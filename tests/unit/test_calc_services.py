"""What is behind a service, as slices come, change and go, and what that costs."""

from __future__ import annotations

import time
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.base.addr import host_net, parse_ip
from tortie.calc.services import Services, behind
from tortie.model.document import convert
from tortie.model.meta import Metadata
from tortie.model.service import SERVICE_NAME, Endpoint, EndpointPort, EndpointSlice
from tortie.policy.rules import Member, ServiceSet
from tortie.render.members import MemberSets

WEB, WEB_IPS, DB = ServiceSet("red", "web", True), ServiceSet("red", "web", False), ServiceSet("red", "db", True)


Ports = tuple[tuple[str, int | None], ...]


def slice_of(name: str, service: str, *ips: str, ports: Ports = (("TCP", 80),), kind: str = "IPv4") -> EndpointSlice:
    body = {
        "metadata": {"name": name, "namespace": "red", "labels": {SERVICE_NAME: service} if service else {}},
        "addressType": kind,
        "endpoints": [{"addresses": [ip], "conditions": {"ready": False}} for ip in ips],
        "ports": [{"protocol": protocol, "port": port} for protocol, port in ports],
    }
    return convert(EndpointSlice, body)


def put(services: Services, one: EndpointSlice) -> None:
    services.set_slice("red", one.name, one)


def triples(*texts: str) -> frozenset[tuple[object, ...]]:
    parts = (text.split() for text in texts)
    return frozenset((parse_ip(ip), int(protocol), int(port)) for ip, protocol, port in parts)


def members_of(one: EndpointSlice, *, ports: bool) -> list[Member]:
    found = behind(one)
    return list(found.members(ports=ports)) if found is not None else []


def test_every_address_with_every_port_that_has_a_number() -> None:
    one = slice_of("a", "web", "10.0.0.1", "10.0.0.2", ports=(("TCP", 80), ("SCTP", 81), ("UDP", None)))
    assert frozenset(members_of(one, ports=True)) == triples(
        "10.0.0.1 6 80", "10.0.0.1 132 81", "10.0.0.2 6 80", "10.0.0.2 132 81"
    )
    assert members_of(one, ports=False) == [host_net(parse_ip(ip)) for ip in ("10.0.0.1", "10.0.0.2")]
    assert not members_of(slice_of("b", "web", "host.example", kind="FQDN"), ports=False)
    assert not members_of(slice_of("c", "web", "10.0.0.1", ports=(("TCP", None),)), ports=True)
    assert behind(slice_of("d", "", "10.0.0.1")) is None


def test_only_what_is_needed_is_kept_and_what_did_not_change_is_the_same_object() -> None:
    services = Services()
    put(services, slice_of("a", "web", "10.0.0.1"))
    put(services, slice_of("b", "db", "10.0.0.2"))
    assert services.members() == {}
    services.need([WEB, DB])
    before = services.members()
    assert before == {WEB: triples("10.0.0.1 6 80"), DB: triples("10.0.0.2 6 80")}
    put(services, slice_of("c", "web", "10.0.0.3"))
    after = services.members()
    assert after[WEB] == triples("10.0.0.1 6 80", "10.0.0.3 6 80")
    assert after[DB] is before[DB]
    services.need([WEB_IPS])
    assert services.members() == {WEB_IPS: frozenset(host_net(parse_ip(ip)) for ip in ("10.0.0.1", "10.0.0.3"))}


def unchecked(name: str, service: str, *ips: str, kind: str = "IPv4") -> EndpointSlice:
    """As a datastore that looks at nothing has it."""
    metadata = Metadata(name=name, namespace="red", labels={SERVICE_NAME: service})
    endpoints = tuple(Endpoint(addresses=(ip,)) for ip in ips)
    return EndpointSlice(metadata=metadata, address_type=kind, endpoints=endpoints, ports=(EndpointPort(port=80),))  # type: ignore[arg-type]


def test_what_is_no_address_of_the_slices_version_is_left_out_and_said() -> None:
    services = Services()
    put(services, unchecked("a", "web", "10.0.0.1", "fd00::1", "here", "::ffff:10.0.0.9", "10.0.0.256", "10.0.0.2"))
    put(services, unchecked("b", "web", "10.0.0.3", "fd00::3", kind="IPv6"))
    put(services, unchecked("c", "db", "fd00::4"))
    assert services.problems() == {}, "nobody asks for it"
    services.need([WEB, WEB_IPS])
    assert services.members()[WEB] == triples("10.0.0.1 6 80", "10.0.0.2 6 80", "fd00::3 6 80")
    assert services.members()[WEB_IPS] == {host_net(parse_ip(ip)) for ip in ("10.0.0.1", "10.0.0.2", "fd00::3")}
    four, six = (f"must be IPv{version} by the slice's addressType" for version in (4, 6))
    assert services.problems() == {
        "an address of EndpointSlice red/a": f'"fd00::1", "here", "::ffff:10.0.0.9" and 1 more: {four}',
        "an address of EndpointSlice red/b": f'"10.0.0.3": {six}',
    }
    put(services, unchecked("a", "web", "10.0.0.1"))
    services.set_slice("red", "b", None)
    assert services.problems() == {}
    assert services.members()[WEB] == triples("10.0.0.1 6 80")
    services.need([DB])
    assert services.problems() == {"an address of EndpointSlice red/c": f'"fd00::4": {four}'}
    assert services.members() == {DB: frozenset()}
    services.need([])
    assert services.problems() == {}


def test_a_slice_changes_moves_to_another_service_and_goes() -> None:
    services = Services()
    services.need([WEB, DB])
    assert services.members() == {WEB: frozenset(), DB: frozenset()}
    put(services, slice_of("a", "web", "10.0.0.1"))
    put(services, slice_of("b", "web", "10.0.0.1", "10.0.0.2"))
    put(services, slice_of("a", "db", "10.0.0.1"))
    assert services.members() == {WEB: triples("10.0.0.1 6 80", "10.0.0.2 6 80"), DB: triples("10.0.0.1 6 80")}
    services.set_slice("red", "b", None)
    put(services, slice_of("a", "", "10.0.0.1"))
    services.set_slice("red", "never-there", None)
    assert services.members() == {WEB: frozenset(), DB: frozenset()}


STEPS = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.sampled_from(["web", "db", ""]), st.sets(st.sampled_from(["10.0.0.1", "10.0.0.2"])),
        st.sampled_from([(("TCP", 80),), (("TCP", 80), ("UDP", 53)), ()]), st.booleans(),
    ),
    max_size=12,
)  # fmt: skip


@settings(max_examples=60, deadline=None, database=None)
@given(STEPS, st.lists(st.sets(st.sampled_from([WEB, WEB_IPS, DB])), max_size=12))
def test_the_order_of_things_makes_no_difference(steps, needs) -> None:
    services = Services()
    there: dict[str, EndpointSlice] = {}
    wanted: set[ServiceSet] = set()
    for i, (name, service, ips, ports, gone) in enumerate(steps):
        if gone:
            there.pop(name, None)
            services.set_slice("red", name, None)
        else:
            there[name] = slice_of(name, service, *sorted(ips), ports=ports)
            put(services, there[name])
        if i < len(needs):
            wanted = needs[i]
            services.need(wanted)
        expected: dict[ServiceSet, set[object]] = {ref: set() for ref in wanted}
        for ref, one in product(wanted, there.values()):
            if one.service == ref.name:
                expected[ref].update(members_of(one, ports=ref.ports))
        assert services.members() == expected


def test_ten_thousand_slices_are_cheap() -> None:
    """A rule names one service of 10,000, and one of 100 slices; one more slice costs by what is in it."""
    services = Services()
    slices = [slice_of(f"s{i}", f"svc{i}", f"10.{i // 250}.{i % 250}.1") for i in range(10_000)]
    slices += [slice_of(f"big{i}", "web", *(f"10.200.{i}.{j}" for j in range(100))) for i in range(100)]
    start = time.perf_counter()
    for one in slices:
        put(services, one)
    services.need([WEB, ServiceSet("red", "svc5", True)])
    rendered = MemberSets(WEB)
    rendered.update(services.members()[WEB])
    all_of_them = time.perf_counter() - start
    start = time.perf_counter()
    put(services, slice_of("more", "web", "10.201.0.1"))
    rendered.update(services.members()[WEB])
    one_more = time.perf_counter() - start
    print(f"{all_of_them * 1000:.0f} ms for all, {one_more * 1000:.1f} ms for one more")
    assert len(next(iter(rendered.sets.values())).elements) == 10_001
    assert one_more < all_of_them / 3
