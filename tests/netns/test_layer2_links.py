"""A node's links: interfaces that come and go, a switch that listens to groups, hosts that send nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import pytest
from layer2_hall import VIP, VIP6, Hall, Running, hall, mac_of, running, until

from namespaces import Ns

__all__ = ["hall", "running"]

pytestmark = pytest.mark.root


async def test_interfaces_come_and_go(hall: Hall, running: Running) -> None:
    ns = hall.node(1)
    node = running.start("node1", ns, {VIP: None})
    await until("eth0 answers", lambda: node.answering == {VIP: "eth0"})
    hall.party("", "192.0.2.11/20", interface="eth1", ns=ns)
    await until("both answer", lambda: node.answering == {VIP: "eth0, eth1"})
    ns.ip("link", "delete", "eth0")
    await until("eth1 answers", lambda: node.answering == {VIP: "eth1"})
    assert await asyncio.to_thread(hall.arping, VIP) == {mac_of(ns, "eth1")}
    assert await asyncio.to_thread(hall.ask, VIP) == "node1"
    ns.ip("link", "set", "eth1", "address", "02:00:00:00:00:77")
    await until("with the new address", lambda: hall.neighbour(VIP) == "02:00:00:00:00:77")
    ns.ip("address", "add", f"{VIP}/20", "dev", "eth1")
    await until("the kernel answers", lambda: node.answering == {})
    assert await asyncio.to_thread(hall.arping, VIP) == {"02:00:00:00:00:77"}
    ns.ip("address", "delete", f"{VIP}/20", "dev", "eth1")
    await until("we answer", lambda: node.answering == {VIP: "eth1"})
    ns.ip("address", "flush", "dev", "eth1")
    await until("nobody can", lambda: "no live node" in " ".join(node.problems))
    assert node.answering == {}
    assert await asyncio.to_thread(hall.arping, VIP) == set()


async def test_a_switch_that_listens_to_members_passes_questions_on(
    make_ns: Callable[..., Ns], running: Running
) -> None:
    """It queries at once, and from then on a group reaches its members only."""
    hall = Hall(make_ns, snooping=True)
    try:
        node = running.start("node1", hall.node(1), {VIP6: None})
        await until("it answers", lambda: node.answering)
        group = "ff02::1:ff00:100"
        members = partial(hall.switch.run, "bridge", "-j", "mdb", "show", "dev", "br0")
        await until("the switch knows the member", lambda: group in members())
        hall.forget()
        assert await asyncio.to_thread(hall.ask, VIP6) == "node1"
    finally:
        hall.close()


async def test_nonsense_keeps_nobody_from_answering(hall: Hall, running: Running) -> None:
    errors: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    node = running.start("node1", hall.node(1), {VIP: None, VIP6: None})
    await until("it answers", lambda: len(node.answering) == 2)
    await asyncio.to_thread(hall.babble, 1000)
    hall.forget()
    assert [await asyncio.to_thread(hall.ask, ip) for ip in (VIP, VIP6)] == ["node1", "node1"]
    assert errors == []
    assert set(node.answering) == {VIP, VIP6}
