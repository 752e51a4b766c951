"""CalicoNodeStatus: what is written of what BIRD says, and what is no news."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

import pytest

from tortie.agent.node_status import same, status_of
from tortie.agent.node_view import Told
from tortie.base.errors import ConfigError
from tortie.bgp.birdc import Hop, Protocol, Route, Session, Status
from tortie.bgp.table import candidate, wanted, why_not
from tortie.model.document import check, parse
from tortie.model.nodestatus import CalicoNodeStatusSpec, CalicoNodeStatusStatus

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BIRD = Status("2.0.12", "10.0.0.1", "a", datetime(2026, 1, 1), datetime(2026, 1, 1), datetime(2026, 1, 1), "up")


def protocol(name: str, state: str, since: str = "10:00:00.500") -> Protocol:
    up = "up" if state == "Established" else "start"
    return Protocol(name, "BGP", "---", up, since, state, Session(state))


def route(prefix: str, protocol: str, best: bool = True, via: str = "", dev: str = "", **more: object) -> Route:
    hops = (Hop(ip_address(via) if via else None, dev),) if dev else ()
    kind = "unicast" if dev else "blackhole"
    made = Route("master4", ip_network(prefix), kind, protocol, "10:00:00", best, 100, hops)
    return replace(made, **more)  # type: ignore[arg-type]


TOLD = Told(
    BIRD,
    (protocol("Mesh_10_0_0_2", "Established"), protocol("Global_10_0_0_9_port_1179", "Connect"), protocol("x", "Idle"),
     protocol("Node_fd00__2", "Active"), Protocol("device1", "Device", "---", "up", "10:00:00")),
    (route("10.1.2.0/26", "Mesh_10_0_0_2", via="10.0.0.2", dev="eth0"), route("10.1.1.0/26", "static4"),
     route("10.1.2.0/26", "kernel4", best=False, dev="cali1")),
)  # fmt: skip
SPEC = CalicoNodeStatusSpec(node="a", classes=("Agent", "BGP", "Routes"))
EMPTY = CalicoNodeStatusStatus()


def test_routes_that_were_not_asked_for_are_left_out() -> None:
    status = status_of(SPEC, replace(TOLD, routes=None), (4,), EMPTY, NOW)
    assert status.routes is None
    assert status.bgp is not None


def test_what_is_written() -> None:
    status = status_of(SPEC, TOLD, (4,), EMPTY, NOW)
    assert status.last_updated == "2026-01-02T03:04:05Z"
    assert status.agent is not None
    assert status.bgp is not None
    assert status.routes is not None
    assert [one.state if one else "" for one in (status.agent.bird_v4, status.agent.bird_v6)] == ["Ready", "NotReady"]
    assert [(one.peer_ip, one.type, one.state, one.since) for one in status.bgp.peers_v4] == [
        ("10.0.0.2", "NodeMesh", "Established", "10:00:00.500"),
        ("10.0.0.9", "GlobalPeer", "Connect", "10:00:00.500"),
    ]
    assert (status.bgp.number_established_v4, status.bgp.number_not_established_v4) == (1, 1)
    assert (status.bgp.number_established_v6, status.bgp.number_not_established_v6) == (0, 1)
    rows = [(one.type, one.destination, one.gateway, one.interface) for one in status.routes.routes_v4]
    assert rows == [
        ("FIB", "10.1.1.0/26", "N/A", "blackhole"),
        ("FIB", "10.1.2.0/26", "10.0.0.2", "eth0"),
        ("RIB", "10.1.2.0/26", "N/A", "cali1"),
    ]
    learned = [(one.learned_from.source_type, one.learned_from.peer_ip) for one in status.routes.routes_v4]
    assert learned == [("Static", ""), ("NodeMesh", "10.0.0.2"), ("Kernel", "")]


def test_without_bird_there_are_neither_peers_nor_routes_of_any_family() -> None:
    status = status_of(SPEC, None, (4, 6), EMPTY, NOW)
    assert (status.bgp, status.routes) == (None, None)
    assert status.agent is not None
    assert status.agent.bird_v4 is not None
    assert status.agent.bird_v4.state == "NotReady"


def test_classes_that_are_not_asked_for_are_left_out() -> None:
    status = status_of(replace_classes("BGP"), TOLD, (4,), EMPTY, NOW)
    assert (status.agent, status.routes) == (None, None)


def replace_classes(*classes: str) -> CalicoNodeStatusSpec:
    return CalicoNodeStatusSpec(node="a", classes=classes)  # type: ignore[arg-type]


def test_a_millisecond_is_no_news_a_second_session_is() -> None:
    old = status_of(SPEC, TOLD, (4,), EMPTY, NOW)
    later = NOW.replace(hour=9)
    jitter = replace(TOLD, protocols=(protocol("Mesh_10_0_0_2", "Established", "10:00:00.501"), *TOLD.protocols[1:]))
    assert status_of(SPEC, jitter, (4,), old, later) is old
    again = replace(TOLD, protocols=(protocol("Mesh_10_0_0_2", "Established", "10:00:07"), *TOLD.protocols[1:]))
    assert status_of(SPEC, again, (4,), old, later).last_updated == "2026-01-02T09:04:05Z"
    assert not same("Established", "Connect")
    assert same(("10:00:00.999",), ("10:00:01.000",))


def test_a_request_that_cannot_be_served_is_refused() -> None:
    text = "{apiVersion: projectcalico.org/v3, kind: CalicoNodeStatus, metadata: {name: s}, spec: "
    for spec, says in (
        ("{classes: [BGP]}}", "spec.node: is required"),
        ("{node: a}}", "spec.classes: is empty"),
        ("{node: a, classes: [BGP], updatePeriodSeconds: 86401}}", "86400"),
        ("{node: a, classes: [Everything]}}", "Everything"),
    ):
        with pytest.raises(ConfigError) as error:
            admit(text + spec)
        assert says in str(error.value)


def admit(text: str) -> None:
    for one in parse(text):
        check(one)


# --- routes -------------------------------------------------------------------------------------------------------


def test_the_routes_to_a_network_and_to_an_address() -> None:
    rows = TOLD.routes
    assert len(wanted(rows, ip_network("10.1.2.0/26"))) == 2
    assert len(wanted(rows, ip_network("10.1.2.7/32"))) == 2
    assert len(wanted(rows, ip_network("10.1.0.0/16"))) == 3
    assert wanted(rows, ip_network("10.1.2.0/27")) == ()
    assert len(wanted(rows, None)) == 3


def test_why_a_route_is_not_the_best() -> None:
    best = route("10.1.2.0/26", "Mesh_10_0_0_2", attributes={"BGP.local_pref": "200", "BGP.as_path": "1"})
    other = route("10.1.2.0/26", "kernel4", preference=10)
    assert why_not(other, best) == "preference 10, and 100 wins (Mesh_10_0_0_2)"
    other = route("10.1.2.0/26", "Node_10_0_0_3", attributes={"BGP.local_pref": "100"})
    assert why_not(other, best) == "local preference 100, and 200 wins"
    other = route("10.1.2.0/26", "Node_10_0_0_3", attributes={"BGP.local_pref": "200", "BGP.as_path": "1 2"})
    assert why_not(other, best) == "an AS path of 2, and the shorter one of 1 wins"


def test_what_a_row_tells_of_a_route() -> None:
    said = {
        "Kernel.metric": "512",
        "Kernel.source": "80",
        "BGP.community": "(100,6532) (65535,65281)",
        "BGP.large_community": "(1, 2, 3)",
    }
    seen = candidate(route("10.1.2.9/32", "kernel4", dev="cali1", attributes=said), {})
    assert (seen.metric, seen.source, seen.interface, seen.session) == (512, 80, "cali1", None)
    assert seen.communities == {(100, 6532), (65535, 65281), (1, 2, 3)}
