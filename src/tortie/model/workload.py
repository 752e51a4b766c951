"""A pod's attachment to the network: WorkloadEndpoint, and the names that go with it.

Names: Calico's `<node>-k8s-<pod>-<endpoint>` with every dash inside a part doubled; the host interface is
`cali` + the first 11 hex digits of SHA-1(`<namespace>.<pod>`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from msgspec import field

from tortie.base.addr import IP, parse_ip, parse_net
from tortie.model.meta import Kind, Port, Problem, Resource, Value, cidr_problem, ip_problem

INTERFACE_PREFIX = "cali"
INTERFACE_NAME = re.compile(r"[A-Za-z0-9._-]{1,15}\Z")
"""A host interface: what Linux allows, less what means something else to the programs that are told of it."""


class IPNAT(Value, frozen=True, kw_only=True):
    internal_ip: str = field(name="internalIP")
    external_ip: str = field(name="externalIP")

    def problems(self) -> Iterator[Problem]:
        yield from ip_problem("internalIP", self.internal_ip)
        yield from ip_problem("externalIP", self.external_ip)


class WorkloadEndpointPort(Value, frozen=True, kw_only=True):
    name: str = ""
    protocol: int | str = "TCP"
    port: Port
    host_port: Port = 0
    host_ip: str = field(name="hostIP", default="")


class WorkloadEndpointSpec(Value, frozen=True, kw_only=True):
    """`ip_networks` are /32 and /128 only."""

    orchestrator: str = ""
    workload: str = ""
    node: str = ""
    container_id: str = field(name="containerID", default="")
    pod: str = ""
    endpoint: str = ""
    service_account_name: str = ""
    ip_networks: tuple[str, ...] = ()
    ip_nats: tuple[IPNAT, ...] = field(name="ipNATs", default=())
    ipv4_gateway: str = ""
    ipv6_gateway: str = ""
    profiles: tuple[str, ...] = ()
    interface_name: str = ""
    mac: str = ""
    ports: tuple[WorkloadEndpointPort, ...] = ()
    allow_spoofed_source_prefixes: tuple[str, ...] = ()
    qos_controls: Any = None

    @property
    def ips(self) -> tuple[IP, ...]:
        return tuple(parse_ip(net.partition("/")[0]) for net in self.ip_networks)

    def problems(self) -> Iterator[Problem]:
        for i, net in enumerate(self.ip_networks):
            bad = list(cidr_problem(f"ipNetworks[{i}]", net))
            yield from bad
            if not bad and parse_net(net).num_addresses != 1:
                yield f"ipNetworks[{i}]", f'"{net}" must be a single address, /32 or /128'
        if self.interface_name and not INTERFACE_NAME.match(self.interface_name):
            yield "interfaceName", f'"{self.interface_name}" must be at most 15 letters, digits, "-", "_" and "."'


class WorkloadEndpoint(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="WorkloadEndpoint",
        plural="workloadendpoints",
        namespaced=True,
        aliases=("workloadendpoint", "wep", "weps"),
    )
    spec: WorkloadEndpointSpec = WorkloadEndpointSpec()


def endpoint_name(node: str, orchestrator: str, workload: str, endpoint: str) -> str:
    """The object name of a WorkloadEndpoint.

    >>> endpoint_name("node-1", "k8s", "pod-name", "eth0")
    'node--1-k8s-pod--name-eth0'
    """
    return "-".join(part.replace("-", "--") for part in (node, orchestrator, workload, endpoint))


def interface_name(namespace: str, pod: str, prefix: str = INTERFACE_PREFIX) -> str:
    """The host side of a pod's veth.

    >>> interface_name("default", "nginx")
    'calic440f455693'
    """
    digest = hashlib.sha1(f"{namespace}.{pod}".encode(), usedforsecurity=False).hexdigest()
    return prefix + digest[:11]


def container_interface_name(container_id: str, prefix: str = INTERFACE_PREFIX) -> str:
    """The host side of a veth of a container that is no Kubernetes pod."""
    return prefix + container_id[:11]
