"""A claim to a block that a death cut short is finished by whoever uses the block next: until then nobody routes it."""

from __future__ import annotations

from ipam_cluster import Cluster
from tortie.base.addr import parse_ip, parse_net
from tortie.ipam.ledger import Ledger
from tortie.ipam.owner import Owner

NET = parse_net("192.168.1.0/26")


async def cut_short() -> Cluster:
    """node1 has died between creating the block and confirming that it is its own."""
    cluster = Cluster()
    await cluster.node("node1")
    await cluster.pool("192.168.1.0/24")
    ledger, owner = Ledger(cluster.store, lambda: cluster.now), Owner("node1")
    await ledger.create_affinity(owner, NET)
    await ledger.create_block(NET, owner)
    assert await cluster.affinities() == {("node1", NET): "pending"}
    return cluster


async def test_by_an_assignment() -> None:
    cluster = await cut_short()
    await cluster.ipam().auto_assign(1, handle="h", attrs={})
    assert await cluster.affinities() == {("node1", NET): "confirmed"}


async def test_by_an_assignment_of_a_given_address() -> None:
    cluster = await cut_short()
    await cluster.ipam().assign_ip(parse_ip("192.168.1.7"), handle="h", attrs={})
    assert await cluster.affinities() == {("node1", NET): "confirmed"}


async def test_not_by_another_node() -> None:
    """It may borrow, but it is not its claim."""
    cluster = await cut_short()
    await cluster.node("node2")
    await cluster.ipam("node2").assign_ip(parse_ip("192.168.1.7"), handle="h", attrs={})
    assert await cluster.affinities() == {("node1", NET): "pending"}
