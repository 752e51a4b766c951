"""What a datastore has, told object by object: a datastore that lags, lies, goes away and comes back empty."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from flannel_town import Town, node

from flannel_watched import soon
from tortie.base.errors import NotSupported, Unavailable
from tortie.model.k8s import K8sNode
from tortie.model.meta import Metadata, Resource
from tortie.model.service import Service
from tortie.model.store import Listing
from tortie.store.memory import MemoryStore
from tortie.store.mirror import Mirror


class Picture:
    """The nodes that there are, with their labels' number, and what was told of them."""

    def __init__(self) -> None:
        self.nodes: dict[str, int] = {}
        self.told: list[str] = []
        self.dropped: list[str] = []
        self.times = 0

    def put(self, resource: Resource) -> None:
        self.told.append(resource.name)
        self.nodes[resource.name] = len(resource.metadata.annotations)

    def drop(self, kind: type[Resource], namespace: str, name: str) -> None:
        self.dropped.append(name)
        self.nodes.pop(name, None)

    def heard(self) -> None:
        self.times += 1


class Followed:
    def __init__(self, town: Town, *kinds: type[Resource]) -> None:
        self.picture = Picture()
        self.mirror = Mirror(town, self.picture, *(kinds or (K8sNode,)))
        self.task = asyncio.ensure_future(self.mirror.run())

    async def sees(self, *names: str) -> None:
        await soon(lambda: set(self.picture.nodes) == set(names), lambda: str(self.picture.nodes))


@pytest.fixture
async def town() -> Town:
    found = Town()
    for name in ("n1", "n2", "n3"):
        await found.create(node(name))
    return found


@pytest.fixture
async def followed(town: Town) -> AsyncIterator[Followed]:
    found = Followed(town)
    await found.sees("n1", "n2", "n3")
    yield found
    found.task.cancel()
    await asyncio.gather(found.task, return_exceptions=True)


async def test_what_there_is_and_what_changes(town: Town, followed: Followed) -> None:
    await asyncio.wait_for(followed.mirror.complete.wait(), 30)
    await MemoryStore.delete(town, K8sNode, "n2")
    await town.put(node("n1", a="1", b="2"))
    await town.create(node("n4"))
    await followed.sees("n1", "n3", "n4")
    assert followed.picture.nodes["n1"] == 2
    assert followed.picture.dropped == ["n2"]


async def test_what_went_while_nobody_looked(town: Town, followed: Followed) -> None:
    town.cut("away")
    await soon(lambda: followed.mirror.problems)
    await MemoryStore.delete(town, K8sNode, "n3")
    await town.create(node("n5"))
    assert set(followed.picture.nodes) == {"n1", "n2", "n3"}
    assert followed.mirror.complete.is_set()
    town.away = ""
    await followed.sees("n1", "n2", "n5")
    assert not followed.mirror.problems


async def test_list_that_leaves_out_what_is_there(town: Town, followed: Followed) -> None:
    town.hidden = {"n2"}
    town.cut()
    await soon(lambda: any("n2 is missing from the list, and is there" in why for why in _problems(followed)))
    assert followed.picture.dropped == []
    town.hidden = set()
    await soon(lambda: not followed.mirror.problems)


async def test_older_list(town: Town, followed: Followed) -> None:
    await town.touch("n1")
    town.revision, town.hidden = "1", {"n2", "n3"}
    town.cut()
    await soon(lambda: any("as of revision 1, and" in why for why in _problems(followed)))
    assert followed.picture.dropped == []
    town.revision, town.hidden = "", set()
    await soon(lambda: not followed.mirror.problems)


async def test_what_nobody_changed_is_not_told_again(town: Town, followed: Followed) -> None:
    followed.picture.told.clear()
    lists = town.lists
    town.cut()
    await soon(lambda: town.lists > lists and not followed.mirror.problems)
    await town.put(node("n3", a="1"))
    await soon(lambda: followed.picture.told)
    assert followed.picture.told == ["n3"]


class Plain(Town):
    """It has no services."""

    async def list(self, kind: type[Resource], namespace: str | None = None) -> Listing[Resource]:  # type: ignore[override]
        if kind is Service:
            raise NotSupported("no services here")
        return await super().list(kind, namespace)


async def test_kind_that_a_datastore_does_not_have() -> None:
    town = Plain()
    await town.create(node("n1"))
    followed = Followed(town, K8sNode, Service)
    await asyncio.wait_for(followed.mirror.complete.wait(), 30)
    await followed.sees("n1")
    followed.task.cancel()
    await asyncio.gather(followed.task, return_exceptions=True)


class Lacking(Town):
    """Nobody has told it of services, for now."""

    lacks = True

    async def list(self, kind: type[Resource], namespace: str | None = None) -> Listing[Resource]:  # type: ignore[override]
        if kind is Service and self.lacks:
            raise Unavailable("the cluster does not know services")
        return await super().list(kind, namespace)


async def test_optional_kind_that_comes_later() -> None:
    town = Lacking()
    await town.create(node("n1"))
    picture = Picture()
    mirror = Mirror(town, picture, K8sNode, Service, optional=(Service,))
    task = asyncio.ensure_future(mirror.run())
    await asyncio.wait_for(mirror.complete.wait(), 30)
    assert set(picture.nodes) == {"n1"}
    assert "does not know services" in mirror.problems[Service]
    await town.create(Service(metadata=Metadata(name="web", namespace="red")))
    town.lacks = False
    await soon(lambda: set(picture.nodes) == {"n1", "web"})
    assert not mirror.problems
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Away(Town):
    """Away at first; services are the last that it has again."""

    refused = 0
    back = answered = False

    async def list(self, kind: type[Resource], namespace: str | None = None) -> Listing[Resource]:  # type: ignore[override]
        if not (self.answered if kind is Service else self.back):
            self.refused += kind is Service
            raise Unavailable("nobody there")
        self.answered = True
        return await super().list(kind, namespace)


async def test_optional_kind_while_the_datastore_is_away_counts_as_unknown() -> None:
    town, picture = Away(), Picture()
    await town.create(node("n1"))
    await town.create(Service(metadata=Metadata(name="web", namespace="red")))
    mirror = Mirror(town, picture, K8sNode, Service, optional=(Service,))
    task = asyncio.ensure_future(mirror.run())
    await soon(lambda: town.refused > 3)
    assert not mirror.complete.is_set()
    town.back = True
    await asyncio.wait_for(mirror.complete.wait(), 30)
    assert set(picture.nodes) == {"n1", "web"}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _problems(followed: Followed) -> list[str]:
    return list(followed.mirror.problems.values())
