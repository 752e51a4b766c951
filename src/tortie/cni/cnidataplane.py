"""What the agent and an external dataplane (VPP's, for one) say to each other: service `CniDataplane` of package `cni`.

Calico's interface, in protocol buffers, version 3: attribute names are the messages' field names, and the tables at the
end give their numbers and types. `add_request` and `del_request` make the requests of a CNI call. Nothing here touches
a socket: `cni.external` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tortie.cni.proto3 import BOOL, INT32, STRING, STRING_MAP, UINT32, Many, Message, One
from tortie.cni.spec import Call, CniError, Code

if TYPE_CHECKING:
    from tortie.cni.result import Address
    from tortie.model.workload import WorkloadEndpoint

SERVICE = "cni.CniDataplane"
NO_GATEWAY = "<nil>"
"""How Calico, written in Go, writes the gateway of an address that has none."""
DEFAULT_ROUTES = ("0.0.0.0/0", "::/0")


def _map() -> Mapping[str, str]:
    return field(default_factory=dict, hash=False)


# --- the messages -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """`mtu` 0 leaves the choice to the dataplane."""

    allow_ip_forwarding: bool = False
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class IPConfig:
    """`address` is with the prefix length that IPAM gave it, a block's for instance; `gateway` may be `NO_GATEWAY`."""

    address: str = ""
    gateway: str = ""


@dataclass(frozen=True, slots=True)
class Port:
    name: str = ""
    protocol: str = ""
    port: int = 0
    host_port: int = 0
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class WorkloadIDs:
    """Whose interface it is: the WorkloadEndpoint, with the annotations of its pod."""

    name: str = ""
    namespace: str = ""
    labels: Mapping[str, str] = _map()
    annotations: Mapping[str, str] = _map()
    endpoint: str = ""
    node: str = ""
    orchestrator: str = ""
    pod: str = ""
    ports: tuple[Port, ...] = ()


@dataclass(frozen=True, slots=True)
class AddRequest:
    """`container_routes` are CIDRs that lead out of the pod; `dataplane_options` are those of the configuration."""

    interface_name: str = ""
    netns: str = ""
    desired_host_interface_name: str = ""
    settings: ContainerSettings = ContainerSettings()
    container_ips: tuple[IPConfig, ...] = ()
    container_routes: tuple[str, ...] = ()
    workload: WorkloadIDs = WorkloadIDs()
    dataplane_options: Mapping[str, str] = _map()


@dataclass(frozen=True, slots=True)
class AddReply:
    """`host_interface_name` need not be the desired one."""

    successful: bool = False
    error_message: str = ""
    host_interface_name: str = ""
    container_mac: str = ""

    @property
    def mac(self) -> str:
        """`container_mac`, in lower case and with colons. Raises CniError 999 for what Go does not take for one."""
        text = self.container_mac
        for separator, width in ((":", 2), ("-", 2), (".", 4)):
            parts = text.split(separator)
            digits = "".join(parts)
            even = all(len(part) == width for part in parts)
            if even and len(digits) in _MAC_DIGITS and not set(digits) - _HEX_DIGITS:
                return ":".join(digits[i : i + 2].lower() for i in range(0, len(digits), 2))
        raise CniError(Code.INTERNAL, f"address {text}: invalid MAC address")


_MAC_DIGITS = (12, 16, 40)  # EUI-48, EUI-64, IP over InfiniBand
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True)
class DelRequest:
    interface_name: str = ""
    netns: str = ""
    dataplane_options: Mapping[str, str] = _map()


@dataclass(frozen=True, slots=True)
class DelReply:
    successful: bool = False
    error_message: str = ""


# --- the requests of a call ---------------------------------------------------------------------------------------


def add_request(
    call: Call,
    endpoint: WorkloadEndpoint,
    ips: Iterable[Address],
    options: Mapping[str, str],
    *,
    annotations: Mapping[str, str],
    settings: ContainerSettings,
    routes: Iterable[str] = DEFAULT_ROUTES,
) -> AddRequest:
    """ADD. `endpoint` is as it is to be, its interface the desired one; `ips` are IPAM's, whose lengths stay."""
    return AddRequest(
        interface_name=call.ifname,
        netns=call.netns,
        desired_host_interface_name=endpoint.spec.interface_name,
        settings=settings,
        container_ips=tuple(IPConfig(ip.address, ip.gateway or NO_GATEWAY) for ip in ips),
        container_routes=tuple(routes),
        workload=_workload(endpoint, annotations),
        dataplane_options=options,
    )


def del_request(call: Call, options: Mapping[str, str]) -> DelRequest:
    """DEL. It is sent however little is left: the dataplane knows best what there still is."""
    return DelRequest(call.ifname, call.netns, options)


def _workload(endpoint: WorkloadEndpoint, annotations: Mapping[str, str]) -> WorkloadIDs:
    spec = endpoint.spec
    return WorkloadIDs(
        name=endpoint.name,
        namespace=endpoint.namespace,
        labels=endpoint.labels,
        annotations=annotations,
        endpoint=spec.endpoint,
        node=spec.node,
        orchestrator=spec.orchestrator,
        pod=spec.pod,
        ports=tuple(
            Port(port.name, str(port.protocol), port.port, port.host_port, port.host_ip) for port in spec.ports
        ),
    )


# --- field number -> attribute and type ---------------------------------------------------------------------------

CONTAINER_SETTINGS = Message(
    ContainerSettings,
    {
        1: ("allow_ip_forwarding", One(BOOL)),
        2: ("mtu", One(INT32)),
    },
)
IP_CONFIG = Message(
    IPConfig,
    {
        1: ("address", One(STRING)),
        2: ("gateway", One(STRING)),
    },
)
PORT = Message(
    Port,
    {
        1: ("name", One(STRING)),
        2: ("protocol", One(STRING)),
        3: ("port", One(UINT32)),
        4: ("host_port", One(UINT32)),
        5: ("host_ip", One(STRING)),
    },
)
WORKLOAD_IDS = Message(
    WorkloadIDs,
    {
        1: ("name", One(STRING)),
        2: ("namespace", One(STRING)),
        3: ("labels", STRING_MAP),
        4: ("annotations", STRING_MAP),
        5: ("endpoint", One(STRING)),
        6: ("node", One(STRING)),
        7: ("orchestrator", One(STRING)),
        8: ("pod", One(STRING)),
        9: ("ports", Many(PORT)),
    },
)
ADD_REQUEST = Message(
    AddRequest,
    {
        1: ("interface_name", One(STRING)),
        2: ("netns", One(STRING)),
        3: ("desired_host_interface_name", One(STRING)),
        4: ("settings", One(CONTAINER_SETTINGS)),
        5: ("container_ips", Many(IP_CONFIG)),
        6: ("container_routes", Many(STRING)),
        7: ("workload", One(WORKLOAD_IDS)),
        8: ("dataplane_options", STRING_MAP),
    },
)
ADD_REPLY = Message(
    AddReply,
    {
        1: ("successful", One(BOOL)),
        2: ("error_message", One(STRING)),
        3: ("host_interface_name", One(STRING)),
        4: ("container_mac", One(STRING)),
    },
)
DEL_REQUEST = Message(
    DelRequest,
    {
        1: ("interface_name", One(STRING)),
        2: ("netns", One(STRING)),
        3: ("dataplane_options", STRING_MAP),
    },
)
DEL_REPLY = Message(
    DelReply,
    {
        1: ("successful", One(BOOL)),
        2: ("error_message", One(STRING)),
    },
)
