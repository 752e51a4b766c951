"""An agent that dies at any operation of ADD, of what follows its answer, and of DEL: what was answered stays true.

    pods come and go ─► death before operation k, on datastore or journal ─► another agent ─► DEL ─► nothing left
                                 k = 0, 1, 2, ... until the first agent survives

The datastore is the one in memory; the journal is what was on disk at the moment of death.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest

from tortie.agent.cni.records import Records
from tortie.agent.cni.undo import on_failure
from tortie.agent.endpoints import follow_pods
from tortie.agent.holdings import Holdings, handle_of
from tortie.agent.known import ALSO
from tortie.agent.netconf import NetConf
from tortie.agent.pending import Note, Pending
from tortie.agent.pod_mtu import PodMtu
from tortie.agent.stock import Stock
from tortie.agent.view import Progress, View
from tortie.base.addr import IP
from tortie.calc.admission import bootstrap
from tortie.calc.cluster import INPUTS
from tortie.calc.workloads import ENDPOINT, endpoint_of_pod
from tortie.ipam.assign import Ipam
from tortie.ipam.block import held_slots
from tortie.ipam.check import check
from tortie.ipam.ready import MOST, ready_handle
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMHandle, IPPool, IPPoolSpec
from tortie.model.k8s import Container, Namespace, Pod, PodSpec
from tortie.model.meta import Metadata, Resource
from tortie.model.node import Node
from tortie.model.store import Event, Listing, Store
from tortie.model.workload import WorkloadEndpoint, endpoint_name, interface_name
from tortie.policy.selector import parse
from tortie.store.memory import MemoryStore

R = TypeVar("R", bound=Resource)
NODE, RED, NETWORK = "node1", "red", "net"
READY = ready_handle(NODE)


class Killed(BaseException):
    """The process ends here. Nobody catches it, as nobody catches SIGKILL."""


@dataclass
class Fate:
    """Death before operation number `at`; then nothing is done any more. `journal` is what it leaves on disk."""

    directory: Path
    at: int = -1
    passed: int = 0
    dead: bool = False
    journal: dict[str, bytes] = field(default_factory=dict)

    def step(self) -> None:
        if not self.dead and self.passed == self.at:
            self.dead = True
            self.journal = {file.name: file.read_bytes() for file in self.directory.glob("*")}
        if self.dead:
            raise Killed
        self.passed += 1


class Front:
    """A store that fate looks at before each operation. Sometimes others go first."""

    def __init__(self, store: Store, fate: Fate, dice: random.Random) -> None:
        self.store, self.fate, self.dice = store, fate, dice

    async def turn(self) -> None:
        self.fate.step()
        for _ in range(self.dice.choice((0, 0, 1, 3))):
            await asyncio.sleep(0)

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        await self.turn()
        return await self.store.get(kind, name, namespace)

    async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
        await self.turn()
        return await self.store.list(kind, namespace)

    async def create(self, obj: R) -> R:
        await self.turn()
        return await self.store.create(obj)

    async def update(self, obj: R) -> R:
        await self.turn()
        return await self.store.update(obj)

    async def delete(self, kind: type[R], name: str, namespace: str = "", revision: str = "") -> R:
        await self.turn()
        return await self.store.delete(kind, name, namespace, revision)

    def watch(self, kind: type[R], revision: str) -> AsyncIterator[tuple[Event[R], ...]]:
        return self.store.watch(kind, revision)

    async def close(self) -> None: ...


class FatefulPending(Pending):
    """Whose journal may be cut short before and after each of its files is written, and before one is deleted."""

    fate: Fate

    def _path(self, container_id: str) -> Path:
        self.fate.step()
        return super()._path(container_id)

    def _write(self, note: Note) -> None:
        super()._write(note)
        self.fate.step()


def matches(selector: str, labels: Mapping[str, str]) -> bool:
    return parse(selector).matches(labels)


def conf(pod: str) -> NetConf:
    return NetConf(NETWORK, pod, RED, 0, 1, False, True, False, (), ())


class Life:
    """What of an agent connects pods, without a kernel: every state is enforced as soon as it is there."""

    def __init__(self, store: Store, directory: Path, fate: Fate, dice: random.Random, most: int = MOST) -> None:
        self.store = store
        front = Front(store, fate, dice)
        self.view = View(NODE, store, lambda state: None)
        self.ipam = Ipam(front, NODE, lambda: datetime.now(UTC), matches)
        self.pending = FatefulPending(directory, READY, front, self.view, self.ipam, linger=0.0)
        self.pending.fate = fate
        brisk = {"every": 0.005, "retry": 0.005}
        self.stock = Stock(NODE, self.ipam, self.view.known, matches, lambda: self.pending.ips, most, **brisk)
        self.holdings = Holdings(NODE, front, self.ipam, self.stock, self.pending, directory.with_suffix(".marker"))
        progress = Progress()
        progress.generation = 10**9
        self.records = Records(NODE, front, self.view, progress, self.pending, PodMtu(directory.with_suffix(".mtu")))
        self.bug: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.bug.add_done_callback(lambda bug: bug.exception())  # known

    def _broken(self, bug: BaseException) -> None:
        if not self.bug.done():
            self.bug.set_exception(bug)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.stock.running(self._broken))
            await stack.enter_async_context(self.pending.running(self._broken))
            self.pending.replay()
            self.stock.open()
            following = [asyncio.create_task(self.view.follow(kind)) for kind in (*INPUTS, *ALSO)]
            following.append(asyncio.create_task(follow_pods(NODE, self.store, self.view)))
            stack.callback(lambda: [task.cancel() for task in following])
            await self.view.in_sync.wait()
            yield

    async def add(self, pod: Pod, container: str, answered: dict[str, frozenset[IP]] | None = None) -> None:
        async with AsyncExitStack() as undo:
            got = await self.holdings.take(container, conf(pod.name), "")
            ips = tuple(each.ip for each in got)
            on_failure(undo, self.holdings.give_back, container, conf(pod.name), ips)
            endpoint = endpoint_of_pod(
                pod, node=NODE, container_id=container, interface=interface_name(RED, pod.name), mac="", ips=ips
            )
            await self.records.publish(endpoint, undo)
            undo.pop_all()
        if answered is not None:
            answered[container] = frozenset(ips)

    async def delete(self, pod: str, container: str) -> None:
        await self.records.delete(RED, endpoint_name(NODE, "k8s", pod, ENDPOINT), container)
        await self.holdings.release(container, conf(pod))


async def cluster() -> MemoryStore:
    store = MemoryStore()
    for one in bootstrap("0" * 32):
        await store.create(one)
    await store.create(IPPool(metadata=Metadata(name="pool"), spec=IPPoolSpec(cidr="10.0.0.0/24", block_size=28)))
    await store.create(Node(metadata=Metadata(name=NODE)))
    await store.create(Namespace(metadata=Metadata(name=RED)))
    return store


def pod_object(name: str) -> Pod:
    spec = PodSpec(node_name=NODE, containers=(Container(name="main"),))
    return Pod(metadata=Metadata(name=name, namespace=RED), spec=spec)


async def held(store: Store) -> dict[str, set[IP]]:
    found: dict[str, set[IP]] = {}
    for block in (await store.list(IPAMBlock)).items:
        for slot, attribute in held_slots(block.spec):
            found.setdefault(attribute.handle_id or "", set()).add(block.spec.net[slot])
    return found


async def findings(store: Store, harmless: bool) -> list[str]:
    blocks = (await store.list(IPAMBlock)).items
    found = check(blocks, (await store.list(IPAMHandle)).items, (await store.list(BlockAffinity)).items)
    return [str(each) for each in found if harmless or not each.harmless]


async def alive(life: Life, work: Callable[[], asyncio.Task[None]]) -> None:
    """Work until it is done, or the agent dies in a task of its own."""
    task = work()
    await asyncio.wait((task, life.bug), return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if life.bug.done():
        life.bug.result()
    task.result()


PODS = [f"p{number}" for number in range(5)]


@dataclass
class Town:
    """A datastore, and who was promised what on it."""

    store: MemoryStore
    directory: Path
    answered: dict[str, frozenset[IP]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)

    async def day(self, life: Life) -> None:
        """Pods come together; one goes at once, one later; one is attached again."""
        pods = {name: await self.store.get(Pod, name, RED) for name in PODS}
        await asyncio.gather(*(life.add(pods[name], f"{name}-a", self.answered) for name in PODS[:4]))
        await self._gone(life, "p0")
        await life.pending.all_settled()
        await self._gone(life, "p1")
        await life.add(pods["p2"], "p2-b", self.answered)
        await life.add(pods["p4"], "p4-a", self.answered)

    async def _gone(self, life: Life, pod: str) -> None:
        self.deleted.add(f"{pod}-a")
        await life.delete(pod, f"{pod}-a")

    async def what_was_answered_is_true(self) -> None:
        """Every container that has got an answer has its addresses, nobody else has them, and its pod its endpoint."""
        found = await held(self.store)
        live = {container: ips for container, ips in self.answered.items() if container not in self.deleted}
        twice = [ip for ip, count in Counter(ip for ips in live.values() for ip in ips).items() if count > 1]
        assert not twice
        for container, ips in live.items():
            assert found.get(handle_of(NETWORK, container)) == ips, container
        endpoints = {one.spec.pod: one for one in (await self.store.list(WorkloadEndpoint)).items}
        for name in {container.partition("-")[0] for container in live}:
            newest = max(container for container in live if container.startswith(name))
            assert endpoints[name].spec.container_id >= newest
        assert await findings(self.store, harmless=False) == []


async def lived(town: Town, at: int, seed: int) -> bool:
    """Whether the first agent survived its day; the second puts everything right."""
    dice = random.Random(seed)
    fate = Fate(town.directory, at)
    first = Life(town.store, town.directory, fate, dice)
    survived = False
    with contextlib.suppress(Killed, asyncio.CancelledError):
        async with first.running():
            await alive(first, lambda: asyncio.create_task(town.day(first)))
            survived = True
    if fate.dead:
        for file in town.directory.glob("*"):
            file.unlink()
        for name, body in fate.journal.items():
            (town.directory / name).write_bytes(body)
    second = Life(town.store, town.directory, Fate(town.directory), dice)
    async with second.running():
        await second.pending.all_settled()
        await town.what_was_answered_is_true()
        late = await town.store.create(pod_object("late"))
        await second.add(late, "late-a", town.answered)
        await second.pending.all_settled()
        await town.what_was_answered_is_true()
        for container in [f"{name}-{each}" for name in PODS for each in "ab"] + ["late-a"]:
            await second.delete(container.partition("-")[0], container)
        assert set(await held(town.store)) <= {READY}
        assert (await town.store.list(WorkloadEndpoint)).items == ()
    assert await held(town.store) == {}
    assert [each for each in await findings(town.store, harmless=True) if "is pending" not in each] == []
    assert (await town.store.list(IPAMHandle)).items == ()
    assert not list(town.directory.glob("*"))
    return survived and not fate.dead


@pytest.mark.parametrize("seed", range(3))
async def test_death_before_every_operation(tmp_path: Path, seed: int) -> None:
    at = 0
    while True:
        directory = tmp_path / str(at)
        directory.mkdir()
        store = await cluster()
        for name in PODS:
            await store.create(pod_object(name))
        if await lived(Town(store, directory), at, seed):
            break
        at += 1
    assert at > 40
