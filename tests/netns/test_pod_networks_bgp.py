"""Networks of stand-alone plugins in BGP: a router of others learns them, and nodes of another network through it.

pods ── node a, 10.9.0.1 ── 10.9.0.0/24 ── tor, FRR, AS 65001 ── 10.8.0.0/24 ── node b, 10.8.0.2 ── pods
                                                  └── host 203.0.113.2
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_node import Node, Site, site_in, until
from overlay_nodes import Town
from test_agent_router import wire

from cni_plugins import GO, Caller
from namespaces import Ns
from peers import Frr, frr, needs_frr
from tortie.kernel.netlink.tables import RTPROT_POD_NETWORKS
from tortie.model.document import parse
from tortie.render.routing import POD_NETWORK_PROTOCOL

pytestmark = [pytest.mark.root, needs_frr]

OBJECTS = """
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {nodeToNodeMeshEnabled: false}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor-a}
spec: {node: a, peerIP: 10.9.0.9, asNumber: 65001}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor-b}
spec: {node: b, peerIP: 10.8.0.9, asNumber: 65001, maxRestartTime: 5s}
"""
CONFIG = """
router bgp 65001
 bgp router-id 10.9.0.9
 no bgp default ipv4-unicast
 no bgp ebgp-requires-policy
 neighbor 10.9.0.1 remote-as 64512
 neighbor 10.9.0.1 timers connect 1
 neighbor 10.8.0.2 remote-as 64512
 neighbor 10.8.0.2 timers connect 1
 address-family ipv4 unicast
  redistribute connected
  neighbor 10.9.0.1 activate
  neighbor 10.9.0.1 as-override
  neighbor 10.8.0.2 activate
  neighbor 10.8.0.2 as-override
 exit-address-family
"""
OWN = {"a": "10.9.0.1/24", "b": "10.8.0.2/24"}
SUBNETS = {"a": "10.77.1.0/24", "b": "10.77.2.0/24"}


def test_the_two_names_of_the_protocol_agree() -> None:
    assert POD_NETWORK_PROTOCOL == RTPROT_POD_NETWORKS


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("site")) as site:
        site.set_up()
        site.write(*parse(OBJECTS))
        yield site


@pytest.fixture
def places(site: Site, make_ns: Callable[..., Ns]) -> tuple[dict[str, Node], Ns, Ns]:
    """The nodes, not started yet, the router's namespace and the host's."""
    nodes = {name: site.node(name, ipv4=own) for name, own in OWN.items()}
    tor, host = make_ns("tor"), make_ns("host")
    for number, (name, own) in enumerate(OWN.items()):
        end = f"{own.partition('/')[0].rpartition('.')[0]}.9/24"
        wire(nodes[name].ns, tor, "eth0", f"eth{number}", (own, end))
    wire(tor, host, "out", "eth0", ("203.0.113.1/24", "203.0.113.2/24"))
    tor.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    host.ip("route", "add", "default", "via", "203.0.113.1")
    return nodes, tor, host


@pytest.fixture
def router(places: tuple[dict[str, Node], Ns, Ns]) -> Iterator[Frr]:
    with frr(places[1], CONFIG) as router:
        yield router


def configure(node: Node, **more: object) -> dict[str, object]:
    """A bridge's network, written where the agent looks; as a plugin is called with it."""
    ipam = {"type": "host-local", "subnet": SUBNETS[node.name], "dataDir": str(node.run_dir / "ipam")}
    plugin = {"type": "bridge", "bridge": "cni0", "isDefaultGateway": True, "ipam": ipam, **more}
    directory = node.run_dir / "net.d"
    directory.mkdir(parents=True, exist_ok=True)
    whole = {"cniVersion": "1.0.0", "name": "pods", **plugin}
    (directory / ".new").write_text(json.dumps(whole))
    (directory / ".new").rename(directory / "10-pods.conf")
    return whole


def test_routers_learn_the_networks_and_nodes_behind_them_have_a_way(
    places: tuple[dict[str, Node], Ns, Ns], router: Frr, make_ns: Callable[..., Ns]
) -> None:
    nodes, _, host = places
    for node in nodes.values():
        configure(node, autoRoutes=True)
        node.start("--ready-addresses", "0")
    a, b = nodes.values()
    title = "route to 10.77.2.0/24 (pods) of b"
    until(lambda: title in problems(a), what="no way without BGP")
    assert not router.fib().keys() & set(SUBNETS.values())
    pods = {}
    for name, node in nodes.items():
        pods[name] = ns = make_ns(f"pod-{name}")
        Caller(GO, node.ns.name).add(configure(node, autoRoutes="bgp"), netns=ns.name, container=f"pod-{name}")
    until(lambda: router.fib().keys() >= set(SUBNETS.values()), what="the router's routes", seconds=40)
    until(lambda: pings(host, "10.77.1.2"), what="from outside")
    until(lambda: pings(pods["a"], "10.77.2.2"), what="from pod to pod", seconds=40)
    (learned,) = a.ns.json("route", "show", "10.77.2.0/24")
    assert (learned["protocol"], learned["gateway"]) == ("bird", "10.9.0.9")
    assert [row["dev"] for row in a.ns.json("route", "show", "10.77.1.0/24")] == ["cni0"]  # no blackhole beside it
    until(lambda: title not in problems(a), what="nothing to tell")
    (b.run_dir / "net.d" / "10-pods.conf").unlink()
    until(lambda: SUBNETS["b"] not in router.fib(), what="withdrawn")


def test_on_one_network_the_agents_route_wins_over_that_of_the_mesh(tmp_path: Path, make_ns: Callable[..., Ns]) -> None:
    """Both are there, and neither daemon takes the other's for its own or for news to tell."""
    with site_in(tmp_path) as site:
        site.set_up()
        town = Town(site, make_ns)
        for name, number in (("a", 1), ("b", 2)):
            node = town.node(name, ipv4=f"192.0.2.{number}/24", ipv6=f"2001:db8::{number}/64")
            sets = [[{"subnet": SUBNETS[name]}], [{"subnet": f"fd00:77:{number}::/64"}]]
            configure(node, autoRoutes="bgp", ipam={"type": "host-local", "ranges": sets})
            node.spawn()
        a, b = town.nodes.values()
        for family, dst in (("-4", SUBNETS["b"]), ("-6", "fd00:77:2::/64")):
            both = until(lambda: owners(a, family, dst), lambda seen: set(seen) == {"87", "bird"}, seconds=40)  # noqa: B023
            assert both["87"][0] < both["bird"][0]
            assert both["87"][1] == ("192.0.2.2" if family == "-4" else "2001:db8::2")
            a.ns.ip(family, "route", "flush", "proto", "87")
            until(lambda: owners(a, family, dst), lambda seen: seen == both, what="repaired")  # noqa: B023
            time.sleep(2.5)  # BIRD looks at the kernel every two seconds
            assert owners(a, family, dst) == both
        learned = a.ns.run("birdc", "-s", str(a.run_dir / "bird.ctl"), "show", "route", "all", SUBNETS["b"])
        assert "krt_source: 87" not in learned
        assert problems(a) == {}
        (b.run_dir / "net.d" / "10-pods.conf").unlink()
        for family, dst in (("-4", SUBNETS["b"]), ("-6", "fd00:77:2::/64")):
            until(lambda: owners(a, family, dst), lambda seen: not seen, what="gone")  # noqa: B023


def owners(node: Node, family: str, dst: str) -> dict[str, tuple[int, str]]:
    """Whose routes there are, each with its metric and next hop."""
    found = node.ns.json(family, "route", "show", dst)
    return {row["protocol"]: (row.get("metric", 0), row["gateway"]) for row in found}


def problems(node: Node) -> dict[str, str]:
    return json.loads(node.ask("/node")[1])["problems"]


def pings(source: Ns, ip: str) -> bool:
    return "1 received" in source.run("ping", "-c", "1", "-W", "1", "-n", ip, check=False)
