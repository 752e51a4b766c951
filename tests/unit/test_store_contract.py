"""What every store promises, asked of each backend in the same words."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest

from tortie.base.errors import Compacted, ConfigError, Conflict, Exists, NotFound, Unavailable
from tortie.model.ipam import IPPool, IPPoolSpec
from tortie.model.k8s import Namespace
from tortie.model.meta import Metadata, Resource, changed
from tortie.model.store import Event, EventType, Store
from tortie.model.workload import WorkloadEndpoint, WorkloadEndpointSpec
from tortie.store.memory import MemoryStore
from tortie.store.sqlite import SqliteStore

Open = Callable[..., Store]


@pytest.fixture(params=["memory", "sqlite"])
async def make(request, tmp_path) -> AsyncIterator[Open]:
    """Makes fresh stores of one backend, `make(history=10)`; all are closed after the test."""
    made: list[Store] = []

    def make(**options) -> Store:
        path = tmp_path / f"{len(made)}.db"
        made.append(MemoryStore(**options) if request.param == "memory" else SqliteStore(path, **options))
        return made[-1]

    yield make
    for store in made:
        await store.close()


@pytest.fixture
def store(make: Open) -> Store:
    return make()


def pool(name: str, cidr: str = "10.0.0.0/16", **metadata) -> IPPool:
    return IPPool(metadata=Metadata(name=name, **metadata), spec=IPPoolSpec(cidr=cidr))


def endpoint(namespace: str, name: str) -> WorkloadEndpoint:
    return WorkloadEndpoint(metadata=Metadata(name=name, namespace=namespace), spec=WorkloadEndpointSpec(node="a"))


async def take(batches: AsyncIterator[tuple[Event, ...]], count: int) -> list[Event]:
    """The next `count` events of a watch."""
    found: list[Event] = []
    async with asyncio.timeout(5):
        while len(found) < count:
            found.extend(await anext(batches))
    assert len(found) == count
    return found


def seen(events: list[Event]) -> list[tuple[str, str, str]]:
    return [(event.type.value, event.object.name, event.object.metadata.resource_version) for event in events]


def revisions(*objects: Resource) -> list[int]:
    return [int(obj.metadata.resource_version) for obj in objects]


async def test_lists_of_every_length(store):
    names: list[str] = []
    for number in range(40):  # short ones are read in another way than long ones
        listing = await store.list(WorkloadEndpoint, "red")
        assert [item.name for item in listing.items] == names
        assert int(listing.revision) == 2 * number
        await store.create(endpoint("red", f"p{number:02}"))
        await store.create(endpoint("blue", f"p{number:02}"))
        names.append(f"p{number:02}")
    assert len((await store.list(WorkloadEndpoint)).items) == 80


async def test_what_is_created_comes_back_with_an_identity(store):
    given = pool(
        "a", labels={"zone": "x"}, resource_version="77", uid="mine", creation_timestamp="1999-01-01T00:00:00Z"
    )
    made = await store.create(given)
    assert made == await store.get(IPPool, "a")
    assert (made.spec, made.labels) == (given.spec, {"zone": "x"})
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", made.metadata.uid)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", made.metadata.creation_timestamp)
    assert made.metadata.resource_version == "1"
    assert (await store.create(pool("b"))).metadata.uid != made.metadata.uid


async def test_refusals_name_the_object(store):
    await store.create(pool("a"))
    await store.create(endpoint("red", "w"))
    with pytest.raises(Exists, match=r"^resource already exists: IPPool\(a\)$"):
        await store.create(pool("a"))
    with pytest.raises(Exists, match=r"^resource already exists: WorkloadEndpoint\(red/w\)$"):
        await store.create(endpoint("red", "w"))
    with pytest.raises(NotFound, match=r"^resource does not exist: IPPool\(b\)$"):
        await store.get(IPPool, "b")
    with pytest.raises(NotFound, match=r"^resource does not exist: WorkloadEndpoint\(blue/w\)$"):
        await store.get(WorkloadEndpoint, "w", "blue")
    with pytest.raises(NotFound, match=r"^resource does not exist: IPPool\(b\)$"):
        await store.update(pool("b"))
    with pytest.raises(NotFound, match=r"^resource does not exist: IPPool\(b\)$"):
        await store.delete(IPPool, "b")
    with pytest.raises(Conflict, match=r"^update conflict: IPPool\(a\)$"):
        await store.update(pool("a", "10.1.0.0/16", resource_version="99"))
    with pytest.raises(Conflict, match=r"^update conflict: WorkloadEndpoint\(red/w\)$"):
        await store.delete(WorkloadEndpoint, "w", "red", revision="1")
    with pytest.raises(ConfigError, match=r"^IPPool: metadata.name: is required$"):
        await store.create(pool(""))
    assert (await store.list(IPPool)).revision == "2", "a refusal writes nothing"


async def test_an_update_keeps_the_identity_and_moves_the_revision(store):
    made = await store.create(pool("a"))
    forged = pool("a", "10.1.0.0/16", uid="other", creation_timestamp="1999-01-01T00:00:00Z", labels={"x": "y"})
    new = await store.update(forged)
    assert new == await store.get(IPPool, "a")
    assert (new.spec.cidr, new.labels) == ("10.1.0.0/16", {"x": "y"})
    assert (new.metadata.uid, new.metadata.creation_timestamp) == (made.metadata.uid, made.metadata.creation_timestamp)
    assert revisions(made, new) == [1, 2]
    with pytest.raises(Conflict):
        await store.update(changed(made, labels={"late": "yes"}))
    assert await store.get(IPPool, "a") == new


async def test_an_update_that_changes_nothing_is_no_write(store):
    made = await store.create(pool("a"))
    assert await store.update(made) == made
    assert await store.update(pool("a")) == made, "identity is not compared"
    assert (await store.list(IPPool)).revision == "1"
    with pytest.raises(Conflict):
        await store.update(changed(made, resource_version="7"))


async def test_a_delete_returns_the_last_state(store):
    made = await store.create(pool("a"))
    new = await store.update(changed(made, labels={"x": "y"}))
    with pytest.raises(Conflict):
        await store.delete(IPPool, "a", revision=made.metadata.resource_version)
    assert await store.delete(IPPool, "a", revision=new.metadata.resource_version) == new
    with pytest.raises(NotFound):
        await store.get(IPPool, "a")
    again = await store.create(pool("a"))
    assert again.metadata.uid != made.metadata.uid
    assert revisions(again) == [4], "the deletion was a write"


async def test_a_list_is_sorted_and_knows_its_revision(store):
    assert await store.list(WorkloadEndpoint) == await store.list(WorkloadEndpoint, "red")
    assert (await store.list(IPPool)).revision == "0"
    for namespace, name in (("red", "b"), ("blue", "z"), ("red", "a"), ("red", "B"), ("blue-2", "a")):
        await store.create(endpoint(namespace, name))
    await store.create(pool("a"))
    listing = await store.list(WorkloadEndpoint)
    places = [(obj.namespace, obj.name) for obj in listing.items]
    assert places == [("blue", "z"), ("blue-2", "a"), ("red", "B"), ("red", "a"), ("red", "b")]
    assert listing.revision == "6"
    assert [obj.name for obj in (await store.list(WorkloadEndpoint, "red")).items] == ["B", "a", "b"]
    assert (await store.list(WorkloadEndpoint, "green")).items == ()
    assert listing.items[0] == await store.get(WorkloadEndpoint, "z", "blue")


async def test_kinds_and_namespaces_do_not_meet(store):
    await store.create(endpoint("red", "a"))
    await store.create(endpoint("blue", "a"))
    await store.create(Namespace(metadata=Metadata(name="a")))
    await store.create(pool("a"))
    await store.delete(WorkloadEndpoint, "a", "red")
    assert (await store.get(WorkloadEndpoint, "a", "blue")).namespace == "blue"
    assert (await store.get(Namespace, "a")).KIND.kind == "Namespace"
    assert len((await store.list(IPPool)).items) == 1


async def test_a_watch_sees_each_write_to_its_kind_once_and_in_order(store):
    first = await store.create(pool("old"))
    async with aclosing(store.watch(IPPool, first.metadata.resource_version)) as watch:
        waiting = asyncio.create_task(take(watch, 3))
        await asyncio.sleep(0.01)
        made = await store.create(pool("a"))
        await store.create(endpoint("red", "w"))
        new = await store.update(changed(made, labels={"x": "y"}))
        await store.update(new)
        await store.delete(IPPool, "a")
        found = await waiting
        assert seen(found) == [("ADDED", "a", "2"), ("MODIFIED", "a", "4"), ("DELETED", "a", "5")]
        assert found[0].object == made
        assert found[2].object == changed(new, resource_version="5"), "the last state, at the revision of the deletion"
        await store.create(pool("b"))
        assert seen(await take(watch, 1)) == [("ADDED", "b", "6")]


async def test_a_watch_begins_with_what_happened_since(store):
    for name in "abc":
        await store.create(pool(name))
    listing = await store.list(IPPool)
    await store.delete(IPPool, "a")
    await store.create(pool("d"))
    for revision, expected in (("0", "abcad"), (listing.revision, "ad"), ("4", "d")):
        async with aclosing(store.watch(IPPool, revision)) as watch:
            assert "".join(event.object.name for event in await take(watch, len(expected))) == expected


async def test_watches_are_independent(store):
    async def all_events(kind, count):
        async with aclosing(store.watch(kind, "0")) as watch:
            return await take(watch, count)

    async with asyncio.TaskGroup() as group:
        pools = [group.create_task(all_events(IPPool, 40)) for _ in range(5)]
        ends = [group.create_task(all_events(WorkloadEndpoint, 40)) for _ in range(5)]
        for i in range(40):
            await store.create(pool(f"p{i}"))
            await store.create(endpoint("red", f"w{i}"))
    assert {tuple(event.object.name for event in task.result()) for task in pools} == {
        tuple(f"p{i}" for i in range(40))
    }
    assert {tuple(revisions(*(event.object for event in task.result()))) for task in ends} == {tuple(range(2, 82, 2))}


async def test_a_cancelled_watch_leaves_the_others_and_the_store_alone(store):
    async with aclosing(store.watch(IPPool, "0")) as watch:
        other = asyncio.create_task(anext(store.watch(IPPool, "0")))
        waiting = asyncio.create_task(take(watch, 1))
        await asyncio.sleep(0.01)
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other
        await store.create(pool("a"))
        assert seen(await waiting) == [("ADDED", "a", "1")]


async def test_a_reader_that_lags_misses_nothing(store):
    """More writes than are kept at hand for watches, before the watch reads on."""
    async with aclosing(store.watch(IPPool, "0")) as watch:
        await store.create(pool("first"))
        assert seen(await take(watch, 1)) == [("ADDED", "first", "1")]
        for i in range(300):
            await store.create(pool(f"p{i}"))
        found = await take(watch, 300)
    assert [event.object.name for event in found] == [f"p{i}" for i in range(300)]


async def test_history_that_is_gone_is_compacted(make):
    store = make(history=10)
    for i in range(25):
        await store.create(pool(f"p{i}"))
    for revision in ("0", "14", "26", "", "x"):
        with pytest.raises(Compacted, match="list again"):
            await anext(store.watch(IPPool, revision))
    async with aclosing(store.watch(IPPool, "15")) as watch:
        assert revisions(*(event.object for event in await take(watch, 10))) == list(range(16, 26))


async def test_a_watch_that_falls_behind_the_history_is_compacted(make):
    store = make(history=10)
    async with aclosing(store.watch(IPPool, "0")) as watch:
        await store.create(pool("first"))
        await take(watch, 1)
        for i in range(300):
            await store.create(pool(f"p{i}"))
        with pytest.raises(Compacted, match="list again"):
            await take(watch, 300)


async def test_a_quiet_watch_never_falls_behind(make):
    store = make(history=10)
    await store.create(pool("old"))
    async with aclosing(store.watch(IPPool, "1")) as watch:
        waiting = asyncio.create_task(take(watch, 1))
        for i in range(300):
            await store.create(endpoint("red", f"w{i}"))
        await store.create(pool("new"))
        assert seen(await waiting) == [("ADDED", "new", "302")]


async def test_of_racing_writers_one_wins(store):
    """Eight tasks add to one object by compare-and-swap; no addition is lost, and losing is noticed."""
    await store.create(pool("counter", labels={"n": "0"}))
    conflicts = 0

    async def add_ten() -> None:
        nonlocal conflicts
        done = 0
        while done < 10:
            read = await store.get(IPPool, "counter")
            try:
                await store.update(changed(read, labels={"n": str(int(read.labels["n"]) + 1)}))
                done += 1
            except Conflict:
                conflicts += 1

    await asyncio.gather(*(add_ten() for _ in range(8)))
    assert (await store.get(IPPool, "counter")).labels == {"n": "80"}
    assert (await store.list(IPPool)).revision == "81"
    assert conflicts, "the tasks never met: this test shows nothing"


async def test_of_racing_creators_one_wins(store):
    found = await asyncio.gather(*(store.create(pool("a")) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(result, IPPool) for result in found) == 1
    assert sum(isinstance(result, Exists) for result in found) == 9


async def test_close_ends_watches_and_is_idempotent(store):
    ended = asyncio.create_task(take_all(store.watch(IPPool, "0")))
    await asyncio.sleep(0.01)
    await store.create(pool("a"))
    await asyncio.sleep(0.05)
    await store.close()
    async with asyncio.timeout(5):
        assert seen(await ended) == [("ADDED", "a", "1")]
    await store.close()
    for call in (store.get(IPPool, "a"), store.list(IPPool), store.create(pool("b")), anext(store.watch(IPPool, "0"))):
        with pytest.raises(Unavailable, match="closed"):
            await call


async def take_all(batches: AsyncIterator[tuple[Event, ...]]) -> list[Event]:
    return list(itertools.chain.from_iterable([batch async for batch in batches]))


async def test_what_comes_back_is_a_value_of_its_own(store):
    made = await store.create(pool("a", labels={"x": "y"}))
    made.labels["x"] = "changed behind the store's back"
    (await store.get(IPPool, "a")).labels["x"] = "once more"
    async with aclosing(store.watch(IPPool, "0")) as watch:
        (event,) = await take(watch, 1)
    assert event.type is EventType.ADDED
    assert event.object.labels == (await store.get(IPPool, "a")).labels == {"x": "y"}
