"""What one node does with connections to services, as a value: what `calc.proxy` makes and `render.proxy` renders.

who asks                                   gets one of                     is masqueraded
a pod, but for NodePorts                   backends                        only where it meets itself (hairpin)
a process of this node, or from outside,   backends                        if its address is of no pod
  at a ClusterIP
the same at another frontend               backends                        always
from outside, externalTrafficPolicy Local  local                           never
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tortie.base.addr import IP, Net
from tortie.model.policy import PROTOCOLS

ServiceKey = tuple[str, str]
"""Namespace and name of a service."""
EntranceKind = Literal["ClusterIP", "NodePort", "ExternalIP", "LoadBalancer"]

_NAMES = {number: name for name, number in PROTOCOLS.items()}


@dataclass(frozen=True, slots=True)
class Frontend:
    """Where a service is asked for. `ip` None: at any address of this node, a NodePort. `protocol` is IP's number."""

    version: int
    ip: IP | None
    protocol: int
    port: int

    def __str__(self) -> str:
        where = "*" if self.ip is None else f"[{self.ip}]" if self.version == 6 else str(self.ip)
        return f"{where}:{self.port}/{_NAMES.get(self.protocol, str(self.protocol))}"


@dataclass(frozen=True, slots=True)
class Backend:
    """Who answers. `node` is where it is, "" where nobody says."""

    ip: IP
    port: int
    node: str = ""

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"


@dataclass(frozen=True, slots=True)
class Entrance:
    """A frontend, and what becomes of who asks there. Backends are in the order of their addresses and ports.

    `local` None: who comes from outside gets one of `backends`, too. `sources` None: anybody may ask from outside; else
    who is from none of them is dropped. `affinity`: seconds in which the same client gets the same backend again; 0:
    none. `unserved` is what becomes of who would get one of no backends.
    """

    kind: EntranceKind
    frontend: Frontend
    port_name: str
    backends: tuple[Backend, ...]
    local: tuple[Backend, ...] | None = None
    sources: tuple[Net, ...] | None = None
    affinity: int = 0
    unserved: Literal["reject", "drop"] = "reject"


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Of a service with externalTrafficPolicy Local: the port on which a load balancer asks every node for its local
    ready endpoints."""

    port: int
    local: int


@dataclass(frozen=True, slots=True)
class Served:
    """One service, with all of its ports. No two services of a state have the same frontend."""

    key: ServiceKey
    entrances: tuple[Entrance, ...]
    cluster_ips: tuple[IP, ...]
    check: HealthCheck | None = None

    @property
    def title(self) -> str:
        return "/".join(self.key)


@dataclass(frozen=True, slots=True)
class ProxyState:
    """All services of a cluster for one node. What has not changed is the very same object as in the last state."""

    generation: int = 0
    node: str = ""
    services: Mapping[ServiceKey, Served] = field(default_factory=dict)
    pods: tuple[Net, ...] = ()
    """Where pods have their addresses: who has another one is not a pod. None known: nobody is taken for a pod."""
    here: frozenset[IP] = frozenset()
    """The addresses of backends on this node: one that gets itself must be masqueraded."""
    node_ports: tuple[Net, ...] | None = None
    """Those of this node's addresses at which NodePorts are answered; None: all but loopback."""
    masquerade_all: bool = False
    layer2: Mapping[IP, frozenset[str] | None] = field(default_factory=dict)
    """Addresses of load balancers that one node answers for by ARP or neighbour discovery, and which nodes may; None:
    any that serves."""
    excluded: bool = False
    """This node is no load balancer's target, by its label: it answers for no address of one."""
    leaving: bool = False
    """This node is being deleted, or about to be: load balancers should send it nobody new."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """What cannot be served as it is asked for, by the object's title."""
