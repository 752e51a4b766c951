"""What a pod's manifest means in a lab."""

from __future__ import annotations

from typing import Any

import pytest

from tortie.lab.podspec import (
    DEFAULT_PORTS,
    answered_ports,
    container_id,
    not_honoured,
    not_honoured_line,
    place,
    programs,
)
from tortie.model.document import read
from tortie.model.k8s import Pod


def pod(*containers: dict[str, Any], name: str = "a", **spec: Any) -> Pod:
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "red", "uid": "u1"},
        "spec": {"containers": [{"name": f"c{i}", **one} for i, one in enumerate(containers)], **spec},
    }
    found = read(document)
    assert isinstance(found, Pod)
    return found


def test_containers_with_a_command_are_programs_and_the_others_are_answered_for() -> None:
    both = pod(
        {"command": ["sleep"], "args": ["60"], "ports": [{"containerPort": 1}]}, {"ports": [{"containerPort": 80}]}
    )
    assert [program.argv for program in programs(both)] == [("sleep", "60")]
    assert answered_ports(both) == (("TCP", 80),)
    assert answered_ports(pod({})) == DEFAULT_PORTS
    assert answered_ports(pod({"command": ["true"]})) == ()
    named = pod({"ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53}]})
    assert answered_ports(named) == (("UDP", 53), ("TCP", 53))


def test_variables_are_expanded_as_kubernetes_does() -> None:
    env = [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"}, {"name": "C", "valueFrom": {"fieldRef": {}}}]
    (program,) = programs(pod({"command": ["echo", "$(B)", "$(C)", "$$(A)", "$A"], "env": env}))
    assert program.argv == ("echo", "12", "$(C)", "$(A)", "$A")
    assert program.env == {"A": "1", "B": "12"}


def test_container_id_depends_on_who_and_where() -> None:
    one = pod({}, nodeName="node1")
    assert container_id("lab", one) == container_id("lab", pod({"image": "x"}, nodeName="node1"))
    assert container_id("lab", one) != container_id("other", one)
    assert container_id("lab", one) != container_id("lab", pod({}, nodeName="node2"))
    assert len(container_id("lab", one)) == 64


@pytest.mark.parametrize(
    ("selector", "load", "node"),
    [
        ({}, {}, "node1"),
        ({}, {"node1": 1}, "node2"),
        ({}, {"node1": 1, "node2": 1}, "node10"),
        ({}, {"node1": 1, "node2": 1, "node10": 1}, "node1"),
        ({"disk": "ssd"}, {"node2": 5}, "node2"),
        ({"kubernetes.io/hostname": "node10"}, {}, "node10"),
        ({"disk": "tape"}, {}, None),
    ],
)
def test_a_pod_goes_where_fewest_are(selector: dict[str, str], load: dict[str, int], node: str | None) -> None:
    nodes = {"node1": {}, "node2": {"disk": "ssd"}, "node10": {}}
    assert place(pod({}, nodeSelector=selector), nodes, load) == node


def test_what_a_lab_does_not_honour_is_one_line() -> None:
    rich = pod(
        {"livenessProbe": {}, "args": ["x"], "ports": [{"containerPort": 80, "hostPort": 8080}]},
        {"command": ["true"], "envFrom": [], "env": [{"name": "A", "valueFrom": {}}]},
        volumes=[],
        hostPID=True,
        initContainers=[{"name": "i"}],
    )
    assert not_honoured(rich) == (
        "args without command", "env.valueFrom", "envFrom", "hostPID", "hostPort", "initContainers", "livenessProbe",
        "volumes",
    )  # fmt: skip
    assert not_honoured(pod({"image": "nginx", "imagePullPolicy": "Always"}, tolerations=[])) == ()
    line = not_honoured_line([pod({}, volumes=[]), pod({}, name="b", volumes=[]), pod({})])
    assert line == "a lab does not honour: volumes (red/a and 1 more)"
    assert not_honoured_line([pod({})]) == ""
