"""Why a session is down, on values: the causes that a test with daemons cannot hold still, and which comes first."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import pytest

from bgp_world import Seen, node
from tortie.agent.bgp_evidence import netstat
from tortie.agent.conditions import by_object, with_condition
from tortie.agent.node_view import LOOKED_AT, far_ends, refused_objects
from tortie.base.dialled import Answer, Dialled
from tortie.bgp.birdc import Session
from tortie.bgp.birdlog import moment, telling_errors
from tortie.bgp.sessions import Peer
from tortie.calc.diagnosis import Cause, Evidence, Facts, FarEnd, Md5Counters, diagnose

OWN, FAR = ip_address("10.0.0.1"), ip_address("10.0.0.2")
PEER = Peer(name="Mesh_10_0_0_2", ip=FAR, remote_as=64512, local_as=64512, source=OWN)
BACK = Peer(name="Mesh_10_0_0_1", ip=OWN, remote_as=64512, local_as=64512, source=FAR)
NODE = FarEnd(nodes=("b",), as_number=64512, session=BACK)
OPEN, CLOSED, SILENT = (Answer(one) for one in (Dialled.OPEN, Dialled.CLOSED, Dialled.SILENT))


def facts(peer: Peer = PEER, error: str = "", state: str = "Active", **more: Any) -> Facts:
    return Facts(peer=peer, own=OWN, session=Session(state, error), **more)


def seen(**what: Any) -> Evidence:
    return replace(Evidence(route="10.0.0.0/24 dev eth0", interface="eth0", next_hop=FAR), **what)


def passive(peer: Peer) -> Peer:
    return replace(peer, passive=True)


CASES: list[tuple[Facts, Cause, str]] = [
    (
        Facts(peer=PEER, refusal="bird.conf: syntax error"),
        Cause.NOT_CONFIGURED,
        "BIRD does not have this session: bird",
    ),
    (Facts(peer=PEER), Cause.NOT_CONFIGURED, "BIRD does not have this session"),
    (facts(far=FarEnd(own_twins=("c", "d"))), Cause.DUPLICATE_ADDRESS, "10.0.0.1 is also that of c and d"),
    (facts(far=FarEnd(nodes=("b", "c"))), Cause.DUPLICATE_ADDRESS, "10.0.0.2 is the address of b and c"),
    (
        facts(far=replace(NODE, session=None, cluster_id="1.0.0.1")),
        Cause.NO_SESSION_THERE,
        "it reflects routes (cluster id 1.0.0.1) and takes no part in the mesh",
    ),
    (facts(far=replace(NODE, session=None, known=False)), Cause.STARTING, "nothing is found wrong with b (10.0.0.2)"),
    (
        facts(far=replace(NODE, session=replace(BACK, local_as=65001))),
        Cause.AS_MISMATCH,
        "b (10.0.0.2) is in AS 65001, and this node expects 64512",
    ),
    (
        facts(far=replace(NODE, session=replace(BACK, remote_as=65001))),
        Cause.AS_MISMATCH,
        "b (10.0.0.2) expects AS 65001 here, and this node is in AS 64512",
    ),
    (
        facts(far=replace(NODE, session=replace(BACK, password="x"))),
        Cause.PASSWORD,
        "b (10.0.0.2) has a password for this session, and this node has none",
    ),
    (
        facts(replace(PEER, password="y"), far=replace(NODE, session=replace(BACK, password="x"))),
        Cause.PASSWORD,
        "b (10.0.0.2) has another password for this session",
    ),
    (
        facts(replace(PEER, password="y"), evidence=seen(plain=SILENT, signed=SILENT, md5=Md5Counters(wrong=3))),
        Cause.PASSWORD,
        "10.0.0.2 signs with another password (3 packets dropped)",
    ),
    (
        facts(far=replace(NODE, session=replace(BACK, ttl_hops=1))),
        Cause.TTL_SECURITY,
        "b (10.0.0.2) wants TTL security for this session, and this node does not",
    ),
    (facts(evidence=seen(plain=CLOSED)), Cause.NO_SESSION_THERE, "accepts connections and closes them"),
    (facts(state="OpenConfirm", evidence=seen(plain=CLOSED)), Cause.TTL_SECURITY, "does not hear this node"),
    (facts(state="OpenConfirm", evidence=seen(plain=OPEN)), Cause.TTL_SECURITY, "does not hear this node"),
    (
        facts(far=replace(NODE, listen_port=1179), evidence=seen(plain=Answer(Dialled.REFUSED))),
        Cause.REFUSED,
        "b (10.0.0.2) listens on port 1179, and this node dials 179",
    ),
    (
        facts(passive(PEER), far=replace(NODE, session=passive(BACK))),
        Cause.BOTH_PASSIVE,
        "both this node and b (10.0.0.2) wait for the other to dial",
    ),
    (
        facts(passive(PEER), evidence=seen(plain=Answer(Dialled.REFUSED))),
        Cause.REFUSED,
        "nor does anybody listen",
    ),
    (facts(passive(PEER), evidence=seen(plain=OPEN)), Cause.BOTH_PASSIVE, "though it listens"),
    (facts(error="Received: Administrative shutdown"), Cause.SHUT_DOWN, "10.0.0.2 has shut the session down"),
    (facts(error="Error: Hold timer expired"), Cause.HOLD_TIMER, "nothing was heard from it for the hold time"),
    (facts(error="Received: Hold timer expired"), Cause.HOLD_TIMER, "it has heard nothing from this node"),
    (facts(error="Error: Link down"), Cause.LINK_DOWN, "the link to 10.0.0.2 was lost"),
    (facts(error="Received: Hold timer expired", evidence=seen(plain=SILENT)), Cause.SILENT, "and the hold timer has"),
    (
        facts(evidence=seen(plain=Answer(Dialled.UNREACHABLE, "No route to host"), next_hop=ip_address("10.0.0.254"))),
        Cause.UNREACHABLE,
        "10.0.0.2 cannot be reached: No route to host, by way of 10.0.0.254 on eth0",
    ),
    (
        facts(evidence=seen(plain=Answer(Dialled.FAILED, "Cannot assign requested address"))),
        Cause.UNREACHABLE,
        "this node cannot speak to 10.0.0.2 from 10.0.0.1: Cannot assign requested address",
    ),
    (facts(error="Error: Something new"), Cause.UNKNOWN, "10.0.0.2: Error: Something new"),
    (facts(passive(PEER)), Cause.STARTING, "this node waits for it to dial"),
]


@pytest.mark.parametrize(
    ("known", "cause", "text"), CASES, ids=[f"{case[1].value}-{i}" for i, case in enumerate(CASES)]
)
def test_the_cause(known: Facts, cause: Cause, text: str) -> None:
    found = diagnose(known)
    assert (found.session, found.cause) == (known.peer.name, cause), found
    assert text in found.text
    assert found.todo


def test_what_the_objects_say_comes_before_what_the_network_says() -> None:
    """A session that the other end does not want cannot come up, whatever becomes of tries to connect."""
    found = diagnose(facts(far=replace(NODE, session=None), evidence=seen(plain=Answer(Dialled.REFUSED))))
    assert found.cause is Cause.NO_SESSION_THERE


def test_old_counters_accuse_nobody_who_answers() -> None:
    md5 = Md5Counters(unexpected=9, wrong=9)
    assert diagnose(facts(evidence=seen(plain=OPEN, md5=md5))).cause is Cause.STARTING
    assert diagnose(facts(evidence=seen(plain=SILENT, near=SILENT, md5=md5))).cause is Cause.PASSWORD


def test_a_peer_that_restarts_keeps_its_routes() -> None:
    session = Session("Active", "Socket: Connection refused", restarting=True)
    found = diagnose(replace(facts(evidence=seen(plain=Answer(Dialled.REFUSED))), session=session))
    assert found.cause is Cause.REFUSED
    assert found.text.endswith("its routes are kept until it is back, or its time is over")


def test_what_is_logged_outlives_what_a_socket_meets() -> None:
    log = """2026-01-02 03:04:00.123 <RMT> Mesh_10_0_0_2: Error: Bad peer AS: 65001
2026-01-02 03:04:01.123 <RMT> other: Received: Hold timer expired
2026-01-02 03:04:02.123 <RMT> Mesh_10_0_0_2: Socket: Connection closed
2026-01-02 03:00:00.000 <RMT> old: Received: Administrative shutdown
2026-01-02 03:04:02.123 <INFO> Started
"""
    since = {"Mesh_10_0_0_2": "03:04:00.125", "other": "2026-01-01", "old": "03:03:00.000"}
    errors = telling_errors(log, since, datetime(2026, 1, 2, 3, 4, 5))
    assert errors == {"Mesh_10_0_0_2": "Error: Bad peer AS: 65001", "other": "Received: Hold timer expired"}
    assert moment("23:59:59", datetime(2026, 1, 2, 3)) == datetime(2026, 1, 1, 23, 59, 59)
    found = diagnose(replace(facts(error="Socket: Connection closed"), logged=errors["Mesh_10_0_0_2"]))
    assert (found.cause, found.text) == (Cause.AS_MISMATCH, "10.0.0.2 is in AS 65001, and this node expects 64512")


def test_passwords_are_not_in_what_is_said() -> None:
    peer = replace(PEER, password="swordfish")
    found = diagnose(facts(peer, far=replace(NODE, session=replace(BACK, password="other"))))
    assert "swordfish" not in repr(found)
    assert "swordfish" not in repr(facts(peer))


def test_counters_of_the_kernel() -> None:
    text = "TcpExt: A TCPMD5Unexpected\nTcpExt: 1 2\nIpExt: B\nIpExt: 3\n"
    assert netstat(text) == {"A": 1, "TCPMD5Unexpected": 2, "B": 3}


# --- what is told on objects --------------------------------------------------------------------------------------

NOW, LATER = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2026, 1, 2, 4, tzinfo=UTC)


def test_a_condition_comes_changes_and_goes_and_others_stay() -> None:
    other = {"type": "tortie.dev/NotApplied-b", "status": "True", "message": "why"}
    status = {"conditions": [other], "kept": 1}
    told = with_condition(status, "a", "no such filter", NOW)
    assert told["kept"] == 1
    assert told["conditions"][0] is other
    own = told["conditions"][1]
    assert own["lastTransitionTime"] == "2026-01-02T03:04:05Z"
    assert with_condition(told, "a", "no such filter", LATER) is told
    changed = with_condition(told, "a", "another reason", LATER)["conditions"][1]
    assert (changed["message"], changed["lastTransitionTime"]) == ("another reason", own["lastTransitionTime"])
    assert with_condition(told, "a", "", LATER) == status
    assert with_condition(None, "a", "", NOW) is None
    assert with_condition(with_condition(None, "a", "why", NOW), "a", "", NOW) is None


@pytest.mark.parametrize(
    "status",
    ["a text", 7, ["x"], {"conditions": "x"}, {"conditions": 7}, {"conditions": ["x", None]}, {"conditions": {"a": 1}}],
)
def test_a_status_that_somebody_else_has_made_strange(status: Any) -> None:
    assert with_condition(status, "a", "", NOW) == status
    told = with_condition(status, "a", "why", NOW)
    assert [one["message"] for one in told["conditions"]] == ["why"]
    assert with_condition(told, "a", "", LATER) is None


def test_conditions_without_what_belongs_into_them() -> None:
    bare = {"type": "tortie.dev/NotApplied-a"}
    told = with_condition({"conditions": ["x", {}, {"type": 7}, bare, bare]}, "a", "why", NOW)
    assert told["conditions"][:2] == [{}, {"type": 7}]
    assert [one["lastTransitionTime"] for one in told["conditions"][2:]] == ["2026-01-02T03:04:05Z"]


def test_problems_by_object() -> None:
    problems = {
        "BGPPeer a": "cannot be read",
        "filter f of BGPPeer a": "is not there",
        "BGPFilter f": "is strange",
        "Pod red/a": "is no matter of BGP",
    }
    assert by_object(problems) == {"BGPPeer a": "cannot be read; filter f: is not there", "BGPFilter f": "is strange"}


def test_who_is_to_blame_for_a_configuration_that_is_refused() -> None:
    origins = {"Node_10_0_0_2": ["BGPPeer a"], "Node_10_0_0_22": ["BGPPeer b"], "bgp_f_importFilterV4": ["BGPFilter f"]}
    text = (
        "bird: bird.conf: line 3 column 4: syntax error in `neighbor 10.0.0.2` of protocol bgp Node_10_0_0_2 from peer4"
    )
    assert refused_objects([text], origins) == {"BGPPeer a": text}
    text = "bird: bird.conf: line 9 column 1: no of function 'bgp_f_importFilterV4'(bool same_as)"
    assert refused_objects([text], origins) == {"BGPFilter f": text}


# --- many sessions that are down ----------------------------------------------------------------------------------


async def test_of_many_far_ends_some_are_worked_out_and_others_have_their_turn_meanwhile() -> None:
    count = LOOKED_AT + 28
    town = Seen("n0", *(node(f"n{i}", i + 1) for i in range(count + 1)))
    routing = town.cluster.routing()
    assert routing is not None
    assert len(routing.peers) == count
    turns = 0

    async def somebody_else() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(somebody_else())
    try:
        ends = await far_ends(town.cluster, "n0", routing, routing.peers)
    finally:
        other.cancel()
    assert turns >= count
    assert all(len(end.nodes) == 1 for end in ends)
    assert [end.session is not None for end in ends] == [i < LOOKED_AT for i in range(count)]
    unknown = diagnose(Facts(peer=routing.peers[-1], session=Session("Connect"), far=ends[-1]))
    assert unknown.cause is Cause.STARTING
