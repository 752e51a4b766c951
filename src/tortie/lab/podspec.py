"""What a pod's manifest means in a lab: programs, ports, a place on a node, and what a lab does not honour. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET

from tortie.model.k8s import Container, Pod

PodKey = tuple[str, str]
"""Namespace and name."""

HOSTNAME_LABEL = "kubernetes.io/hostname"
DEFAULT_PORTS = (("TCP", 80), ("UDP", 80))
"""What a pod without a containerPort answers on."""

_REFERENCE = re.compile(r"\$(\$|\(([-._a-zA-Z][-._a-zA-Z0-9]*)\))")
_POD_FIELDS = (
    "affinity", "ephemeral_containers", "host_aliases", "host_ipc", "host_pid", "security_context",
    "share_process_namespace", "topology_spread_constraints", "volumes",
)  # fmt: skip
_CONTAINER_FIELDS = (
    "env_from", "lifecycle", "liveness_probe", "resources", "security_context", "startup_probe",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Program:
    """A container that says what it runs."""

    container: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str


def first_pod(number: int) -> dict[str, Any]:
    """A pod on the node with that number, which a lab has from the beginning, as a DaemonSet has them."""
    container = {"name": "main", "image": "nginx"}
    metadata = {"name": f"pod{number}", "namespace": "default"}
    spec = {"nodeName": f"node{number}", "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def key_of(pod: Pod) -> PodKey:
    return pod.namespace, pod.name


def programs(pod: Pod) -> tuple[Program, ...]:
    """The containers with a command. An image is never pulled, so one without a command has nothing to run."""
    return tuple(_program(container) for container in pod.spec.containers if container.command)


def answered_ports(pod: Pod) -> tuple[tuple[str, int], ...]:
    """(protocol, port) on which the lab answers in the place of the containers that say no command."""
    silent = [container for container in pod.spec.containers if not container.command]
    ports = [(port.protocol, port.container_port) for container in silent for port in container.ports]
    return tuple(dict.fromkeys(ports)) or (DEFAULT_PORTS if silent else ())


def container_id(lab: str, pod: Pod) -> str:
    """The CNI container id of a pod's sandbox on its node, 64 hexadecimal digits; the same whoever asks and when."""
    words = "\0".join((lab, pod.namespace, pod.name, pod.metadata.uid, pod.spec.node_name))
    return hashlib.sha256(words.encode()).hexdigest()


def cni_args(namespace: str, name: str, uid: str, container: str) -> dict[str, str]:
    """CNI_ARGS as Kubernetes' container runtimes give them."""
    return {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": namespace,
        "K8S_POD_NAME": name,
        "K8S_POD_INFRA_CONTAINER_ID": container,
        "K8S_POD_UID": uid,
    }


def place(pod: Pod, nodes: Mapping[str, Mapping[str, str]], load: Mapping[str, int]) -> str | None:
    """The node for a pod: of those whose labels its nodeSelector wants the one with the fewest pods, then by order.

    `nodes` are the labels by name, in the lab's order; `load` counts the pods.
    """
    wanted = pod.spec.node_selector.items()
    fitting = [name for name, labels in nodes.items() if wanted <= ({HOSTNAME_LABEL: name} | dict(labels)).items()]
    return min(fitting, key=lambda name: load.get(name, 0), default=None)


def not_honoured(pod: Pod) -> tuple[str, ...]:
    """The fields of a pod that mean something in Kubernetes and nothing in a lab, as documents name them."""
    return tuple(sorted(set(_not_honoured(pod))))


def not_honoured_line(pods: Iterable[Pod]) -> str:
    """One line about all of them, or nothing."""
    by_field: dict[str, list[str]] = {}
    for pod in pods:
        for field in not_honoured(pod):
            by_field.setdefault(field, []).append(f"{pod.namespace}/{pod.name}")
    parts = [f"{field} ({who[0]}{f' and {len(who) - 1} more' if who[1:] else ''})" for field, who in by_field.items()]
    return f"a lab does not honour: {', '.join(sorted(parts))}" if parts else ""


def _not_honoured(pod: Pod) -> Iterator[str]:
    if pod.spec.init_containers:
        yield "initContainers"
    yield from (_camel(name) for name in _POD_FIELDS if getattr(pod.spec, name) is not UNSET)
    for container in pod.spec.containers:
        yield from (_camel(name) for name in _CONTAINER_FIELDS if getattr(container, name) is not UNSET)
        if container.args and not container.command:
            yield "args without command"
        if any(variable.value_from is not UNSET for variable in container.env):
            yield "env.valueFrom"
        if any(port.host_port for port in container.ports) and not pod.spec.host_network:
            yield "hostPort"


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join({"ipc": "IPC", "pid": "PID"}.get(word, word.capitalize()) for word in rest)


def _program(container: Container) -> Program:
    env: dict[str, str] = {}
    for variable in container.env:
        if variable.value_from is UNSET:
            env[variable.name] = _expand(variable.value, env)
    argv = tuple(_expand(word, env) for word in (*container.command, *container.args))
    return Program(container.name, argv, env, container.working_dir)


def _expand(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` is the variable's value, if there is such a variable; `$$` is a dollar sign, as in Kubernetes."""
    return _REFERENCE.sub(lambda match: "$" if match[1] == "$" else env.get(match[2], match[0]), text)
