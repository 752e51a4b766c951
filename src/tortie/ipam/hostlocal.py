"""The addresses that host-local has given to this node's pods, from its files, and what becomes of each. Pure.

/var/lib/cni/networks/k8s-pod-network/10.244.1.7     4f0c2a...      the container
                                                     eth0           in newer versions
                                      lock           kept: it is what host-local locks
                                      last_reserved_ip.0
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError
from tortie.model.k8s import Pod

LOCK = "lock"
NETWORK = "k8s-pod-network"
"""The network of Calico's conflist, whose directory it is."""


@dataclass(frozen=True, slots=True)
class Adopt:
    """An address of a pod that is there: IPAM is to know it."""

    file: str
    ip: IP
    container: str
    namespace: str
    pod: str

    @property
    def handle(self) -> str:
        return f"{NETWORK}.{self.container}"

    def __str__(self) -> str:
        return f"assign {self.ip} to {self.namespace}/{self.pod}"


@dataclass(frozen=True, slots=True)
class Drop:
    """A file that says nothing of a pod that is there."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"delete {self.file}: {self.reason}"


def moves(files: Mapping[str, str], pods: Mapping[IP, Pod]) -> Iterator[Adopt | Drop]:
    """What to do about each file, given by name with its text. `pods` are those of this node by their addresses."""
    for name, text in sorted(files.items()):
        if name == LOCK:
            continue
        if "last" in name:
            yield Drop(name, "it says which address was given last")
            continue
        ip = _ip(name)
        pod = pods.get(ip) if ip is not None else None
        container = text.partition("\n")[0].partition("\r")[0].strip()
        if ip is None or pod is None:
            yield Drop(name, "no pod of this node has the address")
        elif not container:
            yield Drop(name, "it names no container")
        else:
            yield Adopt(name, ip, container, pod.namespace, pod.name)


def _ip(name: str) -> IP | None:
    with suppress(ConfigError):
        return parse_ip(name)
    return None
