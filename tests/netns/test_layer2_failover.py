"""A node that is gone without a word, for all or only for the others: its addresses are answered for elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import layer2_hall
import pytest
from layer2_hall import VIP, VIP6, Hall, Running, hall, mac_of, running, until
from test_layer2_doubts import Cut

__all__ = ["hall", "running"]

pytestmark = pytest.mark.root


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    found: list[subprocess.Popen[bytes]] = []
    yield found
    for process in found:
        process.kill()
        process.wait()


async def test_a_killed_node_is_relieved(hall: Hall, tmp_path: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    """Its kernel stays, and answers nothing: the client learns of the other without asking."""
    spaces = {f"node{n}": hall.node(n) for n in (1, 2)}
    path = os.pathsep.join(filter(None, (str(Path(layer2_hall.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    for name, ns in spaces.items():  # they end with the test
        command = [sys.executable, layer2_hall.__file__, name, str(tmp_path / "db"), str(VIP), str(VIP6)]
        inside = ["ip", "netns", "exec", ns.name, *command]
        processes.append(subprocess.Popen(inside, env={**os.environ, "PYTHONPATH": path}))  # noqa: ASYNC220
    by_mac = {mac_of(ns): name for name, ns in spaces.items()}
    answers: set[str] = set()
    for _ in range(40):
        answers = await asyncio.to_thread(hall.arping, VIP)
        if answers:
            break
    await asyncio.sleep(1)  # both are there by now: nobody answers but the one
    answers = await asyncio.to_thread(hall.arping, VIP)
    assert len(answers) == 1
    first = by_mac[answers.pop()]
    (second,) = {*spaces} - {first}
    assert await asyncio.to_thread(hall.ask, VIP) == first
    assert await asyncio.to_thread(hall.ask, VIP6)
    process = processes[[*spaces].index(first)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert await asyncio.to_thread(hall.ask, VIP) == first  # whoever knows the way still gets there
    await until("the client was told", lambda: hall.neighbour(VIP) == mac_of(spaces[second]))
    hall.forget()
    assert await asyncio.to_thread(hall.arping, VIP) == {mac_of(spaces[second])}
    assert await asyncio.to_thread(hall.ask, VIP) == second
    assert await asyncio.to_thread(hall.ask, VIP6) == second


async def test_a_node_without_the_datastore_gives_way_to_its_successor(hall: Hall, running: Running) -> None:
    """It goes on answering until it hears that another has the address; and gets it back."""
    spaces = {f"node{n}": hall.node(n) for n in (1, 2)}
    ways = {name: Cut(running.store) for name in spaces}
    nodes = {name: running.start(name, ns, {VIP: None, VIP6: None}, ways[name]) for name, ns in spaces.items()}
    await until("all is answered for", lambda: sum(len(node.answering) for node in nodes.values()) == 2)
    first = nodes["node1"].holders[VIP]
    (second,) = {*spaces} - {first}
    ways[first].away = "silent"
    await asyncio.sleep(1)
    assert await asyncio.to_thread(hall.arping, VIP) == {mac_of(spaces[first])}
    await until("the other has both", lambda: set(nodes[second].answering) == {VIP, VIP6})
    await until("the first has heard of it", lambda: not nodes[first].answering)
    assert await asyncio.to_thread(hall.arping, VIP) == {mac_of(spaces[second])}
    ways[first].away = ""
    await until("it is back", lambda: VIP in nodes[first].answering)
    await until("the client was told", lambda: hall.neighbour(VIP) in ("", mac_of(spaces[first])))
    assert await asyncio.to_thread(hall.arping, VIP) == {mac_of(spaces[first])}
    assert nodes[second].problems == ()
