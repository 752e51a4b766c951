"""A pool changes its mode while pods of two nodes talk: agents, BIRD and the kernels of both ends change one by one,
and next to nothing is lost."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator

import pytest
from agent_node import Node, site_in, until
from overlay_nodes import Town, change_pool

from namespaces import Ns, namespaces
from overlay_kernel import device, pinging

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("bird") is None, reason="needs bird: apt install bird2"),
]

LEAST = 3
"""Fewer pings of those sent every 10 ms may be lost."""


@pytest.fixture
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """Two nodes with BIRD, and a pod on each; the pools have no tunnels."""
    spaces = namespaces()
    make = next(spaces)
    try:
        with site_in(tmp_path_factory.mktemp("site")) as site:
            site.set_up()
            town = Town(site, make)
            for number, name in enumerate("ab", 1):
                town.node(name, ipv4=f"192.0.2.{number}/24", ipv6=f"2001:db8::{number}/64").spawn()

            async def connect() -> None:
                async with site.store() as store:
                    for name, node in town.nodes.items():
                        await asyncio.to_thread(node.await_ready)
                        await town.pod(store, f"pod-{name}", name)

            asyncio.run(connect())
            yield town
    finally:
        next(spaces, None)


def used(ns: Ns, ip: str) -> tuple[str, str]:
    """The link and the writer of the route that packets from a node to an address take."""
    version = 6 if ":" in ip else 4
    (way,) = ns.json(f"-{version}", "route", "get", "fibmatch", ip)
    return way["dev"], way.get("protocol", "")


STEPS = (
    ("Always", ("vxlan", "80")),
    ("CrossSubnet", ("eth0", "80")),
    ("Always", ("vxlan", "80")),
    ("Never", ("eth0", "bird")),
    ("CrossSubnet", ("eth0", "80")),
    ("Never", ("eth0", "bird")),
)


def test_a_pools_mode_changes_under_traffic(town: Town) -> None:
    for version in (4, 6):
        town.reach("pod-a", "pod-b", version)
    source = town.pods["pod-a"][1]
    targets = {(one, version): town.ip(f"pod-{other}", version) for one, other in ("ab", "ba") for version in (4, 6)}

    def ways() -> set[tuple[str, str]]:
        found = {used(town.nodes[name].ns, ip) for (name, _), ip in targets.items()}
        return {(dev if dev == "eth0" else dev[:5], who) for dev, who in found}

    async def change(mode: str) -> None:
        async with town.site.store() as store:
            for version in (4, 6):
                await change_pool(store, f"pool{version}", vxlan_mode=mode)

    async def change_to_ipip() -> None:
        async with town.site.store() as store:
            await change_pool(store, "pool4", ipip_mode="Always")

    lost: list[tuple[str, int, int]] = []
    for mode, wanted in STEPS:
        with pinging(source, targets["a", 4]) as four, pinging(source, targets["a", 6]) as six:
            asyncio.run(change(mode))
            until(ways, lambda seen, wanted=wanted: seen == {wanted}, what=f"{mode}: link and writer of the route")
        assert min(four.sent, six.sent) > 20
        lost.append((mode, four.lost, six.lost))
    assert max(most for _, *each in lost for most in each) < LEAST, lost
    with pinging(source, targets["a", 4]) as found:
        asyncio.run(change_to_ipip())
        until(lambda: [said_or_done(node) for node in town.nodes.values()], all, what="IPIP, or why not")
    assert found.lost < LEAST  # where the kernel has no IPIP, BIRD goes on


def said_or_done(node: Node) -> bool:
    """Whether a node has its tunnel for IPIP, or says that it cannot have one."""
    told = "tunl0: this kernel has no IPIP, which IPPool pool4 asks for: modprobe ipip" in node.ask("/readiness")[1]
    return told or device(node.ns, "tunl0").get("up", False)
