"""Plans of routing: what is learned of whom, the fewest steps, and that no instant of a step is without a route."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from bgp_clusters import MESH, NO_MESH, block, config, felix, mesh, node, peer, pool, reflected, secret
from tortie.base.errors import ConfigError, Conflict
from tortie.calc.admission import Objects
from tortie.calc.bgp_plan.arrival import missing
from tortie.calc.bgp_plan.changes import NET, Change, copied, has_net, overlaid, rebased, with_net, without_net
from tortie.calc.bgp_plan.difference import Fate, one_sided, session_changes
from tortie.calc.bgp_plan.moment import moment, with_blocks
from tortie.calc.bgp_plan.plan import Kind, Plan, plan
from tortie.cli.bgp_plan_text import printed, to_document
from tortie.model.bgp import BGPPeer
from tortie.model.document import convert
from tortie.model.k8s import Pod
from tortie.model.meta import Resource, changed
from tortie.model.node import FelixConfiguration, Node


def steps(found: Plan) -> list[tuple[str, list[str]]]:
    return [(str(step.kind), [str(change) for change in step.changes]) for step in found.steps]


# --- who learns from whom -----------------------------------------------------------------------------------------


def learned(*objects: Resource) -> dict[tuple[str, str], str]:
    return {(way.source, way.owner): of for way, of in moment(Objects([pool(), *objects])).told.items()}


def test_in_a_mesh_everybody_learns_from_the_owner() -> None:
    every = learned(node(1), node(2), node(3), block(1), block(2), MESH)
    assert every == {("n2", "n1"): "n1", ("n3", "n1"): "n1", ("n1", "n2"): "n2", ("n3", "n2"): "n2"}


def test_reflectors_pass_on_and_clients_do_not() -> None:
    rr = node(1, label="rr", routeReflectorClusterID="1.0.0.1")
    assert learned(rr, node(2), node(3), block(2), NO_MESH, peer()) == {("n1", "n2"): "n2", ("n3", "n2"): "n1"}
    plain = node(1, label="rr")
    assert learned(plain, node(2), node(3), block(2), NO_MESH, peer()) == {("n1", "n2"): "n2"}


@pytest.mark.parametrize(("second", "reached"), [("1.0.0.2", {"n1", "n2", "n4"}), ("1.0.0.1", {"n1", "n2", "n4"})])
def test_reflectors_of_two_racks_and_of_one_cluster(second: str, reached: set[str]) -> None:
    """n3 – n1 – n2 – n4: what n3 has goes through both reflectors."""
    every = learned(
        node(1, label="rr", routeReflectorClusterID="1.0.0.1"), node(2, label="rr", routeReflectorClusterID=second),
        node(3), node(4), block(3), NO_MESH, peer("a", node="n3", peerIP="10.0.0.1", asNumber=64512),
        peer("b", node="n4", peerIP="10.0.0.2", asNumber=64512),
        peer("c", node="n1", peerIP="10.0.0.2", asNumber=64512),
    )  # fmt: skip
    assert {source for source, _ in every} == reached


def test_a_chain_of_autonomous_systems_and_its_loops() -> None:
    chain = [node(1, asNumber=65001), node(2, asNumber=65002), node(3, asNumber=65003), block(1), NO_MESH]
    links = [peer("a", node="n1", peerIP="10.0.0.2", asNumber=65002),
             peer("b", node="n2", peerIP="10.0.0.3", asNumber=65003)]  # fmt: skip
    assert learned(*chain, *links) == {("n2", "n1"): "n1", ("n3", "n1"): "n2"}
    again = [node(3, asNumber=65001), peer("b", node="n2", peerIP="10.0.0.3", asNumber=65001)]
    assert learned(*chain, *links, *again) == {("n2", "n1"): "n1"}, "n3 sees its own AS in the path"


def test_a_router_that_is_no_node_passes_routes_on() -> None:
    tor = peer("tor", peerIP="10.0.0.254", asNumber=64999)
    assert learned(node(1, asNumber=65001), node(2, asNumber=65002), block(1), NO_MESH, tor) == {
        ("n2", "n1"): "10.0.0.254"
    }
    assert learned(node(1), node(2), block(1), NO_MESH, tor) == {}, "one AS: n2 refuses its own"


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ({"reversePeering": "Manual", "peerIP": "10.0.0.2", "asNumber": 64512}, {}, "no session back"),
        ({"peerIP": "10.0.0.2", "asNumber": 64513}, {"peerIP": "10.0.0.1", "asNumber": 64512}, "AS 64513 is expected"),
        ({"peerIP": "10.0.0.2:1790", "asNumber": 64512}, {}, "no session back"),
    ],
)
def test_sessions_that_one_end_wants_otherwise_do_not_come_about(
    one: dict[str, Any], other: dict[str, Any], why: str
) -> None:
    objects = [node(1), node(2), block(1), pool(), NO_MESH, peer("a", node="n1", **one)]
    objects += [peer("b", node="n2", **other)] if other else []
    found = moment(Objects(objects))
    assert not found.told
    assert any(why in half.why for half in one_sided(found))


def test_two_sessions_for_one_neighbour_carry_routes_but_nothing_hangs_on_them() -> None:
    """A BGPPeer between two nodes of the mesh: when the mesh goes, its session is not there yet."""
    before = Objects(
        [node(1), node(2), block(1), block(2), pool(), MESH, peer("b", node="n1", peerIP="10.0.0.2", asNumber=64512)]
    )
    after = copied(before)
    after.put(NO_MESH)
    assert len(moment(before).told) == 2
    assert [half.why for half in one_sided(moment(before))] == 2 * [
        "there are two for one neighbour, and only one stands"
    ]
    assert [step.kind for step in plan(before, after).steps] == [Kind.NET_ON, Kind.CHANGE, Kind.NET_OFF]


def test_ways_know_tunnels_export_and_subnets() -> None:
    """BIRD writes what has no tunnel and may be told; the agent its tunnels, and with the net what its subnet has."""
    nodes = (node(1), node(2, subnet=1), block(1), block(2), MESH)
    private = moment(Objects([*nodes, pool(disableBGPExport=True)]))
    assert not private.ways
    tunnel = moment(Objects([*nodes, pool(vxlanMode="Always", disableBGPExport=True), NO_MESH]))
    assert (len(tunnel.built), len(tunnel.told)) == (2, 0)
    assert not moment(Objects([*nodes, pool(), NO_MESH, felix("Enabled")])).ways
    near = moment(Objects([node(1), node(2), block(1), pool(), NO_MESH, felix("Enabled", "node.n2")]))
    assert [way.source for way in near.built] == ["n2"]


# --- plans --------------------------------------------------------------------------------------------------------


def test_reflectors_with_pods_need_the_net() -> None:
    """Situation 3: who gets a cluster id leaves the mesh at once."""
    before = mesh()
    there, back = plan(before, reflected(before)), plan(reflected(before), before)
    assert steps(there) == [
        ("net on", ["create FelixConfiguration default"]),
        (
            "change",
            ["change Node n1", "change Node n2", "change BGPConfiguration default", "create BGPPeer reflectors"],
        ),
        ("net off", ["delete FelixConfiguration default"]),
    ]
    assert steps(back)[1][1][-1] == "delete BGPPeer reflectors"
    assert there.lost == back.lost == ()
    assert len(there.start.ways) == len(there.end.ways) == 30


def test_reflectors_without_pods_come_before_the_mesh_goes() -> None:
    before = mesh(holders=range(3, 7))
    found = plan(before, reflected(before))
    assert [step.kind for step in found.steps] == [Kind.CHANGE, Kind.CHANGE]
    assert steps(found)[1] == ("change", ["change BGPConfiguration default"])
    assert found.lost == ()
    assert {way.source for way in found.steps[0].bare} == {"n1", "n2"}


def test_reflectors_outside_come_before_the_mesh_goes() -> None:
    before = mesh()
    after = copied(before)
    for one in (peer("rr", peerIP="10.0.0.254", asNumber=64512), NO_MESH):
        after.put(one)
    found = plan(before, after)
    assert [changes for _, changes in steps(found)] == [["create BGPPeer rr"], ["change BGPConfiguration default"]]
    assert found.lost == ()


def test_pods_in_tunnels_do_not_care() -> None:
    before = mesh()
    before.put(pool(vxlanMode="Always"))
    assert len(plan(before, reflected(before)).steps) == 1


def test_where_the_net_does_not_reach_the_loss_is_told() -> None:
    before = mesh()
    for i in (4, 5, 6):
        before.put(node(i, subnet=1))
    found = plan(before, reflected(before))
    assert found.lost
    assert all((way.source in ("n1", "n2")) != (way.owner in ("n1", "n2")) or way.source < "n3" for way in found.lost)
    assert not any({way.source, way.owner} <= {"n1", "n2", "n3"} for way in found.lost), "one subnet: the net reaches"
    assert "no order of steps keeps every route" in printed(found)


def test_what_is_the_same_before_and_after_may_be_gone_between() -> None:
    """A session that hangs on a label and a selector: an agent may hear of the new one of either first."""
    before = Objects(
        [node(1), node(2, label="x"), block(1), block(2), pool(), NO_MESH, peer("p", peerSelector="role == 'x'")]
    )
    after = copied(before)
    for one in (node(2, label="y"), peer("p", peerSelector="role == 'y'")):
        after.put(one)
    assert {one.fate for one in session_changes(moment(before), moment(after))} == {Fate.KEPT}
    found = plan(before, after)
    assert [step.kind for step in found.steps] == [Kind.NET_ON, Kind.CHANGE, Kind.NET_OFF]


def test_nothing_to_do_and_a_net_left_behind() -> None:
    before = mesh()
    assert plan(before, before).steps == ()
    left = with_net(before)
    assert steps(plan(left, left)) == [("net off", ["delete FelixConfiguration default"])]
    on = plan(left, reflected(left))
    assert [step.kind for step in on.steps] == [Kind.CHANGE, Kind.NET_OFF]


def test_who_writes_routes_changes_hands_agents_first() -> None:
    before = mesh()
    after = copied(before)
    after.put(felix("Enabled"))
    after.put(config(nodeToNodeMeshEnabled=True, programClusterRoutes="Disabled"))
    assert [kind for kind, _ in steps(plan(before, after))] == ["change", "change"]
    assert steps(plan(before, after))[0][1] == ["create FelixConfiguration default"]
    assert plan(after, before).lost == ()
    assert plan(before, after).lost == ()


def test_a_restart_time_restarts_every_session_of_the_mesh_once() -> None:
    """Situation 26; and 32: a passive end restarts its own session only."""
    before = mesh()
    after = copied(before)
    after.put(config(nodeToNodeMeshEnabled=True, nodeMeshMaxRestartTime="200s"))
    changes = session_changes(moment(before), moment(after))
    assert {one.fate for one in changes} == {Fate.RESTARTED}
    assert changes[0].why == ("restart time on n1: none → 200", "restart time on n2: none → 200")
    moved = copied(before)
    moved.put(node(9 - 8, asNumber=64512))
    assert {one.fate for one in session_changes(moment(before), moment(moved))} == {Fate.KEPT}


def test_what_a_node_is_itself_restarts_all_its_sessions() -> None:
    before, after = mesh(3, (1, 2, 3)), mesh(3, (1, 2, 3))
    after.put(config(nodeToNodeMeshEnabled=True, bindMode="NodeIP"))
    changes = session_changes(moment(before), moment(after))
    assert {one.fate for one in changes} == {Fate.RESTARTED}
    assert changes[0].why == tuple(f"router id, address, port or binding of {name}" for name in ("n1", "n2"))
    assert plan(before, after).steps[0].kind is Kind.NET_ON


def test_a_session_that_gets_another_name_is_restarted() -> None:
    before = mesh(3, range(1, 4))
    changes = session_changes(moment(before), moment(reflected(before)))
    assert [(one.ends, one.fate) for one in changes] == [
        (("n1", "n2"), Fate.RESTARTED), (("n1", "n3"), Fate.RESTARTED), (("n2", "n3"), Fate.RESTARTED),
    ]  # fmt: skip
    assert "Mesh becomes Node" in changes[1].why
    assert "n1 reflects with cluster id 1.0.0.1" in changes[1].why


# --- what is wanted -----------------------------------------------------------------------------------------------


def test_what_an_agent_publishes_of_its_node_stays() -> None:
    spec = {"bgp": {"routeReflectorClusterID": "1.0.0.1"}}
    wanted = convert(Node, {"metadata": {"name": "n1", "labels": {"role": "rr"}}, "spec": spec})
    before = mesh()
    before.put(changed(node(1), labels={"kubernetes.io/hostname": "n1", "role": "old"}))
    after = overlaid(before, [(wanted, "x.yaml")], prune=False)
    new = after.get(Node, "n1")
    assert new is not None
    assert new.labels == {"kubernetes.io/hostname": "n1", "role": "rr"}
    assert new.spec.bgp is not None
    assert (new.spec.bgp.ipv4_address, new.spec.bgp.route_reflector_cluster_id) == ("10.0.0.1/24", "1.0.0.1")
    bare = convert(Node, {"metadata": {"name": "n1"}, "spec": {}})
    again = overlaid(after, [(bare, "x.yaml")], prune=False).get(Node, "n1")
    plain = changed(node(1), labels={"kubernetes.io/hostname": "n1"})
    assert again == plain, "what only a user writes goes when he writes it no more"


def test_pruning_and_foreign_kinds() -> None:
    before = mesh()
    before.put(peer("old", peerIP="192.0.2.1", asNumber=1))
    assert [one.name for one in overlaid(before, [(peer("new"), "x")], prune=True).all(BGPPeer)] == ["new"]
    pod = convert(
        Pod, {"metadata": {"name": "a", "namespace": "red"}, "spec": {"containers": [{"name": "a", "image": "b"}]}}
    )
    with pytest.raises(ExceptionGroup) as caught:
        overlaid(before, [(pod, "x.yaml"), (peer("p", peerIP="::", asNumber=1, filters=["none"]), "y.yaml")], False)
    said = [str(one) for one in caught.value.exceptions]
    assert said[0].startswith("y.yaml: BGPPeer p: ")
    assert said[1] == (
        "x.yaml: Pod red/a: is none of Secret, FelixConfiguration, Node, BGPConfiguration, BGPFilter, BGPPeer"
    )
    assert all(isinstance(one, ConfigError) for one in caught.value.exceptions)


@pytest.mark.parametrize("said", ["", "EnabledIPIPOnly", "Disabled", "none"])
def test_the_net_can_always_be_taken_away(said: str) -> None:
    before = mesh()
    if said != "none":
        before.put(convert(FelixConfiguration, {"metadata": {"name": "default", "annotations": {"a": "b"}},
                                                "spec": {"programClusterRoutes": said or None}}))  # fmt: skip
    after = with_net(before)
    assert has_net(after)
    assert all("" in one.agent for one in moment(after).programming.values())
    assert moment(after).programming["n1"].agent >= moment(before).programming["n1"].agent
    back = without_net(after)
    assert back.get(FelixConfiguration, "default") == before.get(FelixConfiguration, "default")
    assert with_net(after) is after, "there is one already"
    found = after.get(FelixConfiguration, "default")
    assert found is not None
    assert found.metadata.annotations[NET] == (said if said != "none" else "none")


def test_a_write_is_decided_again_on_what_others_wrote_meanwhile() -> None:
    old, new = node(1), node(1, label="rr", routeReflectorClusterID="1.0.0.1")
    meanwhile = node(1, ipv4IPIPTunnelAddr="10.244.1.1")
    merged = rebased(Change(old, new), meanwhile)
    assert merged == node(1, label="rr", ipv4IPIPTunnelAddr="10.244.1.1", routeReflectorClusterID="1.0.0.1")
    assert rebased(Change(old, new), new) is None
    with pytest.raises(Conflict, match="Node n1 was deleted by somebody else meanwhile"):
        rebased(Change(old, new), None)


def test_objects_without_a_spec_are_decided_again_too() -> None:
    old, new = secret(mesh="aa", rack="bb"), secret(mesh="cc", rack="bb")
    assert rebased(Change(old, new), changed(old, resource_version="7")) == changed(new, resource_version="7")
    labelled = changed(old, labels={"of": "others"})
    assert rebased(Change(old, new), labelled) == changed(new, labels={"of": "others"})
    assert rebased(Change(old, new), changed(new, resource_version="8")) is None


def test_what_agents_say_of_an_object_meanwhile_stays() -> None:
    """A plan is no word on an object's status: what it was when the plan was made is long over."""
    then, now = ({"conditions": [{"type": f"tortie.dev/NotApplied-{node}"}]} for node in ("n1", "n2"))
    old, new = (replace(peer("a", peerIP=ip, asNumber=1), status=then) for ip in ("10.0.0.8", "10.0.0.9"))
    merged = rebased(Change(old, new), replace(old, status=now))
    assert isinstance(merged, BGPPeer)
    assert (merged.spec, merged.status) == (new.spec, now)


def test_undoing_a_deletion_that_was_not_made_is_nothing_to_do() -> None:
    """But for an object of the same name that somebody else has made."""
    there = peer("a", peerIP="10.0.0.9", asNumber=1)
    assert rebased(Change(None, there), changed(replace(there, status={"a": 1}), resource_version="7", uid="x")) is None
    with pytest.raises(Conflict, match="BGPPeer a was created by somebody else meanwhile"):
        rebased(Change(None, there), peer("a", peerIP="10.0.0.8", asNumber=1))


def test_files_without_blocks_have_one_for_each_node() -> None:
    objects = with_blocks(Objects([node(1), node(2), pool(), MESH]))
    assert len(moment(objects).told) == 2


# --- arriving -----------------------------------------------------------------------------------------------------


def answer(**sessions: str) -> dict[str, Any]:
    return {
        "bird": {"state": "ready"},
        "peers": [{"name": name, "state": state} for name, state in sessions.items()],
        "routes": [],
    }


def test_a_node_is_there_when_sessions_and_routes_are() -> None:
    found = moment(mesh(3, (1, 2)))
    said = answer(Mesh_10_0_0_2="Established", Mesh_10_0_0_3="Active", Node_10_0_0_9="Established")
    assert missing(found, "n1", said) == [
        "no session Mesh_10_0_0_3 with n3 (Active)",
        "the session Node_10_0_0_9 is still there",
        "no route to 10.244.2.0/26 of n2 from BIRD's peers",
    ]
    good = answer(Mesh_10_0_0_2="Established", Mesh_10_0_0_3="Established")
    via = [{"via": "10.0.0.2", "dev": "eth0"}]
    route = {"prefix": "10.244.2.0/26", "protocol": "Mesh_10_0_0_2", "best": True, "via": via}
    good["routes"] = [route]
    assert missing(found, "n1", good) == []
    good["routes"] = [route, {**route, "protocol": "kernel4"}]
    assert missing(found, "n1", good) == ["the agent's route to 10.244.2.0/26 of n2 is still there"]
    netted = with_net(mesh(3, (1, 2)))
    assert missing(moment(netted), "n1", good) == []
    good["routes"] = [route]
    assert missing(moment(netted), "n1", good) == ["no route to 10.244.2.0/26 of n2 from the agent"]
    away = {"bird": {"state": "not ready", "reason": "no agent"}}
    assert missing(found, "n1", away) == ["BIRD is not ready: no agent"]


def test_a_plan_is_printed_and_is_a_document() -> None:
    before = mesh(3, range(1, 4))
    found = plan(before, reflected(before))
    text = printed(found)
    assert "sessions  3 before, 3 after: 3 restarted" in text
    assert "create BGPPeer reflectors" in text
    assert text.endswith("no node loses its route to another's pods in any step")
    document = to_document(found)
    assert [step["kind"] for step in document["steps"]] == ["net on", "change", "net off"]
    assert document["lost"] == []
    assert {"source": "n3", "owner": "n1", "version": 4, "tunnel": "", "from": "n1"} in document["after"]["learned"]
