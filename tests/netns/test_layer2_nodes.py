"""Addresses of load balancers answered for by one node of several: real frames, and what a client's kernel makes of
them."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest
from layer2_hall import VIP, VIP6, Hall, Running, hall, mac_of, running, state_of, until

from tortie.base.addr import IP

__all__ = ["hall", "running"]

pytestmark = pytest.mark.root


@pytest.mark.parametrize("ip", [VIP, VIP6], ids=str)
async def test_one_node_answers_and_another_takes_over_at_once(hall: Hall, running: Running, ip: IP) -> None:
    spaces = {f"node{n}": hall.node(n) for n in (1, 2)}
    nodes = {name: running.start(name, ns, {ip: None}) for name, ns in spaces.items()}
    await until("one answers", lambda: sum(bool(node.answering) for node in nodes.values()) == 1)
    (first,) = (name for name, node in nodes.items() if node.answering)
    second = ({*nodes} - {first}).pop()
    assert nodes[first].answering == {ip: "eth0"}
    assert {node.holders[ip] for node in nodes.values()} == {first}
    assert await asyncio.to_thread(hall.ask, ip) == first
    if ip.version == 4:
        assert await asyncio.to_thread(hall.arping, ip) == {mac_of(spaces[first])}
    assert hall.neighbour(ip) == mac_of(spaces[first])

    await running.stop(first)
    await until("the other answers", lambda: nodes[second].answering, seconds=3)
    await until("the client was told", lambda: hall.neighbour(ip) == mac_of(spaces[second]))
    hall.forget()
    assert await asyncio.to_thread(hall.ask, ip) == second
    if ip.version == 4:
        assert await asyncio.to_thread(hall.arping, ip) == {mac_of(spaces[second])}
    assert [*nodes[first].answering, *nodes[second].problems] == []


async def test_a_thousand_addresses_are_shared_and_one_nodes_are_moved(hall: Hall, running: Running) -> None:
    ips = [ip_address(int(VIP) + n) for n in range(700)] + [ip_address(int(VIP6) + n) for n in range(300)]
    nodes = {f"node{n}": running.start(f"node{n}", hall.node(n), dict.fromkeys(ips)) for n in (1, 2, 3)}

    def answered() -> list[IP]:
        return sorted((ip for node in nodes.values() for ip in node.answering), key=str)

    await until("each is answered for once", lambda: answered() == sorted(ips, key=str))
    shares = {name: set(node.answering) for name, node in nodes.items()}
    assert all(200 < len(share) < 470 for share in shares.values())
    for name, share in shares.items():
        for ip in (min(share, key=str), max(share, key=str)):
            assert await asyncio.to_thread(hall.ask, ip) == name
    await running.stop("node1")
    del nodes["node1"]
    await until("each is answered for again", lambda: answered() == sorted(ips, key=str))
    assert shares["node2"] <= set(nodes["node2"].answering)
    assert shares["node3"] <= set(nodes["node3"].answering)


async def test_who_may_and_who_serves(hall: Hall, running: Running) -> None:
    """Nodes with a local endpoint only; a node that is told to stand aside; one off the network is no candidate."""
    only = frozenset({"node2"})
    away = hall.make("away")
    nodes = {f"node{n}": running.start(f"node{n}", hall.node(n), {VIP: only}) for n in (1, 2)}
    off = running.start("node3", away, {VIP: None})
    await until("node2 answers", lambda: nodes["node2"].answering == {VIP: "eth0"})
    assert nodes["node1"].answering == {}
    await until("node3 knows", lambda: off.holders.get(VIP) in ("node1", "node2"))
    nodes["node2"].see(state_of({VIP: only}), serving=False)
    await until("node2 stands aside", lambda: nodes["node2"].answering == {})
    assert await asyncio.to_thread(hall.arping, VIP) == set()
    for node in nodes.values():
        node.see(state_of({VIP: None}), serving=node is nodes["node1"])
    await until("node1 answers", lambda: nodes["node1"].answering == {VIP: "eth0"})
    assert await asyncio.to_thread(hall.ask, VIP) == "node1"
    for node in (*nodes.values(), off):
        node.see(state_of({}), serving=True)
    await until("nothing is left", lambda: nodes["node1"].answering == {})
    assert await asyncio.to_thread(hall.arping, VIP) == set()
