"""What each program may do in a cluster: a table of kinds and verbs with the reason of each, and RBAC made of it.

    program          reads                                     writes
    tortie-node      what its picture is made of (INPUTS)      IPAM, annotations of its Node and pods, first objects
    controllers      who has which address, and why            IPAM, host endpoints, Services' status, a Lease
    the CNI plugin   nothing: it speaks to the agent over a Unix socket, and has no account

RBAC cannot say "its own Node only": what it grants for one Node it grants for all. NodeRestriction is the kubelet's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tortie.calc.cluster import INPUTS
from tortie.calc.proxy.election import NAMESPACE as LAYER2
from tortie.model.bgp import BGPConfiguration, BGPPeer
from tortie.model.bgpfilter import BGPFilter
from tortie.model.controllers import KubeControllersConfiguration
from tortie.model.hostendpoint import HostEndpoint
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMConfig, IPAMHandle, IPPool, IPReservation
from tortie.model.k8s import K8sNode, Namespace, Pod, ServiceAccount, VirtualMachine, VirtualMachineInstance
from tortie.model.meta import Resource
from tortie.model.node import ClusterInformation, FelixConfiguration, Node
from tortie.model.nodestatus import CalicoNodeStatus
from tortie.model.policy import Profile, Tier
from tortie.model.service import Service
from tortie.model.workload import WorkloadEndpoint
from tortie.render.crds import KINDS as CRD_KINDS
from tortie.render.crds import group_version, has_status
from tortie.render.manifest.options import NAMESPACE, Options
from tortie.render.manifest.text import WHY

READ = ("get", "list", "watch")
EVERYTHING = ("get", "list", "watch", "create", "update", "patch", "delete")
CHANGE = ("update", "patch")

NODE, CONTROLLERS, FANOUT = "tortie-node", "tortie-controllers", "tortie-fanout"
"""Accounts, roles and workloads have the program's name."""

STANDS_FOR: dict[type[Resource], tuple[type[Resource], ...]] = {
    Node: (K8sNode,),
    WorkloadEndpoint: (Pod,),
    Profile: (Namespace, ServiceAccount),
}
"""Kinds that a Kubernetes cluster does not keep, and what they are made of there."""

IPAM = (IPAMBlock, BlockAffinity, IPAMHandle)


@dataclass(frozen=True, slots=True)
class Grant:
    """A rule. `resources` are plural names, with a subresource after a slash."""

    why: str
    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    names: tuple[str, ...] = ()

    def rule(self) -> dict[str, Any]:
        found = {
            WHY: self.why,
            "apiGroups": [self.group],
            "resources": list(self.resources),
            "verbs": list(self.verbs),
        }
        return found | ({"resourceNames": list(self.names)} if self.names else {})


def grants(why: str, kinds: Iterable[type[Resource]], verbs: tuple[str, ...], subresource: str = "") -> list[Grant]:
    """One for each API group that the kinds are in."""
    by_group: dict[str, set[str]] = {}
    for kind in kinds:
        for stored in STANDS_FOR.get(kind, (kind,)):
            by_group.setdefault(api_group(stored), set()).add(resource(stored) + subresource)
    return [Grant(why, group, tuple(sorted(found)), verbs) for group, found in sorted(by_group.items())]


def api_group(kind: type[Resource]) -> str:
    if kind in CRD_KINDS:
        return group_version(kind)[0]
    return kind.KIND.api_version.rpartition("/")[0]


def resource(kind: type[Resource]) -> str:
    return "nodes" if kind is K8sNode else kind.KIND.plural


def node_grants(options: Options) -> list[Grant]:
    """Of the agent on each node, and of the init container that sets up the cluster's first objects."""
    found = grants(
        "The picture of the cluster that routes, policy and BGP sessions are computed from.",
        (*INPUTS, K8sNode, Pod, ClusterInformation, IPReservation, IPAMConfig),
        READ,
    )
    found += [] if options.policy_only else [_kubeadm()]
    if options.datastore == "etcd":
        return [*_native(found), _condition()]
    return [
        *found,
        *grants("Addresses: blocks are claimed, addresses taken and given back.", IPAM, EVERYTHING),
        *grants("What operators ask a node to write down of itself.", (CalicoNodeStatus,), READ),
        *grants(
            "The answer to that, and why a BGP session or filter does not work as written.",
            (CalicoNodeStatus, *(kind for kind in (BGPPeer, BGPFilter) if has_status(kind))),
            CHANGE,
            "/status",
        ),
        *grants(
            "A cluster's first objects: made by whichever node starts first, where they are missing.",
            (ClusterInformation, Tier, IPPool, FelixConfiguration, BGPConfiguration, IPAMConfig),
            ("create",),
        ),
        *grants(
            "A newer version is noted, CLUSTER_TYPE added, missing defaults filled in.",
            (ClusterInformation, FelixConfiguration),
            CHANGE,
        ),
        *grants(
            "An address that stays with a virtual machine of KubeVirt, also while it moves to another node.",
            (VirtualMachine, VirtualMachineInstance),
            READ,
        ),
        _annotations(),
        _condition(),
    ]


def _kubeadm() -> Grant:
    why = "The network that kubeadm was told for pods is the first pool's, where none is given."
    return Grant(why, "", ("configmaps",), ("get",), ("kubeadm-config",))


def _annotations() -> Grant:
    return Grant("A pod's address and container are annotations of the pod.", "", ("pods/status",), ("patch",))


def _condition() -> Grant:
    why = "The node's own addresses are annotations of its Node; that its network is there is a condition."
    return Grant(why, "", ("nodes/status",), ("patch",))


def _native(found: list[Grant]) -> list[Grant]:
    """Those of Kubernetes' own kinds: Calico's are in etcd."""
    calicos = {api_group(kind) for kind in CRD_KINDS}
    return [each for each in found if each.group not in calicos]


def controller_grants(options: Options) -> list[Grant]:
    """Of the cluster's housekeeping."""
    found = grants(
        "Which addresses, affinities and settings belong to nodes, pods and Services that are there no more.",
        (K8sNode, Pod, Service, Namespace, ServiceAccount, IPPool, IPReservation, IPAMConfig, BGPPeer, BGPFilter,
         BGPConfiguration, FelixConfiguration, HostEndpoint, ClusterInformation, KubeControllersConfiguration,
         VirtualMachine, VirtualMachineInstance),
        READ,
    )  # fmt: skip
    balanced = Grant("The address that a Service of type LoadBalancer has got.", "", ("services/status",), CHANGE)
    if options.datastore == "etcd":
        policies = "Copied to etcd for Calico's own programs that read it."
        copied = Grant(policies, "networking.k8s.io", ("networkpolicies",), READ)
        return [*_native(found), copied, balanced]
    return [
        *found,
        *grants("Leaked addresses are given back, those of gone nodes at once.", IPAM, EVERYTHING),
        _annotations(),
        *grants("Host endpoints of nodes, where they are asked for.", (HostEndpoint,), ("create", "update", "patch")),
        *grants(
            "What is of a gone node only goes with it.",
            (HostEndpoint, BGPPeer, BGPConfiguration, FelixConfiguration),
            ("delete",),
        ),
        *grants("What gone nodes said of a BGP session is cleared.", (BGPPeer, BGPFilter), CHANGE, "/status"),
        *grants("The configuration is made where there is none.", (KubeControllersConfiguration,), ("create", *CHANGE)),
        *grants("What configuration is in force is written down.", (KubeControllersConfiguration,), CHANGE, "/status"),
        balanced,
    ]


def fanout_grants(options: Options) -> list[Grant]:
    """Of servers that agents read by way of. Secrets are not among what they hand on."""
    found = grants(
        "What agents compute from; it is handed on to whoever connects.",
        (*INPUTS, K8sNode, ClusterInformation, IPReservation, CalicoNodeStatus, VirtualMachineInstance),
        READ,
    )
    return _native(found) if options.datastore == "etcd" else found


def leases() -> Grant:
    """Of the controllers, in their own namespace."""
    why = "One of several controllers works at a time."
    return Grant(why, "coordination.k8s.io", ("leases",), ("get", "list", "watch", "create", "update", "patch"))


def signs_of_life() -> Grant:
    """Of the agents, where one of them answers for the address of a load balancer by ARP."""
    why = "Which nodes are alive, for one of them to answer for an address of a load balancer (layer 2)."
    verbs = ("get", "list", "watch", "create", "update", "patch", "delete")
    return Grant(why, "coordination.k8s.io", ("leases",), verbs)


def secrets() -> Grant:
    return Grant("Passwords of BGP sessions.", "", ("secrets",), READ)


def documents(options: Options) -> list[dict[str, Any]]:
    """Accounts, roles and who has them."""
    accounts = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE}}
        for name in (NODE, CONTROLLERS, *((FANOUT,) if options.fanout else ()))
    ]
    found = [
        *accounts,
        *bound("ClusterRole", NODE, node_grants(options)),
        *bound("ClusterRole", CONTROLLERS, controller_grants(options)),
        *bound("Role", CONTROLLERS, [leases()]),
        *(bound("ClusterRole", FANOUT, fanout_grants(options)) if options.fanout else ()),
    ]
    alive = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": LAYER2}}
    found += [alive, *bound("Role", NODE, [signs_of_life()], within=LAYER2)]
    return [*found, *(bound("Role", NODE, [secrets()]) if options.bgp_passwords else ())]


def bound(
    kind: str, name: str, rules: list[Grant], namespace: str = NAMESPACE, within: str = ""
) -> list[dict[str, Any]]:
    """A role, and that the account of its name in the namespace has it. A Role is about that namespace, or another."""
    api, where = "rbac.authorization.k8s.io/v1", {} if kind == "ClusterRole" else {"namespace": within or namespace}
    metadata = {"name": name, **where}
    role = {"apiVersion": api, "kind": kind, "metadata": metadata, "rules": [each.rule() for each in rules]}
    binding = {
        "apiVersion": api,
        "kind": f"{kind}Binding",
        "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    }
    return [role, binding]
