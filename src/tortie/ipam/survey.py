"""Everything that says whether an address is in use, read once: blocks first, then who may use their addresses.

The order matters while others work: an address is assigned before its endpoint is written, and a pod is there before
either. So an allocation that was read has its pod in the later listing, unless that pod is gone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError, NotFound, NotSupported
from tortie.ipam.allocation import Allocation, allocations
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMConfig, IPAMConfigSpec, IPAMHandle, IPPool, IPReservation
from tortie.model.k8s import K8sNode, Pod, VirtualMachine, VirtualMachineInstance
from tortie.model.node import ClusterInformation, Node
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint

POD_IPS, POD_IP = "cni.projectcalico.org/podIPs", "cni.projectcalico.org/podIP"
"""Annotations in which Calico's CNI plugin writes a pod's addresses before its status has them."""


@dataclass(frozen=True)
class Survey:
    """A datastore as IPAM's housekeeping sees it. What was marked deleted is left out."""

    now: datetime
    config: IPAMConfigSpec = field(default_factory=IPAMConfigSpec)
    information: ClusterInformation | None = None
    blocks: tuple[IPAMBlock, ...] = ()
    affinities: tuple[BlockAffinity, ...] = ()
    handles: tuple[IPAMHandle, ...] = ()
    pools: tuple[IPPool, ...] = ()
    reservations: tuple[IPReservation, ...] = ()
    endpoints: tuple[WorkloadEndpoint, ...] = ()
    pods: tuple[Pod, ...] = ()
    nodes: tuple[Node, ...] = ()
    k8s_nodes: tuple[K8sNode, ...] = ()
    machines: tuple[VirtualMachine | VirtualMachineInstance, ...] | None = ()
    """Those of KubeVirt's that are there; None where nobody can tell."""

    @property
    def locked(self) -> bool:
        """Whether an operator has asked everybody to leave the datastore alone."""
        return self.information is not None and self.information.spec.datastore_ready is False

    @cached_property
    def allocations(self) -> tuple[Allocation, ...]:
        return tuple(allocations(self.blocks))

    @cached_property
    def by_handle(self) -> Mapping[str, Sequence[Allocation]]:
        """By `Allocation.handle_key`; those without handle are left out."""
        found: dict[str, list[Allocation]] = defaultdict(list)
        for each in self.allocations:
            if each.handle and not each.cooling:
                found[each.handle_key].append(each)
        return found

    @cached_property
    def node_names(self) -> frozenset[str]:
        """A node is gone when nothing says any more that there is one: neither Calico's Node nor Kubernetes'."""
        return frozenset(node.name for node in (*self.nodes, *self.k8s_nodes))

    @cached_property
    def pods_by_name(self) -> Mapping[tuple[str, str], Pod]:
        return {(pod.namespace, pod.name): pod for pod in self.pods}

    @cached_property
    def machine_names(self) -> frozenset[tuple[str, str]]:
        """The virtual machines that keep their addresses: an instance that is of a machine is not one by itself."""
        return frozenset(
            (each.namespace, each.name)
            for each in self.machines or ()
            if isinstance(each, VirtualMachine) or each.machine is None
        )

    @cached_property
    def users(self) -> Mapping[IP, Sequence[WorkloadEndpoint]]:
        """The endpoints that have an address."""
        found: dict[IP, list[WorkloadEndpoint]] = defaultdict(list)
        for endpoint in self.endpoints:
            for ip in endpoint_ips(endpoint):
                found[ip].append(endpoint)
        return found

    @cached_property
    def tunnels(self) -> Mapping[IP, str]:
        """The nodes that have an address for a tunnel."""
        return {ip: node.name for node in self.nodes for ip in _tunnel_ips(node)}


def endpoint_ips(endpoint: WorkloadEndpoint) -> tuple[IP, ...]:
    """Those of an endpoint's addresses that can be read."""
    return tuple(_readable(net.partition("/")[0] for net in endpoint.spec.ip_networks))


def pod_ips(pod: Pod) -> tuple[IP, ...]:
    """The addresses that a pod reports. Raises ConfigError if one is none."""
    annotations = pod.metadata.annotations
    noted = annotations.get(POD_IPS) or annotations.get(POD_IP)
    if noted:
        return tuple(parse_ip(text.strip().partition("/")[0]) for text in noted.split(","))
    told = dict.fromkeys((*(each.ip for each in pod.status.pod_ips), pod.status.pod_ip))
    return tuple(parse_ip(text) for text in told if text)


def _readable(texts: Iterator[str]) -> Iterator[IP]:
    for text in texts:
        try:
            yield parse_ip(text)
        except ConfigError:
            continue


def _tunnel_ips(node: Node) -> Iterator[IP]:
    spec = node.spec
    texts = [spec.ipv4_vxlan_tunnel_addr, spec.ipv6_vxlan_tunnel_addr]
    if spec.bgp is not None:
        texts.append(spec.bgp.ipv4_ipip_tunnel_addr)
    if spec.wireguard is not None:
        texts += [spec.wireguard.interface_ipv4_address, spec.wireguard.interface_ipv6_address]
    return _readable(text for text in texts if text)


async def survey(store: Store, now: datetime) -> Survey:
    """Reads it all. Raises Unavailable."""
    blocks = (await store.list(IPAMBlock)).items
    affinities = (await store.list(BlockAffinity)).items
    handles = (await store.list(IPAMHandle)).items
    return Survey(
        now=now,
        config=await ipam_config(store),
        information=await _information(store),
        blocks=tuple(block for block in blocks if not block.spec.deleted),
        affinities=tuple(each for each in affinities if not each.spec.deleted),
        handles=tuple(handle for handle in handles if not handle.spec.deleted),
        pools=(await store.list(IPPool)).items,
        reservations=(await store.list(IPReservation)).items,
        endpoints=(await store.list(WorkloadEndpoint)).items,
        pods=(await store.list(Pod)).items,
        nodes=(await store.list(Node)).items,
        k8s_nodes=(await store.list(K8sNode)).items,
        machines=await _machines(store),
    )


async def _machines(store: Store) -> tuple[VirtualMachine | VirtualMachineInstance, ...] | None:
    """A cluster without KubeVirt does not know its kinds."""
    try:
        return (*(await store.list(VirtualMachine)).items, *(await store.list(VirtualMachineInstance)).items)
    except (NotFound, NotSupported):
        return None


async def ipam_config(store: Store) -> IPAMConfigSpec:
    """The cluster's IPAM configuration, or the defaults."""
    try:
        return (await store.get(IPAMConfig, "default")).spec
    except NotFound:
        return IPAMConfigSpec()


async def _information(store: Store) -> ClusterInformation | None:
    try:
        return await store.get(ClusterInformation, "default")
    except NotFound:
        return None
