"""Host endpoints under an agent: they follow the datastore, and interfaces and addresses that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from agent_node import Node, applied, soon
from conftest import Ns

from tortie.model.store import Store

pytestmark = pytest.mark.root


@pytest.fixture
def neighbour(node: Node, make_ns: Callable[..., Ns]) -> Iterator[Ns]:
    """Somebody at the other end of the node's interface `eth0`, 192.0.2.1/24."""
    other = make_ns("neighbour")
    node.ns.ip("link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", other.name)
    for ns, address in ((node.ns, "192.0.2.1/24"), (other, "192.0.2.9/24")):
        ns.ip("addr", "add", address, "dev", "eth0")
        ns.ip("link", "set", "eth0", "up")
    yield other
    node.ns.ip("link", "del", "eth0")


EVERY = """
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: every}
spec: {node: node1, interfaceName: "*"}
"""
BY_ADDRESS = """
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: by-address}
spec: {node: node1, expectedIPs: [203.0.113.1]}
"""
BY_PATTERN = """
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec: {interfaceExclude: "/^spare/"}
"""


def answers(ns: Ns, address: str = "192.0.2.1") -> bool:
    return "1 received" in ns.run("ping", "-c1", "-W1", address, check=False)


def chains(node: Node) -> set[str]:
    listed = node.ns.run("nft", "-t", "list", "table", "inet", "tortie")
    return {line.split()[1] for line in listed.splitlines() if line.strip().startswith("chain ")}


def interfaces(node: Node) -> str:
    """Those that have a chain of their own for what comes in."""
    return node.ns.run("nft", "list", "map", "inet", "tortie", "from-host", check=False)


async def test_it_comes_and_goes(node: Node, store: Store, neighbour: Ns) -> None:
    assert await asyncio.to_thread(answers, neighbour)
    async with applied(store, EVERY):
        await soon(lambda: asyncio.to_thread(answers, neighbour), lambda answer: not answer)
        assert "host-input" in chains(node)
    await soon(lambda: asyncio.to_thread(answers, neighbour))
    assert not [name for name in chains(node) if name.startswith(("host-", "failsafe"))]


async def test_a_new_interface_is_closed_from_its_first_packet(
    node: Node, store: Store, make_ns: Callable[..., Ns]
) -> None:
    """It needs nobody to notice it: the agent does not even run."""
    async with applied(store, EVERY):
        await soon(lambda: chains(node), lambda names: "host-input" in names)
        node.kill()
        try:
            other = make_ns("late")
            node.ns.ip("link", "add", "late", "type", "veth", "peer", "late", "netns", other.name)
            for ns, address in ((node.ns, "198.51.100.1/24"), (other, "198.51.100.9/24")):
                ns.ip("addr", "add", address, "dev", "late")
                ns.ip("link", "set", "late", "up")
            assert not answers(other, "198.51.100.1")
            counted = node.ns.run("nft", "list", "chain", "inet", "tortie", "fh-any-interface-at-all")
            assert "hep/every|normal|ingress|no-profile" in counted
            assert "packets 1 " in counted.splitlines()[-3]
        finally:
            node.start()
            node.ns.ip("link", "del", "late")


async def test_an_address_that_comes_brings_its_host_endpoint(node: Node, store: Store, neighbour: Ns) -> None:
    async with applied(store, BY_ADDRESS):
        assert await asyncio.to_thread(answers, neighbour)
        assert "eth0" not in interfaces(node)
        node.ns.ip("addr", "add", "203.0.113.1/24", "dev", "eth0")
        await soon(lambda: interfaces(node), lambda found: '"eth0" : goto fh-eth0' in found)
        assert not await asyncio.to_thread(answers, neighbour)
        node.ns.ip("addr", "del", "203.0.113.1/24", "dev", "eth0")
        await soon(lambda: interfaces(node), lambda found: "eth0" not in found)
        assert await asyncio.to_thread(answers, neighbour)


async def test_an_interface_that_is_excluded_by_a_pattern(node: Node, store: Store) -> None:
    async with applied(store, EVERY), applied(store, BY_PATTERN):
        node.ns.ip("link", "add", "spare0", "type", "bridge")
        try:
            await soon(lambda: interfaces(node), lambda found: '"spare0" : return' in found)
        finally:
            node.ns.ip("link", "del", "spare0")
        await soon(lambda: interfaces(node), lambda found: "spare0" not in found)


async def test_the_log_says_what_has_no_effect(node: Node, store: Store) -> None:
    untracked = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: raw}
spec: {doNotTrack: true, applyOnForward: true, ingress: [{action: Deny}]}
"""
    async with applied(store, EVERY), applied(store, untracked):
        await soon(node.messages, lambda said: any("doNotTrack on HostEndpoint every" in line for line in said))
