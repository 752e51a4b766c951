"""From a Pod to its WorkloadEndpoint, and from a WorkloadEndpoint to what sets and policies see of it.

Source: Calico's conversion of pods, which its CNI plugin, agent and controllers share.
"""

from __future__ import annotations

import json

import msgspec

from tortie.base.addr import IP, parse_ip, parse_net
from tortie.base.errors import ConfigError
from tortie.calc.sets import Addresses
from tortie.model.k8s import Pod
from tortie.model.meta import Metadata
from tortie.model.policy import protocol_number
from tortie.model.workload import (
    WorkloadEndpoint,
    WorkloadEndpointPort,
    WorkloadEndpointSpec,
    endpoint_name,
)
from tortie.policy.translate import NAMESPACE, ORCHESTRATOR, SERVICE_ACCOUNT

ENDPOINT = "eth0"
"""A Kubernetes pod has one endpoint, and this is its name whatever the interface in the pod is called."""

ALLOWED_SOURCE_PREFIXES = "cni.projectcalico.org/allowedSourcePrefixes"
MAX_LABEL_VALUE = 63


def pod_labels(pod: Pod) -> dict[str, str]:
    """The labels that selectors see on a pod's endpoint."""
    labels = {key: value for key, value in pod.labels.items() if not key.startswith(("pcns.", "pcsa."))}
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


def source_prefixes(pod: Pod) -> tuple[str, ...]:
    """The annotation's CIDRs, normalised. Raises ConfigError naming the annotation."""
    text = pod.metadata.annotations.get(ALLOWED_SOURCE_PREFIXES)
    if not text:
        return ()
    try:
        listed = msgspec.json.decode(text, type=list[str])
        return tuple(str(parse_net(cidr)) for cidr in listed)
    except (msgspec.DecodeError, json.JSONDecodeError):
        raise ConfigError(f"{text!r} is not a JSON list of CIDRs", f"annotation {ALLOWED_SOURCE_PREFIXES}") from None
    except ConfigError as error:
        raise error.within(f"annotation {ALLOWED_SOURCE_PREFIXES}") from None


def endpoint_of_pod(
    pod: Pod, *, node: str, container_id: str, interface: str, mac: str, ips: tuple[IP, ...]
) -> WorkloadEndpoint:
    """The endpoint that a pod has once it is attached. Raises ConfigError for a bad annotation."""
    return WorkloadEndpoint(
        metadata=Metadata(
            name=endpoint_name(node, "k8s", pod.name, ENDPOINT), namespace=pod.namespace, labels=pod_labels(pod)
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
            allow_spoofed_source_prefixes=source_prefixes(pod),
        ),
    )


def refreshed(endpoint: WorkloadEndpoint, pod: Pod) -> WorkloadEndpoint:
    """The endpoint with what may have changed on its pod since: labels, ports, profiles."""
    spec = msgspec.structs.replace(
        endpoint.spec,
        profiles=pod_profiles(pod),
        ports=pod_ports(pod),
        service_account_name=pod.service_account,
    )
    metadata = msgspec.structs.replace(endpoint.metadata, labels=pod_labels(pod))
    return msgspec.structs.replace(endpoint, metadata=metadata, spec=spec)


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
