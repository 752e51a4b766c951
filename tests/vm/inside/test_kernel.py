"""What a stock kernel takes of us: links that others lack, and the whole table, which must use no more than it has; and
what its rules do about IPIP."""

from __future__ import annotations

import functools
import json
import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from bgp_nodes import block, resources
from namespaces import Ns
from policy_places import NODE, Chance
from policy_worlds import some_resources
from tortie.calc.cluster import Cluster
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import converge
from tortie.dataplane.overlay import overlay_stages
from tortie.dataplane.stages.nft import Nft
from tortie.kernel import links
from tortie.kernel.features import features
from tortie.kernel.netlink import Netlink
from tortie.render.nft import NftRenderer

pytestmark = pytest.mark.root

SEED = int(os.environ.get("TORTIE_SEED") or random.randrange(2**32))
"""Printed by what fails; TORTIE_SEED repeats a run."""

LINKS: dict[str, dict[str, Any]] = {
    "ipip": {"local": "192.0.2.1", "remote": "192.0.2.2", "ttl": 64},
    "ipvlan": {"mode": 0},
    "vrf": {"table": 77},
    "dummy": {},
    "wireguard": {},
}
"""Kinds that development kernels lack, with settings under the kernel's names."""


@pytest.mark.parametrize("kind", LINKS)
def test_links_that_others_lack(ns: Ns, kind: str) -> None:
    ns.ip("link", "add", "under", "type", "bridge")
    with Netlink(ns.path) as nl:
        parent = links.link_index(nl, "under") if kind == "ipvlan" else 0
        links.create_link(nl, "new", kind, LINKS[kind] or None, parent=parent)
        (seen,) = ns.json("link", "show", "dev", "new")
        assert seen["linkinfo"]["info_kind"] == kind
        told = seen["linkinfo"].get("info_data", {})
        wanted = {**LINKS[kind], **({"mode": "l2"} if kind == "ipvlan" else {})}
        assert {name: told[name] for name in wanted} == wanted
        assert links.get_link(nl, "new").info.items() >= LINKS[kind].items()
        links.delete_link(nl, "new")
    assert "new" not in {link["ifname"] for link in ns.json("link", "show")}


def test_doctor_finds_nothing_missing() -> None:
    found = features()
    assert found.items() >= dict.fromkeys(("nft", "vxlan", "ipip", "wireguard", "netem"), True).items()


# --- the table ----------------------------------------------------------------------------------------------------

MORE = resources("""
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: node}
spec: {bgp: {ipv4Address: 192.0.2.1/24, ipv6Address: "2001:db8::1/64"}}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: ipip}
spec: {cidr: 10.0.0.0/16, natOutgoing: true, ipipMode: CrossSubnet, vxlanMode: Never}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: vxlan}
spec: {cidr: "fd00:65::/48", natOutgoing: true, ipipMode: Never, vxlanMode: Always}
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {serviceClusterIPs: [{cidr: 10.96.0.0/12}, {cidr: "fd96::/112"}]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: logs}
spec: {selector: all(), order: 1, ingress: [{action: Log}, {action: Deny, protocol: SCTP}], egress: [{action: Log}]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: node-k8s-limited-eth0, namespace: red, labels: {projectcalico.org/namespace: red}}
spec:
  orchestrator: k8s
  node: node
  pod: limited
  endpoint: eth0
  interfaceName: cali00000000009
  ipNetworks: [10.0.9.9/32, "fd00:65::99/128"]
  ipNATs: [{internalIP: 10.0.9.9, externalIP: 203.0.113.9}]
  qosControls: {ingressMaxConnections: 5, egressMaxConnections: 7, ingressPacketRate: 100, egressPacketRate: 200}
""")


@functools.cache
def states() -> tuple[DesiredState, ...]:
    """Those of a cluster that becomes another one."""
    cluster = Cluster(NODE)
    found = []
    for number in range(2):
        for resource in (*MORE, *some_resources(Chance(SEED + number))):
            cluster.put(resource)
        found.append(cluster.state())
    return tuple(found)


def rules(ns: Ns) -> dict[str, int]:
    """How many rules are in each chain of the table, as nft lists it."""
    listed = json.loads(ns.run("nft", "-j", "list", "table", "inet", "tortie", timeout=120))["nftables"]
    found = {item["chain"]["name"]: 0 for item in listed if "chain" in item}
    for item in listed:
        if "rule" in item:
            found[item["rule"]["chain"]] += 1
    return found


def test_every_table_loads_from_nothing_and_from_another(ns: Ns) -> None:
    print(f"TORTIE_SEED={SEED}")
    stage, renderer = Nft(ns.path), NftRenderer()
    for state in states():
        assert converge([stage], state) == []
        assert rules(ns) == {name: len(chain.rules) for name, chain in renderer.render(state).chains.items()}
    assert any("limit" in rule for chain in renderer.render(state).chains.values() for rule in chain.rules)


def test_a_restarted_stage_fills_it_in_place(ns: Ns) -> None:
    print(f"TORTIE_SEED={SEED}")
    before, after = states()
    assert converge([Nft(ns.path)], before) == []
    assert converge([Nft(ns.path)], after) == []
    assert rules(ns) == {name: len(chain.rules) for name, chain in NftRenderer().render(after).chains.items()}


# --- packets of a tunnel ------------------------------------------------------------------------------------------

TUNNELLED = (
    *resources("""
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: a}
spec: {bgp: {ipv4Address: 192.0.2.1/24, ipv4IPIPTunnelAddr: 10.65.1.1}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: b}
spec: {bgp: {ipv4Address: 192.0.2.2/24, ipv4IPIPTunnelAddr: 10.65.2.1}}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool}
spec: {cidr: 10.65.0.0/16, ipipMode: Always, vxlanMode: Never}
"""),
    block("a", "10.65.1.0/26"),
    block("b", "10.65.2.0/26"),
)


def plugged(make_ns: Callable[..., Ns], switch: Ns, name: str, number: int) -> Ns:
    """192.0.2.NUMBER on the switch, and the address of a pod."""
    ns = make_ns(name)
    ns.ip("link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", switch.name)
    switch.ip("link", "set", f"port{number}", "master", "br0", "up")
    ns.ip("link", "set", "eth0", "up")
    ns.ip("addr", "add", f"192.0.2.{number}/24", "dev", "eth0")
    ns.ip("addr", "add", f"10.65.{number}.7", "dev", "lo")
    return ns


def ping(ns: Ns, source: str, target: str, *more: str) -> bool:
    return "1 received" in ns.run("ping", "-n", "-c", "1", "-W", "1", "-I", source, *more, target, check=False)


def unpacked(ns: Ns) -> int:
    """Packets that have come out of the tunnel."""
    (tunnel,) = ns.json("-s", "link", "show", "tunl0")
    return int(tunnel["stats64"]["rx"]["packets"])


def refused(ns: Ns) -> int:
    """Packets counted by the rule about IPIP of those who are no nodes."""
    listed = json.loads(ns.run("nft", "-j", "list", "table", "inet", "tortie"))["nftables"]
    told = [item["rule"] for item in listed if "IPIP from no node" in item.get("rule", {}).get("comment", "")]
    return sum(part["counter"]["packets"] for rule in told for part in rule["expr"] if "counter" in part)


def test_only_nodes_are_let_into_the_tunnel(make_ns: Callable[..., Ns]) -> None:
    switch = make_ns("sw")
    switch.ip("link", "add", "br0", "up", "type", "bridge")
    a, b, stranger = (plugged(make_ns, switch, name, number) for name, number in (("a", 1), ("b", 2), ("s", 3)))
    states = {}
    for name, ns in (("a", a), ("b", b)):
        cluster = Cluster(name, bird=False)
        for one in TUNNELLED:
            cluster.put(one)
        states[name] = cluster.state()
        assert converge(overlay_stages(ns.path), states[name]) == []
    stranger.ip("link", "add", "forged", "up", "type", "ipip", "local", "192.0.2.3", "remote", "192.0.2.1")
    stranger.ip("route", "add", "10.65.1.0/26", "dev", "forged")
    stranger.ip("addr", "add", "10.65.2.7", "dev", "lo")  # as if it were b's pod

    assert not ping(stranger, "10.65.2.7", "10.65.1.7")
    assert unpacked(a) == 1  # which shows what is to be kept out
    for name, ns in (("a", a), ("b", b)):
        assert converge([Nft(ns.path)], states[name]) == []
    assert not ping(stranger, "10.65.2.7", "10.65.1.7")
    assert (unpacked(a), refused(a)) == (1, 1)
    assert ping(b, "10.65.2.7", "10.65.1.7")
    assert unpacked(a) == 2
    # The largest packet that goes through without being broken up, and the next one.
    assert ping(b, "10.65.2.7", "10.65.1.7", "-M", "do", "-s", str(1480 - 28))
    assert not ping(b, "10.65.2.7", "10.65.1.7", "-M", "do", "-s", str(1481 - 28))


OVERLAYS = {
    "ipip": TUNNELLED,
    "vxlan": (
        *resources("""
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: a}
spec:
  {bgp: {ipv4Address: 192.0.2.1/24, ipv6Address: "fd00:2::1/64"}, ipv4VXLANTunnelAddr: 10.65.1.1,
   ipv6VXLANTunnelAddr: "fd65:1::1"}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: b}
spec:
  {bgp: {ipv4Address: 192.0.2.2/24, ipv6Address: "fd00:2::2/64"}, ipv4VXLANTunnelAddr: 10.65.2.1,
   ipv6VXLANTunnelAddr: "fd65:2::1"}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool}
spec: {cidr: 10.65.0.0/16, ipipMode: Never, vxlanMode: Always}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool6}
spec: {cidr: "fd65::/16", ipipMode: Never, vxlanMode: Always}
"""),
        block("a", "10.65.1.0/26"),
        block("b", "10.65.2.0/26"),
        block("b", "fd65:2::/122"),
    ),
}


@pytest.mark.parametrize("kind", OVERLAYS)
def test_an_overlay_that_is_there_is_left_alone(make_ns: Callable[..., Ns], kind: str) -> None:
    """Whatever this kernel announces of what we have made ourselves."""
    switch = make_ns("sw")
    switch.ip("link", "add", "br0", "up", "type", "bridge")
    a = plugged(make_ns, switch, "a", 1)
    a.ip("addr", "add", "fd00:2::1/64", "dev", "eth0", "nodad")
    cluster = Cluster("a", bird=False)
    for one in OVERLAYS[kind]:
        cluster.put(one)
    state, stages = cluster.state(), overlay_stages(a.path)
    assert state.overlay.routes
    for _ in range(3):  # an IPv6 address of the tunnel's is there a moment later
        assert converge(stages, state) == []
        time.sleep(1)
    for _ in range(3):
        assert [str(work) for stage in stages if (work := stage.plan(state))] == []
        time.sleep(0.1)
