"""A node whose own Node does not say that its machine is about to be taken away asks Kubernetes' Node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from tortie.agent.node_leaving import follow_leaving
from tortie.base.errors import Unavailable
from tortie.model.k8s import TO_BE_DELETED, K8sNode, K8sNodeSpec
from tortie.model.meta import Metadata
from tortie.store.composite import CompositeStore
from tortie.store.memory import MemoryStore

DOOMED = K8sNodeSpec(taints=[{"key": TO_BE_DELETED, "effect": "NoSchedule"}])


class Town(MemoryStore):
    """A cluster that can be away."""

    away = False

    def __init__(self) -> None:
        super().__init__()
        self.asked: asyncio.Queue[str] = asyncio.Queue()

    async def get(self, kind: Any, name: str, namespace: str = "") -> Any:
        self.asked.put_nowait(name)
        if self.away:
            raise Unavailable("nobody answers")
        return await super().get(kind, name, namespace)

    async def looks(self, more: int = 2) -> None:
        """Until it was asked so many times more."""
        while not self.asked.empty():
            self.asked.get_nowait()
        async with asyncio.timeout(5):
            for _ in range(more):
                await self.asked.get()


@asynccontextmanager
async def following(
    cluster: Town, told: list[bool], wanted: Callable[[], bool] = lambda: True
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    store = CompositeStore(MemoryStore(), cluster)
    task = asyncio.create_task(follow_leaving("n1", store, told.append, wanted, 0.001))
    try:
        yield cluster.looks
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def node(name: str, spec: K8sNodeSpec | None = None) -> K8sNode:
    return K8sNode(metadata=Metadata(name=name), spec=spec or K8sNodeSpec())


async def test_a_taint_and_its_end_are_told_once() -> None:
    cluster, told = Town(), list[bool]()
    async with following(cluster, told) as looks:
        await looks()
        await cluster.create(node("elsewhere", DOOMED))
        here = await cluster.create(node("n1"))
        await looks()
        assert told == []
        here = await cluster.update(replace(here, spec=DOOMED))
        await looks(3)
        assert told == [True]
        await cluster.update(replace(here, spec=K8sNodeSpec()))
        await looks(3)
        assert told == [True, False]


async def test_a_node_that_went_or_cannot_be_asked_for_is_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    cluster, told = Town(), list[bool]()
    async with following(cluster, told) as looks:
        await cluster.create(node("n1", DOOMED))
        await looks()
        cluster.away = True
        await looks(3)
        cluster.away = False
        await cluster.delete(K8sNode, "n1")
        await looks(3)
    assert told == [True]
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert lines == ["whether Node n1 of Kubernetes is about to be deleted is not known: nobody answers"]


async def test_nobody_is_asked_while_services_are_somebody_elses() -> None:
    cluster, told, serves = Town(), list[bool](), False
    await cluster.create(node("n1", DOOMED))
    async with following(cluster, told, lambda: serves) as looks:
        await asyncio.sleep(0.02)
        assert cluster.asked.empty()
        serves = True
        await looks()
    assert told == [True]
