"""flannel's rules in the kernel: what becomes of packets, and a table that somebody else changes, or has left.

pod 10.244.1.5 ── node 192.0.2.1 ─────── far 192.0.2.2
                  203.0.113.1 (lo)       10.244.2.5, another node's pod, and 198.51.100.1, the world (lo)
"""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_network

import pytest

from namespaces import Ns, namespaces
from tortie.base.addr import Net
from tortie.dataplane.converge import converge
from tortie.flannel.config import Family, NetworkConfig
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.rules import TABLES, tables
from tortie.flannel.stages.rules import Rules
from tortie.flannel.state import FlannelState
from tortie.kernel.netns import entered

pytestmark = pytest.mark.root

PORT = 7000
SECONDS = 2.0
"""For a packet that is to come."""
SO_MARK, SO_RCVBUFFORCE = 36, 33


@dataclass(frozen=True, slots=True)
class Plan:
    """Addresses of one IP version; `length` is that of the links between."""

    network: str
    subnet: str
    pod: str
    gateway: str
    node: str
    far: str
    elsewhere: str
    """Another address of the node's, outside of the network."""
    remote_pod: str
    world: str
    group: str
    length: int
    host: int

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.pod else socket.AF_INET


PLAN4 = Plan(
    "10.244.0.0/16", "10.244.1.0/24", "10.244.1.5", "10.244.1.1", "192.0.2.1", "192.0.2.2", "203.0.113.1",
    "10.244.2.5", "198.51.100.1", "239.1.2.3", 24, 32,
)  # fmt: skip
PLAN6 = Plan(
    "fd00:10::/48", "fd00:10:0:1::/64", "fd00:10:0:1::5", "fd00:10:0:1::1", "2001:db8::1", "2001:db8::2",
    "2001:db8:3::1", "fd00:10:0:2::5", "2001:db8:5::1", "ff0e::1:2:3", 64, 128,
)  # fmt: skip


def family(net: Net) -> Family:
    return Family(net, 24 if net.version == 4 else 64, net[0], net[-1])


CONFIG = NetworkConfig(family(ip_network(PLAN4.network)), family(ip_network(PLAN6.network)), "vxlan")
LEASE = Lease(ip_network(PLAN4.subnet), ip_network(PLAN6.subnet), Attrs())


def wanted(masq: bool = True, forward: bool = True, config: NetworkConfig = CONFIG) -> FlannelState:
    return FlannelState(rules=tables(config, LEASE, masq=masq, forward=forward))


WANTED = wanted()


@dataclass(frozen=True, slots=True)
class Town:
    pod: Ns
    node: Ns
    far: Ns
    sockets: ExitStack

    def socket(self, ns: Ns, address: str, port: int = 0, mark: int = 0) -> socket.socket:
        """Bound there; it stays in its namespace."""
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        with entered(ns.path):
            found = self.sockets.enter_context(socket.socket(kind, socket.SOCK_DGRAM))
        found.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        found.bind((address, port))
        found.settimeout(SECONDS)
        return found

    def seen(self, sender: socket.socket, receiver: socket.socket) -> str:
        """The address from which a packet of the one comes to the other, whose answer finds its way back."""
        sender.sendto(b"there", receiver.getsockname()[:2])
        _, source = receiver.recvfrom(64)
        receiver.sendto(b"back", source[:2])
        assert sender.recv(64) == b"back"
        return str(source[0])

    def converge(self, stage: Rules, state: FlannelState = WANTED) -> None:
        assert converge([stage], state) == []


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    with ExitStack() as stack:
        made = namespaces()
        make = next(made)
        stack.callback(made.close)
        town = Town(make("pod"), make("node"), make("far"), stack.enter_context(ExitStack()))
        for one, other, name, end in ((town.pod, town.node, "eth0", "pod0"), (town.far, town.node, "eth0", "eth0")):
            one.ip("link", "add", name, "type", "veth", "peer", "name", end, "netns", other.name)
            one.ip("link", "set", name, "up")
            other.ip("link", "set", end, "up")
        for ns in (town.pod, town.node, town.far):
            ns.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        for plan in (PLAN4, PLAN6):
            _furnish(town, plan)
        yield town


def _furnish(town: Town, plan: Plan) -> None:
    def address(ns: Ns, ip: str, length: int, dev: str) -> None:
        ns.ip("address", "add", f"{ip}/{length}", "dev", dev, *(["nodad"] if ":" in ip else []))

    address(town.pod, plan.pod, plan.length, "eth0")
    address(town.node, plan.gateway, plan.length, "pod0")
    address(town.node, plan.node, plan.length, "eth0")
    address(town.node, plan.elsewhere, plan.host, "lo")
    address(town.far, plan.far, plan.length, "eth0")
    address(town.far, plan.remote_pod, plan.host, "lo")
    address(town.far, plan.world, plan.host, "lo")
    version = "-6" if ":" in plan.pod else "-4"
    town.pod.ip(version, "route", "add", "default", "via", plan.gateway)
    town.node.ip(version, "route", "add", "default", "via", plan.far)
    town.far.ip(version, "route", "add", "default", "via", plan.node)


@pytest.fixture
def clean(town: Town) -> Iterator[Town]:
    """Without rules and without what the kernel remembers of packets."""
    with ExitStack() as sockets:
        town.node.run("nft", "flush ruleset")
        town.node.run("conntrack", "-F")
        yield Town(town.pod, town.node, town.far, sockets)
        town.node.run("nft", "flush ruleset")


@pytest.fixture(params=[PLAN4, PLAN6], ids=["IPv4", "IPv6"])
def plan(request: pytest.FixtureRequest) -> Plan:
    found: Plan = request.param
    return found


def counted(ns: Ns, plan: Plan) -> dict[str, int]:
    """Packets by rule, as nft counts them."""
    table = TABLES[6 if ":" in plan.pod else 4]
    listed = json.loads(ns.run("nft", "-j", "list", "table", *table.split()))["nftables"]
    rules = (item["rule"] for item in listed if "rule" in item)
    return {
        rule["comment"].partition(": ")[2]: part["counter"]["packets"]
        for rule in rules
        for part in rule["expr"]
        if "counter" in part
    }


# --- packets ------------------------------------------------------------------------------------------------------


def test_pod_to_the_world_is_masqueraded(clean: Town, plan: Plan) -> None:
    clean.converge(Rules(clean.node.path))
    pod, world = clean.socket(clean.pod, plan.pod), clean.socket(clean.far, plan.world, PORT)
    assert clean.seen(pod, world) == plan.node
    assert counted(clean.node, plan)["pods to the world"] == 1
    assert counted(clean.node, plan)["from pods"] == 1
    assert counted(clean.node, plan)["to pods"] == 1


def test_pod_to_pod_is_not(clean: Town, plan: Plan) -> None:
    clean.converge(Rules(clean.node.path))
    pod, remote = clean.socket(clean.pod, plan.pod, PORT), clean.socket(clean.far, plan.remote_pod, PORT)
    assert clean.seen(pod, remote) == plan.pod
    assert counted(clean.node, plan)["own pods to pods"] == 1
    clean.node.run("conntrack", "-F")
    assert clean.seen(remote, pod) == plan.remote_pod
    assert counted(clean.node, plan)["pods to own pods"] == 1


def test_host_to_a_remote_pod_is(clean: Town, plan: Plan) -> None:
    """From an address that the other node need not have a way to."""
    clean.converge(Rules(clean.node.path))
    host, remote = clean.socket(clean.node, plan.elsewhere), clean.socket(clean.far, plan.remote_pod, PORT)
    assert clean.seen(host, remote) == plan.node
    assert counted(clean.node, plan)["host to pods"] == 1
    world = clean.socket(clean.far, plan.world, PORT)
    assert clean.seen(host, world) == plan.elsewhere  # which is nothing of flannel's


def test_an_own_pod_sees_its_clients_addresses(clean: Town, plan: Plan) -> None:
    clean.converge(Rules(clean.node.path))
    pod = clean.socket(clean.pod, plan.pod, PORT)
    assert clean.seen(clean.socket(clean.far, plan.world), pod) == plan.world
    assert clean.seen(clean.socket(clean.node, plan.elsewhere), pod) == plan.elsewhere
    assert counted(clean.node, plan)["clients to own pods"] == 2


@pytest.mark.parametrize(("mark", "left"), [(0x4000, True), (0xC000, True), (0x8000, False)], ids=hex)
def test_what_kube_proxy_masquerades_is_left_to_it(clean: Town, plan: Plan, mark: int, left: bool) -> None:
    clean.converge(Rules(clean.node.path))
    host = clean.socket(clean.node, plan.elsewhere, mark=mark)
    seen = clean.seen(host, clean.socket(clean.far, plan.remote_pod, PORT))
    assert seen == (plan.elsewhere if left else plan.node)
    assert counted(clean.node, plan)["marked by kube-proxy"] == left


def test_multicast_is_not(clean: Town, plan: Plan) -> None:
    clean.converge(Rules(clean.node.path))
    source, listener = clean.socket(clean.node, plan.gateway), clean.socket(clean.far, plan.group, PORT)
    index = clean.far.json("link", "show", "eth0")[0]["ifindex"]
    out = clean.node.json("link", "show", "eth0")[0]["ifindex"]
    group = socket.inet_pton(plan.family, plan.group)
    if plan.family == socket.AF_INET:
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + bytes(4) + index.to_bytes(4, "little"))
        source.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, bytes(8) + out.to_bytes(4, "little"))
    else:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + index.to_bytes(4, "little"))
        source.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, out)
    source.sendto(b"all", (plan.group, PORT))
    assert listener.recvfrom(64)[1][0] == plan.gateway
    assert counted(clean.node, plan)["pods to the world"] == 0
    assert clean.seen(source, clean.socket(clean.far, plan.world, PORT)) == plan.node  # to one host it is


def test_without_masquerading_a_pods_address_is_seen_everywhere(clean: Town, plan: Plan) -> None:
    clean.converge(Rules(clean.node.path), wanted(masq=False))
    pod, world = clean.socket(clean.pod, plan.pod), clean.socket(clean.far, plan.world, PORT)
    assert clean.seen(pod, world) == plan.pod


def test_tables_are_replaced_under_new_flows_and_none_leaves_as_it_is(clean: Town) -> None:
    stage = Rules(clean.node.path)
    clean.converge(stage)
    world = clean.socket(clean.far, PLAN4.world, PORT)
    world.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    stop, sent = threading.Event(), [0]

    def flows() -> None:
        with entered(clean.pod.path):
            while not stop.is_set():
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as pod:
                    pod.sendto(b"new", (PLAN4.world, PORT))
                    sent[0] += 1

    thread = threading.Thread(target=flows)
    thread.start()
    try:
        for turn in range(40):
            clean.converge(stage, wanted(forward=turn % 2 == 0))
    finally:
        stop.set()
        thread.join()
    seen = set()
    count = 0
    while select.select([world], [], [], 0.2)[0]:
        seen.add(world.recvfrom(64)[1][0])
        count += 1
    assert seen == {PLAN4.node}
    assert count == sent[0] > 100


# --- the tables ---------------------------------------------------------------------------------------------------

STRANGERS = """
add table ip flannel-ipv40
add chain ip flannel-ipv40 postrtg { type nat hook postrouting priority srcnat; policy accept; }
add table inet flannel-ipv4
add chain inet flannel-ipv4 forward { type filter hook forward priority filter; policy accept; }
add rule inet flannel-ipv4 forward counter
add table ip nat
add chain ip nat POSTROUTING { type nat hook postrouting priority srcnat; policy accept; }
add rule ip nat POSTROUTING counter
"""
UPSTREAM = """
table ip flannel-ipv4 {
  comment "rules for flannel-ipv4"
  set somebody { type ipv4_addr; }
  chain forward { type filter hook forward priority filter; policy accept; ip saddr 10.9.0.0/16 accept; }
  chain postrtg {
    type nat hook postrouting priority srcnat; policy accept;
    meta mark 0x4000 return
    ip saddr 10.9.1.0/24 ip daddr 10.9.0.0/16 return
    ip saddr 10.9.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
  }
}
table ip6 flannel-ipv6 { comment "rules for flannel-ipv6"; }
"""


def listed(ns: Ns) -> dict[str, str]:
    """Every table with its handles and without counts."""
    names = [line.removeprefix("table ") for line in ns.run("nft", "list", "tables").splitlines()]
    return {name: ns.run("nft", "-sa", "list", "table", *name.split()) for name in names}


def bare(ns: Ns) -> dict[str, str]:
    """Our tables, without handles and counts."""
    there = ns.run("nft", "list", "tables")
    ours = [name for name in TABLES.values() if f"table {name}\n" in there]
    return {name: ns.run("nft", "-s", "list", "table", *name.split()) for name in ours}


def test_the_kernel_has_what_was_written(ns: Ns) -> None:
    assert converge([Rules(ns.path)], WANTED) == []
    (text4, text6) = bare(ns).values()
    for text, comment in ((text4, "rules for flannel-ipv4"), (text6, "rules for flannel-ipv6")):
        assert f'comment "{comment}"' in text
        assert 'comment "chain to accept flannel traffic"' in text
        assert 'comment "chain to manage traffic masquerading by flannel"' in text
        assert "type filter hook forward priority filter; policy accept;" in text
        assert "type nat hook postrouting priority srcnat; policy accept;" in text
        assert "meta mark & 0x00004000 == 0x00004000 counter return" in text


def test_a_flanneld_before_is_taken_over_and_strangers_are_left_alone(ns: Ns) -> None:
    ns.run("nft", "-f", "-", stdin=STRANGERS + UPSTREAM)
    before = listed(ns)
    assert converge([Rules(ns.path)], WANTED) == []
    after = listed(ns)
    assert set(after) == set(before)
    assert {name for name in before if after[name] != before[name]} == set(TABLES.values())
    assert "10.9." not in "".join(bare(ns).values())
    assert "somebody" not in "".join(bare(ns).values())


CHANGES = {
    "a rule is deleted": "delete rule ip flannel-ipv4 postrtg handle {}",
    "a chain is emptied": "flush chain ip6 flannel-ipv6 forward",
    "a rule is added": "insert rule ip flannel-ipv4 forward drop",
    "a chain is added": "add chain ip flannel-ipv4 x",
    "a policy is changed": "chain ip flannel-ipv4 forward {{ policy drop; }}",
    "a table is deleted": "delete table ip6 flannel-ipv6",
    "everything is deleted": "flush ruleset",
}


@pytest.mark.parametrize("change", CHANGES)
def test_situation_121_it_is_put_right(ns: Ns, change: str) -> None:
    stage = Rules(ns.path)
    assert converge([stage], WANTED) == []
    right = bare(ns)
    rule = next(line for line in listed(ns)["ip flannel-ipv4"].splitlines() if "own pods to pods" in line)
    ns.run("nft", CHANGES[change].format(rule.rpartition(" ")[2]))
    assert bare(ns) != right
    assert not stage.plan(WANTED)  # nobody told
    stage.forget()
    assert converge([stage], WANTED) == []
    assert bare(ns) == right


def test_what_is_counted_is_told_by_table_and_rule(ns: Ns) -> None:
    stage = Rules(ns.path)
    assert stage.counts() == {}
    assert converge([stage], wanted(forward=False, config=NetworkConfig(CONFIG.v4, None, "vxlan"))) == []
    counts = stage.counts()
    assert list(counts) == ["ip flannel-ipv4"]
    assert list(counts["ip flannel-ipv4"].items())[-1] == ("flanneld masq: host to pods", (0, 0))


def test_only_the_table_that_was_changed_is_written_anew(ns: Ns) -> None:
    stage = Rules(ns.path)
    assert converge([stage], WANTED) == []
    before = listed(ns)
    ns.run("nft", "flush chain ip6 flannel-ipv6 forward")
    stage.forget()
    assert converge([stage], WANTED) == []
    after = listed(ns)
    assert after["ip flannel-ipv4"] == before["ip flannel-ipv4"]  # with the handles that it had
    assert after["ip6 flannel-ipv6"] != before["ip6 flannel-ipv6"]


def test_a_restart_leaves_them_counting(ns: Ns) -> None:
    assert converge([Rules(ns.path)], WANTED) == []
    before = listed(ns)
    stage = Rules(ns.path)
    assert not stage.plan(WANTED)
    assert converge([stage], WANTED) == []
    assert listed(ns) == before


def test_what_is_not_wanted_any_more_goes(ns: Ns) -> None:
    stage = Rules(ns.path)
    assert converge([stage], WANTED) == []
    assert converge([stage], wanted(config=NetworkConfig(CONFIG.v4, None, "vxlan"))) == []
    assert list(bare(ns)) == ["ip flannel-ipv4"]
    ns.run("nft", "-f", "-", stdin=UPSTREAM)  # somebody makes the other one again
    stage.forget()
    assert converge([stage], wanted(config=NetworkConfig(CONFIG.v4, None, "vxlan"))) == []
    assert list(bare(ns)) == ["ip flannel-ipv4"]
    assert converge([stage], wanted(masq=False, forward=False)) == []
    assert bare(ns) == {}
    ns.run("nft", "-f", "-", stdin=UPSTREAM)
    assert converge([Rules(ns.path)], wanted(masq=False, forward=False)) == []
    assert bare(ns) == {}


def test_a_state_without_rules_leaves_the_tables_alone(ns: Ns) -> None:
    ns.run("nft", "-f", "-", stdin=UPSTREAM)
    before = listed(ns)
    assert converge([Rules(ns.path)], FlannelState()) == []
    assert listed(ns) == before


def test_others_changes_are_told_and_our_own_are_not(ns: Ns) -> None:
    stage = Rules(ns.path)
    with ExitStack() as stack:
        monitors = [stack.enter_context(monitor) for monitor in stage.monitors()]
        assert converge([stage], WANTED) == []
        assert [monitor.read() for monitor in monitors] == [[], []]
        ns.run("nft", "add table ip stranger")
        ns.run("nft", "flush chain ip6 flannel-ipv6 forward")
        told4, told6 = (monitor.read() for monitor in monitors)
        assert not told4
        assert len(told6) == 1
        stage.forget()
        assert converge([stage], WANTED) == []
        assert [monitor.read() for monitor in monitors] == [[], []]


def test_it_acts_on_the_namespace_of_its_thread(make_ns: Callable[..., Ns]) -> None:
    here, there = make_ns(), make_ns()
    with entered(here.path):
        stage = Rules()
        assert converge([stage], WANTED) == []
    assert len(bare(here)) == 2
    assert bare(there) == {}


def test_what_the_kernel_refuses_is_a_failure_and_tried_again(ns: Ns) -> None:
    stage = Rules(ns.path)
    (failure,) = converge([stage], FlannelState(rules={"ip flannel-ipv4": "table ip flannel-ipv4 { nonsense }\n"}))
    assert failure.stage == "rules"
    assert "nonsense" in str(failure)
    assert converge([stage], WANTED) == []
    assert len(bare(ns)) == 2
