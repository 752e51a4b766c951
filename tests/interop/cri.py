"""The kubelet's side of containerd: pod sandboxes over the Container Runtime Interface, version 1.

Only what a pod's network needs. Messages are dictionaries by field number, as in api.proto of k8s.io/cri-api.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tortie.cni.proto3 import read_fields, tag, varint

BYTES = 2
SECONDS = 60


class Cri:
    """Calls to the runtime behind a Unix socket."""

    def __init__(self, path: Path) -> None:
        import grpc

        self._channel = grpc.insecure_channel(f"unix:{path}")

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, message: Mapping[int, Any]) -> dict[int, Any]:
        """Raises grpc.RpcError, whose details() tell what the runtime says."""
        ask = self._channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")
        return decoded(ask(encoded(message), timeout=SECONDS))

    def run_sandbox(self, namespace: str, name: str, uid: str, cgroup: str) -> str:
        """Its id. The kubelet's RunPodSandbox: everything about the pod is in its metadata."""
        config = {1: {1: name, 2: uid, 3: namespace}, 2: name, 3: "/run/pods", 8: {1: cgroup}}
        return str(self.call("RunPodSandbox", {1: config})[1].decode())

    def addresses(self, sandbox: str) -> list[str]:
        """The first, and the additional ones, as the kubelet writes them into the pod's status."""
        network = decoded(decoded(self.call("PodSandboxStatus", {1: sandbox})[1])[5])
        more = [decoded(network[2])[1]] if 2 in network else []
        return [one.decode() for one in (network[1], *more)]

    def stop_sandbox(self, sandbox: str) -> None:
        self.call("StopPodSandbox", {1: sandbox})

    def remove_sandbox(self, sandbox: str) -> None:
        self.call("RemovePodSandbox", {1: sandbox})


def encoded(message: Mapping[int, Any]) -> bytes:
    data = b""
    for number, value in message.items():
        inside = encoded(value) if isinstance(value, Mapping) else str(value).encode()
        data += tag(number, BYTES) + varint(len(inside)) + inside
    return data


def decoded(data: bytes) -> dict[int, Any]:
    """The last value of each field."""
    return {number: value for number, _, value in read_fields(data)}
