"""A node's services follow from the objects that there are, whatever way they came, and cost what changes."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as swap
from proxy_world import HERE, THERE, endpoint, entrances, inputs, only, put, service, slice_, state_of, texts

from tortie.base.addr import parse_net
from tortie.calc.cluster import Cluster
from tortie.calc.proxy.inputs import ProxyInputs
from tortie.calc.proxy.state import ProxyState
from tortie.model.document import parse
from tortie.model.service import SERVICE_NAME, EndpointSlice, Service

EXCLUDE = "node.kubernetes.io/exclude-from-external-load-balancers"


# --- two services, one frontend -------------------------------------------------------------------------------------


def told(state: ProxyState) -> dict[str, str]:
    """The problems without what is the same in each."""
    end = ", which came first; give this one another address or port"
    assert all(text.endswith(end) for text in state.problems.values())
    return {whose: text.removesuffix(end) for whose, text in state.problems.items()}


def test_the_older_service_has_the_frontend_and_the_other_is_told() -> None:
    older = service("z", created="2025-01-01T00:00:00Z", externalIPs=["192.0.2.7"])
    newer = service("a", "10.96.0.2", created="2025-01-02T00:00:00Z", externalIPs=["192.0.2.7"])
    for order in ((older, newer), (newer, older)):
        state = state_of(*order)
        assert [*entrances(state, "z")] == ["ClusterIP 10.96.0.1:80/TCP", "ExternalIP 192.0.2.7:80/TCP"]
        assert [*entrances(state, "a")] == ["ClusterIP 10.96.0.2:80/TCP"]
        assert told(state) == {"Service red/a": "192.0.2.7:80/TCP belongs to Service red/z"}


def test_of_the_same_age_the_lower_key_has_it() -> None:
    state = state_of(service("b"), service("a"), service("a", namespace="blue"))
    assert [key for key, served in state.services.items() if served.entrances] == [("blue", "a")]
    assert told(state) == {
        "Service red/a": "10.96.0.1:80/TCP belongs to Service blue/a",
        "Service red/b": "10.96.0.1:80/TCP belongs to Service blue/a",
    }


def test_who_waits_gets_it_when_the_other_goes() -> None:
    one = inputs(service("a"), service("b"), service("c"), slice_("10.0.0.2", of="b"))
    first = one.state()
    assert [name for (_, name), served in first.services.items() if served.entrances] == ["a"]
    one.set_service("red", "a", None)
    state = one.state()
    assert texts(only(state, name="b").backends) == ["10.0.0.2:8080"]
    assert told(state) == {"Service red/c": "10.96.0.1:80/TCP belongs to Service red/b"}
    put(one, service("b", "10.96.0.9"))
    assert told(one.state()) == {}
    put(one, service("a", created="2024-01-01T00:00:00Z"))
    assert told(one.state()) == {"Service red/c": "10.96.0.1:80/TCP belongs to Service red/a"}
    put(one, service("a", created="2026-01-01T00:00:00Z"))
    assert told(one.state()) == {"Service red/a": "10.96.0.1:80/TCP belongs to Service red/c"}


def test_node_ports_collide_and_protocols_do_not() -> None:
    first = service("a", type="NodePort", node_port=30080)
    second = service("b", "10.96.0.2", type="NodePort", node_port=30080)
    third = service("c", "10.96.0.1", type="NodePort", node_port=30080, protocol="UDP")
    state = state_of(first, second, third)
    assert told(state) == {"Service red/b": "*:30080/TCP belongs to Service red/a"}
    assert [*entrances(state, "c")] == ["ClusterIP 10.96.0.1:80/UDP", "NodePort *:30080/UDP"]


def test_many_that_collide_are_one_line() -> None:
    ports = [{"name": f"p{i}", "port": i} for i in range(1, 7)]
    state = state_of(service("a", ports=ports), service("b", ports=ports))
    three = "10.96.0.1:1/TCP, 10.96.0.1:2/TCP, 10.96.0.1:3/TCP"
    assert told(state) == {"Service red/b": f"{three} and 3 more belong to Service red/a"}


# --- what is around services ----------------------------------------------------------------------------------------


def test_pods_are_where_pools_for_workloads_are() -> None:
    one = ProxyInputs(HERE)
    one.set_pool("six", parse_net("fd00::/64"))
    one.set_pool("four", parse_net("10.244.0.0/17"))
    one.set_pool("more", parse_net("10.244.128.0/17"))
    one.set_pool("balancers", parse_net("192.0.2.0/24"), workloads=False)
    first = one.state()
    assert first.pods == (ip_network("10.244.0.0/16"), ip_network("fd00::/64"))
    one.set_pool("four", parse_net("10.244.0.0/17"))
    assert one.state() is first
    one.set_pool("four", None)
    assert one.state().pods == (ip_network("10.244.128.0/17"), ip_network("fd00::/64"))


def test_without_such_pools_pods_are_where_kubernetes_has_put_them() -> None:
    one = ProxyInputs(HERE)
    one.set_pool("balancers", parse_net("192.0.2.0/24"), workloads=False)
    one.set_pod_cidrs("a", ["10.244.0.0/24", "fd00:1::/64"])
    one.set_pod_cidrs("b", ["10.244.1.0/24", "nonsense"])
    first = one.state()
    assert first.pods == (ip_network("10.244.0.0/23"), ip_network("fd00:1::/64"))
    one.set_pod_cidrs("b", ["10.244.1.0/24"])
    assert one.state() is first
    one.set_pod_cidrs("a", [])
    assert one.state().pods == (ip_network("10.244.1.0/24"),)
    one.set_pool("four", parse_net("10.1.0.0/16"))
    assert one.state().pods == (ip_network("10.1.0.0/16"),)


def test_options_go_into_the_state() -> None:
    nets = (parse_net("192.0.2.0/24"),)
    one = ProxyInputs(HERE, cluster_cidrs=[parse_net("10.1.0.0/16")], masquerade_all=True, node_ports=nets)
    one.set_pool("four", parse_net("10.244.0.0/16"))
    state = one.state()
    assert (state.node, state.pods, state.masquerade_all, state.node_ports) == (
        HERE, (parse_net("10.1.0.0/16"),), True, nets,
    )  # fmt: skip


def layer2(state: ProxyState) -> dict[str, object]:
    return {str(ip): nodes if nodes is None else set(nodes) for ip, nodes in state.layer2.items()}


def balanced(name: str, ip: str, policy: str, *ingress: str, **spec: Any) -> Service:
    return service(name, ip, type="LoadBalancer", externalTrafficPolicy=policy, ingress=ingress, **spec)


def test_who_may_answer_for_a_load_balancers_address() -> None:
    one = inputs(balanced("any", "10.96.0.1", "Cluster", "192.0.2.1", "198.51.100.1"))
    put(one, balanced("local", "10.96.0.2", "Local", "192.0.2.2"))
    spots = endpoint("10.0.0.1", "n1"), endpoint("10.0.0.2", "n2"), endpoint("10.0.0.3", "n3", ready=False)
    put(one, slice_(*spots, endpoint("10.0.0.4"), of="local"), slice_(endpoint("fd00::5", "n5"), of="x", family="IPv6"))
    assert layer2(one.state()) == {}
    one.set_pool("balancers", parse_net("192.0.2.0/24"), workloads=False, layer2=True)
    assert layer2(one.state()) == {"192.0.2.1": None, "192.0.2.2": {"n1", "n2"}}
    one.set_node("n2", {EXCLUDE: ""})
    assert layer2(one.state()) == {"192.0.2.1": None, "192.0.2.2": {"n1"}}
    one.set_node("n2", None)
    ending = {"ready": False, "serving": True, "terminating": True}
    put(one, slice_(endpoint("10.0.0.3", "n3", **ending), of="local"))
    assert layer2(one.state()) == {"192.0.2.1": None, "192.0.2.2": {"n3"}}
    put(one, slice_(of="local"))
    assert layer2(one.state()) == {"192.0.2.1": None, "192.0.2.2": set()}
    one.set_service("red", "any", None)
    one.set_pool("balancers", parse_net("192.0.2.0/24"), workloads=False)
    assert layer2(one.state()) == {}


def test_an_address_that_services_share_is_where_all_of_them_may_be() -> None:
    one = inputs()
    one.set_pool("balancers", parse_net("192.0.2.0/24"), layer2=True)
    put(one, balanced("a", "10.96.0.1", "Cluster", "192.0.2.1", port=1))
    put(one, balanced("b", "10.96.0.2", "Local", "192.0.2.1", port=2))
    put(one, balanced("c", "10.96.0.3", "Local", "192.0.2.1", port=3))
    put(one, slice_(endpoint("10.0.0.1", "n1"), endpoint("10.0.0.2", "n2"), of="b"))
    put(one, slice_(endpoint("10.0.0.2", "n2"), endpoint("10.0.0.3", "n3"), of="c"))
    assert layer2(one.state()) == {"192.0.2.1": {"n2"}}
    put(one, slice_(endpoint("10.0.0.3", "n3"), of="c"))  # nowhere both: one of them rather than none
    assert layer2(one.state()) == {"192.0.2.1": {"n1", "n2", "n3"}}


# --- any order, any detour ------------------------------------------------------------------------------------------

ZONE = "topology.kubernetes.io/zone"


def some_service(rng: random.Random) -> Service:
    return service(
        rng.choice("abc"),
        rng.choice(("10.96.0.1", "10.96.0.2", "10.96.0.2", "10.96.0.3", "None")),
        created=rng.choice(("2025-01-01T00:00:00Z", "2025-01-02T00:00:00Z")),
        protocol=rng.choice(("TCP", "TCP", "UDP")),
        node_port=rng.choice((0, 30080)),
        type=rng.choice(("ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer")),
        externalTrafficPolicy=rng.choice(("Cluster", "Local")),
        internalTrafficPolicy=rng.choice(("", "", "Local")),
        externalIPs=rng.choice(([], ["192.0.2.1"])),
        ingress=rng.choice((["192.0.2.1"], ["192.0.2.2"])),
        healthCheckNodePort=rng.choice((0, 32000)),
    )


def some_slice(rng: random.Random) -> EndpointSlice:
    hinted = rng.random() < 0.5
    spots = []
    for ip in rng.sample(("10.0.0.1", "10.0.0.2", "10.0.0.3", "127.0.0.1"), rng.randint(0, 3)):
        said = {"ready": rng.random() < 0.7, "terminating": rng.random() < 0.5}
        spots.append(
            endpoint(ip, rng.choice((HERE, THERE, "")), **said, **({"zones": rng.choice("xy")} if hinted else {}))
        )
    return slice_(*spots, of=rng.choice("aaabcd"), name=rng.choice(("s1", "s2", "s3")))


def some_step(rng: random.Random) -> Any:
    kind = rng.choice(("service", "service", "slice", "slice", "node", "pool", "gone"))
    if kind == "service":
        return some_service(rng)
    if kind == "slice":
        return some_slice(rng)
    if kind == "node":
        return kind, rng.choice((HERE, THERE)), rng.choice((None, {}, {ZONE: "x"}, {ZONE: "y"}, {EXCLUDE: "true"}))
    if kind == "pool":
        ranges = None, ("10.0.0.0/8", True, False), ("192.0.2.0/30", False, True), ("192.0.2.0/30", False, True)
        return kind, rng.choice(("p1", "p2")), rng.choice(ranges)
    gone = rng.choice((Service, EndpointSlice))
    return kind, gone, rng.choice("abc" if gone is Service else ("s1", "s2", "s3"))


def step(one: ProxyInputs, what: Any) -> None:
    match what:
        case Service() | EndpointSlice():
            put(one, what)
        case "node", str(name), labels:
            one.set_node(name, labels)
        case "pool", str(name), None:
            one.set_pool(name, None)
        case "pool", str(name), (cidr, workloads, wanted):
            one.set_pool(name, parse_net(cidr), workloads=workloads, layer2=wanted)
        case "gone", kind, str(name):
            (one.set_service if kind is Service else one.set_slice)("red", name, None)


def identity(what: Any) -> tuple[object, ...]:
    if isinstance(what, Service | EndpointSlice):
        return type(what), what.name
    return (what[1], what[2]) if what[0] == "gone" else what[:2]


def same(old: ProxyState, new: ProxyState) -> None:
    """What is equal is the very same object."""
    for key, served in new.services.items():
        before = old.services.get(key)
        assert before is served or before != served
        known = {each.frontend: each for each in before.entrances} if before is not None else {}
        for each in served.entrances:
            assert known.get(each.frontend) is each or known.get(each.frontend) != each
    for name in ("services", "pods", "here", "layer2", "problems"):
        assert getattr(old, name) is getattr(new, name) or getattr(old, name) != getattr(new, name)
    assert (old is new) == (replace(old, generation=0) == replace(new, generation=0))
    assert new.generation == old.generation + (old is not new)


@settings(max_examples=120, deadline=None, database=None)
@given(st.integers(0, 2**32 - 1))
def test_the_way_there_makes_no_difference(seed: int) -> None:
    """Two ways to the same objects; steps come from the seed, so that a failure is told by one number."""
    rng = random.Random(seed)
    one = ProxyInputs(HERE)
    last = one.state()
    final: dict[tuple[object, ...], Any] = {}
    for _ in range(rng.randint(1, 60)):
        what = some_step(rng)
        step(one, what)
        if rng.random() < 0.2:
            step(one, what)  # a replay
        final[identity(what)] = what
        if rng.random() < 0.6:
            now = one.state()
            same(last, now)
            last = now
    fresh = ProxyInputs(HERE)
    for what in rng.sample([*final.values()], len(final)):
        step(fresh, what)
    found, expected = one.state(), fresh.state()
    same(last, found)
    assert replace(found, generation=0) == replace(expected, generation=0)
    frontends = [each.frontend for served in found.services.values() for each in served.entrances]
    assert len(set(frontends)) == len(frontends)
    one.set_node(HERE, None)
    for kind, name in ((kind, name) for kind in (Service, EndpointSlice) for name in ("a", "b", "c", "s1", "s2", "s3")):
        step(one, ("gone", kind, name))
    empty = one.state()
    assert (empty.services, empty.here, empty.layer2, empty.problems) == ({}, frozenset(), {}, {})


def test_what_was_given_away_does_not_change_later() -> None:
    one = inputs(service(), slice_("10.0.0.1"))
    first = one.state()
    shown = {key: texts(served.entrances[0].backends) for key, served in first.services.items()}
    put(one, slice_("10.0.0.2"), service("b", "10.96.0.2"), service("c", "10.96.0.1"))
    one.state()
    assert {key: texts(served.entrances[0].backends) for key, served in first.services.items()} == shown
    assert not first.problems


# --- as a part of the cluster ---------------------------------------------------------------------------------------

OBJECTS = """
{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}},
 spec: {bgp: {ipv4Address: 10.0.0.1/24}}}
---
{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: four}, spec: {cidr: 10.244.0.0/16}}
---
{apiVersion: projectcalico.org/v3, kind: IPPool,
 metadata: {name: balancers, annotations: {tortie.dev/announce: Layer2}},
 spec: {cidr: 192.0.2.0/24, allowedUses: [LoadBalancer]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: red},
 spec: {clusterIP: 10.96.0.1, type: LoadBalancer, ports: [{port: 80}]},
 status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice,
 metadata: {name: web-1, namespace: red, labels: {kubernetes.io/service-name: web}}, addressType: IPv4,
 ports: [{port: 8080}], endpoints: [
  {addresses: [10.244.1.1], nodeName: n1, hints: {forZones: [{name: z1}]}},
  {addresses: [10.244.2.1], nodeName: n2, hints: {forZones: [{name: z2}]}}]}
"""


def test_the_cluster_makes_it_of_its_objects() -> None:
    cluster = Cluster("n1")
    for one in parse(OBJECTS):
        cluster.put(one)
    state = cluster.state().proxy
    assert texts(only(state).backends) == ["10.244.1.1:8080"]
    assert (state.node, state.pods) == ("n1", (parse_net("10.244.0.0/16"),))
    assert state.layer2 == {ip_address("192.0.2.1"): None}
    assert cluster.state().proxy is state
    cluster.drop(EndpointSlice, "red", "web-1")
    cluster.drop(Service, "red", "web")
    assert cluster.state().proxy.services == {}


def test_the_cluster_takes_inputs_with_options() -> None:
    cluster = Cluster("n1", proxy=ProxyInputs("n1", masquerade_all=True))
    assert cluster.state().proxy.masquerade_all


# --- ten thousand ---------------------------------------------------------------------------------------------------


def test_one_change_among_ten_thousand_services_is_cheap() -> None:
    count = 10_000
    one = inputs()
    for i in range(count):
        one.set_service("red", f"s{i}", named(f"s{i}", str(ip_address("10.96.0.1") + i)))
        one.set_slice("red", f"s{i}-ipv4", slice_at(f"s{i}", f"10.1.{i // 250}.{i % 250 + 1}"))
    start = time.perf_counter()
    state = one.state()
    whole = time.perf_counter() - start
    took: list[float] = []
    for i in range(20):
        new = slice_(f"10.2.0.{i + 1}", "10.2.1.1", of=f"s{i * 7}")
        start = time.perf_counter()
        put(one, new)
        now = one.state()
        took.append(time.perf_counter() - start)
        assert changed(state.services, now.services) == {f"s{i * 7}"}
        state = now
    print(f"{whole * 1000:.0f} ms for all, {sorted(took)[10] * 1000:.1f} ms for one")
    assert min(took) < whole / 20


PLAIN, PLAIN_SLICE = service(), slice_("10.0.0.1")


def named(name: str, ip: str) -> Service:
    """Quicker than reading a document."""
    spec, metadata = swap(PLAIN.spec, cluster_ip=ip), swap(PLAIN.metadata, name=name)
    return swap(PLAIN, metadata=metadata, spec=spec)


def slice_at(of: str, ip: str) -> EndpointSlice:
    metadata = swap(PLAIN_SLICE.metadata, name=f"{of}-ipv4", labels={SERVICE_NAME: of})
    return swap(PLAIN_SLICE, metadata=metadata, endpoints=(swap(PLAIN_SLICE.endpoints[0], addresses=(ip,)),))


def changed(old: Mapping[tuple[str, str], object], new: Mapping[tuple[str, str], object]) -> set[str]:
    return {key[1] for key in old.keys() | new.keys() if old.get(key) is not new.get(key)}
