"""A node that must not take an address over: another host has it, or the datastore cannot be asked who is alive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from layer2_hall import VIP, VIP6, Hall, Running, hall, mac_of, running, until

from tortie.base.errors import Unavailable
from tortie.calc.proxy.election import DEAD
from tortie.model.store import Event, Listing, R, Store
from tortie.proxy.layer2.announcer import Layer2

__all__ = ["hall", "running"]

pytestmark = pytest.mark.root


class Cut:
    """A node's way to the datastore, which may be `away`: "" it answers; "refused"; "silent": nothing comes back."""

    def __init__(self, store: Store) -> None:
        self.away = ""
        self._store = store

    async def _way(self) -> None:
        if self.away == "refused":
            raise Unavailable("connection refused")
        while self.away:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        await self._way()
        return await self._store.get(kind, name, namespace)

    async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
        await self._way()
        return await self._store.list(kind, namespace)

    async def create(self, obj: R) -> R:
        await self._way()
        return await self._store.create(obj)

    async def update(self, obj: R) -> R:
        await self._way()
        return await self._store.update(obj)

    async def delete(self, kind: type[R], name: str, namespace: str = "", revision: str = "") -> R:
        await self._way()
        return await self._store.delete(kind, name, namespace, revision)

    async def watch(self, kind: type[R], revision: str) -> AsyncIterator[tuple[Event[R], ...]]:
        async for batch in self._store.watch(kind, revision):
            await self._way()
            yield batch

    async def close(self) -> None:
        await self._store.close()


async def test_an_address_that_another_host_has_is_not_answered_for(hall: Hall, running: Running) -> None:
    other = hall.party("other", f"{VIP}/20", f"{VIP6}/64")
    node = running.start("node1", hall.node(1), {VIP: None, VIP6: None})
    await until("two problems", lambda: " not answered for" in " ".join(node.problems))
    await until("both are told", lambda: str(VIP) in " ".join(node.problems) and str(VIP6) in " ".join(node.problems))
    assert all(mac_of(other) in line and "eth0" in line for line in node.problems)
    assert node.answering == {}
    assert await asyncio.to_thread(hall.arping, VIP) == {mac_of(other)}
    other.ip("link", "set", "eth0", "down")
    await until("it is free", lambda: set(node.answering) == {VIP, VIP6})
    assert node.problems == ()


async def test_while_the_datastore_is_away_from_all_nothing_moves(hall: Hall, running: Running) -> None:
    spaces = {f"node{n}": hall.node(n) for n in (1, 2)}
    ways = {name: Cut(running.store) for name in (*spaces, "late")}
    nodes = {name: running.start(name, ns, {VIP: None, VIP6: None}, ways[name]) for name, ns in spaces.items()}
    await until("both are answered for", lambda: sum(len(node.answering) for node in nodes.values()) == 2)
    before = {name: dict(node.answering) for name, node in nodes.items()}
    for name, way in ways.items():
        way.away = "silent" if name == "node1" else "refused"
    late = running.start("late", hall.node(3), {VIP: None, VIP6: None}, ways["late"])
    await asyncio.sleep(DEAD + 1.5)
    assert {name: dict(node.answering) for name, node in nodes.items()} == before
    assert late.answering == {}
    assert all("leases" in " ".join(node.problems) for node in (*nodes.values(), late))
    assert len(await asyncio.to_thread(hall.arping, VIP)) == 1
    for way in ways.values():
        way.away = ""
    await until("no problem is left", lambda: not any(node.problems for node in (*nodes.values(), late)))
    await until("each is answered for once", lambda: answered_once({**nodes, "late": late}))


def answered_once(nodes: dict[str, Layer2]) -> bool:
    return sorted(str(ip) for node in nodes.values() for ip in node.answering) == sorted((str(VIP), str(VIP6)))
