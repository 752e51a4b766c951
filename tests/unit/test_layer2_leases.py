"""Signs of life in a datastore: who is heard, who is not, and what other hands do to leases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from ipaddress import ip_network
from typing import Any

import pytest

from kube_api import KubeApi
from tortie.base.addr import Net
from tortie.base.errors import NotFound, TortieError, Unavailable
from tortie.calc.proxy.election import FORGOTTEN, NAMESPACE, PREFIX
from tortie.model.apiconfig import ApiConfig
from tortie.model.lease import Lease, LeaseSpec
from tortie.model.meta import Metadata
from tortie.model.store import Event, R, Store
from tortie.proxy.layer2.leases import REMEDY, WATCHLESS, Leases, Times, words
from tortie.store.kube.access import access
from tortie.store.kube.client import Client
from tortie.store.kubernetes import KubernetesStore
from tortie.store.memory import MemoryStore

NETS: tuple[Net, ...] = (ip_network("192.0.2.0/24"), ip_network("fd00::/64"))
ELSEWHERE: tuple[Net, ...] = (ip_network("198.51.100.0/24"),)


async def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


class Nodes:
    """Leases of several nodes, each run as a task."""

    def __init__(self) -> None:
        self.now = 0.0
        """What is added to the clock."""
        self._running: dict[str, tuple[Leases, asyncio.Task[None]]] = {}

    def start(self, store: Store, name: str, nets: tuple[Net, ...] | None = NETS) -> Leases:
        leases = Leases(store, name, lambda: None, self.clock, Times(0.3, 0.4, 0.1))
        leases.follow(True)
        leases.hold(nets)
        self._running[name] = leases, asyncio.create_task(leases.run())
        return leases

    async def stop(self, name: str, *, release: bool = True) -> None:
        leases, task = self._running.pop(name)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        if release:
            await leases.release()

    def clock(self) -> float:
        return time.monotonic() + self.now

    def live(self, leases: Leases) -> dict[str, tuple[Net, ...]]:
        return leases.roll.live(self.clock())

    async def close(self) -> None:
        for name in list(self._running):
            await self.stop(name)


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    found = Nodes()
    yield found
    await found.close()


async def test_nodes_hear_of_each_other(nodes: Nodes) -> None:
    store = MemoryStore()
    one, two, onlooker = nodes.start(store, "a"), nodes.start(store, "b"), nodes.start(store, "c", None)
    for each in (one, two, onlooker):
        await until(lambda each=each: nodes.live(each) == {"a": NETS, "b": NETS})
    stored = await store.get(Lease, PREFIX + "a", NAMESPACE)
    assert (stored.spec.holder_identity, stored.spec.lease_duration_seconds) == ("a", 7)
    two.hold(ELSEWHERE)
    await until(lambda: nodes.live(one) == {"a": NETS, "b": ELSEWHERE})
    await nodes.stop("b")
    await until(lambda: nodes.live(one) == nodes.live(onlooker) == {"a": NETS})
    one.hold(None)
    await until(lambda: nodes.live(onlooker) == {})
    with pytest.raises(NotFound):
        await store.get(Lease, PREFIX + "a", NAMESPACE)


async def test_a_lease_is_renewed_and_made_again(nodes: Nodes) -> None:
    store = MemoryStore()
    one = nodes.start(store, "a")
    await until(lambda: nodes.live(one))
    first = await store.get(Lease, PREFIX + "a", NAMESPACE)
    await until(lambda: one.roll.age("a", nodes.clock()) > 0.1)
    await until(lambda: one.roll.age("a", nodes.clock()) < 0.1)
    second = await store.get(Lease, PREFIX + "a", NAMESPACE)
    assert second.spec.acquire_time == first.spec.acquire_time
    assert second.spec.renew_time != first.spec.renew_time
    await store.delete(Lease, PREFIX + "a", NAMESPACE)
    await until(lambda: not nodes.live(one))
    await until(lambda: nodes.live(one) == {"a": NETS})
    assert not one.mute


async def test_the_remains_of_a_killed_agent_are_its_successors(nodes: Nodes) -> None:
    store = MemoryStore()
    one = nodes.start(store, "a", ELSEWHERE)
    await until(lambda: nodes.live(one))
    await nodes.stop("a", release=False)
    again = nodes.start(store, "a")
    await until(lambda: nodes.live(again) == {"a": NETS})


class Mute(MemoryStore):
    """Its watches are refused, as where nobody lets us watch a kind, or tell nothing."""

    refused = True
    asked = 0

    async def watch(self, kind: type[R], revision: str) -> AsyncIterator[tuple[Event[R], ...]]:
        self.asked += 1
        if self.refused:
            raise Unavailable("watch leases: forbidden")
        await asyncio.sleep(60)
        yield ()


@pytest.mark.parametrize("refused", [True, False], ids=["refused", "deaf"])
async def test_without_a_watch_leases_are_listed(nodes: Nodes, refused: bool) -> None:
    store = Mute()
    store.refused = refused
    one, two = nodes.start(store, "a"), nodes.start(store, "b")
    for each in (one, two):
        await until(lambda each=each: set(nodes.live(each)) == {"a", "b"})
        assert not each.deaf
    await nodes.stop("b")
    await until(lambda: set(nodes.live(one)) == {"a"})
    if refused:
        assert store.asked == 2, "once for each node: it is not asked for every second"
        nodes.now += WATCHLESS
        await until(lambda: store.asked == 3)


async def test_a_lease_that_was_silent_for_long_is_deleted(nodes: Nodes) -> None:
    store = MemoryStore()
    gone = Metadata(name=PREFIX + "gone", namespace=NAMESPACE)
    await store.create(Lease(metadata=gone, spec=LeaseSpec(holder_identity="gone")))
    others = Metadata(name="tortie-controllers", namespace=NAMESPACE)
    await store.create(Lease(metadata=others, spec=LeaseSpec(holder_identity="x")))
    one = nodes.start(store, "a")
    await until(lambda: "gone" in nodes.live(one) and "a" in nodes.live(one))
    nodes.now = FORGOTTEN + 1  # as if the machine had slept; it believes itself first
    await until(lambda: one.roll.age("gone", nodes.clock()) == float("inf"))
    assert [lease.name for lease in (await store.list(Lease)).items] == ["tortie-controllers", PREFIX + "a"]


async def test_a_datastore_that_is_away_is_told(nodes: Nodes) -> None:
    store = MemoryStore()
    one = nodes.start(store, "a")
    await until(lambda: nodes.live(one))
    await store.close()
    await until(lambda: one.deaf and one.mute)
    assert "closed" in one.deaf


async def test_a_cluster_without_the_namespace_is_told_what_to_do(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    async with KubeApi() as api:
        store = KubernetesStore(Client(access(ApiConfig(k8s_api_endpoint=api.url), {})))
        one = nodes.start(store, "a")
        await until(lambda: one.mute)
        assert one.mute.startswith(f"there is no namespace {NAMESPACE}: `tortie manifest | kubectl apply -f -`")
        assert [line for line in caplog.messages if "not renewed" in line]
        api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        await until(lambda: nodes.live(one))
        await until(lambda: not one.mute)
        await nodes.close()
        await store.close()


def test_a_cluster_with_an_older_manifest_is_told_what_to_do() -> None:
    said = 'leases.coordination.k8s.io is forbidden: User "x" cannot list resource "leases" in the namespace "n"'
    assert words(Unavailable(said)) == f"{said}; {REMEDY}"
    assert words(Unavailable("the store is closed")) == "the store is closed"
    assert words(TimeoutError()) == "the datastore does not answer"


async def test_in_kubernetes(nodes: Nodes) -> None:
    """Whose API server wants the revision of what is updated, and times as it writes them."""
    async with KubeApi() as api:
        api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        stores = [KubernetesStore(Client(access(ApiConfig(k8s_api_endpoint=api.url), {}))) for _ in range(2)]
        one, two = nodes.start(stores[0], "a"), nodes.start(stores[1], "b")
        await until(lambda: set(nodes.live(one)) == set(nodes.live(two)) == {"a", "b"})
        await until(lambda: one.roll.age("a", nodes.clock()) > 0.1)
        await until(lambda: one.roll.age("a", nodes.clock()) < 0.1)
        await nodes.stop("b")
        await until(lambda: set(nodes.live(one)) == {"a"})
        assert (one.mute, one.deaf) == ("", "")
        await nodes.close()
        for store in stores:
            with suppress(TortieError):
                await store.close()
