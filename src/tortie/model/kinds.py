"""The table of all kinds: how a document's apiVersion and kind, or a word on the command line, find their type."""

from __future__ import annotations

from tortie.base.errors import ConfigError, suggest
from tortie.model.bgp import BGPConfiguration, BGPPeer
from tortie.model.bgpfilter import BGPFilter
from tortie.model.clusterpolicy import ClusterNetworkPolicy
from tortie.model.controllers import KubeControllersConfiguration
from tortie.model.hostendpoint import HostEndpoint
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMConfig, IPAMHandle, IPPool, IPReservation
from tortie.model.k8s import (
    K8sNetworkPolicy,
    K8sNode,
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
from tortie.model.workload import WorkloadEndpoint

KINDS: tuple[type[Resource], ...] = (
    Namespace, ServiceAccount, Secret, ClusterInformation, KubeControllersConfiguration, FelixConfiguration, K8sNode,
    Node, BGPConfiguration, BGPFilter, BGPPeer,
    IPPool, IPReservation, IPAMConfig, IPAMBlock, BlockAffinity, IPAMHandle, Tier, Profile, NetworkSet,
    GlobalNetworkSet, NetworkPolicy, GlobalNetworkPolicy, K8sNetworkPolicy, ClusterNetworkPolicy, StagedNetworkPolicy,
    StagedGlobalNetworkPolicy, StagedKubernetesNetworkPolicy, Service, EndpointSlice, VirtualMachine,
    VirtualMachineInstance, Pod,
    WorkloadEndpoint, HostEndpoint, CalicoNodeStatus, Lease,
)  # fmt: skip
"""In the order in which a set of documents is applied: what others refer to comes first."""

API_ALIASES = {"crd.projectcalico.org/v1": "projectcalico.org/v3"}
"""API versions whose documents have the same shape as another's."""

BY_KEY: dict[str, type[Resource]] = {kind.KIND.key: kind for kind in KINDS}
_BY_DOCUMENT = {(kind.KIND.api_version, kind.KIND.kind): kind for kind in KINDS}
_BY_DOCUMENT["projectcalico.org/v3", "IPAMConfiguration"] = IPAMConfig
_BY_WORD: dict[str, type[Resource]] = {}
for _kind in KINDS:
    _singular = _kind.KIND.kind.lower()
    _full = _kind.KIND.key.replace(_kind.KIND.plural, _singular, 1)
    for _word in (_kind.KIND.key, *_kind.KIND.aliases, _kind.KIND.plural, _singular, _full):
        _BY_WORD.setdefault(_word, _kind)
_BY_WORD.update({"node": Node, "nodes": Node, "networkpolicies": NetworkPolicy, "networkpolicy": NetworkPolicy})


def kind_of_document(api_version: str, kind: str) -> type[Resource]:
    """The type of a document. Raises ConfigError with the nearest known kind."""
    found = _BY_DOCUMENT.get((API_ALIASES.get(api_version, api_version), kind))
    if found is not None:
        return found
    versions = sorted(version for version, known in _BY_DOCUMENT if known == kind)
    if versions:
        raise ConfigError(f'{kind} of "{api_version}" is not known here: write {" or ".join(versions)}', "apiVersion")
    hint = suggest(kind, {known for _, known in _BY_DOCUMENT})
    raise ConfigError(f'unknown kind "{kind}" of "{api_version}"' + (f", {hint}" if hint else ""), "kind")


def kind_of_word(word: str) -> type[Resource]:
    """The type that a word on the command line means: `ippool`, `gnp`, `pods`, in any case. Raises ConfigError."""
    found = _BY_WORD.get(word.lower())
    if found is None:
        hint = suggest(word.lower(), _BY_WORD)
        raise ConfigError(f'unknown kind "{word}"' + (f", {hint}" if hint else ""))
    return found
