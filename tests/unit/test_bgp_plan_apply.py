"""Going the way of a plan on a datastore: what is written, where it stops, and that it can be begun anew anywhere."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bgp_clusters import mesh, node, peer, reflected, secret
from tortie.base.errors import ConfigError, Unavailable
from tortie.calc.admission import Objects
from tortie.calc.bgp_plan.changes import PLANNED, copied, differing, has_net
from tortie.calc.bgp_plan.moment import Moment
from tortie.calc.bgp_plan.plan import Kind, Plan, plan
from tortie.cli.bgp_plan import stored
from tortie.cli.bgp_plan_apply import Agents, Pause, Say, follow
from tortie.model.ipam import BlockAffinity, IPPool
from tortie.model.meta import R, changed
from tortie.model.node import Node
from tortie.model.secret import Secret
from tortie.model.store import Store
from tortie.store.memory import MemoryStore

BEFORE = mesh()
AFTER = reflected(BEFORE)


@pytest.fixture
async def store() -> Store:
    """With everything that there is before."""
    made = MemoryStore()
    for kind in (*PLANNED, IPPool, BlockAffinity):
        for one in BEFORE.all(kind):
            await made.create(one)
    return made


@dataclass
class Until:
    """Waits for nothing, and gives up, or is interrupted, at the so-manieth moment."""

    gives_up: int = -1
    interrupted: int = -1
    moments: list[Moment] = field(default_factory=list)

    async def until(self, moment: Moment, say: Say) -> str:
        self.moments.append(moment)
        if len(self.moments) == self.gives_up:
            raise Unavailable("n3: no session")
        if len(self.moments) == self.interrupted:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        await asyncio.sleep(0)
        return "there"


async def planned(store: Store, wanted: Objects) -> Plan:
    return plan(await stored(store), wanted)


async def test_all_steps_are_written_one_after_the_other(store: Store) -> None:
    found, waiting, said = await planned(store, AFTER), Until(), list[str]()
    assert await follow(store, found, waiting, said.append)
    now = await stored(store)
    assert differing(now, AFTER) == ()
    assert [moment.ways for moment in waiting.moments] == [step.before.ways for step in found.steps] + [found.end.ways]
    assert said[-1] == "done"
    assert (await planned(store, AFTER)).steps == ()


async def test_a_step_that_does_not_come_about_is_where_the_next_run_goes_on(store: Store) -> None:
    said: list[str] = []
    with pytest.raises(Unavailable, match=r"^step 2 of 3: n3: no session; nothing is undone, run this again to go on$"):
        await follow(store, await planned(store, AFTER), Until(gives_up=3), said.append)
    again = await planned(store, AFTER)
    assert [step.kind for step in again.steps] == [Kind.NET_OFF]
    assert has_net(await stored(store))
    assert await follow(store, again, Pause(0), said.append)
    assert differing(await stored(store), AFTER) == ()


@pytest.mark.parametrize("moment", [2, 3, 4])
async def test_interrupted_in_any_step_all_is_as_it_was(store: Store, moment: int) -> None:
    before, said = await stored(store), list[str]()
    waiting = Until(interrupted=moment)
    assert not await follow(store, await planned(store, AFTER), waiting, said.append)
    assert differing(await stored(store), before) == ()
    assert said[-1] == "all is as it was"
    assert len(waiting.moments) == 2 * moment - 1, "waited after each step, there and back"


async def test_a_changed_password_is_written(store: Store) -> None:
    await store.create(secret(mesh="old"))
    wanted = copied(await stored(store))
    wanted.put(secret(mesh="new"))
    found = await planned(store, wanted)
    assert [str(change) for step in found.steps for change in step.changes] == ["change Secret kube-system/bgp"]
    assert await follow(store, found, Pause(0), lambda line: None)
    assert (await store.get(Secret, "bgp", "kube-system")).value("mesh") == b"new"


class Interrupted(MemoryStore):
    """Somebody presses Ctrl-C where the so-manieth write would be."""

    def __init__(self, write: int) -> None:
        super().__init__()
        self._left = write

    async def create(self, obj: R) -> R:
        await self._count()
        return await super().create(obj)

    async def update(self, obj: R) -> R:
        await self._count()
        return await super().update(obj)

    async def delete(self, kind: type[R], name: str, namespace: str = "", revision: str = "") -> R:
        await self._count()
        return await super().delete(kind, name, namespace, revision)

    async def _count(self) -> None:
        self._left -= 1
        task = asyncio.current_task()
        if self._left == 0 and task is not None:
            task.cancel()
            await asyncio.sleep(0)


@pytest.mark.parametrize("write", range(1, 8))
async def test_interrupted_between_two_writes_all_is_as_it_was(write: int) -> None:
    """Back to the mesh: a step that deletes two peers, within the net, which is deleted itself at last."""
    begin = reflected(BEFORE)
    begin.put(peer("also", node="n3", peerIP="10.0.0.1", asNumber=64512))
    every = [one for kind in (*PLANNED, IPPool, BlockAffinity) for one in begin.all(kind)]
    made = Interrupted(len(every) + write)
    for one in every:
        await made.create(one)
    before, said = await stored(made), list[str]()
    found = await planned(made, BEFORE)
    assert [change.verb for change in found.steps[1].changes] == ["change", "change", "change", "delete", "delete"]
    assert not await follow(made, found, Until(), said.append)
    assert differing(await stored(made), before) == ()
    assert said[-1] == "all is as it was"


async def test_a_step_back_that_would_break_something_is_not_made(store: Store) -> None:
    """n4 to n6 are in another subnet, where the net does not reach."""
    for i in (4, 5, 6):
        old = await store.get(Node, f"n{i}")
        await store.update(changed(node(i, subnet=1), resource_version=old.metadata.resource_version))
    found, said = await planned(store, AFTER), list[str]()
    lossy = next(number for number, step in enumerate(found.steps, 1) if step.lost)
    assert not await follow(store, found, Until(interrupted=1 + len(found.steps)), said.append)
    assert f"step {lossy} stays: it cannot be undone without loss; run this again to go on" in said


async def test_agents_that_are_away_stop_it_before_anything_is_changed(store: Store, tmp_path: Path) -> None:
    found = await planned(store, AFTER)
    away = Agents({name: tmp_path / name for name in found.start.nodes}, 0.1)
    with pytest.raises(
        Unavailable, match=r"^before anything is changed: not there after 0\.1 s: n1: BIRD is not ready: "
    ):
        await follow(store, found, away, lambda line: None)
    assert not has_net(await stored(store))


def test_agents_of_a_lab_that_is_not_up() -> None:
    with pytest.raises(ConfigError, match='no lab "nowhere" is up'):
        Agents.of("nowhere", plan(BEFORE, AFTER), 1.0)
