"""What a lab's datastore holds from the beginning. Pure."""

from __future__ import annotations

from tortie.calc.admission import bootstrap
from tortie.calc.defaults import defaulted
from tortie.lab.topology import Topology
from tortie.model.bgp import DEFAULT_AS, BGPConfiguration, BGPConfigurationSpec
from tortie.model.ipam import IPPool, IPPoolSpec
from tortie.model.meta import Metadata, Resource

POOL, POOL6 = "default-ipv4-ippool", "default-ipv6-ippool"


def initial_objects(lab: Topology, guid: str) -> tuple[Resource, ...]:
    """An empty cluster (`guid`: 32 hex digits), BGP between all nodes, and pools without encapsulation: the nodes share
    a link."""
    bgp = BGPConfigurationSpec(node_to_node_mesh_enabled=True, as_number=DEFAULT_AS)
    configuration = BGPConfiguration(metadata=Metadata(name="default"), spec=bgp)
    return (*bootstrap(guid), configuration, _pool(POOL, lab.pool), _pool(POOL6, lab.pool6))


def _pool(name: str, cidr: str) -> IPPool:
    spec = IPPoolSpec(cidr=cidr, ipip_mode="Never", vxlan_mode="Never", nat_outgoing=True)
    return defaulted(IPPool(metadata=Metadata(name=name), spec=spec), None)
