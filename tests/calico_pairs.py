"""Keys and values as Calico writes them to etcd, and the objects that they are. Source: its key layout for etcd v3."""

from __future__ import annotations

from tortie.ipam.names import affinity_labels
from tortie.ipam.owner import Owner
from tortie.model.hostendpoint import HostEndpoint, HostEndpointSpec
from tortie.model.ipam import (
    AllocationAttribute,
    BlockAffinity,
    BlockAffinitySpec,
    IPAMBlock,
    IPAMBlockSpec,
    IPAMConfig,
    IPAMConfigSpec,
    IPAMHandle,
    IPAMHandleSpec,
    IPPool,
    IPPoolSpec,
)
from tortie.model.meta import Metadata, Resource
from tortie.model.node import Node, NodeBGPSpec, NodeSpec
from tortie.model.policy import (
    GlobalNetworkPolicy,
    GlobalNetworkPolicySpec,
    NetworkPolicy,
    NetworkPolicySpec,
    NetworkSet,
    NetworkSetSpec,
    Rule,
)
from tortie.model.workload import WorkloadEndpoint, WorkloadEndpointSpec

RESOURCES = "/calico/resources/v3/projectcalico.org/"
UID = "11a5ec0f-8a0c-4a5e-9a7c-0d6a0f2a9d11"
BORN = "2024-05-01T10:00:00Z"
WHO = {"pod": "web-1", "namespace": "red", "node": "node1", "timestamp": "2024-05-01 10:00:00.1 +0000 UTC"}


def metadata(name: str, namespace: str = "", **more) -> Metadata:
    return Metadata(name=name, namespace=namespace, uid=UID, creation_timestamp=BORN, **more)


def text(kind: str, name: str, spec: str, more: str = "") -> str:
    """The JSON of a resource as Go's encoder orders it."""
    head = f'{{"kind":"{kind}","apiVersion":"projectcalico.org/v3","metadata":{{"name":"{name}",'
    return f'{head}{more}"uid":"{UID}","creationTimestamp":"{BORN}"}},"spec":{spec}}}'


def named(name: str) -> str:
    """The annotation in which a policy's name is noted."""
    return '"annotations":{"projectcalico.org/metadata":"{\\"name\\":\\"' + name + '\\"}"},'


def affinity(name: str, cidr: str, node: str, state: str, type_: str, deleted: bool = False) -> BlockAffinity:
    labels = affinity_labels(Owner(node, "virtual" if type_ == "virtual" else "host"), 6 if ":" in cidr else 4)
    spec = BlockAffinitySpec(cidr=cidr, node=node, state=state, type=type_, deleted=deleted)  # type: ignore[arg-type]
    return BlockAffinity(metadata=Metadata(name=name, labels=labels), spec=spec)


RULES = (Rule(action="Allow"),)

PAIRS: dict[str, tuple[str, str, Resource]] = {
    "pool": (
        f"{RESOURCES}ippools/default-ipv4-ippool",
        text(
            "IPPool",
            "default-ipv4-ippool",
            '{"cidr":"10.244.0.0/16","vxlanMode":"Never","ipipMode":"Always","natOutgoing":true,"blockSize":26,'
            '"nodeSelector":"all()","allowedUses":["Workload","Tunnel"],"assignmentMode":"Automatic"}',
        ),
        IPPool(
            metadata=metadata("default-ipv4-ippool"),
            spec=IPPoolSpec(
                cidr="10.244.0.0/16", vxlan_mode="Never", ipip_mode="Always", nat_outgoing=True, block_size=26,
                node_selector="all()", allowed_uses=("Workload", "Tunnel"), assignment_mode="Automatic",
            ),
        ),
    ),
    "node": (
        f"{RESOURCES}nodes/n1",
        text("Node", "n1", '{"bgp":{"ipv4Address":"192.0.2.11/24","ipv4IPIPTunnelAddr":"10.244.1.1"}}'),
        Node(
            metadata=metadata("n1"),
            spec=NodeSpec(bgp=NodeBGPSpec(ipv4_address="192.0.2.11/24", ipv4_ipip_tunnel_addr="10.244.1.1")),
        ),
    ),
    "endpoint": (
        f"{RESOURCES}workloadendpoints/red/n1-k8s-web--1-eth0",
        text(
            "WorkloadEndpoint",
            "n1-k8s-web--1-eth0",
            '{"orchestrator":"k8s","node":"n1","containerID":"3f25","pod":"web-1","endpoint":"eth0",'
            '"ipNetworks":["10.244.1.5/32"],"profiles":["kns.red"],"interfaceName":"cali0123456789a",'
            '"mac":"ee:ee:ee:ee:ee:ee"}',
            '"namespace":"red","labels":{"app":"web"},',
        ),
        WorkloadEndpoint(
            metadata=metadata("n1-k8s-web--1-eth0", "red", labels={"app": "web"}),
            spec=WorkloadEndpointSpec(
                orchestrator="k8s", node="n1", container_id="3f25", pod="web-1", endpoint="eth0",
                ip_networks=("10.244.1.5/32",), profiles=("kns.red",), interface_name="cali0123456789a",
                mac="ee:ee:ee:ee:ee:ee",
            ),
        ),
    ),
    "policy": (
        f"{RESOURCES}networkpolicies/red/allow-all",
        text(
            "NetworkPolicy",
            "allow-all",
            '{"tier":"default","order":10,"ingress":[{"action":"Allow","source":{},"destination":{}}],'
            '"selector":"all()","types":["Ingress"]}',
            '"namespace":"red",' + named("allow-all"),
        ),
        NetworkPolicy(
            metadata=metadata("allow-all", "red"),
            spec=NetworkPolicySpec(tier="default", order=10, ingress=RULES, selector="all()", types=("Ingress",)),
        ),
    ),
    "global policy": (
        f"{RESOURCES}globalnetworkpolicies/default.deny",
        text(
            "GlobalNetworkPolicy",
            "default.deny",
            '{"tier":"default","selector":"all()","types":["Ingress"]}',
            named("default.deny"),
        ),
        GlobalNetworkPolicy(
            metadata=metadata("default.deny"),
            spec=GlobalNetworkPolicySpec(tier="default", selector="all()", types=("Ingress",)),
        ),
    ),
    "network set": (
        f"{RESOURCES}networksets/red/friends",
        text("NetworkSet", "friends", '{"nets":["192.0.2.0/24"]}', '"namespace":"red",'),
        NetworkSet(metadata=metadata("friends", "red"), spec=NetworkSetSpec(nets=("192.0.2.0/24",))),
    ),
    "host endpoint": (
        f"{RESOURCES}hostendpoints/n1-eth0",
        text("HostEndpoint", "n1-eth0", '{"node":"n1","interfaceName":"eth0"}'),
        HostEndpoint(metadata=metadata("n1-eth0"), spec=HostEndpointSpec(node="n1", interface_name="eth0")),
    ),
    "block": (
        "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-30",
        '{"cidr":"10.0.0.0/30","affinity":"host:node1","affinity_claim_time":"2024-05-01T10:00:00Z",'
        '"allocations":[0,null,null,1],"unallocated":[1,2],"attributes":[{"handle_id":"k8s-pod-network.3f25","secondary":'
        '{"namespace":"red","node":"node1","pod":"web-1","timestamp":"2024-05-01 10:00:00.1 +0000 UTC"}},'
        '{"handle_id":null,"secondary":{},"releasedAt":"2024-05-01T11:00:00Z"}],"sequenceNumber":1714557600000000001,'
        '"sequenceNumberForAllocation":{"0":1714557600000000000,"3":7},"deleted":false}',
        IPAMBlock(
            metadata=Metadata(name="10-0-0-0-30"),
            spec=IPAMBlockSpec(
                cidr="10.0.0.0/30", affinity="host:node1", affinity_claim_time=BORN, allocations=(0, None, None, 1),
                unallocated=(1, 2),
                attributes=(
                    AllocationAttribute(handle_id="k8s-pod-network.3f25", secondary=WHO),
                    AllocationAttribute(released_at="2024-05-01T11:00:00Z"),
                ),
                sequence_number=1714557600000000001,
                sequence_number_for_allocation={"0": 1714557600000000000, "3": 7},
            ),
        ),
    ),
    "block of nobody": (
        "/calico/ipam/v2/assignment/ipv6/block/fd80::-127",
        '{"cidr":"fd80::/127","affinity":null,"allocations":[null,null],"unallocated":[0,1],"attributes":[],'
        '"sequenceNumber":5,"sequenceNumberForAllocation":{},"deleted":false}',
        IPAMBlock(
            metadata=Metadata(name="fd80---127"),
            spec=IPAMBlockSpec(cidr="fd80::/127", allocations=(None, None), unallocated=(0, 1), sequence_number=5),
        ),
    ),
    "affinity": (
        "/calico/ipam/v2/host/node-1/ipv4/block/10.0.0.0-26",
        '{"state":"confirmed","deleted":false}',
        affinity("node-1-10-0-0-0-26", "10.0.0.0/26", "node-1", "confirmed", "host"),
    ),
    "affinity, IPv6": (
        "/calico/ipam/v2/host/node-1/ipv6/block/fd80::-122",
        '{"state":"pendingDeletion","deleted":true}',
        affinity("node-1-fd80---122", "fd80::/122", "node-1", "pendingDeletion", "host", deleted=True),
    ),
    "affinity of what is no node": (
        "/calico/ipam/v2/virtual/load-balancer/ipv4/block/10.9.0.0-26",
        '{"state":"pending","deleted":false}',
        affinity("load-balancer-10-9-0-0-26", "10.9.0.0/26", "load-balancer", "pending", "virtual"),
    ),
    "handle": (
        "/calico/ipam/v2/handle/k8s-pod-network.3f25",
        '{"block":{"10.0.0.0/26":1,"fd80::/122":2},"deleted":false}',
        IPAMHandle(
            metadata=Metadata(name="k8s-pod-network.3f25"),
            spec=IPAMHandleSpec(handle_id="k8s-pod-network.3f25", block={"10.0.0.0/26": 1, "fd80::/122": 2}),
        ),
    ),
    "handle with what keys escape": (
        "/calico/ipam/v2/handle/Net%2fwork.50%25",
        '{"block":{"10.0.0.0/26":1},"deleted":false}',
        IPAMHandle(
            metadata=Metadata(name="net/work.50%"),
            spec=IPAMHandleSpec(handle_id="Net/work.50%", block={"10.0.0.0/26": 1}),
        ),
    ),
    "config": (
        "/calico/ipam/v2/config",
        '{"strict_affinity":true,"auto_allocate_blocks":true,"maxBlocksPerHost":20,'
        '"kubeVirtVMAddressPersistence":"Enabled","ipCooldownSeconds":30}',
        IPAMConfig(
            metadata=Metadata(name="default"),
            spec=IPAMConfigSpec(
                strict_affinity=True, auto_allocate_blocks=True, max_blocks_per_host=20,
                kube_virt_vm_address_persistence="Enabled", ip_cooldown_seconds=30,
            ),
        ),
    ),
}  # fmt: skip
"""By a word for the test: key, value, and the object, without a revision and what is made up for records of IPAM."""
