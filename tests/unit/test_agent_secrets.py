"""An agent asks for Secrets only once a session has its password in one, and no session goes without meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from bgp_world import A, B, bgp, peer, secret
from tortie.agent import secrets
from tortie.agent.secrets import follow_secrets
from tortie.agent.view import View
from tortie.calc.cluster import INPUTS
from tortie.calc.state import DesiredState
from tortie.model.meta import Resource
from tortie.model.secret import Secret
from tortie.store.memory import MemoryStore

PASSWORD = {"password": {"secretKeyRef": {"name": "bgp", "key": "tor"}}}
TOR = peer("tor", peerIP="10.0.0.9", asNumber=64999, **PASSWORD)


class Closed(MemoryStore):
    """A store of which Secrets are not told as long as it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.asked = 0

    async def list(self, kind: type[Resource], *words: object, **more: object):  # type: ignore[no-untyped-def]
        if kind is Secret:
            self.asked += 1
            await self.open.wait()
        return await super().list(kind, *words, **more)  # type: ignore[arg-type]


async def eventually(look: Callable[[], object], seconds: float = 10.0) -> None:
    for _ in range(int(seconds / 0.005)):
        if look():
            return
        await asyncio.sleep(0.005)
    pytest.fail(f"not so after {seconds:g} s")


def passwords(state: DesiredState) -> dict[str, str | None] | None:
    """Of each session; None where nothing is decided."""
    return None if state.routing is None else {one.name: one.password for one in state.routing.peers}


@pytest.fixture
async def store() -> Closed:
    store = Closed()
    for one in (A, B, bgp(), secret(tor="hushed")):
        await store.create(one)
    return store


async def test_secrets_are_asked_for_when_a_session_needs_one(store: Closed) -> None:
    states: list[DesiredState] = []
    view = View("a", store, states.append)
    async with AsyncExitStack() as stack:
        for task in (*(view.follow(kind) for kind in INPUTS), follow_secrets(view)):
            stack.callback(asyncio.create_task(task).cancel)
        await eventually(lambda: states and passwords(states[-1]) == {"Mesh_10_0_0_2": None})
        assert store.asked == 0
        await store.create(TOR)
        await eventually(lambda: passwords(states[-1]) is None)
        await eventually(lambda: store.asked == 1)
        assert "Mesh_10_0_0_2" not in str(states[-1].routing)
        store.open.set()
        await eventually(lambda: passwords(states[-1]) == {"Global_10_0_0_9": "hushed", "Mesh_10_0_0_2": None})
        assert {"Global_10_0_0_9": None, "Mesh_10_0_0_2": None} not in map(passwords, states)
        current = await store.get(Secret, "bgp", "kube-system")
        await store.delete(Secret, "bgp", "kube-system")
        await eventually(lambda: passwords(states[-1]) == {"Global_10_0_0_9": None, "Mesh_10_0_0_2": None})
        assert "hushed" not in repr(current) + repr(states) + str(view.cluster.problems)


async def test_who_is_told_no_secrets_goes_without_after_a_moment(store: Closed) -> None:
    await store.create(TOR)
    states: list[DesiredState] = []
    view = View("a", store, states.append)
    async with AsyncExitStack() as stack:
        for task in (*(view.follow(kind) for kind in INPUTS), follow_secrets(view)):
            stack.callback(asyncio.create_task(task).cancel)
        await eventually(lambda: states and passwords(states[-1]) is None)
        begun = asyncio.get_running_loop().time()
        await eventually(lambda: passwords(states[-1]) == {"Global_10_0_0_9": None, "Mesh_10_0_0_2": None})
        assert asyncio.get_running_loop().time() - begun > secrets.WAIT / 2
