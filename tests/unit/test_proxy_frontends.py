"""Where a service is answered, and which services are not ours to answer for."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from proxy_world import HERE, endpoint, entrances, only, service, slice_, state_of, texts

from tortie.base.errors import ConfigError
from tortie.calc.proxy.state import Frontend, HealthCheck
from tortie.model.document import dump
from tortie.model.service import ClientIPConfig, Ingress, Service, SessionAffinityConfig

BALANCED = {"type": "LoadBalancer", "ingress": ["192.0.2.1"]}


def frontends(one: Service) -> list[str]:
    return [*entrances(state_of(one))]


# --- what is not ours -----------------------------------------------------------------------------------------------

NOT_OURS: list[tuple[str, dict[str, Any]]] = [
    ("ExternalName", {"type": "ExternalName", "externalName": "x.example", "ip": ""}),
    ("ExternalName that still has an address", {"type": "ExternalName", "externalName": "x.example"}),
    ("headless", {"ip": "None"}),
    ("headless by its list", {"ip": "", "clusterIPs": ["None"]}),
    ("no address yet", {"ip": "", "externalIPs": ["192.0.2.7"], "type": "NodePort", "node_port": 30080}),
    ("another proxy's", {"labels": {"service.kubernetes.io/service-proxy-name": "mine"}}),
    ("another proxy's, whatever the value", {"labels": {"service.kubernetes.io/service-proxy-name": ""}}),
    ("labelled headless", {"labels": {"service.kubernetes.io/headless": ""}}),
    ("kept out of translation", {"annotations": {"projectcalico.org/natExcludeService": "true"}}),
    ("no address of a family that it has", {"ipFamilies": ["IPv6"]}),
]


@pytest.mark.parametrize(("what", "spec"), NOT_OURS, ids=[row[0] for row in NOT_OURS])
def test_not_ours(what: str, spec: dict[str, Any]) -> None:
    state = state_of(service(**spec), slice_("10.0.0.1"))
    assert (state.services, state.problems, state.here) == ({}, {}, frozenset())


def test_another_value_of_the_annotation_changes_nothing() -> None:
    assert frontends(service(annotations={"projectcalico.org/natExcludeService": "false"})) == [
        "ClusterIP 10.96.0.1:80/TCP"
    ]


# --- frontends by the fields of a service ---------------------------------------------------------------------------

DUAL = {"clusterIPs": ["10.96.0.1", "fd96::1"], "ipFamilies": ["IPv4", "IPv6"]}

FRONTENDS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("ClusterIP", {}, ["ClusterIP 10.96.0.1:80/TCP"]),
    ("UDP", {"protocol": "UDP"}, ["ClusterIP 10.96.0.1:80/UDP"]),
    ("SCTP", {"protocol": "SCTP"}, ["ClusterIP 10.96.0.1:80/SCTP"]),
    ("IPv6", {"ip": "fd96::1"}, ["ClusterIP [fd96::1]:80/TCP"]),
    ("dual", DUAL, ["ClusterIP 10.96.0.1:80/TCP", "ClusterIP [fd96::1]:80/TCP"]),
    ("dual by addresses alone", {"clusterIPs": ["10.96.0.1", "fd96::1"]},
     ["ClusterIP 10.96.0.1:80/TCP", "ClusterIP [fd96::1]:80/TCP"]),
    ("IPv6 first", {"ip": "fd96::1", "clusterIPs": ["fd96::1", "10.96.0.1"], "ipFamilies": ["IPv6", "IPv4"]},
     ["ClusterIP [fd96::1]:80/TCP", "ClusterIP 10.96.0.1:80/TCP"]),
    ("a family that it no longer has", {**DUAL, "ipFamilies": ["IPv4"]}, ["ClusterIP 10.96.0.1:80/TCP"]),
    ("NodePort", {"type": "NodePort", "node_port": 30080}, ["ClusterIP 10.96.0.1:80/TCP", "NodePort *:30080/TCP"]),
    ("NodePort without a number", {"type": "NodePort"}, ["ClusterIP 10.96.0.1:80/TCP"]),
    ("a number that is left over", {"node_port": 30080}, ["ClusterIP 10.96.0.1:80/TCP"]),
    ("external", {"externalIPs": ["192.0.2.7", "2001:db8::7"]},
     ["ClusterIP 10.96.0.1:80/TCP", "ExternalIP 192.0.2.7:80/TCP"]),
    ("external, dual", {**DUAL, "externalIPs": ["192.0.2.7", "2001:db8::7"]},
     ["ClusterIP 10.96.0.1:80/TCP", "ClusterIP [fd96::1]:80/TCP", "ExternalIP 192.0.2.7:80/TCP",
      "ExternalIP [2001:db8::7]:80/TCP"]),
    ("load balancer", {**BALANCED, "node_port": 30080},
     ["ClusterIP 10.96.0.1:80/TCP", "LoadBalancer 192.0.2.1:80/TCP", "NodePort *:30080/TCP"]),
    ("load balancer without node ports", {**BALANCED, "allocateLoadBalancerNodePorts": False},
     ["ClusterIP 10.96.0.1:80/TCP", "LoadBalancer 192.0.2.1:80/TCP"]),
    ("one that sends from its own address", {"type": "LoadBalancer", "ingress": [
        {"ip": "192.0.2.1", "ipMode": "Proxy"}, {"ip": "192.0.2.2", "ipMode": "VIP"}, {"hostname": "lb.example"}]},
     ["ClusterIP 10.96.0.1:80/TCP", "LoadBalancer 192.0.2.2:80/TCP"]),
    ("addresses of a load balancer that are left over", {"ingress": ["192.0.2.1"]}, ["ClusterIP 10.96.0.1:80/TCP"]),
    ("another family's load balancer", {"type": "LoadBalancer", "ingress": ["2001:db8::1"]},
     ["ClusterIP 10.96.0.1:80/TCP"]),
    ("a load balancer's address that is external, too", {**BALANCED, "externalIPs": ["192.0.2.1"]},
     ["ClusterIP 10.96.0.1:80/TCP", "LoadBalancer 192.0.2.1:80/TCP"]),
]  # fmt: skip


@pytest.mark.parametrize(("what", "spec", "expected"), FRONTENDS, ids=[row[0] for row in FRONTENDS])
def test_frontends(what: str, spec: dict[str, Any], expected: list[str]) -> None:
    assert frontends(service(**spec)) == expected


def test_a_node_port_of_each_family_and_the_addresses_of_a_service() -> None:
    state = state_of(service(type="NodePort", node_port=30080, **DUAL))
    served = state.services["red", "web"]
    found = {one.frontend for one in served.entrances if one.kind == "NodePort"}
    assert found == {Frontend(4, None, 6, 30080), Frontend(6, None, 6, 30080)}
    assert [*map(str, served.cluster_ips)] == ["10.96.0.1", "fd96::1"]
    assert served.title == "red/web"


def test_backends_of_each_family() -> None:
    slices = slice_("10.0.0.1"), slice_("fd00::1", family="IPv6")
    found = {key: texts(one.backends) for key, one in entrances(state_of(service(**DUAL), *slices)).items()}
    assert found == {"ClusterIP 10.96.0.1:80/TCP": ["10.0.0.1:8080"], "ClusterIP [fd96::1]:80/TCP": ["[fd00::1]:8080"]}


def test_several_ports() -> None:
    ports = [{"name": "a", "port": 53}, {"name": "b", "port": 53, "protocol": "UDP"}, {"name": "c", "port": 53}]
    assert frontends(service(ports=ports)) == ["ClusterIP 10.96.0.1:53/TCP", "ClusterIP 10.96.0.1:53/UDP"]


# --- affinity, source ranges, health checks -------------------------------------------------------------------------

AFFINITIES: list[tuple[dict[str, Any], int]] = [
    ({}, 0),
    ({"sessionAffinity": "None"}, 0),
    ({"sessionAffinity": "ClientIP"}, 10800),
    ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {}}}, 10800),
    ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}}}, 86400),
    ({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}, 0),
]


@pytest.mark.parametrize(("spec", "seconds"), AFFINITIES)
def test_affinity(spec: dict[str, Any], seconds: int) -> None:
    state = state_of(service(type="NodePort", node_port=30080, **spec))
    assert {one.affinity for one in state.services["red", "web"].entrances} == {seconds}


@pytest.mark.parametrize(("said", "seconds"), [(-5, 1), (10**12, 86400)])
def test_a_time_that_no_api_server_has_looked_at(said: int, seconds: int) -> None:
    """nft would refuse it, and with it all services of the node."""
    spec = service(sessionAffinity="ClientIP").spec
    config = SessionAffinityConfig(client_ip=ClientIPConfig(timeout_seconds=said))
    assert replace(spec, session_affinity_config=config).affinity == seconds


RANGES: list[tuple[str, list[str], str | None, str | None]] = [
    ("none", [], None, None),
    ("one", ["198.51.100.0/24"], "198.51.100.0/24", None),
    ("both", ["198.51.100.0/24", "2001:db8::/32"], "198.51.100.0/24", "2001:db8::/32"),
    ("with spaces, and one in another", [" 10.1.0.0/16 ", "10.0.0.0/8"], "10.0.0.0/8", None),
    ("everybody", ["0.0.0.0/0"], "0.0.0.0/0", None),
]


@pytest.mark.parametrize(("what", "ranges", "four", "six"), RANGES, ids=[row[0] for row in RANGES])
def test_source_ranges_are_for_addresses_of_load_balancers_alone(
    what: str, ranges: list[str], four: str | None, six: str | None
) -> None:
    addresses = {"type": "LoadBalancer", "ingress": ["192.0.2.1", "2001:db8::1"], **DUAL}
    one = service(externalIPs=["192.0.2.7"], node_port=30080, loadBalancerSourceRanges=ranges, **addresses)
    found = entrances(state_of(one)).items()
    restricted = {key: ",".join(map(str, each.sources)) for key, each in found if each.sources is not None}
    expected = {"LoadBalancer 192.0.2.1:80/TCP": four, "LoadBalancer [2001:db8::1]:80/TCP": six}
    assert restricted == {key: text for key, text in expected.items() if text is not None}


def test_a_range_that_cannot_be_read_opens_nothing() -> None:
    good = service(**BALANCED, loadBalancerSourceRanges=["198.51.100.0/24"])
    bad = replace(good, spec=replace(good.spec, load_balancer_source_ranges=("office",)))
    state = state_of(bad)
    assert only(state, "LoadBalancer").sources == ()
    assert "office" in state.problems["Service red/web"]


@pytest.mark.parametrize("bad", ["10.0.0", "127.0.0.1", "169.254.1.1", "::1", "0.0.0.0", "224.0.0.5"])
def test_an_address_that_no_service_can_have_is_a_problem(bad: str) -> None:
    good = service()
    state = state_of(replace(good, spec=replace(good.spec, external_ips=(bad, "192.0.2.7"))))
    assert [*entrances(state)] == ["ClusterIP 10.96.0.1:80/TCP", "ExternalIP 192.0.2.7:80/TCP"]
    assert state.problems["Service red/web"].startswith(f'spec.externalIPs: "{bad}" is ')


CHECKED = {**BALANCED, "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000}


def test_a_health_check_counts_the_ready_endpoints_of_this_node() -> None:
    told = [endpoint("10.0.0.1", HERE), endpoint("10.0.0.2", "n2"), endpoint("10.0.0.3", HERE, ready=False)]
    told.append(endpoint("10.0.0.4", HERE, ready=False, serving=True, terminating=True))
    six = slice_(endpoint("fd00::1", HERE), endpoint("fd00::2", HERE), family="IPv6")
    ports = [{"name": "p", "port": 8080}, {"name": "q", "port": 8081}]

    def check(one: Service, *slices: Any) -> HealthCheck | None:
        return state_of(one, *slices).services["red", "web"].check

    assert check(service(**CHECKED), slice_(*told)) == HealthCheck(32000, 1)
    assert check(service(**CHECKED), slice_(*told, ports=ports)) == HealthCheck(32000, 1)
    assert check(service(**CHECKED), slice_(*told), six) == HealthCheck(32000, 2)
    assert check(service(**CHECKED)) == HealthCheck(32000, 0)
    assert check(service(**CHECKED | {"externalTrafficPolicy": "Cluster"}), slice_(*told)) is None
    assert check(service(**CHECKED | {"type": "NodePort"}), slice_(*told)) is None
    assert check(service(**CHECKED | {"healthCheckNodePort": 0}), slice_(*told)) is None


# --- the fields as they are read and written ------------------------------------------------------------------------


def test_typed_fields_are_read_and_written() -> None:
    spec = {
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        "allocateLoadBalancerNodePorts": False,
        "loadBalancerClass": "example.com/x",
        "trafficDistribution": "PreferClose",
        **BALANCED,
    }
    assert {key: dump(service(**spec))["spec"][key] for key in spec if key != "ingress"} == {
        key: value for key, value in spec.items() if key != "ingress"
    }
    hinted = endpoint("10.0.0.1", HERE, zones=["a"], nodes=["n1"])
    assert dump(slice_(hinted))["endpoints"][0]["hints"] == {"forZones": [{"name": "a"}], "forNodes": [{"name": "n1"}]}
    nothing = dict.fromkeys(("sessionAffinityConfig", "loadBalancerClass", "trafficDistribution"))
    assert service(**nothing) == service()


def test_addresses_of_a_load_balancer_as_they_are_there() -> None:
    said = [{"ip": "192.0.2.1", "ipMode": "Proxy"}, {"ip": "192.0.2.2"}, {"hostname": "x"}]
    assert [*service(ingress=said).ingress] == [Ingress("192.0.2.1", "Proxy"), Ingress("192.0.2.2", "VIP")]
    assert [*Service().ingress] == []


def sticky(**client_ip: int) -> dict[str, Any]:
    return {"sessionAffinityConfig": {"clientIP": client_ip}}


@pytest.mark.parametrize(
    ("spec", "where", "what"),
    [
        (sticky(timeoutSeconds=0), "sessionAffinityConfig.clientIP.timeoutSeconds", "0 is not from 1 to 86400"),
        (sticky(timeoutSeconds=86401), "sessionAffinityConfig.clientIP.timeoutSeconds", "is not from 1 to 86400"),
        (sticky(timeout=5), "sessionAffinityConfig.clientIP.timeout", "is not a known field"),
        ({"trafficDistribution": "PreferFar"}, "spec.trafficDistribution", "PreferClose"),
        ({"allocateLoadBalancerNodePorts": "no"}, "spec.allocateLoadBalancerNodePorts", "true or false"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(spec: dict[str, Any], where: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        service(**spec)
    assert where in str(caught.value)
    assert what in str(caught.value)
