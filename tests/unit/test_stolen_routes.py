"""Which routes of others are in the place of BIRD's, on values."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from tortie.bgp.birdc import Hop
from tortie.bgp.birdc import Route as BirdRoute
from tortie.bgp.filters import TOP
from tortie.calc.cluster import Cluster
from tortie.calc.state import DesiredState
from tortie.dataplane.stages.stolen_routes import Realm, is_foreign, place, realm, stolen
from tortie.kernel.routes import Nexthop, Route
from tortie.model.document import parse

BLOCK, BLOCK6 = ip_network("10.1.4.0/26"), ip_network("fd00:1::40/122")
FOREIGN = Route(BLOCK, ip_address("10.0.0.9"), 2, protocol=4, metric=1024)
FOREIGN6 = Route(BLOCK6, ip_address("fd00::9"), 2, protocol=4, metric=1024)
OWN = BirdRoute(
    table="master4", prefix=BLOCK, kind="unicast", protocol="Mesh_10_0_0_4", since="12:00:00", best=True,
    preference=100, hops=(Hop(ip_address("10.0.0.4"), "eth0"),), attributes={"BGP.local_pref": str(TOP - 1024)},
)  # fmt: skip
OWN6 = replace(OWN, table="master6", prefix=BLOCK6)


def test_what_has_the_destination_and_the_metric_of_bird_s_best_is_stolen() -> None:
    foreign = {place(route): route for route in (FOREIGN, FOREIGN6)}
    found = stolen(foreign, [OWN, OWN6])
    assert [theft.route for theft in found.values()] == [FOREIGN, FOREIGN6]
    assert str(found[BLOCK, 1024]) == (
        "10.1.4.0/26 via 10.0.0.9 dev if2 proto static metric 1024 is in the place of BIRD's "
        "10.1.4.0/26 via 10.0.0.4 dev eth0 (Mesh_10_0_0_4)"
    )


def test_what_bird_knows_nothing_better_of_stays() -> None:
    foreign = {place(FOREIGN): FOREIGN}
    assert not stolen(foreign, [])
    assert not stolen(foreign, [replace(OWN, protocol="kernel4", attributes={"Kernel.source": "4"})])
    assert not stolen(foreign, [replace(OWN, kind="unreachable")])
    assert not stolen(foreign, [replace(OWN, attributes={"BGP.local_pref": str(TOP - 512)})]), "of another metric"


def test_whose_a_route_is() -> None:
    pod = Route(ip_network("10.1.4.7/32"), dev=9, protocol=3, metric=1024)
    assert is_foreign(FOREIGN)
    assert is_foreign(replace(FOREIGN, via=None, dev=None, nexthops=(Nexthop(FOREIGN.via, 2), Nexthop(FOREIGN.via, 3))))
    assert is_foreign(replace(pod, via=FOREIGN.via))
    assert not is_foreign(pod)
    assert not any(is_foreign(replace(FOREIGN, protocol=ours)) for ours in (2, 12, 80))
    assert not is_foreign(replace(FOREIGN, table=100))
    assert not is_foreign(replace(FOREIGN, via=None, dev=None, type="blackhole", scope="global"))


def pool(name: str, cidr: str, more: str = "") -> str:
    spec = f"{{cidr: '{cidr}'{more}}}"
    return f"{{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {{name: {name}}}, spec: {spec}}}\n---\n"


def state(text: str) -> DesiredState:
    cluster = Cluster("a")
    for one in parse(text):
        cluster.put(one)
    return cluster.state()


def test_where_bird_writes_routes() -> None:
    spec = "{bgp: {ipv4Address: 10.0.0.1/24}}"
    node = f"{{apiVersion: projectcalico.org/v3, kind: Node, metadata: {{name: a}}, spec: {spec}}}\n---\n"
    pools = pool("plain", "10.1.0.0/16") + pool("wrapped", "10.1.128.0/17", ", vxlanMode: Always")
    pools += pool("six", "fd00:1::/48") + pool("balanced", "10.2.0.0/16", ", allowedUses: [LoadBalancer]")
    found = realm(state(node + pools))
    assert found.has(BLOCK)
    assert not any(map(found.has, map(ip_network, ("10.1.200.0/26", "10.2.0.7/32", "10.3.0.0/26", "0.0.0.0/0"))))
    assert not found.has(BLOCK6), "the node has no IPv6 address"
    assert realm(state(pools)) == Realm()
