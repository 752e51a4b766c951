"""The stages alone, against the kernel: from whatever there is to what should be, and no further step after that.

What the kernel has is read back with `ip -j` and `nft -j`, never with the stages' own eyes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from conftest import Ns

from tortie.base.errors import KernelError
from tortie.calc.cluster import Cluster
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Failure, Stage, converge
from tortie.dataplane.overlay import overlay_stages
from tortie.dataplane.stages.nft import Nft
from tortie.dataplane.stages.routes import Routes
from tortie.dataplane.worker import Worker
from tortie.kernel import events
from tortie.model.document import parse
from tortie.model.ipam import BlockAffinity, BlockAffinitySpec
from tortie.model.meta import Metadata
from tortie.model.node import FelixConfiguration, FelixConfigurationSpec
from tortie.model.workload import WorkloadEndpoint, WorkloadEndpointSpec

pytestmark = pytest.mark.root

SEED = int(os.environ.get("TORTIE_SEED") or random.randrange(2**32))
"""Printed by what fails; TORTIE_SEED repeats a run."""

NODE = "node1"
PODS = tuple(f"p{number}" for number in range(6))
BLOCKS = ("10.65.0.0/26", "10.65.0.64/26", "fd00:65::/122")
POLICIES = parse("""
apiVersion: v1
kind: Namespace
metadata: {name: red, labels: {team: red}}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: web, namespace: red}
spec:
  selector: app == 'web'
  ingress:
  - {action: Allow, protocol: TCP, source: {selector: "app == 'db'"}, destination: {ports: [80, "8000:8080"]}}
  egress:
  - {action: Allow, destination: {nets: [10.0.0.0/8, 192.0.2.0/24]}}
  - {action: Log}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: none}
spec: {selector: "app == 'db'", order: 7, ingress: [{action: Deny, protocol: ICMP, icmp: {type: 8}}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: all, namespace: red}
spec: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{namespaceSelector: {}}]}]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: outside, labels: {app: db}}
spec: {nets: [198.51.100.0/24, "2001:db8::/64", 203.0.113.7/32]}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool4}
spec: {cidr: 10.65.0.0/16, natOutgoing: true, ipipMode: Never, vxlanMode: Never}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool6}
spec: {cidr: "fd00:65::/48", natOutgoing: true, ipipMode: Never, vxlanMode: Never}
""")


def interface(pod: str) -> str:
    return f"cali{PODS.index(pod):011d}"


def endpoint(pod: str, *ips: str, app: str = "web") -> WorkloadEndpoint:
    nets = tuple(f"{ip}/{128 if ':' in ip else 32}" for ip in ips)
    labels = {"app": app, "projectcalico.org/namespace": "red"}
    spec = WorkloadEndpointSpec(
        orchestrator="k8s", node=NODE, pod=pod, endpoint="eth0", ip_networks=nets, interface_name=interface(pod)
    )
    return WorkloadEndpoint(metadata=Metadata(name=f"{NODE}-k8s-{pod}-eth0", namespace="red", labels=labels), spec=spec)


def affinity(number: int) -> BlockAffinity:
    spec = BlockAffinitySpec(cidr=BLOCKS[number], node=NODE, state="confirmed", deleted=False)
    return BlockAffinity(metadata=Metadata(name=f"block{number}"), spec=spec)


def settings(**fields: Any) -> FelixConfiguration:
    return FelixConfiguration(metadata=Metadata(name="default"), spec=FelixConfigurationSpec(**fields))


@dataclass
class World:
    """A cluster that changes at random, and what its node's routes must be then."""

    rng: random.Random
    cluster: Cluster = field(default_factory=lambda: Cluster(NODE, bird=False))
    endpoints: dict[str, tuple[str, ...]] = field(default_factory=dict)
    blocks: set[str] = field(default_factory=set)
    metric: int = 1024

    def step(self) -> DesiredState:
        rng = self.rng
        for pod in rng.sample(PODS, rng.randint(1, 3)):
            self.move(pod)
        for resource in rng.sample(POLICIES, rng.randint(0, 3)):
            if rng.random() < 0.7:
                self.cluster.put(resource)
            else:
                self.cluster.drop(type(resource), resource.namespace, resource.name)
        self.metric = rng.choice((1024, 1024, 512))
        action = rng.choice(("Drop", "Accept", "Return"))
        felix = settings(
            ipv4_normal_route_priority=self.metric,
            ipv6_normal_route_priority=self.metric,
            default_endpoint_to_host_action=action,
        )
        self.cluster.put(felix)
        for number, cidr in enumerate(BLOCKS):
            if rng.random() < 0.5:
                self.cluster.put(affinity(number))
                self.blocks.add(cidr)
            else:
                self.cluster.drop(BlockAffinity, "", f"block{number}")
                self.blocks.discard(cidr)
        return self.cluster.state()

    def move(self, pod: str) -> None:
        """It goes, comes, or gets other addresses, perhaps another pod's."""
        rng = self.rng
        if rng.random() < 0.3:
            self.endpoints.pop(pod, None)
            self.cluster.drop(WorkloadEndpoint, "red", f"{NODE}-k8s-{pod}-eth0")
            return
        number = rng.randint(1, 8)
        ips = tuple(rng.sample((f"10.65.0.{number}", f"fd00:65::{number}"), rng.randint(1, 2)))
        self.endpoints[pod] = ips
        self.cluster.put(endpoint(pod, *ips, app=rng.choice(("web", "db"))))

    def routes(self, there: frozenset[str] = frozenset(PODS)) -> set[tuple[str, str, int]]:
        """Destination, interface and metric, given the pods whose interface is there."""
        want: dict[str, str] = {}
        for pod in sorted(self.endpoints, reverse=True):
            if pod in there:
                want.update((ip, interface(pod)) for ip in self.endpoints[pod])
        return {(ip, dev, self.metric) for ip, dev in want.items()}


@pytest.fixture
def world() -> World:
    print(f"TORTIE_SEED={SEED}")
    return World(random.Random(SEED))


@pytest.fixture
def node(make_ns: Callable[..., Ns]) -> Ns:
    """With an interface for every pod, and an uplink."""
    ns = make_ns("node")
    for pod in PODS:
        add_interface(ns, pod)
    ns.ip("link", "add", "eth0", "type", "bridge")
    ns.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
    ns.ip("link", "set", "eth0", "up")
    return ns


def add_interface(ns: Ns, pod: str) -> None:
    ns.ip("link", "add", interface(pod), "type", "bridge")  # a link is a link: no pod is needed behind it
    ns.ip("link", "set", interface(pod), "up")


def pod_routes(ns: Ns) -> set[tuple[str, str, int]]:
    """What leads out of pods' interfaces, but for what the kernel made: destination, interface, metric."""
    every = [route for version in (4, 6) for route in ns.json(f"-{version}", "route", "show")]
    return {
        (route["dst"], route["dev"], route.get("metric", 0))
        for route in every
        if route.get("dev", "").startswith("cali") and route["protocol"] != "kernel"
    }


def blackholes(ns: Ns) -> set[tuple[str, str]]:
    every = [route for version in (4, 6) for route in ns.json(f"-{version}", "route", "show")]
    return {(route["dst"], route["protocol"]) for route in every if route["type"] == "blackhole"}


# --- routes -------------------------------------------------------------------------------------------------------


def route_stages(node: Ns) -> list[Stage]:
    """Those that write routes."""
    return [Routes(node.path), overlay_stages(node.path)[2]]


def test_routes_reach_every_state_and_then_rest(node: Ns, world: World) -> None:
    stages = route_stages(node)
    for _ in range(25):
        state = world.step()
        assert converge(stages, state) == []
        assert pod_routes(node) == world.routes()
        assert blackholes(node) == {(cidr, "80") for cidr in world.blocks}
        assert not any(stage.plan(state) for stage in stages)


FOREIGN = (
    "route add 10.65.0.{n} dev {cali}",
    "route add 10.65.0.{n} dev {cali} metric 7 proto static",
    "route add 10.65.0.{n} dev {cali} metric 1024 proto static",
    "route add 10.65.0.{n} dev {cali} metric 1024 scope global mtu 1300",
    "route append 10.65.0.{n} dev {cali} metric 1024",
    "route add 10.65.0.{n} via 192.0.2.{n} dev {cali} onlink metric 1024",
    "route add 198.51.100.{n} dev {cali}",
    "route add fd00:65::{n} dev {cali} metric 7",
    "route add fd00:65::{n} dev {cali} metric 1024 proto static",
    "route add fd00:65::{n} dev {cali} metric 1024 mtu 1300",
    "route add 2001:db8::{n} dev {cali}",
    "route add blackhole 10.65.{n}.0/24 proto 80",
    "route add blackhole fd00:65:{n}::/64 proto 80",
)


def test_routes_repair_whatever_somebody_else_has_done(node: Ns, world: World) -> None:
    stages = route_stages(node)
    untouched = (
        "route add 203.0.113.0/24 via 192.0.2.7 proto static",
        "route add blackhole 100.64.0.0/10 proto static",
    )
    for command in untouched:
        node.ip(*command.split())
    for _ in range(15):
        state = world.step()
        for command in world.rng.sample(FOREIGN, 5):
            pod, number = world.rng.choice(PODS), world.rng.randint(1, 8)
            words = command.format(n=number, cali=interface(pod)).split()
            node.run("ip", *words, check=False)  # what is there already stays
        for dst, dev, metric in world.rng.sample(sorted(pod_routes(node)), k=min(2, len(pod_routes(node)))):
            node.run("ip", "route", "del", dst, "dev", dev, "metric", str(metric), check=False)
        assert converge(stages, state) == []
        assert pod_routes(node) == world.routes()
        assert blackholes(node) == {("100.64.0.0/10", "static"), *((cidr, "80") for cidr in world.blocks)}
        assert not any(stage.plan(state) for stage in stages)
    assert [route["gateway"] for route in node.json("route", "show", "203.0.113.0/24")] == ["192.0.2.7"]


def test_with_bird_blackholes_of_protocol_80_go(node: Ns) -> None:
    """They are of a run without BIRD; now BIRD programs its own, of protocol 12."""
    before, now = Cluster(NODE, bird=False), Cluster(NODE)
    for cluster in (before, now):
        cluster.put(affinity(0))
    assert converge(route_stages(node), before.state()) == []
    node.ip("route", "add", "blackhole", "10.65.0.64/26", "proto", "bird")
    assert converge(route_stages(node), now.state()) == []
    assert blackholes(node) == {("10.65.0.64/26", "bird")}


def test_route_follows_its_interface(node: Ns) -> None:
    cluster, stage, pod = Cluster(NODE), Routes(node.path), PODS[0]
    cluster.put(endpoint(pod, "10.65.0.1", "fd00:65::1"))
    state = cluster.state()
    wanted = {("10.65.0.1", interface(pod), 1024), ("fd00:65::1", interface(pod), 1024)}
    node.ip("link", "del", interface(pod))
    assert converge([stage], state) == []
    assert pod_routes(node) == set()
    add_interface(node, pod)
    assert converge([stage], state) == []
    assert pod_routes(node) == wanted
    node.ip("link", "set", interface(pod), "down")
    assert converge([stage], state) == []  # nothing to be done, and no reason to fail for the others
    node.ip("link", "set", interface(pod), "up")
    assert converge([stage], state) == []
    assert pod_routes(node) == wanted


def test_other_metric_comes_before_the_old_one_goes(node: Ns) -> None:
    """A pod is never without a route, whatever the operator changes."""
    cluster, stage = Cluster(NODE), Routes(node.path)
    cluster.put(endpoint(PODS[0], "10.65.0.1", "fd00:65::1"))
    assert converge([stage], cluster.state()) == []
    for metric in (512, 1024):
        cluster.put(settings(ipv4_normal_route_priority=metric, ipv6_normal_route_priority=metric))
        with events.Monitor(node.path, (events.Group.IPV4_ROUTE, events.Group.IPV6_ROUTE)) as monitor:
            assert converge([stage], cluster.state()) == []
            seen = [(event.route.dst.version, event.gone) for event in monitor.read()]  # type: ignore[union-attr]
        assert seen == [(4, False), (6, False), (4, True), (6, True)]
        assert pod_routes(node) == {(ip, interface(PODS[0]), metric) for ip in ("10.65.0.1", "fd00:65::1")}


def test_one_route_that_is_refused_does_not_keep_the_others_away(node: Ns) -> None:
    cluster, stage = Cluster(NODE), Routes(node.path)
    for number, pod in enumerate(PODS):
        cluster.put(endpoint(pod, f"10.65.0.{number}", f"fd00:65::{number}"))
    node.run("sysctl", "-w", f"net.ipv6.conf.{interface(PODS[2])}.disable_ipv6=1")
    (failure,) = converge([stage], cluster.state())
    assert failure.stage == "routes"
    assert not failure.guard
    assert isinstance(failure.error, KernelError)
    assert "fd00:65::2" in str(failure)
    assert len(pod_routes(node)) == 2 * len(PODS) - 1
    node.run("sysctl", "-w", f"net.ipv6.conf.{interface(PODS[2])}.disable_ipv6=0")
    assert converge([stage], cluster.state()) == []
    assert len(pod_routes(node)) == 2 * len(PODS)


def test_routes_print_as_ip_would_be_told(node: Ns) -> None:
    cluster = Cluster(NODE, bird=False)
    cluster.put(endpoint(PODS[0], "10.65.0.1", "fd00:65::1"))
    cluster.put(affinity(0))
    node.ip("route", "add", "10.65.0.9", "dev", interface(PODS[1]), "proto", "static", "metric", "7")
    node.ip("route", "add", "10.65.0.1", "dev", interface(PODS[0]), "proto", "static", "metric", "1024")
    plans = [str(stage.plan(cluster.state())) for stage in route_stages(node)]
    assert "\n".join(plans).splitlines() == [
        f"ip route replace 10.65.0.1 dev {interface(PODS[0])} scope link metric 1024",
        f"ip route add fd00:65::1 dev {interface(PODS[0])}",
        f"ip route del 10.65.0.9 dev {interface(PODS[1])} proto static scope link metric 7",
        "ip route replace blackhole 10.65.0.0/26 proto 80",
    ]


# --- nftables -----------------------------------------------------------------------------------------------------


def table(ns: Ns, name: str = "inet tortie") -> dict[str, list[Any]]:
    """All that the kernel has in a table, in an order of our own, without handles and counts."""
    found: dict[str, list[Any]] = {}
    for item in json.loads(ns.run("nft", "-j", "list", "table", *name.split()))["nftables"]:
        ((kind, thing),) = item.items()
        if kind == "metainfo":
            continue
        text = json.dumps(sort_sets(thing), sort_keys=True)
        found.setdefault(f"{kind} {thing.get('chain', thing.get('name'))}", []).append(text)
    return found


def sort_sets(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {key: sort_sets(item) for key, item in value.items() if key not in ("handle", "packets", "bytes")}
        for key in {"elem", "set"} & kept.keys():
            if isinstance(kept[key], list):
                kept[key] = sorted(kept[key], key=json.dumps)
        return kept
    return [sort_sets(item) for item in value] if isinstance(value, list) else value


def fresh(state: DesiredState, make_ns: Callable[..., Ns]) -> dict[str, list[Any]]:
    """The table as it is where there was none before."""
    other = make_ns("fresh")
    assert converge([Nft(other.path)], state) == []
    return table(other)


def test_table_is_the_same_whichever_way_it_came_about(ns: Ns, world: World, make_ns: Callable[..., Ns]) -> None:
    stage = Nft(ns.path)
    for number in range(12):
        state = world.step()
        assert converge([stage], state) == []
        assert table(ns) == fresh(state, make_ns)
        assert not stage.plan(state)
        if number % 3 == 0:
            ns.run("nft", "add", "table", "inet", "another")  # else nothing is compared
            stage.forget()
            assert not stage.plan(state)  # it is as it was left


DRIFTS = {
    "nothing is left": "flush ruleset",
    "the table is gone": "delete table inet tortie",
    "its rules are gone": "flush table inet tortie",
    "a chain is empty": "flush chain inet tortie forward",
    "a rule is gone": "delete rule inet tortie prerouting handle {anti-spoofing}",
    "a rule is another": "replace rule inet tortie prerouting handle {anti-spoofing} counter accept",
    "a rule too many": "insert rule inet tortie forward counter accept",
    "an element is gone": 'delete element inet tortie to-workload {{ "cali00000000000" }}',
    "an element too many": "add element inet tortie pools4 {{ 198.18.0.0/15 }}",
    "an element is another": 'delete element inet tortie to-workload {{ "cali00000000000" }}\n'
    'add element inet tortie to-workload {{ "cali99999999999" : accept }}',
    "a chain too many": "add chain inet tortie mine {{ type filter hook input priority -500; policy accept; }}",
    "a set too many": "add set inet tortie mine {{ type ipv4_addr; }}",
    "a policy is another": "add chain inet tortie forward {{ policy drop; }}",
    "it sleeps": "add table inet tortie {{ flags dormant; }}",
}


def handles(ns: Ns) -> dict[str, int]:
    listed = json.loads(ns.run("nft", "-j", "-a", "list", "table", "inet", "tortie"))["nftables"]
    return {item["rule"].get("comment", ""): item["rule"]["handle"] for item in listed if "rule" in item}


def some_state() -> DesiredState:
    cluster = Cluster(NODE)
    for number, pod in enumerate(PODS[:3]):
        cluster.put(endpoint(pod, f"10.65.0.{number}", f"fd00:65::{number}"))
    for resource in POLICIES:
        cluster.put(resource)
    return cluster.state()


@pytest.mark.parametrize("drift", DRIFTS.values(), ids=DRIFTS)
def test_drift_is_repaired_once_it_is_looked_for(ns: Ns, drift: str) -> None:
    stage, state = Nft(ns.path), some_state()
    assert converge([stage], state) == []
    before = table(ns)
    ns.run("nft", "-f", "-", stdin=drift.format(**handles(ns)))
    assert not stage.plan(state)  # the kernel is not listed without a reason
    stage.forget()
    assert stage.plan(state)
    assert converge([stage], state) == []
    assert table(ns) == before
    stage.forget()
    assert not stage.plan(state)


def test_table_that_cannot_be_filled_in_place_is_made_again(ns: Ns, caplog: pytest.LogCaptureFixture) -> None:
    """Another version's, say: the kernel does not move a chain to another hook."""
    state = some_state()
    assert converge([Nft(ns.path)], state) == []
    before = table(ns)
    ns.run("nft", "delete", "table", "inet", "tortie")
    other = "table inet tortie { chain forward { type filter hook prerouting priority 7; }; }"
    ns.run("nft", "-f", "-", stdin=other)
    assert converge([Nft(ns.path)], state) == []
    assert table(ns) == before
    (told,) = caplog.records
    assert told.name == "tortie.dataplane.stages.nft"
    assert told.message.startswith("table inet tortie cannot be filled in place, making it again: ")


def test_change_that_the_kernel_refuses_after_a_drift_is_made_whole_at_the_next_try(ns: Ns) -> None:
    """Nobody told us that a set was deleted, so that an element cannot be taken out of it."""
    cluster, stage = Cluster(NODE), Nft(ns.path)
    for pod in PODS[:2]:
        cluster.put(endpoint(pod, "10.65.0.1"))
    assert converge([stage], cluster.state()) == []
    ns.run("nft", "flush", "map", "inet", "tortie", "to-workload")
    cluster.drop(WorkloadEndpoint, "red", f"{NODE}-k8s-{PODS[0]}-eth0")
    state = cluster.state()
    (failure,) = converge([stage], state)
    assert failure.guard
    assert "delete element inet tortie to-workload" in str(failure)
    assert converge([stage], state) == []
    assert f'"{interface(PODS[1])}"' in str(table(ns))
    assert f'"{interface(PODS[0])}"' not in str(table(ns))


def test_counters_stay_when_nothing_has_changed(node: Ns) -> None:
    stage, state = Nft(node.path), some_state()
    assert converge([stage], state) == []
    node.run("nft", "replace", "rule", "inet", "tortie", "prerouting", "handle", *replaced_counter(node))
    stage.forget()
    assert converge([stage], state) == []
    assert "packets 7" in node.run("nft", "list", "chain", "inet", "tortie", "prerouting")


def replaced_counter(ns: Ns) -> list[str]:
    """The anti-spoofing rule as it is, with seven packets counted."""
    line = next(one for one in ns.run("nft", "-a", "list", "table", "inet", "tortie").splitlines() if "spoofing" in one)
    rule, _, handle = line.strip().partition(" # handle ")
    return [handle, *rule.replace("packets 0 bytes 0", "packets 7 bytes 700").split()]


def test_other_tables_are_nobodys_business_here(ns: Ns) -> None:
    other = (
        "add table ip other\nadd chain ip other c { type filter hook input priority 0; }\nadd rule ip other c accept"
    )
    ns.run("nft", "-f", "-", stdin=other)
    ns.run("nft", "-f", "-", stdin="add table ip tortie\nadd set ip tortie s { type ipv4_addr; }")  # not ours either
    before = table(ns, "ip other"), table(ns, "ip tortie")
    stage = Nft(ns.path)
    for state in (some_state(), Cluster(NODE).state()):
        assert converge([stage], state) == []
        stage.forget()
    assert (table(ns, "ip other"), table(ns, "ip tortie")) == before


# --- a failing guard, and the thread that drives it all -----------------------------------------------------------


@contextlib.contextmanager
def owned(ns: Ns) -> Iterator[None]:
    """Nobody but another program may touch our table meanwhile: the kernel refuses, whoever asks."""
    command = ["ip", "netns", "exec", ns.name, "env", "HOME=/dev/null", "nft", "-i"]  # it keeps a history there
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as owner:
        assert owner.stdin is not None
        owner.stdin.write("add table inet tortie { flags owner; }\n")
        owner.stdin.flush()
        deadline = time.monotonic() + 5
        while "flags owner" not in ns.run("nft", "list", "ruleset"):
            assert time.monotonic() < deadline, "this kernel lets nobody own a table"
            time.sleep(0.01)
        yield


def test_without_policy_no_route(node: Ns) -> None:
    stages, state = [Nft(node.path), Routes(node.path)], some_state()
    with owned(node):
        (failure,) = converge(stages, state)
        assert failure.guard
        assert str(failure) == "nft: nft add table inet tortie: Could not process rule: Operation not permitted"
        assert pod_routes(node) == set()
    assert converge(stages, state) == []
    assert len(pod_routes(node)) == 6


@dataclass
class Driven:
    """A worker, and what it has told."""

    stages: list[Any]
    resync: float = 90.0
    passes: list[tuple[int, list[str]]] = field(default_factory=list)
    bugs: list[BaseException] = field(default_factory=list)
    told: threading.Condition = field(default_factory=threading.Condition)

    def __enter__(self) -> Worker:
        self.worker = Worker("test", self.stages, self.applied, self.bugs.append, self.resync)
        self.worker.start()
        return self.worker

    def __exit__(self, *_: object) -> None:
        self.worker.close()

    def applied(self, state: DesiredState, failures: Any, seconds: float) -> None:
        with self.told:
            self.passes.append((state.generation, [str(failure) for failure in failures]))
            self.told.notify()

    def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        with self.told:
            assert self.told.wait_for(condition, seconds), f"still {self.passes}, {self.bugs}"


@dataclass
class Slow:
    """A stage that does nothing but take its time, wait to be let go, fail, and count."""

    seconds: float = 0.0
    gate: threading.Event | None = None
    failures: int = 0
    bug: BaseException | None = None
    name: str = "slow"
    guard: bool = False
    planned: list[tuple[float, int]] = field(default_factory=list)
    forgotten: int = 0

    def plan(self, state: DesiredState) -> str:
        self.planned.append((time.monotonic(), state.generation))
        time.sleep(self.seconds)
        if self.gate:
            assert self.gate.wait(10)
        if self.bug:
            raise self.bug
        if self.failures:
            self.failures -= 1
            raise KernelError(16, "do it")
        return ""

    def begun(self, passes: int) -> None:
        """Returns when so many passes have come here."""
        deadline = time.monotonic() + 10
        while len(self.planned) < passes:
            assert time.monotonic() < deadline, self.planned
            time.sleep(0.005)

    def make(self, work: object) -> None:
        raise AssertionError("there is nothing to make")

    unmake = make

    def forget(self) -> None:
        self.forgotten += 1


def states(count: int) -> list[DesiredState]:
    cluster = Cluster(NODE)
    return [cluster.state() for _ in range(count)]


def test_worker_puts_policy_and_routes_back_at_its_resync(node: Ns) -> None:
    driven = Driven([Nft(node.path), Routes(node.path)], resync=0.2)
    with driven as worker:
        worker.submit(some_state())
        driven.until(lambda: bool(driven.passes))
        policy, routes = table(node), pod_routes(node)
        for spoil in (["nft", "flush", "ruleset"], ["ip", "route", "del", "10.65.0.1", "metric", "1024"]):
            node.run(*spoil)
            after = len(driven.passes) + 1
            driven.until(lambda after=after: len(driven.passes) > after)  # type: ignore[misc]
            assert table(node) == policy
            assert pod_routes(node) == routes
    assert all(failures == [] for _, failures in driven.passes)


def test_worker_tries_again_until_the_guard_works(node: Ns) -> None:
    driven = Driven([Nft(node.path), Routes(node.path)])
    with driven as worker:
        with owned(node):
            worker.submit(some_state())
            driven.until(lambda: len(driven.passes) == 3)
            assert pod_routes(node) == set()
        driven.until(lambda: driven.passes[-1][1] == [])
    assert len(pod_routes(node)) == 6


def test_worker_backs_off_and_starts_over_after_a_success() -> None:
    slow = Slow(failures=4)
    driven = Driven([slow])
    with driven as worker:
        worker.submit(states(1)[0])
        driven.until(lambda: len(driven.passes) == 5)
        pauses = [later - earlier for (earlier, _), (later, _) in zip(slow.planned, slow.planned[1:], strict=False)]
        for pause, least in zip(pauses, (0.1, 0.2, 0.4, 0.8), strict=True):
            assert least <= pause < least + 1
        slow.failures = 1
        worker.again()
        driven.until(lambda: len(driven.passes) == 7)
        assert slow.planned[-1][0] - slow.planned[-2][0] < 1.6


def test_worker_leaves_out_states_that_are_old_by_the_time() -> None:
    slow, every = Slow(gate=threading.Event()), states(50)
    driven = Driven([slow])
    with driven as worker:
        worker.submit(every[0])
        slow.begun(1)
        for state in every[1:]:
            worker.submit(state)
        slow.gate.set()
        driven.until(lambda: len(driven.passes) == 2)
    assert driven.passes == [(every[0].generation, []), (every[-1].generation, [])]


def test_worker_looks_at_the_kernel_however_busy_it_is() -> None:
    slow = Slow()
    driven = Driven([slow], resync=0.1)
    begin = time.monotonic()
    with driven as worker:
        for state in states(100):
            worker.submit(state)
            time.sleep(0.005)
    assert 2 <= slow.forgotten <= (time.monotonic() - begin) / 0.1 + 1


def test_worker_doubts_only_when_told_to() -> None:
    slow = Slow()
    driven = Driven([slow])
    with driven as worker:
        worker.submit(states(1)[0])
        driven.until(lambda: len(driven.passes) == 1)
        worker.again()
        driven.until(lambda: len(driven.passes) == 2)
        assert slow.forgotten == 0
        worker.look_again()
        driven.until(lambda: len(driven.passes) == 3)
        assert slow.forgotten == 1


def test_worker_tells_of_a_bug_and_of_being_stuck() -> None:
    slow = Slow(gate=threading.Event(), bug=ZeroDivisionError("a bug"))
    driven = Driven([slow])
    with driven as worker:
        assert worker.busy_for == 0
        before = time.monotonic()
        worker.submit(states(1)[0])
        slow.begun(1)
        assert 0 < worker.busy_for < time.monotonic() - before
        slow.gate.set()
        deadline = time.monotonic() + 10
        while not driven.bugs and time.monotonic() < deadline:
            time.sleep(0.005)
        assert driven.bugs == [slow.bug]
        busy = worker.busy_for
        time.sleep(0.05)
        assert worker.busy_for >= busy + 0.05  # nobody will ever finish this pass
    assert driven.passes == []


def test_worker_closes_after_the_pass_under_way() -> None:
    slow, (first, second) = Slow(seconds=1.0), states(2)
    driven = Driven([slow])
    with driven as worker:
        worker.submit(first)
        slow.begun(1)
        worker.submit(second)
    assert [generation for generation, _ in driven.passes] == [first.generation]
    assert Failure("s", KernelError(16, "do it")).guard is False
