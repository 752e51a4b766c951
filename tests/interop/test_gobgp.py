"""Our BIRD, configured from resources, and GoBGP: what GoBGP itself says of the sessions, and of every route it has.

a   a node of ours, AS 64512, that reflects routes        c   a client of its, GoBGP, AS 64512
b   another, its client                                   x   GoBGP of another AS, 65002
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from bgp_nodes import BgpNode, base64, block, deleted, eventually, link, resources, workloads
from namespaces import namespaces
from peers import Gobgp, gobgp, needs_gobgp
from tortie.model.meta import Resource

pytestmark = [pytest.mark.root, needs_gobgp]

CLUSTER = (
    *resources("""
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: a, labels: {role: reflector}}
spec: {bgp: {ipv4Address: 10.9.0.1/24, ipv6Address: "fd00:9::1/64", routeReflectorClusterID: 244.0.0.1}}
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
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: nodes-to-reflector}
spec: {nodeSelector: role != 'reflector', peerSelector: role == 'reflector'}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: client}
spec: {node: a, peerIP: 10.9.0.3, asNumber: 64512}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: client6}
spec: {node: a, peerIP: "fd00:9::3", asNumber: 64512}
"""),
    *(block("a", cidr) for cidr in ("192.168.1.0/26", "fd01:1::/122")),
    *(block("b", cidr) for cidr in ("192.168.2.0/26", "fd01:2::/122")),
)
CONFIGURATION = """
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec:
  nodeToNodeMeshEnabled: false
  communities: [{name: rack, value: "65002:100"}]
  prefixAdvertisements: [{cidr: 192.168.0.0/16, communities: [rack, "64512:7:70"]}]
---
apiVersion: v1
kind: Secret
metadata: {name: bgp, namespace: kube-system}
data: {x: @password@}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: x}
spec: {node: a, peerIP: 10.9.0.4, asNumber: 65002, password: {secretKeyRef: {name: bgp, key: x}}}
"""
PASSWORD = "an X's, not a C's"
ORIGIN, AS_PATH, COMMUNITY, ORIGINATOR, CLUSTERS, MP_REACH, LARGE_COMMUNITY = 1, 2, 8, 9, 10, 14, 32
"""Types of attributes (RFC 4271, 1997, 4456, 4760, 8092)."""


def neighbor(address: str, number: int, family: str, more: str = "") -> str:
    return f"""
[[neighbors]]
  [neighbors.config]
    neighbor-address = "{address}"
    peer-as = {number}
    {more}
  [neighbors.timers.config]
    connect-retry = 1
    idle-hold-time-after-reset = 1
  [neighbors.graceful-restart.config]
    enabled = true
    restart-time = 60
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "{family}"
    [neighbors.afi-safis.mp-graceful-restart.config]
      enabled = true
"""


def router(number: int, identifier: str, *neighbors: str) -> str:
    return f'[global.config]\n  as = {number}\n  router-id = "{identifier}"\n' + "".join(neighbors)


@dataclass
class Fabric:
    a: BgpNode
    b: BgpNode
    c: Gobgp
    x: Gobgp

    def write(self, *objects: Resource) -> None:
        for node in (self.a, self.b):
            node.configure(*CLUSTER, *objects)


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    home = tmp_path_factory.mktemp("gobgp")
    client = (neighbor("10.9.0.1", 64512, "ipv4-unicast"), neighbor("fd00:9::1", 64512, "ipv6-unicast"))
    secret = f'auth-password = "{PASSWORD}"'
    with ExitStack() as stack:
        make = stack.enter_context(contextmanager(namespaces)())
        switch, *four = (make(name) for name in ("sw", "a", "b", "c", "x"))
        switch.ip("link", "add", "br0", "up", "type", "bridge")
        for number, ns in enumerate(four, 1):
            link(switch, ns, number)
        nodes = [BgpNode(name, ns, home / name) for name, ns in zip("ab", four, strict=False)]
        workloads(nodes[0].ns, "192.168.1.5", "192.168.2.9")
        for node in nodes:
            stack.callback(node.bird.stop)
            node.start(*CLUSTER, *resources(CONFIGURATION, password=base64("wrong")))
        c = stack.enter_context(gobgp(four[2], router(64512, "10.9.0.3", *client)))
        x = stack.enter_context(
            gobgp(four[3], router(65002, "10.9.0.4", neighbor("10.9.0.1", 64512, "ipv4-unicast", secret)))
        )
        yield Fabric(*nodes, c, x)


def wanted(seen: dict[str, Any], *prefixes: str) -> bool:
    return seen.keys() >= set(prefixes)


def test_a_client_has_the_routes_of_all_nodes_in_both_families(fabric: Fabric) -> None:
    c = fabric.c
    eventually(c.sessions, lambda up: up == {"10.9.0.1": True, "fd00:9::1": True})
    four = eventually(c.routes, lambda seen: wanted(seen, "192.168.1.0/26", "192.168.2.0/26", "192.168.2.9/32"))
    assert "192.168.1.5/32" not in four
    assert four["192.168.2.0/26"][ORIGINATOR]["value"] == "10.9.0.2"
    assert four["192.168.2.0/26"][CLUSTERS]["value"] == ["244.0.0.1"]
    six = eventually(lambda: c.routes(6), lambda seen: wanted(seen, "fd01:1::/122", "fd01:2::/122"))
    assert six["fd01:2::/122"][MP_REACH]["nexthop"] == "fd00:9::2"


def test_a_client_has_communities(fabric: Fabric) -> None:
    four = eventually(fabric.c.routes, lambda seen: wanted(seen, "192.168.2.0/26"))
    assert four["192.168.2.0/26"][COMMUNITY]["communities"] == [65002 << 16 | 100]
    (large,) = four["192.168.2.0/26"][LARGE_COMMUNITY]["value"]
    assert list(large.values()) == [64512, 7, 70]


def test_what_a_client_announces_is_in_every_nodes_kernel(fabric: Fabric) -> None:
    fabric.c.ask("global", "rib", "add", "192.168.200.0/26", "nexthop", "10.9.0.3")
    for node in (fabric.a, fabric.b):
        eventually(lambda: node.fib().get("192.168.200.0/26", {}).get("gateway"), lambda hop: hop == "10.9.0.3")  # noqa: B023
    fabric.c.ask("global", "rib", "del", "192.168.200.0/26")
    for node in (fabric.a, fabric.b):
        eventually(node.fib, lambda fib: "192.168.200.0/26" not in fib)


def test_another_as_needs_the_password(fabric: Fabric) -> None:
    x = fabric.x
    assert x.sessions() == {"10.9.0.1": False}
    fabric.write(*resources(CONFIGURATION, password=base64(PASSWORD)))
    eventually(x.sessions, lambda up: up == {"10.9.0.1": True})
    four = eventually(x.routes, lambda seen: wanted(seen, "192.168.1.0/26", "192.168.2.0/26"))
    assert [one["asns"] for one in four["192.168.2.0/26"][AS_PATH]["as_paths"]] == [[64512]]


def test_a_client_that_restarts_loses_no_route_of_its_own(fabric: Fabric) -> None:
    """Nor do we lose its: they stay until it has told them again."""
    a, c = fabric.a, fabric.c
    c.ask("global", "rib", "add", "192.168.200.0/26", "nexthop", "10.9.0.3")
    eventually(a.fib, lambda fib: "192.168.200.0/26" in fib)
    c.daemon.end(signal.SIGKILL)
    eventually(a.sessions, lambda up: not up["Node_10_9_0_3"])
    assert "192.168.200.0/26" in a.fib()
    c.start(again=True)
    c.ask("global", "rib", "add", "192.168.200.0/26", "nexthop", "10.9.0.3")
    eventually(a.sessions, lambda up: up["Node_10_9_0_3"])
    assert "192.168.200.0/26" in a.fib()


def test_nobody_loses_a_route_while_our_bird_restarts(fabric: Fabric) -> None:
    a, c = fabric.a, fabric.c
    eventually(c.routes, lambda seen: wanted(seen, "192.168.1.0/26", "192.168.2.0/26"))
    c.ask("global", "rib", "add", "192.168.200.0/26", "nexthop", "10.9.0.3")
    eventually(a.fib, lambda fib: "192.168.200.0/26" in fib)
    with deleted(a.ns) as lost:
        os.kill(int(a.bird.pid_file.read_text()), signal.SIGKILL)
        eventually(c.sessions, lambda up: not up["10.9.0.1"])
        assert wanted(c.routes(), "192.168.1.0/26", "192.168.2.0/26")
        assert a.bird.start()
        eventually(c.sessions, lambda up: all(up.values()))
        eventually(lambda: set(a.table("protocol Node_10_9_0_3")), lambda seen: "192.168.200.0/26" in seen)
        assert wanted(c.routes(), "192.168.1.0/26", "192.168.2.0/26")
    assert not [line for line in lost if "192.168.200.0/26" in line or "192.168.2.0/26" in line]
