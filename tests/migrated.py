"""A cluster with something of everything that is moved from one datastore to another."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from tortie.base.errors import Exists
from tortie.calc.admission import bootstrap
from tortie.ipam.assign import Ipam
from tortie.ipam.ready import ready_handle
from tortie.ipam.tunnel import VXLAN
from tortie.model.document import parse
from tortie.model.meta import Resource
from tortie.model.store import Store
from tortie.policy.selector import parse as selector

GUID = "0123456789abcdef0123456789abcdef"
NODES = ("alpha", "beta")
"""Kubernetes calls the second one `beta.example.org`."""

CALICO = """
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pods}
spec: {cidr: 10.9.0.0/16, blockSize: 28, vxlanMode: Always, natOutgoing: true, nodeSelector: all()}
---
{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: six},
 spec: {cidr: "fd00:9::/64", nodeSelector: all()}}
---
{apiVersion: projectcalico.org/v3, kind: IPReservation, metadata: {name: gates}, spec: {reservedCIDRs: [10.9.0.0/30]}}
---
{apiVersion: projectcalico.org/v3, kind: IPAMConfig, metadata: {name: default},
 spec: {strictAffinity: true, autoAllocateBlocks: true, maxBlocksPerHost: 7}}
---
{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: security}, spec: {order: 10}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: security.ban, labels: {team: blue}},
 spec: {tier: security, selector: "app == 'web'", types: [Ingress],
  ingress: [{action: Deny, source: {nets: [192.0.2.0/24]}}]}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkSet, metadata: {name: ads, annotations: {a: "größe\\n===\\n---"}},
 spec: {nets: [198.51.100.0/24]}}
---
{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: alpha},
 spec: {bgp: {ipv4Address: 192.0.2.1/24}, orchRefs: [{nodeName: alpha, orchestrator: k8s}]}}
---
{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: beta, labels: {rack: r1}},
 spec: {bgp: {ipv4Address: 192.0.2.2/24}, orchRefs: [{nodeName: beta.example.org, orchestrator: k8s}]}}
---
{apiVersion: projectcalico.org/v3, kind: BGPConfiguration, metadata: {name: node.beta},
 spec: {logSeverityScreen: Debug}}
---
{apiVersion: projectcalico.org/v3, kind: BGPFilter, metadata: {name: no-defaults},
 spec: {importV4: [{action: Reject, matchOperator: Equal, cidr: 0.0.0.0/0}]}}
---
{apiVersion: projectcalico.org/v3, kind: BGPPeer, metadata: {name: tor},
 spec: {node: beta, peerIP: 192.0.2.254, asNumber: 64999, filters: [no-defaults]}}
---
{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: node.alpha},
 spec: {logSeverityScreen: Debug}}
---
{apiVersion: projectcalico.org/v3, kind: HostEndpoint, metadata: {name: beta-eth0},
 spec: {node: beta, interfaceName: eth0}}
---
{apiVersion: projectcalico.org/v3, kind: KubeControllersConfiguration, metadata: {name: default}, spec: {}}
---
{apiVersion: projectcalico.org/v3, kind: NetworkSet, metadata: {name: office, namespace: default},
 spec: {nets: [203.0.113.0/24]}}
---
{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: web, namespace: default},
 spec: {selector: "app == 'web'", ingress: [{action: Allow, protocol: TCP, destination: {ports: [80, "443:444"]}}]}}
---
{apiVersion: projectcalico.org/v3, kind: StagedNetworkPolicy, metadata: {name: later, namespace: default},
 spec: {stagedAction: Set, selector: all(), types: [Egress]}}
"""
BESIDE = """
{apiVersion: projectcalico.org/v3, kind: CalicoNodeStatus, metadata: {name: look},
 spec: {node: beta, classes: [BGP], updatePeriodSeconds: 10}}
"""
ENDPOINTS = """
{apiVersion: projectcalico.org/v3, kind: Profile, metadata: {name: guests}, spec: {labelsToApply: {a: b}}}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: beta-k8s-web-eth0, namespace: default, labels: {app: web}}
spec: {node: beta, orchestrator: k8s, pod: web, endpoint: eth0, ipNetworks: [10.9.0.5/32], interfaceName: cali1}
"""
OF_KUBERNETES = """
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: default, labels: {app: web}},
 spec: {nodeName: beta.example.org, containers: [{name: c, image: i}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny, namespace: default},
 spec: {podSelector: {}}}
"""


def matches(text: str, labels: Mapping[str, str]) -> bool:
    return selector(text).matches(labels)


async def fill(store: Store, *, endpoints: bool = True, kubernetes: bool = True) -> None:
    """`endpoints`, `kubernetes`: also those, which a Kubernetes datastore has of itself."""
    texts = (CALICO, BESIDE, *((ENDPOINTS,) if endpoints else ()), *((OF_KUBERNETES,) if kubernetes else ()))
    for one in (*bootstrap(GUID), *(one for text in texts for one in parse(text))):
        await _create(store, one)
    for node in NODES:
        ipam = Ipam(store, node, lambda: datetime.now(UTC), matches)
        for number in range(3):
            handle, attrs = (
                f"k8s-pod-network.{node}{number}",
                {"node": node, "namespace": "default", "pod": f"p{number}"},
            )
            assert (await ipam.auto_assign(num4=1, num6=1, handle=handle, attrs=attrs)).ips
        await ipam.auto_assign(num4=1, handle=VXLAN.handle(node), attrs=VXLAN.attributes(node), use="Tunnel")
        await ipam.auto_assign(num4=2, handle=ready_handle(node), attrs={"node": node})


async def _create(store: Store, one: Resource) -> None:
    try:
        await store.create(one)
    except Exists:
        pass
