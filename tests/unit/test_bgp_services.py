"""Situations of announced services, by number: what a node's bird.conf says of Services and EndpointSlices."""

from __future__ import annotations

from msgspec.structs import replace

from bgp_world import A, B, Seen, bgp, nets, node, service, slice_
from tortie.base.addr import parse_net
from tortie.calc.routing import BgpEnvironment
from tortie.model.service import EndpointSlice, Service


def test_15_service_networks_are_announced_and_in_no_fib() -> None:
    for here in "ab":
        seen = Seen(here, A, B, bgp(serviceClusterIPs=nets("10.96.0.0/12")))
        assert "10.96.0.0/12" in seen.blackholes
        assert "net ~ [ 10.96.0.0/12+ ] then reject" in seen.part("filter to_kernel4")
        assert "net ~ [ 10.96.0.0/12+ ] then accept" in seen.part("function announce4")


def test_15_the_environment_has_the_last_word() -> None:
    other = BgpEnvironment(service_ips=(parse_net("10.200.0.0/16"),))
    seen = Seen("a", A, bgp(serviceClusterIPs=nets("10.96.0.0/12")), environment=other)
    assert seen.blackholes == {"192.168.1.0/26", "10.200.0.0/16"}


def test_16_a_node_that_is_excluded_announces_no_services() -> None:
    label = "node.kubernetes.io/exclude-from-external-load-balancers"
    local = service(externalIPs=["80.15.0.7"], externalTrafficPolicy="Local")
    ranges = bgp(serviceClusterIPs=nets("10.96.0.0/12"), serviceExternalIPs=nets("80.15.0.0/24"))
    seen = Seen("a", node("a", 1, {label: "true"}), B, ranges, local, slice_("a"))
    assert seen.blackholes == {"192.168.1.0/26"}
    assert "10.96.0.0/12+" in seen.part("filter to_kernel4")
    assert "10.96" not in seen.part("function announce4")
    seen.put(A)
    assert {"10.96.0.0/12", "80.15.0.7/32"} <= seen.blackholes


def test_17_the_node_with_an_endpoint_announces_a_local_service() -> None:
    ranges = bgp(serviceExternalIPs=nets("80.15.0.0/24"))
    local = service(externalIPs=["80.15.0.7", "90.0.0.7"], externalTrafficPolicy="Local")
    everything = A, B, ranges, local, slice_("b")
    assert Seen("a", *everything).blackholes == {"192.168.1.0/26", "80.15.0.0/24"}
    at_b = Seen("b", *everything)
    assert at_b.blackholes == {"192.168.2.0/26", "80.15.0.0/24", "80.15.0.7/32"}
    at_b.put(slice_("b", ready=False))
    assert at_b.blackholes == {"192.168.2.0/26", "80.15.0.0/24"}


def test_an_endpoint_that_cannot_be_reached_does_not_bring_a_route() -> None:
    """Its address is of another IP version than its slice: no node translates to it."""
    local = service(externalIPs=["80.15.0.7"], externalTrafficPolicy="Local")
    ranges, good = bgp(serviceExternalIPs=nets("80.15.0.0/24")), slice_("b")
    (end,) = good.endpoints
    bad = replace(good, endpoints=(replace(end, addresses=("fd00::1",)),))
    assert "80.15.0.7/32" not in Seen("b", A, B, ranges, local, bad).blackholes
    assert "80.15.0.7/32" in Seen("b", A, B, ranges, local, good).blackholes


def test_17_kubernetes_may_call_the_node_by_another_name() -> None:
    local = service(externalIPs=["80.15.0.7"], externalTrafficPolicy="Local")
    ranges = bgp(serviceExternalIPs=nets("80.15.0.0/24"))
    seen = Seen("b", A, B, ranges, local, slice_("b.example"), environment=BgpEnvironment(kubernetes_node="b.example"))
    assert "80.15.0.7/32" in seen.blackholes


def test_17_cluster_addresses_of_local_services_where_they_are_announced_at_all() -> None:
    local = service(externalTrafficPolicy="Local", clusterIPs=["10.96.0.1", "fd96::1"], ipFamilies=["IPv4"])
    seen = Seen("a", A, local, slice_("a"))
    assert seen.blackholes == {"192.168.1.0/26"}
    seen.put(bgp(serviceClusterIPs=nets("10.96.0.0/12")))
    assert seen.blackholes == {"192.168.1.0/26", "10.96.0.0/12", "10.96.0.1/32"}
    seen.cluster.drop(EndpointSlice, "default", "web-ipv4")
    seen.put(slice_("a", family="IPv6"))  # of a family that is not the service's
    assert seen.blackholes == {"192.168.1.0/26", "10.96.0.0/12"}


def test_18_a_single_address_is_announced_while_a_service_has_it() -> None:
    ranges = bgp(serviceLoadBalancerIPs=nets("203.0.113.5/32"))
    seen = Seen("a", A, B, ranges)
    assert seen.blackholes == {"192.168.1.0/26"}
    seen.put(service("one", 1, ingress=["203.0.113.5"]), service("two", 2, ingress=["203.0.113.5"]))
    assert seen.blackholes == {"192.168.1.0/26", "203.0.113.5/32"}
    seen.cluster.drop(Service, "default", "one")  # the other has it still
    assert "203.0.113.5/32" in seen.blackholes
    seen.cluster.drop(Service, "default", "two")
    assert seen.blackholes == {"192.168.1.0/26"}


def test_19_load_balancers_one_by_one() -> None:
    ranges = {"serviceLoadBalancerIPs": nets("203.0.113.0/24")}
    seen = Seen("a", A, B, bgp(**ranges), service(ingress=["203.0.113.5"]))
    assert seen.blackholes == {"192.168.1.0/26", "203.0.113.0/24"}
    seen.put(bgp(**ranges, serviceLoadBalancerAggregation="Disabled"))
    assert seen.blackholes == {"192.168.1.0/26"}
    seen.put(slice_("b"))
    assert seen.blackholes == {"192.168.1.0/26", "203.0.113.5/32"}
    assert "203.0.113.0/24+" in seen.part("filter to_kernel4")


def test_reflectors_pass_on_services_of_others() -> None:
    ranges = bgp(serviceExternalIPs=nets("80.15.0.7/32"), serviceClusterIPs=nets("10.96.0.0/12"))
    for cluster_id, passes in (("1.0.0.1", True), ("", False)):
        reflector = node("a", 1, **({"routeReflectorClusterID": cluster_id} if cluster_id else {}))
        assert ("80.15.0.7/32+" in Seen("a", reflector, ranges).part("function announce4")) is passes
