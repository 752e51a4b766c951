"""Pods, and the WorkloadEndpoints that they are.

    pod: spec, labels, status.podIPs ────────────────────┐
         cni.projectcalico.org/{podIP,podIPs,containerID} ├─► WorkloadEndpoint, or none
         tortie.dev/endpoint: MAC, network                ┘

A WorkloadEndpoint is a view of its pod: everything but addresses, container, MAC and network is computed from the pod
each time. Whoever may edit a pod may write its annotations, too. So they never name an interface, labels or profiles,
and the addresses that the kubelet reports beat them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, cast

import msgspec
from msgspec import field

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError
from tortie.calc import annotations as asked
from tortie.calc.workloads import ENDPOINT, endpoint_of_pod
from tortie.model.k8s import Container, ContainerPort, Pod, PodIP, PodSpec, PodStatus
from tortie.model.meta import changed
from tortie.model.workload import IPNAT, NETWORK, WorkloadEndpoint, endpoint_name, interface_name
from tortie.store.kube.decoding import BAD, Document, Refused, WireMetadata, identity, metadata_of

POD_IP = "cni.projectcalico.org/podIP"
POD_IPS = "cni.projectcalico.org/podIPs"
CONTAINER_ID = "cni.projectcalico.org/containerID"
OWN = "tortie.dev/endpoint"
"""What else an endpoint needs, as JSON."""
DONE = ("Succeeded", "Failed", "Completed")
"""Phases of a pod that will not run again: its addresses may be another's already."""
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")
_PROTOCOLS = ("TCP", "UDP", "SCTP")


class Placed(Protocol):
    """What a spec, decoded however far, says of where a pod is."""

    @property
    def node_name(self) -> str: ...
    @property
    def host_network(self) -> bool: ...


class HasAddress(Protocol):
    @property
    def ip(self) -> str: ...


class Reported(Protocol):
    """What the kubelet says."""

    @property
    def phase(self) -> str: ...
    @property
    def pod_ip(self) -> str: ...
    @property
    def pod_ips(self) -> Sequence[HasAddress] | None: ...


class Port(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Of a container, as it comes."""

    container_port: int = 0
    name: str = ""
    protocol: str = "TCP"
    host_port: int = 0
    host_ip: str = field(name="hostIP", default="")


class _Container(msgspec.Struct, gc=False):
    name: str = ""
    image: str = ""
    ports: tuple[Port, ...] | None = None


class _Spec(msgspec.Struct, rename="camel"):
    containers: list[_Container] | None = None
    init_containers: list[_Container] | None = None
    node_name: str = ""
    service_account_name: str = ""
    service_account: str = ""
    host_network: bool = False
    hostname: str = ""
    restart_policy: str = "Always"


class _Status(msgspec.Struct, rename="camel"):
    phase: str = ""
    message: str = ""
    reason: str = ""
    pod_ip: str = field(name="podIP", default="")
    pod_ips: list[PodIP] | None = field(name="podIPs", default=None)
    host_ip: str = field(name="hostIP", default="")
    start_time: str | None = None


class Wire(msgspec.Struct):
    """The tenth of a pod that a network looks at."""

    metadata: WireMetadata = field(default_factory=WireMetadata)
    spec: _Spec = field(default_factory=_Spec)
    status: _Status = field(default_factory=_Status)


class Own(msgspec.Struct, omit_defaults=True):
    """The annotation `tortie.dev/endpoint`."""

    mac: str = ""
    network: str = ""


_pods = msgspec.json.Decoder(Wire)
_owns = msgspec.json.Decoder(Own)


def pod_of(raw: bytes) -> Pod:
    """A pod, with what a network looks at. Raises Refused."""
    try:
        return pod_of_wire(_pods.decode(raw))
    except BAD as error:
        raise Refused(identity(raw), str(error)) from None


def pod_of_wire(wire: Wire) -> Pod:
    spec, status = wire.spec, wire.status
    return Pod(
        metadata=metadata_of(wire.metadata),
        spec=PodSpec(
            containers=_containers(spec.containers),
            init_containers=_containers(spec.init_containers),
            node_name=spec.node_name,
            service_account_name=spec.service_account_name,
            service_account=spec.service_account,
            host_network=spec.host_network,
            hostname=spec.hostname,
            restart_policy=cast(Any, spec.restart_policy),
        ),
        status=PodStatus(
            phase=status.phase,
            message=status.message,
            reason=status.reason,
            pod_ip=status.pod_ip,
            pod_ips=tuple(status.pod_ips or ()),
            host_ip=status.host_ip,
            start_time=status.start_time or "",
        ),
    )


def _containers(found: list[_Container] | None) -> tuple[Container, ...]:
    return tuple(Container(name=one.name, image=one.image, ports=_ports(one.ports)) for one in found or ())


def with_ports(each: Iterable[Iterable[Port] | None]) -> tuple[Container, ...]:
    """Containers of which only the ports count."""
    return tuple(Container(name="", image="", ports=_ports(one)) for one in each)


def _ports(found: Iterable[Port] | None) -> tuple[ContainerPort, ...]:
    return tuple(
        ContainerPort(
            container_port=port.container_port,
            name=port.name,
            protocol=cast(Any, port.protocol),
            host_port=port.host_port,
            host_ip=port.host_ip,
        )
        for port in found or ()
        if port.protocol in _PROTOCOLS and port.container_port
    )


def told(spec: Placed, status: Reported, noted: Mapping[str, str]) -> tuple[str, ...]:
    """A pod's own addresses as texts; none as long as, and as soon as, it has none.

    The plugin empties its annotation when the container's interface goes, which the status tells only later or never.
    """
    if spec.host_network or not spec.node_name or status.phase in DONE or noted.get(POD_IP) == "":
        return ()
    found = tuple([one.ip for one in status.pod_ips or () if one.ip]) or tuple(filter(None, [status.pod_ip]))
    if found:
        return found
    text = noted.get(POD_IPS) or noted.get(POD_IP) or ""
    return tuple([one.strip().partition("/")[0] for one in text.split(",") if one.strip()])


def addresses(pod: Pod) -> tuple[IP, ...]:
    """The same as addresses; none when one of them cannot be read."""
    try:
        return tuple(map(parse_ip, told(pod.spec, pod.status, pod.metadata.annotations)))
    except ConfigError:
        return ()


def endpoint_of(pod: Pod) -> WorkloadEndpoint | None:
    """The endpoint that a pod is; None while it has no address."""
    ips = addresses(pod)
    return _endpoint(pod, ips) if ips else None


def last_endpoint(pod: Pod) -> WorkloadEndpoint:
    """The endpoint of a pod that has none any more, as far as it can still be told."""
    return _endpoint(pod, addresses(pod))


def _endpoint(pod: Pod, ips: tuple[IP, ...]) -> WorkloadEndpoint:
    noted, metadata = pod.metadata.annotations, pod.metadata
    mac, network = own(noted.get(OWN))
    try:
        asked.source_prefixes(noted)
    except ConfigError:  # a pod that runs is not let do more than somebody has clearly said
        rest = {name: text for name, text in noted.items() if name != asked.ALLOWED_SOURCE_PREFIXES}
        pod = changed(pod, annotations=rest)
    endpoint = endpoint_of_pod(
        pod,
        node=pod.spec.node_name,
        container_id=noted.get(CONTAINER_ID, ""),
        interface=interface_name(pod.namespace, pod.name),
        mac=mac,
        ips=ips,
        nats=_nats(pod, ips),
    )
    return changed(
        endpoint,
        annotations={NETWORK: network} if network else {},
        uid=metadata.uid,
        resource_version=metadata.resource_version,
        creation_timestamp=metadata.creation_timestamp,
    )


def own(text: str | None) -> tuple[str, str]:
    """MAC and network of the annotation OWN, each "" where it says nothing that can be read."""
    try:
        found = _owns.decode(text) if text else Own()
    except BAD:
        return "", ""
    return found.mac if _MAC.match(found.mac) else "", found.network


def _nats(pod: Pod, ips: tuple[IP, ...]) -> tuple[IPNAT, ...]:
    """Floating addresses, of the families that the pod has."""
    if asked.FLOATING_IPS not in pod.metadata.annotations:
        return ()
    try:
        floating = asked.floating_ips(pod.metadata.annotations)
    except ConfigError:
        return ()
    first = {ip.version: ip for ip in reversed(ips)}
    return tuple(
        IPNAT(internal_ip=str(first[one.version]), external_ip=str(one)) for one in floating if one.version in first
    )


def pod_name(endpoint: str) -> tuple[str, str] | None:
    """Node and pod of an endpoint's name; None for one that is no pod's.

    >>> pod_name("node--1-k8s-web--0-eth0"), pod_name("node--1-cni-4f0c-eth0")
    (('node-1', 'web-0'), None)
    """
    parts = [part.replace("\0", "-") for part in endpoint.replace("--", "\0").split("-")]
    if len(parts) != 4 or parts[1] != "k8s" or parts[3] != ENDPOINT:
        return None
    return (parts[0], parts[2]) if endpoint_name(parts[0], "k8s", parts[2], ENDPOINT) == endpoint else None


def whose(raw: bytes, endpoint: WorkloadEndpoint) -> Literal["nobody", "its", "another"]:
    """Whether a pod is to become this endpoint, is one already, or is another of the same name: elsewhere, or later."""
    try:
        pod = pod_of(raw)
    except Refused:
        return "its"
    uid, node = endpoint.metadata.uid, pod.spec.node_name
    if (uid and uid != pod.metadata.uid) or (node and endpoint_name(node, "k8s", pod.name, ENDPOINT) != endpoint.name):
        return "another"
    return "its" if addresses(pod) else "nobody"


def noted(endpoint: WorkloadEndpoint) -> dict[str, str | None]:
    """The annotations that make a pod this endpoint; None: none of this name."""
    nets = endpoint.spec.ip_networks
    own = Own(endpoint.spec.mac, endpoint.metadata.annotations.get(NETWORK, ""))
    return {
        POD_IP: nets[0] if nets else "",
        POD_IPS: ",".join(nets),
        CONTAINER_ID: endpoint.spec.container_id or None,
        OWN: msgspec.json.encode(own).decode() if own != Own() else None,
    }


CLEARED: dict[str, str | None] = {POD_IP: "", POD_IPS: "", CONTAINER_ID: None, OWN: None}
"""The annotations of a pod whose container has no interface any more."""


def annotated(document: Document, values: dict[str, str | None]) -> Document:
    """A pod's document with these annotations."""
    metadata = document.get("metadata") or {}
    kept = {name: text for name, text in (metadata.get("annotations") or {}).items() if name not in values}
    wanted = kept | {name: text for name, text in values.items() if text is not None}
    return document | {"metadata": metadata | {"annotations": wanted}}


def written(document: Document, endpoint: WorkloadEndpoint) -> Document:
    """A pod's document that makes it this endpoint.

    Where the kubelet still reports the addresses of a container before this one, which nobody has any more, the new
    ones are reported in their place: for what reads the status first, as everything does.
    """
    document = annotated(document, noted(endpoint))
    status = document.get("status") or {}
    ips = [net.partition("/")[0] for net in endpoint.spec.ip_networks]
    told = [one.get("ip") or "" for one in status.get("podIPs") or ()] or [one for one in [status.get("podIP")] if one]
    if told and ips and sorted(told) != sorted(ips):
        document = document | {"status": status | {"podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips]}}
    return document
