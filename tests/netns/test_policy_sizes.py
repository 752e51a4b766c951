"""Large Kubernetes policies, which know no limits: the kernel takes them, and enforces every part of them.

outside ── eth0 ── node ── cali00000000000 ── the pod       from any address to any port
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tortie.base.addr import parse_ip
from tortie.calc.cluster import Cluster
from tortie.dataplane.attachment import Attachment, attach
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.nft import Nft, remains
from tortie.dataplane.stages.routes import Routes
from tortie.kernel import netns, nft, sysctl
from tortie.model.document import convert
from tortie.model.k8s import K8sNetworkPolicy, Namespace
from tortie.model.meta import Resource
from tortie.model.workload import WorkloadEndpoint
from tortie.policy.rules import end_of_tier_id
from tortie.render.ruleset import TABLE

pytestmark = pytest.mark.root

POD, INTERFACE = "10.244.1.10", "cali00000000000"
NEAR, FAR = "192.0.2.1", "192.0.2.2"
STRANGER = "203.0.113.9"
PORTS, NETS, MEMBERS, ROW = 1_000, 500, 10_000, 300
IP_TRANSPARENT = 19  # linux/in.h: send from an address that the host does not have
PATIENCE = 5.0

Probe = tuple[str, int]
"""From which address, to which port of the pod."""


@dataclass
class Node:
    """A node with a pod, and what is outside."""

    host: str
    pod: str
    outside: str
    cluster: Cluster = field(default_factory=lambda: Cluster("node"))

    def __post_init__(self) -> None:
        self.stages = [Nft(self.host), Routes(self.host)]
        self.cluster.put(convert(Namespace, {"metadata": {"name": "red", "labels": {"team": "red"}}}))
        self.cluster.put(endpoint("node", "pod", INTERFACE, POD, {"app": "target"}))
        self.follow("a pod without policy")

    def follow(self, words: str) -> None:
        """The kernel becomes as the cluster says, and nothing remains to be done."""
        state = self.cluster.state()
        began = time.perf_counter()
        script = self.stages[0].plan(state)
        planned = time.perf_counter()
        assert converge(self.stages, state) == []
        done = time.perf_counter()
        lines = str(script).count("\n")
        print(
            f"{words}: {1000 * (planned - began):.0f} ms to plan {lines} lines, {1000 * (done - planned):.0f} to apply"
        )
        assert not self.stages[0].plan(state)

    def heard(self, probes: Iterable[Probe]) -> set[Probe]:
        """Which of them arrive. All others are counted where nothing has let them in."""
        every, found, before = list(probes), set(), self.denied()
        with contextlib.ExitStack() as stack:
            with netns.entered(self.pod):
                listening = {port: stack.enter_context(listener(port)) for port in {port for _, port in every}}
            with netns.entered(self.outside):
                for ip, port in every:
                    send(ip, (POD, port))
            deadline = time.monotonic() + PATIENCE
            while len(found) + self.denied() - before < len(every):
                found |= {(ip, port) for port, one in listening.items() for ip in received(one)}
                assert time.monotonic() < deadline, f"of {every} only {found} have arrived, and others were not denied"
        return found

    def denied(self) -> int:
        return nft.counters(TABLE, self.host).get(end_of_tier_id("default", INTERFACE, "ingress"), (0, 0))[0]


def listener(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.bind((POD, port))
    return made


def send(source: str, target: Probe) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        made.bind((source, 0))
        made.sendto(b"hello", target)


def received(made: socket.socket) -> Iterator[str]:
    with contextlib.suppress(BlockingIOError):
        while True:
            yield made.recvfrom(10)[1][0]


def endpoint(node: str, name: str, interface: str, ip: str, labels: dict[str, str]) -> Resource:
    own = {"projectcalico.org/namespace": "red", "projectcalico.org/orchestrator": "k8s"}
    metadata = {"name": f"{node}-k8s-{name}-eth0", "namespace": "red", "labels": labels | own}
    spec = {
        "node": node,
        "orchestrator": "k8s",
        "pod": name,
        "endpoint": "eth0",
        "interfaceName": interface,
        "ipNetworks": [f"{ip}/32"],
        "profiles": ["kns.red"],
    }
    return convert(WorkloadEndpoint, {"metadata": metadata, "spec": spec})


def remote(number: int, **labels: str) -> Resource:
    return endpoint("other", f"r{number}", f"cali{number:011x}", member(number), labels)


def member(number: int) -> str:
    return f"10.66.{number >> 8}.{number & 255}"


def policy(name: str, *, ports: Any = None, peers: Any = None) -> Resource:
    rule = {**({"ports": ports} if ports else {}), **({"from": peers} if peers else {})}
    spec = {"podSelector": {"matchLabels": {"app": "target"}}, "policyTypes": ["Ingress"], "ingress": [rule]}
    return convert(K8sNetworkPolicy, {"metadata": {"name": name, "namespace": "red"}, "spec": spec})


@pytest.fixture
def node() -> Iterator[Node]:
    with contextlib.ExitStack() as stack:
        names = [f"tt-{os.getpid()}-sizes-{name}" for name in ("node", "pod", "out")]
        for name in names:
            stack.callback(netns.delete, name)
        host, pod, outside = map(netns.create, names)
        run("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "eth0", "netns", names[2])
        for name, ip in ((names[0], NEAR), (names[2], FAR)):
            run("-n", name, "addr", "add", f"{ip}/24", "dev", "eth0")
            run("-n", name, "link", "set", "eth0", "up")
        run("-n", names[0], "route", "add", "default", "via", FAR)
        run("-n", names[2], "route", "add", f"{POD}/32", "via", NEAR)
        with netns.entered(host):
            sysctl.write("net/ipv4/ip_forward", 1)
        attach(Attachment(pod, "eth0", INTERFACE, (parse_ip(POD),), host_netns=host))
        made = Node(host, pod, outside)
        assert made.heard([(STRANGER, 80)])  # and everybody knows his neighbours
        yield made


def run(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=30)


def test_a_thousand_ports(node: Node) -> None:
    """Every second one, so that none can be joined to another."""
    ports: list[dict[str, Any]] = [{"protocol": "UDP", "port": 10_000 + 2 * i} for i in range(PORTS)]
    node.cluster.put(policy("ports", ports=ports))
    node.follow(f"{PORTS} ports")
    asked = [*range(9_998, 10_006), 11_111, 11_112, *range(11_994, 12_003)]
    allowed = {port for port in asked if 10_000 <= port < 12_000 and port % 2 == 0}
    assert node.heard((STRANGER, port) for port in asked) == {(STRANGER, port) for port in allowed}
    node.cluster.put(policy("ports", ports=[*ports[:-1], {"protocol": "UDP", "port": 12_001}]))
    node.follow("another port")
    assert node.heard([(STRANGER, 11_998), (STRANGER, 12_001)]) == {(STRANGER, 12_001)}


def test_a_thousand_ranges_of_ports(node: Node) -> None:
    ports = [{"protocol": "UDP", "port": 10_000 + 10 * i, "endPort": 10_004 + 10 * i} for i in range(PORTS)]
    node.cluster.put(policy("ranges", ports=ports))
    node.follow(f"{PORTS} ranges of ports")
    asked = [9_999, 10_000, 10_004, 10_005, 15_002, 15_007, 19_990, 19_994, 19_995]
    allowed = {port for port in asked if port >= 10_000 and port % 10 < 5}
    assert node.heard((STRANGER, port) for port in asked) == {(STRANGER, port) for port in allowed}


def test_five_hundred_exceptions(node: Node) -> None:
    nets = [f"10.{i >> 6}.{4 * (i & 63)}.0/{22 + i % 3}" for i in range(NETS)]
    node.cluster.put(policy("nets", peers=[{"ipBlock": {"cidr": "10.0.0.0/8", "except": nets}}]))
    node.follow(f"{NETS} exceptions")
    inside = ["10.0.0.1", "10.0.5.255", "10.3.252.1", "10.7.204.0"]
    outside = ["10.0.6.0", "10.0.7.255", "10.0.9.0", "10.7.255.1", "10.255.255.255"]
    assert node.heard((ip, 80) for ip in [*inside, *outside, STRANGER, "9.255.255.255", "11.0.0.0"]) == {
        (ip, 80) for ip in outside
    }
    node.cluster.put(policy("nets", peers=[{"ipBlock": {"cidr": "10.0.0.0/8", "except": nets[1:]}}]))
    node.follow("one exception less")
    assert node.heard((ip, 80) for ip in inside) == {("10.0.0.1", 80)}


def test_five_hundred_blocks(node: Node) -> None:
    """As many peers, which is a rule for each of them."""
    blocks = [{"ipBlock": {"cidr": f"10.{i >> 6}.{4 * (i & 63)}.0/23"}} for i in range(NETS)]
    node.cluster.put(policy("blocks", peers=blocks))
    node.follow(f"{NETS} blocks")
    inside, outside = ["10.0.0.1", "10.0.5.255", "10.7.205.0"], ["10.0.2.0", "10.7.208.1", STRANGER]
    assert node.heard((ip, 80) for ip in inside + outside) == {(ip, 80) for ip in inside}


def test_ten_thousand_members(node: Node) -> None:
    for number in range(MEMBERS):
        node.cluster.put(remote(number, app="peer"))
    peers = [{"podSelector": {"matchLabels": {"app": "peer"}}}]
    node.cluster.put(policy("peers", peers=peers, ports=[{"protocol": "UDP", "port": 80}]))
    node.follow(f"{MEMBERS} members")
    members = [member(number) for number in (0, 255, 256, 5_000, MEMBERS - 1)]
    assert node.heard((ip, 80) for ip in [*members, member(MEMBERS), STRANGER]) == {(ip, 80) for ip in members}
    node.cluster.put(remote(MEMBERS, app="peer"))
    node.cluster.put(remote(5_000, app="other"))
    node.follow("one member more, one less")
    assert node.heard((member(number), 80) for number in (MEMBERS, 5_000)) == {(member(MEMBERS), 80)}


def test_three_hundred_policies_of_one_pod(node: Node) -> None:
    """Each lets another application in, at a port of its own; they are looked up by who comes."""
    for number in range(ROW):
        node.cluster.put(remote(number, app=f"a{number}", kind="odd" if number % 2 else "even"))
        peers = [{"podSelector": {"matchLabels": {"app": f"a{number}"}}}]
        node.cluster.put(policy(f"p{number:03}", peers=peers, ports=[{"protocol": "UDP", "port": 1_000 + number}]))
    node.follow(f"{ROW} policies")
    assert any(name.startswith("ri4-") for name in remains(node.host).sets)
    numbers = (0, 1, 31, 150, 298, 299)
    every = [(member(number), 1_000 + port) for number in numbers for port in numbers] + [(STRANGER, 1_000)]
    assert node.heard(every) == {(member(number), 1_000 + number) for number in numbers}
    several = [{"podSelector": {"matchLabels": {"kind": "odd"}}}]
    node.cluster.put(policy("p150", peers=several, ports=[{"protocol": "UDP", "port": 1_150}]))
    node.cluster.put(remote(298, app="a299"))
    node.cluster.drop(K8sNetworkPolicy, "red", "p031")
    node.follow("three changes")
    wanted = {0: {0}, 1: {1, 150}, 31: {150}, 150: set(), 298: {299}, 299: {150, 299}}
    assert node.heard(every) == {(member(who), 1_000 + port) for who, ports in wanted.items() for port in ports}
    strangers = [{"ipBlock": {"cidr": "203.0.113.0/24"}}]  # which makes a map of networks of one of addresses
    node.cluster.put(policy("p000", peers=strangers, ports=[{"protocol": "UDP", "port": 1_000}]))
    node.follow("a network among them")
    wanted[0] = set()
    heard = {(member(who), 1_000 + port) for who, ports in wanted.items() for port in ports} | {(STRANGER, 1_000)}
    assert node.heard(every) == heard


def test_a_hundred_policies_of_networks_and_of_pods(node: Node) -> None:
    """Networks that lie inside one another, and a pod with an address of theirs."""
    node.cluster.put(remote(0, app="peer"))
    node.cluster.put(
        policy("all", peers=[{"ipBlock": {"cidr": "10.0.0.0/8"}}], ports=[{"protocol": "UDP", "port": 53}])
    )
    pods = [{"podSelector": {"matchLabels": {"app": "peer"}}}]
    node.cluster.put(policy("peer", peers=pods, ports=[{"protocol": "UDP", "port": 80}]))
    for number in range(100):
        block = {"cidr": f"10.{number}.0.0/16", "except": [f"10.{number}.128.0/17"]}
        node.cluster.put(
            policy(f"n{number}", peers=[{"ipBlock": block}], ports=[{"protocol": "UDP", "port": number + 1}])
        )
    node.follow("102 policies, most of networks")
    assert any(name.startswith("ri4-") for name in remains(node.host).sets)
    every = [
        (ip, port)
        for ip in ("10.7.0.1", "10.7.127.255", "10.7.128.0", "10.8.0.0", member(0), "10.255.255.255", STRANGER)
        for port in (8, 9, 53, 67, 80)
    ]
    wanted = {(ip, 53) for ip, _ in every if ip != STRANGER}
    wanted |= {("10.7.0.1", 8), ("10.7.127.255", 8), ("10.8.0.0", 9), (member(0), 67), (member(0), 80)}
    assert node.heard(every) == wanted
    node.cluster.put(policy("n7", peers=[{"ipBlock": {"cidr": "10.8.0.0/32"}}], ports=[{"protocol": "UDP", "port": 8}]))
    node.cluster.put(remote(0, app="other"))
    node.follow("another network, and a pod less")
    gone = {("10.7.0.1", 8), ("10.7.127.255", 8), (member(0), 80)}
    assert node.heard(every) == wanted - gone | {("10.8.0.0", 8)}
