"""Our BIRD, configured from resources, and FRR: what FRR itself says of the sessions, and of every route that it has.

a, b   nodes of ours, AS 64512                    a holds 192.168.1.0/26, and an address of b's 192.168.2.0/26
tor    FRR, AS 65001, listens on port 1179        198.51.100.0/24 and 2001:db8:100::/48 are behind it
rr     FRR, AS 64512, reflects routes
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from bgp_nodes import BgpNode, base64, block, deleted, eventually, link, resources, workloads
from namespaces import Ns, namespaces
from peers import Frr, frr, needs_frr
from tortie.model.meta import Resource

pytestmark = [pytest.mark.root, needs_frr]

CLUSTER = resources("""
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: a}
spec: {bgp: {ipv4Address: 10.9.0.1/24, ipv6Address: "fd00:9::1/64"}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: b}
spec: {bgp: {ipv4Address: 10.9.0.2/24, ipv6Address: "fd00:9::2/64"}}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool4}
spec: {cidr: 192.168.0.0/16, ipipMode: Never, vxlanMode: Never}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool6}
spec: {cidr: "fd01::/16", ipipMode: Never, vxlanMode: Never}
""")
BLOCKS = (
    *(block("a", cidr) for cidr in ("192.168.1.0/26", "fd01:1::/122")),
    *(block("b", cidr) for cidr in ("192.168.2.0/26", "fd01:2::/122")),
)
PODS = ("192.168.1.5", "192.168.2.9", "fd01:1::5", "fd01:2::9")
"""Of a: two inside its blocks, two of b's."""

NO_MESH = resources("""
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {nodeToNodeMeshEnabled: false}
""")
TOR = resources("""
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor}
spec: {node: a, peerIP: "10.9.0.9:1179", asNumber: 65001}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor6}
spec: {node: a, peerIP: "[fd00:9::9]:1179", asNumber: 65001}
""")
REFLECTOR = resources("""
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: reflector}
spec: {peerIP: 10.9.0.8, asNumber: 64512}
""")
BEHIND = ("198.51.100.0/24", "2001:db8:100::/48")

TOR_CONFIG = """
router bgp 65001
 bgp router-id 10.9.0.9
 no bgp default ipv4-unicast
 no bgp ebgp-requires-policy
 no bgp network import-check
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
 neighbor 10.9.0.1 remote-as 64512
 neighbor 10.9.0.1 timers connect 1
 neighbor fd00:9::1 remote-as 64512
 neighbor fd00:9::1 timers connect 1
 address-family ipv4 unicast
  network 198.51.100.0/24
  neighbor 10.9.0.1 activate
 exit-address-family
 address-family ipv6 unicast
  network 2001:db8:100::/48
  neighbor fd00:9::1 activate
 exit-address-family
"""
RR_CONFIG = """
router bgp 64512
 bgp router-id 10.9.0.8
 bgp cluster-id 10.9.0.8
 no bgp network import-check
 neighbor 10.9.0.1 remote-as 64512
 neighbor 10.9.0.1 timers connect 1
 neighbor 10.9.0.2 remote-as 64512
 neighbor 10.9.0.2 timers connect 1
 address-family ipv4 unicast
  network 192.168.200.0/26
  neighbor 10.9.0.1 route-reflector-client
  neighbor 10.9.0.2 route-reflector-client
 exit-address-family
"""


@dataclass
class Fabric:
    a: BgpNode
    b: BgpNode
    tor: Frr
    rr: Frr

    def write(self, *objects: Resource) -> None:
        """The cluster is these objects, besides its nodes, pools and blocks."""
        for node in (self.a, self.b):
            node.configure(*CLUSTER, *BLOCKS, *objects)


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    home = tmp_path_factory.mktemp("frr")
    with ExitStack() as stack:
        make = stack.enter_context(contextmanager(namespaces)())
        switch, *four = (make(name) for name in ("sw", "a", "b", "tor", "rr"))
        switch.ip("link", "add", "br0", "up", "type", "bridge")
        for ns, number in zip(four, (1, 2, 9, 8), strict=True):
            link(switch, ns, number)
        tor = stack.enter_context(frr(four[2], TOR_CONFIG, 1179))
        rr = stack.enter_context(frr(four[3], RR_CONFIG))
        nodes = [BgpNode(name, ns, home / name) for name, ns in zip("ab", four, strict=False)]
        workloads(nodes[0].ns, *PODS)
        for node in nodes:
            stack.callback(node.bird.stop)
            node.start(*CLUSTER, *BLOCKS, *NO_MESH)
        yield Fabric(nodes[0], nodes[1], tor, rr)


def tcp_counter(ns: Ns, name: str) -> int:
    """How often the namespace's TCP has met something, by its name in /proc/net/netstat."""
    lines = [line.split() for line in ns.run("cat", "/proc/net/netstat").splitlines()]
    return next(
        int(value)
        for keys, values in zip(lines[::2], lines[1::2], strict=True)
        for key, value in zip(keys, values, strict=True)
        if key == name
    )


def link_local(ns: Ns) -> str:
    """The address that IPv6 next hops are told by, besides the global one."""
    (eth0,) = ns.json("-6", "addr", "show", "dev", "eth0", "scope", "link")
    return next(str(one["local"]) for one in eth0["addr_info"] if one)


def hops(path: dict[str, object]) -> set[str]:
    """The next hops of a path, without link-local ones."""
    return {hop["ip"] for hop in path.get("nexthops", []) if not hop["ip"].startswith("fe80")}  # type: ignore[attr-defined]


# --- a router of another AS ---------------------------------------------------------------------------------------


def test_routes_cross_in_both_families_and_are_in_both_kernels(fabric: Fabric) -> None:
    """Own blocks go out whole, addresses of other nodes' blocks by themselves, pods inside own blocks not at all."""
    a, tor = fabric.a, fabric.tor
    fabric.write(*NO_MESH, *TOR)
    ours = {"192.168.1.0/26", "192.168.2.9/32", "fd01:1::/122", "fd01:2::9/128"}

    def heard() -> set[str]:
        return {*tor.routes(4), *tor.routes(6)} - set(BEHIND)

    eventually(heard, lambda prefixes: prefixes == ours, "what FRR has")
    written = eventually(tor.fib, lambda fib: len(fib) == len(ours), "what FRR's kernel has")
    assert written["192.168.1.0/26"]["gateway"] == "10.9.0.1"
    assert written["192.168.2.9"]["gateway"] == "10.9.0.1"
    fib = eventually(a.fib, lambda fib: fib.keys() >= set(BEHIND), "what our kernel has")
    assert fib[BEHIND[0]]["gateway"] == "10.9.0.9"
    assert fib[BEHIND[1]]["gateway"] in ("fd00:9::9", link_local(tor.ns))
    assert tor.path("192.168.1.0/26")["aspath"]["string"] == "64512"


def test_communities_of_advertised_prefixes_arrive(fabric: Fabric) -> None:
    advertised = resources("""
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec:
  nodeToNodeMeshEnabled: false
  communities: [{name: rack, value: "65001:100"}]
  prefixAdvertisements: [{cidr: 192.168.1.0/26, communities: [rack, "64512:7:70"]}]
""")
    fabric.write(*advertised, *TOR)

    def communities(prefix: str) -> tuple[str, str]:
        path = fabric.tor.path(prefix)
        return tuple(path.get(kind, {}).get("string", "") for kind in ("community", "largeCommunity"))  # type: ignore[return-value]

    eventually(lambda: communities("192.168.1.0/26"), lambda both: both == ("65001:100", "64512:7:70"))
    assert communities("192.168.2.9/32") == ("", "")


def test_filters_prepend_to_the_path_and_keep_routes_back(fabric: Fabric) -> None:
    filtered = resources("""
apiVersion: projectcalico.org/v3
kind: BGPFilter
metadata: {name: rack.1}
spec:
  exportV4:
  - {action: Reject, cidr: 192.168.2.0/26, matchOperator: In}
  - action: Accept
    cidr: 192.168.0.0/16
    matchOperator: In
    prefixLength: {max: 26}
    operations: [{prependASPath: {prefix: [64512, 64600]}}, {addCommunity: {value: "65001:9"}}]
  importV4:
  - {action: Reject, cidr: 198.51.100.0/24, matchOperator: Equal}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor}
spec: {node: a, peerIP: "10.9.0.9:1179", asNumber: 65001, filters: [rack.1]}
""")
    fabric.write(*NO_MESH, *filtered)
    tor = fabric.tor
    # BIRD puts its own AS before all of it when it sends.
    eventually(
        lambda: tor.path("192.168.1.0/26").get("aspath", {}).get("string"), lambda path: path == "64512 64512 64600"
    )
    assert tor.path("192.168.1.0/26")["community"]["string"] == "65001:9"
    eventually(lambda: set(tor.routes()), lambda prefixes: prefixes == {"192.168.1.0/26", "198.51.100.0/24"})
    eventually(fabric.a.fib, lambda fib: "198.51.100.0/24" not in fib)


def test_another_as_number_and_ttl_security_for_one_peer(fabric: Fabric) -> None:
    """A router that does not set its TTL to 255 does not get through."""
    b, tor = fabric.b, fabric.tor
    peer = resources("""
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor-b}
spec: {node: b, peerIP: "10.9.0.9:1179", asNumber: 65001, localASNumber: 65010, ttlSecurity: 1}
""")
    neighbor = ("router bgp 65001", "neighbor 10.9.0.2 remote-as 65010", "neighbor 10.9.0.2 timers connect 1")
    tor.configure(*neighbor, "address-family ipv4 unicast", "neighbor 10.9.0.2 activate")
    try:
        before = tcp_counter(b.ns, "TCPMinTTLDrop")
        fabric.write(*NO_MESH, *TOR, *peer)
        eventually(lambda: tcp_counter(b.ns, "TCPMinTTLDrop") - before, what="packets of a TTL that is too small")
        assert b.sessions() == {"Node_10_9_0_9_port_1179": False}
        fabric.write(*NO_MESH, *TOR)  # its half of a connection would be waited for
        tor.configure("router bgp 65001", "neighbor 10.9.0.2 ttl-security hops 1")
        fabric.write(*NO_MESH, *TOR, *peer)
        eventually(tor.sessions, lambda states: states["10.9.0.2"] == "Established")
        eventually(lambda: tor.path("192.168.2.0/26").get("aspath", {}).get("string"), lambda path: path == "65010")
    finally:
        tor.configure("router bgp 65001", "no neighbor 10.9.0.2")


def test_only_the_right_password_opens_a_session(fabric: Fabric) -> None:
    tor = fabric.tor
    peers = """
apiVersion: v1
kind: Secret
metadata: {name: bgp, namespace: kube-system}
data: {tor: @password@}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor-b}
spec: {node: b, peerIP: "10.9.0.9:1179", asNumber: 65001, password: {secretKeyRef: {name: bgp, key: @key@}}}
"""
    neighbor = (
        "neighbor 10.9.0.2 remote-as 64512",
        "neighbor 10.9.0.2 timers connect 1",
        "neighbor 10.9.0.2 password ToR&co",
    )
    tor.configure("router bgp 65001", *neighbor, "address-family ipv4 unicast", "neighbor 10.9.0.2 activate")
    try:
        for values, counter in (
            ({"password": base64("wrong"), "key": "tor"}, "TCPMD5Failure"),
            ({"password": base64("ToR&co"), "key": "other"}, "TCPMD5NotFound"),
        ):
            before = tcp_counter(tor.ns, counter)
            fabric.write(*NO_MESH, *TOR, *resources(peers, **values))
            eventually(lambda: tcp_counter(tor.ns, counter) - before, what=counter)  # noqa: B023
            assert tor.sessions()["10.9.0.2"] != "Established"
        fabric.write(*NO_MESH, *TOR, *resources(peers, password=base64("ToR&co"), key="tor"))
        eventually(tor.sessions, lambda states: states["10.9.0.2"] == "Established")
    finally:
        tor.configure("router bgp 65001", "no neighbor 10.9.0.2")


def test_our_own_port_is_dialled(fabric: Fabric) -> None:
    """FRR is the one that dials: the other way round ends at a port at which nobody listens."""
    b, tor = fabric.b, fabric.tor
    listening = resources("""
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: node.b}
spec: {listenPort: 1790}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor-b}
spec: {node: b, peerIP: "10.9.0.9:1", asNumber: 65001}
""")
    neighbor = (
        "neighbor 10.9.0.2 remote-as 64512",
        "neighbor 10.9.0.2 timers connect 1",
        "neighbor 10.9.0.2 port 1790",
    )
    tor.configure("router bgp 65001", *neighbor, "address-family ipv4 unicast", "neighbor 10.9.0.2 activate")
    try:
        fabric.write(*NO_MESH, *TOR, *listening)
        eventually(tor.sessions, lambda states: states["10.9.0.2"] == "Established")
        assert b.sessions() == {"Node_10_9_0_9_port_1": True}
    finally:
        tor.configure("router bgp 65001", "no neighbor 10.9.0.2")


# --- reflecting ---------------------------------------------------------------------------------------------------


def test_a_reflector_of_others_passes_our_blocks_on(fabric: Fabric) -> None:
    a, b, rr = fabric.a, fabric.b, fabric.rr
    fabric.write(*NO_MESH, *REFLECTOR)
    eventually(lambda: b.fib().get("192.168.1.0/26", {}).get("gateway"), lambda hop: hop == "10.9.0.1")
    eventually(lambda: a.fib().get("192.168.2.0/26", {}).get("gateway"), lambda hop: hop == "10.9.0.2")
    eventually(lambda: a.fib().get("192.168.200.0/26", {}).get("gateway"), lambda hop: hop == "10.9.0.8")
    attributes = b.table("protocol Global_10_9_0_8")["192.168.1.0/26"].attributes
    assert (attributes["BGP.originator_id"], attributes["BGP.cluster_list"]) == ("10.9.0.1", "10.9.0.8")
    # The pod that a has of b's block is reached there, by everyone, b too.
    assert b.fib()["192.168.2.9"]["gateway"] == "10.9.0.1"
    assert hops(rr.path("192.168.2.9/32")) == {"10.9.0.1"}


REFLECTING = """
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: a, labels: {role: reflector}}
spec: {bgp: {ipv4Address: 10.9.0.1/24, ipv6Address: "fd00:9::1/64", routeReflectorClusterID: 244.0.0.1}}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: nodes-to-reflector}
spec: {nodeSelector: role != 'reflector', peerSelector: role == 'reflector'}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: client}
spec: {node: a, peerIP: 10.9.0.8, asNumber: 64512, nextHopMode: @mode@}
"""


def test_a_node_that_reflects_has_frr_for_a_client(fabric: Fabric) -> None:
    """And says to it who the next hop is: the node whose block it is, or itself."""
    rr = fabric.rr
    rr.configure("router bgp 64512", "no neighbor 10.9.0.2")
    fabric.write(*NO_MESH, *resources(REFLECTING, mode="Auto"))
    path = eventually(lambda: rr.path("192.168.2.0/26"), lambda seen: "originatorId" in seen, "b's block, by the node")
    assert (path["originatorId"], path["clusterList"]["list"]) == ("10.9.0.2", ["244.0.0.1"])
    assert hops(path) == {"10.9.0.2"}
    fabric.write(*NO_MESH, *resources(REFLECTING, mode="Self"))
    eventually(lambda: hops(rr.path("192.168.2.0/26")), lambda seen: seen == {"10.9.0.1"}, "its next hop")
    # What FRR has goes to the other client, whose next hop it is.
    eventually(lambda: fabric.b.fib().get("192.168.200.0/26", {}).get("gateway"), lambda hop: hop == "10.9.0.8")


@pytest.mark.parametrize(("mode", "hop"), [("Self", "10.9.0.1"), ("Keep", "10.9.0.2")])
def test_next_hop_of_other_nodes_blocks_for_another_as(fabric: Fabric, mode: str, hop: str) -> None:
    peer = """
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor}
spec: {node: a, peerIP: "10.9.0.9:1179", asNumber: 65001, nextHopMode: @mode@}
"""
    fabric.write(*resources(peer, mode=mode))
    eventually(lambda: hops(fabric.tor.path("192.168.2.0/26")), lambda seen: seen == {hop})
    assert hops(fabric.tor.path("192.168.1.0/26")) == {"10.9.0.1"}


# --- restarts -----------------------------------------------------------------------------------------------------


def test_frr_keeps_our_routes_while_our_bird_restarts(fabric: Fabric) -> None:
    """But for addresses of other nodes' blocks, for an instant: BIRD says that it has told all before it has looked for
    pods' routes in the kernel. What we keep of FRR's is not looked at: in its first two minutes FRR says that it has
    restarted, and who has restarted itself does not wait for such a one (RFC 4724, section 4.1)."""
    a, tor = fabric.a, fabric.tor
    fabric.write(*NO_MESH, *TOR)
    ours = {"192.168.1.0/26", "192.168.2.9", "fd01:1::/122", "fd01:2::9"}
    eventually(tor.fib, lambda fib: fib.keys() == ours)
    with deleted(tor.ns) as lost:
        os.kill(int(a.bird.pid_file.read_text()), signal.SIGKILL)
        eventually(tor.sessions, lambda states: states["10.9.0.1"] != "Established")
        assert tor.fib().keys() == ours
        assert a.bird.start()
        eventually(tor.sessions, lambda states: set(states.values()) == {"Established"})
        eventually(lambda: "stale" in str((tor.routes(4), tor.routes(6))), lambda stale: not stale)
        eventually(tor.fib, lambda fib: fib.keys() == ours)
    assert not [line for line in lost if "192.168.2.9" not in line and "fd01:2::9" not in line]


def test_our_bird_keeps_frrs_routes_while_frr_restarts(fabric: Fabric) -> None:
    a, tor = fabric.a, fabric.tor
    fabric.write(*NO_MESH, *TOR)
    eventually(a.fib, lambda fib: fib.keys() >= set(BEHIND))
    with deleted(a.ns) as lost:
        tor.bgpd.end(signal.SIGKILL)
        eventually(a.sessions, lambda up: not any(up.values()))
        assert a.fib().keys() >= set(BEHIND)
        tor.start_bgpd()
        eventually(a.sessions, lambda up: all(up.values()))
        eventually(lambda: set(a.table("protocol Node_10_9_0_9_port_1179")), lambda seen: BEHIND[0] in seen)
    assert not [line for line in lost if BEHIND[0] in line or BEHIND[1] in line]
