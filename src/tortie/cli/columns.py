"""The columns in which `get` prints each kind: calicoctl's for Calico's kinds, kubectl's manner for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tortie.base.errors import ConfigError
from tortie.model.bgp import DEFAULT_AS, BGPConfiguration, BGPPeer
from tortie.model.bgpfilter import BGPFilter
from tortie.model.clusterpolicy import ClusterNetworkPolicy
from tortie.model.controllers import KubeControllersConfiguration
from tortie.model.hostendpoint import HostEndpoint
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMConfig, IPAMHandle, IPPool, IPReservation
from tortie.model.k8s import (
    K8sNetworkPolicy,
    K8sNode,
    LabelSelector,
    Namespace,
    Pod,
    ServiceAccount,
    VirtualMachine,
    VirtualMachineInstance,
)
from tortie.model.lease import Lease
from tortie.model.meta import Resource
from tortie.model.node import ClusterInformation, FelixConfiguration, Node
from tortie.model.nodestatus import CalicoNodeStatus
from tortie.model.policy import GlobalNetworkPolicy, GlobalNetworkSet, NetworkPolicy, NetworkSet, Profile, Tier
from tortie.model.secret import Secret
from tortie.model.service import EndpointSlice, Service
from tortie.model.staged import StagedGlobalNetworkPolicy, StagedKubernetesNetworkPolicy, StagedNetworkPolicy
from tortie.model.workload import WorkloadEndpoint, interface_name

Cell = Callable[[Any], object]
Columns = dict[str, Cell]

MAX_NETS = 80
"""Characters of a list of networks in a cell, as calicoctl cuts it."""


def columns(kind: type[Resource], wide: bool = False, cluster_as: int | str = DEFAULT_AS) -> Columns:
    """Heading -> what stands below it. `cluster_as` is the AS number of the nodes that have none of their own."""
    narrow, more = _COLUMNS[kind]
    if kind is Node and wide:
        return _node_columns(cluster_as)
    if not wide:
        return narrow
    return more if "NAME" in more else {**narrow, **more}


def chosen(kind: type[Resource], headings: Iterable[str], cluster_as: int | str = DEFAULT_AS) -> Columns:
    """The columns that custom-columns names. Raises ConfigError for one that the kind does not have."""
    known = {**columns(kind, False, cluster_as), **columns(kind, True, cluster_as), **_ONLY_BY_NAME.get(kind, {})}
    picked: Columns = {}
    for heading in headings:
        if heading not in known:
            raise ConfigError(f"unknown heading {heading}, valid values are: {', '.join(known)}")
        picked[heading] = known[heading]
    return picked


def cells(resource: Resource, table: Columns) -> list[str]:
    """One row."""
    return [_text(cell(resource)) for cell in table.values()]


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, tuple | list):
        return ",".join(_text(item) for item in value)
    return str(value)


def _name(resource: Resource) -> str:
    return resource.name


def _or_dash(value: object) -> object:
    return "-" if value in (None, "") else value


def _nets(resource: Any) -> str:
    text = ",".join(resource.spec.nets)
    return text if len(text) <= MAX_NETS else text[: MAX_NETS - 3] + "..."


def _peer_node(peer: BGPPeer) -> str:
    return peer.spec.node or peer.spec.node_selector or "(global)"


def _node_columns(cluster_as: int | str) -> Columns:
    def bgp(name: str) -> Cell:
        return lambda node: getattr(node.spec.bgp, name) if node.spec.bgp else ""

    def as_number(node: Node) -> object:
        own = node.spec.bgp.as_number if node.spec.bgp else None
        return f"({cluster_as})" if own is None else own

    return {"NAME": _name, "ASN": as_number, "IPV4": bgp("ipv4_address"), "IPV6": bgp("ipv6_address")}


def _label_selector(selector: LabelSelector) -> str:
    """As kubectl prints it: `a=b,c in (d,e),!f`."""
    terms = [f"{key}={value}" for key, value in sorted(selector.match_labels.items())]
    for wanted in selector.match_expressions:
        values = f"({','.join(wanted.values)})"
        terms.append(
            {
                "In": f"{wanted.key} in {values}",
                "NotIn": f"{wanted.key} notin {values}",
                "Exists": wanted.key,
                "DoesNotExist": f"!{wanted.key}",
            }[wanted.operator]
        )
    return ",".join(terms) or "<none>"


def _phase(resource: Any) -> str:
    status = resource.status
    phase = status.get("phase", "") if isinstance(status, dict) else getattr(status, "phase", "")
    return phase or "Unknown"


def _pod_ips(pod: Pod) -> str:
    return ",".join(ip.ip for ip in pod.status.pod_ips) or pod.status.pod_ip or "<none>"


def _pod_ip(pod: Pod) -> str:
    return pod.status.pod_ip or next((ip.ip for ip in pod.status.pod_ips), "<none>")


def _pod_interface(pod: Pod) -> str:
    return "<host>" if pod.spec.host_network else interface_name(pod.namespace, pod.name)


def _used(block: IPAMBlock) -> int:
    return sum(1 for slot in block.spec.allocations if slot is not None)


def _labels_applied(profile: Profile) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(profile.spec.labels_to_apply.items()))


def _external_ips(service: Service) -> str:
    spec = service.spec
    status = service.status if isinstance(service.status, dict) else {}
    given = (status.get("loadBalancer") or {}).get("ingress") or ()
    balanced = [str(entry.get("ip") or entry.get("hostname")) for entry in given if isinstance(entry, dict)]
    found = [spec.external_name] if spec.external_name else [*balanced, *spec.external_ips]
    return ",".join(found) or ("<pending>" if spec.type == "LoadBalancer" else "<none>")


def _service_ports(service: Service) -> str:
    ports = service.spec.ports
    texts = (f"{p.port}:{p.node_port}/{p.protocol}" if p.node_port else f"{p.port}/{p.protocol}" for p in ports)
    return ",".join(texts) or "<none>"


def _equal_labels(service: Service) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(service.spec.selector.items())) or "<none>"


def _slice_ports(slice_: EndpointSlice) -> str:
    return ",".join("*" if port.port is None else str(port.port) for port in slice_.ports) or "<unset>"


def _slice_addresses(slice_: EndpointSlice) -> str:
    return ",".join(address for endpoint in slice_.endpoints for address in endpoint.addresses) or "<unset>"


def _staged_action(policy: Any) -> str:
    return policy.spec.staged_action or "Set"


def _spec(name: str) -> Cell:
    return lambda resource: getattr(resource.spec, name)


_NAME: Columns = {"NAME": _name}
_ORDERED: Columns = {"ORDER": _spec("order"), "SELECTOR": _spec("selector")}
_POLICY: Columns = {**_NAME, "TIER": lambda policy: policy.spec.tier or "default"}
_NETS: Columns = {"NETS": _nets}

_COLUMNS: dict[type[Resource], tuple[Columns, Columns]] = {
    BGPConfiguration: ({
        **_NAME,
        "LOGSEVERITY": lambda config: _or_dash(config.spec.log_severity_screen),
        "MESHENABLED": lambda config: _or_dash(config.spec.node_to_node_mesh_enabled),
        "ASNUMBER": lambda config: _or_dash(config.spec.as_number),
    }, {}),
    BGPFilter: ({
        **_NAME,
        "NUMEXPORTV4": lambda one: len(one.spec.export_v4),
        "NUMIMPORTV4": lambda one: len(one.spec.import_v4),
        "NUMEXPORTV6": lambda one: len(one.spec.export_v6),
        "NUMIMPORTV6": lambda one: len(one.spec.import_v6),
    }, {}),
    BGPPeer: ({
        **_NAME,
        "PEERIP": _spec("peer_ip"),
        "NODE": _peer_node,
        "ASN": _spec("as_number"),
    }, {}),
    ClusterInformation: ({
        **_NAME,
        "CLUSTERGUID": _spec("cluster_guid"),
        "CLUSTERTYPE": _spec("cluster_type"),
        "CALICOVERSION": _spec("calico_version"),
        "DATASTOREREADY": _spec("datastore_ready"),
    }, {}),
    FelixConfiguration: (_NAME, {}),
    KubeControllersConfiguration: (_NAME, {}),
    GlobalNetworkPolicy: (_POLICY, _ORDERED),
    NetworkPolicy: (_POLICY, _ORDERED),
    StagedGlobalNetworkPolicy: (_POLICY, _ORDERED),
    StagedNetworkPolicy: (_POLICY, _ORDERED),
    GlobalNetworkSet: (_NAME, _NETS),
    NetworkSet: (_NAME, _NETS),
    IPAMConfig: ({
        **_NAME,
        "STRICTAFFINITY": _spec("strict_affinity"),
        "AUTOALLOCATEBLOCKS": _spec("auto_allocate"),
    }, {"MAXBLOCKSPERHOST": _spec("max_blocks_per_host")}),
    IPPool: ({
        **_NAME,
        "CIDR": _spec("cidr"),
        "SELECTOR": lambda pool: pool.spec.node_selector or "all()",
    }, {
        **_NAME,
        "CIDR": _spec("cidr"),
        "NAT": _spec("nat_outgoing"),
        "IPIPMODE": lambda pool: pool.spec.ipip_mode or "Never",
        "VXLANMODE": lambda pool: pool.spec.vxlan_mode or "Never",
        "DISABLED": _spec("disabled"),
        "DISABLEBGPEXPORT": _spec("disable_bgp_export"),
        "SELECTOR": lambda pool: pool.spec.node_selector or "all()",
        "ASSIGNMENTMODE": lambda pool: pool.spec.assignment_mode or "Automatic",
    }),
    IPReservation: (_NAME, {"CIDRS": _spec("reserved_cidrs")}),
    Node: (_NAME, {}),
    Profile: (_NAME, {"LABELS": _labels_applied}),
    Tier: ({**_NAME, "ORDER": _spec("order")}, {}),
    WorkloadEndpoint: ({
        "WORKLOAD": lambda endpoint: endpoint.spec.workload or endpoint.spec.pod or endpoint.spec.container_id[:12],
        "NODE": _spec("node"),
        "NETWORKS": _spec("ip_networks"),
        "INTERFACE": _spec("interface_name"),
    }, {
        **_NAME,
        "WORKLOAD": lambda endpoint: endpoint.spec.workload or endpoint.spec.pod or endpoint.spec.container_id[:12],
        "NODE": _spec("node"),
        "NETWORKS": _spec("ip_networks"),
        "INTERFACE": _spec("interface_name"),
        "PROFILES": _spec("profiles"),
        "NATS": lambda endpoint: [nat.external_ip for nat in endpoint.spec.ip_nats],
    }),
    CalicoNodeStatus: ({**_NAME, "NODE": _spec("node")}, {"CLASSES": _spec("classes")}),
    HostEndpoint: ({**_NAME, "NODE": _spec("node")}, {
        **_NAME,
        "NODE": _spec("node"),
        "INTERFACE": _spec("interface_name"),
        "IPS": _spec("expected_ips"),
        "PROFILES": _spec("profiles"),
    }),
    IPAMBlock: ({
        **_NAME,
        "CIDR": _spec("cidr"),
        "AFFINITY": _spec("affinity"),
        "IN-USE": _used,
    }, {"FREE": lambda block: len(block.spec.unallocated)}),
    BlockAffinity: ({**_NAME, "NODE": _spec("node"), "CIDR": _spec("cidr"), "STATE": _spec("state")}, {}),
    IPAMHandle: ({**_NAME, "ADDRESSES": lambda handle: sum(handle.spec.block.values())}, {
        "BLOCKS": lambda handle: sorted(handle.spec.block),
    }),
    Namespace: ({**_NAME, "STATUS": _phase}, {}),
    ServiceAccount: (_NAME, {}),
    Secret: ({**_NAME, "TYPE": lambda secret: secret.type, "DATA": lambda secret: len(secret.data)}, {}),
    K8sNode: ({**_NAME, "PODCIDR": _spec("pod_cidr")}, {}),
    Pod: ({
        **_NAME,
        "STATUS": _phase,
        "IP": _pod_ip,
        "NODE": lambda pod: pod.spec.node_name or "<none>",
    }, {
        **_NAME,
        "STATUS": _phase,
        "IP": _pod_ips,
        "NODE": lambda pod: pod.spec.node_name or "<none>",
        "SERVICEACCOUNT": lambda pod: pod.service_account,
        "INTERFACE": _pod_interface,
    }),
    VirtualMachine: (_NAME, {}),
    VirtualMachineInstance: ({**_NAME, "NODE": lambda instance: instance.node}, {}),
    K8sNetworkPolicy: ({**_NAME, "POD-SELECTOR": lambda policy: _label_selector(policy.spec.pod_selector)}, {
        "TYPES": _spec("policy_types"),
    }),
    StagedKubernetesNetworkPolicy: (_NAME, {
        "PODSELECTOR": lambda policy: _label_selector(policy.spec.pod_selector),
    }),
    ClusterNetworkPolicy: ({**_NAME, "TIER": _spec("tier"), "PRIORITY": _spec("priority")}, {}),
    Service: ({
        **_NAME,
        "TYPE": _spec("type"),
        "CLUSTER-IP": lambda service: service.spec.cluster_ip or "<none>",
        "EXTERNAL-IP": _external_ips,
        "PORT(S)": _service_ports,
    }, {"SELECTOR": _equal_labels}),
    EndpointSlice: ({
        **_NAME,
        "ADDRESSTYPE": lambda slice_: slice_.address_type,
        "PORTS": _slice_ports,
        "ENDPOINTS": _slice_addresses,
    }, {"SERVICE": lambda slice_: slice_.service}),
    Lease: ({**_NAME, "HOLDER": lambda lease: lease.spec.holder_identity or "<none>"}, {
        "RENEWED": lambda lease: lease.spec.renew_time or "<never>",
        "SECONDS": _spec("lease_duration_seconds"),
        "TRANSITIONS": _spec("lease_transitions"),
    }),
}  # fmt: skip
"""Narrow, and what `-o wide` adds; where the wide ones say NAME they are all of them."""

_ONLY_BY_NAME: dict[type[Resource], Columns] = {
    StagedGlobalNetworkPolicy: {"ACTION": _staged_action},
    StagedNetworkPolicy: {"ACTION": _staged_action},
    StagedKubernetesNetworkPolicy: {"ACTION": _staged_action, "TYPES": _spec("policy_types")},
}
"""Those that custom-columns may name besides: calicoctl's wide tables do not have them."""
