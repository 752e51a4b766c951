"""Who peers with whom."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.base.addr import parse_ip
from tortie.base.errors import ConfigError
from tortie.bgp.sessions import (
    Cluster,
    ExplicitPeer,
    NextHop,
    Peer,
    Router,
    Scope,
    explicit_sessions,
    mesh_sessions,
    peer_name,
    router_id,
    sessions,
)


def node(name: str, number: int, **more: object) -> Router:
    both = Router(name=name, ipv4=IPv4Address(f"10.0.0.{number}"), ipv6=IPv6Address(f"fd00::{number}"))
    return replace(both, **more)  # type: ignore[arg-type]


A, B, C = node("a", 1), node("b", 2), node("c", 3)


def peer(ip: str, remote_as: int = 64512, scope: Scope = Scope.GLOBAL, **more: object) -> ExplicitPeer:
    return replace(ExplicitPeer(scope=scope, ip=parse_ip(ip), remote_as=remote_as), **more)  # type: ignore[arg-type]


def names(peers: tuple[Peer, ...]) -> list[str]:
    return [one.name for one in peers]


def only(
    wanted: ExplicitPeer, me: Router = A, others: tuple[Router, ...] = (B, C), cluster: Cluster | None = None
) -> Peer:
    [one] = explicit_sessions(me, others, [wanted], cluster or Cluster())
    return one


# ---------------------------------------------------------------------------------------------------------- the mesh


def test_two_nodes_meet_in_both_families_and_one_end_waits() -> None:
    at_a = mesh_sessions(A, [A, B], Cluster())
    at_b = mesh_sessions(B, [A, B], Cluster())
    assert names(at_a) == ["Mesh_10_0_0_2", "Mesh_fd00__2"]
    assert [one.passive for one in at_a] == [True, True]
    assert [one.passive for one in at_b] == [False, False]
    assert at_a[0] == Peer(
        name="Mesh_10_0_0_2",
        ip=IPv4Address("10.0.0.2"),
        remote_as=64512,
        local_as=64512,
        passive=True,
        source=IPv4Address("10.0.0.1"),
    )
    assert at_a[1].source == IPv6Address("fd00::1")


def test_addresses_are_compared_as_texts() -> None:
    nine, ten = node("x", 9, ipv6=None), node("y", 10, ipv6=None)
    assert [one.passive for one in mesh_sessions(ten, [nine], Cluster())] == [True]
    assert [one.passive for one in mesh_sessions(nine, [ten], Cluster())] == [False]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 250), min_size=2, max_size=6, unique=True))
def test_exactly_one_end_of_every_mesh_session_dials(numbers: list[int]) -> None:
    nodes = [node(f"n{number}", number) for number in numbers]
    dials = {(me.name, str(one.ip)): not one.passive for me in nodes for one in mesh_sessions(me, nodes, Cluster())}
    assert len(dials) == 2 * len(nodes) * (len(nodes) - 1)
    for me in nodes:
        for other in nodes:
            if me is not other:
                assert dials[me.name, str(other.ipv4)] != dials[other.name, str(me.ipv4)]


def test_a_family_that_one_end_lacks_has_no_session() -> None:
    assert names(mesh_sessions(replace(A, ipv6=None), [B], Cluster())) == ["Mesh_10_0_0_2"]
    assert names(mesh_sessions(A, [replace(B, ipv4=None)], Cluster())) == ["Mesh_fd00__2"]


def test_route_reflectors_are_not_meshed() -> None:
    reflector = replace(B, cluster_id="1.0.0.1")
    assert names(mesh_sessions(A, [reflector, C], Cluster())) == ["Mesh_10_0_0_3", "Mesh_fd00__3"]
    assert mesh_sessions(reflector, [A, C], Cluster()) == ()


def test_a_mesh_that_is_off() -> None:
    assert sessions(A, [B, C], (), Cluster(mesh_enabled=False)) == ()


def test_what_the_mesh_takes_from_the_cluster_and_from_the_node() -> None:
    cluster = Cluster(as_number=65000, listen_port=178, mesh_password="p", mesh_restart_time=200)
    b, c = (
        one
        for one in mesh_sessions(A, [replace(B, listen_port=177, as_number=65001), C], cluster)
        if one.ip.version == 4
    )
    assert (b.remote_as, b.local_as, b.port, b.same_as) == (65001, 65000, 177, False)
    assert (c.remote_as, c.local_as, c.port, c.same_as) == (65000, 65000, 178, True)
    assert {one.password for one in (b, c)} == {"p"}
    assert {one.restart_time for one in (b, c)} == {200}


def test_a_node_with_an_as_of_its_own_meets_the_others_in_theirs() -> None:
    [at_a] = mesh_sessions(replace(A, as_number=65001, ipv6=None), [B], Cluster())
    [at_b] = mesh_sessions(replace(B, ipv6=None), [replace(A, as_number=65001)], Cluster())
    assert (at_a.local_as, at_a.remote_as) == (65001, 64512)
    assert (at_b.local_as, at_b.remote_as) == (64512, 65001)


def test_an_address_that_two_nodes_claim_is_one_session() -> None:
    twin = node("bb", 2, as_number=65009)
    for order in ([B, twin], [twin, B]):
        assert [one.remote_as for one in mesh_sessions(A, order, Cluster())] == [64512, 64512]
    assert mesh_sessions(A, [node("copy", 1)], Cluster()) == ()


# ----------------------------------------------------------------------------------------------------- explicit peers


def test_names() -> None:
    assert peer_name(Scope.GLOBAL, parse_ip("10.0.0.9"), 1179) == "Global_10_0_0_9_port_1179"
    assert peer_name(Scope.NODE, parse_ip("fd00::9")) == "Node_fd00__9"
    assert peer_name(Scope.WORKLOAD, parse_ip("10.0.0.9")) == "Local_Workload_10_0_0_9"


def test_global_beats_node_specific_on_the_same_end_point() -> None:
    wanted = [peer("10.0.0.9", scope=Scope.NODE), peer("10.0.0.9"), peer("10.0.0.9", scope=Scope.NODE, port=1179)]
    found = explicit_sessions(A, (), wanted, Cluster())
    assert names(found) == ["Global_10_0_0_9", "Node_10_0_0_9_port_1179"]


def test_what_is_written_beats_what_is_computed() -> None:
    written, computed = peer("10.0.0.9", 65001, Scope.NODE), peer("10.0.0.9", 65002, reverse=True)
    assert [one.remote_as for one in explicit_sessions(A, (), [computed, written], Cluster())] == [65001]


def test_own_addresses_and_absent_families_are_skipped() -> None:
    wanted = [peer("10.0.0.1"), peer("fd00::1"), peer("fd00::9"), peer("10.0.0.9")]
    assert names(explicit_sessions(replace(A, ipv6=None), (), wanted, Cluster())) == ["Global_10_0_0_9"]


def test_the_port_of_a_node_that_is_named_by_address() -> None:
    b = replace(B, listen_port=177)
    assert only(peer("10.0.0.2"), others=(b,)).name == "Global_10_0_0_2_port_177"
    assert only(peer("10.0.0.2"), others=(B,), cluster=Cluster(listen_port=178)).port == 178
    assert only(peer("10.0.0.2", 65001), others=(b,)).port is None
    assert only(peer("10.0.0.2", port=1179), others=(b,)).port == 1179


def test_who_waits() -> None:
    assert only(peer("10.0.0.2")).passive
    assert not only(peer("10.0.0.1"), me=B, others=(A,)).passive
    assert not only(peer("10.0.0.9")).passive  # no node of ours: it may not dial
    assert not only(peer("10.0.0.2", scope=Scope.NODE)).passive
    assert not only(peer("10.0.0.2", by_selector=True)).passive
    assert only(peer("10.65.0.9", scope=Scope.WORKLOAD)).passive
    assert not only(peer("10.0.0.2", passive=False)).passive


def test_route_reflection() -> None:
    reflector = replace(A, cluster_id="1.0.0.1")
    client = only(peer("10.0.0.2"), me=reflector)
    assert (client.rr_client, client.cluster_id) == (True, "1.0.0.1")
    sibling = only(peer("10.0.0.2"), me=reflector, others=(replace(B, cluster_id="1.0.0.1"),))
    assert (sibling.rr_client, sibling.cluster_id) == (False, None)
    assert only(peer("10.0.0.2"), me=reflector, others=(replace(B, cluster_id="1.0.0.2"),)).rr_client
    assert not only(peer("10.0.0.2", 65001), me=reflector).rr_client
    assert only(peer("10.0.0.2", 65001, local_as=65001), me=reflector).rr_client
    assert not only(peer("10.0.0.2")).rr_client


def test_the_local_as_decides_what_is_internal_except_for_selectors() -> None:
    assert only(peer("10.0.0.9", 65001, local_as=65001)).same_as
    ignored = only(peer("10.0.0.9", 65001, local_as=65001, allowed_local_as=2, by_selector=True))
    assert (ignored.local_as, ignored.allowed_local_as) == (64512, None)


def test_next_hops() -> None:
    assert only(peer("10.0.0.9", next_hop=NextHop.SELF)).next_hop is NextHop.SELF
    assert only(peer("10.0.0.9", 65001, keep_original_next_hop=True)).next_hop is NextHop.KEEP
    assert only(peer("10.0.0.9", keep_original_next_hop=True)).next_hop is NextHop.AUTO


def test_the_source_address() -> None:
    assert only(peer("10.0.0.9")).source == IPv4Address("10.0.0.1")
    assert only(peer("10.0.0.9", source_node_ip=False)).source is None
    assert only(peer("10.65.0.9", scope=Scope.WORKLOAD)).source is None


def test_what_is_passed_on_as_it_is() -> None:
    gateway = parse_ip("10.0.0.254")
    one = only(
        peer(
            "10.0.0.9",
            password="p",
            ttl_hops=3,
            keepalive_time=10,
            restart_time=20,
            allowed_local_as=2,
            reachable_by=gateway,
        )
    )
    assert (one.password, one.ttl_hops, one.keepalive_time, one.restart_time) == ("p", 3, 10, 20)
    assert (one.allowed_local_as, one.reachable_by) == (2, gateway)


EXPLICIT = st.builds(
    peer,
    st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.9", "fd00::2", "fd00::9"]),
    st.sampled_from([64512, 65001]),
    st.sampled_from([Scope.GLOBAL, Scope.NODE]),
    port=st.sampled_from([None, 1179]),
    reverse=st.booleans(),
    password=st.sampled_from([None, "one", "two"]),
)


@settings(max_examples=40)
@given(st.lists(EXPLICIT, max_size=6), st.randoms())
def test_the_order_of_the_input_means_nothing(wanted: list[ExplicitPeer], random: Random) -> None:
    shuffled, others = list(wanted), [B, C]
    random.shuffle(shuffled)
    random.shuffle(others)
    found = sessions(A, others, shuffled)
    assert found == sessions(A, [B, C], wanted)
    assert names(found) == sorted(set(names(found)))


def test_passwords_are_in_no_log() -> None:
    secret = only(peer("10.0.0.9", password="hush"))
    assert "hush" not in f"{secret!r} {peer('10.0.0.9', password='hush')!r} {Cluster(mesh_password='hush')!r}"


# ---------------------------------------------------------------------------------------------------------- router id


def test_the_router_id_is_the_ipv4_address() -> None:
    assert router_id(IPv4Address("10.0.0.1"), "a") == IPv4Address("10.0.0.1")
    assert router_id(IPv4Address("10.0.0.1"), "a", "1.2.3.4") == IPv4Address("1.2.3.4")


def test_a_hashed_router_id_is_never_multicast() -> None:
    name = next(f"n{i}" for i in range(1000) if hashlib.sha256(f"n{i}".encode()).digest()[0] > 223)
    digest = hashlib.sha256(name.encode()).digest()
    assert router_id(None, name, "hash").packed == bytes([digest[0] - 32]) + digest[1:4]
    plain = next(f"n{i}" for i in range(1000) if hashlib.sha256(f"n{i}".encode()).digest()[0] <= 223)
    assert router_id(None, plain, "hash").packed == hashlib.sha256(plain.encode()).digest()[:4]


def test_a_router_id_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r'CALICO_ROUTER_ID: node a has no IPv4 address.*"hash"'):
        router_id(None, "a")
    with pytest.raises(ConfigError, match='"fd00::1" is neither'):
        router_id(None, "a", "fd00::1")
