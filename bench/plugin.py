"""Running CNI plugins as a container runtime does, with as little of our own around them as there can be.

posix_spawn(plugin, stdin = configuration, environment = CNI_*) ──► exit        that is what is measured
"""

from __future__ import annotations

import json
import os
import select
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tortie.kernel import netns

PATIENCE = 60.0
"""Seconds for a plugin."""


class PluginFailed(Exception):
    """A plugin did not do what it was asked to: there is nothing to measure."""


@dataclass(frozen=True, slots=True)
class Network:
    """A plugin with its configuration, in the network namespace (a path) of the node it works for."""

    executable: Path
    conf: Mapping[str, Any]
    node: str
    environment: Mapping[str, str]

    @property
    def path(self) -> str:
        """CNI_PATH: where the plugin finds the IPAM plugin it delegates to."""
        return str(self.executable.parent)


@dataclass(frozen=True, slots=True)
class Pod:
    """Whom a plugin is asked to connect: a container and its network namespace (a path)."""

    name: str
    netns: str

    @property
    def container_id(self) -> str:
        return f"{self.name:x<32}"


@dataclass(slots=True)
class _Run:
    pid: int
    output: int
    started: float


def call(network: Network, command: str, pod: Pod) -> tuple[float, dict[str, Any]]:
    """One call: seconds from spawning to the end, and what the plugin printed. Raises PluginFailed."""
    with netns.entered(network.node):
        run = _spawn(network, command, pod)
        _, status = os.waitpid(run.pid, 0)
    seconds = time.perf_counter() - run.started
    return seconds, _answer(network, command, run, status)


def call_together(network: Network, command: str, pods: Sequence[Pod]) -> float:
    """As many calls at once as there are pods: seconds from the first spawn to the last end. Raises PluginFailed."""
    with netns.entered(network.node):
        began = time.perf_counter()
        runs = [_spawn(network, command, pod) for pod in pods]
        statuses = _wait(runs)
    seconds = time.perf_counter() - began
    for run in runs:
        _answer(network, command, run, statuses[run.pid])
    return seconds


def _spawn(network: Network, command: str, pod: Pod) -> _Run:
    environment = {
        **network.environment,
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": pod.container_id,
        "CNI_NETNS": pod.netns,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": network.path,
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod.name}",
    }
    stdin, output = os.memfd_create("stdin"), os.memfd_create("stdout")
    os.write(stdin, json.dumps(network.conf).encode())
    os.lseek(stdin, 0, os.SEEK_SET)
    ends = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, output, 1)]
    started = time.perf_counter()
    pid = os.posix_spawn(network.executable, [str(network.executable)], environment, file_actions=ends)
    os.close(stdin)
    return _Run(pid, output, started)


def _wait(runs: Sequence[_Run]) -> dict[int, int]:
    """The statuses with which they ended, by pid."""
    statuses: dict[int, int] = {}
    poll, open_fds = select.poll(), {os.pidfd_open(run.pid): run.pid for run in runs}
    try:
        for fd in open_fds:
            poll.register(fd, select.POLLIN)
        while len(statuses) < len(runs):
            ended = poll.poll(PATIENCE * 1000)
            if not ended:
                raise PluginFailed(f"{len(runs) - len(statuses)} plugins have not ended after {PATIENCE:g} s")
            for fd, _ in ended:
                poll.unregister(fd)
                statuses[open_fds[fd]] = os.waitpid(open_fds[fd], 0)[1]
    finally:
        for fd in open_fds:
            os.close(fd)
    return statuses


def _answer(network: Network, command: str, run: _Run, status: int) -> dict[str, Any]:
    with os.fdopen(run.output, "rb") as output:
        output.seek(0)
        text = output.read().decode()
    if status != 0:
        raise PluginFailed(f"{network.executable.name} {command}: {text.strip() or f'status {status}'}")
    answer: dict[str, Any] = json.loads(text) if text.strip() else {}
    return answer


def addresses(answer: Mapping[str, Any]) -> list[str]:
    """The addresses in the answer to ADD, without their prefix lengths."""
    return [str(ip["address"]).partition("/")[0] for ip in answer["ips"]]


def go_bridge(node: str, state: Path, subnets: Sequence[str], directory: Path = Path("/usr/lib/cni")) -> Network:
    """The reference plugins `bridge` and `host-local`, as Debian builds them. `state` is host-local's directory.

    Without ipMasq and hairpin: what is compared is connecting a pod, and both would make them slower.
    """
    conf = {
        "cniVersion": "1.0.0",
        "name": "bench-go",
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(state),
            "ranges": [[{"subnet": subnet}] for subnet in subnets],
            "routes": [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in subnets],
        },
    }
    return Network(directory / "bridge", conf, node, {})


class Pods:
    """Network namespaces for pods, each new: `<prefix>1`, `<prefix>2`, ... of pods named pod-1, pod-2, ..."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._count = 0
        self._there: set[str] = set()

    def fresh(self) -> Pod:
        self._count += 1
        name = f"{self._prefix}{self._count}"
        pod = Pod(pod_name(self._count), netns.create(name))
        self._there.add(name)
        with netns.entered(pod.netns):
            # Nobody else can have the address. Without this the peer waits out duplicate address detection.
            for scope in ("all", "default"):
                Path(f"/proc/sys/net/ipv6/conf/{scope}/accept_dad").write_text("0")
        return pod

    def delete(self, pod: Pod) -> None:
        name = Path(pod.netns).name
        netns.delete(name)
        self._there.discard(name)

    def close(self) -> None:
        for name in self._there:
            netns.delete(name)
        self._there.clear()


def pod_name(number: int) -> str:
    return f"pod-{number}"


def scratch(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """A directory under /run, which is memory on most machines: the disk is not what is measured."""
    return tempfile.TemporaryDirectory(prefix=f"tortie-bench-{prefix}-", dir="/run")
