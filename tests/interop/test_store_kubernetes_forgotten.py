"""A server that forgets what has changed before a watch can begin: those that follow it ask seldom, and say so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from kube_store import Server, server

from tortie.agent.endpoints import follow_pods
from tortie.agent.view import View
from tortie.controllers.running import wake_on
from tortie.fanout.feed import Feed
from tortie.fanout.shelf import Shelf
from tortie.model.k8s import Namespace
from tortie.model.meta import Metadata, Resource
from tortie.model.store import Store
from tortie.store.mirror import Mirror

SECONDS = 3.0
LISTS = 8
"""Of one kind in that time: at once, at once again, and after half a second, one, two; and of a little more."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("kube")) as running:
        yield running


@pytest.fixture
def api(running: Server) -> Iterator[Server]:
    running.empty()
    running.api.faults.forgetful = True
    yield running
    running.api.faults.clear()


@pytest.fixture
async def store(api: Server) -> AsyncIterator[Store]:
    store = api.store(node="n1")
    yield store
    await store.close()


class Picture:
    """The names that there are."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def put(self, resource: Resource) -> None:
        self.names.add(resource.name)

    def drop(self, kind: type[Resource], namespace: str, name: str) -> None:
        self.names.discard(name)

    def heard(self) -> None: ...


def an_agent(store: Store) -> Awaitable[object]:
    return View("n1", store, lambda state: None).follow(Namespace)


def its_pods(store: Store) -> Awaitable[object]:
    view = View("n1", store, lambda state: None)
    view.in_sync.set()
    return follow_pods("n1", store, view)


def a_proxy(store: Store) -> Awaitable[object]:
    return Mirror(store, Picture(), Namespace).run()


def a_fan_out_server(store: Store) -> Awaitable[object]:
    return Feed(store, Namespace, Shelf()).run()


def controllers(store: Store) -> Awaitable[object]:
    return wake_on(store, Namespace, {}, {})


@pytest.mark.parametrize("who", [an_agent, its_pods, a_proxy, a_fan_out_server, controllers])
async def test_who_follows_it_asks_seldom(api: Server, store: Store, who: Callable[[Store], Awaitable[object]]) -> None:
    task = asyncio.ensure_future(who(store))
    try:
        await asyncio.sleep(SECONDS)
        watches = [line for line in api.asked() if line.startswith("WATCH")]
        assert 2 <= len(watches) <= LISTS, watches
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_an_agent_says_so_and_goes_on_when_it_is_well_again(api: Server, store: Store) -> None:
    view = View("n1", store, lambda state: None)
    task = asyncio.ensure_future(view.follow(Namespace))
    try:
        async with asyncio.timeout(20):
            while not (Namespace in view.following.words and view.following.words[Namespace].why):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            why = "namespaces: the datastore forgets what has changed while they are listed, again and again"
            assert view.following.words[Namespace].why == why
            assert not view.known.current(Namespace), "whoever must know asks"
            admin = api.store()
            await admin.create(Namespace(metadata=Metadata(name="late")))
            await admin.close()
            api.api.faults.forgetful = False
            while ("", "late") not in view.objects(Namespace) or view.following.words[Namespace].why:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert view.known.current(Namespace)
    finally:
        task.cancel()
        await asyncio.wait([task])
