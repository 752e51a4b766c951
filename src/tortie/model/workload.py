"""A pod's attachment to the network: WorkloadEndpoint, and the names that go with it.

Names: Calico's `<node>-k8s-<pod>-<endpoint>` with every dash inside a part doubled; the host interface is
`cali` + the first 11 hex digits of SHA-1(`<namespace>.<pod>`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import ClassVar

from msgspec import field

from tortie.base.addr import IP, parse_ip, parse_net
from tortie.model.meta import Kind, Port, Problem, Resource, Value, cidr_problem, ip_problem

INTERFACE_PREFIX = "cali"
NETWORK = "tortie/network"
"""Annotation of a WorkloadEndpoint: the network that its container was attached to. GC goes by networks."""
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


QOS_RANGES = {
    "bandwidth": (1000, 10**15),
    "burst": (1000, 34359738360),
    "peakrate": (1010, 1010 * 10**12),
    "minburst": (1000, 100 * 10**6),
    "packet_rate": (1, 10_000),
    "packet_burst": (1, 10_000),
    "max_connections": (1, 2**32 - 1),
}
"""Least and most of each limit. Source: Calico's conversion of pods. A burst in bits fills 32 bits as bytes."""
HIGHEST_DSCP = 63
DSCP_NAMES = {"DF": 0, "EF": 46} | {f"CS{n}": 8 * n for n in range(7)}
DSCP_NAMES |= {f"AF{c}{d}": 8 * c + 2 * d for c in range(1, 5) for d in range(1, 4)}
"""The code points that have a name. Source: RFC 2474, 2597, 3246, 8436."""


def dscp_number(value: int | str) -> int | None:
    """The code point of a number (0 to 63, also as text) or a name in any case; None for what is neither.

    >>> dscp_number("af21"), dscp_number("46"), dscp_number(64)
    (18, 46, None)
    """
    if isinstance(value, str):
        value = DSCP_NAMES.get(value.upper(), int(value) if value.isascii() and value.isdecimal() else -1)
    return value if 0 <= value <= HIGHEST_DSCP else None


class QoSControls(Value, frozen=True, kw_only=True):
    """Ingress is to the pod, egress from it. Rates in bit/s or packets/s; `burst` in bits, `minburst` in bytes,
    `packet_burst` in packets. 0 is no limit. `dscp` None: packets keep theirs."""

    ingress_bandwidth: int = 0
    egress_bandwidth: int = 0
    ingress_burst: int = 0
    egress_burst: int = 0
    ingress_peakrate: int = 0
    egress_peakrate: int = 0
    ingress_minburst: int = 0
    egress_minburst: int = 0
    ingress_packet_rate: int = 0
    egress_packet_rate: int = 0
    ingress_packet_burst: int = 0
    egress_packet_burst: int = 0
    ingress_max_connections: int = 0
    egress_max_connections: int = 0
    dscp: int | str | None = None

    def problems(self) -> Iterator[Problem]:
        for limit, (least, most) in QOS_RANGES.items():
            for side in ("ingress", "egress"):
                value = getattr(self, f"{side}_{limit}")
                if value and not least <= value <= most:
                    name = side + "".join(map(str.capitalize, limit.split("_")))
                    yield name, f"{value} is not from {least} to {most}, nor 0, which is no limit"
        if self.dscp is not None and dscp_number(self.dscp) is None:
            yield "dscp", f'"{self.dscp}" is neither 0 to {HIGHEST_DSCP} nor a name such as EF or AF21'


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
    qos_controls: QoSControls | None = None

    @property
    def ips(self) -> tuple[IP, ...]:
        return tuple(parse_ip(net.partition("/")[0]) for net in self.ip_networks)

    def problems(self) -> Iterator[Problem]:
        for i, net in enumerate(self.ip_networks):
            bad = list(cidr_problem(f"ipNetworks[{i}]", net))
            yield from bad
            if not bad and parse_net(net).num_addresses != 1:
                yield f"ipNetworks[{i}]", f'"{net}" must be a single address, /32 or /128'
        for i, net in enumerate(self.allow_spoofed_source_prefixes):
            yield from cidr_problem(f"allowSpoofedSourcePrefixes[{i}]", net)
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
    """The host side of a veth of a container that is no Kubernetes pod.

    Ids that are hashes differ in their beginnings. Others need not, such as those that `ctr` makes of a name.

    >>> container_interface_name("3f2504e04f89d2a4"), container_interface_name("default-web1")
    ('cali3f2504e04f8', 'cali0a8a8cdf91c')
    """
    if len(container_id) > 11 and not set(container_id) <= set("0123456789abcdef"):
        container_id = hashlib.sha1(container_id.encode(), usedforsecurity=False).hexdigest()
    return prefix + container_id[:11]
