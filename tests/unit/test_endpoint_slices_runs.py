"""The controller of EndpointSlices: how it passes, runs on, and bears what cannot be read or written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from test_endpoint_slices import pod, service

from controllers_town import Town
from tortie.base.errors import NotSupported
from tortie.controllers import main
from tortie.controllers.endpoint_slices import EndpointSlices
from tortie.controllers.leader import Fenced
from tortie.model.k8s import Pod
from tortie.model.meta import Resource, changed
from tortie.model.service import EndpointSlice, Service
from tortie.model.store import R, Store
from tortie.store.memory import MemoryStore
from tortie.store.sqlite import SqliteStore


@pytest.fixture
def town() -> Town:
    return Town()


def controller(town: Town) -> EndpointSlices:
    return EndpointSlices(town.refusing, later=town.hands.backoff())


async def slices_of(store: Store, name: str = "web") -> list[EndpointSlice]:
    return [one for one in (await store.list(EndpointSlice)).items if one.service == name]


async def addresses(store: Store, name: str = "web") -> set[str]:
    return {each.addresses[0] for one in await slices_of(store, name) for each in one.endpoints}


async def put(store: Store, *objects: Resource) -> None:
    for one in objects:
        await store.create(one)


async def test_passes_without_watches(town: Town) -> None:
    await put(town.store, service(), pod())
    one = controller(town)
    assert await one.run_once() == 0
    (first,) = await slices_of(town.store)
    assert await one.run_once() == 0
    assert await slices_of(town.store) == [first]
    await town.store.delete(Pod, "a", "red")
    await town.store.create(pod("b", "10.244.0.6"))
    await one.run_once()
    assert await addresses(town.store) == {"10.244.0.6"}
    await town.store.delete(EndpointSlice, first.name, "red")
    await controller(town).run_once()
    assert await addresses(town.store) == {"10.244.0.6"}
    await town.store.delete(Service, "web", "red")
    assert await one.run_once() == 0
    assert await slices_of(town.store) == []


async def test_one_that_is_refused_keeps_no_other_waiting(town: Town) -> None:
    await put(town.store, service("bad"), service("good"), pod())
    one = controller(town)
    assert await one.run_once() == 1
    assert await addresses(town.store, "good") == {"10.244.0.5"}
    assert await one.run_once() == 1
    assert len(town.refusing.attempts) == 1
    town.refusing.refusing = False
    town.hands.time = 1.0
    assert await one.run_once() == 0
    assert await addresses(town.store, "bad") == {"10.244.0.5"}


async def test_what_cannot_be_read_keeps_what_it_has(town: Town) -> None:
    await put(town.store, service(), service("other"), pod("hidden", "10.244.0.7"), pod("gone", "10.244.0.8"))
    await controller(town).run_once()
    town.refusing.hidden = {"hidden", "other"}
    await town.store.delete(Pod, "gone", "red")
    await put(town.store, pod("new", "10.244.0.9"))
    assert await controller(town).run_once() == 0
    assert await addresses(town.store) == {"10.244.0.7", "10.244.0.9"}
    assert len(await slices_of(town.store, "other")) == 1
    town.refusing.hidden = set()
    await controller(town).run_once()
    assert await addresses(town.store) == await addresses(town.store, "other") == {"10.244.0.7", "10.244.0.9"}


async def test_pods_that_cannot_be_listed_empty_no_slice(town: Town) -> None:
    await put(town.store, service(), pod())
    await controller(town).run_once()
    town.refusing.unreadable = {Pod}
    with pytest.raises(NotSupported, match="not known to this version"):
        await controller(town).run_once()
    assert await addresses(town.store) == {"10.244.0.5"}


class Meddling(Fenced):
    """A store in which somebody else is always faster, once for each slice."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.met: set[str] = set()

    def _may_write(self) -> None:
        pass

    async def create(self, obj: R) -> R:
        if isinstance(obj, EndpointSlice) and obj.name not in self.met:
            self.met.add(obj.name)
            await self._store.create(replace(obj, endpoints=()))
        return await super().create(obj)

    async def update(self, obj: R) -> R:
        if isinstance(obj, EndpointSlice) and (name := f"{obj.name} updated") not in self.met:
            self.met.add(name)
            await self._store.update(changed(obj, annotations={"by": "others"}))
        return await super().update(obj)


async def test_who_is_slower_looks_again() -> None:
    store = MemoryStore()
    await put(store, service(), pod())
    one = EndpointSlices(Meddling(store))
    one.listed(EndpointSlice, ())  # as if its watch said nothing
    assert [await one.run_once() for _ in range(3)] == [1, 1, 0]
    assert await addresses(store) == {"10.244.0.5"}
    assert (await slices_of(store))[0].metadata.annotations == {"by": "others"}


# --- running ----------------------------------------------------------------------------------------------------------


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while True:
            if await true():
                return
            await asyncio.sleep(0.002)


@asynccontextmanager
async def running(store: Store) -> AsyncIterator[None]:
    task = asyncio.ensure_future(main.run(store))
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_running_program_follows_pods(tmp_path: Path) -> None:
    """From the pod's change to the slice in a tenth of a second, as a rule: printed, and not asserted."""
    store = SqliteStore(tmp_path / "store.db")
    try:
        async with running(store):
            await put(store, service(ip_families=()), pod("p0", "10.0.0.1"))

            async def has(*ips: str) -> bool:
                return await addresses(store) == set(ips)

            await until(lambda: has("10.0.0.1"))

            async def addressed() -> bool:
                return bool((await store.get(Service, "web", "red")).spec.cluster_ip)

            await until(addressed)
            times = []
            for i in range(2, 12):
                await asyncio.sleep(0.1)
                begin = time.monotonic()
                await store.create(pod(f"p{i}", f"10.0.0.{i}"))
                await until(lambda i=i: has(*(f"10.0.0.{n}" for n in range(1, i + 1))))
                times.append(time.monotonic() - begin)
            print("from a pod to its slice:", *(f"{each * 1000:.0f} ms" for each in sorted(times)))
            (mine,) = await slices_of(store)
            await store.delete(EndpointSlice, mine.name, "red")
            await until(lambda: has(*(f"10.0.0.{n}" for n in range(1, 12))))
            await store.delete(Service, "web", "red")
            await until(has)
            assert await slices_of(store) == []
    finally:
        await store.close()


async def test_two_at_a_time_do_no_harm(town: Town) -> None:
    """As when a lease is lost unnoticed: what they make comes to what one alone would make."""
    store = town.store
    async with running(store), running(store):
        for i in range(20):
            await store.create(service(f"s{i}", type="NodePort", ip_families=()))
        for i in range(120):
            await store.create(pod(f"p{i}", f"10.0.0.{i + 1}"))
            if i % 3 == 0:
                await store.delete(Pod, f"p{i}", "red")
            if i % 10 == 0:
                await asyncio.sleep(0.01)
        wanted = {f"10.0.0.{i + 1}" for i in range(120) if i % 3}

        async def arrived() -> bool:
            found = [await addresses(store, f"s{i}") for i in range(20)]
            services = (await store.list(Service)).items
            return found == [wanted] * 20 and all(one.spec.ports[0].node_port for one in services)

        await until(arrived)
        await asyncio.sleep(0.2)
        every = (await store.list(EndpointSlice)).items
        assert len(every) == 20
        assert sum(len(one.endpoints) for one in every) == 20 * len(wanted)
        services = (await store.list(Service)).items
        assert len({one.spec.cluster_ip for one in services}) == 20
        assert len({one.spec.ports[0].node_port for one in services}) == 20
