"""Objects that speak of nodes by Calico's names, turned to Kubernetes' names. Pure.

Where a node is called otherwise in Kubernetes, its Node says so in `orchRefs`. A Kubernetes datastore knows the names
of Kubernetes only, so that whatever moves there has to be told apart by those. Source: Calico's exporter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from msgspec.structs import replace

from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError
from tortie.ipam.names import affinity_labels, affinity_name, handle_name
from tortie.ipam.owner import Owner
from tortie.ipam.ready import ready_handle
from tortie.ipam.tunnel import TUNNELS
from tortie.model.bgp import BGPConfiguration, BGPPeer
from tortie.model.hostendpoint import HostEndpoint
from tortie.model.ipam import AllocationAttribute, BlockAffinity, IPAMBlock, IPAMHandle
from tortie.model.meta import Resource, changed
from tortie.model.node import FelixConfiguration, Node
from tortie.model.nodestatus import CalicoNodeStatus
from tortie.model.workload import WorkloadEndpoint, endpoint_name

R = TypeVar("R", bound=Resource)

KUBERNETES = "k8s"
OF_A_NODE = "node."
"""How the names of settings of one node begin."""


def kubernetes_names(nodes: Iterable[Node]) -> dict[str, str]:
    """Kubernetes' name by ours, of nodes that have another there; one that says none keeps its own.

    Raises ConfigError when two would become one.
    """
    names: dict[str, str] = {}
    for node in nodes:
        said = (ref.node_name for ref in node.spec.orch_refs if ref.orchestrator == KUBERNETES and ref.node_name)
        names[node.name] = next(said, node.name)
    taken: dict[str, str] = {}
    for ours, theirs in sorted(names.items(), key=lambda pair: pair[0] != pair[1]):
        if theirs in taken:
            what = f'is "{theirs}", as that of {taken[theirs]}: the nodes of Kubernetes are one each'
            raise ConfigError(what, f"Node {ours}", "spec.orchRefs")
        taken[theirs] = ours
    return {ours: theirs for ours, theirs in names.items() if ours != theirs}


def renamed(one: R, names: Mapping[str, str]) -> R:
    """The same object by the new names."""
    new = _renamed(one, names) if names else one
    return new  # type: ignore[return-value]


def _renamed(one: Resource, names: Mapping[str, str]) -> Resource:
    match one:
        case Node():
            return changed(one, name=names.get(one.name, one.name))
        case FelixConfiguration() | BGPConfiguration() if one.name.startswith(OF_A_NODE):
            node = one.name.removeprefix(OF_A_NODE)
            return changed(one, name=f"{OF_A_NODE}{names.get(node, node)}")
        case BGPPeer(spec=spec) | HostEndpoint(spec=spec) | CalicoNodeStatus(spec=spec) if spec.node in names:
            return replace(one, spec=replace(spec, node=names[spec.node]))
        case WorkloadEndpoint(spec=spec) if spec.node in names:
            return _endpoint(one, names[spec.node])
        case IPAMBlock():
            return _block(one, names)
        case BlockAffinity() if Owner.of(one).type == "host" and one.spec.node in names:
            owner, net = Owner(names[one.spec.node]), parse_net(one.spec.cidr)
            labels = {**one.labels, **affinity_labels(owner, net.version)}
            claim = replace(one.spec, node=owner.name)
            return changed(replace(one, spec=claim), name=affinity_name(owner.name, net), labels=labels)
        case IPAMHandle(spec=spec):
            handle = _handle(spec.handle_id, names)
            return changed(replace(one, spec=replace(spec, handle_id=handle)), name=handle_name(handle))
    return one


def _endpoint(one: WorkloadEndpoint, node: str) -> WorkloadEndpoint:
    """Its name begins with the node's."""
    before = endpoint_name(one.spec.node, "", "", "").removesuffix("---")
    after = endpoint_name(node, "", "", "").removesuffix("---")
    name = after + one.name.removeprefix(before) if one.name.startswith(f"{before}-") else one.name
    return changed(replace(one, spec=replace(one.spec, node=node)), name=name)


def _block(one: IPAMBlock, names: Mapping[str, str]) -> IPAMBlock:
    spec = one.spec
    affinity = spec.affinity
    if affinity:
        owner = Owner.parse(affinity)
        affinity = str(Owner(names[owner.name])) if owner.type == "host" and owner.name in names else affinity
    attributes = tuple(_attribute(attribute, names) for attribute in spec.attributes)
    return replace(one, spec=replace(spec, affinity=affinity, attributes=attributes))


def _attribute(one: AllocationAttribute, names: Mapping[str, str]) -> AllocationAttribute:
    def of(attrs: dict[str, str]) -> dict[str, str]:
        return {**attrs, "node": names[attrs["node"]]} if attrs.get("node") in names else attrs

    return replace(
        one,
        handle_id=_handle(one.handle_id, names) if one.handle_id else one.handle_id,
        secondary=of(one.secondary),
        alternate_owner_attrs=of(one.alternate_owner_attrs),
    )


def _handle(handle: str, names: Mapping[str, str]) -> str:
    """A handle of a node's own, for its tunnels or held ready, by the node's new name."""
    for begins in (*(tunnel.handle("") for tunnel in TUNNELS), ready_handle("")):
        if handle.startswith(begins) and handle.removeprefix(begins) in names:
            return begins + names[handle.removeprefix(begins)]
    return handle
