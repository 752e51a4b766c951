"""Agents without BIRD that route one another's networks of stand-alone plugins: nothing is typed by hand, and whatever
changes on a node is followed by the others.

    pods on cni0 ── node a, 192.0.2.1 ──┐
    pods on cni0 ── node b, 192.0.2.2 ──┤ switch            a node has the way to all, also one without such a network
                    node c, 192.0.2.3 ──┘
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from agent_node import Node, Site, site_in, until
from overlay_nodes import MakeNs, Town

from cni_plugins import GO, Caller, put
from namespaces import Ns, namespaces
from tortie.model.node import Node as NodeResource
from tortie.model.pod_networks import POD_NETWORKS, with_pod_networks

pytestmark = pytest.mark.root

FILE, OTHER = "10-pods.conflist", "20-pods.conf"
NODES = {"a": 1, "b": 2, "c": 3}
NETWORK = "pods"
LOOK = 20.0


def subnet(name: str) -> str:
    return f"10.77.{NODES[name]}.0/24"


def conf(node: Node, subnet: str, **more: Any) -> dict[str, Any]:
    """A bridge whose pods are reached through their node."""
    ipam = {"type": "host-local", "subnet": subnet, "dataDir": str(node.run_dir / "ipam")}
    plugin = {"type": "bridge", "bridge": "cni0", "isDefaultGateway": True, "ipam": ipam, "autoRoutes": True, **more}
    return {"cniVersion": "1.0.0", "name": NETWORK, "plugins": [plugin]}


def ipvlan(subnet: str, **more: Any) -> dict[str, Any]:
    ipam = {"type": "host-local", "subnet": subnet}
    return {"name": NETWORK, "type": "ipvlan", "master": "eth0", "mode": "l3", "ipam": ipam, "autoRoutes": True, **more}


def configure(node: Node, document: Mapping[str, Any] | str, name: str = FILE) -> None:
    """As those do who let nobody see half a file."""
    directory = node.run_dir / "net.d"
    directory.mkdir(parents=True, exist_ok=True)
    text = document if isinstance(document, str) else json.dumps(document)
    (directory / f".{name}").write_text(text)
    (directory / f".{name}").rename(directory / name)


def ways(node: Node | Ns, family: str = "-4") -> dict[str, tuple[str, str]]:
    """What the agent has written: destination to next hop and link."""
    ns = node.ns if isinstance(node, Node) else node
    found = ns.json(family, "route", "show", "proto", "87")
    return {route["dst"]: (route.get("gateway", ""), route["dev"]) for route in found}


def await_ways(node: Node, wanted: Mapping[str, tuple[str, str]], family: str = "-4") -> None:
    until(lambda: ways(node, family), lambda seen: seen == wanted, what=f"routes of {node.name}", seconds=LOOK)


def through(*names: str) -> dict[str, tuple[str, str]]:
    return {subnet(name): (f"192.0.2.{NODES[name]}", "eth0") for name in names}


def said(node: Node) -> dict[str, Any]:
    code, body = node.ask("/node")
    assert code == 200, body
    return json.loads(body)


def problems(node: Node) -> dict[str, str]:
    return said(node)["problems"]


def resource(town: Town, name: str) -> NodeResource:
    async def get() -> NodeResource:
        async with town.site.store() as store:
            return await store.get(NodeResource, name)

    return asyncio.run(get())


def conditions(town: Town, name: str) -> list[str]:
    status = resource(town, name).status or {}
    return [one["message"] for one in status.get("conditions", ())]


def started(site: Site, make: MakeNs) -> Town:
    site.set_up()
    town = Town(site, make)
    for name, number in NODES.items():
        node = town.node(name, "--no-bgp", ipv4=f"192.0.2.{number}/24", ipv6=f"2001:db8::{number}/64")
        node.spawn()
    for node in town.nodes.values():
        node.await_ready()
    return town


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    spaces = namespaces()
    make = next(spaces)
    try:
        with site_in(tmp_path_factory.mktemp("site")) as site:
            yield started(site, make)
    finally:
        next(spaces, None)


@pytest.fixture
def town(living: Town) -> Town:
    """Nodes a and b have their networks, and all know the ways."""
    for name, node in living.nodes.items():
        for file in (node.run_dir / "net.d").glob("*"):
            if file.name != FILE or name == "c":
                file.unlink()
        if name != "c":
            configure(node, conf(node, subnet(name)))
    right(living)
    return living


def right(town: Town) -> None:
    a, b, c = town.nodes.values()
    await_ways(a, through("b"))
    await_ways(b, through("a"))
    await_ways(c, through("a", "b"))


@pytest.mark.parametrize("whose", ["ours", "Go's"])
def test_pods_of_bridges_reach_each_other_and_other_nodes(
    town: Town, make_ns: MakeNs, tmp_path: Path, whose: str
) -> None:
    """The Go plugins pass the word over, and what they connect is reached like any other."""
    plugins = put(tmp_path / "bin") if whose == "ours" else GO
    pods = {}
    for name in ("a", "b"):
        node, ns = town.nodes[name], make_ns(f"pod-{name}")
        document = conf(node, subnet(name))
        plugin = {"cniVersion": "1.0.0", "name": NETWORK, **document["plugins"][0]}
        result = Caller(plugins, node.ns.name).add(plugin, netns=ns.name, container=f"pod-{name}")
        pods[name] = ns, result["ips"][0]["address"].partition("/")[0], plugin
    a, b = pods["a"], pods["b"]
    until(lambda: town.pings(a[0], b[1]), what="pod to pod")
    assert town.pings(b[0], a[1])
    assert town.pings(town.nodes["c"].ns, a[1])
    assert town.pings(a[0], "192.0.2.2")
    for name, (ns, _, plugin) in pods.items():
        node = town.nodes[name].ns
        assert Caller(plugins, node.name)("DEL", plugin, netns=ns.name, container=f"pod-{name}").code == 0
        node.ip("link", "del", "cni0")


def test_what_a_node_publishes(town: Town) -> None:
    (network,) = json.loads(resource(town, "a").metadata.annotations[POD_NETWORKS])
    (span,) = network.pop("spans")
    assert span.pop("since")
    assert (network, span) == ({"name": NETWORK, "mode": "bridge", "file": FILE}, {"subnet": subnet("a")})
    assert problems(town.nodes["a"]) == {}
    rows = said(town.nodes["c"])["podRoutes"]
    assert rows[0] == {"network": NETWORK, "node": "a", "dst": subnet("a"), "via": "192.0.2.1"}


def test_the_master_of_ipvlan_and_its_addresses_are_published(town: Town) -> None:
    """Of this machine's kernel nothing is asked that it may lack: it is only routes."""
    configure(town.nodes["c"], ipvlan("10.77.3.0/24"), OTHER)
    await_ways(town.nodes["a"], through("b", "c"))
    (network,) = json.loads(resource(town, "c").metadata.annotations[POD_NETWORKS])
    assert (network["mode"], network["master"]) == ("l3", "eth0")
    assert network["addresses"] == ["192.0.2.3/24", "2001:db8::3/64"]


def test_a_network_that_goes_takes_its_routes_with_it(town: Town) -> None:
    (town.nodes["b"].run_dir / "net.d" / FILE).unlink()
    await_ways(town.nodes["a"], {})
    await_ways(town.nodes["c"], through("a"))
    assert POD_NETWORKS not in resource(town, "b").metadata.annotations


def test_a_network_that_gets_another_subnet(town: Town) -> None:
    node = town.nodes["b"]
    configure(node, conf(node, "10.77.200.0/24"))
    await_ways(town.nodes["a"], {"10.77.200.0/24": ("192.0.2.2", "eth0")})


def test_a_node_that_is_renumbered(town: Town) -> None:
    b = town.nodes["b"]
    b.ns.ip("address", "add", "192.0.2.20/24", "dev", "eth0")
    configure(b, ipvlan(subnet("b")), OTHER)
    (b.run_dir / "net.d" / FILE).unlink()
    until(lambda: "192.0.2.20/24" in resource(town, "b").metadata.annotations.get(POD_NETWORKS, ""), what="published")
    assert ways(town.nodes["a"])[subnet("b")] == ("192.0.2.2", "eth0")
    b.ns.run("sh", "-ec", "ip address del 192.0.2.2/24 dev eth0; ip address replace 192.0.2.20/24 dev eth0")
    await_ways(town.nodes["a"], {subnet("b"): ("192.0.2.20", "eth0")})
    b.ns.ip("address", "flush", "dev", "eth0", "scope", "global")
    for address in ("192.0.2.2/24", "2001:db8::2/64"):
        b.ns.ip("address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
    await_ways(town.nodes["a"], through("b"))


def test_a_node_that_is_deleted_and_comes_back(town: Town) -> None:
    async def forget() -> None:
        async with town.site.store() as store:
            await store.delete(NodeResource, "b")

    b = town.nodes["b"]
    b.kill()
    asyncio.run(forget())
    await_ways(town.nodes["a"], {})
    b.start()
    await_ways(town.nodes["a"], through("b"))


DAMAGES = (
    "ip route flush proto 87",
    "ip route del 10.77.2.0/24; ip route add 10.78.0.0/16 via 192.0.2.9 proto 87",
    "ip link set eth0 down; sleep 0.1; ip link set eth0 up",
    "ip address del 192.0.2.1/24 dev eth0; sleep 0.1; ip address add 192.0.2.1/24 dev eth0",
    "ip route replace 10.77.2.0/24 via 192.0.2.9; sleep 0.3; ip route del 10.77.2.0/24 via 192.0.2.9",
)


def test_whatever_takes_the_routes_away_they_come_back(town: Town) -> None:
    a = town.nodes["a"]
    a.ns.run("sysctl", "-qw", "net.ipv6.conf.eth0.keep_addr_on_down=1")
    for damage in DAMAGES:
        a.ns.run("sh", "-ec", damage)
        until(lambda: ways(a), lambda seen: seen == through("b"), what=damage, seconds=10)


def test_a_restarted_agent_changes_nothing(town: Town) -> None:
    a = town.nodes["a"]
    before = resource(town, "a")
    a.restart()
    await_ways(a, through("b"))
    assert resource(town, "a").metadata.annotations == before.metadata.annotations
    await_ways(town.nodes["b"], through("a"))


def test_an_annotation_that_somebody_takes_away_comes_back_as_it_was(town: Town) -> None:
    before = resource(town, "b").metadata.annotations[POD_NETWORKS]

    async def strip() -> None:
        async with town.site.store() as store:
            await store.update(with_pod_networks(await store.get(NodeResource, "b"), ""))

    asyncio.run(strip())
    until(lambda: resource(town, "b").metadata.annotations.get(POD_NETWORKS), lambda seen: seen == before, what="back")
    right(town)


def test_of_two_nodes_with_one_subnet_the_first_keeps_it(town: Town) -> None:
    b, c = town.nodes["b"], town.nodes["c"]
    configure(c, conf(c, "10.77.2.128/25"))
    text = "10.77.2.128/25 overlaps 10.77.2.0/24 of b, which has had it since "
    for node in town.nodes.values():
        until(lambda: problems(node), lambda seen: text in seen.get("pod network pods of c", ""), what="told")  # noqa: B023
    assert ways(town.nodes["a"]) == through("b")
    until(lambda: conditions(town, "c"), lambda seen: len(seen) == 1 and text in seen[0], what="condition")
    assert conditions(town, "b") == []
    (b.run_dir / "net.d" / FILE).unlink()  # b gives it up
    await_ways(town.nodes["a"], {"10.77.2.128/25": ("192.0.2.3", "eth0")})
    until(lambda: conditions(town, "c"), lambda seen: seen == [], what="no condition")


def test_a_node_that_is_not_on_the_network_is_told_of(town: Town) -> None:
    """l3 has no way through a router that does not know the pods."""
    c = town.nodes["c"]
    c.ns.ip("link", "add", "far", "type", "veth", "peer", "name", "far-end")
    c.ns.ip("address", "add", "198.51.100.3/24", "dev", "far")
    c.ns.ip("link", "set", "far", "up")
    configure(c, ipvlan("10.77.3.0/24", master="far"), OTHER)
    a = town.nodes["a"]
    title = "route to 10.77.3.0/24 (pods) of c"
    until(lambda: problems(a).get(title, ""), what="told")
    why = 'routers on the way must know the route, which "autoRoutes": "bgp" tells them'
    assert problems(a)[title] == f"198.51.100.3 is not on a network of this machine: {why}"
    assert ways(a) == through("b")
    until(lambda: conditions(town, "a"), lambda seen: len(seen) == 1 and title in seen[0], what="condition")
    c.ns.ip("link", "del", "far")


def test_a_route_of_somebody_else_is_left_alone(town: Town) -> None:
    a = town.nodes["a"]
    a.ns.ip("route", "replace", "10.77.2.0/24", "via", "192.0.2.9", "proto", "static")
    title = "route to 10.77.2.0/24 (pods) of b"
    until(lambda: problems(a).get(title, ""), what="told")
    assert "left alone: 10.77.2.0/24 via 192.0.2.9 dev eth0 proto static" in problems(a)[title]
    (route,) = a.ns.json("route", "show", "10.77.2.0/24")
    assert (route["gateway"], route["protocol"]) == ("192.0.2.9", "static")
    a.ns.ip("route", "replace", "10.77.2.0/24", "via", "192.0.2.2")  # what used to be typed: it leads the same way
    until(lambda: problems(a), lambda seen: seen == {}, what="nothing to tell")
    a.ns.ip("route", "del", "10.77.2.0/24")
    await_ways(a, through("b"))


def test_pods_that_answer_on_the_network_itself_are_reached_straight(town: Town) -> None:
    """macvlan: the other node's pods are neighbours; where the subnet is the network's own there is nothing to do."""
    macvlan = {"name": "lan", "type": "macvlan", "master": "eth0", "autoRoutes": True}
    own = {**macvlan, "ipam": {"type": "host-local", "subnet": "10.79.2.0/24"}}
    lan = {"type": "host-local", "subnet": "192.0.2.0/24", "rangeStart": "192.0.2.100", "rangeEnd": "192.0.2.110"}
    configure(town.nodes["b"], own, "50-lan.conf")
    configure(town.nodes["c"], {**macvlan, "ipam": lan}, "50-lan.conf")
    await_ways(town.nodes["a"], through("b") | {"10.79.2.0/24": ("", "eth0")})
    assert problems(town.nodes["a"]) == {}
    until(lambda: '"lan"' in resource(town, "c").metadata.annotations.get(POD_NETWORKS, ""), what="published")
    configure(town.nodes["b"], {**macvlan, "ipam": lan}, "50-lan.conf")  # both give out the same addresses
    until(lambda: problems(town.nodes["a"]), what="overlap")
    (why,) = problems(town.nodes["a"]).values()
    assert "192.0.2.100 to 192.0.2.110 overlaps 192.0.2.100 to 192.0.2.110 of c" in why


def test_the_doctor_sees_who_was_asked_for_in_vain(town: Town) -> None:
    """What is left of a packet that was sent while there was no route."""
    c = town.nodes["c"].ns
    c.ip("route", "add", "10.77.2.9/32", "dev", "eth0")
    c.run("ping", "-c", "1", "-W", "0.1", "10.77.2.9", check=False)
    c.ip("route", "del", "10.77.2.9/32", "dev", "eth0")
    found = json.loads(town.nodes["c"].ask("/doctor")[1])["findings"]
    ((level, text),) = [(one["level"], one["what"]) for one in found if one["check"] == "pod networks"]
    assert (level, text[:51]) == ("warn", "eth0 was asked for 10.77.2.9, a pod's address of b:")


def test_what_is_wrong_with_a_configuration_is_told_and_costs_no_route(town: Town) -> None:
    b = town.nodes["b"]
    configure(b, '{"name": "pods", "plug')
    title = f"autoRoutes in {b.run_dir / 'net.d' / FILE}"
    until(lambda: problems(b).get(title, ""), what="told")
    assert ways(town.nodes["a"]) == through("b")
    b.restart()  # also a start does not take it away
    until(lambda: problems(b).get(title, ""), what="told again")
    assert ways(town.nodes["a"]) == through("b")
    static = {**ipvlan(subnet("b")), "ipam": {"type": "static"}}
    configure(b, {"name": NETWORK, "plugins": [static]})
    text = "plugins[0].ipam.type: must be host-local: which subnet is this node's is not known otherwise"
    until(lambda: problems(b).get(title, ""), lambda seen: text.removeprefix("plugins[0].") in seen, what="told why")


def test_both_families(town: Town) -> None:
    sets = [[{"subnet": "10.77.3.0/24"}], [{"subnet": "fd00:77:3::/64"}]]
    configure(town.nodes["c"], {**ipvlan("10.77.3.0/24"), "ipam": {"type": "host-local", "ranges": sets}}, OTHER)
    await_ways(town.nodes["a"], through("b", "c"))
    await_ways(town.nodes["a"], {"fd00:77:3::/64": ("2001:db8::3", "eth0")}, "-6")
