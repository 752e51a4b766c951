"""Established connections past the rules, on a kernel that has flow tables: what goes by them, what does not, and that
no connection notices when they come, change and go."""

from __future__ import annotations

import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from namespaces import Ns, namespaces
from tortie.base.addr import parse_ip
from tortie.calc.cluster import Cluster
from tortie.calc.flow_tables import FlowTable
from tortie.calc.state import DesiredState
from tortie.dataplane.attachment import Attachment, attach
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.departed_flows import Departed, ReusedAddresses
from tortie.dataplane.stages.established import Established
from tortie.dataplane.stages.flow_tables import FlowTables
from tortie.dataplane.stages.nft import Nft
from tortie.dataplane.stages.qos import Qos
from tortie.kernel import nft
from tortie.kernel.netns import entered
from tortie.model.document import parse
from tortie.render.flow_tables import TABLE, fresh, more

pytestmark = pytest.mark.root

PATIENCE = 10.0
WORDS = 20
"""Said in either direction, a packet each at least."""
MANY = 300
"""Links: more than a message to nf_tables may name."""
PODS = {"a": "10.244.0.10 fd00:244::10", "b": "10.244.0.11 fd00:244::11"}
OUTSIDE = "198.51.100.9 2001:db8:51::9"
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
VERSIONS = pytest.mark.parametrize("version", [4, 6])

CLUSTER = """
apiVersion: v1
kind: Namespace
metadata: {name: red}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: node}
spec: {bgp: {ipv4Address: 198.51.100.1/24, ipv6Address: "2001:db8:51::1/64"}}
"""
ENDPOINT = """
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata:
  name: node-k8s-NAME-eth0
  namespace: red
  labels: {app: NAME, projectcalico.org/namespace: red, projectcalico.org/orchestrator: k8s}
spec:
  {orchestrator: k8s, node: node, pod: NAME, endpoint: eth0, interfaceName: caliNAME, profiles: [kns.red],
   ipNetworks: [NETS], qosControls: {LIMITS}}
"""
SAID = """
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default, annotations: {ANNOTATIONS}}
"""
ENABLED = "tortie.dev/flow-tables: Enabled"
CLOSED = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: closed}
spec: {selector: app == 'b', types: [Ingress]}
"""
UPLINK = """
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: uplink, labels: {host: uplink}}
spec: {node: node, interfaceName: eth0}
"""
UNTRACKED = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: blocked}
spec:
  {selector: host == 'uplink', types: [Ingress], doNotTrack: true, applyOnForward: true,
   ingress: [{action: Deny, source: {nets: ["NET"]}}]}
"""
LOOK = """
add table inet look
add chain inet look forward { type filter hook forward priority 200; }
add rule inet look forward meta l4proto tcp counter comment "forwarded"
"""
HEARD = """
add table inet look
add chain inet look input { type filter hook input priority 0; }
add rule inet look input meta l4proto tcp counter comment "heard"
"""


def endpoint(name: str, ips: str, limits: str = "") -> str:
    nets = ", ".join(f'"{ip}/{parse_ip(ip).max_prefixlen}"' for ip in ips.split())
    return ENDPOINT.replace("NAME", name).replace("NETS", nets).replace("LIMITS", limits)


@dataclass
class World:
    node: Ns
    places: dict[str, Ns]
    stage: FlowTables
    reused: ReusedAddresses

    def follow(self, *more: str, said: str = ENABLED, limits: str = "", pods: Mapping[str, str] = PODS) -> DesiredState:
        """The datastore is like this now, and the node follows. `limits` are those of pod b."""
        cluster = Cluster("node")
        endpoints = (endpoint(name, ips, limits if name == "b" else "") for name, ips in pods.items())
        texts = (CLUSTER, *endpoints, SAID.replace("ANNOTATIONS", said), *more)
        for resource in parse("---".join(texts)):
            cluster.put(resource)
        assert not cluster.problems
        state = cluster.state()
        stages = (
            Nft(self.node.path), self.reused, Qos(self.node.path), Established(self.node.path), self.stage,
        )  # fmt: skip
        assert converge(stages, state) == []
        return state

    def forwarded(self) -> int:
        """TCP packets that have come by the rules."""
        return nft.counters("inet look", self.node.path)["forwarded"][0]

    def devices(self) -> set[str]:
        return listed(self.node)


def listed(ns: Ns) -> set[str]:
    """The links of the flow table; empty where there is none."""
    every = nft.list_json(["list", "flowtables", "inet"], ns.path)
    devices = (one["flowtable"].get("dev", ()) for one in every if "flowtable" in one)
    return {name for one in devices for name in ([one] if isinstance(one, str) else one)}


@pytest.fixture(scope="module")
def built() -> Iterator[World]:
    with ExitStack() as stack:
        maker = namespaces()
        make: Callable[..., Ns] = next(maker)
        stack.callback(lambda: next(maker, None))
        node, outside = make("node"), make("x")
        for ns, last in ((node, "1"), (outside, "9")):
            ns.run("sysctl", "-wq", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
            ns.run("sysctl", "-wq", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")
            if last == "1":
                ns.ip("link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", outside.name)
            ns.batch(
                f"addr add 198.51.100.{last}/24 dev eth0",
                f"addr add 2001:db8:51::{last}/64 dev eth0 nodad",
                "link set eth0 up",
            )
        outside.batch("route add 10.244.0.0/24 via 198.51.100.1", "route add fd00:244::/64 via 2001:db8:51::1")
        node.batch("route add default via 198.51.100.9", "route add default via 2001:db8:51::9")
        places = {"x": outside}
        for name, ips in PODS.items():
            places[name] = make(name)
            connect(node, places[name], name, ips)
        nft.apply(LOOK, node.path)
        yield World(node, places, FlowTables(node.path), ReusedAddresses(Departed(), node.path))


def connect(node: Ns, pod: Ns, name: str, ips: str) -> None:
    every = tuple(map(parse_ip, ips.split()))
    attach(Attachment(pod.path, "eth0", f"cali{name}", every, host_netns=node.path))
    for ip in every:
        node.ip("route", "replace", str(ip), "dev", f"cali{name}")


@pytest.fixture
def world(built: World) -> Iterator[World]:
    """With an agent's stage that has just begun, and without a table."""
    built.stage = FlowTables(built.node.path)
    yield built
    built.follow(said="")
    assert built.devices() == set()


class Talk:
    """An established connection, and words that go both ways."""

    def __init__(self, world: World, source: str, destination: str, version: int, by: str = "") -> None:
        """`by` is the address that is called, if it is another than the destination's."""
        ips = {**PODS, "x": OUTSIDE}[destination].split()
        with entered(world.places[destination].path):
            listener = socket.create_server((ips[version == 6], 0), family=FAMILY[version])
        listener.settimeout(PATIENCE)
        with entered(world.places[source].path):
            self.client = socket.socket(FAMILY[version])
        self.client.settimeout(PATIENCE)
        self.client.connect((by or ips[version == 6], listener.getsockname()[1]))
        self.server = listener.accept()[0]
        listener.close()
        for end in (self.client, self.server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.close()

    def words(self, count: int = WORDS) -> None:
        """As many each way, each of which is heard."""
        for number in range(count):
            for speaker, listener in ((self.client, self.server), (self.server, self.client)):
                speaker.send(b"%06d" % number)
                ready, _, _ = select.select([listener], [], [], PATIENCE)
                assert ready, f"word {number} was not heard"
                assert listener.recv(64) == b"%06d" % number

    def past(self, world: World) -> bool:
        """Whether what is said now goes past the rules, in both directions."""
        self.words(3)  # the first that is seen as established puts the connection into the table
        before = world.forwarded()
        self.words()
        seen = world.forwarded() - before
        assert seen == 0 or seen >= 2 * WORDS, f"{seen} of at least {2 * WORDS} packets came by the rules"
        return seen == 0


@VERSIONS
@pytest.mark.parametrize("ends", [("a", "x"), ("x", "a"), ("a", "b")], ids="-".join)
def test_established_connections_go_past_the_rules(world: World, version: int, ends: tuple[str, str]) -> None:
    world.follow()
    assert world.devices() == {"eth0", "calia", "calib"}
    with Talk(world, *ends, version) as talk:
        assert talk.past(world)


def test_first_packets_are_still_asked_and_what_is_established_goes_on(world: World) -> None:
    world.follow()
    with Talk(world, "a", "b", 4) as talk:
        assert talk.past(world)
        world.follow(CLOSED)
        assert talk.past(world)
        with entered(world.places["a"].path), socket.socket() as late:
            late.settimeout(1.5)
            with pytest.raises(TimeoutError):
                late.connect((PODS["b"].split()[0], 9))


@pytest.mark.parametrize(("elsewhere", "blocked"), [("203.0.113.0/24", "198.51.100.9/32"), ("2001:db8:9::/64", "::/0")])
def test_what_is_denied_before_connection_tracking_does_not_go_past(world: World, elsewhere: str, blocked: str) -> None:
    """Each packet is asked about: also those of connections that are in the table."""
    world.follow()
    with Talk(world, "x", "b", 6 if ":" in blocked else 4) as talk:
        assert talk.past(world)
        world.follow(UPLINK, UNTRACKED.replace("NET", elsewhere))
        assert world.devices() == {"calia", "calib"}
        talk.words()
        world.follow(UPLINK, UNTRACKED.replace("NET", blocked))
        talk.client.send(b"anybody?")
        assert select.select([talk.server], [], [], 1.0)[0] == []


def test_a_pod_with_a_limit_of_packets_takes_the_way_by_the_rules(world: World) -> None:
    """Also one that gets its limit while connections of it are in the table."""
    world.follow()
    with Talk(world, "a", "b", 4) as talk, Talk(world, "a", "x", 4) as other:
        assert talk.past(world)
        world.follow(limits="ingressPacketRate: 10000, ingressPacketBurst: 10000")
        assert world.devices() == {"eth0", "calia"}
        assert not talk.past(world)
        assert other.past(world)
        world.follow()
        assert talk.past(world)


@pytest.mark.parametrize("way", ["ingress", "egress"])
def test_a_limit_of_bandwidth_holds_past_the_rules(world: World, way: str) -> None:
    """2 MB at a megabyte a second, of which the burst takes a part."""
    world.follow(limits=f"{way}Bandwidth: 8000000, {way}Burst: 800000")
    assert "calib" in world.devices()
    with Talk(world, "x", "b", 4) as talk:
        talk.words(3)
        speaker, listener = (talk.client, talk.server) if way == "ingress" else (talk.server, talk.client)
        began = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(speaker.sendall, bytes(2_000_000))
            left = 2_000_000
            while left:
                left -= len(listener.recv(1 << 16))
            sent.result(PATIENCE)
        assert 1.0 < time.monotonic() - began < 6.0


def test_no_connection_notices_that_the_table_comes_and_goes(world: World) -> None:
    world.follow(said="")
    with Talk(world, "a", "x", 4) as talk, Talk(world, "x", "b", 6) as other:
        for one in (talk, other):
            assert not one.past(world)
        for _ in range(3):
            world.follow()
            assert talk.past(world)
            assert other.past(world)
            world.follow(said="")
            assert not talk.past(world)
            assert not other.past(world)


@VERSIONS
def test_translated_connections_go_past_the_rules_too(world: World, version: int) -> None:
    """To an address of a service, and with the node's own address to the outside."""
    world.follow()
    pod, outside, service = (ips.split()[version == 6] for ips in (PODS["a"], OUTSIDE, "10.96.0.10 fd00:96::10"))
    family = {4: "ip", 6: "ip6"}[version]
    nft.apply(
        f"""
        add table {family} nat
        add chain {family} nat to {{ type nat hook prerouting priority dstnat; }}
        add rule {family} nat to {family} daddr {service} dnat to {outside}
        add chain {family} nat from {{ type nat hook postrouting priority srcnat; }}
        add rule {family} nat from {family} saddr {pod} masquerade
        """,
        world.node.path,
    )
    with Talk(world, "a", "x", version, by=service) as talk:
        assert talk.server.getpeername()[0] == {4: "198.51.100.1", 6: "2001:db8:51::1"}[version]
        assert talk.past(world)
    nft.apply(f"delete table {family} nat\n", world.node.path)


def test_what_is_to_be_cut_is_seen_and_cut(world: World) -> None:
    cut = f"{ENABLED}, tortie.dev/established-flows: Cut"
    world.follow()
    with Talk(world, "a", "b", 4) as talk:
        assert talk.past(world)
        world.follow(said=cut)
        assert world.devices() == set()
        talk.words()
        world.follow(CLOSED, said=cut)
        talk.client.send(b"anybody?")
        assert select.select([talk.server], [], [], 1.0)[0] == []


def test_an_agent_that_begins_makes_the_table_its_own(world: World) -> None:
    world.follow()
    with Talk(world, "a", "x", 4) as talk:
        assert talk.past(world)
        subprocess.run(["nsenter", f"--net={world.node.path}", "nft", "flush", "table", *TABLE.split()], check=True)
        world.stage = FlowTables(world.node.path)
        world.follow()
        assert talk.past(world)
        subprocess.run(["nsenter", f"--net={world.node.path}", "nft", "delete", "table", *TABLE.split()], check=True)
        world.stage.forget()
        world.follow()
        assert talk.past(world)


def test_a_link_that_is_made_again_is_in_the_table_again(world: World) -> None:
    world.follow()
    world.node.ip("link", "delete", "calib")
    world.follow()
    assert world.devices() == {"eth0", "calia"}
    connect(world.node, world.places["b"], "b", PODS["b"])
    world.follow()
    assert world.devices() == {"eth0", "calia", "calib"}
    with Talk(world, "x", "b", 4) as talk:
        assert talk.past(world)


@VERSIONS
def test_who_is_given_an_address_gets_nothing_of_the_pod_before(
    world: World, version: int, make_ns: Callable[..., Ns]
) -> None:
    world.follow()
    before, after = world.places["b"], make_ns("c")
    try:
        with Talk(world, "x", "b", version) as talk:
            assert talk.past(world)
            world.node.ip("link", "delete", "calib")
            world.follow(pods={"a": PODS["a"]})
            connect(world.node, after, "b", PODS["b"])
            world.follow(CLOSED)
            nft.apply(HEARD, after.path)
            talk.client.send(b"anybody?")
            time.sleep(1.0)  # and what TCP says again
            assert nft.counters("inet look", after.path)["heard"][0] == 0
        world.node.ip("link", "delete", "calib")
    finally:
        connect(world.node, before, "b", PODS["b"])


@VERSIONS
def test_a_pod_that_loses_an_address_sends_nothing_from_it(world: World, version: int) -> None:
    world.follow()
    with Talk(world, "x", "b", version) as talk:
        assert talk.past(world)
        world.follow(pods=PODS | {"b": PODS["b"].split()[version == 4]})
        talk.server.send(b"anybody?")
        assert select.select([talk.client], [], [], 1.0)[0] == []


def test_a_way_that_changes_takes_connections_along(world: World) -> None:
    world.follow()
    with Talk(world, "a", "x", 4) as talk:
        assert talk.past(world)
        pod = PODS["a"].split()[0]
        world.places["x"].ip("route", "del", "10.244.0.0/24")
        world.places["x"].ip("route", "add", pod, "via", "198.51.100.1")
        world.node.ip("route", "replace", pod, "dev", "calia", "metric", "5")
        assert talk.past(world)
        world.node.ip("route", "del", pod, "dev", "calia", "metric", "5")
        world.places["x"].ip("route", "add", "10.244.0.0/24", "via", "198.51.100.1")
        assert talk.past(world)


def test_more_links_than_the_kernel_takes_at_once(ns: Ns) -> None:
    first, second = (frozenset(f"cali{kind}{number}" for number in range(MANY)) for kind in "ab")
    ns.batch(*(f"link add {name} type dummy" for name in first | second))
    nft.apply(fresh(FlowTable(first)), ns.path)
    assert listed(ns) == first
    nft.apply(more(second), ns.path)
    assert listed(ns) == first | second
