"""What every datastore promises, asked of each backend in the same words.

A backend joins with a test module of its own, which names how to get at its data and takes over all tests from here:

    from store_contract import *  # noqa: F403

    class MyBackend:                       # see `Backend`
        async def fresh(self) -> Store: ...
        async def compact(self, store) -> None: ...
        async def bulk(self, store, objects) -> None: ...
        many = 20_000

    @pytest.fixture
    def backend(...) -> MyBackend: ...

The fixture `store`, a fresh store that is closed after the test, comes from here and stands on `backend`. One server
for all tests of a module is well: `fresh` empties it. What only some backends can do is tested in their own modules.

Kinds asked for are IPPool, NetworkSet (which has namespaces) and Namespace. Of revisions nothing is said but that they
are decimal and increase.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from store_model import machine
from store_words import (
    PATIENCE,
    increasing,
    namespaces,
    netset,
    now,
    pool,
    revisions,
    seen,
    take,
    take_all,
)
from tortie.base.errors import Compacted, ConfigError, Conflict, Exists, NotFound, Unavailable
from tortie.model.ipam import IPPool
from tortie.model.k8s import Namespace
from tortie.model.meta import Resource, changed
from tortie.model.policy import NetworkSet
from tortie.model.store import Event, EventType, Store

LARGE = 900_000
"""Bytes of an annotation-free object that every backend takes."""
WATCHERS = 50
WRONG = "2147483646"
"""A revision that no object has."""


class Backend(Protocol):
    """How the contract gets at a backend's data."""

    many: int
    """How many objects the test of many objects makes with `bulk`."""

    async def fresh(self) -> Store:
        """A store that holds none of the kinds above but what the backend cannot be without; whoever asks closes it.
        Is called in any event loop. Stores that were given out before may lose their objects."""
        ...

    async def compact(self, store: Store) -> None:
        """Makes all history up to now be forgotten, by the backend's own means or by many writes to another kind."""
        ...

    async def bulk(self, store: Store, objects: Sequence[NetworkSet]) -> None:
        """Creates objects as quickly as the backend can: what a store would have written may be put there directly."""
        ...


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[Store]:
    store = await backend.fresh()
    yield store
    await store.close()


# One object -----------------------------------------------------------------------------------------------------


async def test_what_is_created_comes_back_with_an_identity(store: Store) -> None:
    given = pool(
        "a", labels={"zone": "x"}, resource_version="77", uid="mine", creation_timestamp="1999-01-01T00:00:00Z"
    )
    made = await store.create(given)
    assert made == await store.get(IPPool, "a")
    assert (made.spec, made.labels) == (given.spec, {"zone": "x"})
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", made.metadata.uid)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", made.metadata.creation_timestamp or "")
    assert made.metadata.resource_version.isdecimal()
    other = await store.create(pool("b"))
    assert other.metadata.uid != made.metadata.uid
    assert increasing(revisions(made, other))


async def test_refusals_name_the_object(store: Store) -> None:
    await namespaces(store, "red", "blue")
    made = await store.create(pool("a"))
    await store.create(netset("red", "w"))
    with pytest.raises(Exists, match=r"^resource already exists: IPPool\(a\)"):
        await store.create(pool("a"))
    with pytest.raises(Exists, match=r"^resource already exists: NetworkSet\(red/w\)"):
        await store.create(netset("red", "w"))
    with pytest.raises(NotFound, match=r"^resource does not exist: IPPool\(b\)"):
        await store.get(IPPool, "b")
    with pytest.raises(NotFound, match=r"^resource does not exist: NetworkSet\(blue/w\)"):
        await store.get(NetworkSet, "w", "blue")
    with pytest.raises(NotFound, match=r"^resource does not exist: IPPool\(b\)"):
        await store.update(pool("b"))
    with pytest.raises(NotFound, match=r"^resource does not exist: IPPool\(b\)"):
        await store.delete(IPPool, "b")
    with pytest.raises(Conflict, match=r"^update conflict: IPPool\(a\)"):
        await store.update(pool("a", "10.1.0.0/16", resource_version=WRONG))
    with pytest.raises(Conflict, match=r"^update conflict: NetworkSet\(red/w\)"):
        await store.delete(NetworkSet, "w", "red", revision=WRONG)
    with pytest.raises(ConfigError, match=r"metadata\.name"):
        await store.create(pool(""))
    assert (await store.list(IPPool)).items == (made,), "a refusal writes nothing"


async def test_an_update_keeps_the_identity_and_moves_the_revision(store: Store) -> None:
    made = await store.create(pool("a"))
    forged = pool("a", "10.1.0.0/16", uid="other", creation_timestamp="1999-01-01T00:00:00Z", labels={"x": "y"})
    new = await store.update(forged)
    assert new == await store.get(IPPool, "a")
    assert (new.spec.cidr, new.labels) == ("10.1.0.0/16", {"x": "y"})
    assert (new.metadata.uid, new.metadata.creation_timestamp) == (made.metadata.uid, made.metadata.creation_timestamp)
    assert increasing(revisions(made, new))
    with pytest.raises(Conflict):
        await store.update(changed(made, labels={"late": "yes"}))
    assert await store.get(IPPool, "a") == new


async def test_an_update_takes_fields_away(store: Store) -> None:
    """What is left out of an update is gone, not kept from before."""
    await namespaces(store, "red")
    made = await store.create(netset("red", "a", "10.0.0.0/8", "10.9.0.0/16", labels={"x": "1", "y": "2"}))
    without = netset("red", "a", "10.9.0.0/16", labels={"y": "2"})
    new = await store.update(changed(without, resource_version=made.metadata.resource_version))
    assert (new.spec.nets, new.labels) == (("10.9.0.0/16",), {"y": "2"})
    bare = await store.update(netset("red", "a"))
    assert (bare.spec.nets, bare.labels) == ((), {})
    assert await store.get(NetworkSet, "a", "red") == bare


async def test_an_update_that_changes_nothing_is_no_write(store: Store) -> None:
    made = await store.create(pool("a"))
    assert await store.update(made) == made
    assert await store.update(pool("a")) == made, "identity is not compared"
    assert await store.get(IPPool, "a") == made
    with pytest.raises(Conflict):
        await store.update(changed(made, resource_version=WRONG))


async def test_a_delete_returns_the_last_state(store: Store) -> None:
    made = await store.create(pool("a"))
    new = await store.update(changed(made, labels={"x": "y"}))
    with pytest.raises(Conflict):
        await store.delete(IPPool, "a", revision=made.metadata.resource_version)
    assert await store.delete(IPPool, "a", revision=new.metadata.resource_version) == new
    with pytest.raises(NotFound):
        await store.get(IPPool, "a")
    again = await store.create(pool("a"))
    assert again.metadata.uid != made.metadata.uid
    assert increasing(revisions(made, new, again))


async def test_what_comes_back_is_a_value_of_its_own(store: Store) -> None:
    start = await now(store)
    made = await store.create(pool("a", labels={"x": "y"}))
    made.labels["x"] = "changed behind the store's back"
    (await store.get(IPPool, "a")).labels["x"] = "once more"
    async with aclosing(store.watch(IPPool, start)) as watch:
        (event,) = await take(watch, 1)
    assert event.type is EventType.ADDED
    assert event.object.labels == (await store.get(IPPool, "a")).labels == {"x": "y"}


async def test_values_in_every_script_come_back(store: Store) -> None:
    texts = {
        "example.org/greek": "καλημέρα",
        "example.org/cat": "🐈 with é and é",
        "example.org/json": '{"a": "\\"\\n\\t\\u0001"}',
        "example.org/space": " \u00a0\u2028\u200b\r\n",
        "example.org/empty": "",
    }
    made = await store.create(pool("a", annotations=texts))
    assert made.metadata.annotations == texts
    assert (await store.get(IPPool, "a")).metadata.annotations == texts
    (listed,) = (await store.list(IPPool)).items
    assert listed.metadata.annotations == texts


async def test_large_objects_come_back(store: Store) -> None:
    await namespaces(store, "red")
    start = await now(store)
    net = "2001:db8:ffff:ffff:ffff:ffff:ffff:{:x}/128"
    nets = tuple(net.format(number) for number in range(LARGE // (len(net) + 3)))
    made = await store.create(netset("red", "large", *nets))
    assert await store.get(NetworkSet, "large", "red") == made
    new = await store.update(changed(made, labels={"x": "y"}))
    assert new.spec.nets == nets
    assert (await store.list(NetworkSet)).items == (new,)
    async with aclosing(store.watch(NetworkSet, start)) as watch:
        assert [event.object for event in await take(watch, 2)] == [made, new]


# Lists ----------------------------------------------------------------------------------------------------------


async def test_lists_of_every_length(store: Store) -> None:
    await namespaces(store, "red", "blue")
    names: list[str] = []
    before = -1
    for number in range(40):  # short ones may be read in another way than long ones
        listing = await store.list(NetworkSet, "red")
        assert [item.name for item in listing.items] == names
        assert int(listing.revision) >= before
        await store.create(netset("red", f"p{number:02}"))
        made = await store.create(netset("blue", f"p{number:02}"))
        (before,) = revisions(made)
        names.append(f"p{number:02}")
    assert len((await store.list(NetworkSet)).items) == 80


async def test_a_list_is_sorted_and_knows_its_revision(store: Store) -> None:
    await namespaces(store, "red", "blue", "blue-2")
    assert (await store.list(NetworkSet)).items == (await store.list(NetworkSet, "red")).items == ()
    for namespace, name in (("red", "b"), ("blue", "z"), ("red", "a"), ("red", "a.b"), ("red", "a-b"), ("blue-2", "a")):
        await store.create(netset(namespace, name))
    last = await store.create(pool("a"))
    listing = await store.list(NetworkSet)
    places = [(obj.namespace, obj.name) for obj in listing.items]
    assert places == sorted(places)
    assert [place for place in places if place[0] != "red"] == [("blue", "z"), ("blue-2", "a")]
    assert listing.revision.isdecimal()
    assert int(listing.revision) >= revisions(last)[0]
    assert [obj.name for obj in (await store.list(NetworkSet, "red")).items] == ["a", "a-b", "a.b", "b"]
    assert [obj.name for obj in (await store.list(NetworkSet, "blue")).items] == ["z"], "blue-2 is another namespace"
    assert (await store.list(NetworkSet, "green")).items == ()
    assert listing.items[0] == await store.get(NetworkSet, "z", "blue")


async def test_kinds_and_namespaces_do_not_meet(store: Store) -> None:
    await namespaces(store, "red", "blue", "a")
    await store.create(netset("red", "a"))
    await store.create(netset("blue", "a"))
    await store.create(pool("a"))
    await store.delete(NetworkSet, "a", "red")
    assert (await store.get(NetworkSet, "a", "blue")).namespace == "blue"
    assert (await store.get(Namespace, "a")).KIND.kind == "Namespace"
    assert len((await store.list(IPPool)).items) == 1


async def test_many_objects(store: Store, backend: Backend) -> None:
    """A long list is whole, sorted, of one revision, and takes a time in proportion."""
    await namespaces(store, "red")
    start = await now(store)
    objects = [netset("red", f"set-{number:06}", labels={"n": str(number)}) for number in range(backend.many)]
    await backend.bulk(store, objects)
    begin = time.monotonic()
    listing = await store.list(NetworkSet)
    took = time.monotonic() - begin
    print(f"{backend.many} objects listed in {took:.2f} s", file=sys.stderr)
    assert [item.name for item in listing.items] == [obj.name for obj in objects]
    assert listing.items[-1].labels == {"n": str(backend.many - 1)}
    assert int(listing.revision) > int(start)
    assert len((await store.list(NetworkSet, "red")).items) == backend.many
    assert took < 2 + backend.many / 5_000
    async with aclosing(store.watch(NetworkSet, listing.revision)) as watch:
        await store.update(netset("red", "set-000007"))
        assert seen(await take(watch, 1)) == [("MODIFIED", "set-000007")]


# Watches --------------------------------------------------------------------------------------------------------


async def test_a_watch_sees_each_write_to_its_kind_once_and_in_order(store: Store) -> None:
    await namespaces(store, "red")
    first = await store.create(pool("old"))
    async with aclosing(store.watch(IPPool, first.metadata.resource_version)) as watch:
        waiting = asyncio.create_task(take(watch, 3))
        await asyncio.sleep(0.01)
        made = await store.create(pool("a"))
        await store.create(netset("red", "w"))
        new = await store.update(changed(made, labels={"x": "y"}))
        await store.update(new)
        await store.delete(IPPool, "a")
        found = await waiting
        assert seen(found) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
        assert [event.object for event in found[:2]] == [made, new]
        gone = found[2].object
        assert gone == changed(new, resource_version=gone.metadata.resource_version), "the last state"
        assert increasing(revisions(made, new, gone)), "at the revision of the deletion"
        again = await store.create(pool("b"))
        (event,) = await take(watch, 1)
        assert event.object == again
        assert increasing(revisions(gone, again))


async def test_a_watch_begins_with_what_happened_since(store: Store) -> None:
    """From each revision that was ever handed out: of a list, of an object, of a deletion."""
    start = await now(store)
    made = [await store.create(pool(name)) for name in "abc"]
    listing = await store.list(IPPool)
    await store.delete(IPPool, "a")
    async with aclosing(store.watch(IPPool, listing.revision)) as watch:
        (gone,) = await take(watch, 1)
    await store.create(pool("d"))
    history = [start, *(one.metadata.resource_version for one in made), gone.object.metadata.resource_version]
    for number, revision in enumerate(history):
        async with aclosing(store.watch(IPPool, revision)) as watch:
            expected = "abcad"[number:]
            assert "".join(event.object.name for event in await take(watch, len(expected))) == expected


async def test_watches_are_independent(store: Store) -> None:
    await namespaces(store, "red")
    start = await now(store)

    async def all_events(kind: type[Resource], count: int) -> list[Event[Any]]:
        async with aclosing(store.watch(kind, start)) as watch:
            return await take(watch, count)

    async with asyncio.TaskGroup() as group:
        pools = [group.create_task(all_events(IPPool, 40)) for _ in range(5)]
        sets = [group.create_task(all_events(NetworkSet, 40)) for _ in range(5)]
        for i in range(40):
            await store.create(pool(f"p{i}"))
            await store.create(netset("red", f"w{i}"))
    for tasks, letter in ((pools, "p"), (sets, "w")):
        for task in tasks:
            assert [event.object.name for event in task.result()] == [f"{letter}{i}" for i in range(40)]
            assert increasing(revisions(*(event.object for event in task.result())))


async def test_fifty_watchers_see_the_same(store: Store) -> None:
    start = await now(store)

    async def follow() -> list[tuple[str, str]]:
        async with aclosing(store.watch(IPPool, start)) as watch:
            return seen(await take(watch, 30))

    async with asyncio.TaskGroup() as group:
        watchers = [group.create_task(follow()) for _ in range(WATCHERS)]
        for number in range(10):
            made = await store.create(pool(f"p{number}"))
            await store.update(changed(made, labels={"x": "y"}))
            await store.delete(IPPool, f"p{number}")
    expected = [(type_, f"p{n}") for n in range(10) for type_ in ("ADDED", "MODIFIED", "DELETED")]
    assert all(watcher.result() == expected for watcher in watchers)


async def test_a_cancelled_watch_leaves_the_others_and_the_store_alone(store: Store) -> None:
    start = await now(store)
    async with aclosing(store.watch(IPPool, start)) as watch:
        other = asyncio.create_task(anext(store.watch(IPPool, start)))  # type: ignore[arg-type]
        waiting = asyncio.create_task(take(watch, 1))
        await asyncio.sleep(0.01)
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other
        await store.create(pool("a"))
        assert seen(await waiting) == [("ADDED", "a")]


async def test_a_reader_that_lags_misses_nothing(store: Store) -> None:
    """More writes than are kept at hand for watches, before the watch reads on."""
    async with aclosing(store.watch(IPPool, await now(store))) as watch:
        await store.create(pool("first"))
        assert seen(await take(watch, 1)) == [("ADDED", "first")]
        for i in range(300):
            await store.create(pool(f"p{i}"))
        found = await take(watch, 300)
    assert [event.object.name for event in found] == [f"p{i}" for i in range(300)]


async def test_a_slow_watcher_delays_nobody(store: Store) -> None:
    """One that never reads on: writers and the other watchers do not notice."""
    start = await now(store)
    async with aclosing(store.watch(IPPool, start)) as slow, aclosing(store.watch(IPPool, start)) as quick:
        await store.create(pool("first"))
        assert seen(await take(slow, 1)) == seen(await take(quick, 1)) == [("ADDED", "first")]
        for number in range(100):
            await store.create(pool(f"p{number}", annotations={"example.org/bulk": "x" * 20_000}))
            assert seen(await take(quick, 1)) == [("ADDED", f"p{number}")]
        assert [name for _, name in seen(await take(slow, 100))] == [f"p{number}" for number in range(100)]


async def test_history_that_is_gone_is_compacted(store: Store, backend: Backend) -> None:
    start = await now(store)
    for number in range(3):
        await store.create(pool(f"p{number}"))
    await backend.compact(store)
    with pytest.raises(Compacted):
        await take(store.watch(IPPool, start), 3)
    listing = await store.list(IPPool)
    assert [item.name for item in listing.items] == ["p0", "p1", "p2"]
    async with aclosing(store.watch(IPPool, listing.revision)) as watch:
        await store.create(pool("new"))
        assert seen(await take(watch, 1)) == [("ADDED", "new")]


async def test_a_deletion_that_was_forgotten_is_not_passed_over(store: Store, backend: Backend) -> None:
    """A watch from before it either tells of it, or says that it cannot."""
    made = await store.create(pool("a"))
    await store.delete(IPPool, "a")
    await backend.compact(store)
    with pytest.raises(Compacted):
        await take(store.watch(IPPool, made.metadata.resource_version), 1)


async def test_a_revision_that_was_never_handed_out_is_compacted(store: Store) -> None:
    await store.create(pool("a"))
    for revision in ("", "x", str(10**15)):
        with pytest.raises(Compacted):
            await take(store.watch(IPPool, revision), 1)


async def test_a_quiet_watch_outlives_a_compaction(store: Store, backend: Backend) -> None:
    async with aclosing(store.watch(IPPool, await now(store))) as watch:
        waiting = asyncio.create_task(take(watch, 1))
        await asyncio.sleep(0.05)
        await backend.compact(store)
        await store.create(pool("new"))
        assert seen(await waiting) == [("ADDED", "new")]


async def test_close_ends_watches_and_is_idempotent(store: Store) -> None:
    ended = asyncio.create_task(take_all(store.watch(IPPool, await now(store))))
    await asyncio.sleep(0.01)
    async with aclosing(store.watch(IPPool, await now(store))) as other:
        await store.create(pool("a"))
        await take(other, 1)
    await asyncio.sleep(0.1)
    await store.close()
    async with asyncio.timeout(PATIENCE):
        assert seen(await ended) == [("ADDED", "a")]
    await store.close()
    watching = anext(store.watch(IPPool, "0"))
    for call in (store.get(IPPool, "a"), store.list(IPPool), store.create(pool("b")), watching):
        with pytest.raises(Unavailable, match="closed"):
            await call  # type: ignore[misc]


# Races ----------------------------------------------------------------------------------------------------------


async def test_of_racing_writers_one_wins(store: Store) -> None:
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
    assert conflicts, "the tasks never met: this test shows nothing"


async def test_unconditional_writers_never_conflict(store: Store) -> None:
    """Without a revision the last one wins, and a watcher sees every one of them."""
    await store.create(pool("a"))
    async with aclosing(store.watch(IPPool, await now(store))) as watch:
        await asyncio.gather(*(store.update(pool("a", labels={"writer": str(n)})) for n in range(20)))
        found = await take(watch, 20)
    assert sorted(int(event.object.labels["writer"]) for event in found) == list(range(20))
    assert found[-1].object == await store.get(IPPool, "a")


async def test_of_racing_creators_one_wins(store: Store) -> None:
    found = await asyncio.gather(*(store.create(pool("a")) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(result, IPPool) for result in found) == 1
    assert sum(isinstance(result, Exists) for result in found) == 9


async def test_of_racing_deleters_one_wins(store: Store) -> None:
    """The others are told that there is nothing, or that it has changed; one event comes of it."""
    for revision in ("", "seen"):
        made = await store.create(pool("a"))
        async with aclosing(store.watch(IPPool, made.metadata.resource_version)) as watch:
            given = made.metadata.resource_version if revision else ""
            tries = (store.delete(IPPool, "a", revision=given) for _ in range(10))
            found = await asyncio.gather(*tries, return_exceptions=True)
            assert sum(isinstance(result, IPPool) for result in found) == 1
            assert sum(isinstance(result, NotFound) for result in found) == 9
            await store.create(pool("b"))
            assert seen(await take(watch, 2)) == [("DELETED", "a"), ("ADDED", "b")]
        await store.delete(IPPool, "b")


async def test_deletions_race_updates(store: Store) -> None:
    """Either the update came first, and what was deleted has it, or the update found nothing: never does it bring the
    object back."""
    for number in range(10):
        made = await store.create(pool("a"))
        new = changed(made, labels={"n": str(number)})
        given = "" if number % 2 else made.metadata.resource_version
        deleted, updated = await asyncio.gather(
            store.delete(IPPool, "a", revision=given), store.update(new), return_exceptions=True
        )
        if isinstance(deleted, IPPool):
            assert isinstance(updated, NotFound | Conflict) or deleted == updated
            assert (await store.list(IPPool)).items == ()
        else:
            assert isinstance(deleted, Conflict)
            assert (await store.list(IPPool)).items == (updated,)
            await store.delete(IPPool, "a")


# A model ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_loop_disturbed() -> Iterator[None]:
    """Runners of their own forget which loop was the current one."""
    try:
        before = asyncio.get_event_loop_policy().get_event_loop()
    except RuntimeError:
        before = None
    yield
    asyncio.set_event_loop(before)


def test_random_writes_against_a_dictionary(backend: Backend, no_loop_disturbed: None) -> None:
    run_state_machine_as_test(
        machine(backend),
        settings=settings(
            max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
