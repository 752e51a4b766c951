"""Going the way of a plan: write a step's objects, wait until all nodes are there, the next one.

    wait for the first moment ─► [ write ─► wait for the moment after ] for each step ─► there
                                     │ interrupted
                                     └─► the same backwards: a step back keeps what the step forward kept

It may end at any point and be run again: a plan is made from what is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tortie.agent.client import ask
from tortie.base.errors import ConfigError, Conflict, NotFound, TortieError, Unavailable
from tortie.calc.bgp_plan.arrival import missing
from tortie.calc.bgp_plan.changes import Change, rebased
from tortie.calc.bgp_plan.moment import Moment
from tortie.calc.bgp_plan.plan import Plan, Step
from tortie.cli.node import sockets
from tortie.model.meta import Resource, changed
from tortie.model.store import Store

POLL = 0.2
STEADY = 4
"""So many times in a row all must be there: a session that is about to be restarted still stands."""
ATTEMPTS = 5
ASK_SECONDS = 5.0
SHOWN = 4
TELL = 5.0
"""Seconds between two lines that say what is waited for."""

Say = Callable[[str], None]


class Waiting(Protocol):
    """How to know that a moment has come about."""

    async def until(self, moment: Moment, say: Say) -> str:
        """What it took, in words; `say` is told what is waited for. Raises Unavailable saying what is missing."""
        ...


@dataclass(frozen=True, slots=True)
class Pause:
    """Where nobody can be asked: so many seconds."""

    seconds: float

    async def until(self, moment: Moment, say: Say) -> str:
        await asyncio.sleep(self.seconds)
        return f"waited {self.seconds:g} s, nobody asked"


@dataclass(frozen=True, slots=True)
class Agents:
    """Every node's agent is asked, over its socket."""

    sockets: Mapping[str, Path]
    timeout: float

    @classmethod
    def of(cls, lab: str, plan: Plan, timeout: float) -> Agents:
        """Raises ConfigError where not every node's agent can be asked from here."""
        found = sockets(lab)
        nodes = plan.start.nodes.keys() | plan.end.nodes.keys()
        away = sorted(nodes - found.keys())
        if away:
            text = f"{len(away)} of {len(nodes)} agents cannot be asked from here, {away[0]} first"
            raise ConfigError(f"{text}: give --wait SECONDS to wait blindly after each step", "--apply")
        return cls({node: path for node, path in found.items() if node in nodes}, timeout)

    async def until(self, moment: Moment, say: Say) -> str:
        began = told = time.monotonic()
        steady = 0
        while steady < STEADY:
            late = await self._late(moment)
            steady = 0 if late else steady + 1
            now = time.monotonic()
            if late and now - began > self.timeout:
                raise Unavailable(f"not there after {self.timeout:g} s: {_named(late)}")
            if late and now - told > TELL:
                told = now
                say(f"  waiting: {_named(late)}")
            await asyncio.sleep(POLL)
        return f"all nodes are there, {time.monotonic() - began:.1f} s"

    async def _late(self, moment: Moment) -> dict[str, list[str]]:
        """What is missing, by node."""
        nodes = [node for node in self.sockets if node in moment.nodes]
        answers = await asyncio.gather(*(asyncio.to_thread(_answer, self.sockets[node]) for node in nodes))
        found = {node: missing(moment, node, answer) for node, answer in zip(nodes, answers, strict=True)}
        return {node: what for node, what in found.items() if what}


def _named(late: Mapping[str, list[str]]) -> str:
    shown = "; ".join(f"{node}: {what[0]}" for node, what in list(late.items())[:SHOWN])
    return shown + (f" and {len(late) - SHOWN} nodes more" if len(late) > SHOWN else "")


def _answer(path: Path) -> Mapping[str, Any]:
    try:
        answer: Mapping[str, Any] = ask(path, "/node", ASK_SECONDS)
        return answer
    except TortieError as error:
        return {"bird": {"state": "not ready", "reason": str(error)}}


async def follow(store: Store, plan: Plan, waiting: Waiting, say: Say) -> bool:
    """Whether the end was reached; not so when it was interrupted and has gone back.

    Raises Unavailable when a step does not come about: then all stays as it is, and whoever runs it again goes on.
    """
    say("")
    say("now")
    await _until(waiting, plan.steps[0].before, "before anything is changed", say)
    done = 0
    try:
        for number, step in enumerate(plan.steps, 1):
            say(f"step {number} of {len(plan.steps)}: {step.kind}")
            done = number
            await _write(store, step.changes)
            await _until(waiting, step.after, f"step {number} of {len(plan.steps)}", say)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        await _back(store, plan.steps[:done], waiting, say)
        return False
    say("done")
    return True


async def _back(store: Store, steps: tuple[Step, ...], waiting: Waiting, say: Say) -> None:
    """Undo steps, the last one first, up to one that would break something."""
    say("interrupted: going back; once more stops right here")
    for number in range(len(steps), 0, -1):
        step = steps[number - 1]
        if step.lost:
            say(f"step {number} stays: it cannot be undone without loss; run this again to go on")
            return
        say(f"back before step {number}")
        await _write(store, [Change(change.new, change.old) for change in reversed(step.changes)])
        await _until(waiting, step.before, f"going back before step {number}", say)
    say("all is as it was")


async def _until(waiting: Waiting, moment: Moment, where: str, say: Say) -> None:
    try:
        say(f"  {await waiting.until(moment, say)}")
    except Unavailable as error:
        raise Unavailable(f"{where}: {error}; nothing is undone, run this again to go on") from None


async def _write(store: Store, changes: list[Change] | tuple[Change, ...]) -> None:
    """All of them, however far an earlier run came. Raises Conflict when others keep writing."""
    for change in changes:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await _written(store, change)
                break
            except (Conflict, NotFound):
                if attempt == ATTEMPTS:
                    raise


async def _written(store: Store, change: Change) -> None:
    one = change.resource
    current = await _found(store, one)
    if change.new is None:
        if current is not None:
            await store.delete(type(one), one.name, one.namespace)
    elif current is None and change.old is None:
        await store.create(changed(change.new, resource_version=""))
    else:
        new = rebased(change, current)
        if new is not None:
            await store.update(new)


async def _found(store: Store, one: Resource) -> Resource | None:
    try:
        return await store.get(type(one), one.name, one.namespace)
    except NotFound:
        return None
