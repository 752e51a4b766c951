"""The endpoints of very many pods: decoded once, straight into what an endpoint is made of.

    pod, pod, ... ──msgspec──► Seen ──its own: addresses, node, container, MAC──► WorkloadEndpoint
                                └──── the same for a whole Deployment, ───────┘
                                      remembered: labels, ports, profiles

What a pod means is said in `pods` and `calc.workloads`. It is asked there, once for all pods that are alike; of a pod
that asks for something by annotation (limits, floating addresses), each time.
"""

from __future__ import annotations

import socket
from functools import lru_cache
from typing import NamedTuple

import msgspec
from msgspec import field

from tortie.base.addr import parse_ip
from tortie.base.errors import ConfigError
from tortie.calc.annotations import PREFIX
from tortie.calc.qos import QOS
from tortie.calc.workloads import ENDPOINT
from tortie.model.k8s import Pod, PodIP, PodSpec, PodStatus
from tortie.model.meta import Metadata
from tortie.model.workload import NETWORK, WorkloadEndpoint, WorkloadEndpointSpec, endpoint_name, interface_name
from tortie.store.kube import pods
from tortie.store.kube.decoding import BAD, Refused, identity

ALIKE = 16_384
"""Deployments, roughly, whose pods' common part is remembered."""
QUIET = (pods.POD_IP, pods.POD_IPS, pods.CONTAINER_ID)
"""Annotations of Calico's that say nothing but what is read here."""


class _Container(msgspec.Struct, frozen=True, gc=False):
    ports: tuple[pods.Port, ...] | None = None


class _Spec(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    containers: tuple[_Container, ...] | None = None
    init_containers: tuple[_Container, ...] | None = None
    node_name: str = ""
    service_account_name: str = ""
    service_account: str = ""
    host_network: bool = False


class _Address(msgspec.Struct, frozen=True, gc=False):
    ip: str = ""


class _Status(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    phase: str = ""
    pod_ip: str = field(name="podIP", default="")
    pod_ips: tuple[_Address, ...] | None = field(name="podIPs", default=None)


class _Metadata(msgspec.Struct, gc=False, rename="camel"):
    name: str = ""
    namespace: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None


class Seen(msgspec.Struct, gc=False):
    """The twentieth of a pod that makes it an endpoint. Nothing in it is changed, and nothing refers back to it: so the
    garbage collector need not know of it."""

    metadata: _Metadata = field(default_factory=_Metadata)
    spec: _Spec = _Spec()
    status: _Status = _Status()


class _Alike(NamedTuple):
    """What pods of one Deployment have in common, as an endpoint has it."""

    labels: dict[str, str]
    spec: WorkloadEndpointSpec


_seen = msgspec.json.Decoder(Seen)


def seen(raw: bytes) -> Seen:
    """Raises Refused."""
    try:
        return _seen.decode(raw)
    except BAD as error:
        raise Refused(identity(raw), str(error)) from None


def endpoint_of(pod: Seen) -> WorkloadEndpoint | None:
    """The endpoint that a pod is; None while it has no address."""
    noted = pod.metadata.annotations or {}
    texts = pods.told(pod.spec, pod.status, noted)
    if not texts:
        return None
    if _asks(tuple(noted)):
        return pods.endpoint_of(_pod(pod))
    try:
        nets = tuple([_network(text) for text in texts])
    except ConfigError:
        return None
    return _endpoint(pod, noted, nets)


def last_endpoint(pod: Seen) -> WorkloadEndpoint:
    """The endpoint of a pod that has none any more, as far as it can still be told."""
    return pods.last_endpoint(_pod(pod))


def shape(pod: Seen) -> int:
    """The same number for what makes the same endpoint, its revision aside: nearly all changes of a pod are of what a
    network does not look at."""
    metadata, spec, status = pod.metadata, pod.spec, pod.status
    noted = metadata.annotations or {}
    told = tuple(noted.items()) if _asks(tuple(noted)) else tuple([noted.get(name) for name in (*QUIET, pods.OWN)])
    labels = tuple((metadata.labels or {}).items())
    return hash((metadata.uid, labels, told, spec, status))


def _endpoint(pod: Seen, noted: dict[str, str], nets: tuple[str, ...]) -> WorkloadEndpoint:
    metadata, spec = pod.metadata, pod.spec
    name, namespace, node = metadata.name, metadata.namespace, spec.node_name
    account = spec.service_account_name or spec.service_account
    labels = tuple((metadata.labels or {}).items())
    alike = _alike(namespace, account, labels, spec.containers, spec.init_containers)
    mac, network = _noted(noted.get(pods.OWN))
    common = alike.spec
    return WorkloadEndpoint(
        metadata=Metadata(
            name=endpoint_name(node, "k8s", name, ENDPOINT),
            namespace=namespace,
            labels=alike.labels,
            annotations={NETWORK: network} if network else {},
            uid=metadata.uid,
            resource_version=metadata.resource_version,
            creation_timestamp=metadata.creation_timestamp,
        ),
        spec=WorkloadEndpointSpec(
            orchestrator=common.orchestrator,
            node=node,
            container_id=noted.get(pods.CONTAINER_ID, ""),
            pod=name,
            endpoint=common.endpoint,
            service_account_name=common.service_account_name,
            ip_networks=nets,
            profiles=common.profiles,
            interface_name=interface_name(namespace, name),
            mac=mac,
            ports=common.ports,
        ),
    )


@lru_cache(maxsize=ALIKE)
def _alike(
    namespace: str,
    account: str,
    labels: tuple[tuple[str, str], ...],
    containers: tuple[_Container, ...] | None,
    init_containers: tuple[_Container, ...] | None,
) -> _Alike:
    spec = _Spec(containers, init_containers, service_account_name=account)
    made = pods.last_endpoint(_pod(Seen(_Metadata(namespace=namespace, labels=dict(labels)), spec)))
    return _Alike(made.labels, made.spec)


def _pod(pod: Seen) -> Pod:
    """As much of the Pod as its endpoint is made of."""
    metadata, spec, status = pod.metadata, pod.spec, pod.status
    return Pod(
        metadata=Metadata(
            name=metadata.name,
            namespace=metadata.namespace,
            labels=metadata.labels or {},
            annotations=metadata.annotations or {},
            uid=metadata.uid,
            resource_version=metadata.resource_version,
            creation_timestamp=metadata.creation_timestamp,
        ),
        spec=PodSpec(
            containers=pods.with_ports(one.ports for one in spec.containers or ()),
            init_containers=pods.with_ports(one.ports for one in spec.init_containers or ()),
            node_name=spec.node_name,
            service_account_name=spec.service_account_name,
            service_account=spec.service_account,
            host_network=spec.host_network,
        ),
        status=PodStatus(
            phase=status.phase,
            pod_ip=status.pod_ip,
            pod_ips=tuple(PodIP(ip=one.ip) for one in status.pod_ips or ()),
        ),
    )


@lru_cache(maxsize=ALIKE)
def _asks(names: tuple[str, ...]) -> bool:
    """Whether among a pod's annotations are some that ask for something."""
    return any((name.startswith((PREFIX, QOS)) and name not in QUIET) or name.endswith("-bandwidth") for name in names)


@lru_cache(maxsize=ALIKE)
def _noted(text: str | None) -> tuple[str, str]:
    """MAC and network of the annotation `tortie.dev/endpoint`."""
    return pods.own(text)


def _network(text: str) -> str:
    """An address as an endpoint has it, with its length. Raises ConfigError."""
    try:
        socket.inet_pton(socket.AF_INET, text)  # so strict that what it takes is written as it should be
    except (OSError, ValueError):
        ip = parse_ip(text)
        return f"{ip}/{ip.max_prefixlen}"
    return text + "/32"
