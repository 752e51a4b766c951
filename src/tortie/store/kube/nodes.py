"""Calico's Node on Kubernetes' Node: addresses and tunnels are annotations of it.

    projectcalico.org/IPv4Address: 192.0.2.7/24  ◄──► spec.bgp.ipv4Address
    metadata.labels, .../labels                   ──► labels; Kubernetes' own win
    status.addresses                              ──► spec.addresses
    being deleted, or tainted as about to be      ──► status.leaving

Nodes are made and deleted by Kubernetes. An annotation that cannot be read is as if it were not there, and told.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_interface
from typing import Any

import msgspec

from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError
from tortie.model.bgp import as_problem
from tortie.model.k8s import K8sNode
from tortie.model.meta import changed
from tortie.model.node import Node, NodeAddress, NodeBGPSpec, NodeInterface, NodeSpec, NodeWireguardSpec, OrchRef
from tortie.store.kube.decoding import BAD, Document

PREFIX = "projectcalico.org/"
BGP = {
    "IPv4Address": "ipv4_address",
    "IPv6Address": "ipv6_address",
    "ASNumber": "as_number",
    "RouteReflectorClusterID": "route_reflector_cluster_id",
    "IPv4IPIPTunnelAddr": "ipv4_ipip_tunnel_addr",
}
SPEC = {
    "IPv4VXLANTunnelAddr": "ipv4_vxlan_tunnel_addr",
    "IPv6VXLANTunnelAddr": "ipv6_vxlan_tunnel_addr",
    "VXLANTunnelMACAddr": "vxlan_tunnel_mac_addr",
    "VXLANTunnelMACAddrV6": "vxlan_tunnel_mac_addr_v6",
}
WIREGUARD = {"IPv4WireguardInterfaceAddr": "interface_ipv4_address", "IPv6WireguardInterfaceAddr":
             "interface_ipv6_address"}  # fmt: skip
STATUS = {"WireguardPublicKey": "wireguardPublicKey", "WireguardPublicKeyV6": "wireguardPublicKeyV6"}
LABELS, ANNOTATIONS, INTERFACES = "labels", "annotations", "Interfaces"
KUBE_LABELS = "projectcalico.org/kube-labels"
"""An annotation that only readers see: Kubernetes' own labels as JSON."""
NODE_IP = "CalicoNodeIP"
"""The type of an address that the node's agent has found; Kubernetes has InternalIP and ExternalIP."""


def node_of(kube: K8sNode, *, use_pod_cidr: bool = False) -> tuple[Node, tuple[str, ...]]:
    """The Node, and a line for each annotation that cannot be read. `use_pod_cidr`: host-local gives the addresses,
    so that the tunnel's is the first of the node's own network."""
    wrong: list[str] = []
    said = {
        name.removeprefix(PREFIX): text
        for name, text in kube.metadata.annotations.items()
        if name.startswith(PREFIX) and text
    }
    bgp: dict[str, Any] = {
        attribute: value for name, attribute in BGP.items() if (value := _value(name, said, wrong)) is not None
    }
    if use_pod_cidr and (tunnel := _tunnel(kube, wrong)):
        bgp["ipv4_ipip_tunnel_addr"] = tunnel
    wireguard = {attribute: said[name] for name, attribute in WIREGUARD.items() if name in said}
    given = NodeBGPSpec(**bgp)
    spec = NodeSpec(
        bgp=given if given != NodeBGPSpec() else None,
        orch_refs=(OrchRef(node_name=kube.name, orchestrator="k8s"),),
        wireguard=NodeWireguardSpec(**wireguard) if wireguard else None,
        addresses=_addresses(given, kube.status),
        interfaces=_json(INTERFACES, said, tuple[NodeInterface, ...], wrong) or (),
        **{attribute: said[name] for name, attribute in SPEC.items() if name in said},
    )
    status: Document = {name: said[key] for key, name in STATUS.items() if key in said}
    if kube.pod_cidrs:
        status["podCIDRs"] = list(kube.pod_cidrs)
    if kube.leaving:
        status["leaving"] = True
    labels = (_json(LABELS, said, dict[str, str], wrong) or {}) | kube.labels
    annotations = dict(_json(ANNOTATIONS, said, dict[str, str], wrong) or {})
    annotations[KUBE_LABELS] = msgspec.json.encode(kube.labels, order="deterministic").decode()
    metadata = changed(kube, labels=labels, annotations=annotations, owner_references=(), finalizers=()).metadata
    return Node(metadata=metadata, spec=spec, status=status or None), tuple(wrong)


def written(document: Document, node: Node) -> Document:
    """Kubernetes' document of a node with the annotations that make it this Node. Its labels are left alone."""
    metadata = document.get("metadata") or {}
    have = metadata.get("annotations") or {}
    values = _annotations(node, metadata.get("labels") or {})
    kept = {name: text for name, text in have.items() if name not in values}
    wanted = kept | {
        name: have[name] if name in have and _same(name, have[name], text) else text
        for name, text in values.items()
        if text
    }
    return document | {"metadata": metadata | {"annotations": wanted}}


def _same(name: str, have: str, text: str) -> bool:
    """Whether two spellings of JSON say the same."""
    if name.removeprefix(PREFIX) not in (LABELS, ANNOTATIONS, INTERFACES):
        return have == text
    try:
        return bool(msgspec.json.decode(have) == msgspec.json.decode(text))
    except BAD:
        return False


def _annotations(node: Node, kube_labels: Mapping[str, str]) -> dict[str, str]:
    """By name what the annotations should say; "" is none."""
    spec, bgp, wireguard = node.spec, node.spec.bgp or NodeBGPSpec(), node.spec.wireguard or NodeWireguardSpec()
    status = node.status if isinstance(node.status, dict) else {}
    own_labels = {name: value for name, value in node.labels.items() if kube_labels.get(name) != value}
    own = {name: text for name, text in node.metadata.annotations.items() if name != KUBE_LABELS}
    interfaces = [msgspec.to_builtins(one) for one in spec.interfaces]
    values: dict[str, Any] = {name: getattr(bgp, attribute) for name, attribute in BGP.items()}
    values |= {name: getattr(spec, attribute) for name, attribute in SPEC.items()}
    values |= {name: getattr(wireguard, attribute) for name, attribute in WIREGUARD.items()}
    values |= {key: status.get(name, "") for key, name in STATUS.items()}
    values |= {LABELS: _text(own_labels), ANNOTATIONS: _text(own), INTERFACES: _text(interfaces)}
    return {PREFIX + name: "" if value is None else str(value) for name, value in values.items()}


def _text(value: Any) -> str:
    return msgspec.json.encode(value, order="deterministic").decode() if value else ""


def _value(name: str, said: Mapping[str, str], wrong: list[str]) -> str | int | None:
    """What an annotation about BGP says."""
    text = said.get(name)
    if text is None:
        return None
    if name == "ASNumber":
        number = int(text) if text.isascii() and text.isdecimal() else text
        problem = next((problem for _, problem in as_problem("", number)), None)
        if problem is None:
            return number
        wrong.append(f"{PREFIX}{name}: {problem}")
        return None
    if name.endswith("Address"):
        try:
            ip_interface(text)
        except ValueError:
            wrong.append(f'{PREFIX}{name}: "{text}" is not an address')
            return None
    return text


def _json(name: str, said: Mapping[str, str], kind: Any, wrong: list[str]) -> Any:
    if name not in said:
        return None
    try:
        return msgspec.json.decode(said[name], type=kind)
    except BAD as error:
        wrong.append(f"{PREFIX}{name}: {error}")
        return None


def _addresses(bgp: NodeBGPSpec, status: Any) -> tuple[NodeAddress, ...]:
    found = [NodeAddress(address=text, type=NODE_IP) for text in (bgp.ipv4_address, bgp.ipv6_address) if text]
    listed = status.get("addresses") if isinstance(status, dict) else None
    of_kubernetes = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    wanted = [one for one in of_kubernetes if one.get("type") in ("InternalIP", "ExternalIP")]
    return (*found, *(NodeAddress(address=str(one.get("address", "")), type=one["type"]) for one in wanted))


def _tunnel(kube: K8sNode, wrong: list[str]) -> str:
    for cidr in kube.pod_cidrs:
        try:
            net = parse_net(cidr)
        except ConfigError as error:
            wrong.append(str(error))
            continue
        if net.version == 4:
            return str(net.network_address + 1)
    return ""
