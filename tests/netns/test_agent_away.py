"""An agent that is slow, away or starting again, as a container runtime sees it through the plugin's executable.

What a runtime can rely on: a call ends within the time that it is given, with error 11 if the agent has not answered;
and after a DEL that succeeds nothing is left, whatever became of the ADD before it.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from agent_node import RED, Node, Sandbox, Site, nothing_left, pod, site_in, soon
from conftest import Ns

from tortie.cni.spec import CniError, Code
from tortie.model.k8s import Pod
from tortie.model.store import Store

pytestmark = pytest.mark.root

PODS = ("away-0", "away-1", "away-2", "away-3")
MakeNs = Callable[..., Ns]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("site")) as site:
        site.set_up()
        site.write(*map(pod, PODS))
        site.node("node1", "--no-bgp").start()
        yield site


@pytest.fixture
def node(site: Site) -> Node:
    return site.nodes[0]


@asynccontextmanager
async def stopped(node: Node) -> AsyncIterator[None]:
    """The agent is there and does nothing, as on a machine that is out of memory or time."""
    assert node.process is not None
    node.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        node.process.send_signal(signal.SIGCONT)


async def patiently(sandbox: Sandbox, verb: str, seconds: int) -> Any:
    """A call that is given so many seconds; the result, or the error."""
    runtime = sandbox.node.runtime(TORTIE_CNI_TIMEOUT=str(seconds))
    try:
        return await getattr(runtime, verb)(sandbox.conflist, netns=sandbox.path(None), **sandbox.where)
    except CniError as error:
        return error


def is_late(answer: Any, seconds: int) -> bool:
    """Whether a call was given up as it should be."""
    return (
        isinstance(answer, CniError)
        and answer.code == Code.TRY_AGAIN_LATER
        and answer.details == f"no answer within the seconds allowed: {seconds}"
    )


@pytest.mark.parametrize("milliseconds", [0, 5, 10, 15, 20, 30, 40])
async def test_add_that_meets_a_stopped_agent(node: Node, store: Store, make_ns: MakeNs, milliseconds: int) -> None:
    """It is stopped before the call, or in the middle of it. The runtime gives up, says DEL, gives that up too, and
    says DEL until it is answered."""
    one = Sandbox(node, PODS[0], make_ns())
    adding = asyncio.create_task(patiently(one, "add", 1)) if milliseconds else None
    await asyncio.sleep(milliseconds / 1000)
    async with stopped(node):
        began = time.monotonic()
        added = await (adding or patiently(one, "add", 1))
        assert time.monotonic() - began < 1.5
        assert isinstance(added, dict) or is_late(added, 1), added  # it may have been done before it was stopped
        began = time.monotonic()
        assert is_late(await patiently(one, "delete", 1), 1)
        assert time.monotonic() - began < 1.5
        deleting = asyncio.create_task(patiently(one, "delete", 30))
        await asyncio.sleep(0.1)
    assert await deleting is None
    await nothing_left(node, store)


async def test_add_that_nobody_waits_for_any_more_is_whole_or_nothing(
    node: Node, store: Store, make_ns: MakeNs
) -> None:
    """The runtime forgets it: no DEL. Once the agent goes on, the pod is connected or it is not, and a new container of
    the pod is connected whatever became of the old one."""
    one = Sandbox(node, PODS[0], make_ns())
    async with stopped(node):
        assert is_late(await patiently(one, "add", 1), 1)
    two = Sandbox(node, PODS[0], make_ns())
    await two.add()
    await two.check()
    assert [link["ifname"] for link in one.ns.json("link", "show")] == ["lo"]  # type: ignore[union-attr]
    await one.delete()
    await two.check()
    await two.delete()
    await nothing_left(node, store)


async def test_many_who_wait_for_an_agent_that_comes_back_are_all_served(
    node: Node, store: Store, make_ns: MakeNs
) -> None:
    """Four pods, ten STATUS calls and ten questions wait; none of them is lost."""
    boxes = [Sandbox(node, name, make_ns()) for name in PODS]
    async with stopped(node):
        calls = [asyncio.create_task(patiently(box, "add", 20)) for box in boxes]
        questions = [asyncio.create_task(asyncio.to_thread(node.ask, "/liveness")) for _ in range(10)]
        await asyncio.sleep(1)
        assert not any(task.done() for task in (*calls, *questions))
    assert all(isinstance(result, dict) for result in await asyncio.gather(*calls))
    assert {status for status, _ in await asyncio.gather(*questions)} == {200}
    for box in boxes:
        await box.check()
        await box.delete()
    await nothing_left(node, store)


async def test_runtime_that_tries_again_gets_through_an_agent_that_comes_and_goes(
    node: Node, store: Store, make_ns: MakeNs
) -> None:
    """Pods come and go while the agent is killed, terminated and stopped, in turn. Every call that fails says "later",
    in time; every pod that was connected is whole."""
    boxes = [Sandbox(node, name, make_ns()) for name in PODS]
    over = asyncio.Event()
    tally = {"done": 0, "later": 0}

    async def until_served(box: Sandbox, verb: str) -> None:
        while True:
            began = time.monotonic()
            answer = await patiently(box, verb, 3)
            assert time.monotonic() - began < 4.5
            if not isinstance(answer, CniError):
                tally["done"] += 1
                return
            assert answer.code == Code.TRY_AGAIN_LATER, answer
            tally["later"] += 1
            await asyncio.sleep(0.05)

    async def come_and_go(box: Sandbox) -> None:
        while not over.is_set():
            await until_served(box, "add")
            await until_served(box, "check")
            await until_served(box, "delete")

    async with asyncio.TaskGroup() as tasks:
        for box in boxes:
            tasks.create_task(come_and_go(box))
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP) * 2:
            await asyncio.sleep(random.uniform(0.2, 0.5))
            if number == signal.SIGSTOP:
                async with stopped(node):
                    await asyncio.sleep(0.5)
            else:
                await asyncio.to_thread(node.signal, number)
                await asyncio.sleep(random.uniform(0, 0.3))
                await asyncio.to_thread(node.start)
        over.set()
    print(tally)
    assert tally["done"] > 12
    assert tally["later"]
    await nothing_left(node, store)


async def test_call_for_an_agent_that_is_not_ready_yet(site: Site, store: Store, make_ns: MakeNs) -> None:
    """From its first moment it answers; what it cannot do yet is to be tried again later."""
    node = site.nodes[0]
    one = Sandbox(node, PODS[0], make_ns())
    node.kill()
    answers: list[Any] = [await patiently(one, "add", 5)]
    assert "connect: Connection refused" in str(answers[0])
    node.spawn()
    while isinstance(answers[-1], CniError):
        answers.append(await patiently(one, "add", 5))
    assert all(answer.code == Code.TRY_AGAIN_LATER for answer in answers[:-1])
    await one.check()
    await one.delete()
    await soon(lambda: node.ask("/readiness")[0], lambda status: status == 200, "it is ready")
    await nothing_left(node, store)


async def test_pods_are_still_in_the_datastore(store: Store) -> None:
    assert {one.name for one in (await store.list(Pod, RED)).items} >= set(PODS)
