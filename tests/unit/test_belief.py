"""What an agent makes of what its datastore says: values, then a view over a datastore that lies, lags and goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.agent import datastore, probe
from tortie.agent.datastore import Datastore
from tortie.agent.known import ALSO
from tortie.agent.view import View
from tortie.base.errors import Compacted, NotSupported, Unavailable
from tortie.calc.cluster import INPUTS
from tortie.calc.state import DesiredState
from tortie.model import belief
from tortie.model.belief import Verdict, gone, judge, sample, wrong_cluster
from tortie.model.k8s import Namespace
from tortie.model.meta import Metadata, Resource, changed
from tortie.model.node import ClusterInformation, ClusterInformationSpec
from tortie.model.policy import GlobalNetworkPolicy
from tortie.model.store import Event, Listing
from tortie.model.workload import WorkloadEndpoint, WorkloadEndpointSpec
from tortie.store.memory import MemoryStore

R = TypeVar("R", bound=Resource)

NODE, GUID = "node1", "a" * 32
PATIENCE = 15.0


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "known", "revision", "listed", "verdict", "missing"),
    [
        (0, {}, 5, {"a": 3}, Verdict.TAKE, ""),
        (5, {"a": 3}, 5, {"a": 3}, Verdict.TAKE, ""),
        (5, {"a": 3}, 9, {"a": 7, "b": 8}, Verdict.TAKE, ""),
        (5, {"a": 3}, 4, {"a": 3}, Verdict.STALE, ""),
        (5, {"a": 3}, 1, {}, Verdict.STALE, ""),
        (5, {"a": 3, "b": 5}, 9, {}, Verdict.DOUBT, "ab"),
        (5, {"a": 3, "b": 5}, 9, {"b": 5}, Verdict.DOUBT, "a"),
        (9, {"a": 3, "b": 10}, 9, {"a": 3}, Verdict.TAKE, ""),  # b was written after the list
        (9, {"a": 8}, 12, {"a": 3}, Verdict.REWRITTEN, ""),  # restored from a backup, and gone on since
        (9, {"a": 8}, 0, {"a": 8}, Verdict.TAKE, ""),  # a revision that is no number says nothing
        (9, {"a": 8}, 12, {"a": 0}, Verdict.TAKE, ""),
    ],
)
def test_listing(seen: int, known: Any, revision: int, listed: Any, verdict: Verdict, missing: str) -> None:
    named = [{("", name): at for name, at in each.items()} for each in (known, listed)]
    found = judge("things", seen, named[0], revision, named[1])
    assert found.verdict is verdict
    assert found.missing == tuple(("", name) for name in missing)
    assert bool(found.why) is (verdict is not Verdict.TAKE)


@given(st.sets(st.tuples(st.just(""), st.text("abc", min_size=1, max_size=4)), max_size=40))
def test_only_what_both_lists_lack_and_nobody_finds_goes(missing: set[tuple[str, str]]) -> None:
    every = tuple(sorted(missing))
    half = every[::2]
    assert gone(every, half, ()) == half
    assert gone(every, every, half[:1]) == (() if half else every)
    assert set(sample(every)) <= missing
    assert len(sample(every)) == min(len(every), belief.FEW)


def information(guid: str = GUID) -> ClusterInformation:
    spec = ClusterInformationSpec(cluster_guid=guid, datastore_ready=True)
    return ClusterInformation(metadata=Metadata(name="default"), spec=spec)


def test_whose_datastore_it_is() -> None:
    assert wrong_cluster("", None) == wrong_cluster("", information()) == wrong_cluster(GUID, information()) == ""
    assert "ClusterInformation is gone" in wrong_cluster(GUID, None)
    assert "another cluster" in wrong_cluster(GUID, information("b" * 32))
    assert "GUID is none" in wrong_cluster(GUID, information(""))


# --- a view over a datastore that can do all of that ---------------------------------------------------------------


class Moody(MemoryStore):
    """A datastore in memory with the faults of real ones, switched on by a test."""

    def __init__(self) -> None:
        super().__init__()
        self.away = self.silent = False
        self.slow = 0.0
        self.hidden: dict[type[Resource], set[str]] = {}
        """Names that are left out of lists of a kind."""
        self.everywhere = False
        """They are not found by name either."""
        self.unreadable = False
        """Those that are left out cannot be read by this version."""
        self.meanwhile: dict[int, Callable[[], Awaitable[object]]] = {}
        """What happens after a kind's list of endpoints of this number."""
        self.listed: list[type[Resource]] = []
        self.gets: list[type[Resource]] = []
        self.writes = 0
        self.cut = asyncio.Event()

    async def _mood(self) -> None:
        await asyncio.sleep(self.slow)
        if self.away:
            raise Unavailable("connection refused")

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        self.gets.append(kind)
        await self._mood()
        if self.unreadable and name in self.hidden.get(kind, ()):
            raise NotSupported(f"a stored {kind.KIND.kind}({name}) is not known to this version: upgrade")
        if self.everywhere and name in self.hidden.get(kind, ()):
            return await super().get(kind, f"no-{name}", namespace)
        return await super().get(kind, name, namespace)

    async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
        await self._mood()
        self.listed.append(kind)
        found = await super().list(kind, namespace)
        items = tuple(one for one in found.items if one.name not in self.hidden.get(kind, ()))
        if kind is WorkloadEndpoint and (then := self.meanwhile.pop(self.listed.count(kind), None)) is not None:
            await then()
        return Listing(items, found.revision)

    async def create(self, obj: R) -> R:
        await self._mood()
        self.writes += 1
        return await super().create(obj)

    async def watch(self, kind: type[R], revision: str) -> AsyncIterator[tuple[Event[R], ...]]:
        """Until the connection is cut; while it is silent it stays, and tells nothing."""
        await self._mood()
        async for batch in super().watch(kind, revision):
            if self.cut.is_set():
                raise Compacted(kind.KIND.plural)
            if not self.silent:
                yield batch

    async def cut_watches(self) -> None:
        """Of endpoints: the history is gone, too."""
        self.cut.set()
        await super().create(endpoint("cut"))
        await super().delete(WorkloadEndpoint, "cut", "red")
        self.cut.clear()


def endpoint(name: str) -> WorkloadEndpoint:
    spec = WorkloadEndpointSpec(
        orchestrator="k8s", node=NODE, pod=name, container_id="c", interface_name=f"cali{name}", endpoint="eth0"
    )
    return WorkloadEndpoint(metadata=Metadata(name=name, namespace="red"), spec=spec)


@dataclass
class Town:
    """A cluster's datastore, and the view of one agent."""

    store: Moody = field(default_factory=Moody)
    states: list[DesiredState] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.datastore = Datastore(self.store)
        self.view = View(NODE, self.datastore, self.states.append)

    @property
    def interfaces(self) -> set[str]:
        return set(self.states[-1].endpoints) if self.states else set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.view.follow(kind)) for kind in (*INPUTS, *ALSO)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def soon(self, look: Callable[[], Any], seconds: float = PATIENCE) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while not look():
            assert asyncio.get_running_loop().time() < deadline, (self.interfaces, self.datastore.disbelief)
            await asyncio.sleep(0.005)

    def why(self, kind: type[Resource]) -> str:
        """Why lists of a kind are not taken."""
        return self.view.following.words[kind].why


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    one = Town()
    await one.store.create(information())
    await one.store.create(Namespace(metadata=Metadata(name="red")))
    for name in "abcdefghijkl":
        await one.store.create(endpoint(name))
    async with one.running():
        await one.soon(lambda: len(one.interfaces) == 12)
        yield one


def interfaces(names: str) -> set[str]:
    return {f"cali{name}" for name in names}


async def test_guid_is_learnt(town: Town) -> None:
    await town.soon(lambda: town.datastore.guid == GUID)
    assert (town.datastore.away, town.datastore.disbelief) == ("", "")


async def test_list_that_comes_back_empty_takes_nothing_away(town: Town) -> None:
    """At a newer revision, after a watch that lost its history; whatever is asked for by name is still there."""
    town.store.hidden[WorkloadEndpoint] = set("abcdefghijkl")
    before = len(town.store.listed)
    await town.store.cut_watches()
    await town.soon(lambda: "is missing from the list, and is there" in town.why(WorkloadEndpoint))
    assert town.store.listed[before:].count(WorkloadEndpoint) >= 2
    assert town.interfaces == interfaces("abcdefghijkl")
    town.store.hidden.clear()
    await town.store.create(endpoint("m"))
    await town.soon(lambda: town.interfaces == interfaces("abcdefghijklm"))
    assert town.why(WorkloadEndpoint) == ""


async def test_list_that_lacks_a_few_is_not_believed_either(town: Town) -> None:
    town.store.hidden[WorkloadEndpoint] = {"a"}
    await town.store.cut_watches()
    await town.soon(lambda: "red/a is missing" in town.why(WorkloadEndpoint))
    assert town.interfaces == interfaces("abcdefghijkl")


@pytest.mark.parametrize("names", ["ab", "abcdefghijk"])
async def test_what_really_went_while_nobody_watched_goes(town: Town, names: str) -> None:
    town.store.hidden[WorkloadEndpoint], town.store.everywhere = set(names), True
    before = len(town.store.listed)
    await town.store.cut_watches()
    await town.soon(lambda: town.interfaces == interfaces("abcdefghijkl") - interfaces(names))
    assert town.store.listed[before:].count(WorkloadEndpoint) == (1 if len(names) <= belief.FEW else 2)
    assert town.datastore.disbelief == ""


async def test_what_this_version_cannot_read_goes(town: Town) -> None:
    """It is not in lists, and asking for it is refused: another version has written it."""
    town.store.hidden[WorkloadEndpoint], town.store.unreadable = {"a"}, True
    await town.store.cut_watches()
    await town.soon(lambda: town.interfaces == interfaces("bcdefghijkl"))
    assert town.why(WorkloadEndpoint) == town.datastore.disbelief == ""


async def test_datastore_whose_information_cannot_be_read_is_waited_for(town: Town) -> None:
    await town.soon(lambda: town.datastore.guid == GUID)
    town.store.hidden[ClusterInformation], town.store.unreadable = {"default"}, True
    await town.store.cut_watches()
    await town.soon(lambda: "is not known to this version" in town.why(WorkloadEndpoint))
    town.store.hidden.clear()
    await town.store.create(endpoint("m"))
    await town.soon(lambda: town.interfaces == interfaces("abcdefghijklm"))


async def test_what_goes_between_two_looks_goes(town: Town) -> None:
    """Many are being deleted while their watch is away: the second list lacks more than the first."""
    town.store.hidden[WorkloadEndpoint], town.store.everywhere = set("abcdefghi"), True
    before = town.store.listed.count(WorkloadEndpoint)
    town.store.meanwhile[before + 1] = lambda: MemoryStore.delete(town.store, WorkloadEndpoint, "j", "red")
    await town.store.cut_watches()
    await town.soon(lambda: town.interfaces == interfaces("kl"))
    assert town.store.listed.count(WorkloadEndpoint) == before + 2


def endpoint_at(name: str, revision: int) -> WorkloadEndpoint:
    return changed(endpoint(name), resource_version=str(revision))


async def test_what_is_written_while_a_list_is_looked_into_stays(town: Town) -> None:
    """A pod's endpoint went unseen, and is made anew by an ADD, while it is asked for by name."""
    await town.soon(lambda: len(town.view.following.words) == len((*INPUTS, *ALSO)))
    listing = await town.store.list(WorkloadEndpoint)
    again = int(listing.revision) + 1
    town.view.put(endpoint_at("a", again))
    town.view.complete(WorkloadEndpoint, listing.revision, [("red", "a"), ("red", "b")])
    assert town.view.objects(WorkloadEndpoint)["red", "a"][0] == again
    await town.soon(lambda: town.interfaces == interfaces("acdefghijkl"))


async def test_list_that_lags_behind_is_not_taken(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    await town.soon(lambda: "workloadendpoints.projectcalico.org" in town.view.revisions())
    town.view._seen[WorkloadEndpoint] += 100
    await town.store.cut_watches()
    await town.soon(lambda: "has been seen" in town.why(WorkloadEndpoint))
    assert town.interfaces == interfaces("abcdefghijkl")
    assert town.datastore.disbelief == "", "it may be one server that is behind"
    for number in range(110):
        await town.store.create(Namespace(metadata=Metadata(name=f"n{number}")))
    await town.soon(lambda: town.why(WorkloadEndpoint) == "")
    assert caplog.text.count("looking again") < 30


async def test_history_that_was_rewritten_is_not_believed(town: Town) -> None:
    """Restored from a backup, and gone on since: revisions are higher, and an object is older than it was seen."""
    objects = town.view._held[WorkloadEndpoint]
    await town.store.create(Namespace(metadata=Metadata(name="later")))
    revision, one = objects["red", "a"]
    objects["red", "a"] = revision + 12, changed(one, labels={"app": "later"})
    await town.store.cut_watches()
    await town.soon(lambda: "not the history that was" in town.datastore.disbelief)
    with pytest.raises(Unavailable, match="not believed"):
        await town.datastore.create(endpoint("z"))
    assert town.interfaces == interfaces("abcdefghijkl")


async def test_object_that_is_older_and_the_same_is_no_other_history(town: Town) -> None:
    """A pod has become ready: who reads it sees a newer revision, who is told of endpoints only does not."""
    objects = town.view._held[WorkloadEndpoint]
    await town.store.create(Namespace(metadata=Metadata(name="later")))
    revision, one = objects["red", "a"]
    objects["red", "a"] = revision + 12, changed(one, resource_version=str(revision + 12))
    before = town.store.listed.count(WorkloadEndpoint)
    await town.store.cut_watches()
    await town.soon(lambda: town.store.listed.count(WorkloadEndpoint) > before)
    await town.store.create(endpoint("m"))
    await town.soon(lambda: town.interfaces == interfaces("abcdefghijklm"))
    assert town.why(WorkloadEndpoint) == ""
    assert town.store.listed.count(WorkloadEndpoint) == before + 1


async def test_datastore_that_was_emptied_or_is_another_clusters(town: Town) -> None:
    """Nothing is taken, nothing written, until the cluster's own is back, or a person says that this is it."""
    old, new = town.store, Moody()
    await town.soon(lambda: town.datastore.guid == GUID)
    for number in range(100):
        await new.create(Namespace(metadata=Metadata(name=f"n{number}")))
    town.datastore._store = new
    await old.close()  # as a server that was stopped: its watches end
    await town.soon(lambda: "ClusterInformation is gone" in town.datastore.disbelief)
    await new.create(information("b" * 32))
    await town.soon(lambda: "another cluster" in town.datastore.disbelief)
    writes = new.writes
    with pytest.raises(Unavailable, match="not believed"):
        await town.datastore.create(endpoint("z"))
    assert new.writes == writes
    assert town.interfaces == interfaces("abcdefghijkl")
    states = len(town.states)
    town.datastore.accept()
    town.view.begin_again()
    assert not town.view.in_sync.is_set()
    await town.soon(town.view.in_sync.is_set)
    await town.soon(lambda: town.interfaces == set())
    assert not any(set(state.endpoints) < interfaces("abcdefghijkl") for state in town.states[states:-1]), "no half"
    assert (town.datastore.guid, town.datastore.disbelief) == ("b" * 32, "")


async def test_datastore_of_the_same_cluster_that_comes_back_is_believed_again(town: Town) -> None:
    await town.soon(lambda: town.datastore.guid == GUID)
    old, empty = town.store, Moody()
    town.datastore._store = empty
    await old.cut_watches()
    with pytest.raises(Unavailable):
        await town.datastore.check()
    await town.soon(lambda: bool(town.datastore.disbelief))
    town.datastore._store = old
    await town.soon(lambda: town.datastore.disbelief == "")
    await old.create(endpoint("m"))
    await town.soon(lambda: town.interfaces == interfaces("abcdefghijklm"))


# --- away, slow, silent -------------------------------------------------------------------------------------------


async def test_away_and_back(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    """One asks for all, and it is told once."""
    caplog.set_level("INFO")
    town.store.away = True
    town.store.gets.clear()
    await town.store.cut_watches()
    await town.soon(lambda: town.datastore.away == "connection refused")
    await town.soon(lambda: town.store.gets.count(ClusterInformation) == 2)
    assert town.interfaces == interfaces("abcdefghijkl")
    assert town.view.serves(Namespace)
    assert not town.view.known.current(WorkloadEndpoint)
    assert caplog.text.count("the datastore is away") == 1
    town.store.away = False
    await MemoryStore.create(town.store, endpoint("m"))
    await town.soon(lambda: town.interfaces == interfaces("abcdefghijklm"))
    assert town.datastore.away == ""
    assert "the datastore is back" in caplog.text


async def test_slow(town: Town) -> None:
    clock = 0.0
    slow = Datastore(town.store, lambda: clock)
    town.store.slow = 0.2
    call = asyncio.create_task(slow.list(Namespace))
    await asyncio.sleep(0.05)
    assert slow.away == ""
    clock = datastore.SLOW + 1
    assert slow.away == "no answer for 6 s"
    await call
    assert (slow.away, slow.age) == ("", 0.0)


async def test_watch_that_fell_silent_is_found_out(town: Town) -> None:
    town.store.silent = True
    await town.store.create(GlobalNetworkPolicy(metadata=Metadata(name="deny")))
    await town.store.create(endpoint("m"))
    await asyncio.sleep(0.05)
    assert town.interfaces == interfaces("abcdefghijkl")
    town.store.silent = False
    probing = asyncio.create_task(probe.probe(town.view, every=0.002, late=0.02))
    try:
        await town.soon(lambda: town.interfaces == interfaces("abcdefghijklm"))
    finally:
        probing.cancel()
    assert town.view.following.words[WorkloadEndpoint].listed


async def test_probe_of_a_watch_that_is_well_lists_nothing_again(town: Town) -> None:
    before = town.view.following.words[WorkloadEndpoint].limit
    probing = asyncio.create_task(probe.probe(town.view, every=0.001, late=0.02))
    town.store.listed.clear()
    await town.soon(lambda: town.store.listed.count(WorkloadEndpoint) >= 2)
    probing.cancel()
    assert town.view.following.words[WorkloadEndpoint].limit is before


async def test_probe_does_not_mind_a_revision_that_means_nothing(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    """A pod has become ready, say: its endpoint is the same, and no watch tells of it."""
    objects = town.view._held[WorkloadEndpoint]
    for key, (revision, one) in list(objects.items()):
        objects[key] = revision - 1, one
    probing = asyncio.create_task(probe.probe(town.view, every=0.001, late=0.02))
    town.store.listed.clear()
    await town.soon(lambda: town.store.listed.count(WorkloadEndpoint) >= 2)
    probing.cancel()
    assert "is silent" not in caplog.text
