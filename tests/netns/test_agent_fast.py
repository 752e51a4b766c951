"""Pods that are connected before the datastore is told, by a real agent: bursts, deaths, starts, and turning it off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from agent_node import (
    NETWORK,
    READY,
    RED,
    Node,
    Sandbox,
    Site,
    assigned,
    conflist,
    endpoints,
    handles,
    held,
    ipam_findings,
    ips,
    nothing_harmful_left,
    nothing_left,
    pod,
    pool,
    settled,
    soon,
)
from conftest import Ns
from msgspec.structs import replace

from tortie.agent.agent import matches
from tortie.cni.spec import CniError
from tortie.ipam.assign import Ipam
from tortie.model.ipam import IPAMBlock, IPAMHandle, IPPool
from tortie.model.k8s import Pod
from tortie.model.store import Store

pytestmark = pytest.mark.root


@pytest.fixture
def node(site: Site) -> Iterator[Node]:
    """Started for each test anew; it ends in good order and leaves nothing."""
    node = site.node("node1", "--no-bgp").start()
    yield node
    if node.process is not None and node.process.poll() is None:
        assert node.signal(signal.SIGTERM) == 0
    node.close()
    site.nodes.remove(node)


async def sandboxes(node: Node, store: Store, make_ns: Callable[..., Ns], *names: str) -> list[Sandbox]:
    for name in names:
        await store.create(pod(name))
    return [Sandbox(node, name, make_ns(name), conflist=conflist("1.1.0")) for name in names]


async def gone(store: Store, *calls: Sandbox) -> None:
    await asyncio.gather(*(call.delete() for call in calls))
    for name in {call.pod for call in calls}:
        await store.delete(Pod, name, RED)


async def ready(store: Store) -> set[str]:
    """The addresses that nodes hold ready."""
    return {ip for handle, ips in (await assigned(store)).items() if handle.startswith(READY) for ip in ips}


async def test_idle_node_holds_nothing_and_one_that_ends_gives_all_back(
    node: Node, store: Store, make_ns: Callable[..., Ns]
) -> None:
    assert (await store.list(IPAMBlock)).items == ()
    (one,) = await sandboxes(node, store, make_ns, "one")
    await one.add()
    await settled()
    assert len(await ready(store)) == 8  # four of each family
    await one.check()
    assert node.signal(signal.SIGTERM) == 0
    assert await ready(store) == set()
    assert set(await held(store)) == {f"{NETWORK}.{one.container_id}"}
    assert await ipam_findings(store) == []
    node.start()
    await gone(store, one)
    await nothing_left(node, store)


async def test_hundred_pods_at_once(node: Node, store: Store, make_ns: Callable[..., Ns]) -> None:
    """Each has addresses of its own, is whole, and goes without a trace; blocks are written a few times."""
    calls = await sandboxes(node, store, make_ns, *(f"burst-{number}" for number in range(100)))
    results = await asyncio.gather(*(call.add() for call in calls))
    assert max(Counter(ip for result in results for ip in ips(result)).values()) == 1
    await nothing_harmful_left(node, store, *calls)
    writes = sum(block.spec.sequence_number % 1000 for block in (await store.list(IPAMBlock)).items)
    assert writes < 100
    await asyncio.gather(*(call.check() for call in calls))
    await gone(store, *calls)
    await nothing_left(node, store)


async def test_delete_at_once_takes_what_an_earlier_add_has_left_too(
    node: Node, store: Store, make_ns: Callable[..., Ns]
) -> None:
    """An ADD that was cut short left an address under the container's handle; the next one is only noted yet."""
    (one,) = await sandboxes(node, store, make_ns, "again")
    ipam = Ipam(store, "node1", lambda: datetime.now(UTC), matches)
    left = await ipam.auto_assign(1, handle=f"{NETWORK}.{one.container_id}", attrs={"node": "node1"})
    assert len(left.ips) == 1
    for _ in range(3):
        await one.add()
        await one.delete()
        assert f"{NETWORK}.{one.container_id}" not in await held(store)
    await store.delete(Pod, "again", RED)
    await nothing_left(node, store)


async def test_killed_after_the_answer(node: Node, store: Store, make_ns: Callable[..., Ns]) -> None:
    """While another program has the datastore locked pods get their network, and the agent dies: the next one knows
    them from the journal, does not lose their policy, gives their addresses to nobody else, and tells the datastore."""
    first, *calls = await sandboxes(node, store, make_ns, "first", "a", "b", "c")
    await first.add()
    await settled()
    lock = sqlite3.connect(node.site.datastore, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    try:
        results = [await call.add() for call in calls[:2]]
        await soon(lambda: len(list(node.run_dir.glob("pending/*.json"))), lambda count: count == 2, "they are noted")
        assert node.dispatched() == {call.host_ifname for call in (first, *calls[:2])}
        node.kill()
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    assert len(list((node.run_dir / "pending").glob("*.json"))) == 2
    node.start()
    assert node.dispatched() == {call.host_ifname for call in (first, *calls[:2])}
    late = await calls[2].add()
    assert not {ip for result in results for ip in ips(result)} & set(ips(late))
    await nothing_harmful_left(node, store, first, *calls)
    for call, result in zip(calls, (*results, late), strict=True):
        assert (await held(store))[f"{NETWORK}.{call.container_id}"] == set(ips(result))
        await call.check()
    await gone(store, first, *calls)
    await nothing_left(node, store)


async def test_deaths_in_a_storm(node: Node, store: Store, make_ns: Callable[..., Ns]) -> None:
    """Pods come and go while the agent is killed again and again. Whoever has an answer has addresses that nobody else
    has; when all are deleted there is nothing but what the node holds ready."""
    dice = random.Random(7)
    calls = await sandboxes(node, store, make_ns, *(f"storm-{number}" for number in range(12)))
    answers: dict[str, list[str]] = {}
    for _ in range(6):
        waiting = [call for call in calls if call.container_id not in answers]

        async def add(call: Sandbox) -> None:
            with contextlib.suppress(CniError):
                answers[call.container_id] = ips(await call.add())

        tasks = [asyncio.create_task(add(call)) for call in waiting]
        await asyncio.sleep(dice.uniform(0.01, 0.12))
        await asyncio.to_thread(node.kill)
        await asyncio.gather(*tasks)
        await asyncio.to_thread(node.start)
        await settled()
        found = await held(store)
        for container, addresses in answers.items():
            assert found.get(f"{NETWORK}.{container}") == set(addresses)
        every = [ip for addresses in answers.values() for ip in addresses]
        assert len(every) == len(set(every))
        for call in waiting:
            if call.container_id not in answers:
                await call.delete()
        for call in dice.sample(calls, 3):
            await call.delete()
            answers.pop(call.container_id, None)
    await gone(store, *calls)
    await nothing_harmful_left(node, store)
    assert await handles(store) == set()
    await node_ends(node, store)


async def node_ends(node: Node, store: Store) -> None:
    """With it goes what it held ready, and what its deaths left of the handle."""
    assert await asyncio.to_thread(node.signal, signal.SIGTERM) == 0
    assert await assigned(store) == {}
    assert (await store.list(IPAMHandle)).items == ()


async def test_delete_before_the_datastore_is_told(node: Node, store: Store, make_ns: Callable[..., Ns]) -> None:
    (one,) = await sandboxes(node, store, make_ns, "short")
    used: set[str] = set()
    for _ in range(5):
        used |= set(ips(await one.add()))
        await one.delete()
    assert await endpoints(store) == {}
    await gone(store, one)
    await nothing_left(node, store)
    await soon(lambda: ready(store), lambda left: not used & left, "what was used rests before it is used again")


async def test_garbage_collection_finds_what_is_only_noted(
    node: Node, store: Store, make_ns: Callable[..., Ns]
) -> None:
    (one,) = await sandboxes(node, store, make_ns, "forgotten")
    await one.add()
    for file in (node.site.directory / f"cache-{node.name}" / "results").glob("*"):
        file.unlink()
    await node.runtime().gc(one.conflist, [])
    await nothing_left(node, store)
    await gone(store, one)


async def test_pool_that_is_disabled(node: Node, store: Store, make_ns: Callable[..., Ns]) -> None:
    one, two = await sandboxes(node, store, make_ns, "before", "after")
    await one.add()
    old = await store.get(IPPool, "pool4")
    await store.create(pool("pool4b", "10.66.0.0/16"))
    disabled = await store.update(replace(old, spec=replace(old.spec, disabled=True)))
    try:
        await soon(lambda: ready(store), lambda left: not any(ip.startswith("10.65.") for ip in left), "given back")
        assert ips(await two.add())[0].startswith("10.66.")
    finally:
        await store.update(replace(disabled, spec=old.spec))
        await gone(store, one, two)
        await store.delete(IPPool, "pool4b")
    await nothing_left(node, store)


async def test_turned_off(site: Site, store: Store, make_ns: Callable[..., Ns]) -> None:
    """Nothing is held ready, and what the datastore has to be told is told before the answer."""
    node = site.node("node1", "--no-bgp", "--ready-addresses", "0").start()
    (one,) = await sandboxes(node, store, make_ns, "plain")
    await one.add()
    assert list(node.run_dir.glob("pending/*")) == []
    assert set(await assigned(store)) == {f"{NETWORK}.{one.container_id}"}
    await gone(store, one)
    await nothing_left(node, store)
    status, body = node.ask("/readiness")
    assert (status, "PendingWrites" in json.loads(body)) == (200, False)
