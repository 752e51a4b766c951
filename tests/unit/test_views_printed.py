"""How `tortie node status`, `tortie bgp routes` and `tortie doctor` print what agents answer."""

from __future__ import annotations

from typing import Any

import pytest

from tortie.cli import bgp_routes, doctor, node

NODE: dict[str, Any] = {
    "node": "a",
    "bird": {"state": "recovering", "version": "2.0.12", "routerID": "10.0.0.1", "waitingFor": 3},
    "peers": [
        {
            "name": "Mesh_10_0_0_2",
            "ip": "10.0.0.2",
            "as": 64512,
            "state": "Active",
            "since": "10:00:00.123",
            "error": "no",
            "imported": 0,
            "exported": 0,
        },
    ],
    "routes": [],
    "failures": ["bird: line 3: no"],
    "problems": {"BGPPeer x": "cannot be read"},
    "diagnosis": [{"ip": "10.0.0.2", "text": "b refuses TCP 179", "todo": "start it"}],
}


def test_what_is_wrong_stands_below_the_peers(capsys: pytest.CaptureFixture[str]) -> None:
    node._show(NODE)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a  recovering  BIRD 2.0.12, router id 10.0.0.1, holds its routes until 3 sessions are back"
    assert lines[2].split() == ["10.0.0.2", "node-to-node", "mesh", "64512", "Active", "10:00:00", "no"]
    assert lines[4:10] == [
        "✘ bird: line 3: no",
        "  the agent tries again; a configuration that is refused leaves the one before it running",
        "✘ BGPPeer x is not carried out: cannot be read",
        "✘ 10.0.0.2  b refuses TCP 179",
        "  start it",
        "",
    ]


@pytest.mark.parametrize("part", ["failures", "problems", "diagnosis"])
def test_a_node_is_healthy_when_nothing_is_wrong(part: str) -> None:
    well = {**NODE, "failures": [], "problems": {}, "diagnosis": []}
    assert node.healthy(well)
    assert not node.healthy({**well, part: NODE[part]})
    assert not node.healthy({**well, "bird": {"state": "not ready"}})


def test_routes_in_full_and_what_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    told = {
        "peer": "10.0.0.2",
        "session": "Mesh_10_0_0_2",
        "told": True,
        "why": "a block of this node",
        "differs": False,
        "communities": ["100:1"],
    }
    not_told = {**told, "told": False, "why": "inside no pool", "differs": True, "communities": []}
    route = {
        "prefix": "10.1.0.0/26",
        "kind": "blackhole",
        "protocol": "static4",
        "since": "10:00:00.1",
        "via": [],
        "localPref": 7,
        "asPath": [1, 2],
        "communities": [],
        "best": False,
        "why": "preference",
        "told": [told, not_told],
    }
    rejected = {"prefix": "10.9.0.0/24", "protocol": "x", "peer": "10.0.0.9", "why": "BGPFilter f, import rule 0"}
    bgp_routes._show([{"node": "a", "routes": [route], "rejected": [rejected]}], "10.1.0.0/26")
    assert capsys.readouterr().out.splitlines() == [
        "a",
        "  10.1.0.0/26  blackhole  from static4 since 10:00:00  not used: preference",
        "      local preference 7, AS path 1 2",
        "      told     10.0.0.2 with 100:1: a block of this node",
        "      not told 10.0.0.2: inside no pool  (BIRD does otherwise than its configuration should have it)",
        "  10.9.0.0/24  told by 10.0.0.9  rejected: BGPFilter f, import rule 0",
    ]
    bgp_routes._show([{"node": "a", "routes": [], "rejected": [], "error": "no agent"}], "")
    assert capsys.readouterr().out.splitlines() == ["a", "  no agent"]


def test_findings_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    bad = {"level": "bad", "check": "MTU", "what": "too small", "where": "eth0", "todo": "raise it"}
    ok = {"level": "ok", "check": "BIRD", "what": "is there", "where": "", "todo": ""}
    doctor._show([{"node": "a", "time": 0, "findings": [bad, ok]}])
    assert capsys.readouterr().out.splitlines() == [
        "a",
        "  bad     MTU   eth0: too small",
        "                → raise it",
        "  ok      BIRD  is there",
        "1 bad, 1 ok",
    ]
