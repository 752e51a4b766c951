"""Draws matrix.svg: what `tortie lab matrix` prints once the demo's policies are applied, from a lab of its own.

sudo .venv/bin/python docs/pictures/matrix.py
"""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from tortie.cli.main import main as tortie
from tortie.lab import network
from tortie.lab.cluster import wait_running
from tortie.lab.demo import EXAMPLES, PODS, POLICIES, manifest_pods
from tortie.lab.matrix import render
from tortie.lab.places import opened
from tortie.lab.state import LabDirectory
from tortie.lab.verdicts import Compared, compared

LAB = LabDirectory("picture")
WIDTH = 102
PATIENCE = 30.0


def must(*words: str) -> None:
    status = tortie(words)
    if status:
        raise SystemExit(f"tortie {' '.join(words)}: exit status {status}")


async def running() -> None:
    async with opened(LAB) as store:
        await wait_running(store, manifest_pods(PODS), PATIENCE)


def measured() -> Compared:
    """The lab's matrix once packets and policy agree."""
    must("lab", "up", "--name", LAB.name)
    must("apply", "--lab", LAB.name, "-f", str(EXAMPLES / PODS))
    asyncio.run(running())
    for policy in POLICIES:
        must("apply", "--lab", LAB.name, "-f", str(EXAMPLES / policy))
    deadline = time.monotonic() + PATIENCE
    while (found := asyncio.run(compared(LAB, "tcp", 4))).disagreements:
        if time.monotonic() > deadline:
            raise SystemExit("packets and policy do not agree")
    return found


def main() -> None:
    try:
        found = measured()
    finally:
        network.destroy(LAB)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(render(found.matrix, found.verdicts.expected, WIDTH))
    picture = console.export_svg(title="tortie lab matrix", theme=MONOKAI, unique_id="matrix")
    Path(__file__).with_suffix(".svg").write_text(picture)


if __name__ == "__main__":
    main()
