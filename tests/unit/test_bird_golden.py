"""bird.conf of a node of which much is asked, from resources to text: what a person finds who looks at night.

To write it anew after a change that is meant: TORTIE_WRITE_GOLDEN=1, and read the difference.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from bgp_world import BLOCKS, Seen, bgp, block, felix, named, nets, node, peer, pool, secret, service, slice_
from tortie.model.bgpfilter import BGPFilter
from tortie.model.ipam import IPPool
from tortie.model.meta import Resource
from tortie.model.workload import WorkloadEndpoint

GOLDEN = Path(__file__).parent / "golden" / "rich.bird.conf"

RICH: tuple[Resource, ...] = (
    node("a", 1, {"rack": "one"}, ipv6Address="fd00::1/64", routeReflectorClusterID="1.0.0.1"),
    node("b", 2, {"rack": "one"}, ipv6Address="fd00::2/64"),
    node("c", 3, {"rack": "two"}, asNumber="1.10"),
    *BLOCKS,
    block("a", "10.5.1.0/26"),
    block("a", "fd01:1::/122"),
    pool(),
    pool("10.5.0.0/16", ipipMode="CrossSubnet"),
    pool("172.16.0.0/16", vxlanMode="Always"),
    named(IPPool, "private", spec={"cidr": "fd01::/16", "disableBGPExport": True}),
    bgp(
        asNumber=64600,
        bindMode="NodeIP",
        listenPort=1179,
        ignoredInterfaces=["docker0"],
        logSeverityScreen="Warning",
        nodeMeshMaxRestartTime="200s",
        programClusterRoutes="Enabled",
        communities=[{"name": "inside", "value": "64600:1"}],
        prefixAdvertisements=[{"cidr": "192.168.0.0/16", "communities": ["inside", "64600:1:2"]}],
        serviceClusterIPs=nets("10.96.0.0/12", "fd96::/112"),
        serviceExternalIPs=nets("80.15.0.0/24"),
        localWorkloadPeeringIPV4="169.254.7.7",
        ipv4NormalRoutePriority=2000,
    ),
    felix(programClusterRoutes="Disabled", ipv4NormalRoutePriority=2000),
    secret(tor="it's hushed"),
    named(
        BGPFilter,
        "rack",
        spec={
            "importV4": [
                {"action": "Reject", "cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": {"min": 25}},
                {"action": "Accept", "asPathPrefix": [65001], "operations": [{"setPriority": {"value": 512}}]},
            ],
            "exportV6": [{"action": "Reject", "source": "RemotePeers", "peerType": "eBGP"}],
        },
    ),
    peer("reflected", nodeSelector="rack == 'one'", peerSelector="has(rack)", filters=["rack"], nextHopMode="Self"),
    peer(
        "tor",
        node="a",
        peerIP="192.0.2.9:1790",
        asNumber=65001,
        filters=["rack", "gone"],
        password={"secretKeyRef": {"name": "bgp", "key": "tor"}},
        ttlSecurity=2,
        reachableBy="10.0.0.254",
        keepaliveTime="20s",
        maxRestartTime="90s",
        localASNumber=64999,
        numAllowedLocalASNumbers=1,
    ),
    peer("routers", localWorkloadSelector="role == 'router'", asNumber=65010),
    named(
        WorkloadEndpoint,
        "a-k8s-r-eth0",
        "default",
        labels={"role": "router"},
        spec={
            "node": "a",
            "orchestrator": "k8s",
            "pod": "r",
            "endpoint": "eth0",
            "interfaceName": "calir",
            "ipNetworks": ["192.168.1.5/32", "fd01:1::5/128"],
        },
    ),
    service(externalIPs=["80.15.0.7"], externalTrafficPolicy="Local", clusterIPs=["10.96.0.1", "fd96::1"]),
    slice_("a"),
)


def test_a_node_of_which_much_is_asked() -> None:
    text = Seen("a", *RICH).text
    if os.environ.get("TORTIE_WRITE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_the_order_in_which_objects_come_means_nothing() -> None:
    for seed in range(5):
        shuffled = list(RICH)
        Random(seed).shuffle(shuffled)
        assert Seen("a", *shuffled).text == GOLDEN.read_text()
