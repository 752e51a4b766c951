"""Nodes that find their own addresses: real links, real agents. Numbers are Calico's situations.

switch ── br0 ─┬─ eth0 of node1     a veth for each node; 192.0.2.0/24 and fd00:2::/64
               └─ eth0 of node2
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from agent_node import Node, Site, pool, site_in, until
from agent_pods import sandboxes
from conftest import Ns
from msgspec.structs import replace

from tortie.base.addr import parse_net
from tortie.calc.admission import bootstrap
from tortie.ipam.names import affinity_name
from tortie.model import node as model
from tortie.model.bgp import BGPConfiguration
from tortie.model.ipam import BlockAffinity, BlockAffinitySpec, IPPool, IPPoolSpec
from tortie.model.k8s import K8sNode, Namespace
from tortie.model.meta import Metadata
from tortie.model.node import FelixConfiguration, NodeBGPSpec, NodeSpec
from tortie.model.store import Store

pytestmark = pytest.mark.root


@dataclass
class Told(Node):
    """A node whose agent is told by its environment alone, unless the test says more."""

    variables: dict[str, str] = field(default_factory=dict)

    def command(self, *more: str) -> list[str]:
        return ["env", *(f"{name}={value}" for name, value in self.variables.items()), *super().command(*more)]

    def answer(self, question: str) -> dict[str, Any]:
        status, text = self.ask(question)
        assert status == 200, text
        found: dict[str, Any] = json.loads(text)
        return found

    def address(self, *words: str) -> None:
        self.ns.ip("address", *words, "dev", "eth0")


@dataclass
class Town:
    """A site whose nodes are on one switch."""

    site: Site
    switch: Ns

    def node(self, name: str, *words: str, **variables: str) -> Told:
        made = self.site.node(name, *words, ipv4="")
        node = Told(self.site, name, made.ns, list(words), variables=variables)
        self.site.nodes[-1] = node
        self.switch.ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", node.ns.name)
        self.switch.ip("link", "set", name, "master", "br0", "up")
        node.ns.ip("link", "set", "eth0", "up")
        return node

    def read(self, kind: type[Any], name: str) -> Any:
        async def get() -> Any:
            async with self.site.store() as store:
                return await store.get(kind, name)

        return asyncio.run(get())

    def addresses(self, name: str) -> tuple[str, str]:
        bgp = self.read(model.Node, name).spec.bgp
        return (bgp.ipv4_address, bgp.ipv6_address) if bgp is not None else ("", "")

    def pools(self) -> dict[str, IPPool]:
        async def every() -> dict[str, IPPool]:
            async with self.site.store() as store:
                return {one.name: one for one in (await store.list(IPPool)).items}

        return asyncio.run(every())


@pytest.fixture
def town(tmp_path: Path, make_ns: Callable[..., Ns]) -> Iterator[Town]:
    switch = make_ns("switch")
    switch.ip("link", "add", "br0", "type", "bridge")
    switch.ip("link", "set", "br0", "up")
    switch.ip("address", "add", "192.0.2.254/24", "dev", "br0")
    with site_in(tmp_path) as site:
        yield Town(site, switch)


def ranking(answer: Mapping[str, Any], family: str = "ipv4") -> dict[str, str]:
    """What became of each address."""
    return {one["address"]: one["why"] for one in answer[family]["candidates"] if one["address"]}


def test_node_that_is_told_nothing_starts_the_cluster_it_finds(town: Town) -> None:
    """Its address, its name on disk, the first pools and default objects; then it follows the machine."""
    town.site.write(*bootstrap("0" * 32))
    node = town.node("node1", "--no-bgp", "--defaults", CALICO_IPV4POOL_CIDR="10.40.0.0/16",
                     CALICO_IPV4POOL_VXLAN="Always", CALICO_IPV6POOL_CIDR="none", AS="64999",
                     FELIX_VXLANMTU="1400", CLUSTER_TYPE="k8s", USE_POD_CIDR="true")  # fmt: skip
    node.address("add", "192.0.2.1/24")
    node.ns.ip("link", "add", "docker0", "type", "bridge")
    node.ns.ip("address", "add", "172.17.0.1/16", "dev", "docker0")
    node.ns.ip("link", "set", "docker0", "up")
    node.start()
    assert town.addresses("node1") == ("192.0.2.1/24", "")
    assert town.read(model.Node, "node1").spec.bgp.as_number == 64999
    assert {name: (one.spec.cidr, one.spec.vxlan_mode) for name, one in town.pools().items()} == {
        "default-ipv4-ippool": ("10.40.0.0/16", "Always")
    }
    assert town.read(FelixConfiguration, "default").spec.log_severity_screen == "Info"
    assert town.read(BGPConfiguration, "default")
    assert (node.run_dir / "nodename").read_text() == "node1"
    assert any("USE_POD_CIDR has no effect" in line for line in node.messages())
    found = node.answer("/addresses")
    assert (found["ipv4"]["address"], found["ipv4"]["source"]) == ("192.0.2.1/24", "detected")
    assert ranking(found) == {
        "192.0.2.1/24": "the first that will do",
        "172.17.0.1/16": "links ^docker.* are left out",
        "127.0.0.1/8": "is a loopback address",
    }
    assert (node.run_dir / "mtu").read_text() == "1400\n"
    assert node.answer("/mtu")["text"] == "VXLAN: 1400 told by vxlanMTU; 1500 of eth0 − 50 VXLAN = 1450"
    # What is kept stays without a word from the environment, whatever the machine shows.
    node.address("del", "192.0.2.1/24")
    node.address("add", "192.0.2.9/24")
    until(lambda: ranking(node.answer("/addresses")), lambda seen: "192.0.2.9/24" in seen, "it looked again")
    assert town.addresses("node1") == ("192.0.2.1/24", "")


def test_situation_37_an_address_that_another_node_has(town: Town) -> None:
    """At a start it ends the agent, and the node is without it; while it runs, it keeps what it has, and says so."""
    town.site.set_up()
    one = town.node("node1", "--no-bgp", IP="autodetect", IP6="autodetect")
    for address in ("192.0.2.1/24", "fd00:2::1/64"):
        one.address("add", address, *(["nodad"] if ":" in address else []))
    one.start()
    assert town.addresses("node1") == ("192.0.2.1/24", "fd00:2::1/64")
    noted = town.read(model.Node, "node1").spec.interfaces
    assert [(each.name, each.addresses) for each in noted] == [("eth0", ("192.0.2.1/24", "fd00:2::1/64"))]

    before = NodeSpec(bgp=NodeBGPSpec(ipv4_address="192.0.2.2/24"))
    town.site.write(model.Node(metadata=Metadata(name="node2"), spec=before))
    two = town.node("node2", "--no-bgp", "--health-port", "0", "--metrics-port", "0", IP="autodetect")
    two.address("add", "192.0.2.1/16")
    status, text = two.run_once()
    assert status == 1
    assert text == "tortie: conflicting node detected: IPv4 address conflict: node node1 has 192.0.2.1/16 too"
    assert town.addresses("node2") == ("", "")

    two.address("flush")
    status, text = two.run_once()
    assert status == 1
    assert text.startswith("tortie: no IPv4 address is found by the method first-found")
    two.address("add", "192.0.2.2/24")
    two.start()
    two.address("del", "192.0.2.2/24")
    two.address("add", "192.0.2.1/24")
    until(lambda: two.ask("/readiness"), lambda said: said[0] == 503 and "address conflict" in said[1], "it says so")
    assert town.addresses("node2") == ("192.0.2.2/24", "")
    two.address("del", "192.0.2.1/24")
    two.address("add", "192.0.2.3/24")
    until(lambda: town.addresses("node2"), lambda seen: seen[0] == "192.0.2.3/24", "it moved")
    until(lambda: two.ask("/readiness")[0], lambda status: status == 200, "it is ready again")


def block(node: str, cidr: str) -> BlockAffinity:
    """One that a node has, whether pods are in it or not."""
    spec = BlockAffinitySpec(cidr=cidr, node=node, state="confirmed")
    return BlockAffinity(metadata=Metadata(name=affinity_name(node, parse_net(cidr))), spec=spec)


def test_node_that_moves_takes_its_routes_along(town: Town) -> None:
    """The Node, BGP, the others' routes and tunnels follow the kernel's announcement; no agent is started again."""
    town.site.set_up()
    vxlan = IPPoolSpec(cidr="10.66.0.0/16", vxlan_mode="Always")
    town.site.write(IPPool(metadata=Metadata(name="vxlan"), spec=vxlan))
    town.site.write(block("node1", "10.65.1.0/26"), block("node1", "10.66.1.0/26"))
    nodes = [town.node(f"node{i}", "--bgp", IP="autodetect", AUTODETECT_POLL_INTERVAL="600s") for i in (1, 2)]
    for i, node in enumerate(nodes, 1):
        node.address("add", f"192.0.2.{i}/24")
        node.start()
    one, two = nodes

    def gateways() -> set[str]:
        """By which other nodes' blocks are reached from node2."""
        return {route.get("gateway", "") for route in two.ns.json("route", "show", "proto", "bird")} - {""}

    def states() -> list[str]:
        return [peer["state"] for peer in two.answer("/node")["peers"]]

    def tunnel() -> tuple[set[str], str]:
        """Where node2 sends what is for node1's tunnel, and where that ends."""
        entries = json.loads(two.ns.run("bridge", "-j", "fdb", "show", "dev", "vxlan.calico"))
        (device,) = one.ns.json("link", "show", "dev", "vxlan.calico")
        return {entry["dst"] for entry in entries if "dst" in entry}, device["linkinfo"]["info_data"]["local"]

    until(gateways, lambda seen: seen == {"192.0.2.1"}, "node1's block is known to node2", 60)
    until(tunnel, lambda seen: seen == ({"192.0.2.1"}, "192.0.2.1"), "so is its tunnel", 60)
    pids = [node.bird_pid for node in nodes]
    one.address("del", "192.0.2.1/24")
    one.address("add", "192.0.2.11/24")
    until(lambda: town.addresses("node1"), lambda seen: seen[0] == "192.0.2.11/24", "the Node follows")
    until(gateways, lambda seen: seen == {"192.0.2.11"}, "and the route", 60)
    until(tunnel, lambda seen: seen == ({"192.0.2.11"}, "192.0.2.11"), "and the tunnel", 60)
    assert states() == ["Established"]
    assert [node.bird_pid for node in nodes] == pids
    assert any("had 192.0.2.1/24 and has 192.0.2.11/24 now" in line for line in one.messages())


@pytest.fixture
async def ground(town: Town) -> AsyncIterator[tuple[Town, Told, Store]]:
    red = Namespace(metadata=Metadata(name="red"))
    async with town.site.store() as store:
        for one in (*bootstrap("0" * 32), pool("pool4", "10.65.0.0/16"), pool("pool6", "fd00:65::/48"), red):
            await store.create(one)
        node = town.node("node1", "--no-bgp", IP="192.0.2.1")
        node.address("add", "192.0.2.1/24")
        await asyncio.to_thread(node.start)
        yield town, node, store


async def test_new_pods_have_the_mtu_of_now_and_old_ones_are_told(
    ground: tuple[Town, Told, Store], make_ns: Callable[..., Ns]
) -> None:
    _, node, store = ground
    async with sandboxes(node, store, make_ns) as sandbox:
        before = await sandbox("before")
        await before.add()
        assert mtu_of(before.ns) == 1500
        node.ns.ip("link", "set", "eth0", "mtu", "1400")
        file = node.run_dir / "mtu"
        await asyncio.to_thread(until, file.read_text, lambda text: text == "1400\n", "the link's MTU is heard of")
        after = await sandbox("after")
        await after.add()
        assert (mtu_of(after.ns), mtu_of(before.ns)) == (1400, 1500)
        # A packet that is too large now comes back with word of it, and the old pod keeps to that.
        await asyncio.to_thread(until, lambda: path_mtu(before.ns), lambda mtu: mtu == 1400, "the old pod is told")
        found = node.answer("/mtu")
        assert (found["pod"], found["others"], found["pods"]) == (1400, {"red/before": 1500}, 2)
    four = await store.get(IPPool, "pool4")
    await store.update(replace(four, spec=replace(four.spec, vxlan_mode="Always")))
    await asyncio.to_thread(until, file.read_text, lambda text: text == "1350\n", "the pool's tunnel counts")
    node.ns.ip("link", "set", "eth0", "mtu", "1390")
    await asyncio.to_thread(until, file.read_text, lambda text: text == "1340\n", "the link's MTU counts for it")

    def tunnels() -> list[int]:
        return [link["mtu"] for link in node.ns.json("link", "show") if link["ifname"] == "vxlan.calico"]

    await asyncio.to_thread(until, tunnels, lambda seen: seen == [1340], "the tunnel follows")


def path_mtu(ns: Ns) -> int:
    """What a pod has been told of the way out, after a packet that is too large for it; 0 if nothing."""
    ns.run("ping", "-c1", "-W1", "-Mdo", "-s1472", "192.0.2.254", check=False)
    (route,) = ns.json("route", "get", "192.0.2.254")
    return int(route.get("metrics", [{}])[0].get("mtu", 0))


def mtu_of(ns: Ns) -> int:
    (eth0,) = ns.json("link", "show", "dev", "eth0")
    return int(eth0["mtu"])


def test_methods_that_ask_others_and_a_backend_that_asks_nobody(town: Town) -> None:
    """The kernel's way to a destination, and the Kubernetes Node's InternalIP; a node without BIRD, and one that has no
    addresses either."""
    town.site.set_up()
    status = {"addresses": [{"type": "InternalIP", "address": "fd00:2::1"}]}
    town.site.write(K8sNode(metadata=Metadata(name="k8s-1"), status=status))
    told = {"IP_AUTODETECTION_METHOD": "can-reach=192.0.2.254", "CALICO_NETWORKING_BACKEND": "vxlan"}
    told |= {"IP6": "autodetect", "IP6_AUTODETECTION_METHOD": "kubernetes-internal-ip"}
    node = town.node("node1", "--bgp", **told)
    for address in ("198.51.100.1/24", "192.0.2.1/24"):
        node.address("add", address)
    for address in ("fd00:2::7/64", "fd00:2::1/64"):
        node.address("add", address, "nodad")
    assert node.run_once()[1] == "tortie: kubernetes-internal-ip: there is no Kubernetes Node node1 in the datastore"
    node.variables["CALICO_K8S_NODE_REF"] = "k8s-1"
    node.start()
    assert town.addresses("node1") == ("192.0.2.1/24", "fd00:2::1/64")
    assert node.bird_pid == 0
    found = node.answer("/addresses")
    assert ranking(found)["198.51.100.1/24"] == "packets to 192.0.2.254 leave from 192.0.2.1"
    assert ranking(found, "ipv6")["fd00:2::7/64"] == "the InternalIP of the Kubernetes Node is fd00:2::1"
    assert node.answer("/health")["bird"]["state"] == "none"
    node.kill()
    other = town.node("node2", "--bgp", CALICO_NETWORKING_BACKEND="none", IP="192.0.2.7/24", IP6="autodetect")
    other.start()
    assert town.addresses("node2") == ("", "")
