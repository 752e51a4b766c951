"""CrossSubnet: two nodes on one network, a third behind a router that knows nothing of pods."""

from __future__ import annotations

import asyncio

import pytest
from agent_node import Site, site_in, until
from overlay_nodes import Switch, Town, change_pool

from namespaces import namespaces
from overlay_kernel import cluster_routes

pytestmark = pytest.mark.root

NODES = {"a": "192.0.2.1/24", "b": "192.0.2.2/24", "c": "198.51.100.3/24"}
NEAR, FAR = ("192.0.2.254", "2001:db8:1::fe"), ("198.51.100.254", "2001:db8:2::fe")
"""The router's legs."""
SIX = {"a": "2001:db8:1::1/64", "b": "2001:db8:1::2/64", "c": "2001:db8:2::3/64"}


def built(site: Site, make: object) -> Town:
    town = Town(site, make)  # type: ignore[arg-type]
    far, router = Switch.made(town.make_ns, "far"), town.make_ns("router")
    town.switch.plug(router, f"{NEAR[0]}/24", f"{NEAR[1]}/64", name="near")
    far.plug(router, f"{FAR[0]}/24", f"{FAR[1]}/64", name="far")
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    for name, address in NODES.items():
        switch, gateway = (
            (far, ("198.51.100.254", "2001:db8:2::fe")) if name == "c" else (None, ("192.0.2.254", "2001:db8:1::fe"))
        )
        node = town.node(name, "--no-bgp", ipv4=address, ipv6=SIX[name], switch=switch)
        for way in gateway:
            node.ns.ip("route", "add", "default", "via", way)
        node.spawn()
    return town


async def connect(town: Town) -> None:
    async with town.site.store() as store:
        for number in (4, 6):
            await change_pool(store, f"pool{number}", vxlan_mode="CrossSubnet")
        for name, node in town.nodes.items():
            await asyncio.to_thread(node.await_ready)
            await town.pod(store, f"pod-{name}", name)


def links(town: Town, node: str) -> dict[str, set[str]]:
    """The links by which a node's routes lead to blocks, by the last word of the device's name."""
    ways = [way for dst, way in cluster_routes(town.nodes[node].ns).items() if way[0] == "unicast" and "/" in dst]
    return {version: {dev for _, via, dev, *_ in ways if (":" in via) == (version == "6")} for version in "46"}


def test_only_what_crosses_a_router_goes_into_the_tunnel(tmp_path_factory: pytest.TempPathFactory) -> None:
    spaces = namespaces()
    try:
        with site_in(tmp_path_factory.mktemp("site")) as site:
            site.set_up()
            town = built(site, next(spaces))
            asyncio.run(connect(town))
            for version in (4, 6):
                for one, other in ("ab", "bc", "ca"):
                    town.reach(f"pod-{one}", f"pod-{other}", version)
            assert links(town, "a") == {"4": {"eth0", "vxlan.calico"}, "6": {"eth0", "vxlan-v6.calico"}}
            assert links(town, "c") == {"4": {"vxlan.calico"}, "6": {"vxlan-v6.calico"}}

            async def always() -> None:
                async with site.store() as store:
                    await change_pool(store, "pool4", vxlan_mode="Always")

            asyncio.run(always())
            until(lambda: links(town, "a")["4"], lambda seen: seen == {"vxlan.calico"}, what="Always")
            town.reach("pod-a", "pod-b")
    finally:
        next(spaces, None)
