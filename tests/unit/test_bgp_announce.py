"""What decides whether a peer is told of a route, step by step. Against BIRD it is tested with real peers."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from tortie.bgp.announce import Announcing, Candidate, announce
from tortie.bgp.communities import Advertisement
from tortie.bgp.filters import TOP, AddCommunity, Filter, FilterRule, PrependPath, SetPriority
from tortie.bgp.sessions import Peer

IBGP = Peer(name="Mesh_10_0_0_2", ip=ip_address("10.0.0.2"), remote_as=64512, local_as=64512)
OTHER = Peer(name="Mesh_10_0_0_3", ip=ip_address("10.0.0.3"), remote_as=64512, local_as=64512)
EBGP = Peer(name="Global_10_0_0_9", ip=ip_address("10.0.0.9"), remote_as=65001, local_as=64512)
BY = Announcing(
    blocks=(ip_network("10.1.0.0/26"),),
    private=(ip_network("10.2.0.0/16"),),
    public=(ip_network("10.1.0.0/16"),),
    services=(ip_network("10.96.0.0/12"),),
    advertisements=(Advertisement(ip_network("10.1.0.0/16"), ((100, 1),)),),
)


def route(prefix: str, **more: Any) -> Candidate:
    return Candidate(prefix=ip_network(prefix), **more)


@pytest.mark.parametrize(
    ("candidate", "peer", "told", "step"),
    [
        (route("10.1.0.0/26"), IBGP, True, "a block of this node"),
        (route("10.1.0.5/32", metric=1024), IBGP, False, "inside the own block 10.1.0.0/26, which is told whole"),
        (route("10.1.0.5/32"), IBGP, False, "inside the own block 10.1.0.0/26, which is told whole"),
        (route("10.1.0.5/32", metric=512), IBGP, True, "and urgent (metric 512)"),
        (route("10.1.7.5/32", metric=1024), IBGP, True, "inside the pool 10.1.0.0/16"),
        (route("10.2.0.0/26"), IBGP, False, "its pool 10.2.0.0/16 has disableBGPExport"),
        (route("10.96.0.0/12"), EBGP, True, "services 10.96.0.0/12"),
        (route("192.0.2.0/24"), EBGP, False, "inside no pool, and no filter accepts it"),
        (route("10.1.8.0/26", interface="vxlan.calico"), IBGP, False, "through the tunnel vxlan.calico"),
        (route("10.1.8.0/26", interface="vxlan.calico"), EBGP, True, "inside the pool"),
        (route("10.1.8.0/26", interface="tunl0"), IBGP, False, "through the tunnel tunl0"),
        (route("10.1.8.0/26", interface="eth0", source=80), IBGP, False, "the agent's route to another node"),
        (route("10.1.8.0/26", session=IBGP), IBGP, False, "it came from this peer"),
        (route("10.1.8.0/26", session=OTHER), IBGP, False, "but by a route reflector"),
        (route("10.1.8.0/26", session=replace(OTHER, rr_client=True)), IBGP, True, "inside the pool"),
        (route("10.1.8.0/26", session=EBGP), IBGP, True, "inside the pool"),
        (route("10.1.8.0/26", session=EBGP, communities=frozenset({(65535, 65282)})), IBGP, False, "no-advertise"),
        (route("10.1.8.0/26", session=OTHER, communities=frozenset({(65535, 65281)})), EBGP, False, "no-export"),
    ],
)
def test_what_decides(candidate: Candidate, peer: Peer, told: bool, step: str) -> None:
    decision = announce(candidate, peer, BY)
    assert (decision.accepted, step in decision.step) == (told, True), decision.step


def test_what_is_told_carries_its_worth_and_its_communities() -> None:
    sent = announce(route("10.1.7.5/32", metric=512), IBGP, BY).route
    assert (sent.local_pref, sent.communities) == (TOP - 512, {(100, 1)})


def test_filters_are_asked_in_order_and_before_anything_else() -> None:
    first = Filter(name="a", export4=(FilterRule(accept=False, net=ip_network("10.1.0.0/26"), inside=False),))
    operations = (AddCommunity((1, 2)), PrependPath((7, 8)), SetPriority(700))
    second = Filter(name="b", export4=(FilterRule(accept=True, interface="cali*", operations=operations),))
    by = replace(BY, filters={"a": first, "b": second})
    peer = replace(EBGP, filters=("a", "b", "gone"))
    assert announce(route("10.1.0.0/26", interface="cali1"), peer, by).step == "BGPFilter a, export rule 0"
    decision = announce(route("192.0.2.1/32", interface="cali1"), peer, by)
    assert (decision.accepted, decision.step) == (True, "BGPFilter b, export rule 0")
    assert (decision.route.communities, decision.route.as_path) == ({(1, 2)}, (7, 8))
    assert decision.route.local_pref == TOP - 700
    assert announce(route("192.0.2.1/32"), peer, by).step == "inside no pool, and no filter accepts it"
