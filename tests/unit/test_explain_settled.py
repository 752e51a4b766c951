"""What an agent says of itself to `tortie explain`: it waits a moment for what it has read to be in the kernel."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from tortie.agent.evidence import Evidence
from tortie.agent.view import Progress, View
from tortie.calc.cluster import INPUTS
from tortie.dataplane.stages.nft import Nft
from tortie.model.k8s import Namespace
from tortie.model.meta import Metadata
from tortie.store.memory import MemoryStore

NODE = "node1"
LONG = 60.0
"""Seconds that no test waits for."""


@dataclass
class Agent:
    """What an agent knows, and how far its kernel is. No table is looked at."""

    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.view = View(NODE, MemoryStore(), lambda state: None)
        self.evidence = Evidence(NODE, "/store.db", self.view, self.progress, Nft())

    def read(self, name: str) -> int:
        """A namespace is there; the generation of the state that has it."""
        state = self.view.put(Namespace(metadata=Metadata(name=name, resource_version="1")))
        assert state is not None
        return state.generation


@pytest.fixture
async def agent() -> Agent:
    """It has listed everything."""
    made = Agent()
    for kind in INPUTS:
        made.view.complete(kind, "0", ())
    assert made.view.in_sync.is_set()
    return made


async def test_before_there_is_a_state_nothing_is_waited_for() -> None:
    standing = await asyncio.wait_for(Agent().evidence.settled(LONG), 5)
    assert (standing["inSync"], standing["enforced"]) == (False, False)


async def test_what_is_in_the_kernel_is_told_at_once(agent: Agent) -> None:
    agent.progress.reached(agent.read("red"), ())
    standing = await asyncio.wait_for(agent.evidence.settled(LONG), 5)
    assert (standing["node"], standing["inSync"], standing["enforced"]) == (NODE, True, True)
    assert standing == agent.evidence.standing()


async def test_it_waits_for_the_pass_that_has_all_that_was_read(agent: Agent) -> None:
    before = agent.read("red")
    after = agent.read("blue")
    asked = asyncio.create_task(agent.evidence.settled(LONG))
    for generation, failures, enforced in ((before, (), True), (after, ("nft: refused",), False)):
        agent.progress.reached(generation, failures, enforced)
        await asyncio.sleep(0.01)
        assert not asked.done(), (generation, failures)
    assert not agent.evidence.standing()["enforced"]
    agent.progress.reached(after, ("routes: one of them",))
    standing = await asyncio.wait_for(asked, 5)
    assert (standing["enforced"], standing["failures"]) == (True, ["routes: one of them"])


async def test_a_change_while_it_waits_is_not_waited_for(agent: Agent) -> None:
    first = agent.read("red")
    asked = asyncio.create_task(agent.evidence.settled(LONG))
    await asyncio.sleep(0)
    agent.read("blue")
    agent.progress.reached(first, ())
    assert (await asyncio.wait_for(asked, 5))["enforced"] is False


async def test_after_a_moment_it_says_that_the_kernel_is_behind_and_why(agent: Agent) -> None:
    generation = agent.read("red")
    agent.progress.reached(generation, ("nft: refused",), enforced=False)
    loop = asyncio.get_running_loop()
    began = loop.time()
    standing = await asyncio.wait_for(agent.evidence.settled(0.1), 5)
    assert loop.time() - began >= 0.1
    assert (standing["enforced"], standing["failures"]) == (False, ["nft: refused"])
    agent.progress.reached(generation, ())
    assert (await agent.evidence.settled(0.1))["enforced"]
