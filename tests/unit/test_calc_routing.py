"""From resources to a node's sessions: who peers with whom, in which direction it was written, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from tortie.calc.cluster import Cluster
from tortie.calc.peerings import seconds
from tortie.model.bgp import BGPConfiguration, BGPPeer
from tortie.model.bgpfilter import BGPFilter
from tortie.model.document import convert, shape
from tortie.model.meta import Resource
from tortie.model.node import Node


def node(name: str, number: int, six: bool = True, labels: dict[str, str] | None = None, **bgp: Any) -> Node:
    bgp["ipv4Address"] = f"10.0.0.{number}/24"
    if six:
        bgp["ipv6Address"] = f"fd00::{number}/64"
    return convert(Node, {"metadata": {"name": name, "labels": labels or {}}, "spec": {"bgp": bgp}})


def peer(name: str = "peer", **spec: Any) -> BGPPeer:
    return convert(BGPPeer, {"metadata": {"name": name}, "spec": spec})


MESH_OFF = convert(BGPConfiguration, {"metadata": {"name": "default"}, "spec": {"nodeToNodeMeshEnabled": False}})
REFLECTOR = {"rr": "yes"}


def cluster(here: str, *resources: Resource) -> Cluster:
    made = Cluster(here)
    for resource in resources:
        made.put(resource)
    return made


def sessions(here: str, *resources: Resource) -> dict[str, int]:
    """The AS of each peer, by session."""
    made = cluster(here, *resources)
    assert not made.problems
    routing = made.routing()
    assert routing is not None
    return {one.name: one.remote_as for one in routing.peers}


# --- what is worked out anew ----------------------------------------------------------------------------------------

FILTER = convert(BGPFilter, {"metadata": {"name": "f"}, "spec": {"importV4": [{"action": "Reject"}]}})
PLAIN = peer(nodeSelector="all()", peerIP="10.0.0.9", asNumber=65001, filters=["f", "gone"])
WRONG = shape(BGPPeer, {"metadata": {"name": "wrong"}, "spec": {"peerIP": "fe80::9", "asNumber": 65001}})


@pytest.mark.parametrize("one", [FILTER, PLAIN, WRONG], ids=["filter", "peer", "peer that cannot be"])
def test_a_status_makes_no_session_anew(one: BGPFilter | BGPPeer) -> None:
    """Nodes write their conditions there, each its own, and every node hears of every one."""
    made = cluster("a", node("a", 1), node("b", 2), FILTER, PLAIN, WRONG)
    before, problems = made.routing(), dict(made.state() and made.problems)
    made.put(replace(one, status={"conditions": [{"type": "tortie.dev/NotApplied-b"}]}))
    assert made.routing() is before
    assert (made.state() and made.problems) == problems
    assert {"BGPPeer wrong", "filter gone of BGPPeer peer"} <= problems.keys()


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (peer(nodeSelector="all()", peerIP="10.0.0.8", asNumber=65001), {"Mesh_10_0_0_2", "Node_10_0_0_8"}),
        (
            shape(BGPPeer, {"metadata": {"name": "peer"}, "spec": {"peerIP": "fe80::9", "asNumber": 1}}),
            {"Mesh_10_0_0_2"},
        ),
    ],
    ids=["another", "one that cannot be"],
)
def test_a_spec_makes_them_anew(other: BGPPeer, expected: set[str]) -> None:
    made = cluster("a", node("a", 1, six=False), node("b", 2, six=False), PLAIN)

    def names() -> set[str]:
        routing = made.routing()
        assert routing is not None
        return {one.name for one in routing.peers}

    assert names() == {"Mesh_10_0_0_2", "Node_10_0_0_9"}
    made.put(other)
    assert names() == expected
    made.put(PLAIN)
    assert names() == {"Mesh_10_0_0_2", "Node_10_0_0_9"}
    made.drop(BGPPeer, "", "peer")
    assert names() == {"Mesh_10_0_0_2"}


# --- in reverse -----------------------------------------------------------------------------------------------------


def test_a_route_reflector_and_its_clients_peer_with_each_other() -> None:
    """The client's side is what is written; the reflector's side follows from it."""
    everything = (
        MESH_OFF,
        node("a", 1),
        node("b", 2, labels=REFLECTOR, routeReflectorClusterID="1.0.0.1"),
        node("c", 3, six=False),
        peer(nodeSelector="!has(rr)", peerSelector="has(rr)"),
    )
    assert set(sessions("a", *everything)) == {"Node_10_0_0_2", "Node_fd00__2"}
    assert set(sessions("c", *everything)) == {"Node_10_0_0_2"}
    assert set(sessions("b", *everything)) == {"Node_10_0_0_1", "Node_fd00__1", "Node_10_0_0_3"}
    routing = cluster("b", *everything).routing()
    assert routing is not None
    assert all(one.rr_client and one.cluster_id == "1.0.0.1" for one in routing.peers)


@pytest.mark.parametrize(("back", "expected"), [("Auto", {"Node_10_0_0_1": 64512}), ("Manual", {})])
def test_a_node_that_is_peered_with_by_its_address_peers_back(back: str, expected: dict[str, int]) -> None:
    written = peer(node="a", peerIP="10.0.0.2", asNumber=64512, reversePeering=back)
    everything = (MESH_OFF, node("a", 1), node("b", 2), written)
    assert sessions("a", *everything) == {"Node_10_0_0_2": 64512}
    assert sessions("b", *everything) == expected


@pytest.mark.parametrize(
    ("spec", "listens", "backs"),
    [
        ({"peerIP": "10.0.0.2", "asNumber": 65000}, None, False),
        ({"peerIP": "10.0.0.2:179", "asNumber": 64512}, None, True),
        ({"peerIP": "10.0.0.2:1179", "asNumber": 64512}, None, False),
        ({"peerIP": "10.0.0.2:1179", "asNumber": 64512}, 1179, True),
        ({"peerIP": "10.0.0.9", "asNumber": 64512}, None, False),
    ],
)
def test_only_the_node_that_is_meant_peers_back(spec: dict[str, Any], listens: int | None, backs: bool) -> None:
    """Its address, AS number and port: another one there is a router of somebody else's."""
    everything: list[Resource] = [MESH_OFF, node("a", 1), node("b", 2), peer(node="a", **spec)]
    if listens:
        own = {"metadata": {"name": "node.b"}, "spec": {"listenPort": listens}}
        everything.append(convert(BGPConfiguration, own))
    assert bool(sessions("b", *everything)) is backs


def test_what_is_written_beats_what_follows() -> None:
    there = peer("there", node="a", peerIP="10.0.0.2", asNumber=64512, keepaliveTime="9s")
    back = peer("back", node="b", peerIP="10.0.0.1", asNumber=64512, keepaliveTime="7s")
    routing = cluster("b", MESH_OFF, node("a", 1), node("b", 2), there, back).routing()
    assert routing is not None
    assert [(one.name, one.keepalive_time) for one in routing.peers] == [("Node_10_0_0_1", 7)]


def test_a_node_is_not_its_own_peer() -> None:
    everyone = peer(nodeSelector="all()", peerSelector="all()")
    assert set(sessions("a", MESH_OFF, node("a", 1), node("b", 2, six=False), everyone)) == {"Node_10_0_0_2"}


def test_the_gateway_of_a_peering_is_not_that_of_its_reverse() -> None:
    written = peer(node="a", peerIP="10.0.0.2", asNumber=64512, reachableBy="10.0.0.254")
    for here, gateway in (("a", "10.0.0.254"), ("b", "None")):
        routing = cluster(here, MESH_OFF, node("a", 1), node("b", 2), written).routing()
        assert routing is not None
        assert [str(one.reachable_by) for one in routing.peers] == [gateway]


# --- what changes, and what does not ----------------------------------------------------------------------------------


def test_a_node_that_says_the_same_again_changes_nothing() -> None:
    made = cluster("a", node("a", 1), node("b", 2))
    before, hosts = made.routing(), made.state().hosts
    made.put(node("b", 2))
    assert made.routing() is before
    assert made.state().hosts is hosts


def test_every_change_is_seen() -> None:
    made = cluster("a", node("a", 1), node("b", 2))
    seen = [made.routing()]
    for change in (
        node("b", 3),
        node("b", 3, asNumber=65001),
        MESH_OFF,
        peer(peerSelector="has(rr)"),
        node("b", 3, labels=REFLECTOR),
        convert(BGPConfiguration, {"metadata": {"name": "node.b"}, "spec": {"listenPort": 1179}}),
    ):
        made.put(change)
        seen.append(made.routing())
    made.drop(Node, "", "b")
    seen.append(made.routing())
    assert [old == new for old, new in pairwise(seen)] == [False] * 3 + [True] + [False] * 3
    assert len(made.state().hosts) == 2


# --- what cannot be understood ----------------------------------------------------------------------------------------

BAD: dict[str, tuple[type[Resource], dict[str, Any]]] = {
    "selector": (BGPPeer, {"nodeSelector": "has(", "peerIP": "10.0.0.9", "asNumber": 1}),
    "far selector": (BGPPeer, {"peerSelector": "a = b"}),
    "address": (BGPPeer, {"peerIP": "fe80::1%eth0 x", "asNumber": 1}),
    "time": (BGPPeer, {"peerIP": "10.0.0.9", "asNumber": 1, "keepaliveTime": "soon"}),
    "AS": (BGPPeer, {"peerIP": "10.0.0.9", "asNumber": "x"}),
    "AS 0": (BGPPeer, {"peerIP": "10.0.0.9", "asNumber": 0}),
    "link-local address": (BGPPeer, {"peerIP": "fe80::9", "asNumber": 1}),
    "keepalive time": (BGPPeer, {"peerIP": "10.0.0.9", "asNumber": 1, "keepaliveTime": "241s"}),
    "local AS count": (BGPPeer, {"peerIP": "10.0.0.9", "asNumber": 1, "numAllowedLocalASNumbers": -1}),
    "workloads": (BGPPeer, {"localWorkloadSelector": "has(", "asNumber": 1}),
    "node's address": (Node, {"bgp": {"ipv4Address": "nowhere"}}),
    "node's family": (Node, {"bgp": {"ipv4Address": "fd00::1/64"}}),
    "node's AS": (Node, {"bgp": {"ipv4Address": "10.0.0.3/24", "asNumber": "x"}}),
    "node's AS 0": (Node, {"bgp": {"ipv4Address": "10.0.0.3/24", "asNumber": 0}}),
    "node's link-local address": (Node, {"bgp": {"ipv6Address": "fe80::3/64"}}),
    "cluster id": (Node, {"bgp": {"ipv4Address": "10.0.0.3/24", "routeReflectorClusterID": "1; drop"}}),
    "restart time": (BGPConfiguration, {"nodeMeshMaxRestartTime": "soon"}),
    "community": (BGPConfiguration, {"prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["x"]}]}),
    "services": (BGPConfiguration, {"serviceClusterIPs": [{"cidr": "10.96.0.1/12"}]}),
    "interface": (BGPConfiguration, {"ignoredInterfaces": ['eth0"; bad']}),
    "workloads' address": (BGPConfiguration, {"localWorkloadPeeringIPV4": "nowhere"}),
    "filter's cidr": (BGPFilter, {"importV4": [{"action": "Accept", "cidr": "fd00::/8", "matchOperator": "In"}]}),
    "filter's lengths": (
        BGPFilter,
        {"exportV4": [{"action": "Reject", "cidr": "10.0.0.0/24", "matchOperator": "In", "prefixLength": {"max": 20}}]},
    ),
    "filter's communities": (BGPFilter, {"importV6": [{"action": "Accept", "communities": {"values": []}}]}),
    "filter's operation": (BGPFilter, {"importV6": [{"action": "Accept", "operations": [{}]}]}),
}


@pytest.mark.parametrize("which", BAD)
def test_one_bad_object_stops_nothing_else(which: str) -> None:
    """It counts as absent and is named; what the node decides about its pods and other peers goes on."""
    kind, spec = BAD[which]
    bad = shape(kind, {"metadata": {"name": "default"}, "spec": spec})
    made = cluster("a", node("a", 1), node("b", 2), bad)
    assert list(made.problems) == [bad.title]
    assert made.state().generation == 1
    routing = made.routing()
    assert routing is not None
    assert {one.name for one in routing.peers} == {"Mesh_10_0_0_2", "Mesh_fd00__2"}


@pytest.mark.parametrize("text", ["nowhere", "fe80::1"])
def test_a_bad_address_for_workloads_names_its_field(text: str) -> None:
    bad = shape(BGPConfiguration, {"metadata": {"name": "default"}, "spec": {"localWorkloadPeeringIPV6": text}})
    assert cluster("a", bad).problems[bad.title].startswith(f'spec.localWorkloadPeeringIPV6: "{text}" is not an ')


def test_seconds() -> None:
    assert [seconds(text) for text in (None, "", "90s", "1m30s", "1500ms", "2h")] == [None, None, 90, 90, 2, 7200]
