"""ClusterIPs, NodePorts and ports of health checks where no Kubernetes gives them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from controllers_town import Town
from tortie.base.addr import parse_ip, parse_net
from tortie.base.errors import ConfigError
from tortie.calc.service_addresses import (
    CONDITION,
    Outcome,
    Ranges,
    addressed,
    complained,
    read_nets,
    read_ports,
    reserved,
)
from tortie.controllers.service_addresses import ServiceAddresses
from tortie.model.conditions import conditions
from tortie.model.k8s import Container, K8sNode, K8sNodeSpec, Pod, PodIP, PodSpec, PodStatus
from tortie.model.meta import Metadata
from tortie.model.service import Service, ServicePort, ServiceSpec

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SMALL = Ranges(read_nets("10.0.0.0/29,fd00::/125"), range(30000, 30004))


def service(name: str = "web", created: str = "2026-01-01T00:00:00Z", **spec: Any) -> Service:
    spec.setdefault("ports", (ServicePort(port=80),))
    metadata = Metadata(name=name, namespace="red", uid=f"uid-{name}", creation_timestamp=created)
    return Service(metadata=metadata, spec=ServiceSpec(**spec))


def made(*services: Service, ranges: Ranges | None = None, populated: Iterable[int] = (4, 6)) -> dict[str, Outcome]:
    found = addressed(services, ranges or Ranges(), set(populated))
    return {each.after.name: each for each in found}


def spec_of(one: Service, populated: Iterable[int] = (4, 6), ranges: Ranges | None = None) -> ServiceSpec:
    (outcome,) = made(one, populated=populated, ranges=ranges).values()
    assert outcome.complaint is None, outcome.complaint
    return outcome.after.spec


def versions(spec: ServiceSpec) -> tuple[int, ...]:
    return tuple(parse_ip(text).version for text in spec.cluster_ips)


# --- families ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "populated", "policy", "families"),
    [
        ({}, (4, 6), "PreferDualStack", (4, 6)),
        ({}, (4,), "SingleStack", (4,)),
        ({}, (6,), "SingleStack", (6,)),
        ({}, (), "PreferDualStack", (4,)),
        ({"ip_family_policy": "SingleStack"}, (4, 6), "SingleStack", (4,)),
        ({"ip_family_policy": "SingleStack"}, (6,), "SingleStack", (6,)),
        ({"ip_family_policy": "PreferDualStack"}, (4,), "PreferDualStack", (4,)),
        ({"ip_family_policy": "PreferDualStack"}, (4, 6), "PreferDualStack", (4, 6)),
        ({"ip_family_policy": "RequireDualStack"}, (4,), "RequireDualStack", (4, 6)),
        ({"ip_families": ("IPv6",)}, (4, 6), "SingleStack", (6,)),
        ({"ip_families": ("IPv6", "IPv4")}, (4, 6), "RequireDualStack", (6, 4)),
        ({"ip_families": ("IPv6",), "ip_family_policy": "PreferDualStack"}, (4, 6), "PreferDualStack", (6, 4)),
        ({"ip_families": ("IPv6", "IPv4"), "ip_family_policy": "SingleStack"}, (4, 6), "SingleStack", (6,)),
        ({"cluster_ip": "fd00:10:96::7"}, (4, 6), "SingleStack", (6,)),
        ({"cluster_ips": ("10.96.0.7", "fd00:10:96::7")}, (4,), "RequireDualStack", (4, 6)),
    ],
)
def test_families(asked: dict[str, Any], populated: tuple[int, ...], policy: str, families: tuple[int, ...]) -> None:
    spec = spec_of(service(**asked), populated)
    assert (spec.ip_family_policy, versions(spec)) == (policy, families)
    assert spec.ip_families == tuple(f"IPv{version}" for version in families)
    assert spec.cluster_ip == spec.cluster_ips[0]
    assert spec_of(replace(service(), spec=spec), populated) == spec


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"ip_family_policy": "Dual"}, 'spec.ipFamilyPolicy: "Dual" is not one of SingleStack'),
        ({"ip_families": ("IPv4", "IPv4")}, "names a family twice"),
        ({"ip_families": ("IPv4",), "cluster_ip": "fd00:10:96::7"}, "other families"),
        ({"cluster_ips": ("10.96.0.7", "10.96.0.8")}, "more than one address"),
        ({"cluster_ip": "nonsense"}, "nonsense"),
    ],
)
def test_what_cannot_be(asked: dict[str, Any], message: str) -> None:
    bad, good = made(service("bad", **asked), service("good")).values()
    if bad.after.name != "bad":
        bad, good = good, bad
    assert bad.complaint is not None
    assert (bad.complaint.reason, bad.after) == ("BadRequest", bad.before)
    assert message in bad.complaint.message
    assert good.after.spec.cluster_ip


def test_a_family_that_services_do_not_have() -> None:
    (found,) = made(service(ip_family_policy="RequireDualStack"), ranges=Ranges(read_nets("10.96.0.0/16"))).values()
    assert found.complaint is not None
    assert found.complaint.message == "spec.ipFamilies: services of this cluster have no IPv6 addresses"


def test_the_second_address_comes_when_there_are_pods_of_its_family() -> None:
    spec = spec_of(service(ip_family_policy="PreferDualStack"), (4,))
    later = spec_of(replace(service(), spec=spec), (4, 6))
    assert later.cluster_ips[:1] == spec.cluster_ips
    assert versions(later) == (4, 6)


# --- addresses --------------------------------------------------------------------------------------------------------


def test_the_lower_band_is_for_who_asks_by_name() -> None:
    """The examples of Kubernetes' own page about it, and the sizes of both defaults."""
    assert [reserved(size, 16, 256) for size in (254, 4094, 65534)] == [16, 255, 256]
    for name in map(str, range(300)):
        spec = spec_of(service(name, type="NodePort"))
        assert int(parse_ip(spec.cluster_ips[0])) > int(parse_ip("10.96.1.0"))
        assert int(parse_ip(spec.cluster_ips[1])) > int(parse_ip("fd00:10:96::100"))
        assert spec.ports[0].node_port >= 30086
    assert spec_of(service(cluster_ip="10.96.0.10")).cluster_ips == ("10.96.0.10",)


def test_it_is_given_when_nothing_else_is_left() -> None:
    ranges = Ranges(read_nets("10.0.0.0/26"))
    found = made(*(service(f"s{i:02}") for i in range(62)), ranges=ranges)
    have = [each.after.spec.cluster_ip for each in found.values()]
    assert have.count("") == 1
    assert set(have) - {""} == {f"10.0.0.{i}" for i in range(2, 63)}  # the first is the API server's
    assert [int(parse_ip(ip)) & 63 > 16 for ip in have[:46]] == [True] * 46
    (full,) = [each.complaint for each in found.values() if each.complaint is not None]
    assert (full.reason, full.full) == ("NoFreeAddress", "10.0.0.0/26")


def test_who_comes_again_gets_what_he_had() -> None:
    one = service(type="NodePort")
    first = made(one, service("other")).pop("web").after
    assert made(one, service("other"), service("third")).pop("web").after == first


def test_nothing_is_given_twice_and_what_is_written_stays() -> None:
    written = service("written", cluster_ip=spec_of(service("a")).cluster_ip, created="2026-02-01T00:00:00Z")
    found = made(written, service("a"))
    assert found["written"].after.spec.cluster_ip == written.spec.cluster_ip
    assert found["a"].after.spec.cluster_ip not in ("", written.spec.cluster_ip)
    assert all(each.complaint is None for each in found.values())


def test_of_two_who_wrote_the_same_the_older_has_it() -> None:
    new = service("a", cluster_ip="10.96.0.7", created="2026-02-01T00:00:00Z")
    old = service("b", cluster_ip="10.96.0.7")
    found = made(new, old)
    assert found["b"].complaint is None
    assert found["a"].complaint is not None
    assert (found["a"].complaint.reason, found["a"].complaint.message) == (
        "AddressInUse",
        "10.96.0.7 is Service red/b's",
    )
    assert found["a"].after.spec.cluster_ip == "10.96.0.7"


def test_an_address_of_another_range_stays_and_is_told_of() -> None:
    (found,) = made(service(cluster_ip="192.0.2.7")).values()
    assert found.after.spec.cluster_ips == ("192.0.2.7",)
    assert found.complaint is not None
    assert found.complaint.message == "192.0.2.7 is not of 10.96.0.0/12, the services' addresses"


def test_what_ends_with_a_type() -> None:
    spec = spec_of(service(type="LoadBalancer", external_traffic_policy="Local"))
    assert spec.ports[0].node_port
    assert spec.health_check_node_port
    assert spec.cluster_ip
    cluster = spec_of(replace(service(), spec=replace(spec, external_traffic_policy="Cluster")))
    assert (cluster.health_check_node_port, cluster.ports, cluster.cluster_ips) == (0, spec.ports, spec.cluster_ips)
    plain = spec_of(replace(service(), spec=replace(spec, type="ClusterIP")))
    assert (plain.ports[0].node_port, plain.health_check_node_port, plain.cluster_ips) == (0, 0, spec.cluster_ips)
    outside = spec_of(replace(service(), spec=replace(spec, type="ExternalName", external_name="example.com")))
    assert (outside.cluster_ip, outside.cluster_ips, outside.ip_families) == ("", (), ())
    assert (outside.ports[0].node_port, outside.health_check_node_port) == (0, 0)
    headless = spec_of(replace(service(), spec=replace(plain, cluster_ip="None", selector={"app": "web"})))
    assert (headless.cluster_ip, headless.cluster_ips, headless.ip_families) == ("None", ("None",), ("IPv4", "IPv6"))
    again = spec_of(replace(service(), spec=replace(outside, type="ClusterIP", external_name="")))
    assert again.cluster_ips == spec.cluster_ips


def test_a_headless_service_of_somebody_s_own_endpoints_may_have_any() -> None:
    assert spec_of(service(cluster_ip="None"), (4,)).ip_families == ("IPv4", "IPv6")
    assert spec_of(service(cluster_ip="None", selector={"a": "b"}), (4,)).ip_families == ("IPv4",)


# --- ports ------------------------------------------------------------------------------------------------------------


def test_node_ports() -> None:
    ports = (
        ServicePort(port=53, protocol="UDP", name="u"),
        ServicePort(port=53, name="t", node_port=31053),
        ServicePort(port=54, protocol="UDP", name="v", node_port=31053),
    )
    found = [port.node_port for port in spec_of(service(type="NodePort", ports=ports)).ports]
    assert found[1:] == [31053, 31053]
    assert found[0] in range(30086, 32768)
    off = spec_of(service(type="LoadBalancer", ports=ports, allocate_load_balancer_node_ports=False))
    assert [port.node_port for port in off.ports] == [0, 31053, 31053]


def test_node_ports_that_others_have() -> None:
    taken = (ServicePort(port=80, node_port=30001),)
    twice = (*taken, ServicePort(port=81, name="b", node_port=30001))
    far = (ServicePort(port=80, node_port=80),)
    found = made(
        service("a", type="NodePort", ports=taken),
        service("b", type="NodePort", ports=taken),
        service("c", type="NodePort", ports=far),
        service("d", type="NodePort", ports=(ServicePort(port=80, protocol="UDP", node_port=30001),)),
        service("e", type="NodePort", ports=tuple(replace(each, node_port=30009) for each in twice)),
    )
    assert {name: each.complaint and each.complaint.message for name, each in found.items()} == {
        "a": None,
        "b": "NodePort 30001/TCP is Service red/a's",
        "c": "NodePort 80 is not from 30000 to 32767",
        "d": None,
        "e": "NodePort 30009/TCP is asked for twice",
    }


def test_a_full_range_of_ports_is_told_of_once_in_a_service() -> None:
    ports = tuple(ServicePort(port=port, name=f"p{port}") for port in range(80, 87))
    (found,) = made(service(type="NodePort", ports=ports), ranges=SMALL).values()
    assert [bool(port.node_port) for port in found.after.spec.ports] == [True] * 4 + [False] * 3
    assert found.complaint is not None
    assert (found.complaint.reason, found.complaint.message) == ("NoFreePort", "NodePorts 30000-30003: none is free")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.96.0.0/12,10.0.0.0/16", "is not one CIDR, or one of IPv4 and one of IPv6"),
        ("", "is not one CIDR"),
        ("10.96.0.1/12", 'the network is "10.96.0.0/12"'),
        ("10.96.0.0/31", "too small"),
    ],
)
def test_ranges_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_nets(text)


def test_ranges_are_read() -> None:
    assert read_nets("fd00:1::/112, 10.9.0.0/16") == (parse_net("fd00:1::/112"), parse_net("10.9.0.0/16"))
    assert read_ports("30000-30099") == range(30000, 30100)
    for text in ("", "1", "0-9", "9-1", "1-70000", "a-b"):
        with pytest.raises(ConfigError, match="such as 30000-32767"):
            read_ports(text)
    six_first = Ranges(read_nets("fd00:1::/112, 10.9.0.0/16"))
    assert versions(spec_of(service(), ranges=six_first)) == (6, 4)


# --- laws -------------------------------------------------------------------------------------------------------------

_ips = st.sampled_from(["", "", "None", "10.0.0.2", "10.0.0.3", "fd00::2", "192.0.2.1"])
_specs = st.builds(
    dict,
    type=st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]),
    cluster_ip=_ips,
    ip_families=st.sampled_from([(), (), ("IPv4",), ("IPv6", "IPv4")]),
    external_traffic_policy=st.sampled_from(["", "Local"]),
    ports=st.lists(st.sampled_from([0, 0, 30001, 30002]), max_size=3).map(
        lambda found: tuple(ServicePort(port=i + 1, name=str(i), node_port=port) for i, port in enumerate(found))
    ),
)


@given(st.lists(_specs, max_size=8), st.randoms())
def test_addressing_is_stable_and_gives_nothing_twice(specs: list[dict[str, Any]], random: Any) -> None:
    services = [service(f"s{i}", **spec) for i, spec in enumerate(specs)]
    first = made(*services, ranges=SMALL)
    random.shuffle(services)
    assert made(*services, ranges=SMALL) == first
    after = [each.after for each in first.values()]
    second = made(*after, ranges=SMALL)
    assert all(each.after is each.before for each in second.values())
    given_ = {(ip, each.after.name) for each in first.values() for ip in each.after.spec.cluster_ips}
    written = {one.spec.cluster_ip for one in services} | {"None"}
    fresh = [ip for ip, _ in given_ if ip not in written]
    assert len(fresh) == len(set(fresh))
    ports = [port.node_port for each in first.values() for port in each.after.spec.ports if port.node_port]
    chosen = [port for port in ports if port not in (30001, 30002)]
    assert len(chosen) == len(set(chosen))


# --- the controller ---------------------------------------------------------------------------------------------------


@pytest.fixture
def town() -> Town:
    return Town()


def controller(town: Town, ranges: Ranges | None = None) -> ServiceAddresses:
    return ServiceAddresses(town.refusing, lambda: town.now, ranges, later=town.hands.backoff())


async def have(town: Town, name: str = "web") -> Service:
    return await town.store.get(Service, name, "red")


async def test_a_service_gets_what_it_lacks_and_is_left_alone_then(town: Town) -> None:
    await town.pool("10.244.0.0/16", "pods")
    await town.store.create(service(type="LoadBalancer", external_traffic_policy="Local"))
    one = controller(town)
    assert await one.run_once() == 0
    first = await have(town)
    assert versions(first.spec) == (4,)
    assert first.spec.ports[0].node_port
    assert first.spec.health_check_node_port
    assert await one.run_once() == 0
    assert await have(town) == first


async def test_families_are_those_of_pools_nodes_or_pods(town: Town) -> None:
    await town.store.create(service("a"))
    pod = Pod(
        metadata=Metadata(name="p", namespace="red"),
        spec=PodSpec(containers=(Container(name="c"),)),
        status=PodStatus(pod_ip="fd00:244::1", pod_ips=(PodIP(ip="fd00:244::1"), PodIP(ip="what"))),
    )
    await town.store.create(pod)
    await controller(town).run_once()
    assert versions((await have(town, "a")).spec) == (6,)
    node = K8sNode(metadata=Metadata(name="n"), spec=K8sNodeSpec(pod_cidrs=("10.244.1.0/24", "fd00:244:1::/64")))
    await town.store.create(node)
    await town.store.create(service("b"))
    await controller(town).run_once()
    assert versions((await have(town, "b")).spec) == (4, 6)
    await town.pool("203.0.113.0/28", "lb", block_size=29, allowed_uses=("LoadBalancer",))
    await town.pool("fd00:244::/64", "six")
    await town.store.create(service("c"))
    await controller(town).run_once()
    assert versions((await have(town, "c")).spec) == (6,)


async def test_a_complaint_is_in_the_status_until_it_is_settled(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    await town.pool("10.244.0.0/16", "pods")
    first = await town.store.create(service("a", cluster_ip="10.96.0.7"))
    await town.store.create(service("b", cluster_ip="10.96.0.7"))
    one = controller(town)
    assert await one.run_once() == 1
    assert await one.run_once() == 1
    (said,) = conditions((await have(town, "b")).status)
    assert said.items() >= {
        "type": CONDITION, "status": "False", "reason": "AddressInUse", "message": "10.96.0.7 is Service red/a's",
    }.items()  # fmt: skip
    assert caplog.text.count("10.96.0.7 is Service red/a's") == 1
    await town.store.delete(Service, first.name, "red")
    assert await one.run_once() == 0
    assert not conditions((await have(town, "b")).status)


async def test_a_full_range_is_said_once_and_who_waits_is_served(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    await town.pool("10.244.0.0/16", "pods")
    for i in range(8):
        await town.store.create(service(f"s{i}"))
    one = controller(town, SMALL)
    for _ in range(3):
        assert await one.run_once() == 3
    assert caplog.text.count("nothing is free any more") == 1
    assert caplog.text.count("10.0.0.0/29") == 1
    (said,) = conditions((await have(town, "s7")).status)
    assert said["reason"] == "NoFreeAddress"
    assert one.later.wait() == 300.0
    await town.store.delete(Service, "s0", "red")
    assert await one.run_once() == 2
    assert len([name for name in await town.names(Service) if (await have(town, name)).spec.cluster_ip]) == 5


async def test_one_that_is_refused_keeps_no_other_waiting(town: Town) -> None:
    await town.store.create(service("bad"))
    await town.store.create(service("good"))
    one = controller(town)
    assert await one.run_once() == 1
    assert (await have(town, "good")).spec.cluster_ip
    await one.run_once()
    assert town.refusing.attempts == ["bad"]  # it waits for its time
    town.refusing.refusing = False
    town.hands.time = 1.0
    assert await one.run_once() == 0
    assert (await have(town, "bad")).spec.cluster_ip


def test_others_conditions_stay() -> None:
    one = replace(service(), status={"conditions": [{"type": "Other", "status": "True"}], "loadBalancer": {}})
    (outcome,) = made(replace(one, spec=replace(one.spec, cluster_ip="192.0.2.1"))).values()
    told = complained(outcome.after, outcome.complaint, NOW)
    assert [each["type"] for each in conditions(told.status)] == ["Other", CONDITION]
    assert complained(told, outcome.complaint, NOW) is told
    assert complained(told, None, NOW).status == one.status
