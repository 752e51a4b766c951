"""Readiness: how a container is asked, and what a pod's conditions say."""

from __future__ import annotations

import pytest

from tortie.base.errors import ConfigError
from tortie.model.document import dump, parse
from tortie.model.k8s import Container, Pod, PodCondition, PodSpec, PodStatus, Probe


def container(probe: str) -> Container:
    head = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: c, readinessProbe: "
    (pod,) = parse(head + probe + "}]}}")
    assert isinstance(pod, Pod)
    document = dump(pod)["spec"]["containers"][0]
    assert document.get("readinessProbe", {}).keys() <= {"httpGet", "tcpSocket", "exec", "grpc", "periodSeconds"}
    return pod.spec.containers[0]


def test_probes_have_kubernetes_defaults() -> None:
    probe = container("{httpGet: {port: http, path: /x, httpHeaders: [{name: A, value: b}]}}").readiness_probe
    assert isinstance(probe, Probe)
    assert probe.http_get is not None
    assert (probe.http_get.port, probe.http_get.path, probe.http_get.http_headers[0].value) == ("http", "/x", "b")
    times = (probe.initial_delay_seconds, probe.timeout_seconds, probe.period_seconds)
    assert (*times, probe.success_threshold, probe.failure_threshold) == (0, 1, 10, 1, 3)
    probe = container("{tcpSocket: {port: 80}, periodSeconds: 2}").readiness_probe
    assert isinstance(probe, Probe)
    assert (probe.period_seconds, probe.tcp_socket and probe.tcp_socket.port) == (2, 80)
    assert not isinstance(container("null").readiness_probe, Probe)
    assert isinstance(container("{grpc: {port: 1}}").readiness_probe, Probe)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ("{}", "readinessProbe: give one of httpGet, tcpSocket, exec, grpc"),
        ("{exec: {}, tcpSocket: {port: 1}}", "readinessProbe: give one of httpGet, tcpSocket, exec, grpc"),
        ("{exec: {command: [a]}, periodSeconds: 0}", "readinessProbe.periodSeconds: 0 is not at least 1"),
        ("{exec: {command: [a]}, initialDelaySeconds: -1}", "readinessProbe.initialDelaySeconds: -1 is negative"),
        ("{tcpSocket: {port: 70000}}", "readinessProbe.tcpSocket.port: 70000 is not from 1 to 65535"),
        ("{tcpSocket: {port: x/y}}", 'readinessProbe.tcpSocket.port: "x/y" is neither a number nor a port name'),
        ("{tcpSocket: {port: 1}, perodSeconds: 1}", 'is not a known field, did you mean "periodSeconds"?'),
    ],
)
def test_probes_that_cannot_be(probe: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        container(probe)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("phase", "ip", "condition", "said", "ready"),
    [
        ("Running", "10.0.0.1", "", "", True),
        ("Running", "", "", "", False),
        ("Pending", "10.0.0.1", "", "", False),
        ("Running", "10.0.0.1", "Ready", "False", False),
        ("Running", "10.0.0.1", "Ready", "Unknown", False),
        ("Running", "10.0.0.1", "Initialized", "False", True),
        ("Pending", "", "Ready", "True", True),
    ],
)
def test_the_condition_decides_where_there_is_one(phase: str, ip: str, condition: str, said: str, ready: bool) -> None:
    conditions = (PodCondition(type=condition, status=said),) if condition else ()
    status = PodStatus(phase=phase, pod_ip=ip, conditions=conditions)
    assert Pod(spec=PodSpec(containers=(Container(name="c"),)), status=status).ready is ready
