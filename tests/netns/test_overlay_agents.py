"""Two agents without BIRD, and VXLAN for both families: pods reach each other, and whatever somebody breaks is mended.

Two nodes with two pods live as long as the module; a test leaves them as it found them.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from agent_node import Site, site_in, udp, until
from overlay_nodes import MakeNs, Town, change_pool

from namespaces import Ns, namespaces
from overlay_kernel import device, pinging, snapshot
from tortie.calc.overlay import vtep_mac
from tortie.kernel import events
from tortie.kernel.neighbours import Forwarding

pytestmark = pytest.mark.root

OWN = {"a": ("192.0.2.1", "2001:db8::1"), "b": ("192.0.2.2", "2001:db8::2")}
DEVICES = {4: "vxlan.calico", 6: "vxlan-v6.calico"}


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    spaces = namespaces()
    make = next(spaces)
    try:
        with site_in(tmp_path_factory.mktemp("site")) as site:
            yield started(site, make)
    finally:
        next(spaces, None)


def started(site: Site, make: MakeNs) -> Town:
    """Two nodes with a pod each."""
    site.set_up()
    town = Town(site, make)
    for name, (ipv4, ipv6) in OWN.items():
        town.node(name, "--no-bgp", ipv4=f"{ipv4}/24", ipv6=f"{ipv6}/64").spawn()

    async def connect() -> None:
        async with site.store() as store:
            for number in (4, 6):
                await change_pool(store, f"pool{number}", vxlan_mode="Always")
            for name, node in town.nodes.items():
                await asyncio.to_thread(node.await_ready)
                await town.pod(store, f"pod-{name}", name)

    asyncio.run(connect())
    return town


def right(town: Town) -> dict[str, Any]:
    """What is on node a once the nodes know one another."""
    for version in (4, 6):
        town.reach("pod-a", "pod-b", version)
    found = snapshot(town.nodes["a"].ns, *DEVICES.values())
    assert {dst for dst, (kind, *_) in found["routes"].items() if kind == "unicast"}
    return found


def inner(ns: Ns, pcap: str, *filters: str) -> Callable[[], str]:
    """What tcpdump sees from now on; ask for it once, at the end."""
    words = ["ip", "netns", "exec", ns.name, "tcpdump", "-lnni", pcap, "-c", "2", *filters]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "listening on" in line:
            break

    def seen() -> str:
        try:
            return process.communicate(timeout=10)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()[0]

    return seen


def test_pods_of_both_families_reach_each_other_in_vxlan(town: Town) -> None:
    right(town)
    a, pod_a = town.nodes["a"].ns, town.pods["pod-a"][1]
    for version, outer in ((4, "192.0.2.1.* > 192.0.2.2.4789: VXLAN"), (6, "2001:db8::1.* > 2001:db8::2.4789: VXLAN")):
        seen = inner(a, "eth0", "udp", "dst", "port", "4789", "and", "src", "host", OWN["a"][version == 6])
        for _ in range(2):
            assert town.pings(pod_a, town.ip("pod-b", version))
        text = seen()
        assert re.search(outer, text), text
        assert f"> {town.ip('pod-b', version)}: ICMP" in text


def test_the_host_speaks_from_its_tunnel_address(town: Town) -> None:
    """So that the answer comes back by the tunnel, whatever network the hosts are in."""
    right(town)
    a, b = town.nodes["a"].ns, town.pods["pod-b"][1]
    for version, name in DEVICES.items():
        (own,) = device(a, name)["addresses"]
        seen = inner(b, "eth0", "src", "host", own.partition("/")[0])
        for words in ((), ("-I", OWN["a"][version == 6])):  # also where it would rather speak from the node's own
            assert town.pings(a, town.ip("pod-b", version), 1.0, *words)
        assert len(re.findall(f"> {town.ip('pod-b', version)}: ICMP6?,? echo request", seen())) == 2


def test_what_goes_into_a_tunnel_is_not_masqueraded(town: Town) -> None:
    right(town)

    async def nat(on: bool) -> None:
        async with town.site.store() as store:
            await change_pool(store, "pool4", nat_outgoing=on)

    a, pod_a, pod_b = town.nodes["a"].ns, town.pods["pod-a"][1], town.pods["pod-b"][1]
    asyncio.run(nat(True))
    until(lambda: "10.65.0.0/16" in a.run("nft", "list", "set", "inet", "tortie", "masquerade4"), what="natOutgoing")
    seen = inner(pod_b, "eth0", "icmp", "and", "dst", "host", town.ip("pod-b"))
    for _ in range(2):
        assert town.pings(pod_a, town.ip("pod-b"))
    text = seen()
    assert f"{town.ip('pod-a')} > {town.ip('pod-b')}: ICMP" in text
    asyncio.run(nat(False))


DAMAGES = (
    "ip link del vxlan.calico",
    "ip link set vxlan-v6.calico down",
    "ip neigh flush dev vxlan.calico nud permanent",
    f"bridge fdb del {vtep_mac('b', 6)} dev vxlan-v6.calico",
    "ip route flush proto 80",
    "ip -6 route flush proto 80 dev vxlan-v6.calico",
    "ip route replace {block} via 192.0.2.9 dev eth0",
    "ip link set eth0 down; sleep 0.1; ip link set eth0 up",
    "ip address del 192.0.2.1/24 dev eth0; sleep 0.1; ip address add 192.0.2.1/24 dev eth0",
)


def test_whatever_is_broken_is_mended_at_once(town: Town) -> None:
    """Long before everything is looked at again."""
    wanted, a = right(town), town.nodes["a"].ns
    a.run("sysctl", "-qw", "net.ipv6.conf.eth0.keep_addr_on_down=1")
    (block,) = (dst for dst, way in wanted["routes"].items() if way[0] == "unicast" and ":" not in dst)
    for damage in DAMAGES:
        a.run("sh", "-ec", damage.format(block=block))
        until(lambda: snapshot(a, *DEVICES.values()), lambda seen: seen == wanted, what=damage)
    right(town)


def test_an_agent_that_restarts_changes_nothing_and_loses_nothing(town: Town) -> None:
    wanted, a = right(town), town.nodes["a"]
    groups = (events.Group.IPV4_ROUTE, events.Group.IPV6_ROUTE, events.Group.NEIGHBOUR)
    with pinging(town.pods["pod-a"][1], town.ip("pod-b")) as found, events.Monitor(a.ns.path, groups) as monitor:
        a.restart()
        news = monitor.read()
    assert [str(one.route) for one in news if isinstance(one, events.RouteEvent) and one.route.protocol == 80] == []
    entries = [one.neighbour for one in news if isinstance(one, events.NeighbourEvent)]
    assert [str(entry) for entry in entries if isinstance(entry, Forwarding) or entry.state == "permanent"] == []
    assert found.lost <= 1  # the one that is under way when it is counted
    assert snapshot(a.ns, *DEVICES.values()) == wanted


def test_strangers_and_pods_get_nothing_into_the_tunnel(town: Town) -> None:
    """A machine on the same network makes itself a tunnel as if it were a node; so does a pod."""
    right(town)
    b, pod_b = town.nodes["b"].ns, town.pods["pod-b"][1]
    stranger = town.make_ns("stranger")
    town.switch.plug(stranger, "192.0.2.66/24")
    target, mac = town.ip("pod-b"), vtep_mac("b", 4)
    listening = udp(pod_b, target, 7000)
    listening.settimeout(1.0)
    for ns, local in ((stranger, "192.0.2.66"), (town.pods["pod-a"][1], town.ip("pod-a"))):
        words = f"vx0 type vxlan id 4096 dstport 4789 local {local} nolearning"
        ns.ip("link", "add", *words.split())
        ns.ip("link", "set", "vx0", "up")
        ns.ip("address", "add", "10.65.255.1/32", "dev", "vx0")
        ns.run("bridge", "fdb", "append", mac, "dev", "vx0", "dst", "192.0.2.2")
        ns.ip("neigh", "add", target, "lladdr", mac, "dev", "vx0")
        ns.ip("route", "add", target, "dev", "vx0", "src", "10.65.255.1")
        before = dropped(b, "VXLAN from no node"), dropped(town.nodes["a"].ns, "VXLAN from a pod")
        sender = udp(ns, "10.65.255.1")
        sender.sendto(b"let me in", (target, 7000))
        sender.close()
        with pytest.raises(TimeoutError):
            listening.recv(100)
        after = dropped(b, "VXLAN from no node"), dropped(town.nodes["a"].ns, "VXLAN from a pod")
        assert sum(after) == sum(before) + 1
        ns.ip("link", "del", "vx0")
    sender = udp(town.pods["pod-a"][1])
    sender.sendto(b"hello", (target, 7000))
    assert listening.recv(100) == b"hello"
    sender.close()
    listening.close()


def dropped(ns: Ns, why: str) -> int:
    """Packets that the rules with this comment have dropped."""
    ruleset = json.loads(ns.run("nft", "-j", "list", "table", "inet", "tortie"))["nftables"]
    rules = [item["rule"] for item in ruleset if "rule" in item and why in item["rule"].get("comment", "")]
    assert rules, why
    return sum(part["counter"]["packets"] for rule in rules for part in rule["expr"] if "counter" in part)
