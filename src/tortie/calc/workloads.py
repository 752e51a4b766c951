"""From a Pod to its WorkloadEndpoint, and from a WorkloadEndpoint to what sets and policies see of it.

Source: Calico's conversion of pods, which its CNI plugin, agent and controllers share.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from tortie.base.addr import IP, Net, parse_ip, parse_net
from tortie.base.errors import ConfigError
from tortie.calc import qos
from tortie.calc.annotations import source_prefixes
from tortie.calc.sets import Addresses
from tortie.model.k8s import Pod
from tortie.model.meta import Metadata
from tortie.model.policy import protocol_number
from tortie.model.workload import (
    IPNAT,
    WorkloadEndpoint,
    WorkloadEndpointPort,
    WorkloadEndpointSpec,
    endpoint_name,
)
from tortie.policy.translate import NAMESPACE, ORCHESTRATOR, SERVICE_ACCOUNT, without_reserved

ENDPOINT = "eth0"
"""A Kubernetes pod has one endpoint, and this is its name whatever the interface in the pod is called."""

MAX_LABEL_VALUE = 63


def pod_labels(pod: Pod) -> dict[str, str]:
    """The labels that selectors see on a pod's endpoint."""
    labels = without_reserved(pod.labels)
    labels[NAMESPACE] = pod.namespace
    labels[ORCHESTRATOR] = "k8s"
    if len(pod.service_account) < MAX_LABEL_VALUE:
        labels[SERVICE_ACCOUNT] = pod.service_account
    return labels


def pod_profiles(pod: Pod) -> tuple[str, ...]:
    return f"kns.{pod.namespace}", f"ksa.{pod.namespace}.{pod.service_account}"


def pod_ports(pod: Pod) -> tuple[WorkloadEndpointPort, ...]:
    """The ports that are named or bound to the host."""
    return tuple(
        WorkloadEndpointPort(
            name=port.name,
            protocol=port.protocol,
            port=port.container_port,
            host_port=port.host_port,
            host_ip=port.host_ip,
        )
        for container in (*pod.spec.containers, *pod.spec.init_containers)
        for port in container.ports
        if port.name or port.host_port
    )


def endpoint_of_pod(
    pod: Pod,
    *,
    node: str,
    container_id: str,
    interface: str,
    mac: str,
    ips: tuple[IP, ...],
    nats: tuple[IPNAT, ...] = (),
) -> WorkloadEndpoint:
    """The endpoint that a pod has once it is attached. Raises ConfigError for a bad annotation."""
    return WorkloadEndpoint(
        metadata=Metadata(
            name=endpoint_name(node, "k8s", pod.name, ENDPOINT),
            namespace=pod.namespace,
            labels=pod_labels(pod),
            uid=pod.metadata.uid,
        ),
        spec=WorkloadEndpointSpec(
            orchestrator="k8s",
            node=node,
            container_id=container_id,
            pod=pod.name,
            endpoint=ENDPOINT,
            service_account_name=pod.service_account,
            ip_networks=tuple(f"{ip}/{ip.max_prefixlen}" for ip in ips),
            profiles=pod_profiles(pod),
            interface_name=interface,
            mac=mac,
            ports=pod_ports(pod),
            allow_spoofed_source_prefixes=source_prefixes(pod.metadata.annotations),
            ip_nats=nats,
            qos_controls=qos.controls(pod.metadata.annotations)[0],
        ),
    )


def refreshed(endpoint: WorkloadEndpoint, pod: Pod) -> WorkloadEndpoint:
    """The endpoint with what may have changed on its pod since: labels, ports, profiles, limits, source prefixes."""
    spec = msgspec.structs.replace(
        endpoint.spec,
        profiles=pod_profiles(pod),
        ports=pod_ports(pod),
        service_account_name=pod.service_account,
        allow_spoofed_source_prefixes=_readable_prefixes(pod),
        qos_controls=qos.controls(pod.metadata.annotations)[0],
    )
    metadata = msgspec.structs.replace(endpoint.metadata, labels=pod_labels(pod))
    return msgspec.structs.replace(endpoint, metadata=metadata, spec=spec)


def _readable_prefixes(pod: Pod) -> tuple[str, ...]:
    """None when they cannot be read: a pod that runs is not let do more than somebody has clearly said."""
    try:
        return source_prefixes(pod.metadata.annotations)
    except ConfigError:
        return ()


def disregarded(pod: Pod) -> Iterator[str]:
    """A line for each annotation of a pod that is not, or not quite, followed as long as it says what it says."""
    yield from qos.controls(pod.metadata.annotations)[1]
    try:
        source_prefixes(pod.metadata.annotations)
    except ConfigError as error:
        yield str(error)


def allowed_sources(endpoint: WorkloadEndpoint) -> tuple[Net, ...]:
    """The networks that an endpoint may send from besides its own addresses. Raises ConfigError."""
    try:
        return tuple(map(parse_net, endpoint.spec.allow_spoofed_source_prefixes))
    except ConfigError as error:
        raise error.within("spec.allowSpoofedSourcePrefixes") from None


def floating_ips(endpoint: WorkloadEndpoint) -> tuple[tuple[IP, IP], ...]:
    """(external, internal) of every floating IP that leads to an address which the endpoint has."""
    own = endpoint_addresses(endpoint).ips
    pairs = ((parse_ip(nat.external_ip), parse_ip(nat.internal_ip)) for nat in endpoint.spec.ip_nats)
    return tuple((external, internal) for external, internal in pairs if internal in own)


def endpoint_addresses(endpoint: WorkloadEndpoint) -> Addresses:
    """What an endpoint brings into the sets that match it; entries that cannot be read are left out."""
    ips = []
    for net in endpoint.spec.ip_networks:
        try:
            ips.append(parse_ip(net.partition("/")[0]))
        except ConfigError:
            continue
    ports = [(port.name, protocol_number(port.protocol), port.port) for port in endpoint.spec.ports if port.name]
    return Addresses(tuple(ips), (), tuple((name, number, port) for name, number, port in ports if number is not None))
