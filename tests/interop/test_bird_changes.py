"""A cluster's BGP changes, object by object, while real BIRDs run: what peers and kernels see of it, and what goes on.

a, b   nodes of ours, AS 64512, blocks 192.168.1.0/26 and 192.168.2.0/26
r      another network's router, AS 65001, behind it 192.168.100.0/24 and 192.168.101.0/24
w      a workload of a's, AS 65010, 192.168.1.5 on cali1, behind it 192.168.77.0/26
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path

import pytest

from bgp_nodes import BgpNode, block, eventually, link, resources
from namespaces import Ns, namespaces
from tortie.bgp.sessions import Peer
from tortie.calc.cluster import Cluster
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.bird import BirdDaemon
from tortie.dataplane.stages.peering_addresses import PeeringAddresses
from tortie.dataplane.stages.stale_routes import StaleRoutes
from tortie.dataplane.stages.stolen_routes import StolenRoutes
from tortie.model.meta import Resource

pytestmark = pytest.mark.root

CLUSTER = resources("""
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: a}
spec: {bgp: {ipv4Address: 10.9.0.1/24}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: b}
spec: {bgp: {ipv4Address: 10.9.0.2/24}}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool}
spec: {cidr: 192.168.0.0/16, ipipMode: Never, vxlanMode: Never}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: router}
spec: {node: a, peerIP: 10.9.0.9, asNumber: 65001}
""")
BLOCKS = (block("a", "192.168.1.0/26"), block("b", "192.168.2.0/26"))

ROUTER = resources("""
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: r}
spec: {bgp: {ipv4Address: 10.9.0.9/24, asNumber: 65001}}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: a}
spec: {peerIP: 10.9.0.1, asNumber: 64512}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: behind}
spec: {cidr: 192.168.100.0/24, ipipMode: Never, vxlanMode: Never}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: also-behind}
spec: {cidr: 192.168.101.0/24, ipipMode: Never, vxlanMode: Never}
""")
BEHIND = (block("r", "192.168.100.0/24"), block("r", "192.168.101.0/24"))

FILTERED = resources("""
apiVersion: projectcalico.org/v3
kind: BGPFilter
metadata: {name: rack.one}
spec:
  importV4:
    - {action: Reject, cidr: 192.168.100.0/24, matchOperator: In, prefixLength: {min: 20, max: 28}}
    - action: Accept
      asPathPrefix: [65001]
      operations: [{setPriority: {value: 512}}, {addCommunity: {value: "64512:7"}}]
  exportV4:
    - {action: Reject, source: RemotePeers, peerType: eBGP}
    - action: Accept
      cidr: 192.168.1.0/26
      matchOperator: Equal
      operations:
        - {addCommunity: {value: "65000:1:2"}}
        - {prependASPath: {prefix: [65100, 65101]}}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: router}
spec: {node: a, peerIP: 10.9.0.9, asNumber: 65001, filters: [rack.one]}
""")

SERVICES = resources("""
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec:
  serviceClusterIPs: [{cidr: 10.96.0.0/12}]
  serviceExternalIPs: [{cidr: 80.15.0.0/24}]
  communities: [{name: services, value: "64512:80"}]
  prefixAdvertisements: [{cidr: 80.15.0.0/24, communities: [services]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.0.7, externalIPs: [80.15.0.7], externalTrafficPolicy: Local}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [192.168.1.5], nodeName: a}]
""")

SECRET = resources("""
apiVersion: v1
kind: Secret
metadata: {name: bgp, namespace: kube-system}
data: {router: aXQncyBodXNoZWQ=}
""")
WITH_PASSWORD = "{secretKeyRef: {name: bgp, key: router}}"

WORKLOADS = resources("""
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {bindMode: NodeIP, localWorkloadPeeringIPV4: 169.254.7.7}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: workloads}
spec: {localWorkloadSelector: role == 'router', asNumber: 65010}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: a-k8s-w-eth0, namespace: default, labels: {role: router}}
spec: {node: a, orchestrator: k8s, pod: w, endpoint: eth0, interfaceName: cali1, ipNetworks: [192.168.1.5/32]}
""")
WORKLOAD = resources("""
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: w}
spec: {bgp: {ipv4Address: 192.168.1.5/32, asNumber: 65010}}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: host}
spec: {peerIP: 169.254.7.7, asNumber: 64512}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: behind}
spec: {cidr: 192.168.77.0/24, ipipMode: Never, vxlanMode: Never}
""")


@dataclass
class Fabric:
    a: BgpNode
    b: BgpNode
    r: BgpNode
    make_ns: Callable[..., Ns]
    directory: Path

    def cluster(self, *more: Resource) -> tuple[Resource, ...]:
        """What a and b know; of two objects with one name the later counts."""
        return (*CLUSTER, *BLOCKS, *more)

    @contextlib.contextmanager
    def changed(self, *more: Resource) -> Iterator[None]:
        """With further objects on a and b; without them again afterwards."""
        try:
            for one in (self.a, self.b):
                one.configure(*self.cluster(*more))
            yield
        finally:
            for one in (self.a, self.b):
                one.configure(*self.cluster())


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    with contextlib.ExitStack() as stack:
        make_ns = stack.enter_context(contextlib.contextmanager(namespaces)())
        switch = make_ns("sw")
        switch.ip("link", "add", "br0", "up", "type", "bridge")
        nodes = []
        directory = tmp_path_factory.mktemp("changes")
        for name, number in (("a", 1), ("b", 2), ("r", 9)):
            ns = make_ns(name)
            link(switch, ns, number)
            node = BgpNode(name, ns, directory / name)
            nodes.append(node)
            stack.callback(node.bird.stop)
        made = Fabric(*nodes, make_ns, directory)
        made.a.start(*made.cluster())
        made.b.start(*made.cluster())
        made.r.start(*ROUTER, *BEHIND)
        eventually(made.b.fib, lambda fib: "192.168.100.0/24" in fib, "the router's network reaches b", seconds=45)
        eventually(made.r.fib, lambda fib: "192.168.2.0/26" in fib, "b's block reaches the router", seconds=45)
        yield made


def state(node: str, *every: Resource) -> DesiredState:
    cluster = Cluster(node)
    for one in every:
        cluster.put(one)
    assert not cluster.problems
    return cluster.state()


def unbroken(before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    """Whether the same sessions are as they are since the same time, which BIRD may tell a millisecond off."""

    def moments(since: Mapping[str, str]) -> list[float]:
        return [datetime.fromisoformat(f"2000-01-01 {since[name]}").timestamp() for name in sorted(since)]

    pairs = zip(moments(before), moments(after), strict=False)
    return before.keys() == after.keys() and all(abs(one - two) < 0.1 for one, two in pairs)


def test_filters_come_and_go_and_no_session_notices(fabric: Fabric) -> None:
    a, b, r = fabric.a, fabric.b, fabric.r
    before = a.since(), b.since(), r.since()
    with fabric.changed(*FILTERED):
        told = eventually(
            lambda: r.table("protocol Global_10_9_0_1"),
            lambda table: "192.168.2.0/26" not in table and "BGP.large_community" in table["192.168.1.0/26"].attributes,
            "the filter holds towards the router",
        )
        own = told["192.168.1.0/26"].attributes
        assert own["BGP.large_community"] == "(65000, 1, 2)"
        assert own["BGP.as_path"] == "64512 65100 65101"
        heard = eventually(
            lambda: b.table("protocol Mesh_10_9_0_1"),
            lambda table: "192.168.100.0/24" not in table and "BGP.community" in table["192.168.101.0/24"].attributes,
            "what is rejected goes no further",
        )
        assert heard["192.168.101.0/24"].attributes["BGP.community"] == "(64512,7)"
        eventually(lambda: metrics(b, "192.168.101.0/24"), lambda metrics: 512 in metrics, "the priority is the metric")
        assert "192.168.100.0/24" not in b.fib()
    eventually(b.fib, lambda fib: "192.168.100.0/24" in fib, "the filter is gone")
    eventually(r.fib, lambda fib: "192.168.2.0/26" in fib, "in both directions")
    assert all(unbroken(*pair) for pair in zip(before, (a.since(), b.since(), r.since()), strict=True))


@contextlib.contextmanager
def watched(node: BgpNode) -> Iterator[Callable[[], list[str]]]:
    """Tells afterwards what the kernel has announced of routes, as `ip monitor` says it."""
    command = ["ip", "-n", node.ns.name, "monitor", "route"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as monitor:
        lines: list[str] = []
        try:
            yield lambda: lines
        finally:
            monitor.terminate()
            lines += monitor.communicate()[0].splitlines()


def metrics(node: BgpNode, dst: str) -> set[int]:
    """Of the routes that the kernel has to a destination."""
    return {row["metric"] for row in node.ns.json("-4", "route", "show", dst)}


def test_a_route_whose_metric_changes_leaves_no_other_behind(fabric: Fabric) -> None:
    """BIRD alone does: it would lead on to where a workload was when it was urgent."""
    b, dst = fabric.b, "192.168.101.0/24"
    cluster, stage = state("b", *fabric.cluster()), StaleRoutes(b.bird)

    def swept() -> set[int]:
        assert converge([stage], cluster) == []
        return metrics(b, dst)

    [first] = eventually(swept, lambda metrics: len(metrics) == 1, "whatever has been left before")
    with fabric.changed(*FILTERED):
        eventually(lambda: metrics(b, dst), lambda metrics: metrics == {512, first}, "BIRD forgets the one before")
        assert str(stage.plan(cluster)).endswith(f"proto bird metric {first}")
        assert converge([stage], cluster) == []
        assert metrics(b, dst) == {512}
        assert not stage.plan(cluster)
    eventually(lambda: metrics(b, dst), lambda metrics: first in metrics, "it is as before")
    eventually(swept, lambda metrics: metrics == {first}, "nothing is left of it")


def test_a_route_that_somebody_puts_in_the_place_of_bird_s_is_taken_back(
    fabric: Fabric, caplog: pytest.LogCaptureFixture
) -> None:
    """The first is announced, the second was there before the stage was. What BIRD knows nothing better of stays, what
    has another metric, and what is outside the pools."""
    b, dst = fabric.b, "192.168.1.0/26"
    cluster, stage = state("b", *fabric.cluster()), StolenRoutes(b.bird)
    kept = (
        ("192.168.3.0/26", "via", "10.9.0.9", "metric", "1024", "proto", "static"),
        (dst, "via", "10.9.0.9", "metric", "77", "proto", "static"),
        ("203.0.113.0/24", "via", "10.9.0.9", "metric", "1024", "proto", "static"),
    )

    def whole(fib: Mapping[str, dict[str, object]]) -> bool:
        return fib.get(dst, {}).get("gateway") == "10.9.0.1"

    with contextlib.ExitStack() as stack:
        for words in kept:
            b.ns.ip("route", "add", *words)
            stack.callback(b.ns.ip, "route", "delete", *words)
        eventually(b.fib, whole, "BIRD has its route")
        assert not stage.plan(cluster)
        for one, protocol in ((stage, "static"), (StolenRoutes(b.bird), "bgp")):
            b.ns.ip("route", "replace", dst, "via", "10.9.0.9", "metric", "1024", "proto", protocol)
            assert not whole(b.fib())
            [step] = one.plan(cluster)
            assert str(step).endswith(f"proto {protocol} metric 1024")
            assert converge([one], cluster) == []
            eventually(b.fib, whole, "BIRD writes its own again")
            assert not one.plan(cluster)
        for words in kept:
            assert b.ns.json("route", "show", words[0], "proto", "static"), words
        told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(told) == 2
        assert f"proto static metric 1024 is in the place of BIRD's {dst} via 10.9.0.1 dev eth0 (Mesh_" in told[0]


def test_a_service_and_a_block_appear_and_no_session_notices(fabric: Fabric) -> None:
    """Situations 15, 17, 20 and 31: every node announces the networks, the one with an endpoint the address."""
    a, b, r = fabric.a, fabric.b, fabric.r
    before = a.since(), b.since(), r.since()
    with watched(b) as announced, fabric.changed(*SERVICES, block("a", "192.168.5.0/26")):
        told = eventually(
            lambda: r.table("protocol Global_10_9_0_1"),
            lambda table: {"80.15.0.7/32", "10.96.0.7/32", "192.168.5.0/26"} <= table.keys(),
            "the router hears of the service and of the block",
        )
        assert {"10.96.0.0/12", "80.15.0.0/24"} <= told.keys()
        assert told["80.15.0.7/32"].attributes["BGP.community"] == "(64512,80)"
        assert "80.15.0.7/32" in b.table("protocol Mesh_10_9_0_1")
        assert "80.15.0.7/32" not in b.table("protocol static4")
        eventually(b.fib, lambda fib: "192.168.5.0/26" in fib, "the block is in b's routes")
        for one in (a, b):
            assert not one.fib().keys() & {"80.15.0.7", "80.15.0.0/24", "10.96.0.7", "10.96.0.0/12"}
    eventually(r.fib, lambda fib: "80.15.0.7" not in fib and "192.168.5.0/26" not in fib, "they are gone")
    assert any("192.168.5.0/26" in line for line in announced())
    assert not [line for line in announced() if "192.168.1.0/26" in line or "192.168.100.0/24" in line]
    assert all(unbroken(*pair) for pair in zip(before, (a.since(), b.since(), r.since()), strict=True))


def test_a_password_restarts_its_session_and_no_other(fabric: Fabric) -> None:
    a, r = fabric.a, fabric.r
    before = a.since()
    ours = resources(f"""
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {{name: router}}
spec: {{node: a, peerIP: 10.9.0.9, asNumber: 65001, password: {WITH_PASSWORD}}}
""")
    theirs = resources(f"""
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {{name: a}}
spec: {{peerIP: 10.9.0.1, asNumber: 64512, password: {WITH_PASSWORD}}}
""")
    try:
        with fabric.changed(*SECRET, *ours):
            eventually(a.sessions, lambda up: not up["Node_10_9_0_9"], "one end alone has the password")
            r.configure(*ROUTER, *BEHIND, *SECRET, *theirs)
            eventually(a.sessions, lambda up: up["Node_10_9_0_9"], "both ends have it", seconds=30)
            assert unbroken({"Mesh": before["Mesh_10_9_0_2"]}, {"Mesh": a.since()["Mesh_10_9_0_2"]})
            assert not unbroken(before, a.since())
            assert a.bird.config.stat().st_mode & 0o077 == 0
            assert a.bird.log.stat().st_mode & 0o077 == 0
            assert "hushed" in a.bird.config.read_text()
            assert "hushed" not in a.bird.log.read_text()
    finally:
        r.configure(*ROUTER, *BEHIND)
    eventually(a.sessions, lambda up: up["Node_10_9_0_9"], "nobody has one any more", seconds=30)


def test_what_bird_refuses_replaces_nothing_and_says_why(fabric: Fabric) -> None:
    """Situation 30. Nothing that resources can say is refused, as far as is known: this is said behind their back."""
    a = fabric.a
    good = state("a", *fabric.cluster())
    assert good.routing is not None
    bad = Peer(name="Global_fe80__9", ip=ip_address("10.9.0.9"), remote_as=0, local_as=64512)
    daemon = BirdDaemon(a.bird, 0)
    text, before = a.bird.config.read_text(), a.since()
    [failure] = converge([daemon], replace(good, routing=replace(good.routing, peers=(*good.routing.peers, bad))))
    assert "Remote AS number" in str(failure)
    assert a.bird.config.read_text() == text
    assert unbroken(before, a.since())
    assert converge([daemon], good) == []


def test_an_end_that_is_to_wait_restarts_alone(fabric: Fabric) -> None:
    """Situation 32."""
    a = fabric.a
    good = state("a", *fabric.cluster())
    assert good.routing is not None
    daemon, before = BirdDaemon(a.bird, 0), a.since()
    waiting = tuple(replace(one, passive=one.passive or one.remote_as == 65001) for one in good.routing.peers)
    assert converge([daemon], replace(good, routing=replace(good.routing, peers=waiting))) == []
    eventually(a.since, lambda since: since["Node_10_9_0_9"] != before["Node_10_9_0_9"], "the session begins anew")
    assert unbroken({"Mesh": before["Mesh_10_9_0_2"]}, {"Mesh": a.since()["Mesh_10_9_0_2"]})
    assert converge([daemon], good) == []
    eventually(a.sessions, lambda up: up["Node_10_9_0_9"], "all is as before", seconds=30)


def test_bird_s_own_ipip_waits_for_its_link(fabric: Fabric) -> None:
    """Situations 10 and 11. The kernel of this test may have no tunnels: any link of that name does for a route."""
    a, b = fabric.a, fabric.b

    def pool(mode: str) -> tuple[Resource, ...]:
        return resources(
            """
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool}
spec: {cidr: 192.168.0.0/16, ipipMode: @mode@, vxlanMode: Never}
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {programClusterRoutes: Enabled}
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec: {programClusterRoutes: Disabled}
""",
            mode=mode,
        )

    def of(mode: str) -> DesiredState:
        # Without the pool of the cluster, which would be one that has changed hands.
        return state("a", *(one for one in fabric.cluster() if one.name != "pool"), *pool(mode))

    daemon, before = BirdDaemon(a.bird, 0), a.since()
    try:
        assert converge([daemon], of("Always")) == []
        eventually(a.fib, lambda fib: "192.168.2.0/26" not in fib, "no route as long as there is no tunnel")
        a.ns.ip("link", "add", "tunl0", "type", "veth", "peer", "name", "far")
        for name in ("tunl0", "far"):
            a.ns.ip("link", "set", name, "up")
        a.ns.ip("addr", "add", "192.168.1.0/32", "dev", "tunl0")
        assert converge([daemon], of("Always")) == []
        fib = eventually(a.fib, lambda fib: "192.168.2.0/26" in fib, "the tunnel is there")
        row = fib["192.168.2.0/26"]
        assert (row["gateway"], row["dev"], row["metric"]) == ("10.9.0.2", "tunl0", 1024)
        assert "onlink" in row["flags"]
        assert "192.168.1.0" not in b.fib()  # the tunnel's own address
        assert converge([daemon], of("CrossSubnet")) == []
        eventually(a.fib, lambda fib: fib.get("192.168.2.0/26", {}).get("dev") == "eth0", "b is in the same subnet")
        assert unbroken(before, a.since())
    finally:
        a.configure(*fabric.cluster())
        a.ns.run("ip", "link", "del", "tunl0", check=False)
    eventually(a.fib, lambda fib: "192.168.2.0/26" in fib, "all is as before")


def test_a_workload_is_a_peer(fabric: Fabric) -> None:
    """It dials an address on its own interface of the host, which may come after BIRD."""
    a, b = fabric.a, fabric.b
    pod = fabric.make_ns("w")
    a.ns.ip("link", "add", "cali1", "type", "veth", "peer", "name", "eth0", "netns", pod.name)
    for ns, name in ((a.ns, "cali1"), (pod, "eth0")):
        ns.ip("link", "set", name, "up")
    pod.ip("addr", "add", "192.168.1.5/32", "dev", "eth0")
    pod.ip("route", "add", "169.254.7.7", "dev", "eth0", "scope", "link")
    a.ns.ip("route", "add", "192.168.1.5", "dev", "cali1", "metric", "1024")
    wanted = state("a", *fabric.cluster(*WORKLOADS))
    daemon, addresses = BirdDaemon(a.bird, 0), PeeringAddresses(a.ns.path)
    speaker = BgpNode("w", pod, fabric.directory / "w")
    try:
        assert converge([daemon], wanted) == []
        assert eventually(a.bird.deaf, what="there is nothing to listen on")
        assert daemon.plan(wanted).again
        assert converge([daemon], wanted) == []
        assert eventually(a.bird.deaf, what="there still is nothing")
        assert not daemon.plan(wanted).again, "it is left alone for a while"
        assert str(addresses.plan(wanted)) == "ip address add 169.254.7.7/32 dev cali1"
        assert converge([addresses, daemon], wanted) == []
        assert not a.bird.deaf()
        assert "169.254.7.7" in str(a.ns.json("addr", "show", "dev", "cali1"))
        speaker.start(*WORKLOAD, block("w", "192.168.77.0/26"))
        eventually(a.sessions, lambda up: up["Local_Workload_192_168_1_5"], "the workload has dialled")
        route = eventually(a.fib, lambda fib: "192.168.77.0/26" in fib, "its network is known")["192.168.77.0/26"]
        assert (route["gateway"], route["dev"]) == ("192.168.1.5", "cali1")
        assert eventually(speaker.table, lambda table: "192.168.2.0/26" in table, "it hears of the cluster")
        listening = a.ns.run("ss", "-Hlnt", "sport = :179").split()
        assert {word for word in listening if word.endswith(":179")} == {"10.9.0.1:179", "169.254.7.7:179"}
        assert converge([addresses], state("a", *fabric.cluster())) == []
        assert "169.254" not in str(a.ns.json("addr", "show", "dev", "cali1"))
    finally:
        speaker.bird.stop()
        for one in (a, b):
            one.configure(*fabric.cluster())
        a.ns.run("ip", "link", "del", "cali1", check=False)
