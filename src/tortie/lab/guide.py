"""Who leads through a demonstration: says what is shown, checks it, and counts."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from tortie.base.errors import NotFound, TortieError
from tortie.lab import agents
from tortie.lab.matrix import render
from tortie.lab.podspec import PodKey, key_of
from tortie.lab.state import LabDirectory
from tortie.lab.steps import Steps
from tortie.lab.topology import Topology
from tortie.lab.verdicts import Compared, compared
from tortie.model.document import parse
from tortie.model.k8s import Pod

PATIENCE = 20.0  # seconds that pods, policies and a restarted agent may take
_POLL_SECONDS = 0.1
_INDENT = 2


class CheckFailed(Exception):
    """What was to be shown is not so."""


class Guide:
    """A lab, a console, the folder in which commands are typed, and how many checks there were."""

    def __init__(self, console: Console, lab: Topology, folder: Path) -> None:
        self.console = console
        self.steps = Steps(console)
        self.lab = lab
        self.directory = LabDirectory(lab.name)
        self.folder = folder
        self.checks = 0
        self.failed = 0

    @contextmanager
    def check(self, words: str, *, vital: bool = False) -> Iterator[None]:
        """Counts; what goes wrong inside is said and the tour goes on, unless nothing after it would make sense."""
        self.checks += 1
        try:
            with self.steps.step(words):
                yield
        except (CheckFailed, TortieError) as error:
            self.failed += 1
            self.console.print(Padding(Text(str(error), "red"), (0, _INDENT)))
            if vital:
                raise

    async def tortie(self, *words: str, status: int = 0) -> str:
        """Runs the command line in the folder as a user would; its output. Raises CheckFailed when it ends with
        another exit status."""
        self.say(f"$ tortie {' '.join(words)}")
        process = await asyncio.create_subprocess_exec(
            *agents.command(),
            *words,
            cwd=self.folder,
            env=os.environ | {"TORTIE_LAB": self.lab.name, "COLUMNS": str(self.width)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output = (await process.communicate())[0].decode(errors="replace")
        except asyncio.CancelledError:
            process.kill()
            await process.communicate()
            raise
        demand(process.returncode == status, f"exit status {process.returncode}: {output.strip()}")
        return output

    async def settled(self, version: int) -> Compared:
        """The first comparison without a disagreement, or after some time the last one: policy takes a moment."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = await compared(self.directory, "tcp", version)
            if not found.disagreements or time.monotonic() > deadline:
                return found

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not await asyncio.to_thread(condition):
            demand(time.monotonic() < deadline, f"still not so after {PATIENCE:.0f} s")
            await asyncio.sleep(_POLL_SECONDS)

    # --- what is printed ----------------------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Columns that there are beside the indent."""
        return self.console.width - 2 * _INDENT

    def title(self, text: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{text}[/bold]", align="left")

    def show_matrix(self, found: Compared) -> None:
        self.show(render(found.matrix, found.verdicts.expected, self.width))

    def say(self, text: str) -> None:
        self.show(Text(text, "dim"))

    def show(self, what: RenderableType) -> None:
        self.console.print(Padding(what, (0, _INDENT)))


def demand(good: bool, otherwise: str) -> None:
    """Raises CheckFailed with what is so instead."""
    if not good:
        raise CheckFailed(otherwise)


def pods_of(manifest: Path) -> list[PodKey]:
    """The pods of a manifest. Raises NotFound where the examples were not installed."""
    try:
        text = manifest.read_text()
    except FileNotFoundError:
        folder = manifest.parent
        raise NotFound(f"{folder} is not there: the demo is run from a checkout of the sources") from None
    return [key_of(resource) for resource in parse(text, manifest.name) if isinstance(resource, Pod)]
