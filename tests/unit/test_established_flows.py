"""Which established flows are forbidden, and whose are looked at: decided on values."""

from __future__ import annotations

from dataclasses import replace

import pytest
from situations import base, calico, cluster_of, felix, gnp, np

from tortie.base.addr import parse_ip
from tortie.base.errors import ConfigError
from tortie.base.flow import ICMP, ICMP6, TCP, UDP, Flow, Way
from tortie.calc.cluster import Cluster
from tortie.calc.established import forbidden, touched
from tortie.calc.state import DesiredState
from tortie.kernel.conntrack import decode, encode
from tortie.model.document import check, parse
from tortie.model.node import FelixConfiguration

OWN = frozenset(map(parse_ip, ("10.0.0.1", "fd00:10::1", "127.0.0.1")))
A, B, C, D = (parse_ip(f"10.244.{tail}") for tail in ("1.10", "1.11", "1.12", "2.10"))
X, NODE = parse_ip("198.51.100.9"), parse_ip("10.0.0.1")
A6 = parse_ip("fd00:244:1::10")


def state_of(*documents: str, node: str | None = "n1") -> DesiredState:
    cluster = Cluster(node)
    for resource in (*base(), *(one for text in documents for one in parse(text))):
        cluster.put(resource)
    return cluster.state()


def flow(source: object, destination: object, port: int = 80, protocol: int = TCP) -> Flow:
    here, there = parse_ip(str(source)), parse_ip(str(destination))
    return Flow(Way(here, there, protocol, 40000, port), Way(there, here, protocol, port, 40000))


def reasons(state: DesiredState, *flows: Flow) -> list[str]:
    return [one.reason for one in forbidden(flows, state, OWN)]


CLOSED = np("selector: app == 'web', types: [Ingress], ingress: [{action: Allow, source: {nets: [198.51.100.0/24]}}]")


def test_only_the_direction_in_which_it_was_opened_counts() -> None:
    state = state_of(CLOSED)
    flows = (flow(D, A), flow(A, D), flow(X, A), flow(B, C), flow(D, B))
    assert [one.flow for one in forbidden(flows, state, OWN)] == [flows[0]]
    assert "np/red/n" in reasons(state, flows[0])[0]


def test_both_ends_of_one_node_are_asked() -> None:
    state = state_of(gnp("selector: app == 'db', types: [Egress]"))
    assert len(reasons(state, flow(B, A))) == 1
    assert reasons(state, flow(A, B)) == []


def test_policy_sees_translated_destinations_and_senders_own_addresses() -> None:
    state = state_of(CLOSED)
    service = Flow(Way(D, parse_ip("10.96.0.10"), TCP, 40000, 80), Way(A, D, TCP, 8080, 40000))
    assert len(reasons(state, service)) == 1
    outgoing = Flow(Way(A, X, TCP, 40000, 443), Way(X, NODE, TCP, 443, 1234))
    assert reasons(state, outgoing) == []
    assert len(reasons(state_of(gnp("selector: app == 'web', types: [Egress]")), outgoing)) == 1


def test_what_is_left_alone() -> None:
    state = state_of(CLOSED, gnp("selector: all(), types: [Egress]"))
    from_node = flow(NODE, A)
    passing = flow(X, "203.0.113.7")
    assert reasons(state, from_node, passing) == []
    assert len(reasons(state, flow(D, A))) == 1
    assert reasons(state, replace(flow(D, A), related=True)) == []
    assert reasons(state, flow(A, A)) == []


def test_pods_and_their_own_host() -> None:
    to_host = flow(A, NODE)
    assert "defaultEndpointToHostAction" in reasons(state_of(), to_host)[0]
    assert reasons(state_of(felix("defaultEndpointToHostAction: Accept")), to_host) == []
    gateway = parse_ip("fd00:10::1")
    discovery = Flow(Way(A6, gateway, ICMP6, icmp_type=135), Way(gateway, A6, ICMP6, icmp_type=136))
    assert reasons(state_of(gnp("selector: all(), types: [Egress]")), discovery) == []


def test_tunnels_of_pods() -> None:
    assert reasons(state_of(), flow(A, X, 4789, UDP)) == ["VXLAN from a pod"]
    assert reasons(state_of(felix("allowVXLANPacketsFromWorkloads: true")), flow(A, X, 4789, UDP)) == []


def test_whose_flows_are_looked_at() -> None:
    cluster = cluster_of(base())
    cluster.node = "n1"
    old = cluster.state()
    everybody = frozenset(ip for endpoint in old.endpoints.values() for ip in endpoint.ips)
    assert touched(None, old) == everybody
    assert touched(old, cluster.state()) == frozenset()
    (policy,) = parse(CLOSED)
    cluster.put(policy)
    new = cluster.state()
    assert touched(old, new) == {A, A6}
    (felix_document,) = parse(felix("defaultEndpointToHostAction: Accept"))
    cluster.put(felix_document)
    assert touched(new, cluster.state()) == everybody


def test_a_set_that_changes_touches_those_who_consult_it() -> None:
    cluster = cluster_of(base())
    (policy,) = parse(np("selector: app == 'web', ingress: [{action: Deny, source: {selector: bad == 'true'}}]"))
    cluster.put(policy)
    old = cluster.state()
    (network_set,) = parse(
        "{apiVersion: projectcalico.org/v3, kind: NetworkSet, metadata: {name: s, namespace: red,"
        " labels: {bad: 'true'}}, spec: {nets: [198.51.100.0/24]}}"
    )
    cluster.put(network_set)
    assert touched(old, cluster.state()) == {A, A6}


# --- the annotation -----------------------------------------------------------------------------------------------


def annotated(name: str, value: str | None, spec: str = "") -> FelixConfiguration:
    (found,) = parse(calico("FelixConfiguration", name, spec, annotation(value)))
    assert isinstance(found, FelixConfiguration)
    return found


def annotation(value: str | None) -> str:
    return "" if value is None else f", annotations: {{tortie.dev/established-flows: '{value}'}}"


def test_the_nodes_own_word_counts_first() -> None:
    cluster = Cluster("n1")
    seen = [cluster.settings().established]
    for configuration in (annotated("default", "Cut"), annotated("node.n1", None), annotated("node.n1", "Keep")):
        cluster.put(configuration)
        seen.append(cluster.settings().established)
    assert seen == ["Keep", "Cut", "Cut", "Keep"]
    assert Cluster("n1").settings_of("n2").established == "Keep"


@pytest.mark.parametrize("value", ["cut", "", "Yes"])
def test_another_word_is_refused_with_its_path(value: str) -> None:
    with pytest.raises(ConfigError, match=r'metadata\.annotations\["tortie\.dev/established-flows"\].*Keep, Cut'):
        check(annotated("default", value))


# --- the wire -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way",
    [
        Way(A, X, TCP, 40000, 80),
        Way(A6, parse_ip("2001:db8::1"), UDP, 1, 65535),
        Way(A, X, ICMP, icmp_type=8, icmp_id=7),
        Way(A6, parse_ip("2001:db8::1"), ICMP6, icmp_type=128, icmp_code=1, icmp_id=65535),
        Way(A, X, 47),
    ],
)
def test_a_flow_is_written_and_read(way: Way) -> None:
    reply = Way(way.destination, way.source, way.protocol, way.destination_port, way.source_port)
    body = encode(Flow(way, reply, zone=3, number=9))
    head, tuple_bytes = body[:4], body[4 : 4 + int.from_bytes(body[4:6], "little")]
    there = bytes([tuple_bytes[0], tuple_bytes[1], 2, tuple_bytes[3]]) + tuple_bytes[4:]  # CTA_TUPLE_REPLY
    found = decode(head + tuple_bytes + there + body[4 + len(tuple_bytes) :])
    assert (found.opened, found.reply, found.zone, found.number) == (way, way, 3, 9)


def test_a_flow_prints_as_what_deletes_it() -> None:
    assert str(flow(A, X)) == "conntrack -D -p tcp -s 10.244.1.10 -d 198.51.100.9 --sport 40000 --dport 80"
    ping = Way(A, X, ICMP, icmp_type=8, icmp_id=7)
    assert str(Flow(ping, ping)).endswith(
        "-p icmp -s 10.244.1.10 -d 198.51.100.9 --icmp-type 8 --icmp-code 0 --icmp-id 7"
    )
