"""What a lab's datastore holds from the beginning. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tortie.base.addr import Net
from tortie.calc.admission import bootstrap
from tortie.calc.defaults import defaulted
from tortie.lab import services
from tortie.lab.flannel import pod_cidrs
from tortie.lab.topology import Host, Topology
from tortie.model.bgp import BGPConfiguration, BGPConfigurationSpec, as_number
from tortie.model.k8s import K8sNode, K8sNodeSpec
from tortie.model.meta import Metadata, Resource
from tortie.model.node import Node, NodeBGPSpec, NodeSpec, OrchRef


def initial_objects(lab: Topology, guid: str) -> Iterator[Resource]:
    """An empty cluster (`guid`: 32 hex digits), its nodes, and what the topology says of BGP, pools and other objects.

    The nodes are there before their agents, as in Kubernetes: so nobody hears of them one after the other.
    """
    yield from bootstrap(guid)
    blueprint = lab.blueprint
    bgp = BGPConfigurationSpec(
        node_to_node_mesh_enabled=blueprint.mesh,
        as_number=as_number(blueprint.as_number),
    )
    yield BGPConfiguration(metadata=Metadata(name="default"), spec=bgp)
    for pool in blueprint.ippools:
        yield defaulted(pool, None)
    for host in lab.nodes:
        yield _node(host)
        if blueprint.flannel is not None:
            yield _kubernetes_node(host, pod_cidrs(lab, host))
    if lab.has_services:
        yield from services.objects(lab)
    for resource in blueprint.objects:
        yield defaulted(resource, None)


def _kubernetes_node(host: Host, nets: Sequence[Net]) -> K8sNode:
    """As Kubernetes' node IPAM leaves it: with pod CIDRs."""
    cidrs = tuple(map(str, nets))
    metadata = Metadata(name=host.name, labels=dict(host.labels))
    return K8sNode(metadata=metadata, spec=K8sNodeSpec(pod_cidr=cidrs[0], pod_cidrs=cidrs))


def _node(host: Host) -> Node:
    ipv4, ipv6 = host.addresses
    bgp = NodeBGPSpec(
        as_number=host.as_number,
        ipv4_address=ipv4,
        ipv6_address=ipv6,
        route_reflector_cluster_id=host.cluster_id,
    )
    spec = NodeSpec(bgp=bgp, orch_refs=(OrchRef(node_name=host.name, orchestrator="k8s"),))
    return Node(metadata=Metadata(name=host.name, labels=dict(host.labels)), spec=spec)
