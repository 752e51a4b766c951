"""What an agent leaves for the next one: the snapshot, the addresses that are ready, the pods that went."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import stat
import threading
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from ipaddress import ip_interface
from pathlib import Path

import msgspec
import pytest

from tortie.agent import departures as leaving
from tortie.agent import restart, snapshot
from tortie.agent.datastore import Datastore
from tortie.agent.departures import Departure, Departures
from tortie.agent.known import ALSO
from tortie.agent.metrics import Metrics
from tortie.agent.pending import Pending
from tortie.agent.restart import Restart
from tortie.agent.shelfnote import ShelfNote
from tortie.agent.snapshot import ABOUT, About, Snapshots, read, write
from tortie.agent.standing import Standing
from tortie.agent.stock import Stock
from tortie.agent.view import Progress, View
from tortie.base.addr import parse_ip
from tortie.base.errors import NotFound, Unavailable
from tortie.calc.cluster import INPUTS
from tortie.calc.state import DesiredState
from tortie.calc.workloads import endpoint_of_pod
from tortie.ipam.assign import Ipam
from tortie.ipam.handover import Transfer
from tortie.ipam.ready import ready_handle
from tortie.model.ipam import IPPool, IPPoolSpec
from tortie.model.k8s import Container, Namespace, Pod, PodSpec
from tortie.model.meta import Metadata, Resource
from tortie.model.node import ClusterInformation, ClusterInformationSpec, Node
from tortie.model.secret import Secret
from tortie.model.workload import WorkloadEndpoint
from tortie.policy.selector import parse
from tortie.store.memory import MemoryStore

NODE, RED, GUID = "node1", "red", "a" * 32
PATIENCE = 10.0


def matches(selector: str, labels: Mapping[str, str]) -> bool:
    return parse(selector).matches(labels)


def pod(name: str) -> Pod:
    spec = PodSpec(node_name=NODE, containers=(Container(name="main"),))
    return Pod(metadata=Metadata(name=name, namespace=RED), spec=spec)


class Switched(MemoryStore):
    """A datastore that a test can switch off."""

    away = False

    def _of(self, kind: type[Resource]) -> dict[tuple[str, str], bytes]:
        if self.away:
            raise Unavailable("connection refused")
        return super()._of(kind)


class Looked:
    """In place of the machine's links, which no test here depends on."""

    async def look_here(self) -> None: ...


class Agent:
    """The parts of an agent that know something, over a datastore and a run directory."""

    def __init__(self, store: MemoryStore, run_dir: Path) -> None:
        self.states: list[DesiredState] = []
        self.store = Datastore(store)
        self.view = View(NODE, self.store, self.states.append)
        self.ipam = Ipam(self.store, NODE, lambda: datetime.now(UTC), matches)
        self.pending = Pending(run_dir / "pending", ready_handle(NODE), self.store, self.view, self.ipam)
        note = ShelfNote(run_dir / "ready.json")
        self.stock = Stock(NODE, self.ipam, self.view.known, matches, lambda: self.pending.ips, 4, note=note)
        self.departures = Departures(run_dir / "leaving", self.store, self.view, self.ipam)
        self.stock.nobody_there = lambda: bool(self.store.away or self.store.disbelief)
        self.pending.handing_over = self.stock.forget
        self.pending.blocked, self.departures.settled = self.departures.blocks, self.pending.settled
        self.departures.done = self.pending.hurry
        self.snapshots = Snapshots(run_dir / "snapshot", NODE, "memory:", self.view)
        self.restart = Restart(
            self.view,
            self.snapshots,
            self.pending,
            self.departures,
            self.stock,
            Looked(),  # type: ignore[arg-type]
        )
        self.restored = False
        self.bugs: list[BaseException] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Agent]:
        """In the order of the agent's own start and end."""
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.stock.running(self.bugs.append))
            await stack.enter_async_context(self.pending.running(self.bugs.append))
            group = await stack.enter_async_context(asyncio.TaskGroup())
            ours = asyncio.current_task()
            self.restored = await self.restart.begin(group)
            for kind in (*INPUTS, *ALSO):
                group.create_task(self.view.follow(kind))
            group.create_task(self._open())
            try:
                yield self
            finally:
                for task in list(group._tasks):  # type: ignore[attr-defined]
                    if task is not ours:
                        task.cancel()
        await self.snapshots.close()
        assert self.bugs == []

    async def _open(self) -> None:
        while True:
            with contextlib.suppress(Unavailable):
                await self.store.check()
                self.stock.open()
                return
            await asyncio.sleep(0.05)

    @property
    def interfaces(self) -> set[str]:
        return set(self.states[-1].endpoints) if self.states else set()

    async def connect(self, name: str, container: str) -> str:
        """What ADD does, with an address that is ready; the address."""
        choices = self.stock.choices(RED, (4,))
        assert choices is not None
        got = await self.stock.take(choices)
        assert got is not None
        self.pending.promise(container, Transfer(got, f"net.{container}", {"pod": name, "namespace": RED}), "")
        ips = tuple(each.ip for each in got)
        interface = f"cali{container}"
        self.pending.note(
            endpoint_of_pod(pod(name), node=NODE, container_id=container, interface=interface, mac="", ips=ips)
        )
        self.pending.settle(container)
        return str(ips[0])


async def soon(look: object) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not look():  # type: ignore[operator]
        assert asyncio.get_running_loop().time() < deadline, "it does not come about"
        await asyncio.sleep(0.005)


@pytest.fixture
async def store() -> Switched:
    one = Switched()
    spec = ClusterInformationSpec(cluster_guid=GUID, datastore_ready=True)
    await one.create(ClusterInformation(metadata=Metadata(name="default"), spec=spec))
    await one.create(Node(metadata=Metadata(name=NODE)))
    await one.create(Namespace(metadata=Metadata(name=RED)))
    await one.create(IPPool(metadata=Metadata(name="pool"), spec=IPPoolSpec(cidr="10.0.0.0/24", block_size=28)))
    for name in "abc":
        await one.create(pod(name))
    return one


@pytest.fixture(autouse=True)
def quick() -> AsyncIterator[None]:
    """No test waits as long as a machine does."""
    before = restart.GRACE, snapshot.PAUSE, leaving.PATIENCE
    restart.GRACE, snapshot.PAUSE, leaving.PATIENCE = 0.2, 0.02, 0.2
    yield  # type: ignore[misc]
    restart.GRACE, snapshot.PAUSE, leaving.PATIENCE = before


# --- the files ----------------------------------------------------------------------------------------------------


async def left_behind(store: Switched, run_dir: Path) -> set[str]:
    """An agent with a pod that runs and is killed; the interfaces that it had."""
    one = Agent(store, run_dir)
    async with one.running():
        await soon(lambda: one.view.live)
        await one.connect("a", "c1")
        await one.pending.settled("c1")
        await soon(lambda: one.view.objects(WorkloadEndpoint))
        return one.interfaces


async def test_files_are_for_root_and_have_no_secrets(store: Switched, tmp_path: Path) -> None:
    await store.create(Secret(metadata=Metadata(name="bgp", namespace="kube-system"), data={"key": "aHVudGVyMg=="}))
    await left_behind(store, tmp_path)
    directory = tmp_path / "snapshot"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    files = list(directory.iterdir())
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert not [file for file in files if "secret" in file.name]
    found = snapshot.read(directory, NODE, "memory:")
    assert found is not None
    assert found.about.guid == GUID
    assert {type(one) for one in found.objects} >= {WorkloadEndpoint, IPPool, Node, Namespace, ClusterInformation}


async def test_only_what_changed_is_written(store: Switched, tmp_path: Path) -> None:
    one = Agent(store, tmp_path)
    async with one.running():
        await soon((tmp_path / "snapshot" / ABOUT).exists)
        before = {file: file.stat().st_mtime_ns for file in (tmp_path / "snapshot").iterdir()}
        await store.create(Namespace(metadata=Metadata(name="blue")))
        kind, number = snapshot.part_of(Namespace, "", "blue")
        new = tmp_path / "snapshot" / f"{kind.KIND.key}.{number}"
        await soon(new.exists)
        same = {file for file, when in before.items() if file.stat().st_mtime_ns == when}
        assert {file.name for file in before.keys() - same} <= {ABOUT, "pods.0", new.name}
        await store.delete(Namespace, "blue")
        await soon(lambda: not new.exists())


async def test_directory_that_cannot_be_written_is_tried_again(
    store: Switched, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without waiting for the next change."""
    directory, away = tmp_path / "snapshot", tmp_path / "away"
    one = Agent(store, tmp_path)
    async with one.running():
        await soon(lambda: one.view.live and one.view.known.current(*ALSO))
        await soon(lambda: (directory / ABOUT).exists() and not one.snapshots._due)
        directory.rename(away)
        directory.touch()
        await store.create(Namespace(metadata=Metadata(name="late")))
        await soon(lambda: "an agent that starts while the datastore is away knows less" in caplog.text)
        directory.unlink()
        away.rename(directory)
        await soon(lambda: "late" in _names(directory))
    assert caplog.text.count("knows less") == 1


async def test_write_that_is_cut_short_is_made_up_for_at_the_end(store: Switched, tmp_path: Path) -> None:
    """The agent is stopped while a thread is still to write."""
    loop, gate = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    one = Agent(store, tmp_path)
    async with one.running():
        await soon(lambda: one.view.live and one.view.known.current(*ALSO))
        await soon(lambda: (tmp_path / "snapshot" / ABOUT).exists() and not one.snapshots._due)
        busy = loop.run_in_executor(None, gate.wait)
        await store.create(Namespace(metadata=Metadata(name="late")))
        await soon(lambda: ("", "late") in one.view.objects(Namespace) and not one.snapshots._due)
        loop.call_later(0.05, gate.set)
    await busy
    assert "late" in _names(tmp_path / "snapshot")


def _names(directory: Path) -> set[str]:
    found = read(directory, NODE, "memory:")
    return {each.name for each in found.objects} if found is not None else set()


def test_half_a_file_does_not_stay_on_a_full_disk(tmp_path: Path) -> None:
    about = About(snapshot.FORMAT, NODE, "memory:", GUID, 0.0, {})
    write(tmp_path, about, {(Pod, 0): [pod("a")]})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path, about, {(Pod, 0): [pod("b")]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("*.new"))
    found = read(tmp_path, NODE, "memory:")
    assert found is not None
    assert [one.name for one in found.objects] == ["a"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda directory: (directory / ABOUT).write_text("{"), "snapshot is ignored"),
        (lambda directory: _about(directory, format=7), "its format is 7"),
        (lambda directory: _about(directory, node="node2"), "it is of node node2, this is node1"),
        (lambda directory: _about(directory, datastore="/x"), "it is of datastore /x, this is memory:"),
        (
            lambda directory: os.truncate(part := next(directory.glob("ippools*")), part.stat().st_size - 3),
            "a part is damaged",
        ),
        (lambda directory: (directory / ABOUT).unlink(), ""),
    ],
    ids=["no JSON", "format", "node", "datastore", "cut", "no about"],
)
async def test_what_is_not_ours_or_damaged_is_ignored(
    store: Switched, tmp_path: Path, spoil: object, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    await left_behind(store, tmp_path)
    spoil(tmp_path / "snapshot")  # type: ignore[operator]
    caplog.clear()
    two = Agent(store, tmp_path)
    async with two.running():
        assert not two.restored
        await soon(lambda: two.view.live)
        lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert [says in record.getMessage() for record in lines] == ([True] if says else [])


def _about(directory: Path, **changes: object) -> None:
    about = msgspec.json.decode((directory / ABOUT).read_bytes(), type=About)
    (directory / ABOUT).write_bytes(msgspec.json.encode(msgspec.structs.replace(about, **changes)))


# --- a restart while the datastore is away ------------------------------------------------------------------------


async def test_agent_that_starts_while_the_datastore_is_away_goes_on(store: Switched, tmp_path: Path) -> None:
    had = await left_behind(store, tmp_path)
    store.away = True
    two = Agent(store, tmp_path)
    async with two.running():
        await soon(lambda: two.states)
        assert two.interfaces == had
        assert two.view.snapshot_from is not None
        assert two.store.guid == GUID
        store.away = False
        await soon(lambda: two.view.live)
        assert two.view.snapshot_from is None
        await store.create(pod("later"))
        assert all(set(state.endpoints) == had for state in two.states), "without a gap"


async def test_nothing_is_published_twice_when_the_datastore_is_there(store: Switched, tmp_path: Path) -> None:
    had = await left_behind(store, tmp_path)
    two = Agent(store, tmp_path)
    async with two.running():
        assert two.restored
        await soon(lambda: two.states)
        assert two.view.live
        assert two.interfaces == had


async def test_restart_over_an_emptied_datastore_keeps_what_was(store: Switched, tmp_path: Path) -> None:
    had = await left_behind(store, tmp_path)
    two = Agent(MemoryStore(), tmp_path)
    async with two.running():
        await soon(lambda: two.states)
        assert two.interfaces == had
        assert "ClusterInformation is gone" in two.store.disbelief


async def test_addresses_that_were_ready_are_given_out_without_a_datastore(store: Switched, tmp_path: Path) -> None:
    """And never one that a container was promised, or has."""
    one = Agent(store, tmp_path)
    taken = set()
    async with one.running():
        await soon(lambda: one.view.live)
        taken.add(await one.connect("a", "c1"))
        await one.pending.settled("c1")
        await soon(lambda: len(one.stock.ready) >= 2)
        await soon(lambda: one.view.objects(WorkloadEndpoint))
        store.away = True
        taken.add(await one.connect("b", "c2"))
        ready = {str(each.ip) for each in one.stock.ready}
    assert not ready & taken
    two = Agent(store, tmp_path)
    async with two.running():
        await soon(lambda: two.states)
        assert two.interfaces == {"calic1", "calic2"}, "the snapshot's, and the journal's"
        assert {str(each.ip) for each in two.stock.ready} <= ready
        third = await two.connect("c", "c3")
        assert third in ready
        assert two.interfaces == {"calic1", "calic2", "calic3"}
        store.away = False
        await two.pending.settled("c2", "c3")
        held = [(await two.ipam.ips_by_handle(f"net.c{number}"))[0] for number in (1, 2, 3)]
        assert {str(ip) for ip in held} == taken | {third}


def test_note_of_what_is_ready(tmp_path: Path) -> None:
    choice = (4, ("10.0.0.0/24",))
    one, two = ip_interface("10.0.0.1/28"), ip_interface("10.0.0.2/28")
    note = ShelfNote(tmp_path / "ready.json")
    assert note.read() == {}
    note.write({choice: [one, two]})
    assert stat.S_IMODE((tmp_path / "ready.json").stat().st_mode) == 0o600
    assert ShelfNote(tmp_path / "ready.json").read() == {choice: [one, two]}
    note.forget([parse_ip("10.0.0.1")], {choice: [two]})
    assert ShelfNote(tmp_path / "ready.json").read() == {choice: [two]}
    before = (tmp_path / "ready.json").stat().st_mtime_ns
    note.forget([parse_ip("10.0.0.9")], {choice: [two]})
    assert (tmp_path / "ready.json").stat().st_mtime_ns == before, "it was not in it"
    (tmp_path / "ready.json").write_text("[")
    assert ShelfNote(tmp_path / "ready.json").read() == {}


# --- what is told of it ---


async def test_status_and_metrics_of_an_outage(store: Switched, tmp_path: Path) -> None:
    await left_behind(store, tmp_path)
    store.away = True
    two = Agent(store, tmp_path)
    parts = two.view, Progress(), two.stock, two.pending, two.departures
    reports = {"CalculationGraph": {"live": True, "ready": True, "reason": ""}}
    standing = Standing(NODE, "memory:", *parts, lambda: reports, lambda: time.time() + 60)
    metrics = Metrics()
    metrics.watch(standing)

    def gauge(name: str) -> float | None:
        return metrics.registry.get_sample_value(f"tortie_{name}")

    assert (gauge("datastore_connected"), gauge("datastore_snapshot"), gauge("pending_pods")) == (1, 0, 0)
    async with two.running():
        await soon(lambda: two.states)
        assert (gauge("datastore_connected"), gauge("datastore_snapshot")) == (0, 1)
        assert 60 <= (gauge("datastore_age_seconds") or 0) < 120
        two.departures.note(Departure("c1", RED, "x", ("net.c1",)))
        assert gauge("pending_pods") == 1
        peers = [{"state": "Established"}, {"state": "Idle"}]
        answer = standing.answer({"bird": {"state": "ready"}, "peers": peers}, {"asked": False})
        assert answer["wrong"] == {
            "Datastore": "it is away: connection refused",
            "BGP": "1 of 2 sessions are up: tortie node status says why",
        }
        assert (answer["datastore"]["source"], answer["datastore"]["connected"]) == ("snapshot", False)
        assert answer["cni"] == {"serves": True, "pods": 0, "ready": 0, "pending": 0, "leaving": 1} | {
            name: answer["cni"][name] for name in ("pods", "ready")
        }
        store.away = False
        await soon(lambda: two.view.live)
        two.store.guid = "b" * 32
        with pytest.raises(Unavailable):
            await two.store.check()
        assert (gauge("datastore_disbelieved"), gauge("datastore_connected")) == (1, 1)
        two.store.guid = GUID


# --- pods that went -----------------------------------------------------------------------------------------------


async def test_pod_that_went_while_the_datastore_was_away(store: Switched, tmp_path: Path) -> None:
    """It is out of the picture at once; the datastore is told by whichever agent is there when it is back."""
    await left_behind(store, tmp_path)
    (name,) = [key for key in store._objects[WorkloadEndpoint.KIND.key] if key[0] == RED]
    store.away = True
    departure = Departure("c1", RED, name[1], ("net.c1",))
    two = Agent(store, tmp_path)
    async with two.running():
        await soon(lambda: two.interfaces == {"calic1"})
        two.departures.note(departure)
        await soon(lambda: two.interfaces == set())
        with pytest.raises(Unavailable, match="has not been told yet"):
            await two.departures.gone("c1")
    three = Agent(store, tmp_path)
    async with three.running():
        await soon(lambda: three.states)
        assert three.interfaces == set()
        store.away = False
        await soon(lambda: three.departures.waiting == 0)
        await three.departures.gone("c1")
        with pytest.raises(NotFound):
            await store.get(WorkloadEndpoint, name[1], RED)
        with pytest.raises(NotFound):
            await three.ipam.ips_by_handle("net.c1")
    assert list((tmp_path / "leaving").iterdir()) == []


async def test_next_container_of_a_pod_is_written_after_the_one_before_has_gone(
    store: Switched, tmp_path: Path
) -> None:
    one = Agent(store, tmp_path)
    async with one.running():
        await soon(lambda: one.view.live)
        await one.connect("a", "c1")
        await one.pending.settled("c1")
        await soon(lambda: one.view.objects(WorkloadEndpoint))
        await soon(lambda: one.stock.ready)
        ((_, name),) = one.view.objects(WorkloadEndpoint)
        store.away = True
        one.departures.note(Departure("c1", RED, name, ("net.c1",)))
        ip = await one.connect("a", "c2")
        assert one.interfaces == {"calic2"}
        with pytest.raises(Unavailable):
            await one.pending.settled("c2")
        store.away = False
        await soon(lambda: not one.pending.waiting and not one.departures.waiting)
        endpoint = await store.get(WorkloadEndpoint, name, RED)
        assert (endpoint.spec.container_id, [str(each) for each in endpoint.spec.ips]) == ("c2", [ip])
        assert one.interfaces == {"calic2"}
