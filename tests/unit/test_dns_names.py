"""What a cluster has at a name: Kubernetes' DNS specification 1.1.0, row by row, as values."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.base.addr import parse_ip
from tortie.dns.answers import Answer, answer, backwards
from tortie.dns.names import Names, PodMode
from tortie.dns.records import canonical, dashed, undashed
from tortie.model.k8s import Container, Namespace, Pod, PodIP, PodSpec, PodStatus
from tortie.model.meta import Metadata, Resource
from tortie.model.service import (
    SERVICE_NAME,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    Service,
    ServicePort,
    ServiceSpec,
)

SOA = ("cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5",)
NO_DATA, NO_NAME = "no data", "no name"


def namespace(name: str) -> Namespace:
    return Namespace(metadata=Metadata(name=name))


def service(name: str, *ips: str, space: str = "red", **spec: Any) -> Service:
    spec.setdefault("ports", (ServicePort(name="http", port=80), ServicePort(name="dns", port=53, protocol="UDP")))
    if ips:
        spec |= {"cluster_ip": ips[0], "cluster_ips": ips}
    return Service(metadata=Metadata(name=name, namespace=space), spec=ServiceSpec(**spec))


def endpoint(*addresses: str, hostname: str = "", ready: bool | None = True) -> Endpoint:
    return Endpoint(addresses=addresses, hostname=hostname, conditions=EndpointConditions(ready=ready))


def slice_(name: str, owner: str, *endpoints: Endpoint, version: int = 4, port: int = 8080) -> EndpointSlice:
    return EndpointSlice(
        metadata=Metadata(name=name, namespace="red", labels={SERVICE_NAME: owner}),
        address_type="IPv4" if version == 4 else "IPv6",
        endpoints=endpoints,
        ports=(EndpointPort(name="http", port=port), EndpointPort(port=9), EndpointPort(name="any")),
    )


def pod(name: str, ip: str, space: str = "red", phase: str = "Running") -> Pod:
    status = PodStatus(phase=phase, pod_ip=ip, pod_ips=(PodIP(ip=ip),))
    spec = PodSpec(containers=(Container(name="main"),))
    return Pod(metadata=Metadata(name=name, namespace=space), spec=spec, status=status)


OBJECTS: tuple[Resource, ...] = (
    namespace("red"),
    namespace("empty"),
    service("web", "10.96.0.5", "fd00:10:96::5"),
    service("v6", "fd00:10:96::6"),
    service("late"),
    service("portless", "10.96.0.7", ports=(ServicePort(port=80),)),
    service("db", "None"),
    slice_(
        "db-a", "db",
        endpoint("10.244.1.2", hostname="DB-0"), endpoint("10.244.1.3"), endpoint("10.244.1.9", ready=False),
    ),
    slice_("db-b", "db", endpoint("10.244.2.2", hostname="twin"), endpoint("10.244.2.3", hostname="twin", ready=None)),
    slice_("db-c", "db", endpoint("fd00:244::1:5"), version=6),
    service("unready", "None"),
    slice_("unready-a", "unready", endpoint("10.244.3.1", ready=False)),
    service("eager", "None", publish_not_ready_addresses=True),
    slice_("eager-a", "eager", endpoint("10.244.3.1", ready=False)),
    service("six", "None"),
    slice_("six-a", "six", endpoint("fd00:244::9"), version=6),
    service("ext", type="ExternalName", external_name="www.Example.com."),
    service("alias", type="ExternalName", external_name="web.red.svc.cluster.local"),
    service("gone", type="ExternalName", external_name="nosuch.red.svc.cluster.local"),
    service("circle", type="ExternalName", external_name="circle.red.svc.cluster.local"),
    service("number", type="ExternalName", external_name="192.0.2.1"),
    service("kube-dns", "10.96.0.10", space="kube-system"),
)  # fmt: skip


def names(*objects: Resource, pods: PodMode = "insecure") -> Names:
    found = Names("cluster.local", pods)
    for one in objects or OBJECTS:
        found.put(one)
    return found


def ask(names: Names, question: str) -> Answer | None:
    name, kind = question.split()
    return answer(names, tuple(name.lower().split(".")), kind, 5)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        # 2.2
        ("dns-version.cluster.local TXT", ['dns-version.cluster.local. 28800 IN TXT "1.1.0"']),
        ("dns-version.cluster.local A", NO_DATA),
        # 2.3: with a ClusterIP
        ("web.red.svc.cluster.local A", ["web.red.svc.cluster.local. 5 IN A 10.96.0.5"]),
        ("web.red.svc.cluster.local AAAA", ["web.red.svc.cluster.local. 5 IN AAAA fd00:10:96::5"]),
        ("WEB.Red.svc.CLUSTER.local A", ["web.red.svc.cluster.local. 5 IN A 10.96.0.5"]),
        ("web.red.svc.cluster.local MX", NO_DATA),
        ("v6.red.svc.cluster.local A", NO_DATA),
        ("late.red.svc.cluster.local A", NO_DATA),
        (
            "_http._tcp.web.red.svc.cluster.local SRV",
            ["_http._tcp.web.red.svc.cluster.local. 5 IN SRV 0 100 80 web.red.svc.cluster.local."],
        ),
        (
            "_DNS._UDP.web.red.svc.cluster.local SRV",
            ["_dns._udp.web.red.svc.cluster.local. 5 IN SRV 0 100 53 web.red.svc.cluster.local."],
        ),
        ("_http._udp.web.red.svc.cluster.local SRV", NO_NAME),
        ("_http._tcp.web.red.svc.cluster.local A", NO_DATA),
        ("_tcp.web.red.svc.cluster.local SRV", NO_DATA),  # something is below it, RFC 8020
        ("_sctp.web.red.svc.cluster.local SRV", NO_NAME),
        ("_tcp.portless.red.svc.cluster.local SRV", NO_NAME),  # a port without a name has no SRV record
        ("10-244-1-2.web.red.svc.cluster.local A", NO_NAME),
        ("5.0.96.10.in-addr.arpa PTR", ["5.0.96.10.in-addr.arpa. 5 IN PTR web.red.svc.cluster.local."]),
        # 2.4: headless
        (
            "db.red.svc.cluster.local A",
            [f"db.red.svc.cluster.local. 5 IN A 10.244.{ip}" for ip in ("1.2", "1.3", "2.2", "2.3")],
        ),
        ("db.red.svc.cluster.local AAAA", ["db.red.svc.cluster.local. 5 IN AAAA fd00:244::1:5"]),
        ("db-0.db.red.svc.cluster.local A", ["db-0.db.red.svc.cluster.local. 5 IN A 10.244.1.2"]),
        ("10-244-1-3.db.red.svc.cluster.local A", ["10-244-1-3.db.red.svc.cluster.local. 5 IN A 10.244.1.3"]),
        ("10-244-1-2.db.red.svc.cluster.local A", NO_NAME),  # it has a hostname
        ("10-244-1-9.db.red.svc.cluster.local A", NO_NAME),  # it is not ready
        (
            "fd00-244--1-5.db.red.svc.cluster.local AAAA",
            ["fd00-244--1-5.db.red.svc.cluster.local. 5 IN AAAA fd00:244::1:5"],
        ),
        ("fd00-244--1-5.db.red.svc.cluster.local A", NO_DATA),
        (
            "twin.db.red.svc.cluster.local A",
            ["twin.db.red.svc.cluster.local. 5 IN A 10.244.2.2", "twin.db.red.svc.cluster.local. 5 IN A 10.244.2.3"],
        ),
        (
            "_http._tcp.db.red.svc.cluster.local SRV",
            [
                f"_http._tcp.db.red.svc.cluster.local. 5 IN SRV 0 25 8080 {host}.db.red.svc.cluster.local."
                for host in ("10-244-1-3", "db-0", "fd00-244--1-5", "twin")
            ],
        ),
        ("_dns._udp.db.red.svc.cluster.local SRV", NO_NAME),  # the slices have no such port
        ("_any._tcp.db.red.svc.cluster.local SRV", NO_NAME),  # it has no number
        ("unready.red.svc.cluster.local A", NO_NAME),
        ("eager.red.svc.cluster.local A", ["eager.red.svc.cluster.local. 5 IN A 10.244.3.1"]),
        ("six.red.svc.cluster.local A", NO_DATA),
        ("2.1.244.10.in-addr.arpa PTR", ["2.1.244.10.in-addr.arpa. 5 IN PTR db-0.db.red.svc.cluster.local."]),
        ("3.1.244.10.in-addr.arpa PTR", ["3.1.244.10.in-addr.arpa. 5 IN PTR 10-244-1-3.db.red.svc.cluster.local."]),
        ("9.1.244.10.in-addr.arpa PTR", None),
        # 2.5: ExternalName
        ("ext.red.svc.cluster.local CNAME", ["ext.red.svc.cluster.local. 5 IN CNAME www.example.com."]),
        ("ext.red.svc.cluster.local A", ["ext.red.svc.cluster.local. 5 IN CNAME www.example.com."]),
        ("a.ext.red.svc.cluster.local A", NO_NAME),
        ("_http._tcp.ext.red.svc.cluster.local SRV", NO_NAME),
        (
            "alias.red.svc.cluster.local A",
            [
                "alias.red.svc.cluster.local. 5 IN CNAME web.red.svc.cluster.local.",
                "web.red.svc.cluster.local. 5 IN A 10.96.0.5",
            ],
        ),
        ("number.red.svc.cluster.local A", NO_NAME),
        # 2.6: pods
        ("10-244-1-5.red.pod.cluster.local A", ["10-244-1-5.red.pod.cluster.local. 5 IN A 10.244.1.5"]),
        ("10-244-1-5.red.pod.cluster.local AAAA", NO_DATA),
        ("fd00--5.red.pod.cluster.local AAAA", ["fd00--5.red.pod.cluster.local. 5 IN AAAA fd00::5"]),
        ("10-244-1.red.pod.cluster.local A", NO_NAME),
        ("a.10-244-1-5.red.pod.cluster.local A", NO_NAME),
        ("10-244-1-5.blue.pod.cluster.local A", NO_NAME),
        # the zone, and between its names
        ("cluster.local SOA", list(SOA)),
        ("cluster.local NS", ["cluster.local. 5 IN NS ns.dns.cluster.local."]),
        ("cluster.local A", NO_DATA),
        ("ns.dns.cluster.local A", ["ns.dns.cluster.local. 5 IN A 10.96.0.10"]),
        ("dns.cluster.local A", NO_DATA),
        ("svc.cluster.local A", NO_DATA),
        ("pod.cluster.local NS", NO_DATA),
        ("red.svc.cluster.local A", NO_DATA),
        ("empty.svc.cluster.local SOA", NO_DATA),
        ("red.pod.cluster.local A", NO_DATA),
        ("kube-system.svc.cluster.local A", NO_DATA),  # a service is in it, whoever knows namespaces
        ("blue.svc.cluster.local A", NO_NAME),
        ("web.blue.svc.cluster.local A", NO_NAME),
        ("nosuch.red.svc.cluster.local A", NO_NAME),
        ("*.red.svc.cluster.local A", NO_NAME),
        ("foo.cluster.local A", NO_NAME),
        # elsewhere
        ("example.com A", None),
        ("local A", None),
        ("notcluster.local A", None),
        ("in-addr.arpa PTR", None),
        ("1.0.96.10.in-addr.arpa A", None),
        ("1.2.3.300.in-addr.arpa PTR", None),
        ("x.ip6.arpa PTR", None),
    ],
)  # fmt: skip
def test_the_answer_to(question: str, expected: list[str] | str | None) -> None:
    found = ask(names(), question)
    if expected is None:
        assert found is None
    elif isinstance(expected, str):
        assert found is not None
        assert found.answer == ()
        assert tuple(map(str, found.authority)) == SOA
        assert found.missing is (expected == NO_NAME)
    else:
        assert found is not None
        assert list(map(str, found.answer)) == expected
        assert not found.missing
        assert not found.authority


def test_who_asks_for_a_host_and_its_port_gets_its_addresses_beside() -> None:
    found = ask(names(), "_http._tcp.web.red.svc.cluster.local SRV")
    assert [str(one) for one in found.additional] == [
        "web.red.svc.cluster.local. 5 IN A 10.96.0.5",
        "web.red.svc.cluster.local. 5 IN AAAA fd00:10:96::5",
    ]
    assert [one.data for one in ask(names(), "cluster.local NS").additional] == ["10.96.0.10"]


def test_an_alias_leads_to_names_inside_and_says_where_it_leads_outside() -> None:
    outside = ask(names(), "ext.red.svc.cluster.local A")
    assert outside.elsewhere == "www.example.com."
    assert ask(names(), "ext.red.svc.cluster.local CNAME").elsewhere == ""
    gone = ask(names(), "gone.red.svc.cluster.local A")
    assert gone.missing  # RFC 6604: the code is of the last name
    assert len(gone.answer) == 1
    assert len(ask(names(), "circle.red.svc.cluster.local A").answer) == 8


def test_any_gets_records_of_one_type() -> None:
    assert {one.type for one in ask(names(), "web.red.svc.cluster.local ANY").answer} == {"A"}
    assert ask(names(), "red.svc.cluster.local ANY").answer == ()


def test_an_address_backwards() -> None:
    assert backwards(("1", "0", "96", "10", "in-addr", "arpa")) == parse_ip("10.96.0.1")
    ip = parse_ip("fd00:10:96::5")
    found = ask(names(), f"{ip.reverse_pointer} PTR")
    assert [one.data for one in found.answer] == ["web.red.svc.cluster.local."]


@pytest.mark.parametrize(
    ("mode", "there", "unknown"),
    [("insecure", True, True), ("verified", True, False), ("disabled", False, False)],
)
def test_names_of_pods(mode: PodMode, there: bool, unknown: bool) -> None:
    pods = pod("a", "10.244.1.5"), pod("old", "10.244.1.6", phase="Failed")
    known = names(namespace("red"), namespace("blue"), *pods, pods=mode)
    assert (not ask(known, "10-244-1-5.red.pod.cluster.local A").missing) is there
    for other in ("10-244-1-5.blue", "10-244-1-6.red", "10-244-1-7.red"):
        assert (not ask(known, f"{other}.pod.cluster.local A").missing) is unknown
    known.drop(Pod, "red", "a")
    assert (not ask(known, "10-244-1-5.red.pod.cluster.local A").missing) is unknown


def test_a_change_is_seen_at_once_and_what_goes_is_gone() -> None:
    known = names()
    known.put(service("web", "10.96.0.99"))
    assert [one.data for one in ask(known, "web.red.svc.cluster.local A").answer] == ["10.96.0.99"]
    assert ask(known, "5.0.96.10.in-addr.arpa PTR") is None
    known.put(slice_("db-a", "eager", endpoint("10.244.1.3")))  # it is another service's now
    assert [one.data for one in ask(known, "db.red.svc.cluster.local A").answer] == ["10.244.2.2", "10.244.2.3"]
    assert [one.data for one in ask(known, "eager.red.svc.cluster.local A").answer] == ["10.244.1.3", "10.244.3.1"]
    for name in ("db-b", "db-c"):
        known.drop(EndpointSlice, "red", name)
    assert ask(known, "db.red.svc.cluster.local A").missing
    known.drop(Service, "kube-system", "kube-dns")
    assert ask(known, "kube-system.svc.cluster.local A").missing
    known.drop(Service, "kube-system", "kube-dns")
    known.drop(Namespace, "", "empty")
    assert ask(known, "empty.svc.cluster.local A").missing


def test_an_address_of_another_ip_version_than_its_slice_is_nobodys() -> None:
    odd = slice_("db-a", "db", endpoint("10.244.1.2"), endpoint("fd00::7", hostname="db-7"))
    known = names(namespace("red"), service("db", "None"), odd)
    assert ask(known, "db.red.svc.cluster.local AAAA").answer == ()
    assert [one.data for one in ask(known, "db.red.svc.cluster.local A").answer] == ["10.244.1.2"]
    assert ask(known, "db-7.db.red.svc.cluster.local AAAA").missing
    assert known.pointers(parse_ip("fd00::7")) == ()


def test_a_slice_may_come_before_its_service() -> None:
    known = names(slice_("db-a", "db", endpoint("10.244.1.2")))
    assert ask(known, "db.red.svc.cluster.local A").missing
    known.put(service("db", "None"))
    assert [one.data for one in ask(known, "db.red.svc.cluster.local A").answer] == ["10.244.1.2"]


QUESTIONS = (
    *(f"{name}.red.svc.cluster.local A" for name in ("web", "db", "ext", "unready", "db-0.db")),
    "db.red.svc.cluster.local AAAA", "web.red.svc.cluster.local AAAA",
    "_http._tcp.db.red.svc.cluster.local SRV", "5.0.96.10.in-addr.arpa PTR", "2.1.244.10.in-addr.arpa PTR",
    "red.svc.cluster.local A", "blue.svc.cluster.local A",
)  # fmt: skip
OTHERS: tuple[Resource, ...] = (
    service("web", "None"), service("db", "10.96.0.5"), service("web", space="blue"), service("ext", "10.96.0.5"),
    slice_("db-a", "web", endpoint("10.244.1.2", "10.244.1.2")), slice_("unready-a", "db", endpoint("10.244.1.2")),
    namespace("blue"),
)  # fmt: skip


@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from((*OBJECTS, *OTHERS)), st.booleans()), max_size=40), st.randoms())
def test_the_order_in_which_objects_come_and_go_makes_no_difference(
    steps: list[tuple[Resource, bool]], chance: random.Random
) -> None:
    known, there = Names("cluster.local"), {}
    for one, comes in steps:
        key = type(one), one.namespace, one.name
        if comes:
            known.put(one)
            there[key] = one
        else:
            known.drop(*key)
            there.pop(key, None)
        if chance.random() < 0.3:  # what was made for an answer must not outlive a change
            ask(known, chance.choice(QUESTIONS))
    fresh = Names("cluster.local")
    left = list(there.values())
    chance.shuffle(left)
    for one in left:
        fresh.put(one)
    assert [ask(known, question) for question in QUESTIONS] == [ask(fresh, question) for question in QUESTIONS]


@given(st.ip_addresses())
def test_an_address_as_a_label_is_read_back(ip: Any) -> None:
    assert undashed(dashed(ip)) == ip
    assert undashed(str(ip)) is None, "dots and colons in a label are no dashes"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Example.com", "example.com."),
        ("a_b.example.", "a_b.example."),
        *((text, "") for text in ("10.0.0.1", "fd00::1", "a b", "", ".", "a..b", "x" * 64, "a.b." * 64)),
    ],
)
def test_what_can_be_an_external_name(text: str, expected: str) -> None:
    assert canonical(text) == expected


def test_ten_thousand_services() -> None:
    known = Names("cluster.local")
    for number in range(10_000):
        known.put(service(f"s{number}", f"10.{100 + number // 65536}.{number // 256 % 256}.{number % 256}"))
    assert known.services == 10_000
    assert [one.data for one in ask(known, "s9999.red.svc.cluster.local A").answer] == ["10.100.39.15"]
    known.put(service("s9999", "10.1.1.1"))
    assert [one.data for one in ask(known, "s9999.red.svc.cluster.local A").answer] == ["10.1.1.1"]
