"""Readiness of a lab's pods, decided: how probes are counted, what a manifest's probe does, what a status says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tortie.lab.podspec import not_honoured
from tortie.lab.probing import PASSED, Connect, Get, Run
from tortie.lab.readiness import Tally, check_of, conditions, counted, port_number
from tortie.lab.tables import message_of
from tortie.model.document import read
from tortie.model.k8s import Pod, PodCondition, Probe

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
BEFORE = "2026-11-21T11:00:00Z"


def pod(probe: dict[str, Any] | None = None, status: dict[str, Any] | None = None) -> Pod:
    container: dict[str, Any] = {"name": "main", "ports": [{"name": "web", "containerPort": 8080}]}
    if probe:
        container["readinessProbe"] = probe
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "red"},
        "spec": {"containers": [container]},
        "status": status or {},
    }
    found = read(document)
    assert isinstance(found, Pod)
    return found


def outcomes(words: str, **fields: int) -> str:
    """`+` and `-`, probes that pass and fail; for each whether the container is ready then: `R` or `.`."""
    tally, said = Tally(), ""
    for word in words:
        tally = counted(tally, PASSED if word == "+" else "no", Probe(**fields))
        said += "R" if tally.ready else "."
    return said


@pytest.mark.parametrize(
    ("probes", "ready", "fields"),
    [
        ("+", "R", {}),
        ("--+", "..R", {}),
        ("+--+", "RRRR", {}),
        ("+---+", "RRR.R", {}),
        ("+-+-+-", "RRRRRR", {}),
        ("+-", "R.", {"failure_threshold": 1}),
        ("++-++", ".RRRR", {"success_threshold": 2}),
        ("+-++", "...R", {"success_threshold": 2}),
    ],
)
def test_so_many_probes_in_a_row_count(probes: str, ready: str, fields: dict[str, int]) -> None:
    assert outcomes(probes, **fields) == ready


def test_the_last_failure_is_remembered() -> None:
    failed = counted(Tally(), "refused", Probe())
    assert failed == Tally(False, 0, "refused")
    assert counted(Tally(True), "refused", Probe()) == Tally(True, 1, "refused")


@pytest.mark.parametrize(
    ("probe", "check"),
    [
        ({"tcpSocket": {"port": 80}}, Connect(80)),
        ({"tcpSocket": {"port": "web", "host": "10.0.0.1"}}, Connect(8080, "10.0.0.1")),
        ({"httpGet": {"port": "web"}}, Get(8080)),
        (
            {
                "httpGet": {
                    "port": 80,
                    "path": "/ready",
                    "scheme": "HTTPS",
                    "httpHeaders": [{"name": "A", "value": "b"}],
                }
            },
            Get(80, "/ready", scheme="https", headers=(("A", "b"),)),
        ),
        ({"exec": {"command": ["test", "-e", "x"]}}, Run(("test", "-e", "x"))),
        ({"exec": {}}, "exec without a command"),
        ({"tcpSocket": {"port": "admin"}}, 'no port of the container is named "admin"'),
        ({"grpc": {"port": 9000}}, "a lab asks by httpGet, tcpSocket and exec only"),
    ],
)
def test_a_probe_is_what_the_manifest_says(probe: dict[str, Any], check: object) -> None:
    assert check_of(pod(probe).spec.containers[0]) == check


def test_ports_have_numbers_and_names() -> None:
    container = pod().spec.containers[0]
    assert [port_number(container, port) for port in (80, "81", "web", "other")] == [80, 81, 8080, None]


def test_a_readiness_probe_is_honoured() -> None:
    assert not_honoured(pod({"tcpSocket": {"port": 80}})) == ()


def test_a_pod_without_late_containers_is_ready() -> None:
    ready = conditions(pod(), "Running", {}, NOW)
    assert [(one.type, one.status, one.last_transition_time) for one in ready] == [
        ("ContainersReady", "True", "2026-11-21T12:00:00Z"),
        ("Ready", "True", "2026-11-21T12:00:00Z"),
    ]


def test_a_pod_says_which_containers_are_late_and_why() -> None:
    *_, ready = conditions(pod(), "Running", {"side": "", "main": "refused"}, NOW)
    assert (ready.status, ready.reason) == ("False", "ContainersNotReady")
    assert ready.message == "containers with unready status: [main, side]; main: refused"


@pytest.mark.parametrize(
    ("phase", "reason"),
    [("Pending", "ContainersNotReady"), ("Failed", "ContainersNotReady"), ("Succeeded", "PodCompleted")],
)
def test_a_pod_that_does_not_run_is_not_ready(phase: str, reason: str) -> None:
    assert {(one.status, one.reason) for one in conditions(pod(), phase, {}, NOW)} == {("False", reason)}


def test_others_conditions_stay_and_times_change_with_the_status() -> None:
    had = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": BEFORE},
        {"type": "Ready", "status": "True", "lastTransitionTime": BEFORE},
        {"type": "ContainersReady", "status": "False", "lastTransitionTime": BEFORE},
    ]
    scheduled, ready, containers = conditions(pod(status={"conditions": had}), "Running", {}, NOW)
    assert scheduled == PodCondition(type="PodScheduled", status="True", last_transition_time=BEFORE)
    assert ready.last_transition_time == BEFORE
    assert containers.last_transition_time == "2026-11-21T12:00:00Z"


def test_a_status_says_why_a_pod_is_not_ready() -> None:
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "False", "message": "not yet"}]}
    assert message_of(pod(status=status)) == "not yet"
    assert message_of(pod(status=status | {"message": "first"})) == "first"
    assert message_of(pod(status={"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})) == ""
