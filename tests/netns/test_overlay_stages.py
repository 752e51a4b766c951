"""The overlay's stages alone against the kernel: they reach what is wanted and then rest, mend what somebody breaks,
and keep what is in use. What is there is read back with ip and bridge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from namespaces import Ns
from overlay_kernel import cluster_routes, device, snapshot
from tortie.calc.cluster import Cluster
from tortie.calc.overlay import vtep_mac
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import converge
from tortie.dataplane.overlay import overlay_stages
from tortie.dataplane.stages.cluster_routes import ClusterRoutes
from tortie.dataplane.stages.pod_networks import PodNetworkRoutes
from tortie.dataplane.stages.tunnels import ALIAS
from tortie.kernel import events
from tortie.kernel.live import LiveRoutes
from tortie.kernel.live_links import LiveLinks
from tortie.model.document import convert
from tortie.model.ipam import BlockAffinity, IPPool
from tortie.model.node import FelixConfiguration, Node

pytestmark = pytest.mark.root

DEVICES = ("vxlan.calico", "vxlan-v6.calico")


def node(name: str, number: int, *, vxlan: bool = True, address: str = "") -> Node:
    bgp = {"ipv4Address": address or f"192.0.2.{number}/24", "ipv6Address": f"2001:db8::{number}/64"}
    tunnels = {"ipv4VXLANTunnelAddr": f"10.65.{number}.0", "ipv6VXLANTunnelAddr": f"fd00:65:{number}::"}
    return convert(Node, {"metadata": {"name": name}, "spec": {"bgp": bgp, **(tunnels if vxlan else {})}})


def pool(version: int, **modes: str) -> IPPool:
    spec = {"cidr": "10.65.0.0/16" if version == 4 else "fd00:65::/32", **modes}
    return convert(IPPool, {"metadata": {"name": f"pool{version}"}, "spec": spec})


def block(owner: str, cidr: str) -> BlockAffinity:
    name = f"{owner}-{cidr}".translate(str.maketrans(".:/", "---"))
    spec = {"cidr": cidr, "node": owner, "state": "confirmed"}
    return convert(BlockAffinity, {"metadata": {"name": name}, "spec": spec})


def felix(**spec: Any) -> FelixConfiguration:
    return convert(FelixConfiguration, {"metadata": {"name": "default"}, "spec": spec})


def cluster_of(*more: Any, mode: str = "Always", bird: bool = False) -> Cluster:
    """Nodes a (this one), b and c, with a block of each family."""
    cluster = Cluster("a", bird=bird)
    for number, name in enumerate("abc", 1):
        cluster.put(node(name, number))
        cluster.put(block(name, f"10.65.{number}.0/26"))
        cluster.put(block(name, f"fd00:65:{number}::/122"))
    for one in (pool(4, vxlanMode=mode), pool(6, vxlanMode=mode), *more):
        cluster.put(one)
    return cluster


@pytest.fixture
def ground(make_ns: Callable[..., Ns]) -> Iterator[Ns]:
    """A node's namespace whose eth0 leads to nobody in particular."""
    ns, other = make_ns("a"), make_ns("far")
    ns.ip("link", "add", "eth0", "mtu", "1400", "type", "veth", "peer", "name", "eth0", "netns", other.name)
    other.ip("link", "set", "eth0", "up")
    ns.ip("link", "set", "eth0", "up")
    ns.ip("address", "add", "192.0.2.1/24", "dev", "eth0")
    ns.ip("address", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
    ns.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv6.conf.eth0.keep_addr_on_down=1")
    return ns  # type: ignore[return-value]


def reached(stages: Any, state: DesiredState) -> None:
    assert converge(stages, state) == []
    assert [str(stage.plan(state)) for stage in stages if stage.plan(state)] == []


def test_what_is_wanted_is_there_and_nothing_is_learnt_or_flooded(ground: Ns) -> None:
    stages, state = overlay_stages(ground.path), cluster_of().state()
    reached(stages, state)
    eth0 = "eth0"
    assert snapshot(ground, *DEVICES) == {
        "routes": {
            "10.65.1.0/26": ("blackhole", "", ""),
            "10.65.2.0/26": ("unicast", "10.65.2.0", "vxlan.calico", "onlink"),
            "10.65.3.0/26": ("unicast", "10.65.3.0", "vxlan.calico", "onlink"),
            "fd00:65:1::/122": ("blackhole", "", "lo"),
            "fd00:65:2::": ("unicast", "", "vxlan-v6.calico"),
            "fd00:65:2::/122": ("unicast", "fd00:65:2::", "vxlan-v6.calico", "onlink"),
            "fd00:65:3::": ("unicast", "", "vxlan-v6.calico"),
            "fd00:65:3::/122": ("unicast", "fd00:65:3::", "vxlan-v6.calico", "onlink"),
        },
        "vxlan.calico": {
            "mac": vtep_mac("a", 4), "mtu": 1350, "up": True, "addresses": ["10.65.1.0/32"],
            "id": 4096, "port": 4789, "local": "192.0.2.1", "link": eth0, "learning": False,
        },
        "vxlan.calico neighbours": {(f"10.65.{n}.0", vtep_mac(name, 4)) for n, name in ((2, "b"), (3, "c"))},
        "vxlan.calico forwarding": {(vtep_mac(name, 4), f"192.0.2.{n}") for n, name in ((2, "b"), (3, "c"))},
        "vxlan-v6.calico": {
            "mac": vtep_mac("a", 6), "mtu": 1330, "up": True, "addresses": ["fd00:65:1::/128"],
            "id": 4096, "port": 4789, "local6": "2001:db8::1", "link": eth0, "learning": False,
        },
        "vxlan-v6.calico neighbours": {(f"fd00:65:{n}::", vtep_mac(name, 6)) for n, name in ((2, "b"), (3, "c"))},
        "vxlan-v6.calico forwarding": {(vtep_mac(name, 6), f"2001:db8::{n}") for n, name in ((2, "b"), (3, "c"))},
    }  # fmt: skip
    assert ground.run("sysctl", "-n", "net.ipv4.conf.vxlan/calico.rp_filter").strip() == "2"


def test_another_agent_of_the_same_node_changes_nothing(ground: Ns) -> None:
    state = cluster_of().state()
    reached(overlay_stages(ground.path), state)
    with events.Monitor(ground.path, tuple(events.Group)) as monitor:
        reached(overlay_stages(ground.path), state)
        assert monitor.read() == []


ANEW = "ip link del vxlan.calico; ip link add vxlan.calico type vxlan"
DAMAGES = (
    "ip link del vxlan.calico",
    "ip link set vxlan.calico down",
    "ip link set vxlan-v6.calico mtu 1290",
    "ip link set vxlan.calico address 02:00:00:00:00:01",
    f"{ANEW} id 4096 dstport 4789 local 192.0.2.1 dev eth0",
    f"{ANEW} id 7 dstport 4789 local 192.0.2.1 dev eth0 nolearning",
    f"{ANEW} id 4096 dstport 9 local 192.0.2.1 dev eth0 nolearning",
    f"{ANEW} id 4096 dstport 4789 local 192.0.2.1 nolearning",
    "ip address del 10.65.1.0/32 dev vxlan.calico",
    "ip address add 10.65.9.9/32 dev vxlan.calico",
    "ip neigh del 10.65.2.0 dev vxlan.calico",
    "ip neigh replace 10.65.2.0 lladdr 02:00:00:00:00:02 dev vxlan.calico nud permanent",
    "ip neigh add 10.65.9.0 lladdr 02:00:00:00:00:02 dev vxlan.calico nud permanent",
    f"bridge fdb del {vtep_mac('b', 4)} dev vxlan.calico",
    f"bridge fdb replace {vtep_mac('c', 6)} dev vxlan-v6.calico dst 2001:db8::99 self permanent",
    "bridge fdb append 00:00:00:00:00:00 dev vxlan.calico dst 192.0.2.66 self permanent",
    "ip route del 10.65.2.0/26",
    "ip route replace 10.65.2.0/26 via 192.0.2.9 dev eth0",
    "ip route replace 10.65.2.0/26 via 192.0.2.9 dev eth0 proto 80",
    "ip -6 route del fd00:65:2::/122 dev vxlan-v6.calico",
    "ip -6 route replace fd00:65:3::/122 via 2001:db8::9 dev eth0 metric 1",
    "ip route add 10.65.77.0/26 via 192.0.2.9 dev eth0 proto 80",
    "ip route del blackhole 10.65.1.0/26",
    "ip link set eth0 down; ip link set eth0 up",
    "ip address del 192.0.2.1/24 dev eth0; ip address add 192.0.2.1/24 dev eth0",
)


def test_whatever_is_broken_is_mended(ground: Ns) -> None:
    """Told by the kernel's announcements alone: nothing is listed anew."""
    stages, state = overlay_stages(ground.path), cluster_of().state()
    reached(stages, state)
    right = snapshot(ground, *DEVICES)
    for damage in DAMAGES:
        ground.run("sh", "-ec", damage)
        assert converge(stages, state) == [], damage
        assert snapshot(ground, *DEVICES) == right, damage
        assert [str(stage.plan(state)) for stage in stages if stage.plan(state)] == [], damage


def test_a_route_of_others_beside_ours_stays(ground: Ns) -> None:
    stages, state = overlay_stages(ground.path), cluster_of().state()
    ground.ip("route", "add", "10.65.2.0/26", "via", "192.0.2.2", "metric", "1024", "proto", "bird")
    ground.ip("route", "add", "10.66.0.0/16", "via", "192.0.2.2", "proto", "static")
    reached(stages, state)
    assert {one["protocol"] for one in ground.json("route", "show", "10.65.2.0/26")} == {"80", "bird"}
    assert len(ground.json("route", "show", "10.66.0.0/16")) == 1


def test_settings_change_the_device_and_the_node_may_move(ground: Ns) -> None:
    stages, cluster = overlay_stages(ground.path), cluster_of()
    reached(stages, cluster.state())
    cluster.put(felix(vxlanVNI=9, vxlanPort=8472, vxlanMTU=1300))
    reached(stages, cluster.state())
    found = device(ground, "vxlan.calico")
    assert (found["id"], found["port"], found["mtu"]) == (9, 8472, 1300)
    ground.ip("link", "set", "eth0", "mtu", "1390")
    reached(stages, cluster.state())
    assert device(ground, "vxlan-v6.calico")["mtu"] == 1320
    cluster.put(node("a", 1, address="192.0.2.77/24"))
    (failure,) = converge(stages, cluster.state())
    assert str(failure) == (
        "tunnels: vxlan.calico: no link has this node's address 192.0.2.77: give it to one, or correct the Node"
    )
    assert device(ground, "vxlan.calico")["local"] == "192.0.2.1"  # as it was, until the way is clear
    ground.ip("address", "add", "192.0.2.77/24", "dev", "eth0")
    reached(stages, cluster.state())
    assert device(ground, "vxlan.calico")["local"] == "192.0.2.77"
    assert "10.65.2.0/26" in cluster_routes(ground)


def test_a_device_outlives_its_pool_for_a_while(ground: Ns) -> None:
    cluster = cluster_of()
    reached(overlay_stages(ground.path), cluster.state())
    cluster.drop(IPPool, "", "pool4")
    lingering, hasty = overlay_stages(ground.path), overlay_stages(ground.path, linger=0)
    reached(lingering, cluster.state())
    assert device(ground, "vxlan.calico")["up"]
    assert {dst for dst in cluster_routes(ground) if "." in dst} == {"10.65.1.0/26"}  # nobody else makes the blackhole
    reached(hasty, cluster.state())
    assert device(ground, "vxlan.calico") == {}
    assert device(ground, "vxlan-v6.calico")["up"]


def test_a_pool_that_becomes_birds_keeps_its_ways_until_bird_has_them(ground: Ns) -> None:
    cluster, stages = cluster_of(bird=True), overlay_stages(ground.path, linger=0)
    reached(stages, cluster.state())
    right = snapshot(ground, *DEVICES)
    for version in (4, 6):
        cluster.put(pool(version))
    assert converge(stages, cluster.state()) == []
    left = snapshot(ground, *DEVICES)
    kept = {dst: way for dst, way in right["routes"].items() if way[0] == "unicast" and "/" in dst}
    assert left["routes"] == kept
    assert left["vxlan.calico forwarding"] == right["vxlan.calico forwarding"]
    assert left["vxlan-v6.calico neighbours"] == right["vxlan-v6.calico neighbours"]
    ground.ip("route", "add", "10.65.2.0/26", "via", "192.0.2.2", "metric", "1024", "proto", "bird")
    ground.ip("route", "add", "fd00:65:2::/122", "via", "2001:db8::2", "metric", "1024", "proto", "bird")
    assert converge(stages, cluster.state()) == []
    assert cluster_routes(ground) == {dst: way for dst, way in kept.items() if ":3" in dst or ".3." in dst}
    cluster.drop(BlockAffinity, "", "c-10-65-3-0-26")  # nobody waits for what is not there
    cluster.drop(BlockAffinity, "", "c-fd00-65-3---122")
    assert converge(stages, cluster.state()) == []
    assert cluster_routes(ground) == {}
    reached(stages, cluster.state())
    assert device(ground, "vxlan.calico") == {}


def test_a_pool_that_becomes_the_agents_is_taken_over_beside_birds_routes(ground: Ns) -> None:
    """Also where the tunnel's address is in a block that another link leads to, which IPv6 minds."""
    ground.ip("route", "add", "10.65.2.0/26", "via", "192.0.2.2", "metric", "1024", "proto", "bird")
    ground.ip("route", "add", "fd00:65:2::/122", "via", "2001:db8::2", "metric", "1024", "proto", "bird")
    reached(overlay_stages(ground.path), cluster_of(bird=True).state())
    for version, block_ in ((4, "10.65.2.0/26"), (6, "fd00:65:2::/122")):
        (way,) = ground.json(
            f"-{version}", "route", "get", block_.replace("/26", "").replace("0/26", "7").split("/")[0] or ""
        )
        assert way["dev"] in DEVICES


def test_a_far_end_stays_as_long_as_a_route_to_it_waits_for_bird(ground: Ns) -> None:
    other = convert(IPPool, {"metadata": {"name": "other"}, "spec": {"cidr": "10.66.0.0/16", "vxlanMode": "Always"}})
    cluster, stages = cluster_of(other, bird=True), overlay_stages(ground.path)
    reached(stages, cluster.state())
    ways = [f"vxlan.calico {what}" for what in ("neighbours", "forwarding")]
    right = snapshot(ground, *DEVICES)
    cluster.put(pool(4))
    cluster.put(node("c", 3, vxlan=False))
    assert converge(stages, cluster.state()) == []
    left = snapshot(ground, *DEVICES)
    assert [left[way] for way in ways] == [right[way] for way in ways]
    ground.ip("route", "add", "10.65.3.0/26", "via", "192.0.2.3", "metric", "1024", "proto", "bird")
    assert converge(stages, cluster.state()) == []
    assert converge(stages, cluster.state()) == []  # the route has gone: now so does what it needed
    left = snapshot(ground, *DEVICES)
    assert [len(left[way]) for way in ways] == [1, 1]


@pytest.mark.parametrize("kind", [ClusterRoutes, PodNetworkRoutes])
def test_what_may_have_changed_unheard_is_listed_again(
    ground: Ns, kind: type[ClusterRoutes] | type[PodNetworkRoutes]
) -> None:
    routes, state = LiveRoutes(ground.path), cluster_of().state()
    stage = kind(LiveLinks(ground.path), routes, ground.path)
    for listings in (1, 2):
        stage.plan(state)
        stage.plan(state)
        assert routes.listings == listings
        stage.forget()


def test_cross_subnet_and_back_never_leaves_a_destination_without_a_route(ground: Ns) -> None:
    cluster, stages = cluster_of(), overlay_stages(ground.path)
    reached(stages, cluster.state())
    for mode, dev in (("CrossSubnet", "eth0"), ("Always", "vxlan.calico")):
        for version in (4, 6):
            cluster.put(pool(version, vxlanMode=mode))
        groups = (events.Group.IPV4_ROUTE, events.Group.IPV6_ROUTE)
        with events.Monitor(ground.path, groups) as monitor:
            reached(stages, cluster.state())
            gone = [
                str(event.route.dst) for event in monitor.read() if isinstance(event, events.RouteEvent) and event.gone
            ]
        assert gone == []
        assert cluster_routes(ground)["10.65.2.0/26"][2] == dev


def test_a_kernel_without_ipip_is_one_clear_line_and_stops_nothing_else(ground: Ns) -> None:
    other = {"cidr": "10.66.0.0/16", "ipipMode": "Always"}
    cluster = cluster_of(convert(IPPool, {"metadata": {"name": "tunnelled"}, "spec": other}))
    stages = overlay_stages(ground.path)
    failures = list(map(str, converge(stages, cluster.state())))
    if not failures:
        (tunnel,) = [link for link in ground.json("link", "show") if link["ifname"] == "tunl0"]
        assert tunnel["ifalias"] == ALIAS
        pytest.skip("this kernel has IPIP")
    assert failures == [
        "tunnels: tunl0: this kernel has no IPIP, which IPPool tunnelled asks for: "
        "modprobe ipip, or give the pool a vxlanMode instead of its ipipMode"
    ]
    assert device(ground, "vxlan.calico")["up"]
    assert "10.65.2.0/26" in cluster_routes(ground)
    ground.ip("address", "add", "10.65.9.9/32", "dev", "vxlan.calico")  # what has to go goes all the same
    assert len(converge(stages, cluster.state())) == 1
    assert device(ground, "vxlan.calico")["addresses"] == ["10.65.1.0/32"]
