"""The CustomResourceDefinitions of all kinds that a Kubernetes cluster keeps for us, made from the model's types.

Names, group, version and scope are those of Calico's crd.projectcalico.org/v1, so that objects of either are the
other's, and an existing cluster's objects stay when these take the place of the definitions that are there.

    kind                      keeps fields that it does not name
    policies, network sets    no: a misspelt field of a policy is an error of `kubectl apply`, not a hole in a wall
    settings                  yes: Calico has more of them than we act on
    what programs write       yes: an upgrade or a way back loses nothing

Source: the list of kinds in Calico's manifests; structural schemas of apiextensions.k8s.io/v1.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tortie.model.bgp import BGPConfiguration, BGPPeer
from tortie.model.bgpfilter import BGPFilter
from tortie.model.clusterpolicy import ClusterNetworkPolicy
from tortie.model.controllers import KubeControllersConfiguration
from tortie.model.hostendpoint import HostEndpoint
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMConfig, IPAMHandle, IPPool, IPReservation
from tortie.model.meta import Resource
from tortie.model.misfit import fields
from tortie.model.node import ClusterInformation, FelixConfiguration
from tortie.model.nodestatus import CalicoNodeStatus
from tortie.model.policy import GlobalNetworkPolicy, GlobalNetworkSet, NetworkPolicy, NetworkSet, Tier
from tortie.model.staged import StagedGlobalNetworkPolicy, StagedKubernetesNetworkPolicy, StagedNetworkPolicy
from tortie.render.schema import ANYTHING, Schema, description, schema

GROUP = "crd.projectcalico.org"
VERSION = "v1"

KINDS: tuple[type[Resource], ...] = (
    BGPConfiguration, BGPFilter, BGPPeer, BlockAffinity, CalicoNodeStatus, ClusterInformation, FelixConfiguration,
    GlobalNetworkPolicy, GlobalNetworkSet, HostEndpoint, IPAMBlock, IPAMConfig, IPAMHandle, IPPool, IPReservation,
    KubeControllersConfiguration, NetworkPolicy, NetworkSet, StagedGlobalNetworkPolicy, StagedKubernetesNetworkPolicy,
    StagedNetworkPolicy, Tier, ClusterNetworkPolicy,
)  # fmt: skip
"""Kinds that a Kubernetes cluster has no objects of its own for."""

OPEN = frozenset((BGPConfiguration, BGPPeer, IPPool, ClusterNetworkPolicy))
"""Kinds whose spec keeps what we do not name, but for what is nested in it: Calico, or a newer API, has more fields."""
LENIENT = frozenset(
    (FelixConfiguration, KubeControllersConfiguration, ClusterInformation, CalicoNodeStatus, IPAMBlock, IPAMHandle,
     IPAMConfig, BlockAffinity)
)  # fmt: skip
"""Kinds of which everything is kept that was written, at any depth, and in whichever case words of a choice are."""

NULLABLE: dict[type[Resource], tuple[str, ...]] = {IPAMBlock: ("affinity",)}
"""Fields that Calico writes as null where they are empty."""

APPROVED = "https://github.com/kubernetes-sigs/network-policy-api/pull/300"
"""An API server demands to be told where a kind of a group of Kubernetes' own was agreed on."""

_SELECTOR = ("Selector", "string", ".spec.selector")
_ORDER = ("Order", "number", ".spec.order")
_TIER = ("Tier", "string", ".spec.tier")
_NODE = ("Node", "string", ".spec.node")
_CIDR = ("CIDR", "string", ".spec.cidr")
_POLICY = (_TIER, _ORDER, _SELECTOR)

COLUMNS: dict[type[Resource], tuple[tuple[str, str, str], ...]] = {
    BGPConfiguration: (
        ("LogSeverity", "string", ".spec.logSeverityScreen"),
        ("MeshEnabled", "boolean", ".spec.nodeToNodeMeshEnabled"),
        ("ASNumber", "string", ".spec.asNumber"),
    ),
    BGPPeer: (("PeerIP", "string", ".spec.peerIP"), _NODE, ("ASN", "string", ".spec.asNumber")),
    BlockAffinity: (_NODE, _CIDR, ("State", "string", ".spec.state")),
    CalicoNodeStatus: (_NODE,),
    ClusterInformation: (
        ("ClusterGUID", "string", ".spec.clusterGUID"),
        ("CalicoVersion", "string", ".spec.calicoVersion"),
        ("DatastoreReady", "boolean", ".spec.datastoreReady"),
    ),
    ClusterNetworkPolicy: (_TIER, ("Priority", "integer", ".spec.priority")),
    GlobalNetworkPolicy: _POLICY,
    HostEndpoint: (_NODE, ("Interface", "string", ".spec.interfaceName")),
    IPAMBlock: (_CIDR, ("Affinity", "string", ".spec.affinity")),
    IPAMConfig: (("StrictAffinity", "boolean", ".spec.strictAffinity"),),
    IPPool: (
        _CIDR,
        ("NAT", "boolean", ".spec.natOutgoing"),
        ("IPIPMode", "string", ".spec.ipipMode"),
        ("VXLANMode", "string", ".spec.vxlanMode"),
        ("Disabled", "boolean", ".spec.disabled"),
    ),
    NetworkPolicy: _POLICY,
    StagedGlobalNetworkPolicy: (_TIER, ("Action", "string", ".spec.stagedAction"), _ORDER, _SELECTOR),
    StagedKubernetesNetworkPolicy: (("Action", "string", ".spec.stagedAction"),),
    StagedNetworkPolicy: (_TIER, ("Action", "string", ".spec.stagedAction"), _ORDER, _SELECTOR),
    Tier: (_ORDER,),
}
"""What `kubectl get` shows beside the name: heading, type and where it is. In the manner of calicoctl's tables."""


def group_version(kind: type[Resource]) -> tuple[str, str]:
    """Where Kubernetes keeps a kind: Calico's own under another name than their documents bear."""
    group, _, version = kind.KIND.api_version.partition("/")
    return (GROUP, VERSION) if group == "projectcalico.org" else (group, version)


def crds() -> list[dict[str, Any]]:
    """All of them, in the order of their names."""
    return [crd(kind) for kind in sorted(KINDS, key=lambda kind: (group_version(kind), kind.KIND.plural))]


def crd(kind: type[Resource]) -> dict[str, Any]:
    """The CustomResourceDefinition of one kind."""
    group, version = group_version(kind)
    plural, name = kind.KIND.plural, kind.KIND.kind
    metadata: dict[str, Any] = {"name": f"{plural}.{group}"}
    if group != GROUP:
        metadata["annotations"] = {"api-approved.kubernetes.io": APPROVED}
    served: dict[str, Any] = {
        "name": version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": body(kind)},
    }
    if has_status(kind):
        served["subresources"] = {"status": {}}
    if kind in COLUMNS:
        served["additionalPrinterColumns"] = [
            {"name": heading, "type": type_, "jsonPath": path} for heading, type_, path in COLUMNS[kind]
        ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": {
            "group": group,
            "names": {"kind": name, "listKind": f"{name}List", "plural": plural, "singular": name.lower()},
            "scope": "Namespaced" if kind.KIND.namespaced else "Cluster",
            "preserveUnknownFields": False,
            "versions": [served],
        },
    }


def has_status(kind: type[Resource]) -> bool:
    """Whether the status of a kind is written apart from the rest."""
    return "status" in dict(fields(kind))


def body(kind: type[Resource]) -> Schema:
    """The schema of a whole object."""
    lenient = kind in LENIENT
    hints = {each.encode_name: each for each in msgspec.structs.fields(kind)}
    properties: dict[str, Schema] = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": schema(hints["spec"].type, lenient=lenient, open_=kind in OPEN or lenient),
    }
    for name in NULLABLE.get(kind, ()):
        properties["spec"]["properties"][name]["nullable"] = True
    if kind is BlockAffinity:  # "true" or "false": a text, in this layout of the datastore
        properties["spec"]["properties"]["deleted"] = {"type": "string"}
    if "status" in hints:
        found = schema(hints["status"].type, lenient=True)
        properties["status"] = found if found.get("type") == "object" else {"type": "object", ANYTHING: True}
    text = description(kind)
    required = ["spec"] if hints["spec"].required else []
    return {
        "type": "object",
        **({"description": text} if text else {}),
        "properties": properties,
        **({"required": required} if required else {}),
    }
